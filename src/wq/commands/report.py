"""Build the comparison from the store: the table, and report.html with its pictures and tables."""

from wq.console import run_command

HELP = """usage: wq report [key=value ...]

All points of an experiment in the store: the table here, and as files report.html, results.csv, results.md,
results.tex, pareto.png and pareto.svg.

  wq report                          every point
  wq report model=nano split=other   points with these values, and the references they are compared with
  wq report format=int4,nvfp4        the same for several values; any column of the results will do
  wq report roles=[decoder,conv]     lists as on the command line of a job
  wq report filter="metrics.wer < 0.2 and params.format = 'int4'"   a filter in MLflow's syntax
  wq report margin=0.01              how much worse than its reference a point to recommend may be (0.005)
  wq report front=wer_capped         the measure of the front: kl, nll, wer_capped or wer (kl)
  wq report out=DIR                  where the files go (outputs/report)
  wq report tracking_uri=URI         which store ($MLFLOW_TRACKING_URI, or else sqlite:///mlflow.db)
  wq report experiment_name=NAME     which MLflow experiments (wq); several with commas between them"""


def main() -> None:
    run_command(build, HELP)


def build(arguments: list[str]) -> None:
    from wq import outputs
    from wq.console import without_password
    from wq.study.compare.scenes import Criteria
    from wq.study.compare.selection import of_stores
    from wq.study.report.report import format_table, write_report
    from wq.study.resources.points import directory_for
    from wq.study.score.noninferiority import parse_margin
    from wq.study.store.results import REPORT
    from wq.study.store.tracking import Store, default_uri

    settings = dict(_split(text) for text in arguments)
    out = directory_for(settings.pop("out", "outputs/report"))
    uri = settings.pop("tracking_uri", None) or default_uri()
    experiments = settings.pop("experiment_name", "wq")
    query = settings.pop("filter", "")
    criteria = Criteria(parse_margin(settings.pop("margin", None)), settings.pop("front", None))
    outputs.refuse_foreign(out / name for name in REPORT)
    stores = [Store(uri, name) for name in experiments.split(",")]
    selection = of_stores(stores, query, settings, criteria)
    without = selection.unfinished
    if len(without) == len(selection.rows):
        others = f" ({_counted(without)})" if without else ""
        raise ValueError(
            f"no finished point matches in experiment {experiments} of {without_password(uri)}{others}; "
            "run some with python -m wq.main, or leave out filters"
        )
    written = write_report(selection, out, "wq report")
    print(format_table(selection))
    print("\n".join(str(path) for path in written.paths))


def _counted(rows: list[dict]) -> str:
    statuses = [str(row["status"]) for row in rows]
    return ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))


def _split(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text} is no setting; give key=value")
    return key, value
