"""The report of a grid: what the table says to the letter, and a page that no text can break."""

import csv
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wq import outputs
from wq.commands.report import HELP
from wq.outputs import LIST
from wq.study.compare.scenes import SCENE, abridged, scenes
from wq.study.compare.selection import Selection, chosen
from wq.study.report.figures import HEIGHT, WIDTH, place_labels, size_axis, wer_axis
from wq.study.report.page_data import page_data, together, worst_utterances
from wq.study.report.report import format_line, format_table, write_report
from wq.study.report.report_text import format_csv, format_markdown, format_tex
from wq.study.store import results

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"'><svg onload=alert(1)>",
    "<!--",
    "]]>",
    "&lt;b&gt; &amp; $title ${title} %s {0}",
    "\u202eright to left\u202c مرحبا",
    "emoji 😀 \u2028 line separator",
    "100 kB " + "<b>x</b>" * 12_500,
]

SPOILT = ("format", "granularity", "command", "model", "device", "roles")


def row(point: str, megabytes: float | None, wer: float | None, **columns) -> dict:
    """A finished row of result.json, its interval a tenth to either side of the rate; None where unknown."""
    size = None if megabytes is None else int(megabytes * 1e6)
    ends = {} if wer is None else {"wer_ci_low": 0.9 * wer, "wer_ci_high": 1.1 * wer}
    name = point.split("-")[0]
    return {
        "point": point,
        "status": "finished",
        "is_reference": point == "fp32",
        "model": "nano",
        "dataset": "commands",
        "split": "clean",
        "limit": None,
        "format": name,
        "granularity": "none" if name == "fp32" else "group",
        "wer": wer,
        **ends,
        "linear_bytes": size,
        **columns,
    }


def against_reference(delta: float, low: float, high: float) -> dict:
    return {"wer_delta": delta, "wer_delta_ci_low": low, "wer_delta_ci_high": high, "wer_delta_p": 0.01}


FAILED = {"point": "format=int4 group=-1", "status": "failed", "error": "group=-1 must be at least 1"}
ROWS = [
    row("fp32", 11.2, 0.05, bits_per_weight=32.0),
    row("int4-g128", 1.45, 0.10, bits_per_weight=4.125, **against_reference(0.05, 0.04, 0.0625)),
    FAILED,
    row("int4-g32", 1.58, 0.06, bits_per_weight=4.5, **against_reference(0.01, -0.0025, 0.02)),
    row("mxfp4-g32", 1.58, 4.125, bits_per_weight=4.25, **against_reference(4.075, 3.5, 4.5)),
]


class Page(HTMLParser):
    """Tags, texts by tag, and every attribute of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: dict[str, str] = {}
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        tag = self.open[-1] if self.open else ""
        if tag == "script":
            self.scripts.append(data)
        self.text[tag] = self.text.get(tag, "") + data

    def data(self) -> dict:
        def refuse(constant: str):
            raise AssertionError(f"{constant} is not JSON")

        return json.loads(self.scripts[0], parse_constant=refuse)

    def rows(self) -> list[dict]:
        """As the page's script puts them together again."""
        return [
            scene["shared"] | dict(zip(scene["columns"], values, strict=True))
            for scene in self.data()["scenes"]
            for values in scene["rows"]
        ]


def page(rows: list[dict], directory: Path, title: str = "a grid") -> Page:
    return Page(write_report(Selection(rows), directory, title).html.read_text(encoding="utf-8"))


def test_table_to_the_letter():
    assert format_table(Selection(ROWS)) == (
        """\
nano, commands clean
   point       WER %     95 % interval     change       95 % interval     MB  bits/weight
?  int4-g128   10.00     [9.00, 11.00]      +5.00      [+4.00, +6.25]   1.45         4.12
?  int4-g32     6.00      [5.40, 6.60]      +1.00      [-0.25, +2.00]   1.58         4.50
*  fp32         5.00      [4.50, 5.50]  reference                      11.20        32.00
!  mxfp4-g32  412.50  [371.25, 453.75]    +407.50  [+350.00, +450.00]   1.58         4.25
* on the front: the smallest not inferior, or better than every other of no more bytes; ? undecided; ! broken:
  90 errors or more for 100 words
smallest not inferior to the reference, at most 0.50 points of WER worse: none, and more of this speech would
  hardly show one

1 without a result
  format=int4 group=-1  group=-1 must be at least 1"""
    )


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (ROWS[0], "fp32  WER 5.00 % [4.50, 5.50], the reference, 11.20 MB, 32.00 bits per weight"),
        (
            ROWS[3],
            "int4-g32  WER 6.00 % [5.40, 6.60], +1.00 [-0.25, +2.00] against the reference, 1.58 MB, "
            "4.50 bits per weight",
        ),
        (FAILED, "format=int4 group=-1  failed: group=-1 must be at least 1"),
        (row("int8", None, None), "int8  WER - %, - MB, - bits per weight"),
        (row("a\x1b[31mb\nc", 1, math.nan), "a?[31mb c  WER - %, 1.00 MB, - bits per weight"),
    ],
)
def test_line(columns, line):
    assert format_line(columns) == line


