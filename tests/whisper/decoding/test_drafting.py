"""Decoding with drafts against plain greedy decoding: the same tokens, whatever the drafts are."""

import random
from functools import cache
from itertools import takewhile

import pytest
import torch

from tests.conftest import REAL
from tests.whisper.decoding.test_greedy import (
    FEW_POINTS,
    MORE_POINTS,
    expected,
    quantized,
    random_features,
    random_model,
)
from wq.catalogue import load_format
from wq.numerics.effective import Quantizer
from wq.study.spec.config import DatasetConfig
from wq.study.speech.datasets import load_speech
from wq.whisper.calibration.ranges import Range
from wq.whisper.checkpoint.model import load
from wq.whisper.decoding import decode, drafting
from wq.whisper.decoding.decode import SAMPLING_RATE, transcribe
from wq.whisper.decoding.drafting import Step, advance, can_draft, decode_drafted
from wq.whisper.decoding.greedy import Batch, Place, decode_greedily, decoding_rules, encode_rows
from wq.whisper.decoding.kv_cache import KVQuantizer
from wq.whisper.decoding.onednn import fast_products
from wq.whisper.layers.layers import walk
from wq.whisper.layers.schemes import Activation, Assignment, KVCache
from wq.whisper.methods.activation import quantized_activations

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")

BATCH_SIZES = (1, 7, 64)
LIMIT = 24


@pytest.fixture(autouse=True)
def _all_drafts_are_tried(monkeypatch):
    monkeypatch.setattr(decode, "MIN_ACCEPTED", 0.0)


def run(whisper, speech, order, batch_size, **options):
    return transcribe(
        whisper, lambda index: speech.read(index, SAMPLING_RATE), order, batch_size=batch_size, **options
    )


def tokens_of(transcription):
    return [transcript.tokens for transcript in transcription.transcripts]


def check_drafts(whisper, speech, count, format, granularity, max_new_tokens=None):
    """The reference's transcripts as drafts of a point's."""
    orders = list(range(count)), random.Random(0).sample(range(count), count)
    drafts = tokens_of(run(whisper, speech, orders[0], 32, max_new_tokens=max_new_tokens))
    with quantized(whisper.model, format, granularity):
        plain = tokens_of(run(whisper, speech, orders[0], 32, max_new_tokens=max_new_tokens))
        for order, batch_size in [(orders[0], size) for size in BATCH_SIZES] + [(orders[1], 7)]:
            found = run(whisper, speech, order, batch_size, drafts=drafts, max_new_tokens=max_new_tokens)
            assert tokens_of(found) == plain
            accepted = [
                len(list(takewhile(lambda pair: pair[0] == pair[1], zip(*pair, strict=False))))
                for pair in zip(drafts, plain, strict=True)
            ]
            assert found.accepted_tokens == sum(accepted)
            assert found.drafted_tokens == sum(map(len, drafts))
            assert found.draft_acceptance == sum(accepted) / sum(map(len, drafts))
            assert found.rtfx is None
    return plain


@pytest.mark.parametrize(("format", "granularity"), FEW_POINTS)
def test_tokens_are_those_of_plain_decoding(nano, commands, format, granularity):
    check_drafts(nano, commands, 8, format, granularity)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["clean", "other"])
@pytest.mark.parametrize(("format", "granularity"), FEW_POINTS + MORE_POINTS)
def test_tokens_are_those_of_generate_on_whole_splits(nano, split, format, granularity):
    speech = load_speech(DatasetConfig(source="manifest", path="wq:commands", split=split))
    count = len(speech.utterances)
    plain = check_drafts(nano, speech, count, format, granularity)
    with quantized(nano.model, format, granularity):
        rows = expected(nano, speech, count, 32)
    assert sum(row.tokens != tokens for row, tokens in zip(rows, plain, strict=True)) <= 0.005 * count


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/real with its checkpoint and speech is not there")
@pytest.mark.parametrize(("format", "granularity"), FEW_POINTS)
def test_tokens_are_those_of_plain_decoding_on_real_speech(format, granularity):
    whisper = load(REAL / "checkpoint")
    speech = load_speech(DatasetConfig(source="manifest", path=str(REAL / "speech"), split="test"), limit=200)
    check_drafts(whisper, speech, len(speech.utterances), format, granularity, max_new_tokens=40)


@cache
def some_model():
    """With an end that its free text meets here and there, and a token that it would write suppressed."""
    model = random_model(False, suppress_tokens=[5], begin_suppress_tokens=[9])
    rules = decoding_rules(model, None, LIMIT)
    states = encode_rows(model, random_features(30))
    free = decode_greedily(model, states, 30, rules)
    ends = sorted({token for row in free for token in row[1:]})
    end = max(ends, key=lambda token: len({row.index(token) for row in free if token in row}))
    model.generation_config.eos_token_id = end
    return model, decoding_rules(model, None, LIMIT)


