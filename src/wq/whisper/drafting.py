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
from functools import partial
from itertools import takewhile

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from wq.whisper.finite import NonFiniteRow
from wq.whisper.greedy import Batch, Choice, Place, Rules, finish, is_over, mix_few
from wq.whisper.kv_cache import KVQuantizer
from wq.whisper.onednn import fast_products


def can_draft(model: WhisperForConditionalGeneration, kv_cache: KVQuantizer | None = None) -> bool:
    """Whether a pass over a draft gives the bits of the steps: in float32 on a CPU, through oneDNN.

    Rounded inputs of linear layers do not matter, as no scale depends on several tokens. Keys of the text
    that have their scales per channel do: once a block of tokens is full it is rounded, and what a row that
    goes on from within the block would have to read is lost.
    """
    spans_tokens = (
        kv_cache is not None
        and "self" in kv_cache.scheme.attention
        and "channel" in (kv_cache.scheme.keys.granularity, kv_cache.scheme.values.granularity)
    )
    is_exact = (
        model.device.type == "cpu" and model.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    )
    return is_exact and not spans_tokens


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
    any length, right or wrong. Only where `can_draft`."""
    place = place or Place()
    batch = Batch(model, states, len(drafts), len(rules.prompt) + rules.limit, kv_cache, place)
    try:
        written = verify(model, batch, rules, drafts)
    except NonFiniteRow:  # perhaps only after a token that the model would not have written
        written = [[] for _ in drafts]
    return finish(model, batch, rules, written, place)


def verify(
    model: WhisperForConditionalGeneration, batch: Batch, rules: Rules, drafts: Sequence[Sequence[int]]
) -> list[list[int]]:
    """The model's own choices for every row of the batch, up to the first that differs from its draft, that
    one included; the batch then has their keys and values.

    NaN or Inf raises NonFiniteRow.
    """
    vocabulary = range(model.config.vocab_size)
    # behind the last token of the limit nothing is chosen
    given = [list(takewhile(vocabulary.__contains__, draft[: rules.limit - 1])) for draft in drafts]
    longest = max(map(len, given))
    tokens = [[*rules.prompt, *draft, *[rules.end] * (longest - len(draft))] for draft in given]
    with fast_products():
        x = batch.advance(torch.tensor(tokens), 0, partial(mix_apart, together=len(rules.prompt)))
    choose, first = Choice(model, rules), len(rules.prompt) - 1
    written: list[list[int]] = [[] for _ in drafts]
    for count in range(longest + 1):
        for row, token in enumerate(choose(x[:, first + count], count)):
            # so far as the draft was right
            if written[row] == given[row][:count] and not is_over(written[row], rules):
                written[row].append(token)
    return written


def mix_apart(
    queries: Tensor, keys: Tensor, values: Tensor, *, is_causal: bool, scale: float, together: int
) -> Tensor:
    """`mix_few` of so many first queries together, as of a prompt, and then of every query by itself."""
    if is_causal:
        parts = [
            mix_few(queries[:, :, end - 1 : end], keys[:, :, :end], values[:, :, :end], scale=scale)
            for end in range(together + 1, queries.shape[2] + 1)
        ]
        keys, values = keys[:, :, :together], values[:, :, :together]
    else:
        parts = [mix_each(queries[:, :, together:], keys, values, scale)]
    prompt = queries[:, :, :together]
    mixed = mix_few(prompt, keys, values, is_causal=is_causal and together > 1, scale=scale)
    return torch.cat((mixed, *parts), 2)


def mix_each(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """`mix_few` of every query by itself, over the same keys, which stay in the processor's cache."""
    rows, heads, count, size = queries.shape
    queries = (queries * scale).contiguous().unsqueeze(3)
    mixed = torch.empty_like(queries)
    for row in range(rows):
        for head in range(heads):
            weights = torch.bmm(queries[row, head], keys[row, head].mT.expand(count, size, -1))
            torch.softmax(weights, -1, out=weights)
            torch.bmm(weights, values[row, head].expand(count, -1, size), out=mixed[row, head])
    return mixed.squeeze(3)


def count_accepted(draft: Sequence[int], tokens: Sequence[int]) -> int:
    """How many tokens of the draft the model wrote too, before the first that differs."""
    count = min(len(draft), len(tokens))
    return next((index for index in range(count) if draft[index] != tokens[index]), count)
