"""`report.html`: one self-contained page. Prose, style and script are in `templates/`; texts are escaped."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from wq.study.scenes import (
    Row,
    Scene,
    decimal,
    distinct,
    interval,
    megabytes,
    name,
    number,
    percent,
    problem,
    unfinished,
)

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Column:
    """A column of the table: what people read, and the key it is sorted by. A minor one is not printed."""

    title: str
    meaning: str
    text: Callable[[Row], str]
    key: Callable[[Row], Any]
    minor: bool = False


def rate(title: str, meaning: str, column: str, digits: int = 2, minor: bool = False) -> Column:
    return _numeric(title, meaning, column, partial(percent, digits=digits), minor)


def size(title: str, meaning: str, column: str, minor: bool = False) -> Column:
    return _numeric(title, meaning, column, megabytes, minor)


def plain(title: str, meaning: str, column: str, digits: int = 0, minor: bool = False) -> Column:
    return _numeric(title, meaning, column, partial(decimal, digits=digits), minor)


def _numeric(
    title: str, meaning: str, column: str, write: Callable[[float | None], str], minor: bool
) -> Column:
    return Column(
        title, meaning, lambda row: write(number(row, column)), lambda row: number(row, column), minor
    )


def ends(title: str, meaning: str, column: str, signed: bool = False) -> Column:
    return Column(
        title,
        meaning,
        lambda row: interval(row, column, signed),
        lambda row: number(row, f"{column}_ci_low"),
    )


def setting(title: str, meaning: str, column: str) -> Column:
    def text(row: Row) -> str:
        return "" if row.get(column) is None else str(row[column])

    return Column(title, meaning, text, text)


def _change(row: Row) -> str:
    return "reference" if row.get("is_reference") else percent(number(row, "wer_delta"), signed=True)


POINT = Column("Point", "its name; ● marks the Pareto front", name, name)
SETTINGS = (
    setting("Format", "number format of the weights", "format"),
    setting("Scale per", "one scale for each of these", "granularity"),
    setting("Group", "weights that share a scale", "group"),
)
# Shown only where the points of a scene differ in them
VARYING = (
    setting("Activation", "precision of the activations", "activation"),
    setting("KV cache", "precision of keys and values", "kv_cache"),
    setting("SmoothQuant", "smoothing before quantization", "smoothquant"),
    setting("Layers", "which layers are quantized", "roles"),
)
RESULTS = (
    rate("WER %", "word error rate, pooled over the test set", "wer"),
    ends("95 % interval", "of WER: bootstrap over utterances", "wer"),
    Column(
        "Change",
        "WER minus the reference's, in percentage points",
        _change,
        lambda row: number(row, "wer_delta"),
    ),
    ends("95 % interval", "of the change: paired bootstrap over utterances", "wer_delta", signed=True),
    plain("p", "two-sided, that nothing changed; not corrected for the number of points", "wer_delta_p", 4),
    size("Linear MB", "linear layers with their scales, 10^6 bytes", "linear_bytes"),
    plain("Bits/weight", "of the linear layers, scales included", "bits_per_weight", 2),
    size("Model MB", "the whole checkpoint, 10^6 bytes", "model_bytes"),
    plain("Ratio", "the whole checkpoint at fp16 over this one", "compression_ratio", 2),
    rate("Same %", "transcripts identical to the reference's", "unchanged", 1, minor=True),
    rate("No worse %", "utterances with no more errors than the reference makes", "no_worse", 1, minor=True),
    plain("Sub", "substituted words", "substitutions", minor=True),
    plain("Del", "deleted words", "deletions", minor=True),
    plain("Ins", "inserted words", "insertions", minor=True),
    rate("CER %", "character error rate", "cer", minor=True),
    plain("Loops", "transcripts that end in one phrase over and over", "repetition_loops", minor=True),
    plain("Empty", "transcripts without a word", "empty_hypotheses", minor=True),
    size("Peak MB", "measured at full precision: quantization is simulated", "peak_memory_bytes", minor=True),
    plain("RTFx", "audio seconds per second, not those of a quantized kernel", "rtfx", 1, minor=True),
)


def render(title: str, scenes: Sequence[Scene], pictures: Sequence[str | None], rows: Sequence[Row]) -> str:
    """The page as HTML. pictures: the SVG of each scene, None where none of its points can be drawn."""
    failures = unfinished(rows)
    finished = [row for scene in scenes for row in scene.rows]
    front = sum(sum(scene.on_front) for scene in scenes)
    summary = f"{len(finished)} points, {front} on the Pareto front"
    values = {
        column: escape(distinct(finished, column)) or "not set"
        for column in ("normaliser", "resamples", "seed", "max_new_tokens", "batch_size", "device")
    }
    return _template("report.html").substitute(
        values,
        title=escape(title),
        summary=summary + (f", {len(failures)} without a result" if failures else ""),
        scenes="\n".join(map(_scene, range(len(scenes)), scenes, pictures)),
        failures=_failures(failures),
        counts="; ".join(escape(f"{scene.name}: {_counts(scene)}") for scene in scenes) or "unknown",
        versions=escape(_versions(finished)) or "unknown",
        style=_template("report.css").template,
        script=_template("report.js").template,
        data=_json([{"rows": scene.rows, "drawn": scene.drawn} for scene in scenes]),
    )


def _template(file: str) -> Template:
    return Template((TEMPLATES / file).read_text(encoding="utf-8"))


def _json(value: Any) -> str:
    """JSON that can stand in a script element: no `<` that could end it, and no NaN, which JSON lacks."""
    text = json.dumps(_finite(value), default=str)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scene(n: int, scene: Scene, picture: str | None) -> str:
    return _template("scene.html").substitute(
        n=n,
        name=escape(scene.name),
        facts=_facts(scene),
        picture=picture or '<p class="note">No point has both a size and an error rate: nothing to draw.</p>',
        table=_table(scene),
    )


def _facts(scene: Scene) -> str:
    facts = {
        "Reference": scene.reference,
        "Smallest without a significant loss": scene.smallest_without_loss,
        "Smallest of all": None if scene.smallest_without_loss is scene.rows[0] else scene.rows[0],
    }
    unit = "model MB" if scene.is_whole_model else "MB"
    return "".join(
        f"<div><dt>{title}</dt><dd><b>{escape(name(row))}</b>{percent(number(row, 'wer'))} % WER, "
        f"{megabytes(number(row, scene.size_column))} {unit}</dd></div>"
        for title, row in facts.items()
        if row is not None
    )


def _table(scene: Scene) -> str:
    quantized = [row for row in scene.rows if not row.get("is_reference")]
    varying = [column for column in VARYING if len({column.text(row) for row in quantized}) > 1]
    columns = (*SETTINGS, *varying, *RESULTS)
    header = "".join(
        f'<th scope="col" class="{_classes(column)}" title="{escape(column.meaning)}">'
        f"<button>{escape(column.title)}</button></th>"
        for column in (POINT, *columns)
    )
    body = "".join(
        f"<tr{' class=front' if on_front else ''}>{_point(row, on_front)}"
        f"{''.join(_cell(column, row) for column in columns)}</tr>\n"
        for row, on_front in zip(scene.rows, scene.on_front, strict=True)
    )
    return f"<table><thead><tr>{header}</tr></thead>\n<tbody>{body}</tbody></table>"


def _point(row: Row, on_front: bool) -> str:
    mark = ' <i title="on the Pareto front">●</i>' if on_front else ""
    text = escape(name(row))
    return f'<th scope="row" data-key="{text}"><button>{text}</button>{mark}</th>'


def _cell(column: Column, row: Row) -> str:
    key = column.key(row)
    text = escape(column.text(row))
    return f'<td class="{_classes(column)}" data-key="{"" if key is None else escape(str(key))}">{text}</td>'


def _classes(column: Column) -> str:
    return f"{'minor' if column.minor else ''} {'' if column in RESULTS else 'setting'}".strip()


def _failures(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    lines = "".join(
        f'<tr><th scope="row">{escape(name(row))}</th><td>{escape(problem(row))}</td></tr>\n' for row in rows
    )
    return f'<section><h2>Without a result</h2>\n<table class="failures">{lines}</table></section>'


def _counts(scene: Scene) -> str:
    counts = {
        "utterances": "utterances",
        "reference_words": "reference words",
        "dropped_references": "left out without reference words",
        "cut_utterances": "cut to the model's window",
    }
    known = ((distinct(scene.rows, column), words) for column, words in counts.items())
    return ", ".join(f"{values} {words}" for values, words in known if values not in ("", "0")) or "unknown"


def _versions(rows: Sequence[Row]) -> str:
    columns = dict.fromkeys(column for row in rows for column in row if column.startswith("version_"))
    return ", ".join(f"{column.removeprefix('version_')} {distinct(rows, column)}" for column in columns)
