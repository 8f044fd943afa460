"""Checkpoints on disk: the bytes that are predicted, and the values that were written, by any reader."""
# pyright: reportMissingImports=false, reportArgumentType=false, reportOptionalMemberAccess=false

import json
import math
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.conftest import some_slow
from tests.numerics.oracle import FORMATS
from wq.catalogue import load_format
from wq.commands.export import export
from wq.numerics.effective import Quantizer, resolve
from wq.numerics.fake_quant import dequantize, quantize
from wq.numerics.storage import storage
from wq.study.resources.size import model_size
from wq.study.score.wer import score
from wq.whisper.checkpoint import packed
from wq.whisper.checkpoint.files import PACKED, ModelError, locate
from wq.whisper.checkpoint.model import load
from wq.whisper.decoding.decode import SAMPLING_RATE, transcribe
from wq.whisper.export.compressed import LayoutError, input_tensors, quantization_config, scheme, tensors
from wq.whisper.export.export import REST_DTYPES, assemble, fitting_layout, total_bytes, write
from wq.whisper.export.target import ExportError, check_target
from wq.whisper.layers.layers import assign, walk
from wq.whisper.layers.roles import LINEAR_ROLES
from wq.whisper.layers.schemes import Activation, Assignment
from wq.whisper.methods.folds import find_folds, smoothed
from wq.whisper.methods.nearest import quantize_weights, quantized_weights

QUANTIZED = [name for name in FORMATS if load_format(name).native_cast != "fp32"]
COMPRESSED = {
    # format: granularities that compressed-tensors' layout holds
    **dict.fromkeys(
        ("int2", "int3", "int4", "int5", "int6", "int8", "fp8_e4m3"), ("tensor", "channel", "group")
    ),
    **dict.fromkeys(("nvfp4", "nvfp4_46", "mxfp4", "mxfp8_e4m3"), ("group",)),
}
EXACT = ("int2", "int3", "int4", "int5", "int6", "int8", "fp8_e4m3")
BFLOAT16_NOISE = 0.15  # of nano's logits, which reach 20


def quantizer(format: str, granularity: str = "group", group: int | None = None, **changes) -> Quantizer:
    return resolve(replace(load_format(format), **changes), granularity, group).quantizer


def plan(whisper, *args, roles=("encoder", "decoder"), **changes):
    return assign(list(walk(whisper.model)), (Assignment(quantizer(*args, **changes), roles),))


def activation(format: str, granularity: str) -> Activation:
    changes: dict[str, Any] = {} if granularity == "group" else {"scale_dtype": "fp32"}
    return Activation(quantizer(format, granularity, **changes))


def logits(model) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 80, 500, generator=generator).to(model.dtype)
    tokens = torch.tensor([[1126, 1127, 5, 6], [1126, 1127, 700, 9]])
    with torch.no_grad():
        return model(features, decoder_input_ids=tokens).logits.float()


def expected_logits(whisper, plan, share=False) -> Tensor:
    with quantized_weights(plan, share):
        return logits(whisper.model)


def texts(whisper, speech, count) -> list[str]:
    read = [speech.read(index, SAMPLING_RATE) for index in range(count)]
    found = transcribe(whisper, lambda index: read[index], range(count), batch_size=count)
    return [transcript.text for transcript in found.transcripts]


# --- the file --------------------------------------------------------------------------------------


def check_bytes(whisper, plan):
    contents = assemble(whisper, quantize_weights(plan), {}, layout="wq")
    names = {f"{layer.name}.weight" for layer, _ in plan}
    stored = {name: t for name, t in contents.tensors.items() if name.rpartition(".")[0] in names}
    predicted = [storage(layer.matrix_shape, *each) for layer, each in plan]
    # The one zero point of granularity=tensor has a byte of its own, and fewer bits
    spare = sum(-each.zero_point_bits % 8 for each in predicted)
    assert 8 * total_bytes(stored) == sum(each.total for each in predicted) + spare
    assert contents.weight_bytes == total_bytes(stored) == sum(each.bytes for each in predicted)
    assert contents.weight_bytes + contents.rest_bytes == model_size(whisper.model, plan, 16).model_bytes
    assert contents.extra_bytes == 0
    # everything else is there once, at fp16
    others = [p for name, p in whisper.model.named_parameters() if name not in names]
    assert contents.rest_bytes == 2 * sum(p.numel() for p in others)
    assert total_bytes(contents.tensors) == contents.weight_bytes + contents.rest_bytes


