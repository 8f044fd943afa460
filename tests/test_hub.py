"""The real loading code against a server that speaks the hub's protocol.

It runs in processes of its own, since the hub's client reads its address when it is imported.
"""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml

from tests.hub_server import Repository, serve
from wq import hub
from wq.catalogue import conf_dir
from wq.hub import ASSETS
from wq.study.spec.config import DatasetConfig
from wq.study.speech.datasets import load_speech
from wq.study.speech.parquet import split_files
from wq.whisper.checkpoint.files import content_hash

TEXTS = {"test": ["one", "two words", "three", "four"], "validation": ["five"], "train.100": ["six"]}


PROGRAM = """
import json, sys
from wq.study.spec.config import DatasetConfig
from wq.study.speech.datasets import load_speech
from wq.whisper.checkpoint.files import content_hash, locate

def answer(model=None, dataset=None, limit=None):
    if model:
        directory = locate(**model)
        return {"directory": str(directory), "content_hash": content_hash(directory)}
    speech = load_speech(DatasetConfig(**dataset), limit=limit)
    return {
        "content_hash": speech.content_hash,
        "ids": [utterance.id for utterance in speech.utterances],
        "texts": [utterance.text for utterance in speech.utterances],
        "samples": [len(speech.read(index, 16_000)) for index in range(len(speech.utterances))],
    }

for request in json.loads(sys.argv[1]):
    value, error = {}, ""
    try:
        value = answer(**request)
    except ValueError as caught:
        error = f"{type(caught).__name__}: {caught}"
    print(json.dumps({"value": value, "error": error}))
"""


@dataclass
class Answer:
    """What a request came to."""

    value: dict
    error: str


def ask(request: dict, home: Path, endpoint: str, **environment: str) -> Answer:
    return ask_all([request], home, endpoint, **environment)[0]


def ask_all(requests: list[dict], home: Path, endpoint: str, **environment: str) -> list[Answer]:
    """What the loading code makes of requests, in one process, with its cache under `home`."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))
    }
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "NO_PROXY": "*"}
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(requests)],
        env=inherited | settings | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    answers = [Answer(**json.loads(line)) for line in process.stdout.splitlines()]
    assert len(answers) == len(requests)
    return answers


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint, beside what repositories hold besides."""
    directory = tmp_path_factory.mktemp("repository") / "checkpoint"
    shutil.copytree(ASSETS / "nano", directory)
    for name in ("pytorch_model.bin", "model.fp32-00001-of-00002.safetensors", "flax_model.msgpack"):
        (directory / name).write_bytes(b"not to be fetched")
    (directory / "onnx").mkdir()
    (directory / "onnx" / "config.json").write_text("{}")
    return directory


def flac(seed: int) -> bytes:
    """Half a second of noise at 16 kHz."""
    buffer = io.BytesIO()
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, 8_000)
    soundfile.write(buffer, samples, 16_000, format="FLAC")
    return buffer.getvalue()


