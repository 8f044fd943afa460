"""What the containers of audio say of its length, checked against the bytes that are there.

libsndfile believes the header of a WAV or FLAC file, hears the first of several streams that lie one
behind another in an Ogg file, and guesses the length of an MP3 file that does not state it. So the chunks of
WAV files and the pages of Ogg files are walked here, and the packets of others are counted by FFmpeg, which
also decodes what libsndfile cannot.
"""

import os
import re
import struct
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import av
    import av.audio.stream
    import av.container
    import numpy as np

# Beginnings of the files that `streams` walks through
WALKED = (b"RIFF", b"OggS")
# Seconds by which a header may be off before audio counts as cut off, as encoders pad
SLACK = 0.1
# Packets of padding that an MP3 encoder's own tag takes off again: its delay, the decoder's, and the filling
PADDING = 3

# Where an MP3 file's first frame has its number of frames: the tags of Xing and of Fraunhofer's encoder
_FRAMES = re.compile(rb"(?:Xing|Info)...[\1\3\5\7\x09\x0b\x0d\x0f](.{4})|VBRI.{10}(.{4})", re.DOTALL)
# Nothing that reads further files, as playlists do
_FORMATS = "aac,aiff,amr,asf,au,caf,flac,matroska,webm,mov,mp4,m4a,3gp,mp3,ogg,w64,wav"
# Their length is no more than their bytes by the first frame's bit rate
_ESTIMATED = ("aac", "amr", "mp3")


class DamagedError(Exception):
    """What is wrong with encoded audio: the end of a sentence that begins with the file's name."""


@dataclass(frozen=True)
class Packets:
    """What FFmpeg finds without decoding: `seconds` in the packets, of which `padding` may be taken off."""

    seconds: float
    padding: float


def streams(encoded: bytes) -> list[bytes]:
    """The streams that are heard one after another, each a file of its own: one, but for a chained Ogg file.

    Raises:
        DamagedError: it ends too early, or has bytes that its headers do not account for.
    """
    if encoded.startswith(b"OggS"):
        return _ogg_links(encoded)
    return [_with_length(encoded) if encoded.startswith(b"RIFF") else encoded]


def _with_length(wav: bytes) -> bytes:
    """The WAV file, with the mark of an unknown length (2^32 - 1) where a program that streamed left 0."""
    chunks = {name: (start, size) for name, start, size in _chunks(wav)}
    if not {b"fmt ", b"data"} <= chunks.keys():
        return wav
    start, size = chunks[b"data"]
    rest = wav[max(start + size for start, size in chunks.values()) :]
    if size == 0 and any(rest):
        return wav[: start - 4] + b"\xff" * 4 + wav[start:]
    bytes_per_second = int.from_bytes(wav[chunks[b"fmt "][0] :][8:12], "little")
    if len(rest.strip(b"\0")) > SLACK * bytes_per_second:
        raise DamagedError(
            f"has {len(rest)} bytes after its {size} bytes of samples, which no header accounts for: "
            "two files joined, or a wrong length"
        )
    return wav


