"""The typed schema of the configuration: what may be written on the command line, and what is refused.

Hydra composes `conf/config.yaml` against these dataclasses; `OmegaConf.to_object` gives them back, and their `__post_init__`
checks what types alone cannot. Nothing here imports torch: a wrong setting is answered at once.
"""

from dataclasses import dataclass, field

from omegaconf import MISSING

from wq.numerics.formats import Format

GRANULARITIES = ("tensor", "channel", "group")


class ConfigurationError(ValueError):
    """A setting that cannot be used: one line that names the value, the rule and the remedy."""


@dataclass
class ModelConfig:
    """Where a Whisper checkpoint comes from.

    path       `wq:NAME` for one that ships with wq, a local directory, or a hub id
    revision   of a hub id: branch, tag or commit; null is the default branch
    language   spoken language for multilingual checkpoints (their `generate` needs it); ignored by English-only ones
    """

    path: str = MISSING
    revision: str | None = None
    language: str = "en"

    @property
    def name(self) -> str:
        return self.path.rstrip("/").removeprefix("wq:").rsplit("/", 1)[-1]


@dataclass
class DatasetConfig:
    """Where audio and its reference transcripts come from.

    source        manifest (JSON lines: audio_filepath, duration, text) | folder (audio files and a transcript table) | hub
    path          manifest: the file, or the directory that holds SPLIT.jsonl; folder: the directory; hub: the dataset's id;
                  `wq:NAME` for one that ships with wq
    split         which part is transcribed
    calibration_split   which part calibration may use; never the same as split
    config, revision    of a hub dataset
    audio_column, text_column, id_column   of a hub dataset; id_column null numbers the rows
    language      decides the text normaliser: `en` is Whisper's English one, anything else the basic one
    """

    source: str = MISSING
    path: str = MISSING
    split: str = "test"
    calibration_split: str | None = None
    config: str | None = None
    revision: str | None = None
    audio_column: str = "audio"
    text_column: str = "text"
    id_column: str | None = None
    language: str = "en"
    name: str | None = None

    def __post_init__(self) -> None:
        if self.source not in ("manifest", "folder", "hub", MISSING):
            raise ConfigurationError(
                f"dataset.source={self.source} is unknown; choose one of manifest, folder, hub"
            )
        if self.name is None and self.path != MISSING:
            self.name = self.path.rstrip("/").removeprefix("wq:").rsplit("/", 1)[-1].removesuffix(".jsonl")
