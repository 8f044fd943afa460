"""The weights of a Whisper model that can be quantized, by role (see `roles`).

Found by walking the model's own structure, never by matching names.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import WhisperForConditionalGeneration

from wq.whisper.layers.roles import LINEAR_ROLES, expand
from wq.whisper.layers.schemes import Assignment, Q, by_role


@dataclass(frozen=True)
class Layer:
    """One weight: its module's qualified name, its role, and the parameter [N, ...]."""

    name: str
    role: str
    weight: nn.Parameter

    @property
    def is_linear(self) -> bool:
        """Whether it is one of the linear layers of encoder and decoder, whose size the study reports."""
        return self.role in LINEAR_ROLES

    @property
    def block_role(self) -> str:
        """Its role in its block alone, as in `encoder.mlp.fc1:2`; its role where it is in none."""
        block = re.search(r"\.layers\.(\d+)\.", self.name)
        return f"{self.role}:{block[1]}" if block else self.role

    @property
    def source(self) -> str:
        """The name of the tensor that it reads: q, k and v of self-attention read the same one, and k and v
        of all cross-attentions the encoder's states."""
        part, projection = self.role.rpartition(".")[::2]
        if part == "decoder.cross_attn" and projection in ("k", "v"):
            return "model.encoder"
        if part.endswith("self_attn") and projection in ("q", "k", "v"):
            return self.name.rpartition(".")[0]
        return self.name

    @property
    def hears(self) -> bool:
        """Whether what it reads has a position for every frame of audio, and not for every token of text."""
        return self.role.startswith("encoder.") or self.source == "model.encoder"

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """[N, K] as it is quantized: a convolution's kernel [N, C, width] is a matrix [N, C * width]."""
        return self.weight.shape[0], self.weight[0].numel()


def walk(model: WhisperForConditionalGeneration) -> Iterator[Layer]:
    """Every quantizable weight of the model, in the order of the computation."""
    encoder, decoder = model.model.encoder, model.model.decoder
    yield Layer("model.encoder.conv1", "conv.conv1", _weight(encoder.conv1))
    yield Layer("model.encoder.conv2", "conv.conv2", _weight(encoder.conv2))
    for side, stack in (("encoder", encoder), ("decoder", decoder)):
        for index, block in enumerate(stack.layers):
            prefix = f"model.{side}.layers.{index}"
            attentions = [("self_attn", "self_attn"), ("encoder_attn", "cross_attn")]
            for attribute, role in attentions[: 1 if side == "encoder" else 2]:
                for projection in ("q", "k", "v", "out"):
                    linear = getattr(getattr(block, attribute), f"{projection}_proj")
                    name = f"{prefix}.{attribute}.{projection}_proj"
                    yield Layer(name, f"{side}.{role}.{projection}", _weight(linear))
            for linear in ("fc1", "fc2"):
                yield Layer(f"{prefix}.{linear}", f"{side}.mlp.{linear}", _weight(getattr(block, linear)))
    yield Layer("model.decoder.embed_tokens", "embedding", _weight(decoder.embed_tokens))


def _weight(module: nn.Module) -> nn.Parameter:
    assert isinstance(module.weight, nn.Parameter)
    return module.weight


def select(layers: Sequence[Layer], roles: Sequence[str]) -> list[Layer]:
    """The layers whose role any of the patterns names. Raises ValueError for a pattern that names none."""
    chosen = expand(roles)
    return [layer for layer in layers if layer.role in chosen or layer.block_role in chosen]


def assign(layers: Sequence[Layer], assignments: Sequence[Assignment[Q]]) -> list[tuple[Layer, Q]]:
    """The layers that are quantized, and how. Raises ValueError for a block that the model has not."""
    quantizers = by_role(assignments)
    known = {role for layer in layers for role in (layer.role, layer.block_role)}
    missing = next((role for role in quantizers if role not in known), None)
    if missing:
        raise ValueError(f"role {missing} matches no layer of this model; blocks are counted from 0")
    found = ((layer, quantizer_of(layer, quantizers)) for layer in layers)
    return [(layer, quantizer) for layer, quantizer in found if quantizer is not None]


def quantizer_of(layer: Layer, quantizers: Mapping[str, Q]) -> Q | None:
    """What a layer has by its role, or else by its role in its block."""
    return quantizers.get(layer.role) or quantizers.get(layer.block_role)
