"""The cost model against arithmetic by hand, and its rules."""

import re
import subprocess
import sys
from collections.abc import Sequence
from functools import cache

import pytest

from wq.catalogue import format_names, load_format
from wq.commands.cost import tell
from wq.study.resources.cost import Demand, Estimate, columns, estimate
from wq.study.resources.footprint import workload
from wq.study.resources.hardware import (
    KINDS,
    Hardware,
    hardware_names,
    load_hardware,
    operand_kind,
    product_kind,
)
from wq.study.resources.points import Point, compose_points
from wq.study.resources.size import size_of
from wq.whisper.checkpoint.geometry import PUBLIC, Geometry, skeleton
from wq.whisper.layers.layers import walk

ENDLESS = 1e12
SLOW_MEMORY = Hardware("slow memory", bandwidth=1.0, rates={"fp16": ENDLESS, "fp32": ENDLESS})
SLOW_UNITS = Hardware("slow units", bandwidth=ENDLESS, rates={"fp16": 1.0, "int8": 2.0})


@cache
def point(*overrides: str) -> Point:
    (only,) = compose_points(["model=tiny", *overrides])
    return only


def cost(of: Point, hardware: Hardware, tokens: int = 10) -> Estimate:
    work = workload(of.geometry, tokens=tokens)
    return estimate(of.geometry, of.size, of.spec, work, hardware)


# --- bytes ----------------------------------------------------------------------------------------


def test_bytes_moved_by_hand():
    """tiny at fp16, 10 tokens after a prompt of 4: the encoder's weights once, the decoder's ten times; the
    cross-attention's keys and values written once and read ten times, the self-attention's written once and
    read as far as they go."""
    plain = point("format=fp16")
    width, layers, fed = 384, 4, 13
    layer = 12 * width * width  # 4 projections and two layers of 4 * width
    encoder = 3 * width * (80 + width) + 1500 * width + layers * (layer + 12 * width)  # 8 biases and 2 norms
    encoder += 2 * width + 2 * width  # the convolutions' biases, the last norm
    cross_projections = 2 * layers * width * width
    decoder = layers * (layer + 2 * width * width + 17 * width) + 2 * width + 51865 * width
    frame = 2 * layers * width  # keys and values of a position
    numbers = encoder + cross_projections + frame * 1500
    numbers += 10 * (decoder + frame * 1500) + frame * (fed + sum(range(4, 14)))
    demand = Demand(plain.geometry, plain.size, plain.spec, workload(plain.geometry, tokens=10))
    assert demand.moved_bytes == 2 * numbers
    assert (
        cost(plain, SLOW_MEMORY).moved_bytes >= 2 * numbers
    )  # activations move too where nothing is on chip


def test_memory_bound_time_is_bytes_over_bandwidth():
    slow = cost(point("format=fp16"), SLOW_MEMORY)
    assert slow.seconds == pytest.approx(slow.moved_bytes / 1e9)
    assert (slow.encoder.bound, slow.decoder.bound) == ("memory", "memory")


def test_fewer_bits_move_fewer_bytes():
    moved = [
        columns(p.geometry, p.size, p.spec)["moved_bytes"]
        for p in compose_points(["model=tiny", "format=fp16,int8,int4"])
    ]
    assert moved == sorted(moved, reverse=True)
    assert len(set(moved)) == 3
    plain, rounded = (point("format=int4", f"kv_cache={name}") for name in ("none", "int8"))
    each = [columns(p.geometry, p.size, p.spec) for p in (plain, rounded)]
    assert each[1]["moved_bytes"] < each[0]["moved_bytes"]
    assert each[1]["memory_bytes"] - each[0]["memory_bytes"] == (
        each[1]["kv_cache_bytes"] - each[0]["kv_cache_bytes"]
    )


def test_what_fits_beside_the_units_is_read_once():
    nano = compose_points(["model=nano", "format=int4"])[0]
    work = workload(nano.geometry, tokens=10)
    small, large = (Demand(nano.geometry, nano.size, nano.spec, work, mega * 1e6) for mega in (0, 64))
    decoder = sum(product.bytes for product in large.decoder)
    held = nano.size.model_bytes
    assert decoder < held < sum(product.bytes for product in small.decoder)
    assert (
        large.moved_bytes < Demand(nano.geometry, nano.size, nano.spec, work).moved_bytes < small.moved_bytes
    )


# --- bit operations --------------------------------------------------------------------------------


def bit_operations(*overrides: str) -> dict[str, int]:
    """By role, of ten tokens."""
    of = point(*overrides)
    demand = Demand(of.geometry, of.size, of.spec, workload(of.geometry, tokens=10))
    found = {product.role: product.bit_operations for product in (*demand.encoder, *demand.decoder)}
    assert sum(found.values()) == demand.bit_operations == cost(of, SLOW_MEMORY).bit_operations
    return found


