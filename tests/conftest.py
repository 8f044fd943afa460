"""What several tests share: the shipped model and speech, and the real command line in an empty directory."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Before torch is imported: workers with a thread for every core each would wait for one another most of the
# time, up to seven times as long. A test that is about threads sets its own.
os.environ["OMP_NUM_THREADS"] = "1"

REPOSITORY = Path(__file__).parents[1]
REAL = REPOSITORY.parent / "shared" / "real"

Run = Callable[..., subprocess.CompletedProcess[str]]
Launch = Callable[..., "subprocess.Popen[str]"]


def environment(**more: str) -> dict[str, str]:
    """Of a command that is tested: without what the tests' own shell has set for wq and its libraries."""
    own = ("MLFLOW", "HYDRA", "WQ", "HF_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return inherited | {"HF_HUB_OFFLINE": "1"} | more


@pytest.fixture
def wq(tmp_path: Path) -> Run:
    """`python -m wq.main ARGUMENTS` in an empty directory, with a store of its own."""

    def run(*arguments: str, module: str = "wq.main", **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=tmp_path,
            env=environment(**more),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


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
