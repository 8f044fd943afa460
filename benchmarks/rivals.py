"""Ways from audio to greedy tokens, or text, on the same weights: each a function of a batch of audios.

transformers' `generate` and pipeline come with wq; faster-whisper with the extra `bench`.
"""

# pyright: reportMissingImports=false
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import pipeline as make_pipeline

from benchmarks.cases import Case
from wq.whisper.decode import SAMPLING_RATE
from wq.whisper.features import log_mel
from wq.whisper.greedy import decode_greedily, encode_rows

Rows = list[list[int]] | list[str]
Transcriber = Callable[[list[np.ndarray]], Rows]


WHISPER_CPP = (
    "whisper.cpp (pywhispercpp): it knows the special tokens by OpenAI's numbers, 50256 and on, and the "
    "shipped model's vocabulary has 1,133"
)


class Unavailable(Exception):
    """Why a rival cannot be measured here."""


def ours(case: Case, batch: int, threads: int) -> Transcriber:
    model = case.model

    def transcribe(audios: list[np.ndarray]) -> Rows:
        states = encode_rows(model, log_mel(case.extractor, audios).to(model.device))
        return decode_greedily(model, states, len(audios), case.rules)

    return transcribe


def generate(case: Case, batch: int, threads: int) -> Transcriber:
    def transcribe(audios: list[np.ndarray]) -> Rows:
        features = case.extractor(
            audios, sampling_rate=SAMPLING_RATE, return_tensors="pt", return_attention_mask=True
        ).to(case.model.device)
        ids: Any = case.model.generate(
            features.input_features, attention_mask=features.attention_mask, **greedy(case)
        )
        return ids.tolist()

    return transcribe


def greedy(case: Case) -> dict[str, Any]:
    """`generate`'s own settings; the pipeline would take five beams."""
    settings = {"do_sample": False, "num_beams": 1, "return_timestamps": False}
    return settings | {"max_new_tokens": case.rules.limit}


def pipeline(case: Case, batch: int, threads: int) -> Transcriber:
    if case.whisper is None:
        raise Unavailable("these weights have no tokenizer, and the pipeline gives text")
    parts: Any = {"tokenizer": case.whisper.tokenizer, "feature_extractor": case.extractor}
    recogniser = make_pipeline("automatic-speech-recognition", case.model, batch_size=batch, **parts)

    def transcribe(audios: list[np.ndarray]) -> Rows:
        recordings: Any = [{"raw": audio, "sampling_rate": SAMPLING_RATE} for audio in audios]
        found: Any = recogniser(recordings, generate_kwargs=greedy(case))
        return [each["text"] for each in found]

    return transcribe


def faster_whisper(case: Case, batch: int, threads: int) -> Transcriber:
    """Its features and its engine, CTranslate2, in float32 and in our batches. Its own `transcribe` takes one
    recording at a time, and pads to 30 s whatever the model's window is."""
    try:
        import ctranslate2
        from ctranslate2.converters import TransformersConverter
        from faster_whisper.feature_extractor import FeatureExtractor
    except ImportError:
        raise Unavailable("not installed: pip install -c constraints.txt -e '.[bench]'") from None
    if case.whisper is None:
        raise Unavailable("these weights have no tokenizer, which its converter wants")
    if case.model.device.type != "cpu":
        raise Unavailable("measured on CPUs only")
    with tempfile.TemporaryDirectory() as directory:
        converted = Path(directory) / "converted"
        TransformersConverter(str(case.whisper.directory)).convert(str(converted), quantization="float32")
        engine = ctranslate2.models.Whisper(
            str(converted), device="cpu", compute_type="float32", inter_threads=1, intra_threads=threads
        )
    extractor = FeatureExtractor(chunk_length=case.window // SAMPLING_RATE)
    prompt = list(case.rules.prompt)

    def transcribe(audios: list[np.ndarray]) -> Rows:
        padded = (np.pad(audio, (0, case.window - len(audio))) for audio in audios)
        features = np.stack([extractor(audio, padding=0) for audio in padded])
        found = engine.generate(
            ctranslate2.StorageView.from_array(features),
            [prompt] * len(audios),
            beam_size=1,
            max_length=len(prompt) + case.rules.limit,
        )
        return [each.sequences_ids[0] for each in found]

    return transcribe


TRANSCRIBERS: dict[str, Callable[[Case, int, int], Transcriber]] = {
    "wq": ours,
    "generate": generate,
    "pipeline": pipeline,
    "faster-whisper": faster_whisper,
}


def agreeing(case: Case, found: Rows, expected: Rows) -> int:
    """How many rows say the same: by their tokens without prompt, end and padding, or by their texts where
    one has but these."""
    special = {case.rules.end, *case.rules.prompt}

    def text(row: list[int] | str) -> str:
        if isinstance(row, str):
            return row.strip()
        assert case.whisper is not None
        return str(case.whisper.tokenizer.decode(row, skip_special_tokens=True)).strip()

    def same(one: list[int] | str, other: list[int] | str) -> bool:
        if isinstance(one, str) or isinstance(other, str):
            return text(one) == text(other)
        return [token for token in one if token not in special] == [t for t in other if t not in special]

    return sum(same(one, other) for one, other in zip(found, expected, strict=True))


def transcribers(case: Case, batch: int, threads: int) -> tuple[dict[str, Transcriber], dict[str, str]]:
    """Everything that can transcribe this case by its name, and why the others cannot."""
    found: dict[str, Transcriber] = {}
    missing: dict[str, str] = {}
    for name, make in TRANSCRIBERS.items():
        try:
            found[name] = make(case, batch, threads)
        except Unavailable as reason:
            missing[name] = str(reason)
    return found, missing


def in_batches(transcribe: Transcriber, audios: list[np.ndarray], batch: int) -> Rows:
    rows: list[Any] = []
    with torch.inference_mode():
        for first in range(0, len(audios), batch):
            rows += transcribe(audios[first : first + batch])
    return rows
