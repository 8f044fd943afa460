"""Statistics of what the linear layers read, from the model's own transcription of calibration speech.

Whatever is kept has a fixed size and does not depend on the order of the utterances or on how they are
batched: maxima and counts are merged, and the sample holds the rows whose utterance and position hash lowest.

Most frames of a window are the silence behind a short utterance. Counts and sample leave them out, so that
they are of speech. The extremes are of all frames, as the model reads them all: what a range leaves out
saturates.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wq.whisper.checkpoint.model import Whisper
from wq.whisper.decoding.decode import transcribe
from wq.whisper.decoding.finite import check_finite
from wq.whisper.decoding.greedy import Place
from wq.whisper.layers.layers import Layer, walk

# Magnitudes are counted by their float32 bits: exponent and the first nine bits of the mantissa, so that a
# bin is at most 0.2 % wide, whatever the values' range, and nothing need be known of it beforehand.
MANTISSA_BITS = 9
DROPPED_BITS = 23 - MANTISSA_BITS
EXPONENTS = (-20, 17)  # smaller magnitudes are counted in the first bin, with zero; larger ones in the last
FIRST_BIN = (EXPONENTS[0] + 127) << MANTISSA_BITS
BINS = (EXPONENTS[1] - EXPONENTS[0]) << MANTISSA_BITS

SAMPLE_ROWS = 512


@dataclass(frozen=True)
class Observed:
    """What was seen of the inputs [..., K] of a linear layer.

    amin, amax   smallest and largest value, zero included
    channel_max  float32 [K], the largest magnitude of every channel

    and of the vectors that stand for audio or text, not for the silence behind an audio:

    tokens       how many there are
    negative, positive   int64 [BINS], how many values of either sign lie in the bins of `bin_edges`
    token_max    int64 [BINS], the same for the largest magnitude of every vector
    sample       float32 [n, K], at most SAMPLE_ROWS vectors, drawn at random
    output_amax  the largest magnitude of the layer's outputs
    moment       float32 [K, K], the sum of x x' over these vectors, where it was asked for
    """

    tokens: int
    amin: float
    amax: float
    channel_max: Tensor
    negative: Tensor
    positive: Tensor
    token_max: Tensor
    sample: Tensor
    output_amax: float
    moment: Tensor | None = None

    @property
    def histogram(self) -> Tensor:
        """Of the magnitudes."""
        return self.negative + self.positive


def bin_edges() -> Tensor:
    """float64 [BINS + 1]: bin i holds magnitudes from edge i up to edge i + 1."""
    bits = torch.arange(FIRST_BIN, FIRST_BIN + BINS + 1, dtype=torch.int32) << DROPPED_BITS
    edges = bits.view(torch.float32).double()
    edges[0] = 0.0
    return edges


def bins_of(x: Tensor) -> Tensor:
    """The bin of each value's magnitude."""
    bits = (x.view(torch.int32) & 0x7FFFFFFF) >> DROPPED_BITS
    return bits.sub_(FIRST_BIN).clamp_(0, BINS - 1)


