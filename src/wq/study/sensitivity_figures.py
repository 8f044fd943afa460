"""The picture of a sensitivity study: part by scheme, the change of WER and the error of the outputs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wq.study.figures import svg
from wq.study.scenes import decimal, number

if TYPE_CHECKING:
    from wq.study.sensitivity import Part

CELL = 64, 19  # pixels
CHANGE = "Change of WER, percentage points"
ERROR = "Relative error of the outputs, %"
SUBTITLE = (
    "* the 95 % interval leaves out zero. Outputs are those of the rounded layers, on calibration speech."
)


def heat_map(parts: "Sequence[Part]", title: str) -> str:
    """Two maps beside each other, as SVG: changes around zero, errors from zero on."""
    import altair as alt

    values = [_datum(part) for part in parts]
    names = list(dict.fromkeys(part.name for part in parts))
    schemes = list(dict.fromkeys(part.scheme for part in parts))
    width = max(CELL[0], 7 * max(map(len, schemes)))
    reach = max(0.01, *(abs(value["change"]) for value in values))

    def panel(field: str, heading: str, scale: Any, labels: bool) -> Any:
        drawn = [value for value in values if value[field] is not None]
        limit = reach if field == "change" else max([value[field] for value in drawn], default=1.0)
        base = alt.Chart(
            alt.Data(values=drawn), width=alt.Step(width), height=alt.Step(CELL[1]), title=heading
        )
        x = alt.X("scheme:N", sort=schemes, title=None).axis(labelAngle=0, orient="top", labelLimit=width)
        y = alt.Y("part:N", sort=names, title=None).scale(domain=names)
        y = y.axis(labelLimit=260, labels=labels)
        dark = f"abs(datum.{field}) > {0.6 * limit}"
        boxes = base.mark_rect(stroke="white").encode(
            x=x,
            y=y,
            color=alt.Color(f"{field}:Q", title=None, scale=scale).legend(orient="bottom", format="~r"),
        )
        texts = base.mark_text(fontSize=10).encode(
            x=x,
            y=y,
            text=f"{field}_text:N",
            color=alt.condition(dark, alt.value("white"), alt.value("#1d2530")),
        )
        return boxes + texts

    change = alt.Scale(scheme="blueorange", domain=[-reach, reach], domainMid=0)
    both = alt.hconcat(
        panel("change", CHANGE, change, True),
        panel("error", ERROR, alt.Scale(scheme="purples", domainMin=0), False),
        spacing=30,
        padding=16,
        title=alt.TitleParams(title, subtitle=SUBTITLE),
    ).resolve_scale(color="independent")
    return svg(both.to_dict(validate=False), background="white")


def _datum(part: "Part") -> dict[str, Any]:
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
