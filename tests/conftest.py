"""What several tests share: the shipped model and speech, and the real command line in an empty directory."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Before torch is imported: workers with a thread for every core each would wait for one another most of the
# time, up to seven times as long. A test that is about threads sets its own.
os.environ["OMP_NUM_THREADS"] = "1"

# Most properties are tried on every format, so that a few examples each are many; the same ones each time, so
# that what fails was changed. `make test-all` looks further. A busy machine must fail neither
settings.register_profile("fast", max_examples=25, deadline=None, derandomize=True)
settings.register_profile("slow", max_examples=200, deadline=None)
settings.load_profile("fast")

REPOSITORY = Path(__file__).parents[1]
REAL = REPOSITORY.parent / "shared" / "real"


Run = Callable[..., subprocess.CompletedProcess[str]]
Launch = Callable[..., "subprocess.Popen[str]"]


def environment(**more: str) -> dict[str, str]:
    """Of a command that is tested: without what the tests' own shell has set for wq and its libraries."""
    own = ("MLFLOW", "HYDRA", "WQ", "HF_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return inherited | {"HF_HUB_OFFLINE": "1"} | more


@pytest.fixture(scope="session")
def fork(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """`python -m MODULE ARGUMENTS` in a directory, without waiting for Python and its imports each time."""
    output = [tmp_path_factory.mktemp("output") / name for name in ("stdout", "stderr")]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.forkserver"],
        cwd=REPOSITORY,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        requests, codes = server.stdin, server.stdout
        assert requests
        assert codes

        def run(*arguments: str, module: str = "wq.main", cwd: Path, **more: str):
            for file in output:
                file.write_text("")
            request = {
                "module": module,
                "arguments": arguments,
                "directory": str(cwd),
                "environment": environment(**more),
                "output": [str(file) for file in output],
            }
            print(json.dumps(request), file=requests, flush=True)
            code = int(codes.readline())
            return subprocess.CompletedProcess(arguments, code, *(file.read_text() for file in output))

        yield run


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with nothing in it, to be copied: making its schema takes seconds."""
    from wq.study.store.tracking import Store

    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    assert Store(f"sqlite:///{database}", "wq").client
    return database


@pytest.fixture
def wq(tmp_path: Path, fork: Run, empty_store: Path) -> Run:
    """`python -m wq.main ARGUMENTS` in a directory of its own, with an empty store."""
    shutil.copy(empty_store, tmp_path)

    def run(*arguments: str, module: str = "wq.main", **more: str) -> subprocess.CompletedProcess[str]:
        return fork(*arguments, module=module, cwd=tmp_path, **more)

    return run


def run_jobs(arguments: list[str]) -> None:
    """As `python -m wq.main ARGUMENTS`, without Hydra's application around it."""
    from wq.main import run
    from wq.study.spec.composition import compose

    for number, config in enumerate(compose(arguments)):
        run(config, Path(f"job{number}"), arguments)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The function of a command on arguments, in this process, in a directory of its own. Its errors are told
    and counted as in a process."""
    from wq.console import Ending, report_errors

    monkeypatch.chdir(tmp_path)

    def run(command: Callable[[list[str]], None], *arguments: str) -> subprocess.CompletedProcess[str]:
        ending = Ending()
        monkeypatch.setattr("wq.console.ending", ending)
        with report_errors():
            command(list(arguments))
        return subprocess.CompletedProcess(arguments, ending.code, *capsys.readouterr())

    return run


GRID = (
    "format=int4,nvfp4",
    "smoothquant=none,fixed",
    "group=32",
    "limit=3",
    "resamples=50",
    "calibration.limit=2",
)


@pytest.fixture(scope="session")
def grid(tmp_path_factory: pytest.TempPathFactory, fork: Run) -> Path:
    """The directory of a finished grid of four points and their reference, only to be read; beside multirun/
    is its store, and in `stdout` what it has said."""
    directory = tmp_path_factory.mktemp("grid")
    done = fork("-m", *GRID, cwd=directory)
    assert done.returncode == 0, done.stderr
    (directory / "stdout").write_text(done.stdout)
    return directory


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """`python -m wq.main ARGUMENTS`, begun in an empty directory; at the test's end nothing of it is left."""
    begun = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "wq.main", *arguments],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # where the tests run in the background of a shell, it would be ignored
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        begun.append(process)
        return process

    yield begin
    for process in begun:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def some_slow(values: Iterable[Any], fast: Container[Any]) -> list[Any]:
    """Parameters of a test, of which all but the fast ones are slow."""
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]


def plan(layers, format: str, granularity: str = "group", group: int | None = None):
    """These layers, all quantized alike."""
    from wq.catalogue import load_format
    from wq.numerics.effective import Quantizer

    return [(layer, Quantizer(load_format(format), granularity, group)) for layer in layers]


@pytest.fixture(scope="session")
def nano():
    """The shipped model."""
    from wq.whisper.checkpoint.files import locate
    from wq.whisper.checkpoint.model import load

    return load(locate("wq:nano"))


@pytest.fixture(scope="session")
def commands():
    """The shipped test set's clean split."""
    from wq.study.spec.config import DatasetConfig
    from wq.study.speech.datasets import load_speech

    return load_speech(DatasetConfig(source="manifest", path="wq:commands", split="clean"))
