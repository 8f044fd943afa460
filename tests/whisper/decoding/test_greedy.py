"""Our greedy decoding against transformers' `generate`, token for token, good points and very bad ones."""

from contextlib import nullcontext, suppress
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import WhisperConfig, WhisperForConditionalGeneration

from tests.conftest import REAL, plan
from tests.whisper.decoding.test_decode import MOST_NEAR_TIES, count_near_ties, run
from wq.study.spec.config import DatasetConfig
from wq.study.speech.datasets import load_speech
from wq.whisper.checkpoint.model import load
from wq.whisper.decoding import onednn
from wq.whisper.decoding.decode import SAMPLING_RATE, token_limit
from wq.whisper.decoding.features import log_mel
from wq.whisper.decoding.greedy import Batch, decode_greedily, decoding_rules, encode_rows, has_ended
from wq.whisper.decoding.onednn import attention, fast_products, packed_weights, suits_attention
from wq.whisper.layers.layers import select, walk
from wq.whisper.methods.nearest import quantized_weights

BATCH_SIZES = (1, 7, 64)
FEW_POINTS = (
    ("fp32", "none"),
    ("int8", "channel"),
    ("nvfp4", "group"),
    ("int3", "tensor"),
    ("int2", "tensor"),
)
MORE_POINTS = (
    *(("fp8_e4m3", "channel"), ("fp4_e2m1", "group"), ("mxfp4", "group"), ("nf4", "group")),
    *(("int4", "group"), ("int4", "tensor"), ("int3", "group"), ("int2", "group")),
)


def quantized(model, format, granularity):
    if format == "fp32":
        return nullcontext()
    layers = select(list(walk(model)), ["encoder", "decoder"])
    return quantized_weights(plan(layers, format, granularity))


def generated(model, features, limit, **task):
    """What `generate` writes for features [rows, mels, frames]: the tokens of each row, without the end."""
    ids = model.generate(
        features,
        attention_mask=torch.ones(features.shape[0], features.shape[2], device=features.device),
        do_sample=False,
        num_beams=1,
        return_timestamps=False,
        max_new_tokens=limit,
        **task,
    )
    end = model.generation_config.eos_token_id
    return [row[: row.index(end)] if end in row else row for row in ids.tolist()]


def expected(whisper, speech, count, limit, batch=32):
    """Transcripts of `generate`, on features of transformers' extractor."""
    rows = []
    for first in range(0, count, batch):
        audios = [speech.read(index, SAMPLING_RATE) for index in range(first, min(first + batch, count))]
        features = whisper.feature_extractor(audios, sampling_rate=SAMPLING_RATE, return_tensors="pt")
        rows += generated(whisper.model, features.input_features, limit)
    return [SimpleNamespace(tokens=tuple(row)) for row in rows]


def check_tokens(whisper, speech, count, format, granularity, max_new_tokens=None):
    limit = token_limit(whisper, max_new_tokens)
    with quantized(whisper.model, format, granularity):
        tokens = expected(whisper, speech, count, limit)
        for batch_size in BATCH_SIZES:
            found = run(whisper, speech, list(range(count)), batch_size, max_new_tokens=limit)
            ties = count_near_ties(whisper, speech, tokens, found)
            capped = sum(transcript.capped for transcript in found)
            print(f"{format}-{granularity} batch {batch_size}: {ties} near-ties, {capped} of {count} capped")
            assert ties <= MOST_NEAR_TIES * count
            # Only a row as long as the limit can have been cut
            assert all(len(transcript.tokens) == limit for transcript in found if transcript.capped)


@pytest.mark.parametrize(("format", "granularity"), FEW_POINTS)
def test_tokens_are_those_of_generate(nano, commands, format, granularity):
    check_tokens(nano, commands, 10, format, granularity)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["clean", "other"])
@pytest.mark.parametrize(("format", "granularity"), FEW_POINTS + MORE_POINTS)
def test_tokens_are_those_of_generate_on_whole_splits(nano, split, format, granularity):
    speech = load_speech(DatasetConfig(source="manifest", path="wq:commands", split=split))
    check_tokens(nano, speech, len(speech.utterances), format, granularity)


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/real with its checkpoint and speech is not there")
@pytest.mark.parametrize(("format", "granularity"), FEW_POINTS)
def test_tokens_are_those_of_generate_on_real_speech(format, granularity):
    whisper = load(REAL / "checkpoint")
    speech = load_speech(DatasetConfig(source="manifest", path=str(REAL / "speech"), split="test"), limit=200)
    check_tokens(whisper, speech, len(speech.utterances), format, granularity, max_new_tokens=40)


# A multilingual vocabulary in miniature: text, then what Whisper adds to it, but for timestamps
END, START, ENGLISH, FRENCH, TRANSLATE, TRANSCRIBE, NO_TIMESTAMPS = range(190, 197)
LIMIT = 24


