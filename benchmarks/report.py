"""How long `wq report` takes over a store of many runs.

    python -m benchmarks.report [--runs 1000] [--utterances 320]

The points are made up, their errors drawn at random; store, transcripts and command line are real.
Everything goes into build/report-RUNS-UTTERANCES, where a second call finds the store again.
"""

import itertools
import sys
import zlib
from pathlib import Path

import numpy as np

from benchmarks.measuring import Data, keep, options, run, table
from wq.study.score import statistics
from wq.study.store import results
from wq.study.store.results import Row
from wq.study.store.tracking import FINGERPRINT, Store

FORMATS = {
    "int8": 8,
    "int6": 6,
    "int5": 5,
    "int4": 4,
    "int3": 3,
    "fp8_e4m3": 8,
    "fp6_e2m3": 6,
    "mxfp4": 4,
    "nvfp4": 4,
}
GROUPS = (16, 32, 64, 128, 256)
ACTIVATIONS = ("none", "int8-token", "int8-tensor", "fp8_e4m3-token", "int4-token")
SMOOTHING = ("none", "fixed", "search")
CACHES = ("none", "int8", "int4")
WEIGHTS = 4_456_448  # of the linear layers
ROLES = [
    f"{part}.{role}"
    for part in ("encoder", "decoder")
    for role in ("self_attn.q", "self_attn.v", "mlp.fc1", "mlp.fc2")
]
VOCABULARY = [
    "turn",
    "the",
    "kitchen",
    "light",
    "lamp",
    "music",
    "off",
    "on",
    "please",
    "now",
    "red",
    "blue",
    "stop",
    "start",
    "play",
    "next",
    "again",
    "louder",
]


def make_points(count: int, utterances: int) -> list[tuple[Row, list[Row]]]:
    """Rows and transcripts of a reference and of count - 1 points."""
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(VOCABULARY, random.integers(4, 12))) for _ in range(utterances)]
    reference = point("fp32", {"format": "fp32", "granularity": "none", "group": None}, 32.0)
    points = [evaluated(reference, texts, 0.05, random, None)]
    grid = itertools.product(FORMATS.items(), GROUPS, ACTIVATIONS, SMOOTHING, CACHES)
    for (name, bits), group, activation, smoothing, cache in itertools.islice(grid, count - 1):
        settings = {"format": name, "granularity": "group", "group": group, "activation": activation}
        settings |= {"smoothquant": smoothing, "kv_cache": cache, "weights": f"{name}-g{group}"}
        row = point(f"{name}-g{group} {activation} {smoothing} {cache}", settings, bits + 16 / group)
        loss = 4.0 ** (3 - bits) * group / 64 + 0.02 * (activation != "none") * (1 + (smoothing == "none"))
        points.append(evaluated(row, texts, min(0.05 + loss, 0.9), random, points[0]))
    return points


def point(name: str, settings: Row, bits: float) -> Row:
    linear = int(WEIGHTS * bits / 8)
    return {
        "fingerprint": f"{zlib.crc32(name.encode()):016x}",
        "status": "finished",
        "is_reference": name == "fp32",
        "point": name,
        "model": "made up",
        "dataset": "made up",
        "split": "test",
        "language": "en",
        **settings,
        "roles": "encoder+decoder",
        "seed": 0,
        "resamples": 10_000,
        "linear_bytes": linear,
        "model_bytes": linear + 1_300_000,
        "memory_bytes": linear + 9_000_000,
        "moved_bytes": 20 * linear,
        "bits_per_weight": bits,
        "role_bytes": {role: linear // len(ROLES) for role in ROLES},
        "command": f"python -m wq.main format={settings['format']} group={settings['group']}",
    }


def evaluated(
    row: Row,
    texts: list[str],
    loss: float,
    random: np.random.Generator,
    reference: tuple[Row, list[Row]] | None,
) -> tuple[Row, list[Row]]:
    """A point whose every word is another one with a probability of `loss`."""
    transcripts = []
    for n, text in enumerate(texts):
        heard = [word if random.random() > loss else "bananas" for word in text.split()]
        errors = sum(word != other for word, other in zip(text.split(), heard, strict=True))
        texts_of = {"id": f"u{n:05d}", "duration": 2.0, "text": text, "pred_text": " ".join(heard)}
        transcripts.append(
            texts_of | {"errors": errors, "words": len(heard), "tokens": list(range(len(heard)))}
        )
    errors = np.array([each["errors"] for each in transcripts])
    words = np.array([each["words"] for each in transcripts])
    row = row | {"wer": float(errors.sum() / words.sum()), "utterance_errors": errors.tolist()}
    spread = statistics.bootstrap_interval(errors, words, resamples=1000)
    row |= {"wer_ci_low": spread.low, "wer_ci_high": spread.high, "cer": row["wer"]}
    if reference:
        base = np.array(reference[0]["utterance_errors"])
        found = statistics.compare(errors, words, base, changed=errors != base, resamples=1000)
        row |= {"wer_delta": found.delta, "wer_delta_ci_low": found.low, "wer_delta_ci_high": found.high}
        row |= {"wer_delta_p": found.p, "reference": reference[0]["fingerprint"]}
    return row, transcripts


def fill(store: Store, count: int, utterances: int, directory: Path) -> None:
    for row, transcripts in make_points(count, utterances):
        results.write_row(directory / results.RESULT, row)
        results.write_rows(directory / results.HYPOTHESES, transcripts)
        files = [directory / results.RESULT, directory / results.HYPOTHESES]
        parameters = {name: value for name, value in row.items() if isinstance(value, str)}
        with store.running(row["point"], {FINGERPRINT: row["fingerprint"]}, None) as run_id:
            assert run_id
            store.record(run_id, parameters, {"wer": row["wer"]}, files)


def section(found: Data) -> str:
    rows = [
        [name, f"{each['seconds']:.1f}", f"{each['busy_seconds']:.1f}"]
        for name, each in found["calls"].items()
    ]
    return "\n\n".join(
        [
            f"`wq report` over a store of {found['runs']:,} made-up runs of {found['utterances']:,} "
            f"utterances each; the page is {found['page_bytes'] / 1e6:.1f} MB.",
            table(["", "seconds", "processor seconds"], rows),
        ]
    )


def main() -> None:
    parser = options(__doc__, rounds=1)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--utterances", type=int, default=320)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.runs, arguments.utterances = 10, 20
    runs, utterances = arguments.runs, arguments.utterances
    directory = Path(f"build/report-{runs}-{utterances}").absolute()
    store = Store(f"sqlite:///{directory / 'mlflow.db'}", "wq")
    if not (directory / "mlflow.db").exists():
        fill(store, runs, utterances, directory)
    command = [sys.executable, "-m", "wq", "report", f"tracking_uri={store.uri}", "out=report"]
    calls = {}
    for call in ("first call", "second call"):
        used = run(command, directory, arguments.threads)
        calls[call] = {"seconds": used.seconds, "busy_seconds": used.busy_seconds}
    page = (directory / "report" / "report.html").stat().st_size
    found: Data = {"runs": runs, "utterances": utterances, "calls": calls, "page_bytes": page}
    keep("report", arguments, found)
    print(section(found))


if __name__ == "__main__":
    main()
