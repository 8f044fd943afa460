"""Models to measure, with what they hear: the shipped one, and geometries of OpenAI's with random weights."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from wq.study.spec.config import DatasetConfig
from wq.study.speech.datasets import load_speech
from wq.whisper.checkpoint.files import locate
from wq.whisper.checkpoint.model import Whisper, load
from wq.whisper.decoding.decode import SAMPLING_RATE
from wq.whisper.decoding.greedy import Rules, decoding_rules

# Model size and layers of the encoder and of the decoder: Radford et al. 2022, table 1
GEOMETRIES = {"tiny": (384, 4), "base": (512, 6), "small": (768, 12)}
VOCABULARY, END, START, NO_TIMESTAMPS = 51864, 50256, 50257, 50362  # of the English-only checkpoints


@dataclass(frozen=True)
class Case:
    """A model, the rules that it decodes by, and what it hears, longest first. `whisper` where the model has
    a checkpoint with a tokenizer."""

    model: WhisperForConditionalGeneration
    extractor: WhisperFeatureExtractor
    rules: Rules
    audios: list[np.ndarray]
    whisper: Whisper | None = None

    @property
    def seconds(self) -> float:
        return sum(map(len, self.audios)) / SAMPLING_RATE

    @property
    def window(self) -> int:
        """In samples."""
        return self.extractor.n_samples


def nano(count: int) -> Case:
    """The shipped model on the clean split of the shipped speech."""
    return checkpoint(locate("wq:nano"), "wq:commands", "clean", count)


def checkpoint(directory: Path, manifest: str, split: str, count: int) -> Case:
    """A checkpoint on the first utterances of a manifest's split."""
    whisper = load(directory)
    speech = load_speech(DatasetConfig(source="manifest", path=manifest, split=split), limit=count)
    audios = [speech.read(index, SAMPLING_RATE) for index in range(len(speech.utterances))]
    rules = decoding_rules(whisper.model, None, whisper.model.config.max_target_positions // 2)
    return Case(
        whisper.model, whisper.feature_extractor, rules, sorted(audios, key=len, reverse=True), whisper
    )


def random_weights(name: str, count: int, tokens: int = 32) -> Case:
    """An English-only checkpoint's shape; it hears noise of 30 s, and writes as many tokens as are asked for,
    since the end of text is suppressed."""
    size, layers = GEOMETRIES[name]
    config = WhisperConfig(
        vocab_size=VOCABULARY,
        d_model=size,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=size // 64,
        decoder_attention_heads=size // 64,
        encoder_ffn_dim=4 * size,
        decoder_ffn_dim=4 * size,
        decoder_start_token_id=START,
        pad_token_id=END,
        bos_token_id=END,
        eos_token_id=END,
    )
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config).eval().requires_grad_(False)
    settings = GenerationConfig.from_model_config(config)
    # Nor may it write timestamps, or `generate` would go back to the audio that they point to
    suppressed = [END, *range(NO_TIMESTAMPS, VOCABULARY)]
    for setting, value in {
        "suppress_tokens": suppressed,
        "no_timestamps_token_id": NO_TIMESTAMPS,
        "is_multilingual": False,
    }.items():
        setattr(settings, setting, value)
    model.generation_config = settings
    noise = np.random.default_rng(0).standard_normal((count, 30 * SAMPLING_RATE)).astype(np.float32) * 0.1
    return Case(model, WhisperFeatureExtractor(), decoding_rules(model, None, tokens), list(noise))
