"""Which settings have an effect, and which are dropped.

People write cross products, so a grid may set a group size for a per-channel scale or an exponent rule for an
integer format. Two jobs whose effective settings are equal are the same job.

Scaled formats mean the same at every granularity: the elements and the kind of scale stay, the block changes.
So mxfp4 per channel has one E8M0 scale per channel; nvfp4 per channel one E4M3 scale per channel under its
tensor scale; nvfp4 per tensor one E4M3 scale (always 448) under it.
"""

from dataclasses import dataclass, fields, replace
from functools import lru_cache

from wq.numerics.formats import Format
from wq.numerics.granularity import check_granularity

DEFAULT_GROUP = 128

# An option's value that changes nothing, by field; None: the field describes the element and is never dropped
_NEUTRAL = {
    "special": "none",
    "levels": "none",
    "integer_bits": None,
    "exponent_bits": None,
    "mantissa_bits": None,
    "int_range": "symmetric",
    "scale_rule": "floor",
    "tensor_scale": False,
    "scale_search": "none",
}


@dataclass(frozen=True)
class Effective:
    """Settings that have an effect. `granularity` is "none" for a cast; `group` is None unless granularity is
    group; `ignored` names the settings that were given and dropped, as field=value."""

    format: Format
    granularity: str
    group: int | None
    ignored: tuple[str, ...] = ()


def has_effect(format: Format, field: str) -> bool:
    """Whether a field of the format, or granularity or group, changes what its quantization gives."""
    if field in ("granularity", "group", "scale_search"):
        return not format.is_cast
    if field in ("int_range", "integer_bits"):
        return format.element == "int"
    if field in ("exponent_bits", "mantissa_bits", "special"):
        return format.is_float
    if field == "levels":
        return format.element == "levels"
    if field == "scale_rule":
        return format.scale_dtype == "e8m0"
    if field == "tensor_scale":
        return format.scale_dtype == "e4m3"
    return True


@lru_cache(maxsize=1024)  # called for every activation
def resolve(format: Format, granularity: str = "group", group: int | None = None) -> Effective:
    """The effective settings: the format's own group size filled in, settings without effect dropped and
    named."""
    check_granularity(granularity, group)
    dropped = {
        name: value
        for name, value in _NEUTRAL.items()
        if not has_effect(format, name) and getattr(format, name) != value
    }
    ignored = [f"format.{name}={getattr(format, name)}" for name in dropped]
    own_group = format.group or DEFAULT_GROUP
    effective_format = replace(format, group=None if format.is_cast else own_group, **dropped)
    if format.is_cast:
        return Effective(effective_format, "none", None, (*ignored, *([f"group={group}"] if group else [])))
    if granularity != "group":
        return Effective(
            effective_format, granularity, None, (*ignored, *([f"group={group}"] if group else []))
        )
    return Effective(effective_format, granularity, group or own_group, tuple(ignored))


def point_name(format: Format, granularity: str, group: int | None, catalogued: Format) -> str:
    """The readable name of a point: the catalogue's name and what differs from the catalogued format's
    defaults, such as int4-channel, nvfp4-g32, mxfp4-even, int4-asymmetric-g64."""
    effective, own = resolve(format, granularity, group), resolve(catalogued)
    parts = [format.name]
    for field in fields(Format):
        value, default = getattr(effective.format, field.name), getattr(own.format, field.name)
        if field.name in ("name", "group", "mantissa_bits") or (
            field.name != "exponent_bits" and value == default
        ):
            continue
        if field.name == "exponent_bits":
            float_shape = (value, effective.format.mantissa_bits)
            if float_shape != (default, own.format.mantissa_bits):
                parts.append(f"e{float_shape[0]}m{float_shape[1]}")
        elif field.name == "integer_bits":
            parts.append(f"int{value}")
        elif isinstance(value, bool):
            parts.append(field.name if value else f"no_{field.name}")
        else:
            parts.append(str(value) if value != "none" else f"no_{field.name}")
    if effective.granularity in ("tensor", "channel", "token"):
        parts.append(effective.granularity)
    elif effective.group != own.group:
        parts.append(f"g{effective.group}")
    return "-".join(parts)