@pytest.mark.parametrize("text", HOSTILE)
def test_table_stays_narrow_and_plain_whatever_the_names(text):
    rows = [
        row(f"{text} \x1b]0;x\x07", 12_345, 41, model=text, **against_reference(40, -40, 41)),
        {"point": text, "status": "failed", "error": f"{text}\n\x1b[2J{text}"},
    ]
    lines = format_table(Selection(rows)).split("\n")
    assert max(map(len, lines)) <= 110
    assert all(line.isprintable() for line in lines)


def test_points_are_compared_only_within_one_model_and_test_set():
    better = row("int4-g32", 1, 0.01)
    alone = [
        row("int8", 2, 0.8, **dict([different]))
        for different in [("model", "tiny"), ("dataset", "fleurs"), ("split", "other"), ("limit", 8)]
    ]
    groups = scenes([better, *alone, row("int8", 2, 0.8)])
    assert [scene.name for scene in groups] == [
        "nano, commands clean",
        "tiny, commands clean",
        "nano, fleurs clean",
        "nano, commands other",
        "nano, commands clean, at most 8 utterances",
    ]
    assert [scene.on_front for scene in groups] == [[True, False], [True], [True], [True], [True]]


def compared(point: str, megabytes: float, reference: str, **columns) -> dict:
    """A row with the fingerprint of the job it is compared with, or its own where it is that job."""
    return row(
        point, megabytes, 0.1, **{"fingerprint" if point == "fp32" else "reference": reference}, **columns
    )


def test_what_only_shares_its_names_is_not_compared():
    rows = [
        compared(point, size, key)
        for key in ("aaaaaaaa", "bbbbbbbb")
        for point, size in (("fp32", 4), ("int4", 1))
    ]
    groups = scenes([rows[0], rows[2], rows[3], rows[1]])
    assert [scene.rows for scene in groups] == [[rows[1], rows[0]], [rows[3], rows[2]]]
    assert [scene.reference for scene in groups] == [rows[0], rows[2]]
    assert [scene.name for scene in groups] == [
        "nano, commands clean, reference aaaaaa",
        "nano, commands clean, reference bbbbbb",
    ]
    assert [scene.name for scene in scenes(rows[:2])] == ["nano, commands clean"]


def test_titles_say_in_what_scenes_differ():
    groups = scenes(
        [
            compared("int4", 1, "aaaaaaaa", seed=0, max_new_tokens=None, resamples=100),
            compared("int4", 1, "bbbbbbbb", seed=0, max_new_tokens=64, resamples=100),
            compared("int4", 1, "cccccccc", seed=1, max_new_tokens=None, resamples=100),
            compared("int4", 1, "dddddddd", seed=1, max_new_tokens=None, resamples=100),
            compared("int4", 1, "eeeeeeee", seed=0, limit=8, resamples=100),
            compared("int4", 1, "ffffffff", seed=0, limit=8, window=6, resamples=100),
        ]
    )
    assert [scene.name.removeprefix("nano, commands clean, ") for scene in groups] == [
        "seed 0",
        "max_new_tokens 64, seed 0",
        "seed 1, reference cccccc",
        "seed 1, reference dddddd",
        "at most 8 utterances",
        "at most 8 utterances, windows of 6 s",
    ]


def test_help_has_each_example_on_a_line_of_its_own():
    examples = HELP.split("\n\n")[-1].split("\n")
    assert len(examples) == HELP.count("  wq report") == 10
    assert all(re.fullmatch(r"  wq report( \w+=(\S+|\"[^\"]+\"))*   +\S.*", line) for line in examples)
    assert max(map(len, examples)) <= 110


