"""Two runs over the same utterances: how their error rates differ, how sure that is, and where they differ.

Both are scored anew from their raw transcripts, so that runs of any age compare under one normaliser.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wq.study.score import statistics, wer
from wq.study.score.mapsswe import Alignment, MatchedPairs, mapsswe
from wq.study.score.statistics import Comparison, Interval
from wq.study.store.results import Row


@dataclass(frozen=True)
class Side:
    """A finished run: its row and its utterances' rows, and where they are from."""

    row: Row
    transcripts: list[Row]
    place: str

    @property
    def name(self) -> str:
        return str(self.row.get("point") or self.place)


@dataclass(frozen=True)
class ChangedUtterance:
    """An utterance that the two transcribe in other words. errors: of the first and of the second."""

    id: str
    words: int
    errors: tuple[int, int]
    alignments: tuple[Alignment, Alignment]

    @property
    def more_errors(self) -> int:
        return self.errors[1] - self.errors[0]


@dataclass(frozen=True)
class ByToken:
    """A measure that both runs have of the same tokens, in nats per token; the second against the first."""

    first: float
    second: float
    change: statistics.Difference


@dataclass(frozen=True)
class Difference:
    """The second run against the first.

    scores, intervals  of the first and of the second
    comparison         paired, over the utterances; `unchanged` is the share of transcripts that are the same
                       to the letter
    matched            the second worse than the first where z is positive
    changes            those with the most errors more in the second come first
    by_token           kl and nll, where both runs have them
    """

    sides: tuple[Side, Side]
    scores: tuple[wer.Score, wer.Score]
    intervals: tuple[Interval, Interval]
    comparison: Comparison
    matched: MatchedPairs
    changes: list[ChangedUtterance]
    by_token: dict[str, ByToken]
    resamples: int
    seed: int


def difference(first: Side, second: Side) -> Difference:
    """Compare two runs, with the resamples, seed and language of the first.

    Raises ValueError where they are not over the same utterances and references.
    """
    texts, others = _paired(first, second)
    language = str(first.row.get("language") or "en")
    resamples, seed = int(first.row.get("resamples") or 10_000), int(first.row.get("seed") or 0)
    ids, references = list(texts), [reference for reference, _ in texts.values()]
    heard = [text for _, text in texts.values()], [others[id][1] for id in ids]
    one, two = (wer.score(ids, references, texts, language) for texts in heard)
    scored = [n for n, id in enumerate(ids) if id in set(one.ids)]
    pairs = [
        (
            wer.alignment(references[n], heard[0][n], language),
            wer.alignment(references[n], heard[1][n], language),
        )
        for n in scored
    ]
    changes = [
        ChangedUtterance(id, int(words), (int(errors), int(other_errors)), pair)
        for id, words, errors, other_errors, pair in zip(
            one.ids, one.words, one.errors, two.errors, pairs, strict=True
        )
        if pair[0] != pair[1]
    ]
    return Difference(
        sides=(first, second),
        scores=(one, two),
        intervals=(
            statistics.bootstrap_interval(one.errors, one.words, resamples=resamples, seed=seed),
            statistics.bootstrap_interval(two.errors, two.words, resamples=resamples, seed=seed),
        ),
        comparison=statistics.compare(
            two.errors,
            two.words,
            one.errors,
            changed=np.array([heard[0][n] != heard[1][n] for n in scored]),
            resamples=resamples,
            seed=seed,
        ),
        matched=mapsswe((after, before) for before, after in pairs),
        changes=sorted(changes, key=lambda change: -change.more_errors),
        by_token={
            name: found
            for name in ("kl", "nll")
            if (found := _by_token(name, first, second, one.ids, resamples=resamples, seed=seed))
        },
        resamples=resamples,
        seed=seed,
    )


def _by_token(name: str, first: Side, second: Side, ids: Sequence[str], **bootstrap: int) -> ByToken | None:
    """Over these utterances; None where a run has not read them, or not the same tokens."""
    sides = [{row["id"]: row for row in side.transcripts} for side in (first, second)]
    try:
        sums, others = (np.array([rows[id][name] for id in ids], float) for rows in sides)
        tokens, same = (np.array([rows[id][f"{name}_tokens"] for id in ids], int) for rows in sides)
    except (KeyError, TypeError):
        return None
    read = tokens > 0
    if not read.any() or (tokens != same).any():
        return None
    change = statistics.difference((others - sums)[read], tokens[read], **bootstrap)
    return ByToken(float(sums.sum() / tokens.sum()), float(others.sum() / tokens.sum()), change)


def _paired(first: Side, second: Side) -> tuple[dict[str, tuple[str, str]], dict[str, tuple[str, str]]]:
    """id -> (reference, hypothesis) of both, which are of the same utterances and references."""
    texts, others = _texts(first), _texts(second)
    only = next(iter((texts.keys() - others.keys()) | (others.keys() - texts.keys())), None)
    changed = next((id for id in texts if id in others and texts[id][0] != others[id][0]), None)
    if only is None and changed is None:
        return texts, others
    if only is None:
        reason = f"utterance {changed} has another reference"
    else:
        reason = f"{len(texts)} and {len(others)} utterances, {only} in only one of them"
    raise ValueError(
        f"{first.name} and {second.name} are not of the same test set ({reason}); only runs over the same "
        "utterances can be compared"
    )


def _texts(side: Side) -> dict[str, tuple[str, str]]:
    """id -> (reference, hypothesis)."""
    for row in side.transcripts:
        for name in ("id", "text", "pred_text"):
            if not isinstance(row.get(name), str):
                raise ValueError(
                    f"an utterance of {side.place} has no {name}; only runs with the id, text and pred_text "
                    "of all can be compared"
                )
    return {row["id"]: (row["text"], row["pred_text"]) for row in side.transcripts}
