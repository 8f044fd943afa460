"""Encoded audio, examined by its header and decoded to samples."""

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# What libsndfile decodes
SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")

# libsndfile takes a WAV file that was cut off for a shorter one, and mentions it in passing. Programs that
# stream write a size of nearly 2^32, for want of a better one.
_CUT_WAV = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)


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
    """Seconds of audio, from the header alone.

    Raises:
        DataError: it is no audio, or empty.
    """
    import soundfile

    try:
        with _file_of(encoded) as file, soundfile.SoundFile(file.fileno(), closefd=False) as audio:
            frames, rate, notes = audio.frames, audio.samplerate, audio.extra_info
    except soundfile.LibsndfileError as error:
        raise DataError(
            f"{_named(entry)} is no readable audio ({_reason(error)}); restore or remove it"
        ) from error
    if frames == 0:
        raise DataError(f"{_named(entry)} is empty, 0 samples; restore or remove it")
    cut = _CUT_WAV.search(notes)
    if cut and int(cut[2]) < int(cut[1]) < 2**31:
        raise DataError(
            f"{_named(entry)} is cut off: {cut[2]} of {cut[1]} bytes are there; restore or remove it"
        )
    return frames / rate


def decode(encoded: bytes, entry: Entry) -> tuple["np.ndarray", int]:
    """Samples, float32 [samples, channels], and their rate in Hz.

    Raises:
        DataError: it cannot be decoded to its end, or holds NaN or Inf.
    """
    import numpy as np
    import soundfile

    try:
        with _file_of(encoded) as file, soundfile.SoundFile(file.fileno(), closefd=False) as audio:
            samples = audio.read(dtype="float32", always_2d=True)
            expected, rate = audio.frames, audio.samplerate
    except soundfile.LibsndfileError as error:
        raise DataError(f"{_named(entry)} is corrupt ({_reason(error)}); restore or remove it") from error
    if len(samples) < expected:
        raise DataError(
            f"{_named(entry)} is corrupt: {len(samples)} of {expected} samples can be decoded; "
            "restore or remove it"
        )
    if not np.isfinite(samples).all():
        raise DataError(f"{_named(entry)} holds NaN or Inf samples; export it anew")
    return samples, rate


def _file_of(encoded: bytes) -> IO[bytes]:
    """A file that libsndfile reads by itself. From a Python object it would read through callbacks, and there
    an interrupt is lost: the job would go on, with a recording that seems cut off."""
    if sys.platform == "linux":
        file: IO[bytes] = os.fdopen(os.memfd_create("audio"), "w+b")
    else:
        file = TemporaryFile()  # noqa: SIM115  for the caller to close
    file.write(encoded)
    file.seek(0)
    return file


def _named(entry: Entry) -> str:
    return f"utterance {entry.id}: {entry.audio}"


def _reason(error: Exception) -> str:
    return str(error).split(": ", 1)[-1].strip().rstrip(".")
