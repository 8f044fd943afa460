"""Which points may be compared with each other, and how their numbers are written for people.

A row is the flat content of a `result.json`. Rows come from any version and may lack any column.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from wq.study.compare.standing import Errors, ranking, read_errors, read_sums, standings
from wq.study.score.noninferiority import LEVEL, MARGIN, Change, bounds, utterances_needed
from wq.study.score.pareto import ON, Ranking, front
from wq.study.score.statistics import holm
from wq.study.spec.config import MEASURES

Row = dict[str, Any]

SCENE = ("model", "dataset", "split", "limit", "window")  # tells scenes apart where rows name no reference
TOLD_APART = ("max_new_tokens", "long_audio", "seed", "resamples")  # and the reference, where these are alike
BROKEN_FROM = 0.9  # WER: with a tenth of the words right at most, where an empty transcript would have 1
BY_TOKEN = ("kl", "nll")
DEFAULT_MEASURE = "kl"
BEYOND_LINEAR = ("conv", "embedding", "*")  # roles with any of these in them are not of linear layers alone


@dataclass(frozen=True)
class Criteria:
    """What points are judged by.

    margin   by how much WER one may be worse than the reference and still be recommended
    measure  by which points are held against each other: wer, wer_capped, kl or nll; None is kl where all
             points have it, else wer_capped
    """

    margin: float = MARGIN
    measure: str | None = None

    def __post_init__(self) -> None:
        if self.measure is not None and self.measure not in MEASURES:
            raise ValueError(f"front={self.measure} is no measure; choose one of {', '.join(MEASURES)}")


@dataclass(frozen=True)
class Scene:
    """The finished points of one model on one test set, by size, those that are broken last: they share a
    front and a reference.

    `note` is what tells it from another scene of the same names, `transcripts` where the points' utterances
    are, by fingerprint, `criteria` what the points are judged by.
    """

    rows: list[Row]
    note: str = ""
    transcripts: Mapping[str, Path] = field(default_factory=dict)
    criteria: Criteria = Criteria()

    @property
    def margin(self) -> float:
        return self.criteria.margin

    @property
    def name(self) -> str:
        model = self.rows[0].get("model")
        parts = (None if model is None else str(model), self.test_set, self.note)
        return ", ".join(filter(None, parts)) or "all points"

    @property
    def test_set(self) -> str:
        dataset, split, limit, window = (self.rows[0].get(column) for column in SCENE[1:])
        named = " ".join(dict.fromkeys(str(part) for part in (dataset, split) if part is not None))
        limited = f"at most {limit} utterances" if limit is not None else None
        shortened = f"windows of {window} s" if window is not None else None
        return ", ".join(filter(None, (named, limited, shortened)))

    @cached_property
    def size_column(self) -> str:
        return size_column(self.rows)

    @property
    def is_whole_model(self) -> bool:
        """Whether its sizes are those of whole checkpoints."""
        return self.size_column == "model_bytes"

    @cached_property
    def on_front(self) -> list[bool]:
        """By the estimates alone."""
        return self.on_front_by(self.size_column)

    def on_front_by(self, column: str) -> list[bool]:
        """The same for another measure of size."""
        return front(
            [(None if is_broken(row) else number(row, column), number(row, "wer")) for row in self.rows]
        )

    @cached_property
    def errors(self) -> Errors | None:
        return read_errors(self.rows, self.transcripts)

    @cached_property
    def broken(self) -> list[bool]:
        return [is_broken(row) for row in self.rows]

    @cached_property
    def standing(self) -> list[str]:
        """on, equivalent, undecided, off, broken or unknown: the front with its uncertainty."""
        return self.standing_by(self.size_column)

    def standing_by(self, column: str) -> list[str]:
        """The same for another measure of size."""
        sizes = [number(row, column) for row in self.rows]
        good = [row is self.reference or self._is_not_inferior(n) for n, row in enumerate(self.rows)]
        return standings(sizes, self._ranking, good, self._lost, self.broken)

    @property
    def has_kl(self) -> bool:
        return any(number(row, "kl") is not None for row in self.rows)

    @cached_property
    def measure(self) -> str:
        """What the points are held against each other by."""
        return self._compared[0]

    @cached_property
    def _compared(self) -> tuple[str, Errors | None]:
        """The measure, and what every utterance has of it. A scene that was asked for one that not all of its
        points have goes by the next one."""
        asked = self.criteria.measure or DEFAULT_MEASURE
        if asked in BY_TOKEN and (sums := read_sums(self.rows, asked, self.broken)):
            return asked, sums
        if asked == "wer" or self.errors is None:
            return asked if asked == "wer" else "wer_capped", self.errors
        # else one endless loop would outweigh all that the others say
        words = self.errors.words
        return "wer_capped", replace(
            self.errors, of={n: np.minimum(each, words) for n, each in self.errors.of.items()}
        )

    @cached_property
    def _lost(self) -> list[bool]:
        """Which points make more errors than the reference, significantly. By tokens all do: no two models
        are the same."""
        reference = next((n for n, row in enumerate(self.rows) if row is self.reference), None)
        if self.measure not in BY_TOKEN:
            nothing = [False] * len(self.rows)
            return nothing if reference is None else self._ranking.better[reference].tolist()
        return [
            p is not None and p < LEVEL and (number(row, "wer_delta") or 0) > 0
            for row, p in zip(self.rows, self.corrected_p, strict=True)
        ]

    def _is_not_inferior(self, n: int) -> bool:
        most = self.at_most[n]
        return most is not None and most <= self.margin

    @cached_property
    def _ranking(self) -> Ranking:
        first = self.reference or self.rows[0]
        bootstrap = {name: first.get(name) for name in ("resamples", "seed")}
        return ranking(self._compared[1], self.broken, **bootstrap)

    @cached_property
    def at_most(self) -> list[float | None]:
        """By how much each point is worse than the reference at most, as a fraction: bounds that hold for all
        points together (see `noninferiority.bounds`). None where nobody knows, and for what is broken."""
        found = dict(zip(self._changes, bounds(list(self._changes.values()), self.margin), strict=True))
        return [found.get(n) for n in range(len(self.rows))]

    @cached_property
    def _changes(self) -> dict[int, Change]:
        """Of the points that may be recommended, by row; from the most bytes to the fewest, by nothing else
        that was measured."""
        order = sorted(
            (n for n, row in enumerate(self.rows) if not self.broken[n] and not row.get("is_reference")),
            key=lambda n: (-(number(self.rows[n], self.size_column) or math.inf), name(self.rows[n])),
        )
        changes = ((n, self._change(self.rows[n])) for n in order)
        return {n: change for n, change in changes if change is not None}

    def _change(self, row: Row) -> Change | None:
        delta, low, high = (number(row, f"wer_delta{end}") for end in ("", "_ci_low", "_ci_high"))
        if delta is None or low is None or high is None:
            return None
        words = None if self.errors is None else self.errors.words
        return Change(
            *(delta, low, high),
            number(row, "utterances") or (math.inf if words is None else len(words)),
            number(row, "reference_words") or (math.inf if words is None else int(words.sum())),
        )

    @cached_property
    def recommended(self) -> Row | None:
        """The smallest point that is not inferior to the reference, and than which none of no more bytes is
        better; None where none is shown to be."""
        found = (
            row for n, row in enumerate(self.rows) if self.standing[n] == ON and self._is_not_inferior(n)
        )
        return next(found, None)

    @property
    def utterances_needed(self) -> float | None:
        """About how many utterances it takes to recommend any (see `noninferiority.utterances_needed`):
        infinite where all seem worse by the margin; None where no point's change is known."""
        needed = (
            utterances_needed(change, most, self.margin)
            for n, change in self._changes.items()
            if (most := self.at_most[n]) is not None
        )
        return min(needed, default=None)

    @cached_property
    def corrected_p(self) -> list[float | None]:
        """The p-values of the changes, Holm-corrected over the points of the scene."""
        raw = [number(row, "wer_delta_p") for row in self.rows]
        tested = [n for n, p in enumerate(raw) if p is not None and 0 <= p <= 1]
        corrected = dict(zip(tested, holm([raw[n] or 0.0 for n in tested]).tolist(), strict=True))
        return [corrected.get(n) for n in range(len(raw))]

    @property
    def drawn(self) -> list[int]:
        """Which rows have both a size and an error rate, and so a place in the picture."""
        places = [(number(row, self.size_column), number(row, "wer")) for row in self.rows]
        return [
            n for n, (size, wer) in enumerate(places) if size and size > 0 and wer is not None and wer >= 0
        ]

    @cached_property
    def reference(self) -> Row | None:
        return next((row for row in self.rows if row.get("is_reference")), None)


