"""A sensitivity study shown: part by scheme, the change of WER and the error of the outputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wq import outputs
from wq.study.compare.scenes import decimal, interval, number, percent
from wq.study.report.figures import INK, png, svg
from wq.study.resources.points import as_csv
from wq.study.store.results import Row

COLUMNS = (
    *("part", "scheme", "wer", "wer_ci_low", "wer_ci_high", "wer_delta", "wer_delta_ci_low"),
    *("wer_delta_ci_high", "wer_delta_p", "output_error", "utterances", "point", "fingerprint"),
)
HEADER = ("part", "scheme", "WER %", "change", "95 % interval", "output error %")

CELL = 64, 19  # pixels
LEAST_REACH = 0.01  # percentage points of either end of the colours, where nothing changes
CHANGE = "Change of WER, percentage points"
ERROR = "Relative error of the outputs, %"
SUBTITLE = (
    "* the 95 % interval leaves out zero. Outputs are those of the rounded layers, on calibration speech."
)


@dataclass(frozen=True)
class Part:
    """A role, or the layer of a role in one block, rounded by a scheme: what that costs.

    scheme        the format's name, and that of the activations where they are rounded too
    row           the job's results
    output_error  |Y' - Y| / |Y|, Y the outputs of the part's layers on calibration speech; None for weights
                  of no linear layer
    """

    name: str
    scheme: str
    row: Row
    output_error: float | None


def cells(part: Part) -> tuple[str, ...]:
    """A part in the columns of `HEADER`."""
    return (
        part.name,
        part.scheme,
        percent(number(part.row, "wer")),
        percent(number(part.row, "wer_delta") or 0.0, signed=True),
        interval(part.row, "wer_delta", signed=True),
        "" if part.output_error is None else decimal(100 * part.output_error, 3),
    )


def rounded(error: float | None) -> float | None:
    """To what does not depend on how many threads have added it up."""
    return None if error is None else float(f"{error:.6g}")


def leave(parts: Sequence[Part], directory: Path, title: str) -> list[Path]:
    """Write `sensitivity.csv`, `.svg` and `.png`."""
    rows = [
        part.row | {"part": part.name, "scheme": part.scheme, "output_error": rounded(part.output_error)}
        for part in parts
    ]
    drawing = heat_map(parts, title)
    contents: dict[str, Any] = {
        "csv": as_csv(COLUMNS, [[row.get(column, "") for column in COLUMNS] for row in rows]),
        "svg": drawing,
        "png": png(drawing),
    }
    paths = files(directory)
    for path in paths:
        outputs.write(path, contents[path.suffix[1:]])
    return paths


def files(directory: Path) -> list[Path]:
    return [directory / f"sensitivity.{ending}" for ending in ("csv", "svg", "png")]


def heat_map(parts: Sequence[Part], title: str) -> str:
    """Two maps beside each other, as SVG: changes around zero, errors from zero on."""
    values = [_datum(part) for part in parts]
    reach = max(LEAST_REACH, *(abs(value["change"]) for value in values))
    errors = [value["error"] for value in values if value["error"] is not None]
    change = {"scheme": "blueorange", "domain": [-reach, reach], "domainMid": 0}
    panels = [
        _panel("change", CHANGE, values, change, 0.6 * reach),
        _panel("error", ERROR, values, {"scheme": "purples", "domainMin": 0}, 0.6 * max(errors, default=1.0)),
    ]
    heading = {"text": title, "subtitle": SUBTITLE}
    drawing = {"title": heading, "hconcat": panels, "spacing": 30, "padding": 16}
    return svg(drawing | {"resolve": {"scale": {"color": "independent"}}}, background="white")


def _panel(
    field: str, heading: str, values: list[dict[str, Any]], scale: dict[str, Any], dark: float
) -> dict[str, Any]:
    """One map. dark: from which magnitude on a cell's text is white."""
    names, schemes = (list(dict.fromkeys(value[key] for value in values)) for key in ("part", "scheme"))
    width = max(CELL[0], 7 * max(map(len, schemes)))
    axis = {"labelAngle": 0, "orient": "top", "labelLimit": width}
    rows = {"labelLimit": 260, "labels": field == "change"}
    places = {
        "x": {"field": "scheme", "type": "nominal", "title": None, "sort": schemes, "axis": axis},
        "y": {
            **{"field": "part", "type": "nominal", "title": None, "sort": names, "axis": rows},
            "scale": {"domain": names},
        },
    }
    legend = {"orient": "bottom", "format": "~r"}
    colour = {"field": field, "type": "quantitative", "title": None, "scale": scale, "legend": legend}
    ink = {"condition": {"test": f"abs(datum.{field}) > {dark}", "value": "white"}, "value": INK}
    text = {"field": f"{field}_text", "type": "nominal"}
    return {
        **{"title": heading, "width": {"step": width}, "height": {"step": CELL[1]}},
        "data": {"values": [value for value in values if value[field] is not None]},
        "encoding": places,
        "layer": [
            {"mark": {"type": "rect", "stroke": "white"}, "encoding": {"color": colour}},
            {"mark": {"type": "text", "fontSize": 10}, "encoding": {"text": text, "color": ink}},
        ],
    }


def _datum(part: Part) -> dict[str, Any]:
    low, high = (number(part.row, f"wer_delta_ci_{end}") for end in ("low", "high"))
    change, error = 100 * (number(part.row, "wer_delta") or 0.0), part.output_error
    is_sure = low is not None and high is not None and (low > 0 or high < 0)
    return {
        "part": part.name,
        "scheme": part.scheme,
        "change": change,
        "change_text": decimal(change, 2, signed=True) + ("*" if is_sure else ""),
        "error": None if error is None else 100 * error,
        "error_text": "" if error is None else decimal(100 * error, 2),
    }
