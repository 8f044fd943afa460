"""What a report is of: any selection of a store, however its runs ended."""

import subprocess
import sys
from pathlib import Path

import pandas
import pytest

from tests.study.spec.test_spec import spec
from wq.commands.report import build
from wq.study.compare.selection import Selection, alternatives, check_values, of_stores, of_sweep
from wq.study.grid.progress import write_plan
from wq.study.spec.config import DatasetConfig
from wq.study.store import results
from wq.study.store.recording import TABLE, parameters, source, tags, write_table
from wq.study.store.tracking import FINGERPRINT, PID, TABLES, Store


def finish(store: Store, directory: Path, point: str, wer: float, reference: str = "fp32") -> str:
    row = {
        "fingerprint": point,
        "point": point,
        "status": "finished",
        "is_reference": point == reference,
        "reference": None if point == reference else reference,
        "model": "nano",
        "format": point.split("-")[0],
        "wer": wer,
        "linear_bytes": 1000,
    }
    results.write_row(directory / point / results.RESULT, row)
    words = [{"id": "a", "text": "hello", "pred_text": "hello", "errors": 0, "words": 1, "tokens": [1]}]
    results.write_rows(directory / point / results.HYPOTHESES, words)
    files = [directory / point / name for name in (results.RESULT, results.HYPOTHESES)]
    with store.running(point, tags(point, row), None) as run_id:
        assert run_id
        store.record(run_id, {"format": row["format"]}, {"wer": wer}, files)
    return run_id


def points(selection: Selection) -> dict[str, str]:
    return {row["point"]: row["status"] for row in selection.rows}


def fail(store: Store, point: str, error: BaseException, **columns: str) -> None:
    with pytest.raises(type(error)), store.running(point, tags(point, {"point": point} | columns), None):
        raise error


def test_a_filter_keeps_the_references_of_what_remains(store, tmp_path):
    for point, wer in (("fp32", 0.25), ("int4", 0.5), ("int8", 0.125)):
        finish(store, tmp_path, point, wer)
    assert points(of_stores([store])).keys() == {"fp32", "int4", "int8"}
    found = of_stores([store], "metrics.wer > 0.4 and params.format = 'int4'")
    assert points(found).keys() == found.transcripts.keys() == {"fp32", "int4"}
    assert points(of_stores([store], "metrics.wer < 0.2", {"model": "nano"})).keys() == {"fp32", "int8"}
    assert points(of_stores([store], "tags.format = 'int8'")).keys() == {"fp32", "int8"}
    assert points(of_stores([store], "metrics.wer > 9")) == {}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ("int4", {"int4"}),
        ("int4,nvfp4", {"int4", "nvfp4"}),
        ("[encoder,decoder]", {"encoder+decoder"}),
        ("[encoder, decoder],[conv]", {"encoder+decoder", "conv"}),
        ("W4A8 int4-g128 / int8-token,fp32", {"W4A8 int4-g128 / int8-token", "fp32"}),
    ],
)
def test_values_are_spelt_as_on_the_command_line_of_a_job(values, expected):
    assert alternatives(values) == expected


