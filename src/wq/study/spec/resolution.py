"""From a configuration to its effective spec: defaults filled in, what has no effect dropped and told."""

import sys
from dataclasses import is_dataclass
from typing import NamedTuple

from wq.numerics.effective import Effective, Quantizer, resolve
from wq.study.spec.config import (
    ActivationConfig,
    AlgorithmConfig,
    Config,
    ConfigurationError,
    KVCacheConfig,
    SmoothQuantConfig,
    TreatmentConfig,
)
from wq.study.spec.spec import REFERENCE_FORMAT, Calibration, Content, Spec
from wq.whisper.layers.roles import LINEAR_ROLES, any_block, expand, is_decoders
from wq.whisper.layers.schemes import (
    DEFAULT_ROLES,
    Activation,
    Assignment,
    KVCache,
    Smoothing,
    group_roles,
    has_static_range,
)
from wq.whisper.layers.treatment import Gptq, Nearest, Treatment, has_tensor_scale

UNSEEN = ("conv", "embedding")  # roles that calibration does not look at
DEFAULT_FORMAT = "int8"  # of conf/config.yaml


class Resolved(NamedTuple):
    """A treatment, and the settings that were given for it but have no effect."""

    treatment: Treatment
    ignored: tuple[str, ...]


def resolve_treatment(config: TreatmentConfig) -> Resolved:
    """What a configuration does to a model. Raises ConfigurationError for a format that cannot be, or a role
    that there is not."""
    try:
        weights = _planned(config) if config.plan.layers else _uniform(config)
        activations = resolve_activations(config)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    plan, ignored = group_roles(weights.quantizers), list(weights.ignored)
    shares = config.share_tensor_scale and has_tensor_scale(plan)
    if config.share_tensor_scale and not shares:
        ignored.append("share_tensor_scale=true")
    for key, each in (("activation", config.activation), ("decoder_activation", config.decoder_activation)):
        ignored += [f"{key}.{setting}" for setting in (_ignored(each) if each else ())]
    ignored += [f"kv_cache.{setting}" for setting in _ignored_of_cache(config.kv_cache)]
    ignored += [f"smoothquant.{setting}" for setting in _ignored_of_smoothing(config.smoothquant)]
    smoothing = resolve_smoothing(config.smoothquant)
    rounding = _rounding(config.algorithm, plan, shares, ignored)
    methods = tuple(filter(None, (smoothing, rounding)))
    cache = resolve_kv_cache(config.kv_cache)
    return Resolved(Treatment(plan, methods, activations, cache), tuple(ignored))


def _rounding(
    algorithm: AlgorithmConfig, plan: tuple[Assignment[Quantizer], ...], shares: bool, ignored: list[str]
) -> Nearest | Gptq | None:
    """How the weights of a plan are rounded; None where none are. Casts have no scale, so nothing to gain,
    and of what is not linear calibration sees no inputs."""
    is_gptq = algorithm.name == "gptq"
    linear = (each for each in plan if not all(role.startswith(UNSEEN) for role in each.roles))
    if is_gptq and not all(each.quantizer.format.is_cast for each in linear):
        return Gptq(algorithm.damping, algorithm.activation_order, shares)
    usual = AlgorithmConfig()
    ignored += ["algorithm=gptq"] if is_gptq else []
    for name in ("damping", "activation_order"):
        if not is_gptq and (given := getattr(algorithm, name)) != getattr(usual, name):
            ignored.append(f"algorithm.{name}={given}")
    return Nearest(shares) if plan else None


class _Weights(NamedTuple):
    """The quantizer of every role; None where it is left alone."""

    quantizers: dict[str, Quantizer | None]
    ignored: tuple[str, ...]


def _uniform(config: TreatmentConfig) -> _Weights:
    """One format, or one for the encoder and one for the decoder."""
    encoder, decoder = (resolve(format, config.granularity, config.group) for format in config.number_formats)
    quantizers = {
        role: _quantizer(decoder if is_decoders(role) else encoder) for role in expand(config.roles)
    }
    ignored = list(dict.fromkeys(encoder.ignored + decoder.ignored))
    if not any(quantizers.values()) and set(expand(config.roles)) != set(expand(DEFAULT_ROLES)):
        ignored.append(f"roles=[{','.join(config.roles)}]")
    return _Weights(quantizers, tuple(ignored))


