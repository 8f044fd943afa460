"""A finished run by what people call it: a directory, a run id, a fingerprint or a point's name."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wq.console import did_you_mean, nearest, without_password
from wq.study.compare.comparison import Side
from wq.study.compare.scenes import reference_of
from wq.study.store.columns import TAG, columns_of
from wq.study.store.results import RESULT, hypotheses, read_row, read_rows
from wq.study.store.tracking import FAILURE, FINGERPRINT, Store

if TYPE_CHECKING:
    from wq.study.store.tracking import Run

SHORTEST = 4  # characters of an id's beginning
LISTED = 10
TELLING = (  # one candidate from another
    *(*columns_of(TAG), "language", "limit", "calibration.split", "calibration.utterances"),
    *("max_new_tokens", "long_audio", "window", "seed", "resamples"),
)


def find_points(names: Sequence[str], store: Store, columns: Mapping[str, str]) -> list[Side]:
    """The runs of these names: job directories, or runs of the store whose columns have these values.

    A name of several points means the one that may be compared with the others, if there is just one: fp32
    of two test sets is that of the test set of int4.

    Raises ValueError for a name of no finished run, or of several.
    """
    jobs = {name: job for name in names if (job := on_disk(name))}
    runs = store.runs() if len(jobs) < len(set(names)) else []
    _check_columns(columns, runs)
    kept = [run for run in runs if all(_column(run, name) == value for name, value in columns.items())]
    found = {name: _newest(name, kept, store) for name in names if name not in jobs}
    scenes = [{reference_of(job.row)} for job in jobs.values()]
    scenes += [{_reference(run) for run in each} for each in found.values()]
    shared = set.intersection(*scenes)
    narrowed = {name: [run for run in each if _reference(run) in shared] for name, each in found.items()}
    return [jobs.get(name) or _read(_only(name, narrowed[name] or found[name]), store) for name in names]


def on_disk(text: str) -> Side | None:
    """The run in a job's directory, or None where there is no such file or directory.

    Raises ValueError where its results are missing or cannot be read.
    """
    path = Path(text)
    directory = path if path.is_dir() else path.parent
    by_chance = "/" not in text and not (directory / RESULT).is_file()  # a folder called fp32
    if not path.exists() or by_chance:
        return None
    result, words = directory / RESULT, hypotheses(directory)
    for file in (result, words):
        if not file.is_file():
            raise ValueError(f"{directory} has no {file.name}; give the directory of a job that is finished")
    try:
        return Side(read_row(result), read_rows(words), str(path))
    except ValueError as error:
        raise ValueError(f"the results in {directory} cannot be read ({error}); run the job again") from error


def _newest(text: str, runs: list["Run"], store: Store) -> list["Run"]:
    """The newest finished run of every point that this text means."""
    found = _named(text, runs)
    place = f"experiment {store.experiment} of {without_password(store.uri)}"
    if not found:
        points = sorted({str(_column(run, "point")) for run in runs})
        near = nearest(text, points, LISTED)
        there = f"points there: {', '.join(near or points[:LISTED])}" if points else "there are no points"
        raise ValueError(
            f"{text} is no directory, and no run id, fingerprint or point in {place}; "
            f"{did_you_mean(text, points)}{there}"
        )
    newest: dict[str | None, Run] = {}
    for run in found:
        if run.info.status == "FINISHED":
            newest.setdefault(_column(run, FINGERPRINT), run)
    if not newest:
        reason = f"{found[0].info.status} {found[0].data.tags.get(FAILURE, '')}".strip()
        raise ValueError(f"{text} has no finished run in {place} ({reason}); run it again")
    return list(newest.values())


def _named(text: str, runs: list["Run"]) -> list["Run"]:
    """The runs that this text means: those by whole names if there are any."""
    meanings: tuple[Callable[[Run], bool], ...] = (
        lambda run: run.info.run_id == text,
        lambda run: _column(run, FINGERPRINT) == text,
        lambda run: _column(run, "point") == text,
        lambda run: (
            len(text) >= SHORTEST
            and (run.info.run_id.startswith(text) or str(_column(run, FINGERPRINT)).startswith(text))
        ),
    )
    return next((found for meant in meanings if (found := [run for run in runs if meant(run)])), [])


def _only(text: str, runs: list["Run"]) -> "Run":
    if len(runs) == 1:
        return runs[0]
    raise ValueError(
        f"{text} is {len(runs)} points: {_candidates(runs)}; give the fingerprint, or a column such as "
        "split=clean"
    )


def _read(run: "Run", store: Store) -> Side:
    try:
        return Side(store.read_result(run), store.read_transcripts(run), run.info.run_id)
    except Exception as error:  # of MLflow, of whatever keeps the artifacts, or of JSON
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"run {run.info.run_id} has lost its results ({reason}); run its point again"
        ) from error


def _check_columns(columns: Mapping[str, str], runs: list["Run"]) -> None:
    unknown = next((name for name in columns if not any(_column(run, name) for run in runs)), None)
    if runs and unknown:
        raise ValueError(f"{unknown} is no column of the runs; choose one of {', '.join(TELLING)}")


def _candidates(runs: list["Run"]) -> str:
    """Their fingerprints, with those columns in which they differ."""
    telling = [name for name in TELLING if len({_column(run, name) for run in runs}) > 1]
    listed = [
        f"{_column(run, FINGERPRINT)} ({', '.join(f'{name}={_column(run, name)}' for name in telling)})"
        for run in runs[:LISTED]
    ]
    return ", ".join(listed) + (f" and {len(runs) - LISTED} more" if len(runs) > LISTED else "")


def _column(run: "Run", name: str) -> str | None:
    return run.data.tags.get(name, run.data.params.get(name))


def _reference(run: "Run") -> str | None:
    """The fingerprint of the full-precision run that it is compared with, or is."""
    return _column(run, "reference") or _column(run, FINGERPRINT)
