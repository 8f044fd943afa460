"""From audio to the encoder's states: computed, or kept from an earlier transcription."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from wq.whisper.checkpoint.model import Whisper
from wq.whisper.decoding.features import log_mel, with_silence, without_silence
from wq.whisper.decoding.greedy import Place, encode_rows, rows_at_once
from wq.whisper.decoding.row_cache import CachedRows, RowCache

SAMPLING_RATE = 16_000


@dataclass
class EncoderStates:
    """The utterances read(i), mono float32 at 16 kHz, as the encoder hears them.

    samples   of the audios heard so far, by i; those beyond the window are counted, but not heard
    seconds   that the features and the encoder have taken; None where they were not computed for all
    """

    whisper: Whisper
    read: Callable[[int], np.ndarray]
    place: Place
    cached: CachedRows | None = None
    samples: dict[int, int] = field(default_factory=dict)
    seconds: dict[str, float | None] = field(default_factory=lambda: {"features": 0.0, "encode": 0.0})

    @property
    def window(self) -> int:
        """In samples."""
        return round(self.whisper.window_seconds * SAMPLING_RATE)

    def states(self, indices: Sequence[int]) -> Iterator[Tensor]:
        """[some rows, frames, model size] of these utterances, as of `encode_rows`, and with its errors."""
        cache = self.cached and self.cached.states
        if cache and cache.holds(indices):
            self.seconds = dict.fromkeys(self.seconds)
            self.samples |= {index: cache.samples[index] for index in indices}
            yield from self._cached_states(cache, indices)
            return
        features = self.features(indices)
        encoded = encode_rows(self.whisper.model, features, self.place)
        row = 0
        while True:
            with self._clock("encode"):
                few = next(encoded, None)
            if few is None:
                return
            self._keep(cache, indices[row:], few)
            row += len(few)
            yield few

    def _cached_states(self, cache: RowCache, indices: Sequence[int]) -> Iterator[Tensor]:
        """As many rows at a time as `encode_rows` gives."""
        device, at_once = self.whisper.model.device, rows_at_once(self.whisper.model, len(indices))
        for row in range(0, len(indices), at_once):
            yield torch.stack([cache.read(index) for index in indices[row : row + at_once]]).to(device)

    def features(self, indices: Sequence[int]) -> Tensor:
        """[rows, mels, frames] of these utterances."""
        model, cache = self.whisper.model, self.cached and self.cached.features
        if cache and cache.holds(indices):
            self.seconds["features"] = None
            self.samples |= {index: cache.samples[index] for index in indices}
            frames = 2 * model.config.max_source_positions
            features = torch.stack([with_silence(cache.read(index), frames) for index in indices])
        else:
            audios = [self.read(index) for index in indices]
            self.samples |= {index: len(audio) for index, audio in zip(indices, audios, strict=True)}
            heard = [audio[: self.window] for audio in audios]
            with self._clock("features"):
                features = log_mel(self.whisper.feature_extractor, heard)
            self._keep(cache, indices, map(without_silence, features))
        return features.to(model.device, model.dtype)

    def _keep(self, cache: RowCache | None, indices: Sequence[int], rows: Iterable[Tensor]) -> None:
        if self.cached and cache is not None:
            for index, row in zip(indices, rows, strict=False):
                self.cached.caches.keep(cache, index, row, self.samples[index])

    @contextmanager
    def _clock(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        before = self.seconds[stage]
        self.seconds[stage] = None if before is None else before + time.perf_counter() - started
