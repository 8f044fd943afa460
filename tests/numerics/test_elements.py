"""Rounding to the grid: identities of every element format, and an exact oracle."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wq.catalogue import load_format
from wq.numerics.elements import decode, encode, round_elements_

from .oracle import FORMATS, LISTED, bits_equal, nearest

GENERIC = [
    replace(load_format("float"), exponent_bits=e, mantissa_bits=m, special=special)
    for e, m, special in [
        (1, 2, "none"),
        (3, 0, "none"),
        (3, 3, "none"),
        (4, 3, "ieee"),
        (5, 3, "nan"),
        (6, 1, "none"),
        (7, 0, "none"),
    ]
] + [
    replace(load_format("int"), integer_bits=bits, int_range=int_range)
    for bits, int_range in [(2, "full"), (3, "full"), (4, "full"), (7, "symmetric"), (8, "full")]
]
ELEMENTS = [pytest.param(load_format(name), id=name) for name in LISTED] + [
    pytest.param(f, id=f"{f.element}{f.bits}_e{f.exponent_bits}m{f.mantissa_bits}_{f.special}_{f.int_range}")
    for f in GENERIC
]


def rounded(values, format):
    return round_elements_(torch.as_tensor(values, dtype=torch.float32).clone(), format)


@pytest.mark.parametrize("format", ELEMENTS)
def test_every_value_of_the_code_book_maps_to_itself(format):
    book = torch.tensor(format.code_book)
    assert torch.equal(rounded(book, format), book)
    assert torch.equal(decode(encode(book, format), format), book)


@pytest.mark.parametrize("format", ELEMENTS)
def test_codes_are_distinct_and_fit_the_width(format):
    codes = encode(torch.tensor(format.code_book), format).long()
    assert len(set(codes.tolist())) == len(format.code_book)
    low = -(2 ** (format.bits - 1)) if format.element == "int" else 0
    assert low <= codes.min() <= codes.max() < low + 2**format.bits


@pytest.mark.parametrize("format", ELEMENTS)
def test_ties_go_to_the_even_code_at_every_midpoint(format):
    book = torch.tensor(format.code_book, dtype=torch.float64)
    middles = (book[:-1] + book[1:]) / 2
    exact = middles.float().double() == middles  # NormalFloat's levels have no exact middle in float32
    middles = middles[exact].float()
    expected = [nearest(value, format) for value in middles.tolist()]
    assert rounded(middles, format).tolist() == expected
    below = torch.nextafter(middles, torch.tensor(-math.inf))
    above = torch.nextafter(middles, torch.tensor(math.inf))
    assert torch.equal(rounded(below, format), book[:-1][exact].float())
    assert torch.equal(rounded(above, format), book[1:][exact].float())


@pytest.mark.parametrize("format", ELEMENTS)
def test_nearest_value_by_exhaustive_search(format):
    generator = torch.Generator().manual_seed(1)
    x = torch.cat(
        [
            torch.randn(60, generator=generator) * format.max / 2,
            torch.randn(20, generator=generator) * format.min_positive,
            torch.tensor([0.0, 1e-40, -1e-40, 3e38, -3e38]),
        ]
    )
    assert rounded(x, format).tolist() == [nearest(value, format) for value in x.tolist()]


@pytest.mark.parametrize("format", ELEMENTS)
def test_saturation(format):
    factors = [2.0**k for k in (1, 2, 10, 60)]
    huge = torch.tensor([format.max * factor for factor in factors]).clamp(max=torch.finfo(torch.float32).max)
    assert (rounded(huge, format) == format.max).all()
    assert (rounded(-huge, format) == min(format.code_book)).all()


@pytest.mark.parametrize("name", FORMATS)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
def test_rounding_is_idempotent_monotone_and_odd(name, values):
    format = load_format(name)
    x = torch.tensor(sorted(values), dtype=torch.float32)
    y = rounded(x, format)
    assert bits_equal(rounded(y, format), y)
    assert (y.diff() >= 0).all()
    if format.element != "levels":
        assert torch.equal(rounded(-x, format), -y)
    assert bits_equal(decode(encode(y, format), format), y)


@pytest.mark.parametrize("name", [name for name in FORMATS if load_format(name).is_float])
def test_floats_keep_the_sign_of_zero_and_integers_have_none(name):
    format = load_format(name)
    small = torch.tensor([-0.0, -format.min_positive / 4])
    assert torch.signbit(rounded(small, format)).all()
    assert not torch.signbit(rounded([-0.0, -0.4], load_format("int4"))).any()


def test_casts_saturate_where_torch_gives_infinity():
    assert rounded([1e5, -7e4], load_format("fp16")).tolist() == [65504.0, -65504.0]
    largest = torch.finfo(torch.bfloat16).max
    assert rounded([torch.finfo(torch.float32).max], load_format("bf16")).tolist() == [largest]


@pytest.mark.parametrize("bits", [5, 16])
def test_wide_integers_have_their_own_code_type(bits):
    format = replace(load_format("int"), integer_bits=bits)
    values = torch.tensor([float(format.min_code), -1.0, 0.0, float(format.max_code)])
    assert encode(values, format).tolist() == values.tolist()
