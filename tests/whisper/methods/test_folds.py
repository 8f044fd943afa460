"""SmoothQuant: no fold moves a logit, all are undone, and the factors are those of the paper's formula."""
# pyright: reportMissingImports=false

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from tests.conftest import REAL
from wq.whisper.layers.layers import walk
from wq.whisper.methods.folds import factor, factors, find_folds, smoothed

# Relative to the largest logit, in float64
TOLERANCE = 1e-9


def random_model() -> WhisperForConditionalGeneration:
    """Two layers in which every parameter is random: as they are made, norms have gain 1 and bias 0."""
    torch.manual_seed(3)
    config = WhisperConfig(
        vocab_size=60,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_source_positions=20,
        max_target_positions=12,
        num_mel_bins=8,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0),
    )
    model = WhisperForConditionalGeneration(config).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module", params=["random", "nano", pytest.param("real", marks=pytest.mark.slow)])
def model(request):
    if request.param == "random":
        return random_model()
    if request.param == "nano":
        return shortened(request.getfixturevalue("nano").model)
    if not REAL.is_dir():
        pytest.skip("../shared/real with its checkpoint is not there")
    from wq.whisper.checkpoint.model import load

    return shortened(load(REAL / "checkpoint").model)


def shortened(model: WhisperForConditionalGeneration) -> WhisperForConditionalGeneration:
    """A trained model in float64 with a window of 0.3 s: every forward pass is of the whole window."""
    model = deepcopy(model).double()
    model.config.max_source_positions = 16
    positions = model.model.encoder.embed_positions
    positions.weight.data, positions.num_embeddings = positions.weight.data[:16].clone(), 16
    return model


@torch.inference_mode()
def logits(model) -> torch.Tensor:
    """transformers' own forward pass over random features and tokens."""
    generator = torch.Generator().manual_seed(5)
    config = model.config
    frames = 2 * config.max_source_positions
    features = torch.randn(1, config.num_mel_bins, frames, dtype=torch.float64, generator=generator)
    tokens = torch.randint(config.vocab_size, (1, 3), generator=generator)
    return model(input_features=features, decoder_input_ids=tokens).logits


def movement(model, folds, before) -> float:
    """How far the folds move a logit, relative to the largest; their factors span orders of magnitude."""
    generator = torch.Generator().manual_seed(7)
    widths = {fold.name: fold.consumers[0].weight.shape[1] for fold in folds}
    scales = {name: torch.exp(2 * torch.randn(width, generator=generator)) for name, width in widths.items()}
    with smoothed(folds, scales):
        return float((logits(model) - before).abs().max() / before.abs().max())


