"""Sizes against known answers: public Whisper geometries, and the arithmetic of each scheme."""
# pyright: reportMissingImports=false

import copy
import csv
import json
import re
from dataclasses import asdict

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from tests.conftest import plan
from wq.catalogue import conf_dir, load_format
from wq.commands.size import tell
from wq.numerics.packing import layout
from wq.study.resources.points import compose_points
from wq.study.resources.size import PLAIN_BITS, model_size, size_of
from wq.study.spec.composition import compose
from wq.study.spec.resolution import resolve_spec, resolve_treatment
from wq.study.spec.spec import Content
from wq.whisper.checkpoint.files import ModelError
from wq.whisper.checkpoint.geometry import PUBLIC, Geometry, find_geometry, skeleton
from wq.whisper.export.export import assemble
from wq.whisper.layers.layers import select, walk
from wq.whisper.layers.roles import ROLES
from wq.whisper.methods.nearest import quantize_weights

TINY = PUBLIC["openai/whisper-tiny"]

# Millions of parameters; shares in % of the encoder's and decoder's linear layers, the embedding and the
# convolutions; megabytes with the layer linears in a format and the rest at fp16: counted on the meta device
# by others
KNOWN = {
    "tiny": (37.8, (18.7, 25.0, 52.7, 1.4), {"fp16": 76, "int8": 59, "int4": 51, "nvfp4": 52, "mxfp4": 51}),
    "base": (72.6, (26.0, 34.7, 36.6, 1.3), {"fp16": 145, "int8": 101, "int4": 80, "nvfp4": 82, "mxfp4": 81}),
    "small": (
        241.7,
        (35.1, 46.8, 16.5, 0.8),
        {"fp16": 483, "int8": 285, "int4": 189, "nvfp4": 199, "mxfp4": 192},
    ),
    "medium": (
        763.9,
        (39.5, 52.7, 7.0, 0.4),
        {"fp16": 1528, "int8": 823, "int4": 482, "nvfp4": 515, "mxfp4": 493},
    ),
    "large-v3": (
        *(1543.5, (40.8, 54.3, 4.3, 0.4)),
        {"fp16": 3087, "int8": 1619, "int4": 908, "nvfp4": 977, "mxfp4": 931},
    ),
    "large-v3-turbo": (
        *(808.9, (77.8, 13.0, 8.2, 0.7)),
        {"fp16": 1618, "int8": 884, "int4": 528, "nvfp4": 563, "mxfp4": 540},
    ),
}

# Millions of parameters that OpenAI and the authors of distil-whisper publish for the others
PUBLISHED = {"tiny.en": 37.8, "base.en": 72.6, "small.en": 241.7, "medium.en": 763.9, "large-v2": 1543.3}


def size(geometry, format, granularity="group", group=None, roles=("encoder", "decoder")):
    model = skeleton(geometry)
    layers = select(list(walk(model)), roles)
    return model_size(model, plan(layers, format, granularity, group), 32 if format == "fp32" else PLAIN_BITS)


@pytest.mark.parametrize("name", KNOWN)
def test_public_geometries(name):
    geometry = PUBLIC[f"openai/whisper-{name}"]
    millions, shares, megabytes = KNOWN[name]
    plain = size(geometry, "fp16")
    assert plain.whole.parameters / 1e6 == pytest.approx(millions, abs=0.05)
    for share, start in zip(shares, ("encoder.", "decoder.", "embedding", "conv."), strict=True):
        chosen = (
            part.parameters for part in plain.parts if part.role.startswith(start) and part.role in ROLES
        )
        assert 100 * sum(chosen) / plain.whole.parameters == pytest.approx(share, abs=0.06)
    for format, expected in megabytes.items():
        granularity = "tensor" if format == "int8" else "group"  # the published int8 leaves scales out
        assert size(geometry, format, granularity).model_bytes / 1e6 == pytest.approx(expected, abs=0.6), (
            format
        )


@pytest.mark.parametrize("name", PUBLISHED)
def test_other_public_geometries(name):
    parameters = size(PUBLIC[f"openai/whisper-{name}"], "fp16").whole.parameters
    assert parameters / 1e6 == pytest.approx(PUBLISHED[name], abs=0.06)


