"""Storage by hand, and against the tensors that quantization returns."""

from dataclasses import replace

import pytest
import torch

import wq
from wq.catalogue import load_format
from wq.numerics.fake_quant import quantize
from wq.numerics.storage import Storage, storage

from .oracle import FORMATS


@pytest.mark.parametrize(
    ("name", "granularity", "group", "counts"),
    [
        # a 384 x 1536 weight: 589824 elements
        ("int4", "group", None, (589824 * 4, 384 * 12 * 16, 0, 0)),
        ("int4", "group", 1000, (589824 * 4, 384 * 2 * 16, 0, 0)),
        ("int4", "channel", None, (589824 * 4, 384 * 16, 0, 0)),
        ("int4", "tensor", None, (589824 * 4, 16, 0, 0)),
        ("fp8_e4m3", "tensor", None, (589824 * 8, 32, 0, 0)),
        ("nvfp4", "group", None, (589824 * 4, 384 * 96 * 8, 0, 32)),
        ("nvfp4", "channel", None, (589824 * 4, 384 * 8, 0, 32)),
        ("mxfp4", "group", None, (589824 * 4, 384 * 48 * 8, 0, 0)),
        ("nf4", "group", None, (589824 * 4, 384 * 24 * 16, 0, 0)),
        ("fp16", "group", 32, (589824 * 16, 0, 0, 0)),
        ("fp32", "channel", None, (589824 * 32, 0, 0, 0)),
    ],
)
def test_counts(name, granularity, group, counts):
    counted = storage((384, 1536), load_format(name), granularity, group)
    assert counted == Storage(589824, *counts)
    assert counted.total == sum(counts) == wq.storage_bits((384, 1536), name, granularity, group)


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("int8", 8.125),
        ("int4", 4.125),
        ("int3", 3.125),
        ("fp8_e4m3", 8.25),
        ("mxfp4", 4.25),
        ("mxint8", 8.25),
        ("nf4", 4.25),
    ],
)
def test_effective_bits_per_weight_at_the_default_group(name, bits):
    assert storage((1280, 5120), load_format(name)).bits_per_element == bits


def test_nvfp4_has_four_and_a_half_bits_and_one_scale_for_the_tensor():
    assert wq.storage_bits((1280, 5120), "nvfp4") == 1280 * 5120 * 9 // 2 + 32


def test_options_that_cost_bits():
    plain = wq.storage_bits((64, 256), "int4")
    assert wq.storage_bits((64, 256), "int4", int_range="asymmetric") == plain + 64 * 2 * 4
    assert wq.storage_bits((64, 256), "int4", scale_dtype="fp32") == plain + 64 * 2 * 16


@pytest.mark.parametrize("int_range", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("name", FORMATS)
def test_storage_counts_what_quantize_returns(name, granularity, int_range):
    format = load_format(name)
    if int_range == "asymmetric" and (format.element != "int" or format.scale_dtype == "e8m0"):
        int_range = "symmetric"
    format = replace(format, int_range=int_range)
    quantized = quantize(torch.randn(6, 70), format, granularity, group=16)
    counted = storage((6, 70), format, granularity, 16)
    scales = 0 if quantized.scale is None else quantized.scale.numel()
    zero_points = 0 if quantized.zero_point is None else quantized.zero_point.numel()
    assert counted.element_bits == quantized.codes.numel() * format.bits
    assert counted.scale_bits == scales * format.scale_bits
    assert counted.zero_point_bits == zero_points * format.bits
    assert counted.tensor_scale_bits == (32 if quantized.tensor_scale is not None else 0)
