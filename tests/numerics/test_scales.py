"""Scales: how each kind is chosen, rounded and limited, against exact arithmetic."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wq.catalogue import load_format
from wq.numerics.fake_quant import clamped_scales, dequantize, fake_quantize, quantize
from wq.numerics.scales import (
    choose_scale,
    e8m0_scale,
    scale_of_range,
    search_ratios,
    squared_error,
    tensor_scale_of,
)

from .oracle import SCALE_RULES, SCALED, weight

positive = st.floats(width=32, min_value=2.0**-120, max_value=2.0**120)
MX = ["mxfp4", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8_e4m3", "mxfp8_e5m2", "mxint8"]


def floor_log2(x: Fraction) -> int:
    exponent = math.frexp(float(x))[1] - 1
    return exponent if Fraction(2) ** exponent <= x else exponent - 1


def expected_exponent(amax: float, rule: str, largest: float, mantissa_bits: int) -> int:
    """The four rules as their sources state them, in exact arithmetic."""
    exact, emax = Fraction(amax), floor_log2(Fraction(largest))
    if rule == "even":  # round half up to mantissa_bits after the leading one, then floor
        unit = Fraction(2) ** (floor_log2(exact) - mantissa_bits)
        exact = math.floor(exact / unit + Fraction(1, 2)) * unit
    if rule in ("floor", "even"):
        return floor_log2(exact) - emax
    ratio = exact / Fraction(largest) if rule == "rceil" else exact
    ceil_log2 = floor_log2(ratio) + (Fraction(2) ** floor_log2(ratio) != ratio)
    return ceil_log2 if rule == "rceil" else ceil_log2 - emax


@pytest.mark.parametrize("rule", SCALE_RULES)
@pytest.mark.parametrize("name", MX)
@given(amax=positive)
def test_e8m0_rules(name, rule, amax):
    format = replace(load_format(name), scale_rule=rule)
    mantissa_bits = format.bits - 2 if format.element == "int" else format.mantissa_bits or 0
    exponent = max(-127, min(127, expected_exponent(amax, rule, format.max, mantissa_bits)))
    assert e8m0_scale(torch.tensor([amax]), format).item() == 2.0**exponent


@pytest.mark.parametrize(
    ("rule", "amax", "exponent"),
    [
        ("floor", 1.999, -2),
        ("floor", 2.0, -1),
        ("even", 1.7499999, -2),
        ("even", 1.75, -1),
        ("rceil", 1.5, -2),
        ("rceil", 1.5000001, -1),
        ("ceil", 1.0, -2),
        ("ceil", 1.0000001, -1),
        ("floor", 0.0, -127),
        ("floor", 1e-40, -127),
        ("floor", 3.4e38, 125),
    ],
)
def test_mxfp4_exponents_at_the_steps(rule, amax, exponent):
    format = replace(load_format("mxfp4"), scale_rule=rule)
    assert e8m0_scale(torch.tensor([amax]), format).item() == 2.0**exponent


@pytest.mark.parametrize("name", MX)
def test_rceil_never_clips(name):
    format = replace(load_format(name), scale_rule="rceil")
    amax = weight(64, 64).abs().flatten()
    assert (amax <= e8m0_scale(amax, format) * format.max).all()


@pytest.mark.parametrize(
    ("rule", "error"), [("floor", 0.0132), ("even", 0.0125), ("rceil", 0.0133), ("ceil", 0.0208)]
)
def test_mean_squared_error_of_mxfp4_on_a_standard_normal_tensor(rule, error):
    x = torch.randn(1280, 5120, generator=torch.Generator().manual_seed(0))
    y = fake_quantize(x, load_format("mxfp4"), scale_rule=rule)
    assert (y - x).square().mean().item() == pytest.approx(error, rel=0.02)


@pytest.mark.parametrize("scale_dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", ["int8", "int4", "fp8_e4m3", "fp6_e3m2", "fp4_e2m1", "nf4"])
def test_a_plain_scale_is_amax_over_the_largest_code_as_stored(name, scale_dtype):
    format = replace(load_format(name), scale_dtype=scale_dtype)
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[scale_dtype]
    x = weight(8, 128)
    scale = choose_scale(x, format).scale
    amax = x.abs().amax(-1, keepdim=True)
    assert torch.equal(scale, (amax / torch.tensor(format.max)).to(dtype).float())
    assert torch.equal(scale.to(dtype).float(), scale)


@pytest.mark.parametrize(
    ("scale_dtype", "smallest", "largest"),
    [("fp16", 2.0**-24, 65504.0), ("bf16", 2.0**-133, 2.0**121), ("fp32", 2.0**-149, 2.0**121)],
)
def test_a_plain_scale_neither_underflows_to_zero_nor_overflows(scale_dtype, smallest, largest):
    format = replace(load_format("int8"), scale_dtype=scale_dtype)
    x = torch.tensor([[1e-45, 0.0], [3.4e38, 0.0]])
    scale = choose_scale(x, format).scale.flatten().tolist()
    assert scale[0] == smallest
    assert scale[1] == pytest.approx(largest, rel=0.02)
    assert torch.isfinite(fake_quantize(x, format)).all()


@pytest.mark.parametrize(
    ("format", "scale_dtype", "magnitude", "clamped"),
    [
        ("int8", "fp16", 1e7, True),
        ("int8", "fp16", 127 * 65504.0, False),
        ("int4", "fp16", 1e7, True),
        ("nf4", "fp16", 1e7, True),
        ("int8", "fp32", 1e7, False),
        ("int8", "bf16", 1e7, False),
        ("int8", "fp16", 1e-30, True),
        ("int8", "fp16", 127 * 2.0**-24, False),
        ("int8", "fp32", 1e-30, False),
        ("int8", "fp32", 1e-44, True),
        ("int8", "e4m3", 0.1, True),
        ("int8", "e4m3", 127 * 2.0**-9, False),
        ("int4", "e4m3", 0.1, False),
        ("mxfp4", "e8m0", 1e-30, False),
        ("mxfp4", "e8m0", 1e-38, True),
        ("nvfp4", "e4m3", 1e-30, False),  # its tensor scale reaches there
        ("int8", "fp16", 0.0, False),
        ("int8", "e4m3", 0.0, False),
        ("int8-asymmetric", "fp16", 1e8, True),
        ("int8-asymmetric", "fp16", 1.0, False),
    ],
)
def test_scales_beyond_what_their_precision_reaches_are_told(format, scale_dtype, magnitude, clamped):
    name, _, int_range = format.partition("-")
    described = replace(load_format(name), scale_dtype=scale_dtype, int_range=int_range or "symmetric")
    x = torch.full((2, 64), magnitude)
    assert clamped_scales(x, described, "group", 32).tolist() == [clamped] * 4
    if clamped:  # which is why it is told: the largest value is lost, or its neighbours are
        scale = choose_scale(x[:, :32], described).scale
        assert ((scale * described.max) / magnitude - 1).abs().min() > 0.1


def test_only_the_blocks_that_are_beyond_are_told_and_ragged_ones_too():
    x = torch.ones(3, 40)
    x[1, 33], x[2, 0] = 1e7, 1e7
    found = clamped_scales(x, load_format("int8"), "group", 16)
    assert (int(found.sum()), len(found)) == (2, 9)
    assert clamped_scales(x, load_format("int8"), "channel").tolist() == [False, True, True]
    assert clamped_scales(x, load_format("int8"), "tensor").tolist() == [True]
    assert len(clamped_scales(x, load_format("bf16"))) == 0


def test_an_empty_block_has_scale_one():
    assert choose_scale(torch.zeros(2, 4), load_format("int4")).scale.tolist() == [[1.0], [1.0]]


@given(st.lists(positive, min_size=2, max_size=8))
def test_nvfp4_scales(values):
    """s = E4M3(clamp(amax_group / 6 / g, 2^-9, 448)) with g = amax_tensor / (448 * 6)."""
    format = load_format("nvfp4")
    x = torch.tensor(values, dtype=torch.float32)[:, None]
    g = tensor_scale_of(x.abs().max(), format)
    assert g.item() == (x.abs().max() / torch.tensor(2688.0)).item()
    scale = choose_scale(x, format, g).scale
    wanted = (x / torch.tensor(6.0) / g).clamp(2.0**-9, 448.0).to(torch.float8_e4m3fn).float()
    assert torch.equal(scale, wanted)


@pytest.mark.parametrize(("ratio", "relative_error"), [(1e-4, 0.15), (1e-5, 0.15), (1e-6, 0.4)])
def test_nvfp4_blocks_far_below_the_tensor_maximum_stay_alive(ratio, relative_error):
    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(3))
    x = x / x.abs().amax(-1, keepdim=True)
    x[1] *= ratio
    y = fake_quantize(x, load_format("nvfp4"))
    assert (y[1] - x[1]).norm() / x[1].norm() < relative_error  # a block of zeros would have 1


def test_four_over_six_scales_fit_and_it_errs_no_more_than_nvfp4_on_normal_data():
    x = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0))
    four_over_six, nvfp4 = load_format("nvfp4_46"), load_format("nvfp4")
    quantized = quantize(x, four_over_six)
    assert quantized.scale is not None
    assert quantized.tensor_scale == x.abs().max() / torch.tensor(256.0 * 6)
    assert quantized.scale.max() in (256, 384)  # the largest block on 6, or on 4
    errors = [(fake_quantize(x, f) - x).square().mean() for f in (four_over_six, nvfp4)]
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("amax_value", [6.0, 4.0])
def test_four_over_six_represents_a_block_on_either_grid_exactly(amax_value):
    block = torch.tensor([0.5, 1, 1.5, 2, 3, amax_value, 0, -amax_value] * 2) * 64
    x = torch.stack([block, torch.full((16,), 64 * 6 * 256.0 / 64)])
    y = fake_quantize(x, load_format("nvfp4_46"))
    torch.testing.assert_close(y[0], x[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("int_range", ["symmetric", "asymmetric"])
def test_search_never_errs_more_than_the_scale_from_amax(name, int_range):
    format = load_format(name)
    if int_range == "asymmetric" and (format.element != "int" or format.scale_dtype == "e8m0"):
        int_range = "symmetric"
    format = replace(format, int_range=int_range, four_over_six=False)
    searched = replace(format, scale_search="mse")
    x = weight(32, 256, seed=5).view(-1, 32)
    g = tensor_scale_of(x.abs().max(), format) if format.has_tensor_scale else None
    plain = squared_error(x, choose_scale(x, format, g), format)
    best = squared_error(x, choose_scale(x, searched, g), searched)
    assert (best <= plain).all()
    assert best.sum() < plain.sum()
    every = torch.stack(
        [
            squared_error(x, scale_of_range(*block_range_of(x, format), format, g, ratio), format)
            for ratio in search_ratios(searched)
        ]
    )
    assert torch.equal(best, every.amin(0))


def block_range_of(x, format):
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    if format.is_asymmetric:
        return low.clamp(max=0.0), high.clamp(min=0.0)
    amax = x.abs().amax(-1, keepdim=True)
    return -amax, amax


@pytest.mark.parametrize("ratio", [0.5, 0.8, 1.0, 1.5])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-3.0, 1.0), (-0.5, 2.0), (0.0, 1.0), (-1.0, 0.0)])
def test_a_candidate_shrinks_both_ends_of_an_asymmetric_range(low, high, ratio):
    format = replace(load_format("int4"), int_range="asymmetric")
    ends = torch.tensor([[low]]), torch.tensor([[high]])
    scale, _, zero_point = scale_of_range(*ends, format, ratio=ratio)
    assert zero_point is not None
    for code, end in ((format.min_code, low), (format.max_code, high)):
        assert ((code - zero_point) * scale).item() == pytest.approx(ratio * end, abs=0.51 * scale.item())


@pytest.mark.parametrize(("bits", "error"), [(4, 0.00911), (3, 0.0349), (2, 0.136)])
def test_mean_squared_error_of_searched_asymmetric_integers_on_normal_data(bits, error):
    """Two ends that are clipped alike; clipped at the top alone, it is 0.00945, 0.0379 and 0.151."""
    x = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    format = replace(load_format("int"), integer_bits=bits, int_range="asymmetric", scale_search="mse")
    assert (fake_quantize(x, format) - x).square().mean().item() == pytest.approx(error, rel=0.01)


@pytest.mark.parametrize("bits", [8, 4, 2])
@given(st.lists(st.floats(width=32, min_value=-1e4, max_value=1e4), min_size=1, max_size=16))
def test_asymmetric_integers_hold_zero_exactly_and_both_ends(bits, values):
    format = replace(load_format("int"), integer_bits=bits, int_range="asymmetric", scale_dtype="fp32")
    x = torch.tensor([values, [0.0] * len(values)], dtype=torch.float32)
    quantized = quantize(x, format, "channel")
    assert quantized.zero_point is not None
    assert quantized.scale is not None
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    assert low <= quantized.codes.min() <= quantized.codes.max() <= high
    assert low <= quantized.zero_point.min() <= quantized.zero_point.max() <= high
    y = dequantize(quantized)
    assert (y[x == 0] == 0).all()
    step = quantized.scale
    assert ((y - x).abs() <= step * 1.01 + 1e-30).all()
