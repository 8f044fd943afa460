"""What linear layers read, rounded: to which values, how often, and alike in every batch."""

import importlib

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.conftest import REAL
from tests.whisper.decoding.test_decode import run
from wq.catalogue import load_format
from wq.numerics.effective import Quantizer
from wq.numerics.fake_quant import fake_quantize
from wq.study.spec.config import DatasetConfig, with_wide_scale
from wq.study.speech.datasets import load_speech
from wq.whisper.calibration.ranges import Range
from wq.whisper.checkpoint.model import load
from wq.whisper.decoding.decode import NonFiniteUtterance, Place
from wq.whisper.decoding.finite import NonFiniteRow
from wq.whisper.layers.layers import walk
from wq.whisper.layers.roles import LINEAR_ROLES
from wq.whisper.layers.schemes import Activation, Assignment, group_roles
from wq.whisper.methods import activation as module
from wq.whisper.methods.activation import quantized_activations, rounding

SCHEMES = {
    "int8_token": ("int8", "token"),
    "int4_token": ("int4", "token"),
    "fp8_token": ("fp8_e4m3", "token"),
    "mxfp4": ("mxfp4", "group"),
    "nvfp4": ("nvfp4", "group"),
    "int8_tensor": ("int8", "tensor"),
}


def scheme(name):
    format, granularity = SCHEMES[name]
    return Activation(Quantizer(with_wide_scale(load_format(format)), granularity))


def everywhere(activation, roles=("encoder", "decoder")):
    return [Assignment(activation, roles)]


def wide_ranges(model, amax=8.0):
    return {layer.name: Range(-amax, amax) for layer in walk(model)}


def inputs_of(model, layers):
    """What the products of these layers are given, by name, from now on; and a function that ends it."""
    seen, handles = {}, []
    for layer in layers:
        target = model.get_submodule(layer.name)
        hook = lambda _, args, name=layer.name: seen.setdefault(name, []).append(args[0])  # noqa: E731
        handles.append(target.register_forward_pre_hook(hook))
    return seen, handles


@pytest.mark.parametrize("name", SCHEMES)
def test_a_layer_reads_what_fake_quantize_gives(nano, name):
    activation = scheme(name)
    ranges = wide_ranges(nano.model)
    layer = nano.model.model.encoder.layers[1].fc2
    x = torch.randn(3, 5, layer.in_features, generator=torch.Generator().manual_seed(0))
    amax = 8.0 if activation.is_static else None
    expected = F.linear(fake_quantize(x, *activation.quantizer, amax=amax), layer.weight, layer.bias)
    plain = layer(x)
    with quantized_activations(nano.model, everywhere(activation, ("encoder.mlp.fc2",)), ranges):
        assert torch.equal(layer(x), expected)
        untouched = nano.model.model.encoder.layers[1].fc1
        y = x[..., : untouched.in_features]
        assert torch.equal(untouched(y), F.linear(y, untouched.weight, untouched.bias))
    assert torch.equal(layer(x), plain)
    assert not torch.equal(expected, plain)


def test_what_several_layers_read_is_rounded_once(nano, commands, monkeypatch):
    """q, k and v together; k and v of all cross-attentions together; every other layer's own."""
    model, rounded = nano.model, []

    def counted(activation, span=None):
        quantize = rounding(activation, span)
        return lambda x: rounded.append(x.shape) or quantize(x)

    monkeypatch.setattr(module, "rounding", counted)
    layers = [layer for layer in walk(model) if layer.is_linear]
    with quantized_activations(model, everywhere(scheme("int8_token")), {}):
        seen, handles = inputs_of(model, layers)
        run(nano, commands, [0], 1, max_new_tokens=1)
        for handle in handles:
            handle.remove()
    encoder, decoder = model.config.encoder_layers, model.config.decoder_layers
    assert len(rounded) == encoder * 4 + 1 + decoder * 6
    assert set(seen) == {layer.name for layer in layers}
    for block in (*model.model.encoder.layers, *model.model.decoder.layers):
        q, k, v = (getattr(block.self_attn, f"{name}_proj") for name in "qkv")
        names = [name for name, each in model.named_modules() if each in (q, k, v)]
        assert all(seen[name][0] is seen[names[0]][0] for name in names)
    cross = {id(seen[layer.name][0]) for layer in layers if layer.source == "model.encoder"}
    assert len(cross) == 1