def test_the_distilled_model_is_large_v3_without_thirty_decoder_layers():
    large, small = (
        size(PUBLIC[name], "fp16") for name in ("openai/whisper-large-v3", "distil-whisper/distil-large-v3")
    )
    layers = [part for part in large.parts if part.name.startswith("model.decoder.layers.0.")]
    layer = sum(part.parameters for part in layers)
    assert large.whole.parameters - small.whole.parameters == 30 * layer
    assert small.whole.parameters / 1e6 == pytest.approx(756, abs=1)


@pytest.mark.parametrize(
    ("format", "granularity", "group", "bits"),
    [
        ("int4", "group", 128, 4 + 16 / 128),
        ("int4", "group", 32, 4.5),
        ("int3", "group", 64, 3.25),
        ("fp8_e4m3", "group", 128, 8.25),
        ("mxfp4", "group", None, 4.25),
        ("nf4", "group", None, 4.25),
        ("fp16", "group", None, 16),
        ("fp32", "group", None, 32),
    ],
)
def test_bits_per_weight(format, granularity, group, bits):
    assert size(TINY, format, granularity, group).bits_per_weight == bits


def test_nvfp4_is_four_and_a_half_bits_and_one_scale_per_tensor():
    parts = size(TINY, "nvfp4").linear
    assert parts.bits == 4.5 * parts.parameters + 32 * 64
    assert parts.tensor_scale_bits == 32 * parts.tensors == 32 * 64


def test_per_channel_and_per_tensor_count_their_scales():
    outputs = sum(layer.weight.shape[0] for layer in walk(skeleton(TINY)) if layer.is_linear)
    for granularity, scales in (("channel", outputs), ("tensor", 64)):
        linear = size(TINY, "int8", granularity).linear
        assert (linear.element_bits, linear.scale_bits) == (8 * linear.parameters, 16 * scales)


def test_a_ragged_tail_has_a_scale_of_its_own():
    ragged = size(TINY, "int4", group=100).by_role["encoder.self_attn.q"]  # 384 = 3 * 100 + 84
    assert ragged.scale_bits == 4 * 384 * 4 * 16
    assert ragged.ragged_groups == 4 * 384
    assert size(TINY, "int4", group=128).whole.ragged_groups == 0


def test_layers_that_are_not_quantized_stay_at_fp16():
    half = size(TINY, "int4", roles=["encoder"])
    encoder = sum(layer.weight.numel() for layer in walk(skeleton(TINY)) if layer.role.startswith("encoder."))
    assert half.linear.bits == 4.125 * encoder + 16 * (half.linear.parameters - encoder)


def test_the_embedding_counts_once_and_can_be_quantized():
    plain, smaller = size(TINY, "int8"), size(TINY, "int8", roles=["encoder", "decoder", "embedding"])
    assert plain.model_bytes - smaller.model_bytes == 51865 * 384 * (16 - 8) // 8 - 51865 * 3 * 2


def test_the_reference_is_all_fp32():
    reference = size(TINY, "fp32")
    assert reference.model_bytes == 4 * reference.whole.parameters
    assert reference.compression_ratio == 0.5


def test_parts_add_up():
    sizes = size(TINY, "nvfp4", roles=["encoder", "decoder.mlp", "embedding"])
    by_role = sizes.by_role.values()
    assert sum(part.bytes for part in by_role) == sizes.model_bytes
    assert sum(part.parameters for part in by_role) == sum(p.numel() for p in skeleton(TINY).parameters())


@pytest.mark.parametrize("format", ["int3", "int6", "int4", "fp8_e4m3", "nvfp4", "mxfp6_e2m3", "nf4"])
@pytest.mark.parametrize("group", [None, 100])
def test_bytes_are_those_of_the_packed_tensors(format, group):
    layers = {layer.name: layer for layer in walk(skeleton(TINY))}
    for part in size(TINY, format, group=group).parts:
        if part.name in layers and layers[part.name].is_linear:
            tensors = layout(layers[part.name].matrix_shape, load_format(format), "group", group).values()
            counts = [int(dtype.itemsize * _count(shape)) for dtype, shape in tensors]
            assert part.bytes == sum(counts)


