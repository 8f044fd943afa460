"""The picture of memory footprints: one bar for every point and workload, stacked by what its bytes hold."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wq import outputs
from wq.study.report.figures import COLOURS, png, svg
from wq.study.resources.footprint import Footprint, Workload

COMPONENTS = {
    "weights": "Weights",
    "cross_attention": "Cross-attention keys and values",
    "self_attention": "Self-attention keys and values",
    "activations": "Activations, at the peak",
}
WIDTH, BAR = 420, 22  # pixels
TITLE = "Memory of a deployment, by formula"

Entry = tuple[str, Workload, Footprint]  # a point's name, and its memory under a workload


def footprint_svg(entries: Sequence[Entry]) -> str:
    """Bars of points that share a workload, or panels of each point and batch with a bar for each limit."""
    works = {work for _, work, _ in entries}
    values = [
        {
            "point": name,
            "batch": f"batch {work.batch}" + (f", {work.beams} beams" if work.beams > 1 else ""),
            "tokens": f"{work.tokens} tokens",
            "component": label,
            "MB": getattr(needed, component) / 1e6,
            "order": order,
        }
        for name, work, needed in entries
        for order, (component, label) in enumerate(COMPONENTS.items())
    ]
    sweep = len(works) > 1
    bars: dict[str, Any] = {
        "width": WIDTH if not sweep else WIDTH // 2,
        "height": {"step": BAR},
        "mark": {"type": "bar"},
        "encoding": {
            "x": {"field": "MB", "type": "quantitative", "title": "MB", "stack": "zero"},
            "y": {
                "field": "tokens" if sweep else "point",
                "type": "nominal",
                "title": None,
                "sort": None,
                "axis": {"labelLimit": WIDTH},
            },
            "color": {
                "field": "component",
                "type": "nominal",
                "title": None,
                "scale": {"domain": list(COMPONENTS.values()), "range": list(COLOURS[: len(COMPONENTS)])},
                "legend": {"orient": "bottom", "columns": 2},
            },
            "order": {"field": "order", "type": "quantitative"},
        },
    }
    data = {"data": {"values": values}, "title": {"text": TITLE, "subtitle": _conditions(works)}}
    if not sweep:
        return svg(data | bars, background="white")
    header = {"labelFontSize": 11, "labelLimit": 2 * WIDTH}
    panels = {
        "row": _panel("batch", values, header | {"labelAngle": 0, "labelAlign": "left"}),
        "column": _panel("point", values, header),
    }
    return svg(data | {"facet": panels, "spec": bars}, background="white")


def _panel(field: str, values: list[dict[str, Any]], header: dict[str, Any]) -> dict[str, Any]:
    order = list(dict.fromkeys(value[field] for value in values))
    return {"field": field, "type": "nominal", "title": None, "sort": order, "header": header}


def draw(file: Path, entries: Sequence[Entry]) -> None:
    """Write the picture: SVG where the file's name ends so, else PNG."""
    drawing = footprint_svg(entries)
    content = drawing.encode() if file.suffix == ".svg" else png(drawing)
    outputs.write(file, content)


def _conditions(works: set[Workload]) -> str:
    """What is common to all bars."""
    names = {
        "batch": "batch {}",
        "beams": "beams {}",
        "tokens": "up to {} tokens",
        "positions": "{} audio positions",
    }
    told = []
    for name, text in names.items():
        found = {getattr(work, name) for work in works}
        told += [text.format(*found)] if len(found) == 1 else []
    return ", ".join(told)
