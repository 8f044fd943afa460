"""Time and peak memory as functions of utterances, of points and of the model's size.

    python -m benchmarks.scaling [--rounds 1] [--threads N]

Utterances: one job on the shipped speech, repeated under new ids. Points: one grid on 40 utterances. Both
from the start of Python to the end, each in a process of its own, whose largest resident set is the peak.
Model size: one window, in a process of its own, with random weights and 32 forced tokens.
"""

import json
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from statistics import median

import altair

from benchmarks.measuring import Data, keep, options, run, table
from wq.study.spec.config import DatasetConfig
from wq.study.speech.datasets import load_speech

UTTERANCES = (80, 160, 320, 640)
POINTS = (4, 8, 16, 32)
FORMATS = ("int8", "int6", "int5", "int4", "fp8_e4m3", "fp6_e2m3", "fp4_e2m1", "nvfp4")
GROUPS = (16, 32, 64, 128)
SIZES = ("nano", "tiny", "base", "small")


def measured(command: list[str], arguments: Namespace, manifest: int = 0) -> Data:
    """Seconds and peak bytes of a command: medians over the rounds, each in an empty directory."""
    used = []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            if manifest:
                write_manifest(directory / "speech.jsonl", manifest)
            used.append(run(command, directory, arguments.threads))
    return {
        "seconds": median(each.seconds for each in used),
        "peak_bytes": median(each.peak_bytes for each in used),
        "output": used[-1].output.splitlines()[-1],
    }


def write_manifest(path: Path, count: int) -> None:
    """The shipped speech, again and again, until there are so many utterances."""
    speech = load_speech(DatasetConfig(source="manifest", path="wq:commands", split="clean"))
    with path.open("w") as stream:
        for number in range(count):
            utterance = speech.utterances[number % len(speech.utterances)]
            row = {"id": f"u{number}", "audio_filepath": str(utterance.entry.audio), "text": utterance.text}
            stream.write(json.dumps(row) + "\n")


def job(utterances: int, arguments: Namespace) -> Data:
    command = [
        sys.executable,
        "-m",
        "wq.main",
        "dataset=manifest",
        "dataset.path=speech.jsonl",
        "format=fp32",
    ]
    return {"count": utterances} | measured(command, arguments, manifest=utterances)


def grid(points: int, arguments: Namespace) -> Data:
    groups = GROUPS[: min(points, len(GROUPS))]
    formats = FORMATS[: max(points // len(GROUPS), 1)]
    settings = [f"format={','.join(formats)}", f"group={','.join(map(str, groups))}", "limit=40"]
    return {"count": points} | measured([sys.executable, "-m", "wq.main", "-m", *settings], arguments)


def model(size: str, arguments: Namespace) -> Data:
    found = measured([sys.executable, "-m", "benchmarks.window", size, str(arguments.threads)], arguments)
    return {"model": size, "peak_bytes": found["peak_bytes"], **json.loads(found["output"])}


def grown(rows: list[Data], name: str) -> str:
    columns = [name, "seconds", "for twice as many", "peak memory, MB"]
    cells = []
    for before, row in zip([None, *rows], rows, strict=False):
        ratio = f"{row['seconds'] / before['seconds']:.2f}" if before else ""
        cells.append([row["count"], f"{row['seconds']:.1f}", ratio, f"{row['peak_bytes'] / 1e6:.0f}"])
    return table(columns, cells, words=0)


def section(results: Data) -> str:
    sizes = [
        [
            row["model"],
            f"{row['parameters'] / 1e6:.1f}",
            f"{row['load_seconds']:.2f}",
            f"{1e3 * row['features_seconds']:.0f}",
            f"{1e3 * row['encode_seconds']:.0f}",
            f"{1e3 * row['decode_seconds']:.0f}",
            f"{row['audio_seconds'] / row['seconds']:.1f}",
            f"{row['peak_bytes'] / 1e6:.0f}",
        ]
        for row in results["models"]
    ]
    return "\n\n".join(
        [
            "One job in full precision, from the start of Python to the end, on the shipped speech, "
            "repeated under new ids:",
            grown(results["utterances"], "utterances"),
            "One grid on 40 utterances, with its reference and its report:",
            grown(results["points"], "points"),
            "One window, with random weights and 32 forced tokens (nano: 5 s of audio; the others 30 s), "
            "in milliseconds. The peak is that of the whole process, Python and its libraries included:",
            table(
                [
                    "model",
                    "million parameters",
                    "making it, s",
                    "features",
                    "encoder",
                    "decoder",
                    "RTFx",
                    "peak, MB",
                ],
                sizes,
            ),
        ]
    )


def charts(results: Data) -> dict[str, altair.HConcatChart]:
    panels = []
    for name in ("utterances", "points"):
        rows = [{"count": row["count"], "seconds": row["seconds"]} for row in results[name]]
        base = altair.Chart(altair.Data(values=rows), width=260, height=200)
        panels.append(
            base.mark_line(point=True).encode(
                x=altair.X("count:Q", title=name), y=altair.Y("seconds:Q", scale=altair.Scale(zero=True))
            )
        )
    return {"scaling": altair.hconcat(*panels)}


def main() -> None:
    arguments = options(__doc__, rounds=1).parse_args()
    counts, points, sizes = UTTERANCES, POINTS, SIZES
    if arguments.quick:
        arguments.rounds, counts, points, sizes = 1, (4, 8), (1, 2), SIZES[:2]
    results: Data = {
        "utterances": [job(count, arguments) for count in counts],
        "points": [grid(count, arguments) for count in points],
        "models": [model(size, arguments) for size in sizes],
    }
    keep("scaling", arguments, results)
    print(section(results))


if __name__ == "__main__":
    main()
