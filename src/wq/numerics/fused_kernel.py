"""The fused kernel in Triton, equal to the bit to scales.py and elements.py. Imported only where it is used.

Every float operation is one IEEE float32 operation in the order of the torch code: divisions by `div_rn`, and
no contraction to fused multiply-adds (`fused.OPTIONS`). Comments say only what differs from there.
"""
# pyright: basic, reportMissingImports=false, reportInvalidTypeForm=false, reportGeneralTypeIssues=false
# pyright: reportOptionalMemberAccess=false, reportIndexIssue=false, reportArgumentType=false

import triton
import triton.language as tl

INT: tl.constexpr = tl.constexpr(0)  # elements, as native.ELEMENTS has them
FLOAT: tl.constexpr = tl.constexpr(1)
GIVEN: tl.constexpr = tl.constexpr(0)  # scales, as native.SCALES has them
E8M0: tl.constexpr = tl.constexpr(1)
FP16: tl.constexpr = tl.constexpr(3)
BF16: tl.constexpr = tl.constexpr(4)
E4M3: tl.constexpr = tl.constexpr(5)
SIGN: tl.constexpr = tl.constexpr(-(2**31))
MAGNITUDE: tl.constexpr = tl.constexpr(0x7FFFFFFF)
EXPONENT: tl.constexpr = tl.constexpr(0x7F800000)
MAX_FINITE: tl.constexpr = tl.constexpr(0x7F7FFFFF)
TINY: tl.constexpr = tl.constexpr(2.0**-149)
# Added and subtracted, it leaves the nearest integer of anything below 2^22; what is larger stays as large
TO_INTEGER: tl.constexpr = tl.constexpr(1.5 * 2**23)


@triton.jit
def bits_of(x):
    return x.to(tl.int32, bitcast=True)


@triton.jit
def float_of(bits):
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def limit(x, low, high):
    return tl.minimum(tl.maximum(x, low), high)


@triton.jit
def round_float(x, min_exponent, magic_shift):
    bits = bits_of(x)
    magic = float_of(tl.maximum(bits & EXPONENT, min_exponent) + magic_shift)
    rounded = (float_of(bits & MAGNITUDE) + magic) - magic
    return float_of((bits_of(rounded) & MAGNITUDE) | (bits & SIGN))


