"""Grids on a real Slurm cluster of one node, this machine, without accounting: as on a node that was just
set up, and as hard for those who must notice that a job was killed."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import Launch, Run
from tests.test_launchers import GRID, POINTS, finished, numbers, runs, sweep_of, until
from wq.study.store.tracking import HOST, JOB, PID, Store, is_dead

pytestmark = pytest.mark.slurm

DAEMONS = ("munged", "slurmctld", "slurmd")
SLURM = ("hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1")

CONFIGURATION = """
ClusterName=wq
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge/socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=5
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.log
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000
PartitionName=debug Nodes=ALL Default=YES State=UP
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cluster that the commands of this process and its children find; gone after the tests."""
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons are started by root only")
    missing = [name for name in (*DAEMONS, "sbatch") if not shutil.which(name)]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: apt-get install slurm-wlm munge")
    home = tmp_path_factory.mktemp("slurm")
    for name in ("munge", "state", "spool"):
        (home / name).mkdir(mode=0o700)
    key = home / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    configuration = home / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(host=host, home=home, ports=free_ports(2), cpus=os.cpu_count())
    )
    earlier = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(configuration)
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    try:
        options = [f"--{option}={home}/munge/{file}" for option, file in files.items()]
        subprocess.run(["munged", "--force", *options], check=True)
        subprocess.run(["slurmctld"], check=True)
        subprocess.run(["slurmd"], check=True)
        until(lambda: "idle" in asked("sinfo", "-h", "-o", "%T"), 60)
        yield
    finally:
        asked("scancel", "--state=PENDING", "--user=root")
        asked("scancel", "--signal=KILL", "--user=root")
        for file in ("slurmd.pid", "slurmctld.pid", "munge/pid"):
            if (home / file).exists():
                stop(int((home / file).read_text()))
        os.environ.pop("SLURM_CONF")
        if earlier is not None:
            os.environ["SLURM_CONF"] = earlier


def stop(pid: int) -> None:
    try:
        daemon = psutil.Process(pid)
        daemon.terminate()
        daemon.wait(20)
    except psutil.NoSuchProcess:
        pass
    except psutil.TimeoutExpired:
        os.kill(pid, signal.SIGKILL)


def asked(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def job_processes(directory: Path) -> dict[str, psutil.Process]:
    """The Python processes of the jobs of a grid, by their number in the array."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if words[:1] == [sys.executable] and "submitit.core._submit" in words and str(directory) in words[-1]:
            found[process.environ().get("SLURM_ARRAY_TASK_ID", "0")] = process
    return found


def test_the_same_numbers_as_in_one_process(cluster: None, wq: Run, tmp_path: Path):
    """Packed two to a job; and once more, when no job is needed."""
    first = wq("-m", *GRID, *SLURM, "chunk=2")
    assert first.returncode == 0, first.stderr
    assert "4 points in 2 Slurm jobs" in first.stdout
    assert finished(tmp_path) == sorted(POINTS)
    on_slurm = numbers(sweep_of(tmp_path))

    again = wq("-m", *GRID, *SLURM, "chunk=2")
    assert again.returncode == 0, again.stderr
    assert "Slurm jobs" not in again.stdout
    assert again.stdout.count("(from the store)") == 4

    basic = wq("-m", *GRID, f"tracking_uri=sqlite:///{tmp_path}/basic.db", "hydra.sweep.dir=basic")
    assert basic.returncode == 0, basic.stderr
    assert numbers(tmp_path / "basic") == on_slurm


def test_a_grid_that_is_left_to_itself(cluster: None, wq: Run, tmp_path: Path):
    launched = wq("-m", *GRID, *SLURM, "detach=true")
    assert launched.returncode == 0, launched.stderr
    sweep = sweep_of(tmp_path)
    assert not (sweep / "report.html").exists()
    early = wq("status", module="wq")
    assert early.returncode == 0, early.stderr
    assert re.search(r"(waiting|running) .*Slurm job \d+_3", early.stdout)
    until(lambda: (sweep / "0" / "result.json").exists(), 200)
    partial = wq("report", "out=so_far", module="wq")
    assert partial.returncode == 0, partial.stderr
    until(lambda: (sweep / "pareto.svg").exists(), 200)  # the last job makes the report
    assert "4 done (all)" in wq("status", module="wq").stdout
    until(lambda: {status for _, status in runs(tmp_path)} == {"FINISHED"}, 30)


