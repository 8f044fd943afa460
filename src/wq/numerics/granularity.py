"""Which elements of a tensor share a scale.

For x of shape [..., K], e.g. a weight [N, K] or an activation [batch, frames, K]:

    tensor          one scale
    channel, token  one scale per vector along K: an output channel of a weight, a token of an activation
    group           ceil(K / group) scales per vector; where group does not divide K the last group is shorter
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

GRANULARITIES = ("tensor", "channel", "token", "group")


def check_granularity(granularity: str, group: int | None) -> None:
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity={granularity} is unknown; choose one of {', '.join(GRANULARITIES)}")
    if group is not None and group < 1:
        raise ValueError(
            f"group={group} must be at least 1; give a positive group size, or null for the format's own"
        )


def scale_shape(shape: tuple[int, ...], granularity: str, group: int) -> tuple[int, ...]:
    """Shape of the scales of a tensor of this shape: [..., ceil(K/group)], [..., 1], or [1, ..., 1]."""
    if granularity == "tensor":
        return (1,) * len(shape)
    return (*shape[:-1], math.ceil(shape[-1] / group) if granularity == "group" else 1)


def blocks(x: Tensor, granularity: str, group: int) -> list[Tensor]:
    """Views of contiguous x [..., K] as blocks that share a scale, [n, blocks side by side, block length].

    Two views where a ragged tail is shorter than the other groups: [rows, K // group, group] and [rows, 1,
    rest]. One otherwise, with n blocks.
    """
    columns = x.shape[-1]
    if granularity == "tensor":
        return [x.view(1, 1, -1)]
    if granularity != "group" or group >= columns:
        return [x.view(-1, 1, columns)]
    whole = columns - columns % group
    if whole == columns:
        return [x.view(-1, 1, group)]
    rows = x.view(-1, 1, columns)
    return [rows[:, 0, :whole].unflatten(-1, (-1, group)), rows[:, :, whole:]]
