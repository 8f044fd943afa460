"""What multiplies and attends in the encoder, on either kind of processor: the same states in any batch."""

import subprocess
import sys

import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from tests.conftest import REPOSITORY, environment
from wq.whisper.decoding import onednn
from wq.whisper.decoding.greedy import encode_rows

LIBRARIES = ["torch", pytest.param("onednn", marks=pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch without oneDNN"
))]  # fmt: skip
# Model size, heads and positions of the encoder: nano's, a short window, tiny's
SHAPES = [(256, 4, 250), (64, 2, 60), pytest.param((384, 6, 1500), marks=pytest.mark.slow)]
# What makes a large processor compute as a small one does
SMALL = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


@pytest.fixture(params=LIBRARIES)
def library(request, monkeypatch):
    monkeypatch.setattr(onednn, "encoder_library", lambda: request.param)
    return request.param


@pytest.fixture(params=[1, 2, 3])
def _threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def one_layer(size, heads, positions):
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=8,
        d_model=size,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * size,
        decoder_ffn_dim=8,
        max_source_positions=positions,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=0,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return WhisperForConditionalGeneration(config).eval().requires_grad_(False)


def states_of(model, features):
    with torch.inference_mode():
        return torch.cat(list(encode_rows(model, features)))


@pytest.mark.usefixtures("library", "_threads")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_utterance_has_the_same_states_in_any_batch(shape):
    """Alone, in a full group of those that are encoded together, and in one that is not full."""
    model, rows = one_layer(*shape), 2 if shape[-1] == 1500 else 6
    features = torch.randn(rows, 80, 2 * shape[-1])
    together = states_of(model, features)
    for row in range(rows):
        assert torch.equal(states_of(model, features[row:][:1])[0], together[row]), row
    assert torch.equal(states_of(model, features.flip(0)).flip(0), together)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_states_are_those_of_transformers(library, shape):
    """With torch's own products and attention to the last bit."""
    model = one_layer(*shape)
    features = torch.randn(1, 80, 2 * shape[-1])
    with torch.inference_mode():
        expected = model.model.encoder(features).last_hidden_state
    is_exact = library == "torch" and shape[0] // shape[1] == 64  # whose square root scales without rounding
    states = states_of(model, features)
    if is_exact:
        assert torch.equal(states, expected)
    else:
        torch.testing.assert_close(states, expected)


@pytest.mark.parametrize(
    ("capability", "has_mkl", "library"),
    [
        ("AVX2", True, "torch"),
        ("DEFAULT", True, "torch"),
        ("AVX512", True, "onednn"),
        ("AVX2", False, "onednn"),
        ("SVE256", False, "onednn"),
    ],
)
def test_the_kind_of_processor_decides(capability, has_mkl, library, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: has_mkl)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert onednn.encoder_library() == library
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert onednn.encoder_library() == "torch"


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["avx2", "default"])
def test_a_large_processor_that_computes_as_a_small_one(capability):
    """All of the above and the decoder's few rows, where the kind of processor is forced."""
    tests = ["tests/whisper/decoding/test_onednn.py", "tests/whisper/decoding/test_greedy.py"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", *tests],
        cwd=REPOSITORY,
        env=environment(**SMALL | {"ATEN_CPU_CAPABILITY": capability}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-2000:]