def test_filters_keep_the_references_of_what_remains():
    rows = [
        compared(point, 1, key, model=model)
        for key, model in (("aaaaaaaa", "nano"), ("bbbbbbbb", "tiny"))
        for point in ("fp32", "int4", "int8")
    ]
    assert chosen(rows, {"format": "int4,nvfp4"}) == [rows[0], rows[1], rows[3], rows[4]]
    assert chosen(rows, {"format": "int4", "model": "tiny"}) == [rows[3], rows[4]]
    assert chosen(rows, {"format": "nvfp4"}) == []
    assert chosen(rows, {}) == rows
    with pytest.raises(ValueError, match="colour is no column"):
        chosen(rows, {"colour": "red"})


def test_names_of_failed_points_are_what_they_differ_in():
    shared = "dataset=manifest dataset.path=/tmp/a directory/of/recordings"
    rows = [
        {"point": f"{shared} {rest}", "status": "failed", "error": "no"}
        for rest in ("format=int4", "format=int4 group=7", f"format=nvfp4 model.path=/{'m' * 40}/x")
    ]
    assert format_table(Selection(rows)) == (
        f"""\
3 without a result
  format=int4                       no
  format=int4 group=7               no
  …{"m" * 29}/x  no"""
    )
    assert "  …ctory/of/recordings format=int4  no" in format_table(Selection(rows[:1]))
    unnamed = [{"point": f"job {n}", "status": "failed", "error": "no"} for n in range(2)]
    assert "  job 1  no" in format_table(Selection(unnamed))


def test_csv_has_no_formulas_and_no_columns_that_nothing_fills():
    rows = [row("fp32", 1, 0.1, note=text, wer_delta=-0.5) for text in ("=1+1", "+1", "-1", "@x", "x=1")]
    table = list(csv.DictReader(format_csv(Selection(rows)).splitlines()))
    assert [entry["note"] for entry in table] == ["'=1+1", "'+1", "'-1", "'@x", "x=1"]
    assert {entry["wer_delta"] for entry in table} == {"-0.5"}
    assert not {"activation", "kv_cache", "smoothquant", "kv_cache_bytes", "memory_bytes"} & set(table[0])
    assert "activation" in format_csv(Selection([row("int4", 1, 0.1, activation="int8")])).split("\n")[
        0
    ].split(",")


@pytest.mark.parametrize("roles", ["encoder+decoder+conv", "embedding", "*"])
def test_where_more_than_linear_layers_is_quantized_the_whole_model_counts(roles, tmp_path):
    rows = [
        row("fp32", 8, 0.05, model_bytes=12_000_000, roles="encoder+decoder"),
        row("int8", 2, 0.06, model_bytes=5_000_000, roles="encoder+decoder"),
        row("int4", 3, 0.06, model_bytes=4_000_000, roles=roles),
    ]
    [scene] = scenes(rows)
    assert [entry["point"] for entry in scene.rows] == ["int4", "int8", "fp32"]
    assert scene.on_front == [True, False, True]
    lines = format_table(Selection(rows)).split("\n")
    assert "  model MB  " in lines[1]
    assert "  4.00  " in lines[2]
    assert "4.00 model MB" in format_line(rows[2])
    assert "2.00 MB" in format_line(rows[1])
    for shown, title in ((rows, "Whole model, MB"), (rows[:2], "Linear layers with their scales, MB")):
        write_report(Selection(shown), tmp_path, "a grid")
        assert title in (tmp_path / "pareto.svg").read_text()


def test_files_of_a_report(tmp_path):
    report = write_report(Selection(ROWS), tmp_path / "new" / "directory", "a grid")
    names = ["report.html", "results.csv", "results.md", "results.tex", "pareto.png", "pareto.svg"]
    assert [path.name for path in report.paths] == names
    assert sorted(path.name for path in (tmp_path / "new" / "directory").iterdir()) == sorted([LIST, *names])
    assert report.paths[4].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert ElementTree.parse(report.paths[5]).getroot().tag.endswith("svg")
    with report.paths[1].open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [entry["point"] for entry in table] == [entry["point"] for entry in ROWS]
    assert [entry["on_front"] for entry in table] == ["True", "True", "", "True", "False"]
    assert [entry["front"] for entry in table] == ["on", "undecided", "", "undecided", "broken"]
    assert [entry["wer_delta_p_holm"] for entry in table] == ["", "0.03", "", "0.03", "0.03"]
    assert [float(entry["wer"] or "nan") for entry in table] == pytest.approx(
        [0.05, 0.1, math.nan, 0.06, 4.125], nan_ok=True
    )
    assert table[2]["error"] == FAILED["error"]
    assert table[2]["linear_bytes"] == ""


