"""Quantized keys and values: what is stored, what transformers makes of it, and who it depends on."""

import copy
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import REAL
from tests.whisper.decoding.test_decode import run
from tests.whisper.decoding.test_greedy import LIMIT, decoded, generated, random_features, random_model
from wq.numerics.fake_quant import dequantize, quantize
from wq.study.job.calibration import Statistics
from wq.study.job.job import prepare
from wq.study.spec.composition import compose
from wq.study.spec.config import DatasetConfig, FormatOptions, KVCacheConfig
from wq.study.spec.resolution import resolve_kv_cache
from wq.study.speech.datasets import load_speech
from wq.whisper.checkpoint.model import load
from wq.whisper.decoding.decode import SAMPLING_RATE
from wq.whisper.decoding.features import log_mel
from wq.whisper.decoding.finite import NonFiniteRow
from wq.whisper.decoding.kv_cache import (
    MODULES,
    KeysValues,
    KVQuantizer,
    RoundedLayer,
    layer_name,
    rounded_cache,
)
from wq.whisper.methods.sequence import treated

ROWS, HEADS, POSITIONS, SIZE = 3, 2, 75, 24
RANGE = 2.5

SCHEMES = {
    "int8": {"format": "int8"},
    "int4": {"format": "int4"},
    "int4 in groups": {"format": "int4", "keys": "group", "values": "group", "group": 5},
    "int4 asymmetric": {"format": "int4", "options": FormatOptions(int_range="asymmetric")},
    "fp8_e4m3": {"format": "fp8_e4m3"},
    "bf16": {"format": "bf16"},
    "mxfp4": {"format": "mxfp4", "keys": "group", "values": "group"},
    "nvfp4": {"format": "nvfp4", "keys": "group", "values": "group"},
    "int4 keys by channel": {"format": "int4", "keys": "channel"},
    "int2 keys by channel": {"format": "int2", "keys": "channel", "block": 5},
    "nvfp4 keys by channel": {"format": "nvfp4", "keys": "channel", "values": "group", "block": 7},
    "int3 self": {"format": "int3", "attention": ["self"]},
    "int3 cross": {"format": "int3", "attention": ["cross"]},
    "int3 keys by channel cross": {"format": "int3", "keys": "channel", "attention": ["cross"]},
}


def quantizer(**settings) -> KVQuantizer:
    """Of these fields of the configuration, with a range for every layer that a test's models have."""
    scheme = resolve_kv_cache(KVCacheConfig(**settings))
    assert scheme
    names = (
        layer_name(index, attention, projection)
        for index in range(4)
        for attention in MODULES
        for projection in ("k_proj", "v_proj")
    )
    return KVQuantizer(scheme, dict.fromkeys(names, RANGE))


@pytest.fixture(params=SCHEMES.values(), ids=list(SCHEMES))
def any_quantizer(request) -> KVQuantizer:
    return quantizer(**request.param)


# transformers' own attention and cache as the witness. In float64 its products and ours differ by too little
# to move a value to the other side of a rounding.


def test_tokens_are_those_of_generate_on_a_rounded_cache(any_quantizer):
    model, features = random_model(False).double(), random_features().double()
    rows = generated(model, features, LIMIT, past_key_values=rounded_cache(model, any_quantizer))
    assert decoded(model, features, kv_cache=any_quantizer) == rows
    assert rows != generated(model, features, LIMIT)  # or nothing was rounded


@pytest.mark.parametrize("name", ["int8", "nvfp4", "int2 keys by channel"])
def test_tokens_are_those_of_generate_with_trained_weights(nano, commands, name):
    model = copy.deepcopy(nano.model).double()
    audios = [commands.read(index, SAMPLING_RATE) for index in range(4)]
    features = log_mel(nano.feature_extractor, audios).double()
    chosen = quantizer(**SCHEMES[name])
    rows = generated(model, features, 32, past_key_values=rounded_cache(model, chosen))
    assert decoded(model, features, limit=32, kv_cache=chosen) == rows


# What is stored, against the definitions written out


