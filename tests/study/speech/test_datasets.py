"""Speech from manifests and folders: what is read, what is refused and how it is said."""

import csv
import io
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import REAL
from wq.catalogue import conf_dir
from wq.study.spec.config import DatasetConfig
from wq.study.speech.datasets import DataError, Speech, load_speech

RATE = 16_000


def tone(seconds: float = 0.5, rate: int = RATE, channels: int = 1, hertz: float = 440.0) -> np.ndarray:
    """A sine, float32 [samples] or [samples, channels]."""
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave[:, None], channels, axis=1).squeeze().astype(np.float32)


def encode(samples: np.ndarray, rate: int = RATE, format: str = "FLAC", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype)
    return buffer.getvalue()


TONE = encode(tone(0.1), format="WAV")


def manifest(directory: Path, rows: list[dict], split: str = "test") -> DatasetConfig:
    """A dataset of these lines; every line's audio file is written unless it is there."""
    directory.mkdir(exist_ok=True)
    for row in rows:
        audio = directory / row.get("audio_filepath", "unnamed.flac")
        if not audio.exists() and audio.parent == directory:
            audio.write_bytes(encode(tone()))
    (directory / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DatasetConfig(source="manifest", path=str(directory), split=split)


def one(directory: Path, audio: bytes, **row: object) -> DatasetConfig:
    """A dataset of one utterance, u1, with this audio."""
    directory.mkdir(exist_ok=True)
    (directory / "u1.flac").write_bytes(audio)
    return manifest(directory, [{"audio_filepath": "u1.flac", "text": "hello", "id": "u1", **row}])


def read(config: DatasetConfig) -> np.ndarray:
    return load_speech(config).read(0, RATE)


def message(act: Callable[[], object]) -> str:
    """The error's text, which must be one line."""
    with pytest.raises(DataError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_manifest(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.flac"
    elsewhere.write_bytes(encode(tone(0.75)))
    rows = [
        {"audio_filepath": "a.flac", "duration": 0.5, "text": " first one ", "id": "x", "voice": "anna"},
        {"audio_filepath": "b.flac", "text": "second"},
        {"audio_filepath": str(elsewhere), "text": ""},
    ]
    speech = load_speech(manifest(tmp_path / "corpus", rows))
    assert (speech.name, speech.split, speech.language) == ("corpus", "test", "en")
    assert [utterance.id for utterance in speech.utterances] == ["x", "b", "elsewhere"]
    assert [utterance.text for utterance in speech.utterances] == ["first one", "second", ""]
    assert [utterance.duration for utterance in speech.utterances] == [0.5, 0.5, 0.75]


def test_manifest_file_and_splits(tmp_path: Path) -> None:
    for split, text in (("test", "tested"), ("calibration", "calibrated")):
        config = manifest(tmp_path, [{"audio_filepath": "a.flac", "text": text}], split)
    assert load_speech(config).utterances[0].text == "calibrated"
    assert load_speech(config, split="test").utterances[0].text == "tested"
    file = DatasetConfig(source="manifest", path=str(tmp_path / "test.jsonl"))
    assert load_speech(file).utterances[0].text == "tested"
    # Otherwise calibration would see the test set
    assert "no split calibration" in message(lambda: load_speech(file, split="calibration"))


def test_lines_may_be_blank_and_the_file_may_have_a_byte_order_mark(tmp_path: Path) -> None:
    config = manifest(tmp_path, [{"audio_filepath": "a.flac", "text": "käse"}])
    file = tmp_path / "test.jsonl"
    line = json.dumps({"audio_filepath": "a.flac", "text": "käse\u2028roll"}, ensure_ascii=False)
    file.write_bytes(b"\xef\xbb\xbf\n" + line.encode() + b"\r\n\n")
    assert load_speech(config).utterances[0].text == "käse\u2028roll"


def test_limit_takes_the_first(tmp_path: Path) -> None:
    rows = [{"audio_filepath": f"{number}.flac", "text": "", "id": str(number)} for number in (3, 1, 2)]
    config = manifest(tmp_path, rows)
    (tmp_path / "2.flac").unlink()
    assert [utterance.id for utterance in load_speech(config, limit=2).utterances] == ["3", "1"]
    assert "2.flac does not exist" in message(lambda: load_speech(config, limit=3))


TABLES = {
    "transcripts.csv": 'file_name,text\nb.flac,"two, three"\na.flac,one\n',
    "metadata.csv": 'text,file_name,speaker\n"two, three",b.flac,7\none,a.flac,8\n',
    "metadata.tsv": "path\tsentence\nb.flac\ttwo, three\na.flac\tone\n",
    "transcripts.tsv": "id\ttranscription\nb\ttwo, three\na\tone\n",
    "metadata.jsonl": '{"file_name": "b.flac", "transcription": "two, three"}\n{"id": "a", "text": "one"}\n',
    "transcripts.jsonl": '{"audio_filepath": "b.flac", "text": "two, three"}\n{"file": "a", "text": "one"}\n',
    "transcripts.txt": "b.flac two, three\na.flac\tone\n",
    "7-8.trans.txt": "b two, three\na one\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_folder_tables(name: str, tmp_path: Path) -> None:
    for audio in ("a", "b"):
        (tmp_path / f"{audio}.flac").write_bytes(encode(tone()))
    (tmp_path / name).write_text(TABLES[name])
    speech = load_speech(DatasetConfig(source="folder", path=str(tmp_path)))
    assert [(utterance.id, utterance.text) for utterance in speech.utterances] == [
        ("b", "two, three"),
        ("a", "one"),
    ]


def test_folder_in_librispeech_layout(tmp_path: Path) -> None:
    """SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac beside SPEAKER-CHAPTER.trans.txt, by name."""
    for speaker, chapter in ((2, 5), (1, 9)):
        chapter_directory = tmp_path / "test-clean" / str(speaker) / str(chapter)
        chapter_directory.mkdir(parents=True)
        prefix = f"{speaker}-{chapter}"
        for number in range(2):
            (chapter_directory / f"{prefix}-{number:04d}.flac").write_bytes(encode(tone()))
        lines = [f"{prefix}-{number:04d} SAID {number}\n" for number in range(2)]
        (chapter_directory / f"{prefix}.trans.txt").write_text("".join(lines))
    config = DatasetConfig(source="folder", path=str(tmp_path), split="test-clean")
    speech = load_speech(config)
    assert [utterance.id for utterance in speech.utterances] == [
        "1-9-0000",
        "1-9-0001",
        "2-5-0000",
        "2-5-0001",
    ]
    assert speech.utterances[3].text == "SAID 1"
    assert "subfolders there: test-clean" in message(lambda: load_speech(config, split="dev-clean"))


def test_a_linked_folder_is_read_as_the_folder(tmp_path: Path) -> None:
    """Wherever the link is, once for each name; and a link to a folder that it lies in ends there."""
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    for place, prefix in ((corpus / "1" / "2", "1-2"), (elsewhere / "4", "3-4"), (elsewhere / "6", "5-6")):
        place.mkdir(parents=True)
        (place / f"{prefix}-0000.flac").write_bytes(encode(tone()))
        (place / f"{prefix}.trans.txt").write_text(f"{prefix}-0000 SAID\n")
    (corpus / "3").symlink_to(elsewhere)  # 3/6 is read too
    (corpus / "1" / "2" / "above").symlink_to(corpus)
    (corpus / "itself").symlink_to(".")
    config = DatasetConfig(source="folder", path=str(corpus))
    assert [utterance.id for utterance in load_speech(config).utterances] == [
        "1-2-0000",
        "3-4-0000",
        "5-6-0000",
    ]
    (corpus / "7").symlink_to(tmp_path / "unmounted")
    assert f"{corpus / '7'} is a link that leads nowhere" in message(lambda: load_speech(config))


@pytest.mark.parametrize(
    ("name", "header", "row"),
    [
        ("metadata.csv", "file_name,text", "{},{}"),
        ("metadata.jsonl", "", '{{"file_name": "{}", "text": "{}"}}'),
    ],
)
def test_a_folders_own_table_names_the_files_of_its_splits(
    name: str, header: str, row: str, tmp_path: Path
) -> None:
    (tmp_path / "test" / "a").mkdir(parents=True)
    for audio in ("test/x.flac", "test/a/y.flac"):
        (tmp_path / audio).write_bytes(encode(tone()))
    named = {"test/x.flac": "one", "train/x.flac": "not here", "./test/a/y": "two", "testing/z.flac": "no"}
    lines = [header, *(row.format(*pair) for pair in named.items())]
    (tmp_path / name).write_text("\n".join(lines))
    config = DatasetConfig(source="folder", path=str(tmp_path))
    speech = load_speech(config)
    assert [(each.id, each.text) for each in speech.utterances] == [("x", "one"), ("y", "two")]
    (tmp_path / "dev").mkdir()
    assert "names no audio file in dev/" in message(lambda: load_speech(config, split="dev"))
    (tmp_path / "test" / "transcripts.txt").write_text("x.flac its own\n")
    assert load_speech(config).utterances[0].text == "its own"


def test_a_choice_among_columns_is_told_and_can_be_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.flac", "b.flac"):
        (tmp_path / name).write_bytes(encode(tone()))
    table = tmp_path / "metadata.csv"
    table.write_text("path,file,sentence,text\nb.flac,a.flac,Said.,said\n")
    config = DatasetConfig(source="folder", path=str(tmp_path))
    (utterance,) = load_speech(config).utterances
    assert (utterance.id, utterance.text) == ("a", "said")
    assert capsys.readouterr().err.splitlines() == [
        f"{table} has the columns file, path: file is taken; dataset.audio_column=path takes another",
        f"{table} has the columns text, sentence: text is taken; dataset.text_column=sentence takes another",
    ]
    chosen = replace(config, text_column="sentence", audio_column="path")
    (utterance,) = load_speech(chosen).utterances
    assert (utterance.id, utterance.text) == ("b", "Said.")
    assert capsys.readouterr().err == ""
    assert "metadata.csv:1 lacks words" in message(lambda: load_speech(replace(config, text_column="words")))
    lines = manifest(tmp_path / "lines", [{"clip": "c.flac", "raw": "Said.", "audio_filepath": "c.flac"}])
    (utterance,) = load_speech(replace(lines, text_column="raw", audio_column="clip")).utterances
    assert utterance.text == "Said."


@pytest.mark.parametrize(
    ("name", "content", "line", "says"),
    [
        ("metadata.csv", "file_name,text\na.wav,add, one rice\n", 2, "has 3 fields and the header has 2"),
        ("metadata.csv", "file_name,text,id\na.wav,add\n", 2, "has 2 fields and the header has 3"),
        ("metadata.csv", "file_name,text\n\na.wav,add,\n", 3, "has 3 fields"),
        ("metadata.csv", "file_name,text\na.wav\n", 2, "has 1 fields"),
        ("metadata.csv", "file_name;text\na.wav;add\n", 1, "lacks audio_filepath or"),
        ("metadata.tsv", "path\tsentence\na.wav\tadd\tone rice\n", 2, "3 fields and the header has 2"),
        ("metadata.tsv", "path\tsentence\na.wav add\n", 2, "1 fields and the header has 2"),
        ("metadata.tsv", "path,sentence\na.wav,add\n", 1, "lacks audio_filepath or"),
        # a quotation mark that is not closed: at the end, before a row with one, before a row with two
        ("metadata.csv", 'file_name,text\na.wav,"add one\nb.wav,stop\n', 2, "unexpected end of data"),
        ("metadata.csv", 'file_name,text\na.wav,"add one\nb.wav,stop"\n', 2, "unexpected end of data"),
        ("metadata.csv", 'file_name,text\na.wav,"add\nb.wav,"stop"\n', 2, "unexpected end of data"),
        ("metadata.csv", 'file_name,text\r\na.wav,"add\r\nb.wav,"a ""b"""\r\n', 2, "unexpected end"),
        ("metadata.csv", 'file_name,text\na.wav,"add" one\n', 2, "is no row"),
        ("metadata.csv", '"file_name,text\na.wav,add\n', 1, "unexpected end of data"),
        ("metadata.csv", "file_name,text,text\na.wav,add,stop\n", 1, "has the column text twice"),
        ("metadata.csv", "a.wav,add one\nb.wav,stop\n", 1, "lacks audio_filepath or"),
        ("metadata.csv", "a.wav,add one\n", 1, "lacks audio_filepath or"),
        ("metadata.csv", "file_name,text\na.wav,a\0dd\n", 2, "has a NUL character"),
        ("metadata.tsv", "path\ttext\na.wav\tadd\0\n", 2, "has a NUL character"),
        ("transcripts.txt", "a.wav add\0\n", 1, "has a NUL character"),
        ("metadata.jsonl", '{"file": "a.wav", "text": "add\0"}\n', 1, "has a NUL character"),
        (
            "metadata.jsonl",
            '{"file": "a.wav", "text": "add", "text": "stop"}\n',
            1,
            "the key text occurs twice",
        ),
        ("metadata.jsonl", '{"file": "a.wav", "text": "add"} {"file": "b.wav"}\n', 1, "is not JSON"),
        ("metadata.jsonl", '{"file": "a.wav", "text": "add\none"}\n', 1, "is not JSON"),
        ("metadata.jsonl", '{"file": "a.wav", "text": ' + "[" * 100_000 + "\n", 1, "is not JSON"),
    ],
)
def test_a_malformed_row_is_named(name: str, content: str, line: int, says: str, tmp_path: Path) -> None:
    for audio in ("a.wav", "b.wav"):
        (tmp_path / audio).write_bytes(encode(tone(), format="WAV"))
    (tmp_path / name).write_bytes(content.encode())
    text = message(lambda: load_speech(DatasetConfig(source="folder", path=str(tmp_path))))
    assert text.startswith(f"{tmp_path / name}:{line} ")
    assert says in text


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from('",; '), max_size=12)


@settings(max_examples=50)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4), damaged=st.integers(0, 3), quote=st.integers(0, 40))
def test_a_quotation_mark_too_many_changes_no_other_row(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], damaged: int, quote: int
) -> None:
    """A table that csv wrote is read back; with one quotation mark more, every other row's text still is, or
    an error names the damaged line."""
    folder = tmp_path_factory.mktemp("table")
    rows = []
    for number, text in enumerate(texts):
        (folder / f"{number}.wav").write_bytes(TONE)
        rows.append(io.StringIO())
        csv.writer(rows[-1], lineterminator="").writerow([f"{number}.wav", text])
    lines = [row.getvalue() for row in rows]

    def read_texts() -> list[str]:
        (folder / "metadata.csv").write_text("\n".join(["file_name,text", *lines]), newline="")
        speech = load_speech(DatasetConfig(source="folder", path=str(folder)))
        return [utterance.text for utterance in speech.utterances]

    assert read_texts() == [text.strip() for text in texts]
    damaged %= len(texts)
    place = min(quote, len(lines[damaged]))
    lines[damaged] = f'{lines[damaged][:place]}"{lines[damaged][place:]}'
    try:
        changed = read_texts()
    except DataError as error:
        named = f"metadata.csv:{damaged + 2}" in str(error)
    else:
        named = [*changed[:damaged], *changed[damaged + 1 :]] == [
            text.strip() for text in [*texts[:damaged], *texts[damaged + 1 :]]
        ]
    assert named


