"""A shorter window: the same model on fewer frames, as transformers' own modules compute it."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import REAL
from wq.study.spec.config import DatasetConfig
from wq.study.speech.datasets import load_speech
from wq.whisper.checkpoint.model import load
from wq.whisper.checkpoint.window import windowed
from wq.whisper.decoding.decode import SAMPLING_RATE, token_limit, transcribe
from wq.whisper.decoding.features import log_mel
from wq.whisper.decoding.greedy import encode_rows


def heard(whisper, speech, order, batch_size, **options):
    return transcribe(
        whisper, lambda index: speech.read(index, SAMPLING_RATE), order, batch_size=batch_size, **options
    ).transcripts


def states(whisper, audios):
    with torch.inference_mode():
        return torch.cat(list(encode_rows(whisper.model, log_mel(whisper.feature_extractor, audios))))


@pytest.fixture(scope="module")
def audios(commands):
    return [commands.read(index, SAMPLING_RATE) for index in range(3)]


@pytest.mark.parametrize("seconds", [None, 5])
def test_a_window_of_its_own_length_changes_no_bit(nano, audios, seconds):
    with windowed(nano, seconds) as whisper:
        found = states(whisper, audios)
    assert torch.equal(found, states(nano, audios))


def test_fewer_frames_are_what_transformers_makes_of_them(nano, audios):
    with windowed(nano, 3) as whisper:
        assert whisper.window_seconds == 3
        given = whisper.feature_extractor(audios, sampling_rate=SAMPLING_RATE, return_tensors="pt")
        with torch.inference_mode():
            expected = whisper.model.model.encoder(given.input_features).last_hidden_state
        found = states(whisper, audios)
    assert found.shape == expected.shape == (3, 150, nano.model.config.d_model)
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, states(nano, audios)[:, :150], atol=1e-2)  # silence is heard too


def test_transcripts_are_those_of_generate(nano, audios):
    limit = token_limit(nano, None)
    with windowed(nano, 3) as whisper:
        given = whisper.feature_extractor(audios, sampling_rate=SAMPLING_RATE, return_tensors="pt")
        ids: Any = whisper.model.generate(
            given.input_features, do_sample=False, num_beams=1, max_new_tokens=limit
        )
        found = transcribe(whisper, audios.__getitem__, [0, 1, 2], batch_size=3).transcripts
    texts = whisper.tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert [each.text for each in found] == [text.strip() for text in texts]
    assert all(each.text for each in found)


def test_batch_and_order_do_not_matter(nano, commands):
    with windowed(nano, 4) as whisper:
        single = heard(whisper, commands, range(7), 1)
        assert heard(whisper, commands, range(7), 3) == single
        assert heard(whisper, commands, [6, 2, 4, 0, 1, 5, 3], 3) == single
        drafts = [each.tokens for each in single]
        assert heard(whisper, commands, range(7), 3, drafts=drafts) == single


def test_afterwards_the_model_is_as_it_was(nano, audios):
    before, positions = states(nano, audios), nano.model.model.encoder.embed_positions
    with pytest.raises(KeyError), windowed(nano, 2):
        raise KeyError
    assert nano.model.model.encoder.embed_positions is positions
    assert (nano.model.config.max_source_positions, nano.window_seconds) == (250, 5.0)
    assert torch.equal(states(nano, audios), before)


@pytest.mark.parametrize("seconds", [0, 6])
def test_a_window_that_the_model_has_not_is_refused(nano, seconds):
    message = f"window={seconds} is not within the model's own 5 s"
    with pytest.raises(ValueError, match=message), windowed(nano, seconds):
        pass


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/real with its checkpoint and speech is not there")
def test_batch_and_order_do_not_matter_on_real_weights():
    whisper = load(REAL / "tiny_en")
    path = str(REAL / "speech" / "fluent.jsonl")
    speech = load_speech(DatasetConfig(source="manifest", path=path), limit=16)
    shuffled = np.random.default_rng(0).permutation(16).tolist()
    with windowed(whisper, 8) as short:
        single = heard(short, speech, range(16), 1, max_new_tokens=60)
        assert heard(short, speech, range(16), 3, max_new_tokens=60) == single
        assert heard(short, speech, shuffled, 3, max_new_tokens=60) == single
