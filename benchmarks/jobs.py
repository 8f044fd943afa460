"""Jobs of one process, as of a grid, each timed: jobs.py "SETTINGS" ... "SETTINGS OF ALL"

They share what a grid's jobs share, and run in the order in which a grid would run them. Prints, for each,
the seconds from its configuration to its record in the store, and those of the reference that it had to make.
"""

import json
import sys
import time
from pathlib import Path

import mlflow  # noqa: F401  whose imports are no part of the first job
from transformers import WhisperForConditionalGeneration  # noqa: F401

from wq.main import run
from wq.study.job import evaluation, reuse
from wq.study.job.rows import Outcome
from wq.study.spec.composition import compose

reference_seconds: list[float] = []


def timed_references() -> None:
    """Time whatever makes a reference from now on."""
    record = evaluation.record

    def timed(job, directory: Path, reference: Outcome | None) -> Outcome:
        started = time.perf_counter()
        outcome = record(job, directory, reference)
        if job.spec.is_reference:
            reference_seconds.append(time.perf_counter() - started)
        return outcome

    evaluation.record = timed


def main() -> None:
    *jobs, common = sys.argv[1:]
    overrides = [[*settings.split(), *common.split()] for settings in jobs]
    configs = {number: compose(each)[0] for number, each in enumerate(overrides)}
    order, coming = reuse.plan(configs)
    reuse.here.coming |= coming
    timed_references()
    found = {}
    for number in order:
        before, started = sum(reference_seconds), time.perf_counter()
        run(configs[number], Path("jobs") / str(number), overrides[number])
        seconds = time.perf_counter() - started
        found[number] = {"seconds": seconds, "reference_seconds": sum(reference_seconds) - before}
    print(json.dumps([found[number] for number in range(len(jobs))]))


if __name__ == "__main__":
    main()
