"""What happens to grids: killed at any moment, started by many at once, out of space, out of time. After each
of these the same command completes the grid, with the numbers that an undisturbed one has, each once.

tests/test_slurm.py has what happens on a cluster.
"""

import contextlib
import json
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.conftest import environment
from tests.test_launchers import finished, numbers, runs, sweep_of, until

GRID = ("-m", "format=int4,nvfp4", "limit=2", "resamples=50", "max_new_tokens=8")
POINTS = ["fp32", "int4-g128", "nvfp4"]
MOMENTS = 20
JOBS = 32


def command(
    directory: Path,
    *arguments: str,
    largest_file: int | None = None,
    settings: Mapping[str, str] | None = None,
):
    """`python -m wq.main ARGUMENTS`, begun in a directory, as the leader of a session.

    largest_file   the bytes beyond which no file may grow
    """

    def limited() -> None:
        if largest_file:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    return subprocess.Popen(
        [sys.executable, "-m", "wq.main", *arguments],
        cwd=directory,
        env=environment(**settings or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=limited,
    )


def end(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    stdout, stderr = process.communicate(timeout=300)
    return process.returncode, stdout, stderr


@dataclass(frozen=True)
class Undisturbed:
    """A grid that nothing happened to: its numbers by point, and how long the processor worked on it."""

    numbers: dict
    cpu_seconds: float


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    directory = tmp_path_factory.mktemp("undisturbed")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code, _, stderr = end(command(directory, *GRID))
    assert code == 0, stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Undisturbed(numbers(sweep_of(directory)), spent)


def cpu_seconds(grid: "subprocess.Popen[str]") -> float:
    """What the processor has worked on it and on its children so far, which says how far a grid is on a busy
    machine too."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(grid.pid)
        return sum(sum(each.cpu_times()[:4]) for each in (process, *process.children(recursive=True)))
    return 0.0


def assert_whole(directory: Path, expected: Undisturbed) -> None:
    """Whatever takes itself for a result is one."""
    for result in directory.rglob("result.json"):
        row = json.loads(result.read_text())
        known, transcripts = expected.numbers[row["point"]]
        assert {name: row[name] for name in known} == known
        assert result.with_name("hypotheses.jsonl").read_text() == transcripts


def assert_repaired(directory: Path, expected: Undisturbed) -> None:
    """The same command again: every point once, nothing left open, and the same numbers."""
    assert_whole(directory, expected)
    code, _, stderr = end(command(directory, *GRID))
    assert code == 0, stderr
    assert finished(directory) == POINTS
    assert {status for _, status in runs(directory)} <= {"FINISHED", "KILLED", "FAILED"}
    sweep = sweep_of(directory)
    assert numbers(sweep) == expected.numbers
    assert (sweep / "report.html").exists()
    assert_whole(directory, expected)


@pytest.mark.slow
@pytest.mark.parametrize("nth", range(MOMENTS))
def test_a_grid_killed_at_any_moment_is_completed(tmp_path: Path, undisturbed: Undisturbed, nth: int):
    """One random moment in each twentieth of its time; every fourth grid runs in processes of its own."""
    moment = undisturbed.cpu_seconds * (nth + random.Random(nth).random()) / MOMENTS
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2") if nth % 4 == 3 else ()
    grid = command(tmp_path, *GRID, *launcher)
    until(lambda: grid.poll() is not None or cpu_seconds(grid) >= moment)
    with contextlib.suppress(ProcessLookupError):  # it was faster
        os.kill(grid.pid if nth % 8 == 3 else -grid.pid, signal.SIGKILL)
    grid.communicate()
    assert_repaired(tmp_path, undisturbed)


# Many jobs that differ from each other and share a reference, in processes that begin at the same moment
TOGETHER = """
import os, sys
from pathlib import Path
import evaluate, jiwer, mlflow.store.tracking.sqlalchemy_store, soundfile, torch  # once for all
from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration
from wq.main import run
from wq.study.job import evaluation; from wq.study.report import report
from wq.study.spec.composition import compose
gate, opener = os.pipe()
children = []
for number in range(int(sys.argv[1])):
    overrides = ["format=int4", f"group={8 + number}", "limit=2", "resamples=50", "max_new_tokens=8"]
    child = os.fork()
    if child == 0:
        os.close(opener)
        os.read(gate, 1)
        code = 1
        try:
            (config,) = compose(overrides)
            run(config, Path("jobs", str(number)), overrides)
            code = 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    children.append(child)
os.close(opener)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
print("codes", *sorted(codes))
"""


def holders(directory: Path) -> list[int]:
    """The process that makes the reference, once there is one."""
    with contextlib.closing(sqlite3.connect(f"file:{directory}/mlflow.db?mode=ro", uri=True)) as store:
        found = store.execute(
            "SELECT tags.value FROM runs JOIN tags ON runs.run_uuid = tags.run_uuid "
            "WHERE runs.name = 'fp32' AND runs.status = 'RUNNING' AND tags.key = 'wq.pid'"
        ).fetchall()
    return [int(pid) for (pid,) in found]


@pytest.mark.slow
def test_jobs_that_begin_together_make_the_reference_once(tmp_path: Path):
    """From an empty directory; the first to make the reference is killed while the others wait for it."""
    jobs = subprocess.Popen(
        [sys.executable, "-c", TOGETHER, str(JOBS)],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    seen: list[int] = []
    until(lambda: (tmp_path / "mlflow.db").exists() and (seen.extend(holders(tmp_path)) or seen))
    os.kill(seen[0], signal.SIGKILL)
    _, stdout, stderr = end(jobs)
    assert Counter(stdout.splitlines()[-1].split()[1:]) == {"0": JOBS - 1, "-9": 1}, stderr
    made = Counter(finished(tmp_path))
    assert set(made.values()) == {1}
    assert len(made) == JOBS
    assert Counter(name for name, _ in runs(tmp_path))["fp32"] == 2  # the first and one other began it
    references = [json.loads(path.read_text()) for path in tmp_path.glob("jobs/*/reference.json")]
    assert len(references) == JOBS - 1
    assert len({(row["fingerprint"], row["wer"]) for row in references}) == 1


# --- no space, no permission --------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(place: Path, options: str) -> Iterator[None]:
    """A file system in memory at a place. Skips where this may not be done."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts file systems")
    place.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def assert_told(code: int, stderr: str, reason: str) -> None:
    assert code == 1, stderr
    assert reason in stderr
    assert "Traceback" not in stderr
    assert all(line.startswith("error: ") for line in stderr.splitlines() if reason in line), stderr


@pytest.mark.slow
@pytest.mark.parametrize("size", ["8k", "64k", "160k"])
def test_a_disk_that_is_full_is_told_and_leaves_nothing_half(
    tmp_path: Path, undisturbed: Undisturbed, size: str
):
    """Full when the first directory is made, in a job, or when the report is written."""
    with mounted(tmp_path / "multirun", f"size={size}"):
        code, _, stderr = end(command(tmp_path, *GRID))
        assert_told(code, stderr, "No space left on device")
        assert_whole(tmp_path, undisturbed)
    assert_repaired(tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [100, 600])
def test_a_store_that_is_full_is_told(tmp_path: Path, undisturbed: Undisturbed, kilobytes: int):
    """No file may grow beyond a limit: the store ends in the midst of its creation, or of a grid. Results
    remain."""
    code, _, stderr = end(command(tmp_path, *GRID, largest_file=kilobytes * 1000))
    assert "Traceback" not in stderr
    assert "mlflow.db cannot be" in stderr
    assert code == 1 or numbers(sweep_of(tmp_path)) == undisturbed.numbers, stderr
    assert_repaired(tmp_path, undisturbed)


@pytest.mark.slow
def test_a_directory_that_may_only_be_read(tmp_path: Path):
    if os.geteuid() == 0:
        obstacle: contextlib.AbstractContextManager = mounted(tmp_path, "ro")
    else:
        tmp_path.chmod(0o555)
        obstacle = contextlib.nullcontext()
    with obstacle:
        for arguments in (("format=int4",), ("-m", "format=int4,nvfp4")):
            code, _, stderr = end(command(tmp_path, *arguments))
            assert code == 1
            (line,) = (line for line in stderr.splitlines() if not line.startswith("warning: "))
            assert line.startswith("error: ")
            assert "Read-only file system" in line or "Permission denied" in line


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path):
    static = ("-m", "format=int8,int4", "activation=int8_tensor", "calibration.limit=2", *GRID[2:])
    found = []
    for place, told in ((str(tmp_path / "cache"), 0), ("/dev/null/x", 1)):
        directory = tmp_path / str(told)
        directory.mkdir()
        code, _, stderr = end(command(directory, *static, settings={"WQ_CACHE": place}))
        assert code == 0, stderr
        for kind in ("calibration", "kernels"):
            assert stderr.count(f"{kind} cannot be written") == told
        found.append(numbers(sweep_of(directory)))
    assert found[0] == found[1]


