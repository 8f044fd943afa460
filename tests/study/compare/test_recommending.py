"""What is recommended: no point that nobody may use, whatever the speech; and what the marks claim."""

import csv
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.study.report.test_report import row
from tests.study.spec.test_spec import spec
from wq.study.compare.scenes import Criteria, Scene, scenes
from wq.study.compare.selection import Selection
from wq.study.grid.grid import identity
from wq.study.report.page_data import page_data
from wq.study.report.report import format_table, write_report
from wq.study.report.report_text import format_csv, format_markdown, format_tex, recommendation
from wq.study.score import statistics
from wq.study.score.noninferiority import LEVEL, MARGIN, Change, bounds, parse_margin, utterances_needed
from wq.study.spec.config import Config, ConfigurationError

UTTERANCES, WORDS = 600, 10


def changed(point: str, megabytes: float, wer: float, low: float, high: float, **columns) -> dict:
    """A point of 600 utterances beside a reference of 5 %, its change's interval from low to high, in %."""
    delta = {"wer_delta": wer - 0.05, "wer_delta_ci_low": low / 100, "wer_delta_ci_high": high / 100}
    counts = {"utterances": UTTERANCES, "reference_words": UTTERANCES * WORDS}
    return row(point, megabytes, wer, **delta, **counts, **columns)


FP32 = row("fp32", 16, 0.05)
INT8 = changed("int8-g128", 4, 0.051, -0.05, 0.25)
INT4 = changed("int4-g128", 2, 0.052, -0.1, 0.45)
BROKEN = changed("int3-g128", 1, 4.96, -40, 900, repetition_loops=450)


def only(rows: list[dict], margin: float = MARGIN) -> Scene:
    [scene] = scenes(rows, criteria=Criteria(margin))
    return scene


@pytest.mark.parametrize(
    ("rows", "recommended"),
    [
        ([FP32], None),
        ([FP32, INT8], "int8-g128"),
        ([FP32, INT8, INT4], "int4-g128"),
        # an interval that contains zero is no evidence, and the wider the less
        ([FP32, INT8, changed("int4-g128", 2, 1.4653, -99.76, 219.43)], "int8-g128"),
        ([FP32, INT8, changed("int3-g64", 1.5, 0.3, -5, 60)], "int8-g128"),
        ([FP32, INT8, changed("int3-g64", 1.5, 0.052, -0.1, 0.51)], "int8-g128"),
        ([FP32, changed("nvfp4-g128", 2, 0.0656, 0.05, 3.26)], None),
        # a large point that is lost, or not known to be good, closes no way to a smaller one
        ([FP32, changed("W8A4", 4.1, 0.3, 20, 30), INT8], "int8-g128"),
        ([FP32, changed("int8-tensor", 4.1, 0.056, -0.2, 1.4), INT8], "int8-g128"),
        ([FP32, changed("int2-g128", 1, 3.0, 290, 300), INT8], "int8-g128"),
    ],
)
def test_the_smallest_that_is_not_inferior(rows, recommended):
    found = only(rows).recommended
    assert (found and found["point"]) == recommended


def test_too_little_speech_names_nothing_and_says_how_much_it_takes(tmp_path):
    rows = [FP32, changed("int4-g128", 2, 0.05, -1, 1), changed("int3-g64", 1, 0.06, -3, 5)]
    scene = only(rows)
    assert scene.recommended is None
    # an interval of 1 % to either side shrinks to half of that in four times the utterances; more for its t
    assert scene.utterances_needed is not None
    assert 4 * UTTERANCES < scene.utterances_needed < 5 * UTTERANCES
    told = "not enough speech to say: about 2,600 utterances would be needed"
    assert recommendation(scene) == told
    selection = Selection(rows)
    written = write_report(selection, tmp_path, "a grid")
    page = written.html.read_text(encoding="utf-8")
    cards = page[page.index('<dl class="facts">') : page.index("</dl>")]
    assert told in cards
    assert "by a margin of 0.50 points of WER" in cards
    assert told in " ".join(format_table(selection).split())
    assert told in format_markdown(selection, "a grid") == written.markdown  # which MLflow shows
    assert told in format_tex(selection)


def test_one_margin_for_card_table_and_chart(tmp_path):
    rows = [FP32, INT8, INT4]
    for margin, recommended, marks in (
        (0.005, "int4-g128", "*=="),
        (0.003, "int8-g128", "?*="),
        (0.0, "", "??*"),
    ):
        selection = Selection(rows, criteria=Criteria(margin))
        [scene] = selection.scenes
        assert "".join(line[0] for line in format_table(selection).split("\n")[2:5]) == marks
        [drawn] = page_data([scene])["scenes"]
        told = [dict(zip(drawn["columns"], values, strict=True)) for values in drawn["rows"]]
        assert [each["point"] for each in told if each.get("is_recommended")] == (
            [recommended] if recommended else []
        )
        cards = write_report(selection, tmp_path, "a grid").html.read_text(encoding="utf-8")
        assert (f"<b>{recommended}</b>" in cards) == bool(recommended)
        assert f"margin of {100 * margin:.2f} points" in cards