def test_the_same_results_give_the_same_bytes(tmp_path):
    first, second = (write_report(Selection(ROWS), tmp_path / name, "a grid") for name in "ab")
    assert [path.read_bytes() for path in first.paths] == [path.read_bytes() for path in second.paths]


def test_page_holds_all_results(tmp_path):
    result = page([*ROWS, row("int3", 1.2, None)], tmp_path)
    assert [entry["point"] for entry in result.rows()] == [
        "int3",
        "int4-g128",
        "int4-g32",
        "fp32",
        "mxfp4-g32",
    ]
    assert ROWS[1].items() <= result.rows()[1].items()
    assert FAILED["error"] in result.text["bdi"]


def test_markdown_to_the_letter():
    assert format_markdown(Selection(ROWS[:3]), "a | b") == (
        """\
# a \\| b

## nano, commands clean

|  | point | WER % | 95 % interval | change | 95 % interval | MB | bits/weight |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |
| ? | int4-g128 | 10.00 | \\[9.00, 11.00\\] | +5.00 | \\[+4.00, +6.25\\] | 1.45 | 4.12 |
| \\* | fp32 | 5.00 | \\[4.50, 5.50\\] | reference |  | 11.20 | 32.00 |

\\* on the front: the smallest not inferior, or better than every other of no more bytes; ? undecided

smallest not inferior to the reference, at most 0.50 points of WER worse: none, and more of this speech \
would hardly show one

## Without a result

| point | why |
| --- | --- |
| format=int4 group=-1 | group=-1 must be at least 1 |
"""
    )


def test_tex_rows_are_whole_and_escaped():
    spoilt = r"50% & {x}_$\input{/etc/passwd}#~^" + "\n\\end{tabular}"
    text = format_tex(Selection([row(spoilt, 1, 0.1, model=spoilt)]))
    body = text[text.index("\\midrule") : text.index("\\bottomrule")]
    assert text.count("\\end{tabular}\n") == 1
    assert body.count(r"\\") == 1
    assert r"50\% \& \{x\}\_\$\textbackslash{}input\{/etc/passwd\}\#" in body
    assert len(re.findall(r"(?<!\\)&", body)) == 7
    assert all(line.startswith(("%", "\\", " & ", "? & ")) for line in text.splitlines() if line)


def test_page_needs_nothing_from_outside(tmp_path):
    result = page(ROWS, tmp_path)
    assert not {"iframe", "img", "base", "object", "embed"} & set(result.tags)
    assert [value for name, value in result.attributes if name in ("src", "href", "xlink:href")] == ["data:,"]
    links = re.findall(r"https?://[^\"' <]+", (tmp_path / "report.html").read_text())
    assert set(links) == {"http://www.w3.org/2000/svg"}  # a name, not an address


def test_hostile_text_stays_text(tmp_path):
    rows = [row("fp32", 11.2, 0.05)]
    for text in HOSTILE:
        rows += [
            row(text, 1.2, 0.06, **dict.fromkeys(SPOILT, text)),
            row(text, 1.3, 0.05, version_torch=text, normaliser=text),
            {"point": text, "status": "failed", "error": text},
        ]
    title = " ".join(HOSTILE[:-1])
    result = page(rows, tmp_path, title)
    plain = page(ROWS, tmp_path / "plain")
    assert result.open == []
    assert set(result.tags) == set(plain.tags)
    assert result.tags.count("script") == plain.tags.count("script") == 2
    assert not {"<", ">", "&"} & set(result.scripts[0])  # browsers end a script at more than </script>
    assert not any(name.startswith("on") for name, _ in result.attributes)
    assert result.text["title"] == result.text["h1"] == title
    names = [entry["point"] for entry in result.rows()]
    assert sorted(names) == sorted(["fp32", *HOSTILE, *HOSTILE])
    assert all(" ".join(text.split()) in result.text["bdi"] for text in HOSTILE)


ODD = [None, math.nan, -math.inf, -1, 0, "text", "", True, [], [[1], [1, 2]], {"a": math.nan}, 1e308, 10**400]


