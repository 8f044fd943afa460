"""Which settings have an effect, and which are dropped.

People write cross products, so a grid may set a group size for a per-channel scale or an exponent rule for an
integer format. Two jobs whose effective settings are equal are the same job.

Scaled formats mean the same at every granularity: the elements and the kind of scale stay, the block changes.
So mxfp4 per channel has one E8M0 scale per channel; nvfp4 per channel one E4M3 scale per channel under its
tensor scale; nvfp4 per tensor one E4M3 scale (always 448) under it.
"""

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import NamedTuple

from wq.numerics.formats import Format
from wq.numerics.granularity import check_granularity

DEFAULT_GROUP = 128

# The value to which a field without effect is set
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


class Quantizer(NamedTuple):
    """How a tensor is quantized; unpacks into what `fake_quantize`, `quantize` and `storage` take."""

    format: Format
    granularity: str = "group"
    group: int | None = None


@dataclass(frozen=True)
class Effective:
    """Settings that have an effect.

    granularity  "none" for a cast
    group        None unless granularity is group
    ignored      settings that were given and dropped, as field=value
    """

    format: Format
    granularity: str
    group: int | None
    ignored: tuple[str, ...] = ()

    @property
    def quantizer(self) -> Quantizer:
        """These settings as an operation takes them; for a cast any granularity will do."""
        return Quantizer(
            self.format, "tensor" if self.granularity == "none" else self.granularity, self.group
        )


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
    """The effective settings: the format's own group filled in, what has no effect dropped and named."""
    check_granularity(granularity, group)
    dropped = {
        name: value
        for name, value in _NEUTRAL.items()
        if not has_effect(format, name) and getattr(format, name) != value
    }
    ignored = [f"format.{name}={getattr(format, name)}" for name in dropped]
    own_group = format.group or DEFAULT_GROUP
    effective_format = replace(format, group=None if format.is_cast else own_group, **dropped)
    if granularity == "group" and not format.is_cast:
        return Effective(effective_format, granularity, group or own_group, tuple(ignored))
    if group is not None:
        ignored.append(f"group={group}")
    return Effective(effective_format, "none" if format.is_cast else granularity, None, tuple(ignored))


def point_name(format: Format, granularity: str, group: int | None, catalogued: Format) -> str:
    """The readable name of a point: the format's, and what differs from the catalogue's format of that name.

    For instance int4-g128, int4-channel, nvfp4-g32, mxfp4-even, int4-asymmetric-g64, float-e4m3-g128. The
    group is told but where it is the block of a standard (NVFP4, MX), which then goes without saying.
    """
    effective, own = resolve(format, granularity, group), resolve(catalogued)
    changed = {
        field.name: getattr(effective.format, field.name)
        for field in fields(Format)
        if getattr(effective.format, field.name) != getattr(own.format, field.name)
    }
    parts = [format.name]
    if {"exponent_bits", "mantissa_bits"} & set(changed):
        parts.append(f"e{effective.format.exponent_bits}m{effective.format.mantissa_bits}")
    if "integer_bits" in changed:
        parts.append(f"int{effective.format.integer_bits}")
    for name, value in changed.items():
        if isinstance(value, bool):
            parts.append(name if value else f"no_{name}")
        elif isinstance(value, str):
            parts.append(value if value != "none" else f"no_{name}")
    if effective.granularity in ("tensor", "channel", "token"):
        parts.append(effective.granularity)
    elif effective.group is not None and not (_is_standard(format) and effective.group == own.group):
        parts.append(f"g{effective.group}")
    return "-".join(parts)


def _is_standard(format: Format) -> bool:
    return format.scale_dtype in ("e8m0", "e4m3")
