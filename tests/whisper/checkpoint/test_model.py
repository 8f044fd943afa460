"""Checkpoints: what is accepted, what is refused and how it is said, and that loading changes nothing."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from tests.conftest import REAL
from wq.catalogue import conf_dir
from wq.hub import ASSETS
from wq.study.spec.config import ModelConfig
from wq.whisper.checkpoint.files import UNTIED, ModelError, content_hash, is_multilingual, locate
from wq.whisper.checkpoint.geometry import read_geometry, skeleton
from wq.whisper.checkpoint.model import load

NANO = ASSETS / "nano"
TOKENIZER = json.loads((NANO / "tokenizer.json").read_text())
SPECIAL = {token["content"]: token["id"] for token in TOKENIZER["added_tokens"]}
VOCABULARY = max(max(TOKENIZER["model"]["vocab"].values()), *SPECIAL.values()) + 1

WEIGHT = "model.decoder.layers.0.fc1.weight"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Whisper with a window of two seconds, in float16, as bare as a checkpoint may be: of a
    tokenizer it has tokenizer.json alone, and its generation config says next to nothing."""
    directory = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=VOCABULARY,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=100,
        max_target_positions=32,
        decoder_start_token_id=SPECIAL["<|startoftranscript|>"],
        pad_token_id=SPECIAL["<|endoftext|>"],
        bos_token_id=SPECIAL["<|endoftext|>"],
        eos_token_id=SPECIAL["<|endoftext|>"],
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(eos_token_id=config.eos_token_id)
    model.half().save_pretrained(directory)
    WhisperFeatureExtractor(chunk_length=2).save_pretrained(directory)
    shutil.copy(NANO / "tokenizer.json", directory)
    return directory


@pytest.fixture
def checkpoint(pristine: Path, tmp_path: Path) -> Path:
    """A copy, to be spoiled."""
    return Path(shutil.copytree(pristine, tmp_path / "checkpoint"))


def rewrite_json(name: str, **changes: object) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        content = json.loads((directory / name).read_text()) | changes
        (directory / name).write_text(json.dumps(content))

    return change


def rewrite_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})

    return rewrite


