"""Rebuild the comparison from the store: table, report.html, pareto.png, results.csv."""

import sys
from pathlib import Path

from wq.study.grid import run_plainly
from wq.study.scenes import Row, reference_of

HELP = """usage: wq report [key=value ...]

All finished points of an experiment in the store, as a table, report.html, pareto.png and results.csv.

  wq report                          every point
  wq report model=nano split=other   points with these values, and the references they are compared with
  wq report format=int4,nvfp4        the same for several values; any column of the results will do
  wq report out=DIR                  where the files go (outputs/report)
  wq report tracking_uri=URI         which store ($MLFLOW_TRACKING_URI, or else sqlite:///mlflow.db)
  wq report experiment_name=NAME     which MLflow experiment (wq)"""


def main() -> None:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(HELP)
    else:
        run_plainly(lambda: build(sys.argv[1:]))


def build(arguments: list[str]) -> None:
    from wq.study.report import format_table, write_report
    from wq.study.tracking import Store, default_uri

    settings = dict(_split(text) for text in arguments)
    out = Path(settings.pop("out", "outputs/report"))
    store = Store(settings.pop("tracking_uri", None) or default_uri(), settings.pop("experiment_name", "wq"))
    rows = store.finished_rows()
    rows = chosen(rows, settings)
    if not rows:
        raise ValueError(
            f"no finished point matches in experiment {store.experiment} of {store.uri}; "
            "run some with python -m wq.main, or leave out filters"
        )
    written = write_report(rows, out, "wq report")
    print(format_table(rows))
    print("\n".join(str(path) for path in written.paths))


def chosen(rows: list[Row], settings: dict[str, str]) -> list[Row]:
    """The rows that have one of the values of every column, and the references they are compared with.

    Raises ValueError for a column that no row has.
    """
    columns = {column for row in rows for column in row}
    if rows and (unknown := next((column for column in settings if column not in columns), None)):
        raise ValueError(f"{unknown} is no column of the results; choose one of {', '.join(sorted(columns))}")
    accepted = {column: values.split(",") for column, values in settings.items()}
    matches = [all(str(row.get(column)) in accepted[column] for column in accepted) for row in rows]
    needed = {reference_of(row) for row, match in zip(rows, matches, strict=True) if match} - {None}
    return [
        row
        for row, match in zip(rows, matches, strict=True)
        if match or (row.get("is_reference") and reference_of(row) in needed)
    ]


def _split(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text} is no setting; give key=value")
    return key, value
