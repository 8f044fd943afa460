"""A comparison of two runs for the terminal: the numbers, then utterances word below word."""

import math
import unicodedata
from collections.abc import Iterator, Sequence

from wq.study.compare.comparison import ByToken, ChangedUtterance, Difference
from wq.study.compare.scenes import decimal, percent, thousandths
from wq.study.report.report_text import points_of_wer, rounded
from wq.study.score import noninferiority, wer
from wq.study.score.mapsswe import Alignment
from wq.study.score.noninferiority import MARGIN

WIDTH = 110  # columns of the terminal
NAMES = ("reference", "A", "B")


def format_difference(found: Difference, limit: int | None, margin: float = MARGIN) -> str:
    """The comparison for people, with at most `limit` utterances in full."""
    shown = found.changes[:limit]
    lines = [*_runs(found), *_notes(found), "", *_facts(found, margin)]
    for change in shown:
        lines += ["", *_utterance(change)]
    if len(shown) < len(found.changes):
        lines += ["", f"{len(found.changes) - len(shown):,} more with other words; limit=null shows all"]
    return "\n".join(_plain(line).rstrip() for line in lines)


def _runs(found: Difference) -> list[str]:
    cells = [
        (
            letter,
            side.name,
            f"WER {percent(score.wer)} %",
            f"[{percent(interval.low)}, {percent(interval.high)}]",
            " ".join(str(side.row[name]) for name in ("model", "dataset", "split") if side.row.get(name)),
            side.place,
        )
        for letter, side, score, interval in zip(
            NAMES[1:], found.sides, found.scores, found.intervals, strict=True
        )
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(run, widths, strict=True)) for run in cells]


def _facts(found: Difference, margin: float) -> list[str]:
    comparison, matched = found.comparison, found.matched
    delta, low, high = (
        percent(value, signed=True) for value in (comparison.delta, comparison.low, comparison.high)
    )
    before, after = found.scores
    kinds = ("substitutions", "deletions", "insertions")
    errors = (f"{kind} {getattr(before, kind):,} -> {getattr(after, kind):,}" for kind in kinds)
    facts = {
        "B - A": f"{delta} [{low}, {high}]",
        **dict(zip(("verdict", ""), verdict(found, margin), strict=False)),
        "bootstrap": f"p {probability(comparison.p)}, {found.resamples:,} resamples, seed {found.seed}",
        "MAPSSWE": f"p {probability(matched.p)}, z {decimal(matched.z, 2, signed=True)} over "
        f"{matched.segments:,} segments",
        "errors": f"{', '.join(errors)}, of {before.reference_words:,} words",
        "utterances": _counts(found),
    }
    facts |= {name: _by_token(each) for name, each in found.by_token.items()}
    return [f"{name:<10}  {fact}" for name, fact in facts.items()]


def _by_token(found: ByToken) -> str:
    """In thousandths of a nat per token."""
    change = found.change
    ends = ", ".join(decimal(1000 * end, 2, signed=True) for end in (change.low, change.high))
    return (
        f"{thousandths(found.first)} -> {thousandths(found.second)} thousandths of a nat per token, "
        f"{decimal(1000 * change.delta, 2, signed=True)} [{ends}], p {probability(change.p)}"
    )


def _notes(found: Difference) -> list[str]:
    """Where the rates here are not those that were recorded."""
    first = found.sides[0]
    normaliser = wer.normaliser_of(
        (str(each["text"]) for each in first.transcripts), str(first.row.get("language") or "en")
    )
    return [
        f"{side.name} was recorded with {percent(recorded)} % by normaliser {side.row.get('normaliser')}; "
        f"both are scored here by {normaliser}"
        for side, score in zip(found.sides, found.scores, strict=True)
        if isinstance(recorded := side.row.get("wer"), float) and abs(recorded - score.wer) > 1e-9
    ]


