"""What a model finds of a given text, against transformers' own forward pass and torch's own divergence."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.whisper.decoding.test_greedy import quantized, random_features, random_model
from wq.catalogue import load_format
from wq.numerics.effective import Quantizer
from wq.study.job.reading import packed, spellings, unpacked
from wq.whisper.decoding.decode import SAMPLING_RATE, transcribe
from wq.whisper.decoding.finite import NonFiniteRow
from wq.whisper.decoding.greedy import Batch, Place, decoding_rules, encode_rows, finish
from wq.whisper.decoding.kv_cache import KVQuantizer, rounded_cache
from wq.whisper.decoding.likelihood import (
    Account,
    Script,
    cross_entropy,
    divergence,
    likeliest,
    logits_along,
)
from wq.whisper.layers.schemes import KVCache

VOCABULARY = 200
LIMIT = 24
SCHEMES = {  # how keys and values are rounded
    "not at all": None,
    "by vector": KVCache(Quantizer(load_format("int8"), "token"), Quantizer(load_format("int4"), "token")),
    "by channel": KVCache(
        Quantizer(load_format("int4"), "channel"), Quantizer(load_format("int8"), "token"), block=4
    ),
}


def account(reference, count, text=(1,)):
    tokens = torch.zeros(len(reference), dtype=torch.int32)
    return Account(torch.tensor(text, dtype=torch.int32), tokens, *likeliest(reference, count))


def some_logits(seed, spread=3.0):
    return spread * torch.randn(5, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def test_a_divergence_of_all_tokens_is_torchs():
    p, q = some_logits(0), some_logits(1)
    expected = F.kl_div(
        q.double().log_softmax(-1), p.double().log_softmax(-1), log_target=True, reduction="none"
    )
    torch.testing.assert_close(divergence(account(p, VOCABULARY), q), expected.sum(-1), rtol=1e-6, atol=1e-9)


@given(st.integers(0, 10**6), st.floats(0.1, 20), st.sampled_from([1, 2, 16, 64, 199]))
def test_joined_tokens_never_add_to_a_divergence(seed, spread, count):
    p, q = some_logits(seed, spread), some_logits(seed + 1, spread)
    whole = divergence(account(p, VOCABULARY), q)
    joined = divergence(account(p, count), q)
    assert (joined <= whole + 1e-6).all()
    assert (joined >= 0).all()


@pytest.mark.parametrize("count", [1, 64, VOCABULARY, VOCABULARY + 1])
def test_a_distribution_does_not_diverge_from_itself(count):
    logits = some_logits(2)
    assert divergence(account(logits, count), logits).max() < 1e-6
    assert divergence(account(logits, count), logits + 7).max() < 1e-6  # of a softmax nothing changes


def test_what_is_kept_is_the_whole_distribution():
    ids, kept, rest = likeliest(some_logits(3))
    assert ids.shape == kept.shape == (5, 128)
    torch.testing.assert_close(kept.exp().sum(-1) + rest.exp(), torch.ones(5))
    assert (kept.diff(dim=-1) <= 0).all()


def heard(model, count, kv_cache=None):
    rules = decoding_rules(model, None, LIMIT)
    states = encode_rows(model, random_features(count))
    batch = Batch(model, states, count, len(rules.prompt) + LIMIT, kv_cache, keeps_audio=True)
    return batch, rules


@pytest.mark.parametrize("scheme", SCHEMES)
def test_logits_along_a_text_are_those_of_transformers(scheme):
    model, count = random_model(False), 3
    kv_cache = SCHEMES[scheme] and KVQuantizer(SCHEMES[scheme])
    texts = [[5, 9, 3, 8, 8, 2, 7, 4, 1], [4], [11, 12, 13]]
    with torch.inference_mode():
        batch, rules = heard(model, count, kv_cache)
        for row, text in enumerate(texts):
            (found,) = logits_along(model, batch, row, rules.prompt, [text])
            encoded = (torch.cat(list(encode_rows(model, random_features(count))))[row : row + 1],)
            cache = rounded_cache(model, kv_cache) if kv_cache else None
            parts, logits = [[*rules.prompt], *([token] for token in text[:-1])], []
            for part in parts:  # token by token, as transformers decodes
                output = model(
                    encoder_outputs=encoded,
                    decoder_input_ids=torch.tensor([part]),
                    past_key_values=cache,
                    use_cache=True,
                )
                cache = output.past_key_values
                logits.append(output.logits[0, -1])
            torch.testing.assert_close(found, torch.stack(logits), rtol=1e-4, atol=1e-5)
            entropy = F.cross_entropy(torch.stack(logits).double(), torch.tensor(text), reduction="sum")
            assert cross_entropy(text, found) == pytest.approx(entropy.item(), rel=1e-5)


def read(model, batch, row, rules):
    return list(logits_along(model, batch, row, rules.prompt, [[3, 1, 4], [7], [2, 7, 1, 8, 2, 8]]))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_texts_are_read_side_by_side_as_each_alone(scheme):
    model = random_model(False)
    kv_cache = SCHEMES[scheme] and KVQuantizer(SCHEMES[scheme])
    with torch.inference_mode():
        batch, rules = heard(model, 2, kv_cache)
        for text, found in zip(
            [[3, 1, 4], [7], [2, 7, 1, 8, 2, 8]], read(model, batch, 1, rules), strict=True
        ):
            (alone,) = logits_along(model, batch, 1, rules.prompt, [text])
            torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_are_read_as_they_were_heard_however_they_have_moved(scheme):
    """Rows end at different steps, and those that go on take their places: each is read by itself all the
    same, and its own transcript is what its likeliest tokens are."""
    model, count = random_model(False, suppress_tokens=None, begin_suppress_tokens=None), 9
    kv_cache = SCHEMES[scheme] and KVQuantizer(SCHEMES[scheme])
    with torch.inference_mode():
        batch, rules = heard(model, count, kv_cache)
        before = [read(model, batch, row, rules) for row in range(count)]
        free = finish(model, batch, rules, [[] for _ in range(count)], Place(), range(count))
        model.generation_config.eos_token_id = free[0][5]  # an end that rows meet here and there
        batch, rules = heard(model, count, kv_cache)
        rows = finish(model, batch, rules, [[] for _ in range(count)], Place(), range(count))
        assert len({len(row) for row in rows}) > 1
        for row in range(count):
            assert all(map(torch.equal, read(model, batch, row, rules), before[row]))
        readings = Script([[[2, 6], [2]]] * count).read(model, batch, range(count), rows, rules, Place())
    for row, reading in zip(rows, readings, strict=True):
        assert reading.account
        assert reading.account.written.tolist() == row
        assert reading.account.ids[:, 0].tolist() == row
        assert (reading.kl, reading.agreed, reading.kl_tokens) == (0.0, len(row), len(row))
        assert reading.account.said.tolist() in ([2, 6], [2])


def test_infinite_logits_are_told_with_their_row():
    model = random_model(False)
    batch, rules = heard(model, 3)
    batch.heard[0].values[1] = float("nan")
    place = Place()
    with pytest.raises(NonFiniteRow), torch.inference_mode():
        Script([[[2, 6]]] * 3).read(model, batch, range(3), [[4]] * 3, rules, place)
    assert place.rows == [1]


def test_readings_depend_on_nothing_but_the_utterance(nano, commands):
    """Batch, order and drafts: the same sums to the last bit."""
    count = 8

    def run(order, batch_size, script, **options):
        return transcribe(
            nano,
            lambda index: commands.read(index, SAMPLING_RATE),
            order,
            batch_size=batch_size,
            script=script,
            **options,
        ).transcripts

    said = [
        nano.tokenizer.encode(f" {each.text}", add_special_tokens=False)
        for each in commands.utterances[:count]
    ]
    reference = run(range(count), 3, Script([[each] for each in said]))
    accounts = [each.reading.account for each in reference if each.reading.account]
    assert len(accounts) == count
    drafts = [each.tokens for each in reference]
    assert all(each.reading.kl == 0 for each in reference)
    with quantized(nano.model, "int3", "group"):
        found = run(range(count), 8, Script([], accounts))
        again = run(list(range(count))[::-1], 3, Script([], accounts), drafts=drafts)
    assert [each.reading for each in found] == [each.reading for each in again]
    assert all(each.reading.kl > 0 for each in found)
    # the same model against its own account: nothing but the kept digits' rounding
    assert sum(each.reading.kl for each in run(range(count), 8, Script([], accounts))) < 1e-5


def test_accounts_are_read_back_as_they_were_written(tmp_path):
    accounts = [account(some_logits(1)[:count], 7, text) for count, text in ((5, (1, 2)), (3, ()), (1, (4,)))]
    (tmp_path / "file").write_bytes(packed(accounts))
    for one, other in zip(accounts, unpacked(tmp_path / "file"), strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("add one rice", "en", [" add one rice", " Add one rice", " Add one rice."]),
        ("ADD  ONE", "en", [" ADD ONE", " add one", " Add one", " Add one."]),
        ("Add one, please.", "en", [" Add one, please."]),
        ("今天", "Mandarin", ["今天", "今天."]),
        (" ", "en", []),
    ],
)
def test_spellings_are_those_a_text_leaves_open(text, language, expected):
    assert spellings(text, language) == expected
