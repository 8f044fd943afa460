"""The typed schema of the configuration: what may be written on the command line, and what is refused.

Hydra composes `conf/config.yaml` against these dataclasses; `OmegaConf.to_object` gives them back, and their
`__post_init__` checks what types alone cannot. Nothing here imports torch: a wrong setting is answered at
once.
"""

import re
from dataclasses import MISSING as _NO_DEFAULT
from dataclasses import dataclass, field, fields, make_dataclass

from omegaconf import MISSING, DictConfig, MissingMandatoryValue, OmegaConf

from wq.numerics.formats import Format

FEWEST_RESAMPLES = 40  # one beyond either end of the interval
GRANULARITIES = ("tensor", "channel", "group")


class ConfigurationError(ValueError):
    """A setting that cannot be used: one line that names the value, the rule and the remedy."""


@dataclass
class ModelConfig:
    """Where a Whisper checkpoint comes from.

    path       `wq:NAME` for one that ships with wq, a local directory, or a hub id
    revision   of a hub id: branch, tag or commit; null is the default branch
    language   what a multilingual checkpoint is told to write; null is the dataset's language
    """

    path: str = MISSING
    revision: str | None = None
    language: str | None = None

    @property
    def name(self) -> str:
        return self.path.rstrip("/").removeprefix("wq:").rsplit("/", 1)[-1]


@dataclass
class DatasetConfig:
    """Where audio and its reference transcripts come from.

    source        manifest (JSON lines), folder (audio files and a transcript table), or hub
    path          the manifest, or the directory that holds SPLIT.jsonl; the folder; the hub dataset's id;
                  `wq:NAME` for one that ships with wq
    split         which part is transcribed
    calibration_split   which part calibration may use
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


# The schema of the config group `format`: the fields of `Format`, writable.
FormatConfig = make_dataclass(
    "FormatConfig",
    [
        (f.name, f.type, field(default=MISSING if f.default is _NO_DEFAULT else f.default))
        for f in fields(Format)
    ],
)


@dataclass
class Config:
    """The whole configuration; conf/config.yaml explains each value."""

    model: ModelConfig = MISSING
    dataset: DatasetConfig = MISSING
    format: FormatConfig = MISSING  # type: ignore[valid-type]
    granularity: str = "group"
    group: int | None = None
    roles: list[str] = field(default_factory=lambda: ["encoder", "decoder"])
    max_new_tokens: int | None = None
    batch_size: int = 32
    limit: int | None = None
    device: str = "auto"
    seed: int = 0
    resamples: int = 10_000
    rerun: bool = False
    tracking_uri: str | None = None
    experiment_name: str = "wq"

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            raise ConfigurationError(
                f"granularity={self.granularity} is unknown; choose one of {', '.join(GRANULARITIES)}"
            )
        for name in ("group", "max_new_tokens", "batch_size", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                remedy = "give a positive number" + (", or null" if name in ("group", "limit") else "")
                raise ConfigurationError(f"{name}={value} must be at least 1; {remedy}")
        if self.seed < 0:
            raise ConfigurationError(f"seed={self.seed} must be at least 0; give another seed")
        if self.resamples < FEWEST_RESAMPLES:
            raise ConfigurationError(
                f"resamples={self.resamples} gives no 95 % interval; give at least {FEWEST_RESAMPLES}"
            )
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigurationError(
                f"device={self.device} is unknown; choose auto, cpu, cuda, or cuda:N for one of several GPUs"
            )
        if not self.roles:
            raise ConfigurationError(
                "roles=[] selects nothing; name a role, or use format=fp32 for no quantization"
            )

    @property
    def number_format(self) -> Format:
        """The format with the command line's changes. Raises ValueError where they make no format."""
        return Format(**vars(self.format))


def register_schema() -> None:
    """Make the schema known to Hydra under the name that conf/config.yaml starts from."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=Config)


def as_config(composed: DictConfig) -> Config:
    """The composed configuration as dataclasses, checked. Raises ConfigurationError."""
    try:
        config = OmegaConf.to_object(composed)
    except MissingMandatoryValue as error:
        key = str(getattr(error, "full_key", "")) or "a mandatory value"
        raise ConfigurationError(f"{key} is missing; give {key}=... on the command line") from error
    assert isinstance(config, Config)
    return config
