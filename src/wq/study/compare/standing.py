"""Where the points of a scene stand: on the Pareto front, off it, or undecided, by their errors on every
utterance."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wq.study.score import pareto
from wq.study.store.results import Row

UNKNOWN = "unknown"  # the standing of a point whose errors per utterance nobody knows


@dataclass(frozen=True)
class Errors:
    """Word errors of points on the scored utterances of their test set.

    words      reference words [utterances]
    lines      [utterances] where each stands in a `transcripts.jsonl`
    of         row number -> errors [utterances]; rows of which they are not known are missing
    """

    words: np.ndarray
    lines: list[int]
    of: dict[int, np.ndarray]


def read_errors(rows: Sequence[Row], transcripts: Mapping[str, Path]) -> Errors | None:
    """From the rows' column `utterance_errors`, or else from their transcripts; None where no row has a
    `transcripts.jsonl`, which alone tells the reference words."""
    known = ((n, read_transcripts(row, transcripts)) for n, row in enumerate(rows))
    first = next(((n, found) for n, found in known if found), None)
    if first is None:
        return None
    lines = [n for n, utterance in enumerate(first[1]) if utterance.get("words") is not None]
    words = np.array([first[1][n]["words"] for n in lines])
    of = {}
    for n, row in enumerate(rows):
        errors = row.get("utterance_errors")
        if not isinstance(errors, list):
            found = first[1] if n == first[0] else read_transcripts(row, transcripts)
            errors = [line["errors"] for line in found if line.get("words") is not None]
        try:
            counts = np.array(errors)
        except ValueError:  # lists of several lengths
            continue
        if counts.dtype.kind == "i" and counts.shape == words.shape:
            of[n] = counts
    return Errors(words, lines, of)


def read_transcripts(row: Row, transcripts: Mapping[str, Path]) -> list[Row]:
    """All utterances of a point; none where they cannot be read."""
    lines = transcript_lines(row, transcripts)
    try:
        found = [json.loads(line) for line in lines if line]
    except ValueError:
        return []
    return found if all(isinstance(each, dict) for each in found) else []


def transcript_lines(row: Row, transcripts: Mapping[str, Path]) -> list[bytes]:
    """One JSON object each, undecoded, as of many files few lines are looked at; none without a file."""
    try:
        return transcripts[str(row.get("fingerprint"))].read_bytes().split(b"\n")
    except (KeyError, OSError):
        return []


def standings(
    sizes: Sequence[float | None], errors: Errors | None, *, resamples: Any, seed: Any
) -> list[str]:
    """on, off, undecided (see `pareto.classify`) or unknown, for every row."""
    result = [UNKNOWN] * len(sizes)
    if errors is None:
        return result
    known = {n: size for n in errors.of if (size := sizes[n]) is not None}
    if known:
        found = pareto.classify(
            list(known.values()),
            np.stack([errors.of[n] for n in known]),
            errors.words,
            resamples=resamples if isinstance(resamples, int) else 10_000,
            seed=seed if isinstance(seed, int) else 0,
        )
        for n, standing in zip(known, found, strict=True):
            result[n] = standing
    return result
