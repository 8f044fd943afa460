"""What a job is, exactly: the effective spec, its name and its fingerprint.

The effective spec holds the settings that can change a number: defaults filled in, settings without effect
dropped. Two jobs with the same fingerprint are the same point, and only the first of them runs. Device,
paths, batch size and tracking are no part of it.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace

from wq.catalogue import load_format
from wq.numerics.effective import Effective, Quantizer, point_name, resolve
from wq.numerics.formats import Format
from wq.study.config import (
    ActivationConfig,
    CalibrationConfig,
    Config,
    ConfigurationError,
    KVCacheConfig,
    SmoothQuantConfig,
    with_wide_scale,
)
from wq.whisper.roles import LINEAR_ROLES, expand, is_decoders
from wq.whisper.schemes import (
    ATTENTIONS,
    DEFAULT_ROLES,
    Activation,
    Assignment,
    KVCache,
    Q,
    Smoothing,
    assign,
    has_static_range,
)

# Raise these when the code gives other numbers for the same settings: stored results are then not taken for
# new ones.
NUMERICS_VERSION = 1
DECODING_VERSION = 1

REFERENCE_FORMAT = "fp32"
UNQUANTIZED_BITS = 16  # in which activations, keys and values are counted where nothing rounds them


@dataclass(frozen=True)
class Source:
    """A model or a test set: its readable name, and the hash of its content that identifies it."""

    name: str
    content_hash: str


@dataclass(frozen=True)
class Calibration:
    """What static scales and smoothing are taken from: so many utterances of a split of the dataset."""

    split: str
    utterances: int
    content_hash: str


@dataclass(frozen=True)
class Spec:
    """The effective settings of one job. `ignored` names the settings that were given but have no effect.

    weights, activations   which quantizers, for which roles; empty where nothing is quantized
    """

    model: Source
    dataset: Source
    split: str
    language: str
    decoding_language: str | None
    limit: int | None
    weights: tuple[Assignment[Quantizer], ...]
    share_tensor_scale: bool
    activations: tuple[Assignment[Activation], ...]
    smoothquant: Smoothing | None
    kv_cache: KVCache | None
    calibration: Calibration | None
    max_new_tokens: int | None
    seed: int
    resamples: int
    normaliser: str
    ignored: tuple[str, ...] = ()

    @property
    def is_reference(self) -> bool:
        """Whether it is the fp32 job that all others of its model and test set are compared with."""
        return not (self.weights or self.activations or self.kv_cache or self.smoothquant)

    @property
    def point(self) -> str:
        """The readable name, such as int4-g32, nvfp4-channel, W4A8KV8 int4-g128 / int8-token / int8; unique
        among the points of a model and test set."""
        names = self.weights_name
        if self.activations or self.kv_cache:
            names = f"{self.precisions} {names} / {self.activation_name}"
            names += f" / {self.kv_cache_name}" if self.kv_cache else ""
        names += f" + smoothquant-{self.smoothquant_name}" if self.smoothquant else ""
        calibration = self.calibration
        if calibration is None or calibration.utterances == CalibrationConfig().limit:
            return names
        return f"{names} + calibrated on {calibration.utterances}"

    @property
    def precisions(self) -> str:
        """The bits of weights, activations, keys and values, as in W4A8KV8; 16 where nothing rounds them."""
        weights = _widths([each.quantizer.format for each in self.weights], 32)
        activations = _widths([each.quantizer.quantizer.format for each in self.activations])
        cache = self.kv_cache
        stored = _widths([cache.keys.format, cache.values.format]) if cache else ""
        return f"W{weights}A{activations}" + (f"KV{stored}" if cache else "")

    @property
    def weights_name(self) -> str:
        if not self.weights:
            return REFERENCE_FORMAT
        return _assigned(self.weights, weight_name) + ("-fused" if self.share_tensor_scale else "")

    @property
    def activation_name(self) -> str:
        return _assigned(self.activations, activation_name) if self.activations else "none"

    @property
    def kv_cache_name(self) -> str:
        return kv_cache_name(self.kv_cache) if self.kv_cache else "none"

    @property
    def smoothquant_name(self) -> str:
        return smoothing_name(self.smoothquant) if self.smoothquant else "none"

    @property
    def fingerprint(self) -> str:
        settings = asdict(self)
        for name in ("model", "dataset"):
            settings[name] = settings[name]["content_hash"]
        # The content hash tells which utterances were chosen.
        del settings["ignored"], settings["limit"]
        if self.calibration:
            settings["calibration"] = self.calibration.content_hash
        settings["versions"] = [NUMERICS_VERSION, DECODING_VERSION]
        anonymous = _without_format_names(settings)
        return hashlib.sha256(json.dumps(anonymous, sort_keys=True).encode()).hexdigest()[:16]

    def reference(self) -> "Spec":
        """The fp32 job of the same model and test set, with which this one is compared."""
        return replace(
            self,
            weights=(),
            share_tensor_scale=False,
            activations=(),
            smoothquant=None,
            kv_cache=None,
            calibration=None,
            ignored=(),
        )


def _without_format_names(settings: object) -> object:
    """The settings without what changes no number: what a format is called, and its own group, beside which
    the effective group says which scales there are."""
    if isinstance(settings, dict):
        is_format = "element" in settings
        return {
            key: _without_format_names(value)
            for key, value in settings.items()
            if not (is_format and key in ("name", "group"))
        }
    return [*map(_without_format_names, settings)] if isinstance(settings, list | tuple) else settings


def _widths(formats: Sequence[Format], unquantized: int = UNQUANTIZED_BITS) -> str:
    widths = dict.fromkeys(str(format.bits) for format in formats)
    return "+".join(widths) or str(unquantized)


def _assigned(assignments: Sequence[Assignment[Q]], tell: Callable[[Q], str]) -> str:
    """The quantizers' names, each with its roles where they are not encoder and decoder."""
    return "+".join(
        tell(quantizer) + ("" if roles == DEFAULT_ROLES else f"@{','.join(roles)}")
        for quantizer, roles in assignments
    )


