"""Facts about every format, and what a description that makes no sense is told."""

import math
from dataclasses import replace

import pytest

from wq.catalogue import load_format
from wq.numerics.formats import Format

from .oracle import FORMATS, LISTED

# name: bits, max, smallest positive, number of finite values (zero once), scale dtype, default group
# sources: OCP MX v1.0 tables 1 to 5, OCP OFP8 v1.0 table 1, IEEE 754-2019, Dettmers et al. 2023
FACTS = {
    "int8": (8, 127, 1, 255, "fp16", 128),
    "int6": (6, 31, 1, 63, "fp16", 128),
    "int5": (5, 15, 1, 31, "fp16", 128),
    "int4": (4, 7, 1, 15, "fp16", 128),
    "int3": (3, 3, 1, 7, "fp16", 128),
    "int2": (2, 1, 1, 3, "fp16", 128),
    "int": (8, 127, 1, 255, "fp16", 128),
    "float": (7, 30, 2**-5, 127, "fp16", 128),
    "fp8_e4m3": (8, 448, 2**-9, 253, "fp32", 128),
    "fp8_e5m2": (8, 57344, 2**-16, 247, "fp32", 128),
    "fp6_e2m3": (6, 7.5, 0.125, 63, "fp16", 128),
    "fp6_e3m2": (6, 28, 0.0625, 63, "fp16", 128),
    "fp4_e2m1": (4, 6, 0.5, 15, "fp16", 128),
    "mxfp8_e4m3": (8, 448, 2**-9, 253, "e8m0", 32),
    "mxfp8_e5m2": (8, 57344, 2**-16, 247, "e8m0", 32),
    "mxfp6_e2m3": (6, 7.5, 0.125, 63, "e8m0", 32),
    "mxfp6_e3m2": (6, 28, 0.0625, 63, "e8m0", 32),
    "mxfp4": (4, 6, 0.5, 15, "e8m0", 32),
    "mxint8": (8, 1.984375, 2**-6, 255, "e8m0", 32),
    "nvfp4": (4, 6, 0.5, 15, "e4m3", 16),
    "nvfp4_46": (4, 6, 0.5, 15, "e4m3", 16),
    "nf4": (4, 1, 0.07958029955625534, 16, "fp16", 64),
    "fp16": (16, 65504, 2**-24, 2 * 31744 - 1, "none", None),
    "bf16": (16, 3.3895313892515355e38, 2**-133, 2 * 32640 - 1, "none", None),
    "fp32": (32, 3.4028234663852886e38, 2**-149, None, "none", None),
}


@pytest.mark.parametrize("name", FACTS)
def test_facts(name):
    format = load_format(name)
    bits, largest, smallest, values, scale_dtype, group = FACTS[name]
    assert (format.bits, format.max, format.min_positive) == (bits, largest, smallest)
    assert (format.scale_dtype, format.group) == (scale_dtype, group)
    if values:
        assert len(format.code_book) == values


def test_the_facts_cover_the_catalogue_that_ships():
    assert set(FACTS) <= set(FORMATS)


@pytest.mark.parametrize(
    ("name", "magnitudes"),
    [
        ("fp4_e2m1", (0, 0.5, 1, 1.5, 2, 3, 4, 6)),
        ("int3", (0, 1, 2, 3)),
        (
            "fp6_e3m2",
            (
                0,
                *(i / 16 for i in (1, 2, 3, 4, 5, 6, 7)),
                *(m * 2**e / 4 for e in range(-1, 5) for m in range(4, 8)),
            ),
        ),
    ],
)
def test_code_books_listed_by_hand(name, magnitudes):
    book = load_format(name).code_book
    assert tuple(value for value in book if value >= 0) == magnitudes


@pytest.mark.parametrize("name", LISTED)
def test_code_book_ascends_from_minimum_to_maximum_and_holds_zero_once(name):
    format = load_format(name)
    book = format.code_book
    assert list(book) == sorted(set(book))
    assert book.count(0.0) == 1
    assert max(book) == format.max
    assert min(value for value in book if value > 0) == format.min_positive


