"""docs/performance.md is what the benchmarks' data give: no number of it is written by hand."""

import json

from benchmarks import page
from tests.conftest import REPOSITORY

DATA = REPOSITORY / "docs" / page.DATA


def test_the_page_is_made_from_its_data():
    parts = json.loads(DATA.read_text())
    text = (REPOSITORY / "docs" / page.PAGE).read_text()
    assert text == page.text(parts)
    for part, data in parts.items():
        assert f"## {page.PARTS[part]}" in text
        assert f"`{data['command']}`" in text
        for name in page.charts(part, data["results"]):
            assert (REPOSITORY / "docs" / f"performance-{name}.png").is_file()