def remove(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda directory: (directory / name).write_bytes(content)


def cut(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def pickle_only(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def call(name: str) -> Callable[[Path], None]:
    """The same weights by this name."""

    def rename(directory: Path) -> None:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / "model.safetensors").rename(directory / name)

    return rename


def adapter(directory: Path) -> None:
    (directory / "config.json").unlink()
    (directory / "model.safetensors").rename(directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text('{"peft_type": "LORA"}')


def nest(name: str) -> Callable[[Path], None]:
    def move(directory: Path) -> None:
        files = list(directory.iterdir())
        (directory / name).mkdir()
        for file in files:
            file.rename(directory / name / file.name)

    return move


def shard(directory: Path) -> None:
    """Two files and an index, as large checkpoints have."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def lose_a_shard(directory: Path) -> None:
    shard(directory)
    (directory / "model-00002-of-00002.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (remove("config.json"), "no config.json"),
        (write("config.json", b"{"), "config.json is not JSON"),
        (write("config.json", b"[]"), "no JSON object"),
        (
            rewrite_json("config.json", model_type="wav2vec2"),
            "no Whisper (model_type in config.json: wav2vec2)",
        ),
        (rewrite_json("config.json", quantization_config={"bits": 4}), "quantized already"),
        (remove("preprocessor_config.json"), "no preprocessor"),
        (remove("tokenizer.json"), "no tokenizer"),
        (remove("model.safetensors"), "no model.safetensors"),
        (pickle_only, "pytorch_model.bin is a pickle, and wq loads no pickles: convert"),
        (call("model.fp16.safetensors"), "model.fp16.safetensors is safetensors by another name: rename it"),
        (call("whisper.safetensors"), "rename it to model.safetensors"),
        (call("tiny.pt"), "wq loads no pickles: convert"),
        (call("flax_model.msgpack"), "transformers 4"),
        (call("tf_model.h5"), "transformers 4"),
        (call("model.bin"), "CTranslate2's (faster-whisper): give the checkpoint that it was made from"),
        (call("ggml-model-q5_0.bin"), "whisper.cpp's (ggml): give the checkpoint"),
        (call("model-Q4_K.gguf"), "whisper.cpp's (ggml): give the checkpoint"),
        (call("onnx/encoder_model.onnx"), "ONNX's: give the checkpoint"),
        (call("weights.npz"), "MLX's: give the checkpoint"),
        (call("openvino_encoder_model.xml"), "OpenVINO's: give the checkpoint"),
        (adapter, "adapter_config.json is an adapter's (LoRA), which is no whole model: merge it"),
        (write("quantize_config.json", b"{}"), "quantized already; give the checkpoint it was made from"),
        (write("quant_config.json", b"{}"), "quantized already; give the checkpoint it was made from"),
        (nest("checkpoint-500"), "has no config.json; checkpoint-500 below it has: give that"),
        (cut, "corrupt or cut off"),
        (write("model.safetensors", b"not safetensors"), "corrupt or cut off"),
        (write("model.safetensors", b""), "corrupt or cut off"),
        (lose_a_shard, "lacks model-00002-of-00002.safetensors"),
    ],
)
def test_locate_refuses(spoil: Callable[[Path], object], says: str, checkpoint: Path) -> None:
    assert locate(str(checkpoint)) == checkpoint
    spoil(checkpoint)
    with pytest.raises(ModelError) as caught:
        locate(str(checkpoint))
    assert says in str(caught.value)
    assert str(checkpoint) in str(caught.value)
    assert "\n" not in str(caught.value)


def add_a_token(directory: Path) -> None:
    content = json.loads((directory / "tokenizer.json").read_text())
    content["added_tokens"].append(content["added_tokens"][-1] | {"id": VOCABULARY, "content": "<|new|>"})
    (directory / "tokenizer.json").write_text(json.dumps(content))


def name_languages(task: bool = True) -> Callable[[Path], None]:
    """A tokenizer that has languages, with or without <|transcribe|>."""

    def change(directory: Path) -> None:
        file = directory / "tokenizer.json"
        text = file.read_text().replace("<|startoflm|>", "<|de|>").replace("<|startofprev|>", "<|fr|>")
        file.write_text(text if task else text.replace("<|transcribe|>", "<|write|>"))

    return change


def spoil_layer(tensors: dict[str, torch.Tensor]) -> None:
    tensors[WEIGHT][3, 1] = float("nan")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (rewrite_tensors(lambda tensors: tensors.pop(WEIGHT)), f"lacks {WEIGHT}"),
        (rewrite_json("config.json", decoder_layers=2), "lacks model.decoder.layers.1."),
        (
            rewrite_tensors(
                lambda tensors: tensors.update({"model.encoder.layers.1.fc1.bias": torch.ones(32)})
            ),
            "has no use for model.encoder.layers.1.fc1.bias",
        ),
        (
            rewrite_tensors(lambda tensors: tensors.update({WEIGHT: torch.ones(32, 8)})),
            f"has the wrong shape for {WEIGHT}",
        ),
        (rewrite_tensors(spoil_layer), f"has NaN or Inf in {WEIGHT}"),
        (
            rewrite_json("preprocessor_config.json", feature_size=128),
            "gives 128 mel bins, the encoder takes 80",
        ),
        (
            rewrite_json("preprocessor_config.json", chunk_length=30, n_samples=480_000, nb_max_frames=3_000),
            "gives 3000 frames, the encoder takes 200",
        ),
        (rewrite_json("config.json", decoder_start_token_id=1), "token 1 of the decoder"),
        (rewrite_json("config.json", vocab_size=VOCABULARY - 1), "has the wrong shape for"),
        (add_a_token, f"the tokenizer has {VOCABULARY + 1} tokens, the decoder {VOCABULARY}"),
        (
            rewrite_json("generation_config.json", no_timestamps_token_id=SPECIAL["<|nospeech|>"]),
            "of the decoder (no_timestamps_token_id), which the tokenizer has as <|nospeech|>",
        ),
        (
            rewrite_json("generation_config.json", eos_token_id=[1, 2]),
            "token 1 of the decoder (eos_token_id)",
        ),
        (
            rewrite_json("generation_config.json", eos_token_id=[]),
            "eos_token_id gives <|endoftext|> the id None",
        ),
        (
            rewrite_json("generation_config.json", decoder_start_token_id=SPECIAL["<|translate|>"]),
            "(decoder_start_token_id), which the tokenizer has as <|translate|>",
        ),
        (
            rewrite_json("generation_config.json", is_multilingual=True, lang_to_id={"<|de|>": 5}),
            "<|de|> is no token of the tokenizer and token 5 of the decoder (lang_to_id)",
        ),
        (
            rewrite_json(
                "generation_config.json", is_multilingual=True, lang_to_id={"<|de|>": VOCABULARY + 3}
            ),
            f"lang_to_id gives <|de|> the id {VOCABULARY + 3}, and the decoder has {VOCABULARY} tokens",
        ),
        (
            rewrite_json("generation_config.json", is_multilingual=True, task_to_id={"transcribe": 7}),
            "(task_to_id)",
        ),
        (name_languages(task=False), "say is_multilingual: true or false in generation_config.json"),
        (write("tokenizer.json", b"{}"), "cannot load this checkpoint"),
    ],
)
def test_load_refuses(spoil: Callable[[Path], object], says: str, checkpoint: Path) -> None:
    spoil(checkpoint)
    with pytest.raises(ModelError) as caught:
        load(locate(str(checkpoint)))
    assert says in str(caught.value)
    assert str(checkpoint) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("./nowhere", "does not exist"),
        ("/nowhere/at/all", "does not exist"),
        ("~/nowhere-at-all", "does not exist"),
        ("a/b/c", "does not exist"),
        ("nowhere/", "does not exist"),
        ("wq:giant", "shipped checkpoints: wq:nano"),
        (str(Path(__file__)), "is a file"),
    ],
)
def test_locate_refuses_paths_without_asking_the_hub(
    path: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wq.hub.fetch", lambda *_: pytest.fail("the hub was asked"))
    with pytest.raises(ModelError) as caught:
        locate(path)
    assert says in str(caught.value)
    assert path in str(caught.value)


def test_locate_imports_neither_torch_nor_transformers() -> None:
    script = (
        "import sys; from wq.whisper.checkpoint.files import content_hash, locate;"
        "content_hash(locate('wq:nano'));"
        "print([name for name in ('torch', 'transformers', 'huggingface_hub') if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def test_tensors_are_the_files_in_float32(pristine: Path) -> None:
    stored = load_file(pristine / "model.safetensors")
    whisper = load(pristine)
    loaded = whisper.model.state_dict()
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    for name, tensor in stored.items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], tensor.float()), name
    assert set(loaded) - set(stored) == {"proj_out.weight"}
    assert whisper.model.proj_out.weight is whisper.model.model.decoder.embed_tokens.weight
    assert not whisper.model.training
    assert not any(parameter.requires_grad for parameter in whisper.model.parameters())
    assert whisper.model.config._attn_implementation == "sdpa"


def test_geometry_and_defaults_of_a_bare_checkpoint(pristine: Path) -> None:
    whisper = load(pristine, name="bare")
    assert whisper.name == "bare"
    assert whisper.sampling_rate == 16_000
    assert whisper.window_seconds == 2.0
    assert not whisper.is_multilingual
    assert whisper.max_new_tokens == 32 - 2  # <|startoftranscript|> <|notimestamps|>
    settings = whisper.model.generation_config
    assert settings is not None
    assert settings.no_timestamps_token_id == SPECIAL["<|notimestamps|>"]  # type: ignore[attr-defined]
    features = whisper.feature_extractor(
        [torch.zeros(16_000).numpy()], sampling_rate=16_000, return_tensors="pt"
    )
    assert len(whisper.model.generate(features.input_features, max_new_tokens=3)) == 1


@pytest.mark.parametrize("said", [True, False])
def test_generation_config_has_the_word_on_languages(said: bool, checkpoint: Path) -> None:
    rewrite_json("generation_config.json", is_multilingual=said, forced_decoder_ids=[[1, 7]])(checkpoint)
    whisper = load(checkpoint)
    assert whisper.is_multilingual is said
    assert whisper.max_new_tokens == 32 - (4 if said else 2)
    assert whisper.model.generation_config.forced_decoder_ids is None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "multilingual"),
    [
        (lambda _: None, False),
        (name_languages(), True),  # in a vocabulary smaller than OpenAI's
        (rewrite_json("generation_config.json", lang_to_id={"<|de|>": SPECIAL["<|startoflm|>"]}), True),
    ],
)
def test_the_tokenizer_has_the_word_where_the_checkpoint_is_silent(change, multilingual, checkpoint) -> None:
    change(checkpoint)
    assert is_multilingual(checkpoint) is multilingual
    assert read_geometry(checkpoint).prompt_length == (4 if multilingual else 2)


@pytest.mark.parametrize(
    ("file", "end", "multilingual"),
    [
        ("tokenizer.json", 50_256, False),  # OpenAI's English-only tokenizer has the languages too
        ("tokenizer.json", 50_257, True),
        ("tokenizer.json", 31_000, True),  # a vocabulary that was pruned
        ("added_tokens.json", 50_256, False),
        ("added_tokens.json", 50_257, True),
        ("tokenizer_config.json", 50_257, True),
        ("tokenizer_config.json", 31_000, True),
    ],
)
@pytest.mark.parametrize("size", [30_000, 51_864, 51_865])
def test_the_vocabulary_s_size_tells_nothing(file, end, multilingual, size, tmp_path) -> None:
    names = ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|zh|>", "<|translate|>", "<|transcribe|>")
    tokens = dict(zip(names, range(end, end + len(names)), strict=True))
    listed = [{"content": token, "id": id} for token, id in tokens.items()]
    contents = {
        "tokenizer.json": {"added_tokens": listed},
        "added_tokens.json": tokens,
        "tokenizer_config.json": {"added_tokens_decoder": {str(each["id"]): each for each in listed}},
    }
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / file).write_text(json.dumps(contents[file]))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "whisper", "vocab_size": size}))
    assert is_multilingual(tmp_path) is multilingual


def test_a_tokenizer_that_names_no_special_tokens_tells_nothing(tmp_path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(ModelError, match=r"say is_multilingual: true or false in generation_config\.json"):
        is_multilingual(tmp_path)


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({}, ""),
        (
            {"no_repeat_ngram_size": 3, "repetition_penalty": 1.2},
            "repetition_penalty=1.2, no_repeat_ngram_size=3",
        ),
        ({"no_repeat_ngram_size": 0, "repetition_penalty": 1.0, "num_beams": 1, "do_sample": False}, ""),
        ({"num_beams": 5}, "num_beams=5"),
        ({"do_sample": True, "temperature": 0.4, "top_k": 5}, "do_sample=True"),
        ({"temperature": 0.4, "top_k": 5, "use_cache": False, "output_attentions": True}, ""),
        ({"bad_words_ids": [[1]]}, "bad_words_ids=[[1]]"),
        ({"min_new_tokens": 2}, "min_new_tokens=2"),
        ({"max_length": 448}, ""),
        ({"max_length": 17}, "max_length=17"),  # room for 16 tokens after a prompt of 2 needs 18
        ({"max_new_tokens": 16}, ""),
        ({"max_new_tokens": 15}, "max_new_tokens=15"),
        ({"return_timestamps": True}, "return_timestamps=True"),
        ({"return_timestamps": False, "task": "transcribe", "a_note": "of my own"}, ""),
        ({"task": "translate"}, "task=translate"),
        ({"suppress_tokens": [1], "begin_suppress_tokens": [2], "forced_decoder_ids": [[1, 7]]}, ""),
    ],
)
def test_entries_of_the_generation_config_that_are_not_followed_are_told(entries, told, checkpoint) -> None:
    rewrite_json("generation_config.json", **entries)(checkpoint)
    notices = load(checkpoint, name="mine").notices
    begin = "mine: its generation config has "
    assert [text.removeprefix(begin).partition(", which is not")[0] for text in notices] == [told] * bool(
        told
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("head", "tied", "separate"),
    [
        ("own", True, True),
        ("own", False, True),
        ("same", False, True),
        ("same", True, False),
        (None, True, False),
    ],
)
def test_a_head_of_its_own_is_counted_once_and_told(head, tied, separate, dtype, checkpoint) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        embedding = tensors["model.decoder.embed_tokens.weight"].to(torch.bfloat16).to(dtype)
        tensors["model.decoder.embed_tokens.weight"] = embedding
        if head:
            tensors["proj_out.weight"] = (embedding * (2 if head == "own" else 1)).clone()

    rewrite_tensors(add)(checkpoint)
    rewrite_json("config.json", tie_word_embeddings=tied)(checkpoint)
    whisper, geometry = load(checkpoint), read_geometry(checkpoint)
    count = sum(parameter.numel() for parameter in whisper.model.parameters())
    assert count == sum(parameter.numel() for parameter in skeleton(geometry).parameters())
    assert geometry.tie_word_embeddings is not separate
    assert [UNTIED in notice for notice in whisper.notices] == [True] * separate


def test_languages_come_from_the_tokenizer_where_the_checkpoint_is_silent(checkpoint: Path) -> None:
    tokenizer = checkpoint / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("<|startoflm|>", "<|de|>"))
    rewrite_json("generation_config.json", is_multilingual=True)(checkpoint)
    whisper = load(checkpoint)
    settings: Any = whisper.model.generation_config
    assert settings.lang_to_id == {"<|de|>": SPECIAL["<|startoflm|>"]}
    assert settings.task_to_id == {task: SPECIAL[f"<|{task}|>"] for task in ("translate", "transcribe")}
    features = whisper.feature_extractor(
        [torch.zeros(16_000).numpy()], sampling_rate=16_000, return_tensors="pt"
    )
    generated: Any = whisper.model.generate(
        features.input_features,
        language="de",
        task="transcribe",
        max_new_tokens=3,
        return_dict_in_generate=True,
    )
    prompt = ("<|startoftranscript|>", "<|startoflm|>", "<|transcribe|>", "<|notimestamps|>")
    assert generated.sequences[0, :4].tolist() == [SPECIAL[token] for token in prompt]


def test_shards_are_one_checkpoint(pristine: Path, checkpoint: Path) -> None:
    shard(checkpoint)
    whole = load(pristine).model.state_dict()
    for name, tensor in load(locate(str(checkpoint))).model.state_dict().items():
        assert torch.equal(tensor, whole[name]), name


def test_content_hash_is_of_the_content(pristine: Path, checkpoint: Path) -> None:
    expected = content_hash(pristine)
    for file in checkpoint.iterdir():
        os.utime(file, (1, 1))
    for name in ("README.md", "pytorch_model.bin", "model.fp32-00001-of-00002.safetensors"):
        (checkpoint / name).write_text("no part of it")
    assert content_hash(checkpoint) == expected
    matter = ("config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json")
    for name in (*matter, "tokenizer.json"):
        file = checkpoint / name
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert content_hash(checkpoint) != expected, name
        file.unlink()
        assert content_hash(checkpoint) != expected, name
        file.write_bytes(content)
    assert content_hash(checkpoint) == expected


@pytest.mark.parametrize("file", sorted((conf_dir() / "model").glob("*.yaml")), ids=lambda file: file.stem)
def test_choices_fit_the_schema(file: Path) -> None:
    text = file.read_text()
    assert text.startswith("# ")
    path = ModelConfig(**yaml.safe_load(text)).path
    assert re.sub(r"\W", "", path).endswith(file.stem.replace("_", ""))


def test_shipped_checkpoint(nano) -> None:
    assert nano.window_seconds == 5.0
    assert not nano.is_multilingual
    assert nano.model.dtype == torch.float32


def test_real_weights() -> None:
    checkpoint = REAL / "checkpoint"
    if not checkpoint.is_dir():
        pytest.skip("no real-weights checkpoint beside the repository (../shared/real)")
    whisper = load(locate(str(checkpoint)))
    assert whisper.window_seconds == 8.0
    assert not whisper.is_multilingual
    assert whisper.max_new_tokens == 446