def test_odd_values_are_no_crash(tmp_path):
    columns = [name for name in row("fp32", 1, 1) if name != "status"]
    columns += [
        *against_reference(0, 0, 0),
        "utterance_errors",
        "role_bytes",
        "bits_per_weight",
        "group",
        "seed",
        "repetition_loops",
    ]
    rows = [row("fp32", 11.2, 0.05), {}, {"status": "failed"}]
    for odd in ODD:
        rows += [row("int4", 1, 0.06) | {column: odd} for column in columns if column not in SCENE]
        rows += [dict.fromkeys(columns, odd), {"status": odd}]
    assert page(rows, tmp_path).open == []
    assert max(map(len, format_table(Selection(rows)).split("\n"))) <= 110
    assert all("\n" not in format_line(entry) for entry in rows)
    assert len(list(csv.DictReader(format_csv(Selection(rows)).splitlines()))) == len(rows)


@pytest.mark.parametrize("rows", [[], [FAILED], [{}], [row("int4", None, 0.1)], [row("int4", 1.0, None)]])
def test_nothing_to_draw_is_said_and_an_older_picture_goes(rows, tmp_path):
    for name in ("pareto.png", "pareto.svg"):
        outputs.write(tmp_path / name, b"of an earlier report")
    report = write_report(Selection(rows), tmp_path, "a grid")
    assert len(report.paths) == len(list(tmp_path.iterdir())) - 1 == 4  # the list of what wq wrote
    assert Page(report.html.read_text()).open == []


def test_no_points():
    assert format_table(Selection([])) == "no points"


@pytest.mark.parametrize(
    ("rates", "kind"),
    [
        ([5.0, 6.0, 8.0], "linear"),
        ([5.0], "linear"),
        ([0.0], "linear"),
        ([5.0, 6.0, 412.5], "symlog"),
        ([0.0, 3.0, 90.0], "symlog"),
    ],
)
def test_error_axis_is_linear_until_the_range_is_wide(rates, kind):
    assert wer_axis(rates).kind == kind


def test_points_near_the_reference_stay_apart_beside_one_at_412_percent():
    axis = wer_axis([5.0, 6.0, 412.5])
    assert axis.place(6.0) - axis.place(5.0) > 0.02


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=8))
def test_every_rate_has_a_place_on_an_axis_with_ticks(rates):
    axis = wer_axis(rates)
    assert all(0 <= axis.place(rate) <= 1 for rate in rates)
    assert [axis.place(rate) for rate in sorted(rates)] == sorted(axis.place(rate) for rate in rates)
    assert axis.ticks == sorted(axis.ticks)
    assert 1 <= len(axis.ticks) <= 20
    assert all(axis.low <= tick <= axis.high * (1 + 1e-9) for tick in axis.ticks)


@given(st.lists(st.floats(1e-3, 1e5), min_size=1, max_size=8))
def test_every_size_has_a_place_on_an_axis_with_ticks(sizes):
    axis = size_axis(sizes)
    assert all(0 < axis.place(size) < 1 for size in sizes)
    assert 2 <= len(axis.ticks) <= 40
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)


spot = st.tuples(st.floats(0, WIDTH), st.floats(0, HEIGHT))


@given(st.lists(st.tuples(spot, st.text("abc", min_size=1, max_size=20)), max_size=15))
def test_labels_cover_neither_points_nor_each_other(spots):
    places = place_labels([(x, y, text) for (x, y), text in spots], [point for point, _ in spots])
    boxes = [
        (place[0], place[1] - 5, place[0] + 6 * len(text), place[1] + 5)
        for place, (_, text) in zip(places, spots, strict=True)
        if place
    ]
    for n, (left, top, right, bottom) in enumerate(boxes):
        assert 0 <= left <= right <= WIDTH
        assert 0 <= top <= bottom <= HEIGHT
        assert not any(left < x < right and top < y < bottom for (x, y), _ in spots)
        assert all(right <= b[0] or b[2] <= left or bottom <= b[1] or b[3] <= top for b in boxes[:n])


def test_a_lone_point_is_labelled():
    assert place_labels([(100, 100, "int4")], [(100, 100)]) != [None]


def told(directory: Path, name: str, megabytes: float, heard: list[str], **columns) -> tuple[dict, Path]:
    """A point that wrote `heard` for utterances of "a b c d", the last of which is not scored."""
    errors = [sum(x != y for x, y in zip("abcd", text.split(), strict=True)) for text in heard]
    entry = row(
        name, megabytes, sum(errors) / (4 * len(errors)), fingerprint=name, reference="fp32", **columns
    )
    utterances = [
        {"id": f"u{n}", "text": "A, b c d", "pred_text": text, "errors": error, "words": 4}
        for n, (text, error) in enumerate(zip(heard, errors, strict=True))
    ]
    utterances.append({"id": "dropped", "text": "...", "pred_text": "x", "errors": None, "words": None})
    results.write_rows(directory / f"{name}.jsonl", utterances)
    return entry, directory / f"{name}.jsonl"


