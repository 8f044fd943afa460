"""Which points may be compared with each other, and how their numbers are written for people.

A row is the flat content of a `result.json`. Rows come from any version and may lack any column.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from wq.study.pareto import front

Row = dict[str, Any]

SCENE = ("model", "dataset", "split", "limit")


@dataclass(frozen=True)
class Scene:
    """The finished points of one model on one test set, by size: they share a front and a reference."""

    rows: list[Row]

    @property
    def name(self) -> str:
        model, dataset, split, limit = (self.rows[0].get(column) for column in SCENE)
        test_set = " ".join(str(part) for part in (dataset, split) if part is not None)
        parts = [model, test_set or None, f"{limit} utterances at most" if limit is not None else None]
        return ", ".join(str(part) for part in parts if part is not None) or "all points"

    @cached_property
    def on_front(self) -> list[bool]:
        return front([(number(row, "linear_bytes"), number(row, "wer")) for row in self.rows])

    @property
    def drawn(self) -> list[int]:
        """Which rows have both a size and an error rate, and so a place in the picture."""
        places = [(number(row, "linear_bytes"), number(row, "wer")) for row in self.rows]
        return [
            n for n, (size, wer) in enumerate(places) if size and size > 0 and wer is not None and wer >= 0
        ]

    @property
    def reference(self) -> Row | None:
        return next((row for row in self.rows if row.get("is_reference")), None)

    @property
    def smallest_without_loss(self) -> Row | None:
        """The smallest point whose interval of the difference from the reference is not wholly above zero."""
        lows = ((number(row, "wer_delta_ci_low"), row) for row in self.rows if not row.get("is_reference"))
        return next((row for low, row in lows if low is not None and low <= 0), None)


def scenes(rows: Iterable[Row]) -> list[Scene]:
    """The finished rows, grouped by model and test set in order of appearance."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        if is_finished(row):
            groups.setdefault(tuple(str(row.get(column)) for column in SCENE), []).append(row)
    return [Scene(sorted(group, key=_by_size)) for group in groups.values()]


def is_finished(row: Row) -> bool:
    return row.get("status", "finished") == "finished"


def unfinished(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if not is_finished(row)]


def _by_size(row: Row) -> tuple[float, float, str]:
    keys = (number(row, column) for column in ("linear_bytes", "wer"))
    size, wer = (math.inf if key is None else key for key in keys)
    return size, wer, name(row)


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


def percent(value: float | None, signed: bool = False, digits: int = 2) -> str:
    """A fraction as a percentage, without the sign: 0.0566 is 5.66."""
    return decimal(None if value is None else 100 * value, digits, signed)


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
