"""The keys and values that attention keeps, rounded as they are stored: what is stored is what is read.

Published toolkits leave cross-attention alone, though for a window of audio it holds most of the cache. Two
kinds of memory round alike: the one of our own decoder, and the cache classes of transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration
from transformers.cache_utils import Cache, DynamicLayer, EncoderDecoderCache

from wq.numerics.effective import Quantizer
from wq.numerics.fake_quant import NonFiniteError, fake_quantize
from wq.whisper.decoding.finite import NonFiniteRow
from wq.whisper.layers.schemes import SELF_ATTENTION_BLOCK, KVCache

MODULES = {"self": "self_attn", "cross": "encoder_attn"}  # of a decoder layer


@dataclass(frozen=True)
class Rounding:
    """How the keys of one attention, or its values, are rounded; by default not at all.

    layer      the linear layer whose output they are
    quantizer  with granularity channel, every channel of a head has one scale over `block` positions
    amax       the calibrated range of a format with a tensor scale; None for others
    block      None is all positions
    grows      whether more positions are to come: the last block is then kept as it is until it is full
    """

    layer: str = ""
    quantizer: Quantizer | None = None
    amax: float | None = None
    block: int | None = None
    grows: bool = False

    @property
    def is_by_channel(self) -> bool:
        return self.quantizer is not None and self.quantizer.granularity == "channel"

    def round_vectors(self, x: Tensor) -> Tensor:
        """x [rows, heads, positions, head size], unless its scales span positions."""
        if self.quantizer is None or self.is_by_channel:
            return x
        # A linear layer writes the heads of a position side by side: so nothing is copied
        return self._round(x.transpose(1, 2), self.quantizer).transpose(1, 2)

    def round_blocks_(self, stored: Tensor, first: int) -> None:
        """Round in place, where scales span positions, what the positions from `first` on have filled of
        stored [rows, heads, positions, head size]."""
        if self.quantizer is None or not self.is_by_channel:
            return
        end = stored.shape[2]
        block = self.block or end
        start, stop = first // block * block, end // block * block if self.grows else end
        if start < stop:
            channels = stored[:, :, start:stop].mT
            channels.copy_(self._round(channels, Quantizer(self.quantizer.format, "group", block)))

    def _round(self, x: Tensor, quantizer: Quantizer) -> Tensor:
        try:
            return fake_quantize(x, *quantizer, amax=self.amax)
        except NonFiniteError:
            raise NonFiniteRow(f"the output of layer {self.layer}", x) from None


Roundings = tuple[Rounding, Rounding]  # of keys and of values
PLAIN = Rounding(), Rounding()


@dataclass(frozen=True)
class KVQuantizer:
    """How all keys and values of a decoder are rounded.

    ranges   the calibrated largest magnitudes of the outputs of k_proj and v_proj by layer name, for formats
             with a tensor scale
    """

    scheme: KVCache
    ranges: Mapping[str, float] = field(default_factory=dict)

    @property
    def spans_tokens(self) -> bool:
        """Whether what is read of a text's token depends on how many came after it: where a block of tokens
        shares a scale, it is rounded once it is full."""
        granularities = self.scheme.keys.granularity, self.scheme.values.granularity
        return "self" in self.scheme.attention and "channel" in granularities

    def roundings(self, index: int, attention: str) -> Roundings:
        """Of the keys and of the values of a decoder layer's "self" or "cross" attention.

        Raises ValueError where a range is missing.
        """
        if attention not in self.scheme.attention:
            return PLAIN
        return (
            self._rounding(index, attention, "k_proj", self.scheme.keys),
            self._rounding(index, attention, "v_proj", self.scheme.values),
        )

    def _rounding(self, index: int, attention: str, projection: str, quantizer: Quantizer) -> Rounding:
        layer = layer_name(index, attention, projection)
        amax = None
        if quantizer.format.has_tensor_scale:
            amax = self.ranges.get(layer)
            if amax is None:
                raise ValueError(
                    f"the tensor scale of {quantizer.format.name} needs the calibrated range of {layer}'s "
                    "output; calibrate it, or use a format without a tensor scale"
                )
        if quantizer.granularity != "channel":
            return Rounding(layer, quantizer, amax)
        grows = attention == "self"
        return Rounding(
            layer, quantizer, amax, self.scheme.block or (SELF_ATTENTION_BLOCK if grows else None), grows
        )


def layer_name(index: int, attention: str, projection: str) -> str:
    """As `layers.walk` has it."""
    return f"model.decoder.layers.{index}.{MODULES[attention]}.{projection}"


@dataclass
class KeysValues:
    """The keys and values of one attention, each [rows, heads, positions, head size].

    Everything that the decoder attends to passes through `store` and `read`.
    """

    keys: Tensor
    values: Tensor
    roundings: Roundings = PLAIN

    def store(self, keys: Tensor, values: Tensor, first_row: int = 0, first_position: int = 0) -> None:
        """Write them, rounded, to the rows and positions from these on."""
        rows = slice(first_row, first_row + keys.shape[0])
        end = first_position + keys.shape[2]
        for cache, x, rounding in zip((self.keys, self.values), (keys, values), self.roundings, strict=True):
            stored = cache[rows, :, :end]
            stored[:, :, first_position:] = rounding.round_vectors(x)
            rounding.round_blocks_(stored, first_position)

    def read(self, end: int | None = None, first_row: int = 0) -> tuple[Tensor, Tensor]:
        """Those of the positions before `end`, by default of all, and of the rows from this one on."""
        return self.keys[first_row:, :, :end], self.values[first_row:, :, :end]

    def move(self, source: list[int], target: list[int], rows: int) -> None:
        """Put the rows `source` in the places `target`, and keep the first `rows` rows."""
        if source:
            for tensor in (self.keys, self.values):
                tensor[target] = tensor[source]
        self.keys, self.values = self.keys[:rows], self.values[:rows]


def empty_caches(
    decoder: Any, attention: str, rows: int, positions: int, quantizer: KVQuantizer | None = None
) -> list[KeysValues]:
    """Memory for the "self" or "cross" attention of every layer of a decoder."""
    caches = []
    for index, layer in enumerate(decoder.layers):
        module = getattr(layer, MODULES[attention])
        weight = module.k_proj.weight
        shape = (rows, module.num_heads, positions, module.head_dim)
        keys, values = (torch.empty(shape, dtype=weight.dtype, device=weight.device) for _ in range(2))
        caches.append(KeysValues(keys, values, quantizer.roundings(index, attention) if quantizer else PLAIN))
    return caches


class RoundedLayer(DynamicLayer):
    """The keys and values of one attention in a cache of transformers."""

    def __init__(self, roundings: Roundings) -> None:
        super().__init__()
        self.roundings = roundings

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store them, rounded. Returns what attention reads: everything that is stored."""
        keys, values = self.roundings
        first = self.get_seq_length()
        stored_keys, stored_values = super().update(
            keys.round_vectors(key_states), values.round_vectors(value_states), *args, **kwargs
        )
        keys.round_blocks_(stored_keys, first)
        values.round_blocks_(stored_values, first)
        return stored_keys, stored_values


def rounded_cache(model: WhisperForConditionalGeneration, quantizer: KVQuantizer) -> EncoderDecoderCache:
    """An empty cache, good for one call of `model.generate(..., past_key_values=rounded_cache(...))`."""
    layers = range(model.config.decoder_layers)
    return EncoderDecoderCache(
        Cache([RoundedLayer(quantizer.roundings(index, "self")) for index in layers]),
        Cache([RoundedLayer(quantizer.roundings(index, "cross")) for index in layers]),
    )
