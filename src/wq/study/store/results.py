"""A job's results as files: `result.json` (one flat row), `transcripts.jsonl`, and `error.txt` where it
failed.

Files appear whole or not at all: they are written beside their place and then renamed, so that a job that was
killed leaves nothing that could be taken for a result.
"""

import json
import os
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from wq.console import one_line, without_password

RESULT, TRANSCRIPTS, REFERENCE, ERROR = "result.json", "transcripts.jsonl", "reference.json", "error.txt"
PLAN = "grid.json"  # which points a grid has; see `grid.progress`
RECORD = "run.json"  # what the store has, or is to have, beside these
DIAGNOSIS = OUTLIERS, OUTLIERS_PICTURE = "activation_outliers.csv", "activation_outliers.png"  # of smoothing

Row = dict[str, Any]


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file atomically: a reader sees the old one, or all of the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_row(path: Path, row: Row) -> None:
    """One line for every column, those that hold lists too."""
    lines = (f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in row.items())
    write_whole(path, "{\n" + ",\n".join(lines) + "\n}\n")


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_row(path: Path) -> Row:
    return json.loads(path.read_text(encoding="utf-8"))


def read_rows(path: Path) -> list[Row]:
    # not splitlines, which also splits at U+2028, a character that JSON leaves as it is
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_failure(directory: Path, error: Exception) -> None:
    """`error.txt`: the error as one line, then where it came from."""
    trace = "".join(traceback.format_exception(error))
    write_whole(directory / ERROR, f"{one_line(error)}\n\n{without_password(trace)}")


def keep_failure(directory: Path) -> Callable[[Exception], None]:
    """What leaves an error in this directory."""
    return partial(write_failure, directory)


def forget(sweep: Path) -> None:
    """Remove what an earlier grid in the same directory left: its points are not this one's."""
    for name in (RESULT, RECORD, TRANSCRIPTS, REFERENCE, ERROR, *DIAGNOSIS):
        for path in sweep.glob(f"[0-9]*/**/{name}"):  # of references too
            path.unlink()


def collect(sweep: Path) -> list[Row]:
    """One row for every point of a grid, from its jobs' directories: finished, failed, or not finished, and
    their references.

    Points with the same fingerprint are reported once.
    """
    rows: dict[str, Row] = {}
    jobs = sorted((path for path in sweep.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    for job in jobs:
        if (job / REFERENCE).exists():
            reference = read_row(job / REFERENCE)
            rows.setdefault(reference["fingerprint"], reference)
        if (job / RESULT).exists():
            row = read_row(job / RESULT)
            rows.setdefault(row["fingerprint"], row)
        else:
            failed = (job / ERROR).exists()
            error = (
                (job / ERROR).read_text(encoding="utf-8").partition("\n")[0] if failed else "did not finish"
            )
            rows[f"job {job.name}"] = {"point": overrides(job), "status": "failed", "error": error}
    return list(rows.values())


def find_job(sweep: Path, fingerprint: str) -> Path | None:
    """The directory of a job of this grid, or of a reference, that has this point's whole results."""
    for path in sorted(sweep.glob(f"[0-9]*/**/{RESULT}")):
        with suppress(OSError, ValueError):
            with path.open("rb") as file:  # it stands first
                if fingerprint.encode() not in file.read(200):
                    continue
            if read_row(path)["fingerprint"] == fingerprint and read_rows(path.with_name(TRANSCRIPTS)):
                return path.parent
    return None


def sweep_of(directory: Path) -> Path | None:
    """The grid that a job's directory, or one below it, belongs to."""
    return next((above for above in directory.parents if (above / PLAN).exists()), None)


def overrides(job: Path) -> str:
    """The command-line settings of a job, as Hydra keeps them; its directory's name where there are none."""
    import yaml

    path = job / ".hydra" / "overrides.yaml"
    try:
        return " ".join(yaml.safe_load(path.read_text(encoding="utf-8"))) or f"job {job.name}"
    except OSError:
        return f"job {job.name}"
