"""The operations: quantize to integer codes and scales, dequantize, and both in one pass (fake
quantization)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from wq.numerics.effective import Effective, resolve
from wq.numerics.elements import decode, encode, round_elements_
from wq.numerics.formats import Format, with_options
from wq.numerics.granularity import blocks, scale_shape
from wq.numerics.scales import Scale, block_range, choose_scale, scale_of_range, tensor_scale_of


class NonFiniteError(ValueError):
    """The tensor holds NaN or Inf. The message names no layer: the caller knows it and adds it."""


@dataclass(frozen=True)
class Quantized:
    """A tensor as codes and scales.

    codes         integers in x's shape [..., K]
    scale         float32 values of the stored scales: [..., ceil(K/group)], [..., 1], [1, ..., 1]; None for a
    cast tensor_scale  float32, one element, or None zero_point    integers in the scale's shape, or None
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
) -> Tensor:
    """x [..., K] rounded to the values that the format can hold, in x's shape and dtype.

    Equal to the bit to `dequantize(quantize(x, ...))`. `group` None is the format's own; scale_dtype,
    scale_rule and int_range replace the format's. `amax` (with `amin` for an asymmetric format) is the
    calibrated range of a static scale: with granularity=tensor it is the range of the scale itself, and of a
    two-level format it gives the tensor scale; where it is broadcastable to [..., 1], every vector along K
    has its own. Values beyond it saturate. Raises NonFiniteError for NaN or Inf in x.
    """
    format = with_options(format, scale_dtype, scale_rule, int_range)
    effective = resolve(format, granularity, group)
    values = _float32(x)
    out = torch.empty_like(values)
    if format.is_cast:
        out.copy_(round_elements_(values.clone(), format))
        return out.to(x.dtype)
    for x_blocks, out_blocks, scale in _scaled_blocks(values, out, effective, amin, amax):
        out_blocks.copy_(
            scale.multiply_(round_elements_(scale.divide_(x_blocks.clone()), format, scale.zero_point))
        )
    return out.to(x.dtype)


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
    values = _float32(x)
    grid = torch.empty_like(values)
    if format.is_cast:
        codes = encode(round_elements_(grid.copy_(values), format), format)
        return Quantized(codes, None, None, None, effective)
    codes = torch.empty_like(values, dtype=encode(values[:0], format).dtype)
    scales = []
    for x_blocks, code_blocks, scale in _scaled_blocks(values, codes, effective, amin, amax):
        rounded = round_elements_(scale.divide_(x_blocks.clone()), format, scale.zero_point)
        code_blocks.copy_(encode(rounded, format, scale.zero_point))
        scales.append(scale)
    shape = scale_shape(tuple(x.shape), effective.granularity, effective.group or x.shape[-1])
    joined = torch.cat([scale.scale.flatten(1) for scale in scales], dim=1).reshape(shape)
    zero_point = None
    if format.is_asymmetric:
        zero_point = torch.cat([scale.zero_point.flatten(1) for scale in scales], dim=1).reshape(shape)
        zero_point = zero_point.to(codes.dtype)
    return Quantized(codes, joined, scales[0].tensor_scale, zero_point, effective)


def dequantize(quantized: Quantized) -> Tensor:
    """The float32 values that codes and scales stand for: (code - zero point) * scale * tensor scale."""
    format, codes = quantized.effective.format, quantized.codes
    if quantized.scale is None:
        return decode(codes, format)
    block = quantized.effective.group if quantized.effective.granularity == "group" else None

    def expand(scale: Tensor) -> Tensor:
        if block is None:
            return scale
        return scale.repeat_interleave(block, dim=-1)[..., : codes.shape[-1]]

    zero_point = None if quantized.zero_point is None else expand(quantized.zero_point).float()
    return Scale(expand(quantized.scale), quantized.tensor_scale).multiply_(decode(codes, format, zero_point))


def _float32(x: Tensor) -> Tensor:
    """x as contiguous float32; x itself where it is that already."""
    if x.dim() == 0 or x.numel() == 0:
        raise ValueError(
            f"shape {list(x.shape)} holds nothing to quantize; give at least one axis and one element"
        )
    values = x.detach().to(torch.float32).contiguous()
    if not torch.isfinite(values).all():
        kind = "NaN" if torch.isnan(values).any() else "Inf"
        raise NonFiniteError(f"{kind} cannot be quantized; find out where it comes from before quantizing")
    return values


def _scaled_blocks(
    values: Tensor,
    out: Tensor,
    effective: Effective,
    amin: Tensor | float | None,
    amax: Tensor | float | None,
) -> Iterator[tuple[Tensor, Tensor, Scale]]:
    """Views of values and out as blocks, and the scale of each block."""
    format, granularity = effective.format, effective.granularity
    group = effective.group or values.shape[-1]
    static_range = None
    if amax is not None:
        if not (format.has_tensor_scale or granularity == "tensor"):
            raise ValueError(
                f"amax has no use for format {format.name} with granularity={granularity}, whose scales are "
                "dynamic; leave it out, or use granularity=tensor"
            )
        high = torch.as_tensor(amax, dtype=torch.float32, device=values.device)
        low = -high if amin is None else torch.as_tensor(amin, dtype=torch.float32, device=values.device)
        static_range = low.clamp(max=0.0), high.clamp(min=0.0)
    tensor_scale = None
    if format.has_tensor_scale:
        amax = static_range[1] if static_range else block_range(values.view(-1), format)[1]
        tensor_scale = tensor_scale_of(amax, format)
        if tensor_scale.numel() > 1:
            tensor_scale = tensor_scale.expand(*values.shape[:-1], 1).reshape(-1, 1, 1)
    for x_blocks, out_blocks in zip(
        blocks(values, granularity, group), blocks(out, granularity, group), strict=True
    ):
        if static_range and granularity == "tensor":
            low, high = (end.view(1, 1, 1) for end in static_range)
            yield x_blocks, out_blocks, scale_of_range(low, high, format, tensor_scale)
        else:
            yield x_blocks, out_blocks, choose_scale(x_blocks, format, tensor_scale)
