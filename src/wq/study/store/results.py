"""A job's results as files: `result.json` (one flat row), `hypotheses.jsonl` (what the model wrote), and
`error.txt` where it failed. Which jobs a grid has, and where they lie, its plan says: `grid.json`.

Files appear whole or not at all (see `wq.outputs`), so that a job that was killed leaves nothing that could
be taken for a result.
"""

import json
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from wq import outputs
from wq.console import one_line, without_password

RESULT, HYPOTHESES, REFERENCE, ERROR = "result.json", "hypotheses.jsonl", "reference.json", "error.txt"
FORMERLY = "transcripts.jsonl"  # what hypotheses were called, which a data set's table may be called too
PLAN = "grid.json"  # which points a grid has, and where; see `grid.progress`
RECORD = "run.json"  # what the store has, or is to have, beside these
ACCOUNTS = "accounts.safetensors"  # of a reference, for kl and nll; see `job.reading`
DIAGNOSIS = OUTLIERS, OUTLIERS_PICTURE = "activation_outliers.csv", "activation_outliers.png"  # of smoothing
REPORT = PAGE, TABLE, MARKDOWN, TEX, PICTURE, DRAWING = (
    *("report.html", "results.csv", "results.md", "results.tex"),
    *("pareto.png", "pareto.svg"),
)
REFERENCE_FOLDER = "reference"  # of a job, where the point that it is compared with has its own files

Row = dict[str, Any]


def write_row(path: Path, row: Row) -> None:
    """One line for every column, those that hold lists too."""
    lines = (f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in row.items())
    outputs.write(path, "{\n" + ",\n".join(lines) + "\n}\n")


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    outputs.write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_row(path: Path) -> Row:
    return json.loads(path.read_text(encoding="utf-8"))


def read_rows(path: Path) -> list[Row]:
    # not splitlines, which also splits at U+2028, a character that JSON leaves as it is
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_failure(directory: Path, error: Exception) -> None:
    """`error.txt`: the error as one line, then where it came from."""
    trace = "".join(traceback.format_exception(error))
    with suppress(outputs.OutputError):  # what lies there is somebody's, and the error has been said
        outputs.write(directory / ERROR, f"{one_line(error)}\n\n{without_password(trace)}")


def keep_failure(directory: Path) -> Callable[[Exception], None]:
    """What leaves an error in this directory."""
    return partial(write_failure, directory)


def files(job: Path) -> list[Path]:
    """All files that a job may leave in its directory, those of its reference included."""
    names = (RESULT, HYPOTHESES, RECORD, REFERENCE, ERROR, ACCOUNTS, *DIAGNOSIS)
    return [place / name for place in (job, job / REFERENCE_FOLDER) for name in names]


def hypotheses(directory: Path) -> Path:
    """The file of what the model wrote, under its name or its former one."""
    former = directory / FORMERLY
    return former if former.exists() and not (directory / HYPOTHESES).exists() else directory / HYPOTHESES


@dataclass(frozen=True)
class Planned:
    """A point of a grid as its plan has it. overrides: of the command line, for this point."""

    number: int
    directory: Path
    overrides: tuple[str, ...]
    slurm_job: str | None

    @property
    def settings(self) -> str:
        return " ".join(self.overrides) or f"job {self.number}"


def planned(sweep: Path) -> list[Planned]:
    """The points of a grid, in its order: those of its plan, whatever else lies in its directory.

    Raises FileNotFoundError where there is no grid.
    """
    points = read_row(sweep / PLAN)["points"]
    return [
        Planned(
            point["number"],
            sweep / point.get("directory", str(point["number"])),
            tuple(point["overrides"]),
            point["job"],
        )
        for point in sorted(points, key=lambda point: point["number"])
    ]


def collect(sweep: Path) -> list[Row]:
    """One row for every point of a grid that has begun: finished, failed, or not finished; and their
    references.

    Points with the same fingerprint are reported once.
    """
    rows: dict[str, Row] = {}
    for point in planned(sweep):
        job = point.directory
        if (job / REFERENCE).exists():
            reference = read_row(job / REFERENCE)
            rows.setdefault(reference["fingerprint"], reference)
        if (job / RESULT).exists():
            row = read_row(job / RESULT)
            rows.setdefault(row["fingerprint"], row)
        elif job.is_dir():
            failed = (job / ERROR).exists()
            error = (
                (job / ERROR).read_text(encoding="utf-8").partition("\n")[0] if failed else "did not finish"
            )
            rows[f"job {point.number}"] = {"point": point.settings, "status": "failed", "error": error}
    return list(rows.values())


def finished(sweep: Path) -> list[Path]:
    """The directories of a grid's jobs, and of their references, that have results."""
    places = (
        place for point in planned(sweep) for place in (point.directory, point.directory / REFERENCE_FOLDER)
    )
    return [place for place in places if (place / RESULT).exists()]


def find_job(sweep: Path, fingerprint: str, name: str = RESULT) -> Path | None:
    """The directory of a job of this grid, or of a reference, that has this point's whole results, and this
    file among them."""
    for place in finished(sweep):
        if not (place / name).exists():
            continue
        with suppress(OSError, ValueError):
            with (place / RESULT).open("rb") as file:  # it stands first
                if fingerprint.encode() not in file.read(200):
                    continue
            if read_row(place / RESULT)["fingerprint"] == fingerprint and read_rows(hypotheses(place)):
                return place
    return None


def sweep_of(directory: Path) -> Path | None:
    """The grid whose job has this directory, or one above it."""
    within = (directory, *directory.parents)
    return next(
        (
            above
            for above in directory.parents
            if (above / PLAN).exists() and any(point.directory in within for point in planned(above))
        ),
        None,
    )
