"""The shape of a Whisper model: everything that its size and its memory follow from, without its weights.

The public checkpoints' shapes are at hand, so that a model can be weighed that fits on no disk here and whose
config.json cannot be had. Needs no torch.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wq import hub
from wq.whisper.checkpoint.files import (
    MULTILINGUAL_VOCABULARY,
    ModelError,
    has_own_head,
    is_multilingual,
    prompt_length,
)

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration

POSITIONS_PER_SECOND = 50  # of the encoder: 16,000 samples in hops of 160, halved by the second convolution
KERNEL = 3  # width of the two convolutions


@dataclass(frozen=True)
class Geometry:
    """The fields of config.json that shapes depend on, under its own names and with its own defaults."""

    d_model: int = 384
    encoder_layers: int = 4
    decoder_layers: int = 4
    encoder_attention_heads: int = 6
    decoder_attention_heads: int = 6
    encoder_ffn_dim: int = 1536
    decoder_ffn_dim: int = 1536
    num_mel_bins: int = 80
    vocab_size: int = 51865
    max_source_positions: int = 1500
    max_target_positions: int = 448
    tie_word_embeddings: bool = True
    is_multilingual: bool = True

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Geometry":
        """From the content of a config.json, which may say is_multilingual; else the vocabulary does."""
        known = {field.name: config[field.name] for field in fields(cls) if field.name in config}
        vocabulary = known.get("vocab_size", MULTILINGUAL_VOCABULARY)
        return cls(**{"is_multilingual": vocabulary >= MULTILINGUAL_VOCABULARY} | known)

    @property
    def head_size(self) -> int:
        """Of the decoder, whose heads are what a cache holds."""
        return self.d_model // self.decoder_attention_heads

    @property
    def prompt_length(self) -> int:
        return prompt_length(self.is_multilingual)

    @property
    def room(self) -> int:
        """Tokens that the decoder's positions leave after the prompt."""
        return self.max_target_positions - self.prompt_length

    @property
    def default_tokens(self) -> int:
        """The longest transcript unless another limit is asked for, as `decode.token_limit` has it."""
        return self.max_target_positions // 2


def _public(width: int, encoder: int, decoder: int, vocabulary: int = 51865, mels: int = 80) -> Geometry:
    """OpenAI's family: heads of 64, feed-forward layers four times as wide as the model, windows of 30 s."""
    return Geometry(
        d_model=width,
        encoder_layers=encoder,
        decoder_layers=decoder,
        encoder_attention_heads=width // 64,
        decoder_attention_heads=width // 64,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        vocab_size=vocabulary,
        num_mel_bins=mels,
        is_multilingual=vocabulary >= MULTILINGUAL_VOCABULARY,
    )


# From the config.json of each; an English vocabulary has one token less, large-v3's one more
PUBLIC = {
    "openai/whisper-tiny": _public(384, 4, 4),
    "openai/whisper-tiny.en": _public(384, 4, 4, 51864),
    "openai/whisper-base": _public(512, 6, 6),
    "openai/whisper-base.en": _public(512, 6, 6, 51864),
    "openai/whisper-small": _public(768, 12, 12),
    "openai/whisper-small.en": _public(768, 12, 12, 51864),
    "openai/whisper-medium": _public(1024, 24, 24),
    "openai/whisper-medium.en": _public(1024, 24, 24, 51864),
    "openai/whisper-large-v2": _public(1280, 32, 32),
    "openai/whisper-large-v3": _public(1280, 32, 32, 51866, 128),
    "openai/whisper-large-v3-turbo": _public(1280, 32, 4, 51866, 128),
    "distil-whisper/distil-large-v3": _public(1280, 32, 2, 51866, 128),
}


def find_geometry(path: str, revision: str | None = None) -> Geometry:
    """The geometry of `wq:NAME`, a local checkpoint, or a hub id, by its config.json.

    Of a hub id: from the cache where it is there, then from the public ones, and only then from the network.
    Weights are never fetched. Raises ModelError.
    """
    directory = hub.shipped(path) or hub.expanded(path)
    if directory.is_dir():
        return read_geometry(directory)
    if path.startswith(("wq:", ".", "/", "~")) or path.count("/") != 1:
        raise ModelError(f"model.path={path} does not exist; give a checkpoint's directory or a hub id")
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(path, "config.json", revision=revision)
    if isinstance(cached, str):
        return read_geometry(Path(cached).parent)
    if path in PUBLIC and revision is None:
        return PUBLIC[path]
    try:
        return read_geometry(hub.fetch(path, "model", revision, ("config.json", "generation_config.json")))
    except hub.HubError as error:
        known = ", ".join(name.rpartition("/")[2] for name in PUBLIC)
        raise ModelError(f"{error}; shapes are known of {known}") from error


def read_geometry(directory: Path) -> Geometry:
    """The geometry of a checkpoint's directory. Raises ModelError where it holds no Whisper's config.json."""
    try:
        content = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        model_type = content.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{directory} has no readable config.json ({error}); save it anew") from error
    if model_type != "whisper":
        raise ModelError(
            f"{directory} is no Whisper (model_type in config.json: {model_type}); give a Whisper checkpoint"
        )
    tied = content.get("tie_word_embeddings", True) and not has_own_head(directory)
    return Geometry.of(content | {"is_multilingual": is_multilingual(directory), "tie_word_embeddings": tied})


@lru_cache(maxsize=1)
def skeleton(geometry: Geometry) -> "WhisperForConditionalGeneration":
    """The model without weights, on the meta device: modules and shapes."""
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    settings = asdict(geometry)
    del settings["is_multilingual"]
    # Ids that every vocabulary has: the defaults lie beyond a small one
    settings |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(WhisperConfig(**settings))
    model.tie_weights()
    return model
