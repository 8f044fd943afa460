"""What is kept between transcriptions: the same bits, in no more room than was given, and gone afterwards."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from wq.study.speech.datasets import Speech
from wq.whisper.checkpoint.model import Whisper
from wq.whisper.decoding.decode import SAMPLING_RATE, transcribe
from wq.whisper.decoding.features import log_mel, with_silence, without_silence
from wq.whisper.decoding.row_cache import CachedRows, RowCaches

COUNT = 5


def keep(caches: RowCaches, key: str, rows: dict[int, torch.Tensor]):
    cache = caches.of(key)
    for index, row in rows.items():
        caches.keep(cache, index, row, samples=index)
    return cache


def rows_of(size: int, dtype=torch.float32) -> dict[int, torch.Tensor]:
    return {index: torch.randn(3, size, dtype=torch.float64).to(dtype).t() for index in range(COUNT)}


@pytest.mark.parametrize("memory", [0, 100, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_come_back_bit_for_bit(memory, dtype):
    rows = rows_of(8, dtype)
    caches = RowCaches(memory)
    cache = keep(caches, "a", rows)
    size = COUNT * 24 * dtype.itemsize
    assert caches.in_memory + caches.on_disk == size
    assert caches.in_memory <= memory
    assert cache.holds(range(COUNT))
    assert not cache.holds([0, COUNT])
    for index in reversed(range(COUNT)):
        assert cache.read(index).dtype == dtype
        assert torch.equal(cache.read(index), rows[index])
        assert cache.samples[index] == index
    rows[0].zero_()  # what was kept is a copy
    assert cache.read(0).any()


def test_the_longest_unused_cache_goes_first_and_no_limit_is_passed():
    caches = RowCaches(memory=400, disk=600)
    a, b = (keep(caches, key, {0: torch.zeros(50), 1: torch.zeros(50)}) for key in "ab")
    assert (a.in_memory, a.on_disk, b.in_memory, b.on_disk) == (400, 0, 0, 400)
    caches.of("a")  # used again
    c = keep(caches, "c", {0: torch.zeros(50), 1: torch.zeros(50)})
    assert (caches.in_memory, caches.on_disk) == (400, 400)
    assert [cache.holds([0, 1]) for cache in (a, b, c)] == [True, False, True]
    d = keep(caches, "d", {index: torch.zeros(50) for index in range(9)})  # more than there is room for
    assert a.rows == c.rows == {}
    assert sorted(d.rows) == list(range(5))
    assert (caches.in_memory, caches.on_disk) == (400, 600)
    caches.clear_all_but(["a"])
    assert (caches.in_memory, caches.on_disk) == (0, 0)


@pytest.mark.parametrize("place", ["/dev/full", "missing"])
def test_without_a_place_for_files_memory_is_all(place, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    if place == "/dev/full":
        full = Path(place).open("wb", 0)  # noqa: SIM115  for the cache to close
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda buffering: full)
    caches = RowCaches(memory=400, disk=10**9)
    cache = keep(caches, "a", rows_of(10))
    assert sorted(cache.rows) == [0, 1, 2]
    assert caches.on_disk == 0


def test_a_killed_process_leaves_no_files(tmp_path):
    script = (
        "import sys, time, torch\n"
        "from wq.whisper.decoding.row_cache import RowCaches\n"
        "caches = RowCaches(0)\n"
        "caches.keep(caches.of('a'), 0, torch.zeros(10**6), 1)\n"
        "print(caches.on_disk, flush=True)\n"
        "time.sleep(100)\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "4000000\n"
        assert not [path for path in tmp_path.rglob("*") if path.stat().st_size > 10**6]
        process.send_signal(signal.SIGKILL)
    assert not list(tmp_path.iterdir())


def test_features_without_their_silence(nano: Whisper, commands: Speech):
    audios = [commands.read(index, SAMPLING_RATE) for index in range(8)]
    features = log_mel(nano.feature_extractor, audios)
    short = [without_silence(row) for row in features]
    assert sum(row.numel() for row in short) < 0.6 * features.numel()
    for row, cut in zip(features, short, strict=True):
        assert torch.equal(with_silence(cut, features.shape[-1]), row)
    for row in (torch.ones(4, 10), torch.randn(4, 10)):
        assert torch.equal(with_silence(without_silence(row), 10), row)


@pytest.mark.parametrize("memory", [10**9, 3 * 10**6, 0])
def test_transcripts_are_the_same_with_what_was_kept(nano: Whisper, commands: Speech, memory):
    """At any batch size and in any order; times are told only of what was computed."""

    def run(cached, batch_size, order):
        read = lambda index: commands.read(index, SAMPLING_RATE)  # noqa: E731
        return transcribe(nano, read, order, batch_size=batch_size, cached=cached, max_new_tokens=12)

    forth, back = list(range(12)), list(range(11, -1, -1))
    plain = run(None, 5, forth)
    assert all([plain.rtfx, plain.features_seconds, plain.encode_seconds, plain.decode_seconds])
    caches = RowCaches(memory)
    both = CachedRows(caches, caches.of("features"), caches.of("states"))
    first = run(both, 5, forth)
    assert first.rtfx
    assert caches.in_memory <= memory
    only_features = run(CachedRows(caches, both.features), 7, back)
    assert only_features.features_seconds is None
    assert only_features.encode_seconds
    assert only_features.rtfx is None
    everything = run(both, 7, back)
    assert (everything.features_seconds, everything.encode_seconds, everything.rtfx) == (None, None, None)
    assert everything.decode_seconds > 0
    for again in (first, only_features, everything):
        assert again.transcripts == plain.transcripts
