"""Made-up points for the page: every setting of each kind with every other."""

import itertools
from pathlib import Path

import numpy as np

from wq.study.compare.selection import Selection
from wq.study.score import statistics
from wq.study.store import results
from wq.study.store.results import Row

FORMATS = {"int4": 0.06, "int3": 0.2, "nvfp4": 0.09}
GROUPS = {32: 0.0, 128: 0.05}
ACTIVATIONS = {"none": 0.0, "int8-token": 0.02}
SMOOTHING = {"none": 0.02, "fixed": 0.0}
CACHES = {"none": 0.0, "int8": 0.01}
SENTENCE = "turn the kitchen light on please"
UTTERANCES = 40


def points(directory: Path, model: str = "nano", texts: list[str] | None = None) -> Selection:
    """The reference and 48 points, with their transcripts in the directory."""
    random = np.random.default_rng(0)
    spoken = texts or [f"{SENTENCE} {n}" for n in range(UTTERANCES)]
    rows, transcripts = [], {}
    grid = itertools.product(
        FORMATS.items(), GROUPS.items(), ACTIVATIONS.items(), SMOOTHING.items(), CACHES.items()
    )
    settings = [({"format": "fp32", "granularity": "none", "group": None}, 0.03)]
    for (name, loss), (group, coarse), (activation, rounding), (smoothing, rough), (cache, stored) in grid:
        settings.append(
            (
                {"format": name, "granularity": "group", "group": group, "weights": f"{name}-g{group}"}
                | {"activation": activation, "smoothquant": smoothing, "kv_cache": cache},
                loss + coarse + stored + rounding + (rough if activation != "none" else 0),
            )
        )
    for columns, loss in settings:
        row, utterances = evaluated(columns, loss, model, spoken, random)
        path = directory / f"{row['fingerprint']}.jsonl"
        results.write_rows(path, utterances)
        rows.append(row)
        transcripts[row["fingerprint"]] = path
    return Selection(rows, transcripts)


def evaluated(
    columns: Row, loss: float, model: str, spoken: list[str], random: np.random.Generator
) -> tuple[Row, list[Row]]:
    """A point whose words are another one, left out or doubled with a probability of `loss`."""
    utterances = []
    for n, text in enumerate(spoken):
        words = text.split()
        fate = [random.choice(["", "lamp", "twice"]) if random.random() < loss else word for word in words]
        heard = " ".join(
            f"{word} again" if kept == "twice" else kept for word, kept in zip(words, fate, strict=True)
        )
        errors = sum(word != kept for word, kept in zip(words, fate, strict=True))
        utterances.append(
            {"id": f"u{n}", "text": text, "pred_text": heard, "errors": errors, "words": max(1, len(words))}
        )
    errors = np.array([utterance["errors"] for utterance in utterances])
    words = np.array([utterance["words"] for utterance in utterances])
    interval = statistics.bootstrap_interval(errors, words, resamples=200)
    is_reference = columns["format"] == "fp32"
    bits = (
        32.0 if is_reference else int("".join(filter(str.isdigit, columns["format"]))) + 16 / columns["group"]
    )
    linear = int(1e6 * bits / 8)
    name = "fp32" if is_reference else "{weights} {activation} {smoothquant} {kv_cache}".format(**columns)
    rate = float(errors.sum() / words.sum())
    row = {
        "fingerprint": f"{model} {name}",
        "reference": None if is_reference else f"{model} fp32",
        "is_reference": is_reference,
        "status": "finished",
        "point": name,
        "model": model,
        "dataset": "commands",
        "split": "other",
        "language": "en",
        "roles": "encoder+decoder",
        "resamples": 1000,
        "seed": 0,
        **columns,
        "wer": rate,
        "wer_ci_low": interval.low,
        "wer_ci_high": interval.high,
        "wer_delta": None if is_reference else rate - 0.03,
        "wer_delta_p": None if is_reference else 0.001,
        "cer": rate / 2,
        "utterance_errors": errors.tolist(),
        "linear_bytes": linear,
        "model_bytes": linear + 200_000,
        "bits_per_weight": bits,
        "memory_bytes": linear + (900_000 if columns.get("kv_cache") == "int8" else 2_000_000),
        "moved_bytes": 30 * linear,
        "role_bytes": {"encoder.mlp.fc1": linear // 3, "decoder.mlp.fc1": linear - linear // 3},
        "compression_ratio": 16 / bits,
        "command": f"python -m wq.main format={columns['format']} group={columns['group']}",
        "version_wq": "0.1.0",
    }
    return row, utterances