def scenes(
    rows: Iterable[Row], transcripts: Mapping[str, Path] | None = None, criteria: Criteria | None = None
) -> list[Scene]:
    """The finished rows, grouped by the reference they are compared with, in order of appearance.

    transcripts: where the utterances of a point are, by its fingerprint; criteria: see `Scene`.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if is_finished(row):
            groups.setdefault(_identity(row), []).append(row)
    found = [
        Scene(_by_size(group), transcripts=transcripts or {}, criteria=criteria or Criteria())
        for group in groups.values()
    ]
    return _told_apart(_told_apart(found, _settings), _reference)


def reference_of(row: Row) -> str | None:
    """The fingerprint of the full-precision job that a row is compared with, or is; None where unknown.

    It covers the content of model and test set and all settings of decoding and statistics, so that names
    that happen to be the same make no two things comparable.
    """
    fingerprint = row.get("fingerprint" if row.get("is_reference") else "reference")
    return fingerprint if isinstance(fingerprint, str) and fingerprint else None


def _identity(row: Row) -> tuple[str, ...]:
    reference = reference_of(row)
    return (reference,) if reference else tuple(str(row.get(column)) for column in SCENE)


def _told_apart(found: list[Scene], tell: Callable[[Scene, list[Scene]], str]) -> list[Scene]:
    """The scenes, those of the same name with a note beside it of what tells each from the others."""
    named: dict[str, list[Scene]] = {}
    for scene in found:
        named.setdefault(scene.name, []).append(scene)

    def noted(scene: Scene, namesakes: list[Scene]) -> Scene:
        if len(namesakes) == 1:
            return scene
        return replace(scene, note=", ".join(filter(None, (scene.note, tell(scene, namesakes)))))

    return [noted(scene, named[scene.name]) for scene in found]


def _settings(scene: Scene, namesakes: list[Scene]) -> str:
    """Those settings of a scene in which it and its namesakes are not all the same."""
    varying = (
        column for column in TOLD_APART if len({distinct(other.rows, column) for other in namesakes}) > 1
    )
    values = ((column, distinct(scene.rows, column)) for column in varying)
    return ", ".join(f"{column} {value}" for column, value in values if value)


def _reference(scene: Scene, namesakes: list[Scene]) -> str:
    reference = reference_of(scene.rows[0])
    return f"reference {reference[:6]}" if reference else ""


def is_finished(row: Row) -> bool:
    return row.get("status", "finished") == "finished"


def is_broken(row: Row) -> bool:
    """Whether it has hardly a word right: where loops end at the cap on tokens, rates measure the cap."""
    wer = number(row, "wer")
    return wer is not None and wer >= BROKEN_FROM


def unfinished(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if not is_finished(row)]


def size_column(rows: Iterable[Row]) -> str:
    """Which size tells the rows apart: the linear layers', or the whole checkpoint's where any of them
    quantizes more than linear layers."""
    roles = [str(row.get("roles")) for row in rows]
    beyond = any(part in names for part in BEYOND_LINEAR for names in roles)
    return "model_bytes" if beyond else "linear_bytes"


def _by_size(rows: list[Row]) -> list[Row]:
    columns = (size_column(rows), "wer")

    def key(row: Row) -> tuple[bool, float, float, str]:
        size, wer = (math.inf if (n := number(row, column)) is None else n for column in columns)
        return is_broken(row), size, wer, name(row)

    return sorted(rows, key=key)


def name(row: Row) -> str:
    """The point's name, on one line."""
    return " ".join(str(row.get("point") or row.get("fingerprint") or "unnamed").split())


