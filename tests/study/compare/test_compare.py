"""Two runs compared: the numbers of the parts, the marks by hand, runs found by any name, and the command."""

from itertools import pairwise

import numpy as np
import pytest

from wq.commands import compare as command
from wq.study.compare.comparison import Side, difference
from wq.study.compare.lookup import find_points, on_disk
from wq.study.report.comparison_text import format_difference, probability, side_by_side
from wq.study.score import statistics
from wq.study.score.mapsswe import mapsswe
from wq.study.score.wer import alignment, score
from wq.study.store import results
from wq.study.store.tracking import FINGERPRINT, Store

REFERENCES = {
    "u1": "Turn on the light.",
    "u2": "open the door please",
    "u3": "[noise]",  # not scored
    "u4": "play some music in the kitchen",
    "u5": "call me tonight",
    "u6": "stop",
}
HEARD = {
    "fp32": ["turn on the light", "open a door please", "", "play some music in a kitchen", "call", "Stop!"],
    "int4": ["Turn on a light", "open the door please", "x", "play music the kitchen sir", "tonight", "stop"],
}


def side(point: str, heard=None, references=REFERENCES, **row) -> Side:
    texts = zip(references.items(), heard or HEARD[point], strict=True)
    transcripts = [{"id": id, "text": text, "pred_text": said} for (id, text), said in texts]
    columns = {"point": point, "language": "en", "resamples": 500, "seed": 3, **row}
    return Side(columns, transcripts, f"place of {point}")


def read(side: Side, **sums: list[float]) -> Side:
    """With so many nats in every utterance, of three tokens; none where an utterance was not read."""
    for n, row in enumerate(side.transcripts):
        for name, values in sums.items():
            row |= {name: values[n], f"{name}_tokens": 3 if values[n] else 0}
    return side


def test_tokens_are_compared_where_both_have_read_the_same():
    one = read(side("fp32"), kl=[0.0, 0.3, 9.0, 0.6, 0.3, 0.3], nll=[1.0] * 6)
    two = read(side("int4"), kl=[0.0, 0.6, 1.0, 0.6, 0.6, 0.6], nll=[2.0] * 5 + [0.0])
    found = difference(one, two)
    kl = found.by_token["kl"]  # of the scored utterances that were read
    assert (kl.first, kl.second) == (pytest.approx(1.5 / 12), pytest.approx(2.4 / 12))
    assert kl.change == statistics.difference([0.3, 0, 0.3, 0.3], [3] * 4, resamples=500, seed=3)
    assert "nll" not in found.by_token  # not the same tokens
    text = format_difference(found, 0)
    assert "kl          125 -> 200 thousandths of a nat per token, +75.00 [" in text
    assert difference(side("fp32"), two).by_token == {}


def test_numbers_are_those_of_the_parts():
    found = difference(side("fp32"), side("int4"))
    ids, references = list(REFERENCES), list(REFERENCES.values())
    before, after = (score(ids, references, HEARD[point]) for point in ("fp32", "int4"))
    assert found.scores == (before, after)
    assert before.errors.tolist() == [0, 1, 1, 2, 0]
    assert after.errors.tolist() == [1, 0, 3, 2, 0]
    expected = statistics.compare(
        after.errors,
        after.words,
        before.errors,
        changed=np.array([True, True, True, True, True]),
        resamples=500,
        seed=3,
    )
    assert found.comparison == expected
    assert found.intervals[0] == statistics.bootstrap_interval(
        before.errors, before.words, resamples=500, seed=3
    )
    scored = [n for n, id in enumerate(ids) if id != "u3"]
    pairs = [[alignment(references[n], HEARD[point][n]) for n in scored] for point in ("int4", "fp32")]
    assert found.matched == mapsswe(zip(*pairs, strict=True))


def test_changes_come_with_the_worst_first():
    found = difference(side("fp32"), side("int4"))
    assert [(change.id, change.errors, change.words) for change in found.changes] == [
        ("u4", (1, 3), 6),
        ("u1", (0, 1), 4),
        ("u5", (2, 2), 3),
        ("u2", (1, 0), 4),
    ]
    assert all(one.more_errors >= other.more_errors for one, other in pairwise(found.changes))


def test_the_other_way_round_is_the_mirror_image():
    one, other = difference(side("fp32"), side("int4")), difference(side("int4"), side("fp32"))
    assert (one.comparison.delta, one.comparison.p) == (-other.comparison.delta, other.comparison.p)
    assert (one.matched.z, one.matched.p) == (-other.matched.z, other.matched.p)
    assert {change.id for change in one.changes} == {change.id for change in other.changes}


def test_a_run_and_itself():
    found = difference(side("int4"), side("int4"))
    assert (found.comparison.delta, found.comparison.p, found.matched.p, found.changes) == (0, 1, 1, [])
    assert "5: 0 with more errors, 0 with fewer" in format_difference(found, limit=None)


def test_utterances_in_another_order_are_the_same_utterances():
    one, other = side("fp32"), side("int4")
    turned = Side(other.row, other.transcripts[::-1], other.place)
    assert difference(one, turned).comparison == difference(one, other).comparison


