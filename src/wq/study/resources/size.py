"""Model size: the exact bytes of a quantized checkpoint's tensors, by shapes alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING

from wq.numerics.effective import Quantizer, resolve
from wq.numerics.storage import Storage, storage
from wq.study.spec.spec import Spec
from wq.whisper.checkpoint.geometry import Geometry, skeleton
from wq.whisper.layers.roles import LINEAR_ROLES, ROLES

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration

    from wq.whisper.layers.layers import Layer

PLAIN_BITS = 16  # of everything that is not quantized: embeddings, convolutions, norms, biases at fp16
REFERENCE_BITS = 32  # of everything in the fp32 reference

# Roles of what no scheme quantizes: tables of positions, norms and biases, a head that is not the embedding
REST_ROLES = ("encoder.positions", "encoder.rest", "decoder.positions", "decoder.rest", "decoder.head")


@dataclass(frozen=True)
class Part:
    """The parameters of a role, or one parameter. `ragged_groups` of them are shorter than the others, as the
    group size does not divide the rows."""

    name: str
    role: str
    tensors: int
    parameters: int
    element_bits: int
    scale_bits: int
    zero_point_bits: int
    tensor_scale_bits: int
    ragged_groups: int
    bytes: int

    @property
    def bits(self) -> int:
        return self.element_bits + self.scale_bits + self.zero_point_bits + self.tensor_scale_bits

    @property
    def bits_per_weight(self) -> float:
        return self.bits / self.parameters


def total(parts: Iterable[Part], name: str, role: str = "") -> Part:
    """The sum of parts as one part."""
    parts = list(parts)
    counts = [field.name for field in fields(Part) if field.name not in ("name", "role")]
    return Part(name, role, **{count: sum(getattr(part, count) for part in parts) for count in counts})


@dataclass(frozen=True)
class Size:
    """Bits counted exactly, parameter by parameter; bytes as a file holds them, where codes, scales, zero
    points and tensor scale are tensors of their own, each rounded up to a whole byte."""

    parts: tuple[Part, ...]

    @cached_property
    def by_role(self) -> Mapping[str, Part]:
        """In the model's order, what no scheme quantizes last."""
        roles = {part.role for part in self.parts}
        ordered = [role for role in (*ROLES, *REST_ROLES) if role in roles]
        return {role: total((p for p in self.parts if p.role == role), role, role) for role in ordered}

    @cached_property
    def linear(self) -> Part:
        """The linear layers of encoder and decoder: the thesis's measure."""
        return total((part for part in self.parts if part.role in LINEAR_ROLES), "linear layers")

    @cached_property
    def whole(self) -> Part:
        """The whole checkpoint."""
        return total(self.parts, "whole checkpoint")

    @property
    def linear_bytes(self) -> int:
        return self.linear.bytes

    @property
    def model_bytes(self) -> int:
        return self.whole.bytes

    @property
    def bits_per_weight(self) -> float:
        """Of the linear layers, with their scales."""
        return self.linear.bits_per_weight

    @property
    def compression_ratio(self) -> float:
        """The whole checkpoint at fp16 over the whole checkpoint as quantized."""
        return self.whole.parameters * PLAIN_BITS / 8 / self.model_bytes


def model_size(
    model: "WhisperForConditionalGeneration", plan: "Sequence[tuple[Layer, Quantizer]]", plain_bits: int
) -> Size:
    """Size of the checkpoint with the plan's layers in their formats, and the rest at so many bits; shapes
    only, weights are not read. A tied weight counts once."""
    from wq.whisper.layers.layers import walk

    quantizers = {layer.name: quantizer for layer, quantizer in plan}
    layers = {f"{layer.name}.weight": layer for layer in walk(model)}
    parts = []
    for name, parameter in model.named_parameters():
        layer = layers.get(name)
        if layer and layer.name in quantizers:
            parts.append(_quantized(layer, quantizers[layer.name]))
        else:
            bits = parameter.numel() * plain_bits
            plain = Storage(parameter.numel(), bits, 0, 0, 0)
            parts.append(
                _part(layer.name if layer else name, layer.role if layer else _rest_role(name), plain)
            )
    return Size(tuple(parts))


def _quantized(layer: "Layer", quantizer: Quantizer) -> Part:
    rows, columns = layer.matrix_shape
    group = resolve(*quantizer).group
    ragged = rows if group and columns % group else 0
    return _part(layer.name, layer.role, storage((rows, columns), *quantizer), ragged)


def _part(name: str, role: str, stored: Storage, ragged_groups: int = 0) -> Part:
    bits = stored.element_bits, stored.scale_bits, stored.zero_point_bits, stored.tensor_scale_bits
    return Part(name, role, 1, stored.elements, *bits, ragged_groups, stored.bytes)


def _rest_role(name: str) -> str:
    if name.startswith("proj_out."):
        return "decoder.head"
    side = "encoder" if name.startswith("model.encoder.") else "decoder"
    return f"{side}.{'positions' if 'embed_positions' in name else 'rest'}"


def plain_bits(spec: Spec) -> int:
    """The width of what a spec does not quantize: all of the fp32 reference stays as it is."""
    return PLAIN_BITS if spec.treatment.plan else REFERENCE_BITS


def size_of(geometry: Geometry, spec: Spec) -> Size:
    """The size of a model that need not be there: its weights are on no device."""
    from wq.whisper.layers.layers import assign, walk

    model = skeleton(geometry)
    return model_size(model, assign(list(walk(model)), spec.treatment.plan), plain_bits(spec))
