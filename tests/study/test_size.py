"""Sizes against known answers: public Whisper geometries, and the arithmetic of each scheme."""

import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from tests.conftest import plan
from wq.study.size import model_size
from wq.whisper.layers import select, walk

# encoder layers, decoder layers, width, heads, mel bins, vocabulary (OpenAI's config.json files)
GEOMETRIES = {
    "tiny": (4, 4, 384, 6, 80, 51865),
    "base": (6, 6, 512, 8, 80, 51865),
    "small": (12, 12, 768, 12, 80, 51865),
    "medium": (24, 24, 1024, 16, 80, 51865),
    "large_v3": (32, 32, 1280, 20, 128, 51866),
    "large_v3_turbo": (32, 4, 1280, 20, 128, 51866),
}

# Megabytes with the layer linears in a format and the rest at fp16, and millions of parameters: counted on
# the meta device by others
KNOWN = {
    "tiny": (37.8, {"fp16": 76, "int8": 59, "int4": 51, "nvfp4": 52, "mxfp4": 51}),
    "base": (72.6, {"fp16": 145, "int8": 101, "int4": 80, "nvfp4": 82, "mxfp4": 81}),
    "small": (241.7, {"fp16": 483, "int8": 285, "int4": 189, "nvfp4": 199, "mxfp4": 192}),
    "medium": (763.9, {"fp16": 1528, "int8": 823, "int4": 482, "nvfp4": 515, "mxfp4": 493}),
    "large_v3": (1543.5, {"fp16": 3087, "int8": 1619, "int4": 908, "nvfp4": 977, "mxfp4": 931}),
    "large_v3_turbo": (808.9, {"fp16": 1618, "int8": 884, "int4": 528, "nvfp4": 563, "mxfp4": 540}),
}


def build(name: str) -> WhisperForConditionalGeneration:
    encoder, decoder, width, heads, mels, vocabulary = GEOMETRIES[name]
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(
            WhisperConfig(
                vocab_size=vocabulary,
                num_mel_bins=mels,
                d_model=width,
                encoder_layers=encoder,
                decoder_layers=decoder,
                encoder_attention_heads=heads,
                decoder_attention_heads=heads,
                encoder_ffn_dim=4 * width,
                decoder_ffn_dim=4 * width,
            )
        )
    model.tie_weights()
    return model


def size(model, format, granularity="group", group=None, roles=("encoder", "decoder")):
    layers = select(list(walk(model)), roles)
    return model_size(model, plan(layers, format, granularity, group), 32 if format == "fp32" else 16)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_public_geometries(name):
    model = build(name)
    millions, megabytes = KNOWN[name]
    parts = size(model, "fp16")
    assert (parts.linear_parameters + parts.other_parameters) / 1e6 == pytest.approx(millions, abs=0.05)
    for format, expected in megabytes.items():
        granularity = "tensor" if format == "int8" else "group"  # the published int8 leaves scales out
        assert size(model, format, granularity).model_bytes / 1e6 == pytest.approx(expected, abs=0.6), format


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
    assert size(build("tiny"), format, granularity, group).bits_per_weight == bits


def test_nvfp4_is_four_and_a_half_bits_and_one_scale_per_tensor():
    parts = size(build("tiny"), "nvfp4")
    assert parts.linear_bits == 4.5 * parts.linear_parameters + 32 * 64


def test_per_channel_and_per_tensor_count_their_scales():
    model = build("tiny")
    outputs = sum(layer.weight.shape[0] for layer in walk(model) if layer.is_linear)
    assert (
        size(model, "int8", "channel").linear_bits == 8 * size(model, "int8").linear_parameters + 16 * outputs
    )
    assert size(model, "int8", "tensor").linear_bits == 8 * size(model, "int8").linear_parameters + 16 * 64


def test_layers_that_are_not_quantized_stay_at_fp16():
    model = build("tiny")
    half = size(model, "int4", roles=["encoder"])
    encoder = sum(layer.weight.numel() for layer in walk(model) if layer.role.startswith("encoder."))
    assert half.linear_bits == 4.125 * encoder + 16 * (half.linear_parameters - encoder)


def test_the_embedding_counts_once_and_can_be_quantized():
    model = build("tiny")
    plain, smaller = size(model, "int8"), size(model, "int8", roles=["encoder", "decoder", "embedding"])
    assert plain.model_bytes - smaller.model_bytes == 51865 * 384 * (16 - 8) // 8 - 51865 * 3 * 2


def test_the_reference_is_all_fp32():
    parts = size(build("tiny"), "fp32")
    assert parts.model_bytes == 4 * (parts.linear_parameters + parts.other_parameters)
    assert parts.compression_ratio == 0.5
