"""Peak memory, as every job measures it: it grows neither with the test set nor with the jobs before."""

import json
from pathlib import Path

import pytest

from tests.test_faults import command
from wq.whisper.checkpoint.files import locate

JOBS = 200


def peaks(directory: Path) -> list[int]:
    """Bytes by job, in the order in which they ended."""
    found = sorted(directory.glob("*/result.json"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(path.read_text())["peak_memory_bytes"] for path in found]


@pytest.mark.slow
def test_a_test_set_twenty_times_as_long_takes_no_more_memory(tmp_path: Path):
    source = locate("wq:nano").parent / "commands"
    lines = (source / "clean.jsonl").read_text().splitlines()[:8]
    utterances = [json.loads(line) for line in lines]
    used = []
    for times in (1, 20):
        rows = [
            row | {"id": f"{n}-{i}", "audio_filepath": str(source / row["audio_filepath"])}
            for n in range(times)
            for i, row in enumerate(utterances)
        ]
        manifest = tmp_path / f"{times}.jsonl"
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = ("dataset=manifest", f"dataset.path={manifest}", f"hydra.run.dir=runs/{times}/job")
        process = command(tmp_path, "format=int4", *settings, "batch_size=8", "resamples=50")
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
        used += peaks(tmp_path / "runs" / str(times))
    print("bytes of 8 and of 160 utterances:", used)
    assert used[1] <= 1.1 * used[0]


@pytest.mark.slow
def test_a_long_grid_does_not_grow(tmp_path: Path):
    """Jobs in one process, as small as they can be."""
    groups = f"group=range(8,{8 + JOBS})"
    few = ("limit=1", "max_new_tokens=4", "resamples=40", "hydra.sweep.dir=grid")
    process = command(tmp_path, "-m", "format=int4", groups, *few)
    _, stderr = process.communicate(timeout=1500)
    assert process.returncode == 0, stderr
    used = peaks(tmp_path / "grid")
    assert len(used) == JOBS
    print("bytes of the tenth job and of the last:", used[9], used[-1])
    assert max(used[10:]) <= 1.05 * used[9]