@pytest.fixture
def three(tmp_path) -> Selection:
    """The middle one is worse than the smallest, beyond doubt; only the largest is better, as surely."""
    points = [
        told(tmp_path, "int2", 1, ["a b x x"] * 60),
        told(tmp_path, "int4", 2, ["a x x x"] * 60),
        told(tmp_path, "fp32", 8, ["a b c d"] * 59 + ["a b c x"]),
    ]
    return Selection([entry for entry, _ in points], {entry["point"]: path for entry, path in points})


def test_the_front_with_its_uncertainty(three):
    [scene] = three.scenes
    assert scene.standing == ["off", "off", "on"]
    assert [line[:8].split() for line in format_table(three).split("\n")[2:5]] == [
        ["int2"],
        ["int4"],
        ["*", "fp32"],
    ]
    assert format_table(three).endswith("no mark: worse than\n  one of no more bytes, or than the reference")
    assert [line["front"] for line in csv.DictReader(format_csv(three).splitlines())] == ["off", "off", "on"]


def test_errors_are_those_of_the_row_or_else_of_the_transcripts(three):
    [scene] = three.scenes
    assert scene.errors is not None
    assert {n: errors.sum() for n, errors in scene.errors.of.items()} == {0: 120, 1: 180, 2: 1}
    three.rows[0]["utterance_errors"] = [0] * 60
    three.rows[1]["utterance_errors"] = [0] * 61  # of another test set, as it seems
    three.transcripts.pop("fp32")
    [scene] = Selection(three.rows, three.transcripts).scenes
    assert scene.errors is not None
    assert {n: errors.sum() for n, errors in scene.errors.of.items()} == {0: 0}
    assert scene.standing == ["undecided", "undecided", "on"]


def test_no_list_goes_into_the_csv(three):
    three.rows[0] |= {"utterance_errors": [2] * 60, "role_bytes": {"encoder": 1}}
    assert "utterance_errors" not in format_csv(three)
    assert "role_bytes" not in format_csv(three)


def test_worst_utterances_are_those_that_lost_most():
    errors, base = np.array([3, 0, 5, 1, 4, 2, 9]), np.array([3, 0, 1, 0, 0, 2, 9])
    assert worst_utterances(errors, base) == [2, 4, 3, 6, 0]
    assert worst_utterances(errors, None) == [6, 2, 4, 0, 5]
    assert worst_utterances(errors - errors, base) == []


def test_texts_are_aligned_and_kept_once(three):
    data = page_data(three.scenes)
    worst = data["scenes"][0]["worst"]
    assert [len(entries) for entries in worst] == [5, 5, 1]
    assert data["utterances"][worst[0][0][0]] == ["u0", ["a", "b", "c", "d"], 4]
    texts = {"".join(words): n for n, (_, words) in enumerate(data["hypotheses"])}
    assert data["hypotheses"][texts["xx"]] == ["==ss", ["x", "x"]]
    assert data["hypotheses"][texts[""]] == ["====", []]
    assert worst[0][0][1:] == [2, texts["xx"], [0, texts[""]]]
    which = data["utterances"].index(["u59", ["a", "b", "c", "d"], 4])
    assert worst[2] == [[which, 1, texts["x"], None]]
    assert len(data["hypotheses"]) == 4


def test_models_on_the_same_test_set_are_shown_together():
    rows = [
        row("int4", 1, 0.1, model=model, **{"split": split, "reference": f"{model}{split}"})
        for model in "ab"
        for split in ("clean", "other")
    ]
    rows += [row("int8", 1, 0.1, model="c", split="other", reference_words=9)]
    assert together(scenes(rows)) == [("commands clean", [0, 2]), ("commands other", [1, 3])]
    assert together(scenes(rows[:2])) == []


def test_long_names_keep_both_ends():
    names = [
        f"W4A8KV8 int4-g128 / int8-token / {cache} + smoothquant-{alpha}"
        for cache in ("int8", "int4")
        for alpha in (0.5, 0.8)
    ]
    lines = format_table(Selection([row(name, 1 + n, 0.1) for n, name in enumerate(names)])).split("\n")[2:6]
    assert len({line.split("  ")[1] for line in lines}) == 4
    assert abridged("abcdefgh", 8) == "abcdefgh"
    assert [abridged("abcdefgh", width) for width in (7, 6, 3, 1)] == ["abc…fgh", "abc…gh", "a…h", "…"]
