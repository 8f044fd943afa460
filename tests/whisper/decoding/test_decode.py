"""Transcripts against a plain loop over `generate`, and their independence of batch and order."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from tests.conftest import REAL, plan
from wq.study.spec.config import DatasetConfig
from wq.study.speech.datasets import load_speech
from wq.whisper.checkpoint.model import load
from wq.whisper.decoding.decode import SAMPLING_RATE, token_limit, transcribe
from wq.whisper.layers.layers import select, walk
from wq.whisper.methods.nearest import quantized_weights

NEAR_TIE = 1e-4  # difference of two logits that float32 sums in another order may reverse
MOST_NEAR_TIES = 0.005  # share of the utterances


def features_of(whisper, audio):
    return whisper.feature_extractor(audio, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_features


def plain_loop(whisper, speech, count, **options):
    """What anybody would write: one utterance after the other, features as the processor makes them."""
    rows = []
    for index in range(count):
        ids = whisper.model.generate(
            features_of(whisper, speech.read(index, SAMPLING_RATE)), do_sample=False, num_beams=1, **options
        )
        rows.append(whisper.tokenizer.decode(ids[0], skip_special_tokens=True).strip())
    return rows


def run(whisper, speech, order, batch_size, **options):
    return transcribe(
        whisper, lambda index: speech.read(index, SAMPLING_RATE), order, batch_size=batch_size, **options
    ).transcripts


def logit_gap(whisper, audio, prefix, one, other):
    """How far apart the logits of two tokens are after a prefix of text tokens."""
    settings = whisper.model.generation_config
    prompt = [settings.decoder_start_token_id, settings.no_timestamps_token_id]
    with torch.no_grad():
        logits = whisper.model(
            features_of(whisper, audio), decoder_input_ids=torch.tensor([[*prompt, *prefix]])
        ).logits[0, -1]
    return (logits[one] - logits[other]).abs().item()


def count_near_ties(whisper, speech, expected, found):
    """Utterances whose tokens differ; every one must be a near-tie at the first token that differs."""
    differing = [n for n, (a, b) in enumerate(zip(expected, found, strict=True)) if a.tokens != b.tokens]
    end = whisper.model.generation_config.eos_token_id
    for index in differing:
        one, other = ([*rows[index].tokens, end] for rows in (expected, found))
        step = next(n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
        gap = logit_gap(whisper, speech.read(index, SAMPLING_RATE), one[:step], one[step], other[step])
        assert gap < NEAR_TIE, f"utterance {index}, token {step}: logits differ by {gap}"
    return len(differing)


def check_batches(whisper, speech, count, format, **options):
    """Batches of 1, 7 and 64, in order and shuffled, against batches of 1."""
    shuffled = np.random.default_rng(0).permutation(count).tolist()
    layers = select(list(walk(whisper.model)), ["encoder", "decoder"])
    weights = quantized_weights(plan(layers, format)) if format != "fp32" else nullcontext()
    with weights:
        single = run(whisper, speech, list(range(count)), 1, **options)
        for batch_size, order in ((7, list(range(count))), (64, shuffled), (7, shuffled)):
            ties = count_near_ties(
                whisper, speech, single, run(whisper, speech, order, batch_size, **options)
            )
            print(f"{format} batch {batch_size}: {ties} near-ties in {count} utterances")
            assert ties <= MOST_NEAR_TIES * count, f"{ties} near-ties in {count} utterances"


def test_fp32_is_the_plain_loop(nano, commands):
    expected = plain_loop(nano, commands, 8, max_new_tokens=token_limit(nano, None))
    found = run(nano, commands, list(range(8)), batch_size=3)
    assert [transcript.text for transcript in found] == expected
    assert sum(bool(text) for text in expected) > 6


@pytest.mark.parametrize("format", ["fp32", "int4", "nvfp4"])
def test_batch_and_order_do_not_matter(nano, commands, format):
    check_batches(nano, commands, 10, format)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["clean", "other"])
@pytest.mark.parametrize("format", ["fp32", "int4", "nvfp4"])
def test_batch_and_order_do_not_matter_on_the_whole_split(nano, split, format):
    speech = load_speech(DatasetConfig(source="manifest", path="wq:commands", split=split))
    check_batches(nano, speech, len(speech.utterances), format)


@pytest.mark.slow
def test_fp32_is_the_plain_loop_on_the_whole_split(nano, commands):
    count = len(commands.utterances)
    expected = plain_loop(nano, commands, count, max_new_tokens=token_limit(nano, None))
    found = run(nano, commands, list(range(count)), batch_size=32)
    assert [transcript.text for transcript in found] == expected


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/real with its checkpoint and speech is not there")
@pytest.mark.parametrize("format", ["fp32", "nvfp4"])
def test_batch_and_order_do_not_matter_on_real_speech(format):
    whisper = load(REAL / "checkpoint")
    speech = load_speech(DatasetConfig(source="manifest", path=str(REAL / "speech"), split="test"), limit=200)
    check_batches(whisper, speech, len(speech.utterances), format, max_new_tokens=40)


def test_audio_beyond_the_window_is_cut_and_counted(nano, commands):
    short = commands.read(0, SAMPLING_RATE)
    window = round(nano.window_seconds * SAMPLING_RATE)
    long = np.concatenate([short, np.zeros(window, np.float32)])
    result = transcribe(nano, [short, long].__getitem__, [1, 0], batch_size=2)
    assert result.cut == 1
    assert result.transcripts[1].cut_seconds == pytest.approx(len(short) / SAMPLING_RATE)
    assert result.transcripts[1].text == result.transcripts[0].text
    assert result.audio_seconds == pytest.approx(len(short) / SAMPLING_RATE + nano.window_seconds)


def test_a_transcript_at_the_limit_is_counted(nano, commands):
    result = transcribe(
        nano, lambda i: commands.read(i, SAMPLING_RATE), [0, 1], batch_size=2, max_new_tokens=2
    )
    assert result.capped == 2
    assert all(len(transcript.tokens) == 2 for transcript in result.transcripts)


def test_a_transcript_that_ends_is_not_counted_as_cut(nano, commands):
    whole = run(nano, commands, [0], batch_size=1)[0]
    result = run(nano, commands, [0], batch_size=1, max_new_tokens=len(whole.tokens) + 1)[0]
    assert result == whole
    assert not whole.capped


def test_more_tokens_than_positions_are_refused(nano):
    assert token_limit(nano, None) == 32
    with pytest.raises(ValueError, match="max_new_tokens=63 does not fit"):
        token_limit(nano, 63)
