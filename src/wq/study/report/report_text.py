"""The comparison as text: `results.csv` with everything, `results.md` and `results.tex` for papers."""

import csv
import io
import math
import re
from collections.abc import Sequence
from typing import Any

from wq.study.compare.scenes import (
    BROKEN_FROM,
    Row,
    Scene,
    decimal,
    interval,
    is_broken,
    megabytes,
    name,
    number,
    percent,
    problem,
    thousandths,
)
from wq.study.compare.selection import Selection

# results.csv begins with these; the other columns follow in the order in which the rows have them.
COLUMNS = (
    "point", "status", "front", "on_front", "is_reference",
    "model", "dataset", "split", "format", "granularity", "group",
    "wer", "wer_ci_low", "wer_ci_high", "wer_delta", "wer_delta_ci_low", "wer_delta_ci_high", "wer_delta_p",
    "wer_delta_p_holm", "wer_delta_at_most",
    "unchanged", "no_worse", "substitutions", "deletions", "insertions", "reference_words", "utterances",
    "cer", "linear_bytes", "model_bytes", "bits_per_weight", "compression_ratio", "peak_memory_bytes", "rtfx",
)  # fmt: skip

HEADER = ("point", "WER %", "95 % interval", "change", "95 % interval", "kl", "MB", "bits/weight")
MARKS = {"on": "*", "equivalent": "=", "undecided": "?", "off": "", "broken": "!", "unknown": ""}


def format_csv(selection: Selection) -> str:
    """All columns of all rows, finished or not: rates as fractions, sizes in bytes, nothing where missing,
    and no lists.

    front is on, equivalent, undecided, off, broken or unknown; on_front is by the estimates alone;
    wer_delta_at_most is how much worse than the reference a point is at most, all of them taken together. A
    text that a spreadsheet would take for a formula has an apostrophe before it.
    """
    computed = {
        id(row): {
            "front": scene.standing[n],
            "on_front": scene.on_front[n],
            "wer_delta_p_holm": scene.corrected_p[n],
            "wer_delta_at_most": scene.at_most[n],
        }
        for scene in selection.scenes
        for n, row in enumerate(scene.rows)
    }
    table = [
        {column: value for column, value in row.items() if not isinstance(value, list | dict)}
        | computed.get(id(row), {})
        for row in selection.rows
    ]
    file = io.StringIO()
    columns = dict.fromkeys((*COLUMNS, *(column for row in table for column in row)))
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: _inert(value) for column, value in row.items()} for row in table)
    return file.getvalue()


def _inert(value: Any) -> Any:
    """A cell that no spreadsheet computes; numbers stay numbers."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


def mark(scene: Scene, n: int) -> str:
    """What the test set says of a point, in one character: see `legend`."""
    return MARKS[scene.standing[n]]


def legend(scene: Scene) -> str:
    """What the marks of a scene mean."""
    by = "" if scene.measure == "wer_capped" else f" by {scene.measure}"
    meanings = {
        "on": f"* on the front: the smallest not inferior, or better{by} than every other of no more bytes",
        "equivalent": "= not inferior either, with more bytes",
        "undecided": "? undecided",
        "off": "no mark: worse than one of no more bytes, or than the reference",
        "broken": f"! broken: {100 * BROKEN_FROM:.0f} errors or more for 100 words{_loops(scene)}",
    }
    return "; ".join(meaning for standing, meaning in meanings.items() if standing in scene.standing)


def _loops(scene: Scene) -> str:
    """How many transcripts of the broken points are endless repetition, where that is known."""
    counts = [
        (number(row, "repetition_loops"), number(row, "utterances")) for row in scene.rows if is_broken(row)
    ]
    known = [(loops, total) for loops, total in counts if loops is not None and total]
    if not known:
        return ""
    share = sum(loops for loops, _ in known) / sum(total for _, total in known)
    return f", {share:.0%} of the transcripts end in a loop"


def points_of_wer(fraction: float) -> str:
    """A margin for people: 0.005 is 0.50 points of WER."""
    return f"{percent(fraction)} points of WER"


def recommendation(scene: Scene) -> str | None:
    """The smallest point that is not inferior to the reference by more than the margin, or why none is named;
    None where there is nothing to choose from."""
    needed = scene.utterances_needed
    if scene.recommended is not None:
        return name(scene.recommended)
    if needed is None:
        return None
    if math.isinf(needed):
        return "none, and more of this speech would hardly show one"
    return f"not enough speech to say: about {rounded(needed):,} utterances would be needed"


def rounded(count: float) -> int:
    """A count that is an estimate, upwards: two digits are more than enough."""
    unit = 10 ** max(0, len(str(math.ceil(count))) - 2)
    return math.ceil(count / unit) * unit


def advice(scene: Scene) -> str:
    """The recommendation as a line; empty where there is none to give."""
    found = recommendation(scene)
    told = f"smallest not inferior to the reference, at most {points_of_wer(scene.margin)} worse: {found}"
    return told if found else ""


def notes(scene: Scene) -> list[str]:
    """What stands below a scene's table."""
    return [note for note in (legend(scene), advice(scene)) if note]


