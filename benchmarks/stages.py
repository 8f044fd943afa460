"""Where the time of a job goes, by stage.

    python -m benchmarks.stages [--rounds 3] [--threads N]

The real command line, looked at every 2 ms from another thread: the innermost function on its stack that
belongs to a stage says which stage it is in. So nothing is changed in what is measured, and it costs nearly
nothing. One job on the shipped speech, whose reference is in the store already; and the grid of `make demo`.
"""

import json
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from statistics import median

import altair

from benchmarks.measuring import Data, keep, options, run, table

# In the order in which they happen. "rest" is what belongs to none
STAGES = ("start", "import", "compose", "load", "quantize", "read", "features", "encode", "decode", "score")
STAGES += ("record", "report", "rest")
WHAT = {
    "start": "Python's own start and end",
    "import": "imports: torch, transformers, mlflow, hydra",
    "compose": "Hydra and the configuration",
    "load": "the model found, hashed, loaded",
    "quantize": "weights rounded, and put back",
    "read": "audio files hashed, read, decoded",
    "features": "log-mel features",
    "encode": "the encoder, or its kept states",
    "decode": "the decoder",
    "score": "alignments, bootstrap, paired tests",
    "record": "the MLflow store",
    "report": "report and its page",
    "rest": "everything else",
}
CASES = {
    "one job": ["format=int8"],
    "make demo": ["-m", "format=int4,nvfp4", "group=32,128"],
}


def measured(settings: list[str], arguments: Namespace) -> dict[str, float]:
    """Seconds by stage: medians over the rounds."""
    rounds = []
    limit = [f"limit={arguments.limit}"] if arguments.limit else []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            if "-m" not in settings:  # the reference first, which the job then finds
                command = [sys.executable, "-m", "wq.main", "format=fp32", *limit]
                run(command, directory, arguments.threads)
            command = [sys.executable, "-m", "benchmarks.sampled", "stages.json", *settings, *limit]
            used = run(command, directory, arguments.threads)
            found = json.loads((directory / "stages.json").read_text())
        rounds.append({"start": used.seconds - sum(found.values())} | found)
    return {stage: median(each.get(stage, 0.0) for each in rounds) for stage in STAGES}


def section(results: Data) -> str:
    names = list(results["cases"])
    columns = ["stage", "", *(text for name in names for text in (f"{name}, s", "share"))]
    rows = []
    for stage in STAGES:
        cells = [stage, WHAT[stage]]
        for name in names:
            found = results["cases"][name]
            cells += [f"{found[stage]:.2f}", f"{found[stage] / sum(found.values()):.0%}"]
        rows.append(cells)
    totals = ["**all**", ""]
    totals += [cell for name in names for cell in (f"{sum(results['cases'][name].values()):.2f}", "")]
    first = results["cases"][names[0]]
    heard = sum(first[stage] for stage in ("features", "encode", "decode"))
    whole = sum(first.values())
    return "\n\n".join(
        [
            f"The real command line on {results['utterances']} shipped utterances, looked at every 2 ms "
            "from another thread. *One job* is int8 with its reference in the store already; *make demo* "
            "four points, their reference and the report.",
            table(columns, [*rows, totals], words=2),
            f"What is left to gain: of one job's {whole:.1f} s, features, encoder and decoder take "
            f"{heard:.1f} s ({heard / whole:.0%}); importing takes {first['import']:.1f} s "
            f"({first['import'] / whole:.0%}), once for all jobs of a grid. A transcription that took no "
            f"time at all would make one job {whole / (whole - heard):.1f} times as fast.",
        ]
    )


def charts(results: Data) -> dict[str, altair.Chart]:
    rows = [
        {"case": name, "stage": stage, "seconds": found[stage], "order": STAGES.index(stage)}
        for name, found in results["cases"].items()
        for stage in STAGES
    ]
    return {
        "stages": altair.Chart(altair.Data(values=rows), width=620, height=90)
        .mark_bar()
        .encode(
            x=altair.X("seconds:Q", stack="zero"),
            y=altair.Y("case:N", title=None, sort=None),
            color=altair.Color("stage:N", sort=list(STAGES), scale=altair.Scale(scheme="tableau20")),
            order=altair.Order("order:Q"),
        )
    }


def main() -> None:
    parser = options(__doc__, rounds=3)
    parser.add_argument("--limit", type=int, help="utterances; all by default")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.limit = 1, 8
    cases = {name: measured(settings, arguments) for name, settings in CASES.items()}
    results: Data = {"utterances": arguments.limit or 320, "cases": cases}
    keep("stages", arguments, results)
    print(section(results))


if __name__ == "__main__":
    main()
