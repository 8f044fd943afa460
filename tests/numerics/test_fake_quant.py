"""quantize, dequantize and fake_quantize on every format, granularity, shape and input that may come."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import wq
from wq.catalogue import load_format
from wq.numerics.elements import encode, round_elements_
from wq.numerics.fake_quant import NonFiniteError, dequantize, fake_quantize, quantize
from wq.numerics.granularity import GRANULARITIES
from wq.numerics.scales import Scale

from .oracle import FORMATS, SCALED, bits_equal, weight

VARIANTS = [
    *(pytest.param(load_format(name), id=name) for name in FORMATS),
    *(
        pytest.param(replace(load_format("int4"), int_range=r), id=f"int4-{r}")
        for r in ("full", "asymmetric")
    ),
    *(
        pytest.param(replace(load_format("int8"), int_range=r), id=f"int8-{r}")
        for r in ("full", "asymmetric")
    ),
    *(
        pytest.param(replace(load_format("mxfp4"), scale_rule=r), id=f"mxfp4-{r}")
        for r in ("even", "rceil", "ceil")
    ),
    *(
        pytest.param(replace(load_format(n), scale_search="mse"), id=f"{n}-mse")
        for n in ("int4", "mxfp4", "nvfp4")
    ),
    pytest.param(replace(load_format("fp4_e2m1"), scale_dtype="e4m3"), id="fp4_e2m1-e4m3"),
]
finite = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**100), max_value=2.0**100)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("format", VARIANTS)
def test_fake_quantize_is_dequantize_of_quantize_to_the_bit(format, granularity):
    x = weight(16, 200)
    assert bits_equal(fake_quantize(x, format, granularity), dequantize(quantize(x, format, granularity)))


@pytest.mark.parametrize("format", VARIANTS)
@given(values=st.lists(finite, min_size=1, max_size=70), group=st.sampled_from([1, 3, 16, 32]))
def test_any_finite_input_gives_finite_output_the_same_both_ways(format, values, group):
    x = torch.tensor(values, dtype=torch.float32)
    y = fake_quantize(x, format, group=group)
    assert torch.isfinite(y).all()
    assert bits_equal(y, dequantize(quantize(x, format, group=group)))


@pytest.mark.parametrize("format", VARIANTS)
@given(values=st.lists(finite, min_size=2, max_size=32))
def test_within_a_block_order_is_kept(format, values):
    x = torch.tensor(sorted(values), dtype=torch.float32)
    assert (fake_quantize(x, format, "channel").diff() >= 0).all()


@pytest.mark.parametrize("format", VARIANTS)
def test_odd_symmetry(format):
    """But for NormalFloat's uneven levels and the longer negative side of full ranges."""
    if format.is_asymmetric:
        pytest.skip("a zero point moves with the sign, the ends of the range may round apart")
    x = weight(8, 96)
    odd = torch.equal(fake_quantize(-x, format, group=16), -fake_quantize(x, format, group=16))
    uneven = format.element == "levels" or format.int_range == "full"
    assert odd != uneven


@pytest.mark.parametrize("format", VARIANTS)
def test_the_quantized_tensor_keeps_its_codes_under_its_own_scales(format):
    x = weight(8, 128)
    quantized = quantize(x, format, "channel")
    grid = dequantize(quantized)
    zero_point = None if quantized.zero_point is None else quantized.zero_point.float()
    if quantized.scale is not None:
        grid = Scale(quantized.scale, quantized.tensor_scale).divide_(grid)
    again = encode(round_elements_(grid, format, zero_point), format, zero_point)
    assert torch.equal(again, quantized.codes)


@pytest.mark.parametrize("name", FORMATS)
def test_idempotence(name):
    """Fake quantization again chooses the same scales: exactly where scale times largest code is a float32,
    else within a rounding of it (a float32 scale, a tensor scale). An asymmetric or full range may shrink,
    see the next test."""
    format = load_format(name)
    y = fake_quantize(weight(16, 256), format)
    again = fake_quantize(y, format)
    if format.scale_dtype in ("fp32", "e4m3"):
        torch.testing.assert_close(again, y, rtol=1e-6, atol=0)
    else:
        assert torch.equal(again, y)


def test_a_full_range_is_not_idempotent_on_purpose():
    """Its scale is amax / 7.5, and 7.5 is no code: the second pass sees another amax."""
    format = replace(load_format("int4"), int_range="full")
    y = fake_quantize(weight(16, 256), format)
    assert not torch.equal(fake_quantize(y, format), y)


