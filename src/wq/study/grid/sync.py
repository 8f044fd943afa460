"""Results on disk that the store has not: recorded as their jobs would have, once.

A run is known by the tag that its job gave it, whether the store took it or not. Whoever records holds the
lock of the point and looks first, so that of many at once one writes; what another left half written is
completed.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from omegaconf import OmegaConf

from wq.console import report_errors
from wq.study.grid import grid, progress
from wq.study.score.noninferiority import MARGIN
from wq.study.store import recording
from wq.study.store.locks import exclusive
from wq.study.store.recording import Record
from wq.study.store.results import RECORD, RESULT, hypotheses, read_row, read_rows, sweep_of
from wq.study.store.tracking import FINGERPRINT, GRID, PARENT, RECORD_ID, Store, finished

OUTCOMES = RECORDED, KNOWN, COPIED, LEFT = (
    "recorded",
    "in the store already",
    "taken from other runs",
    "not recorded",
)


class IncompleteError(ValueError):
    """Results that cannot be recorded: one line that names them and the remedy."""


def sync(directories: Iterable[Path], open_store: Callable[[Record], Store]) -> Counter[str]:
    """Record all results below these directories, and end the runs of their grids. Gives how many had which
    outcome. Errors are reported, and the rest goes on; but a store that cannot be opened or reached is not
    tried again."""
    counts: Counter[str] = Counter()
    stores: dict[Store, Store | None] = {}  # each opened once; None where it cannot be
    changed: dict[tuple[Path, Store], bool] = {}  # grids, and whether they have got new points
    for directory in sorted({path.parent for each in directories for path in each.resolve().rglob(RESULT)}):
        outcome = LEFT
        with report_errors():
            if record := read(directory):
                store, sweep = open_store(record), sweep_of(directory)
                if store not in stores:
                    stores[store] = None
                    with store.connection.explained():
                        store.experiment_id  # noqa: B018  opened by the first look at it
                    stores[store] = store
                store = stores[store]
                if store and not store.connection.failure:
                    with store.connection.explained():
                        outcome = bring(store, record, directory, sweep)
                    if sweep:
                        changed[sweep, store] = outcome == RECORDED or changed.get((sweep, store), False)
            else:
                outcome = COPIED
        counts[outcome] += 1
    for (sweep, store), has_new in changed.items():
        with report_errors():
            if not store.connection.failure:
                with store.connection.explained():
                    end_grid(store, sweep, has_new)
    return counts


def read(directory: Path) -> Record | None:
    """What a job has left for the store; None where it took its results from another run.

    Raises IncompleteError.
    """
    try:
        fingerprint = read_row(directory / RESULT)["fingerprint"]
        read_rows(hypotheses(directory))
        record = recording.read(directory) if (directory / RECORD).exists() else None
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise IncompleteError(
            f"the results in {directory} cannot be read ({reason}); run the job again"
        ) from error
    if record and record.tags.get(FINGERPRINT) != fingerprint:
        raise IncompleteError(f"{directory / RECORD} is of another point than {RESULT}; run the job again")
    missing = [name for name in (record.files if record else ()) if not (directory / name).is_file()]
    if missing:
        raise IncompleteError(f"{directory} has no {', '.join(missing)}; run the job again")
    return record


def bring(store: Store, record: Record, directory: Path, sweep: Path | None) -> str:
    """Record a result, unless the store has the run, or another of the point and this was not asked for
    beside others."""
    if _is_known(store, record):
        return KNOWN
    with exclusive(store.folder, record.tags[FINGERPRINT], record.name):
        if _is_known(store, record):
            return KNOWN
        parent = _parent(store, sweep, create=True) if sweep else None
        begun = _search(store, _same(record))
        for run_id in begun[1:]:  # of one that was asked for again as no answer came
            store.client.delete_run(run_id)
        run_id = begun[0] if begun else store.create_run(record.name, record.tags, parent, record.started)
        if begun and parent:
            store.client.set_tag(run_id, PARENT, parent)
        recording.write(store, run_id, record, directory)
        store.client.set_terminated(run_id, "FINISHED", record.ended)
    return RECORDED


def end_grid(store: Store, sweep: Path, has_new: bool) -> None:
    """The report and the end of a grid's run, where it has got new points or was not ended, and no job is to
    come."""
    from wq.study.compare.scenes import Criteria
    from wq.study.compare.selection import of_sweep
    from wq.study.report.report import write_report

    states = {point.state for point in progress.look(sweep)}
    parent = _parent(store, sweep)
    if not parent or states & {"running", "waiting"}:
        return
    # one at a time: a server takes no two writers of one tag
    with exclusive(store.folder, f"end-{parent}", "the grid's report"):
        ended = store.client.get_run(parent).info.status
        status = "FINISHED" if states == {"done"} else "FAILED" if ended == "RUNNING" else ended
        if has_new or ended != status:
            swept = OmegaConf.load(sweep / "multirun.yaml")
            margin = OmegaConf.select(swept, "margin", default=MARGIN)
            selection = of_sweep(sweep, Criteria(margin, OmegaConf.select(swept, "front", default=None)))
            has_results = len(selection.rows) > len(selection.unfinished)
            written = write_report(selection, sweep, "wq grid") if has_results else None
            grid.close(store, parent, written, status)


def _parent(store: Store, sweep: Path, *, create: bool = False) -> str | None:
    """The run of a grid, which is known by its settings, as Hydra leaves them; None where they are lost."""
    if not (sweep / "multirun.yaml").exists():
        return None
    config = OmegaConf.load(sweep / "multirun.yaml")
    identity, name = grid.identity(config.hydra.overrides.task)
    with exclusive(store.folder, f"grid-{identity}", name):
        found = store.find_grid(identity)
        return store.create_run(name, {GRID: identity}) if create and not found else found


def _is_known(store: Store, record: Record) -> bool:
    own = f"{_same(record)} and attributes.status = 'FINISHED'"
    return bool(
        _search(store, own) or (not record.rerun and _search(store, finished(record.tags[FINGERPRINT])))
    )


def _same(record: Record) -> str:
    return f"tags.`{RECORD_ID}` = '{record.tags[RECORD_ID]}'"


def _search(store: Store, query: str) -> list[str]:
    return [run.info.run_id for run in store.client.search_runs([store.experiment_id], query)]