def test_one_tensor_read_twice_is_rounded_anew_for_another_scheme(nano):
    """q, k by one scheme and v by another: each reads its own."""
    attention = nano.model.model.encoder.layers[0].self_attn
    x = torch.randn(2, 4, 256, generator=torch.Generator().manual_seed(0))
    eight, four = scheme("int8_token"), scheme("int4_token")
    q, k, v = (f"encoder.self_attn.{name}" for name in "qkv")
    with quantized_activations(nano.model, group_roles({q: eight, k: eight, v: four}), {}):
        outputs = [attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)]
    for linear, activation, found in zip(
        (attention.q_proj, attention.k_proj, attention.v_proj), (eight, eight, four), outputs, strict=True
    ):
        expected = F.linear(fake_quantize(x, *activation.quantizer), linear.weight, linear.bias)
        assert torch.equal(found, expected)


def test_transformers_own_forward_reads_the_same(nano, commands):
    """The hooks serve `generate` as well as our decoder."""
    from tests.whisper.decoding.test_greedy import expected

    with quantized_activations(nano.model, everywhere(scheme("int8_token")), {}):
        tokens = expected(nano, commands, 8, 12)
        found = run(nano, commands, list(range(8)), 8, max_new_tokens=12)
    assert sum(a.tokens == b.tokens for a, b in zip(tokens, found, strict=True)) >= 7


def test_an_error_inside_takes_the_rounding_away(nano):
    layer = nano.model.model.encoder.layers[0].fc1
    with (
        pytest.raises(RuntimeError),
        quantized_activations(nano.model, everywhere(scheme("int8_token")), {}),
    ):
        raise RuntimeError
    assert not layer._forward_pre_hooks


def test_a_missing_range_is_named(nano):
    with (
        pytest.raises(
            ValueError, match=r"layer model\.encoder\.layers\.0\.self_attn\.q_proj has no calibrated"
        ),
        quantized_activations(nano.model, everywhere(scheme("int8_tensor")), {}),
    ):
        pass


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["int8_token", "nvfp4", "int8_tensor"])
def test_what_is_not_finite_names_layer_and_row(nano, name, value):
    x = torch.zeros(3, 5, 256)
    x[2, 4, 7] = value
    kind = "NaN" if value != value else "Inf"
    with (
        quantized_activations(nano.model, everywhere(scheme(name)), wide_ranges(nano.model)),
        pytest.raises(
            NonFiniteRow, match=rf"{kind} in the input of layer model\.decoder\.layers\.1\.fc1"
        ) as caught,
    ):
        nano.model.model.decoder.layers[1].fc1(x)
    assert caught.value.row == 2


