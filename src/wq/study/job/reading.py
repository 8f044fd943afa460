"""What a job reads beside transcribing: the words that were said, and what the reference has written."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save

from wq.study.score import statistics
from wq.study.score.wer import UNSPACED
from wq.study.speech.datasets import Speech
from wq.study.store.results import Row
from wq.whisper.checkpoint.languages import language_code
from wq.whisper.checkpoint.model import Whisper
from wq.whisper.decoding.likelihood import Account
from wq.whisper.decoding.long_audio import Pieces

LENGTHS = "_lengths"
DIGITS = 9  # significant, of what is kept for every utterance


def spellings(text: str, language: str) -> list[str]:
    """The ways in which a model may write a reference text. One all in capitals or all in small letters says
    nothing of case and punctuation: it may also be written small, or as a sentence, with or without its full
    stop."""
    text = " ".join(text.split())
    found = [text]
    if text and text in (text.upper(), text.lower()):
        small = text.lower()
        sentence = small[0].upper() + small[1:]
        found += [small, sentence, f"{sentence}."]
    space = "" if language_code(language) in UNSPACED else " "
    return [space + each for each in dict.fromkeys(found) if each]


def texts_of(whisper: Whisper, speech: Speech, pieces: Pieces, language: str) -> list[list[list[int]]]:
    """What is said in every piece, in tokens without end of text, in all its spellings; none of an utterance
    that the model does not hear as a whole, and no more tokens than its decoder has room for."""
    texts = []
    for piece in pieces.pieces:
        utterance = speech.utterances[piece.utterance]
        is_whole = piece.end is None and utterance.duration <= whisper.window_seconds
        found = spellings(utterance.text, language) if is_whole else []
        encoded = (whisper.tokenizer.encode(text, add_special_tokens=False) for text in found)
        texts.append([tokens[: whisper.max_new_tokens] for tokens in encoded])
    return texts


def packed(accounts: Sequence[Account]) -> bytes:
    """As a safetensors file: the tensors of all pieces, one after the other, and how long each is."""
    parts = {name: [getattr(each, name) for each in accounts] for name in Account._fields}
    lengths = {f"{name}{LENGTHS}": torch.tensor([len(each) for each in parts[name]]) for name in parts}
    return save(lengths | {name: torch.cat(tensors) for name, tensors in parts.items()})


def unpacked(file: Path) -> list[Account]:
    """Raises OSError, or of what is no such file safetensors' error or KeyError."""
    tensors = load_file(file)
    fields = (tensors[name].split(tensors[f"{name}{LENGTHS}"].tolist()) for name in Account._fields)
    return [Account(*parts) for parts in zip(*fields, strict=True)]


def reading_columns(transcripts: Sequence[Row], reference: Sequence[Row] | None, **bootstrap: int) -> Row:
    """Cross entropy and divergence of the scored utterances, per token, in nats; with what the reference has
    of the same. Nothing where nothing was read."""
    scored = [n for n, row in enumerate(transcripts) if row["words"] is not None]
    rows = [transcripts[n] for n in scored]
    columns: Row = {}
    for name in ("nll", "kl"):
        sums, tokens = column(rows, name), column(rows, f"{name}_tokens").astype(int)
        read = tokens > 0
        if not read.any():
            continue
        interval = statistics.bootstrap_interval(sums[read], tokens[read], **bootstrap)
        columns |= {
            name: sums.sum() / tokens.sum(),
            f"{name}_ci_low": interval.low,
            f"{name}_ci_high": interval.high,
            f"{name}_tokens": int(tokens.sum()),
            f"utterance_{name}": sums.tolist(),
            f"utterance_{name}_tokens": tokens.tolist(),
        }
        if name == "kl":
            columns["top1_agreement"] = column(rows, "agreed").sum() / tokens.sum()
        elif reference and reference[0].get("nll") is not None:
            others = column([reference[n] for n in scored], "nll")
            change = statistics.difference(sums[read] - others[read], tokens[read], **bootstrap)
            columns |= {
                "nll_delta": change.delta,
                "nll_delta_ci_low": change.low,
                "nll_delta_ci_high": change.high,
                "nll_delta_p": change.p,
            }
    return columns


def column(rows: Sequence[Row], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows], float)
