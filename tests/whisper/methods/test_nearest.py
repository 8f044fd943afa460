"""Fake-quantized weights: inside the context, and exactly the original ones after it."""

import pytest
import torch

from tests.conftest import plan
from wq.catalogue import fake_quantize
from wq.whisper.layers.layers import select, walk
from wq.whisper.methods.nearest import quantized_weights


def snapshot(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(before, model):
    after = dict(model.named_parameters())
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


@pytest.mark.parametrize("format", ["int4", "nvfp4", "fp8_e4m3", "mxfp4"])
def test_weights_are_those_of_fake_quantize_and_come_back(nano, format):
    before = snapshot(nano.model)
    layers = select(list(walk(nano.model)), ["encoder.mlp", "decoder.cross_attn.k"])
    with quantized_weights(plan(layers, format, "group", 32)):
        assert changed(before, nano.model) == {f"{layer.name}.weight" for layer in layers}
        for layer in layers:
            expected = fake_quantize(before[f"{layer.name}.weight"], format, "group", 32)
            assert torch.equal(layer.weight, expected)
    assert not changed(before, nano.model)


def test_fp32_changes_nothing(nano):
    before = snapshot(nano.model)
    with quantized_weights(plan(list(walk(nano.model)), "fp32", "tensor", None)):
        assert not changed(before, nano.model)


def test_the_embedding_takes_the_output_head_along(nano):
    layers = select(list(walk(nano.model)), ["embedding"])
    original = nano.model.proj_out.weight.detach().clone()
    with quantized_weights(plan(layers, "int4", "channel", None)):
        assert torch.equal(nano.model.proj_out.weight, nano.model.model.decoder.embed_tokens.weight)
        assert not torch.equal(nano.model.proj_out.weight, original)
    assert torch.equal(nano.model.proj_out.weight, original)


def test_a_convolution_is_quantized_along_its_receptive_field(nano):
    layers = select(list(walk(nano.model)), ["conv.conv1"])
    kernel = nano.model.model.encoder.conv1.weight.detach().clone()
    with quantized_weights(plan(layers, "int8", "channel", None)):
        rounded = nano.model.model.encoder.conv1.weight
        scale = kernel.flatten(1).abs().amax(1) / 127
        assert ((rounded - kernel).flatten(1).abs().amax(1) <= 0.51 * scale).all()


def test_an_error_inside_leaves_the_original_weights(nano):
    before = snapshot(nano.model)
    with (
        pytest.raises(RuntimeError),
        quantized_weights(plan(list(walk(nano.model)), "int2", "tensor", None)),
    ):
        raise RuntimeError
    assert not changed(before, nano.model)


def test_a_weight_that_is_not_finite_is_named(nano):
    layers = select(list(walk(nano.model)), ["decoder.mlp"])
    victim = layers[1].weight
    original = victim.data.clone()
    before = snapshot(nano.model)
    try:
        victim.data[3, 5] = float("nan")
        with (
            pytest.raises(ValueError, match=rf"layer {layers[1].name}: NaN"),
            quantized_weights(plan(layers, "int8", "group", None)),
        ):
            pass
        victim.data.copy_(original)
        assert not changed(before, nano.model)
    finally:
        victim.data.copy_(original)
