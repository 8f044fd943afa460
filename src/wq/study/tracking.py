"""The store: MLflow runs, found again by fingerprint.

One run per point, one parent run per grid. Everything goes through MlflowClient with an explicit store, so
that nothing depends on global state, on environment variables that other tools set, or on which thread asks.
"""

import logging
import os
import re
import socket
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import psutil
from filelock import FileLock

from wq.study.results import RESULT, TRANSCRIPTS, Row, read_row, read_rows

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

T = TypeVar("T")

log = logging.getLogger(__name__)

# MLflow's own tags
PARENT, NAME, USER, SOURCE = "mlflow.parentRunId", "mlflow.runName", "mlflow.user", "mlflow.source.name"
# Ours. The fingerprint finds a point again; host and pid tell a running job from a dead one.
FINGERPRINT, GRID, HOST, PID, FAILURE = "wq.fingerprint", "wq.grid", "wq.host", "wq.pid", "wq.error"
TAGGED = ("model", "format", "granularity", "group", "dataset", "split", "point")
PARENT_VARIABLE = "WQ_PARENT_RUN"
SQLITE = "sqlite:///"

# Where an MLflow store can be: databases, with the port of their server, and servers of MLflow
DATABASES = {"sqlite": None, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
SERVERS = ("http", "https", "databricks")
PATIENCE = 5  # seconds in which a server has to answer


def default_uri() -> str:
    """The environment's store, or MLflow's own default, which a bare `mlflow ui` in this directory shows."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{Path.cwd() / 'mlflow.db'}"


class StoreError(ValueError):
    """A store that cannot be used: one line that names it, the reason and the remedy."""


@dataclass(frozen=True)
class Store:
    """An MLflow store and the experiment in it that the runs go to."""

    uri: str
    experiment: str

    def check(self) -> None:
        """Open the experiment, so that a store that does not work is known before anything long begins.

        Raises:
            StoreError: the URI leads to no store, or the store cannot be reached, or its experiment is
                deleted.
        """
        self.experiment_id  # noqa: B018  opened by the first look at it

    @cached_property
    def client(self) -> "MlflowClient":
        check_scheme(self.uri)
        # before the import, which reads them
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        # The first answer of a server that is down would else take minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        with self._explained(), self._alone():
            probe(self.uri)
            from mlflow import MlflowClient

            for chatty, level in (("alembic", "WARNING"), ("mlflow", "WARNING"), ("urllib3", "ERROR")):
                logging.getLogger(chatty).setLevel(level)
            return MlflowClient(tracking_uri=self.uri)

    def _alone(self) -> AbstractContextManager[object]:
        """A fresh SQLite file is migrated by everyone who finds it so: one process at a time may look."""
        database = database_file(self.uri)
        if database is None:
            return nullcontext()
        database.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{database}.lock")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What MLflow, a driver or the file system say of a store that does not work, as a StoreError."""
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            remedy = "restore it" if database_file(self.uri) else "start the server, or correct its address"
            raise StoreError(
                f"tracking_uri={without_password(self.uri)} cannot be used ({reason}); {remedy}, or give "
                f"tracking_uri={SQLITE}mlflow.db"
            ) from error

    @cached_property
    def experiment_id(self) -> str:
        """The experiment's id; it is created where it is not there yet."""
        client = self.client
        with self._explained(), self._alone():
            found = self._look_up()
            if found:
                return found.experiment_id
            artifacts = None  # a server knows its own place
            database = database_file(self.uri)
            if database:
                artifacts = (database.absolute().parent / "mlruns").as_uri()
            return client.create_experiment(self.experiment, artifact_location=artifacts)

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

    def find(self, fingerprint: str) -> "Run | None":
        """The newest finished run of a point whose results can be read. One that lost them, as when its files
        were removed, counts for nothing: the point runs again."""
        runs = self.client.search_runs(
            [self.experiment_id],
            f"tags.`{FINGERPRINT}` = '{fingerprint}' and attributes.status = 'FINISHED'",
            order_by=["attributes.start_time DESC"],
        )
        return next((run for run in runs if self._is_whole(run)), None)

    def _is_whole(self, run: "Run") -> bool:
        try:
            self.read_result(run)
            self.read_transcripts(run)
        except Exception as error:  # of MLflow, of whatever keeps the artifacts, or of JSON
            reason = " ".join(str(error).split())[:300]
            print(f"run {run.info.run_id} is passed over, its results are lost: {reason}", file=sys.stderr)
            return False
        return True

    def finished_rows(self) -> list[Row]:
        """The results of all finished points, the newest of each; says how many runs have lost theirs. Only
        looks: creates nothing.

        Raises:
            StoreError: the store cannot be used, or it or the experiment is not there.
        """
        rows: dict[str, Row] = {}
        lost = 0
        with self._explained():
            for run in self._finished_runs(self._existing_experiment()):
                fingerprint = run.data.tags[FINGERPRINT]
                if fingerprint in rows:
                    continue
                try:
                    rows[fingerprint] = self.read_result(run)
                except Exception:  # of MLflow, of whatever keeps the artifacts, or of JSON
                    lost += 1
        if lost:
            print(f"{lost} finished runs are left out: their {RESULT} cannot be read", file=sys.stderr)
        return list(rows.values())

    def _finished_runs(self, experiment_id: str) -> "Iterator[Run]":
        """All finished runs of points, the newest first."""
        token = None
        while True:
            page = self.client.search_runs(
                [experiment_id],
                f"tags.`{FINGERPRINT}` != '' and attributes.status = 'FINISHED'",
                max_results=1000,
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def read_result(self, run: "Run") -> Row:
        return self._read(run, RESULT, read_row)

    def read_transcripts(self, run: "Run") -> list[Row]:
        return self._read(run, TRANSCRIPTS, read_rows)

    def _read(self, run: "Run", artifact: str, reader: Callable[[Path], T]) -> T:
        with TemporaryDirectory() as directory:  # MLflow's own copies would stay for ever
            return reader(Path(self.client.download_artifacts(run.info.run_id, artifact, directory)))

    def create_run(self, name: str, tags: dict[str, str], parent: str | None = None) -> str:
        own = {NAME: name, HOST: socket.gethostname(), PID: str(os.getpid()), SOURCE: "wq"}
        if parent:
            own[PARENT] = parent
        return self.client.create_run(self.experiment_id, tags=own | tags).info.run_id

    def record(self, run_id: str, parameters: Row, metrics: dict[str, float], artifacts: list[Path]) -> None:
        """Write a job's results into its run."""
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        self.client.log_batch(
            run_id,
            metrics=[Metric(name, value, now, 0) for name, value in metrics.items()],
            params=[Param(name, str(value)) for name, value in parameters.items()],
        )
        for path in artifacts:
            self.client.log_artifact(run_id, str(path))

    @contextmanager
    def running(self, name: str, tags: dict[str, str], parent: str | None):
        """A run that ends as FINISHED, as FAILED with the error's message in a tag, or as KILLED by an
        interrupt."""
        run_id = self.create_run(name, tags, parent)
        try:
            yield run_id
        except Exception as error:
            self.client.set_tag(run_id, FAILURE, f"{type(error).__name__}: {error}"[:5000])
            self.client.set_terminated(run_id, "FAILED")
            raise
        except BaseException:
            self.client.set_terminated(run_id, "KILLED")
            raise
        self.client.set_terminated(run_id, "FINISHED")

    def open_grid(self, identity: str, name: str) -> str:
        """The parent run of a grid: the one that an earlier call of the same command made, or a new one."""
        found = self.client.search_runs([self.experiment_id], f"tags.`{GRID}` = '{identity}'", max_results=1)
        run_id = found[0].info.run_id if found else self.create_run(name, {GRID: identity})
        self.client.update_run(run_id, status="RUNNING")
        for tag, value in ((HOST, socket.gethostname()), (PID, str(os.getpid()))):
            self.client.set_tag(run_id, tag, value)
        return run_id

    def close_stale(self) -> int:
        """Mark runs as KILLED whose process on this machine is gone: a killed job cannot do that itself."""
        running = self.client.search_runs([self.experiment_id], "attributes.status = 'RUNNING'")
        return sum(self._close(run.info.run_id) for run in running if _is_dead(run.data.tags))

    def _close(self, run_id: str) -> bool:
        """Mark a run as KILLED, unless somebody has removed it meanwhile."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.set_terminated(run_id, "KILLED")
        except MlflowException:
            return False
        return True


def check_scheme(uri: str) -> None:
    """Raises StoreError for a URI that leads to no store. A mere path is one: MLflow would take it for a
    folder of files, which it no longer writes."""
    scheme = uri.partition(":")[0].lower()
    database = scheme.partition("+")[0]
    known = database in DATABASES or scheme in SERVERS
    if not known or (":" not in uri and uri != "databricks"):  # which alone means its default profile
        raise StoreError(
            f"tracking_uri={without_password(uri)} leads to no store; it starts with one of "
            f"{', '.join((*DATABASES, *SERVERS))}: give {SQLITE}mlflow.db for a file, http://HOST:PORT for "
            "a server"
        )
    if database == "sqlite" and database_file(uri) is None:
        raise StoreError(f"tracking_uri={uri} names no file; give {SQLITE}mlflow.db")


def database_file(uri: str) -> Path | None:
    """The file of an SQLite store."""
    found = re.match(r"sqlite(?:\+\w+)?:///(?!:memory:)([^?]+)", uri, re.IGNORECASE)
    return Path(found[1]) if found else None


def without_password(uri: str) -> str:
    """A URI as messages may show it."""
    return re.sub(r"(://[^/:@]*):[^/@]*@", r"\1:***@", uri)


def probe(uri: str) -> None:
    """Raises an error of the operating system, of SQLite or of requests where nobody answers, or no database:
    at once, as MLflow asks again and again, for minutes."""
    address = urlsplit(uri)
    database = database_file(uri)
    if database and database.exists():
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("pragma schema_version")
    elif address.scheme in ("http", "https"):
        _probe_server(uri)
    elif address.hostname and address.scheme != "databricks":
        port = address.port or DATABASES[address.scheme.partition("+")[0]]
        socket.create_connection((address.hostname, port), PATIENCE).close()


def _probe_server(uri: str) -> None:
    import requests

    try:
        with requests.get(f"{uri.rstrip('/')}/health", timeout=PATIENCE, stream=True) as answer:
            if answer.status_code >= 500:
                raise StoreError(
                    f"tracking_uri={without_password(uri)} answers {answer.status_code} {answer.reason}; "
                    f"start the server, or give tracking_uri={SQLITE}mlflow.db"
                )
    except requests.exceptions.SSLError:
        return  # MLflow has settings of its own for certificates
    except requests.exceptions.RequestException as error:
        raise ConnectionError(_innermost(error)) from error


def _innermost(error: BaseException) -> str:
    """What lies under the layers of an error of requests."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error) or type(error).__name__


def _is_dead(tags: dict[str, Any]) -> bool:
    if tags.get(HOST) != socket.gethostname() or not tags.get(PID, "").isdigit():
        return False
    return not psutil.pid_exists(int(tags[PID]))
