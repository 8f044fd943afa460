"""One job, top to bottom: `python -m wq.main`. With -m, a grid of them.

compose -> validate -> effective spec -> fingerprint -> in the store already? -> load -> quantize ->
transcribe -> score -> size -> result.json and hypotheses.jsonl -> MLflow.
"""

import sys
from contextlib import chdir
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from wq.catalogue import conf_dir
from wq.study.spec.composition import as_config, register_schema
from wq.study.spec.config import Config

register_schema()


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def job(composed: DictConfig) -> None:
    from wq.console import report_errors
    from wq.study.store.results import keep_failure

    runtime = HydraConfig.get().runtime
    directory = Path(runtime.output_dir)
    # paths and the store are meant from where the command was typed, whatever hydra.job.chdir does
    with chdir(runtime.cwd), report_errors(keep_failure(directory)):
        run(as_config(composed), directory, list(HydraConfig.get().overrides.task))


def run(config: Config, directory: Path, overrides: list[str]) -> None:
    """Evaluate one point, or take it from the store; leave its files in the directory and print its line."""
    from wq.study.job.job import prepare
    from wq.study.spec.resolution import tell_ignored

    job = prepare(config, overrides)
    # After it, as they import torch: what is wrong with the configuration is said before
    from wq.console import say
    from wq.study.compare import expected
    from wq.study.job import evaluation, reuse
    from wq.study.report import report
    from wq.study.store import results

    tell_ignored(job.spec)
    reuse.here.expect(job.spec)  # before its reference, which may leave something for it
    sweep = results.sweep_of(directory)
    job.store.connection.tell_failure(sweep or directory)
    reference = (
        None
        if job.spec.is_reference
        else evaluation.obtain(job.reference(), directory / results.REFERENCE_FOLDER)
    )
    if reference:
        results.write_row(directory / results.REFERENCE, reference.row)
        if not reference.reused:
            say(report.format_line(reference.row))
    outcome = evaluation.obtain(job, directory, reference)
    job.store.connection.tell_failure(sweep or directory)
    for notice in evaluation.notices(outcome.row):
        print(f"{job.spec.point}: {notice}", file=sys.stderr)
    say(report.format_line(outcome.row) + ("  (from the store)" if outcome.reused else ""))
    job.store.tell_made()
    if not sweep:  # a grid looks at all of its points when they have ended
        for error in expected.unexpected([outcome.row], config.expect_wer):
            raise error


def main() -> None:
    from wq.study.grid import grid

    grid.run_application(job)


if __name__ == "__main__":
    main()
