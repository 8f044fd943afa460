"""The store, on a real SQLite file: found again by fingerprint, prepared once, closed after the dead."""

import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wq.console import without_password
from wq.study.compare.selection import of_stores
from wq.study.store import results
from wq.study.store.reachability import StoreError
from wq.study.store.tracking import FAILURE, FINGERPRINT, PID, Store


def finish(store, fingerprint, tmp_path, **row):
    """Record a finished point."""
    directory = tmp_path / fingerprint
    results.write_row(directory / results.RESULT, {"fingerprint": fingerprint, **row})
    results.write_rows(directory / results.HYPOTHESES, [{"id": "a", "pred_text": "hello"}])
    with store.running(fingerprint, {FINGERPRINT: fingerprint}, parent=None) as run_id:
        files = [directory / results.RESULT, directory / results.HYPOTHESES]
        store.record(run_id, {"format": "int4", "group": None}, {"wer": 0.25}, files)
    return run_id


def test_a_finished_point_is_found_with_its_results(store, tmp_path):
    assert store.find_run("abc") is None
    finish(store, "abc", tmp_path, wer=0.25)
    found = store.find_run("abc")
    assert found.data.metrics == {"wer": 0.25}
    assert found.data.params == {"format": "int4", "group": "None"}
    assert store.read_result(found) == {"fingerprint": "abc", "wer": 0.25}
    assert store.read_transcripts(found) == [{"id": "a", "pred_text": "hello"}]


def test_the_newest_of_a_point_counts_once(store, tmp_path):
    finish(store, "abc", tmp_path, wer=0.25)
    finish(store, "abc", tmp_path, wer=0.5)
    finish(store, "xyz", tmp_path, wer=0.75)
    rows = sorted(of_stores([store]).rows, key=lambda row: row["fingerprint"])
    assert [row["wer"] for row in rows] == [0.5, 0.75]


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("no"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_a_run_that_ends_badly_is_not_taken_for_a_result(store, error, status):
    with pytest.raises(type(error)), store.running("p", {FINGERPRINT: "abc"}, parent=None) as run_id:
        raise error
    run = store.client.get_run(run_id)
    assert run.info.status == status
    assert run.data.tags.get(FAILURE) == ("RuntimeError: no" if status == "FAILED" else None)
    assert store.find_run("abc") is None


def test_the_parent_of_a_grid_is_opened_again(store):
    first = store.open_grid("identity", "format=int4,nvfp4")
    store.client.set_terminated(first, "FINISHED")
    assert store.open_grid("identity", "format=int4,nvfp4") == first
    assert store.open_grid("another", "format=int8") != first


def test_runs_of_dead_processes_are_closed(store):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead = store.create_run("dead", {PID: str(gone.pid)})
    alive = store.create_run("alive", {})
    elsewhere = store.create_run("elsewhere", {PID: str(gone.pid), "wq.host": "another-machine"})
    assert store.close_stale() == 1
    status = {
        name: store.client.get_run(run).info.status
        for name, run in locals().items()
        if name in ("dead", "alive")
    }
    assert status == {"dead": "KILLED", "alive": "RUNNING"}
    assert store.client.get_run(elsewhere).info.status == "RUNNING"


def test_a_run_that_vanished_is_not_closed(store):
    run = store.create_run("run", {})
    store.client.delete_run(run)
    assert not store._close(run)
    assert not store._close("0" * 32)


def refusal(act):
    """The error's text, which must be one line."""
    with pytest.raises(StoreError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "uri", ["mlruns", "sqlite", "file:///mlruns", "ftp://host", "sqlit:///a.db", "postgres://host"]
)
def test_a_uri_that_leads_to_no_store_is_refused_without_mlflow(uri):
    script = (
        "import sys; from wq.study.store.reachability import StoreError\n"
        "from wq.study.store.tracking import Store\n"
        "try: Store(sys.argv[1], 'wq').check()\n"
        "except StoreError as error: print(error, 'mlflow' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", script, uri], capture_output=True, text=True, check=True)
    assert said.stdout.startswith(f"tracking_uri={uri} leads to no store; it starts with one of sqlite, ")
    assert said.stdout.endswith("False\n")


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:mlflow.db"])
def test_an_sqlite_store_is_a_file(uri):
    assert "names no file; give sqlite:///mlflow.db" in refusal(Store(uri, "wq").check)


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:9", "https://127.0.0.1:9/", "postgresql+psycopg2://me:secret@127.0.0.1:9/wq"]
)
def test_a_server_that_is_down_is_told_soon(uri, capfd):
    start = time.monotonic()
    text = refusal(lambda: Store(uri, "wq").experiment_id)
    assert time.monotonic() - start < 5
    assert text.startswith(f"tracking_uri={without_password(uri)} cannot be used (")
    assert "Connection refused" in text
    assert "start the server" in text
    assert "secret" not in text
    assert capfd.readouterr().err == ""


