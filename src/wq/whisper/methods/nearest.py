"""Rounding to nearest as a method: fake quantization of weights, in place and undone afterwards; or codes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor

from wq.numerics.effective import Quantizer
from wq.numerics.fake_quant import NonFiniteError, Quantized, clamped_scales, fake_quantize, quantize
from wq.whisper.layers.layers import Layer
from wq.whisper.layers.treatment import Nearest
from wq.whisper.methods.method import ClampedScales, Treated

R = TypeVar("R")

# Engines multiply these by one matrix: q, k and v of self-attention, k and v of cross-attention
FUSED = ("self_attn.q", "self_attn.k", "self_attn.v"), ("cross_attn.k", "cross_attn.v")


@contextmanager
def apply(nearest: Nearest, state: Treated) -> Iterator[None]:
    """Inside, the weights of the state's plan are rounded."""
    state.clamped = clamped_layers(state.plan, nearest.share_tensor_scale)
    if state.codes_only:
        codes = quantize_weights(state.plan, nearest.share_tensor_scale)
        state.codes |= {layer.name: quantized for layer, quantized in codes}
        yield
    else:
        with quantized_weights(state.plan, nearest.share_tensor_scale):
            yield


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
    with holding(plan, over_weights(fake_quantize, plan, share_tensor_scale)):
        yield


@contextmanager
def holding(
    plan: Sequence[tuple[Layer, Quantizer]], rounded: Iterable[tuple[Layer, Tensor]]
) -> Iterator[None]:
    """Inside, the weights of the plan's layers are these values, matrices [N, K]; afterwards the original
    ones again, whatever happens inside or while the values are made."""
    originals = [layer.weight.data for layer, _ in plan]
    try:
        for layer, values in rounded:
            layer.weight.data = values.view(layer.weight.shape)
        yield
    finally:
        for (layer, _), original in zip(plan, originals, strict=True):
            layer.weight.data = original


def quantize_weights(
    plan: Sequence[tuple[Layer, Quantizer]], share_tensor_scale: bool = False
) -> list[tuple[Layer, Quantized]]:
    """The weights of the plan's layers as codes and scales, matrices [N, K]. Raises NonFiniteError that names
    the layer."""
    return list(over_weights(quantize, plan, share_tensor_scale))


def clamped_layers(
    plan: Sequence[tuple[Layer, Quantizer]], share_tensor_scale: bool = False
) -> list[ClampedScales]:
    """The plan's layers that have such scales, as the weights are now."""
    found = over_weights(clamped_scales, plan, share_tensor_scale)
    counts = (ClampedScales(layer.name, int(each.sum()), each.numel()) for layer, each in found)
    return [count for count in counts if count.clamped]


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
