"""The typed schema of the configuration: what may be written on the command line, and what is refused.

Hydra composes `conf/config.yaml` against these dataclasses (`composition.py`), and their `__post_init__`
checks what types alone cannot. Nothing here imports torch: a wrong setting is answered at once.
"""

import math
import re
from dataclasses import MISSING as _NO_DEFAULT
from dataclasses import dataclass, field, fields, make_dataclass, replace
from typing import Any

from omegaconf import MISSING

from wq.catalogue import load_format
from wq.numerics.effective import Effective, resolve
from wq.numerics.formats import Format
from wq.whisper.checkpoint.languages import language_code
from wq.whisper.layers.schemes import (
    ACTIVATION_GRANULARITIES,
    ATTENTIONS,
    CALIBRATORS,
    KEY_GRANULARITIES,
    SEARCH_SCOPES,
    SMOOTHINGS,
    VALUE_GRANULARITIES,
)

FEWEST_RESAMPLES = 40  # one beyond either end of the interval
GRANULARITIES = ("tensor", "channel", "group")
LONG_AUDIO = ("cut", "chunk")
ALGORITHMS = ("rtn", "gptq")
MEASURES = ("kl", "nll", "wer_capped", "wer")  # that points are held against each other by


class ConfigurationError(ValueError):
    """A setting that cannot be used: one line that names the value, the rule and the remedy."""


@dataclass
class ModelConfig:
    """Where a Whisper checkpoint comes from.

    path       `wq:NAME` for one that ships with wq, a local directory, or a hub id
    revision   of a hub id: branch, tag or commit; null is the default branch
    language   what a multilingual checkpoint is told to write: a code or an English name; null is the
               dataset's language
    """

    path: str = MISSING
    revision: str | None = None
    language: str | None = None

    def __post_init__(self) -> None:
        if self.language is not None:
            self.language = _language("model.language", self.language)

    @property
    def name(self) -> str:
        return self.path.rstrip("/").removeprefix("wq:").rsplit("/", 1)[-1]


@dataclass
class DatasetConfig:
    """Where audio and its reference transcripts come from.

    source        manifest (JSON lines), folder (audio files and a transcript table), or hub
    path          the manifest, or the directory that holds SPLIT.jsonl; the folder; the hub dataset's id, or
                  a directory of parquet files; `wq:NAME` for one that ships with wq
    split         which part is transcribed
    calibration_split   which part calibration may use
    config, revision    of a hub dataset
    audio_column, text_column   columns or keys; null is the source's own: audio and text of a hub dataset,
                  audio_filepath and text of a manifest, the first known one of a folder's table
    id_column     of a hub dataset; null numbers the rows
    language      a code or an English name. Decides the text normaliser: `en` is Whisper's English one,
                  anything else the basic one
    name          what results call it; null is the end of its path
    """

    source: str = MISSING
    path: str = MISSING
    split: str = "test"
    calibration_split: str | None = None
    config: str | None = None
    revision: str | None = None
    audio_column: str | None = None
    text_column: str | None = None
    id_column: str | None = None
    language: str = "en"
    name: str | None = None

    def __post_init__(self) -> None:
        if self.source not in ("manifest", "folder", "hub", MISSING):
            raise ConfigurationError(
                f"dataset.source={self.source} is unknown; choose one of manifest, folder, hub"
            )
        self.language = _language("dataset.language", self.language)
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


def _language(name: str, value: str) -> str:
    """One code for a language, whichever way it is named: what is decoded, scored and fingerprinted."""
    try:
        return language_code(value, name)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


