"""The layout of compressed-tensors: packed weights that transformers and vLLM load.

A layer's weight becomes `weight_packed` or `weight`, with its scales beside it, and config.json tells in its
`quantization_config` which layers hold what. Names and bits follow compressed-tensors 0.20
(compressed_tensors.compressors); the tests read them back with its own code.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from wq.numerics.effective import Quantizer
from wq.numerics.fake_quant import Quantized
from wq.numerics.formats import Format
from wq.numerics.packing import element_dtype, encode_scale, pack
from wq.numerics.scales import scale_of_range, tensor_scale_of
from wq.whisper.layers.roles import LINEAR_ROLES
from wq.whisper.layers.schemes import Activation

VERSION = "0.20.0"  # of compressed-tensors
HOLDS = (
    "linear layers in int2 to int8 without zero points and in fp8_e4m3 (with groups that divide the inputs), "
    "in nvfp4 with groups of 16, in mxfp4 and mxfp8_e4m3 with groups of 32; activations in int8 per token on "
    "integer weights, else in the weights' own format"
)
WORD = 32  # bits of the integers that integer codes are packed into, row by row
FLOAT_SCALES = ("fp32", "fp16", "bf16")
# Their decompressor computes in bfloat16, so that models which hold them are loaded in it
BFLOAT16 = ("nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized")
# What is never quantized here. Engines look for the names of layers that they could quantize.
UNQUANTIZED = (
    *("model.encoder.conv1", "model.encoder.conv2", "model.encoder.embed_positions"),
    *("model.decoder.embed_tokens", "model.decoder.embed_positions", "proj_out"),
)


class LayoutError(ValueError):
    """What a layout has no place for: one line that names it, what the layout holds, and the remedy."""


def refusal(what: str) -> LayoutError:
    """That something does not fit, in one line."""
    return LayoutError(
        f"{what} does not fit layout=compressed-tensors, which holds {HOLDS}; use layout=wq, which holds all"
    )


class Scheme(NamedTuple):
    """How a layer is written: a `config_group`."""

    format: str
    weights: Quantizer
    activation: Activation | None


def scheme(weights: Quantizer, activation: Activation | None, columns: int) -> Scheme:
    """How a linear layer of so many inputs is written. Raises LayoutError where it cannot be."""
    format, granularity, group = weights
    grouped = f" group={group}" if group else ""
    if group and columns % group:
        raise refusal(f"group={group}, which does not divide a layer's {columns} inputs,")
    storage = _storage(format, granularity, group)
    if storage is None:
        raise refusal(f"format={format.name} granularity={granularity}{grouped}")
    if activation is None:
        return Scheme("pack-quantized" if storage == "int-quantized" else storage, weights, None)
    if storage == "int-quantized" and granularity == "group":
        storage = "pack-quantized"  # engines multiply 8-bit integers only where a row has one scale
    if _activation_kind(activation) not in _ACTIVATIONS[storage]:
        own = activation.quantizer
        raise refusal(f"activation={own.format.name} granularity={own.granularity} on {format.name} weights")
    return Scheme(storage, weights, activation)


def tensors(quantized: Quantized, scheme: Scheme) -> dict[str, Tensor]:
    """A weight [N, K] as the layout stores it, by names that follow the layer's."""
    format, granularity = quantized.effective.format, quantized.effective.granularity
    rows, columns = quantized.codes.shape
    assert quantized.scale is not None
    scale = encode_scale(quantized.scale, format).view(1 if granularity == "tensor" else (rows, -1))
    found = {"weight_scale": scale.contiguous()}
    dtype = element_dtype(format)
    if scheme.format == "pack-quantized":
        found["weight_packed"] = _words(quantized.codes, format)
        found["weight_shape"] = torch.tensor([rows, columns])
    elif dtype is not None:
        found["weight"] = quantized.codes.view(dtype)
    else:
        found["weight_packed"] = pack(quantized.codes, format.bits).view(rows, -1)
    if quantized.tensor_scale is not None:
        found["weight_global_scale"] = quantized.tensor_scale.reciprocal().view(1)
    return found


def input_tensors(activation: Activation, amax: float) -> dict[str, Tensor]:
    """What the layout stores for inputs whose range was calibrated: their scale, or of a two-level format the
    tensor scale, by its reciprocal as for weights."""
    format, high = activation.quantizer.format, torch.tensor([amax], dtype=torch.float32)
    if format.has_tensor_scale:
        return {"input_global_scale": tensor_scale_of(high, format).reciprocal()}
    return {"input_scale": scale_of_range(-high, high, format).scale}


