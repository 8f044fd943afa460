"""Quantization disappears beside transcription. The figures are in benchmarks/numerics.py."""

import time

import pytest
import torch

from wq.catalogue import load_format
from wq.numerics import native
from wq.numerics.fake_quant import fake_quantize


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int4", "nvfp4", "mxfp4", "nvfp4_46"])
def test_whisper_small_is_quantized_in_two_seconds(name):
    """All 192 linear layers, 198 million weights."""
    if native.library() is None:
        pytest.skip("without a C compiler torch needs longer")
    square, wide, tall = (768, 768), (3072, 768), (768, 3072)
    weights = [torch.randn(shape) for shape in [square] * 144 + [wide, tall] * 24]
    assert sum(weight.numel() for weight in weights) == 198_180_864
    start = time.perf_counter()
    for weight in weights:
        fake_quantize(weight, load_format(name), out=weight)
    assert time.perf_counter() - start < 2.0