@pytest.mark.parametrize("format", QUANTIZED)
def test_the_file_has_the_bits_that_are_predicted(nano, format):
    check_bytes(nano, plan(nano, format, roles=("decoder.cross_attn", "encoder.mlp.fc2")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("granularity", "group"),
    [("tensor", None), ("channel", None), *(("group", group) for group in (None, 16, 32, 64, 100, 1000))],
)
@pytest.mark.parametrize("format", QUANTIZED)
def test_the_whole_file_has_the_bits_that_are_predicted(nano, format, granularity, group):
    for int_range in ("symmetric", "asymmetric"):
        is_plain_int = load_format(format).element == "int" and load_format(format).scale_dtype != "e8m0"
        if int_range == "symmetric" or is_plain_int:
            check_bytes(nano, plan(nano, format, granularity, group, int_range=int_range))


@pytest.mark.parametrize("format", ["int3", "nf4", "nvfp4", "mxfp6_e3m2", "fp16"])
def test_our_layout_gives_the_exact_model_back(nano, tmp_path, format):
    which = plan(nano, format, "group", 100, roles=("encoder", "decoder", "embedding", "conv"))
    contents = assemble(nano, quantize_weights(which), {}, layout="wq")
    write(tmp_path / "out", nano, contents, "")
    assert torch.equal(logits(packed.load(tmp_path / "out")), expected_logits(nano, which))


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("format", QUANTIZED)
def test_every_format_comes_back_exactly(nano, tmp_path, format, granularity):
    which = plan(nano, format, granularity)
    write(tmp_path / "out", nano, assemble(nano, quantize_weights(which), {}, layout="wq"), "")
    assert torch.equal(logits(load(tmp_path / "out").model), expected_logits(nano, which))


def test_an_export_is_a_checkpoint_of_wq(nano, commands, tmp_path):
    which = plan(nano, "nf4")
    write(tmp_path / "out", nano, assemble(nano, quantize_weights(which), {}), "the card")
    assert (tmp_path / "out" / "README.md").read_text() == "the card"
    reloaded = load(locate(str(tmp_path / "out")))
    assert reloaded.model.generation_config.to_dict() == nano.model.generation_config.to_dict()
    with quantized_weights(which):
        expected = texts(nano, commands, 12)
    assert texts(reloaded, commands, 12) == expected


def test_layers_that_engines_fuse_share_a_tensor_scale(nano, tmp_path):
    which = plan(nano, "nvfp4")
    contents = assemble(nano, quantize_weights(which, share_tensor_scale=True), {}, layout="wq")
    scales = {name: t for name, t in contents.tensors.items() if name.endswith("tensor_scale")}
    assert len(scales) == len(which)
    assert len({float(scale) for scale in scales.values()}) < len(scales)
    for attention, fused in (("self_attn", "qkv"), ("encoder_attn", "kv")):
        prefix = f"model.decoder.layers.1.{attention}"
        assert len({float(scales[f"{prefix}.{part}_proj.weight.tensor_scale"]) for part in fused}) == 1
    write(tmp_path / "out", nano, contents, "")
    assert torch.equal(logits(packed.load(tmp_path / "out")), expected_logits(nano, which, share=True))


def test_what_is_not_quantized_is_rounded_only_where_asked(nano):
    which = plan(nano, "int8", roles=("decoder",))
    norm = nano.model.model.encoder.layer_norm.weight
    original = norm.data
    norm.data = original * (1 + 1e-5)  # as after smoothing: no value of fp16
    try:
        assert assemble(nano, quantize_weights(which), {}).rounded > 200
        assert assemble(nano, quantize_weights(which), {}, rest="fp32").rounded == 0
        norm.data = original * 1e6
        with pytest.raises(
            LayoutError, match=r"layer_norm.weight has values beyond .*rest=fp16; use rest=fp32"
        ):
            assemble(nano, quantize_weights(which), {})
    finally:
        norm.data = original
    assert set(REST_DTYPES) == {"fp16", "fp32"}


def test_a_smoothed_model_takes_its_factors_along(nano, tmp_path):
    folds = find_folds(nano.model)
    generator = torch.Generator().manual_seed(1)
    scales = {
        fold.name: torch.rand(fold.consumers[0].weight.shape[1], generator=generator) + 0.5 for fold in folds
    }
    which = plan(nano, "int4")
    unsmoothed = expected_logits(nano, which)
    with smoothed(folds, scales):
        contents = assemble(nano, quantize_weights(which), {}, layout="wq", rest="fp32")
        expected = expected_logits(nano, which)
    write(tmp_path / "out", nano, contents, "")
    assert torch.equal(logits(packed.load(tmp_path / "out")), expected)
    assert not torch.equal(expected, unsmoothed)


# --- files that are not what they were -------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(nano, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "out"
    write(out, nano, assemble(nano, quantize_weights(plan(nano, "int3")), {}, layout="wq"), "")
    return out


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return opened.metadata()


def rewrite(file: Path, change) -> None:
    """The same file with a change of its tensors and of what it says of them, and a checksum that fits."""
    stored, description = load_file(file), metadata(file)
    told = json.loads(description["quantization"])
    change(stored, told)
    text = json.dumps(told)
    fitting = {"quantization": text, "sha256": packed.checksum(text, stored)}
    save_file(stored, file, description | fitting)


NAME = "model.encoder.layers.0.fc1.weight"


def set_group(stored, told):
    told["quantizers"][0]["group"] = 64


def cut_codes(stored, told):
    stored[f"{NAME}.codes"] = stored[f"{NAME}.codes"][:-1].clone()


def drop_scale(stored, told):
    del stored[f"{NAME}.scale"]


def unknown_element(stored, told):
    told["quantizers"][0]["format"]["element"] = "__import__('os')"


def no_weights(stored, told):
    del told["weights"]


def wrong_index(stored, told):
    told["weights"][NAME][1] = 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_group, r"scale of int3 .* is float16 \[\d+, 2\], and should be float16 \[\d+, 4\]"),
        (cut_codes, r"fc1.weight: codes of int3 \[768, 256\] is uint8 \[73727\]"),
        (drop_scale, r"fc1.weight: scale .* is nothing"),
        (unknown_element, "element=.* is unknown"),
        (no_weights, "weights"),
        (wrong_index, "index out of range"),
    ],
)
def test_a_file_that_does_not_fit_its_description(exported, tmp_path, change, message):
    out = tmp_path / "out"
    shutil.copytree(exported, out)
    rewrite(out / PACKED, change)
    with pytest.raises(ModelError, match=message) as error:
        load(out)
    assert str(out) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_lacks_a_weight(exported, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(exported, out)

    def drop(stored, told):
        del told["weights"][NAME]
        for part in ("codes", "scale"):
            del stored[f"{NAME}.{part}"]

    rewrite(out / PACKED, drop)
    with pytest.raises(ModelError, match=f"lacks {NAME}"):
        load(out)


def test_a_bit_that_flipped(exported, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(exported, out)
    content = bytearray((out / PACKED).read_bytes())
    content[-1000] ^= 1
    (out / PACKED).write_bytes(content)
    with pytest.raises(ModelError, match="was changed after it was written"):
        load(out)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_file_that_is_cut_off(exported, tmp_path, share):
    out = tmp_path / "out"
    shutil.copytree(exported, out)
    content = (out / PACKED).read_bytes()
    (out / PACKED).write_bytes(content[: int(share * len(content))])
    with pytest.raises(ModelError, match="is corrupt or cut off"):
        locate(str(out))
    with pytest.raises(ModelError, match="is corrupt or cut off"):
        load(out)


def test_another_version_of_the_layout(exported, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(exported, out)
    save_file(load_file(out / PACKED), out / PACKED, metadata(out / PACKED) | {"version": "2"})
    with pytest.raises(ModelError, match=r"has format wq version 2, and should have format wq version 1"):
        load(out)


# --- where it is written ---------------------------------------------------------------------------


def test_a_place_that_is_taken(exported, nano, tmp_path):
    contents = assemble(nano, quantize_weights(plan(nano, "int4")), {})
    with pytest.raises(ExportError, match=r"exists; give another directory, or overwrite=true"):
        write(exported, nano, contents, "")
    out = tmp_path / "out"
    write(out, nano, assemble(nano, quantize_weights(plan(nano, "nf4")), {}), "")
    write(out, nano, contents, "", overwrite=True)
    assert not (out / PACKED).exists()  # nothing of the old one is left
    assert (out / "model.safetensors").exists()
    (out / "thesis.tex").touch()
    with pytest.raises(ExportError, match=r"holds thesis\.tex, which no export wrote"):
        write(out, nano, contents, "", overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="is no directory"):
        check_target(tmp_path / "file", overwrite=True)
    (tmp_path / "link").symlink_to(exported)
    with pytest.raises(ExportError, match="is no directory"):
        check_target(tmp_path / "link", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "out"]


def test_a_disk_that_is_full_leaves_what_was_there(exported, nano, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(exported, out)
    before = (out / PACKED).read_bytes()
    contents = assemble(nano, quantize_weights(plan(nano, "int4")), {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))  # no file may grow further
    try:
        with pytest.raises(ExportError, match=f"out={out} cannot be written .* and is as it was") as error:
            write(out, nano, contents, "new", overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert (out / PACKED).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# --- the layout of compressed-tensors --------------------------------------------------------------


def test_words_and_nibbles_by_hand():
    codes = torch.arange(-8, 8, dtype=torch.float32)[None]
    int4 = quantizer("int4", "tensor", scale_dtype="fp32", int_range="full")
    quantized = replace(quantize(codes, *int4), codes=codes.to(torch.int8))
    words = tensors(quantized, scheme(int4, None, 16))["weight_packed"]
    assert [word & 0xFFFFFFFF for word in words.flatten().tolist()] == [0x76543210, 0xFEDCBA98]
    values = torch.tensor([[0.5, -6.0] + [0.0] * 30])
    mxfp4 = quantizer("mxfp4")
    found = tensors(quantize(values, *mxfp4), scheme(mxfp4, None, 32))
    assert found["weight_packed"][0, 0] == 0xF1
    assert found["weight_scale"].tolist() == [[127]]


def test_scales_of_inputs_by_hand():
    assert input_tensors(activation("int8", "tensor"), 127.0)["input_scale"].tolist() == [1.0]
    assert input_tensors(activation("fp8_e4m3", "tensor"), 896.0)["input_scale"].tolist() == [2.0]
    nvfp4 = activation("nvfp4", "group")
    assert input_tensors(nvfp4, 448.0 * 6 / 2)["input_global_scale"].tolist() == [2.0]


def test_rows_of_words_are_filled_up():
    int3 = quantizer("int3", "channel")
    found = tensors(quantize(torch.randn(4, 33), *int3), scheme(int3, None, 33))
    assert found["weight_packed"].shape == (4, math.ceil(33 * 3 / 32))
    assert found["weight_shape"].tolist() == [4, 33]


@pytest.mark.parametrize("format", QUANTIZED)
def test_which_layout_holds_what(nano, format):
    for granularity in ("tensor", "channel", "group"):
        holds = granularity in COMPRESSED.get(format, COMPRESSED["int8"] if format == "int" else ())
        which = plan(nano, format, granularity)
        assert fitting_layout("auto", which, {}) == ("compressed-tensors" if holds else "wq")
        assert fitting_layout("wq", which, {}) == "wq"


@pytest.mark.parametrize(
    ("which", "activations", "message"),
    [
        (("nf4",), {}, "format=nf4 granularity=group group=64 does not fit layout=compressed-tensors"),
        (("nvfp4", "group", 32), {}, "format=nvfp4 granularity=group group=32"),
        (("int4", "group", 100), {}, "group=100, which does not divide a layer's 256 inputs"),
        (("mxfp4",), {"encoder.mlp.fc1": ("int8", "token")}, "activation=int8 granularity=token on mxfp4"),
        (("int8",), {"embedding": ("int8", "token")}, "an activation of embedding, whose weights are not"),
    ],
)
def test_what_the_layout_has_no_place_for(nano, which, activations, message):
    by_role = {role: activation(*each) for role, each in activations.items()}
    with pytest.raises(LayoutError, match=f"{message}.*which holds linear layers.*use layout=wq"):
        fitting_layout("compressed-tensors", plan(nano, *which), by_role)
    assert fitting_layout("auto", plan(nano, *which), by_role) == "wq"


def test_zero_points_and_embeddings_have_no_place_in_it(nano):
    with pytest.raises(LayoutError, match="format=int4"):
        fitting_layout("compressed-tensors", plan(nano, "int4", int_range="asymmetric"), {})
    with pytest.raises(LayoutError, match="embedding, which is no linear layer"):
        fitting_layout("compressed-tensors", plan(nano, "int4", roles=("encoder", "embedding")), {})


def test_the_configuration_names_every_linear_role_once():
    int4, fp8 = (scheme(quantizer(name), None, 256) for name in ("int4", "fp8_e4m3"))
    encoder = {role: int4 for role in LINEAR_ROLES if role.startswith("encoder")}
    config = quantization_config(encoder)
    (group,) = config["config_groups"].values()
    assert len(group["targets"]) == len(encoder)
    assert len(config["ignore"]) == 6 + len(LINEAR_ROLES) - len(encoder)
    mixed = quantization_config(dict.fromkeys(LINEAR_ROLES, fp8) | encoder)
    assert mixed["format"] == "mixed-precision"
    assert [each["format"] for each in mixed["config_groups"].values()] == [
        "pack-quantized",
        "float-quantized",
    ]
    assert quantization_config(dict.fromkeys(LINEAR_ROLES, fp8))["config_groups"]["group_0"]["targets"] == [
        "Linear"
    ]


@pytest.fixture(scope="module")
def theirs():
    """transformers' own loader, with compressed-tensors."""
    pytest.importorskip("compressed_tensors", reason="install the extra refs to load it as other engines do")
    from transformers import WhisperForConditionalGeneration
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()

    def from_pretrained(directory, **options):
        loaded: Any = WhisperForConditionalGeneration.from_pretrained(
            directory, output_loading_info=True, **options
        )
        model, report = loaded
        assert not any(report.values()), report
        return model.eval()

    return from_pretrained


def in_their_layout(whisper, tmp_path, which, activations=None, **options) -> Path:
    contents = assemble(
        whisper, quantize_weights(which), activations or {}, layout="compressed-tensors", **options
    )
    write(tmp_path / "out", whisper, contents, "", overwrite=True)
    return tmp_path / "out"


@pytest.mark.parametrize(
    "granularity",
    ["group", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tensor", "channel"))],
)
@pytest.mark.parametrize("format", some_slow(EXACT, fast=("int3", "int8", "fp8_e4m3")))
def test_transformers_gives_the_exact_logits_of_integers_and_fp8(nano, theirs, tmp_path, format, granularity):
    which = plan(nano, format, granularity)
    reloaded = theirs(in_their_layout(nano, tmp_path, which))
    assert reloaded.dtype == torch.float32
    assert torch.equal(logits(reloaded), expected_logits(nano, which))


@pytest.mark.parametrize(
    "format", some_slow(("nvfp4", "nvfp4_46", "mxfp4", "mxfp8_e4m3"), fast=("nvfp4", "mxfp4"))
)
def test_transformers_gives_the_logits_of_block_formats_in_bfloat16(nano, theirs, tmp_path, format):
    from transformers import CompressedTensorsConfig

    which = plan(nano, format)
    out = in_their_layout(nano, tmp_path, which)
    expected = expected_logits(nano, which)
    reloaded = theirs(out)
    assert reloaded.dtype == torch.bfloat16
    assert (logits(reloaded) - expected).abs().max() < BFLOAT16_NOISE
    dense = theirs(out, dtype=torch.float32, quantization_config=CompressedTensorsConfig(dequantize=True))
    if format.startswith("mx"):  # a code times a power of two is a bfloat16 number
        assert torch.equal(logits(dense), expected)
    else:
        assert (logits(dense) - expected).abs().max() < BFLOAT16_NOISE


@pytest.mark.parametrize(
    ("weights", "activations", "most"),
    [
        pytest.param(("int8", "channel"), ("int8", "token"), 0.5, marks=pytest.mark.slow),
        (("int4", "group", 32), ("int8", "token"), 0.5),
        pytest.param(("fp8_e4m3", "channel"), ("fp8_e4m3", "token"), 1.0, marks=pytest.mark.slow),
        pytest.param(("mxfp8_e4m3", "group"), ("mxfp8_e4m3", "group"), 1.0, marks=pytest.mark.slow),
    ],
)
def test_transformers_rounds_activations_as_the_configuration_says(
    nano, theirs, tmp_path, weights, activations, most
):
    which = plan(nano, *weights)
    by_role = {layer.role: activation(*activations) for layer, _ in which}
    plain = logits(theirs(in_their_layout(nano, tmp_path, which)))
    rounded = logits(theirs(in_their_layout(nano, tmp_path, which, by_role)))
    assert 0 < (rounded - plain).abs().max() < most


@pytest.mark.parametrize(
    ("weights", "activations"),
    [
        (("int8", "channel"), ("int8", "tensor")),
        pytest.param(("fp8_e4m3", "tensor"), ("fp8_e4m3", "tensor"), marks=pytest.mark.slow),
        pytest.param(("nvfp4", "group"), ("nvfp4", "group"), marks=pytest.mark.slow),
    ],
)
def test_transformers_takes_calibrated_ranges_along(nano, theirs, tmp_path, weights, activations):
    which = plan(nano, *weights)
    static = activation(*activations)
    by_role = {layer.role: static for layer, _ in which}
    wide, narrow = (
        logits(
            theirs(
                in_their_layout(
                    nano, tmp_path, which, by_role, ranges={layer.name: (-amax, amax) for layer, _ in which}
                )
            )
        )
        for amax in (20.0, 0.05)
    )
    plain = logits(theirs(in_their_layout(nano, tmp_path, which)))
    assert 0 < (wide - plain).abs().max() < (narrow - plain).abs().max() / 2


def test_transformers_loads_encoder_and_decoder_in_formats_of_their_own(nano, theirs, tmp_path):
    which = plan(nano, "fp8_e4m3", "channel", roles=("encoder",)) + plan(nano, "int4", roles=("decoder.mlp",))
    reloaded = theirs(in_their_layout(nano, tmp_path, which))
    assert torch.equal(logits(reloaded), expected_logits(nano, which))


@pytest.mark.slow
@pytest.mark.parametrize("format", ["int4", "int8", "fp8_e4m3", "nvfp4", "mxfp4"])
def test_transformers_transcribes_as_we_do(nano, commands, theirs, tmp_path, format):
    which = plan(nano, format, "channel" if format == "int8" else "group")
    by_role = {layer.role: activation("int8", "token") for layer, _ in which} if format == "int8" else {}
    reloaded = theirs(in_their_layout(nano, tmp_path, which, by_role))
    count = 64
    with quantized_weights(which):
        expected = texts(nano, commands, count)
    audio = [commands.read(index, SAMPLING_RATE) for index in range(count)]
    features = nano.feature_extractor(audio, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_features
    reloaded.hf_quantizer.compressor.decompress_model(reloaded)
    tokens = reloaded.generate(features.to(reloaded.dtype), do_sample=False, num_beams=1)
    found = [text.strip() for text in nano.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
    utterances = commands.utterances[:count]
    names, references = [each.id for each in utterances], [each.text for each in utterances]
    difference = score(names, references, found, "en").wer - score(names, references, expected, "en").wer
    assert abs(difference) <= 0.001


@pytest.mark.parametrize("bits", range(2, 9))
def test_their_unpacking_gives_our_codes(theirs, bits):
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    which = quantizer("int", "channel", integer_bits=bits, int_range="full")
    quantized = quantize(torch.randn(5, 77), *which)
    words = tensors(quantized, scheme(which, None, 77))["weight_packed"]
    assert torch.equal(unpack_from_int32(words, bits, torch.Size((5, 77))), quantized.codes)


def test_their_decompressor_gives_our_values(theirs):
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    for format, granularity in (("int4", "group"), ("fp8_e4m3", "channel"), ("mxfp4", "group")):
        which = quantizer(format, granularity, 32 if granularity == "group" else None)
        how = scheme(which, None, 64)
        config = QuantizationConfig.model_validate(quantization_config(dict.fromkeys(LINEAR_ROLES, how)))
        quantized = quantize(torch.randn(8, 64), *which)
        stored = {
            name: t.float() if t.dtype == torch.float16 else t for name, t in tensors(quantized, how).items()
        }
        compressor = BaseCompressor.get_value_from_registry(how.format)
        values = compressor.decompress(stored, config.config_groups["group_0"])["weight"]
        assert torch.equal(values.float(), dequantize(quantized))


# --- the command -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_writes_a_checkpoint_and_says_what_it_holds(here, tmp_path):
    ended = here(export, "format=int4", "group=32", "out=int4")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("int4  nano int4-g32  layout=compressed-tensors")
    card = (tmp_path / "int4" / "README.md").read_text()
    assert "Not measured. `python -m wq.main format=int4 group=32` measures it." in card
    assert not (tmp_path / "mlflow.db").exists()
    ended = here(export, "format=int4", "group=32", "out=int4")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "error: out=int4 exists; give another directory, or overwrite=true\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("format=int4",), "out is missing; give out=DIR"),
        (("format=int4,int8", "out=out"), "these settings make 2 points, and wq export writes one"),
        (("out=out", "layout=gguf"), "layout=gguf is unknown; choose one of auto, compressed-tensors, wq"),
        (("out=out", "overwrite=perhaps"), "overwrite=perhaps is neither true nor false"),
    ],
)
def test_what_the_command_refuses(here, tmp_path, arguments, message):
    ended = here(export, *arguments)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert message in ended.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_card_has_the_word_error_rate_of_the_stored_run(wq, tmp_path):
    settings = ("format=nf4", "limit=4", "batch_size=4")
    assert wq(*settings).returncode == 0
    assert wq("export", *settings, "out=nf4", module="wq").returncode == 0
    card = (tmp_path / "nf4" / "README.md").read_text()
    assert "on 4 utterances of commands, split other; 95 % bootstrap interval [" in card
    # a checkpoint as any other: its weights are those of the point, so it transcribes alike
    ended = wq("model.path=nf4", "format=fp32", "limit=4", "batch_size=4")
    assert ended.returncode == 0, ended.stderr
    results = list(tmp_path.glob("outputs/**/result.json"))
    rows = [json.loads(path.read_text()) for path in results]
    errors = {(row["model"], row["point"]): row["wer"] for row in rows}
    assert errors["nf4", "fp32"] == errors["nano", "nf4-g64"]
    again = wq("export", "format=int4", "limit=4", f"result={results[0]}", "out=int4", module="wq")
    assert again.returncode == 1
    assert "give this point's result.json" in again.stderr
