"""A grid: what Hydra is asked to do around the jobs, and what is left when they are done, however they ended."""

import hashlib
import os
import signal
import sys
from collections.abc import Callable
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


def run_application(application: Callable[[], None]) -> None:
    """Run the Hydra application: errors become one line and exit code 1; a grid ends with its report, whatever happened."""
    wants_traceback = FULL_ERROR in os.environ
    os.environ[FULL_ERROR] = "1"  # Hydra then raises errors instead of printing them, and we print them
    # A job that is stopped from outside ends as one that is interrupted: its run is closed, its files are whole.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    status, code = "FINISHED", 0
    try:
        application()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status, code = "KILLED", 130
    except Exception as error:
        if wants_traceback:
            raise
        from wq.study.results import one_line

        if Grid.launched is None:
            print(f"error: {one_line(error)}", file=sys.stderr)
        status, code = "FAILED", 1
    finally:
        if Grid.launched is not None:
            finish(Grid.launched, status)
    if code:
        sys.exit(code)


def finish(sweep: Sweep, status: str) -> None:
    """The table and the report of a grid, and the end of its parent run."""
    from wq.study import report, results

    rows = results.collect(sweep.directory)
    if any(row["status"] == "finished" for row in rows):
        written = report.write_report(rows, sweep.directory, "wq grid")
        for path in written.paths:
            sweep.store.client.log_artifact(sweep.parent_run, str(path))
    if rows:
        print(report.format_table(rows))
    sweep.store.client.set_terminated(sweep.parent_run, status)