class Observer:
    """Gathers the statistics of one tensor that some layers read one after the other.

    frames       of audio, by utterance, where the tensor has a position for each; beyond them is silence
    has_moment   whether to sum second moments: K^2 numbers of float64
    """

    def __init__(
        self,
        name: str,
        place: Place,
        frames: Mapping[int, int] | None = None,
        has_moment: bool = False,
    ) -> None:
        self.name, self.place, self.frames, self.has_moment = name, place, frames, has_moment
        self.moment: Tensor | None = None
        self.tokens = 0
        self.low = self.high = self.signed = self.token_max = self.sample = torch.zeros(0)
        self.keys = np.empty(0, np.uint64)

    def __call__(self, module: Any, inputs: tuple[Tensor, ...]) -> None:
        utterances = self.place.utterances
        given = inputs[0].detach()[: len(utterances)]
        check_finite(given, f"the input of layer {self.name}")
        positions, columns = given.shape[-2:]
        self.positions = positions
        x = given.to(torch.float32).reshape(-1, columns).contiguous()
        low, high = x.amin(0), x.amax(0)
        first = self.place.position
        keys = row_keys(utterances, range(first, first + positions))
        if self.frames is not None:
            lengths = np.array([self.frames[utterance] for utterance in utterances])
            is_audio = (np.arange(positions) < lengths[:, None]).ravel()
            x, keys = x[torch.from_numpy(is_audio).to(x.device)], keys[is_audio]
        if self.has_moment:
            self._add_moments(x, utterances)
        signed = torch.bincount((bins_of(x) + BINS * (x >= 0)).flatten(), minlength=2 * BINS)
        token_max = torch.bincount(bins_of(x.abs().amax(1)), minlength=BINS)
        if self.tokens == 0:
            self.low, self.high, self.signed, self.token_max = low, high, signed, token_max
        else:
            self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
            self.signed += signed
            self.token_max += token_max
        self.tokens += len(x)
        self._draw(x, keys)

    def _add_moments(self, x: Tensor, utterances: Sequence[int]) -> None:
        """In float64, which tells no batches apart. The many rows of an audio are multiplied in float32, each
        utterance by itself: its product is then the same whatever its batch mates are."""
        if self.moment is None:
            self.moment = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
        if self.frames is None:
            rows = x.double()
            self.moment += rows.T @ rows
            return
        for rows in x.split([min(self.frames[each], self.positions) for each in utterances]):
            self.moment += rows.T @ rows

    def _draw(self, x: Tensor, keys: np.ndarray) -> None:
        """Keep the rows with the lowest keys."""
        if len(self.keys) == SAMPLE_ROWS:
            better = np.flatnonzero(keys < self.keys[-1])
            if not len(better):
                return
            x, keys = x[better], keys[better]
        rows = torch.cat([self.sample, x.cpu()]) if len(self.keys) else x.cpu()
        keys = np.concatenate([self.keys, keys])
        best = np.argsort(keys, kind="stable")[:SAMPLE_ROWS]
        self.keys, self.sample = keys[best], rows[best]

    def observed(self, output_amax: float) -> Observed:
        assert self.tokens, f"layer {self.name} was never called"
        return Observed(
            tokens=self.tokens,
            amin=min(self.low.min().item(), 0.0),
            amax=max(self.high.max().item(), 0.0),
            channel_max=torch.maximum(-self.low, self.high).cpu(),
            negative=self.signed[:BINS].cpu(),
            positive=self.signed[BINS:].cpu(),
            token_max=self.token_max.cpu(),
            sample=self.sample,
            output_amax=output_amax,
            moment=None if self.moment is None else self.moment.float().cpu(),
        )


def row_keys(utterances: Sequence[int], positions: range) -> np.ndarray:
    """A number for every pair of utterance and position, uint64: SplitMix64's mixing (Steele et al. 2014), so
    that the lowest keys are a random draw of the pairs, whatever their order."""
    pairs = (np.array(utterances, np.uint64)[:, None] << np.uint64(32)) + np.array(positions, np.uint64)
    with np.errstate(over="ignore"):
        z = (pairs.ravel() + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class OutputRange:
    """The largest magnitude of a layer's outputs."""

    def __init__(self, place: Place) -> None:
        self.place, self.amax = place, None

    def __call__(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        largest = output[: len(self.place.rows)].abs().max().float()
        self.amax = largest if self.amax is None else torch.maximum(self.amax, largest)


def observe(
    whisper: Whisper,
    read: Callable[[int], np.ndarray],
    count: int,
    *,
    batch_size: int,
    language: str,
    max_new_tokens: int | None = None,
    layers: Sequence[Layer] | None = None,
    moments: bool = False,
) -> dict[str, Observed]:
    """What the linear layers read while the model transcribes read(i), i in 0..count-1, by layer name.

    layers    those to look at; None is all linear ones. Layers that read one tensor share its statistics.
    moments   whether second moments are among them

    The weights are used as they are at the moment. Errors are those of `transcribe`.
    """
    place, frames = Place(), {}
    samples_per_frame = 2 * whisper.feature_extractor.hop_length  # the second convolution's stride is 2

    def heard(index: int) -> np.ndarray:
        audio = read(index)
        frames[index] = max(math.ceil(len(audio) / samples_per_frame), 1)
        return audio

    chosen = [layer for layer in layers or walk(whisper.model) if layer.is_linear]
    sources: dict[str, Observer] = {}
    outputs: dict[str, OutputRange] = {}
    with hooks() as add:
        for layer in chosen:
            module = whisper.model.get_submodule(layer.name)
            if layer.source not in sources:
                audio = frames if layer.hears else None
                sources[layer.source] = Observer(layer.name, place, audio, moments)
                add(module.register_forward_pre_hook(sources[layer.source]))
            outputs[layer.name] = OutputRange(place)
            add(module.register_forward_hook(outputs[layer.name]))
        transcribe(
            whisper,
            heard,
            range(count),
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            language=language,
            place=place,
            task="calibrate",
        )
    found = {source: observer.observed(0.0) for source, observer in sources.items()}
    return {
        layer.name: replace(found[layer.source], output_amax=float(outputs[layer.name].amax or 0.0))
        for layer in chosen
    }


@contextmanager
def hooks() -> Iterator[Callable[[Any], None]]:
    """What is added inside is removed afterwards."""
    handles: list[Any] = []
    try:
        yield handles.append
    finally:
        for handle in handles:
            handle.remove()
