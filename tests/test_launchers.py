"""Grids in several processes of this machine, what becomes of them when something is killed, and how far they
are. tests/test_slurm.py has the cluster."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.conftest import Launch, Run
from wq import console, slurm
from wq.console import raise_if_interrupted
from wq.processes import run_in_processes
from wq.study.grid import progress
from wq.study.grid.progress import look
from wq.study.store.results import PLAN

GRID = ("format=int4,nvfp4", "group=32,128", "limit=8", "resamples=200")
POINTS = ("fp32", "int4-g32", "int4-g128", "nvfp4-g32", "nvfp4-g128")

# What one machine, or one process, does not have in common with another
OWN = {"command", "device", "batch_size", "peak_memory_bytes", "rtfx"}


def sweep_of(directory: Path) -> Path:
    return max(directory.glob(f"multirun/*/*/{PLAN}"), key=os.path.getmtime).parent


def numbers(sweep: Path) -> dict[str, tuple[dict, str]]:
    """Every point of a grid: its row without what is the machine's own, and its transcripts."""
    found = {}
    for result in sweep.glob("?/**/result.json"):
        row = json.loads(result.read_text())
        kept = {key: value for key, value in row.items() if key not in OWN and not key.endswith("_seconds")}
        found[row["point"]] = kept, result.with_name("hypotheses.jsonl").read_text()
    return found


def runs(directory: Path) -> list[tuple[str, str]]:
    """Names and statuses of the store's runs; a grid's own run is named after its settings. From the file, as
    this is asked while jobs are at it."""
    with contextlib.closing(sqlite3.connect(f"file:{directory}/mlflow.db?mode=ro", uri=True)) as store:
        try:
            return store.execute("SELECT name, status FROM runs").fetchall()
        except sqlite3.OperationalError:  # not there yet
            return []


def finished(directory: Path) -> list[str]:
    return sorted(name for name, status in runs(directory) if status == "FINISHED" and "=" not in name)


