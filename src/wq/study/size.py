"""Model size: the exact bytes of a quantized checkpoint's tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import WhisperForConditionalGeneration

from wq.numerics.effective import Quantizer
from wq.numerics.storage import Storage, storage
from wq.whisper.layers import Layer, walk

PLAIN_BITS = 16  # of everything that is not quantized: embeddings, convolutions, norms, biases at fp16
REFERENCE_BITS = 32  # of everything in the fp32 reference


@dataclass(frozen=True)
class Size:
    """Bits counted exactly, tensor by tensor; bytes as a file holds them, each tensor rounded up to a whole
    byte."""

    linear_parameters: int
    linear_bits: int
    linear_bytes: int
    other_parameters: int
    other_bytes: int

    @property
    def model_bytes(self) -> int:
        return self.linear_bytes + self.other_bytes

    @property
    def bits_per_weight(self) -> float:
        """Of the linear layers, with their scales: the thesis's measure."""
        return self.linear_bits / self.linear_parameters

    @property
    def compression_ratio(self) -> float:
        """The whole checkpoint at fp16 over the whole checkpoint as quantized."""
        return (self.linear_parameters + self.other_parameters) * PLAIN_BITS / 8 / self.model_bytes


def model_size(
    model: WhisperForConditionalGeneration, plan: Sequence[tuple[Layer, Quantizer]], plain_bits: int
) -> Size:
    """Size of the checkpoint with the plan's layers in their formats, and the rest at so many bits; shapes
    only, weights are not read."""
    quantizers = {layer.name: quantizer for layer, quantizer in plan}
    layers = list(walk(model))
    stored = {
        layer.name: storage(layer.matrix_shape, *quantizers[layer.name])
        if layer.name in quantizers
        else Storage(layer.weight.numel(), layer.weight.numel() * plain_bits, 0, 0, 0)
        for layer in layers
    }
    linear = [stored[layer.name] for layer in layers if layer.is_linear]
    walked = [stored[layer.name] for layer in layers if not layer.is_linear]
    parameters = sum(parameter.numel() for parameter in model.parameters())  # a tied weight counts once
    rest = parameters - sum(part.elements for part in stored.values())
    return Size(
        linear_parameters=sum(part.elements for part in linear),
        linear_bits=sum(part.total for part in linear),
        linear_bytes=sum(-(-part.total // 8) for part in linear),
        other_parameters=rest + sum(part.elements for part in walked),
        other_bytes=rest * plain_bits // 8 + sum(-(-part.total // 8) for part in walked),
    )