# --- special blocks -------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("format", VARIANTS)
def test_zeros_stay_exact_zeros(format, granularity):
    x = torch.zeros(4, 64)
    assert bits_equal(fake_quantize(x, format, granularity), x)
    x[0] = torch.linspace(-1, 1, 64)
    y = fake_quantize(x, format, granularity)
    assert torch.equal(y[1:], x[1:])
    assert (y[0] != 0).any()


@pytest.mark.parametrize("format", VARIANTS)
def test_an_all_negative_block(format):
    x = -weight(4, 64).abs() - 0.01
    y = fake_quantize(x, format, group=16)
    assert (y <= 0).all()
    if format.bits >= 4:
        assert ((y - x).norm() / x.norm()) < 0.25


@pytest.mark.parametrize("format", VARIANTS)
def test_one_huge_outlier_harms_its_own_block_only(format):
    x = weight(2, 64)
    spoiled = x.clone()
    spoiled[0, 5] = 2000.0  # below what an E4M3 or fp16 scale can reach
    if format.has_tensor_scale:
        pytest.skip("a tensor scale ties all blocks together")
    y, z = fake_quantize(x, format, group=32), fake_quantize(spoiled, format, group=32)
    assert torch.equal(y[0, 32:], z[0, 32:])
    assert torch.equal(y[1], z[1])
    assert z[0, 5] == pytest.approx(2000.0, rel=0.35)


@pytest.mark.parametrize("format", VARIANTS)
@pytest.mark.parametrize("magnitude", [1e-45, 1e-40, 1e-38])
def test_denormals_neither_vanish_into_nan_nor_grow(format, magnitude):
    x = torch.tensor([1.0, -0.5, 0.25, 0.0] * 8) * magnitude
    y = fake_quantize(x, format)
    assert torch.isfinite(y).all()
    assert y.abs().max() <= 2 * max(magnitude, 2.0**-24 if format.scale_dtype == "fp16" else magnitude)


@pytest.mark.parametrize("ratio", [1e-5, 1e-6])
@pytest.mark.parametrize("format", VARIANTS)
def test_blocks_far_below_the_maximum_stay_alive(format, ratio):
    if format.scale_dtype == "e4m3" and not format.has_tensor_scale:
        pytest.skip("E4M3 alone reaches no further down than 2^-9")
    x = weight(4, 64)
    x[1:] *= ratio / x[1:].abs().amax() * x.abs().amax()
    y = fake_quantize(x, format, group=16)
    assert (y[1:].abs() > 0).any()


# --- shapes, dtypes, layouts ----------------------------------------------------------------------


@pytest.mark.parametrize("format", VARIANTS)
@pytest.mark.parametrize("columns", [1, 15, 16, 17, 31, 32, 33, 47, 48, 53])
def test_ragged_groups_equal_their_own_pieces(format, columns):
    """K from 1 to three groups and a ragged tail: each group quantized as if it were alone."""
    if format.has_tensor_scale:
        format = replace(format, tensor_scale=False, four_over_six=False)
    x = weight(3, columns)
    y = fake_quantize(x, format, group=16)
    pieces = [fake_quantize(piece, format, "channel") for piece in x.split(16, dim=-1)]
    assert bits_equal(y, torch.cat(pieces, dim=-1))


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize(
    ("granularity", "shape", "scales"),
    [
        ("tensor", (4, 40), (1, 1)),
        ("channel", (4, 40), (4, 1)),
        ("token", (2, 4, 40), (2, 4, 1)),
        ("group", (4, 40), (4, 3)),
        ("group", (40,), (3,)),
        ("group", (2, 3, 4, 7), (2, 3, 4, 1)),
    ],
)
def test_shapes_of_codes_and_scales(name, granularity, shape, scales):
    quantized = quantize(weight(1, math.prod(shape)).view(shape), load_format(name), granularity, group=16)
    assert quantized.scale is not None
    assert (tuple(quantized.codes.shape), tuple(quantized.scale.shape)) == (shape, scales)


@pytest.mark.parametrize("format", VARIANTS)
@pytest.mark.parametrize("shape", [(96,), (6, 16), (2, 3, 16), (2, 1, 3, 16)])
def test_leading_axes_are_rows(format, shape):
    x = weight(6, 16)
    if len(shape) == 1:
        y = fake_quantize(x.view(shape), format, group=16)
        assert bits_equal(y, fake_quantize(x, format, group=16).view(shape))
    else:
        y = fake_quantize(x.view(shape), format, "token")
        assert bits_equal(y, fake_quantize(x, format, "channel").view(shape))