def weight_name(quantizer: Quantizer) -> str:
    return point_name(*quantizer, catalogued(quantizer.format))


def activation_name(activation: Activation) -> str:
    """Such as int8-token, or int8-tensor-percentile99.9 where a static range is not the maximum."""
    quantizer = activation.quantizer
    name = point_name(*quantizer, with_wide_scale(catalogued(quantizer.format)))
    if activation.calibrator in (None, "max"):
        return name
    return f"{name}-{activation.calibrator}" + (
        f"{activation.percentile:g}" if activation.percentile is not None else ""
    )


def kv_cache_name(cache: KVCache) -> str:
    """Such as int8, int4-g32, or int4-keys_channel-block16@cross; a scale for every token and head goes
    without saying."""
    values = cache.values
    name = point_name(*values, catalogued(values.format)).removesuffix("-token")
    if cache.keys.granularity != values.granularity:
        name += f"-keys_{cache.keys.granularity}"
    name += f"-block{cache.block}" if cache.block else ""
    return name if cache.attention == ATTENTIONS else f"{name}@{'+'.join(cache.attention)}"


def smoothing_name(smoothing: Smoothing) -> str:
    """Such as 0.5, encoder0.8,decoder0.96,cross0.5, or search."""
    alphas = smoothing.alphas
    if smoothing.method == "search":
        name = "search" + (f"-{smoothing.scope}" if smoothing.scope != "submodule" else "")
    elif len(set(alphas.values())) == 1:
        name = f"{smoothing.encoder:g}"
    else:
        name = ",".join(f"{part}{alpha:g}" for part, alpha in alphas.items())
    return name + ("-fc2" if smoothing.fc2 else "")


def catalogued(format: Format) -> Format:
    """The catalogue's format of this name, from whose defaults a point's name tells the differences."""
    try:
        return load_format(format.name)
    except ValueError:  # described on the command line or in a user's own configuration directory
        return format


def needs_calibration(config: Config) -> bool:
    """Whether a configuration's static scales or its smoothing must be calibrated."""
    smoothing = effective_smoothing(config.smoothquant) is not None
    activations = [_activation(each) for each in (config.activation, config.decoder_activation) if each]
    cache = effective_kv_cache(config.kv_cache)
    return smoothing or any(each.is_static for each in (*activations, cache) if each)


def effective_spec(
    config: Config,
    model: Source,
    dataset: Source,
    utterances: int,
    normaliser: str,
    multilingual: bool,
    calibration: Calibration | None = None,
) -> Spec:
    """The effective spec of a configuration; `utterances` is how many are transcribed, `calibration` what
    is there for a configuration that `needs_calibration`.

    Raises ConfigurationError for a format that cannot be, or a role that there is not.
    """
    try:
        encoder, decoder = (
            resolve(format, config.granularity, config.group) for format in config.number_formats
        )
        weights = assign(
            {role: _quantizer(decoder if is_decoders(role) else encoder) for role in expand(config.roles)}
        )
        activations = effective_activations(config)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    ignored = list(dict.fromkeys(encoder.ignored + decoder.ignored))
    roles = config.roles
    if not weights and set(expand(roles)) != set(expand(DEFAULT_ROLES)):
        ignored.append(f"roles=[{','.join(roles)}]")
    if config.model.language is not None and not multilingual:
        ignored.append(f"model.language={config.model.language}")
    shares = any(each.quantizer.format.has_tensor_scale for each in weights)
    if config.share_tensor_scale and not shares:
        ignored.append("share_tensor_scale=true")
    for key, each in (("activation", config.activation), ("decoder_activation", config.decoder_activation)):
        ignored += [f"{key}.{setting}" for setting in (_ignored(each) if each else ())]
    ignored += [f"kv_cache.{setting}" for setting in _ignored_of_cache(config.kv_cache)]
    ignored += [f"smoothquant.{setting}" for setting in _ignored_of_smoothing(config.smoothquant)]
    return Spec(
        model=model,
        dataset=dataset,
        split=config.dataset.split,
        language=config.dataset.language,
        decoding_language=(config.model.language or config.dataset.language) if multilingual else None,
        limit=config.limit if config.limit == utterances else None,
        weights=weights,
        share_tensor_scale=config.share_tensor_scale and shares,
        activations=activations,
        smoothquant=effective_smoothing(config.smoothquant),
        kv_cache=effective_kv_cache(config.kv_cache),
        calibration=calibration if needs_calibration(config) else None,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
        resamples=config.resamples,
        normaliser=normaliser,
        ignored=tuple(ignored),
    )


