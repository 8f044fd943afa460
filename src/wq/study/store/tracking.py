"""The store: MLflow runs, found again by fingerprint.

One run per point, one parent run per grid. Everything goes through MlflowClient with an explicit store, so
that nothing depends on global state, on environment variables that other tools set, or on which thread asks.
"""

import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import psutil

from wq import caches, slurm
from wq.console import without_password
from wq.processes import machine
from wq.study.store.connection import Connection
from wq.study.store.moves import artifact_root, found, local_path, readdress
from wq.study.store.reachability import (
    StoreError,
    UnreachableError,
    check_scheme,
    database_file,
    is_shut,
    probe,
    reason_of,
    refuse_foreign_database,
    uri_of,
)
from wq.study.store.results import FORMERLY, HYPOTHESES, RESULT, Row, hypotheses, read_row, read_rows

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

# MLflow's own tags; a description is Markdown, and a table is a file of one of its kinds of JSON
PARENT, NAME, USER, SOURCE = "mlflow.parentRunId", "mlflow.runName", "mlflow.user", "mlflow.source.name"
DESCRIPTION, TABLES = "mlflow.note.content", "mlflow.loggedArtifacts"
# Ours. The fingerprint finds a point again, the record a run of it; host and pid, or the Slurm job, tell
# running from dead.
RECORD_ID = "wq.record"
FINGERPRINT, GRID, HOST, PID, FAILURE = "wq.fingerprint", "wq.grid", "wq.host", "wq.pid", "wq.error"
JOB = "wq.slurm_job"
COMMAND = "wq.command"
WHOLE_NAME = "wq.name"  # of a run whose name had to be cut
PARENT_VARIABLE = "WQ_PARENT_RUN"

# What every MLflow server takes, in characters: MLflow's own limits, and those of its tables' columns
LONGEST_PARAM, PARAMS_AT_ONCE, LONGEST_TAG, LONGEST_NAME, LONGEST_EXPERIMENT = 6000, 100, 5000, 250, 256
NEWEST: dict[str, Any] = {"order_by": ["attributes.start_time DESC"], "max_results": 1000}


def default_uri() -> str:
    """The environment's store, or MLflow's own default, which a bare `mlflow ui` in this directory shows."""
    return os.environ.get("MLFLOW_TRACKING_URI") or uri_of(Path.cwd() / "mlflow.db")


def finished(fingerprint: str) -> str:
    """The filter for the finished runs of a point."""
    return f"tags.`{FINGERPRINT}` = '{fingerprint}' and attributes.status = 'FINISHED'"