def random_model(multilingual, **settings):
    """Weights large enough that the text depends on audio and prompt."""
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=NO_TIMESTAMPS + 1,
        d_model=64,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=2,
        decoder_attention_heads=4,
        encoder_ffn_dim=96,
        decoder_ffn_dim=128,
        max_source_positions=60,
        max_target_positions=32,
        init_std=0.3,
        decoder_start_token_id=START,
        pad_token_id=END,
        bos_token_id=END,
        eos_token_id=END,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config).eval()
    settings |= {"is_multilingual": multilingual, "no_timestamps_token_id": NO_TIMESTAMPS}
    if multilingual:
        settings["lang_to_id"] = {"<|en|>": ENGLISH, "<|fr|>": FRENCH}
        settings["task_to_id"] = {"translate": TRANSLATE, "transcribe": TRANSCRIBE}
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    return model


def random_features(rows=9):
    return torch.randn(rows, 80, 120, generator=torch.Generator().manual_seed(1))


def decoded(model, features, language=None, limit=LIMIT, kv_cache=None):
    rules = decoding_rules(model, language, limit)
    rows = decode_greedily(model, encode_rows(model, features), len(features), rules, kv_cache)
    end = model.generation_config.eos_token_id
    return [row[:-1] if row[-1] == end else row for row in rows]


def task_of(language):
    return {"language": language, "task": "transcribe"} if language else {}


@cache
def free_rows(language):
    """What `generate` writes where nothing is suppressed."""
    return generated(random_model(bool(language)), random_features(), LIMIT, **task_of(language))


@pytest.mark.parametrize("suppress_tokens", [None, [], "likely"])
@pytest.mark.parametrize("begin_suppress_tokens", [None, [END], "likely"])
@pytest.mark.parametrize("language", [None, "en", "fr", "French"])
def test_prompt_and_suppressed_tokens_are_those_of_generate(language, suppress_tokens, begin_suppress_tokens):
    features = random_features()
    task = task_of(language)
    free = free_rows(language)
    # "likely": what the model would write if it were free to, so that suppressing it must show
    likely = {
        "suppress_tokens": sorted({row[1] for row in free}),
        "begin_suppress_tokens": sorted({row[0] for row in free}),
    }
    settings = {
        name: likely[name] if value == "likely" else value
        for name, value in (
            ("suppress_tokens", suppress_tokens),
            ("begin_suppress_tokens", begin_suppress_tokens),
        )
    }
    model = random_model(bool(language), **settings)
    rows = generated(model, features, LIMIT, **task)
    assert decoded(model, features, language) == rows
    assert (rows != free) == ("likely" in (suppress_tokens, begin_suppress_tokens))


def test_languages_give_different_texts():
    """Or the test above would prove nothing about the prompt."""
    model = random_model(True)
    texts = [decoded(model, random_features(), language) for language in ("en", "fr")]
    assert texts[0] != texts[1]
    assert decoding_rules(model, "fr", LIMIT).prompt == (START, FRENCH, TRANSCRIBE, NO_TIMESTAMPS)
    assert decoding_rules(random_model(False), None, LIMIT).prompt == (START, NO_TIMESTAMPS)


def test_rows_that_end_at_different_steps():
    """The end is a token that the free model writes here and there: rows leave the batch one by one."""
    features = random_features(40)
    free = generated(random_model(False), features, LIMIT)
    tokens = sorted({token for row in free for token in row[1:]})

    def lengths(end):
        return {row.index(end) if end in row else LIMIT for row in free}

    end = max(tokens, key=lambda token: len(lengths(token)))
    assert len(lengths(end)) >= 3
    model = random_model(False, eos_token_id=end, pad_token_id=end)
    rows = generated(model, features, LIMIT)
    assert decoded(model, features) == rows
    assert [decoded(model, row[None])[0] for row in features] == rows


def test_suppressed_tokens_beyond_the_vocabulary_are_left_out():
    model = random_model(False, suppress_tokens=[50_000, 7], begin_suppress_tokens=[50_256, END])
    rules = decoding_rules(model, None, LIMIT)
    assert (rules.suppressed, rules.suppressed_first) == ((7,), (END,))
    assert decoded(model, random_features()) == generated(model, random_features(), LIMIT)


