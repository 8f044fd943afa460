"""Where a store is: in directories of any name, moved, copied, and what it takes and refuses."""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.protos.databricks_pb2 import ErrorCode

from wq.study.store import results
from wq.study.store.connection import Connection, failures
from wq.study.store.moves import local_path, moved
from wq.study.store.reachability import StoreError, UnreachableError, database_file, uri_of
from wq.study.store.tracking import (
    FINGERPRINT,
    LONGEST_NAME,
    LONGEST_TAG,
    NAME,
    WHOLE_NAME,
    Store,
    default_uri,
)

NAMES = ["plain", "a?b", "a#b", "100%", "a%20b", "a b", "ä'\"", "a\nb", "x&y=z;", "[1]*", "c:\\d", "~"]


@pytest.mark.parametrize("name", [*NAMES, os.fsdecode(b"\xff")])
def test_the_address_of_a_store_leads_back_to_it(tmp_path: Path, monkeypatch, name: str):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found = database_file(default_uri())
    assert found
    assert found.absolute() == tmp_path / name / "mlflow.db"


PLACES = {
    # what is recorded: the directory, and the same below another root
    "file:///study/mlruns/7/run/artifacts": ("/study/mlruns/7/run/artifacts", "/new/7/run/artifacts"),
    "file:///a%3Fb/mlruns": ("/a?b/mlruns", "/new"),
    "/mlruns/mlruns/7": ("/mlruns/mlruns/7", "/new/7"),
    "/data/artifacts/7": ("/data/artifacts/7", None),
    "mlflow-artifacts:/7/run": (None, None),
    "s3://bucket/mlruns/7": (None, None),
    "./mlruns/7": (None, None),
    "": (None, None),
}


@pytest.mark.parametrize("address", PLACES)
def test_where_artifacts_are(address: str):
    place, beside = PLACES[address]
    found = local_path(address)
    assert found == (place and Path(place))
    assert (found and moved(found, Path("/new"))) == (beside and Path(beside))


def run(store: Store, directory: Path, fingerprint: str, name: str = "int4") -> str:
    results.write_row(directory / results.RESULT, {"fingerprint": fingerprint})
    results.write_rows(directory / results.HYPOTHESES, [{"id": "a"}])
    with store.running(name, {FINGERPRINT: fingerprint, "roles": "r" * 9000}, None) as run_id:
        assert run_id
        files = [directory / results.RESULT, directory / results.HYPOTHESES]
        store.record(run_id, {"model": "nano"}, {"wer": 0.5}, files)
    return run_id


def in_directory(place: Path, monkeypatch) -> Store:
    monkeypatch.chdir(place)
    return Store(default_uri(), "wq")


def kept(place: Path) -> set[str]:
    """The runs whose artifacts lie here."""
    return {path.parts[-3] for path in place.glob("mlruns/*/artifacts/result.json")}


def test_a_store_that_is_copied_and_moved(tmp_path: Path, monkeypatch, capsys):
    """Its directory's name is none that an address can hold as it is."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    study, copy, away = (tmp_path / name for name in ("a?b %20", "copy", "away"))
    study.mkdir()
    store = in_directory(study, monkeypatch)
    first = run(store, study / "job", "first", "n" * 400)
    assert {path.name for path in tmp_path.iterdir()} == {study.name}
    tags = store.client.get_run(first).data.tags
    assert (len(tags[NAME]), tags[WHOLE_NAME], len(tags["roles"])) == (LONGEST_NAME, "n" * 400, LONGEST_TAG)

    shutil.copytree(study, copy)
    store = in_directory(copy, monkeypatch)
    (found,) = store.runs()
    assert store.artifact(found, results.RESULT).is_relative_to(copy)  # before anything is recorded anew
    second = run(store, copy / "job", "second")
    assert store.find_run("first")
    assert (kept(study), kept(copy)) == ({first}, {first, second})

    study.rename(away)
    capsys.readouterr()
    store = in_directory(away, monkeypatch)
    assert store.find_run("first")
    third = run(store, away / "job", "third")
    assert not study.exists()
    assert kept(away) == {first, third}
    told = capsys.readouterr().err
    assert f"{away / 'mlflow.db'} has been moved" in told
    Store(store.uri, "wq").check()
    assert not capsys.readouterr().err


def test_artifacts_that_are_kept_elsewhere_on_purpose_stay_there(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = in_directory(tmp_path, monkeypatch)
    big = tmp_path / "big" / "mlruns"
    big.mkdir(parents=True)
    store.client.create_experiment("wq", big.as_uri())
    run_id = run(store, tmp_path / "job", "first")
    assert (big / run_id / "artifacts" / results.RESULT).exists()
    assert Store(store.uri, "wq").find_run("first")
    assert not capsys.readouterr().err


def test_databases_of_something_else_are_left_alone(tmp_path: Path):
    file = tmp_path / "mine.db"
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE thesis (x)")
    before = file.read_bytes()
    with pytest.raises(StoreError, match="is a database of something else, with the table thesis"):
        Store(uri_of(file), "wq").check()
    assert file.read_bytes() == before


FAILURES = {
    "a timeout": (lambda mlflow: TimeoutError("timed out"), "cannot be reached (timed out)", "it is back"),
    "a name that is too long": (
        lambda mlflow: mlflow("value too long for type character varying(250)"),
        "does not take what is to be recorded (value too long for type character varying(250))",
        "that is mended",
    ),
    "a server without its database": (
        lambda mlflow: mlflow("gone", error_code=ErrorCode.Value("TEMPORARILY_UNAVAILABLE")),
        "cannot be reached (gone)",
        "it is back",
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_what_fails_is_called_what_it_is(tmp_path: Path, monkeypatch, capsys, failure: str):
    from mlflow.exceptions import MlflowException

    monkeypatch.chdir(tmp_path)
    make, told, end = FAILURES[failure]
    connection = Connection(f"sqlite:///{tmp_path}/none.db")
    with connection.optional():
        raise make(MlflowException)
    assert isinstance(failures.pop(connection.uri), UnreachableError)
    with connection.optional():
        raise make(MlflowException)
    connection.tell_failure(tmp_path / "multirun")
    assert capsys.readouterr().err == (
        f"warning: tracking_uri={connection.uri} {told}: results are kept as files; when {end}, record them "
        "with: wq sync multirun\n"
    )


def test_what_processes_share_lies_where_it_may_be_written(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("WQ_CACHE", str(tmp_path / "cache"))
    beside = Store(f"sqlite:///{tmp_path}/store/mlflow.db", "wq")
    server = "http://127.0.0.1:5000"
    monkeypatch.chdir("/proc")  # where nobody may write
    assert beside.folder == tmp_path / "store" / ".wq"
    assert Store(server, "wq").folder.is_relative_to(tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    assert Store(server, "wq").folder == Path(".wq")
