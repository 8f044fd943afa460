"""The operations: quantize to codes and scales, dequantize, and both in one pass (fake quantization)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from wq.numerics import fused, native
from wq.numerics.effective import Effective, resolve
from wq.numerics.elements import code_dtype, decode, encode, round_elements_
from wq.numerics.formats import Format, with_options
from wq.numerics.granularity import blocks, scale_shape
from wq.numerics.scales import Scale, block_range, is_clamped
from wq.numerics.shared_scales import SharedScales, shared_scales

# Elements that torch works on at a time on a CPU, so that all intermediate values stay in its second-level
# cache
TILE = 1 << 17


class NonFiniteError(ValueError):
    """The tensor holds NaN or Inf. The message names no layer: the caller knows it and adds it."""


@dataclass(frozen=True)
class Quantized:
    """A tensor as codes and scales.

    codes         integers in x's shape [..., K]
    scale         float32 values of the stored scales, [..., ceil(K/group)], [..., 1] or [1, ..., 1]; None for
                  a cast
    tensor_scale  float32, [] or [..., 1]; None but for two-level formats
    zero_point    integers in the scale's shape; None but for asymmetric ones
    """

    codes: Tensor
    scale: Tensor | None
    tensor_scale: Tensor | None
    zero_point: Tensor | None
    effective: Effective


def fake_quantize(
    x: Tensor,
    format: Format,
    granularity: str = "group",
    group: int | None = None,
    *,
    scale_dtype: str | None = None,
    scale_rule: str | None = None,
    int_range: str | None = None,
    amin: Tensor | float | None = None,
    amax: Tensor | float | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """x [..., K] rounded to the values that the format can hold, in x's shape and dtype.

    Equal to the bit to `dequantize(quantize(x, ...))`. `group` None is the format's own; scale_dtype,
    scale_rule and int_range replace the format's. `amax` (with `amin` for an asymmetric format) is the
    calibrated range of a static scale: with granularity=tensor it is the range of the scale itself, and of a
    two-level format it gives the tensor scale; where it is broadcastable to [..., 1], every vector along K
    has its own. Values beyond it saturate. `out` receives the result and may be x itself. Raises
    NonFiniteError for NaN or Inf in x; out is then undefined.
    """
    effective = resolve(with_options(format, scale_dtype, scale_rule, int_range), granularity, group)
    format = effective.format
    values = _float32(x)
    usable = out is not None and out.dtype == torch.float32 and out.is_contiguous()
    target = out if out is not None and usable else torch.empty_like(values)
    shared = shared_scales(values, effective, amin, amax)
    one_pass = _one_pass(values, effective, shared)
    if one_pass is not None:
        if not one_pass(values, target, _block(values, effective)):
            _check_finite(values)
    else:
        _check_finite(values)
        for x_blocks, out_blocks in _parts(values, target, effective):
            for x_tile, out_tile, scale in _tiles(x_blocks, out_blocks, format, shared):
                rounded = round_elements_(scale.divide_(x_tile), format, scale.zero_point)
                out_tile.copy_(scale.multiply_(rounded))
    if out is not None:
        return out if usable else out.copy_(target)
    return target.to(x.dtype)


def fake_quantizer(
    format: Format,
    granularity: str = "group",
    group: int | None = None,
    *,
    amin: float | None = None,
    amax: float | None = None,
) -> Callable[[Tensor], Tensor]:
    """`fake_quantize` with these settings for many tensors: what does not depend on them is done once.

    That is half of the time for the few rows of a decoder's step.
    """
    effective = resolve(format, granularity, group)
    general = partial(
        fake_quantize, format=format, granularity=granularity, group=group, amin=amin, amax=amax
    )
    example = torch.zeros(1, 1)
    takes_range = granularity == "tensor" or effective.format.has_tensor_scale
    if (takes_range and amax is None) or not native.covers(example, effective.format):
        return general
    run = _natively(effective.format, shared_scales(example, effective, amin, amax))

    def rounded(x: Tensor) -> Tensor:
        if x.dtype != torch.float32 or x.device.type != "cpu" or not x.is_contiguous():
            return general(x)
        out = torch.empty_like(x)
        if not run(x, out, _block(x, effective)):
            _check_finite(x)
        return out

    return rounded


def quantize(
    x: Tensor,
    format: Format,
    granularity: str = "group",
    group: int | None = None,
    *,
    amin: Tensor | float | None = None,
    amax: Tensor | float | None = None,
) -> Quantized:
    """x [..., K] as integer codes and scales; parameters and errors as for `fake_quantize`."""
    effective = resolve(format, granularity, group)
    format = effective.format
    values = _float32(x)
    _check_finite(values)
    codes = torch.empty_like(values, dtype=code_dtype(format))
    shared = shared_scales(values, effective, amin, amax)
    scales: list[Scale] = []
    for x_blocks, code_blocks in _parts(values, codes, effective):
        tiles: list[Scale] = []
        for x_tile, code_tile, scale in _tiles(x_blocks, code_blocks, format, shared):
            rounded = round_elements_(scale.divide_(x_tile), format, scale.zero_point)
            code_tile.copy_(encode(rounded, format, scale.zero_point))
            tiles.append(scale)
        scales.append(shared.scale or _joined(tiles))
    if format.is_cast:
        return Quantized(codes, None, None, None, effective)
    shape = scale_shape(tuple(x.shape), effective.granularity, effective.group or x.shape[-1])
    rows = 1 if effective.granularity == "tensor" else x.numel() // x.shape[-1]

    def join(parts: list[Tensor]) -> Tensor:
        return torch.cat([part.reshape(rows, -1) for part in parts], dim=-1).view(shape)

    zero_points = [scale.zero_point.to(codes.dtype) for scale in scales if scale.zero_point is not None]
    zero_point = join(zero_points) if zero_points else None
    scale = join([scale.scale for scale in scales])
    return Quantized(codes, scale, shared.tensor_scale, zero_point, effective)


def dequantize(quantized: Quantized) -> Tensor:
    """The float32 values that codes and scales stand for: (code - zero point) * scale * tensor scale."""
    format, codes = quantized.effective.format, quantized.codes
    if quantized.scale is None:
        return decode(codes, format)
    block = quantized.effective.group

    def expand(scale: Tensor) -> Tensor:
        return scale if block is None else scale.repeat_interleave(block, dim=-1)[..., : codes.shape[-1]]

    zero_point = None if quantized.zero_point is None else expand(quantized.zero_point).float()
    return Scale(expand(quantized.scale), quantized.tensor_scale).multiply_(decode(codes, format, zero_point))


def clamped_scales(
    x: Tensor,
    format: Format,
    granularity: str = "group",
    group: int | None = None,
    *,
    amax: Tensor | float | None = None,
) -> Tensor:
    """Which scales of x [..., K] are beyond what their precision reaches (`is_clamped`): bool, one for every
    scale that is stored, in no order; none for a cast. `amax` as for `fake_quantize`, one number."""
    effective = resolve(format, granularity, group)
    if effective.format.is_cast:
        return torch.zeros(0, dtype=torch.bool)
    values = _float32(x)
    tensor_scale = shared_scales(values, effective, None, amax).tensor_scale
    ranges = (block_range(part, effective.format) for part, _ in _parts(values, values, effective))
    return torch.cat([is_clamped(*ends, effective.format, tensor_scale).flatten() for ends in ranges])


def _float32(x: Tensor) -> Tensor:
    """x as contiguous float32; x itself where it is that already."""
    if x.dim() == 0 or x.numel() == 0:
        raise ValueError(
            f"shape {list(x.shape)} holds nothing to quantize; give at least one axis and one element"
        )
    return x.detach().to(torch.float32).contiguous()


def _block(values: Tensor, effective: Effective) -> int:
    """How many neighbours share a scale."""
    columns = values.shape[-1]
    return min(effective.group or columns, columns)


def _check_finite(values: Tensor) -> None:
    low, high = torch.aminmax(values)  # NaN reaches both, Inf one of them
    if not (torch.isfinite(low) and torch.isfinite(high)):
        kind = "NaN" if torch.isnan(low) else "Inf"
        raise NonFiniteError(f"{kind} cannot be quantized; find out where it comes from before quantizing")


def _parts(values: Tensor, out: Tensor, effective: Effective) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of values and out as blocks that share a scale."""
    granularity = "tensor" if effective.format.is_cast else effective.granularity
    group = effective.group or values.shape[-1]
    return zip(blocks(values, granularity, group), blocks(out, granularity, group), strict=True)


