"""A model that hears a shorter window than its own: fewer frames, and the positions of the first of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import Any

from torch import nn

from wq.whisper.checkpoint.geometry import POSITIONS_PER_SECOND
from wq.whisper.checkpoint.model import Whisper


@contextmanager
def windowed(whisper: Whisper, seconds: int | None) -> Iterator[Whisper]:
    """The same model with a window of so many seconds, at most its own; None is its own, and changes nothing.

    Everything that goes by the checkpoint's number of positions goes by the shorter one inside: features,
    encoder, cross-attention and its cache, transformers' `generate` too. Weights are shared, and outside
    everything is as it was. Raises ValueError where the model's own window is shorter.
    """
    if seconds is None:
        yield whisper
        return
    encoder: Any = whisper.model.model.encoder
    whole, own, positions = encoder.embed_positions, whisper.window_seconds, seconds * POSITIONS_PER_SECOND
    if not 0 < seconds <= own:
        raise ValueError(f"window={seconds} is not within the model's own {own:g} s; give less, or full")
    extractor: Any = copy(whisper.feature_extractor)
    extractor.chunk_length, extractor.nb_max_frames = seconds, 2 * positions
    extractor.n_samples = seconds * extractor.sampling_rate
    encoder.embed_positions = nn.Embedding.from_pretrained(whole.weight[:positions])
    encoder.config.max_source_positions = positions
    try:
        yield replace(whisper, feature_extractor=extractor)
    finally:
        encoder.embed_positions = whole
        encoder.config.max_source_positions = whole.num_embeddings
