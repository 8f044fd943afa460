"""The store, on a real SQLite file: found again by fingerprint, prepared once, closed after the dead."""

import subprocess
import sys

import pytest

from wq.study import results
from wq.study.tracking import FAILURE, FINGERPRINT, PID, Store


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """One file for all tests, as its schema takes seconds to make; each test has an experiment of its own."""
    return tmp_path_factory.mktemp("store") / "mlflow.db"


@pytest.fixture
def store(database, request):
    return Store(f"sqlite:///{database}", request.node.name)


def finish(store, fingerprint, tmp_path, **row):
    """Record a finished point."""
    directory = tmp_path / fingerprint
    results.write_row(directory / results.RESULT, {"fingerprint": fingerprint, **row})
    results.write_rows(directory / results.TRANSCRIPTS, [{"id": "a", "pred_text": "hello"}])
    with store.running(fingerprint, {FINGERPRINT: fingerprint}, parent=None) as run_id:
        files = [directory / results.RESULT, directory / results.TRANSCRIPTS]
        store.record(run_id, {"format": "int4", "group": None}, {"wer": 0.25}, files)
    return run_id


def test_a_finished_point_is_found_with_its_results(store, tmp_path):
    assert store.find("abc") is None
    finish(store, "abc", tmp_path, wer=0.25)
    found = store.find("abc")
    assert found.data.metrics == {"wer": 0.25}
    assert found.data.params == {"format": "int4", "group": "None"}
    assert store.read_result(found) == {"fingerprint": "abc", "wer": 0.25}
    assert store.read_transcripts(found) == [{"id": "a", "pred_text": "hello"}]


def test_the_newest_of_a_point_counts_once(store, tmp_path):
    finish(store, "abc", tmp_path, wer=0.25)
    finish(store, "abc", tmp_path, wer=0.5)
    finish(store, "xyz", tmp_path, wer=0.75)
    rows = sorted(store.finished_rows(), key=lambda row: row["fingerprint"])
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
    assert store.find("abc") is None


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


def test_processes_that_meet_a_fresh_store_do_not_disturb_each_other(tmp_path):
    script = (
        "import sys; from wq.study.tracking import Store\n"
        "Store(f'sqlite:///{sys.argv[1]}/mlflow.db', 'wq').create_run('run', {})"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    outcomes = [(process.communicate()[1], process.returncode) for process in processes]
    assert [code for _, code in outcomes] == [0] * 4, outcomes
    store = Store(f"sqlite:///{tmp_path}/mlflow.db", "wq")
    assert len(store.client.search_runs([store.experiment_id])) == 4
