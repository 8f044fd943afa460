"""Stores that cannot be reached, and what becomes of results: nothing is lost, nothing there twice."""

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import Run, environment
from wq.commands.sync import sync as command
from wq.console import Ending
from wq.study.grid import progress, sync
from wq.study.grid.sync import COPIED, KNOWN, RECORDED, IncompleteError
from wq.study.job.evaluation import obtain
from wq.study.job.job import prepare
from wq.study.spec.composition import compose
from wq.study.store import reachability, recording, results
from wq.study.store.results import HYPOTHESES, RECORD, RESULT
from wq.study.store.tracking import FINGERPRINT, GRID, PARENT, PID, RECORD_ID, Store

POINTS = 5  # with the reference


@pytest.fixture
def other(grid: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An experiment in the grid's store without any of its runs."""
    monkeypatch.chdir(grid)
    return Store(f"sqlite:///{grid}/mlflow.db", request.node.name)


def bring(directory: Path, store: Store) -> Counter[str]:
    return sync.sync([directory], lambda record: Store(store.uri, store.experiment))


def runs(store: Store) -> list:
    """Those that are not grids."""
    found = store.client.search_runs([store.experiment_id])
    return [run for run in found if GRID not in run.data.tags]


def finished(store: Store) -> list[str]:
    return sorted(run.data.tags["point"] for run in runs(store) if run.info.status == "FINISHED")


def whole(store: Store, run) -> dict:
    """All that a run has, but for its own and its parent's number, and when it was ended."""
    history = {
        name: [
            (each.value, each.timestamp, each.step)
            for each in store.client.get_metric_history(run.info.run_id, name)
        ]
        for name in run.data.metrics
    }
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    inputs = [
        (each.dataset.to_dictionary(), [(tag.key, tag.value) for tag in each.tags])
        for each in run.inputs.dataset_inputs
    ]
    return {
        "name": run.info.run_name,
        "start": run.info.start_time,
        "params": run.data.params,
        "metrics": history,
        "tags": {name: value for name, value in run.data.tags.items() if name != PARENT},
        "inputs": inputs,
        "artifacts": {path.name: path.read_bytes() for path in artifacts.iterdir()},
    }


def test_what_is_brought_is_what_the_job_wrote(grid: Path, other: Store):
    recorded = Store(other.uri, "wq")
    assert bring(grid, other)[RECORDED] == POINTS

    def by_point(store: Store) -> dict:
        return {run.data.tags["point"]: whole(store, run) for run in runs(store)}

    assert by_point(other) == by_point(recorded)
    parents = []
    for store in (other, recorded):
        (parent,) = store.client.search_runs([store.experiment_id], f"tags.`{GRID}` != ''")
        assert {run.data.tags[PARENT] for run in runs(store)} == {parent.info.run_id}
        description = parent.data.tags["mlflow.note.content"]
        files = sorted(each.path for each in store.client.list_artifacts(parent.info.run_id))
        parents.append((parent.info.run_name, parent.info.status, parent.data.tags[GRID], description, files))
    assert parents[0] == parents[1]


@pytest.mark.slow
def test_once_however_many_at_once(grid: Path, other: Store):
    script = (
        "import sys; from pathlib import Path\n"
        "from wq.study.grid import sync; from wq.study.store.tracking import Store\n"
        "print(sync.sync([Path('multirun')], lambda record: Store(*sys.argv[1:]))[sync.RECORDED])"
    )
    other.check()
    words = [sys.executable, "-c", script, other.uri, other.experiment]
    begun = [subprocess.Popen(words, cwd=grid, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    counts = [int(each.communicate(timeout=100)[0]) for each in begun]
    assert sum(counts) == POINTS
    assert bring(grid, other)[KNOWN] == POINTS
    assert len(set(finished(other))) == POINTS
    assert len(runs(other)) == POINTS


def test_what_was_left_half_written_is_completed(grid: Path, other: Store):
    """As by one who was killed; and one run was made twice, as the answer to the first question was lost."""
    directory = next(grid.glob("multirun/*/*/1"))
    record = recording.read(directory)
    first, second = (other.create_run(record.name, record.tags) for _ in range(2))
    for run in (first, second):
        other.record(run, dict(list(record.parameters.items())[:5]), {}, [directory / HYPOTHESES])
    assert bring(directory, other) == {RECORDED: 1, COPIED: 1}
    (left,) = runs(other)
    assert left.info.run_id in (first, second)
    original = next(
        run for run in runs(Store(other.uri, "wq")) if run.data.tags[RECORD_ID] == record.tags[RECORD_ID]
    )
    expected = whole(other, original) | {"start": left.info.start_time}
    assert whole(other, left) == expected
    assert left.info.status == "FINISHED"


def test_a_point_is_there_once_unless_asked_for_again(grid: Path, other: Store, tmp_path: Path):
    directory = next(grid.glob("multirun/*/*/1"))
    bring(directory, other)
    again = tmp_path / "again"
    shutil.copytree(directory, again, ignore=shutil.ignore_patterns("reference"))
    row = results.read_row(again / RECORD)
    row["tags"][RECORD_ID] = "another"
    results.write_row(again / RECORD, row)
    assert bring(again, other)[KNOWN] == 1
    results.write_row(again / RECORD, row | {"rerun": True})
    assert bring(again, other)[RECORDED] == 1
    assert bring(again, other)[KNOWN] == 1
    assert len(finished(other)) == 2


DAMAGES = {
    "cut": (RESULT, lambda path: path.write_text(path.read_text()[:100]), "cannot be read"),
    "empty": (RESULT, lambda path: path.write_text(""), "cannot be read"),
    "a list": (RESULT, lambda path: path.write_text("[]"), "cannot be read"),
    "no fingerprint": (RESULT, lambda path: path.write_text("{}"), "cannot be read"),
    "no transcripts": (HYPOTHESES, lambda path: path.unlink(), "cannot be read"),
    "cut transcripts": (HYPOTHESES, lambda path: path.write_text(path.read_text()[:-9]), "cannot be read"),
    "cut record": (RECORD, lambda path: path.write_text("{"), "cannot be read"),
    "a record without all": (RECORD, lambda path: path.write_text('{"id": "x"}'), "cannot be read"),
    "another's record": (
        RECORD,
        lambda path: path.write_text(path.read_text().replace('gerprint": "', 'gerprint": "0')),
        "is of another point",
    ),
    "a missing picture": (
        "activation_outliers.png",
        lambda path: path.unlink(),
        "has no activation_outliers.png",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_told_and_left(grid: Path, tmp_path: Path, damage: str):
    name, act, told = DAMAGES[damage]
    place = tmp_path / "job"
    shutil.copytree(next(grid.glob("multirun/*/*/1")).with_name("3"), place)
    assert sync.read(place)
    act(place / name)
    with pytest.raises(IncompleteError) as caught:
        sync.read(place)
    assert told in str(caught.value)
    assert str(caught.value).endswith("; run the job again")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "no multirun/ or outputs/ here"),
        (("nosuch",), "nosuch is no directory"),
        (("experiment=b",), "experiment= is no setting"),
    ],
)
def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], text: str):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=text):
        command(list(arguments))


