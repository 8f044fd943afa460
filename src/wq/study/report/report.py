"""What a grid ends with: a table in the terminal, a page, pictures, tables for spreadsheets and papers."""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wq import outputs
from wq.study.compare.scenes import (
    Row,
    Scene,
    abridged,
    decimal,
    interval,
    is_finished,
    megabytes,
    name,
    number,
    percent,
    problem,
    shortened,
    size_column,
)
from wq.study.compare.selection import Selection
from wq.study.report.report_text import cells, format_csv, format_markdown, format_tex, header, mark, notes
from wq.study.store.results import DRAWING, MARKDOWN, PAGE, PICTURE, REPORT, TABLE, TEX

if TYPE_CHECKING:
    from wq.study.report.figures import Mark

WIDTH = 110  # columns of the terminal table
NAME_WIDTH = 32  # characters of a point's name, here and in the picture

OVERRIDE = re.compile(r"[+~]*[\w./@-]+=")
OVERRIDES = re.compile(rf" (?={OVERRIDE.pattern})")  # the spaces between them; a value may have some too


@dataclass(frozen=True)
class Report:
    """The files written, the page first, and the tables as Markdown; there are no pictures where no point has
    both a size and an error rate."""

    paths: list[Path]
    markdown: str

    @property
    def html(self) -> Path:
        return self.paths[0]


def write_report(selection: Selection, directory: Path, title: str) -> Report:
    """Write `report.html`, `results.csv`, `results.md`, `results.tex`, `pareto.png` and `pareto.svg` into a
    directory, each one whole or not at all.

    Raises OutputError, before any is written, where one is there that wq did not write."""
    from wq.study.report.page import render

    outputs.refuse_foreign(directory / file for file in REPORT)
    texts = {
        PAGE: render(title, selection),
        TABLE: format_csv(selection),
        MARKDOWN: format_markdown(selection, title),
        TEX: format_tex(selection),
    }
    for file, text in texts.items():
        outputs.write(directory / file, text)
    paths = [directory / file for file in texts] + _draw(selection.scenes, directory)
    return Report(paths, texts[MARKDOWN])


def _draw(groups: Sequence[Scene], directory: Path) -> list[Path]:
    from wq.study.report import figures

    png, svg = directory / PICTURE, directory / DRAWING
    outputs.remove([png, svg])  # of an earlier report, which might have had more points
    drawn = [(scene, scene_marks(scene)) for scene in groups if scene.drawn]
    colours = figures.format_colours([mark for _, marks in drawn for mark in marks])
    panels = [
        figures.pareto_panel(
            marks,
            colours,
            figures.MODEL_SIZE if scene.is_whole_model else figures.LINEAR_SIZE,
            shortened(scene.name, WIDTH),
        )
        for scene, marks in drawn
    ]
    if not panels:
        return []
    drawing = figures.column(panels)
    outputs.write(svg, drawing)
    outputs.write(png, figures.png(drawing))
    return [png, svg]


def scene_marks(scene: Scene) -> "list[Mark]":
    """The points of the picture, in the order of `scene.drawn`."""
    from wq.study.report.figures import Mark

    def rate(row: Row, column: str) -> float | None:
        value = number(row, column)
        return None if value is None else 100 * value

    return [
        Mark(
            name=abridged(name(row), NAME_WIDTH),
            format=shortened(str(row.get("format") or "unknown"), NAME_WIDTH),
            activation=shortened(str(row.get("activation") or "none"), NAME_WIDTH),
            size=(number(row, scene.size_column) or 0) / 1e6,
            wer=rate(row, "wer") or 0.0,
            low=rate(row, "wer_ci_low"),
            high=rate(row, "wer_ci_high"),
            on_front=scene.on_front[n],
            standing=scene.standing[n],
            is_cast=row.get("granularity") == "none",
            is_reference=row is scene.reference,
            is_recommended=row is scene.recommended,
        )
        for n, row in ((n, scene.rows[n]) for n in scene.drawn)
    ]


def format_table(selection: Selection) -> str:
    """All points for the terminal, at most 110 columns wide: the smallest first, those that are broken last,
    each with its mark; what may be recommended; and those without a result at the end with the reason."""
    blocks = [_scene_table(scene) for scene in selection.scenes]
    failures = selection.unfinished
    if failures:
        names = telling([name(row) for row in failures])
        width = min(NAME_WIDTH, max(map(len, names)))
        lines = [
            textwrap.fill(
                _plain(problem(row)),
                WIDTH,
                initial_indent=f"  {_plain(_ending(text, width)).ljust(width)}  ",
                subsequent_indent=" " * (width + 4),
            )
            for text, row in zip(names, failures, strict=True)
        ]
        blocks.append("\n".join([f"{len(failures)} without a result", *lines]))
    return "\n\n".join(blocks) or "no points"


def telling(names: Sequence[str]) -> list[str]:
    """Names that are overrides (`dataset=manifest format=int4`) without those that all of them have; one
    that has no others stays whole."""
    parts = [OVERRIDES.split(text) for text in names]
    shared = {part for part in set.intersection(*map(set, parts)) if OVERRIDE.match(part)}
    rest = [" ".join(part for part in group if part not in shared) for group in parts]
    return [short or whole for short, whole in zip(rest, names, strict=True)]


def _ending(text: str, width: int) -> str:
    """The end of a text that is too long: there overrides differ most."""
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]


def _scene_table(scene: Scene) -> str:
    lines = [
        ("", *header(scene)),
        *((mark(scene, n), *cells(scene, row)) for n, row in enumerate(scene.rows)),
    ]
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))]
    room = WIDTH - sum(widths) + widths[1] - 2 * (len(widths) - 1)
    widths[1] = min(widths[1], max(room, len("point")))
    table = "\n".join(
        "  ".join(_fit(cell, width) if n == 1 else cell.rjust(width) for n, (cell, width) in enumerate(line))
        for line in (zip(line, widths, strict=True) for line in lines)
    )
    below = (textwrap.fill(_plain(note), WIDTH, subsequent_indent="  ") for note in notes(scene))
    return "\n".join((_plain(shortened(scene.name, WIDTH)), table, *below))


def format_line(row: Row) -> str:
    """A finished job on one line; the size is that of the quantized linear layers with their scales, or of
    the whole model where more is quantized."""
    if not is_finished(row):
        return f"{_plain(name(row))}  failed: {_plain(problem(row))}"
    parts = [f"WER {percent(number(row, 'wer'))} % {interval(row, 'wer')}".rstrip()]
    if row.get("is_reference"):
        parts.append("the reference")
    elif number(row, "wer_delta") is not None:
        change = percent(number(row, "wer_delta"), signed=True)
        parts.append(
            f"{change} {interval(row, 'wer_delta', signed=True)}".rstrip() + " against the reference"
        )
    column = size_column([row])
    parts.append(f"{megabytes(number(row, column))} {'MB' if column == 'linear_bytes' else 'model MB'}")
    parts.append(f"{decimal(number(row, 'bits_per_weight'), 2)} bits per weight")
    return f"{_plain(name(row))}  {', '.join(parts)}"


def _fit(text: str, width: int) -> str:
    return _plain(abridged(text, width)).ljust(width)


def _plain(text: str) -> str:
    """Without control characters, which a terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in text)
