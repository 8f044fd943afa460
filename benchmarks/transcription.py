"""How fast audio becomes text: our greedy decoding beside others on the same weights, in the same batches.

    python -m benchmarks.transcription [--rounds 5] [--batches 1 8 32] [--models nano tiny] [--device cpu]

Audio seconds per second (RTFx), features included, reading of files not: the median over rounds in which
all run in turn, each in a process of its own, so that whatever else the machine does hits all alike. `nano`
is the shipped model on the clean split of the shipped speech; `tiny` has the shape of Whisper tiny.en, random
weights and a forced length, and hears noise of 30 s.
"""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import altair
import torch

from benchmarks.cases import Case, nano, random_weights
from benchmarks.measuring import Data, keep, medians, options, table
from benchmarks.rivals import TRANSCRIBERS, WHISPER_CPP, agreeing, transcribers

FEW = 16


def transcription(
    name: str, make_case: Callable[[], Case], case: Case, batch: int, arguments: Namespace
) -> Data:
    """Seconds of everybody, and how many utterances each transcribes as we do."""
    batches = [case.audios[first : first + batch] for first in range(0, len(case.audios), batch)]
    with transcribers(make_case, batch, arguments.threads, arguments.device) as (found, missing):
        rows = {rival: call(batches) for rival, call in found.items()}
        seconds = medians(
            {rival: lambda call=call: call(batches) for rival, call in found.items()}, arguments.rounds
        )
    return {
        "model": name,
        "batch": batch,
        "utterances": len(case.audios),
        "audio_seconds": case.seconds,
        "seconds": seconds,
        "same": {rival: agreeing(case, rows[rival], rows["wq"]) for rival in found},
        "missing": missing,
    }


def section(results: Data) -> str:
    cases = results["transcription"]
    columns = ["model", "batch", "utterances"]
    columns += [f"{name}, RTFx" if name == "wq" else name for name in TRANSCRIBERS]
    columns += [f"wq / {name}" for name in TRANSCRIBERS if name != "wq"]
    rows = []
    for case in cases:
        speeds = {name: case["audio_seconds"] / seconds for name, seconds in case["seconds"].items()}
        cells = [f"{speeds[name]:.0f}" if name in speeds else "" for name in TRANSCRIBERS]
        cells += [
            f"{speeds['wq'] / speeds[name]:.2f}" if name in speeds else ""
            for name in TRANSCRIBERS
            if name != "wq"
        ]
        rows.append([case["model"], case["batch"], case["utterances"], *cells])
    differing = [
        f"{name} {case['utterances'] - count} of {case['utterances']} ({case['model']}, batch "
        f"{case['batch']})"
        for case in cases
        for name, count in case["same"].items()
        if count < case["utterances"]
    ]
    reasons = {
        f"{name} on {case['model']}: {reason}" for case in cases for name, reason in case["missing"].items()
    }
    notes = [f"Transcripts that differ from ours: {'; '.join(differing) or 'none'}."]
    notes += [f"Not measured: {'; '.join([*sorted(reasons), WHISPER_CPP])}."]
    return "\n\n".join(
        [
            "Seconds of audio per second (RTFx) on the same weights, in the same batches, decoded greedily "
            "in float32 on as many threads: the median of rounds in which all run in turn, each in a process "
            "of its own. Features are included, reading of files is not. `nano` is the shipped model on "
            "shipped speech, `tiny` the shape of Whisper tiny.en with random weights and 32 tokens for each "
            "30 s of noise.",
            table(columns, rows),
            *notes,
        ]
    )


def charts(results: Data) -> dict[str, altair.Chart]:
    rows = [
        {
            "who": name,
            "case": f"{case['model']}, batch {case['batch']}",
            "RTFx": case["audio_seconds"] / seconds,
        }
        for case in results["transcription"]
        for name, seconds in case["seconds"].items()
    ]
    chart = altair.Chart(altair.Data(values=rows), width=120, height=160).mark_bar()
    return {
        "transcription": chart.encode(
            x=altair.X("who:N", sort=list(TRANSCRIBERS), title=None),
            y=altair.Y("RTFx:Q", title="seconds of audio per second"),
            color=altair.Color("who:N", sort=list(TRANSCRIBERS), legend=None),
            column=altair.Column("case:N", title=None, sort=None),
        )
    }


def main() -> None:
    parser = options(__doc__, rounds=5)
    parser.add_argument("--utterances", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--models", nargs="+", choices=["nano", "tiny"], default=["nano", "tiny"])
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.utterances, arguments.batches = 1, 4, [2]
    torch.set_num_threads(arguments.threads)
    makers = {"nano": partial(nano, arguments.utterances), "tiny": partial(random_weights, "tiny", 4)}
    results: Data = {"device": arguments.device, "transcription": []}
    for name in arguments.models:
        case = makers[name]()
        case.model.to(arguments.device)  # type: ignore[arg-type]
        for batch in sorted({min(batch, len(case.audios)) for batch in arguments.batches}):
            # Single utterances take long: a few are enough
            step = max(len(case.audios) // FEW, 1) if batch == 1 else 1
            part = replace(case, audios=case.audios[::step])
            results["transcription"].append(transcription(name, makers[name], part, batch, arguments))
    keep("transcription", arguments, results)
    print(section(results))


if __name__ == "__main__":
    main()
