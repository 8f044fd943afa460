"""What points are called: the readable names of what is quantized, and how."""

from collections.abc import Callable, Sequence

from wq.catalogue import load_format
from wq.numerics.effective import Quantizer, point_name
from wq.numerics.formats import Format
from wq.study.spec.config import with_wide_scale
from wq.whisper.layers.schemes import ATTENTIONS, DEFAULT_ROLES, Activation, Assignment, KVCache, Q, Smoothing
from wq.whisper.layers.treatment import Gptq

UNQUANTIZED_BITS = 16  # in which activations, keys and values are counted where nothing rounds them


def widths(formats: Sequence[Format], unquantized: int = UNQUANTIZED_BITS) -> str:
    widths = dict.fromkeys(str(format.bits) for format in formats)
    return "+".join(widths) or str(unquantized)


def assigned(assignments: Sequence[Assignment[Q]], tell: Callable[[Q], str]) -> str:
    """The quantizers' names, each with its roles where they are not encoder and decoder."""
    return "+".join(
        tell(quantizer) + ("" if roles == DEFAULT_ROLES else f"@{','.join(roles)}")
        for quantizer, roles in assignments
    )


def weight_name(quantizer: Quantizer) -> str:
    return point_name(*quantizer, catalogued(quantizer.format))


def algorithm_name(gptq: Gptq) -> str:
    """gptq, and what differs from its defaults, such as gptq-damping0.1-no_activation_order."""
    parts = ["gptq"]
    if gptq.damping != Gptq.damping:
        parts.append(f"damping{gptq.damping:g}")
    if not gptq.activation_order:
        parts.append("no_activation_order")
    return "-".join(parts)


def activation_name(activation: Activation) -> str:
    """Such as int8-token, or int8-tensor-percentile99.9 where a static range is not the maximum."""
    quantizer = activation.quantizer
    name = point_name(*quantizer, with_wide_scale(catalogued(quantizer.format)))
    if activation.calibrator in (None, "max"):
        return name
    return f"{name}-{activation.calibrator}" + (
        f"{activation.percentile:g}" if activation.percentile is not None else ""
    )


def kv_cache_name(cache: KVCache) -> str:
    """Such as int8, int4-g32, or int4-keys_channel-block16@cross; a scale for every token and head goes
    without saying."""
    values = cache.values
    name = point_name(*values, catalogued(values.format)).removesuffix("-token")
    if cache.keys.granularity != values.granularity:
        name += f"-keys_{cache.keys.granularity}"
    name += f"-block{cache.block}" if cache.block else ""
    return name if cache.attention == ATTENTIONS else f"{name}@{'+'.join(cache.attention)}"


def smoothing_name(smoothing: Smoothing) -> str:
    """Such as 0.5, encoder0.8,decoder0.96,cross0.5, or search."""
    alphas = smoothing.alphas
    if smoothing.method == "search":
        name = "search" + (f"-{smoothing.scope}" if smoothing.scope != "submodule" else "")
    elif len(set(alphas.values())) == 1:
        name = f"{smoothing.encoder:g}"
    else:
        name = ",".join(f"{part}{alpha:g}" for part, alpha in alphas.items())
    return name + ("-fc2" if smoothing.fc2 else "")


def catalogued(format: Format) -> Format:
    """The catalogue's format of this name, from whose defaults a point's name tells the differences."""
    try:
        return load_format(format.name)
    except ValueError:  # described on the command line or in a user's own configuration directory
        return format
