"""Slurm: jobs submitted with submitit, and what the cluster knows of them.

submitit learns of a job's end from accounting, which many clusters do not have, and waits for ever for one
that was killed. So here it only submits: results tell what is done, and the controller what can still come.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = ".submitit"  # in a grid's directory: what was submitted, and the jobs' logs
LARGEST_ARRAY = 1000  # MaxArraySize is 1001 where a cluster does not say otherwise
SLOWEST_LOOK = 30.0  # seconds between two questions to the controller
UNKNOWN = "UNKNOWN"  # nobody can be asked

# States that a job does not leave
ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
    "REVOKED", "TIMEOUT", UNKNOWN,
}  # fmt: skip


class SlurmError(RuntimeError):
    """Slurm, or submitit, is not there or refuses a job."""


@dataclass(frozen=True)
class State:
    """A job's state in Slurm's words, and the reason for it."""

    name: str
    reason: str = ""

    @property
    def is_active(self) -> bool:
        return self.name not in ENDED


def submit(folder: Path, tasks: Sequence[Callable[[], None]], options: Mapping[str, Any]) -> list[str]:
    """Submit every task as a job of an array, and return the jobs' ids.

    options: as in conf/hydra/launcher/slurm.yaml.

    Raises:
        SlurmError: submitit is not installed, there is no Slurm here, or it refuses the jobs.
    """
    try:
        import submitit
    except ImportError as error:
        raise SlurmError(
            "hydra/launcher=slurm needs submitit, which is not installed; pip install 'wq[cluster]'"
        ) from error
    parameters = {SBATCH.get(name, name): value for name, value in options.items() if value not in (None, [])}
    if "mem" in parameters:
        parameters["mem"] = f"{parameters['mem']}GB"
    timeouts = parameters.pop("max_num_timeout", 0)
    try:
        executor = submitit.SlurmExecutor(folder / "%j", max_num_timeout=timeouts)
        executor.update_parameters(**parameters)
        ids = []
        for start in range(0, len(tasks), LARGEST_ARRAY):
            with executor.batch():
                jobs = [executor.submit(task) for task in tasks[start : start + LARGEST_ARRAY]]
            ids += [job.job_id for job in jobs]
        return ids
    except Exception as error:  # of submitit, of sbatch, or none of them there
        reason = " ".join(str(error).split()).removeprefix("sbatch: error: ")
        raise SlurmError(
            f"Slurm takes no jobs ({reason}); correct hydra.launcher, or choose hydra/launcher=joblib"
        ) from error


# Our options, which are those of other Hydra launchers, in sbatch's words
SBATCH = {"timeout_min": "time", "mem_gb": "mem", "name": "job_name"}


def states(jobs: Collection[str]) -> dict[str, State]:
    """What Slurm knows of jobs, or of all jobs of arrays. Those that it has forgotten are left out: without
    accounting a controller forgets an ended job after some minutes."""
    if not jobs:
        return {}
    arrays = ",".join(sorted({job.partition("_")[0] for job in jobs}))
    asked = _ask("squeue", "--array", "--noheader", "--states=all", "--format=%i|%T|%r", f"--jobs={arrays}")
    if asked.returncode and "Invalid job id" not in asked.stderr:
        reason = asked.stderr.strip().rpartition("\n")[2] or "squeue does not answer"
        return {job: State(UNKNOWN, reason) for job in jobs}
    told = _read(asked.stdout)
    if set(jobs) - told.keys():
        accounts = _ask("sacct", "-X", "-n", "-P", "-o", "JobID,State,ExitCode", "-j", arrays)
        told = _read(accounts.stdout) | told
    return {job: state for job, state in told.items() if {job, job.partition("_")[0]} & set(jobs)}


def _read(table: str) -> dict[str, State]:
    rows = (line.split("|") for line in table.splitlines() if line.count("|") == 2)
    # accounting says CANCELLED by UID
    return {job: State(name.split()[0], "" if why == "None" else why) for job, name, why in rows if name}


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = "is not on this machine" if isinstance(error, OSError) else "does not answer"
        return subprocess.CompletedProcess(command, 1, "", f"{command[0]} {reason}")


def wait(jobs: Collection[str], is_over: Callable[[], bool]) -> None:
    """Return when everything has its result, or when no job can bring one any more."""
    pause = 1.0
    while not is_over():
        known = states(jobs)
        unknown = any(state.name == UNKNOWN for state in known.values())
        if not unknown and not any(state.is_active for state in known.values()):
            return
        time.sleep(pause)
        pause = min(1.2 * pause, SLOWEST_LOOK)


def cancel(jobs: Collection[str]) -> None:
    _ask("scancel", *sorted({job.partition("_")[0] for job in jobs}))


def last_words(folder: Path) -> str:
    """The last that Slurm has written into a job's log of what went wrong, in one line."""
    for log in sorted(folder.glob("*_log.err")):
        told = re.findall(
            r"^(?:slurmstepd\S*|srun): error: (.*)$", log.read_text(errors="replace"), re.MULTILINE
        )
        if told:
            return told[-1].strip("* ")
    return ""


def run_as_job(task: Callable[[], None]) -> None:
    """Run a task inside a job, so that its runs end as KILLED and its locks are freed when Slurm stops it.

    At the time limit, or before a preemption that is announced, submitit queues the job again and exits. On
    SIGTERM the task is interrupted; a job that is preempted then waits for Slurm to stop it, as ending by
    itself would keep it from being queued again.
    """
    os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    queue_again = signal.getsignal(signal.SIGUSR2)

    def at_the_limit(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # comes with being queued again
        if callable(queue_again):
            queue_again(number, frame)

    signal.signal(signal.SIGUSR2, at_the_limit)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        task()
    except KeyboardInterrupt:
        job = own_id()
        known = states({job}).get(job)
        print(f"stopped by Slurm: job {job} is {known.name if known else 'gone'}", file=sys.stderr)
        if known and known.name == "RUNNING":
            time.sleep(600)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130)  # all is closed; what libraries do at an exit may last until Slurm kills the process


def own_id() -> str:
    """The job that this process runs in, as `submit` named it; empty where it runs in none."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID", "")


def is_gone(jobs: str) -> bool:
    """Whether a job, or all of an array, or several with commas between them, have ended, as far as Slurm can
    be asked."""
    return not any(state.is_active or state.name == UNKNOWN for state in states(jobs.split(",")).values())


def _interrupt(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    raise KeyboardInterrupt
