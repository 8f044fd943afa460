"""Result files: whole or absent; and what a grid's directories add up to."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wq import outputs
from wq.console import one_line
from wq.study.store import results


def test_rows_come_back_as_they_were(tmp_path):
    rows = [{"id": "a", "text": "naïve — “quotes” 日本\u2028x", "errors": None}, {"id": "b", "wer": 0.1}]
    results.write_rows(tmp_path / "x.jsonl", rows)
    assert results.read_rows(tmp_path / "x.jsonl") == rows
    results.write_row(tmp_path / "x.json", rows[0])
    assert results.read_row(tmp_path / "x.json") == rows[0]


def test_nothing_stays_where_writing_fails(tmp_path):
    with pytest.raises(TypeError):
        results.write_row(tmp_path / "x.json", {"unserialisable": object()})
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        outputs.write_whole(tmp_path / "taken", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_who_has_opened_the_old_file_reads_it_to_its_end(tmp_path):
    outputs.write_whole(tmp_path / "x.json", "the old one")
    with (tmp_path / "x.json").open() as reader:
        outputs.write_whole(tmp_path / "x.json", "new")
        assert reader.read() == "the old one"
    assert (tmp_path / "x.json").read_text() == "new"


def test_a_killed_writer_leaves_the_old_file_or_all_of_the_new_one(tmp_path):
    target = tmp_path / "result.json"
    script = (
        "import itertools, sys, pathlib; from wq.study.store.results import write_row\n"
        "for n in itertools.count(): write_row(pathlib.Path(sys.argv[1]), {'n': n, 'filler': [n] * 20000})"
    )
    for delay in (0.0, 0.03, 0.07):
        writer = subprocess.Popen([sys.executable, "-c", script, str(target)])
        while not target.exists():
            time.sleep(0.01)
        time.sleep(delay)
        writer.kill()
        writer.wait()
        row = json.loads(target.read_text())
        assert row["filler"] == [row["n"]] * 20000


def job(sweep: Path, number: int, **files: object) -> Path:
    directory = sweep / str(number)
    directory.mkdir(parents=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (directory / results.__dict__[name]).write_text(text)
    return directory


def test_collect(tmp_path):
    finished = {"status": "finished", "wer": 0.1}
    reference = {"fingerprint": "ref", "point": "fp32", **finished}
    job(tmp_path, 0, RESULT={"fingerprint": "one", "point": "int4", **finished}, REFERENCE=reference)
    job(tmp_path, 1, RESULT={"fingerprint": "one", "point": "int4", **finished}, REFERENCE=reference)
    job(tmp_path, 2, ERROR="group=-1 must be at least 1\n\nTraceback ...", REFERENCE=reference)
    job(tmp_path, 10, REFERENCE=reference)
    job(tmp_path, 7, RESULT={"fingerprint": "other", "point": "int8", **finished})  # of an earlier grid
    settings = ["format=int4", "group=32"]
    points = [{"number": n, "overrides": settings, "job": None} for n in (0, 1, 2, 10, 11)]
    (tmp_path / results.PLAN).write_text(json.dumps({"points": points}))
    rows = results.collect(tmp_path)
    assert [(row["point"], row["status"]) for row in rows] == [
        ("fp32", "finished"),
        ("int4", "finished"),
        ("format=int4 group=32", "failed"),
        ("format=int4 group=32", "failed"),
    ]
    assert [row["error"] for row in rows[2:]] == ["group=-1 must be at least 1", "did not finish"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("group=0 must be at least 1"), "group=0 must be at least 1"),
        (ValueError("two\n  lines"), "two lines"),
        (RuntimeError("sizes differ"), "RuntimeError: sizes differ"),
        (KeyError("text"), "KeyError: 'text'"),
        (ValueError(), "ValueError: "),
    ],
)
def test_one_line(error, line):
    assert one_line(error) == line


def test_one_line_tells_the_cause_of_what_hydra_says():
    from hydra.errors import ConfigCompositionException
    from omegaconf.errors import ValidationError

    error = ConfigCompositionException("Error merging override group=many")
    error.__cause__ = ValidationError("'many' is no Integer\n    full_key: group\n    object_type=Config")
    assert one_line(error) == "Error merging override group=many 'many' is no Integer"
    refusal = ValueError("x.json is not JSON (line 1); write JSON")
    refusal.__cause__ = ValueError("line 1")
    assert one_line(refusal) == "x.json is not JSON (line 1); write JSON"


def test_failure_keeps_the_line_and_the_trace(tmp_path):
    try:
        raise ValueError("group=0 must be at least 1")
    except ValueError as error:
        results.write_failure(tmp_path, error)
    text = (tmp_path / results.ERROR).read_text()
    assert text.startswith("group=0 must be at least 1\n\nTraceback")
    assert f'File "{os.path.realpath(__file__)}"' in text or "test_results.py" in text
