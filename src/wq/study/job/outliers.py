"""The outliers of what linear layers read, before and after smoothing: a table of every channel, and the
picture that the paper on SmoothQuant has of them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wq import outputs
from wq.study.report import figures
from wq.study.store.results import OUTLIERS, OUTLIERS_PICTURE
from wq.whisper.methods.folds import Fold, SmoothedInput

PANELS = 6  # of the picture
WIDTH, HEIGHT = 360, 84  # pixels of a panel
BEFORE, AFTER = figures.COLOURS[1], figures.COLOURS[0]


@dataclass(frozen=True)
class ChannelMaxima:
    """The largest magnitude of every channel of an input, on calibration speech.

    layer       the block that it is in, such as encoder.0, and what reads it: q, k, v
    alpha       None where it was left alone
    before, after   float32 [K]; after is what calibration saw, divided as the input is
    """

    layer: str
    submodule: str
    alpha: float | None
    before: np.ndarray
    after: np.ndarray


def channel_maxima(inputs: Sequence[SmoothedInput]) -> list[ChannelMaxima]:
    """Of every input that was or could be smoothed."""
    found = []
    for each in inputs:
        before = each.before.numpy()
        factor = 1.0 if each.factor is None else each.factor.float().cpu().numpy()
        found.append(
            ChannelMaxima(label(each.fold), each.fold.submodule, each.alpha, before, before / factor)
        )
    return found


def label(fold: Fold) -> str:
    """Such as encoder.3.self_attn.q+k+v, decoder.0.cross_attn.q; decoder.cross_attn.k+v of all its layers."""
    side, part, _ = fold.consumers[0].role.split(".")
    readers = "+".join(dict.fromkeys(layer.role.rpartition(".")[2] for layer in fold.consumers))
    block = "" if fold.submodule == "cross" else f".{fold.consumers[0].name.split('.')[3]}"
    return f"{side}{block}.{part}.{readers}"


def outlier_ratio(maxima: np.ndarray) -> float:
    """How many times the median channel's maximum the largest is."""
    median = float(np.median(maxima))
    return float(maxima.max()) / median if median else float("inf")


def alphas_text(maxima: Sequence[ChannelMaxima]) -> str:
    """JSON: the alpha of each submodule; a list in the order of its inputs where they differ."""
    alphas: dict[str, list[float | None]] = {}
    for each in maxima:
        alphas.setdefault(each.submodule, []).append(each.alpha)
    told = {name: found[0] if len(set(found)) == 1 else found for name, found in alphas.items()}
    return json.dumps(told)


def write_outliers(directory: Path, maxima: Sequence[ChannelMaxima]) -> None:
    """`activation_outliers.csv`, a row for every channel of every input, and `activation_outliers.png`."""
    lines = ["layer,submodule,alpha,channel,before,after\n"]
    for each in maxima:
        alpha = "" if each.alpha is None else f"{each.alpha:g}"
        for channel, (before, after) in enumerate(zip(each.before, each.after, strict=True)):
            lines.append(f"{each.layer},{each.submodule},{alpha},{channel},{before:.5g},{after:.5g}\n")
    outputs.write(directory / OUTLIERS, "".join(lines))
    outputs.write(directory / OUTLIERS_PICTURE, figures.png(figures.svg(picture(maxima), background="white")))


def picture(maxima: Sequence[ChannelMaxima]) -> dict[str, Any]:
    """The inputs with the strongest outliers, in the order of the computation, as Vega-Lite: each before and
    after, on scales of their own."""
    strongest = sorted(maxima, key=lambda each: outlier_ratio(each.before), reverse=True)[:PANELS]
    rows = [
        {
            "hconcat": [
                _panel(f"{each.layer}, before", each.before, BEFORE),
                _panel(_after(each), each.after, AFTER),
            ],
            "spacing": 30,
        }
        for each in maxima
        if any(each is one for one in strongest)
    ]
    title = {
        "text": "Largest magnitude of every input channel, before and after smoothing",
        "subtitle": f"The {len(rows)} of {len(maxima)} inputs with the strongest outliers; "
        "in brackets, the largest channel over the median one",
    }
    return {"vconcat": rows, "title": title, "padding": 16, "spacing": 14}


def _after(each: ChannelMaxima) -> str:
    return "left alone" if each.alpha is None else f"after, alpha {each.alpha:g}"


def _panel(title: str, maxima: np.ndarray, colour: str) -> dict[str, Any]:
    values = [{"channel": channel, "amax": float(f"{amax:.4g}")} for channel, amax in enumerate(maxima)]
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "title": {
            "text": f"{title} ({outlier_ratio(maxima):.3g} ×)",
            "fontSize": figures.FONT_SIZE,
            "offset": 4,
        },
        "data": {"values": values},
        "mark": {"type": "rule", "color": colour, "strokeWidth": max(WIDTH / len(maxima), 0.5)},
        "encoding": {
            "x": {
                "field": "channel",
                "type": "quantitative",
                "title": None,
                "scale": {"domain": [0, len(maxima)], "nice": False},
                "axis": {"grid": False, "tickCount": 5, "format": "d"},
            },
            "y": {"field": "amax", "type": "quantitative", "title": None, "axis": {"tickCount": 3}},
            "y2": {"datum": 0},
        },
    }