@pytest.mark.parametrize(
    ("overrides", "role", "bits"),
    [
        ("format=fp32", "encoder.mlp.fc1", (32, 32)),
        ("format=fp16", "encoder.mlp.fc1", (16, 16)),
        ("format=int4", "encoder.mlp.fc1", (4, 16)),
        ("format=int4 activation=int8_token", "encoder.mlp.fc1", (4, 8)),
        ("format=nvfp4 activation=nvfp4", "decoder.cross_attn.q", (4, 4)),
        ("format=fp6_e2m3", "encoder.mlp.fc1", (6, 16)),
        ("format=int4 roles=[decoder]", "encoder.mlp.fc1", (16, 16)),
        (
            "format=int4 activation=int8_token",
            "encoder.attention",
            (16, 16),
        ),  # its own products are not rounded
        ("format=int4 kv_cache=int8", "encoder.attention", (16, 16)),
        ("format=int4 kv_cache=int8", "decoder.cross_attention", (16, 8)),
        ("format=int4 kv_cache=int8 kv_cache.attention=[self]", "decoder.cross_attention", (16, 16)),
    ],
)
def test_bit_operations_are_multiply_adds_times_the_bits_of_both_operands(overrides, role, bits):
    of = point(*overrides.split())
    demand = Demand(of.geometry, of.size, of.spec, workload(of.geometry, tokens=10))
    (macs,) = {product.macs for product in (*demand.encoder, *demand.decoder) if product.role == role}
    assert bit_operations(*overrides.split())[role] == macs * bits[0] * bits[1]


def test_activation_precision_pays_in_bit_operations_and_in_memory():
    """W4A8 against W4A16, which have the same bytes."""
    wide, narrow = (point("format=int4", *more) for more in ([], ["activation=int8_token"]))
    rows = [columns(each.geometry, each.size, each.spec) for each in (wide, narrow)]
    assert rows[1]["bit_operations"] < 0.9 * rows[0]["bit_operations"]
    assert rows[1]["memory_bytes"] < rows[0]["memory_bytes"]
    assert rows[1]["kv_cache_bytes"] == rows[0]["kv_cache_bytes"]


# --- time -----------------------------------------------------------------------------------------


def test_compute_bound_time_by_hand():
    """2 operations a multiply-add, at 10^12 a second."""
    plain = cost(point("format=fp16"), SLOW_UNITS)
    width, layers, audio = 384, 4, 1500
    macs = 3 * 80 * width * 2 * audio + 3 * width * width * audio
    macs += (
        layers * (12 * width * width * audio + 2 * audio * audio * width) + layers * 2 * width * width * audio
    )
    assert plain.encoder.seconds == pytest.approx(2 * macs / 1e12)
    fed = 13
    decoding = layers * (12 + 2) * width * width * fed + 10 * 51865 * width
    decoding += layers * 2 * width * (sum(range(1, fed + 1)) + fed * audio)
    assert plain.decoder.seconds == pytest.approx(2 * decoding / 1e12)
    assert plain.token_seconds == plain.decoder.seconds / 10
    assert (plain.encoder.bound, plain.decoder.bound) == ("compute", "compute")


def test_linear_layers_have_the_multiply_adds_of_their_shapes():
    geometry = Geometry(
        d_model=48, encoder_layers=2, decoder_layers=3, encoder_ffn_dim=100, decoder_ffn_dim=60
    )
    layers = list(walk(skeleton(geometry)))
    (tiny,) = compose_points(["model=tiny", "format=fp16"])
    work = workload(geometry, tokens=7)
    demand = Demand(geometry, size_of(geometry, tiny.spec), tiny.spec, work)
    fed = geometry.prompt_length + 6
    for product in (*demand.encoder, *demand.decoder):
        weights = sum(layer.weight.numel() for layer in layers if layer.role == product.role)
        times = {"conv.conv1": 3000, "embedding": 7}.get(
            product.role, fed if product in demand.decoder else 1500
        )
        if weights:
            assert product.macs == weights * times, product.role


def test_a_weight_only_format_runs_at_the_rate_of_its_activations():
    weight_only, both = point("format=int8"), point("format=int8", "activation=int8_token")
    plain = cost(point("format=fp16"), SLOW_UNITS)
    assert cost(weight_only, SLOW_UNITS).encoder.seconds == plain.encoder.seconds
    assert cost(both, SLOW_UNITS).encoder.seconds < plain.encoder.seconds


