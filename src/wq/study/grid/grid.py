"""A grid: what is done around the jobs that Hydra runs, and what is left of them, however they ended."""

import hashlib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from wq.console import (
    FULL_ERROR,
    ending,
    leave,
    listen,
    print_anything,
    refuse_passwords,
    report_errors,
    say,
    tell_version,
)
from wq.study.spec.composition import explained, refuse_options, respell

if TYPE_CHECKING:
    from wq.study.compare.expected import Bands
    from wq.study.compare.scenes import Criteria
    from wq.study.report.report import Report
    from wq.study.store.tracking import Store

OWN_FILES = ("config.yaml", "hydra.yaml", "overrides.yaml")  # of Hydra, in hydra.output_subdir
SWEPT = "multirun.yaml"  # of Hydra, in a grid's directory
HOW = ("chunk=", "detach=", "margin=", "front=")  # settings that say how a grid is run or read, not which


class UnfinishedError(RuntimeError):
    """Points of a grid have no result."""


@dataclass(frozen=True)
class Sweep:
    """The grid that this process has launched."""

    directory: Path
    parent_run: str | None  # None where the store cannot be reached
    store: "Store"
    expected: "Bands"
    criteria: "Criteria"


class Grid(Callback):
    """Prepares the store before the first job of a grid: parallel jobs must not meet an empty one."""

    launched: Sweep | None = None

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        from wq import outputs
        from wq.study.store import results

        directory, settings = Path(config.hydra.run.dir), config.hydra.output_subdir
        with accepted():
            outputs.refuse_inside(directory, "hydra.run.dir", sources(config))
            outputs.refuse_foreign(results.files(directory))
            if settings is not None:
                outputs.refuse_foreign(directory / settings / name for name in OWN_FILES)
        outputs.remove(results.files(directory))
        chosen = config.hydra.runtime.choices.get("hydra/launcher")
        if chosen != "basic":
            print(f"hydra/launcher={chosen} is for grids: without -m the job runs here", file=sys.stderr)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        from wq import outputs
        from wq.study.store.results import PLAN, REPORT
        from wq.study.store.tracking import PARENT_VARIABLE

        sweep = sweep_of(Path(config.hydra.sweep.dir), None, config)
        with accepted():
            outputs.refuse_inside(sweep.directory, "hydra.sweep.dir", sources(config))
            outputs.refuse_foreign(sweep.directory / name for name in (PLAN, SWEPT, *REPORT))
        sweep.store.check()
        os.environ.pop(PARENT_VARIABLE, None)
        with sweep.store.connection.optional():
            sweep.store.close_stale()
            parent = sweep.store.open_grid(*identity(config.hydra.overrides.task))
            os.environ[PARENT_VARIABLE] = parent
            sweep = replace(sweep, parent_run=parent)
        sweep.store.connection.tell_failure(sweep.directory)
        Grid.launched = sweep

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        from wq import outputs

        if config.hydra.output_subdir is not None:
            directory = Path(config.hydra.runtime.output_dir) / config.hydra.output_subdir
            outputs.claim(directory / name for name in OWN_FILES)


@contextmanager
def accepted() -> Iterator[None]:
    """What is refused in here ends the process: of a callback's errors Hydra would make warnings."""
    with report_errors():
        yield
    if ending.errors:
        sys.exit(ending.code)


def sources(config: DictConfig) -> dict[str, str | None]:
    """Where a composed configuration reads from, by its settings."""
    return {key: OmegaConf.select(config, key, default=None) for key in ("dataset.path", "model.path")}


def identity(overrides: Iterable[str]) -> tuple[str, str]:
    """What the run of a grid is found by, and its name: the settings that say which points there are."""
    kept = [text for text in overrides if not text.startswith(HOW)]
    return hashlib.sha256("\n".join(sorted(kept)).encode()).hexdigest()[:16], " ".join(kept) or "grid"


def sweep_of(directory: Path, parent_run: str | None, config: DictConfig) -> Sweep:
    from wq.study.compare.scenes import Criteria

    criteria = Criteria(config.margin, config.front)
    return Sweep(directory, parent_run, open_store(config), config.expect_wer, criteria)


def open_store(config: DictConfig) -> "Store":
    from wq.study.store.tracking import Store, default_uri

    return Store(config.tracking_uri or default_uri(), config.experiment_name)


