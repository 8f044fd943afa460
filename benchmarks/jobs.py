"""Jobs of one process, one after the other, each timed: jobs.py "SETTINGS" ... "SETTINGS OF ALL"

Prints, for each, the seconds from its configuration to its record in the store, and those of the reference
that it had to make first.
"""

import json
import sys
import time
from pathlib import Path

from wq.main import run
from wq.study import evaluation
from wq.study.config import compose


def main() -> None:
    *jobs, common = sys.argv[1:]
    found = []
    for number, settings in enumerate(jobs):
        overrides = [*settings.split(), *common.split()]
        reference = 0.0
        obtain = evaluation.obtain

        def timed(job, *others, obtain=obtain):
            nonlocal reference
            started = time.perf_counter()
            outcome = obtain(job, *others)
            if job.spec.is_reference:
                reference = time.perf_counter() - started
            return outcome

        evaluation.obtain = timed
        started = time.perf_counter()
        (config,) = compose(overrides)
        run(config, Path("jobs") / str(number), overrides)
        seconds = time.perf_counter() - started
        evaluation.obtain = obtain
        found.append({"seconds": seconds, "reference_seconds": reference})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
