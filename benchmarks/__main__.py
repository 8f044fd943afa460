"""All benchmarks in one go, and their page: python -m benchmarks [--only grid stages] [--rounds N] [--quick]

Every part runs in a process of its own and leaves its data in build/bench; the page in docs is then written
anew, and keeps the parts that have not been run. A part that fails leaves the others' results. With --quick,
which is to see that everything runs, sizes are tiny and the page goes to build/bench.
"""

import json
import os
import subprocess
import sys
import time
from argparse import ArgumentParser
from pathlib import Path

from benchmarks import page
from benchmarks.measuring import RESULTS


def main() -> None:
    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=page.PARTS, default=list(page.PARTS), metavar="PART")
    parser.add_argument("--rounds", type=int, help="of every part; each has its own default")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    settings = ["--quick"] if arguments.quick else []
    settings += ["--rounds", str(arguments.rounds)] if arguments.rounds else []
    done, failed = {}, []
    for part in arguments.only:
        print(f"\n{page.PARTS[part]}\n", flush=True)
        started = time.perf_counter()
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-m", f"benchmarks.{part}", *settings]
        if subprocess.run(command, env=environment).returncode:
            failed.append(part)
            continue
        done[part] = json.loads((RESULTS / f"{part}.json").read_text())
        print(f"\n{part}: {time.perf_counter() - started:.0f} s", flush=True)
    directory = RESULTS if arguments.quick else Path("docs")
    if done:
        page.write(directory, done)
        print(f"written: {directory / page.PAGE}, {directory / page.DATA} and pictures")
    if failed:
        sys.exit(f"error: failed: {', '.join(failed)}; run again with --only {' '.join(failed)}")


if __name__ == "__main__":
    main()
