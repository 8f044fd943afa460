"""docs/formats.md says what the descriptions say."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_of_formats_is_up_to_date():
    pytest.importorskip("altair", reason="the generator of docs/formats.md draws with altair")
    spec = importlib.util.spec_from_file_location("docs_formats", DOCS / "formats.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (DOCS / "formats.md").read_text() == module.page(), "run: python docs/formats.py"
