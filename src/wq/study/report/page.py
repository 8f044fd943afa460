"""`report.html`: one self-contained page. Prose, style and scripts are in `templates/`; texts are escaped."""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from wq.study.compare.scenes import (
    BROKEN_FROM,
    Row,
    Scene,
    distinct,
    megabytes,
    name,
    number,
    percent,
    problem,
)
from wq.study.compare.selection import Selection
from wq.study.report.page_data import page_data, together
from wq.study.report.report_text import points_of_wer, recommendation

TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("write", "scale", "chart", "table", "details", "multiples", "report")  # in the order they need
MEANINGS = {  # of the measures of a front
    "kl": "kl",
    "nll": "nll",
    "wer_capped": "word errors, of which no utterance counts with more than it has words",
    "wer": "word errors",
}
MANY = 20  # points: beyond, chart.js draws the front's intervals alone


def render(title: str, selection: Selection) -> str:
    """The page as HTML."""
    scenes, failures = selection.scenes, selection.unfinished
    finished = [row for scene in scenes for row in scene.rows]
    counts = [f"{len(finished)} points"]
    if len(scenes) > 1:
        counts.append(f"{len(scenes)} models and test sets")
    if failures:
        counts.append(f"{len(failures)} without a result")
    values = {
        column: escape(distinct(finished, column)) or "not set"
        for column in (
            "normaliser",
            "resamples",
            "seed",
            "max_new_tokens",
            "batch_size",
            "device",
            "language",
        )
    }
    several = enumerate(together(scenes))
    return _template("report.html").substitute(
        values,
        title=escape(title),
        summary=", ".join(counts),
        together="\n".join(_together(n, test_set, len(members)) for n, (test_set, members) in several),
        scenes="\n".join(map(_scene, range(len(scenes)), scenes)),
        failures=_failures(failures),
        counts="; ".join(escape(f"{scene.name}: {_counts(scene)}") for scene in scenes) or "unknown",
        margin=points_of_wer(selection.criteria.margin),
        measures=" or ".join(dict.fromkeys(MEANINGS[scene.measure] for scene in scenes)) or "unknown",
        broken=f"{100 * BROKEN_FROM:.0f}",
        versions=escape(_versions(finished)) or "unknown",
        style=_template("report.css").template,
        script="\n".join(_template(f"{script}.js").template for script in SCRIPTS),
        data=_json(page_data(scenes)),
    )


def _template(file: str) -> Template:
    return Template((TEMPLATES / file).read_text(encoding="utf-8"))


def _json(value: Any) -> str:
    """JSON that can stand in a script element: with no `<` that could end it."""
    text = json.dumps(value, default=str, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _scene(n: int, scene: Scene) -> str:
    many = ", of the front alone among so many" if len(scene.drawn) > MANY else ""
    return _template("scene.html").substitute(
        n=n, name=escape(scene.name), facts=_facts(scene), many=many, measure=scene.measure
    )


def _together(n: int, test_set: str, count: int) -> str:
    return _template("together.html").substitute(n=n, name=escape(test_set), count=count)


def _facts(scene: Scene) -> str:
    """The cards above a scene's chart."""
    unit = "model MB" if scene.is_whole_model else "MB"

    def described(row: Row) -> str:
        size = megabytes(number(row, scene.size_column))
        return f"<b>{escape(name(row))}</b>{percent(number(row, 'wer'))} % WER, {size} {unit}"

    facts = {"Reference": described(scene.reference)} if scene.reference else {}
    if (found := recommendation(scene)) is not None:
        title = f"Smallest that is not inferior, by a margin of {points_of_wer(scene.margin)}"
        facts[title] = described(scene.recommended) if scene.recommended else escape(found)
    if scene.rows[0] is not scene.recommended:
        facts["Smallest of all"] = described(scene.rows[0])
    return "".join(f"<div><dt>{title}</dt><dd>{text}</dd></div>" for title, text in facts.items())


def _failures(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    lines = "".join(
        f'<tr><th scope="row"><bdi>{escape(name(row))}</bdi></th>'
        f"<td><bdi>{escape(problem(row))}</bdi></td></tr>\n"
        for row in rows
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