def until(condition: Callable[[], object], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def workers(grid: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(grid.pid).children()
    return [child for child in children if any("LokyProcess" in word for word in child.cmdline())]


@pytest.mark.slow
def test_processes_give_the_same_numbers_as_one(wq: Run, tmp_path: Path):
    few = ("format=int4,nvfp4", "limit=3", "resamples=50")
    several = wq("-m", *few, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert several.returncode == 0, several.stderr
    assert finished(tmp_path) == ["fp32", "int4-g128", "nvfp4"]  # the reference once, whoever made it
    basic = wq("-m", *few, f"tracking_uri=sqlite:///{tmp_path}/basic.db", "hydra.sweep.dir=basic")
    assert basic.returncode == 0, basic.stderr
    assert numbers(tmp_path / "basic") == numbers(sweep_of(tmp_path))


@pytest.mark.slow
def test_points_that_share_an_encoder_run_it_once(wq: Run, tmp_path: Path):
    """Their transcripts are those of points that share nothing; only times are missing."""
    few = (
        "format=int4",
        "roles=[encoder,decoder],[decoder]",
        "kv_cache=none,int8",
        "limit=5",
        "resamples=50",
        "drafting=false",  # drafts save time as well
    )
    rows: dict[str, dict] = {}
    for sweep, reuse in (("shared", "true"), ("alone", "false")):
        store = f"tracking_uri=sqlite:///{tmp_path}/{sweep}.db"
        done = wq("-m", *few, f"reuse={reuse}", f"hydra.sweep.dir={sweep}", store)
        assert done.returncode == 0, done.stderr
        for file in (tmp_path / sweep).glob("[0-9]/**/result.json"):
            row = json.loads(file.read_text())
            rows[f"{sweep} {row['point']}"] = row
    measured = {name for name, row in rows.items() if row["rtfx"] is not None}
    assert measured == {"shared fp32", *(name for name in rows if name.startswith("alone"))}
    encoded = {name for name, row in rows.items() if row["encode_seconds"] is not None} - measured
    assert encoded == {"shared int4-g128"}  # the first with an encoder of int4
    assert all(row["decode_seconds"] > 0 for row in rows.values())
    assert numbers(tmp_path / "shared") == numbers(tmp_path / "alone")
    assert len(numbers(tmp_path / "alone")) == 5


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_an_interrupted_grid_leaves_no_process_and_no_open_run(launch: Launch, tmp_path: Path, launcher: str):
    grid = launch("-m", *GRID, "limit=300", "batch_size=2", f"hydra/launcher={launcher}")
    until(lambda: (tmp_path / "mlflow.db").exists() and ("fp32", "RUNNING") in runs(tmp_path))
    time.sleep(2)  # into the transcription
    left = workers(grid)
    assert len(left) == (0 if launcher == "basic" else min(4, os.cpu_count() or 1))
    os.killpg(grid.pid, signal.SIGINT)
    _, alive = psutil.wait_procs(left, timeout=5)
    assert not alive
    _, stderr = grid.communicate(timeout=60)
    assert grid.returncode == 130
    assert stderr.splitlines()[-1] == "interrupted"  # libraries may have warned before
    assert "Traceback" not in stderr
    assert {status for _, status in runs(tmp_path)} == {"KILLED"}
    assert not list(tmp_path.rglob("result.json"))


@pytest.mark.slow
def test_a_process_that_dies_takes_one_point_with_it(wq: Run, launch: Launch, tmp_path: Path):
    command = ("-m", *GRID, "limit=60", "batch_size=2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    grid = launch(*command)
    until(lambda: list(tmp_path.glob("multirun/*/*/1/.hydra")))
    workers(grid)[0].kill()
    _, stderr = grid.communicate(timeout=300)
    assert grid.returncode == 1
    assert "error: its process was killed, as when memory runs out" in stderr
    told = wq("status", module="wq").stdout
    assert "3 done, 1 failed of 4" in told
    assert "its process was killed" in told
    assert wq(*command).returncode == 0
    assert finished(tmp_path) == sorted(POINTS)


def test_each_process_has_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And one that dies is replaced, on the same GPU. CUDA itself is not asked."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    lost = []

    def task(number: int) -> Callable[[], None]:
        def write() -> None:
            place = tmp_path / os.environ["CUDA_VISIBLE_DEVICES"]
            place.mkdir(exist_ok=True)
            (place / str(number)).touch()
            if number < 2:
                until(lambda: len(list(tmp_path.glob("*/*"))) > 1, 60)  # both have begun
            if number == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        return write

    run_in_processes(
        {number: task(number) for number in range(6)},
        lambda number, error: lost.append((number, str(error))),
        device="auto",
        n_jobs=None,
        threads=1,
    )
    assert lost == [(0, "its process was killed, as when memory runs out")]
    assert {path.name for path in tmp_path.iterdir()} == {"3", "GPU-5"}
    assert {path.name for path in tmp_path.glob("*/*")} == {str(number) for number in range(6)}


def test_a_grid_whose_launcher_is_gone(wq: Run, tmp_path: Path):
    sweep = tmp_path / "multirun" / "2026-01-01" / "00-00-00"
    sweep.mkdir(parents=True)
    points = {number: ["format=int4", f"group={2**number}", "limit=2"] for number in range(5)}
    progress.write_plan(sweep, "python -m wq.main -m X", points, {n: str(n) for n in points}, {})
    for number, name in ((0, "result.json"), (1, "error.txt"), (2, ".hydra")):
        (sweep / str(number)).mkdir()
        (sweep / str(number) / name).write_text("RuntimeError: lost\n\ntrace")
    states = [(point.state, point.settings, point.reason) for point in look(sweep)]
    assert states == [  # this process wrote the plan and is there
        ("done", "group=1", ""),
        ("failed", "group=2", "RuntimeError: lost"),
        ("running", "group=4", ""),
        ("waiting", "group=8", ""),
        ("waiting", "group=16", ""),
    ]
    plan = json.loads((sweep / PLAN).read_text())
    (sweep / PLAN).write_text(json.dumps(plan | {"began": plan["began"] - 100}))  # its number was given anew
    told = wq("status", module="wq")
    assert told.returncode == 0
    assert "1 done, 1 failed, 3 missing of 5" in told.stdout
    assert "missing  group=4  (its process was killed)" in told.stdout
    assert "missing  group=8  (the grid ended before it began)" in told.stdout
    assert told.stdout.rstrip().endswith("python -m wq.main -m X")

    (sweep / PLAN).write_text(json.dumps(plan | {"host": "elsewhere"}))
    assert look(sweep)[2].reason == "no result yet; on elsewhere wq status knows more"


def test_what_slurm_says_is_read():
    assert slurm._read("7_0|RUNNING|None\n7_1|PENDING|Resources\nnonsense\n8|CANCELLED by 0|0:0\n") == {
        "7_0": slurm.State("RUNNING"),
        "7_1": slurm.State("PENDING", "Resources"),
        "8": slurm.State("CANCELLED", "0:0"),
    }


MISTAKES = {
    "+detach=true": "detach=true needs a cluster that takes the jobs; give hydra/launcher=slurm",
    "chunk=0 hydra/launcher=slurm": "chunk=0 must be at least 1; give a positive number",
    "hydra/launcher=slurm": 'Slurm takes no jobs (Could not detect "srun"',
    "hydra/launcher=slurm hydra.launcher.partion=gpu": "hydra.launcher.partion is no setting of Hydra's",
    "hydra/launcher=joblib hydra.launcher.n_jobs=x": "n_jobs=x must be at least 1; give a number, or null",
}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", MISTAKES)
def test_mistakes_are_answered_in_one_line(wq: Run, tmp_path: Path, arguments: str):
    told = wq("-m", "format=int4,int8", *arguments.split(), PATH=str(Path(sys.executable).parent))
    assert told.returncode == 1
    (line,) = {line for line in told.stderr.splitlines() if line.startswith("error: ")}  # one for each job
    assert MISTAKES[arguments] in line
    assert "Traceback" not in told.stderr


def test_status_where_there_is_no_grid(wq: Run):
    for arguments in ((), ("elsewhere",)):
        told = wq("status", *arguments, module="wq")
        assert told.returncode == 1
        assert told.stderr.startswith("error: ")
        assert len(told.stderr.splitlines()) == 1


class Collected:
    """Something that can be referred to weakly."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_drops_is_heard_before_the_next_job(monkeypatch):
    monkeypatch.setattr(console, "ending", console.Ending())
    before = signal.signal(signal.SIGINT, console._interrupt)
    try:
        raise_if_interrupted()
        thing = Collected()
        reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
        del thing
        assert reference() is None
        with pytest.raises(KeyboardInterrupt):
            raise_if_interrupted()
    finally:
        signal.signal(signal.SIGINT, before)
