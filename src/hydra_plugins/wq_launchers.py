"""Where the jobs of a grid run: in this process, in several of this machine, or on a Slurm cluster.

Hydra takes launchers only from the namespace package `hydra_plugins`; what these do is in
`wq.processes` and `wq.slurm`.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, configure_log, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

if TYPE_CHECKING:
    from wq.study.spec.config import Config

log = logging.getLogger(__name__)

Points = Mapping[int, Sequence[str]]  # the overrides of points by their number in the grid


@dataclass
class Jobs:
    """Points of a grid for one process, one after the other: they share what it has loaded."""

    context: HydraContext
    config: DictConfig
    task: TaskFunction
    points: Points
    directories: Mapping[int, str]  # of these points, in the grid's
    singletons: dict[Any, Any]
    slurm: bool = False
    report: bool = False
    aloud: bool = False
    coming: Mapping[str, Any] = field(default_factory=dict)  # see wq.study.job.reuse
    composed: Mapping[int, DictConfig] = field(default_factory=dict)  # where that is known already

    def __call__(self) -> None:
        from wq.console import print_anything

        Singleton.set_state(self.singletons)
        setup_globals()
        print_anything()
        if not self.slurm:
            return self.run()
        from wq.slurm import run_as_job

        return run_as_job(self.run)

    def run(self) -> None:
        """Run the points that have no result here yet: a job that was queued again goes on where it was."""
        from wq import outputs
        from wq.console import raise_if_interrupted, report_errors
        from wq.study.grid import grid
        from wq.study.store import results

        sweep = Path(self.config.hydra.sweep.dir)
        composed = {}
        for number, overrides in self.points.items():
            directory = sweep / self.directories[number]
            if not (directory / results.RESULT).exists():
                outputs.remove([directory / results.ERROR])
                with report_errors(results.keep_failure(directory)):
                    known = self.composed.get(number)
                    composed[number] = known or compose(self.context, self.config, number, overrides)
        for number in self.order(composed):
            raise_if_interrupted()
            if self.aloud:
                log.info(f"\t#{number} : {' '.join(filter_overrides(self.points[number]))}")
            with report_errors(results.keep_failure(sweep / self.directories[number])):
                self.run_point(number, composed.pop(number))
        if self.report:
            with report_errors():
                grid.finish_detached(sweep, self.config)

    def order(self, composed: Mapping[int, DictConfig]) -> list[int]:
        """The numbers of these points in the order in which they run."""
        from wq.study.job import reuse

        order, coming = plan(composed) if len(composed) > 1 else (list(composed), self.coming)
        reuse.here.coming |= coming
        return order

    def run_point(self, number: int, config: DictConfig) -> None:
        with open_dict(config):
            config.hydra.job.id = os.environ.get("SLURM_JOB_ID", config.hydra.job.id)
            # as they were resolved when the grid was launched, and stand in its plan
            config.hydra.sweep.dir = self.config.hydra.sweep.dir
            config.hydra.sweep.subdir = self.directories[number]
        HydraConfig.instance().set_config(config)
        run_job(
            hydra_context=self.context,
            task_function=self.task,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )

    def checkpoint(self) -> Any:
        """What submitit queues again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def compose(context: HydraContext, config: DictConfig, number: int, overrides: Sequence[str]) -> DictConfig:
    composed = context.config_loader.load_sweep_config(config, list(overrides))
    with open_dict(composed):
        composed.hydra.job.id = f"{composed.hydra.job.name}_{number}"
        composed.hydra.job.num = number
    return composed


def checked(composed: DictConfig) -> "Config":
    from wq.study.spec.composition import as_config

    config = composed.copy()
    with open_dict(config):
        del config["hydra"]
    return as_config(config)


def plan(composed: Mapping[int, DictConfig]) -> tuple[list[int], dict[str, Any]]:
    """The numbers of points in the order in which they are to run, and what they read: see
    wq.study.job.reuse."""
    from wq.study.job import reuse

    configs = {}
    for number, config in composed.items():
        with suppress(Exception):  # whatever is wrong, the job will say it
            configs[number] = checked(config)
    order, coming = reuse.plan(configs)
    return [*order, *(number for number in composed if number not in configs)], coming


def place(composed: Mapping[int, DictConfig]) -> dict[int, str]:
    """The directories of points, in the grid's.

    Raises ConfigurationError where two would share one, or one leads out of the grid's.
    """
    from wq.study.spec.config import ConfigurationError

    found = {
        number: os.path.normpath(str(OmegaConf.select(config, "hydra.sweep.subdir")))
        for number, config in composed.items()
    }
    for text in found.values():
        if Path(text).is_absolute() or Path(text).parts[:1] in ((), (os.pardir,)):
            raise ConfigurationError(
                f"hydra.sweep.subdir={text} is no directory below hydra.sweep.dir; give one for every point, "
                "such as ${hydra.job.num}"
            )
    owners = {Path(text): number for number, text in found.items()}
    for number, text in found.items():
        around = {owners[each] for each in (Path(text), *Path(text).parents) if each in owners}
        if around != {number}:
            raise ConfigurationError(
                f"hydra.sweep.subdir={text} of point {number} is in the directory of point "
                f"{min(around - {number})}; give one for every point, such as ${{hydra.job.num}}"
            )
    return found


def write_plan(
    config: DictConfig, points: Points, directories: Mapping[int, str], jobs: Mapping[int, str]
) -> None:
    import shlex

    from wq.study.grid import progress

    overrides = [text for text in config.hydra.overrides.hydra if not text.startswith("hydra.mode=")]
    command = shlex.join(["python", "-m", "wq.main", "-m", *overrides, *config.hydra.overrides.task])
    shown = {number: filter_overrides(texts) for number, texts in points.items()}
    progress.write_plan(Path(config.hydra.sweep.dir), command, shown, directories, jobs)