def _count(shape):
    return shape[0] * _count(shape[1:]) if shape else 1


def test_a_real_model_and_its_configuration_have_one_size(nano):
    """`model_size` looks at shapes alone."""
    config, source = compose(["format=nvfp4", "roles=[encoder,embedding]"])[0], Content("", "")
    spec = resolve_spec(config, resolve_treatment(config), source, source, 0, "", False)
    layers = select(list(walk(nano.model)), ["encoder", "embedding"])
    assert model_size(nano.model, plan(layers, "nvfp4"), PLAIN_BITS) == size_of(
        find_geometry("wq:nano"), spec
    )


@pytest.mark.parametrize(
    ("format", "granularity", "group", "roles"),
    [
        ("int4", "group", 128, ["encoder", "decoder"]),
        ("int3", "group", 100, ["encoder", "decoder"]),
        ("int8", "channel", None, ["encoder"]),
        ("fp8_e4m3", "tensor", None, ["encoder", "decoder"]),
        ("nvfp4", "group", None, ["encoder", "decoder"]),
        ("mxfp6_e2m3", "group", None, ["decoder", "embedding"]),
        ("nf4", "group", None, ["encoder", "decoder", "conv", "embedding"]),
    ],
)
def test_an_exported_checkpoint_has_the_bytes_that_were_predicted(nano, format, granularity, group, roles):
    overrides = [f"format={format}", f"granularity={granularity}", f"roles=[{','.join(roles)}]"]
    (point,) = compose_points(overrides + ([f"group={group}"] if group else []))
    layers = select(list(walk(nano.model)), roles)
    contents = assemble(nano, quantize_weights(plan(layers, format, granularity, group)), {}, layout="wq")
    assert sum(tensor.nbytes for tensor in contents.tensors.values()) == point.size.model_bytes
    quantized = {layer.name for layer in layers}
    assert contents.weight_bytes == sum(part.bytes for part in point.size.parts if part.name in quantized)


# --- another toolkit's files ----------------------------------------------------------------------

