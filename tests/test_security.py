"""What a checkpoint, a manifest or a network must not be able to do, and what nobody may find in results."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.conftest import REPOSITORY, Run
from tests.test_launchers import until
from tests.test_slurm import free_ports
from wq.commands import export, sensitivity
from wq.console import without_password
from wq.whisper.checkpoint.files import ModelError, locate
from wq.whisper.checkpoint.model import load

SECRET = "hunter2-0b5d"
SECRETS = {
    name: f"{SECRET}-{name}"
    for name in (
        "HF_TOKEN",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "GITHUB_TOKEN",
        "MY_API_KEY",
    )
}
FEW = ("limit=2", "resamples=50", "max_new_tokens=8")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the shipped one, to be tampered with."""
    return Path(shutil.copytree(locate("wq:nano"), tmp_path / "checkpoint"))


class Evil:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


PICKLES = ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "model.pt", "flax_model.msgpack")


@pytest.mark.parametrize("with_safetensors", [True, False])
def test_no_pickle_of_a_checkpoint_is_read(checkpoint: Path, tmp_path: Path, with_safetensors: bool):
    mark = tmp_path / "executed"
    for name in PICKLES:
        (checkpoint / name).write_bytes(pickle.dumps(Evil(mark)))
    if with_safetensors:
        load(locate(str(checkpoint)))
    else:
        (checkpoint / "model.safetensors").unlink()
        with pytest.raises(ModelError, match="wq loads no pickles"):
            locate(str(checkpoint))
        with pytest.raises(ModelError):  # nor by who does not ask first
            load(checkpoint)
    assert not mark.exists()
    pickle.loads((checkpoint / "training_args.bin").read_bytes())
    assert mark.exists()  # it would have been


def test_no_code_of_a_checkpoint_is_run(checkpoint: Path, tmp_path: Path):
    mark = tmp_path / "executed"
    (checkpoint / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nclass Evil: pass\n"
    )
    classes = (
        "AutoConfig",
        "AutoTokenizer",
        "AutoModelForSpeechSeq2Seq",
        "AutoFeatureExtractor",
        "AutoProcessor",
    )
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        file = checkpoint / name
        content = json.loads(file.read_text()) if file.exists() else {}
        auto_map = {each: ["evil.Evil", None] if "Token" in each else "evil.Evil" for each in classes}
        file.write_text(json.dumps(content | {"auto_map": auto_map}))
    with suppress(ModelError):  # which would be an answer too
        load(locate(str(checkpoint)))
    assert not mark.exists()


def test_weights_outside_of_the_checkpoint_are_not_read(checkpoint: Path, tmp_path: Path):
    weights = checkpoint / "model.safetensors"
    shutil.copy(weights, tmp_path / "outside.safetensors")
    weights.rename(checkpoint / "model-00001-of-00001.safetensors")
    for place in ("../outside.safetensors", str(tmp_path / "outside.safetensors")):
        index = {"metadata": {}, "weight_map": {"model.encoder.conv1.weight": place}}
        (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ModelError, match=rf"lacks {place}, which model.safetensors.index.json names"):
            locate(str(checkpoint))


TABLES = {
    "m.jsonl": '{"audio_filepath": "PATH", "text": "hello"}',
    "folder/transcripts.csv": "file_name,text\nPATH,hello",
    "folder/metadata.tsv": "file_name\ttext\nPATH\thello",
    "folder/transcripts.txt": "PATH hello",
    "folder/a.trans.txt": "PATH hello",
}