@pytest.mark.parametrize("name", LISTED)
def test_code_book_is_odd_but_for_the_formats_that_are_not(name):
    format = load_format(name)
    mirrored = tuple(-value for value in reversed(format.code_book))
    assert (mirrored == format.code_book) == (format.element != "levels")


@pytest.mark.parametrize(
    ("int_range", "low", "high", "divisor"),
    [("symmetric", -7, 7, 7), ("full", -8, 7, 7.5), ("asymmetric", -8, 7, 15)],
)
def test_integer_ranges(int_range, low, high, divisor):
    format = replace(load_format("int4"), int_range=int_range)
    assert (format.min_code, format.max_code, format.scale_divisor) == (low, high, divisor)


@pytest.mark.parametrize(
    ("exponent_bits", "mantissa_bits", "special", "largest", "smallest"),
    [
        (3, 3, "none", 30.0, 2**-5),
        (1, 2, "none", 3.5, 0.5),  # one binade of normals: an evenly spaced grid
        (3, 0, "none", 16.0, 0.25),  # powers of two
        (4, 3, "none", 480.0, 2**-9),
        (4, 3, "ieee", 240.0, 2**-9),
        (5, 3, "nan", 114688.0, 2**-17),  # UE5M3's range
        (7, 2, "none", 1.75 * 2.0**64, 2.0**-64),
    ],
)
def test_floats_of_any_shape(exponent_bits, mantissa_bits, special, largest, smallest):
    shape = {"exponent_bits": exponent_bits, "mantissa_bits": mantissa_bits, "special": special}
    format = replace(load_format("float"), **shape)
    assert (format.max, format.min_positive) == (largest, smallest)
    assert format.bits == 1 + exponent_bits + mantissa_bits
    assert math.isclose(format.max, 2.0**format.max_exponent, rel_tol=1.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"element": "decimal"}, "element=decimal is unknown; choose one of int, float, levels, cast"),
        ({"element": "int"}, "integer_bits=missing must be from 2 to 16 for element=int; set integer_bits"),
        ({"element": "int", "integer_bits": 1}, "integer_bits=1 must be from 2 to 16"),
        ({"element": "int", "integer_bits": 17}, "integer_bits=17 must be from 2 to 16"),
        ({"element": "float", "exponent_bits": 0, "mantissa_bits": 3}, "exponent_bits=0 must be from 1 to 7"),
        (
            {"element": "float", "exponent_bits": 2, "mantissa_bits": -1},
            "mantissa_bits=-1 must be from 0 to 10",
        ),
        ({"element": "float", "exponent_bits": 8, "mantissa_bits": 7, "special": "ieee"}, "use element=cast"),
        ({"element": "float", "exponent_bits": 1, "mantissa_bits": 2, "special": "ieee"}, "use special=none"),
        ({"element": "levels"}, "levels=none is unknown; choose one of nf4"),
        (
            {"element": "int", "integer_bits": 4, "int_range": "half"},
            "int_range=half is unknown; choose one of",
        ),
        (
            {"element": "int", "integer_bits": 4, "scale_dtype": "fp8"},
            "scale_dtype=fp8 is unknown; choose one of",
        ),
        ({"element": "int", "integer_bits": 4, "scale_dtype": "none"}, "a cast has no scale"),
        (
            {"element": "cast", "exponent_bits": 5, "mantissa_bits": 10, "special": "ieee"},
            "a cast has no scale",
        ),
        (
            {"element": "int", "integer_bits": 4, "scale_dtype": "e8m0", "scale_rule": "up"},
            "scale_rule=up is",
        ),
        (
            {"element": "int", "integer_bits": 4, "int_range": "asymmetric", "scale_dtype": "e8m0"},
            "not defined",
        ),
        ({"element": "int", "integer_bits": 4, "group": 0}, "group=0 must be at least 1; give a positive"),
        ({"element": "int", "integer_bits": 4, "scale_search": "grid"}, "scale_search=grid is unknown"),
        (
            {"element": "int", "integer_bits": 4, "four_over_six": True},
            "use format=nvfp4, or four_over_six=false",
        ),
    ],
)
def test_a_description_that_makes_no_sense_is_refused_in_one_line(fields, message):
    with pytest.raises(ValueError, match=r"^format mine: ") as error:
        Format(name="mine", **fields)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
