"""Record results that are on disk and not in the store, as after it could not be reached."""

from pathlib import Path

from wq.console import run_command

HELP = """usage: wq sync [DIR ...] [key=value ...]

Jobs go on where the MLflow store cannot be reached, and keep their results as files. This records them, as
the jobs would have, and ends the runs of their grids. Every result is recorded once, however often and by
however many at once this is called; what the store has stays as it is. DIR is a job's or a grid's directory,
or one above them; without any, multirun/ and outputs/.

  wq sync                        everything here
  wq sync multirun/DATE/TIME     a grid
  wq sync tracking_uri=URI       which store (the job's tracking_uri=, or $MLFLOW_TRACKING_URI, or the job's)
  wq sync experiment_name=NAME   which MLflow experiment (the job's)

Call it in the directory that the jobs were started in: a server's locks are there, and so is mlflow.db."""

DEFAULT = (Path("multirun"), Path("outputs"))


def main() -> None:
    run_command(sync, HELP)


def sync(arguments: list[str]) -> None:
    texts = [text for text in arguments if "=" in text and not Path(text).exists()]
    settings = dict(text.split("=", 1) for text in texts)
    directories = [Path(text) for text in arguments if text not in texts]
    unknown = next((name for name in settings if name not in ("tracking_uri", "experiment_name")), None)
    if unknown:
        raise ValueError(f"{unknown}= is no setting; give directories, tracking_uri= or experiment_name=")
    missing = next((each for each in directories if not each.is_dir()), None)
    if missing:
        raise ValueError(f"{missing} is no directory; give that of a job or a grid, or one above them")
    if not directories and not any(each.is_dir() for each in DEFAULT):
        raise ValueError("no multirun/ or outputs/ here; give directories with results")

    from wq.study.grid.sync import OUTCOMES, sync
    from wq.study.store.recording import store_of

    counts = sync(
        directories or DEFAULT,
        lambda record: store_of(record, settings.get("tracking_uri"), settings.get("experiment_name")),
    )
    told = ", ".join(f"{counts[name]} {name}" for name in OUTCOMES if counts[name])
    print(f"{counts.total()} results: {told}" if told else "no results")
