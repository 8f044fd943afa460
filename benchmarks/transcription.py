"""How fast audio becomes text: our greedy decoding beside transformers' `generate`, in the same batches.

    python benchmarks/transcription.py [--rounds 5] [--threads N] [--batches 1 8 32] [--models nano tiny]

Audio seconds per second (RTFx), features included, reading of files not: the median over rounds in which both
run in turn, so that whatever else the machine does hits both alike. `nano` is the shipped model on the clean
split of the shipped speech; `tiny` has the shape of Whisper tiny.en, random weights and a forced length, and
hears noise of 30 s. The second table compares the encoder with its matrix products alone: the same shapes
multiplied by whichever of torch's two libraries is faster, with nothing between them.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)
from transformers.utils import logging

from wq.study.config import DatasetConfig
from wq.study.datasets import load_speech
from wq.whisper.decode import SAMPLING_RATE
from wq.whisper.features import log_mel
from wq.whisper.greedy import FRAMES_AT_ONCE, Rules, decode_greedily, decoding_rules, encode, encode_rows
from wq.whisper.model import load, locate
from wq.whisper.onednn import QUERIES_AT_ONCE, OneDNN, fast_products


@dataclass(frozen=True)
class Case:
    """A model, the rules that it decodes by, and what it hears, longest first."""

    model: WhisperForConditionalGeneration
    extractor: WhisperFeatureExtractor
    rules: Rules
    audios: list[np.ndarray]


def nano(count: int) -> Case:
    whisper = load(locate("wq:nano"))
    speech = load_speech(DatasetConfig(source="manifest", path="wq:commands", split="clean"))
    audios = [speech.read(index, SAMPLING_RATE) for index in range(count)]
    rules = decoding_rules(whisper.model, None, whisper.model.config.max_target_positions // 2)
    return Case(whisper.model, whisper.feature_extractor, rules, sorted(audios, key=len, reverse=True))


def tiny(count: int, tokens: int = 32) -> Case:
    """Whisper tiny.en's shape. Nothing ends before the limit, since the end of text is suppressed."""
    vocabulary, end, start, no_timestamps = 51864, 50256, 50257, 50362
    config = WhisperConfig(
        vocab_size=vocabulary,
        d_model=384,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
        decoder_start_token_id=start,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
    )
    model = WhisperForConditionalGeneration(config).eval().requires_grad_(False)
    settings = GenerationConfig.from_model_config(config)
    # Nor may it write timestamps, or `generate` would go back to the audio that they point to
    suppressed = [end, *range(no_timestamps, vocabulary)]
    for name, value in {
        "suppress_tokens": suppressed,
        "no_timestamps_token_id": no_timestamps,
        "is_multilingual": False,
    }.items():
        setattr(settings, name, value)
    model.generation_config = settings
    noise = np.random.default_rng(0).standard_normal((count, 30 * SAMPLING_RATE)).astype(np.float32) * 0.1
    return Case(model, WhisperFeatureExtractor(), decoding_rules(model, None, tokens), list(noise))


def generate(case: Case, audios: list[np.ndarray]) -> list[list[int]]:
    features = case.extractor(
        audios, sampling_rate=SAMPLING_RATE, return_tensors="pt", return_attention_mask=True
    )
    ids: Any = case.model.generate(
        features.input_features,
        attention_mask=features.attention_mask,
        do_sample=False,
        num_beams=1,
        return_timestamps=False,
        max_new_tokens=case.rules.limit,
    )
    return ids.tolist()


def ours(case: Case, audios: list[np.ndarray]) -> list[list[int]]:
    states = encode_rows(case.model, log_mel(case.extractor, audios))
    return decode_greedily(case.model, states, len(audios), case.rules)


