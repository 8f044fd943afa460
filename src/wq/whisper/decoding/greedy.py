"""Greedy decoding of one batch, short form and without timestamps, by the model's own modules.

The tokens are those of transformers' `generate` with one beam. What makes it fast: no bookkeeping between the
modules, keys and values written into memory that is there already, rows that have ended leave the batch, and
on a CPU the encoder takes a few rows at a time, so that what it computes stays in the processor's cache.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import WhisperForConditionalGeneration

from wq.whisper.checkpoint.generation import ends_of
from wq.whisper.checkpoint.languages import find_code
from wq.whisper.decoding import onednn
from wq.whisper.decoding.finite import check_finite
from wq.whisper.decoding.kv_cache import KeysValues, KVQuantizer, empty_caches
from wq.whisper.decoding.onednn import fast_products

# Of encoder input at a time on a CPU: enough for an efficient matrix product, few enough for its cache
FRAMES_AT_ONCE = 1000
# A decoder's step, or its prompt
FEW_QUERIES = 8


@dataclass(frozen=True)
class Rules:
    """What decoding starts from, may not say, and ends with: token ids.

    `suppressed` are never chosen, `suppressed_first` not as the first token of the text. At most `limit`
    tokens are written, the last of which is `end`, or another that ends a text as well.
    """

    prompt: tuple[int, ...]
    suppressed: tuple[int, ...]
    suppressed_first: tuple[int, ...]
    end: int
    limit: int
    other_ends: tuple[int, ...] = ()


def decoding_rules(model: WhisperForConditionalGeneration, language: str | None, limit: int) -> Rules:
    """The rules of the checkpoint's generation config.

    `language` is a code or an English name; None where the checkpoint is English-only.

    Raises ValueError for a language that this checkpoint does not know.
    """
    settings: Any = model.generation_config
    prompt = [settings.decoder_start_token_id]
    if language is not None:
        token = f"<|{find_code(language)}|>"
        if token not in settings.lang_to_id:
            known = ", ".join(sorted(known[2:-2] for known in settings.lang_to_id))
            raise ValueError(f"language={language} is not known to this checkpoint; choose among {known}")
        prompt += [settings.lang_to_id[token], settings.task_to_id["transcribe"]]
    # A checkpoint with a smaller vocabulary may still name tokens of the original one
    vocabulary = range(model.config.vocab_size)
    end, *others = ends_of(settings)
    return Rules(
        prompt=(*prompt, settings.no_timestamps_token_id),
        suppressed=tuple(token for token in settings.suppress_tokens or () if token in vocabulary),
        suppressed_first=tuple(
            token for token in settings.begin_suppress_tokens or () if token in vocabulary
        ),
        end=end,
        limit=limit,
        other_ends=tuple(others),
    )


@dataclass
class Place:
    """Where the computation is, for those who look on: the utterances of the batch by their numbers, which of
    its rows the tensors hold now, and the position of the first of their frames or tokens."""

    batch: Sequence[int] = ()
    rows: Sequence[int] = ()
    position: int = 0

    @property
    def utterances(self) -> list[int]:
        return [self.batch[row] for row in self.rows]


class Steps(Protocol):
    """The decoder's steps otherwise than by `Batch.advance`, with memory of their own for keys and values."""

    def memory(self, rows: int) -> tuple[list[KeysValues], list[KeysValues]]:
        """For the audio and the text of so many rows, layer by layer."""
        ...

    def __call__(self, tokens: Sequence[int], position: int) -> tuple[Tensor, Tensor]:
        """The largest logit and its token, each [rows], after a token of each of the first rows there."""
        ...


def heads(x: Tensor, attention: Any) -> Tensor:
    """[rows, positions, model size] as [rows, heads, positions, head size]."""
    return x.view(x.shape[0], x.shape[1], attention.num_heads, attention.head_dim).transpose(1, 2)


def keys_values(x: Tensor, attention: Any) -> tuple[Tensor, Tensor]:
    return heads(attention.k_proj(x), attention), heads(attention.v_proj(x), attention)


def attend(
    x: Tensor,
    attention: Any,
    keys: Tensor,
    values: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    """The attention's output for the inputs x of its queries; the mask [keys] is added to their weights."""
    queries = heads(attention.q_proj(x), attention)
    if x.device.type == "cpu" and x.shape[1] <= FEW_QUERIES:
        mixed = mix_few(queries, keys, values, attention.scaling, causal=causal, mask=mask)
    elif onednn.suits_attention(queries) and not causal and mask is None:
        mixed = onednn.attention(queries, keys, values, attention.scaling)
    else:
        mixed = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=causal, scale=attention.scaling
        )
    return attention.out_proj(mixed.transpose(1, 2).reshape(x.shape))


def mix_few(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    """`scaled_dot_product_attention` with the same bits for a row whatever other rows there are: in torch's
    own for few queries they depend on the thread that computes it."""
    weights = (queries * scale) @ keys.mT
    if mask is not None:
        weights += mask
    if causal:
        weights += torch.full(weights.shape[-2:], float("-inf")).triu_(1)
    return torch.softmax(weights, -1) @ values


def feed_forward(x: Tensor, layer: Any) -> Tensor:
    return layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(x))))


