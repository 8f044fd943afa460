"""The Pareto picture: size against word error rate, as SVG and PNG without a browser.

What is drawn where is computed here in plain numbers; Altair describes it and vl-convert renders it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import altair as alt

WIDTH, HEIGHT = 760, 400  # pixels of a panel's plot
FONT, FONT_SIZE = "Helvetica, Arial, sans-serif", 11
INK, MUTED, GRID, REFERENCE = "#1d2530", "#5b6672", "#e6e9ed", "#6b7682"

# Told apart under every common colour blindness, on white and on near black: Okabe & Ito 2008 without its
# yellow, then Tol's teal, olive and purple and a brown. More formats than colours begin anew.
COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00",
    "#56b4e9", "#aa4499", "#999933", "#a6761d", "#44aa99",
)  # fmt: skip
CAST_COLOUR = "#76818d"
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right")

LINEAR_SIZE, MODEL_SIZE = "Linear layers with their scales, MB", "Whole model, MB"  # what x may be
LINES = (
    "Filled: on the front. Half filled: not inferior, but larger. Hollow: undecided. Faint: off or broken.",
    "Ring: recommended. Steps: front of the estimates. Dashes: reference. Bars: 95 % confidence intervals.",
)
HALF = 0.45  # how much of its colour fills a point that is half filled

# Not a format, which a symlog scale would round to one digit
TICK = "format(datum.value, '.4~r')"

# Beyond this ratio of the worst rate to the best, a linear axis would press the good points onto one line.
LINEAR_RATIO = 5

# Round numbers in a decade, from few to many
STEPS = (
    (1,),
    (1, 3),
    (1, 2, 5),
    (1, 1.5, 2, 3, 4, 5, 7),
    (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9),
)


@dataclass(frozen=True)
class Mark:
    """One point to draw: `size` in MB, rates in %, the interval's ends where they are known; a cast is a
    format without scales."""

    name: str
    format: str
    activation: str
    size: float
    wer: float
    low: float | None
    high: float | None
    on_front: bool
    standing: str
    is_cast: bool
    is_reference: bool
    is_recommended: bool

    @property
    def is_faint(self) -> bool:
        return self.standing in ("off", "broken")


@dataclass(frozen=True)
class Axis:
    """A domain, its ticks, and its spacing. symlog is linear below 1 and logarithmic above: it holds 0."""

    kind: Literal["linear", "log", "symlog"]
    low: float
    high: float
    ticks: list[float]

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high end."""
        spacing: dict[str, Callable[[float], float]] = {
            "linear": float,
            "log": math.log,
            "symlog": math.log1p,
        }
        low, here, high = (spacing[self.kind](end) for end in (self.low, value, self.high))
        return (here - low) / (high - low)


def size_axis(sizes: Sequence[float]) -> Axis:
    low, high = min(sizes) / 1.12, max(sizes) * 1.12
    if high / low < 2:
        middle = math.sqrt(low * high)
        low, high = middle / math.sqrt(2), middle * math.sqrt(2)
    return Axis("log", low, high, log_ticks(low, high))


def wer_axis(rates: Sequence[float]) -> Axis:
    """The axis for rates in %, interval ends included: linear for a narrow range. In a wide one, where 400 %
    is no rare end, it is logarithmic above 1 %, so that points near the reference stay apart."""
    low, high = max(0.0, min(rates)), max(rates)
    if high > LINEAR_RATIO * max(low, 1.0):
        low, high = (0.8 * low if low > 1 else 0.0), 1.15 * high
        return Axis("symlog", low, high, log_ticks(low, high) if low else [0.0, *log_ticks(1.0, high)])
    margin = 0.06 * (high - low) or max(0.1 * high, 0.5)
    low, high = max(0.0, low - margin), high + margin
    steps = (step * 10.0**decade for decade in range(-3, 3) for step in (1, 2, 5))
    step = min(steps, key=lambda step: abs((high - low) / step - 7))
    ticks = [step * n for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return Axis("linear", low, high, ticks)


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, at least five of them where there are as many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = []
    for steps in STEPS:
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 5:
            break
    return ticks


def place_labels(
    anchors: Sequence[tuple[float, float, str]], obstacles: Sequence[tuple[float, float]]
) -> list[tuple[float, float] | None]:
    """Where labels fit beside their points. anchors: x, y in pixels, and the text; obstacles: points no label
    may cover. Gives the left end and the middle (x, y) of each label, or None where no place is free."""
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in obstacles]
    return [_place_label(anchor, taken) for anchor in anchors]


