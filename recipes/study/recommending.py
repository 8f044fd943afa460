"""How often a recommendation is right, on made-up corpora whose truth is known.

    python recipes/study/recommending.py

fills the table of docs/recommending.md. Speech, reference and points are drawn anew for every corpus; the
rows go through the report's own code. Of many numbers of utterances: how often the recommended point is truly
worse than the reference by more than the margin, and how often one is found that is not, beside what an
interval that contains zero would have recommended.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wq.study.compare.scenes import Scene, number, scenes
from wq.study.score.noninferiority import MARGIN
from wq.study.score.statistics import resampled_rates
from wq.study.store.results import Row

PAGE = Path(__file__).parents[2] / "docs" / "recommending.md"
BLOCK = re.compile(r"<!-- simulation -->\n.*?<!-- end -->", re.DOTALL)

CORPORA, RESAMPLES = 200, 1000
UTTERANCES = (30, 100, 300, 1000, 3000)
WORDS = 3, 20  # of an utterance: from, and below
RATE = 1 / 11  # of the reference, on average
LOOP = 20  # words that an endless transcript has too many


@dataclass(frozen=True)
class Point:
    """What a quantization does to the reference's transcripts.

    harmed  share of right words that become wrong
    mended  share of wrong words that become right
    loops   share of utterances that end in `LOOP` words too many
    """

    harmed: float
    mended: float
    loops: float

    @property
    def change(self) -> float:
        """The true change of WER."""
        return (
            self.harmed * (1 - RATE)
            - self.mended * RATE
            + self.loops * LOOP / ((WORDS[0] + WORDS[1] - 1) / 2)
        )


def point(change: float, churn: float, loops: float = 0.0) -> Point:
    """With this true change of WER, loops included, where a share `churn` of all words is mended."""
    longer = loops * LOOP / float(np.mean((WORDS[0], WORDS[1] - 1)))
    return Point((change - longer + churn) / (1 - RATE), churn / RATE, loops)


# From the most bytes to the fewest; changes of WER in fractions
GRIDS = {
    "a ladder: the fewer bytes, the worse": [
        *[point(0, 0.0005)] * 4,
        *(point(0.0005, 0.001), point(0.001, 0.002), point(0.002, 0.004), point(0.004, 0.006)),
        *(point(0.006, 0.008, 0.0002), point(0.01, 0.01, 0.001), point(0.03, 0.015, 0.005)),
        *(point(0.08, 0.02, 0.02), point(0.2, 0.02, 0.05), point(0.5, 0.03, 0.1)),
    ],
    "large points may be bad, and small ones good": [
        *(
            point(0, 0.0005),
            point(0.3, 0.02, 0.05),
            point(0.0005, 0.001),
            point(0.008, 0.01),
            point(0, 0.002),
        ),
        *(point(0.1, 0.02, 0.02), point(0.001, 0.003), point(0.006, 0.004), point(0.03, 0.02, 0.005)),
    ],
    "each is too bad, by a tenth of the margin": [point(1.1 * MARGIN, churn) for churn in (0, 0.002, 0.01)]
    * 4,
}


@dataclass(frozen=True)
class Counts:
    """Of so many corpora, in how many a point is recommended that is truly inferior, and one that is not; and
    in how many the old rule, an interval that contains zero, would have taken an inferior one."""

    corpora: int
    wrong: int
    found: int
    zero_wrong: int


def simulate(points: Sequence[Point], utterances: int, corpora: int = CORPORA) -> Counts:
    """The same numbers on every call."""
    wrong = found = zero_wrong = 0
    for seed in range(corpora):
        scene, truth = corpus(points, utterances, seed)
        taken = scene.recommended
        wrong += taken is not None and truth[taken["point"]] > MARGIN
        found += taken is not None and truth[taken["point"]] <= MARGIN
        zero = next((row for row in scene.rows if (number(row, "wer_delta_ci_low") or 0) <= 0), None)
        zero_wrong += zero is not None and truth.get(zero["point"], 0) > MARGIN
    return Counts(corpora, wrong, found, zero_wrong)


def corpus(points: Sequence[Point], utterances: int, seed: int) -> tuple[Scene, dict[str, float]]:
    """A reference and its points on speech of their own, and each point's true change of WER."""
    random = np.random.default_rng((seed, utterances))
    words = random.integers(*WORDS, utterances)
    base = random.binomial(words, random.beta(1, 10, utterances))  # what is hard is hard for all
    errors = [
        base
        + random.binomial(words - base, each.harmed)
        - random.binomial(base, each.mended)
        + LOOP * (random.random(utterances) < each.loops)
        for each in points
    ]
    differences = np.stack(errors) - base
    lows, highs = np.quantile(resampled_rates(differences, words, RESAMPLES, seed), [0.025, 0.975], axis=0)
    common = {"utterances": utterances, "reference_words": int(words.sum()), "reference": "fp32"}
    rows: list[Row] = [{"point": "fp32", "fingerprint": "fp32", "is_reference": True, "linear_bytes": 10**6}]
    rows[0]["wer"] = float(base.sum() / words.sum())
    for n, difference in enumerate(differences):
        delta = float(difference.sum() / words.sum())
        change = {
            "wer_delta": delta,
            "wer_delta_ci_low": float(lows[n]),
            "wer_delta_ci_high": float(highs[n]),
        }
        rows.append(
            common | change | {"point": f"{n}", "wer": rows[0]["wer"] + delta, "linear_bytes": 1000 - n}
        )
    (scene,) = scenes(rows)
    return scene, {f"{n}": each.change for n, each in enumerate(points)}


def table() -> str:
    lines = [
        "| grid | utterances | recommended, too bad | recommended, good | zero in the interval, too bad |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for grid, points in GRIDS.items():
        for utterances in UTTERANCES:
            counts = simulate(points, utterances)
            shares = (f"{n / counts.corpora:.1%}" for n in (counts.wrong, counts.found, counts.zero_wrong))
            lines.append(f"| {grid} | {utterances:,} | {' | '.join(shares)} |")
            print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    made = f"<!-- simulation -->\n{table()}\n<!-- end -->"
    PAGE.write_text(BLOCK.sub(lambda _: made, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
