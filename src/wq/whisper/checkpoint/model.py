"""A Whisper checkpoint in memory: loaded, held against its own description, and made complete."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wq.whisper.checkpoint import generation
from wq.whisper.checkpoint.files import PACKED, UNTIED, ModelError, is_multilingual, prompt_length

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, WhisperFeatureExtractor, WhisperForConditionalGeneration


@dataclass
class Whisper:
    """A model in eval mode that transcribes windows of `window_seconds`, padded, at `sampling_rate` Hz.

    `notices` is what its user should know about the checkpoint, a line each.
    """

    name: str
    directory: Path
    model: "WhisperForConditionalGeneration"
    feature_extractor: "WhisperFeatureExtractor"
    tokenizer: "PreTrainedTokenizerBase"
    is_multilingual: bool
    notices: tuple[str, ...] = ()

    @property
    def sampling_rate(self) -> int:
        return self.feature_extractor.sampling_rate

    @property
    def window_seconds(self) -> float:
        return self.feature_extractor.n_samples / self.sampling_rate

    @property
    def max_new_tokens(self) -> int:
        """The room that the decoder's positions leave after the prompt."""
        return self.model.config.max_target_positions - prompt_length(self.is_multilingual)


def load(directory: Path, device: str = "cpu", dtype: str = "float32", *, name: str | None = None) -> Whisper:
    """The checkpoint in memory, in `dtype` whatever its files hold, in eval mode on `device`. Packed weights
    are dequantized.

    Raises:
        ModelError: tensors are missing, left over, of a wrong shape or not finite, or the parts do not fit.
    """
    import torch
    from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration
    from transformers.utils import logging

    from wq.whisper.checkpoint import packed

    options: dict[str, Any] = {
        "dtype": getattr(torch, dtype),
        "attn_implementation": "sdpa",
        "ignore_mismatched_sizes": True,
        "output_loading_info": True,
    }
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what its report would say in twenty lines is an error here, in one
    logging.disable_progress_bar()
    try:
        loaded: Any
        if (directory / PACKED).is_file():
            loaded = packed.load(directory, **options)
        else:
            loaded = WhisperForConditionalGeneration.from_pretrained(
                directory, use_safetensors=True, local_files_only=True, **options
            )
        model, report = loaded
        feature_extractor = WhisperFeatureExtractor.from_pretrained(directory, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except ModelError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{directory}: transformers cannot load this checkpoint ({reason}); save it anew"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
    _check_tensors(directory, model, report)
    _check_preprocessor(directory, model.config, feature_extractor)
    multilingual = is_multilingual(directory)
    generation.complete(directory, model, tokenizer, multilingual)
    generation.check_tokens(directory, model, tokenizer)
    model.eval().requires_grad_(False).to(device)
    name = name or directory.name
    return Whisper(
        name, directory, model, feature_extractor, tokenizer, multilingual, tuple(_notices(name, model))
    )


def _check_tensors(directory: Path, model: Any, report: dict[str, Any]) -> None:
    """transformers fills in missing tensors at random and drops unknown ones; here both are errors."""
    import torch

    faults = {
        "lacks": sorted(report["missing_keys"]),
        "has no use for": sorted(key for key in report["unexpected_keys"] if key.startswith("model.")),
        "has the wrong shape for": sorted(key for key, *_ in report["mismatched_keys"]),
        "has NaN or Inf in": [
            name for name, tensor in model.named_parameters() if not torch.isfinite(tensor).all()
        ],
    }
    for fault, tensors in faults.items():
        if tensors:
            more = f" and {len(tensors) - 3} more" if len(tensors) > 3 else ""
            raise ModelError(
                f"{directory}: by its config.json, its weights file {fault} {', '.join(tensors[:3])}{more}; "
                "give a checkpoint whose weights and config belong together"
            )


def _check_preprocessor(directory: Path, config: Any, features: Any) -> None:
    facts = (
        ("mel bins", features.feature_size, config.num_mel_bins),
        ("frames", features.nb_max_frames, 2 * config.max_source_positions),
    )
    for unit, given, expected in facts:
        if given != expected:
            raise ModelError(
                f"{directory}: the preprocessor gives {given} {unit}, the encoder takes {expected}; "
                "copy the preprocessor_config.json that belongs to this checkpoint"
            )


def _notices(name: str, model: Any) -> Iterator[str]:
    if model.proj_out.weight is not model.model.decoder.embed_tokens.weight:
        yield f"{name}: {UNTIED}"
    if entries := generation.unheeded(model):
        yield (
            f"{name}: its generation config has {', '.join(entries)}, which is not followed: wq decodes "
            "greedily, without timestamps, by the suppressed tokens alone"
        )
