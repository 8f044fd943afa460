"""Audio longer than the model's window, in pieces that fit into it.

The rule of `long_audio=chunk`: as long as what is left does not fit into the window, a piece of it ends
within the last fifth of the window, in the middle of the quietest 100 ms there (the least energy; of equally
quiet ones the last). Every piece is transcribed on its own, and the texts are joined by a space. Pieces
follow from the audio alone, so a transcript depends neither on the batch nor on the order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from wq.whisper.decoding.decode import SAMPLING_RATE, Transcript, Transcription
from wq.whisper.decoding.likelihood import NOTHING_READ

SEARCHED = 1 / 5  # of the window, at its end
QUIET = SAMPLING_RATE // 10

Read = Callable[[int], np.ndarray]


def ends_of_pieces(audio: np.ndarray, window: int) -> list[int]:
    """Where the pieces of audio [samples] end, none of them longer than `window` samples.

    The window must hold five times the 100 ms that are searched for.
    """
    ends, start = [], 0
    while len(audio) - start > window:
        first = start + window - round(window * SEARCHED)
        searched = audio[first : start + window].astype(np.float64)
        energy = np.concatenate([[0.0], np.cumsum(searched**2)])
        quiet = energy[QUIET:] - energy[:-QUIET]
        start = first + len(quiet) - 1 - int(np.argmin(quiet[::-1])) + QUIET // 2
        ends.append(start)
    return [*ends, len(audio)]


@dataclass(frozen=True)
class Piece:
    """Samples [start, end) of an utterance; without an end, all of it."""

    utterance: int
    start: int = 0
    end: int | None = None


@dataclass(frozen=True)
class Pieces:
    """Utterances in pieces, for `transcribe` to take them as utterances: `read` the piece of a number,
    `order` the longest first."""

    pieces: list[Piece]
    read: Read
    order: list[int]

    def drafts(self, tokens: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        """Of every piece, from those of the utterances; none where one was cut, whose tokens do not say
        where."""
        return [tokens[piece.utterance] if piece.end is None else () for piece in self.pieces]

    def joined(self, transcription: Transcription) -> Transcription:
        """The transcripts of the utterances from those of their pieces; times are those of all pieces."""
        parts: dict[int, list[Transcript]] = {}
        for piece, transcript in zip(self.pieces, transcription.transcripts, strict=True):
            parts.setdefault(piece.utterance, []).append(transcript)
        return replace(transcription, transcripts=[join(parts[index]) for index in sorted(parts)])


def join(parts: Sequence[Transcript]) -> Transcript:
    """One transcript of those of an utterance's pieces. `capped` where any of them is."""
    if len(parts) == 1:
        return parts[0]
    return Transcript(
        text=" ".join(part.text for part in parts if part.text),
        tokens=tuple(token for part in parts for token in part.tokens),
        capped=any(part.capped for part in parts),
        duration=sum(part.duration for part in parts),
        cut_seconds=sum(part.cut_seconds for part in parts),
        reading=sum((part.reading for part in parts), NOTHING_READ),
    )


def in_pieces(read: Read, durations: Sequence[float], window_seconds: float) -> Pieces:
    """The utterances read(i), of so many seconds each, in pieces that fit into the window,
    which may be endless.

    Only those that do not fit into it are read for this.
    """
    read_once = lru_cache(maxsize=1)(read)  # the pieces of an utterance are mostly read one after the other
    pieces: list[Piece] = []
    lengths: list[float] = []
    for index, seconds in enumerate(durations):
        if seconds <= window_seconds:
            pieces.append(Piece(index))
            lengths.append(seconds * SAMPLING_RATE)
            continue
        ends = ends_of_pieces(read_once(index), round(window_seconds * SAMPLING_RATE))
        for start, end in zip([0, *ends], ends, strict=False):
            pieces.append(Piece(index, start, end))
            lengths.append(end - start)

    def read_piece(number: int) -> np.ndarray:
        piece = pieces[number]
        return read_once(piece.utterance)[piece.start : piece.end]

    order = np.argsort(-np.asarray(lengths), kind="stable").tolist()
    return Pieces(pieces, read_piece, order)
