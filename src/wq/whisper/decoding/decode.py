"""Greedy transcription in batches.

The decoding is the checkpoint's own, short form, without timestamps: prompt, suppressed tokens and end of
text as its generation config says, token for token what transformers' `generate` gives. An utterance's
transcript depends on nothing but its audio: features are always padded to the whole window (zero padding in
mel space is not silence), so batch mates and order do not matter, but for float32 near-ties.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from wq.numerics.fake_quant import NonFiniteError
from wq.whisper.checkpoint.model import Whisper
from wq.whisper.decoding.captured import CapturedSteps, can_capture
from wq.whisper.decoding.drafting import can_draft, count_accepted, follow
from wq.whisper.decoding.encoder_states import SAMPLING_RATE, EncoderStates
from wq.whisper.decoding.finite import NonFiniteRow
from wq.whisper.decoding.greedy import Batch, Place, Rules, decoding_rules, has_ended, write
from wq.whisper.decoding.kv_cache import KVQuantizer
from wq.whisper.decoding.likelihood import NOTHING_READ, Reading, Script
from wq.whisper.decoding.onednn import fast_products, packed_weights
from wq.whisper.decoding.row_cache import CachedRows

# Of drafted tokens, so far: with fewer, rows that go on in small batches cost more than drafts save. Measured
# on the shipped model, where 0.93 (int4) breaks even
MIN_ACCEPTED = 0.95


@dataclass(frozen=True)
class Transcript:
    """What the model wrote for one utterance: the text as it came, its tokens without prompt and end, and
    whether it was cut at max_new_tokens; the seconds of audio it is of, and the seconds that did not fit into
    the model's window; and what was read beside it."""

    text: str
    tokens: tuple[int, ...]
    capped: bool
    duration: float
    cut_seconds: float
    reading: Reading = NOTHING_READ


@dataclass
class Transcription:
    """The transcripts in the order asked for, and where the time went, in seconds: None where features or the
    encoder's states were not computed for all utterances, but kept from an earlier transcription. And of
    drafts, how many tokens those had, how many of them the model wrote too before the first that differs, and
    how many utterances were decoded with their help. Reading given texts is not part of transcribing."""

    transcripts: list[Transcript] = field(default_factory=list)
    features_seconds: float | None = 0.0
    encode_seconds: float | None = 0.0
    decode_seconds: float = 0.0
    reading_seconds: float = 0.0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    drafted_utterances: int = 0

    @property
    def audio_seconds(self) -> float:
        return sum(transcript.duration - transcript.cut_seconds for transcript in self.transcripts)

    @property
    def seconds(self) -> float | None:
        if self.features_seconds is None or self.encode_seconds is None:
            return None
        return self.features_seconds + self.encode_seconds + self.decode_seconds

    @property
    def rtfx(self) -> float | None:
        """Seconds of audio transcribed per second, features included, reading of audio files not; None where
        not all of it was measured, or drafts have saved some of it."""
        return self.audio_seconds / self.seconds if self.seconds and not self.drafted_utterances else None

    @property
    def draft_acceptance(self) -> float | None:
        """The share of drafted tokens that were accepted; None where there were no drafts."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else None

    @property
    def capped(self) -> int:
        return sum(transcript.capped for transcript in self.transcripts)

    @property
    def cut(self) -> int:
        """Utterances longer than the model's window, of which only the beginning was transcribed."""
        return sum(transcript.cut_seconds > 0 for transcript in self.transcripts)


class NonFiniteUtterance(NonFiniteError):
    """NaN or Inf came up while the utterance of this index was transcribed."""

    def __init__(self, index: int, error: NonFiniteRow) -> None:
        super().__init__(str(error))
        self.index = index


def token_limit(whisper: Whisper, max_new_tokens: int | None) -> int:
    """The longest transcript in tokens: as asked, or half of the decoder's positions as in OpenAI's decoding.

    Raises ValueError where the decoder has no room for so many.
    """
    limit = max_new_tokens or whisper.model.config.max_target_positions // 2
    if limit > whisper.max_new_tokens:
        raise ValueError(
            f"max_new_tokens={limit} does not fit beside the prompt; this decoder has room for "
            f"{whisper.max_new_tokens}: give fewer, or null"
        )
    return limit