def medians(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each call: all of them in turn in every round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return {name: median(values[1:]) for name, values in seconds.items()}


def transcription_line(name: str, case: Case, batch: int, rounds: int) -> str:
    batches = [case.audios[first : first + batch] for first in range(0, len(case.audios), batch)]
    end = case.rules.end
    for audios in batches[:1]:
        pairs = zip(generate(case, audios), ours(case, audios), strict=True)
        same = sum([t for t in a if t != end] == [t for t in b if t != end] for a, b in pairs)
    seconds = medians(
        {
            "generate": lambda: [generate(case, audios) for audios in batches],
            "wq": lambda: [ours(case, audios) for audios in batches],
        },
        rounds,
    )
    audio = sum(map(len, case.audios)) / SAMPLING_RATE
    speeds = {name: audio / value for name, value in seconds.items()}
    ratio = speeds["wq"] / speeds["generate"]
    return (
        f"| {name} | {batch} | {speeds['generate']:.0f} | {speeds['wq']:.0f} | {ratio:.2f} "
        f"| {same} of {len(batches[0])} |"
    )


def products(model: WhisperForConditionalGeneration, rows: int) -> float:
    """Seconds of the encoder's matrix products for one window, in the faster of torch's two libraries."""
    config = model.config
    frames, size, wide = config.max_source_positions, config.d_model, config.encoder_ffn_dim
    layers, head = config.encoder_layers, config.d_model // config.encoder_attention_heads
    block = min(frames, QUERIES_AT_ONCE)
    blocks = layers * config.encoder_attention_heads * frames / block
    # (positions, inputs, outputs, how many in a window)
    shapes = [
        (rows * frames, size, size, 4 * layers / rows),
        (rows * frames, size, wide, layers / rows),
        (rows * frames, wide, size, layers / rows),
        (2 * frames, 3 * config.num_mel_bins, size, 1),
        (frames, 3 * size, size, 1),
        (block, head, frames, blocks),
        (block, frames, head, blocks),
    ]
    total = 0.0
    for positions, inputs, outputs, count in shapes:
        x, weight = torch.randn(positions, inputs), torch.randn(outputs, inputs)
        total += count * best_product(lambda x=x, weight=weight: F.linear(x, weight, None))
    return total


def best_product(call: Callable[[], object]) -> float:
    def with_onednn() -> None:
        with OneDNN():
            call()

    return min(medians({"mkl": call, "onednn": with_onednn}, 9).values())


def encoder_line(name: str, case: Case, rounds: int) -> str:
    encoder = case.model.model.encoder
    rows = max(FRAMES_AT_ONCE // case.model.config.max_source_positions, 1)
    features = log_mel(case.extractor, case.audios[:rows])

    def encode_fast() -> None:
        with fast_products():
            encode(encoder, features)

    seconds = medians(
        {"generate": lambda: encoder(features).last_hidden_state, "wq": encode_fast}, 3 * rounds
    )
    cells = [seconds["generate"] / rows, seconds["wq"] / rows, products(case.model, rows)]
    return f"| {name} | {' | '.join(f'{1e3 * cell:.1f}' for cell in cells)} | {cells[2] / cells[1]:.0%} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of transcription on this machine.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--utterances", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--models", nargs="+", choices=["nano", "tiny"], default=["nano", "tiny"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    logging.set_verbosity_error()
    cases = {"nano": (nano, arguments.utterances), "tiny": (tiny, 4)}
    chosen = {name: make(count) for name, (make, count) in cases.items() if name in arguments.models}
    with torch.inference_mode():
        print(f"{arguments.threads} threads, torch {torch.__version__}; audio seconds per second\n")
        print("| model | batch | generate | wq | ratio | same tokens |")
        print("| --- | ---: | ---: | ---: | ---: | ---: |")
        for name, case in chosen.items():
            for batch in sorted({min(batch, len(case.audios)) for batch in arguments.batches}):
                # Single utterances take long: a few are enough
                part = replace(case, audios=case.audios[:: 4 if batch == 1 else 1])
                print(transcription_line(name, part, batch, arguments.rounds), flush=True)
        print("\nThe encoder, milliseconds for one window\n")
        print("| model | generate's | wq | products alone | share of the limit |")
        print("| --- | ---: | ---: | ---: | ---: |")
        for name, case in chosen.items():
            print(encoder_line(name, case, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
