"""The page in a real browser: what it draws, how it answers, and that no text becomes anything but text."""

import re

import pytest

from tests.browser.points import FORMATS, points
from tests.study.compare.test_recommending import BROKEN, FP32, INT4, INT8
from tests.study.report.test_report import HOSTILE, row
from wq.study.compare.selection import Selection
from wq.study.report.report import write_report

pytestmark = pytest.mark.browser

POINTS = 49
TABLE = ".scene > .scroll > table"


def places(page) -> list[str]:
    return page.eval_on_selector_all(
        ".chart .points path", "marks => marks.map(mark => mark.getAttribute('transform'))"
    )


def names(page) -> list[str]:
    """Of the lines of the table that are shown."""
    return page.eval_on_selector_all(
        f"{TABLE} tbody tr:not([hidden]) > th",
        "cells => cells.map(cell => cell.querySelector('bdi').textContent)",
    )


def column(page, title: str) -> list[str]:
    n = page.locator(f"{TABLE} thead th").all_text_contents().index(title)
    return page.locator(f"{TABLE} tbody tr:not([hidden]) > :nth-child({n + 1})").all_text_contents()


def test_the_front_is_drawn(visit, report):
    page = visit(report)
    assert len(places(page)) == len(names(page)) == POINTS
    assert len(set(places(page))) > POINTS / 2
    assert page.locator(".fronts path").get_attribute("d").count("H") > 2
    assert 0 < page.locator(".intervals line").count() < 20  # of the front alone among so many
    assert page.locator(".chart .references line").count() == 1
    standings = column(page, "Front")
    assert set(standings) <= {"on", "equivalent", "off", "undecided"}
    assert page.locator(".points .on").count() == standings.count("on")
    assert page.locator(".points .undecided").count() == standings.count("undecided") > 0
    colours = page.eval_on_selector_all(
        ".points path", "marks => marks.map(mark => getComputedStyle(mark).color)"
    )
    shapes = page.eval_on_selector_all(".points path", "marks => marks.map(mark => mark.getAttribute('d'))")
    assert (len(set(colours)), len(set(shapes))) == (len(FORMATS) + 1, 2)


def test_the_recommended_point_is_the_same_in_card_chart_and_table(visit, tmp_path):
    page = visit(write_report(Selection([FP32, INT8, INT4, BROKEN]), tmp_path, "four").html)
    assert "int4-g128" in page.locator(".facts div").nth(1).inner_text()
    assert page.locator("tr:has(th > b) bdi").all_inner_texts() == ["int4-g128"]
    ring = page.locator(".recommended circle")
    recommended = page.locator(".points .on").get_attribute("transform")
    assert recommended == f"translate({ring.get_attribute('cx')} {ring.get_attribute('cy')})"
    assert page.locator(".points .equivalent").count() == 2
    assert page.locator(".points .broken").count() == 1
    assert column(page, "Front")[-1] == "broken"
    page.get_by_role("button", name="int3-g128", exact=True).click()
    assert "450 of 600 transcripts end in a loop" in page.locator("dialog[open]").inner_text()


def test_a_reference_that_is_far_leaves_the_width_to_the_others(visit, tmp_path):
    near = row("fp32", 4.4, 0.05, fingerprint="fp32")
    far, *others = FP32, INT8, INT4
    page = visit(write_report(Selection([far, *others]), tmp_path, "far").html)
    ticks = page.locator(".axes text").all_text_contents()
    assert page.locator(".axes .break").count() == 2
    assert "16" in ticks  # its own size, beyond the break
    page = visit(write_report(Selection([near, *others]), tmp_path, "near").html)
    assert page.locator(".axes .break").count() == 0


def test_the_marks_that_there_are_have_a_key(visit, tmp_path):
    page = visit(write_report(Selection([FP32, INT8, INT4, BROKEN]), tmp_path, "four").html)
    assert [text.partition(":")[0] for text in page.locator(".key li").all_inner_texts()] == [
        "on the front",
        "not inferior either, with more bytes",
        "broken",
        "recommended",
        "the reference",
        "front of the estimates",
    ]


def test_columns_that_few_read_come_when_asked_for(visit, report):
    page = visit(report)
    shown = page.locator(f"{TABLE} thead th:visible")
    few = shown.count()
    assert [text.strip() for text in shown.all_inner_texts()][:3] == ["Point", "WER %", "Change"]
    page.get_by_role("checkbox", name="all columns").check()
    assert shown.count() > few + 3
    page.get_by_role("checkbox", name="all columns").uncheck()
    assert shown.count() == few


def test_a_row_opens_wherever_it_is_clicked_and_tells_how_to_export(visit, report):
    page = visit(report)
    line = page.locator(f"{TABLE} tbody tr").first
    line.locator("td").nth(2).click()
    details = page.locator("dialog[open]")
    assert details.locator("h2").inner_text() == line.locator("bdi").inner_text()
    made = details.locator("#details-command").inner_text().removeprefix("python -m wq.main ")
    assert details.locator("#details-export").inner_text() == f"wq export {made} out=DIR"


