"""How far a grid is: every point of it done, running, waiting, failed or missing, and why.

Read from what lies in the grid's directory, from the process that launched it, and from Slurm where it runs
there; nothing needs to have ended well, and no record needs to be complete.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from wq import slurm
from wq.processes import machine
from wq.study.store.results import ERROR, PLAN, RESULT, Planned, Row, planned, read_row, write_row

STATES = ("done", "running", "waiting", "failed", "missing")


@dataclass(frozen=True)
class Point:
    """A point of a grid. settings: what it does not share with all others."""

    number: int
    settings: str
    state: str
    reason: str = ""


def write_plan(
    sweep: Path,
    command: str,
    points: Mapping[int, Sequence[str]],
    directories: Mapping[int, str],
    jobs: Mapping[int, str],
) -> None:
    """Leave in the grid's directory which points there are, who runs them and what repeats the grid. Points
    of an earlier batch stay.

    directories   of the points, in the grid's
    jobs          the Slurm job of each point that has one
    """
    process = psutil.Process()
    plan = [
        {"number": n, "overrides": list(texts), "directory": directories[n], "job": jobs.get(n)}
        for n, texts in points.items()
    ]
    earlier = read_row(sweep / PLAN)["points"] if min(points) and (sweep / PLAN).exists() else []
    write_row(
        sweep / PLAN,
        {
            "command": command,
            "host": machine(),
            "pid": process.pid,
            "began": process.create_time() - psutil.boot_time(),  # whatever becomes of the clock
            "points": [point for point in earlier if point["number"] not in points] + plan,
        },
    )


def look(sweep: Path) -> list[Point]:
    """Every point of a grid, in the grid's order. Raises FileNotFoundError where there is no grid."""
    plan = read_row(sweep / PLAN)
    points = planned(sweep)
    shared = set.intersection(*(set(point.overrides) for point in points)) if len(points) > 1 else set()
    without = [point for point in points if not (point.directory / RESULT).exists()]
    jobs = slurm.states({point.slurm_job for point in without if point.slurm_job})
    alive = None if jobs else is_alive(plan)
    return [
        Point(
            point.number,
            " ".join(text for text in point.overrides if text not in shared) or f"job {point.number}",
            *_state(sweep, point, jobs, alive),
        )
        for point in points
    ]


def is_over(sweep: Path) -> bool:
    """Whether every point has ended by itself, well or with an error."""
    directories = [point.directory for point in planned(sweep)]
    return all((each / RESULT).exists() or (each / ERROR).exists() for each in directories)


def is_launched_here(sweep: Path) -> bool:
    """Whether the plan in a grid's directory is of this process, and not of an earlier grid."""
    if not (sweep / PLAN).exists():
        return False
    plan = read_row(sweep / PLAN)
    return plan["pid"] == os.getpid() and bool(is_alive(plan))


def is_alive(plan: Row) -> bool | None:
    """Whether the process that launched a grid is there; None where another machine would have to tell."""
    if plan["host"] != machine():
        return None
    try:
        return abs(psutil.Process(plan["pid"]).create_time() - psutil.boot_time() - plan["began"]) < 1
    except psutil.NoSuchProcess:
        return False


def _state(sweep: Path, point: Planned, jobs: dict[str, slurm.State], alive: bool | None) -> tuple[str, str]:
    directory = point.directory
    if (directory / RESULT).exists():
        return "done", ""
    if (directory / ERROR).exists():
        return "failed", (directory / ERROR).read_text(encoding="utf-8").partition("\n")[0]
    begun = directory.is_dir()
    if point.slurm_job:
        return _state_in_slurm(sweep, point.slurm_job, jobs, begun)
    if alive is None:
        return "missing", f"no result yet; on {read_row(sweep / PLAN)['host']} wq status knows more"
    if alive:
        return ("running", "") if begun else ("waiting", "")
    return "missing", "its process was killed" if begun else "the grid ended before it began"


def _state_in_slurm(sweep: Path, job: str, jobs: dict[str, slurm.State], begun: bool) -> tuple[str, str]:
    name = f"Slurm job {job}"
    state = jobs.get(job)
    if state is None:
        last = slurm.last_words(sweep / slurm.FOLDER / job)
        return "missing", f"{name} is gone" + (f": {last}" if last else "")
    if state.name == slurm.UNKNOWN:
        return "missing", f"no result yet; {state.reason}, so {name} may be running or not"
    if state.name == "RUNNING":
        return ("running", name) if begun else ("waiting", f"its turn in {name}, which runs")
    if state.is_active:
        return "waiting", f"{name} is {state.name}" + (f" ({state.reason})" if state.reason else "")
    explained = state.name in ("CANCELLED", "TIMEOUT")
    last = "" if explained else slurm.last_words(sweep / slurm.FOLDER / job)
    return "missing", f"{name} ended as {state.name}" + (f": {last}" if last else "")


def counts(points: Sequence[Point]) -> str:
    """How many points are in which state, as a phrase."""
    states = [point.state for point in points]
    told = ", ".join(f"{states.count(state)} {state}" for state in STATES if state in states)
    return f"{told} of {len(points)}" if len(set(states)) > 1 else f"{told} (all)"


def newest(multirun: Path = Path("multirun")) -> Path | None:
    """The directory of the grid that was launched last."""
    plans = sorted(multirun.glob(f"*/*/{PLAN}"), key=os.path.getmtime)
    return plans[-1].parent if plans else None