def _counts(found: Difference) -> str:
    more = sum(change.more_errors > 0 for change in found.changes)
    fewer = sum(change.more_errors < 0 for change in found.changes)
    total = found.scores[0].utterances
    same = total - len(found.changes)
    unchanged = round(found.comparison.unchanged * total)
    parts = [
        f"{more:,} with more errors",
        f"{fewer:,} with fewer",
        f"{len(found.changes) - more - fewer:,} with as many but other words",
        f"{same:,} with the same words",
    ]
    spelt = f" ({same - unchanged:,} of them written otherwise)" if same > unchanged else ""
    return f"{total:,}: {', '.join(parts)}{spelt}"


def verdict(found: Difference, margin: float) -> list[str]:
    """What may be said of the second: not inferior, worse, or undecided and how much worse at most."""
    compared, total = found.comparison, found.scores[0]
    change = noninferiority.Change(
        compared.delta, compared.low, compared.high, total.utterances, total.reference_words
    )
    (most,) = noninferiority.bounds([change], margin)
    told = f"the margin of {points_of_wer(margin)}"
    if most <= margin:
        return [f"B is not inferior to A: at most {percent(most, signed=True)}, within {told}"]
    if compared.low > 0:
        return [f"B is worse than A, by {percent(most)} at most"]
    needed = noninferiority.utterances_needed(change, most, margin)
    undecided = f"undecided: B may be worse than A by {percent(most)} at most, beyond {told}"
    if math.isinf(needed):
        return [undecided]
    return [undecided, f"about {rounded(needed):,} utterances would be needed to say"]


def probability(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"= {p:.4f}"


def _utterance(change: ChangedUtterance) -> Iterator[str]:
    """Reference, A and B, a word below its word, as many lines as it takes."""
    yield f"{change.id}: {change.errors[0]} -> {change.errors[1]} errors in {change.words} words"
    margin = max(map(len, NAMES)) + 4
    rows: list[list[str]] = [[], [], []]
    used = margin
    for column in side_by_side(*change.alignments):
        width = max(map(_width, column)) + 2
        if used + width > WIDTH and rows[0]:
            yield from _stacked(rows)
            yield ""
            rows, used = [[], [], []], margin
        for row, cell in zip(rows, column, strict=True):
            row.append(cell + " " * (width - _width(cell)))
        used += width
    yield from _stacked(rows)


def _stacked(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for name, row in zip(NAMES, rows, strict=True):
        yield f"  {name:<{max(map(len, NAMES))}}  {''.join(row)}"


def _width(text: str) -> int:
    """Columns of the terminal: two for the wide characters of East Asia, none for marks that combine."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def _plain(text: str) -> str:
    """Without control characters, which a terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in text)


def side_by_side(first: Alignment, second: Alignment) -> list[tuple[str, str, str]]:
    """Two transcripts over their reference as columns (reference, first, second), what is wrong between
    asterisks: `*heard*` for a word that was not said, `***` for one that was not heard.

    >>> side_by_side([("equal", "go", "go"), ("insert", None, "now")], [("substitute", "go", "no")])
    [('go', 'go', '*no*'), ('', '*now*', '')]
    """
    (words, inserted), (other_words, other_inserted) = _marked(first), _marked(second)
    references = [expected for _, expected, _ in first if expected is not None]
    columns = []
    for place in range(len(references) + 1):
        gap = inserted[place], other_inserted[place]
        for n in range(max(map(len, gap))):
            columns.append(("", *(words[n] if n < len(words) else "" for words in gap)))
        if place < len(references):
            columns.append((references[place], words[place], other_words[place]))
    return columns


def _marked(alignment: Alignment) -> tuple[list[str], list[list[str]]]:
    """What stands for every word of the reference, and what is inserted before each and after the last."""
    words: list[str] = []
    inserted: list[list[str]] = [[]]
    for operation, _, heard in alignment:
        if operation == "insert":
            inserted[-1].append(f"*{heard}*")
        else:
            marks = {"equal": f"{heard}", "substitute": f"*{heard}*", "delete": "***"}
            words.append(marks[operation])
            inserted.append([])
    return words, inserted
