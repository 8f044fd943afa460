"""Encoded audio, measured and decoded to samples, to the end of its stream whatever its header says."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wq.study.speech import containers
from wq.study.speech.containers import DamagedError

if TYPE_CHECKING:
    import numpy as np
    import soundfile

# What is looked for where a table gives an id; a file that is named may be whatever is read
SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3", ".m4a", ".aac", ".webm")

# libsndfile takes a file that was cut off for a shorter one, and mentions it in passing. The size of all of a
# RIFF file is wrong in many, and does no harm
_CUT = re.compile(r"^ *(?!RIFF)[\w ]+ : (\d+) \(should be (\d+)\)", re.MULTILINE)
# From here on a size is none: programs that stream write nearly 2^31 or 2^32, for want of a better one
UNKNOWN_SIZE = 0x7F000000


class DataError(ValueError):
    """Data that cannot be used: one line that names the file or utterance, the rule and the remedy."""


@dataclass(frozen=True)
class Entry:
    """What a dataset says of one utterance, and where: `audio` names the recording in messages, `encoded`
    gives its bytes, `duration` is in seconds where it is stated."""

    id: str
    text: str
    where: str
    audio: str
    encoded: Callable[[], bytes] = field(repr=False)
    duration: float | None = None


def measure(encoded: bytes, entry: Entry) -> float:
    """Seconds of audio: those that the header states where the stream bears it out, else those decoded.

    Raises:
        DataError: it is no audio, cut off or empty.
    """
    with _named(entry):
        seconds = sum(map(_seconds, containers.streams(encoded)))
        if seconds == 0:
            raise DamagedError("is empty, 0 samples")
    return seconds


def decode(encoded: bytes, entry: Entry, seconds: float) -> tuple["np.ndarray", int]:
    """The samples of audio of which `measure` found so many seconds, float32 [samples, channels], and their
    rate in Hz.

    Raises:
        DataError: it cannot be decoded to its end, or holds NaN or Inf.
    """
    import numpy as np

    with _named(entry):
        parts = [_decoded(stream, seconds) for stream in containers.streams(encoded)]
        kinds = dict.fromkeys(f"{samples.shape[1]} channels at {rate} Hz" for samples, rate in parts)
        if len(kinds) > 1:
            raise DamagedError(f"changes within, from {' to '.join(kinds)}")
        samples, rate = np.concatenate([samples for samples, _ in parts]), parts[0][1]
        if abs(len(samples) - seconds * rate) > 0.5:
            raise DamagedError(f"is corrupt: {len(samples)} of {seconds * rate:.0f} samples can be decoded")
    if not np.isfinite(samples).all():
        raise DataError(f"{_name(entry)} holds NaN or Inf samples; export it anew")
    return samples, rate


def _seconds(stream: bytes) -> float:
    with _opened(stream) as audio:
        if audio is None:
            return _seconds_decoded(stream)
        frames, rate, notes = audio.frames, audio.samplerate, audio.extra_info
    cut = _CUT.search(notes)
    if cut and int(cut[2]) < int(cut[1]) < UNKNOWN_SIZE:
        raise DamagedError(f"is cut off: {cut[2]} of {cut[1]} bytes are there")
    if not stream.startswith(containers.WALKED):
        found = containers.packets(stream)
        if found and not -found.padding - 0.5 / rate <= frames / rate - found.seconds <= 0.5 / rate:
            return _seconds_decoded(stream)
    return frames / rate


def _seconds_decoded(stream: bytes) -> float:
    samples, rate = containers.decode(stream)
    return len(samples) / rate


def _decoded(stream: bytes, seconds: float) -> tuple["np.ndarray", int]:
    """Samples by libsndfile where its header states what was measured, by FFmpeg otherwise."""
    import soundfile

    with _opened(stream) as audio:
        if audio and (stream.startswith(containers.WALKED) or audio.frames / audio.samplerate == seconds):
            try:
                return audio.read(dtype="float32", always_2d=True), audio.samplerate
            except soundfile.LibsndfileError as error:
                reason = str(error).split(": ", 1)[-1].strip().rstrip(".")
                raise DamagedError(f"is corrupt ({reason})") from error
    return containers.decode(stream)


@contextmanager
def _opened(stream: bytes) -> "Iterator[soundfile.SoundFile | None]":
    """The stream as libsndfile opens it; None where it cannot."""
    import soundfile

    with containers.as_file(stream) as file:
        try:
            audio = soundfile.SoundFile(file.fileno(), closefd=False)
        except soundfile.LibsndfileError:
            yield None
            return
        with audio:
            yield audio


@contextmanager
def _named(entry: Entry) -> Iterator[None]:
    try:
        yield
    except DamagedError as error:
        raise DataError(f"{_name(entry)} {error}; restore or remove it") from error


def _name(entry: Entry) -> str:
    return f"utterance {entry.id}: {entry.audio}"
