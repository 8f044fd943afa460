"""Containers whose headers are wrong about their length: what is heard of them, beside what was recorded."""

import io
import struct

import av
import numpy as np
import pytest
import soundfile

from wq.hub import ASSETS
from wq.study.speech.audio import DataError, Entry, decode, measure

RATE = 16_000
PADDING = 0.1  # seconds that a lossy encoder may add to each stream

RECORDINGS = sorted((ASSETS / "commands" / "clean").iterdir())[:2]
# The second is faint, so that a variable bit rate falls
SPEECH = np.concatenate(
    [
        soundfile.read(file, dtype="float32")[0] * gain
        for file, gain in zip(RECORDINGS, (1, 0.01), strict=True)
    ]
)
N = len(SPEECH)


def encode(format: str, subtype: str | None = None, rate: int = RATE, **options: object) -> bytes:
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, 1, subtype, format=format, **options) as audio:  # type: ignore[arg-type]
        audio.write(SPEECH)
    return file.getvalue()


def encode_with_ffmpeg(codec: str, format: str, **options: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=format, options=options) as container:
        stream = container.add_stream(codec, rate=RATE)
        assert isinstance(stream, av.AudioStream)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(
            (SPEECH[None] * 2**15).astype(np.int16), format="s16", layout="mono"
        )
        frame.rate, frame.pts = RATE, 0
        resampler = av.AudioResampler(format=stream.format, layout="mono", rate=RATE)
        for each in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(each))
        container.mux(stream.encode(None))
    return file.getvalue()


def with_bytes(audio: bytes, position: int, new: bytes) -> bytes:
    return audio[:position] + new + audio[position + len(new) :]


WAV, FLAC, VORBIS, OPUS = encode("WAV"), encode("FLAC"), encode("OGG", "VORBIS"), encode("OGG", "OPUS")
CBR, VBR = (encode("MP3", bitrate_mode=mode, compression_level=0.3) for mode in ("CONSTANT", "VARIABLE"))
M4A, ADTS = encode_with_ffmpeg("aac", "ipod"), encode_with_ffmpeg("aac", "adts")
OGG_FLAC = encode_with_ffmpeg("flac", "ogg")


def untagged(mp3: bytes) -> bytes:
    """Without the first frame, which holds the number of frames."""
    return mp3[mp3.index(mp3[:2], 4) :]


def tagged(mp3: bytes, share: float) -> bytes:
    """With another number of frames in the tag of its first frame."""
    position = max(mp3[:200].find(b"Xing"), mp3[:200].find(b"Info")) + 8
    (frames,) = struct.unpack_from(">I", mp3, position)
    return with_bytes(mp3, position, struct.pack(">I", round(frames * share)))


def wav(size: int, rest: bytes = b"") -> bytes:
    """With this size of the samples, and of the whole."""
    position = WAV.index(b"data") + 4
    sized = with_bytes(WAV, 4, struct.pack("<I", min(size + 36, 2**32 - 1)))
    return with_bytes(sized, position, struct.pack("<I", size)) + rest


def flac(samples: int) -> bytes:
    """With this total number of samples: 36 bits at the end of ten bytes of STREAMINFO."""
    assert samples < 2**32
    return with_bytes(FLAC, 21, bytes([FLAC[21] & 0xF0]) + struct.pack(">I", samples))


ID3 = b"ID3\3\0\0" + bytes([0, 0, 100, 0]) + bytes(100 << 7)  # an ID3v2 tag, as with a cover's picture
LIST = b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + struct.pack("<I", 14) + b"Lavf58.29.100\0"