@triton.jit
def scale_of(d, divisor, ratio, tensor_scale, low, high, SCALE: tl.constexpr, ASYMMETRIC: tl.constexpr):
    """The scale and zero point of blocks whose range is [-low, high], given as float32 bits."""
    zero_point = tl.zeros_like(high).to(tl.float32)
    if SCALE == E8M0:
        exponent = limit(((high + d.e8m0_offset) >> 23) - d.max_exponent, 0, 254)
        scale = float_of(tl.where(exponent == 0, 1 << 22, exponent << 23)) * ratio
        return limit(scale, d.scale_low, d.scale_high), zero_point
    span = float_of(high)
    if ASYMMETRIC:
        span = span + float_of(low)
    scale = limit(tl.div_rn(tl.div_rn(span, divisor + zero_point), tensor_scale), d.scale_low, d.scale_high)
    if SCALE == FP16 or SCALE == E4M3:  # noqa: SIM109  # Triton knows no `in`
        scale = round_float(scale, d.scale_min_exponent, d.scale_magic_shift)
    if SCALE == BF16:
        bits = bits_of(scale)
        scale = float_of((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000)
    if SCALE != E4M3:
        scale = tl.where(span == 0.0, 1.0, scale)
    if ASYMMETRIC:
        zero_point = d.low - ((tl.div_rn(-float_of(low) * ratio, scale) + TO_INTEGER) - TO_INTEGER)
        zero_point = limit(zero_point, d.low, d.high)
    return scale, zero_point


@triton.jit
def rounded(
    d, x, scale, zero_point, tensor_scale, edges, levels, ELEMENT: tl.constexpr, LEVELS: tl.constexpr
):
    """x [blocks, width] on the grid of its block's scale and zero point [blocks]."""
    step = tl.maximum(scale * tensor_scale, TINY)[:, None]
    t = tl.div_rn(x, tl.broadcast_to(step, x.shape))
    if ELEMENT == INT:
        zero = zero_point[:, None]
        t = limit(t * d.inverse_unit, d.low - zero, d.high - zero)
        t = ((t + TO_INTEGER) - TO_INTEGER) * d.unit
    elif ELEMENT == FLOAT:
        t = round_float(limit(t, -d.high, d.high), d.min_exponent, d.magic_shift)
    else:
        level = tl.zeros_like(t).to(tl.int32)
        for edge in tl.static_range(LEVELS - 1):
            level += (t > tl.load(edges + edge)).to(tl.int32)
        t = tl.load(levels + level)
    return t * scale[:, None] * tensor_scale[:, None]


@triton.jit
def squared_error(x, y, BLOCKS: tl.constexpr, WIDTH: tl.constexpr, FOLDS: tl.constexpr):
    """Of every block, in float64: the upper half is added to the lower, again and again."""
    error = (y - x).to(tl.float64)
    error = error * error
    for fold in tl.static_range(FOLDS):
        halves = tl.reshape(error, (BLOCKS, 2, WIDTH >> (fold + 1)))
        lower, upper = tl.split(tl.permute(halves, (0, 2, 1)))
        error = lower + upper
    return tl.reshape(error, (BLOCKS,))


@triton.jit
def fake_quantize(
    source,
    target,
    is_bad,
    tensor_scales,
    given_scale,
    given_zero_point,
    edges,
    levels,
    divisors,
    ratios,
    columns,
    block,
    blocks_of_row,
    count,
    tensor_scale_stride,
    d,
    ELEMENT: tl.constexpr,
    LEVELS: tl.constexpr,
    SCALE: tl.constexpr,
    ASYMMETRIC: tl.constexpr,
    TWO_LEVELS: tl.constexpr,
    CANDIDATES: tl.constexpr,
    BLOCKS: tl.constexpr,
    WIDTH: tl.constexpr,
    FOLDS: tl.constexpr,
):
    """Rows of `columns` float32, each cut into blocks of `block`; this program's are BLOCKS of all `count`,
    each on WIDTH = 2^FOLDS lanes. Sets is_bad for NaN or Inf in the source, which may be the target."""
    number = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    row = number // blocks_of_row
    start = (number % blocks_of_row) * block
    lane = tl.arange(0, WIDTH)[None, :]
    inside = (number < count)[:, None] & (lane < block) & (start[:, None] + lane < columns)
    at = (row * columns + start)[:, None] + lane
    x = tl.load(source + at, mask=inside, other=0.0)

    bits = bits_of(x)
    if ASYMMETRIC:
        high = tl.max(tl.maximum(bits, 0), 1)
        low = tl.max(tl.maximum(bits ^ SIGN, 0), 1)
        largest = tl.maximum(low, high)
    else:
        high = tl.max(bits & MAGNITUDE, 1)
        low = high
        largest = high
    tl.store(is_bad, 1, mask=tl.max(largest, 0) > MAX_FINITE)

    tensor_scale = tl.zeros_like(high).to(tl.float32) + 1.0
    if TWO_LEVELS:
        tensor_scale = tl.load(tensor_scales + row * tensor_scale_stride, mask=number < count, other=1.0)
    if SCALE == GIVEN:
        scale = tl.zeros_like(tensor_scale) + tl.load(given_scale)
        zero_point = tl.zeros_like(tensor_scale) + tl.load(given_zero_point)
    else:
        scale, zero_point = scale_of(
            d, tl.load(divisors), tl.load(ratios), tensor_scale, low, high, SCALE, ASYMMETRIC
        )
    y = rounded(d, x, scale, zero_point, tensor_scale, edges, levels, ELEMENT, LEVELS)
    if CANDIDATES > 1:
        least = squared_error(x, y, BLOCKS, WIDTH, FOLDS)
        for candidate in range(1, CANDIDATES):
            divisor, ratio = tl.load(divisors + candidate), tl.load(ratios + candidate)
            other, zero = scale_of(d, divisor, ratio, tensor_scale, low, high, SCALE, ASYMMETRIC)
            tried = rounded(d, x, other, zero, tensor_scale, edges, levels, ELEMENT, LEVELS)
            error = squared_error(x, tried, BLOCKS, WIDTH, FOLDS)
            y = tl.where((error < least)[:, None], tried, y)
            least = tl.where(error < least, error, least)
    tl.store(target + at, y, mask=inside)