def parameters(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_no_fold_moves_a_logit_alone_or_with_the_others(model):
    folds, before, original = find_folds(model, fc2=True), logits(model), parameters(model)
    moved = {fold.name: movement(model, [fold], before) for fold in folds}
    moved["all"] = movement(model, folds, before)
    assert max(moved.values()) < TOLERANCE, moved
    # Undone to the bit, hooks and all
    assert all(torch.equal(parameter, original[name]) for name, parameter in model.named_parameters())
    assert torch.equal(logits(model), before)


def test_a_fold_that_leaves_out_a_reader_is_caught(model):
    before = logits(model)
    for fold in find_folds(model, fc2=True):
        if len(fold.consumers) > 1:
            partial = replace(fold, consumers=fold.consumers[:-1])
            assert movement(model, [partial], before) > TOLERANCE, fold.name
        if fold.submodule == "cross":
            one_layer = replace(fold, consumers=fold.consumers[:2])
            assert movement(model, [one_layer], before) > 1e-4


def test_every_linear_layer_reads_one_input(model):
    """All of them once, and only where asked for those that are divided as they run."""
    readers = [layer.name for fold in find_folds(model, fc2=True) for layer in fold.consumers]
    linear = [layer.name for layer in walk(model) if layer.is_linear]
    assert sorted(readers) == sorted(linear)
    free = [layer.name for fold in find_folds(model) for layer in fold.consumers]
    assert sorted(free) == sorted(name for name in linear if not name.endswith(".fc2"))


def test_an_error_inside_leaves_the_original_model():
    model = random_model()
    folds, before = find_folds(model, fc2=True), logits(model)
    with pytest.raises(RuntimeError), smoothed(folds, {fold.name: torch.tensor([2.0]) for fold in folds}):
        raise RuntimeError
    assert torch.equal(logits(model), before)


def test_a_fold_without_a_factor_is_left_alone():
    model = random_model()
    folds = find_folds(model)
    maxima = {layer.name: torch.ones(layer.weight.shape[1]) for layer in walk(model) if layer.is_linear}
    alphas = {fold.name: 0.5 if fold.submodule == "cross" else None for fold in folds}
    scales = factors(folds, maxima, alphas)
    assert list(scales) == ["model.encoder.layer_norm"]
    original = parameters(model)
    with smoothed(folds, scales):
        changed = {name for name, value in model.named_parameters() if not torch.equal(value, original[name])}
    cross = [f"model.decoder.layers.{n}.encoder_attn.{p}_proj.weight" for n in (0, 1) for p in "kv"]
    assert changed == {"model.encoder.layer_norm.weight", "model.encoder.layer_norm.bias", *cross}


def test_the_weights_of_all_readers_count():
    model = random_model()
    folds = {fold.name: fold for fold in find_folds(model)}
    fold = folds["model.encoder.layer_norm"]
    input_amax = torch.linspace(0.1, 9, 32, dtype=torch.float64)
    (s,) = factors([fold], {fold.consumers[0].name: input_amax}, {fold.name: 0.25}).values()
    stacked = torch.cat([layer.weight.detach() for layer in fold.consumers])  # as of one matrix
    torch.testing.assert_close(s, input_amax**0.25 / stacked.abs().amax(0) ** 0.75)


# input amax, weight amax, alpha, s
FACTORS = [
    (16.0, 1.0, 0.5, 4.0),
    (16.0, 4.0, 0.5, 2.0),
    (16.0, 4.0, 1.0, 16.0),  # all of the outlier goes into the weight
    (16.0, 4.0, 0.0, 0.25),  # all of the weight's goes into the input
    (0.0, 4.0, 0.5, 1.0),  # never alive in calibration
    (0.0, 0.0, 0.0, 1.0),
    (4.0, 0.0, 0.5, 2 / 1e-5**0.5),  # read by nobody
    (1e-20, 1.0, 1.0, 1e-5),
]


@pytest.mark.parametrize(("input_amax", "weight_amax", "alpha", "expected"), FACTORS)
def test_factor(input_amax, weight_amax, alpha, expected):
    s = factor(torch.tensor([input_amax]), torch.tensor([weight_amax]), alpha)
    torch.testing.assert_close(s, torch.tensor([expected]))


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.8, 1.0])
def test_smoothing_moves_the_difficulty_by_alpha(alpha):
    """Afterwards the input's maximum is to the weight's as 1 - alpha is to alpha, in logarithms."""
    generator = torch.Generator().manual_seed(1)
    x, w = (torch.exp(torch.randn(64, generator=generator)) for _ in range(2))
    s = factor(x, w, alpha)
    product = torch.log(x * w)
    torch.testing.assert_close(torch.log(x / s), (1 - alpha) * product)
    torch.testing.assert_close(torch.log(w * s), alpha * product)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.8, 0.96, 1.0])
def test_the_factors_are_those_of_torchao(alpha):
    """torchao adds the machine's epsilon to both maxima, where the authors' code, and ours, has a minimum."""
    reason = "install the extra refs to compare with independent implementations"
    core = pytest.importorskip("torchao.prototype.smoothquant.core", reason=reason)
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(3, 50, 96, generator=generator) * torch.exp(torch.randn(96, generator=generator))
    weight = torch.randn(64, 96, generator=generator) * 0.05
    observer = core.SmoothQuantObserver(weight, alpha)
    observer(inputs)
    expected, _, _ = observer.calculate_qparams()
    s = factor(inputs.abs().amax((0, 1)), weight.abs().amax(0), alpha)
    torch.testing.assert_close(s, expected, rtol=1e-5, atol=0)
