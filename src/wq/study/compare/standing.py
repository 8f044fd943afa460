"""Where the points of a scene stand: on the Pareto front, off it, or neither, by their errors on every
utterance."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wq.study.score import pareto
from wq.study.store.results import Row

BROKEN, UNKNOWN = "broken", "unknown"  # standings of a point that is, and of one without a size


@dataclass(frozen=True)
class Errors:
    """Word errors of points on the scored utterances of their test set.

    words      reference words [utterances]
    lines      [utterances] where each stands in a `hypotheses.jsonl`
    of         row number -> errors [utterances]; rows of which they are not known are missing
    """

    words: np.ndarray
    lines: list[int]
    of: dict[int, np.ndarray]


def read_errors(rows: Sequence[Row], transcripts: Mapping[str, Path]) -> Errors | None:
    """From the rows' column `utterance_errors`, or else from their transcripts; None where no row has a
    `hypotheses.jsonl`, which alone tells the reference words."""
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


def read_sums(rows: Sequence[Row], measure: str, broken: Sequence[bool]) -> Errors | None:
    """The same of nats over tokens, from the rows' columns `utterance_kl` and the like; None where a row that
    is not broken has none, or not as many tokens as the others."""
    of, counts = {}, []
    for n, row in enumerate(rows):
        if not broken[n]:
            sums, tokens = row.get(f"utterance_{measure}"), row.get(f"utterance_{measure}_tokens")
            if not isinstance(sums, list) or not isinstance(tokens, list) or len(sums) != len(tokens):
                return None
            of[n] = np.array(sums, float)
            counts.append(tokens)
    if not counts or any(tokens != counts[0] for tokens in counts):
        return None
    tokens = np.array(counts[0])
    read = tokens > 0
    return Errors(tokens[read], [], {n: sums[read] for n, sums in of.items()}) if read.any() else None


def ranking(errors: Errors | None, broken: Sequence[bool], *, resamples: Any, seed: Any) -> pareto.Ranking:
    """Which rows are better than which (see `pareto.rank`). Those that are broken, and those of which nobody
    knows the errors per utterance, are better than none, and the same as none but themselves."""
    better, same = np.zeros((len(broken), len(broken)), bool), np.eye(len(broken), dtype=bool)
    known = [n for n in errors.of if not broken[n]] if errors else []
    if errors and known:
        found = pareto.rank(
            np.stack([errors.of[n] for n in known]),
            errors.words,
            resamples=resamples if isinstance(resamples, int) else 10_000,
            seed=seed if isinstance(seed, int) else 0,
        )
        here = np.ix_(known, known)
        better[here], same[here] = found.better, found.same
    return pareto.Ranking(better, same)


def standings(
    sizes: Sequence[float | None],
    ranked: pareto.Ranking,
    good: Sequence[bool],
    lost: Sequence[bool],
    broken: Sequence[bool],
) -> list[str]:
    """on, equivalent, undecided or off (see `pareto.standings`), broken or unknown, for every row. Those that
    are broken contend with none."""
    result = [BROKEN if each else UNKNOWN for each in broken]
    known = {n: size for n, size in enumerate(sizes) if size is not None and not broken[n]}
    rows, here = list(known), np.ix_(list(known), list(known))
    found = pareto.standings(
        list(known.values()),
        pareto.Ranking(ranked.better[here], ranked.same[here]),
        [good[n] for n in rows],
        [lost[n] for n in rows],
    )
    for n, standing in zip(rows, found, strict=True):
        result[n] = standing
    return result