@pytest.mark.parametrize("uri", ["somewhere.db", "sqlite:///", "sqlite:///.", "http://127.0.0.1:9"])
def test_a_store_that_cannot_be_opened_is_told_once(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], uri: str
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wq.console.ending", Ending())
    command([str(grid / "multirun"), f"tracking_uri={uri}"])
    told = capsys.readouterr()
    assert "not recorded" in told.out
    assert len(told.err.splitlines()) == 1
    assert told.err.startswith(f"error: tracking_uri={uri} ")


@pytest.mark.slow
def test_a_grid_goes_on_without_its_store(wq: Run, tmp_path: Path):
    """And the rest of it is recorded when the store is there, by the command that the warning names."""
    few = (
        "format=int4,int8",
        "limit=2",
        "resamples=50",
        "hydra.sweep.dir=here",
        "tracking_uri=http://127.0.0.1:9",
    )
    done = wq("-m", *few)
    assert done.returncode == 0, done.stderr
    (warning,) = [line for line in done.stderr.splitlines() if "tracking_uri" in line]
    assert warning.startswith("warning: tracking_uri=http://127.0.0.1:9 cannot be reached ([Errno 111]")
    assert warning.endswith("wq sync here")
    assert done.stdout.count(", the reference") == 1  # made once
    assert "?  int8-g128" in done.stdout or "*  int8-g128" in done.stdout
    assert (tmp_path / "here" / "report.html").exists()
    shutil.copytree(tmp_path / "here" / "0", tmp_path / "broken")
    (tmp_path / "broken" / RESULT).write_text("{")

    failed = wq("sync", "here", module="wq")
    assert failed.returncode == 1
    (error,) = failed.stderr.splitlines()  # once, and not for every result
    assert error.startswith("error: tracking_uri=http://127.0.0.1:9 cannot be used")
    assert "3 not recorded" in failed.stdout

    found = wq("sync", "here", "broken", f"tracking_uri=sqlite:///{tmp_path}/new.db", module="wq")
    assert found.returncode == 1
    assert len(found.stderr.splitlines()) == 1
    assert "broken cannot be read" in found.stderr
    assert found.stdout.startswith(
        "6 results: 3 recorded, 1 in the store already, 1 taken from other runs, 1 not"
    )
    assert finished(Store(f"sqlite:///{tmp_path}/new.db", "wq")) == ["fp32", "int4-g128", "int8-g128"]


