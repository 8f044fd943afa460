"""From a configuration to its effective spec: defaults filled in, what has no effect dropped and told."""

import sys
from dataclasses import is_dataclass

from wq.numerics.effective import Effective, Quantizer, resolve
from wq.study.spec.config import (
    ActivationConfig,
    Config,
    ConfigurationError,
    KVCacheConfig,
    SmoothQuantConfig,
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


def needs_calibration(config: Config) -> bool:
    """Whether a configuration's static scales or its smoothing must be calibrated."""
    smoothing = resolve_smoothing(config.smoothquant) is not None
    activations = [_activation(each) for each in (config.activation, config.decoder_activation) if each]
    cache = resolve_kv_cache(config.kv_cache)
    return smoothing or any(each.is_static for each in (*activations, cache) if each)


def resolve_spec(
    config: Config,
    model: Content,
    dataset: Content,
    utterances: int,
    normaliser: str,
    multilingual: bool,
    calibration: Calibration | None = None,
    has_long_audio: bool = True,
) -> Spec:
    """The effective spec of a configuration; `utterances` is how many are transcribed, `calibration` what
    is there for a configuration that `needs_calibration`, `has_long_audio` whether any of them is longer than
    the model's window.

    Raises ConfigurationError for a format that cannot be, or a role that there is not.
    """
    try:
        encoder, decoder = (
            resolve(format, config.granularity, config.group) for format in config.number_formats
        )
        weights = group_roles(
            {role: _quantizer(decoder if is_decoders(role) else encoder) for role in expand(config.roles)}
        )
        activations = resolve_activations(config)
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
    if config.long_audio != "cut" and not has_long_audio:
        ignored.append(f"long_audio={config.long_audio}")
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
        smoothquant=resolve_smoothing(config.smoothquant),
        kv_cache=resolve_kv_cache(config.kv_cache),
        calibration=calibration if needs_calibration(config) else None,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
        resamples=config.resamples,
        normaliser=normaliser,
        long_audio=config.long_audio if has_long_audio else "cut",
        ignored=tuple(ignored),
    )


def tell_ignored(spec: Spec) -> None:
    """Say which settings were given and have no effect."""
    for setting in spec.ignored:
        print(f"{setting} has no effect on {spec.point} and is ignored", file=sys.stderr)


def resolve_activations(config: Config) -> tuple[Assignment[Activation], ...]:
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
