"""The compiled pass gives the bits of the torch code, in every format, layout and number of threads."""

import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wq.catalogue import load_format
from wq.numerics import native
from wq.numerics.fake_quant import NonFiniteError, fake_quantize

from .oracle import SCALED, bits_equal, weight

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C compiler: everything runs in torch")

VARIANTS = [
    *(pytest.param(load_format(name), id=name) for name in SCALED),
    *(
        pytest.param(replace(load_format(n), scale_dtype=s, int_range=r), id=f"{n}-{s}-{r}")
        for n in ("int8", "int4", "int2")
        for s in ("fp32", "fp16", "bf16")
        for r in ("full", "asymmetric")
    ),
    *(
        pytest.param(replace(load_format(n), scale_dtype=s), id=f"{n}-{s}")
        for n in ("fp4_e2m1", "nf4", "fp6_e3m2")
        for s in ("fp32", "bf16", "e4m3", "e8m0")
    ),
    *(
        pytest.param(replace(load_format(n), scale_rule=rule), id=f"{n}-{rule}")
        for n in ("mxfp4", "mxfp6_e2m3", "mxfp8_e4m3", "mxfp8_e5m2", "mxint8")
        for rule in ("even", "rceil", "ceil")
    ),
    *(
        pytest.param(replace(load_format(n), scale_search="mse", int_range=r), id=f"{n}-mse-{r}")
        for n, r in [
            ("int4", "symmetric"),
            ("int3", "asymmetric"),
            ("mxfp4", "symmetric"),
            ("nvfp4_46", "symmetric"),
        ]
    ),
    *(
        pytest.param(
            replace(load_format("int4"), int_range="asymmetric", scale_search="mse", scale_dtype=s),
            id=f"int4-{s}-mse-asymmetric",
        )
        for s in ("fp32", "bf16")
    ),
    pytest.param(replace(load_format("float"), exponent_bits=7, mantissa_bits=0), id="e7m0"),
    pytest.param(replace(load_format("int"), integer_bits=16), id="int16"),
]


@pytest.fixture
def both(monkeypatch):
    """A function that quantizes both ways and returns (compiled, torch)."""

    def run(x, format, *args, **kwargs):
        compiled = fake_quantize(x, format, *args, **kwargs)
        with monkeypatch.context() as patch:
            patch.setattr(native, "covers", lambda x, format: False)
            return compiled, fake_quantize(x, format, *args, **kwargs)

    return run


@pytest.mark.parametrize("format", VARIANTS)
@pytest.mark.parametrize(
    ("granularity", "group"), [("tensor", None), ("channel", None), ("group", 16), ("group", 37)]
)
def test_equal_to_the_bit(both, format, granularity, group):
    assert native.covers(torch.zeros(1), format)
    for x in (weight(8, 200), weight(8, 200) * 1e-39, torch.zeros(8, 200), -weight(8, 200).abs() * 1e30):
        assert bits_equal(*both(x, format, granularity, group))


@pytest.mark.parametrize("format", VARIANTS)
def test_equal_to_the_bit_on_random_bit_patterns(both, format):
    """Every exponent alike, both signs: what no distribution of weights would reach."""
    bits = torch.randint(-(2**31), 2**31 - 1, (256, 96), generator=torch.Generator().manual_seed(0))
    x = bits.to(torch.int32).view(torch.float32)
    x = torch.where(torch.isfinite(x), x, 1.0)
    assert bits_equal(*both(x, format, "group", 8))


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("columns", [512, 500])
@pytest.mark.parametrize("name", ["int4", "nvfp4", "mxfp4", "nf4"])
def test_threads_and_ragged_rows_change_nothing(both, name, columns, threads):
    x = weight(700, columns)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert bits_equal(*both(x, load_format(name)))
        assert bits_equal(*both(x, load_format(name), "channel"))
        if name == "nvfp4":
            assert bits_equal(*both(x, load_format(name), amax=x.abs().amax(-1, keepdim=True)))
        x[699, columns - 1] = math.nan
        with pytest.raises(NonFiniteError, match="NaN"):
            fake_quantize(x, load_format(name))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", SCALED)
def test_in_place(name):
    x = weight(64, 256)
    expected = fake_quantize(x, load_format(name))
    assert fake_quantize(x, load_format(name), out=x) is x
    assert bits_equal(x, expected)


def test_out_of_another_dtype_or_layout():
    x, format = weight(64, 256), load_format("int4")
    for out in (torch.empty(64, 256, dtype=torch.float16), torch.empty(256, 64).t()):
        assert fake_quantize(x, format, out=out) is out
        assert torch.equal(out, fake_quantize(x, format).to(out.dtype))


@pytest.mark.parametrize(
    ("environment", "compiled"),
    [
        pytest.param({"WQ_NATIVE": "off"}, False, marks=pytest.mark.slow),
        ({"CC": "false", "PATH": "", "WQ_CACHE": "/dev/null"}, False),
        pytest.param({"WQ_CACHE": "/dev/null"}, True, marks=pytest.mark.slow),
    ],
)
def test_without_a_compiler_torch_does_it_and_without_a_cache_nothing_is_lost(environment, compiled):
    code = (
        f"import torch, wq; from wq.numerics import native; assert bool(native.library()) is {compiled};"
        "print(wq.fake_quantize(torch.tensor([1.0, -6.9, 7.0]), 'int4').tolist())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[1.0, -7.0, 7.0]"


@given(values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_mantissas_of_all_kinds(values):
    x = torch.tensor(values, dtype=torch.float32)
    for name in ("int8", "nvfp4", "mxfp6_e3m2", "fp8_e5m2", "nf4"):
        compiled = fake_quantize(x, load_format(name), group=5)
        out = torch.empty_like(x)
        assert torch.isfinite(compiled).all()
        assert bits_equal(fake_quantize(x, load_format(name), group=5, out=out), compiled)


MEMORY = """
import resource, torch, wq
x = torch.randn(8192, 4096)
out = wq.fake_quantize(x[:64], {name!r}).clone()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
out = wq.fake_quantize(x, {name!r})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, {"WQ_NATIVE": "off"}], ids=["compiled", "torch"])
@pytest.mark.parametrize("name", ["int4", "nvfp4", "mxfp4"])
def test_extra_memory_is_the_output_and_little_else(name, environment):
    """At most two tiles (half a MiB) above the output of 128 MiB; 4 MiB are left to the allocator's ways."""
    run = subprocess.run(
        [sys.executable, "-c", MEMORY.format(name=name)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(run.stdout) <= (128 + 4) * 1024