@pytest.mark.parametrize(
    ("format", "kind"),
    [
        *((name, "int4") for name in ("int2", "int3", "int4")),
        *((name, "int8") for name in ("int5", "int6", "int8", "mxint8")),
        *((name, "fp4") for name in ("fp4_e2m1", "mxfp4", "nvfp4")),
        *((name, "fp6") for name in ("fp6_e2m3", "mxfp6_e3m2")),
        *((name, "fp8") for name in ("fp8_e4m3", "fp8_e5m2", "mxfp8_e4m3")),
        *(("nf4", "fp16"), ("bf16", "fp16"), ("fp16", "fp16"), ("fp32", "fp32")),
    ],
)
def test_the_units_that_hold_a_format(format, kind):
    assert operand_kind(load_format(format), 16) == kind


def test_every_format_has_units():
    assert all(operand_kind(load_format(name), 16) in KINDS for name in format_names())
    assert (operand_kind(None, 16), operand_kind(None, 32)) == ("fp16", "fp32")


@pytest.mark.parametrize(
    ("operands", "kind"),
    [
        (("int4", "int8"), "int8"),
        (("int8", "int8"), "int8"),
        (("int4", "fp16"), "fp16"),
        (("int4", "fp8"), "fp16"),
        (("fp4", "fp8"), "fp8"),
        (("fp4", "fp4"), "fp4"),
        (("fp8", "fp16"), "fp16"),
        (("int8", "fp32"), "fp32"),
    ],
)
def test_a_product_s_units(operands, kind):
    assert product_kind(*operands) == product_kind(*reversed(operands)) == kind


def test_what_there_is_no_unit_for_runs_on_the_next_wider_one():
    integers, floats = (
        Hardware("", 1.0, rates) for rates in ({"int8": 2.0, "fp16": 1.0}, {"fp8": 2.0, "fp16": 1.0})
    )
    assert [integers.unit(kind) for kind in ("int4", "int8", "fp4", "fp8")] == [
        "int8",
        "int8",
        "fp16",
        "fp16",
    ]
    assert [floats.unit(kind) for kind in ("int4", "int8", "fp4", "fp8")] == ["fp16", "fp16", "fp8", "fp8"]
    with pytest.raises(ValueError, match="nothing as wide as fp32"):
        integers.unit("fp32")


def test_an_estimate_needs_no_torch():
    """Only the size does, whose shapes are a model's on the meta device."""
    script = "import sys, wq.study.resources.cost, wq.study.resources.points; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "False"


# --- profiles and the command ---------------------------------------------------------------------


@pytest.mark.parametrize("name", hardware_names())
def test_profiles(name):
    """A wider operand is never faster, and half precision is always there: attention multiplies in it."""
    hardware = load_hardware(name)
    assert "fp16" in hardware.rates
    for kind, wider in KINDS.items():
        rates = [hardware.rates[each] for each in wider if each in hardware.rates]
        assert rates == sorted(rates, reverse=True), kind
    spent = cost(point("format=int4", "activation=int8_token"), hardware)
    assert 0 < spent.token_seconds < spent.encoder.seconds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bandwidth: 1\nrates: {fp12: 1}", "fp12"),
        ("bandwidth: 0\nrates: {fp16: 1}", "above 0"),
        ("bandwidth: 1", "no hardware profile"),
        ("- 1", "no hardware profile"),
        ("rates: [", "no hardware profile"),
    ],
)
def test_a_profile_that_is_wrong(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as told:
        load_hardware(str(file))
    assert "\n" not in str(told.value)


def test_a_profile_of_one_s_own(tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text("bandwidth: 10\non_chip: 1\nrates: {fp16: 1, int8: 2}")
    table = tmp_path / "cost.csv"
    tell(["model=tiny", "format=int8,int4", "tokens=50,100", f"hardware={file},h100_sxm", f"csv={table}"])
    assert len(table.read_text().splitlines()) == 1 + 2 * 2 * 2
    assert "estimated by roofline, not measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hardware=toaster"], "hardware=toaster is unknown"),
        (["tokens=0"], "tokens=0"),
        (["format=fp32", "hardware=apple_m4_ane"], "fp32"),
    ],
)
def test_what_cannot_be_estimated_is_told_in_one_line(arguments: Sequence[str], message: str):
    with pytest.raises(ValueError, match=re.escape(message)) as told:
        tell([*arguments])
    assert "\n" not in str(told.value)


def test_the_public_geometries_cost_more_the_larger_they_are():
    names = [f"openai/whisper-{name}" for name in ("tiny", "base", "small")]
    spec = point("format=int4").spec
    spent = [
        estimate(
            PUBLIC[name],
            size_of(PUBLIC[name], spec),
            spec,
            workload(PUBLIC[name]),
            load_hardware("raspberry_pi_5"),
        ).seconds
        for name in names
    ]
    assert spent == sorted(spent)