def encode(encoder: Any, features: Tensor) -> Tensor:
    """Log-mel features [rows, mels, frames] to states [rows, frames / 2, model size]."""
    x = features
    for convolution in (encoder.conv1, encoder.conv2):
        x = F.gelu(onednn.convolve(x, convolution))
    x = x.transpose(1, 2).contiguous()
    x += encoder.embed_positions.weight
    for layer in encoder.layers:
        y = layer.self_attn_layer_norm(x)
        x += attend(y, layer.self_attn, *keys_values(y, layer.self_attn))
        x += feed_forward(x, layer)
    return encoder.layer_norm(x)


def rows_at_once(model: WhisperForConditionalGeneration, rows: int) -> int:
    """How many of these rows the encoder takes together."""
    if model.device.type != "cpu":
        return rows
    return max(FRAMES_AT_ONCE // model.config.max_source_positions, 1)


def encode_rows(
    model: WhisperForConditionalGeneration, features: Tensor, place: Place | None = None
) -> Iterator[Tensor]:
    """The encoder's states [some rows, frames, model size] of log-mel features [rows, mels, 2 frames].

    On a CPU as many rows come at a time as stay in its cache.

    NaN or Inf in them raises NonFiniteRow, whose row is one of place's.
    """
    encoder, rows = model.model.encoder, len(features)
    at_once = rows_at_once(model, rows)
    for row in range(0, rows, at_once):
        if place:
            place.rows, place.position = range(row, min(row + at_once, rows)), 0
        with fast_products(encoder) if onednn.encoder_library() == "onednn" else nullcontext():
            states = encode(encoder, features[row : row + at_once])
        check_finite(states, "the encoder's states")
        yield states


class Batch:
    """Rows that are decoded together: the keys and values of their audio and of their text so far.

    Rows that are let go leave its memory; with `keeps_audio` their audio stays, for `alone`.
    """

    def __init__(
        self,
        model: WhisperForConditionalGeneration,
        states: Iterable[Tensor],
        rows: int,
        positions: int,
        kv_cache: KVQuantizer | None = None,
        place: Place | None = None,
        steps: Steps | None = None,
        keeps_audio: bool = False,
    ) -> None:
        self.decoder: Any = model.model.decoder
        self.kv_cache, self.keeps_audio = kv_cache, keeps_audio
        if steps:
            self.audio, self.text = steps.memory(rows)
        else:
            frames = model.config.max_source_positions
            self.audio = empty_caches(self.decoder, "cross", rows, frames, kv_cache)
            self.text = empty_caches(self.decoder, "self", rows, positions, kv_cache)
        row = 0
        for few in states:
            if place:
                place.rows, place.position = range(row, row + len(few)), 0
            for layer, audio in zip(self.decoder.layers, self.audio, strict=True):
                audio.store(*keys_values(few, layer.encoder_attn), first_row=row)
            row += len(few)
        self.heard = [copy(audio) for audio in self.audio]  # of all rows, in the order of:
        self.rows = list(range(rows))

    def advance(self, tokens: Tensor, position: int) -> Tensor:
        """The decoder's states [rows, n, model size], not yet normalised, after each of the tokens [rows, n]
        of the last rows of the batch.

        The first of them stands at this position.
        """
        end = position + tokens.shape[1]
        row = len(self.text[0].keys) - len(tokens)
        x = self.decoder.embed_tokens(tokens) + self.decoder.embed_positions.weight[position:end]
        for layer, text, audio in zip(self.decoder.layers, self.text, self.audio, strict=True):
            y = layer.self_attn_layer_norm(x)
            text.store(*keys_values(y, layer.self_attn), row, position)
            x += attend(y, layer.self_attn, *text.read(end, row), causal=tokens.shape[1] > 1)
            y = layer.encoder_attn_layer_norm(x)
            x += attend(y, layer.encoder_attn, *audio.read(first_row=row))
            x += feed_forward(x, layer)
        return x

    def arrange(self, rows: Sequence[int]) -> None:
        """Let all other rows go, and have these in this order."""
        count, going_on = len(rows), set(rows)
        free = iter(set(range(count)) - going_on)
        order = [
            *rows,
            *(next(free) if row in going_on else row for row in range(count, len(self.text[0].keys))),
        ]
        moved = [place for place, row in enumerate(order) if place != row]
        staying = [place for place in moved if place < count]
        for caches, places in ((self.audio, moved if self.keeps_audio else staying), (self.text, staying)):
            for cache in caches:
                cache.move([order[place] for place in places], places, count)
        self.rows[: len(order)] = [self.rows[row] for row in order]

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Let all other rows go. Returns the rows that are left in their new order.

        Only rows beyond the new end move, into places that have become free, so that little is copied.
        """
        count = len(rows)
        free = sorted(set(range(count)).difference(rows))
        moved = [row for row in rows if row >= count]
        order = list(range(count))
        for place, row in zip(free, moved, strict=True):
            order[place] = row
        self.arrange(order)
        return order

    def alone(self, row: int, texts: int, positions: int) -> "Batch":
        """This row of the batch as it began, with memory for several other texts of so many positions."""
        batch, place = copy(self), self.rows.index(row)
        batch.audio = [
            KeysValues(
                heard.keys[place].expand(texts, -1, -1, -1), heard.values[place].expand(texts, -1, -1, -1)
            )
            for heard in self.heard
        ]
        batch.text = empty_caches(self.decoder, "self", texts, positions, self.kv_cache)
        return batch


class Choice:
    """The model's choice of the next token, of those that the rules allow."""

    def __init__(self, model: WhisperForConditionalGeneration, rules: Rules) -> None:
        self.model, self.norm = model, model.model.decoder.layer_norm
        self.always, self.first = (
            torch.tensor(tokens, dtype=torch.long, device=model.device)
            for tokens in (rules.suppressed, rules.suppressed + rules.suppressed_first)
        )

    def __call__(self, x: Tensor, count: int) -> list[int]:
        """For states [rows, model size] as of `Batch.advance`, after so many tokens of text."""
        return checked(*self.best(x, count))

    def best(self, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The largest logit that is allowed, and its token, each [rows]."""
        logits = self.model.proj_out(self.norm(x))
        logits.index_fill_(1, self.always if count else self.first, float("-inf"))
        return logits.max(-1)


def checked(largest: Tensor, tokens: Tensor) -> list[int]:
    check_finite(largest[:, None], "the logits")
    return tokens.tolist()


@torch.inference_mode()
def decode_greedily(
    model: WhisperForConditionalGeneration,
    states: Iterable[Tensor],
    rows: int,
    rules: Rules,
    kv_cache: KVQuantizer | None = None,
    place: Place | None = None,
    steps: Steps | None = None,
) -> list[list[int]]:
    """The tokens of so many rows, whose encoder's states come some rows at a time, as of `encode_rows`.

    The last of a row is one of `rules`' ends, unless the row was cut at the limit. A row is decoded once:
    `generate` goes back to the audio where a model writes timestamps, although it was told to write none.
    `place` is kept up to date. NaN or Inf in what the model computes raises NonFiniteRow, whose row is one of
    place's.
    """
    place = place or Place()
    with fast_products(model.model.decoder, model.proj_out):
        batch = Batch(model, states, rows, len(rules.prompt) + rules.limit, kv_cache, place, steps)
        return write(model, batch, rules, place, steps)


def write(
    model: WhisperForConditionalGeneration,
    batch: Batch,
    rules: Rules,
    place: Place,
    steps: Steps | None = None,
) -> list[list[int]]:
    """The tokens of a batch that has only heard its audio, as of `decode_greedily`."""
    rows = range(len(batch.rows))
    return finish(model, batch, rules, [[] for _ in rows], place, rows, steps)


def finish(
    model: WhisperForConditionalGeneration,
    batch: Batch,
    rules: Rules,
    written: list[list[int]],
    place: Place,
    held: Sequence[int],
    steps: Steps | None = None,
) -> list[list[int]]:
    """Go on step by step, from what has been written of every row to its end; `held` are the rows as they
    stand in the batch. With `steps`, whose memory the batch is in, all rows stand at the same position.

    Rows may have come to different positions: one that is ahead waits until the others have come there.
    """
    choose = Choice(model, rules)
    going_on = [index for index, row in enumerate(held) if not is_over(written[row], rules)]
    # those that wait stand in front, so that those that step are the last of the batch
    going_on.sort(key=lambda index: -len(written[held[index]]))
    batch.arrange(going_on)
    order = [held[index] for index in going_on]
    waiting = len(order)
    for count in range(rules.limit):
        while waiting and len(written[order[waiting - 1]]) == count:
            waiting -= 1
        place.rows, place.position = order[waiting:], len(rules.prompt) + count - 1 if count else 0
        if not place.rows:
            continue
        if steps and count:
            chosen = checked(*steps([written[row][-1] for row in place.rows], place.position))
        else:
            tokens = [written[row][-1:] if count else rules.prompt for row in place.rows]
            x = batch.advance(torch.tensor(tokens, device=model.device), place.position)
            chosen = choose(x[:, -1], count)
        for row, token in zip(place.rows, chosen, strict=True):
            written[row].append(token)
        kept = [index for index, row in enumerate(order) if not is_over(written[row], rules)]
        if len(kept) < len(order):
            order = [order[index] for index in batch.keep(kept)]
    return written


def is_over(tokens: Sequence[int], rules: Rules) -> bool:
    return len(tokens) == rules.limit or has_ended(tokens, rules)


def has_ended(tokens: Sequence[int], rules: Rules) -> bool:
    return bool(tokens) and tokens[-1] in (rules.end, *rules.other_ends)
