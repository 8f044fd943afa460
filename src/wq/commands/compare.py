"""Compare two runs: the difference, how sure it is, and which utterances changed how."""

from pathlib import Path

from wq.console import run_command
from wq.study.score.noninferiority import parse_margin

HELP = """usage: wq compare A B [key=value ...]

How run B differs from run A over the same utterances: both word error rates, the difference with its 95 %
interval, whether it could be chance (paired bootstrap, and NIST's MAPSSWE), and the utterances that they
transcribe in other words, those first in which B does worse. Beside that by every token, where both runs have
it: kl, the divergence from the reference, and nll, the cross entropy of the words that were said.

A and B are each a point's name, a fingerprint or an MLflow run id, or the beginning of one; or the directory
of a job, or its result.json.

  wq compare fp32 int4-g128              two points of the experiment
  wq compare fp32 int4-g128 split=other  where there are more of these names; any column will do
  wq compare 3f9a 07bd limit=null        all utterances that changed (limit=10)
  wq compare outputs/a outputs/b         two jobs on disk
  wq compare A B margin=0.01             how much worse B may be and still be called not inferior (0.005)
  wq compare A B tracking_uri=URI        which store ($MLFLOW_TRACKING_URI, or else sqlite:///mlflow.db)
  wq compare A B experiment_name=NAME    which MLflow experiment (wq)

What is wrong stands between asterisks: *this* was not said, or not here, and for *** nothing was heard."""


def main() -> None:
    run_command(compare, HELP)


def compare(arguments: list[str]) -> None:
    names = [text for text in arguments if "=" not in text or Path(text).exists()]
    columns = dict(text.split("=", 1) for text in arguments if text not in names)
    if len(names) != 2:
        raise ValueError(
            f"{len(names)} runs given; give two, as in wq compare fp32 int4-g128 (wq compare --help)"
        )
    limit = _limit(columns.pop("limit", "10"))
    margin = parse_margin(columns.pop("margin", None))
    uri, experiment = columns.pop("tracking_uri", ""), columns.pop("experiment_name", "wq")

    from wq.study.compare.comparison import difference
    from wq.study.compare.lookup import find_points
    from wq.study.report.comparison_text import format_difference
    from wq.study.store.tracking import Store, default_uri

    first, second = find_points(names, Store(uri or default_uri(), experiment), columns)
    print(format_difference(difference(first, second), limit, margin))


def _limit(text: str) -> int | None:
    if text == "null":
        return None
    if not text.isdigit():
        raise ValueError(f"limit={text} is no number of utterances; give limit=20, or limit=null for all")
    return int(text)
