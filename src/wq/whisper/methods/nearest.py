"""Fake quantization of a model's weights, in place and undone afterwards."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor

from wq.numerics.effective import Quantizer
from wq.numerics.fake_quant import NonFiniteError, fake_quantize
from wq.whisper.layers.layers import Layer

R = TypeVar("R")

# Engines multiply these by one matrix: q, k and v of self-attention, k and v of cross-attention
FUSED = ("self_attn.q", "self_attn.k", "self_attn.v"), ("cross_attn.k", "cross_attn.v")


@contextmanager
def quantized_weights(
    plan: Sequence[tuple[Layer, Quantizer]], share_tensor_scale: bool = False
) -> Iterator[None]:
    """Inside, the weights of the plan's layers hold the values that their formats can represent; afterwards
    the original ones again.

    With share_tensor_scale, layers that engines fuse have one tensor scale, where their format has one. The
    model is shared by all points of a grid, so it must come back exactly as it was, whatever happens inside.
    Raises NonFiniteError that names the layer whose weight holds NaN or Inf.
    """
    originals = [layer.weight.data for layer, _ in plan]
    try:
        for layer, values in over_weights(fake_quantize, plan, share_tensor_scale):
            layer.weight.data = values.view(layer.weight.shape)
        yield
    finally:
        for (layer, _), original in zip(plan, originals, strict=True):
            layer.weight.data = original


def over_weights(
    operation: Callable[..., R], plan: Sequence[tuple[Layer, Quantizer]], share_tensor_scale: bool
) -> Iterator[tuple[Layer, R]]:
    """What `fake_quantize` or `quantize` gives of each weight of the plan, as a matrix [N, K].

    Raises NonFiniteError that names the layer.
    """
    ranges = fused_ranges(plan) if share_tensor_scale else {}
    for layer, quantizer in plan:
        try:
            result = operation(layer.weight.data.flatten(1), *quantizer, amax=ranges.get(layer.name))
        except NonFiniteError as error:
            raise NonFiniteError(f"layer {layer.name}: {error}") from None
        yield layer, result


def fused_ranges(plan: Sequence[tuple[Layer, Quantizer]]) -> dict[str, Tensor]:
    """The largest magnitude of the layers that are fused with a layer, by its name; for two-level formats."""
    families: dict[tuple[str, tuple[str, ...]], list[Layer]] = {}
    for layer, quantizer in plan:
        roles = next((roles for roles in FUSED if layer.role.partition(".")[2] in roles), None)
        if roles and quantizer.format.has_tensor_scale:
            families.setdefault((layer.name.rpartition(".")[0], roles), []).append(layer)
    ranges = {}
    for members in families.values():
        amax = max(layer.weight.data.float().abs().amax() for layer in members)
        ranges |= {layer.name: amax for layer in members}
    return ranges
