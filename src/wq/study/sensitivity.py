"""Where a model is sensitive: one role or one layer rounded at a time, the rest untouched."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wq.study.config import Config, ConfigurationError
from wq.study.names import activation_name, weight_name
from wq.study.points import as_csv
from wq.study.results import Row, write_whole
from wq.study.scenes import decimal, interval, number, percent
from wq.study.spec import Spec
from wq.whisper.geometry import Geometry
from wq.whisper.roles import LINEAR_ROLES, expand

if TYPE_CHECKING:
    from wq.whisper.calibration import Observed
    from wq.whisper.model import Whisper

WAYS = ("role", "layer")
COLUMNS = (
    *("part", "scheme", "wer", "wer_ci_low", "wer_ci_high", "wer_delta", "wer_delta_ci_low"),
    *("wer_delta_ci_high", "wer_delta_p", "output_error", "utterances", "point", "fingerprint"),
)
HEADER = ("part", "scheme", "WER %", "change", "95 % interval", "output error %")


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


def parts_of(roles: Sequence[str], by: str, geometry: Geometry) -> list[str]:
    """The roles, or those of every block, in the model's order. ValueError as of `expand`."""
    chosen = expand(roles)
    if by == "role":
        return list(chosen)
    blocks = {"encoder": geometry.encoder_layers, "decoder": geometry.decoder_layers}
    layers = [
        part
        for side, count in blocks.items()
        for block in range(count)
        for role in chosen
        if role in LINEAR_ROLES and role.startswith(f"{side}.")
        for part in expand([f"{role}:{block}"])
    ]
    return layers + [role for role in chosen if role not in LINEAR_ROLES]


def only(config: Config, part: str) -> tuple[Config, list[str]]:
    """The configuration with this part alone rounded, and the settings that say so.

    Raises ConfigurationError for what is no matter of single layers.
    """
    for name, chosen in (("smoothquant", config.smoothquant.method), ("kv_cache", config.kv_cache.format)):
        if chosen not in (None, "none"):
            raise ConfigurationError(
                f"{name}={chosen} is for a whole model and not for its parts; leave it out"
            )
    settings = [f"roles=[{part}]"]
    if config.activation.format is None:
        return replace(config, roles=[part]), settings
    if config.decoder_activation is not None:
        raise ConfigurationError("decoder_activation is one scheme too many here; give activation= alone")
    activation = replace(config.activation, roles=[part])
    return replace(config, roles=[part], activation=activation), [*settings, f"activation.roles=[{part}]"]


def scheme_of(spec: Spec) -> str:
    """What rounds the part, without its name."""
    names = [weight_name(each.quantizer) for each in spec.weights] or ["fp32"]
    return " / ".join(
        dict.fromkeys((*names, *(activation_name(each.quantizer) for each in spec.activations)))
    )


def output_error(
    whisper: "Whisper", part: str, spec: Spec, observed: "Mapping[str, Observed]"
) -> float | None:
    """|Y' - Y| / |Y| (Frobenius) over a part's layers on a sample of what they read in `observed`: Y as they
    are, Y' as the spec rounds weights and inputs. None where one of them is no linear layer."""
    import torch

    from wq.whisper.alpha_search import inputs_of
    from wq.whisper.layers import assign, select, walk
    from wq.whisper.quantize import quantized_weights
    from wq.whisper.schemes import by_role

    every = list(walk(whisper.model))
    layers = select(every, [part])
    if not all(layer.is_linear for layer in layers):
        return None
    error = size = 0.0
    with torch.no_grad():
        for layer in layers:
            module, seen = whisper.model.get_submodule(layer.name), observed[layer.name]
            expected = module(seen.sample.to(layer.weight)).double()
            rounded = inputs_of([layer], by_role(spec.activations), seen, None)[layer.name]
            plan = [(each, quantizer) for each, quantizer in assign(every, spec.weights) if each is layer]
            with quantized_weights(plan):
                found = module(rounded.to(layer.weight)).double()
            error += float((found - expected).square().sum())
            size += float(expected.square().sum())
    return math.sqrt(error / size) if size else 0.0


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
    from wq.study import figures
    from wq.study.sensitivity_figures import heat_map

    rows = [
        part.row | {"part": part.name, "scheme": part.scheme, "output_error": rounded(part.output_error)}
        for part in parts
    ]
    drawing = heat_map(parts, title)
    contents: dict[str, Any] = {
        "csv": as_csv(COLUMNS, [[row.get(column, "") for column in COLUMNS] for row in rows]),
        "svg": drawing,
        "png": figures.png(drawing),
    }
    paths = [directory / f"sensitivity.{ending}" for ending in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        write_whole(path, content)
    return paths