@pytest.mark.parametrize("activation", ["none", "int8_token"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_nan_names_the_utterance_however_rows_have_moved(nano, commands, activation, batch_size):
    """In the last utterance that is still decoded, so that rows have left the batch before."""
    order = [4, 2, 0, 3, 1]
    lengths = [len(row.tokens) for row in run(nano, commands, order, batch_size)]
    victim = int(np.argmax(lengths))
    position = max(n for i, n in enumerate(lengths) if i != victim) + 1 if batch_size > 1 else 3
    place = Place()

    def spoil(_, args, output):
        if place.position + output.shape[1] > position and victim in place.utterances and output.dim() == 3:
            output[place.utterances.index(victim)] = float("nan")

    target = nano.model.model.decoder.layers[0].self_attn_layer_norm
    handle = target.register_forward_hook(spoil)
    try:
        schemes = everywhere(scheme(activation)) if activation != "none" else []
        with quantized_activations(nano.model, schemes, {}), pytest.raises(NonFiniteUtterance) as caught:
            run(nano, commands, order, batch_size, place=place)
    finally:
        handle.remove()
    assert caught.value.index == victim
    where = (
        "the logits" if activation == "none" else "the input of layer model.decoder.layers.0.self_attn.q_proj"
    )
    assert str(caught.value) == f"NaN in {where}"


def check_batches(whisper, speech, count, name, **options):
    """Every transcript, to the token, whatever the batch and the order."""
    shuffled = np.random.default_rng(0).permutation(count).tolist()
    ranges = wide_ranges(whisper.model)
    with quantized_activations(whisper.model, everywhere(scheme(name)), ranges):
        single = run(whisper, speech, list(range(count)), 1, **options)
        differing = [
            sum(a.tokens != b.tokens for a, b in zip(single, run(whisper, speech, order, size, **options)))  # noqa: B905
            for size, order in ((7, list(range(count))), (64, shuffled))
        ]
    print(f"{name}: {differing} of {count} transcripts differ from batches of 1")
    return differing


@pytest.mark.parametrize("name", ["int4_token", "nvfp4"])
def test_batches_do_not_matter(nano, commands, name):
    """With 4 bits one last bit of a product can become another code, so this holds only where the products
    give each row the same bits whatever its batch."""
    assert check_batches(nano, commands, 16, name) == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("split", ["clean", "other"])
def test_batches_do_not_matter_on_whole_splits(nano, split, name):
    speech = load_speech(DatasetConfig(source="manifest", path="wq:commands", split=split))
    assert check_batches(nano, speech, len(speech.utterances), name) == [0, 0]


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/real with its checkpoint and speech is not there")
@pytest.mark.parametrize("name", SCHEMES)
def test_batches_do_not_matter_on_real_speech(name):
    whisper = load(REAL / "checkpoint")
    speech = load_speech(DatasetConfig(source="manifest", path=str(REAL / "speech"), split="test"), limit=80)
    assert check_batches(whisper, speech, 80, name, max_new_tokens=40) == [0, 0]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_of_a_step_has_the_same_bits_in_any_batch(nano, threads):
    """Linear layers and attention of the decoder, on which all of the above rests."""
    from wq.whisper.decoding.greedy import mix_few
    from wq.whisper.decoding.onednn import fast_products

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(0)
        linear = nano.model.model.decoder.layers[0].fc1
        x = torch.randn(65, 1, linear.in_features)
        queries, keys, values = (
            torch.randn(65, 4, 1, 64),
            torch.randn(65, 4, 33, 64),
            torch.randn(65, 4, 33, 64),
        )
        with torch.inference_mode(), fast_products(linear):
            whole = linear(x)
            mixed = mix_few(queries, keys, values, 0.125)
            for rows in (1, 2, 3, 4, 7, 31, 32, 64):
                assert torch.equal(linear(x[:rows]), whole[:rows]), rows
                part = mix_few(queries[:rows], keys[:rows], values[:rows], 0.125)
                assert torch.equal(part, mixed[:rows]), rows
    finally:
        torch.set_num_threads(before)


def test_per_token_int8_is_compressed_tensors(nano):
    reference = pytest.importorskip(
        "compressed_tensors.quantization", reason="the extra refs is not installed"
    )
    theirs = importlib.import_module("compressed_tensors.quantization.lifecycle.forward").fake_quantize
    calculate_qparams = importlib.import_module("compressed_tensors.quantization.utils").calculate_qparams

    layer = nano.model.model.encoder.layers[0].fc1
    x = torch.randn(2, 7, layer.in_features, generator=torch.Generator().manual_seed(0))
    flat = x.flatten(0, 1)
    args = reference.QuantizationArgs(num_bits=8, type="int", strategy="token", symmetric=True, dynamic=True)
    # Its scale is amax / 127.5 over [-128, 127]; that of ours is amax / 127 over [-127, 127]: the same codes
    # follow where both are given one range, as amax * 127.5 / 127
    amax = flat.abs().amax(1, keepdim=True) * (127.5 / 127)
    scale, zero_point = calculate_qparams(-amax, amax, args)
    expected = F.linear(theirs(flat, scale, zero_point, args), layer.weight, layer.bias).view(2, 7, -1)
    with quantized_activations(nano.model, everywhere(scheme("int8_token")), {}):
        torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("granularity", ["token", "tensor"])
def test_int8_is_torchaos(nano, granularity):
    primitives = pytest.importorskip(
        "torchao.quantization.quant_primitives", reason="the extra refs is not installed"
    )
    layer = nano.model.model.encoder.layers[0].fc1
    x = torch.randn(7, layer.in_features, generator=torch.Generator().manual_seed(0))
    block = (1, layer.in_features) if granularity == "token" else tuple(x.shape)
    scale, zero_point = primitives.choose_qparams_affine(
        x,
        primitives.MappingType.SYMMETRIC_NO_CLIPPING_ERR,
        block,
        torch.int8,
        -127,
        127,
        scale_dtype=torch.float32,
        zero_point_dtype=torch.int32,
    )
    rounded = primitives._fake_quantize_affine(x, block, scale, zero_point, torch.int8, -127, 127)
    expected = F.linear(rounded, layer.weight, layer.bias)
    ranges = {each.name: Range(-x.abs().max().item(), x.abs().max().item()) for each in walk(nano.model)}
    with quantized_activations(nano.model, everywhere(scheme(f"int8_{granularity}")), ranges):
        torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-6)


def test_every_linear_role_can_be_chosen(nano):
    for role in LINEAR_ROLES:
        with quantized_activations(nano.model, everywhere(scheme("int8_token"), (role,)), {}):
            hooked = {
                name for name, each in nano.model.named_modules() if getattr(each, "_forward_pre_hooks", None)
            }
        assert hooked == {layer.name for layer in walk(nano.model) if layer.role == role}
