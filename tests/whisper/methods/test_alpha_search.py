"""The searched alphas: those of least error by plain arithmetic, shared as the scope says."""

import pytest
import torch
from torch import Tensor

from tests.whisper.methods.test_folds import parameters, random_model
from wq.catalogue import load_format
from wq.numerics.effective import Quantizer
from wq.numerics.fake_quant import fake_quantize
from wq.whisper.calibration.calibration import Observed, Observer
from wq.whisper.decoding.greedy import Place
from wq.whisper.layers.layers import assign, walk
from wq.whisper.layers.schemes import DEFAULT_ROLES, Activation, Assignment
from wq.whisper.methods.alpha_search import CANDIDATES, divided, search
from wq.whisper.methods.folds import factor, find_folds, weight_amax

INT8, INT4 = load_format("int8"), load_format("int4")
TOKEN, TENSOR = Activation(Quantizer(INT8, "token")), Activation(Quantizer(INT8, "tensor"), "max")
GROUPS = Quantizer(INT4, "group", 16)


def observed(x: Tensor) -> Observed:
    observer = Observer("layer", Place(batch=[0], rows=[0]))
    observer(None, (x[None],))
    return observer.observed(0.0)


@pytest.fixture(scope="module")
def model():
    return random_model().float()


@pytest.fixture(scope="module")
def seen(model) -> dict[str, Observed]:
    """Inputs whose channels differ in size by orders of magnitude."""
    generator = torch.Generator().manual_seed(4)
    layers = [layer for layer in walk(model) if layer.is_linear]
    widths = {layer.source: layer.weight.shape[1] for layer in layers}
    inputs = {
        source: torch.randn(40, width, generator=generator)
        * torch.exp(1.5 * torch.randn(width, generator=generator))
        for source, width in widths.items()
    }
    return {layer.name: observed(inputs[layer.source]) for layer in layers}


def plain_errors(fold, weight: Quantizer | None, activation: Activation | None, seen) -> list[float]:
    """The search's objective written out, without folding anything."""
    totals = []
    x = seen[fold.consumers[0].name].sample
    for alpha in CANDIDATES:
        s = torch.ones(x.shape[1])
        if alpha is not None:
            s = factor(x.abs().amax(0), weight_amax(fold), alpha)
        read = x / s
        if activation:
            amax = read.abs().max() if activation.is_static else None
            read = fake_quantize(read, *activation.quantizer, amax=amax)
        total = 0.0
        for layer in fold.consumers:
            w = layer.weight.detach()
            y, scaled = x @ w.T, w * s
            rounded = fake_quantize(scaled, *weight) if weight else scaled
            total += float(((read @ rounded.T - y) ** 2).sum() / (y**2).sum())
        totals.append(total)
    return totals


def spec(model, weight: Quantizer | None, activation: Activation | None):
    layers = [layer for layer in walk(model) if layer.is_linear]
    plan = assign(layers, [Assignment(weight, DEFAULT_ROLES)]) if weight else []
    return plan, [Assignment(activation, DEFAULT_ROLES)] if activation else []


@pytest.mark.parametrize(
    ("weight", "activation"),
    [(GROUPS, TOKEN), (Quantizer(INT8, "tensor"), TENSOR), (GROUPS, None), (None, TOKEN)],
)
def test_the_alpha_of_least_error_is_found(model, seen, weight, activation):
    before = parameters(model)
    folds = [fold for fold in find_folds(model, fc2=True) if ".layers.1." not in fold.name]
    errors = {fold.name: plain_errors(fold, weight, activation, seen) for fold in folds}
    for scope in ("layer", "submodule"):
        alphas = search(folds, *spec(model, weight, activation), seen, scope=scope)
        groups: dict[str, list[str]] = {}
        for fold in folds:
            groups.setdefault(fold.submodule if scope == "submodule" else fold.name, []).append(fold.name)
        for names in groups.values():
            assert len({alphas[name] for name in names}) == 1
            totals = [sum(column) for column in zip(*(errors[name] for name in names), strict=True)]
            assert totals[CANDIDATES.index(alphas[names[0]])] <= min(totals) * (1 + 1e-4)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_outliers_are_worth_smoothing(model, seen):
    """Otherwise the test above might hold with nothing ever smoothed."""
    alphas = search(find_folds(model), *spec(model, GROUPS, TOKEN), seen, scope="submodule")
    assert None not in alphas.values()


def test_what_is_not_quantized_weighs_nothing(model, seen):
    folds = find_folds(model, fc2=True)
    assert set(search(folds, [], [], seen, scope="layer").values()) == {None}
    activations = [Assignment(TOKEN, ("encoder.mlp.fc1",))]
    alphas = search(folds, [], activations, seen, scope="layer")
    assert {name for name, alpha in alphas.items() if alpha is not None} == {
        fold.name for fold in folds if fold.consumers[0].role == "encoder.mlp.fc1"
    }


def test_what_is_seen_of_a_divided_input():
    generator = torch.Generator().manual_seed(6)
    x, s = torch.randn(3000, 24, generator=generator), torch.exp(torch.randn(24, generator=generator))
    whole, smoothed = observed(x), divided(observed(x), s)
    assert len(whole.sample) < len(x)
    torch.testing.assert_close(smoothed.channel_max, (x / s).abs().amax(0))
    assert max(smoothed.amax, -smoothed.amin) == pytest.approx(float((x / s).abs().max()), rel=1e-6)
    assert smoothed.histogram.sum() == smoothed.sample.numel()
    torch.testing.assert_close(smoothed.sample * s, whole.sample)