@pytest.mark.parametrize("order", [1, -1])
def test_any_of_several_ends_ends_a_text(order):
    features = random_features()
    free = generated(random_model(False), features, LIMIT)
    other = free[0][len(free[0]) // 2]
    model = random_model(False, eos_token_id=[END, other][::order])
    rules = decoding_rules(model, None, LIMIT)
    rows = decode_greedily(model, encode_rows(model, features), len(features), rules)
    for row, whole in zip(rows, free, strict=True):
        assert row[: len(whole)] == whole[: whole.index(other) + 1 if other in whole else None]
        assert has_ended(row, rules) == (row[-1] in (END, other))
    generated_ids: Any = model.generate(features, max_new_tokens=LIMIT)
    width = generated_ids.shape[1]
    for row, theirs in zip(rows, generated_ids.tolist(), strict=True):
        assert theirs[: len(row)] == row[:width]  # they pad what has ended


def test_an_unknown_language_is_refused():
    with pytest.raises(ValueError, match="language=tlh is not known to this checkpoint; choose among en, fr"):
        decoding_rules(random_model(True), "tlh", LIMIT)


def test_keys_and_values_of_an_audio_do_not_depend_on_its_batch_mates():
    model, features = random_model(False), random_features(5)
    with torch.inference_mode():
        together = Batch(model, encode_rows(model, features), 5, 4)
        alone = Batch(model, encode_rows(model, features[3:4]), 1, 4)
    for several, single in zip(together.audio, alone.audio, strict=True):
        for one, other in zip(several.read(), single.read(), strict=True):
            torch.testing.assert_close(one[3:4], other, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("seconds", [[0.001], [1.3], [5.0], [4.99, 0.2], [2.0, 2.0, 1.0], [4.9876, 0.0125]])
def test_features_are_the_extractors(nano, seconds):
    noise = torch.Generator().manual_seed(0)
    audios = [torch.randn(round(16_000 * length), generator=noise).mul(0.1).numpy() for length in seconds]
    features = log_mel(nano.feature_extractor, audios)
    extracted = nano.feature_extractor(audios, sampling_rate=SAMPLING_RATE, return_tensors="pt")
    torch.testing.assert_close(features, extracted.input_features, rtol=0, atol=2e-6)
    alone = torch.cat([log_mel(nano.feature_extractor, [audio]) for audio in audios])
    torch.testing.assert_close(alone, features, rtol=0, atol=2e-6)


def test_silence_has_features(nano):
    silence = torch.zeros(1600).numpy()
    extracted = nano.feature_extractor(silence, sampling_rate=SAMPLING_RATE, return_tensors="pt")
    assert torch.equal(log_mel(nano.feature_extractor, [silence]), extracted.input_features)


@pytest.mark.parametrize("shape", [(40, 16), (3, 50, 16), (1, 1, 16)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_layers_are_the_same_through_onednn(shape, bias, dtype):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=dtype)
    layer = torch.nn.Linear(16, 24, bias=bias, dtype=dtype).requires_grad_(False)
    inputs = {"plain": x, "transposed": x.transpose(0, -2).contiguous().transpose(0, -2)}
    for name, value in inputs.items():
        with fast_products(layer):
            found = layer(value)
        torch.testing.assert_close(found, F.linear(value, layer.weight, layer.bias), msg=name)


@pytest.mark.parametrize(("inputs", "outputs"), [(40, 24), (256, 1133), (1536, 384)])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_weights_give_the_same_bits(inputs, outputs, bias):
    torch.manual_seed(0)
    layer = torch.nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)
    x = torch.randn(65, inputs)
    with fast_products(layer):
        whole = layer(x)
    with packed_weights(layer), fast_products(layer):
        assert "packed" in vars(layer.weight)
        for rows in (1, 2, 3, 7, 32, 65):
            assert torch.equal(layer(x[:rows]), whole[:rows]), rows


def test_fast_layers_keep_their_hooks_and_are_put_back():
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(8, 8).requires_grad_(False), torch.randn(3, 8)
    layer.register_forward_pre_hook(lambda module, inputs: 2 * inputs[0])
    expected = layer(x)
    with suppress(KeyError), fast_products(layer):
        with fast_products(layer):
            torch.testing.assert_close(layer(x), expected)
        assert "forward" in vars(layer)
        raise KeyError
    assert "forward" not in vars(layer)


def test_weights_are_packed_for_a_while_and_within_bounds(monkeypatch):
    layers = torch.nn.Sequential(*(torch.nn.Linear(8, 8, bias=False) for _ in range(3)))
    with suppress(KeyError), packed_weights(layers.requires_grad_(False)):
        assert all("packed" in vars(layer.weight) for layer in layers)
        raise KeyError
    assert not any("packed" in vars(layer.weight) for layer in layers)
    monkeypatch.setattr(onednn, "MOST_PACKED", 2 * 8 * 8 * 4)
    with packed_weights(layers):
        assert ["packed" in vars(layer.weight) for layer in layers] == [True, True, False]
    with packed_weights(layers.to(torch.bfloat16)):
        assert not any("packed" in vars(layer.weight) for layer in layers)


@pytest.mark.parametrize(("queries", "keys"), [(512, 512), (600, 40), (513, 700)])
def test_attention_is_the_same_through_onednn(queries, keys, monkeypatch):
    torch.manual_seed(0)
    query = torch.randn(2, queries, 3, 16).transpose(1, 2)
    key, value = torch.randn(2, 2, 3, keys, 16)
    mixed = F.scaled_dot_product_attention(query, key, value, scale=0.3)
    torch.testing.assert_close(attention(query, key, value, 0.3), mixed)
    monkeypatch.setattr(onednn, "encoder_library", lambda: "onednn")
    assert suits_attention(query)
    assert not suits_attention(query[:, :, :511])
    assert not suits_attention(query.double())
    monkeypatch.setattr(onednn, "encoder_library", lambda: "torch")
    assert not suits_attention(query)