@pytest.mark.parametrize("out", ["", "taken", "taken/below"])
def test_a_report_goes_to_a_directory(store, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    finish(store, tmp_path, "fp32", 0.25)
    with pytest.raises(ValueError, match=f"^out={out} is no directory, and none can be made there"):
        build([f"out={out}", f"tracking_uri={store.uri}"])


@pytest.mark.parametrize(
    "query", ["wer < 1", "metrics.wer <", "metrics.wer < 0.2 or metrics.wer > 1", "((", "x"]
)
def test_a_filter_that_is_none_is_told_in_one_line(store, query):
    store.check()
    with pytest.raises(ValueError, match="is not understood") as caught:
        store.runs(query)
    assert str(caught.value).startswith(f"filter={query} is not understood (")
    assert "\n" not in str(caught.value)


def test_several_experiments_make_one_selection(store, tmp_path):
    other = Store(store.uri, f"{store.experiment} more")
    finish(store, tmp_path, "fp32", 0.25)
    finish(store, tmp_path, "int4", 0.5)
    finish(other, tmp_path, "int4", 0.75)
    finish(other, tmp_path, "int8", 0.5)
    selection = of_stores([store, other])
    assert points(selection).keys() == {"fp32", "int4", "int8"}
    assert [row["wer"] for row in selection.rows if row["point"] == "int4"] == [0.5]


def test_runs_without_a_result_say_why(store, tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    fail(store, "failed", ValueError("no room"), model="nano")
    fail(store, "killed", KeyboardInterrupt())
    fail(store, "int4", ValueError("at first"))
    finish(store, tmp_path, "int4", 0.5, reference="int4")
    store.create_run("running", {FINGERPRINT: "running"})
    store.create_run("dead", {FINGERPRINT: "dead", PID: str(gone.pid)})
    selection = of_stores([store])
    assert points(selection) == {
        "int4": "finished",
        "failed": "failed",
        "killed": "killed",
        "running": "running",
        "dead": "killed",
    }
    errors = {row["point"]: row["error"] for row in selection.unfinished}
    assert errors["failed"] == "ValueError: no room"
    assert errors["killed"].startswith("was killed")
    assert errors["running"].startswith("still running on ")
    assert "its process is gone" in errors["dead"]
    assert points(of_stores([store], columns={"model": "nano"})) == {"int4": "finished", "failed": "failed"}


def test_values_that_no_point_has_are_told_with_those_that_there_are():
    rows = [{"format": "int4", "model": "nano"}, {"format": "fp32", "model": "nano"}]
    with pytest.raises(
        ValueError, match=r"no format int44 among the results; did you mean int4\? choose one of "
    ):
        check_values(rows, {"model": "nano", "format": "int44"})
    check_values(rows, {"format": "int4,int44"})
    check_values([], {"format": "int44"})


def test_nothing_to_report_is_told_with_what_there_is(store, tmp_path):
    store.check()
    arguments = [
        f"tracking_uri={store.uri}",
        f"experiment_name={store.experiment}",
        f"out={tmp_path / 'out'}",
    ]
    with pytest.raises(ValueError, match=r"no finished point matches in experiment .*; run some with"):
        build(arguments)
    fail(store, "failed", ValueError("no room"))
    with pytest.raises(ValueError, match=r"\(1 failed\); run some with"):
        build(arguments)
    assert not (tmp_path / "out").exists()


def test_a_report_is_of_whatever_rows_there_are(store, tmp_path, capsys):
    """Rows of an older version lack columns; results that are no row count as lost."""
    finish(store, tmp_path, "fp32", 0.25)
    for point, text in (("old", '{"point": "old"}'), ("empty", "[]"), ("cut", '{"point"')):
        run = finish(store, tmp_path, point, 0.5)
        artifact = store.artifact(store.client.get_run(run), results.RESULT)
        artifact.write_text(text)
        if point == "old":
            (artifact.parent / results.HYPOTHESES).unlink()
    build([f"tracking_uri={store.uri}", f"experiment_name={store.experiment}", f"out={tmp_path / 'out'}"])
    said = capsys.readouterr()
    assert said.err == "2 finished runs are left out: their result.json cannot be read\n"
    assert "fp32" in said.out
    assert "old" in said.out
    assert (tmp_path / "out" / "report.html").exists()


def test_passwords_are_not_printed(capsys):
    with pytest.raises(ValueError, match="cannot be used") as caught:
        build(["tracking_uri=postgresql://me:secret@127.0.0.1:9/wq"])
    assert "secret" not in str(caught.value)


def test_a_grid_selects_its_jobs_and_their_references(tmp_path):
    for number, name in (("0", "int4"), ("1", "int8")):
        for directory, point in ((tmp_path / number / "reference", "fp32"), (tmp_path / number, name)):
            row = {"fingerprint": point, "point": point, "status": "finished"}
            results.write_row(directory / results.RESULT, row)
            results.write_rows(directory / results.HYPOTHESES, [])
        results.write_row(
            tmp_path / number / results.REFERENCE,
            {"fingerprint": "fp32", "point": "fp32", "status": "finished"},
        )
    write_plan(tmp_path, "", {0: [], 1: []}, {0: "0", 1: "1"}, {})
    selection = of_sweep(tmp_path)
    assert points(selection).keys() == selection.transcripts.keys() == {"fp32", "int4", "int8"}
    assert of_sweep(tmp_path / "nowhere") == Selection([])


def test_transcripts_are_a_table_of_the_run(store, tmp_path):
    results.write_rows(
        tmp_path / results.HYPOTHESES, [{"id": "a", "text": "x\u2028y", "pred_text": "é", "tokens": [1]}]
    )
    write_table(tmp_path / results.HYPOTHESES, tmp_path / TABLE)
    run_id = store.create_run("run", {})
    store.record(run_id, {f"p{n}": n for n in range(250)}, {"wer": 0.5}, [], [tmp_path / TABLE])
    run = store.client.get_run(run_id)
    assert len(run.data.params) == 250
    assert run.data.tags[TABLES] == '[{"path": "transcripts.json", "type": "table"}]'
    shown = pandas.read_json(store.artifact(run, TABLE), orient="split")  # as MLflow itself reads it
    assert shown[["id", "text", "pred_text"]].to_numpy().tolist() == [["a", "x\u2028y", "é"]]


def test_the_test_set_is_an_input_of_the_run(store):
    run_id = store.create_run("run", {})
    store.record_test_set(
        run_id, "commands clean", "0" * 64, {"type": "local", "uri": "a.jsonl"}, {"utterances": 3}
    )
    [given] = store.client.get_run(run_id).inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("commands clean", "0" * 36)
    assert (given.dataset.source_type, given.dataset.source) == ("local", '{"uri": "a.jsonl"}')
    assert store.client.search_runs([store.experiment_id], "dataset.name = 'commands clean'")


def test_a_description_is_cut_between_lines(store):
    run_id = store.create_run("run", {})
    store.attach(run_id, [], "a line of a table\n" * 1000)
    text = store.client.get_run(run_id).data.tags["mlflow.note.content"]
    assert 4000 < len(text) <= 5004
    assert text.endswith("a line of a table\n\n…")


def test_every_field_of_the_spec_is_a_parameter():
    given = parameters(
        spec("int4", group=32), {"point": "int4-g32", "group": 32}, {"device": "cpu", "wer": 0.5}
    )
    assert set(spec("int4").settings) <= {name.partition(".")[0] for name in given}
    assert given["weights.quantizer.format.integer_bits"] == 4
    assert given["model.content_hash"] == "m" * 64
    assert (given["point"], given["group"], given["device"]) == ("int4-g32", 32, "cpu")
    assert "wer" not in given
    mixed = parameters(spec("int4", decoder_format="int8"), {}, {})
    bits = {name: value for name, value in mixed.items() if name.endswith("integer_bits")}
    assert sorted(bits.values()) == [4, 8]
    assert len(mixed) == len(set(mixed))


@pytest.mark.parametrize(
    ("dataset", "place"),
    [
        (DatasetConfig(source="manifest", path="a/b.jsonl"), {"type": "local", "uri": "a/b.jsonl"}),
        (
            DatasetConfig(source="hub", path="org/name", config="clean", split="test"),
            {"type": "hugging_face", "path": "org/name", "config_name": "clean", "split": "test"},
        ),
    ],
)
def test_a_test_set_says_where_it_comes_from(dataset, place):
    assert source(dataset).items() >= place.items()