@pytest.mark.parametrize("name", ["~take1.wav", "~/~x.wav", "~nobody-of-this-name/x.wav", "~.wav"])
def test_a_tilde_in_a_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    audio = tmp_path / name.replace("~/", "home/")
    audio.parent.mkdir(exist_ok=True)
    audio.write_bytes(TONE)
    (tmp_path / "transcripts.txt").write_text(f"{name} said\n")
    (utterance,) = load_speech(DatasetConfig(source="folder", path=str(tmp_path))).utterances
    assert utterance.id == audio.stem
    assert "does not exist" in message(
        lambda: load_speech(DatasetConfig(source="folder", path="~nobody-here"))
    )


def test_quotation_marks_stay_in_tab_separated_text(tmp_path: Path) -> None:
    (tmp_path / "a.flac").write_bytes(encode(tone()))
    (tmp_path / "metadata.tsv").write_text('path\tsentence\na.flac\t"well" he said\n')
    speech = load_speech(DatasetConfig(source="folder", path=str(tmp_path)))
    assert speech.utterances[0].text == '"well" he said'


@pytest.mark.parametrize(
    ("format", "subtype"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "FLOAT"),
        ("FLAC", "PCM_16"),
        ("OGG", "OPUS"),
        ("OGG", "VORBIS"),
        ("MP3", None),
    ],
)
def test_formats(format: str, subtype: str | None, tmp_path: Path) -> None:
    expected = tone(1.0)
    samples = read(one(tmp_path, encode(expected, format=format, subtype=subtype)))
    assert samples.dtype == np.float32
    assert abs(len(samples) - len(expected)) <= 0.1 * RATE  # MP3 pads its frames
    exact = format in ("WAV", "FLAC")
    assert not exact or np.abs(samples - expected).max() < 1e-4


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_other_rates_are_resampled(rate: int, tmp_path: Path) -> None:
    speech = load_speech(one(tmp_path, encode(tone(1.0, rate), rate)))
    samples = speech.read(0, RATE)
    assert samples.dtype == np.float32
    assert abs(len(samples) - RATE) <= 1
    middle = slice(RATE // 4, -RATE // 4)
    assert np.abs(samples[middle] - tone(1.0)[: len(samples)][middle]).max() < 2e-3
    assert speech.resampled == {0}
    assert speech.mixed_down == set()
    assert speech.utterances[0].duration == 1.0


def test_streamed_wav_has_no_length_in_its_header(tmp_path: Path) -> None:
    audio = bytearray(encode(tone(), format="WAV"))
    for field in (4, audio.index(b"data") + 4):
        audio[field : field + 4] = b"\xff" * 4
    assert len(read(one(tmp_path, bytes(audio)))) == RATE // 2


@pytest.mark.parametrize("channels", [2, 6])
def test_channels_are_mixed_down(channels: int, tmp_path: Path) -> None:
    samples = tone(0.5, channels=channels)
    samples[:, 0] = 0
    speech = load_speech(one(tmp_path, encode(samples, format="WAV", subtype="FLOAT")))
    mono = speech.read(0, RATE)
    assert mono.shape == (RATE // 2,)
    assert np.allclose(mono, tone() * (channels - 1) / channels, atol=1e-6)
    assert speech.mixed_down == {0}
    assert speech.resampled == set()


@pytest.mark.parametrize(("other", "told"), [(-1.0, 1), (-0.95, 1), (-0.5, 0), (0.0, 0), (1.0, 0)])
def test_channels_that_cancel_out_are_told_once(
    other: float, told: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stereo = np.stack([tone(), other * tone()], axis=1)
    speech = load_speech(one(tmp_path, encode(stereo, format="WAV", subtype="FLOAT")))
    for _ in range(2):
        assert np.abs(speech.read(0, RATE) - stereo.mean(axis=1)).max() < 1e-6
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(speech.cancelled) == told
    assert all(line.startswith("utterance u1: the channels of ") and "u1.flac" in line for line in lines)


def test_audio_that_ends_before_its_stated_duration_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    durations = {"a.flac": 0.5, "b.flac": 0.75, "c.flac": 0.8, "d.flac": 0.55, "e.flac": 0.2}
    rows = [{"audio_filepath": name, "text": "", "duration": seconds} for name, seconds in durations.items()]
    load_speech(manifest(tmp_path, rows))
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"2 of 5 utterances end before their stated duration, utterance b by 0.25 s: {tmp_path / 'b.flac'}"
    )


def bad_samples(value: float) -> bytes:
    samples = tone()
    samples[100] = value
    return encode(samples, format="WAV", subtype="FLOAT")


WHOLE = encode(np.random.default_rng(0).uniform(-0.5, 0.5, RATE))


@pytest.mark.parametrize(
    ("audio", "says"),
    [
        (b"", "no readable audio"),
        (b"not audio at all", "no readable audio"),
        (encode(np.zeros(0), format="WAV"), "empty, 0 samples"),
        (WHOLE[: len(WHOLE) // 2], "corrupt"),
        (WHOLE[:5_000] + bytes(5_000) + WHOLE[10_000:], "corrupt"),
        (encode(tone(), format="WAV")[:8_000], "is cut off"),
        (encode(tone(), format="OGG", subtype="VORBIS")[:2_000], "is cut off"),
        (bad_samples(np.nan), "NaN or Inf"),
        (bad_samples(np.inf), "NaN or Inf"),
    ],
)
def test_bad_audio_names_the_utterance_and_the_file(audio: bytes, says: str, tmp_path: Path) -> None:
    config = one(tmp_path, audio)
    text = message(lambda: read(config))
    assert text.startswith(f"utterance u1: {tmp_path / 'u1.flac'}")
    assert says in text


GOOD = {"audio_filepath": "a.flac", "text": "hello"}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{'audio_filepath': 'a.flac'}", "is not JSON"),
        ('{"audio_filepath": "a.flac", "text": "hel', "is not JSON"),
        ('["a.flac", "hello"]', "no JSON object"),
        ('{"text": "hello"}', "lacks audio_filepath"),
        ('{"audio_filepath": "a.flac"}', "lacks text"),
        ('{"audio_filepath": "a.flac", "text": 5}', "text=5; it must be a string"),
        ('{"audio_filepath": null, "text": "hello"}', "audio_filepath=None"),
        ('{"audio_filepath": "", "text": "hello"}', "names no audio file"),
        ('{"audio_filepath": "b.flac", "text": "hello"}', "b.flac does not exist"),
        ('{"audio_filepath": "../a.flac", "text": "hello"}', "leads out of"),
        ('{"audio_filepath": "x/../../a.flac", "text": "hello"}', "leads out of"),
        ('{"audio_filepath": "a.flac", "text": "hello", "duration": "long"}', "duration='long'"),
        ('{"audio_filepath": "a.flac", "text": "hello", "duration": -1}', "duration=-1"),
        ('{"audio_filepath": "a.flac", "text": "hello", "duration": NaN}', "duration=nan"),
        ('{"audio_filepath": "a.flac", "text": "hello", "duration": 4.5}', "lasts 0.5 s and not 4.5 s"),
        ('{"audio_filepath": "a.flac", "text": "hello", "duration": 1e308}', "not 1e+308 s; it is cut"),
        (f'{{"audio_filepath": "a.flac", "text": "hello", "duration": 1{"0" * 400}}}', "0...; give seconds"),
        ('{"audio_filepath": "a.flac", "text": "hello", "offset": 1.5}', "offset=1.5"),
        ('{"audio_filepath": "a.flac", "text": "hello", "id": "first"}', "the id first is taken by"),
        (r'{"audio_filepath": "a.flac", "text": "hello \ud83d world"}', r"lone surrogate \ud83d in text"),
        (r'{"audio_filepath": "\ud83d.flac", "text": "hello"}', r"surrogate \ud83d in audio_filepath"),
        (r'{"audio_filepath": "a.flac", "text": "hello", "id": "\ud83d"}', r"surrogate \ud83d in id"),
    ],
)
def test_bad_lines_are_named(line: str, says: str, tmp_path: Path) -> None:
    config = manifest(tmp_path / "corpus", [{**GOOD, "id": "first"}])
    shutil.copy(tmp_path / "corpus" / "a.flac", tmp_path)
    with (tmp_path / "corpus" / "test.jsonl").open("a") as file:
        file.write(f"\n{line}\n")
    text = message(lambda: load_speech(config))
    assert text.startswith(f"{tmp_path / 'corpus' / 'test.jsonl'}:3")
    assert says in text


def test_zero_is_an_id_and_a_pair_of_surrogates_is_a_character(tmp_path: Path) -> None:
    rows = [{**GOOD, "id": 0}, {**GOOD, "id": 1, "text": "\U0001f600"}, {**GOOD, "id": ""}]
    utterances = load_speech(manifest(tmp_path, rows)).utterances
    assert [utterance.id for utterance in utterances] == ["0", "1", "a"]
    assert utterances[1].text == "\U0001f600"


def test_the_remedy_for_an_id_taken_twice_fits_the_source(tmp_path: Path) -> None:
    config = manifest(tmp_path, [GOOD, GOOD])
    assert "own in the key id" in message(lambda: load_speech(config))
    (tmp_path / "transcripts.txt").write_text("a.flac one\na.flac two\n")
    folder = DatasetConfig(source="folder", path=str(tmp_path))
    assert "or rename the files" in message(lambda: load_speech(folder))


def test_bad_cells_of_tables_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.flac").write_bytes(encode(tone()))
    table = tmp_path / "metadata.csv"
    config = DatasetConfig(source="folder", path=str(tmp_path))
    for content, says in {
        "file_name,words\na.flac,hello\n": f"{table}:1 lacks text or transcription",
        "file_name,text\na.flac\n": f"{table}:2 has 1 fields and the header has 2",
        "file_name,text\nb.flac,hello\n": f"{table}:2: audio file {tmp_path / 'b.flac'} does not exist",
        "file_name,text\n": "no utterances",
    }.items():
        table.write_text(content)
        assert says in message(lambda: load_speech(config))
    table.write_bytes("file_name,text\na.flac,Käse\n".encode("latin-1"))
    assert "is not UTF-8 text" in message(lambda: load_speech(config))


@pytest.mark.parametrize(
    ("source", "path", "says"),
    [
        ("manifest", "nowhere.jsonl", "does not exist"),
        ("manifest", "wq:orders", "shipped datasets: wq:commands"),
        ("manifest", "EMPTY", "has no utterances"),
        ("manifest", "SPLITS", "no split test (test.jsonl); splits there: dev, train"),
        ("folder", "nowhere", "does not exist"),
        ("folder", "SPLITS", "no transcript table; write transcripts or metadata"),
        ("folder", "EMPTY/test.jsonl", "is a file; give the folder"),
    ],
)
def test_missing_data(source: str, path: str, says: str, tmp_path: Path) -> None:
    for directory, files in (("EMPTY", ["test"]), ("SPLITS", ["train", "dev"])):
        (tmp_path / directory).mkdir()
        for file in files:
            (tmp_path / directory / f"{file}.jsonl").touch()
    full = path if path.startswith("wq:") else str(tmp_path / path)
    text = message(lambda: load_speech(DatasetConfig(source=source, path=full)))
    assert full in text
    assert says in text


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["speech.parquet"], ["speech.parquet"]),  # its name tells of no split
        (["0000.parquet", "below/0001.parquet"], ["0000.parquet", "below/0001.parquet"]),
        (["test.parquet", "train.parquet"], ["test.parquet"]),
        (
            ["data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"],
            ["data/test-00000-of-00001.parquet"],
        ),
        (
            ["test/0000.parquet", "test/0001.parquet", "dev/0.parquet"],
            ["test/0000.parquet", "test/0001.parquet"],
        ),
        (["train.parquet", "dev.parquet"], "and split test; there are: dev.parquet, train.parquet"),
        ([], "has no parquet files"),
    ],
)
@pytest.mark.parametrize("embedded", [True, False])
def test_a_local_directory_of_parquet_files(
    files: list[str], chosen: list[str] | str, embedded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets.config
    import pyarrow.parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.wav").write_bytes(TONE)
    audio = {"bytes": TONE if embedded else None, "path": "a.wav"}
    for file in files:
        (corpus / file).parent.mkdir(exist_ok=True)
        table = pyarrow.table(
            {
                "audio": pyarrow.array([audio], pyarrow.struct({"bytes": "binary", "path": "string"})),
                "text": [file],
            }
        )
        pyarrow.parquet.write_table(table, corpus / file)
    config = DatasetConfig(source="hub", path=str(corpus))
    if isinstance(chosen, str):
        assert chosen in message(lambda: load_speech(config))
    else:
        speech = load_speech(config)
        assert [utterance.text for utterance in speech.utterances] == chosen
        assert len(speech.read(0, RATE)) == RATE // 10


def test_content_hash_is_of_the_content(tmp_path: Path) -> None:
    rows = [{"audio_filepath": f"{number}.flac", "text": f"text {number}"} for number in range(3)]
    config = manifest(tmp_path / "corpus", rows)
    expected = load_speech(config).content_hash

    moved = Path(shutil.copytree(tmp_path / "corpus", tmp_path / "moved"))
    absolute = [{**row, "audio_filepath": str(moved / row["audio_filepath"])} for row in rows]
    assert load_speech(manifest(tmp_path / "apart", absolute)).content_hash == expected
    table = "".join(f"{number} text {number}\n" for number in range(3))
    (moved / "transcripts.txt").write_text(table)
    assert load_speech(DatasetConfig(source="folder", path=str(moved))).content_hash == expected

    different: dict[str, Speech] = {
        "fewer": load_speech(config, limit=2),
        "another order": load_speech(manifest(tmp_path / "corpus", rows[::-1])),
        "another text": load_speech(
            manifest(tmp_path / "corpus", [*rows[:2], {**rows[2], "text": "text 3"}])
        ),
        "another id": load_speech(manifest(tmp_path / "corpus", [*rows[:2], {**rows[2], "id": "z"}])),
    }
    (tmp_path / "corpus" / "1.flac").write_bytes(encode(tone(hertz=441)))
    different["other audio"] = load_speech(manifest(tmp_path / "corpus", rows))
    hashes = {expected, *(speech.content_hash for speech in different.values())}
    assert len(hashes) == 1 + len(different)


@pytest.mark.parametrize("file", sorted((conf_dir() / "dataset").glob("*.yaml")), ids=lambda file: file.stem)
def test_choices_fit_the_schema(file: Path) -> None:
    text = file.read_text()
    config = DatasetConfig(**yaml.safe_load(text))
    assert text.startswith("# ")
    assert config.calibration_split != config.split
    assert config.path == "???" or config.name


def test_loading_needs_neither_torch_nor_datasets(tmp_path: Path) -> None:
    config = manifest(tmp_path, [GOOD])
    script = (
        "import sys; from wq.study.spec.config import DatasetConfig;"
        "from wq.study.speech.datasets import load_speech;"
        f"load_speech(DatasetConfig(source='manifest', path={config.path!r})).read(0, 16_000);"
        "print([name for name in ('torch', 'datasets', 'huggingface_hub') if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize(("split", "least"), [("clean", 300), ("other", 300), ("calibration", 64)])
def test_shipped_speech(split: str, least: int) -> None:
    speech = load_speech(DatasetConfig(source="manifest", path="wq:commands", split=split))
    assert speech.name == "commands"
    assert len(speech.utterances) >= least
    assert all(utterance.text for utterance in speech.utterances)
    samples = [speech.read(index, RATE) for index in range(0, len(speech.utterances), 10)]
    assert all(np.abs(audio).max() > 0.01 for audio in samples)
    assert not speech.resampled | speech.mixed_down


def test_real_speech() -> None:
    if not (REAL / "speech").is_dir():
        pytest.skip("no real speech beside the repository (../shared/real)")
    speech = load_speech(DatasetConfig(source="manifest", path=str(REAL / "speech")))
    assert len(speech.utterances) == 400
    assert round(sum(utterance.duration for utterance in speech.utterances) / 60) == 26


def test_an_interrupt_while_audio_is_decoded_is_not_lost(tmp_path):
    """Through a callback into Python it would be, and the recording would seem cut off."""
    noise = np.random.default_rng(0).uniform(-1, 1, 60 * RATE).astype(np.float32)
    speech = load_speech(one(tmp_path, encode(noise)))
    earlier = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            [speech.read(0, RATE) for _ in range(200)]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)