def test_axes_switch_and_points_move(visit, report):
    page = visit(report)
    sizes, rates = page.get_by_role("combobox", name="Size"), page.get_by_role("combobox", name="Error")
    assert [len(menu.locator("option").all()) for menu in (sizes, rates)] == [5, 3]
    seen = [places(page)]
    for menu, title in (
        (sizes, "Memory footprint, MB"),
        (rates, "Character error rate, %"),
        (sizes, "Bits per weight"),
    ):
        menu.select_option(label=title)
        assert title in page.locator(".axes .title").all_text_contents()
        assert sorted(places(page)) not in map(sorted, seen)
        seen.append(places(page))
    rates.select_option(label="Difference from the reference, percentage points")
    assert page.locator(".axes .zero").count() == 1
    sizes.select_option(label="Linear layers, MB")
    rates.select_option(label="Word error rate, %")
    assert places(page) == seen[0]


def hover(page, n: int) -> None:
    box = page.locator(".points path").nth(n).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)


def test_a_point_tells_its_numbers_and_opens(visit, report):
    page = visit(report)
    hover(page, 0)
    tip = page.locator("#tip").inner_text()
    assert re.search(r"^.+\nWER \d+\.\d\d % \[.+\]\nchange .+, p 0\.0\d+ \(Holm\)\nCER ", tip)
    assert page.locator("tr.lit").count() == 1
    assert page.locator("tr.lit bdi").inner_text() == tip.split("\n")[0]
    page.mouse.down()
    page.mouse.up()
    details = page.locator("dialog[open]")
    assert details.locator("h2").inner_text() == tip.split("\n")[0]
    assert details.locator("#details-command").inner_text().startswith("python -m wq.main format=")
    assert details.locator(".roles tr").count() == 2
    assert details.locator(".utterance").count() == 5
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    page.mouse.move(5, 5)
    assert not page.locator("#tip").is_visible()


def test_differences_are_marked_word_by_word(visit, tmp_path):
    selection = points(tmp_path, texts=["turn the light on"])
    for entry, heard in zip(selection.rows[:2], ("turn a light on", "now turn the on"), strict=True):
        path = selection.transcripts[entry["fingerprint"]]
        text = '{"id": "u", "text": "Turn the light on!", "pred_text": "%s", "errors": %d, "words": 4}'
        entry["utterance_errors"] = [3 if heard.startswith("now") else 1]
        path.write_text(text % (heard, entry["utterance_errors"][0]))
    two = Selection(selection.rows[:2], selection.transcripts)
    page = visit(write_report(two, tmp_path, "two").html)
    page.get_by_role("button", name=two.rows[1]["point"], exact=True).click()
    lines = page.eval_on_selector_all(
        ".aligned .column:not(.labels)",
        "columns => columns.map(column => [...column.children]"
        ".map(word => `${word.tagName} ${word.textContent.trim()}`.toLowerCase()))",
    )
    assert lines == [
        ["span ", "span ", "ins now"],
        ["span turn", "span turn", "span turn"],
        ["span the", "mark a", "span the"],
        ["span light", "span light", "del ∅"],
        ["span on", "span on", "span on"],
    ]


def test_keys_alone_reach_everything(visit, report):
    page = visit(report)
    page.locator(".chart svg").focus()
    page.keyboard.press("ArrowRight")
    first = page.locator("#tip").inner_text().split("\n")[0]
    page.keyboard.press("ArrowRight")
    second = page.locator("#tip").inner_text().split("\n")[0]
    assert first != second
    page.keyboard.press("Enter")
    assert page.locator("dialog[open] h2").inner_text() == second
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.locator("#tip").inner_text().split("\n")[0] == first
    page.get_by_role("button", name="WER %", exact=True).press("Enter")
    assert column(page, "WER %") == sorted(column(page, "WER %"), key=float)
    page.get_by_role("button", name=first, exact=True).press("Enter")
    assert page.locator("dialog[open] h2").inner_text() == first


def test_the_table_sorts_and_filters(visit, report):
    page = visit(report)
    for title, key in (("WER %", float), ("Linear MB", float), ("Format", str)):
        head = page.get_by_role("columnheader").filter(has=page.get_by_role("button", name=title, exact=True))
        for direction in ("ascending", "descending"):
            head.get_by_role("button").click()
            values = column(page, title)
            assert head.get_attribute("aria-sort") == direction
            assert values == sorted(values, key=key, reverse=direction == "descending")
    typed = page.get_by_role("searchbox")
    for text, count in (
        ("int4", 16),
        ("int4 group=32", 8),
        ("NVFP4 wer<0", 0),
        ("bits_per_weight>=32", 1),
        ("", POINTS),
    ):
        typed.fill(text)
        assert len(names(page)) == len(places(page)) == count
        assert page.locator("output").inner_text() == (
            f"{count} of {POINTS} points" if text else f"{POINTS} points"
        )
    page.get_by_role("button", name="int3", exact=True).click()
    page.get_by_role("button", name="activations int8-token", exact=True).click()
    assert len(names(page)) == len(places(page)) == 1 + 2 * 8