def _check_choice(name: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigurationError(f"{name}={value} is unknown; choose one of {', '.join(choices)}")


def _check_count(name: str, value: int | None, optional: bool = True) -> None:
    if value is not None and value < 1:
        remedy = "give a positive number" + (", or null" if optional else "")
        raise ConfigurationError(f"{name}={value} must be at least 1; {remedy}")


def _check_share(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise ConfigurationError(f"{name}={value} must be from {low:g} to {high:g}; give another {name}")


# Fields of a format that replace the catalogue's; null keeps it.
FormatOptions = make_dataclass(
    "FormatOptions",
    [(f.name, f.type | None, field(default=None)) for f in fields(Format) if f.name != "name"],  # type: ignore[operator]
)


def describe_format(key: str, name: str, options: Any) -> Format:
    """The catalogue's format of this name with some fields replaced. Raises ConfigurationError."""
    changes = {name: value for name, value in vars(options).items() if value is not None}
    try:
        return replace(load_format(name), **changes)
    except ValueError as error:
        raise ConfigurationError(f"{key}: {error}") from error


def with_wide_scale(format: Format) -> Format:
    """The format as activations have it: a plain scale is never stored, so it stays in float32."""
    return replace(format, scale_dtype="fp32") if format.scale_dtype in ("fp16", "bf16") else format


@dataclass
class ActivationConfig:
    """How the inputs of linear layers are rounded at run time.

    format        name of a number format in conf/format; null leaves activations alone
    granularity   tensor (static, calibrated), token, or group (both dynamic)
    group         of granularity=group; null is the format's own
    options       fields of the format to replace, as in activation.options.scale_rule=even
    calibrator    how a static range follows from the calibration: max, percentile, mse, entropy
    percentile    of the magnitudes, for calibrator=percentile
    roles         whose inputs: roles as for weights
    """

    format: str | None = None
    granularity: str = "token"
    group: int | None = None
    options: FormatOptions = field(default_factory=FormatOptions)  # type: ignore[valid-type]
    calibrator: str = "max"
    percentile: float = 99.9
    roles: list[str] = field(default_factory=lambda: ["encoder", "decoder"])

    def __post_init__(self) -> None:
        _check_choice("activation.granularity", self.granularity, ACTIVATION_GRANULARITIES)
        _check_choice("activation.calibrator", self.calibrator, CALIBRATORS)
        _check_share("activation.percentile", self.percentile, 50, 100)
        _check_count("activation.group", self.group)
        if not self.roles:
            raise ConfigurationError("activation.roles=[] selects nothing; name a role, or activation=none")

    @property
    def resolved(self) -> Effective | None:
        """The settings that have an effect; None where activations are left alone."""
        if self.format is None:
            return None
        described = describe_format("activation", self.format, self.options)
        if self.options.scale_dtype is None:  # type: ignore[attr-defined]
            described = with_wide_scale(described)
        return resolve(described, self.granularity, self.group)


@dataclass
class KVCacheConfig:
    """How the keys and values that attention keeps are rounded as they are stored.

    format        name of a number format in conf/format; null leaves them alone
    keys          what shares a scale among keys: token (of one head), channel, or group (of channels)
    values        the same for values: token or group
    group         of granularity group; null is the format's own
    block         of keys per channel: the tokens that share a scale. Null: 32 for self-attention, all frames
                  for cross-attention
    options       fields of the format to replace, as in kv_cache.options.scale_dtype=fp32
    attention     whose: self, cross, or both
    """

    format: str | None = None
    keys: str = "token"
    values: str = "token"
    group: int | None = None
    block: int | None = None
    options: FormatOptions = field(default_factory=FormatOptions)  # type: ignore[valid-type]
    attention: list[str] = field(default_factory=lambda: list(ATTENTIONS))

    def __post_init__(self) -> None:
        _check_choice("kv_cache.keys", self.keys, KEY_GRANULARITIES)
        _check_choice("kv_cache.values", self.values, VALUE_GRANULARITIES)
        _check_count("kv_cache.group", self.group)
        _check_count("kv_cache.block", self.block)
        for name in self.attention:
            _check_choice("kv_cache.attention", name, ATTENTIONS)
        if not self.attention:
            raise ConfigurationError("kv_cache.attention=[] selects nothing; name self, cross, or both")

    def resolved(self, granularity: str) -> Effective | None:
        """The settings that have an effect on keys or values of this granularity."""
        if self.format is None:
            return None
        return resolve(describe_format("kv_cache", self.format, self.options), granularity, self.group)


@dataclass
class SmoothQuantConfig:
    """Smoothing before quantization: s = amax_x^alpha / amax_w^(1 - alpha) for every input channel.

    method        none, fixed (the alphas below), or search (the alphas that least disturb the outputs of the
                  quantized layers on the calibration data)
    alpha         of everything, where the three that follow are null
    alpha_encoder, alpha_decoder, alpha_cross   of the encoder's layers, the decoder's, and the keys and
                  values of cross-attention, which read the encoder's output
    fc2           smooth the input of fc2 too, by an explicit multiplication at run time
    scope         what shares a searched alpha: submodule (the three above), or layer
    """

    method: str = "none"
    alpha: float = 0.5
    alpha_encoder: float | None = None
    alpha_decoder: float | None = None
    alpha_cross: float | None = None
    fc2: bool = False
    scope: str = "submodule"

    def __post_init__(self) -> None:
        _check_choice("smoothquant.method", self.method, SMOOTHINGS)
        _check_choice("smoothquant.scope", self.scope, SEARCH_SCOPES)
        for name in ("alpha", "alpha_encoder", "alpha_decoder", "alpha_cross"):
            _check_share(f"smoothquant.{name}", getattr(self, name), 0, 1)


@dataclass
class AlgorithmConfig:
    """How weights are rounded to the values that their format holds.

    name              rtn (each to the nearest) or gptq (column by column, the columns to come making up for
                      each rounding's effect on the outputs on calibration speech)
    damping           of gptq: what is added to the second moments' diagonal, as a share of its mean
    activation_order  of gptq: columns that read the most come first
    """

    name: str = "rtn"
    damping: float = 0.01
    activation_order: bool = True

    def __post_init__(self) -> None:
        _check_choice("algorithm.name", self.name, ALGORITHMS)
        if not 0 <= self.damping < math.inf:
            raise ConfigurationError(
                f"algorithm.damping={self.damping} must be at least 0; give a share of the mean, such as 0.01"
            )


@dataclass
class CalibrationConfig:
    """What static scales, smoothing and gptq are taken from: utterances of dataset.calibration_split.

    limit   how many, from the first on; null is all of them
    """

    limit: int | None = 64

    def __post_init__(self) -> None:
        _check_count("calibration.limit", self.limit)


@dataclass
class PlanEntry:
    """The format of some weights: roles, the beginnings of roles, or a role in one block
    (encoder.mlp.fc1:0)."""

    roles: list[str] = MISSING
    format: str = MISSING
    granularity: str = "group"
    group: int | None = None
    options: FormatOptions = field(default_factory=FormatOptions)  # type: ignore[valid-type]

    def __post_init__(self) -> None:
        _check_choice("plan.layers.granularity", self.granularity, GRANULARITIES)
        _check_count("plan.layers.group", self.group)

    @property
    def resolved(self) -> Effective:
        described = describe_format("plan.layers", self.format, self.options)
        return resolve(described, self.granularity, self.group)


@dataclass
class PlanConfig:
    """Which weights get which format, layer by layer.

    layers   a list of roles with their format, granularity and group; null leaves it to the settings of these
             names and to decoder_format, which are the short way to write a plan
    """

    layers: list[PlanEntry] | None = None

    def __post_init__(self) -> None:
        if self.layers is not None and not self.layers:
            raise ConfigurationError("plan.layers=[] selects nothing; name a role, or choose plan=none")


@dataclass
class TreatmentConfig:
    """What is done to the model. Of all this the fp32 reference has nothing."""

    format: FormatConfig = MISSING  # type: ignore[valid-type]
    granularity: str = "group"
    group: int | None = None
    roles: list[str] = field(default_factory=lambda: ["encoder", "decoder"])
    decoder_format: FormatConfig | None = None  # type: ignore[valid-type]
    plan: PlanConfig = field(default_factory=PlanConfig)
    share_tensor_scale: bool = False
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    activation: ActivationConfig = field(default_factory=ActivationConfig)
    decoder_activation: ActivationConfig | None = None
    smoothquant: SmoothQuantConfig = field(default_factory=SmoothQuantConfig)
    kv_cache: KVCacheConfig = field(default_factory=KVCacheConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)

    @property
    def number_format(self) -> Format:
        """The format with the command line's changes. Raises ValueError where they make no format."""
        return Format(**vars(self.format))

    @property
    def number_formats(self) -> tuple[Format, Format]:
        """The encoder's and the decoder's. Raises ValueError where the settings make no format."""
        decoder = self.decoder_format
        return self.number_format, self.number_format if decoder is None else Format(**vars(decoder))


@dataclass
class Config(TreatmentConfig):
    """The whole configuration; conf/config.yaml explains each value."""

    model: ModelConfig = MISSING
    dataset: DatasetConfig = MISSING
    long_audio: str = "cut"
    window: str = "full"
    max_new_tokens: int | None = None
    batch_size: int = 32
    limit: int | None = None
    device: str = "auto"
    seed: int = 0
    resamples: int = 10_000
    margin: float = 0.005
    front: str | None = None
    rerun: bool = False
    drafting: bool = True
    reuse: bool = True
    reuse_limit: int = 1000
    tracking_uri: str | None = None
    experiment_name: str = "wq"
    chunk: int = 1
    detach: bool = False
    expect_wer: dict[str, list[float]] = field(default_factory=dict)

    @property
    def sources(self) -> dict[str, str | None]:
        """Where it reads from, by its settings."""
        return {"dataset.path": self.dataset.path, "model.path": self.model.path}

    def __post_init__(self) -> None:
        for model, band in self.expect_wer.items():
            if len(band) != 2 or not 0 <= band[0] <= band[1]:
                raise ConfigurationError(
                    f"expect_wer={{{model}: {band}}} is no band; give [low, high], fractions: [0.05, 0.06]"
                )
        _check_choice("granularity", self.granularity, GRANULARITIES)
        _check_choice("long_audio", self.long_audio, LONG_AUDIO)
        if not re.fullmatch("full|auto|[1-9][0-9]{0,3}", self.window):
            raise ConfigurationError(
                f"window={self.window} is no window; give full, auto, or whole seconds such as 10"
            )
        for name in ("group", "max_new_tokens", "batch_size", "limit", "chunk", "reuse_limit"):
            _check_count(name, getattr(self, name), optional=name in ("group", "limit"))
        if self.seed < 0:
            raise ConfigurationError(f"seed={self.seed} must be at least 0; give another seed")
        if self.resamples < FEWEST_RESAMPLES:
            raise ConfigurationError(
                f"resamples={self.resamples} gives no 95 % interval; give at least {FEWEST_RESAMPLES}"
            )
        _check_share("margin", self.margin, 0, 1)
        if self.front is not None:
            _check_choice("front", self.front, MEASURES)
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigurationError(
                f"device={self.device} is unknown; choose auto, cpu, cuda, or cuda:N for one of several GPUs"
            )
        if not self.roles:
            raise ConfigurationError(
                "roles=[] selects nothing; name a role, or use format=fp32 for no quantization"
            )
