"""A Whisper checkpoint: found, checked, identified by its content, and loaded.

A checkpoint is a directory in transformers' format: safetensors weights, config.json, a tokenizer and a
preprocessor. What is wrong with it is said before torch is imported, as far as it can be known by then.
"""

import hashlib
import json
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wq import hub

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, WhisperFeatureExtractor, WhisperForConditionalGeneration

PACKED = "packed.safetensors"  # wq's own layout of quantized weights, see `packed`
# The files that a checkpoint is made of, and no others: a repository also holds pickles, other frameworks'
# weights and copies in other precisions (model.fp32-00001-of-00002.safetensors), several times the download.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors", PACKED)
PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
TOKENIZERS = ("tokenizer.json", "vocab.json")
FILES = (
    *WEIGHTS,
    *PREPROCESSORS,
    *TOKENIZERS,
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "normalizer.json",
)

# OpenAI's rule for checkpoints that do not say: multilingual vocabularies start here
MULTILINGUAL_VOCABULARY = 51_865


class ModelError(ValueError):
    """A checkpoint that cannot be used: one line that names it, the rule and the remedy."""


@dataclass
class Whisper:
    """A model in eval mode that transcribes windows of `window_seconds`, padded, at `sampling_rate` Hz."""

    name: str
    directory: Path
    model: "WhisperForConditionalGeneration"
    feature_extractor: "WhisperFeatureExtractor"
    tokenizer: "PreTrainedTokenizerBase"
    is_multilingual: bool

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


def locate(path: str, revision: str | None = None) -> Path:
    """A checkpoint's directory: `wq:NAME`, which ships with wq, a local one, or a hub id, fetched if need be.

    Imports neither torch nor transformers.

    Raises:
        ModelError: it is not there, cannot be reached, or is no complete Whisper checkpoint.
    """
    directory = hub.shipped(path) or Path(path).expanduser()
    if path.startswith("wq:") and not directory.is_dir():
        known = ", ".join(hub.shipped_names(".safetensors")) or "none"
        raise ModelError(f"model.path={path} does not ship with wq; shipped checkpoints: {known}")
    if not directory.exists():
        if path.startswith((".", "/", "~")) or path.endswith("/") or path.count("/") > 1:
            raise ModelError(f"model.path={path} does not exist; give a checkpoint's directory or a hub id")
        try:
            directory = hub.fetch(path, "model", revision, FILES)
        except hub.HubError as error:
            raise ModelError(str(error)) from error
    check(directory, path)
    return directory


def check(directory: Path, path: str) -> None:
    """Refuse a directory that is no whole Whisper checkpoint, by its files, config and safetensors headers.

    Raises:
        ModelError: names `path`, what is wrong, and the remedy.
    """
    if not directory.is_dir():
        raise ModelError(f"model.path={path} is a file; give the checkpoint's directory")
    config_file = directory / "config.json"
    if not config_file.is_file():
        raise ModelError(
            f"model.path={path} has no config.json; a checkpoint is a directory in transformers' format "
            "(`save_pretrained` writes one)"
        )
    config = _read_json(config_file)
    if config.get("model_type") != "whisper":
        raise ModelError(
            f"model.path={path} is no Whisper (model_type in config.json: {config.get('model_type')}); "
            "give a Whisper checkpoint"
        )
    if "quantization_config" in config:
        raise ModelError(f"model.path={path} is quantized already; give the checkpoint it was made from")
    for needed, names in (("preprocessor", PREPROCESSORS), ("tokenizer", TOKENIZERS)):
        if not any((directory / name).is_file() for name in names):
            raise ModelError(
                f"model.path={path} has no {needed}; copy {' or '.join(names)} into the checkpoint"
            )
    _check_weights(directory, path)


def prompt_length(multilingual: bool) -> int:
    """Tokens before the text: start, a multilingual model's language and task, no timestamps."""
    return 4 if multilingual else 2