def effective_activations(config: Config) -> tuple[Assignment[Activation], ...]:
    """Whose inputs are rounded, and how. Raises ValueError for a role that there is not, or has no input."""
    own = config.activation if config.decoder_activation is None else config.decoder_activation
    encoder, decoder = _activation(config.activation), _activation(own)
    roles = {role: encoder for role in expand(config.activation.roles) if not is_decoders(role)}
    roles |= {role: decoder for role in expand(own.roles) if is_decoders(role)}
    for role in roles:
        if role not in LINEAR_ROLES:
            raise ValueError(f"activation.roles: {role} is no linear layer; choose among encoder and decoder")
    return assign(roles)


def _quantizer(effective: Effective) -> Quantizer | None:
    return None if effective.format.native_cast == REFERENCE_FORMAT else effective.quantizer


def _activation(config: ActivationConfig) -> Activation | None:
    effective = config.effective
    if effective is None or _quantizer(effective) is None:
        return None
    calibrator = config.calibrator if has_static_range(effective.quantizer) else None
    return Activation(
        effective.quantizer, calibrator, config.percentile if calibrator == "percentile" else None
    )


def _ignored(config: ActivationConfig) -> tuple[str, ...]:
    effective = config.effective
    if effective is None:
        return _changed(config, ActivationConfig())
    static = has_static_range(effective.quantizer)
    unused = [] if static or config.calibrator == "max" else [f"calibrator={config.calibrator}"]
    return (*map(_as_written, effective.ignored), *unused)


def _ignored_of_cache(config: KVCacheConfig) -> tuple[str, ...]:
    keys, values = config.effective(config.keys), config.effective(config.values)
    if keys is None or values is None:
        return _changed(config, KVCacheConfig())
    unused = [setting for setting in keys.ignored if setting in values.ignored]
    if config.block is not None and config.keys != "channel":
        unused.append(f"block={config.block}")
    return tuple(map(_as_written, unused))


def _ignored_of_smoothing(config: SmoothQuantConfig) -> tuple[str, ...]:
    """Alphas where they are searched, or where nothing is smoothed."""
    changed = _changed(config, SmoothQuantConfig(config.method))
    if config.method == "none":
        return changed
    needless = "scope=" if config.method == "fixed" else "alpha"
    return tuple(setting for setting in changed if setting.startswith(needless))


def _changed(given: object, default: object) -> tuple[str, ...]:
    """The settings that are not as they are by default."""
    changed: list[str] = []
    for name, value in vars(given).items():
        own = getattr(default, name)
        if is_dataclass(value) and not isinstance(value, type):
            changed += (f"{name}.{setting}" for setting in _changed(value, own))
        elif value != own:
            changed.append(f"{name}={value}")
    return tuple(changed)


def _as_written(setting: str) -> str:
    """A field of a format, as activation and kv_cache have it among their options."""
    return setting.replace("format.", "options.", 1)


def effective_kv_cache(config: KVCacheConfig) -> KVCache | None:
    keys, values = config.effective(config.keys), config.effective(config.values)
    if keys is None or values is None or keys.format.native_cast == REFERENCE_FORMAT:
        return None
    attention = tuple(sorted(set(config.attention), reverse=True))  # self before cross
    block = config.block if config.keys == "channel" else None
    return KVCache(keys.quantizer, values.quantizer, attention, block)


def effective_smoothing(config: SmoothQuantConfig) -> Smoothing | None:
    if config.method == "none":
        return None
    if config.method == "search":
        return Smoothing("search", None, None, None, config.fc2, config.scope)
    alphas = (
        config.alpha if own is None else own
        for own in (config.alpha_encoder, config.alpha_decoder, config.alpha_cross)
    )
    return Smoothing("fixed", *alphas, fc2=config.fc2)
