"""Teacher forcing: how likely a model finds a given text, and how far its next tokens are from another's.

One pass of the decoder over all tokens of the texts of one utterance, by itself, so that its batch mates do
not matter. Beside what the model writes two texts are read: the words that were said, for their cross
entropy; and what the reference model has written, for the Kullback-Leibler divergence from its distributions
to this model's, token by token. Both are of the plain softmax, with nothing suppressed.

Of a reference's distribution the `TOP` most likely tokens are kept, and all others as one: what is kept of
the divergence is then never more than the whole, as joining tokens cannot add to it (data processing).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from wq.whisper.decoding.finite import check_finite
from wq.whisper.decoding.greedy import Batch, Place, Rules

TOP = 128


class Account(NamedTuple):
    """What a reference model leaves of an utterance for others to be compared with; on the CPU.

    said     int32 [m], the words that were said, in the spelling that it finds likeliest per token; may be
             empty
    written  int32 [n], its transcript, which ends in end of text unless it was cut
    ids      int32 [n, k], the likeliest tokens before each of them, the likeliest first
    kept     float32 [n, k], their log probabilities
    rest     float32 [n], the log probability of all other tokens together
    """

    said: Tensor
    written: Tensor
    ids: Tensor
    kept: Tensor
    rest: Tensor


@dataclass(frozen=True)
class Reading:
    """Sums over the tokens of an utterance, in nats: the cross entropy of the words that were said, and the
    divergence along the reference's transcript, with how many of its tokens are this model's likeliest too.
    Without tokens there was nothing to read."""

    nll: float = 0.0
    nll_tokens: int = 0
    kl: float = 0.0
    agreed: int = 0
    kl_tokens: int = 0
    account: Account | None = None

    def __add__(self, other: "Reading") -> "Reading":
        """Of an utterance in pieces; the accounts stay with the pieces."""
        return Reading(
            self.nll + other.nll,
            self.nll_tokens + other.nll_tokens,
            self.kl + other.kl,
            self.agreed + other.agreed,
            self.kl_tokens + other.kl_tokens,
        )


NOTHING_READ = Reading()


def likeliest(logits: Tensor, count: int = TOP) -> tuple[Tensor, Tensor, Tensor]:
    """`ids`, `kept` and `rest` of an `Account`, of logits [n, vocabulary]."""
    log_probs = logits.double().log_softmax(-1)
    kept, ids = log_probs.topk(min(count, logits.shape[-1]))
    rest = log_probs.scatter_(-1, ids, float("-inf")).logsumexp(-1)
    return ids.int().cpu(), kept.float().cpu(), rest.float().cpu()


def divergence(reference: Account, logits: Tensor) -> Tensor:
    """Float64 [n], in nats: the divergence from each of the reference's distributions to that of the logits
    [n, vocabulary], the tokens that are not kept taken as one.

    Kullback & Leibler 1951. Never negative, but for rounding, which is cut off.
    """
    log_probs = logits.double().log_softmax(-1)
    ids, kept, rest = (tensor.to(logits.device) for tensor in reference[2:])
    own = log_probs.gather(-1, ids.long())
    own_rest = log_probs.scatter_(-1, ids.long(), float("-inf")).logsumexp(-1)
    kept, rest = kept.double(), rest.double()
    found = (kept.exp() * (kept - own)).sum(-1)
    # of a vocabulary that is kept whole nothing is left, and 0 log 0 is 0
    found += torch.where(rest.isinf(), 0.0, rest.exp() * (rest - own_rest))
    return found.clamp_min(0)


def cross_entropy(tokens: Sequence[int], logits: Tensor) -> float:
    """In nats, summed over the tokens [n], of logits [n, vocabulary] before each of them."""
    chosen = torch.tensor(tokens, device=logits.device)[:, None]
    return -logits.double().log_softmax(-1).gather(-1, chosen).sum().item()


@torch.inference_mode()
def logits_along(
    model: WhisperForConditionalGeneration,
    batch: Batch,
    row: int,
    prompt: Sequence[int],
    texts: Sequence[Sequence[int]],
) -> Iterator[Tensor]:
    """For each of the texts, which are read side by side, the logits [n, vocabulary] before each of its n
    tokens, where they are made to follow the prompt."""
    longest = max(map(len, texts)) - 1
    # what fills a shorter text up comes after it, and is not seen by it
    given = torch.tensor(
        [[*prompt, *text[:-1], *[0] * (longest + 1 - len(text))] for text in texts], device=model.device
    )
    alone = batch.alone(row, len(texts), given.shape[1])
    # where what is read depends on what came later, tokens come as they do in decoding
    one_by_one = batch.kv_cache is not None and batch.kv_cache.spans_tokens
    parts = given.split([len(prompt)] + [1] * longest, -1) if one_by_one else [given]
    states, position = [], 0
    for part in parts:
        states.append(alone.advance(part, position))
        position += part.shape[1]
    first, norm = len(prompt) - 1, model.model.decoder.layer_norm
    for own, text in zip(torch.cat(states, 1), texts, strict=True):
        logits = model.proj_out(norm(own[first : first + len(text)]))
        check_finite(logits[None], "the logits")
        yield logits


@dataclass(frozen=True)
class Script:
    """What is read beside decoding, by utterance: the words that were said in tokens, in every spelling they
    may have, none where they are not known; and the reference's accounts, or None where this is the
    reference, which leaves its own."""

    spellings: Sequence[Sequence[Sequence[int]]]
    accounts: Sequence[Account] | None = None

    def read(
        self,
        model: WhisperForConditionalGeneration,
        batch: Batch,
        indices: Sequence[int],
        written: Sequence[Sequence[int]],
        rules: Rules,
        place: Place,
    ) -> list[Reading]:
        """For the rows of a batch that has been decoded: `written`, of the utterances `indices`.

        NaN or Inf in the logits raises NonFiniteRow, whose row is one of place's.
        """
        readings = []
        for row, (index, own) in enumerate(zip(indices, written, strict=True)):
            place.rows, place.position = [row], 0
            along = partial(logits_along, model, batch, row, rules.prompt)
            if self.accounts is None:
                readings.append(account_of(self.spellings[index], own, along))
            else:
                readings.append(read_against(self.accounts[index], along))
        return readings


Along = Callable[[Sequence[Sequence[int]]], Iterable[Tensor]]  # the logits before each token, by text


def account_of(spellings: Sequence[Sequence[int]], written: Sequence[int], along: Along) -> Reading:
    """A reference's own reading, and what it leaves."""
    own, *others = along([written, *spellings])
    found = [(cross_entropy(text, logits), text) for text, logits in zip(spellings, others, strict=True)]
    nll, said = min(found, key=lambda each: each[0] / len(each[1]), default=(0.0, ()))
    account = Account(_int32(said), _int32(written), *likeliest(own))
    return Reading(nll, len(said), 0.0, len(written), len(written), account)


def _int32(text: Sequence[int]) -> Tensor:
    return torch.tensor(text, dtype=torch.int32)


def read_against(reference: Account, along: Along) -> Reading:
    said, written = reference.said.tolist(), reference.written.tolist()
    logits, *others = along([written, said] if said else [written])
    nll = cross_entropy(said, others[0]) if said else 0.0
    agreed = (logits.argmax(-1).cpu() == reference.ids[:, 0]).sum()
    return Reading(nll, len(said), divergence(reference, logits).sum().item(), int(agreed), len(written))