def facts(checkpoint: Path) -> tuple[bool, int]:
    """Whether a checkpoint is multilingual, and how many positions its decoder has, from its files alone."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    generation = checkpoint / "generation_config.json"
    settings = json.loads(generation.read_text(encoding="utf-8")) if generation.is_file() else {}
    multilingual = settings.get("is_multilingual")
    if multilingual is None:
        multilingual = config.get("vocab_size", MULTILINGUAL_VOCABULARY) >= MULTILINGUAL_VOCABULARY
    return bool(multilingual), config.get("max_target_positions", 448)


def content_hash(directory: Path) -> str:
    """SHA-256 over the names and bytes of a checkpoint's files; where it lies makes no difference.

    Reads every byte once: about a second per gigabyte where the CPU has SHA instructions, three where not.
    """
    total = hashlib.sha256()
    for file in sorted(directory.iterdir()):
        if any(fnmatch(file.name, pattern) for pattern in FILES):
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            total.update(f"{file.name} {digest}\n".encode())
    return total.hexdigest()


def load(directory: Path, device: str = "cpu", dtype: str = "float32", *, name: str | None = None) -> Whisper:
    """The checkpoint in memory, in `dtype` whatever its files hold, in eval mode on `device`. Packed weights
    are dequantized.

    Raises:
        ModelError: tensors are missing, left over, of a wrong shape or not finite, or the parts do not fit.
    """
    import torch
    from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration
    from transformers.utils import logging

    from wq.whisper import packed

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
    _check_fit(directory, model.config, feature_extractor, tokenizer)
    is_multilingual = _complete_generation_config(directory, model, tokenizer)
    model.eval().requires_grad_(False).to(device)
    return Whisper(name or directory.name, directory, model, feature_extractor, tokenizer, is_multilingual)


def _read_json(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file} is not JSON ({error}); download or save the checkpoint anew") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} holds no JSON object; download or save the checkpoint anew")
    return content


def _check_weights(directory: Path, path: str) -> None:
    from safetensors import SafetensorError, safe_open

    shards = [
        file for pattern in WEIGHTS for file in sorted(directory.glob(pattern)) if file.suffix != ".json"
    ]
    if not shards:
        raise ModelError(
            f"model.path={path} has no model.safetensors; wq loads no pickles: convert the checkpoint with "
            "`save_pretrained`, which writes safetensors"
        )
    index = directory / "model.safetensors.index.json"
    if index.is_file() and not (directory / "model.safetensors").is_file():
        named = set(_read_json(index).get("weight_map", {}).values())
        absent = sorted(named - {file.name for file in shards})
        if absent:
            raise ModelError(
                f"model.path={path} lacks {', '.join(absent)}, which {index.name} names; download it"
            )
    for file in shards:
        try:
            with safe_open(
                file, framework="numpy"
            ):  # reads the header and compares it with the file's length
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{file} is corrupt or cut off ({error}); download or save the checkpoint anew"
            ) from error


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


def _check_fit(directory: Path, config: Any, features: Any, tokenizer: Any) -> None:
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
    start = tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    if start != config.decoder_start_token_id:
        raise ModelError(
            f"{directory}: <|startoftranscript|> is token {start} of the tokenizer and token "
            f"{config.decoder_start_token_id} of the decoder; copy the tokenizer that belongs to this one"
        )


def _complete_generation_config(directory: Path, model: Any, tokenizer: Any) -> bool:
    """Add what `generate` needs and a bare checkpoint lacks; drop forced tokens, the prompt's old form.

    Returns whether the checkpoint is multilingual.
    """
    from transformers.models.whisper.tokenization_whisper import LANGUAGES, TASK_IDS

    settings: Any = model.generation_config
    for name in ("decoder_start_token_id", "eos_token_id", "bos_token_id", "pad_token_id"):
        if getattr(settings, name, None) is None:
            setattr(settings, name, getattr(model.config, name))
    if getattr(settings, "is_multilingual", None) is None:
        settings.is_multilingual = model.config.vocab_size >= MULTILINGUAL_VOCABULARY
    # Checkpoints fine-tuned with early releases of transformers name no languages
    known = tokenizer.get_added_vocab()
    if settings.is_multilingual and not getattr(settings, "lang_to_id", None):
        settings.lang_to_id = {
            token: id for token, id in known.items() if token[2:-2] in LANGUAGES and token.startswith("<|")
        }
    if settings.is_multilingual and not getattr(settings, "task_to_id", None):
        settings.task_to_id = {task: known[f"<|{task}|>"] for task in TASK_IDS if f"<|{task}|>" in known}
    if getattr(settings, "no_timestamps_token_id", None) is None:
        if "<|notimestamps|>" not in known:
            raise ModelError(
                f"{directory}: neither generation_config.json (no_timestamps_token_id) nor the tokenizer "
                "knows <|notimestamps|>; copy the generation_config.json that belongs to this checkpoint"
            )
        settings.no_timestamps_token_id = known["<|notimestamps|>"]
    settings.forced_decoder_ids = None
    model.config.forced_decoder_ids = None
    return bool(settings.is_multilingual)
