"""How much of a divergence is seen where only the likeliest tokens are kept, and all others as one.

    python recipes/study/kept_tokens.py DIR/tiny_en DIR/speech/fluent.jsonl [COUNT]

For some points of the model: kl over the first COUNT (16) utterances with every token kept, in thousandths of
a nat per token, and the part of it that is seen with so many. docs/measures.md quotes it.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from wq.catalogue import load_format
from wq.numerics.effective import Quantizer
from wq.study.spec.config import DatasetConfig
from wq.study.speech.datasets import load_speech
from wq.whisper.checkpoint.model import Whisper, load
from wq.whisper.decoding.decode import SAMPLING_RATE, token_limit
from wq.whisper.decoding.features import log_mel
from wq.whisper.decoding.greedy import Batch, Place, decoding_rules, encode_rows, write
from wq.whisper.decoding.likelihood import Account, divergence, likeliest, logits_along
from wq.whisper.layers.layers import assign, walk
from wq.whisper.layers.schemes import DEFAULT_ROLES, Assignment
from wq.whisper.methods.nearest import quantized_weights

POINTS = ("int8", "int4", "mxfp4", "nvfp4")
KEPT = (16, 64, 128, 512)


def batches(whisper: Whisper, manifest: str, count: int) -> Iterator[Batch]:
    """Each utterance as the model now hears it."""
    speech = load_speech(DatasetConfig(source="manifest", path=manifest), limit=count)
    model = whisper.model
    for index in range(len(speech.utterances)):
        features = log_mel(whisper.feature_extractor, [speech.read(index, SAMPLING_RATE)])
        yield Batch(model, encode_rows(model, features), 1, model.config.max_target_positions)


@torch.inference_mode()
def main(directory: str, manifest: str, count: str = "16") -> None:
    whisper = load(Path(directory))
    model, size = whisper.model, whisper.model.config.vocab_size
    rules = decoding_rules(model, "en" if whisper.is_multilingual else None, token_limit(whisper, None))
    texts, known = [], []
    for batch in batches(whisper, manifest, int(count)):
        (text,) = write(model, batch, rules, Place())
        texts.append(text)
        known += logits_along(model, batch, 0, rules.prompt, [text])
    for name in POINTS:
        format = load_format(name)
        plan = assign(
            list(walk(model)), (Assignment(Quantizer(format, "group", format.group), DEFAULT_ROLES),)
        )
        with quantized_weights(plan):
            heard = zip(batches(whisper, manifest, int(count)), texts, strict=True)
            found = [next(logits_along(model, batch, 0, rules.prompt, [text])) for batch, text in heard]
        whole = seen(known, found, size)
        parts = (f"{kept}: {seen(known, found, kept) / whole:.1%}" for kept in KEPT)
        print(f"{name:<6} {1000 * whole / sum(map(len, texts)):8.2f}  {'  '.join(parts)}")


def seen(known: list[Tensor], found: list[Tensor], kept: int) -> float:
    """The divergence of all utterances, with so many tokens of each distribution kept."""
    nothing = torch.zeros(0)
    accounts = (Account(nothing, nothing, *likeliest(logits, kept)) for logits in known)
    return sum(divergence(*pair).sum().item() for pair in zip(accounts, found, strict=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