def _chunks(wav: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, beginning and size of a RIFF file's chunks, as far as they have names and fit, but for data."""
    position = 12
    while position + 8 <= len(wav):
        name, size = struct.unpack_from("<4sI", wav, position)
        position += 8
        if name == b"RIFF" or not re.fullmatch(rb"[ -~]{4}", name):
            return
        if position + size > len(wav) and name != b"data":
            return
        yield name, position, size
        position += size
        if size % 2 and wav.startswith(b"\0", position):  # filled up to an even size; some programs forget it
            position += 1


def _ogg_links(encoded: bytes) -> list[bytes]:
    """The links of a chained Ogg file (RFC 3533): each begins with the pages that begin its streams."""
    starts, position, began = [], 0, False
    while encoded.startswith(b"OggS", position):
        header = encoded[position : position + 27]
        segments = encoded[position + 27 : position + 27 + header[-1]]
        begins = bool(header[5:6]) and bool(header[5] & 2)
        if begins and not began:
            starts.append(position)
        began = begins
        position += 27 + len(segments) + sum(segments)
        if len(segments) < header[-1] or position > len(encoded):
            raise DamagedError("is cut off within a page")
    if b"OggS" in encoded[position:]:
        raise DamagedError(f"is corrupt: no page begins at byte {position}, where one ends")
    return [encoded[start:end] for start, end in zip(starts, [*starts[1:], position], strict=True)]


def packets(encoded: bytes) -> Packets | None:
    """The packets of its first audio stream; None where FFmpeg finds none."""
    from av.codec.codec import Properties
    from av.error import FFmpegError

    try:
        with _opened(encoded) as (container, stream):
            lengths = [packet.duration or 0 for packet in container.demux(stream)]
            lossless = Properties.LOSSLESS in Properties(stream.codec.properties)
            unit = float(stream.time_base or 0)
    except (FFmpegError, DamagedError):
        return None
    return Packets(sum(lengths) * unit, 0.0 if lossless else PADDING * max(lengths) * unit)


def decode(encoded: bytes) -> tuple["np.ndarray", int]:
    """Samples to the end of the first audio stream, by FFmpeg: float32 [samples, channels], and their rate in
    Hz.

    Raises:
        DamagedError: it has no audio, cannot be decoded, or ends before its header says.
    """
    import av
    import numpy as np
    from av.error import FFmpegError

    try:
        with _opened(encoded) as (container, stream):
            stream.codec_context.options = {"err_detect": "crccheck+explode"}
            planar = av.AudioResampler(format="fltp")
            frames = [*container.decode(stream), None]
            blocks = [block for frame in frames for block in planar.resample(frame)]
            stated = _stated_seconds(encoded, container)
    except (FFmpegError, ValueError) as error:
        raise DamagedError(f"is corrupt ({_reason(error)})") from error
    if not blocks:
        return np.zeros((0, 1), np.float32), stream.rate
    rate = blocks[0].sample_rate
    samples = np.concatenate([block.to_ndarray() for block in blocks], axis=1).T
    if len(samples) < (stated - SLACK) * rate:
        raise DamagedError(f"is cut off: {len(samples) / rate:.6g} of {stated:.6g} s can be decoded")
    return samples, rate


@contextmanager
def as_file(encoded: bytes) -> Iterator[IO[bytes]]:
    """A file that a library reads by itself. From a Python object it would read through callbacks, and there
    an interrupt is lost: the job would go on, with a recording that seems cut off."""
    with os.fdopen(os.memfd_create("audio"), "w+b") if sys.platform == "linux" else TemporaryFile() as file:
        file.write(encoded)
        file.seek(0)
        yield file


@contextmanager
def _opened(
    encoded: bytes,
) -> "Iterator[tuple[av.container.InputContainer, av.audio.stream.AudioStream]]":
    import av
    from av.error import FFmpegError

    with ExitStack() as opened:
        file = opened.enter_context(as_file(encoded))
        try:
            container = av.open(f"/dev/fd/{file.fileno()}", options={"format_whitelist": _FORMATS})
        except FFmpegError as error:
            raise DamagedError(f"is no readable audio ({_reason(error)})") from error
        opened.enter_context(container)
        if not container.streams.audio:
            raise DamagedError("is no readable audio (it has no audio stream)")
        yield container, container.streams.audio[0]


def _stated_seconds(encoded: bytes, container: "av.container.InputContainer") -> float:
    """The length that the headers state; 0 where they state none."""
    if container.format.name in _ESTIMATED:
        rate = container.streams.audio[0].rate
        tag = _FRAMES.search(encoded, start := _after_id3(encoded), start + 256)
        frames = int.from_bytes(tag[1] or tag[2]) if tag else 0
        return frames * (1152 if rate >= 32_000 else 576) / rate  # of MPEG-1's layer 3, and of MPEG-2's
    return (container.duration or 0) / 1e6


def _after_id3(encoded: bytes) -> int:
    """Where an ID3v2 tag ends: its size is in four bytes of seven bits, without the ten of its header."""
    if not encoded.startswith(b"ID3") or len(encoded) < 10:
        return 0
    return 10 + sum(byte << shift for byte, shift in zip(encoded[6:10], (21, 14, 7, 0), strict=True))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