def run_application(application: Callable[[], None]) -> None:
    """Run the Hydra application. Errors are one line and exit code 1; a grid ends with its report, whatever
    happened."""
    wants_traceback = FULL_ERROR in os.environ
    os.environ[FULL_ERROR] = "1"  # Hydra then raises errors of the configuration instead of printing them
    print_anything()
    listen()
    logging.raiseExceptions = False  # Hydra's log need not be read to its end either
    interrupted = False
    try:
        with report_errors(), explained(sys.argv[1:]):
            refuse_passwords(sys.argv[1:])
            if "--version" in sys.argv:
                tell_version()
                return
            if {"--help", "-h"} & set(sys.argv[1:]):
                from wq.study.spec.help import help_text

                say(help_text())
                return
            refuse_options(sys.argv[1:])
            # -m may stand anywhere: Hydra's parser takes no settings on both sides of an option
            sys.argv[1:] = sorted(respell(sys.argv[1:]), key=lambda text: text not in ("-m", "--multirun"))
            application()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        interrupted = True
    except SystemExit:  # of Hydra, or of what a callback refused
        if not ending.errors:
            raise
    if Grid.launched is not None:
        with report_errors():
            end(Grid.launched, "KILLED" if interrupted else "FAILED" if ending.errors else "FINISHED")
    leave(wants_traceback, 130 if interrupted else ending.code)


def detach(jobs: Iterable[str]) -> None:
    """Leave the grid to its Slurm jobs: the last of them makes its report."""
    from wq.study.store.tracking import JOB, PID

    assert Grid.launched is not None
    store, parent = Grid.launched.store, Grid.launched.parent_run
    if parent:
        with store.connection.optional():
            store.client.set_tag(parent, PID, "detached")  # no process of this machine stands for it any more
            store.client.set_tag(parent, JOB, ",".join(sorted({job.partition("_")[0] for job in jobs})))
    Grid.launched = None


def finish_detached(directory: Path, config: DictConfig) -> None:
    """The end of a detached grid, by the job that finds all points ended."""
    from filelock import FileLock

    from wq.study.grid.progress import is_over
    from wq.study.store.tracking import PARENT_VARIABLE

    with FileLock(directory / ".finish.lock"):
        if is_over(directory):
            parent = os.environ.get(PARENT_VARIABLE)
            finish(sweep_of(directory, parent, config), "FINISHED")


def end(sweep: Sweep, status: str) -> None:
    """The end of a grid of this process, which may have been refused before any job."""
    from wq.study.grid import progress

    if progress.is_launched_here(sweep.directory):
        finish(sweep, status)
    elif sweep.parent_run:
        with sweep.store.connection.optional():
            close(sweep.store, sweep.parent_run, None, "FAILED")


def finish(sweep: Sweep, status: str) -> None:
    """The table and the report of a grid, and the end of its parent run. Raises where one has no result."""
    from wq.study.compare.expected import unexpected
    from wq.study.compare.selection import of_sweep
    from wq.study.grid import progress
    from wq.study.report.report import format_table, write_report

    selection = of_sweep(sweep.directory, sweep.criteria)
    rows = selection.rows
    points = progress.look(sweep.directory)
    unfinished = any(point.state != "done" for point in points)
    if unfinished and status == "FINISHED":
        status = "FAILED"
    written = None
    try:
        if len(rows) > len(selection.unfinished):
            with report_errors():  # the table is shown even where no file can be written
                written = write_report(selection, sweep.directory, "wq grid")
        if rows:
            say(format_table(selection))
        if written:
            say(*map(str, written.paths))
    finally:
        if sweep.parent_run:
            with sweep.store.connection.optional():
                close(sweep.store, sweep.parent_run, written, status)
                sweep.store.close_stale()
        sweep.store.connection.tell_failure(sweep.directory)
    if status != "KILLED":
        sweep.store.tell_made()
    for error in unexpected(rows, sweep.expected):
        with report_errors():
            raise error
    if unfinished and status == "FAILED" and not ending.errors:  # they failed in other processes
        raise UnfinishedError(
            f"{progress.counts(points)}; wq status {sweep.directory} says why, and the same command runs "
            "what has no result"
        )


def close(store: "Store", parent_run: str, written: "Report | None", status: str) -> None:
    """Give the run of a grid its report, and end it."""
    if written:
        store.attach(parent_run, written.paths, written.markdown)
    store.client.set_terminated(parent_run, status)
