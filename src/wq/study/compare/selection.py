"""What a report is of: points with their results, points without one, and where the transcripts lie."""

import re
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from wq.console import did_you_mean
from wq.study.compare.scenes import Criteria, Scene, is_finished, reference_of, scenes, unfinished
from wq.study.store import results
from wq.study.store.results import RESULT, Row
from wq.study.store.tracking import FAILURE, FINGERPRINT, HOST, NAME, Store, is_dead

READERS = 16  # threads: a server's answers are waited for together


@dataclass(frozen=True)
class Selection:
    """The rows of a report, and the `hypotheses.jsonl` of those fingerprints that have one; and
    what the points are judged by."""

    rows: list[Row]
    transcripts: dict[str, Path] = field(default_factory=dict)
    criteria: Criteria = Criteria()  # noqa: RUF009  frozen

    @cached_property
    def scenes(self) -> list[Scene]:
        """The finished points, grouped with those that they may be compared with."""
        return scenes(self.rows, self.transcripts, self.criteria)

    @property
    def unfinished(self) -> list[Row]:
        return unfinished(self.rows)


def of_sweep(directory: Path, criteria: Criteria | None = None) -> Selection:
    """The points of a grid and their references, from its jobs' directories."""
    if not (directory / results.PLAN).exists():
        return Selection([])
    transcripts: dict[str, Path] = {}
    for place in results.finished(directory):
        beside = results.hypotheses(place)
        if beside.exists():
            transcripts[results.read_row(place / RESULT)["fingerprint"]] = beside
    return Selection(results.collect(directory), transcripts, criteria or Criteria())


def of_stores(
    stores: Iterable[Store],
    query: str = "",
    columns: Mapping[str, str] | None = None,
    criteria: Criteria | None = None,
) -> Selection:
    """The newest result of every point that a filter in MLflow's syntax and the values of `columns` (see
    `chosen`) let through, with the references that they are compared with; and the points that have none,
    with the reason. Says how many runs have lost their results.

    Raises StoreError, and ValueError for a filter that is none or values that no point has.
    """
    rows: dict[str, Row] = {}
    transcripts: dict[str, Path] = {}
    without: dict[str, Row] = {}
    lost = 0
    for store in stores:
        runs = store.runs(query)
        lost += _take(store, [run for run in runs if run.info.status == "FINISHED"], rows, transcripts)
        for run in runs:
            if run.info.status != "FINISHED":
                without.setdefault(run.data.tags[FINGERPRINT], _unfinished(run))
        if query:  # which may have left out what the others are compared with
            missing = {key for row in rows.values() if (key := reference_of(row)) and key not in rows}
            found = [run for key in sorted(missing) if (run := store.find_run(key))]
            lost += _take(store, found, rows, transcripts)
    if lost:
        print(f"{lost} finished runs are left out: their {RESULT} cannot be read", file=sys.stderr)
    kept = [*rows.values(), *(row for key, row in without.items() if key not in rows)]
    selected = chosen(kept, columns or {})
    if not selected:
        check_values(kept, columns or {})
    return Selection(selected, transcripts, criteria or Criteria())


def _take(store: Store, runs: list[Any], rows: dict[str, Row], transcripts: dict[str, Path]) -> int:
    """Add the results of runs, the first of a point; gives how many cannot be read."""

    def read(run: Any) -> tuple[Row, Path] | None:
        try:
            row, path = store.read_result(run), store.hypotheses(run)
        except Exception:  # of MLflow, of whatever keeps the artifacts, or of JSON
            return None
        return (row, path) if isinstance(row, dict) else None

    lost = 0
    with ThreadPoolExecutor(READERS) as pool:
        for run, found in zip(runs, pool.map(read, runs), strict=True):
            if found is None:
                lost += run.data.tags[FINGERPRINT] not in rows
            elif (key := run.data.tags[FINGERPRINT]) not in rows:
                rows[key], transcripts[key] = found
    return lost


def _unfinished(run: Any) -> Row:
    """A row for a run without a result: its tags, and why."""
    tags = run.data.tags
    status = run.info.status.lower()
    started = datetime.fromtimestamp(run.info.start_time / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    reasons = {
        "failed": tags.get(FAILURE, "failed without a message"),
        "killed": "was killed; the same command runs it again",
        "running": f"still running on {tags.get(HOST, 'another machine')}, since {started}",
    }
    if status == "running" and is_dead(tags):
        status, reason = "killed", f"began {started}, and its process is gone; the same command runs it again"
    else:
        reason = reasons.get(status, status)
    columns = {name: value for name, value in tags.items() if "." not in name}
    return {"point": tags.get(NAME)} | columns | {"status": status, "error": reason}


def chosen(rows: list[Row], settings: Mapping[str, str]) -> list[Row]:
    """The rows that have one of the values (`int4,nvfp4`) of every column, and the references they are
    compared with.

    Raises ValueError for a column that no row has.
    """
    columns = {column for row in rows for column in row}
    if rows and (unknown := next((column for column in settings if column not in columns), None)):
        meant = did_you_mean(unknown, columns)
        raise ValueError(
            f"{unknown} is no column of the results; {meant}choose one of {', '.join(sorted(columns))}"
        )
    accepted = {column: alternatives(values) for column, values in settings.items()}
    matches = [all(str(row.get(column)) in accepted[column] for column in accepted) for row in rows]
    needed = {
        reference_of(row) for row, match in zip(rows, matches, strict=True) if match and is_finished(row)
    } - {None}
    return [
        row
        for row, match in zip(rows, matches, strict=True)
        if match or (row.get("is_reference") and reference_of(row) in needed)
    ]


def check_values(rows: list[Row], settings: Mapping[str, str]) -> None:
    """Raises ValueError for values that no row has in their column, with those that there are."""
    for column, values in settings.items():
        known = sorted({str(row.get(column)) for row in rows})
        if known and alternatives(values).isdisjoint(known):
            raise ValueError(
                f"there is no {column} {values} among the results; "
                f"{did_you_mean(values, known)}choose one of {', '.join(known)}"
            )


def alternatives(values: str) -> set[str]:
    """`int4,nvfp4` are two values, `[encoder,decoder]` is one, which rows spell `encoder+decoder`."""
    return {
        "+".join(map(str.strip, value[1:-1].split(","))) if value.startswith("[") else value
        for value in re.findall(r"\[[^]]*\]|[^,]+", values)
    }