def vectors(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Every vector of x [..., K] rounded to symmetric integers under a float16 scale."""
    most = 2 ** (bits - 1) - 1
    scale = (x.abs().amax(-1, keepdim=True) / most).half().float()
    return (x / scale).round().clamp(-most, most) * scale


def channels(x: torch.Tensor, bits: int, block: int, whole: bool) -> torch.Tensor:
    """Every channel of x [..., positions, K] rounded block by block; a shorter last one where `whole`."""
    parts = [
        vectors(part.mT, bits).mT if whole or part.shape[-2] == block else part
        for part in x.split(block, dim=-2)
    ]
    return torch.cat(parts, dim=-2)


Pair = tuple[torch.Tensor, torch.Tensor]  # keys and values


def random_keys_values() -> Pair:
    """As the linear layers leave them: the heads of a position side by side."""
    x = torch.randn(2, ROWS, POSITIONS, HEADS, SIZE, generator=torch.Generator().manual_seed(0))
    return x[0].transpose(1, 2), x[1].transpose(1, 2)


def part(x: Pair, rows: Any = slice(None), positions: slice = slice(None)) -> Pair:
    return x[0][rows][:, :, positions], x[1][rows][:, :, positions]


def memory(chosen: KVQuantizer, attention: str, rows: int = ROWS) -> KeysValues:
    keys, values = (torch.full((rows, HEADS, POSITIONS, SIZE), torch.nan) for _ in range(2))
    return KeysValues(keys, values, chosen.roundings(0, attention))


def stored(chosen: KVQuantizer, attention: str, *lengths: int) -> Pair:
    """What is read after so many positions were stored at a time, and one at a time after these."""
    cache, first = memory(chosen, attention), 0
    for length in (*lengths, *[1] * (POSITIONS - sum(lengths))):
        new = part(random_keys_values(), positions=slice(first, first + length))
        cache.store(*new, first_position=first)
        first += length
    return cache.read(first)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("attention", MODULES)
def test_every_position_of_a_head_has_a_scale(bits, attention):
    found = stored(quantizer(format=f"int{bits}"), attention, POSITIONS)
    for cached, x in zip(found, random_keys_values(), strict=True):
        assert torch.equal(cached, vectors(x, bits))


def test_every_group_of_a_heads_channels_has_a_scale():
    found = stored(quantizer(**SCHEMES["int4 in groups"]), "self", POSITIONS)
    for cached, x in zip(found, random_keys_values(), strict=True):
        parts = [vectors(part, 4) for part in x.split(5, dim=-1)]  # 24 channels: the last group has 4
        assert torch.equal(cached, torch.cat(parts, dim=-1))


@pytest.mark.parametrize(("block", "expected"), [(None, 32), (5, 5), (POSITIONS, POSITIONS), (100, 100)])
def test_keys_of_text_are_rounded_by_channel_when_their_block_is_full(block, expected):
    keys, values = stored(quantizer(format="int3", keys="channel", block=block), "self", 4)
    x = random_keys_values()
    assert torch.equal(keys, channels(x[0], 3, expected, whole=False))
    assert torch.equal(values, vectors(x[1], 3))


@pytest.mark.parametrize(("block", "expected"), [(None, POSITIONS), (20, 20)])
def test_keys_of_audio_are_rounded_by_channel_to_the_last(block, expected):
    keys, _ = stored(quantizer(format="int3", keys="channel", block=block), "cross", POSITIONS)
    assert torch.equal(keys, channels(random_keys_values()[0], 3, expected, whole=True))


def test_stored_at_once_or_one_by_one_is_the_same(any_quantizer):
    """Every scale depends on nothing that comes later."""
    at_once = stored(any_quantizer, "self", POSITIONS)
    for lengths in ((), (4,), (3, 30, 2)):
        for one, other in zip(stored(any_quantizer, "self", *lengths), at_once, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("attention", MODULES)
def test_rows_do_not_depend_on_each_other(any_quantizer, attention):
    x = random_keys_values()
    together, alone = memory(any_quantizer, attention), memory(any_quantizer, attention)
    together.store(*x)
    for row in (2, 0, 1):
        alone.store(*part(x, [row]), first_row=row)
    for one, other in zip(together.read(), alone.read(), strict=True):
        assert torch.equal(one, other)


FIRST, REST = slice(None, 40), slice(40, None)  # no multiple of any block


def test_rows_that_move_take_their_unfinished_blocks_along(any_quantizer):
    cache, x, order = memory(any_quantizer, "self"), random_keys_values(), [2, 1]
    cache.store(*part(x, positions=FIRST))
    cache.move([2], [0], 2)  # row 0 has ended
    cache.store(*part(x, order, REST), first_position=FIRST.stop)
    alone = memory(any_quantizer, "self", rows=2)
    alone.store(*part(x, order))
    for one, other in zip(cache.read(), alone.read(), strict=True):
        assert torch.equal(one, other)


def test_beams_take_their_unfinished_blocks_along(any_quantizer):
    x, order = random_keys_values(), torch.LongTensor([2, 0, 0])
    reordered, alone = (RoundedLayer(any_quantizer.roundings(0, "self")) for _ in range(2))
    reordered.update(*part(x, positions=FIRST))
    reordered.reorder_cache(order)
    found = reordered.update(*part(x, order, REST))
    for one, other in zip(found, alone.update(*part(x, order)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("attention", MODULES)
def test_only_the_attention_that_is_asked_for_is_rounded(attention):
    other = next(name for name in MODULES if name != attention)
    chosen = quantizer(format="int2", attention=[attention])
    for asked, is_rounded in ((attention, True), (other, False)):
        for cached, x in zip(stored(chosen, asked, POSITIONS), random_keys_values(), strict=True):
            assert torch.equal(cached, x) != is_rounded


def test_what_is_given_stays_as_it_was(any_quantizer):
    x = random_keys_values()
    copies = x[0].clone(), x[1].clone()
    memory(any_quantizer, "cross").store(*x)
    assert all(torch.equal(tensor, kept) for tensor, kept in zip(x, copies, strict=True))


@pytest.mark.parametrize("attention", MODULES)
def test_what_is_stored_is_what_codes_and_scales_hold(any_quantizer, attention):
    """Packing it, as `wq memory` counts it, loses nothing."""
    for x, rounding in zip(
        stored(any_quantizer, attention, POSITIONS), any_quantizer.roundings(0, attention), strict=True
    ):
        if rounding.quantizer is None or rounding.quantizer.format.is_asymmetric:
            continue  # an asymmetric range shrinks where both of its ends are rounded inwards
        if rounding.is_by_channel:
            block = rounding.block or POSITIONS
            full = x[:, :, : POSITIONS // block * block if rounding.grows else POSITIONS].mT
            codes = quantize(full, rounding.quantizer.format, "group", block, amax=rounding.amax)
            assert torch.equal(dequantize(codes), full)
        else:
            assert torch.equal(dequantize(quantize(x, *rounding.quantizer, amax=rounding.amax)), x)


# Errors


def test_a_tensor_scale_without_a_range_is_refused():
    scheme = quantizer(**SCHEMES["nvfp4"]).scheme
    with pytest.raises(ValueError, match=r"range of model\.decoder\.layers\.1\.self_attn\.k_proj's output"):
        KVQuantizer(scheme).roundings(1, "self")


@pytest.mark.parametrize(("index", "projection"), [(0, "k_proj"), (1, "v_proj")])
@pytest.mark.parametrize(("value", "name"), [(torch.nan, "NaN"), (-torch.inf, "Inf")])
def test_nan_names_the_layer_and_the_row(index, projection, value, name):
    x = random_keys_values()
    x[index][1, 0, 3, 5] = value
    message = rf"{name} in the output of layer model\.decoder\.layers\.0\.encoder_attn\.{projection}"
    for settings in ({"format": "int8"}, {"format": "int8", "keys": "channel"}):
        with pytest.raises(NonFiniteRow, match=message) as caught:
            memory(quantizer(**settings), "cross").store(*x)
        assert caught.value.row == 1


# Whole transcripts


def check_batches(whisper, speech, count, chosen, **options):
    single = run(whisper, speech, list(range(count)), 1, kv_cache=chosen, **options)
    shuffled = np.random.default_rng(0).permutation(count).tolist()
    for batch_size, order in ((7, list(range(count))), (64, shuffled)):
        assert run(whisper, speech, order, batch_size, kv_cache=chosen, **options) == single


@pytest.mark.parametrize("name", ["int8", "int4", "int4 keys by channel"])
def test_batch_and_order_do_not_matter(nano, commands, name):
    check_batches(nano, commands, 9, quantizer(**SCHEMES[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int8", "int4", "int4 keys by channel", "mxfp4"])
@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/real with its checkpoint and speech is not there")
def test_batch_and_order_do_not_matter_on_real_speech(name):
    speech = load_speech(DatasetConfig(source="manifest", path=str(REAL / "speech"), split="test"), limit=100)
    check_batches(load(REAL / "checkpoint"), speech, 100, quantizer(**SCHEMES[name]), max_new_tokens=40)


def test_a_spec_calibrates_the_ranges_that_it_needs(nano, commands):
    """What the decoder's k_proj and v_proj put out on calibration speech."""
    config = compose(["format=fp32", "kv_cache=nvfp4", "limit=2", "calibration.limit=2"])[0]
    job = prepare(config, [], looks_only=True)
    with treated(nano, job.spec.treatment, Statistics(nano, job.spec, job.calibration)) as state:
        assert state.kv_cache
        for index, attention in product(range(nano.model.config.decoder_layers), MODULES):
            for rounding in state.kv_cache.roundings(index, attention):
                assert rounding.amax == pytest.approx(largest_output(nano, job.calibration, rounding.layer))


def largest_output(whisper, speech, layer: str) -> float:
    largest = []
    handle = whisper.model.get_submodule(layer).register_forward_hook(
        lambda module, inputs, output: largest.append(output.abs().max().item())
    )
    run(whisper, speech, list(range(len(speech.utterances))), 1)
    handle.remove()
    return max(largest)
