"""The study's tables: what is the same on every run of the same versions, as CSV, and pictures of it."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np
import yaml

from wq.outputs import write_whole
from wq.study.compare.comparison import Side, difference
from wq.study.compare.scenes import Scene, is_broken
from wq.study.report import figures
from wq.study.report.report import scene_marks
from wq.study.score.statistics import resampled_rates
from wq.study.store.results import Row, read_rows

DIGITS = 8  # after the point, of what is no count

COLUMNS = (
    *("point", "is_reference", "format", "granularity", "group", "roles", "activation", "kv_cache"),
    *("smoothquant", "smoothquant_alphas", "wer", "wer_ci_low", "wer_ci_high"),
    *("wer_delta", "wer_delta_ci_low", "wer_delta_ci_high", "wer_delta_p", "wer_delta_p_holm"),
    *("wer_delta_at_most", "wer_delta_mapsswe_p", "unchanged", "no_worse"),
    *("wer_capped", "wer_capped_delta", "wer_capped_delta_ci_low", "wer_capped_delta_ci_high"),
    *("repetition_loops", "kl", "kl_ci_low", "kl_ci_high", "top1_agreement"),
    *("nll", "nll_delta", "nll_delta_ci_low", "nll_delta_ci_high"),
    *("substitutions", "deletions", "insertions"),
    *("reference_words", "utterances", "cer", "empty_hypotheses", "capped_transcripts"),
    *("linear_bytes", "model_bytes", "bits_per_weight", "kv_cache_bytes", "memory_bytes"),
    *("front", "on_front", "fingerprint"),
)
PAIR_COLUMNS = (
    *("question", "first", "second", "first_wer", "second_wer"),
    *("wer_delta", "wer_delta_ci_low", "wer_delta_ci_high", "wer_delta_p", "wer_delta_mapsswe_p"),
    *("unchanged", "first_linear_bytes", "second_linear_bytes"),
    *("first_kl", "second_kl", "kl_delta", "kl_delta_ci_low", "kl_delta_ci_high", "kl_delta_p"),
)

AGREEMENT_COLUMNS = ("experiment", "points", "count", "spearman", "ci_low", "ci_high")
FEWEST = 5  # points whose order says anything

# What an experiment's points are weighed by, where it is not their layers
SIZES = {"kv_cache": ("kv_cache_bytes", "Keys and values of an utterance, MB")}
PICTURES = ("wer_by_format", "tradeoff", "activation", "kv_cache")


def write_experiment(directory: Path, experiment: str, scene: Scene) -> None:
    """`EXPERIMENT.csv`, the smallest points first, each with where it stands against the others of its
    experiment; and the picture of those that have one."""
    own = figures.MODEL_SIZE if scene.is_whole_model else figures.LINEAR_SIZE
    column, title = SIZES.get(experiment, (scene.size_column, own))
    standing = scene.standing_by(column)
    on_front = scene.on_front_by(column)
    rows = [
        row
        | {"front": standing[n], "on_front": on_front[n], "wer_delta_p_holm": scene.corrected_p[n]}
        | {"wer_delta_at_most": scene.at_most[n]}
        for n, row in enumerate(scene.rows)
    ]
    rows.sort(key=lambda row: (row[column], row["wer"], row["point"]))
    write_whole(directory / f"{experiment}.csv", as_csv(COLUMNS, rows))
    if experiment not in PICTURES:
        return
    marks = [
        replace(mark, size=scene.rows[n][column] / 1e6, on_front=on_front[n], standing=standing[n])
        for n, mark in zip(scene.drawn, scene_marks(scene), strict=True)
    ]
    panel = figures.pareto_panel(marks, figures.format_colours(marks), title, f"{experiment}: {scene.name}")
    write_whole(directory / f"{experiment}.svg", figures.column([panel]))


def write_agreement(directory: Path, experiment: str, scene: Scene) -> None:
    """`agreement.csv`: by how much the order of an experiment's points by kl is that by wer_capped, over all
    points and over those that are not broken; the other experiments' rows stay. Nothing where kl is not
    known."""
    file = directory / "agreement.csv"
    rows = [row for row in scene.rows if row is not scene.reference and row.get("utterance_kl")]
    if len(rows) < FEWEST:
        return
    found: list[Row] = [row for row in read_csv(file) if row["experiment"] != experiment]
    for which, chosen in (("all", rows), ("not broken", [row for row in rows if not is_broken(row)])):
        values = (experiment, which, len(chosen), *rank_correlation(chosen))
        found.append(dict(zip(AGREEMENT_COLUMNS, values, strict=True)))
    write_whole(file, as_csv(AGREEMENT_COLUMNS, sorted(found, key=lambda row: str(row["experiment"]))))


def rank_correlation(rows: Sequence[Row], resamples: int = 2000) -> tuple[float, float, float]:
    """Spearman's between the points' kl and their wer_capped, with its 95 % interval over the utterances."""
    errors = np.minimum([row["utterance_errors"] for row in rows], rows[0]["utterance_words"])
    measures = (
        (errors, np.array(rows[0]["utterance_words"])),
        (np.array([row["utterance_kl"] for row in rows]), np.array(rows[0]["utterance_kl_tokens"])),
    )
    whole = [sums.sum(1) / counts.sum() for sums, counts in measures]
    drawn = [resampled_rates(sums, counts, resamples, seed=0) for sums, counts in measures]
    found = [_spearman(*pair) for pair in zip(*drawn, strict=True)]
    low, high = np.quantile(found, [0.025, 0.975])
    return _spearman(*whole), float(low), float(high)


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(_ranks(one), _ranks(other))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Equal values share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def write_pairs(
    directory: Path, scene: Scene, called: Mapping[str, str], questions: Mapping[str, Any]
) -> None:
    """`pairs.csv`: the paired differences of those pairs whose points are there; the others stay as they are.
    called: fingerprints by the names that experiments give their points."""
    file = directory / "pairs.csv"
    by_fingerprint = {row["fingerprint"]: row for row in scene.rows}
    points = {row["point"]: row for row in scene.rows}
    points |= {name: by_fingerprint[fingerprint] for name, fingerprint in called.items()}
    earlier = {tuple(row[name] for name in PAIR_COLUMNS[:3]): row for row in read_csv(file)}

    def side(name: str) -> Side:
        row = points[name]
        return Side(row, read_rows(scene.transcripts[row["fingerprint"]]), name)

    rows: list[Row] = []
    for question, first, second in pairs(questions):
        if first in points and second in points:
            found = difference(side(first), side(second))
            compared = found.comparison
            values = (found.scores[0].wer, found.scores[1].wer, compared.delta, compared.low, compared.high)
            values += (compared.p, found.matched.p, compared.unchanged)
            values += (points[first]["linear_bytes"], points[second]["linear_bytes"])
            if kl := found.by_token.get("kl"):
                change = kl.change
                values += (kl.first, kl.second, change.delta, change.low, change.high, change.p)
            values += (None,) * (len(PAIR_COLUMNS) - 3 - len(values))
            rows.append(dict(zip(PAIR_COLUMNS, (question, first, second, *values), strict=True)))
        elif (question, first, second) in earlier:
            rows.append(earlier[question, first, second])
    write_whole(file, as_csv(PAIR_COLUMNS, rows))


def pairs(questions: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(question, first, second) for every combination of a question's lists that fills its two templates."""
    for question, entry in questions.items():
        templates = entry["first"], entry["second"]
        names = dict.fromkeys(
            field for text in templates for _, field, *_ in Formatter().parse(text) if field
        )
        for values in product(*(entry[name] for name in names)):
            filled = dict(zip(names, values, strict=True))
            first, second = (text.format(**filled) for text in templates)
            yield question, first, second


def read_questions(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def read_csv(file: Path) -> list[Row]:
    """Its rows, as text; none where it is not there."""
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def as_csv(columns: Sequence[str], rows: Sequence[Row]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: _cell(row.get(column)) for column in columns} for row in rows)
    return file.getvalue()


def _cell(value: Any) -> Any:
    return round(value, DIGITS) + 0.0 if isinstance(value, float) else value