def write_parquet(file: Path, split: str) -> None:
    texts = TEXTS[split]
    table = pa.table(
        {
            "id": [f"{split}-{number}" for number in range(len(texts))],
            "speaker": [7] * len(texts),
            "audio": [{"bytes": flac(number), "path": f"{number}.flac"} for number in range(len(texts))],
            "text": texts,
        }
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A dataset repository with a card, and its conversion without one; the script there is not to be run."""
    root = tmp_path_factory.mktemp("corpus")
    (root / "main").mkdir()
    entries = "".join(f"  - split: {split}\n    path: clean/{split}/*\n" for split in TEXTS)
    (root / "main" / "README.md").write_text(
        f"---\nconfigs:\n- config_name: clean\n  data_files:\n{entries}"
        "- config_name: other\n  data_files:\n  - split: test\n    path: other/test-*\n---\n# A corpus\n"
    )
    (root / "main" / "corpus.py").write_text("raise SystemExit('a loading script was run')")
    for split in TEXTS:
        write_parquet(root / "main" / "clean" / split / "0000.parquet", split)
        write_parquet(root / "converted" / "clean" / split / "0000.parquet", split)
    return Repository(
        "dataset", "someone/corpus", {"main": root / "main", "refs/convert/parquet": root / "converted"}
    )


def config(**changes: str | None) -> dict:
    """A request for the corpus."""
    return {
        "dataset": {
            "source": "hub",
            "path": "someone/corpus",
            "config": "clean",
            "split": "test",
            "id_column": "id",
            **changes,
        }
    }


def nowhere() -> str:
    """An address at which nothing listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


def test_checkpoint_is_fetched_once_then_cached(checkpoint: Path, tmp_path: Path) -> None:
    request = {"model": {"path": "someone/nano"}}
    with serve(Repository("model", "someone/nano", {"main": checkpoint})) as server:
        fetched = ask(request, tmp_path, server.url)
        assert fetched.error == ""
        assert fetched.value["content_hash"] == content_hash(ASSETS / "nano")
        needed = {"model.safetensors", "config.json", "generation_config.json", "preprocessor_config.json"}
        assert needed <= set(server.downloads())
        assert not {"pytorch_model.bin", "model.fp32-00001-of-00002.safetensors", "flax_model.msgpack"} & set(
            server.downloads()
        )
        assert not (Path(fetched.value["directory"]) / "onnx").exists()

        server.requests.clear()
        assert ask(request, tmp_path, server.url).value == fetched.value
        assert server.downloads() == []
    assert ask(request, tmp_path, nowhere()).value == fetched.value
    assert ask(request, tmp_path, server.url, HF_HUB_OFFLINE="1").value == fetched.value


def test_commit_is_fetched(checkpoint: Path, tmp_path: Path) -> None:
    repository = Repository("model", "someone/nano", {"main": checkpoint})
    (commit,) = repository.commits
    with serve(repository) as server:
        answer = ask({"model": {"path": "someone/nano", "revision": commit}}, tmp_path, server.url)
    assert Path(answer.value["directory"]).name == commit


def test_split_is_fetched_alone(corpus: Repository, tmp_path: Path) -> None:
    with serve(corpus) as server:
        answer = ask(config(), tmp_path, server.url)
        assert answer.error == ""
        assert answer.value["texts"] == TEXTS["test"]
        assert answer.value["ids"] == [f"test-{number}" for number in range(4)]
        assert answer.value["samples"] == [8_000] * 4
        assert [
            request for request in server.requests if request.endswith(".parquet") and "GET" in request
        ] == [f"GET /datasets/someone/corpus/resolve/{next(iter(corpus.commits))}/clean/test/0000.parquet"]
        assert not any("corpus.py" in request for request in server.requests)

        server.requests.clear()
        few = ask({**config(), "limit": 2}, tmp_path, server.url)
        assert few.value["texts"] == TEXTS["test"][:2]
        assert server.downloads() == []
    assert ask(config(), tmp_path, nowhere()).value == answer.value
    assert ask(config(), tmp_path, server.url, HF_HUB_OFFLINE="1").value == answer.value
    other = ask(config(split="validation"), tmp_path, nowhere())
    assert "cannot be reached" in other.error


def test_hub_and_manifest_are_the_same_dataset(corpus: Repository, tmp_path: Path) -> None:
    """The same recordings, texts and ids have the same content hash, wherever they come from."""
    lines = []
    for number, text in enumerate(TEXTS["test"]):
        (tmp_path / f"test-{number}.flac").write_bytes(flac(number))
        lines.append(json.dumps({"audio_filepath": f"test-{number}.flac", "text": text}))
    (tmp_path / "test.jsonl").write_text("\n".join(lines))
    speech = load_speech(DatasetConfig(source="manifest", path=str(tmp_path)))
    with serve(corpus) as server:
        answer = ask(config(revision="refs/convert/parquet"), tmp_path / "home", server.url)
    assert answer.value["content_hash"] == speech.content_hash
    assert ask(config(revision="refs/convert/parquet"), tmp_path / "home", nowhere()).value == answer.value


MODEL = {"model": {"path": "someone/nano"}}
OFFLINE_MODEL = ("cannot be reached", "model=nano", "model.path=DIRECTORY", "cache")
OFFLINE_DATA = ("cannot be reached", "dataset=commands", "dataset=manifest dataset.path=FILE", "cache")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("down", "refused"),
        ("silent", "no answer within 1 s"),
        ("failing", "HTTP status 503"),
        ("offline", "HF_HUB_OFFLINE is set"),
    ],
)
def test_unreachable_hub_is_told_at_once(
    fault: str, reason: str, checkpoint: Path, corpus: Repository, tmp_path: Path
) -> None:
    with serve(Repository("model", "someone/nano", {"main": checkpoint}), corpus) as server:
        server.silent = fault == "silent"
        server.status = 503 if fault == "failing" else None
        endpoint = nowhere() if fault == "down" else server.url
        variables = {"offline": {"HF_HUB_OFFLINE": "1"}, "silent": {"HF_HUB_ETAG_TIMEOUT": "1"}}.get(
            fault, {}
        )
        model, data = ask_all([MODEL, config()], tmp_path, endpoint, **variables)
    for answer, kind, says in (
        (model, "ModelError: model.path=someone/nano", OFFLINE_MODEL),
        (data, "DataError: dataset.path=someone/corpus", OFFLINE_DATA),
    ):
        assert answer.error.startswith(kind)
        assert "\n" not in answer.error
        for words in (endpoint, reason, *says):
            assert words in answer.error
    assert len(server.requests) <= 1  # not for every repository, and not again


