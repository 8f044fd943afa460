"""The alphas of SmoothQuant that least disturb the outputs of quantized layers on calibration speech."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from wq.numerics.effective import Quantizer
from wq.whisper.calibration.calibration import BINS, Observed, bins_of
from wq.whisper.calibration.ranges import range_of
from wq.whisper.decoding import onednn
from wq.whisper.layers.layers import Layer, quantizer_of
from wq.whisper.layers.schemes import Activation, Assignment, by_role
from wq.whisper.methods.activation import rounding
from wq.whisper.methods.folds import Fold, factors, smoothed
from wq.whisper.methods.nearest import quantized_weights

# None leaves the input as it is, so that a search never does worse on its sample than no smoothing
CANDIDATES = (None, *(step / 20 for step in range(21)))


@torch.no_grad()
def search(
    folds: Sequence[Fold],
    plan: Sequence[tuple[Layer, Quantizer]],
    activations: Sequence[Assignment[Activation]],
    observed: Mapping[str, Observed],
    *,
    scope: str,
    share_tensor_scale: bool = False,
) -> dict[str, float | None]:
    """The best alpha of each fold, by its name; None where no smoothing is better than any.

    plan, activations   how weights and inputs will be quantized
    observed            of the inputs as they are without smoothing, by layer name
    scope               whether the folds of a submodule share an alpha, or each has its own (layer)

    Best is the least sum, over the layers that are quantized, of |X' W' - X W|^2 / |X W|^2: X a sample of a
    layer's input, X' and W' smoothed and quantized. A fold none of whose readers is quantized weighs nothing.
    Of equal candidates the first is taken.
    """
    by_group: dict[str, list[Fold]] = {}
    for fold in folds:
        by_group.setdefault(fold.submodule if scope == "submodule" else fold.name, []).append(fold)
    errors = {
        fold.name: list(disturbances(fold, plan, by_role(activations), observed, share_tensor_scale))
        for fold in tqdm(folds, desc="search alphas", unit="input", disable=None, leave=False)
    }
    chosen = {}
    for group in by_group.values():
        totals = [sum(column) for column in zip(*(errors[fold.name] for fold in group), strict=True)]
        best = CANDIDATES[totals.index(min(totals))]
        chosen |= {fold.name: best for fold in group}
    return {fold.name: chosen[fold.name] for fold in folds}


def disturbances(
    fold: Fold,
    plan: Sequence[tuple[Layer, Quantizer]],
    activations: Mapping[str, Activation],
    observed: Mapping[str, Observed],
    share_tensor_scale: bool,
) -> Iterator[float]:
    """For each candidate, the relative squared errors of the outputs of the fold's readers, summed."""
    names = {layer.name for layer in fold.consumers}
    weights = [(layer, quantizer) for layer, quantizer in plan if layer.name in names]
    baked = {layer.name for layer, _ in weights}
    readers = [layer for layer in fold.consumers if layer.name in baked or quantizer_of(layer, activations)]
    seen = observed[fold.consumers[0].name]
    x = seen.sample.to(fold.consumers[0].weight)
    linear = onednn.linear if onednn.is_fast(fold.consumers[0].weight) else F.linear
    expected = [linear(x, layer.weight) for layer in readers]
    for alpha in CANDIDATES:
        factor = factors([fold], dict.fromkeys(names, seen.channel_max), {fold.name: alpha})
        inputs = inputs_of(readers, activations, seen, factor.get(fold.name))
        with smoothed([fold], factor), quantized_weights(weights, share_tensor_scale):
            outputs = [linear(inputs[layer.name].to(x), layer.weight) for layer in readers]
        yield sum(map(relative_error, outputs, expected))


def inputs_of(
    readers: Sequence[Layer], activations: Mapping[str, Activation], seen: Observed, factor: Tensor | None
) -> dict[str, Tensor]:
    """The sample as each layer reads it, by name, divided and rounded; once for all that round it alike."""
    x = seen.sample if factor is None else seen.sample / factor.to(seen.sample)
    chosen = {layer.name: quantizer_of(layer, activations) for layer in readers}
    rounded = {}
    for activation in set(chosen.values()):
        rounded[activation] = x
        if activation is not None:
            after = seen if factor is None or not activation.is_static else divided(seen, factor)
            span = range_of(after, activation) if activation.is_static else None
            rounded[activation] = rounding(activation, span)(x)
    return {name: rounded[activation] for name, activation in chosen.items()}


def divided(seen: Observed, factor: Tensor) -> Observed:
    """What would be seen of the input divided by the factor [K]: its channels' maxima exactly, the ends of
    its range scaled to the largest of them, everything else from the sample."""
    factor = factor.to(seen.sample)
    x, channel_max = seen.sample / factor, seen.channel_max / factor
    magnitudes = x.abs()
    stretch = float(channel_max.max() / magnitudes.max().clamp(min=torch.finfo(x.dtype).tiny))
    counts = [torch.bincount(bins_of(x[sign]), minlength=BINS) for sign in (x < 0, x >= 0)]
    return replace(
        seen,
        tokens=len(x),
        amin=min(stretch * x.min().item(), 0.0),
        amax=max(stretch * x.max().item(), 0.0),
        channel_max=channel_max,
        negative=counts[0],
        positive=counts[1],
        token_max=torch.bincount(bins_of(magnitudes.amax(1)), minlength=BINS),
        sample=x,
    )


def relative_error(output: Tensor, expected: Tensor) -> float:
    """|output - expected|^2 / |expected|^2; the error's own size where nothing is expected."""
    error, size = ((tensor.double() ** 2).sum().item() for tensor in (output - expected, expected))
    return error / size if size else error
