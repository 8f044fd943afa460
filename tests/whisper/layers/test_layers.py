"""Which weights can be quantized, by role, on Whisper geometries without weights."""

import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from wq.catalogue import load_format
from wq.numerics.effective import Quantizer
from wq.whisper.layers.layers import assign, select, walk
from wq.whisper.layers.roles import ROLES, expand, matches, shorten
from wq.whisper.layers.schemes import Assignment


def build(layers: int, width: int, heads: int) -> WhisperForConditionalGeneration:
    """A geometry on the meta device, which holds no memory."""
    with torch.device("meta"):
        config = WhisperConfig(
            d_model=width,
            encoder_layers=layers,
            decoder_layers=layers,
            encoder_attention_heads=heads,
            decoder_attention_heads=heads,
            encoder_ffn_dim=4 * width,
            decoder_ffn_dim=4 * width,
        )
        model = WhisperForConditionalGeneration(config)
    model.tie_weights()
    return model


TINY = (4, 384, 6)
SMALL = (12, 768, 12)


@pytest.mark.parametrize("geometry", [TINY, SMALL])
def test_every_linear_layer_is_walked_once(geometry):
    """Against the module tree itself: all nn.Linear but the tied output head."""
    model = build(*geometry)
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)} - {
        "proj_out"
    }
    walked = [layer.name for layer in walk(model) if layer.is_linear]
    assert sorted(walked) == sorted(linear)
    assert len(walked) == geometry[0] * (6 + 10)
    for layer in walk(model):
        assert layer.weight is model.get_submodule(layer.name).weight


def test_the_embedding_is_the_output_head():
    model = build(*TINY)
    embedding = next(layer for layer in walk(model) if layer.role == "embedding")
    assert embedding.weight is model.proj_out.weight


def test_a_convolution_is_a_matrix_over_its_receptive_field():
    layers = {layer.role: layer for layer in walk(build(*TINY))}
    assert layers["conv.conv1"].matrix_shape == (384, 80 * 3)
    assert layers["conv.conv2"].matrix_shape == (384, 384 * 3)
    assert layers["encoder.mlp.fc1"].matrix_shape == (1536, 384)


@pytest.mark.parametrize(
    ("roles", "count"),
    [
        (["encoder", "decoder"], 4 * 16),
        (["encoder"], 4 * 6),
        (["decoder.cross_attn"], 4 * 4),
        (["decoder.cross_attn.k", "decoder.cross_attn.v"], 4 * 2),
        (["*.mlp"], 0),
        (["*.mlp.*"], 4 * 4),
        (["encoder", "encoder.mlp"], 4 * 6),
        (["embedding"], 1),
        (["conv"], 2),
        (["*.self_attn.q"], 4 * 2),
    ],
)
def test_select(roles, count):
    layers = list(walk(build(*TINY)))
    if count:
        assert len(select(layers, roles)) == count
    else:
        with pytest.raises(ValueError, match="matches no layer"):
            select(layers, roles)


def test_a_beginning_ends_at_a_dot():
    assert matches("encoder.mlp.fc1", "encoder.mlp")
    assert not matches("encoder.mlp.fc1", "encoder.ml")
    assert not matches("encoder.mlp.fc1", "fc1")


def test_one_role_without_a_layer_is_an_error_beside_others_that_have_some():
    with pytest.raises(ValueError, match=r"role decoder\.cros_attn matches no layer; choose among"):
        select(list(walk(build(*TINY))), ["encoder", "decoder.cros_attn"])


def test_the_roles_are_those_of_a_model():
    assert list(dict.fromkeys(layer.role for layer in walk(build(*TINY)))) == list(ROLES)


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["decoder", "encoder"], ("encoder", "decoder")),
        (["encoder.mlp.fc2", "encoder.mlp.fc1"], ("encoder.mlp",)),
        (["encoder.mlp", "encoder.self_attn"], ("encoder",)),
        (["encoder", "encoder.mlp"], ("encoder",)),
        (["*.mlp.*"], ("encoder.mlp", "decoder.mlp")),
        (["decoder.cross_attn.v", "decoder.cross_attn.k"], ("decoder.cross_attn.k", "decoder.cross_attn.v")),
        (["*"], ("conv", "encoder", "decoder", "embedding")),
    ],
)
def test_the_same_roles_have_one_name(patterns, names):
    assert shorten(expand(patterns)) == names
    assert expand(names) == expand(patterns)


def test_a_role_of_one_block_is_that_blocks_layer():
    layers = list(walk(build(*TINY)))
    assert expand(["encoder.mlp:2"]) == ("encoder.mlp.fc1:2", "encoder.mlp.fc2:2")
    assert [layer.name for layer in select(layers, ["encoder.mlp:2", "decoder.cross_attn.q:0"])] == [
        *("model.encoder.layers.2.fc1", "model.encoder.layers.2.fc2"),
        "model.decoder.layers.0.encoder_attn.q_proj",
    ]
    assert expand(["encoder", "encoder.mlp.fc1:2"]) == expand(["encoder"])
    assert shorten(expand(["encoder.mlp.fc1:2"])) == ("encoder.mlp.fc1:2",)
    every = [layer for layer in layers if layer.is_linear]
    assert {role for block in range(4) for role in expand([f"encoder:{block}", f"decoder:{block}"])} == {
        layer.block_role for layer in every
    }


@pytest.mark.parametrize(
    "pattern", ["embedding:0", "conv:1", "encoder:", "encoder:x", "encoder:-1", "nothing:1"]
)
def test_what_is_no_block_is_refused(pattern):
    with pytest.raises(ValueError, match="matches no layer"):
        expand([pattern])


def test_a_block_that_the_model_has_not_is_refused():
    quantizer = Quantizer(load_format("int4"), "channel", None)
    with pytest.raises(ValueError, match="fc1:4 matches no layer of this model"):
        assign(list(walk(build(*TINY))), [Assignment(quantizer, ("encoder.mlp.fc1:4",))])
