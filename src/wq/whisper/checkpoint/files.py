"""The files of a Whisper checkpoint: found, checked, and identified by their content.

A checkpoint is a directory in transformers' format: safetensors weights, config.json, a tokenizer and a
preprocessor. What is wrong with it is said before torch is imported, as far as it can be known by then.
"""

import hashlib
import json
from fnmatch import fnmatch
from pathlib import Path

from wq import hub

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


def locate(path: str, revision: str | None = None) -> Path:
    """A checkpoint's directory: `wq:NAME`, which ships with wq, a local one, or a hub id, fetched if need be.

    Imports neither torch nor transformers.

    Raises:
        ModelError: it is not there, cannot be reached, or is no complete Whisper checkpoint.
    """
    directory = hub.shipped(path) or hub.expanded(path)
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
