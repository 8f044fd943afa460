"""Make docs/columns.md from the declared columns: python docs/columns.py"""

from pathlib import Path

from wq.study.store.columns import COLUMNS

HEADING = """\
# The columns of a result

What `result.json` of a job holds, one row of `results.csv`, and what of it MLflow has as tags, metrics and
parameters (a tag is a parameter too, and so is every field of the spec under its dotted name). Rates are
fractions, sizes bytes. Made from `src/wq/study/store/columns.py` by `python docs/columns.py`.

| column | unit | meaning | MLflow |
| --- | --- | --- | --- |
"""


def page() -> str:
    return HEADING + "".join(
        f"| `{each.name}` | {each.unit} | {each.meaning} | {each.mlflow} |\n" for each in COLUMNS
    )


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page())