def _joined(tiles: list[Scale]) -> Scale:
    """The scales of tiles that follow each other."""
    zero_points = [tile.zero_point for tile in tiles if tile.zero_point is not None]
    return Scale(
        torch.cat([tile.scale for tile in tiles]), None, torch.cat(zero_points) if zero_points else None
    )


def _tiles(
    x_blocks: Tensor, out_blocks: Tensor, format: Format, shared: SharedScales
) -> Iterator[tuple[Tensor, Tensor, Scale]]:
    """A working copy of each tile of the blocks, where its result belongs, and its scales."""
    if shared.scale is not None:  # any cut will do
        x_blocks, out_blocks = x_blocks.view(-1, 1, 1), out_blocks.view(-1, 1, 1)
    n = len(x_blocks) if x_blocks.is_cuda else max(1, TILE // x_blocks[0].numel())
    for first in range(0, len(x_blocks), n):
        x_tile = x_blocks[first : first + n].clone()
        scale = shared.scale_of(x_tile, format, first, len(x_blocks))
        yield x_tile, out_blocks[first : first + n], scale


def _one_pass(values: Tensor, effective: Effective, shared: SharedScales) -> native.Run | None:
    """All operations in one pass over the memory, where there is one for this device and format."""
    if native.covers(values, effective.format):
        return _natively(effective.format, shared)
    if fused.covers(values, effective):
        return fused.fake_quantizer(effective.format, shared.tensor_scale, shared.scale)
    return None


def _natively(format: Format, shared: SharedScales) -> native.Run:
    given = None
    if shared.scale is not None:
        zero_point = shared.scale.zero_point
        given = shared.scale.scale.item(), 0.0 if zero_point is None else zero_point.item()
    return native.fake_quantizer(format, shared.tensor_scale, given)