@pytest.mark.parametrize("format", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_cast_to_float32_first(format, dtype):
    x = weight(4, 64).to(dtype)
    y = fake_quantize(x, format)
    assert y.dtype == dtype
    assert torch.equal(y, fake_quantize(x.float(), format).to(dtype))


@pytest.mark.parametrize("format", VARIANTS)
def test_layout_of_the_input_does_not_matter_and_the_input_is_not_touched(format):
    x = weight(64, 48).t()[:, ::2]
    before = x.clone()
    y = fake_quantize(x, format)
    assert bits_equal(y, fake_quantize(x.contiguous(), format))
    assert torch.equal(x, before)
    assert y.shape == x.shape


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", FORMATS)
def test_nan_and_inf_are_refused_by_name(name, granularity, value):
    x = weight(4, 50)
    x[2, 49] = value
    with pytest.raises(NonFiniteError, match="NaN" if math.isnan(value) else "Inf"):
        wq.fake_quantize(x, name, granularity)


@pytest.mark.parametrize("format", VARIANTS)
def test_values_near_the_limits_of_float32_are_not_mistaken_for_infinity(format):
    for value in (2.0e38, -2.0e38):  # whose sum of two is beyond
        y = fake_quantize(torch.full((2, 40), value), format)
        assert torch.isfinite(y).all()


def test_a_float64_beyond_float32_is_refused():
    with pytest.raises(NonFiniteError, match="Inf"):
        wq.fake_quantize(torch.tensor([1e300], dtype=torch.float64), "int8")


@pytest.mark.parametrize("x", [torch.tensor(1.0), torch.empty(0), torch.empty(3, 0)])
def test_nothing_to_quantize(x):
    with pytest.raises(ValueError, match="holds nothing to quantize"):
        wq.fake_quantize(x, "int8")


# --- static and per-utterance scales --------------------------------------------------------------


@pytest.mark.parametrize("format", VARIANTS)
def test_a_static_scale_from_the_own_range_equals_the_dynamic_one_and_saturates_beyond(format):
    if format.is_cast or format.scale_search != "none" or format.four_over_six:
        pytest.skip("no scale, or one that depends on more than the range")
    x = weight(8, 64)
    amin, amax = (x.min(), x.max()) if format.is_asymmetric else (None, x.abs().max())
    y = fake_quantize(x, format, "tensor", amin=amin, amax=amax)
    assert bits_equal(y, fake_quantize(x, format, "tensor"))
    far, farther = (
        fake_quantize(x * factor, format, "tensor", amin=amin, amax=amax) for factor in (1e3, 1e6)
    )
    assert torch.equal(far.amax(), farther.amax())
    assert far.amax() <= 3 * x.abs().max()  # scale_rule=ceil reaches furthest


def test_a_calibrated_tensor_scale_makes_nvfp4_tokens_independent_of_their_batch():
    x = weight(6, 64)
    together = wq.fake_quantize(x, "nvfp4", amax=x.abs().max())
    alone = torch.cat([wq.fake_quantize(row[None], "nvfp4", amax=x.abs().max()) for row in x])
    assert bits_equal(together, alone)


@pytest.mark.parametrize("columns", [64, 53])
def test_a_tensor_scale_for_every_token_equals_tokens_quantized_alone(columns):
    x = weight(6, columns).view(2, 3, columns)
    together = wq.fake_quantize(x, "nvfp4", amax=x.abs().amax(-1, keepdim=True))
    alone = torch.stack([torch.stack([wq.fake_quantize(row, "nvfp4") for row in batch]) for batch in x])
    assert bits_equal(together, alone)


@pytest.mark.parametrize("format", VARIANTS)
@pytest.mark.parametrize("granularity", ["token", "group"])
def test_dynamic_scales_do_not_depend_on_batch_or_order(format, granularity):
    if format.has_tensor_scale:
        pytest.skip("needs a calibrated or per-token tensor scale, see above")
    x = weight(7, 100)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    y = fake_quantize(x, format, granularity)
    assert bits_equal(fake_quantize(x[order], format, granularity), y[order])
    assert bits_equal(fake_quantize(x[3:4], format, granularity), y[3:4])


def test_amax_without_a_use_is_refused():
    with pytest.raises(ValueError, match="amax has no use for format int4 with granularity=group"):
        wq.fake_quantize(weight(2, 8), "int4", amax=1.0)