def test_a_file_that_is_no_store_is_refused(tmp_path):
    (tmp_path / "text").write_text("no database, and long enough to be told from one " * 10)
    (tmp_path / "folder").mkdir()
    with sqlite3.connect(tmp_path / "newer.db") as other:
        other.execute("create table alembic_version (version_num text)")
        other.execute("insert into alembic_version values ('from the future')")
    for name in ("text", "folder", "newer.db", "text/below.db"):
        uri = f"sqlite:///{tmp_path / name}"
        text = refusal(Store(uri, "wq").check)
        assert text.startswith(f"tracking_uri={uri} cannot be used (")
        assert text.endswith("or give tracking_uri=sqlite:///mlflow.db")


def test_a_deleted_experiment_is_named_with_its_remedy(database):
    store = Store(f"sqlite:///{database}", "deleted")
    store.check()
    store.client.delete_experiment(store.experiment_id)
    for act in (Store(store.uri, "deleted").check, Store(store.uri, "deleted").runs):
        text = refusal(act)
        assert "experiment_name=deleted" in text
        assert f"mlflow experiments restore -x {store.experiment_id})" in text


@pytest.mark.parametrize("artifact", [results.RESULT, results.HYPOTHESES])
@pytest.mark.parametrize("content", [None, "{"])
def test_a_run_without_its_results_is_not_found(store, tmp_path, capsys, artifact, content):
    whole = finish(store, "abc", tmp_path, wer=0.25)
    broken = finish(store, "abc", tmp_path, wer=0.5)
    path = artifacts(store, broken) / artifact
    path.unlink() if content is None else path.write_text(content)
    assert store.find_run("abc").info.run_id == whole
    said = capsys.readouterr().err
    assert said.startswith(f"run {broken} is passed over")
    assert said.count("\n") == 1
    shutil.rmtree(artifacts(store, whole))
    assert store.find_run("abc") is None


def artifacts(store, run_id):
    return Path(store.client.get_run(run_id).info.artifact_uri.removeprefix("file://"))


def test_the_report_leaves_out_runs_without_their_results(store, tmp_path, capsys):
    finish(store, "xyz", tmp_path, wer=0.75)
    for _ in range(2):
        shutil.rmtree(artifacts(store, finish(store, "abc", tmp_path, wer=0.5)))
    assert [row["fingerprint"] for row in of_stores([store]).rows] == ["xyz"]
    assert capsys.readouterr().err == "2 finished runs are left out: their result.json cannot be read\n"


def test_looking_creates_nothing(store, tmp_path):
    nowhere = tmp_path / "below" / "mlflow.db"
    text = refusal(Store(f"sqlite:///{nowhere}", "wq").runs)
    assert text.startswith(f"no store at {nowhere}; run some jobs with python -m wq.main")
    assert list(tmp_path.iterdir()) == []
    store.check()
    text = refusal(Store(store.uri, "nosuch").runs)
    assert "experiment_name=nosuch is not in" in text
    assert store.experiment in text
    assert store.client.get_experiment_by_name("nosuch") is None


@pytest.mark.slow
def test_processes_that_meet_a_fresh_store_do_not_disturb_each_other(tmp_path):
    script = (
        "import sys; from wq.study.store.tracking import Store\n"
        "Store(f'sqlite:///{sys.argv[1]}/mlflow.db', 'wq').create_run('run', {})"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    outcomes = [(process.communicate()[1], process.returncode) for process in processes]
    assert [code for _, code in outcomes] == [0] * 4, outcomes
    store = Store(f"sqlite:///{tmp_path}/mlflow.db", "wq")
    assert len(store.client.search_runs([store.experiment_id])) == 4


@pytest.mark.slow
def test_a_store_whose_maker_was_killed_is_made_anew(tmp_path):
    """Killed before the first of its migrations: the tables are there, at no version."""
    script = (
        "import os, sys; from alembic.runtime.migration import MigrationContext\n"
        "from wq.study.store.tracking import Store\n"
        "MigrationContext.run_migrations = lambda *_, **__: os._exit(9)\n"
        "Store(f'sqlite:///{sys.argv[1]}/mlflow.db', 'wq').check()"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert killed.returncode == 9
    assert not (tmp_path / "mlflow.db").exists()
    assert list(tmp_path.glob(".mlflow.db.new/mlflow.db"))
    store = Store(f"sqlite:///{tmp_path}/mlflow.db", "wq")
    store.check()
    assert store.client.get_run(store.create_run("run", {})).info.status == "RUNNING"
    assert {path.name for path in tmp_path.iterdir()} <= {"mlflow.db", "mlflow.db.lock"}


def test_a_store_that_was_just_made_is_told(tmp_path, capsys):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    store = Store(uri, "wq")
    store.check()
    store.tell_made()
    assert capsys.readouterr().err == f"a store was made for these results: {tmp_path / 'mlflow.db'}\n"
    again = Store(uri, "wq")
    again.check()
    again.tell_made()
    assert capsys.readouterr().err == ""