# What is asked of compressed-tensors, by our own overrides
TOOLKIT = {
    "format=int4": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128},
    "format=int4 group=32": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32},
    "format=int4 format.int_range=asymmetric": {
        **{"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128},
        **{"symmetric": False, "zp_dtype": torch.int8},
    },
    "format=int8 granularity=channel": {"num_bits": 8, "type": "int", "strategy": "channel"},
    "format=int8 granularity=tensor": {"num_bits": 8, "type": "int", "strategy": "tensor"},
    "format=fp8_e4m3 granularity=channel format.scale_dtype=fp16": {
        **{"num_bits": 8, "type": "float", "strategy": "channel"},
    },
    "format=mxfp4": {
        **{"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32},
        **{"scale_dtype": torch.uint8, "zp_dtype": torch.uint8},
    },
    "format=nvfp4": {
        **{"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
        **{"scale_dtype": torch.float8_e4m3fn, "zp_dtype": torch.float8_e4m3fn},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("overrides", TOOLKIT)
def test_the_bytes_are_those_of_files_that_compressed_tensors_writes(nano, tmp_path, overrides):
    """All but the shapes that it writes beside codes packed into words: sixteen bytes a layer."""
    pytest.importorskip("compressed_tensors", reason="install the extra refs to compare with its files")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )

    model = copy.deepcopy(nano.model).half()
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**TOOLKIT[overrides]))
    apply_quantization_config(model, QuantizationConfig(config_groups={"all": scheme}, ignore=["proj_out"]))
    for name, scales in model.named_parameters():
        if name.endswith("scale"):
            scales.data.fill_(1.0)
    ModelCompressor.from_pretrained_model(model).compress_model(model)
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, tmp_path / "weights")
    layers = {layer.name for layer in walk(nano.model) if layer.is_linear}
    held = {"weight": 0, "shape": 0}
    with safe_open(tmp_path / "weights", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            layer, _, part = name.rpartition(".")
            if layer in layers and part.startswith("weight"):
                held["shape" if part == "weight_shape" else "weight"] += file.get_tensor(name).nbytes
    (point,) = compose_points(overrides.split())
    assert held["weight"] == point.size.linear_bytes
    assert held["shape"] in (0, 16 * len(layers))


# --- geometries -----------------------------------------------------------------------------------


def test_a_directory_s_config_wins_over_what_is_known(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "openai" / "whisper-tiny"
    directory.mkdir(parents=True)
    config = asdict(TINY) | {"model_type": "whisper", "d_model": 128, "vocab_size": 1000}
    del config["is_multilingual"]
    (directory / "config.json").write_text(json.dumps(config))
    geometry = find_geometry("openai/whisper-tiny")
    assert (geometry.d_model, geometry.is_multilingual, geometry.prompt_length) == (128, False, 2)


def test_a_cached_config_wins_over_what_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--openai--whisper-tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    (snapshot / "config.json").write_text(json.dumps({"model_type": "whisper", "d_model": 192}))
    assert find_geometry("openai/whisper-tiny").d_model == 192
    assert find_geometry("openai/whisper-base") == PUBLIC["openai/whisper-base"]


def test_the_shipped_model_s_geometry_is_its_own(nano):
    assert find_geometry("wq:nano") == Geometry.of(nano.model.config.to_dict())
    assert find_geometry("wq:nano").is_multilingual == nano.is_multilingual
    assert find_geometry("wq:nano").room == nano.max_new_tokens


@pytest.mark.parametrize("path", ["someone/unknown-whisper", "./nowhere", "wq:unknown"])
def test_a_geometry_that_cannot_be_had_is_told_in_a_line(path, monkeypatch):
    monkeypatch.setattr("wq.hub.unreachable", lambda: "no network")
    with pytest.raises(ModelError, match=path) as told:
        find_geometry(path)
    assert "\n" not in str(told.value)


def test_a_directory_that_is_no_whisper(tmp_path):
    with pytest.raises(ModelError, match=r"no readable config\.json"):
        find_geometry(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="bert"):
        find_geometry(str(tmp_path))


# --- the command ----------------------------------------------------------------------------------


def test_every_model_of_the_configuration_is_known_without_a_network(monkeypatch):
    monkeypatch.setattr("wq.hub.unreachable", lambda: "no network")
    files = list((conf_dir() / "model").glob("*.yaml"))
    paths = [yaml.safe_load(file.read_text())["path"] for file in files]
    assert len({find_geometry(path) for path in paths}) == len(files) >= 13


def test_points_that_are_the_same_are_listed_once():
    points = compose_points(["format=nvfp4", "granularity=channel,group", "group=32,128"])
    assert [point.spec.point for point in points] == ["nvfp4-channel", "nvfp4-g32", "nvfp4-g128"]


def test_wq_size(tmp_path, capsys):
    tell(["model=large_v3", "format=nvfp4,int4", f"csv={tmp_path / 'sizes.csv'}", "details=true"])
    told = capsys.readouterr().out
    assert "976.72" in told
    assert "907.91" in told
    with (tmp_path / "sizes.csv").open() as file:
        rows = list(csv.DictReader(file))
    totals = {row["point"]: int(row["bytes"]) for row in rows if row["name"] == "whole checkpoint"}
    parts = dict.fromkeys(totals, 0)
    for row in rows:
        parts[row["point"]] += int(row["bytes"]) if row["role"] else 0
    assert parts == totals == {"nvfp4": 976_723_968, "int4-g128": 907_909_120}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["details=maybe"], "details=maybe"),
        (["format=int4", "group=0"], "group=0"),
        (["model.path=someone/unknown"], "someone/unknown"),
        (["roles=[encoder.head]"], "encoder.head"),
    ],
)
def test_what_cannot_be_weighed_is_one_line(arguments, message, monkeypatch):
    monkeypatch.setattr("wq.hub.unreachable", lambda: "no network")
    with pytest.raises(ValueError, match=re.escape(message)) as told:
        tell(arguments)
    assert "\n" not in str(told.value)


def test_an_unknown_model_ends_the_command(wq):
    done = wq("size", "model=huge", module="wq")
    assert done.returncode == 1
    assert "model=huge is unknown; choose one of base" in done.stderr
    assert done.stderr.count("\n") == 1
