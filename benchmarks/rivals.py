"""Ways from audio to greedy tokens, or text, on the same weights: each a function of batches of audios.

transformers' `generate` and pipeline come with wq; faster-whisper with the extra `bench`. Each has a
process of its own: once CTranslate2 has computed in one, torch takes up to twice as long there.
"""

# pyright: reportMissingImports=false
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import pipeline as make_pipeline
from transformers.utils import logging

from benchmarks.cases import Case
from wq.whisper.decoding.decode import SAMPLING_RATE
from wq.whisper.decoding.features import log_mel
from wq.whisper.decoding.greedy import decode_greedily, encode_rows
from wq.whisper.decoding.onednn import packed_weights

Rows = list[Any]  # ids, or a text, for each audio
Batches = list[list[np.ndarray]]
Transcriber = Callable[[Batches], Rows]

WHISPER_CPP = (
    "whisper.cpp (pywhispercpp): it knows the special tokens by OpenAI's numbers, 50256 and on, and the "
    "shipped model's vocabulary has 1,133"
)


class Unavailable(Exception):
    """Why a rival cannot be measured here."""


def ours(case: Case, batch: int, threads: int) -> Transcriber:
    model = case.model

    def transcribe(batches: Batches) -> Rows:
        rows = []
        with torch.inference_mode(), packed_weights(model.model.decoder, model.proj_out):
            for audios in batches:
                states = encode_rows(model, log_mel(case.extractor, audios).to(model.device))
                rows += decode_greedily(model, states, len(audios), case.rules)
        return rows

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

    return in_batches(transcribe)


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

    return in_batches(transcribe)


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

    return in_batches(transcribe)


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


def in_batches(transcribe: Callable[[list[np.ndarray]], Rows]) -> Transcriber:
    def transcribe_all(batches: Batches) -> Rows:
        return [row for audios in batches for row in transcribe(audios)]

    return transcribe_all


@contextmanager
def transcribers(
    make_case: Callable[[], Case], batch: int, threads: int, device: str
) -> Iterator[tuple[dict[str, Transcriber], dict[str, str]]]:
    """Everything that can transcribe this case by its name, each in a process of its own, and why the others
    cannot."""
    found: dict[str, Transcriber] = {}
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        for name in TRANSCRIBERS:
            process = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
            reason = process.submit(prepare, name, make_case, batch, threads, device).result()
            if reason:
                missing[name] = reason
            else:
                found[name] = lambda batches, process=process: process.submit(transcribe, batches).result()
        yield found, missing


# Of this process, once it is prepared
_transcriber: list[Transcriber] = []


def prepare(name: str, make_case: Callable[[], Case], batch: int, threads: int, device: str) -> str | None:
    """Make this process one that can `transcribe`. Returns why it cannot."""
    torch.set_num_threads(threads)
    logging.set_verbosity_error()
    case = make_case()
    case.model.to(device)  # type: ignore[arg-type]  # its stub knows no names of devices
    try:
        _transcriber.append(TRANSCRIBERS[name](case, batch, threads))
    except Unavailable as reason:
        return str(reason)
    return None


def transcribe(batches: Batches) -> Rows:
    return _transcriber[0](batches)
