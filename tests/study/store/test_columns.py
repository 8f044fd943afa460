"""Every column of a result is declared, once, and the page says what the declaration says."""

import importlib.util
from collections import Counter
from pathlib import Path

from wq.study.store.columns import COLUMNS, METRIC, TAG, columns_of, undeclared

DOCS = Path(__file__).parents[3] / "docs"


def test_a_column_is_declared_once_and_means_something():
    assert Counter(column.name for column in COLUMNS).most_common(1)[0][1] == 1
    assert all(column.meaning for column in COLUMNS)
    assert undeclared(["wer", "wre"]) == ["wre"]


def test_runs_are_grouped_by_the_spec_and_compared_by_numbers():
    assert {"point", "model", "format", "group", "kv_cache", "dataset", "split"} <= set(columns_of(TAG))
    assert {"wer", "wer_delta_ci_high", "linear_bytes", "rtfx"} <= set(columns_of(METRIC))
    assert not set(columns_of(TAG)) & set(columns_of(METRIC))


def test_the_page_of_columns_is_up_to_date():
    spec = importlib.util.spec_from_file_location("docs_columns", DOCS / "columns.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (DOCS / "columns.md").read_text() == module.page(), "run: python docs/columns.py"
