"""A job before it runs: a checked configuration with the content that it names found and hashed."""

import json
import shlex
import sys
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path

from wq.study.score import wer
from wq.study.spec.config import Config, ConfigurationError, DatasetConfig, TreatmentConfig
from wq.study.spec.resolution import resolve_spec, resolve_treatment
from wq.study.spec.spec import Calibration, Content, Spec
from wq.study.spec.window import resolve_window
from wq.study.speech.datasets import Speech, load_speech
from wq.study.store.tracking import Store, default_uri
from wq.whisper.checkpoint.files import content_hash, locate
from wq.whisper.checkpoint.geometry import POSITIONS_PER_SECOND, read_geometry
from wq.whisper.checkpoint.model import Whisper, load

# What is done to a model, and asking for a point again, concern no reference
NOT_OF_REFERENCE = {*(field.name for field in fields(TreatmentConfig)), "rerun"}


@dataclass(frozen=True)
class Job:
    """A configuration with its effective spec, its test set, the speech that its static scales and smoothing
    are taken from, and the local directory of its checkpoint."""

    config: Config
    spec: Spec
    speech: Speech
    calibration: Speech | None
    checkpoint: Path
    store: Store
    overrides: tuple[str, ...]

    def reference(self) -> "Job":
        """The fp32 job that this one is compared with. It is run once, so `rerun` is not for it."""
        kept = (text for text in self.overrides if setting_of(text) not in NOT_OF_REFERENCE)
        return replace(
            self,
            spec=self.spec.reference(),
            config=replace(self.config, rerun=False),
            overrides=(*kept, "format=fp32"),
        )

    @property
    def command(self) -> str:
        """What makes this point again, typed into a shell."""
        kept = (text for text in self.overrides if not text.startswith(("chunk=", "detach=")))
        return shlex.join(["python", "-m", "wq.main", *kept])


def prepare(config: Config, overrides: list[str], *, looks_only: bool = False) -> Job:
    """Everything that can be checked before a model is loaded. With looks_only no store is made, and none is
    needed.

    Raises ConfigurationError, ModelError, DataError, StoreError.
    """
    resolved = resolve_treatment(config)  # what cannot be is refused before anything is read
    checkpoint = locate(config.model.path, config.model.revision)
    geometry = read_geometry(checkpoint)
    if config.max_new_tokens is not None and config.max_new_tokens > geometry.room:
        raise ConfigurationError(
            f"max_new_tokens={config.max_new_tokens} does not fit: the decoder has room for {geometry.room}; "
            "give fewer, or null"
        )
    speech = read_test_set(json.dumps(asdict(config.dataset)), config.limit)
    if not any(wer.normalise(utterance.text, config.dataset.language) for utterance in speech.utterances):
        raise ConfigurationError(
            f"none of the {len(speech.utterances)} references has a word in it; check the dataset's texts"
        )
    calibration = read_calibration(config, speech) if resolved.treatment.needs_calibration else None
    own_window = geometry.max_source_positions / POSITIONS_PER_SECOND
    spec = resolve_spec(
        config,
        resolved,
        Content(config.model.name, hash_once(checkpoint)),
        Content(config.dataset.name or speech.name, speech.content_hash),
        len(speech.utterances),
        wer.normaliser_of((utterance.text for utterance in speech.utterances), config.dataset.language),
        geometry.is_multilingual,
        calibration and Calibration(calibration.split, len(calibration.utterances), calibration.content_hash),
        speech.longest > own_window,
        resolve_window(config.window, longest_heard(config, speech), own_window),
    )
    store = Store(config.tracking_uri or default_uri(), config.experiment_name)
    if not looks_only:
        store.check()
    device = resolve_device(config.device)  # last, as it imports torch: what else is wrong is said at once
    return Job(replace(config, device=device), spec, speech, calibration, checkpoint, store, tuple(overrides))


def setting_of(override: str) -> str:
    """The setting at the root that a command-line override is about: smoothquant for smoothquant.alpha=0.8,
    decoder_activation for activation@decoder_activation=int8_token."""
    key = override.partition("=")[0].lstrip("+~").rpartition("@")[2]
    return key.partition(".")[0]


@lru_cache(maxsize=4)
def read_test_set(dataset: str, limit: int | None, split: str | None = None) -> Speech:
    """The test set, or another split of the dataset, read once for all jobs of a grid."""
    return load_speech(DatasetConfig(**json.loads(dataset)), split=split, limit=limit)


def read_calibration(config: Config, speech: Speech) -> Speech:
    """The utterances that a spec is calibrated on. Raises ConfigurationError where there are none, or where
    they are among those that it is tested on."""
    split, tested = config.dataset.calibration_split, config.dataset.split
    if split is None:
        raise ConfigurationError(
            "static scales, smoothing and gptq need calibration, and dataset.calibration_split=null names no "
            "data for it; name a split that is not tested on, or use dynamic scales (token, group), "
            "smoothquant=none and algorithm=rtn"
        )
    remedy = "name a split that is not tested on"
    if split == tested:
        raise ConfigurationError(f"dataset.calibration_split={split} is the tested split; {remedy}")
    calibration = read_test_set(json.dumps(asdict(config.dataset)), config.calibration.limit, split)
    known = {utterance.digest for utterance in speech.utterances}
    shared = sum(utterance.digest in known for utterance in calibration.utterances)
    if shared:
        raise ConfigurationError(
            f"{shared} recordings of dataset.calibration_split={split} are in the tested split {tested} too; "
            f"{remedy}"
        )
    return calibration


def longest_heard(config: Config, speech: Speech) -> float:
    """Seconds of the longest utterance that a point of this test set hears, whether or not it needs the
    calibration split: with window=auto all points, and their reference, have one window. With window=full
    that split is not looked at."""
    if config.window == "full" or config.dataset.calibration_split is None:
        return speech.longest
    return max(speech.longest, read_calibration(config, speech).longest)


@lru_cache(maxsize=16)
def hash_once(checkpoint: Path) -> str:
    return content_hash(checkpoint)


@lru_cache(maxsize=1)
def load_once(checkpoint: Path, device: str) -> Whisper:
    """The model, loaded once for all jobs of a grid that use it, with what its user should know."""
    whisper = load(checkpoint, device)
    for notice in whisper.notices:
        print(notice, file=sys.stderr)
    return whisper


def resolve_device(device: str) -> str:
    """The device that is meant. Raises ConfigurationError for one that this machine does not have."""
    if device == "cpu":
        return device
    import torch

    count = torch.cuda.device_count()
    if device == "auto":
        return "cuda" if count else "cpu"
    index = int(device.partition(":")[2] or 0)
    if index >= count:
        raise ConfigurationError(
            f"device={device} is not there: this machine has {count} CUDA devices; give device=cpu"
            + (f", or cuda:0 to cuda:{count - 1}" if count else "")
        )
    return device