def _place_label(
    anchor: tuple[float, float, str], taken: list[tuple[float, ...]]
) -> tuple[float, float] | None:
    x, y, text = anchor
    width, height = 0.58 * FONT_SIZE * len(text), FONT_SIZE + 1
    right, left, centre = 8, -8 - width, -width / 2
    offsets = [(right, -9), (right, 10), (left, -9), (left, 10), (centre, -15), (centre, 15), (right + 3, 0)]
    offsets += [(left - 3, 0), (right, -21), (right, 22), (left, -21), (left, 22)]
    for dx, dy in offsets:
        box = (x + dx, y + dy - height / 2, x + dx + width, y + dy + height / 2)
        inside = box[0] >= 0 and box[1] >= 0 and box[2] <= WIDTH and box[3] <= HEIGHT
        if inside and not any(
            box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken
        ):
            taken.append(box)
            return x + dx, y + dy
    return None


def format_colours(marks: Sequence[Mark]) -> dict[str, str]:
    """One colour for every format, to be shared by all panels; casts are grey."""
    quantized = sorted({mark.format for mark in marks if not mark.is_cast})
    casts = dict.fromkeys(sorted({mark.format for mark in marks} - set(quantized)), CAST_COLOUR)
    return {name: COLOURS[n % len(COLOURS)] for n, name in enumerate(quantized)} | casts


def pareto_panel(
    marks: Sequence[Mark], colours: dict[str, str], size: str = LINEAR_SIZE, title: str = ""
) -> "alt.LayerChart":
    """The points of one model and test set, their intervals and front, and the reference's rate across.

    `size` says what the marks' sizes are of. A panel with a title says what its lines are.
    """
    import altair as alt

    sizes = size_axis([mark.size for mark in marks])
    rates = wer_axis([rate for mark in marks for rate in (mark.low, mark.wer, mark.high) if rate is not None])
    formats = [name for name in colours if any(mark.format == name for mark in marks)]
    activations = sorted({mark.activation for mark in marks}, key=lambda name: (name != "none", name))

    x = alt.X("size:Q", title=size)
    x = x.scale(type=sizes.kind, domain=[sizes.low, sizes.high], nice=False)
    x = x.axis(values=sizes.ticks, labelExpr=TICK, labelOverlap="greedy")
    y_scale = alt.Scale(type=rates.kind, domain=[rates.low, rates.high], nice=False, zero=False)
    y = alt.Y("wer:Q", title="Word error rate, %", scale=y_scale)
    y = y.axis(values=rates.ticks, labelExpr=TICK, labelOverlap="greedy")
    colour = alt.Color("format:N", title="Format").scale(
        domain=formats, range=[colours[name] for name in formats]
    )
    legend = alt.Legend() if len(activations) > 1 else None
    shape = alt.Shape("activation:N", title="Activations", legend=legend)
    shape = shape.scale(domain=activations, range=[SHAPES[n % len(SHAPES)] for n in range(len(activations))])
    opacity = alt.condition(alt.datum.is_faint, alt.value(0.45), alt.value(1.0))

    def chart(name: str, values: Sequence[Any]) -> alt.Chart:
        return alt.Chart(alt.Data(values=list(values)), name=name)

    bars = [_datum(mark) for mark in marks if mark.low is not None and mark.high is not None]
    layers = [
        chart("reference", [_datum(mark) for mark in marks if mark.is_reference][:1])
        .mark_rule(strokeDash=[5, 4], color=REFERENCE)
        .encode(y=y),
        chart("front", _steps(marks, sizes.high))
        .mark_line(interpolate="step-after", color=MUTED, strokeWidth=1.5, opacity=0.8)
        .encode(x=x, y=y),
        chart("intervals", bars)
        .mark_rule(strokeWidth=1.4)
        .encode(x=x, y=alt.Y("low:Q", scale=y_scale), y2="high:Q", color=colour, opacity=opacity),
        chart("points", [_datum(mark) for mark in marks if mark.standing in ("on", "off")])
        .mark_point(filled=True, size=90, strokeWidth=1)
        .encode(x=x, y=y, color=colour, shape=shape, opacity=opacity),
        chart("hollow", [_datum(mark) for mark in marks if mark.standing not in ("on", "off")])
        .mark_point(fill="white", size=80, strokeWidth=1.6)
        .encode(x=x, y=y, color=colour, shape=shape, opacity=opacity),
        chart("equivalent", [_datum(mark) for mark in marks if mark.standing == "equivalent"])
        .mark_point(filled=True, size=80, opacity=HALF)
        .encode(x=x, y=y, color=colour, shape=shape),
        chart("recommended", [_datum(mark) for mark in marks if mark.is_recommended])
        .mark_point(shape="circle", size=330, strokeWidth=1.6, color=INK)
        .encode(x=x, y=y),
        chart("labels", _labels(marks, sizes, rates))
        .mark_text(align="left", baseline="middle", color=INK)
        .encode(x=alt.X("left:Q", scale=None), y=alt.Y("middle:Q", scale=None), text="text:N"),
    ]
    heading = alt.TitleParams(title, subtitle=list(LINES)) if title else alt.Undefined
    return alt.LayerChart(layer=layers, width=WIDTH, height=HEIGHT, title=heading)


