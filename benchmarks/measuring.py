"""What the benchmarks share: options, timing in turn, commands with their memory, and results as data."""

import json
import os
import platform
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

RESULTS = Path("build/bench")
LIBRARIES = ("torch", "transformers", "faster-whisper", "ctranslate2", "pywhispercpp", "torchao")
LIBRARIES += ("compressed-tensors", "nvidia-modelopt", "hqq")
Data = dict[str, Any]


def options(description: str | None, rounds: int) -> ArgumentParser:
    """A parser with what every part takes."""
    parser = ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true", help="tiny sizes: to see that it runs")
    return parser


def keep(part: str, arguments: Namespace, results: Data) -> None:
    """Write a part's results with what they came from, for the page."""
    asked = " ".join(sys.argv[1:])
    data = {
        "command": f"python -m benchmarks.{part} {asked}".strip(),
        "machine": machine(arguments.threads),
        "results": results,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{part}.json").write_text(json.dumps(data, indent=1) + "\n")


def machine(threads: int) -> Data:
    """The processor, its cores and memory, and the versions that a number depends on."""
    return {
        "processor": processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        # of the last minute: what else ran, and this
        "load": round(os.getloadavg()[0], 1),
        "threads": threads,
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "python": platform.python_version(),
        "libraries": {name: found for name in LIBRARIES if (found := installed(name))},
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")


def installed(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def timed(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    started = clock()
    call()
    return clock() - started


def medians(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each call: all of them in turn in every round, after one round that does not count."""
    return {name: median(values) for name, values in in_turn(calls, rounds).items()}


def fastest(
    calls: Mapping[Any, Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> dict[Any, float]:
    """As `medians`, but by this clock, and the best of the rounds: what other work on the machine disturbs
    least."""
    return {name: min(values) for name, values in in_turn(calls, rounds, clock).items()}


def in_turn(
    calls: Mapping[Any, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[Any, list[float]]:
    seconds: dict[Any, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            seconds[name].append(timed(call, clock))
    return {name: values[1:] for name, values in seconds.items()}


@dataclass(frozen=True)
class Usage:
    """What a command took: seconds on the clock and of processors, and its largest resident set in bytes."""

    seconds: float
    busy_seconds: float
    peak_bytes: int
    output: str


def run(command: Sequence[str], directory: Path, threads: int) -> Usage:
    """Run a command in a directory, on so many threads. Raises RuntimeError where it fails."""
    directory.mkdir(parents=True, exist_ok=True)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "WQ"))}
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(Path.cwd()))))
    settings = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    log = directory / "output.txt"
    with log.open("wb") as stream:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=directory, env=inherited | settings, stdout=stream, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
    text = log.read_text(errors="replace")
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {text[-500:]}")
    return Usage(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, text)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], words: int = 1) -> str:
    """A Markdown table, whose first columns are words and the others numbers."""
    marks = ["---"] * words + ["---:"] * (len(columns) - words)
    lines = [columns, marks, *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
