"""Which settings have an effect, what is dropped, and how the rest is named."""

from dataclasses import replace

import pytest

from wq.catalogue import load_format
from wq.numerics.effective import has_effect, point_name, resolve

from .oracle import FORMATS


@pytest.mark.parametrize(
    ("name", "granularity", "group", "effective"),
    [
        ("nvfp4", "group", None, ("group", 16)),
        ("mxfp4", "group", None, ("group", 32)),
        ("nf4", "group", None, ("group", 64)),
        ("int4", "group", None, ("group", 128)),
        ("int4", "group", 32, ("group", 32)),
        ("nvfp4", "group", 32, ("group", 32)),
        ("int4", "channel", 32, ("channel", None)),
        ("int4", "tensor", 32, ("tensor", None)),
        ("fp16", "group", 32, ("none", None)),
        ("fp32", "tensor", None, ("none", None)),
    ],
)
def test_granularity_and_group(name, granularity, group, effective):
    resolved = resolve(load_format(name), granularity, group)
    assert (resolved.granularity, resolved.group) == effective
    assert ("group=32" in resolved.ignored) == (group == 32 and effective[1] is None)


@pytest.mark.parametrize(
    ("name", "field", "value", "matters"),
    [
        ("int4", "int_range", "full", True),
        ("fp8_e4m3", "int_range", "full", False),
        ("mxint8", "int_range", "full", True),
        ("mxfp4", "scale_rule", "even", True),
        ("int4", "scale_rule", "even", False),
        ("nvfp4", "scale_rule", "even", False),
        ("int4", "tensor_scale", True, False),
        ("fp4_e2m1", "tensor_scale", True, False),
        ("fp16", "scale_search", "mse", False),
        ("nf4", "scale_search", "mse", True),
        ("int4", "special", "ieee", False),
        ("fp4_e2m1", "integer_bits", 3, False),
    ],
)
def test_settings_without_effect_are_dropped_and_named(name, field, value, matters):
    format = load_format(name)
    changed = replace(format, **{field: value})
    assert has_effect(changed, field) == matters
    resolved = resolve(changed)
    assert (resolved == resolve(format)) is False or not matters
    assert (resolved.format == resolve(format).format) == (not matters)
    assert (f"format.{field}={value}" in resolved.ignored) == (not matters)


@pytest.mark.parametrize("name", FORMATS)
def test_resolving_again_changes_nothing_and_the_catalogue_has_nothing_to_drop(name):
    resolved = resolve(load_format(name))
    assert resolved.ignored == ()
    assert resolve(resolved.format).format == resolved.format


@pytest.mark.parametrize(
    ("name", "granularity", "group", "options", "point"),
    [
        ("nvfp4", "group", None, {}, "nvfp4"),
        ("nvfp4", "group", 16, {}, "nvfp4"),
        ("nvfp4", "group", 32, {}, "nvfp4-g32"),
        ("int4", "group", None, {}, "int4-g128"),
        ("nf4", "group", None, {}, "nf4-g64"),
        ("int4", "channel", 32, {}, "int4-channel"),
        ("int4", "tensor", None, {}, "int4-tensor"),
        ("int4", "group", 64, {"int_range": "asymmetric"}, "int4-asymmetric-g64"),
        ("int4", "group", None, {"scale_dtype": "bf16", "scale_search": "mse"}, "int4-bf16-mse-g128"),
        ("mxfp4", "group", None, {"scale_rule": "even"}, "mxfp4-even"),
        ("fp8_e4m3", "group", None, {"scale_rule": "even", "int_range": "full"}, "fp8_e4m3-g128"),
        ("float", "group", None, {"exponent_bits": 4, "mantissa_bits": 3}, "float-e4m3-g128"),
        ("float", "group", None, {"mantissa_bits": 2}, "float-e3m2-g128"),
        ("int", "group", None, {"integer_bits": 7}, "int-int7-g128"),
        ("nvfp4", "group", None, {"four_over_six": True}, "nvfp4-four_over_six"),
        ("nvfp4", "group", None, {"tensor_scale": False}, "nvfp4-no_tensor_scale"),
        ("fp16", "channel", 32, {}, "fp16"),
    ],
)
def test_names_of_points(name, granularity, group, options, point):
    catalogued = load_format(name)
    assert point_name(replace(catalogued, **options), granularity, group, catalogued) == point


def test_bad_granularity_and_group_are_refused():
    with pytest.raises(ValueError, match="granularity=row is unknown; choose one of tensor, channel"):
        resolve(load_format("int4"), "row")
    with pytest.raises(ValueError, match="group=-1 must be at least 1; give a positive group size"):
        resolve(load_format("int4"), "group", -1)
