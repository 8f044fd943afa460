"""The real command line, in miniature: one job, a grid, the same grid again, a killed one, and everything
that can be mistyped."""

import csv
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.conftest import GRID as GRID_COMMAND
from tests.conftest import REAL, Run, environment, run_jobs, some_slow
from wq.study.store.columns import undeclared
from wq.study.store.tracking import GRID, PARENT, Store

POINTS = {
    "fp32",
    "int4-g32",
    "nvfp4-g32",
    *(f"{name} + smoothquant-0.5 + calibrated on 2" for name in ("int4-g32", "nvfp4-g32")),
}


def runs_of(directory: Path, status: str = "FINISHED") -> list:
    """Runs of points in the store, the grids' parents left out."""
    store = Store(f"sqlite:///{directory}/mlflow.db", "wq")
    runs = store.client.search_runs([store.experiment_id], f"attributes.status = '{status}'")
    return [run for run in runs if GRID not in run.data.tags]


def sweeps(directory: Path) -> list[Path]:
    return sorted(path.parent for path in directory.glob("multirun/*/*/multirun.yaml"))


def table(output: str) -> list[str]:
    """The lines of the final table."""
    lines = output.splitlines()
    header = next(n for n, line in enumerate(lines) if line.split()[:2] == ["point", "WER"])
    return lines[header : header + 1 + len(POINTS)]


def test_a_grid(grid: Path):
    """Its files, its table, and its runs in the store."""
    said = (grid / "stdout").read_text()
    assert {run.data.params["point"] for run in runs_of(grid)} == POINTS
    (sweep,) = sweeps(grid)
    for name in ("report.html", "pareto.png", "results.csv"):
        assert (sweep / name).stat().st_size > 0
        assert str(sweep.relative_to(grid) / name) in said
    assert {row["point"] for row in csv.DictReader((sweep / "results.csv").open())} == POINTS
    assert all(point in said for point in POINTS)

    row = json.loads((sweep / "0" / "result.json").read_text())
    assert row["point"] == "int4-g32"
    assert undeclared(row) == []
    assert row["bits_per_weight"] == 4.5
    assert 0 <= row["wer_ci_low"] <= row["wer"] <= row["wer_ci_high"]
    assert row["wer_delta_ci_low"] <= row["wer_delta"] <= row["wer_delta_ci_high"]
    transcripts = [json.loads(line) for line in (sweep / "0" / "hypotheses.jsonl").read_text().splitlines()]
    assert len(transcripts) == 3
    assert sum(row["errors"] for row in transcripts) / sum(row["words"] for row in transcripts) == row["wer"]

    store = Store(f"sqlite:///{grid}/mlflow.db", "wq")
    (parent,) = store.client.search_runs([store.experiment_id], f"tags.`{GRID}` != ''")
    assert parent.info.status == "FINISHED"
    assert {run.data.tags[PARENT] for run in runs_of(grid)} == {parent.info.run_id}
    assert {artifact.path for artifact in store.client.list_artifacts(parent.info.run_id)} >= {"report.html"}
    child = next(run for run in runs_of(grid) if run.data.tags["point"] == "int4-g32")
    assert child.data.metrics["wer"] == row["wer"]
    assert {a.path for a in store.client.list_artifacts(child.info.run_id)} == {
        "result.json",
        "transcripts.json",
        "hypotheses.jsonl",
    }
    assert child.inputs.dataset_inputs[0].dataset.name.startswith("commands ")


def copy_grid(grid: Path, directory: Path) -> None:
    """Into a directory, which the copied store's artifacts are then in."""
    shutil.copytree(grid, directory, dirs_exist_ok=True)
    with sqlite3.connect(directory / "mlflow.db") as database:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            database.execute(
                f"update {table} set {column} = replace({column}, ?, ?)", [str(grid), str(directory)]
            )


