"""What is kept between processes: whole, the same for all, bounded, and never needed."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import Run
from wq import caches
from wq.whisper.calibration.cache import cached
from wq.whisper.calibration.calibration import Observed

KIND = "calibration"

# Six entries kept and found over and over, under a limit that three of them fill; what is found must be whole
CROWD = """
import sys
from wq import caches
content = {key: f"{key} " * 1000 for key in "abcdef"}
for round in range(20):
    for key, text in content.items():
        file = caches.open_kept("calibration", key)
        if file:
            with file:
                assert open(file.name).read() == text, key
        else:
            caches.keep("calibration", key, lambda path: path.write_text(text))
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WQ_CACHE", str(tmp_path))
    caches._tell.cache_clear()
    return tmp_path / KIND


def keep(key: str, content: str) -> None:
    caches.keep(KIND, key, lambda path: path.write_text(content))


def found(key: str) -> str | None:
    file = caches.open_kept(KIND, key)
    if file is None:
        return None
    with file:
        return file.read().decode()


def age_by(path: Path, seconds: float) -> None:
    past = path.stat().st_mtime - seconds
    os.utime(path, (past, past))


def test_what_is_kept_is_found_by_what_it_was_made_from():
    assert found("a") is None
    keep("a", "first")
    keep("b", "other")
    assert (found("a"), found("b")) == ("first", "other")
    assert caches.digest({"x": 1, "y": 2}) == caches.digest({"y": 2, "x": 1}) != caches.digest({"x": 1})


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "longer"])
def test_a_damaged_entry_is_told_once_and_made_anew(place: Path, capsys, damage: str):
    keep("a", "content")
    (file,) = place.iterdir()
    whole = file.read_bytes()
    damaged = {"cut": whole[:3], "flipped": b"C" + whole[1:], "empty": b"", "longer": whole + b"\0"}[damage]
    file.write_bytes(damaged)
    assert found("a") is None
    assert found("a") is None
    assert capsys.readouterr().err == f"{file} is corrupt; it is made anew\n"
    keep("a", "content")
    assert found("a") == "content"


def test_the_least_recently_used_go(place: Path, monkeypatch):
    monkeypatch.setenv("WQ_CACHE_LIMIT", "3e-6")  # 3000 bytes
    for age, key in ((30, "a"), (20, "b"), (10, "c")):
        keep(key, key * 1000)
        (file,) = place.glob(f"{key}.*")
        age_by(file, age)
    assert found("a")  # and so it is used last
    keep("d", "d" * 1000)
    assert [bool(found(key)) for key in "abcd"] == [True, False, True, True]
    keep("e", "e" * 3001)  # more than there may be of all
    assert [bool(found(key)) for key in "abcde"] == [True, False, True, True, False]
    monkeypatch.setenv("WQ_CACHE_LIMIT", "0")
    keep("f", "f")
    assert found("f") is None


def test_what_another_process_uses_stays(place: Path):
    keep("a", "content")
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from wq import caches; f = caches.open_kept('calibration', 'a'); print(f.name); input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout
    holder.stdout.readline()
    caches.prune(0)
    assert found("a") == "content"
    holder.send_signal(signal.SIGKILL)  # and the dead use nothing
    holder.communicate()
    caches.prune(0)
    assert list(place.iterdir()) == []


def test_processes_do_not_disturb_each_other(place: Path):
    environment = os.environ | {"WQ_CACHE_LIMIT": "6e-6"}
    crowd = [
        subprocess.Popen([sys.executable, "-c", CROWD], env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    assert [process.communicate()[1] for process in crowd] == [""] * 8
    assert {process.returncode for process in crowd} == {0}
    assert not [path for path in place.iterdir() if path.name.startswith(".")]
    caches.prune(6000)  # what somebody was reading may have stayed until now
    assert 0 < sum(path.stat().st_size for path in place.iterdir()) <= 6000


def test_what_a_killed_writer_leaves_is_never_found_and_swept_up(place: Path):
    write = (
        "import os, signal; from wq import caches\n"
        "def save(path): path.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "caches.keep('calibration', 'a', save)"
    )
    assert subprocess.run([sys.executable, "-c", write], check=False).returncode == -signal.SIGKILL
    (left,) = place.iterdir()
    assert found("a") is None
    assert list(caches.entries(KIND)) == []
    assert left.exists()  # somebody may be at it
    age_by(left, 2 * caches.ABANDONED)
    assert list(caches.entries(KIND)) == []
    assert not left.exists()


def test_what_cannot_be_kept_is_told_once(monkeypatch, capsys):
    monkeypatch.setenv("WQ_CACHE", "/dev/null/x")
    for key in "ab":
        keep(key, "content")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("/dev/null/x/calibration cannot be written (")
    assert line.endswith("); what is made is not kept")


def test_a_full_disk_costs_no_result(place: Path, capsys):
    """A file-size limit says "too large" where a full disk says "no space": both are errors of writing."""
    a, b, c, d, e = (torch.zeros(1000) for _ in range(5))
    observed = {"layer": Observed(1, 0.0, 0.0, a, b, c, d, e, 0.0)}
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, unlimited[1]))
    try:
        assert cached({"model": "a"}, lambda: observed) is observed
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert capsys.readouterr().err.startswith(f"{place} cannot be written (")
    assert list(place.iterdir()) == []
    assert cached({"model": "a"}, lambda: observed) is observed
    assert cached({"model": "a"}, dict) != {}


def test_the_command_shows_and_clears(wq: Run, tmp_path: Path):
    keep("a", "x" * 20_000)
    keep("b", "y" * 20_000)
    caches.keep("kernels", "k", lambda path: path.write_text("z"))
    environment = {"module": "wq", "WQ_CACHE": str(tmp_path), "WQ_CACHE_LIMIT": "0.5"}
    shown = wq("cache", **environment).stdout.splitlines()
    assert [line.split()[:3] for line in shown[1:]] == [
        ["calibration", "2", "0.04"],
        ["kernels", "1", "0.00"],
        ["all", "3", "0.04"],
    ]
    assert shown[-1].endswith(f"of 500 (WQ_CACHE_LIMIT), in {tmp_path}")
    cleared = wq("cache", "clear", "kernels", **environment)
    assert cleared.stdout == "kernels: 1 entries removed, 0.00 MB\n"
    assert found("a")
    cleared = wq("cache", "clear", **environment)
    assert cleared.stdout.startswith("calibration: 2 entries removed, 0.04 MB\n")
    assert not found("a")


@pytest.mark.parametrize(
    ("arguments", "limit", "message"),
    [
        (
            "cache clean",
            "",
            "wq cache clean is nothing it can do; give wq cache, or wq cache clear [KIND ...]",
        ),
        ("cache clear kernel", "", "kernel is no kind of cache; choose one of calibration, kernels"),
        ("cache", "2GB", "WQ_CACHE_LIMIT=2GB is no number of gigabytes; give one, such as 5"),
        ("cache", "-1", "WQ_CACHE_LIMIT=-1 is no number of gigabytes; give one, such as 5"),
    ],
)
def test_mistakes_are_answered_in_one_line(wq: Run, arguments: str, limit: str, message: str):
    told = wq(*arguments.split(), module="wq", WQ_CACHE_LIMIT=limit)
    assert told.returncode == 1
    assert told.stderr == f"error: {message}\n"
