"""Synthesise the speech of the `commands` corpus with Debian's text-to-speech engines.

    python recipes/nano/corpus.py WORK

needs the packages flite, espeak-ng, festival, festvox-kallpc16k, festvox-kdlpc16k and festvox-us-slt-hts. It
writes WORK/audio.i16 (16 kHz mono int16, utterances one after the other) and WORK/corpus.jsonl (id, split,
voice, text, offset and length in samples). The same machine image gives the same bytes: every choice comes
from a seeded generator.
"""

import io
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from sentences import salads, sentences

RATE = 16_000
WINDOW = 5.0  # seconds; the model's window, which no utterance may exceed
MARGIN = 0.12  # seconds of silence kept at either end


@dataclass(frozen=True)
class Voice:
    """A speaker: an engine, its voice name, and the rate and pitch around which utterances vary."""

    name: str
    engine: str
    model: str
    rate: float = 1.0
    pitch: float = 1.0


KNOWN = [
    Voice("flite-slt", "flite", "slt"),
    Voice("flite-rms", "flite", "rms"),
    Voice("flite-awb", "flite", "awb"),
    Voice("flite-kal16", "flite", "kal16"),
    Voice("flite-rms-high", "flite", "rms", 1.05, 1.35),
    Voice("flite-slt-low", "flite", "slt", 0.95, 0.75),
    Voice("festival-slt-hts", "festival", "cmu_us_slt_arctic_hts"),
    Voice("festival-kal", "festival", "kal_diphone", 1.05),
    Voice("espeak-us", "espeak", "en-us"),
    Voice("espeak-us-f2", "espeak", "en-us+f2"),
    Voice("espeak-gb-m3", "espeak", "en-gb+m3"),
]
UNSEEN = [
    Voice("festival-ked", "festival", "ked_diphone"),
    Voice("flite-awb-high", "flite", "awb", 1.1, 1.4),
    Voice("espeak-rp-f4", "espeak", "en-gb-x-rp+f4", 0.95),
    Voice("espeak-us-m7", "espeak", "en-us+m7", 1.05, 0.9),
]
# (split, grammar sentences, salads, voices, seed)
SPLITS = [
    ("train", 14_000, 8_000, KNOWN, 1),
    ("clean", 330, 0, KNOWN, 2),
    ("other", 330, 0, UNSEEN, 3),
    ("calibration", 72, 0, KNOWN, 4),
]


# What an engine is asked: text, rate and pitch as factors of the voice's own.
Line = tuple[str, float, float]


def say_flite(voice: Voice, lines: list[Line]) -> Iterator[bytes]:
    usual = {"slt": 170, "rms": 100, "awb": 120, "kal16": 100}[voice.model]
    for text, rate, pitch in lines:
        with tempfile.NamedTemporaryFile(suffix=".wav") as wav:
            stretch = ["--setf", f"duration_stretch={1 / rate:.3f}"]
            f0 = ["--setf", f"int_f0_target_mean={usual * pitch:.1f}"]
            subprocess.run(
                ["flite", "-voice", voice.model, *stretch, *f0, "-t", text, "-o", wav.name], check=True
            )
            yield Path(wav.name).read_bytes()


def say_espeak(voice: Voice, lines: list[Line]) -> Iterator[bytes]:
    for text, rate, pitch in lines:
        options = ["-s", str(round(155 * rate)), "-p", str(round(50 * pitch)), "--stdout"]
        command = ["espeak-ng", "-v", voice.model, *options, text]
        yield subprocess.run(command, check=True, capture_output=True).stdout


def say_festival(voice: Voice, lines: list[Line]) -> Iterator[bytes]:
    """All lines in one process: festival takes far longer to load a voice than to speak. It has no pitch
    control."""
    with tempfile.TemporaryDirectory() as folder:
        script = [f"(voice_{voice.model})"]
        for index, (text, rate, _) in enumerate(lines):
            script += [
                f"(Parameter.set 'Duration_Stretch {1 / rate:.3f})",
                f'(utt.save.wave (utt.synth (Utterance Text "{text}")) "{folder}/{index}.wav" \'riff)',
            ]
        Path(folder, "say.scm").write_text("\n".join(script))
        subprocess.run(["festival", "-b", f"{folder}/say.scm"], check=True, capture_output=True)
        for index in range(len(lines)):
            yield Path(folder, f"{index}.wav").read_bytes()