def quantization_config(schemes: Mapping[str, Scheme]) -> dict[str, Any]:
    """What config.json says, given the schemes of the linear roles that are quantized."""
    groups: dict[Scheme, list[str]] = {}
    for role in LINEAR_ROLES:
        if role in schemes:
            groups.setdefault(schemes[role], []).append(role)
    plain = [role for role in LINEAR_ROLES if role not in schemes]
    whole = len(groups) == 1 and not plain
    formats = {each.format for each in groups}
    return {
        "quant_method": "compressed-tensors",
        "version": VERSION,
        "quantization_status": "compressed",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "config_groups": {
            f"group_{index}": {
                "targets": ["Linear"] if whole else [_pattern(role) for role in roles],
                "weights": _weight_arguments(each.weights),
                "input_activations": _activation_arguments(each.activation),
                "output_activations": None,
                "format": each.format,
            }
            for index, (each, roles) in enumerate(groups.items())
        },
        "ignore": [*UNQUANTIZED, *(_pattern(role) for role in plain)],
        "kv_cache_scheme": None,
    }


def model_dtype(schemes: Iterable[Scheme]) -> str:
    """The dtype in which engines should load the model."""
    return "bfloat16" if any(each.format in BFLOAT16 for each in schemes) else "float32"


def _storage(format: Format, granularity: str, group: int | None) -> str | None:
    """The layout's name for weights of this kind, or None where it has none."""
    element = format.exponent_bits or 0, format.mantissa_bits or 0, format.special
    if format.element == "int" and format.bits <= 8 and format.scale_dtype in FLOAT_SCALES:
        if format.is_asymmetric:  # transformers 5.23 makes no room for packed zero points
            return None
        return "int-quantized" if format.bits == 8 else "pack-quantized"
    if format.element != "float":
        return None
    if element == (4, 3, "nan") and format.scale_dtype in FLOAT_SCALES:
        return "float-quantized"
    if granularity != "group":
        return None
    blocks: dict[tuple[tuple[int, int, str], str, bool, int | None], str] = {
        ((2, 1, "none"), "e4m3", True, 16): "nvfp4-pack-quantized",
        ((2, 1, "none"), "e8m0", False, 32): "mxfp4-pack-quantized",
        ((4, 3, "nan"), "e8m0", False, 32): "mxfp8-quantized",
    }
    return blocks.get((element, format.scale_dtype, format.has_tensor_scale, group))


# Activations by what _activation_kind calls them, for every storage
_ACTIVATIONS = {
    "int-quantized": ("int8-token", "int8-tensor"),
    "pack-quantized": ("int8-token",),
    "float-quantized": ("float-quantized-token", "float-quantized-tensor"),
    "nvfp4-pack-quantized": ("nvfp4-pack-quantized-group",),
    "mxfp4-pack-quantized": ("mxfp4-pack-quantized-group",),
    "mxfp8-quantized": ("mxfp8-quantized-group",),
}


def _activation_kind(activation: Activation) -> str:
    format, granularity, group = activation.quantizer
    if format.element == "int" and format.bits == 8 and not format.is_asymmetric:
        return f"int8-{granularity}"
    return f"{_storage(format, granularity, group)}-{granularity}"


def _weight_arguments(quantizer: Quantizer) -> dict[str, Any]:
    format, granularity, group = quantizer
    own = {"num_bits": format.bits, "type": "int" if format.element == "int" else "float"}
    own |= {"symmetric": True, "dynamic": False, "group_size": group}
    own["strategy"] = "tensor_group" if format.has_tensor_scale else granularity
    if format.scale_dtype == "e8m0":
        own["scale_dtype"] = "torch.uint8"
    if format.has_tensor_scale:
        own["scale_dtype"] = "torch.float8_e4m3fn"
    return own


def _activation_arguments(activation: Activation | None) -> dict[str, Any] | None:
    if activation is None:
        return None
    own = _weight_arguments(activation.quantizer)
    is_two_level = activation.quantizer.format.has_tensor_scale
    return own | {"dynamic": "local" if is_two_level else not activation.is_static}


def _words(codes: Tensor, format: Format) -> Tensor:
    """Integer codes [N, K] as int32 [N, ceil(K * bits / 32)]: each row by itself, with the smallest code as
    zero."""
    rows, columns = codes.shape
    shifted = codes.to(torch.int16) + 2 ** (format.bits - 1)
    packed = pack(pad(shifted, (0, -columns % WORD)), format.bits).view(torch.int32).view(rows, -1)
    return packed[:, : math.ceil(columns * format.bits / WORD)].contiguous()


def _pattern(role: str) -> str:
    """A regular expression for the modules of a linear role, as transformers names them and as vLLM does,
    which keeps fc1 and fc2 in a module `mlp`."""
    side, block, part = role.split(".")
    if block == "mlp":
        return rf"re:.*\.{side}\.layers\.\d+\.(mlp\.)?{part}$"
    attention = {"self_attn": "self_attn", "cross_attn": "encoder_attn"}[block]
    return rf"re:.*\.{side}\.layers\.\d+\.{attention}\.{part}_proj$"
