"""Where a model is sensitive: one role or one layer rounded at a time, the rest untouched."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from wq.study.spec.config import Config, ConfigurationError
from wq.study.spec.names import activation_name, weight_name
from wq.study.spec.spec import Spec
from wq.whisper.checkpoint.geometry import Geometry
from wq.whisper.layers.roles import LINEAR_ROLES, expand

if TYPE_CHECKING:
    from wq.whisper.calibration.calibration import Observed
    from wq.whisper.checkpoint.model import Whisper

WAYS = ("role", "layer")


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
    names = [weight_name(each.quantizer) for each in spec.treatment.plan] or ["fp32"]
    return " / ".join(
        dict.fromkeys((*names, *(activation_name(each.quantizer) for each in spec.treatment.activations)))
    )


def output_error(
    whisper: "Whisper", part: str, spec: Spec, observed: "Mapping[str, Observed]"
) -> float | None:
    """|Y' - Y| / |Y| (Frobenius) over a part's layers on a sample of what they read in `observed`: Y as they
    are, Y' as the spec rounds weights and inputs. None where one of them is no linear layer."""
    import torch

    from wq.whisper.layers.layers import assign, select, walk
    from wq.whisper.layers.schemes import by_role
    from wq.whisper.methods.alpha_search import inputs_of
    from wq.whisper.methods.nearest import quantized_weights

    every = list(walk(whisper.model))
    layers = select(every, [part])
    if not all(layer.is_linear for layer in layers):
        return None
    error = size = 0.0
    with torch.no_grad():
        for layer in layers:
            module, seen = whisper.model.get_submodule(layer.name), observed[layer.name]
            expected = module(seen.sample.to(layer.weight)).double()
            rounded = inputs_of([layer], by_role(spec.treatment.activations), seen, None)[layer.name]
            plan = [pair for pair in assign(every, spec.treatment.plan) if pair[0] is layer]
            with quantized_weights(plan):
                found = module(rounded.to(layer.weight)).double()
            error += float((found - expected).square().sum())
            size += float(expected.square().sum())
    return math.sqrt(error / size) if size else 0.0
