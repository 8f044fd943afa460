"""What a grid ends with: a table in the terminal, and `report.html`, `pareto.png` and `results.csv`."""

import csv
import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wq.study.results import write_whole
from wq.study.scenes import (
    Row,
    Scene,
    decimal,
    interval,
    is_finished,
    megabytes,
    name,
    number,
    percent,
    problem,
    scenes,
    shortened,
    size_column,
    unfinished,
)

if TYPE_CHECKING:
    from wq.study.figures import Mark

WIDTH = 110  # columns of the terminal table
NAME_WIDTH = 32  # characters of a point's name, here and in the picture

OVERRIDE = re.compile(r"[+~]*[\w./@-]+=")
OVERRIDES = re.compile(rf" (?={OVERRIDE.pattern})")  # the spaces between them; a value may have some too

# results.csv begins with these; the other columns follow in the order in which the rows have them.
COLUMNS = (
    "point", "status", "on_front", "is_reference",
    "model", "dataset", "split", "format", "granularity", "group",
    "wer", "wer_ci_low", "wer_ci_high", "wer_delta", "wer_delta_ci_low", "wer_delta_ci_high", "wer_delta_p",
    "unchanged", "no_worse", "substitutions", "deletions", "insertions", "reference_words", "utterances",
    "cer", "linear_bytes", "model_bytes", "bits_per_weight", "compression_ratio", "peak_memory_bytes", "rtfx",
)  # fmt: skip


@dataclass(frozen=True)
class Report:
    """The files written; `png` is None where no point has both a size and an error rate."""

    html: Path
    png: Path | None
    csv: Path

    @property
    def paths(self) -> list[Path]:
        return [path for path in (self.html, self.png, self.csv) if path is not None]


def write_report(rows: Sequence[Row], directory: Path, title: str) -> Report:
    """Write `results.csv`, `pareto.png` and `report.html` into a directory, each one whole or not at all."""
    from wq.study import figures
    from wq.study.page import render

    directory.mkdir(parents=True, exist_ok=True)
    groups = scenes(rows)
    marks = [scene_marks(scene) for scene in groups]
    colours = figures.format_colours([mark for group in marks for mark in group])
    sizes = [figures.MODEL_SIZE if scene.is_whole_model else figures.LINEAR_SIZE for scene in groups]
    pictures = [
        figures.svg(figures.pareto_panel(group, colours, size)) if group else None
        for group, size in zip(marks, sizes, strict=True)
    ]

    html, png, table = (directory / file for file in ("report.html", "pareto.png", "results.csv"))
    write_whole(table, format_csv(rows))
    write_whole(html, render(title, groups, pictures, list(rows)))
    png.unlink(missing_ok=True)  # of an earlier report, which might have had more points
    panels = [
        figures.pareto_panel(group, colours, size, shortened(scene.name, WIDTH))
        for scene, group, size in zip(groups, marks, sizes, strict=True)
        if group
    ]
    if panels:
        beside = png.with_name(f".{png.name}")
        beside.write_bytes(figures.png(panels))
        beside.replace(png)
    return Report(html, png if panels else None, table)


def scene_marks(scene: Scene) -> "list[Mark]":
    """The points of the picture, in the order of `scene.drawn`."""
    from wq.study.figures import SHAPES, Mark

    def rate(row: Row, column: str) -> float | None:
        value = number(row, column)
        return None if value is None else 100 * value

    return [
        Mark(
            name=shortened(name(row), NAME_WIDTH),
            format=shortened(str(row.get("format") or "unknown"), NAME_WIDTH),
            granularity=granularity if (granularity := str(row.get("granularity"))) in SHAPES else "group",
            size=(number(row, scene.size_column) or 0) / 1e6,
            wer=rate(row, "wer") or 0.0,
            low=rate(row, "wer_ci_low"),
            high=rate(row, "wer_ci_high"),
            on_front=scene.on_front[n],
            is_reference=row is scene.reference,
        )
        for n, row in ((n, scene.rows[n]) for n in scene.drawn)
    ]


def format_csv(rows: Sequence[Row]) -> str:
    """All columns of all rows, finished or not: rates as fractions, sizes in bytes, nothing where missing.

    A text that a spreadsheet would take for a formula has an apostrophe before it.
    """
    on_front = {
        id(row): on_front
        for scene in scenes(rows)
        for row, on_front in zip(scene.rows, scene.on_front, strict=True)
    }
    columns = dict.fromkeys((*COLUMNS, *(column for row in rows for column in row)))
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {column: _inert(value) for column, value in ({"on_front": on_front.get(id(row))} | row).items()}
        for row in rows
    )
    return file.getvalue()


def _inert(value: Any) -> Any:
    """A cell that no spreadsheet computes; numbers stay numbers."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


def format_table(rows: Sequence[Row]) -> str:
    """All points for the terminal, at most 110 columns wide: the smallest first, the front marked with *, and
    those without a result at the end with the reason."""
    blocks = [_scene_table(scene) for scene in scenes(rows)]
    failures = unfinished(rows)
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
    size = "model MB" if scene.is_whole_model else "MB"
    header = ("", "point", "WER %", "95 % interval", "change", "95 % interval", size, "bits/weight")
    lines: list[tuple[str, ...]] = [header]
    for row, on_front in zip(scene.rows, scene.on_front, strict=True):
        is_reference = bool(row.get("is_reference"))
        lines.append(
            (
                "*" if on_front else "",
                name(row),
                percent(number(row, "wer")),
                interval(row, "wer"),
                "reference" if is_reference else percent(number(row, "wer_delta"), signed=True),
                "" if is_reference else interval(row, "wer_delta", signed=True),
                megabytes(number(row, scene.size_column)),
                decimal(number(row, "bits_per_weight"), 2),
            )
        )
    widths = [max(len(line[n]) for line in lines) for n in range(len(header))]
    room = WIDTH - sum(widths) + widths[1] - 2 * (len(widths) - 1)
    widths[1] = min(widths[1], max(room, len(header[1])))
    table = "\n".join(
        "  ".join(_fit(cell, width) if n == 1 else cell.rjust(width) for n, (cell, width) in enumerate(line))
        for line in (zip(line, widths, strict=True) for line in lines)
    )
    note = "* on the Pareto front: points with a lower WER are larger, and smaller points have a higher WER"
    return f"{_plain(shortened(scene.name, WIDTH))}\n{table}\n{note}"


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
    return _plain(shortened(text, width)).ljust(width)


def _plain(text: str) -> str:
    """Without control characters, which a terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in text)
