"""What a grid costs beside separate evaluations, and a further point beside the first.

    python -m benchmarks.grid [--rounds 1] [--threads N]

A grid is one command, as anybody would type it: 16 points and their reference. The separate evaluations are
16 calls of `benchmarks/plain.py`, a script with `generate` as a researcher would write it; both from the
start of Python to the end, on the same speech, and both must give the same word error rates. A grid runs in
one process with all cores, and again in one process for each (hydra/launcher=joblib). The points are
jobs of one process, one after the other, each timed from its configuration to its record in the store.
"""

import json
import sys
import tempfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import median

from benchmarks.measuring import Data, keep, options, run, table

FORMATS, BOTH, DECODER = ("int8", "int4", "fp8_e4m3", "nvfp4"), "[encoder,decoder]", "[decoder]"
# Of the first every point has an encoder of its own; of the second half of them have the reference's
GRIDS = (
    {"format": FORMATS, "group": ("16", "32", "64", "128"), "roles": (BOTH,)},
    {"format": FORMATS, "group": ("32", "128"), "roles": (BOTH, DECODER)},
)
QUICK = ({"format": FORMATS[:1], "group": ("32",), "roles": (BOTH, DECODER)},)
LAUNCHERS = {"basic": "one process, s", "joblib": "one for each core, s"}
DEMO = ("format=int4,nvfp4", "group=32,128")
# Jobs of one process, in this order: what each of them finds that those before it have left
POINTS = {
    "first job: its reference and int8, groups of 128": "format=int8",
    "a second weight-only int8 point, groups of 64": "format=int8 group=64",
    "int4 in the decoder alone": "format=int4 roles=[decoder]",
    "int4 in the encoder alone": "format=int4 roles=[encoder]",
    "int8 keys and values alone": "format=fp32 kv_cache=int8",
}
PLAIN = Path(__file__).with_name("plain.py")


def grid_seconds(arguments: Namespace, axes: Mapping[str, Sequence[str]]) -> Data:
    """One command for all points, in one process and in several, against one command for each: seconds, and
    how many rates agree."""
    limit = [f"limit={arguments.limit}"] if arguments.limit else []
    split = f"dataset.split={arguments.split}"
    points = list(product(axes["format"], axes["group"], axes["roles"]))
    settings = [*(f"{key}={','.join(values)}" for key, values in axes.items()), split, *limit]
    wholes: dict[str, list[float]] = {launcher: [] for launcher in LAUNCHERS}
    rates: dict[str, dict[tuple[str, ...], float]] = {}
    separates, inside = [], []
    for _ in range(arguments.rounds):
        for launcher, seconds in wholes.items():
            with tempfile.TemporaryDirectory() as name:
                command = [sys.executable, "-m", "wq.main", "-m", f"hydra/launcher={launcher}", *settings]
                seconds.append(run(command, Path(name), arguments.threads).seconds)
                rates[launcher] = {
                    (row["format"], str(row["group"]), f"[{row['roles'].replace('+', ',')}]"): row["wer"]
                    for path in Path(name).glob("multirun/*/*/*/result.json")
                    for row in [json.loads(path.read_text())]
                }
        plain = [sys.executable, str(PLAIN), arguments.split, str(arguments.limit or 0)]
        found = []
        for format, group, roles in points:
            with tempfile.TemporaryDirectory() as name:
                parts = roles.strip("[]").split(",")
                used = run([*plain, format, group, *parts], Path(name), arguments.threads)
            found.append((used, json.loads(used.output.splitlines()[-1])))
        separates.append(sum(used.seconds for used, _ in found))
        inside.append(sum(each["seconds"] for _, each in found))
    same = sum(
        all(abs(rates[launcher][point] - each["wer"]) < 1e-9 for launcher in LAUNCHERS)
        for point, (_, each) in zip(points, found, strict=True)
    )
    return {
        "settings": settings[: len(axes)],
        "points": len(points),
        "seconds": {launcher: median(seconds) for launcher, seconds in wholes.items()},
        "separate_seconds": median(separates),
        "separate_seconds_after_imports": median(inside),
        "same_rates": same,
    }