# --- the clock ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_clock_that_goes_backwards(tmp_path: Path, undisturbed: Undisturbed):
    """By two days while a grid runs, and by two more before it runs again with one point more."""
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not libraries:
        pytest.skip("libfaketime is not installed: apt-get install faketime")
    clock = tmp_path / "clock"
    clock.write_text("+4d")
    settings = {
        "LD_PRELOAD": str(libraries[0]),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    grid = command(tmp_path, *GRID, settings=settings)
    until(lambda: (tmp_path / "mlflow.db").exists() and ("fp32", "RUNNING") in runs(tmp_path))
    clock.write_text("+2d")
    code, _, stderr = end(grid)
    assert code == 0, stderr
    for row in (json.loads(path.read_text()) for path in tmp_path.rglob("result.json")):
        measured = {name: row[name] for name in row if name == "rtfx" or name.endswith("_seconds")}
        assert all(value is None or value >= 0 for value in measured.values()), measured
    assert_repaired(tmp_path, undisturbed)
    code, stdout, stderr = end(command(tmp_path, GRID[0], f"{GRID[1]},int8", *GRID[2:]))
    assert code == 0, stderr
    assert stdout.count("(from the store)") == 2
    assert finished(tmp_path) == sorted([*POINTS, "int8-g128"])
