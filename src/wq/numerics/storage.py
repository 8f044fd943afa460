"""The exact number of bits that a quantized tensor occupies."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from wq.numerics.effective import resolve
from wq.numerics.formats import Format

TENSOR_SCALE_BITS = 32


@dataclass(frozen=True)
class Storage:
    """Bits by what they hold; `elements` is the number of elements."""

    elements: int
    element_bits: int
    scale_bits: int
    zero_point_bits: int
    tensor_scale_bits: int

    @property
    def total(self) -> int:
        return self.element_bits + self.scale_bits + self.zero_point_bits + self.tensor_scale_bits

    @property
    def bytes(self) -> int:
        """As a file holds them: codes, scales, zero points and tensor scale are tensors of their own, each of
        whole bytes."""
        parts = self.element_bits, self.scale_bits, self.zero_point_bits, self.tensor_scale_bits
        return sum(math.ceil(bits / 8) for bits in parts)

    @property
    def bits_per_element(self) -> float:
        return self.total / self.elements


def storage(
    shape: Sequence[int], format: Format, granularity: str = "group", group: int | None = None
) -> Storage:
    """Bits of a tensor of this shape, scales along its last axis: e.g. a weight [N, K] in int4 with groups of
    128 has 4 N K element bits and 16 N ceil(K/128) scale bits."""
    effective = resolve(format, granularity, group)
    elements = math.prod(shape)
    if format.is_cast:
        scales = 0
    elif effective.granularity == "tensor":
        scales = 1
    else:
        block = effective.group or shape[-1]
        scales = math.prod(shape[:-1]) * math.ceil(shape[-1] / block)
    return Storage(
        elements=elements,
        element_bits=elements * format.bits,
        scale_bits=scales * format.scale_bits,
        zero_point_bits=scales * format.zero_point_bits,
        tensor_scale_bits=TENSOR_SCALE_BITS * format.has_tensor_scale,
    )
