"""Rounding to a format's element grid, and the integer codes of the grid's values.

All of it is elementwise, float32, to nearest with ties to even, and saturates.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from wq.numerics.formats import Format

CAST_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

EXPONENT_FIELD = 0x7F800000  # of a float32
MANTISSA_BITS = 23
BIAS = 127


def round_floats_(x: Tensor, exponent_bits: int, mantissa_bits: int) -> Tensor:
    """Round float32 x in place to so many bits after the leading one, with gradual underflow but no limit.

    Adding and subtracting 2^(e - mantissa_bits + 23), e being x's exponent, lets the float32 adder round at
    the wanted bit. x must stay below 2^(2^(exponent_bits-1) + 1).
    """
    min_exponent = 2 - 2 ** (exponent_bits - 1)
    magic = x.view(torch.int32) & EXPONENT_FIELD
    magic.clamp_(min=(min_exponent + BIAS) << MANTISSA_BITS)
    magic.add_((MANTISSA_BITS - mantissa_bits) << MANTISSA_BITS)
    magic = magic.view(torch.float32)
    magic.copysign_(x)  # |x| + magic stays in one binade, x - magic would not
    return x.add_(magic).sub_(magic).copysign_(magic)  # a small negative value becomes -0, as in hardware


def round_elements_(x: Tensor, format: Format, zero_point: Tensor | None = None) -> Tensor:
    """Round float32 x, already divided by its scale, in place to the nearest value of the code book.

    With a zero point the code book is shifted by it: the result is (code - zero_point).
    """
    if format.element == "int":
        if format.unit != 1.0:
            x.mul_(1.0 / format.unit)
        if zero_point is None:
            x.clamp_(format.min_code, format.max_code)
            x.round_()
        else:
            x.round_()
            torch.clamp(x, min=format.min_code - zero_point, max=format.max_code - zero_point, out=x)
        x.add_(0.0)  # an integer zero has no sign
        return x.mul_(format.unit) if format.unit != 1.0 else x
    if format.element == "levels":
        return x.copy_(_levels(format, x.device)[_level_indices(x, format).int()])
    x.clamp_(-format.max, format.max)
    if format.native_cast:
        return x.copy_(x.to(CAST_DTYPES[format.native_cast]))
    return round_floats_(x, format.exponent_bits or 0, format.mantissa_bits or 0)


def _level_indices(x: Tensor, format: Format) -> Tensor:
    """Indices of the nearest levels, uint8: a pass for each level is far faster than a search for each
    element."""
    indices = torch.zeros_like(x, dtype=torch.uint8)
    for edge in level_edges(format, x.device):
        indices += x > edge
    return indices


def _levels(format: Format, device: torch.device) -> Tensor:
    return torch.tensor(format.code_book, dtype=torch.float32, device=device)


@lru_cache
def level_edges(format: Format, device: torch.device) -> Tensor:
    """The largest float32 that rounds to each level but the last: middles, ties belonging to even codes."""
    values = _levels(format, device).double()
    middles = (values[:-1] + values[1:]) / 2
    edges = middles.float()
    belongs_above = edges.double() > middles
    belongs_above |= (edges.double() == middles) & (torch.arange(len(edges), device=device) % 2 == 1)
    return torch.where(belongs_above, torch.nextafter(edges, edges.new_tensor(-math.inf)), edges)


def code_dtype(format: Format) -> torch.dtype:
    """The smallest integer dtype for the codes: signed integers for int, bit patterns for the rest."""
    if format.bits > 8:
        return torch.int16 if format.bits <= 16 else torch.int32
    return torch.int8 if format.element == "int" else torch.uint8


def encode(values: Tensor, format: Format, zero_point: Tensor | None = None) -> Tensor:
    """Integer codes of values that lie on the grid.

    Of an int the integer itself, plus zero point; of a level its index; of a float its bits: sign, exponent,
    mantissa. 16-bit patterns are held in int16, 32-bit ones in int32.
    """
    if format.element == "int":
        codes = values / format.unit if zero_point is None else values + zero_point
        return codes.to(code_dtype(format))
    if format.native_cast:
        return values.to(CAST_DTYPES[format.native_cast]).view(code_dtype(format))
    if format.element == "levels":
        return _level_indices(values, format)
    # A normal value's code is the top of its float32 bits with another bias. Adding the smallest normal value
    # to a smaller one moves its code there too.
    shift, mantissa_bits = _float_code(format)
    magnitudes = values.abs()
    smallest_normal = 2.0**format.min_exponent
    is_subnormal = magnitudes < smallest_normal
    codes = torch.where(is_subnormal, magnitudes + smallest_normal, magnitudes).view(torch.int32)
    codes = (codes >> (MANTISSA_BITS - mantissa_bits)).sub_(shift).sub_(is_subnormal << mantissa_bits)
    return codes.add_(torch.signbit(values) << (format.bits - 1)).to(code_dtype(format))


def decode(codes: Tensor, format: Format, zero_point: Tensor | None = None) -> Tensor:
    """Float32 values of codes, the inverse of `encode`."""
    if format.element == "int":
        return codes.float() * format.unit if zero_point is None else codes.float() - zero_point
    if format.native_cast:
        return codes.view(CAST_DTYPES[format.native_cast]).float()
    if format.element == "levels":
        return _levels(format, codes.device)[codes.int()]
    shift, mantissa_bits = _float_code(format)
    patterns = codes.to(torch.int32)
    magnitudes = patterns & (2 ** (format.bits - 1) - 1)
    normal = (magnitudes + shift << (MANTISSA_BITS - mantissa_bits)).view(torch.float32)
    subnormal = magnitudes * 2.0 ** (format.min_exponent - mantissa_bits)
    values = torch.where(magnitudes < 1 << mantissa_bits, subnormal, normal)
    return torch.where(patterns >> (format.bits - 1) & 1 == 1, -values, values)


def _float_code(format: Format) -> tuple[int, int]:
    """By how much the top of a normal value's float32 bits exceeds its code, and the code's mantissa bits."""
    mantissa_bits = format.mantissa_bits or 0
    return (format.min_exponent + BIAS - 1) << mantissa_bits, mantissa_bits
