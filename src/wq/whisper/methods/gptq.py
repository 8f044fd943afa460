"""GPTQ (Frantar et al. 2022) as a method: the columns to come make up for what rounding one does.

The outputs of a layer on calibration speech differ by tr(E H E'), where E is what the weights differ by and H
the second moment of what the layer reads. Columns are rounded one after the other; after each, the weights to
come move to where they cancel most of its error, which the inverse of H tells. Scales, zero points and tensor
scale are those that the format gives the weights as they were (searched, if it searches): so columns may come
in any order, and any format that has a scale can be rounded so, floats and blocks of two levels too
(as MR-GPTQ has them, Egiazarian et al. 2025).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from wq.numerics.elements import encode, round_elements_
from wq.numerics.fake_quant import Quantized, dequantize, quantize
from wq.numerics.scales import Scale
from wq.whisper.layers.treatment import Gptq
from wq.whisper.methods.method import Treated
from wq.whisper.methods.nearest import clamped_layers, holding, over_weights

SINGULAR = 1e-9  # of a channel's second moment: what no other channel tells of it, at least
COLUMNS_AT_ONCE = 128  # that are brought up to date together


@contextmanager
def apply(gptq: Gptq, state: Treated) -> Iterator[None]:
    """Inside, the weights of the state's plan are rounded. Those whose inputs calibration does not see, of
    convolutions and the embedding, go to the nearest."""
    state.clamped = clamped_layers(state.plan, gptq.share_tensor_scale)
    observed, found = state.observed(), []
    for layer, nearest in over_weights(quantize, state.plan, gptq.share_tensor_scale):
        seen = observed.get(layer.name)
        if seen is None or seen.moment is None or nearest.scale is None:
            found.append((layer, nearest))
            continue
        weight = layer.weight.data.flatten(1).float()
        try:
            codes = rounded_codes(weight, seen.moment, nearest, gptq.damping, gptq.activation_order)
        except ValueError as error:
            raise ValueError(f"layer {layer.name}: {error}") from None
        found.append((layer, replace(nearest, codes=codes)))
    if state.codes_only:
        state.codes |= {layer.name: quantized for layer, quantized in found}
        yield
    else:
        with holding(state.plan, ((layer, dequantize(quantized)) for layer, quantized in found)):
            yield


def rounded_codes(
    weight: Tensor, moment: Tensor, nearest: Quantized, damping: float = 0.01, activation_order: bool = True
) -> Tensor:
    """Codes [N, K] for a weight [N, K], with the scales of `nearest`, which is the weight rounded to nearest.

    moment    [K, K], the sum of x x' over the layer's inputs
    damping   what the diagonal gets, as a share of its mean

    Raises ValueError where the moment cannot be inverted.
    """
    factor, order = inverse_factor(moment.to(weight.device), damping, activation_order)
    format = nearest.effective.format
    scale, zero_point = (_by_element(each, nearest) for each in (nearest.scale, nearest.zero_point))
    codes = torch.empty_like(nearest.codes)
    left = weight.double()[:, order]
    columns = order.tolist()
    for first in range(0, len(columns), COLUMNS_AT_ONCE):
        block = slice(first, min(first + COLUMNS_AT_ONCE, len(columns)))
        errors = torch.zeros_like(left[:, block])
        for n, column in enumerate(columns[block], first):
            at = slice(column, column + 1)
            own = Scale(scale[:, at], nearest.tensor_scale, None if zero_point is None else zero_point[:, at])
            value = left[:, n : n + 1].float()
            rounded = round_elements_(own.divide_(value.clone()), format, own.zero_point)
            codes[:, at] = encode(rounded.clone(), format, own.zero_point).to(codes.dtype)
            error = (left[:, n : n + 1] - own.multiply_(rounded)) / factor[n, n]
            left[:, n : block.stop] -= error * factor[n, n : block.stop]
            errors[:, n - first] = error[:, 0]
        left[:, block.stop :] -= errors @ factor[block, block.stop :]
    return codes


def inverse_factor(moment: Tensor, damping: float, activation_order: bool) -> tuple[Tensor, Tensor]:
    """The upper triangular U with U'U the inverse of the damped moment, float64 [K, K], its columns in the
    order [K] that is returned beside it.

    A column that reads nothing but zeros has no say: its diagonal is taken as the mean.
    """
    hessian = moment.double().clone()
    diagonal = hessian.diagonal()
    order = (
        torch.argsort(diagonal, descending=True, stable=True)
        if activation_order
        else torch.arange(len(diagonal), device=diagonal.device)
    )
    mean = diagonal.mean().item()
    diagonal[diagonal == 0] = mean or 1.0
    diagonal += damping * mean
    hessian = hessian[order][:, order]
    try:
        root = torch.linalg.cholesky(hessian)
        # a channel that others tell to the last digits, such as a copy, has an inverse that is all rounding
        if (root.diagonal() ** 2 < SINGULAR * hessian.diagonal()).any():
            raise torch.linalg.LinAlgError  # pyright: ignore[reportPrivateImportUsage]
        return torch.linalg.cholesky(torch.cholesky_inverse(root), upper=True), order
    except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
        raise ValueError(
            f"the second moment of its input cannot be inverted with algorithm.damping={damping:g}; "
            "give more damping, or more calibration speech"
        ) from None


def output_error(difference: Tensor, moment: Tensor) -> float:
    """tr(E H E'): how far outputs are from what they were, squared, for weights that differ by E [N, K]."""
    moved = difference.double()
    return ((moved @ moment.double()) * moved).sum().item()


def _by_element(scale: Tensor | None, nearest: Quantized) -> Tensor:
    """[N, K] of what is stored once for a block."""
    if scale is None:
        return None  # type: ignore[return-value]
    group, shape = nearest.effective.group, nearest.codes.shape
    wide = scale if group is None else scale.repeat_interleave(group, dim=-1)[..., : shape[-1]]
    return wide.float().expand(shape)
