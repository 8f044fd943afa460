"""On a GPU the same bits as on a CPU."""

import pytest
import torch

from wq.catalogue import load_format
from wq.numerics import fused
from wq.numerics.effective import resolve
from wq.numerics.fake_quant import NonFiniteError, dequantize, fake_quantize, quantize

from .oracle import FORMATS, bits_equal, weight
from .test_native import VARIANTS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("name", FORMATS)
def test_equal_to_the_cpu_to_the_bit(name, granularity):
    format = load_format(name)
    for x in (weight(64, 200), weight(64, 200) * 1e-39, torch.zeros(8, 200)):
        on_gpu = fake_quantize(x.cuda(), format, granularity)
        assert on_gpu.is_cuda
        assert bits_equal(on_gpu.cpu(), fake_quantize(x, format, granularity))
        assert bits_equal(dequantize(quantize(x.cuda(), format, granularity)).cpu(), on_gpu.cpu())


def test_nan_is_refused_there_too():
    x = weight(4, 64).cuda()
    x[1, 1] = float("nan")
    with pytest.raises(NonFiniteError, match="NaN"):
        fake_quantize(x, load_format("int4"))


@pytest.mark.parametrize(
    "layout", [("tensor", None), ("channel", None), ("group", 16), ("group", 37)], ids=str
)
@pytest.mark.parametrize("format", VARIANTS)
def test_the_fused_kernel_too_gives_the_bits_of_the_cpu(format, layout):
    pytest.importorskip("triton", reason="needs triton, which torch's CUDA builds bring")
    for x in (weight(64, 1000), weight(8, 1000) * 1e-39, -weight(8, 1000).abs() * 1e30):
        effective = resolve(format, *layout)
        assert fused.covers(x.cuda(), effective)
        assert bits_equal(fake_quantize(x.cuda(), format, *layout).cpu(), fake_quantize(x, format, *layout))
