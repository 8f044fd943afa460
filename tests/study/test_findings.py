"""docs/findings.md says what the committed results say: its tables are theirs, its numbers the tables'."""

import csv
import importlib.util
import re

import pytest

from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "findings.md").read_text(encoding="utf-8")
RESULTS = REPOSITORY / "docs" / "results"

# Numbers of settings and not of results: bits, group sizes, the level of intervals
SETTINGS = {"2", "3", "4", "5", "6", "8", "16", "32", "64", "95", "128", "256"}
NUMBER = re.compile(r"(?<![\w.])[+-]?\d+(?:,\d{3})*(?:\.\d+)?(?!\w|\.\d)")


def recipe():
    """recipes/study/findings.py, which makes the tables."""
    path = REPOSITORY / "recipes" / "study" / "findings.py"
    spec = importlib.util.spec_from_file_location("study_findings", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sections() -> list[str]:
    return re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]


def parts(section: str) -> tuple[str, str]:
    """Its tables, and its prose without code, links and comments."""
    tables = "\n".join(line for line in section.splitlines() if line.startswith("|"))
    prose = "\n".join(line for line in section.splitlines() if not line.startswith("|"))
    prose = re.sub(r"```.*?```|<!--.*?-->", " ", prose, flags=re.DOTALL)
    return tables, re.sub(r"`[^`]*`|\]\([^)]*\)", " ", prose)


def test_every_table_is_what_the_results_give():
    assert recipe().filled(PAGE) == PAGE
    blocks = recipe().BLOCK.findall(PAGE)
    assert len(blocks) >= 8
    assert PAGE.count("<!-- end -->") == len(blocks)


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.partition("\n")[0])
def test_every_number_of_the_prose_stands_in_a_table_of_its_section(section):
    tables, prose = parts(section)
    known = {number.lstrip("+-") for number in NUMBER.findall(tables)} | SETTINGS
    unknown = [number for number in NUMBER.findall(prose) if number.lstrip("+-") not in known]
    assert not unknown, f"numbers without a source: {unknown}"


def test_tables_come_from_nowhere_else():
    """Between the comments stand all lines of tables that hold a decimal."""
    outside = recipe().BLOCK.sub("", PAGE)
    assert not [line for line in outside.splitlines() if line.startswith("|") and re.search(r"\d\.\d", line)]


def test_every_point_has_its_interval():
    without = ("experiments.csv", "sensitivity.csv", "kv_cache_memory.csv", "agreement.csv")
    tables = [path for path in RESULTS.glob("*/*.csv") if path.name not in without]
    assert tables
    for path in tables:
        for row in csv.DictReader(path.open(encoding="utf-8", newline="")):
            if row.get("is_reference") == "True":
                assert row["wer_delta"] == ""
                continue
            delta, low, high = (
                float(row[name]) for name in ("wer_delta", "wer_delta_ci_low", "wer_delta_ci_high")
            )
            assert low <= high
            if "wer" in row:
                errors = sum(int(row[kind]) for kind in ("substitutions", "deletions", "insertions"))
                assert errors / int(row["reference_words"]) == pytest.approx(float(row["wer"]), abs=1e-7)
                assert row["front"] in ("on", "equivalent", "undecided", "off", "broken")
            else:
                rates = float(row["first_wer"]), float(row["second_wer"])
                assert rates[1] - rates[0] == pytest.approx(delta, abs=1e-7)


def test_the_trade_off_has_a_hundred_points():
    sizes = [
        sum(row["is_reference"] != "True" for row in csv.DictReader(path.open(encoding="utf-8", newline="")))
        for path in RESULTS.glob("*/tradeoff.csv")
    ]
    assert max(sizes) >= 100


def test_the_results_are_small():
    assert sum(path.stat().st_size for path in RESULTS.rglob("*.*")) < 3_000_000


def test_a_number_without_a_source_is_found():
    assert NUMBER.findall("costs +3.10 [2.5, 4] of 1,986 words, int4-g128 and tiny.en.") == [
        "+3.10",
        "2.5",
        "4",
        "1,986",
    ]
