"""What processes know of the machine: its devices, and whose process ids are whose."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wq.processes import machine, visible_gpus
from wq.study.grid import progress
from wq.study.store.results import PLAN, read_row
from wq.study.store.tracking import HOST, PID, is_dead, whereabouts

CHOSEN = {
    "": [],
    "-1": [],
    "NoDevFiles": [],
    "none": [],
    "void": [],
    "0": ["0"],
    "1, 0": ["1", "0"],
    "0,-1,1": ["0"],  # as CUDA reads it
    "0,x": ["0"],
    "GPU-8932f937,MIG-1b2c/1/0": ["GPU-8932f937", "MIG-1b2c/1/0"],
}


@pytest.mark.parametrize("chosen", CHOSEN)
def test_devices_are_those_that_cuda_sees(monkeypatch, chosen: str):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert visible_gpus() == CHOSEN[chosen]


def test_process_ids_of_another_container_say_nothing(tmp_path: Path, monkeypatch):
    """Under the same name, and with a process of the same id."""
    progress.write_plan(tmp_path, "", {0: []}, {0: "0"}, {})
    tags = whereabouts()
    assert progress.is_alive(read_row(tmp_path / PLAN))
    dead = {PID: str(2**22 + 1)}  # beyond the largest there is
    assert is_dead(tags | dead)
    for module in ("wq.study.grid.progress", "wq.study.store.tracking"):
        monkeypatch.setattr(f"{module}.machine", lambda: f"{machine()} pid:[1]")
    assert progress.is_alive(read_row(tmp_path / PLAN)) is None
    assert not is_dead(tags | dead)
    (point,) = progress.look(tmp_path)
    assert (point.state, point.reason) == ("missing", f"no result yet; on {tags[HOST]} wq status knows more")


def test_a_narrow_encoding_ends_nothing():
    script = "from wq.console import print_anything; print_anything(); print('naïve — 你好')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "na?ve ? ??\n"


def test_torchao_says_nothing_that_is_not_ours():
    script = (
        "import logging, wq.whisper\n"
        "for name in ('torchao', 'torchao.ops', 'torch.utils._pytree'): logging.getLogger(name).warning(name)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