@torch.inference_mode()
def transcribe(
    whisper: Whisper,
    read: Callable[[int], np.ndarray],
    order: Sequence[int],
    *,
    batch_size: int,
    max_new_tokens: int | None = None,
    language: str = "en",
    kv_cache: KVQuantizer | None = None,
    drafts: Sequence[Sequence[int]] | None = None,
    script: Script | None = None,
    cached: CachedRows | None = None,
    place: Place | None = None,
    task: str = "transcribe",
) -> Transcription:
    """Transcribe the utterances read(i), mono float32 at 16 kHz, for i in 0..len(order)-1, in this order.

    Order is a permutation, best from long to short so that a batch is decoded for no longer than it must; the
    transcripts come back in the order of i. Audio beyond the model's window is cut off and counted. The
    language is for multilingual checkpoints. With kv_cache, keys and values are rounded as they are stored.
    `drafts` are what a similar model wrote, in tokens as a `Transcript` has them: where `can_draft`, and as
    long as most of them hold, they save time; they never change a transcript. `script` is what is to be read
    beside them. `cached` are features and
    states that need not be computed again, and where those computed here are put. `place` is kept up to date;
    `task` is the progress bar's.

    Raises ValueError where max_new_tokens does not fit, or the checkpoint does not know the language;
    NonFiniteUtterance where NaN or Inf comes up in what the model computes.
    """
    place = place or Place()
    model = whisper.model
    limit = token_limit(whisper, max_new_tokens)
    rules = decoding_rules(model, language if whisper.is_multilingual else None, limit)
    encoder = EncoderStates(whisper, read, place, cached)
    is_draftable = can_draft(model, kv_cache)
    rows = min(batch_size, len(order))
    captured = CapturedSteps(model, rules, rows) if can_capture(model, kv_cache) and rows else None
    done: dict[int, Transcript] = {}
    result = Transcription()
    # disable=None: silent where there is no terminal, as under Slurm and CI
    with (
        packed_weights(model.model.decoder, model.proj_out),
        tqdm(total=len(order), unit="utt", desc=task, disable=None, mininterval=0.5, leave=False) as progress,
    ):
        for first in range(0, len(order), batch_size):
            indices = order[first : first + batch_size]
            if drafts and is_draftable:
                indices = sorted(indices, key=lambda index: -len(drafts[index]))
            place.batch = indices
            states = Clocked(encoder.states(indices))
            started = time.perf_counter()
            is_drafted = result.accepted_tokens >= MIN_ACCEPTED * result.drafted_tokens
            given = [drafts[index] for index in indices] if drafts and is_draftable and is_drafted else None
            steps = None if given else captured
            try:
                with fast_products(model.model.decoder, model.proj_out):
                    positions = len(rules.prompt) + limit
                    count, keeps_audio = len(indices), script is not None
                    batch = Batch(model, states, count, positions, kv_cache, place, steps, keeps_audio)
                    if given:
                        rows = follow(model, batch, given, rules, place)
                        result.drafted_utterances += len(rows)
                    else:
                        rows = write(model, batch, rules, place, steps)
                    ended = time.perf_counter()
                    readings = [NOTHING_READ] * len(rows)
                    if script:
                        readings = script.read(model, batch, indices, rows, rules, place)
            except NonFiniteRow as error:
                raise NonFiniteUtterance(place.utterances[error.row], error) from None
            result.decode_seconds += ended - started - states.seconds
            result.reading_seconds += time.perf_counter() - ended
            for index, row, reading in zip(indices, rows, readings, strict=True):
                if drafts:
                    result.drafted_tokens += len(drafts[index])
                    result.accepted_tokens += count_accepted(drafts[index], row)
                heard = encoder.samples[index], encoder.window
                done[index] = replace(as_transcript(whisper, row, rules, *heard), reading=reading)
            progress.update(len(indices))
    result.transcripts = [done[index] for index in range(len(order))]
    result.features_seconds, result.encode_seconds = encoder.seconds["features"], encoder.seconds["encode"]
    return result


class Clocked(Iterator[Tensor]):
    """The same tensors, and the seconds that it has taken to get them."""

    def __init__(self, tensors: Iterator[Tensor]) -> None:
        self.tensors, self.seconds = tensors, 0.0

    def __next__(self) -> Tensor:
        started = time.perf_counter()
        try:
            return next(self.tensors)
        finally:
            self.seconds += time.perf_counter() - started


def as_transcript(whisper: Whisper, row: list[int], rules: Rules, samples: int, window: int) -> Transcript:
    """A row of generated ids, which ends in end of text unless it was cut at the limit."""
    capped = not has_ended(row, rules)
    tokens = row if capped else row[:-1]
    text = whisper.tokenizer.decode(tokens, skip_special_tokens=True)
    return Transcript(
        text=str(text).strip(),
        tokens=tuple(tokens),
        capped=capped,
        duration=samples / SAMPLING_RATE,
        cut_seconds=max(samples - window, 0) / SAMPLING_RATE,
    )