@pytest.mark.parametrize("path", ["../secret.wav", "x/../../secret.wav", "./../secret"])
@pytest.mark.parametrize("table", TABLES)
def test_no_table_leads_out_of_its_directory(tmp_path: Path, table: str, path: str):
    from wq.study.spec.config import DatasetConfig
    from wq.study.speech.audio import DataError
    from wq.study.speech.datasets import load_speech

    file = tmp_path / "data" / table
    file.parent.mkdir(parents=True)
    (file.parent.parent / "secret.wav").write_bytes(b"RIFF")
    file.write_text(TABLES[table].replace("PATH", path))
    source = ("folder", file.parent) if file.parent.name == "folder" else ("manifest", file)
    with pytest.raises(DataError, match="leads out of") as refused:
        load_speech(DatasetConfig(source=source[0], path=str(source[1]), split="test"))
    assert "\n" not in str(refused.value)
    assert "give a path inside it, or an absolute path" in str(refused.value)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://host:5000/wq", "http://host:5000/wq"),
        ("http://me@host", "http://me@host"),
        (f"http://me:{SECRET}@host:5000", "http://me:***@host:5000"),
        (f"http://:{SECRET}@host", "http://:***@host"),
        (f"postgresql://me:p@{SECRET}@host/wq", "postgresql://me:***@host/wq"),
        (
            f"postgresql://host/wq?user=me&password={SECRET}&x=1",
            "postgresql://host/wq?user=me&password=***&x=1",
        ),
        (f"no http://a:{SECRET}@b and no http://c:{SECRET}@d", "no http://a:***@b and no http://c:***@d"),
        ("sqlite:///a:b/c@d.db", "sqlite:///a:b/c@d.db"),
    ],
)
def test_addresses_are_shown_without_their_password(uri: str, shown: str):
    assert without_password(uri) == shown


def leaks(directory: Path) -> list[Path]:
    """Files that hold a secret."""
    return [path for path in directory.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


@pytest.mark.slow
def test_no_result_holds_what_the_environment_does(wq: Run, tmp_path: Path):
    """A grid with a point that fails, then its report: nothing of it, nor of its store, tells a secret."""
    done = wq("-m", "format=int4", "roles=[encoder],[decodr]", *FEW, **SECRETS)
    assert "int4-g128@encoder" in done.stdout
    assert "role decodr matches no layer" in done.stderr
    report = wq("report", module="wq", **SECRETS)
    assert report.returncode == 0, report.stderr
    assert SECRET not in done.stdout + done.stderr + report.stdout + report.stderr
    names = {path.name for path in tmp_path.rglob("*")}
    assert names >= {"result.json", "error.txt", "mlflow.db", "report.html", "results.csv"}
    assert leaks(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "uri", ["http://me:{}@127.0.0.1:9", "postgresql://me:{}@127.0.0.1:9/wq", "mysql://me:{}@host:port/wq"]
)
def test_no_message_shows_the_password_of_a_store(wq: Run, tmp_path: Path, uri: str):
    done = wq("format=int4", *FEW, MLFLOW_TRACKING_URI=uri.format(SECRET))
    assert "me:***@" in done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert leaks(tmp_path) == []


@pytest.mark.parametrize("several", [(), ("-m",)])
def test_a_password_on_the_command_line_is_refused(wq: Run, tmp_path: Path, several: tuple[str, ...]):
    done = wq(*several, "format=int4", f"tracking_uri=http://me:{SECRET}@127.0.0.1:9", *FEW)
    assert done.returncode == 1
    assert done.stderr == (
        "error: tracking_uri=http://me:***@127.0.0.1:9 holds a password, which would be kept with every "
        "result; set MLFLOW_TRACKING_URI to the address instead\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]  # which was there before


@pytest.mark.parametrize("command", [sensitivity.tell, export.export])
def test_so_is_one_where_a_subcommand_keeps_its_command_line(command, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"me:\*\*\*@127.0.0.1:9 holds a password"):
        command(["format=int4", "out=here", f"tracking_uri=http://me:{SECRET}@127.0.0.1:9", *FEW])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_page_is_served_to_this_machine_only(tmp_path: Path):
    """`make ui`, the real thing, on another port."""
    shown = subprocess.run(
        ["make", "-n", "--no-print-directory", "ui"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    command = shown.splitlines()[-1].replace(".venv/bin/mlflow", f"exec {Path(sys.executable).parent}/mlflow")
    server = subprocess.Popen(
        ["bash", "-c", f"{command} --port {free_ports(1)[0]}"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    process = psutil.Process(server.pid)

    def listening() -> set[str]:
        family = [process, *process.children(recursive=True)]
        sockets = [each for one in family for each in one.net_connections() if each.status == "LISTEN"]
        return {socket.laddr.ip for socket in sockets}

    try:
        until(listening, 60)
        assert listening() <= {"127.0.0.1", "::1"}
    finally:
        os.killpg(server.pid, 9)
        server.wait()