def demo_seconds(arguments: Namespace) -> Data:
    """`make demo`'s grid, and the same command again."""
    limit = [f"limit={arguments.limit}"] if arguments.limit else []
    command = [sys.executable, "-m", "wq.main", "-m", *DEMO, *limit]
    with tempfile.TemporaryDirectory() as name:
        first, again = (run(command, Path(name), arguments.threads) for _ in range(2))
    return {"seconds": first.seconds, "again_seconds": again.seconds}


def point_seconds(arguments: Namespace) -> list[Data]:
    """Jobs one after the other in one process, in a directory of their own."""
    rounds = []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as name:
            command = [sys.executable, "-m", "benchmarks.jobs", *POINTS.values()]
            settings = f"dataset.split={arguments.split}" + (
                f" limit={arguments.limit}" if arguments.limit else ""
            )
            used = run([*command, settings], Path(name), arguments.threads)
            rounds.append(json.loads(used.output.splitlines()[-1]))
    return [
        {"point": name, **{key: median(each[n][key] for each in rounds) for key in rounds[0][n]}}
        for n, name in enumerate(POINTS)
    ]


def section(results: Data) -> str:
    grids, demo = results["grids"], results["demo"]
    first = results["points"][0]
    rows = [["reference, with loading and features", f"{first['reference_seconds']:.2f}", "1.00"]]
    for each in results["points"]:
        ratio = each["seconds"] / first["reference_seconds"]
        rows.append([each["point"], f"{each['seconds']:.2f}", f"{ratio:.2f}"])
    own = first["seconds"]
    second = results["points"][1]["seconds"]
    return "\n\n".join(
        [
            f"Grids on the shipped speech ({results['utterances']}), from the start of Python to the end: "
            "one command for the points, their reference and the report, against an evaluation of each by a "
            "script with `generate` (`benchmarks/plain.py`: load, quantize, generate in batches of 32, "
            "score; no size, no intervals, no store, no report). Where encoder and decoder are both "
            "quantized every point runs an encoder of its own; points of the decoder alone share one.",
            table(
                [
                    *("grid", "points", "separate, s", "after imports, s"),
                    *(head for column in LAUNCHERS.values() for head in (column, "ratio")),
                    "same WER",
                ],
                [
                    [
                        f"`{' '.join(grid['settings'])}`",
                        str(grid["points"]),
                        f"{grid['separate_seconds']:.0f}",
                        f"{grid['separate_seconds_after_imports']:.0f}",
                        *(
                            cell
                            for launcher in LAUNCHERS
                            for cell in (
                                f"{grid['seconds'][launcher]:.0f}",
                                f"{grid['seconds'][launcher] / grid['separate_seconds']:.2f}",
                            )
                        ),
                        f"{grid['same_rates']} of {grid['points']}",
                    ]
                    for grid in grids
                ],
            ),
            "Further points, as jobs of one process one after the other; seconds from a job's "
            "configuration to its record in the store. The first column of ratios is against the "
            "reference, which finds nothing to reuse.",
            table(["job", "seconds", "of the reference's"], rows),
            f"The second int8 point takes {second / own:.2f} of the time of the whole first job.",
            f"`make demo`, after installation: {demo['seconds']:.0f} s for four jobs, their reference and "
            "the report; the same command again, which finds everything in the store, "
            f"{demo['again_seconds']:.0f} s.",
        ]
    )


def main() -> None:
    parser = options(__doc__, rounds=1)
    parser.add_argument("--split", default="other")
    parser.add_argument("--limit", type=int, help="utterances; all by default")
    arguments = parser.parse_args()
    grids: Sequence[Mapping[str, Sequence[str]]] = GRIDS
    if arguments.quick:
        arguments.rounds, arguments.limit, grids = 1, 8, QUICK
    results: Data = {
        "utterances": f"{arguments.limit or 320} utterances of {arguments.split}",
        "grids": [grid_seconds(arguments, axes) for axes in grids],
        "points": point_seconds(arguments),
        "demo": demo_seconds(arguments),
    }
    keep("grid", arguments, results)
    print(section(results))


if __name__ == "__main__":
    main()