def _datum(mark: Mark) -> dict[str, Any]:
    """What of a mark is drawn."""
    drawn = ("format", "activation", "size", "wer", "low", "high")
    return {name: getattr(mark, name) for name in drawn} | {"is_faint": mark.is_faint}


def _steps(marks: Sequence[Mark], right: float) -> list[dict[str, float]]:
    """The least rate that each size affords, on to the right edge."""
    front = sorted({(mark.size, mark.wer) for mark in marks if mark.on_front})
    return [{"size": size, "wer": wer} for size, wer in (*front, *((right, wer) for _, wer in front[-1:]))]


def _labels(marks: Sequence[Mark], sizes: Axis, rates: Axis) -> list[dict[str, Any]]:
    """The names of the points on the front of the estimates, of the reference and of what is recommended,
    where there is room for them."""
    spots = [(WIDTH * sizes.place(mark.size), HEIGHT * (1 - rates.place(mark.wer))) for mark in marks]
    named = [n for n, mark in enumerate(marks) if mark.on_front or mark.is_reference or mark.is_recommended]
    places = place_labels([(*spots[n], marks[n].name) for n in named], spots)
    return [
        {"left": place[0], "middle": place[1], "text": marks[n].name}
        for n, place in zip(named, places, strict=True)
        if place
    ]


def svg(chart: "alt.LayerChart | alt.VConcatChart | dict[str, Any]", background: str | None = None) -> str:
    """A chart, or a Vega-Lite specification, as SVG with all text in it escaped."""
    import vl_convert

    fonts = {"labelFont": FONT, "titleFont": FONT, "labelFontSize": FONT_SIZE, "titleFontSize": FONT_SIZE + 1}
    guide = fonts | {"titleColor": MUTED, "titleFontWeight": "normal"}
    config = {
        "background": background,
        "font": FONT,
        "view": {"stroke": None},
        "text": {"font": FONT, "fontSize": FONT_SIZE},
        "title": {"font": FONT, "fontSize": 14, "anchor": "start", "color": INK, "offset": 12}
        | {"subtitleFont": FONT, "subtitleFontSize": FONT_SIZE, "subtitleColor": MUTED, "subtitlePadding": 5},
        "axis": guide
        | {"labelColor": MUTED, "titlePadding": 10, "labelPadding": 6}
        | {"gridColor": GRID, "ticks": False, "domain": False},
        "legend": guide | {"labelColor": INK, "symbolOpacity": 1, "rowPadding": 4},
    }
    described = chart if isinstance(chart, dict) else chart.to_dict(validate=False)
    return vl_convert.vegalite_to_svg(described | {"config": config})


def column(panels: "Sequence[alt.LayerChart]") -> str:
    """Panels one below the other, on white, as SVG."""
    import altair as alt

    stacked = alt.VConcatChart(vconcat=list(panels), spacing=40, padding=16)
    return svg(stacked.resolve_scale(color="independent", shape="independent"), background="white")


def png(drawing: str) -> bytes:
    """An SVG as PNG, at twice the size so that print is sharp."""
    import vl_convert

    return vl_convert.svg_to_png(drawing, scale=2)
