"""The store: MLflow runs, found again by fingerprint.

One run per point, one parent run per grid. Everything goes through MlflowClient with an explicit store, so
that nothing depends on global state, on environment variables that other tools set, or on which thread asks.
"""

import logging
import os
import socket
import time
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from filelock import FileLock

from wq.study.results import RESULT, TRANSCRIPTS, Row, read_row, read_rows

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)

# MLflow's own tags
PARENT, NAME, USER, SOURCE = "mlflow.parentRunId", "mlflow.runName", "mlflow.user", "mlflow.source.name"
# Ours. The fingerprint finds a point again; host and pid tell a running job from a dead one.
FINGERPRINT, GRID, HOST, PID, FAILURE = "wq.fingerprint", "wq.grid", "wq.host", "wq.pid", "wq.error"
TAGGED = ("model", "format", "granularity", "group", "dataset", "split", "point")
PARENT_VARIABLE = "WQ_PARENT_RUN"
SQLITE = "sqlite:///"


def default_uri() -> str:
    """The environment's store, or MLflow's own default, which a bare `mlflow ui` in this directory shows."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{Path.cwd() / 'mlflow.db'}"


@dataclass(frozen=True)
class Store:
    """An MLflow store and the experiment in it that the runs go to."""

    uri: str
    experiment: str

    @cached_property
    def client(self) -> "MlflowClient":
        # before the import, which reads them
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        # The first answer of a server that is down would else take minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        from mlflow import MlflowClient

        for chatty in ("alembic", "mlflow"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        with self._alone():
            return MlflowClient(tracking_uri=self.uri)

    def _alone(self) -> AbstractContextManager[object]:
        """A fresh SQLite file is migrated by everyone who finds it so: one process at a time may look."""
        if not self.uri.startswith(SQLITE):
            return nullcontext()
        database = Path(self.uri.removeprefix(SQLITE))
        database.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{database}.lock")

    @cached_property
    def experiment_id(self) -> str:
        """The experiment's id; it is created where it is not there yet."""
        client = self.client
        with self._alone():
            found = client.get_experiment_by_name(self.experiment)
            if found:
                return found.experiment_id
            artifacts = None  # a server knows its own place
            if self.uri.startswith(SQLITE):
                artifacts = (Path(self.uri.removeprefix(SQLITE)).absolute().parent / "mlruns").as_uri()
            return client.create_experiment(self.experiment, artifact_location=artifacts)

    def find(self, fingerprint: str) -> "Run | None":
        """The newest finished run of a point."""
        runs = self.client.search_runs(
            [self.experiment_id],
            f"tags.`{FINGERPRINT}` = '{fingerprint}' and attributes.status = 'FINISHED'",
            max_results=1,
            order_by=["attributes.start_time DESC"],
        )
        return runs[0] if runs else None

    def finished_rows(self) -> list[Row]:
        """The results of all finished points, the newest of each."""
        rows: dict[str, Row] = {}
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id],
                f"tags.`{FINGERPRINT}` != '' and attributes.status = 'FINISHED'",
                max_results=1000,
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
            for run in page:
                if run.data.tags[FINGERPRINT] not in rows:
                    rows[run.data.tags[FINGERPRINT]] = self.read_result(run)
            token = page.token
            if not token:
                return list(rows.values())

    def read_result(self, run: "Run") -> Row:
        return read_row(self._download(run, RESULT))

    def read_transcripts(self, run: "Run") -> list[Row]:
        return read_rows(self._download(run, TRANSCRIPTS))

    def _download(self, run: "Run", artifact: str) -> Path:
        return Path(self.client.download_artifacts(run.info.run_id, artifact))

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
        stale = [run for run in running if _is_dead(run.data.tags)]
        for run in stale:
            self.client.set_terminated(run.info.run_id, "KILLED")
        return len(stale)


def _is_dead(tags: dict[str, Any]) -> bool:
    if tags.get(HOST) != socket.gethostname() or not tags.get(PID, "").isdigit():
        return False
    return not psutil.pid_exists(int(tags[PID]))
