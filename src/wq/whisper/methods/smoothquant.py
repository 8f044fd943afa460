"""SmoothQuant (Xiao et al. 2023) as a method: factors from what calibration saw, folded into the model."""

from collections.abc import Iterator
from contextlib import contextmanager

from wq.whisper.layers.schemes import Smoothing
from wq.whisper.methods.alpha_search import search
from wq.whisper.methods.folds import SmoothedInput, factors, find_folds, smoothed
from wq.whisper.methods.method import Treated


@contextmanager
def apply(smoothing: Smoothing, state: Treated) -> Iterator[None]:
    """Inside, the model is smoothed. All inputs are, even those of layers that nothing rounds: it changes no
    output."""
    observed = state.observed()
    folds = find_folds(state.whisper.model, smoothing.fc2)
    alphas = {fold.name: smoothing.alphas[fold.submodule] for fold in folds}
    if smoothing.method == "search":
        alphas = search(
            folds,
            state.plan,
            state.treatment.activations,
            observed,
            scope=smoothing.scope or "submodule",
            share_tensor_scale=state.treatment.share_tensor_scale,
        )
    maxima = {name: each.channel_max for name, each in observed.items()}
    scales = factors(folds, maxima, alphas)
    with smoothed(folds, scales):
        state.smoothed += [
            SmoothedInput(fold, alphas[fold.name], maxima[fold.consumers[0].name], scales.get(fold.name))
            for fold in folds
        ]
        yield
