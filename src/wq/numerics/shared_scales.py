"""Scales that many blocks share: the one of a whole tensor, and the second level above a two-level
format's."""

from dataclasses import dataclass

import torch
from torch import Tensor

from wq.numerics import native
from wq.numerics.effective import Effective
from wq.numerics.formats import Format
from wq.numerics.scales import (
    Scale,
    block_range,
    choose_scale,
    scale_of_range,
    search_ratios,
    tensor_scale_of,
)


@dataclass(frozen=True)
class SharedScales:
    """`scale`: the one of granularity=tensor, or a cast's 1. `tensor_scale`: [], or [..., 1] for every
    vector."""

    scale: Scale | None
    tensor_scale: Tensor | None

    def scale_of(self, x_blocks: Tensor, format: Format, first: int = 0, total: int | None = None) -> Scale:
        """The scale of blocks [n, ..., L], which are those from `first` on of a total."""
        if self.scale is not None:
            return self.scale
        tensor_scale = self.tensor_scale
        if tensor_scale is not None and tensor_scale.numel() > 1:
            per_row = (total or len(x_blocks)) // tensor_scale.numel()
            tensor_scale = tensor_scale.flatten().repeat_interleave(per_row).view(-1, 1, 1)
            tensor_scale = tensor_scale[first : first + len(x_blocks)]
        return choose_scale(x_blocks, format, tensor_scale)


def shared_scales(
    values: Tensor, effective: Effective, amin: Tensor | float | None, amax: Tensor | float | None
) -> SharedScales:
    """The shared scales of values [..., K]: from the calibrated range [amin, amax], or where that is None,
    from the values. Raises ValueError for an amax that has no use."""
    format, per_tensor = effective.format, effective.granularity == "tensor"
    if format.is_cast:
        return SharedScales(Scale(values.new_ones(1, 1, 1)), None)
    if amax is None:
        if not (per_tensor or format.has_tensor_scale):
            return SharedScales(None, None)
        low, high = _whole_range(values, format)
    else:
        if not (per_tensor or format.has_tensor_scale):
            raise ValueError(
                f"amax has no use for format {format.name} with granularity={effective.granularity}, whose "
                "scales are dynamic; leave it out, or use granularity=tensor"
            )
        high = torch.as_tensor(amax, dtype=torch.float32, device=values.device).clamp(min=0.0)
        low = -high if amin is None else torch.as_tensor(amin, dtype=torch.float32, device=values.device)
        if per_tensor and high.numel() > 1:
            raise ValueError(f"amax of shape {list(high.shape)} is for granularity=token; give one number")
    tensor_scale = None
    if format.has_tensor_scale:
        rows = (*values.shape[:-1], 1) if high.dim() > 0 and high.numel() > 1 else ()
        tensor_scale = tensor_scale_of(high.expand(rows) if rows else high.view(()), format)
    if not per_tensor:
        return SharedScales(None, tensor_scale)
    if amax is None and len(search_ratios(format)) > 1:
        return SharedScales(choose_scale(values.view(1, 1, -1), format, tensor_scale), tensor_scale)
    low, high = low.clamp(max=0.0).view(1, 1, 1), high.view(1, 1, 1)
    return SharedScales(scale_of_range(low, high, format, tensor_scale), tensor_scale)


def _whole_range(values: Tensor, format: Format) -> tuple[Tensor, Tensor]:
    """`block_range` of all values as one block."""
    if not native.covers(values, format):
        return block_range(values.view(1, 1, -1), format)
    low, high = native.value_range(values)
    if format.is_asymmetric:
        return low, high
    amax = torch.maximum(-low, high)
    return -amax, amax