@pytest.mark.parametrize(
    ("references", "message"),
    [
        (REFERENCES | {"u1": "turn off the light"}, "utterance u1 has another reference"),
        (
            {("v1" if id == "u1" else id): text for id, text in REFERENCES.items()},
            "6 and 6 utterances, .1 in",
        ),
        ({"u9": ""} | REFERENCES, "6 and 7 utterances, u9 in only one of them"),
    ],
)
def test_another_test_set_is_refused(references, message):
    other = side("int4", ["x"] * len(references), references)
    with pytest.raises(ValueError, match=f"fp32 and int4 are not of the same test set .*{message}") as error:
        difference(side("fp32"), other)
    assert "\n" not in str(error.value)


def test_transcripts_without_texts_are_refused():
    for said in ({}, {"pred_text": None}):
        with pytest.raises(ValueError, match="an utterance of here has no pred_text; only runs with"):
            difference(Side({}, [{"id": "u1", "text": "a", **said}], "here"), side("int4"))


@pytest.mark.parametrize(
    ("reference", "first", "second", "rows"),
    [
        ("turn it on", "turn it on", "turn a on", ["turn|it|on", "turn|it|on", "turn|*a*|on"]),
        ("turn it on", "turn on", "turn it", ["turn|it|on", "turn|***|on", "turn|it|***"]),
        ("go", "now go", "go on then", ["|go||", "*now*|go||", "|go|*on*|*then*"]),
        ("go now", "go right now", "go you now", ["go||now", "go|*right*|now", "go|*you*|now"]),
        ("go", "", "", ["go", "***", "***"]),
    ],
)
def test_marks_by_hand(reference, first, second, rows):
    columns = side_by_side(*(alignment(reference, heard, "fr") for heard in (first, second)))
    assert ["|".join(row) for row in zip(*columns, strict=True)] == rows


def test_text_by_hand():
    text = format_difference(difference(side("fp32", wer=4 / 18), side("int4", wer=0.5)), limit=2)
    lines = text.split("\n")
    assert lines[0].startswith("A  fp32  WER 22.22 %  [")
    assert lines[1].startswith("B  int4  WER 33.33 %  [")
    assert lines[2].startswith(
        "int4 was recorded with 50.00 % by normaliser None; both are scored here by 1+"
    )
    assert lines[4].startswith("B - A       +11.11 [")
    assert lines[5].startswith("verdict     undecided: B may be worse than A by ")
    assert lines[8] == "errors      substitutions 2 -> 1, deletions 2 -> 4, insertions 0 -> 1, of 18 words"
    assert lines[9] == (
        "utterances  5: 2 with more errors, 1 with fewer, 1 with as many but other words, "
        "1 with the same words (1 of them written otherwise)"
    )
    assert lines[11:16] == [
        "u4: 1 -> 3 errors in 6 words",
        "  reference  play  some  music  in   the  kitchen",
        "  A          play  some  music  in   *a*  kitchen",
        "  B          play  ***   music  ***  the  kitchen  *sir*",
        "",
    ]
    assert lines[-1] == "2 more with other words; limit=null shows all"
    assert "limit=null" not in format_difference(difference(side("fp32"), side("int4")), limit=None)


def test_long_and_hostile_texts_stay_within_their_lines():
    references = {"u\x1b[31m": " ".join(["word"] * 60), "u2": "你好 世界"}
    first = side("fp32", ["word \x1b[2J\u202e " * 60, "你好 世界"], references)
    second = side("int4\x07", ["word", "你好"], references)
    text = format_difference(difference(first, second), limit=None)
    assert all(line.isprintable() for line in text.split("\n"))
    assert max(map(len, text.split("\n"))) <= 130
    assert "  reference  你好  世界\n  A          你好  世界\n  B          你好  ***" in text


@pytest.mark.parametrize(("p", "text"), [(1.0, "= 1.0000"), (0.0002, "= 0.0002"), (3e-9, "< 0.0001")])
def test_probabilities(p, text):
    assert probability(p) == text