VOCABULARY = random_model(False).config.vocab_size


def any_tokens(rng, count):
    return [rng.randrange(VOCABULARY) for _ in range(count)]


# What is given for a row's tokens without end
DRAFTS = {
    "right": lambda row, rules, rng: row,
    "none": lambda row, rules, rng: [],
    "some none": lambda row, rules, rng: row if rng.random() < 0.5 else [],
    "wrong from the first": lambda row, rules, rng: [(row[0] + 1) % VOCABULARY, *row[1:]],
    "too long": lambda row, rules, rng: [*row, *any_tokens(rng, 3 * LIMIT)],
    "truncated": lambda row, rules, rng: row[: rng.randrange(len(row) + 1)],
    "one wrong": lambda row, rules, rng: [
        *row[: len(row) // 2],
        *any_tokens(rng, 1),
        *row[len(row) // 2 + 1 :],
    ],
    "one left out": lambda row, rules, rng: [*row[: len(row) // 2], *row[len(row) // 2 + 1 :]],
    "end inside": lambda row, rules, rng: [*row[:2], rules.end, *row[2:], rules.end],
    "suppressed": lambda row, rules, rng: [*row[:1], *rules.suppressed, *row[1:]],
    "suppressed first": lambda row, rules, rng: [*rules.suppressed_first, *row],
    "outside the vocabulary": lambda row, rules, rng: [
        *row[:2],
        rng.choice([-1, VOCABULARY, 10**9]),
        *row[2:],
    ],
    "one for all": lambda row, rules, rng: [7] * LIMIT,
    "random": lambda row, rules, rng: any_tokens(rng, rng.randrange(LIMIT + 5)),
}


@pytest.mark.parametrize("count", [1, 30])
@pytest.mark.parametrize("kind", DRAFTS)
def test_no_draft_changes_a_token(kind, count):
    model, rules = some_model()
    features = random_features(30)[:count]
    plain = decode_greedily(model, encode_rows(model, features), count, rules)
    if count > 1:
        assert len({len(row) for row in plain}) > 3
    rows = [row[:-1] if row[-1] == rules.end else row for row in plain]
    rng = random.Random(kind)
    drafts = [DRAFTS[kind](row, rules, rng) for row in rows]
    place = Place(batch=range(count))
    assert decode_drafted(model, encode_rows(model, features), drafts, rules, place=place) == plain


def test_a_limit_of_one_token(nano, commands):
    plain = run(nano, commands, range(4), 4, max_new_tokens=1)
    found = run(nano, commands, range(4), 4, max_new_tokens=1, drafts=[[1, 2, 3]] * 4)
    assert tokens_of(found) == tokens_of(plain)


ACTIVATIONS = [
    ("int8", "token"), ("int4", "token"), ("fp8_e4m3", "token"), ("int8", "tensor"), ("int4", "group"),
    ("mxfp4", "group"), ("mxfp8_e4m3", "group"), ("fp4_e2m1", "group"),
]  # fmt: skip


def activations(model, format, granularity):
    quantizer = Quantizer(load_format(format), granularity, 32 if granularity == "group" else None)
    scheme = Activation(quantizer, "max" if granularity == "tensor" else None)
    ranges = {layer.name: Range(-4.0, 4.0) for layer in walk(model)}
    return quantized_activations(model, [Assignment(scheme, ("encoder", "decoder"))], ranges)


def kv_quantizer(model, format, keys, values, attention=("self", "cross")):
    quantizers = [
        Quantizer(load_format(format), each, 8 if each == "group" else None) for each in (keys, values)
    ]
    scheme = KVCache(quantizers[0], quantizers[1], attention)
    names = {layer.name: 3.0 for layer in walk(model)}
    return KVQuantizer(scheme, names)


def check_bits(model, kv_cache=None):
    """The states after every token, of a pass and of steps."""
    features, lengths = random_features(9), [20, 17, 17, 9, 4, 4, 1, 0, 0]
    rules = decoding_rules(model, None, LIMIT)
    tokens = torch.randint(0, 190, (9, 20), generator=torch.Generator().manual_seed(2)).tolist()
    steps = [Step([list(rules.prompt)] * 9, 0)]
    for count in range(20):
        step = [[row[count]] for row, length in zip(tokens, lengths, strict=True) if length > count]
        steps.append(Step(step, len(rules.prompt) + count))
    with torch.inference_mode(), fast_products(model):
        batches = [Batch(model, encode_rows(model, features), 9, 32, kv_cache) for _ in range(2)]
        together = advance(batches[0], steps)
        for step, found in zip(steps, together, strict=True):
            batches[1].arrange(range(len(step.tokens)))
            assert torch.equal(batches[1].advance(torch.tensor(step.tokens), step.position), found)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_pass_has_the_bits_of_its_steps(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check_bits(random_model(False))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("format", "granularity"), ACTIVATIONS)
def test_a_pass_has_the_bits_of_its_steps_with_rounded_activations(format, granularity):
    model = random_model(False)
    with activations(model, format, granularity):
        check_bits(model)


@pytest.mark.parametrize(("format", "granularity"), [("int4", "token"), ("fp4_e2m1", "group")])
def test_tokens_are_those_of_plain_decoding_with_rounded_activations(nano, commands, format, granularity):
    drafts = tokens_of(run(nano, commands, range(8), 8))
    with activations(nano.model, format, granularity):
        plain = tokens_of(run(nano, commands, range(8), 8))
        for batch_size in (3, 8):
            found = run(nano, commands, range(8), batch_size, drafts=drafts)
            assert tokens_of(found) == plain
            assert found.draft_acceptance is not None


KV_CACHES = [
    *(("int8", "token", "token"), ("int4", "group", "group"), ("nvfp4", "token", "group")),
    *(("int2", "token", "token"), ("fp8_e4m3", "token", "token")),
]


@pytest.mark.parametrize(("format", "keys", "values"), KV_CACHES)
def test_a_pass_has_the_bits_of_its_steps_with_rounded_keys_and_values(format, keys, values):
    model, rules = some_model()
    kv_cache = kv_quantizer(model, format, keys, values)
    assert can_draft(model, kv_cache)
    check_bits(model, kv_cache)
    drafts = decode_greedily(model, encode_rows(model, random_features(30)), 30, rules)
    plain = decode_greedily(model, encode_rows(model, random_features(30)), 30, rules, kv_cache)
    assert decode_drafted(model, encode_rows(model, random_features(30)), drafts, rules, kv_cache) == plain
    assert plain != drafts


def test_scales_over_several_tokens_and_inexact_arithmetic_fall_back_to_plain_decoding(nano, commands):
    by_channel = kv_quantizer(nano.model, "int4", "channel", "token")
    assert not can_draft(nano.model, by_channel)
    assert can_draft(nano.model, kv_quantizer(nano.model, "int4", "channel", "token", ("cross",)))
    assert not can_draft(random_model(False).bfloat16())
    drafts = tokens_of(run(nano, commands, range(3), 3))
    found = run(nano, commands, range(3), 3, kv_cache=by_channel, drafts=drafts)
    assert found.drafted_utterances == 0
    assert found.draft_acceptance is not None
    assert found.rtfx is not None
    assert tokens_of(found) == tokens_of(run(nano, commands, range(3), 3, kv_cache=by_channel))


def test_drafts_that_do_not_hold_are_left_alone(nano, commands, monkeypatch):
    monkeypatch.setattr(decode, "MIN_ACCEPTED", 0.95)
    plain = run(nano, commands, range(6), 2)
    right = tokens_of(plain)
    wrong = [(tokens[0] + 1, *tokens[1:]) for tokens in right]
    for drafts, count in ((right, 6), (wrong, 2), (right[:2] + wrong[2:], 4)):
        found = run(nano, commands, range(6), 2, drafts=drafts)
        assert found.transcripts == plain.transcripts
        assert found.drafted_utterances == count
        assert found.drafted_tokens == sum(map(len, drafts))
    assert found.accepted_tokens == sum(map(len, right[:2]))


def test_nan_after_a_wrong_token_is_no_error_and_nan_after_a_right_one_is():
    model, rules = some_model.__wrapped__()
    features, place = random_features(6), Place(batch=range(6))
    plain = decode_greedily(model, encode_rows(model, features), 6, rules)
    drafts = [row[:-1] if row[-1] == rules.end else row for row in plain]
    unused = next(token for token in range(190) if all(token not in row for row in plain))
    embedding = model.model.decoder.embed_tokens
    hook = embedding.register_forward_hook(
        lambda module, inputs, output: output.masked_fill((inputs[0] == poison)[..., None], float("nan"))
    )
    poison = unused
    wrong = [[*draft[:1], unused, *draft] for draft in drafts]
    assert decode_drafted(model, encode_rows(model, features), wrong, rules, place=place) == plain
    poison = drafts[3][0]
    with pytest.raises(drafting.NonFiniteRow) as raised:
        decode_drafted(model, encode_rows(model, features), drafts, rules, place=place)
    assert drafts[place.utterances[raised.value.row]][0] == poison
    hook.remove()