def test_small_multiples_are_there_where_the_data_is(visit, report, tmp_path):
    page = visit(report)
    titles = page.locator(".multiple h3").all_inner_texts()
    assert titles == ["Group size", "Activation precision by weight precision", "SmoothQuant", "KV cache"]
    assert page.locator(".panel").count() == len(FORMATS)
    assert page.locator(".matrix").first.locator("tbody td").count() == len(FORMATS) * 2 * 2
    page.locator(".matrix button").first.click()
    assert page.locator("dialog[open]").count() == 1
    page = visit(
        write_report(Selection([row("fp32", 8, 0.1), row("int4-g32", 1, 0.2)]), tmp_path, "two").html
    )
    assert page.locator(".multiple").count() == 0


def test_models_are_drawn_together(visit, tmp_path):
    selections = [points(tmp_path, model) for model in ("tiny", "base")]
    both = Selection(
        [entry for selection in selections for entry in selection.rows],
        {key: path for selection in selections for key, path in selection.transcripts.items()},
    )
    page = visit(write_report(both, tmp_path, "both").html)
    assert page.locator(".together .points path").count() == 2 * POINTS
    assert page.locator(".together .fronts path").count() == 2
    assert set(page.locator(".together .labels text").all_text_contents()) <= {"tiny", "base"}
    assert page.locator(".scene").count() == 2


def test_hostile_text_stays_text(visit, tmp_path):
    spoilt = points(tmp_path, texts=[f"{text} word" for text in HOSTILE])
    for n, text in enumerate(HOSTILE):
        spoilt.rows[n + 1] |= dict.fromkeys(
            ("point", "format", "activation", "command", "kv_cache", "roles"), text
        )
        spoilt.rows[n + 1]["role_bytes"] = {text: 10}
    rows = [*spoilt.rows, {"point": HOSTILE[0], "status": "failed", "error": HOSTILE[1]}]
    page = visit(write_report(Selection(rows, spoilt.transcripts), tmp_path, HOSTILE[0]).html)
    assert page.title() == page.locator("h1").inner_text() == HOSTILE[0]
    assert set(names(page)) >= {" ".join(text.split()) for text in HOSTILE}
    for n in range(len(HOSTILE)):
        page.locator("tbody th button").nth(n).dispatch_event("click")
        assert page.locator("dialog[open] h2").inner_text()
        page.keyboard.press("Escape")
    tags = page.evaluate("[...new Set([...document.querySelectorAll('*')].map(node => node.localName))]")
    assert not {"img", "iframe", "object", "embed", "base"} & set(tags)
    assert page.locator("script").count() == 2
    assert page.evaluate(
        "[...document.querySelectorAll('*')]"
        ".every(node => node.getAttributeNames().every(name => !name.startsWith('on')))"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_it_fits_and_can_be_read(visit, report, tmp_path, scheme, width, height):
    page = visit(report, width, height, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.screenshot(path=tmp_path / "page.png", full_page=True)
    contrast = """() => {
        const light = (text) => {
            const [r, g, b] = text.match(/[\\d.]+/g).map((part) => part / 255)
                .map((part) => (part <= 0.04 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const paper = light(getComputedStyle(document.body).backgroundColor);
        const ratio = (each) => {
            const ink = light(getComputedStyle(each).color);
            return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
        };
        return {
            text: [...document.querySelectorAll("body, figcaption, thead th, td, dd")].map(ratio),
            marks: [...document.querySelectorAll(".points path")].map(ratio),
        };
    }"""
    found = page.evaluate(contrast)
    assert min(found["text"]) >= 4.5  # WCAG 2.2, 1.4.3
    assert min(found["marks"]) >= 2.2  # they are told apart by label and shape too


def test_print_shows_all_on_white(visit, report):
    page = visit(report, scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator(".controls").is_visible()
    assert page.evaluate("getComputedStyle(document.querySelector('.scroll')).maxHeight") == "none"
    assert page.pdf()[:4] == b"%PDF"


def test_a_thousand_points(visit, tmp_path):
    rows = [row("fp32", 12, 0.05)]
    rows += [row(f"int4-{n}", 1 + n / 200, 0.05 + ((37 * n) % 1000) / 2000, group=n) for n in range(999)]
    page = visit(write_report(Selection(rows), tmp_path, "many").html)
    assert len(places(page)) == len(names(page)) == 1000
    assert page.locator(".intervals line").count() < 50
    page.get_by_role("searchbox").fill("group>=500")
    assert len(places(page)) == len(names(page)) == 499


def test_nothing_to_draw_is_said(visit, tmp_path):
    page = visit(write_report(Selection([row("int4", None, 0.1)]), tmp_path, "one").html)
    assert "nothing to draw" in page.locator(".chart svg").text_content()
    page = visit(
        write_report(Selection([{"point": "int4", "status": "failed", "error": "no"}]), tmp_path, "none").html
    )
    assert page.locator(".failures td").all_inner_texts() == ["no"]