def problem(row: Row) -> str:
    """Why a row is not finished, on one line."""
    return " ".join(str(row.get("error") or row.get("status") or "no result").split())


def number(row: Row, column: str) -> float | None:
    """The value of a column where it is a number that can be meant, else None."""
    value = row.get(column)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e18 else None  # nor where it is NaN


def shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def abridged(text: str, width: int) -> str:
    """Its beginning and its end: names of points differ in either."""
    if len(text) <= width:
        return text
    half = (width - 1) // 2
    return f"{text[: width - 1 - half]}…{text[len(text) - half :]}"


def percent(value: float | None, signed: bool = False, digits: int = 2) -> str:
    """A fraction as a percentage, without the sign: 0.0566 is 5.66."""
    return decimal(None if value is None else 100 * value, digits, signed)


def thousandths(value: float | None) -> str:
    """With three significant digits where there is anything: 2.1e-05 is 0.0210."""
    if not value:
        return "-" if value is None else "0"
    return f"{1000 * value:,.{max(0, 2 - math.floor(math.log10(1000 * value)))}f}"


def megabytes(value: float | None) -> str:
    """Bytes in 10^6 bytes."""
    return decimal(None if value is None else value / 1e6, 2)


def decimal(value: float | None, digits: int, signed: bool = False) -> str:
    if value is None:
        return "-"
    value = round(value, digits) + 0.0  # never -0.00
    return f"{value:+,.{digits}f}" if signed and value else f"{value:,.{digits}f}"


def interval(row: Row, column: str, signed: bool = False) -> str:
    """[low, high] of a rate in %, empty where unknown."""
    low, high = number(row, f"{column}_ci_low"), number(row, f"{column}_ci_high")
    return "" if low is None or high is None else f"[{percent(low, signed)}, {percent(high, signed)}]"


def distinct(rows: Sequence[Row], column: str) -> str:
    """The values that a column takes, joined; empty where it takes none."""
    values = (row[column] for row in rows if row.get(column) is not None)
    return ", ".join(dict.fromkeys(f"{v:,}" if type(v) is int else str(v) for v in values))
