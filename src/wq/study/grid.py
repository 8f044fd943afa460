"""A grid: what Hydra is asked to do around the jobs, and what is left when they are done, however they ended."""

import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

FULL_ERROR = "HYDRA_FULL_ERROR"


@dataclass(frozen=True)
class Sweep:
    """The grid that this process has launched."""

    directory: Path
    parent_run: str | None
    store: Any


class Grid(Callback):
    """Prepares the store before the first job of a grid: parallel jobs must not meet an empty one."""

    launched: Sweep | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        from wq.study.tracking import PARENT_VARIABLE, Store, default_uri

        overrides = list(config.hydra.overrides.task)
        store = Store(config.tracking_uri or default_uri(), config.experiment_name)
        store.close_stale()
        identity = hashlib.sha256("\n".join(sorted(overrides)).encode()).hexdigest()[:16]
        parent = store.open_grid(identity, " ".join(overrides) or "grid")
        os.environ[PARENT_VARIABLE] = parent
        Grid.launched = Sweep(Path(config.hydra.sweep.dir), parent, store)


# Errors of the jobs that ran in this process, in their order
failures: list[Exception] = []


@contextmanager
def kept_failure(directory: Path) -> Iterator[None]:
    """Write a job's error to its directory and go on: the other jobs of a grid must run, and the end tells of it.

    Hydra would print an error over several lines, and drop what follows a grid.
    """
    from wq.study.results import one_line, write_failure

    try:
        yield
    except Exception as error:
        write_failure(directory, error)
        print(f"error: {one_line(error)}", file=sys.stderr)
        failures.append(error)


def run_application(application: Callable[[], None]) -> None:
    """Run the Hydra application. Errors are one line and exit code 1; a grid ends with its report, whatever happened."""
    wants_traceback = FULL_ERROR in os.environ
    os.environ[FULL_ERROR] = "1"  # Hydra then raises errors of the configuration instead of printing them
    # A job that is stopped from outside ends as one that is interrupted: its run is closed, its files are whole.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    status, code = "FINISHED", 0
    try:
        application()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status, code = "KILLED", 130
    except Exception as error:
        from wq.study.results import one_line

        print(f"error: {one_line(error)}", file=sys.stderr)
        failures.append(error)
    if Grid.launched is not None:
        unfinished = finish(Grid.launched, "FAILED" if failures else status)
        code = code or int(unfinished > 0)
    if failures and wants_traceback:
        raise failures[0]
    if code or failures:
        sys.exit(code or 1)


def finish(sweep: Sweep, status: str) -> int:
    """The table and the report of a grid, and the end of its parent run. Returns how many points have no result."""
    from wq.study import report, results

    rows = results.collect(sweep.directory) if sweep.directory.is_dir() else []
    unfinished = sum(row["status"] != "finished" for row in rows)
    if len(rows) > unfinished:
        written = report.write_report(rows, sweep.directory, "wq grid")
        for path in written.paths:
            sweep.store.client.log_artifact(sweep.parent_run, str(path))
    if rows:
        print(report.format_table(rows))
    sweep.store.client.set_terminated(sweep.parent_run, "FAILED" if unfinished and status == "FINISHED" else status)
    return unfinished


def run_plainly(command: Callable[[], None]) -> None:
    """Run a subcommand: an error is one line and exit code 1, with a traceback where HYDRA_FULL_ERROR asks for one."""
    try:
        command()
    except Exception as error:
        if FULL_ERROR in os.environ:
            raise
        from wq.study.results import one_line

        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(1)
