"""Choosing the scale that a block of elements shares.

A scale is kept as the float32 value of what is stored: rounded to the precision in which it is counted as
storage, so that accuracy and size speak of the same bits.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from wq.numerics.elements import BIAS, MANTISSA_BITS, round_elements_, round_floats_
from wq.numerics.formats import Format

# Smallest and largest positive value of each scale precision. E4M3's smallest subnormal keeps small blocks
# alive where a flush to zero would lose them.
SCALE_LIMITS = {
    "fp32": (2.0**-149, torch.finfo(torch.float32).max),
    "fp16": (2.0**-24, 65504.0),
    "bf16": (2.0**-133, torch.finfo(torch.bfloat16).max),
    "e8m0": (2.0**-127, 2.0**127),
    "e4m3": (2.0**-9, 448.0),
}
MAX_E4M3 = 448.0
MAX_E4M3_FOUR_OVER_SIX = 256.0  # a block that maps its amax to 4 needs a scale 1.5 times as large
TINY = 2.0**-149

# Candidates of scale_search=mse, as multiples of the scale that amax gives; E8M0 can only double or halve.
SEARCH_RATIOS = (1.0, *(i / 20 for i in range(8, 31) if i != 20))
SEARCH_RATIOS_E8M0 = (1.0, 0.5, 2.0)


class Scale(NamedTuple):
    """What a block is divided by: the stored scale [..., 1] and the tensor scale above it; the zero point."""

    scale: Tensor
    tensor_scale: Tensor | None = None
    zero_point: Tensor | None = None

    def divide_(self, x: Tensor) -> Tensor:
        """x over the scales, in place: x / (scale * tensor_scale), one float32 rounding each."""
        if self.tensor_scale is None:
            return x.div_(self.scale)
        return x.div_((self.scale * self.tensor_scale).clamp_(min=TINY))

    def multiply_(self, x: Tensor) -> Tensor:
        """x times the scales, in place: (x * scale) * tensor_scale; with E4M3 the first product is exact."""
        x.mul_(self.scale)
        return x if self.tensor_scale is None else x.mul_(self.tensor_scale)


def divide(x: Tensor, divisor: float) -> Tensor:
    """x / divisor, rounded once. For a plain number, torch on CUDA multiplies by the rounded reciprocal."""
    return x / torch.full((), divisor, dtype=torch.float32, device=x.device)


def block_range(x: Tensor, format: Format) -> tuple[Tensor, Tensor]:
    """Smallest and largest value over the last axis [..., L] -> [..., 1], zero included; without a zero point
    -amax and amax."""
    if x.numel() == x.shape[-1]:  # over all of it, torch is 20 times as fast
        low, high = (end.view(*x.shape[:-1], 1) for end in torch.aminmax(x))
    else:
        low, high = torch.aminmax(x, dim=-1, keepdim=True)
    if format.is_asymmetric:
        return low.clamp_(max=0.0), high.clamp_(min=0.0)  # zero is always representable
    amax = torch.maximum(-low, high)
    return -amax, amax


def tensor_scale_of(amax: Tensor, format: Format) -> Tensor:
    """The float32 scale of a whole tensor: the largest block's scale then lands on E4M3's 448.

    With four_over_six on 256 (Cook et al. 2025), so that 1.5 times that still fits. A zero tensor has 1.
    """
    top = MAX_E4M3_FOUR_OVER_SIX if format.four_over_six else MAX_E4M3
    scale = divide(amax, top * format.max).clamp_(min=TINY)
    return torch.where(amax == 0, 1.0, scale)


def e8m0_offset(format: Format) -> int:
    """What the scale rule adds to amax's bits before their exponent is read.

    floor is the rule of OCP MX v1.0 section 6.3; the others are torchao's names for published ones.
    floor: nothing. even: half a unit of the element's last mantissa bit. rceil: just what carries when amax's
    mantissa exceeds that of the element's maximum. ceil: all ones.
    """
    ones = (1 << MANTISSA_BITS) - 1
    max_mantissa = int((format.max / 2.0**format.max_exponent - 1.0) * 2**MANTISSA_BITS)
    return {
        "floor": 0,
        "even": 1 << (MANTISSA_BITS - 1 - format.max_mantissa_bits),
        "rceil": ones - max_mantissa,
        "ceil": ones,
    }[format.scale_rule]


def e8m0_scale(amax: Tensor, format: Format) -> Tensor:
    """The power of two for blocks with largest magnitude amax; for a zero block 2^-127."""
    exponent = ((amax.view(torch.int32) + e8m0_offset(format)) >> MANTISSA_BITS) - format.max_exponent
    exponent.clamp_(0, 2 * BIAS)
    bits = exponent << MANTISSA_BITS
    bits.masked_fill_(exponent == 0, 1 << (MANTISSA_BITS - 1))  # 2^-127 is a float32 subnormal
    return bits.view(torch.float32)


def span(low: Tensor, high: Tensor, format: Format) -> Tensor:
    """What a scale covers of the range [low, high]: all of it with a zero point, else its upper half."""
    return high - low if format.is_asymmetric else high


def exact_scale(
    low: Tensor, high: Tensor, format: Format, tensor_scale: Tensor | None = None, ratio: float = 1.0
) -> Tensor:
    """The scale, times `ratio`, that has the ends of [low, high] on the extreme codes: neither rounded nor
    limited."""
    scale = divide(span(low, high, format), format.scale_divisor / ratio)
    return scale if tensor_scale is None else scale / tensor_scale


def is_clamped(low: Tensor, high: Tensor, format: Format, tensor_scale: Tensor | None = None) -> Tensor:
    """Whether the scale of each block with values in [low, high] lies beyond what its precision reaches: the
    block then saturates far below its largest magnitude, or has fewer codes than it could. A block of zeros
    needs no scale."""
    smallest, largest = SCALE_LIMITS[format.scale_dtype]
    scale = exact_scale(low, high, format, tensor_scale)
    return ((scale < smallest) | (scale > largest)) & (span(low, high, format) > 0)


def scale_of_range(
    low: Tensor, high: Tensor, format: Format, tensor_scale: Tensor | None = None, ratio: float = 1.0
) -> Scale:
    """The scale for blocks with values in [low, high], times `ratio` before it is rounded and limited: both
    ends shrink or grow by it, so that the zero point stays where it is."""
    smallest, largest = SCALE_LIMITS[format.scale_dtype]
    if format.scale_dtype == "e8m0":
        return Scale((e8m0_scale(high, format) * ratio).clamp_(smallest, largest))
    scale = exact_scale(low, high, format, tensor_scale, ratio).clamp_(smallest, largest)
    if format.scale_dtype == "e4m3":
        return Scale(round_floats_(scale, exponent_bits=4, mantissa_bits=3), tensor_scale)
    if format.scale_dtype != "fp32":
        scale = scale.to(torch.float16 if format.scale_dtype == "fp16" else torch.bfloat16).float()
    scale = torch.where(span(low, high, format) == 0, 1.0, scale)
    if not format.is_asymmetric:
        return Scale(scale)
    zero_point = (format.min_code - (low * ratio / scale).round_()).clamp_(format.min_code, format.max_code)
    return Scale(scale, zero_point=zero_point)


def search_ratios(format: Format) -> tuple[float, ...]:
    """Candidate scales, as multiples of the one that amax gives; the first is 1 and wins ties."""
    ratios = (1.0,)
    if format.scale_search == "mse":
        ratios = SEARCH_RATIOS_E8M0 if format.scale_dtype == "e8m0" else SEARCH_RATIOS
    if format.four_over_six and 1.5 not in ratios:
        ratios = (*ratios, 1.5)
    return ratios


def squared_error(x: Tensor, scale: Scale, format: Format) -> Tensor:
    """Sum over each block [..., L] -> [..., 1] of the squared rounding error, in float64.

    Summed in an order that is ours, the upper half onto the lower again and again, so that it depends neither
    on tiles nor on the machine.
    """
    y = scale.multiply_(round_elements_(scale.divide_(x.clone()), format, scale.zero_point))
    errors = y.sub_(x).double().square_()
    while (n := errors.shape[-1]) > 1:
        half = 1 << ((n - 1).bit_length() - 1)
        errors[..., : n - half] += errors[..., half:]
        errors = errors[..., :half]
    return errors


def choose_scale(x: Tensor, format: Format, tensor_scale: Tensor | None = None) -> Scale:
    """The scale of each block of float32 x [..., L] -> [..., 1], from its range or by search."""
    low, high = block_range(x, format)
    best = scale_of_range(low, high, format, tensor_scale)
    ratios = search_ratios(format)
    if len(ratios) == 1:
        return best
    least = squared_error(x, best, format)
    for ratio in ratios[1:]:
        candidate = scale_of_range(low, high, format, tensor_scale, ratio)
        error = squared_error(x, candidate, format)
        better = error < least
        least = torch.where(better, error, least)
        zero_point = candidate.zero_point
        if zero_point is not None and best.zero_point is not None:
            zero_point = torch.where(better, zero_point, best.zero_point)
        best = Scale(torch.where(better, candidate.scale, best.scale), tensor_scale, zero_point)
    return best
