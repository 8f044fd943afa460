"""Tasks in processes of this machine, by loky, joblib's pool: one for every GPU, or for every CPU core."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

# How Linux calls the process ids of a machine itself: PROC_PID_INIT_INO
FIRST_SPACE = "pid:[4026531836]"
# In the environment of a process: how many of them share the machine's memory
PROCESSES = "WQ_PROCESSES"


class ProcessError(RuntimeError):
    """Processes cannot be started, or one of them died."""


def run_in_processes(
    tasks: Mapping[int, Callable[[], None]],
    lost: Callable[[int, Exception], None],
    *,
    device: str,
    n_jobs: int | None,
    threads: int | None,
) -> None:
    """Run all tasks, which report by themselves. A process that dies takes its own task with it and no other.

    lost      told the number of a task whose process died
    n_jobs    how many at a time; null is one for every GPU, or for every core where no GPU is used
    threads   of every process; null shares out the cores

    Raises ProcessError for a count that is none, and where joblib is not installed.
    """
    for name, count in (("n_jobs", n_jobs), ("threads", threads)):
        if count is not None and (not isinstance(count, int) or count < 1):
            raise ProcessError(f"hydra.launcher.{name}={count} must be at least 1; give a number, or null")
    try:
        from joblib.externals.loky import BrokenProcessPool, ProcessPoolExecutor, cpu_count
    except ImportError as error:
        raise ProcessError(
            "hydra/launcher=joblib needs joblib, which is not installed; pip install 'wq[cluster]'"
        ) from error
    gpus = visible_gpus() if device in ("auto", "cuda") else []
    workers = min(n_jobs or len(gpus) or (1 if device.startswith("cuda:") else cpu_count()), len(tasks))
    share = {"OMP_NUM_THREADS": str(threads or max(1, cpu_count() // workers)), PROCESSES: str(workers)}
    # that a killed process has left something behind is nothing to tell
    kept = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (kept, "ignore:resource_tracker")))
    waiting = shared_out(list(tasks), workers)
    pools: dict[int, Any] = {}  # one process each, so that every one has its own environment and its own end

    starting = threading.Lock()
    stopped = threading.Event()

    def start(worker: int, number: int) -> Any:
        place = {"CUDA_VISIBLE_DEVICES": gpus[worker % len(gpus)]} if gpus else {}
        with starting:
            if stopped.is_set():
                raise BrokenProcessPool
            if worker not in pools:
                pools[worker] = ProcessPoolExecutor(1, env=share | place)
            return pools[worker].submit(_run, tasks[number], os.getpid())

    def work(worker: int) -> None:
        while (number := _next(waiting, worker)) is not None:
            try:
                start(worker, number).result()
            except BrokenProcessPool:
                if stopped.is_set():
                    return
                pools.pop(worker).shutdown(kill_workers=True)
                lost(number, ProcessError("its process was killed, as when memory runs out"))
        if worker in pools and not stopped.is_set():
            pools.pop(worker).shutdown()

    with ThreadPoolExecutor(workers) as drivers:
        try:
            for driver in [drivers.submit(work, worker) for worker in range(workers)]:
                driver.result()
        finally:
            with starting:
                stopped.set()
            for pool in list(pools.values()):
                pool.shutdown(kill_workers=True)


def shared_out(numbers: Sequence[int], workers: int) -> list[deque[int]]:
    """A part for each worker. What is alike stands together, and has most to gain in one process."""
    cuts = [len(numbers) * worker // workers for worker in range(workers + 1)]
    return [deque(numbers[start:end]) for start, end in pairwise(cuts)]


def _next(waiting: Sequence[deque[int]], worker: int) -> int | None:
    """The worker's own next one, or else the last of whoever has most left."""
    with suppress(IndexError):
        return waiting[worker].popleft()
    with suppress(IndexError):
        return max(waiting, key=len).pop()
    return None


def _run(task: Callable[[], None], parent: int) -> None:
    """In the process: the parent alone is interrupted from the keyboard, and nobody outlives it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not any(thread.name == "orphan" for thread in threading.enumerate()):
        threading.Thread(target=_end_with, args=(parent,), name="orphan", daemon=True).start()
    task()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    print("the grid's process is gone: this one ends too", file=sys.stderr)
    os._exit(1)


def machine() -> str:
    """This machine, as far as a process id means the same on it: a container with ids of its own is another
    one, whatever name it has."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # no Linux
        return socket.gethostname()
    return socket.gethostname() + ("" if space == FIRST_SPACE else f" {space}")


def visible_gpus() -> list[str]:
    """The CUDA devices that a process here may use, as CUDA_VISIBLE_DEVICES names them: as CUDA does, up to
    the first that is none, such as -1, or NoDevFiles, which Slurm sets."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        names = [each.strip() for each in chosen.split(",")]
        return list(takewhile(re.compile(r"\d+|(GPU|MIG)-\S+").fullmatch, names))
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [
        str(index) for index in range(sum(line.startswith("GPU ") for line in listed.stdout.splitlines()))
    ]
