"""The keys and values that attention keeps."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class KeysValues:
    """The keys and values of one attention, each [rows, heads, positions, head size].

    Everything that the decoder attends to passes through `store` and `read`.
    """

    keys: Tensor
    values: Tensor

    @classmethod
    def empty(cls, attention: Any, rows: int, positions: int) -> "KeysValues":
        weight = attention.k_proj.weight
        shape = (rows, attention.num_heads, positions, attention.head_dim)
        return cls(*(torch.empty(shape, dtype=weight.dtype, device=weight.device) for _ in range(2)))

    def store(self, keys: Tensor, values: Tensor, first_row: int = 0, first_position: int = 0) -> None:
        """Write them to the rows and positions from these on."""
        rows = slice(first_row, first_row + keys.shape[0])
        positions = slice(first_position, first_position + keys.shape[2])
        self.keys[rows, :, positions] = keys
        self.values[rows, :, positions] = values

    def read(self, end: int | None = None) -> tuple[Tensor, Tensor]:
        """Those of the positions before `end`; of all positions by default."""
        return (self.keys, self.values) if end is None else (self.keys[:, :, :end], self.values[:, :, :end])

    def move(self, source: list[int], target: list[int], rows: int) -> None:
        """Put the rows `source` in the places `target`, and keep the first `rows` rows."""
        if source:
            for tensor in (self.keys, self.values):
                tensor[target] = tensor[source]
        self.keys, self.values = self.keys[:rows], self.values[:rows]