def write(directory, found: Side):
    results.write_row(directory / results.RESULT, found.row)
    results.write_rows(directory / results.HYPOTHESES, found.transcripts)
    return directory


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Points: fp32 and int4 on two splits, int4 on other twice over, and nf4, which failed."""
    folder = tmp_path_factory.mktemp("store")
    store = Store(f"sqlite:///{folder / 'mlflow.db'}", "wq")
    points = [("fp32", "clean"), ("int4", "clean"), ("fp32", "other"), ("int4", "other"), ("int4", "other")]
    for n, (point, split) in enumerate(points):
        fingerprint = f"{point}{split}0000"
        heard = ["", *HEARD[point][1:]] if n == 3 else None
        directory = write(folder / str(n), side(point, heard, fingerprint=fingerprint, split=split))
        tags = {FINGERPRINT: fingerprint, "point": point, "split": split, "model": "nano"}
        with store.running(point, tags, parent=None) as run_id:
            assert run_id
            files = [directory / results.RESULT, directory / results.HYPOTHESES]
            reference = {} if point == "fp32" else {"reference": f"fp32{split}0000"}
            store.record(run_id, {"limit": None, **reference}, {"wer": 0.25}, files)
    with pytest.raises(RuntimeError), store.running("nf4", {FINGERPRINT: "nf4", "point": "nf4"}, None):
        raise RuntimeError("no memory")
    return store


def found_in(store: Store, text: str, **columns: str) -> Side:
    return find_points([text], store, columns)[0]


def test_a_run_is_found_by_any_of_its_names(store):
    newest = next(run for run in store.runs() if run.data.tags["point"] == "int4")
    for text in (newest.info.run_id, newest.info.run_id[:12], "int4other0000", "int4oth"):
        assert found_in(store, text).place == newest.info.run_id
    assert found_in(store, "int4", split="other").place == newest.info.run_id
    assert found_in(store, "int4", split="clean").row["fingerprint"] == "int4clean0000"


def test_an_older_run_of_a_point_is_found_by_its_id(store):
    newest, older = [run.info.run_id for run in store.runs() if run.data.tags[FINGERPRINT] == "int4other0000"]
    assert found_in(store, older).transcripts[0]["pred_text"] == ""
    assert found_in(store, newest).transcripts[0]["pred_text"] != ""


def test_of_several_points_of_a_name_the_comparable_one_is_meant(store, tmp_path):
    assert [run.row["split"] for run in find_points(["fp32", "int4other"], store, {})] == ["other", "other"]
    assert [run.row["split"] for run in find_points(["int4clean", "fp32"], store, {})] == ["clean", "clean"]
    job = write(tmp_path / "job", side("int4", reference="fp32clean0000"))
    assert [run.row.get("split") for run in find_points(["fp32", str(job)], store, {})] == ["clean", None]
    with pytest.raises(ValueError, match=r"^fp32 is 2 points: .*split="):
        find_points(["fp32", "int4"], store, {})
    with pytest.raises(ValueError, match=r"^fp32 is 2 points"):
        find_points(["fp32", str(write(tmp_path / "other", side("int4", reference="unknown")))], store, {})


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("int4", {}, "int4 is 2 points: int4other0000 .split=other., int4clean0000 .split=clean.; give the"),
        (
            "int3",
            {},
            r"int3 is no directory, .* or point in .*; did you mean int4\? points there: int4$",
        ),
        ("xxxxxx", {}, "points there: fp32, int4, nf4$"),
        ("nf4", {}, "nf4 has no finished run in .*FAILED RuntimeError: no memory.; run it again"),
        ("int4", {"splat": "other"}, "splat is no column of the runs; choose one of point, model, format"),
        ("int4", {"split": "train"}, "there are no points"),
    ],
)
def test_names_that_are_not_one_run(store, text, columns, message):
    with pytest.raises(ValueError, match=message) as error:
        found_in(store, text, **columns)
    assert "\n" not in str(error.value)


def test_a_job_on_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = write(tmp_path / "job", side("int4"))
    assert on_disk(str(job)) == Side(side("int4").row, side("int4").transcripts, str(job))
    assert on_disk("job/result.json") == Side(side("int4").row, side("int4").transcripts, "job/result.json")
    assert on_disk("nowhere") is None
    (tmp_path / "fp32").mkdir()
    assert on_disk("fp32") is None  # a folder that has nothing to do with the point
    with pytest.raises(ValueError, match=r"fp32 has no result\.json; give the directory of a job"):
        on_disk("./fp32/")
    (job / results.RESULT).write_text("{")
    with pytest.raises(ValueError, match="results in job cannot be read"):
        on_disk("job")


def test_the_command_compares_runs_of_a_store(store, capsys):
    uri = f"tracking_uri={store.uri}"
    command.compare(["fp32", "int4", "split=other", uri, "limit=1"])
    text = capsys.readouterr().out
    assert text.startswith("A  fp32  WER 22.22 %")
    assert "3 more with other words" in text
    command.compare(["fp32clean0000", "int4other", uri, "limit=null"])
    assert "more with other words" not in capsys.readouterr().out


def test_the_command_in_a_shell(fork, tmp_path):
    def run(*arguments: object):
        return fork("compare", *map(str, arguments), module="wq", cwd=tmp_path)

    first, second = (write(tmp_path / f"point={point}", side(point)) for point in HEARD)
    done = run(first, second)
    assert (done.returncode, done.stderr) == (0, "")
    assert "B - A       +11.11" in done.stdout
    assert run("--help").stdout.startswith("usage: wq compare A B")
    for arguments, message in [
        ([first], "error: 1 runs given; give two, as in wq compare fp32 int4-g128 (wq compare --help)"),
        ([first, second, "limit=many"], "error: limit=many is no number of utterances; give limit=20, or"),
        ([first, "int4", "tracking_uri=sqlite:///gone.db"], "error: no store at "),
    ]:
        failed = run(*arguments)
        assert (failed.returncode, failed.stdout) == (1, "")
        assert failed.stderr.startswith(message)
        assert failed.stderr.count("\n") == 1