def refuse_detach(config: DictConfig) -> None:
    from wq.study.spec.config import ConfigurationError

    if config.detach:
        raise ConfigurationError("detach=true needs a cluster that takes the jobs; give hydra/launcher=slurm")


class _Launcher(Launcher):
    """What all launchers share. options: the node hydra.launcher."""

    context: HydraContext
    config: DictConfig
    task: TaskFunction

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config, self.task = hydra_context, config, task_function
        self.sweep = Path(config.hydra.sweep.dir)

    def prepare(self, points: Points) -> dict[int, DictConfig]:
        """Compose points, and make room for them: nothing of others is in their directories' way, nothing of
        an earlier grid's jobs stays there, and the plan says which points there are."""
        from wq import outputs
        from wq.study.grid.grid import OWN_FILES, SWEPT, sources
        from wq.study.store import results

        composed = {n: compose(self.context, self.config, n, texts) for n, texts in points.items()}
        self.directories = place(composed)
        for config in composed.values():
            outputs.refuse_inside(self.sweep, "hydra.sweep.dir", sources(config))
        jobs = [self.sweep / directory for directory in self.directories.values()]
        settings = self.config.hydra.output_subdir
        outputs.refuse_foreign(
            path
            for job in jobs
            for path in (
                *results.files(job),
                *(job / settings / name for name in OWN_FILES if settings is not None),
            )
        )
        outputs.remove(path for job in jobs for path in results.files(job))
        outputs.claim([self.sweep / SWEPT])
        self.write_plan(points, {})
        return composed

    def write_plan(self, points: Points, jobs: Mapping[int, str]) -> None:
        write_plan(self.config, points, self.directories, jobs)

    def jobs(self, points: Points, **settings: Any) -> Jobs:
        known = Singleton.get_state()
        return Jobs(self.context, self.config, self.task, points, self.directories, known, **settings)

    def configure_log(self) -> None:
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)


class Basic(_Launcher):
    """In this process, one after the other; the model is loaded once."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        refuse_detach(self.config)
        setup_globals()
        self.configure_log()
        points = dict(enumerate(job_overrides, initial_job_idx))
        composed = self.prepare(points)
        log.info(f"Launching {len(points)} jobs locally")
        self.jobs(points, aloud=True, composed=composed).run()
        self.configure_log()
        return []


class Joblib(_Launcher):
    """In processes of this machine."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from wq.console import report_errors
        from wq.processes import run_in_processes
        from wq.study.store.results import keep_failure

        refuse_detach(self.config)
        points = dict(enumerate(job_overrides, initial_job_idx))
        composed = self.prepare(points)

        def lost(number: int, error: Exception) -> None:
            with report_errors(keep_failure(self.sweep / self.directories[number])):
                raise error

        order, coming = plan(composed)
        tasks = {number: self.jobs({number: points[number]}, coming=coming) for number in order}
        run_in_processes(tasks, lost, device=self.config.device, **self.options)
        return []


class Slurm(_Launcher):
    """In jobs of a Slurm cluster, `chunk` points in each."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from wq import slurm
        from wq.study.grid import grid

        points = dict(enumerate(job_overrides, initial_job_idx))
        composed = self.prepare(points)
        settings = checked(composed[initial_job_idx])
        known = self.known()
        stored = {
            number: texts
            for number, texts in points.items()
            if known and self.is_in(known, composed[number], texts)
        }
        self.jobs(stored).run()
        self.configure_log()
        left = [number for number in points if number not in stored]
        if not left:
            return []
        size, detach = settings.chunk, settings.detach
        chunks = [left[start : start + size] for start in range(0, len(left), size)]
        tasks = [self.jobs({n: points[n] for n in chunk}, slurm=True, report=detach) for chunk in chunks]
        options = OmegaConf.to_container(OmegaConf.create(self.options), resolve=True)
        assert isinstance(options, dict)
        names = slurm.submit(self.sweep / slurm.FOLDER, tasks, options)  # type: ignore[arg-type]
        jobs = {number: name for chunk, name in zip(chunks, names, strict=True) for number in chunk}
        self.write_plan(points, jobs)
        first, last = names[0], names[-1]
        print(
            f"{len(left)} points in {len(names)} Slurm jobs, {first}"
            + (f" to {last}" if last != first else "")
            + f"; how it goes: wq status {self.sweep}"
        )
        if detach:
            grid.detach(names)
            return []
        try:
            slurm.wait(names, lambda: all(map(self.is_done, left)))
        except KeyboardInterrupt:
            slurm.cancel(names)
            raise
        return []

    def is_done(self, number: int) -> bool:
        from wq.study.store.results import RESULT

        return (self.sweep / self.directories[number] / RESULT).exists()

    def known(self) -> set[str]:
        """The fingerprints of the points that the store has."""
        from wq.study.grid.grid import open_store
        from wq.study.store.tracking import FINGERPRINT

        store = open_store(self.config)
        with store.connection.optional():
            return {run.data.tags[FINGERPRINT] for run in store.runs("attributes.status = 'FINISHED'")}
        return set()

    def is_in(self, known: set[str], composed: DictConfig, overrides: Sequence[str]) -> bool:
        """Whether a point needs no job, as the store has it and its reference."""
        from dataclasses import replace

        from wq.study.job.job import prepare

        config = checked(composed)
        try:
            job = prepare(replace(config, device="cpu"), list(overrides))
            return not config.rerun and {job.spec.fingerprint, job.spec.reference().fingerprint} <= known
        except Exception:  # whatever is wrong, the job will say it
            return False