def header(scene: Scene) -> tuple[str, ...]:
    """The columns of `cells`; kl, in thousandths of a nat per token, where a point has it."""
    names = {"MB": "model MB"} if scene.is_whole_model else {}
    return tuple(names.get(text, text) for text in HEADER if text != "kl" or scene.has_kl)


def cells(scene: Scene, row: Row) -> tuple[str, ...]:
    """A point in the columns of `header`."""
    is_reference = bool(row.get("is_reference"))
    return (
        name(row),
        percent(number(row, "wer")),
        interval(row, "wer"),
        "reference" if is_reference else percent(number(row, "wer_delta"), signed=True),
        "" if is_reference else interval(row, "wer_delta", signed=True),
        *([thousandths(number(row, "kl"))] if scene.has_kl else []),
        megabytes(number(row, scene.size_column)),
        decimal(number(row, "bits_per_weight"), 2),
    )


def format_markdown(selection: Selection, title: str) -> str:
    """A table for every model and test set, and the points without a result."""
    blocks = [f"# {_markdown(title)}"]
    for scene in selection.scenes:
        lines = [("", *header(scene)), ("---", "---", *("---:" for _ in header(scene)[1:]))]
        lines += [(mark(scene, n), *cells(scene, row)) for n, row in enumerate(scene.rows)]
        table = [lines[0], lines[1], *(tuple(map(_markdown, line)) for line in lines[2:])]
        blocks += [f"## {_markdown(scene.name)}", _rows(table), *map(_markdown, notes(scene))]
    if selection.unfinished:
        lines = [(_markdown(name(row)), _markdown(problem(row))) for row in selection.unfinished]
        blocks += ["## Without a result", _rows([("point", "why"), ("---", "---"), *lines])]
    return "\n\n".join(blocks) + "\n"


def _rows(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _markdown(text: str) -> str:
    """Text as itself: no markup, no HTML."""
    plain = " ".join(text.split())
    return re.sub(r"([\\`*_{}\[\]<>#|~&$])", r"\\\1", plain)


TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%",
        "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}",
        ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    }
)  # fmt: skip


def format_tex(selection: Selection) -> str:
    """A tabular for every model and test set, to be read with \\input; it needs the package booktabs."""
    tables = [_tabular(scene) for scene in selection.scenes]
    return "% needs \\usepackage{booktabs} and \\usepackage[T1]{fontenc}\n" + "\n".join(tables)


def _tabular(scene: Scene) -> str:
    lines = [
        ("", *header(scene)),
        *((mark(scene, n), *cells(scene, row)) for n, row in enumerate(scene.rows)),
    ]
    head, *body = (" & ".join(_tex(cell) for cell in line) + r" \\" for line in lines)
    columns = "ll" + "r" * (len(lines[0]) - 2)
    return "\n".join(
        (
            f"% {_comment(scene.name)}",
            f"\\begin{{tabular}}{{{columns}}}",
            "\\toprule",
            head,
            "\\midrule",
            *body,
            "\\bottomrule",
            "\\end{tabular}",
            *(f"% {_comment(note)}" for note in notes(scene)),
            "",
        )
    )


def _tex(text: str) -> str:
    plain = "".join(character if character.isprintable() else " " for character in text)
    # a bracket after \\ would be taken for its option
    return plain.translate(TEX).replace("[", "{[}").replace("]", "{]}")


def _comment(text: str) -> str:
    return " ".join(text.split())