def test_killed_jobs_are_noticed_told_and_repaired(cluster: None, wq: Run, launch: Launch, tmp_path: Path):
    command = ("-m", *GRID, "limit=60", "batch_size=2", *SLURM)
    grid = launch(*command)
    for number in (0, 1):
        until(lambda: list(tmp_path.glob(f"multirun/*/*/{number}/.hydra")))  # noqa: B023
    sweep = sweep_of(tmp_path)
    processes = job_processes(sweep)
    array = asked("squeue", "-h", "-o", "%A").split()[0]
    elsewhere = {HOST: "another-node", PID: "1", JOB: f"{array}_1"}  # of a run that a job on a node has open
    assert not is_dead(elsewhere)
    subprocess.run(["scancel", f"{array}_0"], check=True)
    processes["1"].kill()
    _, stderr = grid.communicate(timeout=300)
    assert grid.returncode == 1
    assert stderr.strip().splitlines()[-1].startswith("error: 2 done, 2 missing of 4")

    assert is_dead(elsewhere)

    told = wq("status", module="wq").stdout
    assert "2 done, 2 missing of 4" in told
    assert re.search(r"missing +format=int4 group=32  \(Slurm job \d+_0 ended as CANCELLED", told)
    assert re.search(r"missing +format=int4 group=128  \(Slurm job \d+_1 ended as FAILED: .*Killed", told)

    repaired = wq(*command)
    assert repaired.returncode == 0, repaired.stderr
    assert "2 points in 2 Slurm jobs" in repaired.stdout
    assert finished(tmp_path) == sorted(POINTS)
    assert "RUNNING" not in {status for _, status in runs(tmp_path)}


def test_a_job_over_its_time_goes_on_where_it_was(cluster: None, wq: Run, launch: Launch, tmp_path: Path):
    limits = ("hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=1")
    grid = launch("-m", *GRID, "limit=60", "batch_size=2", "chunk=4", *SLURM, *limits)
    until(lambda: len(finished(tmp_path)) > 1)  # a point and its reference have been recorded too
    (process,) = job_processes(sweep_of(tmp_path)).values()
    process.suspend()  # else a fast machine is done within Slurm's least limit; Slurm resumes it
    until(lambda: "BeginTime" in asked("squeue", "-h", "-o", "%r"), 200)
    job = asked("squeue", "-h", "-o", "%A").strip()
    before = {path: path.stat().st_mtime_ns for path in sweep_of(tmp_path).glob("?/result.json")}
    assert len(before) < 4
    # Slurm would wait two minutes; and this time it may take longer
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now", "TimeLimit=20"], check=True)
    until(lambda: "Restarts=1" in asked("scontrol", "show", "job", job), 60)
    _, stderr = grid.communicate(timeout=500)
    assert grid.returncode == 0, stderr
    assert finished(tmp_path) == sorted(POINTS)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "4 done (all)" in wq("status", module="wq").stdout


def test_a_detached_grid_that_is_cancelled_is_closed(cluster: None, wq: Run, tmp_path: Path):
    launched = wq("-m", *GRID, *SLURM, "limit=300", "detach=true")
    assert launched.returncode == 0, launched.stderr
    store = Store(f"sqlite:///{tmp_path}/mlflow.db", "wq")
    store.close_stale()
    assert "RUNNING" in {status for _, status in runs(tmp_path)}  # its jobs can still come
    subprocess.run(["scancel", asked("squeue", "-h", "-o", "%A").split()[0]], check=True)
    until(lambda: not job_processes(sweep_of(tmp_path)), 60)
    until(lambda: not asked("squeue", "-h"), 60)
    store.close_stale()
    assert {status for _, status in runs(tmp_path)} == {"KILLED"}


def test_an_interrupt_reaches_the_jobs_soon(cluster: None, launch: Launch, tmp_path: Path):
    grid = launch("-m", *GRID, *SLURM, "limit=300", "batch_size=2")
    until(lambda: (tmp_path / "mlflow.db").exists() and ("fp32", "RUNNING") in runs(tmp_path))
    time.sleep(2)  # into the transcription
    jobs = list(job_processes(sweep_of(tmp_path)).values())
    assert jobs
    os.killpg(grid.pid, signal.SIGINT)
    _, alive = psutil.wait_procs(jobs, timeout=5)
    assert not alive
    _, stderr = grid.communicate(timeout=60)
    assert grid.returncode == 130
    assert stderr.splitlines()[-1] == "interrupted"
    assert {status for _, status in runs(tmp_path)} == {"KILLED"}