def test_the_same_grid_again_and_one_more_format(fork: Run, grid: Path, tmp_path: Path):
    copy_grid(grid, tmp_path)
    again = fork("-m", *GRID_COMMAND, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert len(runs_of(tmp_path)) == len(POINTS)
    assert again.stdout.count("(from the store)") == 4
    assert table(again.stdout) == table((grid / "stdout").read_text())

    more = fork("-m", *GRID_COMMAND, "format=int4,int8", "smoothquant=none", cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert len(runs_of(tmp_path)) == len(POINTS) + 1

    rebuilt = fork("report", "format=int4,int8", module="wq", cwd=tmp_path)
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert (tmp_path / "outputs" / "report" / "report.html").exists()
    assert "int8-g32" in rebuilt.stdout
    assert "nvfp4" not in rebuilt.stdout


@pytest.mark.slow
def test_a_killed_grid_is_finished_by_the_same_command(wq: Run, tmp_path: Path):
    killed = subprocess.Popen(
        [sys.executable, "-m", "wq.main", "-m", *GRID_COMMAND],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("multirun/*/*/0/result.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = {run.data.tags["point"]: run.info.run_id for run in runs_of(tmp_path)}
    assert before.keys() < POINTS

    finished = wq("-m", *GRID_COMMAND)
    assert finished.returncode == 0, finished.stderr
    after = {run.data.tags["point"]: run.info.run_id for run in runs_of(tmp_path)}
    assert after.keys() == POINTS
    assert len(runs_of(tmp_path)) == len(POINTS)
    assert before.items() <= after.items()
    assert not runs_of(tmp_path, "RUNNING")


def test_one_job_prints_its_line(wq: Run, tmp_path: Path):
    job = wq("format=fp8_e4m3", "granularity=channel", "group=32", "limit=3", "resamples=50")
    assert job.returncode == 0, job.stderr
    assert "group=32 has no effect on fp8_e4m3-channel" in job.stderr
    (line,) = [line for line in job.stdout.splitlines() if line.startswith("fp8_e4m3-channel")]
    assert "MB" in line
    assert "%" in line


@pytest.mark.slow
def test_a_renamed_checkpoint_is_the_same_point_under_its_own_name(wq: Run, tmp_path: Path):
    from wq.whisper.checkpoint.files import locate

    shutil.copytree(locate("wq:nano"), tmp_path / "copy")
    arguments = ("format=int4", "limit=3", "resamples=50")
    wq(*arguments)
    again = wq("model.path=./copy", *arguments)
    assert "(from the store)" in again.stdout
    directory = max(tmp_path.glob("outputs/*/*"))
    row = json.loads((directory / "result.json").read_text())
    assert row["model"] == "copy"
    assert row["limit"] == 3
    assert row["command"] == "python -m wq.main model.path=./copy format=int4 limit=3 resamples=50"
    assert len((directory / "hypotheses.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
@pytest.mark.parametrize("module", ["wq.main", "wq sensitivity"])
def test_a_job_in_the_background_is_stopped_by_sigterm(tmp_path: Path, module: str):
    """A shell starts background jobs with SIGINT ignored; SIGTERM must end them all the same."""
    job = subprocess.Popen(
        [sys.executable, "-m", *module.split(), "format=int4", "batch_size=1"],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".wq/locks/*.lock")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(4)  # into the transcription
    job.send_signal(signal.SIGTERM)
    _, stderr = job.communicate(timeout=30)
    assert job.returncode == 130, stderr
    assert stderr.strip().endswith("interrupted")
    assert {run.info.status for run in runs_of(tmp_path, "KILLED")} == {"KILLED"}
    assert not list(tmp_path.rglob("result.json"))


@pytest.mark.slow
def test_a_failing_job_leaves_the_others(wq: Run, tmp_path: Path):
    grid = wq("-m", "roles=[encoder],[decodr]", "limit=2", "resamples=50")
    assert grid.returncode == 1
    assert "role decodr matches no layer" in grid.stderr
    assert "Traceback" not in grid.stderr
    assert "int8-g128@encoder" in grid.stdout
    (sweep,) = sweeps(tmp_path)
    assert (sweep / "0" / "result.json").exists()
    assert (sweep / "report.html").exists()
    assert {path.name for path in (sweep / "1").iterdir()} == {".hydra", ".wq.sha256", "error.txt"}


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/real with its checkpoint and speech is not there")
def test_real_weights_and_real_speech(wq: Run, tmp_path: Path):
    job = wq(
        f"model.path={REAL / 'checkpoint'}",
        *("dataset=manifest", f"dataset.path={REAL / 'speech'}", "dataset.split=test"),
        *("format=fp8_e4m3", "granularity=channel", "limit=8", "max_new_tokens=40", "resamples=50"),
    )
    assert job.returncode == 0, job.stderr
    (run,) = [run for run in runs_of(tmp_path) if run.data.params["format"] == "fp8_e4m3"]
    assert run.data.metrics["wer"] < 1


# --- what people mistype, lose and break --------------------------------------------------------------------


def manifest(directory: Path, *lines: str) -> None:
    (directory / "m.jsonl").write_text("".join(f"{line}\n" for line in lines))


def speech(directory: Path, name: str, seconds: float = 1.0) -> str:
    samples = np.random.default_rng(0).uniform(-0.1, 0.1, int(16_000 * seconds)).astype(np.float32)
    soundfile.write(directory / name, samples, 16_000)
    return json.dumps({"audio_filepath": name, "text": "hello", "id": name})


def no_whisper(directory: Path) -> None:
    (directory / "bert").mkdir()
    (directory / "bert" / "config.json").write_text('{"model_type": "bert"}')


def corrupt_checkpoint(directory: Path) -> None:
    from wq.whisper.checkpoint.files import locate

    shutil.copytree(locate("wq:nano"), directory / "nano")
    weights = directory / "nano" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1_000_000])


def corrupt_audio(directory: Path) -> None:
    manifest(directory, speech(directory, "a.wav"), speech(directory, "b.flac"))
    (directory / "b.flac").write_bytes(b"fLaC" + bytes(100))


def empty_audio(directory: Path) -> None:
    manifest(directory, speech(directory, "a.wav", seconds=0))


DATA = ("dataset=manifest", "dataset.path=m.jsonl")

# name: (arguments, what is prepared, what the one line must hold)
MISTAKES = {
    "unknown format": (["format=int44"], None, ["int44", "int4", "nvfp4"]),
    "unknown model": (["model=tinny"], None, ["tinny", "tiny"]),
    "unknown key": (["grop=32"], None, ["grop"]),
    "unknown key in a group": (["format.bits=4"], None, ["bits"]),
    "wrong type": (["group=many"], None, ["group", "many"]),
    "wrong type in a grid": (["-m", "group=32,many"], None, ["group", "many"]),
    "-m in the midst": (["seed=1", "-m", "group=32,many"], None, ["group", "many"]),
    "negative group": (["group=-1"], None, ["group=-1 must be at least 1", "null"]),
    "no batch": (["batch_size=0"], None, ["batch_size=0 must be at least 1"]),
    "unknown granularity": (["granularity=row"], None, ["granularity=row", "tensor, channel, group"]),
    "unknown device": (["device=tpu"], None, ["device=tpu", "cpu, cuda"]),
    "absent device": (["device=cuda:97"], None, ["cuda:97", "device=cpu"]),
    "impossible format": (["format=int", "format.integer_bits=99"], None, ["integer_bits=99", "2 to 16"]),
    "unknown role": (
        ["roles=[encodr]", "limit=1"],
        None,
        ["role encodr matches no layer", "encoder.mlp.fc1"],
    ),
    "missing checkpoint": (["model.path=./nowhere"], None, ["./nowhere does not exist"]),
    "hub without a network": (["model=tiny_en"], None, ["openai/whisper-tiny.en", "model=nano"]),
    "dataset without a network": (["dataset=librispeech_clean"], None, ["librispeech", "dataset=commands"]),
    "no whisper": (["model.path=./bert"], no_whisper, ["./bert is no Whisper", "give a Whisper checkpoint"]),
    "corrupt checkpoint": (
        ["model.path=./nano"],
        corrupt_checkpoint,
        ["model.safetensors is corrupt or cut off"],
    ),
    "missing manifest": ([*DATA], None, ["m.jsonl does not exist"]),
    "missing path": (["dataset=manifest"], None, ["dataset.path"]),
    "missing split": (["dataset.split=tset"], None, ["tset", "clean"]),
    "no JSON": ([*DATA], lambda d: manifest(d, speech(d, "a.wav"), "{hello"), ["m.jsonl:2", "not JSON"]),
    "missing key": ([*DATA], lambda d: manifest(d, '{"text": "hello"}'), ["m.jsonl:1", "audio_filepath"]),
    "missing audio": (
        [*DATA],
        lambda d: manifest(d, '{"audio_filepath": "gone.wav", "text": "hello"}'),
        ["m.jsonl:1", "gone.wav does not exist"],
    ),
    "path that leads out": (
        [*DATA],
        lambda d: manifest(d, '{"audio_filepath": "../../etc/passwd", "text": "hello"}'),
        ["m.jsonl:1", "leads out of"],
    ),
    "corrupt audio": ([*DATA], corrupt_audio, ["b.flac"]),
    "empty audio": ([*DATA], empty_audio, ["a.wav is empty"]),
    "empty manifest": ([*DATA], manifest, ["m.jsonl", "no utterance"]),
}


# One of Hydra's, of a grid's, of a job's and of the data's; the others are told by the same few lines
TOLD_BY_A_PROCESS = {
    "unknown format",
    "wrong type in a grid",
    "-m in the midst",
    "unknown role",
    "corrupt audio",
}


@pytest.mark.parametrize("mistake", some_slow(MISTAKES, TOLD_BY_A_PROCESS))
def test_a_process_answers_mistakes_in_one_line(wq: Run, tmp_path: Path, mistake: str):
    check_mistake(wq, tmp_path, mistake)


@pytest.mark.parametrize("mistake", [name for name in MISTAKES if "-m" not in MISTAKES[name][0]])
def test_mistakes_are_answered_in_one_line(here: Run, empty_store: Path, tmp_path: Path, mistake: str):
    shutil.copy(empty_store, tmp_path)
    check_mistake(lambda *arguments: here(run_jobs, *arguments), tmp_path, mistake)


def check_mistake(ask: Run, directory: Path, mistake: str) -> None:
    arguments, prepare, expected = MISTAKES[mistake]
    if prepare:
        prepare(directory)
    answer = ask(*arguments)
    assert answer.returncode == 1, answer.stdout + answer.stderr
    errors = answer.stderr.strip().splitlines()
    assert len(errors) == 1, answer.stderr
    assert errors[0].startswith("error: ")
    for part in expected:
        assert part in errors[0]
    assert not list(directory.rglob("result.json"))
    assert not list(directory.rglob("hypotheses.jsonl"))


def test_the_traceback_is_there_for_who_asks(wq: Run):
    answer = wq("group=-1", HYDRA_FULL_ERROR="1")
    assert answer.returncode == 1
    assert "Traceback" in answer.stderr


@pytest.mark.slow
def test_audio_of_any_rate_and_channels_is_read(wq: Run, tmp_path: Path):
    """Resampled, mixed down, cut to the window, and counted; not refused."""
    from wq.whisper.checkpoint.files import locate

    source = locate("wq:nano").parent / "commands"
    row = json.loads((source / "clean.jsonl").read_text().splitlines()[0])
    audio, _ = soundfile.read(source / row["audio_filepath"], dtype="float32")
    import soxr

    soundfile.write(tmp_path / "plain.wav", audio, 16_000)
    soundfile.write(tmp_path / "fast.wav", soxr.resample(audio, 16_000, 44_100), 44_100)
    soundfile.write(tmp_path / "stereo.wav", np.stack([audio, audio], axis=1), 16_000)
    soundfile.write(tmp_path / "long.wav", np.concatenate([audio, np.zeros(16_000 * 9, np.float32)]), 16_000)
    names = ("plain.wav", "fast.wav", "stereo.wav", "long.wav")
    manifest(tmp_path, *(json.dumps({"audio_filepath": name, "text": row["text"]}) for name in names))
    job = wq(*DATA, "format=fp32", "resamples=50")
    assert job.returncode == 0, job.stderr
    assert "1 of 4 utterances" in job.stderr
    assert "window" in job.stderr
    (transcripts,) = tmp_path.glob("outputs/*/*/hypotheses.jsonl")
    texts = {json.loads(line)["pred_text"] for line in transcripts.read_text().splitlines()}
    assert len(texts) == 1
    (result,) = tmp_path.glob("outputs/*/*/result.json")
    assert json.loads(result.read_text())["cut_utterances"] == 1


def test_help_lists_what_can_be_chosen(wq: Run):
    text = wq("--help")
    assert text.returncode == 0
    for part in ("nvfp4", "tiny_en", "librispeech_clean", "-m format=int4,nvfp4 group=32,128", "batch_size"):
        assert part in text.stdout
    commands = wq("--help", module="wq")
    assert commands.returncode == 0
    assert "report" in commands.stdout
    unknown = wq("raport", module="wq")
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("error: wq raport is no command; did you mean report? choose one of")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ["--help", "size --help", "size details=true", "run limit=2"])
def test_nobody_has_to_read_to_the_end(arguments: str, tmp_path: Path):
    command = f"{sys.executable} -m wq {arguments} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0
    for told in ("error: ", "Broken pipe", "Traceback"):  # libraries may warn of things of theirs
        assert told not in done.stderr
