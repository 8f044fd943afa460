"""Packing: every code and scale comes back, a stream has the bits that it says, and a file the bytes that are
predicted."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wq.catalogue import load_format
from wq.numerics.fake_quant import dequantize, fake_quantize, quantize
from wq.numerics.packing import PackingError, layout, pack, pack_quantized, unpack, unpack_quantized
from wq.numerics.storage import storage

from .oracle import FORMATS, bits_equal, weight

VARIANTS = [
    *(pytest.param(load_format(name), id=name) for name in FORMATS),
    *(
        pytest.param(replace(load_format("int"), integer_bits=bits, int_range=r), id=f"int{bits}-{r}")
        for bits in (2, 3, 4, 5, 6, 7, 8, 9, 12, 16)
        for r in ("symmetric", "full", "asymmetric")
    ),
    *(
        pytest.param(replace(load_format("int4"), scale_dtype=dtype), id=f"int4-{dtype}")
        for dtype in ("fp32", "bf16", "e8m0", "e4m3")
    ),
    pytest.param(replace(load_format("float"), exponent_bits=7, mantissa_bits=10), id="e7m10"),
    pytest.param(replace(load_format("float"), exponent_bits=1, mantissa_bits=0), id="e1m0"),
]
LAYOUTS = [("tensor", None), ("channel", None), ("group", 16), ("group", 7), ("group", 1000)]


@pytest.mark.parametrize(
    ("codes", "bits", "packed"),
    [
        ([1, 2, 3], 4, [0x21, 0x03]),
        ([-8, 7, -1], 4, [0x78, 0x0F]),
        ([1, 2, 3, 0, 1], 2, [0b00_11_10_01, 0b01]),
        # eight 3-bit codes, the first in the lowest bits of 24
        ([1, 2, 3, 4, 5, 6, 7, 0], 3, list((0o07654321).to_bytes(3, "little"))),
        ([0x1F, 0, 0x15], 5, list((0x1F | 0x15 << 10).to_bytes(2, "little"))),
        ([0xABC, 0x123], 12, [0xBC, 0x23, 0x1A]),
        ([-2, 0x1234], 16, [0xFE, 0x34, 0xFF, 0x12]),
    ],
)
def test_streams_by_hand(codes, bits, packed):
    assert pack(torch.tensor(codes), bits).tolist() == packed


@given(st.integers(1, 18).flatmap(lambda b: st.tuples(st.just(b), st.lists(st.integers(0, 2**b - 1)))))
def test_every_code_comes_back(drawn):
    bits, codes = drawn
    packed = pack(torch.tensor(codes, dtype=torch.int32), bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == math.ceil(len(codes) * bits / 8)
    assert unpack(packed, bits, len(codes)).tolist() == codes


@given(st.integers(1, 7).flatmap(lambda b: st.tuples(st.just(b), st.lists(st.integers(0, 2**b - 1)))))
def test_the_stream_is_one_number_to_the_base_of_the_codes(drawn):
    bits, codes = drawn
    number = sum(code << bits * i for i, code in enumerate(codes))
    packed = pack(torch.tensor(codes, dtype=torch.int32), bits)
    assert int.from_bytes(bytes(packed.tolist()), "little") == number


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 131_071, 131_072, 131_073, 300_001])
def test_any_length_across_tiles(bits, count):
    codes = torch.randint(0, 2**bits, (count,), generator=torch.Generator().manual_seed(bits))
    packed = pack(codes, bits)
    assert torch.equal(unpack(packed, bits, count), codes.to(torch.uint8))
    if count > 131_072:  # a later tile starts where it should
        assert unpack(packed[131_072 // 8 * bits :], bits, count - 131_072)[0] == codes[131_072]


def test_views_are_packed_in_the_order_of_their_elements():
    codes = torch.arange(24, dtype=torch.uint8).view(4, 6)
    assert torch.equal(unpack(pack(codes.t(), 5), 5, 24).view(6, 4), codes.t())
    assert torch.equal(unpack(pack(codes[1:, 1:], 5), 5, 15).view(3, 5), codes[1:, 1:])


@pytest.mark.parametrize(("granularity", "group"), LAYOUTS)
@pytest.mark.parametrize("format", VARIANTS)
def test_a_weight_comes_back_to_the_bit(format, granularity, group):
    x = weight(9, 67, seed=4)
    x[3] = 0  # zero groups have scales of their own
    quantized = quantize(x, format, granularity, group)
    tensors = pack_quantized(quantized)
    unpacked = unpack_quantized(tensors, (9, 67), format, granularity, group)
    assert unpacked.effective == quantized.effective
    for name in ("codes", "scale", "zero_point", "tensor_scale"):
        before, after = getattr(quantized, name), getattr(unpacked, name)
        assert (before is None) == (after is None)
        assert before is None or (before.dtype == after.dtype and torch.equal(before, after)), name
    assert bits_equal(dequantize(unpacked), fake_quantize(x, format, granularity, group))


@pytest.mark.parametrize(("granularity", "group"), LAYOUTS)
@pytest.mark.parametrize("format", VARIANTS)
def test_the_bytes_are_those_predicted(format, granularity, group):
    tensors = pack_quantized(quantize(weight(9, 67, seed=5), format, granularity, group))
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    assert found == layout((9, 67), format, granularity, group)
    counted = storage((9, 67), format, granularity, group)
    expected = {
        "codes": counted.element_bits,
        "scale": counted.scale_bits,
        "zero_point": counted.zero_point_bits,
        "tensor_scale": counted.tensor_scale_bits,
    }
    stored = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    assert stored == {name: math.ceil(bits / 8) for name, bits in expected.items() if bits}


def test_scales_are_stored_in_their_own_precision():
    dtypes = {
        name: pack_quantized(quantize(weight(4, 64, seed=6), load_format(name)))["scale"].dtype
        for name in ("int4", "fp8_e4m3", "nvfp4", "mxfp4")
    }
    assert dtypes == {
        "int4": torch.float16,
        "fp8_e4m3": torch.float32,
        "nvfp4": torch.float8_e4m3fn,
        "mxfp4": torch.uint8,
    }


def test_e8m0_scales_reach_both_ends():
    x = torch.cat([torch.full((1, 32), 2.0**-149), torch.ones(1, 32), torch.full((1, 32), 2.0**127)])
    tensors = pack_quantized(quantize(x, load_format("mxfp4")))
    assert tensors["scale"].flatten().tolist() == [0, 125, 252]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t | {"codes": t["codes"][:-1]},
            r"codes of int3 \[8, 40\] is uint8 \[119\], and should be",
        ),
        (
            lambda t: t | {"scale": t["scale"].float()},
            r"is float32 \[8, 3\], .* be float16 \[8, 3\]",
        ),
        (lambda t: {"codes": t["codes"]}, r"scale .* is nothing"),
        (lambda t: t | {"zero_point": t["codes"]}, r"zero_point .* should be nothing"),
    ],
)
def test_other_tensors_are_refused(change, message):
    format = load_format("int3")
    tensors = pack_quantized(quantize(weight(8, 40, seed=7), format, "group", 16))
    with pytest.raises(PackingError, match=message):
        unpack_quantized(change(tensors), (8, 40), format, "group", 16)


@pytest.mark.parametrize("bits", [0, 33])
def test_widths_that_no_code_has(bits):
    with pytest.raises(PackingError, match=f"bits={bits} must be from 1 to 32"):
        pack(torch.zeros(8, dtype=torch.uint8), bits)


def test_a_stream_that_is_cut_off():
    with pytest.raises(PackingError, match="9 codes of 3 bits take 4 bytes, not 3"):
        unpack(torch.zeros(3, dtype=torch.uint8), 3, 9)