@dataclass(frozen=True)
class Store:
    """An MLflow store and the experiment in it that the runs go to."""

    uri: str
    experiment: str

    def check(self) -> None:
        """Open the experiment, so that a mistake in the store's address is known before anything long begins.
        A store that does not answer is none: see `Connection.failure`.

        Raises:
            StoreError: the URI leads to no store, or its experiment is deleted.
        """
        with suppress(UnreachableError):
            self.experiment_id  # noqa: B018  opened by the first look at it

    @cached_property
    def connection(self) -> Connection:
        return Connection(self.uri)

    @cached_property
    def folder(self) -> Path:
        """What the processes that share this store keep for one another, such as locks: beside an SQLite
        file, else where the command was typed, and where neither may be written, in the user's cache."""
        database = database_file(self.uri)
        for place in (*((database.parent,) if database else ()), Path()):
            with suppress(OSError):
                folder = place / ".wq"
                folder.mkdir(parents=True, exist_ok=True)
                if os.access(folder, os.W_OK):
                    return folder
        return caches.place() / "stores" / hashlib.sha256(self.uri.encode()).hexdigest()[:16]

    @property
    def client(self) -> "MlflowClient":
        """Raises UnreachableError, at once where the store could not be reached before."""
        if self.connection.failure:
            raise self.connection.failure
        return self._client

    @cached_property
    def _client(self) -> "MlflowClient":
        check_scheme(self.uri)
        # before the import, which reads them
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        # A server that is down would else be waited for during minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        with self.connection.explained(), self.connection.migration_lock():
            probe(self.uri)
            from mlflow import MlflowClient

            # what the database refuses is raised too
            quiet = (("mlflow.store.db.utils", "CRITICAL"), ("urllib3", "ERROR"))
            for chatty, level in (("alembic", "WARNING"), ("mlflow", "WARNING"), *quiet):
                logging.getLogger(chatty).setLevel(level)
            self._create_database()
            return MlflowClient(tracking_uri=self.uri)

    def _create_database(self) -> None:
        """A fresh SQLite file is made beside its place and then put there: one whose migrations were cut
        short, as by a kill, can never be used."""
        database = database_file(self.uri)
        if database is None:
            return
        if database.exists():
            refuse_foreign_database(database)
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        beside = database.with_name(f".{database.name}.new")
        shutil.rmtree(beside, ignore_errors=True)  # of who was killed: nobody else is here now
        beside.mkdir()
        fresh = beside / database.name
        SqlAlchemyStore(uri_of(fresh), artifact_root(database).as_uri()).engine.dispose()
        fresh.replace(database)
        beside.rmdir()
        self.__dict__["made"] = database  # as cached properties are kept

    def tell_made(self) -> None:
        """Where the store is that this process has just made: it may not be where somebody looks for it."""
        if made := self.__dict__.get("made"):
            print(f"a store was made for these results: {made}", file=sys.stderr)

    @cached_property
    def experiment_id(self) -> str:
        """The experiment's id; it is created where it is not there yet."""
        with self.connection.explained():
            client = self.client
            with self.connection.migration_lock():
                probe(self.uri, writes=True)
                if database := database_file(self.uri):
                    readdress(database)
                return self._found_id() or self._create(client)

    def _found_id(self) -> str | None:
        found = self._look_up()
        return found and found.experiment_id

    def _create(self, client: "MlflowClient") -> str:
        from mlflow.exceptions import MlflowException

        database = database_file(self.uri)
        artifacts = artifact_root(database).as_uri() if database else None  # a server knows its own place
        if len(self.experiment) > LONGEST_EXPERIMENT:
            raise StoreError(
                f"experiment_name={self.experiment} has {len(self.experiment)} characters, and a store takes "
                f"{LONGEST_EXPERIMENT}; give a shorter one"
            )
        try:
            return client.create_experiment(self.experiment, artifact_location=artifacts)
        except MlflowException:  # somebody else has, meanwhile
            found = self._found_id()
            if not found:
                raise
            return found

    def _look_up(self) -> "Experiment | None":
        """The experiment, if it is there. Raises StoreError where it is deleted: MLflow would keep its name
        from being used again, and every run out of it."""
        found = self.client.get_experiment_by_name(self.experiment)
        if found and found.lifecycle_stage == "deleted":
            uri = without_password(self.uri)
            raise StoreError(
                f"experiment_name={self.experiment} of {uri} is deleted; restore it "
                f"(MLFLOW_TRACKING_URI={uri} mlflow experiments restore -x {found.experiment_id}), or "
                "give another experiment_name="
            )
        return found

    def _existing_experiment(self) -> str:
        """The experiment's id, for those who only look: neither store nor experiment is created.

        Raises:
            StoreError: there is no such store, or no such experiment in it.
        """
        check_scheme(self.uri)
        database = database_file(self.uri)
        if database and not database.exists():
            raise StoreError(
                f"no store at {database}; run some jobs with python -m wq.main, or give tracking_uri="
            )
        found = self._look_up()
        if not found:
            known = ", ".join(each.name for each in self.client.search_experiments(max_results=20))
            raise StoreError(
                f"experiment_name={self.experiment} is not in {without_password(self.uri)}; experiments "
                f"there: {known or 'none'}"
            )
        return found.experiment_id

    def find_run(self, fingerprint: str) -> "Run | None":
        """The newest finished run of a point whose results can be read. One that lost them, as when its files
        were removed, counts for nothing: the point runs again."""
        runs = self.client.search_runs(
            [self.experiment_id],
            finished(fingerprint),
            **NEWEST,
        )
        return next((run for run in runs if self._is_whole(run)), None)

    def _is_whole(self, run: "Run") -> bool:
        try:
            self.read_result(run)
            self.read_transcripts(run)
        except Exception as error:  # of MLflow, of whatever keeps the artifacts, or of JSON
            if is_shut(error) and not database_file(self.uri):  # they may be whole
                raise
            told = f"run {run.info.run_id} is passed over, its results are lost: {reason_of(error)}"
            print(told, file=sys.stderr)
            return False
        return True

    def runs(self, query: str = "") -> "list[Run]":
        """The runs of points, however they ended, that a filter in MLflow's syntax lets through; the newest
        first. Only looks: creates nothing.

        Raises:
            StoreError: the store cannot be used, or it or the experiment is not there.
            ValueError: the filter is none.
        """
        with self.connection.explained():
            experiment, client = self._existing_experiment(), self.client
        from mlflow.exceptions import MlflowException

        wanted = " and ".join(filter(None, (f"tags.`{FINGERPRINT}` != ''", query)))
        found: list[Run] = []
        token = None
        while True:
            try:
                page = client.search_runs([experiment], wanted, page_token=token, **NEWEST)
            except MlflowException as error:
                if is_shut(error):
                    raise UnreachableError(self.uri, reason_of(error)) from error
                raise ValueError(
                    f"filter={query} is not understood ({reason_of(error)}); give MLflow's syntax, such as "
                    "filter=\"metrics.wer < 0.2 and params.format = 'int4'\""
                ) from error
            found += page
            token = page.token
            if not token:
                return found

    def read_result(self, run: "Run") -> Row:
        return read_row(self.artifact(run, RESULT))

    def read_transcripts(self, run: "Run") -> list[Row]:
        return read_rows(self.hypotheses(run))

    def hypotheses(self, run: "Run") -> Path:
        """The file of what the model wrote, under its name or its former one."""
        try:
            file = self.artifact(run, HYPOTHESES)
        except Exception as error:  # of MLflow, or of whatever keeps the artifacts
            if is_shut(error):
                raise
            return self.artifact(run, FORMERLY)
        return hypotheses(file.parent) if not file.exists() else file

    def has_artifact(self, run: "Run", name: str) -> bool:
        place = local_path(run.info.artifact_uri)
        if place:
            return (found(place, database_file(self.uri)) / name).exists()
        return any(each.path == name for each in self.client.list_artifacts(run.info.run_id))

    def artifact(self, run: "Run", name: str) -> Path:
        """A file of a finished run on this machine: the store's own, or a copy that is kept, as what is
        finished does not change."""
        place = local_path(run.info.artifact_uri)
        if place:
            return found(place, database_file(self.uri)) / name
        kept = self.folder / "runs" / run.info.run_id / name
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=kept.parent) as directory:
                Path(self.client.download_artifacts(run.info.run_id, name, directory)).replace(kept)
        return kept

    def create_run(
        self, name: str, tags: dict[str, str], parent: str | None = None, started: int | None = None
    ) -> str:
        """started: in milliseconds since 1970, as MLflow counts."""
        own = {NAME: name, SOURCE: "wq"} | whereabouts() | ({PARENT: parent} if parent else {})
        if len(name) > LONGEST_NAME:
            own |= {NAME: f"{name[: LONGEST_NAME - 1]}…", WHOLE_NAME: name}
        fitting = {key: value[:LONGEST_TAG] for key, value in (own | tags).items()}
        return self.client.create_run(self.experiment_id, started, fitting).info.run_id

    def record(
        self,
        run_id: str,
        parameters: Row,
        metrics: dict[str, float],
        artifacts: Iterable[Path] = (),
        tables: Iterable[Path] = (),
        at: int | None = None,
    ) -> None:
        """Write a job's results into its run; once more changes nothing. Tables are artifacts that MLflow's
        pages show as such. at: when the metrics were taken, now where it is not said."""
        from mlflow.entities import Metric, Param

        at = at or milliseconds()
        params = [Param(name, str(value)[:LONGEST_PARAM]) for name, value in parameters.items()]
        for start in range(0, len(params), PARAMS_AT_ONCE):
            self.client.log_batch(run_id, params=params[start : start + PARAMS_AT_ONCE])
        self.client.log_batch(run_id, [Metric(name, value, at, 0) for name, value in metrics.items()])
        for path in (*artifacts, *tables):
            self.client.log_artifact(run_id, str(path))
        shown = [{"path": path.name, "type": "table"} for path in tables]
        if shown:
            self.client.set_tag(run_id, TABLES, json.dumps(shown))

    def attach(self, run_id: str, artifacts: Iterable[Path], description: str) -> None:
        """Give a run files, and a description in Markdown, cut where MLflow takes no more."""
        for path in artifacts:
            self.client.log_artifact(run_id, str(path))
        if len(description) > LONGEST_TAG:
            description = description[:LONGEST_TAG].rpartition("\n")[0] + "\n\n…"
        self.client.set_tag(run_id, DESCRIPTION, description)

    def record_test_set(self, run_id: str, name: str, digest: str, source: Row, counts: Row) -> None:
        """The test set as the run's input. source: where it comes from, `type` being MLflow's word for the
        kind of place."""
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.exceptions import MlflowException

        place = json.dumps({key: value for key, value in source.items() if key != "type"})
        test_set = Dataset(
            name[:LONGEST_NAME], digest[:36], source["type"], place, profile=json.dumps(counts)
        )
        inputs = [DatasetInput(test_set, [InputTag("mlflow.data.context", "evaluation")])]
        try:
            self.client.log_inputs(run_id, inputs)
        except MlflowException:  # of several that bring a new test set at once one is taken; now it is there
            self.client.log_inputs(run_id, inputs)

    @contextmanager
    def running(
        self, name: str, tags: dict[str, str], parent: str | None, started: int | None = None
    ) -> Iterator[str | None]:
        """A run that ends as FINISHED, as FAILED with the error's message in a tag, or as KILLED by an
        interrupt; None where the store cannot be reached."""
        run_id = None
        with self.connection.optional():
            run_id = self.create_run(name, tags, parent, started)
        try:
            yield run_id
        except BaseException as error:
            if run_id:
                with self.connection.optional():
                    self._end_badly(run_id, error)
            raise
        if run_id:
            with self.connection.optional():
                self.client.set_terminated(run_id, "FINISHED")

    def _end_badly(self, run_id: str, error: BaseException) -> None:
        if isinstance(error, Exception):
            self.client.set_tag(run_id, FAILURE, f"{type(error).__name__}: {error}"[:LONGEST_TAG])
        self.client.set_terminated(run_id, "FAILED" if isinstance(error, Exception) else "KILLED")

    def open_grid(self, identity: str, name: str) -> str:
        """The parent run of a grid that begins."""
        run_id = self.find_grid(identity) or self.create_run(name, {GRID: identity})
        self.client.update_run(run_id, status="RUNNING")
        for tag, value in ((HOST, machine()), (PID, str(os.getpid()))):
            self.client.set_tag(run_id, tag, value)
        return run_id

    def find_grid(self, identity: str) -> str | None:
        """The parent run that an earlier call of the same grid made."""
        found = self.client.search_runs([self.experiment_id], f"tags.`{GRID}` = '{identity}'", max_results=1)
        return found[0].info.run_id if found else None

    def close_stale(self) -> int:
        """Mark runs as KILLED whose process on this machine, or whose Slurm job, is gone: a killed job cannot
        do that itself."""
        running = self.client.search_runs([self.experiment_id], "attributes.status = 'RUNNING'")
        return sum(self._close(run.info.run_id) for run in running if is_dead(run.data.tags))

    def _close(self, run_id: str) -> bool:
        """Mark a run as KILLED, unless somebody has removed it meanwhile."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.set_terminated(run_id, "KILLED")
        except MlflowException:
            return False
        return True


def milliseconds() -> int:
    """Now, as MLflow counts."""
    return int(time.time() * 1000)


def whereabouts() -> dict[str, str]:
    """Tags that say where this process runs."""
    job = {JOB: slurm.own_id()} if slurm.own_id() else {}
    return {HOST: machine(), PID: str(os.getpid())} | job


def is_dead(tags: dict[str, Any]) -> bool:
    """Whether a run's process, if it was one of this machine or of a Slurm job, is gone."""
    if tags.get(HOST) == machine() and tags.get(PID, "").isdigit():
        return not psutil.pid_exists(int(tags[PID]))
    return JOB in tags and slurm.is_gone(tags[JOB])
