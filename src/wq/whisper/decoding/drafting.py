"""Greedy decoding with a draft of every transcript: what a similar model wrote for the same audio.

One pass of the decoder over all tokens of a draft gives the model's own choices after each of them. They hold
up to the first that differs from the draft, and from there the row goes on step by step, so that the tokens
are those of plain greedy decoding (as in speculative decoding, Leviathan et al. 2023, with a draft that is
there already).

They are so even where the last bit of a sum decides: on a CPU the pass gives every position the bits of its
own step. The linear layers do so for any rows (see `onednn`); attention is computed for every position by
itself, over the same keys, as a step does.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate, takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from wq.whisper.decoding.finite import NonFiniteRow
from wq.whisper.decoding.greedy import (
    Batch,
    Choice,
    Place,
    Rules,
    feed_forward,
    finish,
    heads,
    is_over,
    mix_few,
)
from wq.whisper.decoding.kv_cache import KeysValues, KVQuantizer
from wq.whisper.decoding.onednn import fast_products


def can_draft(model: WhisperForConditionalGeneration, kv_cache: KVQuantizer | None = None) -> bool:
    """Whether a pass over a draft gives the bits of the steps: in float32 on a CPU, through oneDNN.

    Rounded inputs of linear layers do not matter, as no scale depends on several tokens. Keys of the text
    that have their scales per channel do: once a block of tokens is full it is rounded, and what a row that
    goes on from within the block would have to read is lost.
    """
    is_exact = (
        model.device.type == "cpu" and model.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    )
    return is_exact and not (kv_cache and kv_cache.spans_tokens)


@torch.inference_mode()
def decode_drafted(
    model: WhisperForConditionalGeneration,
    states: Iterable[Tensor],
    drafts: Sequence[Sequence[int]],
    rules: Rules,
    kv_cache: KVQuantizer | None = None,
    place: Place | None = None,
) -> list[list[int]]:
    """What `decode_greedily` gives for as many rows as there are drafts: tokens without prompt and end, of
    any length, right or wrong. Only where `can_draft`. Least is moved where the longest drafts come first."""
    place = place or Place()
    with fast_products(model.model.decoder, model.proj_out):
        batch = Batch(model, states, len(drafts), len(rules.prompt) + rules.limit, kv_cache, place)
        return follow(model, batch, drafts, rules, place)


def follow(
    model: WhisperForConditionalGeneration,
    batch: Batch,
    drafts: Sequence[Sequence[int]],
    rules: Rules,
    place: Place,
) -> list[list[int]]:
    """The tokens of a batch that has only heard its audio, as of `decode_drafted`."""
    vocabulary = range(model.config.vocab_size)
    # after the last token of the limit nothing is chosen
    usable = [list(takewhile(vocabulary.__contains__, draft[: rules.limit - 1])) for draft in drafts]
    order = sorted(range(len(drafts)), key=lambda row: -len(usable[row]))
    batch.arrange(order)
    written: list[list[int]] = [[] for _ in drafts]
    try:
        for row, tokens in zip(
            order, verify(model, batch, rules, [usable[row] for row in order]), strict=True
        ):
            written[row] = tokens
    except NonFiniteRow:  # perhaps only after a token that the model would not have written
        pass
    return finish(model, batch, rules, written, place, order)


def verify(
    model: WhisperForConditionalGeneration, batch: Batch, rules: Rules, drafts: Sequence[list[int]]
) -> list[list[int]]:
    """The model's own choices for every row of the batch, up to the first that differs from its draft, that
    one included; the batch then has their keys and values. The longest drafts come first.

    NaN or Inf raises NonFiniteRow.
    """
    steps = [Step([list(rules.prompt)] * len(drafts), 0)]
    for count in range(len(drafts[0])):
        tokens = [[draft[count]] for draft in drafts if len(draft) > count]
        steps.append(Step(tokens, len(rules.prompt) + count))
    states = advance(batch, steps)
    choose = Choice(model, rules)
    written: list[list[int]] = [[] for _ in drafts]
    for count, x in enumerate(states):
        for row, token in enumerate(choose(x[:, -1], count)):
            # so far as the draft was right
            if written[row] == drafts[row][:count] and not is_over(written[row], rules):
                written[row].append(token)
    return written


class Step(NamedTuple):
    """Tokens [rows, n] of the first rows of a batch, the first of them at this position."""

    tokens: list[list[int]]
    position: int

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.tokens), len(self.tokens[0])

    @property
    def end(self) -> int:
        return self.position + self.shape[1]


def advance(batch: Batch, steps: Sequence[Step]) -> list[Tensor]:
    """What `Batch.advance` would give for one step after the other, to the bit: all of them go through each
    layer together, but for attention."""
    decoder = batch.decoder
    tokens = torch.tensor([token for step in steps for row in step.tokens for token in row])
    positions = [place for step in steps for _ in step.tokens for place in range(step.position, step.end)]
    x = decoder.embed_tokens(tokens) + decoder.embed_positions.weight[torch.tensor(positions)]
    singles = single_queries(steps)
    for layer, text, audio in zip(decoder.layers, batch.text, batch.audio, strict=True):
        x += attend_text(layer.self_attn_layer_norm(x), layer.self_attn, text, steps)
        x += attend_audio(layer.encoder_attn_layer_norm(x), layer.encoder_attn, audio, steps[0], singles)
        x += feed_forward(x, layer)
    return split(x, steps)


def split(x: Tensor, steps: Sequence[Step]) -> list[Tensor]:
    """[all tokens, model size] as [rows, n, model size] of every step."""
    parts = x.split([rows * n for rows, n in (step.shape for step in steps)])
    return [part.view(*step.shape, -1) for part, step in zip(parts, steps, strict=True)]


def single_queries(steps: Sequence[Step]) -> list[Tensor]:
    """Where the tokens after the prompt are among all of them, row by row."""
    prompt, *others = [rows * n for rows, n in (step.shape for step in steps)]
    firsts = list(accumulate(others, initial=prompt))
    rows = range(others[0] if others else 0)
    return [
        torch.tensor([first + row for first, count in zip(firsts, others, strict=False) if row < count])
        for row in rows
    ]


def attend_text(x: Tensor, attention: Any, text: KeysValues, steps: Sequence[Step]) -> Tensor:
    projections = attention.q_proj, attention.k_proj, attention.v_proj
    projected = (split(project(x), steps) for project in projections)
    mixed = []
    for step, *parts in zip(steps, *projected, strict=True):
        rows, n = step.shape
        queries, keys, values = (heads(part, attention) for part in parts)
        text.store(keys, values, first_position=step.position)
        keys, values = (cache[:rows] for cache in text.read(step.end))
        part = mix_few(queries, keys, values, attention.scaling, causal=n > 1)
        mixed.append(part.transpose(1, 2).reshape(rows * n, -1))
    return attention.out_proj(torch.cat(mixed))


def attend_audio(
    x: Tensor, attention: Any, audio: KeysValues, prompt: Step, singles: Sequence[Tensor]
) -> Tensor:
    """The prompt's queries as in its step, and then all others of a row, while its keys and values are in the
    processor's cache."""
    queries = attention.q_proj(x)
    mixed = torch.empty_like(queries)
    (rows, n), (keys, values) = prompt.shape, audio.read()
    first = heads(queries[: rows * n].view(rows, n, -1), attention)
    part = mix_few(first, keys, values, attention.scaling)
    mixed[: rows * n] = part.transpose(1, 2).reshape(rows * n, -1)
    for own, key, value in zip(singles, keys, values, strict=False):
        single = queries[own].view(len(own), -1, 1, attention.head_dim).transpose(0, 1)
        mixed[own] = mix_each(single * attention.scaling, key, value).transpose(0, 1).reshape(len(own), -1)
    return attention.out_proj(mixed)


def mix_each(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """`mix_few` of each of the scaled queries [heads, n, 1, head size] by itself, over the same keys [heads,
    frames, head size]."""
    mixed = torch.empty(queries.shape)
    for query, key, value, out in zip(queries, keys, values, mixed, strict=True):
        weights = torch.bmm(query, key.mT.expand(len(query), -1, -1))
        torch.softmax(weights, -1, out=weights)
        torch.bmm(weights, value.expand(len(query), -1, -1), out=out)
    return mixed


def count_accepted(draft: Sequence[int], tokens: Sequence[int]) -> int:
    """How many tokens of the draft the model wrote too, before the first that differs."""
    count = min(len(draft), len(tokens))
    return next((index for index in range(count) if draft[index] != tokens[index]), count)