REFUSED = [
    ({"model": {"path": "someone/nono"}}, ("someone/nono", "neither a local directory nor", "HF_TOKEN")),
    ({"model": {"path": "someone/gated"}}, ("someone/gated", "on request", "HF_TOKEN")),
    ({"model": {"path": "someone/nano", "revision": "v9"}}, ("no revision v9", "model.revision")),
    ({"model": {"path": "someone/corpus"}}, ("neither a local directory nor a public model",)),
    (config(path="someone/nono"), ("neither a local directory nor a public dataset",)),
    (config(split="tset"), ("split tset", "test, validation, train.100")),
    (config(config="claen"), ("dataset.config=claen", "clean, other")),
    (config(config=None), ("dataset.config=None", "clean, other")),
    (config(text_column="txt"), ("dataset.text_column=txt", "id, speaker, audio, text")),
    (config(id_column="uid"), ("dataset.id_column=uid", "id, speaker, audio, text")),
    (config(id_column="speaker"), ("the id 7 is taken", "dataset.id_column")),
    (config(audio_column="text"), ("dataset.audio_column=text", "holds no audio")),
    (config(revision="v9"), ("no revision v9", "dataset.revision")),
    (config(path="someone/scripted"), ("no parquet files", "refs/convert/parquet")),
    (config(path="someone/broken", config=None), ("cannot be read", "remove the dataset from the cache")),
]


@pytest.fixture(scope="module")
def refusals(
    checkpoint: Path, corpus: Repository, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Answer]:
    root = tmp_path_factory.mktemp("refusals")
    for name, file, content in (
        ("scripted", "scripted.py", "raise SystemExit('a loading script was run')"),
        ("broken", "data/test-00000-of-00001.parquet", "PAR1 and no more"),
    ):
        (root / name / file).parent.mkdir(parents=True)
        (root / name / file).write_text(content)
    with serve(
        Repository("model", "someone/nano", {"main": checkpoint}),
        Repository("model", "someone/gated", {"main": checkpoint}, gated=True),
        Repository("dataset", "someone/scripted", {"main": root / "scripted"}),
        Repository("dataset", "someone/broken", {"main": root / "broken"}),
        corpus,
    ) as server:
        requests = [request for request, _ in REFUSED]
        answers = ask_all(requests, root / "home", server.url)
    return {json.dumps(request): answer for request, answer in zip(requests, answers, strict=True)}


@pytest.mark.parametrize(("request_", "says"), REFUSED)
def test_refusals_are_one_line(request_: dict, says: tuple[str, ...], refusals: dict[str, Answer]) -> None:
    answer = refusals[json.dumps(request_)]
    assert answer.error.startswith("ModelError: " if "model" in request_ else "DataError: ")
    assert "\n" not in answer.error
    for words in says:
        assert words in answer.error


def test_interrupted_download_is_not_taken_for_whole(checkpoint: Path, tmp_path: Path) -> None:
    with serve(Repository("model", "someone/nano", {"main": checkpoint})) as server:
        server.cut_after = 1_000
        error = ask(MODEL, tmp_path, server.url).error
        assert error.startswith("ModelError: model.path=someone/nano: the download from")
        assert "\n" not in error
        assert "cannot be reached" in ask(MODEL, tmp_path, server.url, HF_HUB_OFFLINE="1").error
        server.cut_after = None
        answer = ask(MODEL, tmp_path, server.url)
    assert answer.value["content_hash"] == content_hash(ASSETS / "nano")


def choices(group: str) -> list[tuple[str, dict]]:
    """The config group's options that name something on the hub."""
    read = [
        (file.stem, yaml.safe_load(file.read_text())) for file in sorted((conf_dir() / group).glob("*.yaml"))
    ]
    return [
        (name, option)
        for name, option in read
        if option.get("source", "hub") == "hub" and ":" not in option["path"]
    ]


@pytest.mark.hub
@pytest.mark.parametrize(("name", "option"), choices("model"))
def test_models_are_on_the_hub(name: str, option: dict) -> None:
    snapshot = hub.fetch(option["path"], "model", option.get("revision"), ["config.json"])
    files = set(hub.files(option["path"], "model", snapshot))
    needed = {"model.safetensors", "generation_config.json", "preprocessor_config.json", "tokenizer.json"}
    assert needed <= files, name


@pytest.mark.hub
@pytest.mark.parametrize(("name", "option"), choices("dataset"))
def test_datasets_are_on_the_hub(name: str, option: dict) -> None:
    config = DatasetConfig(**option)
    for split in (config.split, config.calibration_split):
        assert split
        _, files = split_files(config, split)
        assert all(split in file and str(config.config) in file for file in files), name
