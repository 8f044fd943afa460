"""How far a grid is: what is done, running, waiting, failed or missing, and why."""

from pathlib import Path

from wq.console import run_command

HELP = """usage: wq status [DIR ...]

Every point of a grid: done, running, waiting, failed or missing, and why. DIR is the grid's directory;
without one, the grid that was launched last under multirun/.

The grid may be running, ended or killed, on this machine or on Slurm; this only looks."""


def main() -> None:
    run_command(tell, HELP)


def tell(arguments: list[str]) -> None:
    from wq.study.grid import progress
    from wq.study.store import results

    directories = [Path(text) for text in arguments]
    newest = progress.newest()
    if not directories and newest is None:
        raise ValueError("no grid under multirun/; run one with python -m wq.main -m, or give its directory")
    for directory in directories or [newest]:
        assert directory
        if not (directory / progress.PLAN).exists():
            raise ValueError(f"{directory} is no grid's directory; give one that holds {progress.PLAN}")
        points = progress.look(directory)
        print(f"{directory}: {progress.counts(points)}")
        for point in points:
            print(f"  {point.state:<9}{point.settings}" + (f"  ({point.reason})" if point.reason else ""))
        if any(point.state in ("failed", "missing") for point in points):
            command = results.read_row(directory / progress.PLAN)["command"]
            print(f"what has no result is run by the same command again:\n  {command}")