def test_who_does_not_answer_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """By a server that takes calls and says nothing."""
    monkeypatch.setattr(reachability, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        store = Store(f"http://127.0.0.1:{server.getsockname()[1]}", "wq")
        store.check()
        server.accept()
        server.settimeout(0.2)
        with Store(store.uri, "wq").running("point", {}, None) as run_id:
            assert run_id is None
        for _ in range(2):
            store.connection.tell_failure(Path("here"))
        with pytest.raises(TimeoutError):
            server.accept()
    assert capsys.readouterr().err.count("timed out") == 1


@pytest.mark.parametrize("reason", ["locked", "readonly"])
def test_a_file_that_nobody_may_write(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, reason: str
):
    monkeypatch.setattr(reachability, "WRITERS", 0.1)
    database = tmp_path_factory.mktemp("shut") / "mlflow.db"
    store = Store(f"sqlite:///{database}", "wq")
    sqlite3.connect(database).executescript("create table some (thing)")
    # a directory that others may enter, as root may write whatever is read-only
    for above in list(database.parents)[:-2]:
        above.chmod(0o755)
    database.chmod(0o444)
    uid = os.geteuid()
    holder = sqlite3.connect(database, isolation_level=None)
    try:
        if reason == "locked":
            holder.execute("begin exclusive")
        elif uid == 0:
            os.seteuid(65534)
        with store.running("point", {}, None) as run_id:
            assert run_id is None
    finally:
        os.seteuid(uid)
        holder.close()
    assert store.connection.failure
    assert reason in store.connection.failure.reason


def test_a_failure_in_a_job_is_its_own(other: Store):
    """A fault of ours is no store that cannot be reached."""
    with pytest.raises(ZeroDivisionError), other.connection.optional():
        print(1 / 0)
    assert other.connection.failure is None
    with pytest.raises(TypeError), other.running("point", {FINGERPRINT: "abc", PID: "1"}, None):
        raise TypeError("ours")
    assert [run.info.status for run in runs(other)] == ["FAILED"]


@pytest.mark.slow
def test_sixteen_jobs_meet_an_empty_directory(wq: Run, tmp_path: Path):
    """The store, the reference and sixteen points, each made once."""
    formats = [f"format={name}" for name in ("int8", "int4", "nvfp4", "mxfp4")]
    points = [(format, f"group={group}") for format in formats for group in (16, 32, 64, 128)]
    begun = [
        subprocess.Popen(
            [sys.executable, "-m", "wq.main", *point, "limit=2", "resamples=50"],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for point in points
    ]
    said = [each.communicate(timeout=500)[1] for each in begun]
    assert [each.returncode for each in begun] == [0] * 16, said
    assert not any("cannot be reached" in text for text in said)
    store = Store(f"sqlite:///{tmp_path}/mlflow.db", "wq")
    assert {run.info.status for run in runs(store)} == {"FINISHED"}
    found = Counter(finished(store))
    assert len(found) == 17
    assert set(found.values()) == {1}
    rows = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/*/*/result.json")]
    assert {row["point"]: row["wer"] for row in rows} | {"fp32": None} == {
        run.data.tags["point"]: run.data.metrics["wer"] for run in runs(store)
    } | {"fp32": None}


def test_what_lies_where_it_is_asked_for_again_keeps_its_record(tmp_path: Path, monkeypatch):
    """As the reference of a job that was killed after it, and is queued again while the store is away."""
    monkeypatch.chdir(tmp_path)
    grid = tmp_path / "grid"
    grid.mkdir()
    progress.write_plan(grid, "", {0: [], 1: []}, {0: "0", 1: "1"}, {})
    overrides = ["format=fp32", "limit=1", "resamples=40", "tracking_uri=http://127.0.0.1:9/away"]
    (config,) = compose(overrides)
    job, place = prepare(config, overrides), grid / "0" / "reference"
    assert not obtain(job, place).reused
    record = (place / RECORD).read_bytes()
    assert obtain(job, place).reused
    assert (place / RECORD).read_bytes() == record
    (grid / "1").mkdir()
    assert obtain(job, grid / "1").reused
    assert not (grid / "1" / RECORD).exists()
