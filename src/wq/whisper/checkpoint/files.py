"""The files of a Whisper checkpoint: found, checked, and identified by their content.

A checkpoint is a directory in transformers' format: safetensors weights, config.json, a tokenizer and a
preprocessor. What is wrong with it is said before torch is imported, as far as it can be known by then.
"""

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from wq import hub
from wq.whisper.checkpoint.foreign import QUANTIZED, describe
from wq.whisper.checkpoint.languages import LANGUAGES

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
# Where <|endoftext|> stands in OpenAI's English-only tokenizer, which is GPT-2's; in the other, one further
GPT2_VOCABULARY = 50_256

HEAD_AND_EMBEDDING = (".proj_out.weight", ".decoder.embed_tokens.weight")
UNTIED = (
    "the output head is a matrix of its own, not the token embedding: it is counted as such and stays as it "
    "is, roles=[embedding] rounds the embedding alone"
)


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
    names = None
    if not directory.exists():
        if path.startswith((".", "/", "~")) or path.endswith("/") or path.count("/") > 1:
            raise ModelError(f"model.path={path} does not exist; give a checkpoint's directory or a hub id")
        try:
            directory = hub.fetch(path, "model", revision, FILES)
            names = None if _weights(directory) else hub.files(path, "model", directory)
        except hub.HubError as error:
            raise ModelError(str(error)) from error
    check(directory, path, names)
    return directory


def check(directory: Path, path: str, names: Iterable[str] | None = None) -> None:
    """Refuse a directory that is no whole Whisper checkpoint, by its files, config and safetensors headers.
    `names` are those of the files that it is from, where it holds a part of them.

    Raises:
        ModelError: names `path`, what is wrong, and the remedy.
    """
    if directory.is_file():
        form = None if (directory.parent / "config.json").is_file() else describe([directory.name])
        raise ModelError(f"model.path={path} is a file; {form or 'give the directory of its checkpoint'}")
    found = [*directory.glob("*"), *directory.glob("*/*")]
    names = names or [file.relative_to(directory).as_posix() for file in found]
    config_file = directory / "config.json"
    below = sorted({name.rpartition("/")[0] for name in names if name.endswith("/config.json")})
    if below and not config_file.is_file():
        raise ModelError(
            f"model.path={path} has no config.json; {' or '.join(below[:3])} below it has: give that"
        )
    if not _weights(directory) and (form := describe(Path(name).name for name in names)):
        raise ModelError(f"model.path={path} has no model.safetensors; {form}")
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
    if "quantization_config" in config or any((directory / name).is_file() for name in QUANTIZED):
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


def is_multilingual(directory: Path) -> bool:
    """Whether a checkpoint takes a language and a task, from its files alone: by the word of its generation
    config, or else by the languages among its tokenizer's tokens; by the vocabulary's size where there is no
    tokenizer at hand.

    Raises ModelError where the tokenizer does not tell.
    """
    config = _read_json(directory / "config.json")
    generation = directory / "generation_config.json"
    settings = _read_json(generation) if generation.is_file() else {}
    if (said := settings.get("is_multilingual")) is not None:
        return bool(said)
    if settings.get("lang_to_id"):
        return True
    if not any((directory / name).is_file() for name in TOKENIZERS):
        return config.get("vocab_size", MULTILINGUAL_VOCABULARY) >= MULTILINGUAL_VOCABULARY
    tokens = special_tokens(directory)
    languages = [token for token in tokens if token[2:-2] in LANGUAGES]
    end = tokens.get("<|endoftext|>")
    if not tokens or (languages and (end is None or "<|transcribe|>" not in tokens)):
        raise ModelError(
            f"{directory}: its tokenizer does not tell whether it is multilingual; say is_multilingual: true "
            "or false in generation_config.json"
        )
    # OpenAI's English-only tokenizer has the tokens of languages too, behind the vocabulary of GPT-2
    return bool(languages) and end != GPT2_VOCABULARY


def special_tokens(directory: Path) -> dict[str, int]:
    """The tokens <|...|> of a tokenizer and their ids, whichever of its files have them."""
    files = {
        name: _read_json(directory / name)
        for name in ("vocab.json", "added_tokens.json", "tokenizer_config.json", "tokenizer.json")
        if (directory / name).is_file()
    }
    found = files.get("vocab.json", {}) | files.get("added_tokens.json", {})
    known = files.get("tokenizer_config.json", {}).get("added_tokens_decoder", {})
    found |= {token["content"]: int(id) for id, token in known.items()}
    found |= {
        token["content"]: token["id"] for token in files.get("tokenizer.json", {}).get("added_tokens", ())
    }
    return {token: id for token, id in found.items() if token.startswith("<|") and token.endswith("|>")}


def has_own_head(directory: Path) -> bool:
    """Whether the weights hold an output head that is not the token embedding. Reads their headers, and with
    torch these two tensors where both are there; weights that are not at hand, or not whole, have none."""
    from safetensors import SafetensorError, safe_open

    places: dict[str, tuple[Path, str]] = {}
    for file in _weights(directory):
        with suppress(SafetensorError, OSError), safe_open(file, framework="numpy") as opened:
            for name in opened.keys():  # noqa: SIM118  no mapping
                places |= {kind: (file, name) for kind in HEAD_AND_EMBEDDING if f".{name}".endswith(kind)}
    if len(places) < len(HEAD_AND_EMBEDDING):
        return False
    tensors = []
    for file, name in places.values():
        with safe_open(file, framework="pt") as opened:
            tensors.append(opened.get_tensor(name).float())
    return not tensors[0].equal(tensors[1])


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


def _weights(directory: Path) -> list[Path]:
    return [file for pattern in WEIGHTS for file in sorted(directory.glob(pattern)) if file.suffix != ".json"]


def _check_weights(directory: Path, path: str) -> None:
    from safetensors import SafetensorError, safe_open

    shards = _weights(directory)
    if not shards:
        raise ModelError(
            f"model.path={path} has no model.safetensors; download it, or save the model anew with "
            "`save_pretrained`"
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