# What is heard: how many times the recording, or what the error says
HEARD: dict[str, tuple[bytes, int | str]] = {
    "wav": (WAV, 1),
    "wav, size as of ffmpeg's pipe": (wav(0xFFFF_FFFF), 1),
    "wav, size as of SoX's pipe": (wav(0x7FFF_F000), 1),
    "wav, size as of ALSA's pipe": (wav(0x8000_0000), 1),
    "wav, size 0": (wav(0), 1),
    "wav, metadata behind": (WAV + LIST, 1),
    "wav, metadata and zeros behind": (WAV + LIST + bytes(50_000), 1),
    "wav, half the size": (wav(N), "no header accounts for: two files joined, or a wrong length"),
    "wav, more than the size": (wav(2 * N + 1000), "is cut off"),
    "wav, joined": (WAV + WAV, "two files joined"),
    "wav, half": (WAV[: len(WAV) // 2], "is cut off"),
    "rf64, half": (encode("RF64")[:N], "is cut off"),
    "aiff, half": (encode("AIFF")[:N], "is cut off"),
    "flac": (FLAC, 1),
    "flac, total unknown": (flac(0), 1),
    "flac, half the total": (flac(N // 2), 1),
    "flac, total short by one": (flac(N - 1), 1),
    "flac, twice the total": (flac(2 * N), "is cut off"),
    "flac, tag before": (ID3 + FLAC, 1),
    "flac, joined": (FLAC + FLAC, 2),
    "flac, half": (FLAC[: len(FLAC) // 2], "is corrupt"),
    "vorbis": (VORBIS, 1),
    "vorbis, joined": (VORBIS + VORBIS, 2),
    "vorbis, three joined": (VORBIS * 3, 3),
    "vorbis, zeros behind": (VORBIS + bytes(5000), 1),
    "vorbis, half": (VORBIS[: len(VORBIS) // 2], "is cut off within a page"),
    "vorbis, noise between pages": (VORBIS.replace(b"OggS", b"noise" * 99 + b"OggS")[495:], "no page begins"),
    "opus": (OPUS, 1),
    "opus, joined": (OPUS + OPUS, 2),
    "opus, half": (OPUS[: len(OPUS) // 2], "is cut off within a page"),
    "vorbis of two rates, joined": (
        VORBIS + encode("OGG", "VORBIS", 8000),
        "changes within, from 1 channels",
    ),
    "ogg of flac": (OGG_FLAC, 1),
    "mp3, constant": (CBR, 1),
    "mp3, constant, no number of frames": (untagged(CBR), 1),
    "mp3, constant, tag before": (ID3 + CBR, 1),
    "mp3, constant, tag before, no number of frames": (ID3 + untagged(CBR), 1),
    "mp3, variable": (VBR, 1),
    "mp3, variable, no number of frames": (untagged(VBR), 1),
    "mp3, variable, tag before, no number of frames": (ID3 + untagged(VBR), 1),
    "mp3, variable, half the frames": (tagged(VBR, 0.5), 1),
    "mp3, variable, twice the frames": (tagged(VBR, 2), "is cut off"),
    "mp3, variable, half": (VBR[: len(VBR) // 2], "is cut off"),
    "mp3, constant, half": (CBR[: len(CBR) // 2], "is cut off"),
    "mp3, joined": (VBR + VBR, 2),
    "mp3, joined, no number of frames": (untagged(VBR) + untagged(VBR), 2),
    "m4a": (M4A, 1),
    "m4a, half": (M4A[: len(M4A) // 2], "no readable audio"),
    "aac": (ADTS, 1),
    "a list of other files": (
        b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/etc/passwd\n",
        "no readable audio",
    ),
}


def entry(audio: bytes) -> Entry:
    return Entry("u1", "", "", "u1.audio", lambda: audio)


def heard(audio: bytes) -> np.ndarray:
    seconds = measure(audio, entry(audio))
    samples, rate = decode(audio, entry(audio), seconds)
    assert rate == RATE
    assert samples.dtype == np.float32
    assert len(samples) == pytest.approx(seconds * RATE, abs=0.5)
    return samples[:, 0]


def heard_by_ffmpeg(audio: bytes) -> float:
    """Seconds, at whatever rate."""
    with av.open(io.BytesIO(audio), "r") as container:
        return sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))


@pytest.mark.parametrize("name", HEARD)
def test_all_of_it_is_heard_or_the_file_is_refused(name: str) -> None:
    audio, times = HEARD[name]
    if isinstance(times, str):
        with pytest.raises(DataError) as caught:
            heard(audio)
        assert str(caught.value).startswith("utterance u1: u1.audio ")
        assert times in str(caught.value)
        return
    samples = heard(audio)
    if name.startswith(("wav", "flac")):  # sample by sample
        assert np.abs(samples - np.tile(SPEECH, times)).max() <= 2**-15
    assert times * N <= len(samples) <= times * (N + PADDING * RATE)
    assert len(samples) / RATE == pytest.approx(heard_by_ffmpeg(audio), abs=times * PADDING)
    assert likeness(samples[: -N * (times - 1) or None], SPEECH) > 0.95
    assert likeness(samples[N * (times - 1) :], SPEECH) > 0.95


def likeness(samples: np.ndarray, others: np.ndarray) -> float:
    """The highest correlation at any shift."""
    size = len(samples) + len(others)
    product = np.fft.rfft(samples, size) * np.fft.rfft(others, size).conj()
    return np.fft.irfft(product).max() / np.linalg.norm(samples) / np.linalg.norm(others)
