"""Audio in pieces: what they are, and what is heard in them that a cut would lose."""

import json

import numpy as np
import pytest
import soundfile

from tests.conftest import Run
from wq.study.score import wer
from wq.whisper.decoding.decode import SAMPLING_RATE, transcribe
from wq.whisper.decoding.long_audio import QUIET, SEARCHED, ends_of_pieces, in_pieces

WINDOW = 5 * SAMPLING_RATE
RANDOM = np.random.default_rng(0)


def noise(samples):
    return RANDOM.standard_normal(samples).astype(np.float32)


AUDIOS = {
    "empty": noise(0),
    "one sample": noise(1),
    "the window": noise(WINDOW),
    "one sample more": noise(WINDOW + 1),
    "three windows and a bit": noise(3 * WINDOW + 12_345),
    "silence": np.zeros(2 * WINDOW + 7, np.float32),
    "silence at its end": np.concatenate([noise(WINDOW), np.zeros(WINDOW, np.float32)]),
    "loud": 1e6 * noise(4 * WINDOW),
}


@pytest.mark.parametrize("audio", AUDIOS.values(), ids=AUDIOS.keys())
@pytest.mark.parametrize("window", [WINDOW, 30 * SAMPLING_RATE, SAMPLING_RATE])
def test_pieces_make_up_the_audio_and_fit(audio, window):
    ends = ends_of_pieces(audio, window)
    lengths = np.diff([0, *ends])
    assert ends[-1] == len(audio)
    assert max(lengths) <= window
    assert all(lengths[:-1] >= window * (1 - SEARCHED))
    assert (len(ends) == 1) == (len(audio) <= window)


def test_a_piece_ends_where_it_is_quietest():
    audio = noise(2 * WINDOW)
    gap = WINDOW - 9_000
    audio[gap : gap + QUIET] *= 1e-3
    assert ends_of_pieces(audio, WINDOW)[0] == gap + QUIET // 2
    audio[WINDOW // 2 : WINDOW // 2 + QUIET] = 0  # quieter, but too early
    assert ends_of_pieces(audio, WINDOW)[0] == gap + QUIET // 2


def heard(whisper, audios, batch_size=8):
    durations = [len(audio) / SAMPLING_RATE for audio in audios]
    pieces = in_pieces(audios.__getitem__, durations, whisper.window_seconds)
    return pieces.joined(transcribe(whisper, pieces.read, pieces.order, batch_size=batch_size))


def cut(whisper, audios):
    return transcribe(whisper, audios.__getitem__, range(len(audios)), batch_size=8)


def test_short_audio_is_left_as_it_is(nano, commands):
    audios = [commands.read(index, SAMPLING_RATE) for index in range(8)]
    assert heard(nano, audios).transcripts == cut(nano, audios).transcripts


@pytest.fixture(scope="module")
def recordings(commands):
    """Shipped speech in about three windows each, and its texts: three utterances with pauses between them,
    as the shipped model has learnt one sentence at a time."""
    chosen = [index for index, each in enumerate(commands.utterances) if each.duration < 3.5][:24]
    audios, texts = [], []
    for three in np.reshape(chosen, (-1, 3)).tolist():
        samples = np.zeros((3, int(4.5 * SAMPLING_RATE)), np.float32)
        for row, index in zip(samples, three, strict=True):
            audio = commands.read(index, SAMPLING_RATE)
            row[: len(audio)] = audio
        audios.append(samples.ravel())
        texts.append(" ".join(commands.utterances[index].text for index in three))
    return audios, texts


def test_pieces_hear_what_a_cut_loses(nano, recordings):
    audios, texts = recordings
    whole, beginning = heard(nano, audios), cut(nano, audios)
    ids = [str(index) for index in range(len(audios))]
    rates = [
        wer.score(ids, texts, [each.text for each in found.transcripts], "en").wer
        for found in (whole, beginning)
    ]
    assert rates[0] < 0.2 * rates[1], rates
    assert whole.cut == 0 < beginning.cut == len(audios)
    assert whole.audio_seconds == pytest.approx(sum(map(len, audios)) / SAMPLING_RATE)


def test_pieces_depend_on_neither_batch_nor_order(nano, recordings):
    audios = recordings[0][:2]
    expected = [heard(nano, [audio], batch_size=1).transcripts[0] for audio in audios]
    assert heard(nano, audios, batch_size=4).transcripts == expected
    assert heard(nano, audios[::-1], batch_size=3).transcripts == expected[::-1]


@pytest.mark.slow
def test_the_command_line_hears_all_of_it(wq: Run, tmp_path, recordings):
    soundfile.write(tmp_path / "long.wav", recordings[0][0], SAMPLING_RATE)
    row = {"audio_filepath": "long.wav", "text": recordings[1][0]}
    (tmp_path / "long.jsonl").write_text(json.dumps(row) + "\n")
    data = ("dataset=manifest", "dataset.path=long.jsonl", "format=int8", "resamples=50")
    job = wq(*data, "long_audio=chunk")
    assert job.returncode == 0, job.stderr
    (path,) = tmp_path.glob("outputs/*/*/result.json")
    result = json.loads(path.read_text())
    assert (result["long_audio"], result["cut_utterances"]) == ("chunk", 0)
    assert result["wer"] < 0.2
