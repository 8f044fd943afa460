"""The decoder's step as a CUDA graph: a hundred kernels of a few microseconds, started by one call.

A graph repeats the same operations on the same memory. So the position is a tensor, every step attends to all
positions with those to come masked, and keys and values stay where they are for all batches, which can then
use the graphs of those before them. A graph is for a power of two of rows; what its other rows compute is not
looked at.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from wq.whisper.decoding.greedy import Choice, Rules, attend, feed_forward, keys_values
from wq.whisper.decoding.kv_cache import KeysValues, KVQuantizer, empty_caches

# Before a capture, as libraries set themselves up in the first calls
WARM_UP = 2
Operations = Callable[[], tuple[Tensor, Tensor]]


def can_capture(model: WhisperForConditionalGeneration, kv_cache: KVQuantizer | None = None) -> bool:
    """Whether a step is always the same operations: on CUDA, with nothing rounded or watched between them."""
    modules: Any = (*model.model.decoder.modules(), model.proj_out)
    has_hooks = any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    return model.device.type == "cuda" and kv_cache is None and not has_hooks


def capture(operations: Operations) -> Operations:
    """The operations as one CUDA graph, in the memory of this first run.

    Raises RuntimeError where it cannot be captured or gives other results.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            expected = operations()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = operations()

    def replay() -> tuple[Tensor, Tensor]:
        graph.replay()
        return results

    if not all(map(torch.equal, replay(), expected)):
        raise RuntimeError("replaying a step gives another result")
    return replay


class CapturedSteps:
    """`greedy.Steps` for batches of at most so many rows.

    Captured where they first come up, one graph for each power of two of rows. What cannot be captured is
    computed without, and a warning says so.
    """

    def __init__(
        self,
        model: WhisperForConditionalGeneration,
        rules: Rules,
        rows: int,
        capture: Callable[[Operations], Operations] = capture,
    ) -> None:
        self.decoder: Any = model.model.decoder
        self.choose, self.capture = Choice(model, rules), capture
        positions = len(rules.prompt) + rules.limit
        self.audio = empty_caches(self.decoder, "cross", rows, model.config.max_source_positions)
        self.text = empty_caches(self.decoder, "self", rows, positions)
        for cache in (*self.audio, *self.text):  # what is masked must be finite too
            cache.keys.zero_()
            cache.values.zero_()
        # made before, as numbers cannot be brought to the device within a graph
        infinite = torch.full((positions, positions), float("-inf"), dtype=model.dtype, device=model.device)
        self.masks = infinite.triu_(1)
        self.position = torch.zeros(1, dtype=torch.long, device=model.device)
        self.tokens = torch.zeros(rows, 1, dtype=torch.long, device=model.device)
        self.graphs: dict[int, Operations] = {}

    def memory(self, rows: int) -> tuple[list[KeysValues], list[KeysValues]]:
        audio, text = (
            [KeysValues(cache.keys[:rows], cache.values[:rows]) for cache in caches]
            for caches in (self.audio, self.text)
        )
        return audio, text

    def __call__(self, tokens: Sequence[int], position: int) -> tuple[Tensor, Tensor]:
        count = len(tokens)
        rows = min(1 << (count - 1).bit_length(), len(self.tokens))
        self.tokens[:count] = torch.tensor(tokens, device=self.tokens.device)[:, None]
        self.position.fill_(position)
        with torch.cuda.device_of(self.position):
            if rows not in self.graphs:
                self.graphs[rows] = self._captured(rows)
            largest, chosen = self.graphs[rows]()
        return largest[:count], chosen[:count]

    def _captured(self, rows: int) -> Operations:
        def operations() -> tuple[Tensor, Tensor]:
            return self._step(rows)

        try:
            return self.capture(operations)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            warnings.warn(
                f"a decoder's step is not captured as a graph ({reason}); going on without", stacklevel=2
            )
            self.capture = lambda operations: operations
            return operations

    def _step(self, rows: int) -> tuple[Tensor, Tensor]:
        """For the first rows of the memory, at the position and after the tokens that are there."""
        decoder = self.decoder
        x = decoder.embed_tokens(self.tokens[:rows]) + decoder.embed_positions.weight[self.position]
        mask = self.masks[self.position]
        for layer, text, audio in zip(decoder.layers, self.text, self.audio, strict=True):
            y = layer.self_attn_layer_norm(x)
            stored = text.keys[:rows], text.values[:rows]
            for cache, new in zip(stored, keys_values(y, layer.self_attn), strict=True):
                cache.index_copy_(2, self.position, new)
            x += attend(y, layer.self_attn, *stored, mask=mask)
            y = layer.encoder_attn_layer_norm(x)
            x += attend(y, layer.encoder_attn, audio.keys[:rows], audio.values[:rows])
            x += feed_forward(x, layer)
        return self.choose.best(x[:, -1], 1)