def test_what_is_broken_is_said_to_be_and_is_nowhere_on_the_front():
    rows = [FP32, INT8, BROKEN, changed("int3-g64", 1.2, 0.95, 80, 99, repetition_loops=6)]
    scene = only(rows)
    assert [each["point"] for each in scene.rows] == ["int8-g128", "fp32", "int3-g128", "int3-g64"]
    assert scene.standing == ["on", "equivalent", "broken", "broken"]
    assert scene.on_front == [True, True, False, False]
    table = list(csv.DictReader(format_csv(Selection(rows)).splitlines()))
    assert [each["front"] for each in table] == ["equivalent", "on", "broken", "broken"]
    told = "! broken: 90 errors or more for 100 words, 38% of the transcripts end in a loop"
    assert told in " ".join(format_table(Selection(rows)).split())


def test_the_smallest_point_has_no_mark_for_being_small():
    """A grid whose one point that is surely worse than the reference is the smallest."""
    rows = [
        FP32,
        changed("nvfp4-g128", 2.26, 0.0656, 0.05, 3.26),
        changed("int4-g128", 2.3, 0.047, -1.85, 1.1),
    ]
    assert only(rows).standing == ["undecided", "undecided", "on"]


@given(st.permutations([FP32, INT8, INT4, changed("int6-g128", 3, 0.3, 20, 30)]))
def test_the_order_of_the_rows_does_not_matter(rows):
    assert only(rows).recommended == INT4


@pytest.mark.parametrize(
    ("change", "bound"),
    [
        (Change(0.0, 0.0, 0.0), 0.0),  # of which nothing else is known
        (Change(0.0, 0.0, 0.0, 1, 10), math.inf),
        (Change(0.0, 0.0, 0.0, 1000, 10_000), 2.711e-4),  # no change seen: some three errors may be missed
        (Change(0.001, -0.001, 0.003, 10**6, 10**7), 0.003),  # never below the interval's own end
        (Change(0.001, -0.001, 0.02, 10**6, 10**7), 0.02),
    ],
)
def test_known_bounds(change, bound):
    assert bounds([change], MARGIN)[0] == pytest.approx(bound, rel=2e-3, abs=1e-9)


def test_a_bound_is_the_higher_the_more_points_share_the_level():
    good, bad = Change(0.001, -0.001, 0.003, 10**4, 10**5), Change(0.1, 0.004, 0.2, 10**4, 10**5)
    alone, beside = bounds([good], MARGIN)[0], bounds([bad, good], MARGIN)[1]
    assert alone < beside
    assert bounds([good, good], MARGIN)[1] == pytest.approx(alone)  # what passes hands on its share
    assert bounds([Change(0.1, 0.09, 0.11, 10**4, 10**5), good], MARGIN)[1] == alone  # lost, so not tested


@given(st.lists(st.tuples(st.floats(-0.02, 0.02), st.floats(0, 0.02)), min_size=1, max_size=12))
@settings(deadline=None)
def test_more_speech_as_told_shows_what_seems_good(points):
    changes = [Change(delta, delta - half, delta + half, 300, 3000) for delta, half in points]
    for change, bound in zip(changes, bounds(changes, MARGIN), strict=True):
        needed = utterances_needed(change, bound, MARGIN)
        if bound > MARGIN:
            assert needed > 300
            assert math.isinf(needed) == (change.delta >= MARGIN)


@pytest.mark.parametrize(("text", "margin"), [(None, 0.005), ("0.01", 0.01), ("0", 0.0), ("1", 1.0)])
def test_margins(text, margin):
    assert parse_margin(text) == margin
    assert Config.__dataclass_fields__["margin"].default == MARGIN


@pytest.mark.parametrize("text", ["half", "", "-0.1", "2", "nan"])
def test_what_is_no_margin(text):
    with pytest.raises(ValueError, match=f"margin={text} is no fraction of WER; give one from 0 to 1"):
        parse_margin(text)


def test_any_wrong_recommendation_is_rare_where_all_points_are_just_too_bad():
    """Twelve points, each with one error more in every twentieth utterance, which have nothing in common, and
    a margin just below: the worst that a procedure for many points can meet."""
    wrong, corpora, utterances = 0, 300, 400
    words = np.full(utterances, 10)
    for seed in range(corpora):
        gained = (np.random.default_rng(seed).random((12, utterances)) < 0.05).astype(int)
        rates = statistics.resampled_rates(gained, words, 300, seed)
        ends = zip(gained.sum(axis=1) / words.sum(), *np.quantile(rates, [0.025, 0.975], axis=0), strict=True)
        changes = [
            Change(float(delta), float(low), float(high), utterances, int(words.sum()))
            for delta, low, high in ends
        ]
        wrong += min(bounds(changes, 0.00499)) <= 0.00499
    assert wrong <= (LEVEL + 0.02) * corpora


def test_the_margin_is_no_part_of_a_point():
    assert spec(margin=0.02).fingerprint == spec().fingerprint
    assert identity(["format=int4", "margin=0.02"]) == identity(["format=int4"])  # one grid, read anew
    with pytest.raises(ConfigurationError, match=r"margin=-0\.1 must be from 0 to 1; give another margin"):
        spec(margin=-0.1)