ENGINES: dict[str, Callable[[Voice, list[Line]], Iterator[bytes]]] = {
    "flite": say_flite,
    "espeak": say_espeak,
    "festival": say_festival,
}


def trim(audio: np.ndarray) -> np.ndarray:
    """Cut silence at both ends (below 1 % of the peak), keeping MARGIN."""
    loud = np.flatnonzero(np.abs(audio) > 0.01 * np.abs(audio).max())
    keep = int(MARGIN * RATE)
    return audio[max(loud[0] - keep, 0) : loud[-1] + keep]


def speak(voice: Voice, texts: list[str], seed: int) -> list[np.ndarray]:
    """float32 audio at 16 kHz, peak 0.3 to 0.9, rate and pitch within 15 % of the voice's own."""
    rng = random.Random(seed)
    lines = [
        (text, voice.rate * rng.uniform(0.92, 1.15), voice.pitch * rng.uniform(0.88, 1.12)) for text in texts
    ]
    out = []
    for wav in ENGINES[voice.engine](voice, lines):
        audio, source = soundfile.read(io.BytesIO(wav), dtype="float32")
        audio = trim(soxr.resample(audio, source, RATE) if source != RATE else audio)
        out.append(audio * (rng.uniform(0.3, 0.9) / np.abs(audio).max()))
    return out


def add_noise(audio: np.ndarray, seed: int, low: float, high: float) -> np.ndarray:
    """Add white-to-brown noise at a signal-to-noise ratio drawn from [low, high] dB."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft(rng.standard_normal(len(audio)))
    spectrum[1:] /= np.arange(1, len(spectrum)) ** rng.uniform(0, 0.8)
    noise = np.fft.irfft(spectrum, len(audio))
    ratio = 10 ** (rng.uniform(low, high) / 20)
    noisy = audio + noise * (np.sqrt((audio**2).mean() / (noise**2).mean()) / ratio)
    return (noisy * min(1.0, 0.95 / np.abs(noisy).max())).astype(np.float32)


@dataclass(frozen=True)
class Block:
    """Consecutive utterances of one split, spoken by one voice."""

    split: str
    first: int
    voice: Voice
    texts: list[str]
    seed: int


def plan() -> Iterator[Block]:
    """Every block of the corpus; a test sentence never occurs in another split."""
    held: set[str] = set()
    texts = {}
    for split, count, _, _, seed in reversed(SPLITS):
        texts[split] = sentences(count, seed, frozenset(held))
        held.update(texts[split])
    for split, _, extra, voices, seed in SPLITS:
        lines = [*texts[split], *salads(extra, seed)]
        block = 4 if split == "calibration" else 16  # the small split must hear every voice too
        for number, first in enumerate(range(0, len(lines), block)):
            voice = voices[number % len(voices)]
            yield Block(split, first, voice, lines[first : first + block], seed * 1_000_000 + first)


def main(work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    rows, position = [], 0
    with (work / "audio.i16").open("wb") as sink, ThreadPoolExecutor(3) as pool:
        spoken = pool.map(lambda block: (block, speak(block.voice, block.texts, block.seed)), plan())
        for block, audios in spoken:
            for index, (text, audio) in enumerate(zip(block.texts, audios, strict=True), block.first):
                if len(audio) > (WINDOW - 0.1) * RATE:
                    continue
                if block.split == "other":
                    audio = add_noise(audio, block.seed + index, -3, 9)
                samples = np.round(audio * 32767).astype(np.int16)
                sink.write(samples.tobytes())
                row = {"id": f"{block.split}-{index:05d}", "split": block.split, "voice": block.voice.name}
                rows.append(row | {"text": text, "offset": position, "length": len(samples)})
                position += len(samples)
            if len(rows) // 1000 > (len(rows) - len(audios)) // 1000:
                print(f"{len(rows)} utterances, {position / RATE / 3600:.2f} h", flush=True)
    (work / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
