"""What `report.html` draws, as plain values: what all points share is said once, texts are kept once."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from wq.study.compare.scenes import Scene, number
from wq.study.compare.standing import transcript_lines
from wq.study.score import wer
from wq.study.store.results import Row

# What a point's size may be on the page; its standing may differ between them.
SIZES = ("linear_bytes", "model_bytes", "bits_per_weight", "memory_bytes", "moved_bytes", "bit_operations")

COMPUTED = (
    "on_front",
    "wer_delta_p_holm",
    "wer_delta_at_most",
    "is_recommended",
)  # from all points of a scene

WORST = 5  # utterances shown of every point
LONGEST = 300  # words of an utterance, and characters of a word, that are shown

OPERATIONS = {"equal": "=", "substitute": "s", "delete": "d", "insert": "i"}


def page_data(scenes: Sequence[Scene]) -> dict[str, Any]:
    """{scenes, together, utterances, hypotheses}, with all that JSON cannot say as null.

    utterances: [id, reference words, how many they are]; hypotheses: [operations, words], an operation for
    every word: = is the reference's, s substitutes one, i is inserted, d deletes one; the words are those of
    s and i. `…` ends what is cut.
    """
    texts = Texts()
    drawn = [_scene(scene, texts) for scene in scenes]
    return _finite(
        {
            "scenes": drawn,
            "together": [members for _, members in together(scenes)],
            "utterances": list(texts.utterances.values()),
            "hypotheses": list(texts.hypotheses.values()),
        }
    )


def together(scenes: Sequence[Scene]) -> list[tuple[str, list[int]]]:
    """Test sets on which there are several models: name, and numbers of the scenes."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for n, scene in enumerate(scenes):
        row = scene.rows[0]
        if scene.drawn:
            key = ("dataset", "split", "limit", "window", "language", "utterances", "reference_words")
            groups.setdefault(tuple(str(row.get(column)) for column in key), []).append(n)
    several = [
        members
        for members in groups.values()
        if len({str(scenes[n].rows[0].get("model")) for n in members}) > 1
    ]
    return [(scenes[members[0]].test_set, members) for members in several]


def _scene(scene: Scene, texts: "Texts") -> dict[str, Any]:
    columns = list(dict.fromkeys(column for row in scene.rows for column in row))
    columns = [
        column for column in columns if not any(isinstance(row.get(column), list) for row in scene.rows)
    ]
    computed = [
        row
        | {
            "on_front": scene.on_front[n],
            "wer_delta_p_holm": scene.corrected_p[n],
            "wer_delta_at_most": scene.at_most[n],
            "is_recommended": row is scene.recommended,
        }
        for n, row in enumerate(scene.rows)
    ]
    columns += [column for column in COMPUTED if column not in columns]
    shared = {
        column: computed[0].get(column)
        for column in columns
        if all(_same(row.get(column), computed[0].get(column)) for row in computed)
    }
    varying = [column for column in columns if column not in shared]
    return {
        "name": str(scene.rows[0].get("model")),
        "size_column": scene.size_column,
        "shared": shared,
        "columns": varying,
        "rows": [[row.get(column) for column in varying] for row in computed],
        "standings": _standings(scene),
        "worst": _worst(scene, texts),
    }


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other


def _standings(scene: Scene) -> dict[str, list[str]]:
    """By every measure of size that some point has; measures of the same order have the same standings."""
    found: dict[tuple[Any, ...], list[str]] = {}
    standings = {}
    for column in dict.fromkeys((scene.size_column, *SIZES)):
        sizes = [number(row, column) for row in scene.rows]
        if column != scene.size_column and not any(sizes):
            continue
        distinct = sorted({size for size in sizes if size is not None})
        order = tuple(None if size is None else distinct.index(size) for size in sizes)
        if order not in found:
            found[order] = scene.standing if column == scene.size_column else scene.standing_by(column)
        standings[column] = found[order]
    return standings


def _worst(scene: Scene, texts: "Texts") -> list[list[Any]]:
    """For every point the utterances on which it is worse than the reference by most: [utterance, errors,
    hypothesis, [the reference's errors and hypothesis] or None]."""
    errors = scene.errors
    if errors is None:
        return [[] for _ in scene.rows]
    reference = next(
        (n for n, row in enumerate(scene.rows) if row is scene.reference and n in errors.of), None
    )
    base = None if reference is None else errors.of[reference]
    base_lines = [] if reference is None else transcript_lines(scene.rows[reference], scene.transcripts)
    worst = []
    for n, row in enumerate(scene.rows):
        chosen = (
            [] if n not in errors.of else worst_utterances(errors.of[n], None if n == reference else base)
        )
        lines = transcript_lines(row, scene.transcripts) if chosen else []
        language = str(row.get("language") or "en")
        entries = []
        for m in chosen:
            own = _utterance(lines, errors.lines[m])
            other = _utterance(base_lines, errors.lines[m])
            if own is None:
                continue
            which = texts.utterance(own, language, int(errors.words[m]))
            compared = None
            if base is not None and other is not None and n != reference:
                compared = [int(base[m]), texts.hypothesis(other, language)]
            entries.append([which, int(errors.of[n][m]), texts.hypothesis(own, language), compared])
        worst.append(entries)
    return worst


def worst_utterances(errors: np.ndarray, base: np.ndarray | None) -> list[int]:
    """Those with the most errors more than base, then with the most errors; none without an error."""
    more = errors if base is None else errors - base
    order = np.lexsort((-errors, -more))[: WORST + int(np.count_nonzero(errors == 0))]
    return [int(n) for n in order if errors[n] > 0][:WORST]


def _utterance(lines: Sequence[bytes], n: int) -> Row | None:
    try:
        utterance = json.loads(lines[n])
        return utterance if isinstance(utterance["text"] + utterance["pred_text"], str) else None
    except (IndexError, KeyError, TypeError, ValueError):
        return None


class Texts:
    """The texts of utterances, each kept once and named by its number."""

    def __init__(self) -> None:
        self.utterances: dict[tuple[str, ...], list[Any]] = {}
        self.hypotheses: dict[tuple[str, ...], list[Any]] = {}
        self.numbers: dict[tuple[str, ...], int] = {}

    def utterance(self, utterance: Row, language: str, words: int) -> int:
        key = (language, str(utterance.get("id")), utterance["text"])
        if key not in self.utterances:
            shown = [_short(word) for word in wer.normalise(utterance["text"], language).split()[:LONGEST]]
            self.utterances[key] = [key[1][:LONGEST], shown, words]
            self.numbers[key] = len(self.utterances) - 1
        return self.numbers[key]

    def hypothesis(self, utterance: Row, language: str) -> int:
        key = (language, utterance["text"], utterance["pred_text"], "")
        if key not in self.hypotheses:
            steps = wer.alignment(utterance["text"], utterance["pred_text"], language)
            kept = steps[:LONGEST]
            operations = "".join(OPERATIONS[operation] for operation, _, _ in kept)
            heard = [
                _short(word or "") for operation, _, word in kept if operation in ("substitute", "insert")
            ]
            self.hypotheses[key] = [operations + ("…" if len(steps) > LONGEST else ""), heard]
            self.numbers[key] = len(self.hypotheses) - 1
        return self.numbers[key]


def _short(word: str) -> str:
    return word if len(word) <= LONGEST else word[:LONGEST] + "…"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
