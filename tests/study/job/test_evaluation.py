"""What a job leaves and finds again, run in this process on a few utterances of the shipped model."""

import json
import shutil
from pathlib import Path

import pytest

from wq.study.store import results

SETTINGS = ("limit=2", "device=cpu", "resamples=50", "reuse=false")


def run(directory: Path, *overrides: str) -> dict:
    """One job in a directory of its own: the row of its point."""
    from wq.main import run
    from wq.study.spec.composition import compose

    arguments = [*overrides, *SETTINGS]
    (config,) = compose(arguments)
    run(config, directory, arguments)
    return results.read_row(directory / results.RESULT)


def test_a_reference_without_accounts_runs_once_more(tmp_path, monkeypatch, capsys, empty_store):
    """As a version of wq that knew no kl has left it: the new point has it all the same, the next one finds
    what that has left, and nothing of it changes a transcript."""
    shutil.copy(empty_store, tmp_path)
    monkeypatch.chdir(tmp_path)
    first = run(tmp_path / "a", "format=int8")
    assert first["kl"] > 0
    kept = list(tmp_path.rglob(results.ACCOUNTS))
    assert len(kept) == 2  # beside the reference of this job, and in the store
    for path in kept:
        path.unlink()
    second = run(tmp_path / "b", "format=int4")
    assert "the reference's results are of a version of wq that measured no kl" in capsys.readouterr().err
    assert second["kl"] > first["kl"]
    assert results.read_row(tmp_path / "b" / results.REFERENCE)["kl"] == 0
    assert len(list(tmp_path.rglob(results.ACCOUNTS))) == 2
    (tmp_path / "b" / "reference" / results.ACCOUNTS).unlink()
    third = run(tmp_path / "c", "format=nvfp4")
    assert "measured no kl" not in capsys.readouterr().err
    assert third["kl"] > 0
    rows = [
        json.loads(line)
        for line in (tmp_path / "c" / results.HYPOTHESES).read_text(encoding="utf-8").splitlines()
    ]
    assert sum(row["kl"] for row in rows) / sum(row["kl_tokens"] for row in rows) == pytest.approx(
        third["kl"]
    )
    for path in tmp_path.rglob(results.ACCOUNTS):
        path.write_bytes(path.read_bytes()[:1000])  # cut off
    assert run(tmp_path / "e", "format=int6")["kl"] > 0
    assert "measured no kl" in capsys.readouterr().err
    again = run(tmp_path / "d", "format=int8")
    assert again["kl"] == first["kl"]
    assert "from the store" in capsys.readouterr().out