def _planned(config: TreatmentConfig) -> _Weights:
    """The formats of a plan, layer by layer. What would be the short way to write one has no effect."""
    quantizers: dict[str, Quantizer | None] = {}
    ignored: list[str] = []
    for entry in config.plan.layers or ():
        resolved = entry.resolved
        for role in expand(entry.roles):
            if role in quantizers:
                raise ConfigurationError(f"plan.layers names {role} twice; give each layer one format")
            quantizers[role] = _quantizer(resolved)
        ignored += [f"plan.layers.{setting}" for setting in map(_as_written, resolved.ignored)]
    if config.format.name != DEFAULT_FORMAT:
        ignored.append(f"format={config.format.name}")
    usual = TreatmentConfig()
    for name in ("granularity", "group", "roles"):
        if (given := getattr(config, name)) != getattr(usual, name):
            shown = f"[{','.join(given)}]" if isinstance(given, list) else given
            ignored.append(f"{name}={shown}")
    if config.decoder_format is not None:
        ignored.append(f"decoder_format={config.decoder_format.name}")
    return _Weights(quantizers, tuple(ignored))


def resolve_spec(
    config: Config,
    resolved: Resolved,
    model: Content,
    dataset: Content,
    utterances: int,
    normaliser: str,
    multilingual: bool,
    calibration: Calibration | None = None,
    has_long_audio: bool = True,
    window: int | None = None,
) -> Spec:
    """The effective spec of a configuration and its treatment; `utterances` is how many are transcribed,
    `calibration` what is there for a treatment that needs any, `has_long_audio` whether any of them is longer
    than the model's window, `window` what is heard of it as of `resolve_window`."""
    treatment, ignored = resolved.treatment, list(resolved.ignored)
    if config.model.language is not None and not multilingual:
        ignored.append(f"model.language={config.model.language}")
    if config.long_audio != "cut" and not has_long_audio:
        ignored.append(f"long_audio={config.long_audio}")
    if config.window != "full" and window is None:
        ignored.append(f"window={config.window}")
    return Spec(
        model=model,
        dataset=dataset,
        split=config.dataset.split,
        language=config.dataset.language,
        decoding_language=(config.model.language or config.dataset.language) if multilingual else None,
        limit=config.limit if config.limit == utterances else None,
        treatment=treatment,
        calibration=calibration if treatment.needs_calibration else None,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
        resamples=config.resamples,
        normaliser=normaliser,
        long_audio=config.long_audio if has_long_audio else "cut",
        window=window,
        ignored=tuple(ignored),
    )


def tell_ignored(spec: Spec) -> None:
    """Say which settings were given and have no effect."""
    for setting in spec.ignored:
        print(f"{setting} has no effect on {spec.point} and is ignored", file=sys.stderr)


def resolve_activations(config: TreatmentConfig) -> tuple[Assignment[Activation], ...]:
    """Whose inputs are rounded, and how. Raises ValueError for a role that there is not, or has no input."""
    own = config.activation if config.decoder_activation is None else config.decoder_activation
    encoder, decoder = _activation(config.activation), _activation(own)
    roles = {role: encoder for role in expand(config.activation.roles) if not is_decoders(role)}
    roles |= {role: decoder for role in expand(own.roles) if is_decoders(role)}
    for role in roles:
        if any_block(role) not in LINEAR_ROLES:
            raise ValueError(f"activation.roles: {role} is no linear layer; choose among encoder and decoder")
    return group_roles(roles)


def _quantizer(effective: Effective) -> Quantizer | None:
    return None if effective.format.native_cast == REFERENCE_FORMAT else effective.quantizer


def _activation(config: ActivationConfig) -> Activation | None:
    effective = config.resolved
    if effective is None or _quantizer(effective) is None:
        return None
    calibrator = config.calibrator if has_static_range(effective.quantizer) else None
    return Activation(
        effective.quantizer, calibrator, config.percentile if calibrator == "percentile" else None
    )


def _ignored(config: ActivationConfig) -> tuple[str, ...]:
    effective = config.resolved
    if effective is None:
        return _changed(config, ActivationConfig())
    static = has_static_range(effective.quantizer)
    unused = [] if static or config.calibrator == "max" else [f"calibrator={config.calibrator}"]
    return (*map(_as_written, effective.ignored), *unused)


def _ignored_of_cache(config: KVCacheConfig) -> tuple[str, ...]:
    keys, values = config.resolved(config.keys), config.resolved(config.values)
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


def resolve_kv_cache(config: KVCacheConfig) -> KVCache | None:
    keys, values = config.resolved(config.keys), config.resolved(config.values)
    if keys is None or values is None or keys.format.native_cast == REFERENCE_FORMAT:
        return None
    attention = tuple(sorted(set(config.attention), reverse=True))  # self before cross
    block = config.block if config.keys == "channel" else None
    return KVCache(keys.quantizer, values.quantizer, attention, block)


def resolve_smoothing(config: SmoothQuantConfig) -> Smoothing | None:
    if config.method == "none":
        return None
    if config.method == "search":
        return Smoothing("search", None, None, None, config.fc2, config.scope)
    alphas = (
        config.alpha if own is None else own
        for own in (config.alpha_encoder, config.alpha_decoder, config.alpha_cross)
    )
    return Smoothing("fixed", *alphas, fc2=config.fc2)
