"""Grids on a real MLflow server with a real PostgreSQL, as `make server` starts them; and both killed."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.conftest import REPOSITORY, Launch, Run
from tests.test_launchers import OWN, sweep_of, until
from tests.test_slurm import free_ports
from wq.study.store.tracking import GRID, LONGEST_NAME, PARENT, WHOLE_NAME, Store

pytestmark = pytest.mark.postgres

FORTY = (
    "format=int8,int6,int5,int4,int3,fp8_e4m3,fp6_e3m2,fp4_e2m1,nvfp4,mxfp4",
    *("group=16,32,64,128", "limit=2", "resamples=50"),
)
TWELVE = (
    *("format=int8,int6,int5,int4,nvfp4,mxfp4", "group=32,64", "limit=8", "resamples=50"),
    *("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
)
LAYERS = (
    *[("encoder", "self_attn", name) for name in ("q", "k", "v", "out")],
    *[("decoder", part, name) for part in ("self_attn", "cross_attn") for name in ("q", "k", "v", "out")],
)
EIGHT = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=8", "hydra.launcher.threads=1")


class Server:
    """recipes/server.sh in a directory of its own, on a port of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (self.port,) = free_ports(1)
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = [str(REPOSITORY / "recipes" / "server.sh"), "127.0.0.1", str(self.port), str(self.directory)]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                words, env=os.environ | {"PATH": path}, stdout=log, stderr=log, start_new_session=True
            )
        until(self.answers, 120)

    def answers(self) -> bool:
        assert self.process
        assert self.process.poll() is None, (self.directory / "log").read_text()
        try:
            return requests.get(f"{self.uri}/health", timeout=5).ok
        except requests.RequestException:
            return False

    def processes(self) -> list[psutil.Process]:
        """The script, MLflow's, PostgreSQL's."""
        assert self.process
        first = psutil.Process(self.process.pid)
        number = (self.directory / "postgresql" / "postmaster.pid").read_text().split()[0]
        postmaster = psutil.Process(int(number))
        return [each for top in (first, postmaster) for each in (top, *top.children(recursive=True))]

    def kill(self) -> None:
        """All at once, as when the machine loses its power."""
        for process in (found := self.processes()):
            process.suspend()
        for process in found:
            process.kill()
        assert self.process
        self.process.wait()
        psutil.wait_procs(found, timeout=30)

    def stop(self) -> list[psutil.Process]:
        """By Ctrl-C; gives those that are left."""
        found = self.processes()
        assert self.process
        self.process.send_signal(signal.SIGTERM)  # in the background of a shell, the other would be ignored
        self.process.wait(60)
        return psutil.wait_procs(found, timeout=10)[1]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    programs = list(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [shutil.which("initdb")]
    if not programs[0]:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'wq[server]'")
    if os.geteuid() == 0 and subprocess.run(["id", "postgres"], capture_output=True, check=False).returncode:
        pytest.skip("there is no user postgres, and PostgreSQL does not run as root")
    directory = Path(tempfile.mkdtemp(prefix="wq-server-"))  # the tests' own are closed to the user postgres
    directory.chmod(0o755)
    server = Server(directory)
    server.start()
    try:
        yield server
        assert not server.stop()
    finally:
        shutil.rmtree(directory)


def metrics(store: Store) -> dict[str, dict[str, float]]:
    """Every point's, without those that one process does not have in common with another. Each is there
    once, and all are of one grid."""
    found = store.client.search_runs([store.experiment_id], max_results=1000)
    grids = [run for run in found if GRID in run.data.tags]
    points = [run for run in found if GRID not in run.data.tags]
    assert {run.info.status for run in points} == {"FINISHED"}
    assert set(Counter(run.data.tags["wq.fingerprint"] for run in points).values()) == {1}
    assert [run.info.status for run in grids] == ["FINISHED"]
    assert {run.data.tags[PARENT] for run in points} == {grids[0].info.run_id}
    return {
        run.data.tags["point"]: {name: value for name, value in run.data.metrics.items() if name not in OWN}
        for run in points
    }


def test_eight_processes_write_forty_points(server: Server, launch: Launch, wq: Run, tmp_path: Path):
    """And report, comparison and reuse read them as they read a file."""
    grid = launch("-m", *FORTY, *EIGHT, f"tracking_uri={server.uri}")
    _, said = grid.communicate(timeout=1500)
    assert grid.returncode == 0, said
    assert "warning: " not in said
    on_server = metrics(Store(server.uri, "wq"))
    assert len(on_server) == 41
    one = wq("-m", *FORTY, "hydra.sweep.dir=one", f"tracking_uri=sqlite:///{tmp_path}/one.db")
    assert one.returncode == 0, one.stderr
    assert on_server == metrics(Store(f"sqlite:///{tmp_path}/one.db", "wq"))

    report = wq("report", "out=report", f"tracking_uri={server.uri}", module="wq")
    assert report.returncode == 0, report.stderr
    with (tmp_path / "report" / "results.csv").open() as file:
        wers = {row["point"]: float(row["wer"]) for row in csv.DictReader(file)}
    assert wers == {point: values["wer"] for point, values in on_server.items()}
    compared = wq("compare", "fp32", "int3-g16", MLFLOW_TRACKING_URI=server.uri, module="wq")
    assert compared.returncode == 0, compared.stderr
    again = wq("format=int3", "group=16", *FORTY[2:], MLFLOW_TRACKING_URI=server.uri)
    assert "(from the store)" in again.stdout
    assert "40 done" in wq("status", str(sweep_of(tmp_path)), module="wq").stdout


def test_nothing_is_lost_when_the_server_is_killed(server: Server, launch: Launch, wq: Run, tmp_path: Path):
    """In the middle of a grid, with its database. Started again it has what it took, and wq sync, by four at
    once, brings the rest."""
    store = ("experiment_name=killed", f"tracking_uri={server.uri}")
    grid = launch("-m", *TWELVE, *store)
    until(lambda: len(list(tmp_path.glob("multirun/*/*/*/result.json"))) >= 3)
    server.kill()
    said = grid.communicate(timeout=600)
    assert grid.returncode == 0, said
    assert "warning: " in said[1]
    assert "without a result" not in said[0]
    sweep = sweep_of(tmp_path)
    assert (sweep / "report.html").exists()
    server.start()
    words = [sys.executable, "-m", "wq", "sync", str(sweep)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    at_once = [subprocess.Popen(words, cwd=tmp_path, **pipes) for _ in range(4)]
    told = [each.communicate(timeout=200) for each in at_once]
    assert [each.returncode for each in at_once] == [0] * 4, "".join(errors for _, errors in told)
    assert len(metrics(Store(server.uri, "killed"))) == 13
    again = wq("sync", module="wq")
    assert again.returncode == 0
    assert " recorded" not in again.stdout
    assert len(metrics(Store(server.uri, "killed"))) == 13


@pytest.mark.slow
def test_settings_of_any_length_are_recorded(server: Server, wq: Run):
    """Beyond the 250 characters that a database has for the name of a run."""
    roles = ",".join(f"{side}.{part}.{name}" for side, part, name in LAYERS)
    settings = (f"roles=[{roles}]", "format=int8,int4", "limit=2", "resamples=50", "experiment_name=long")
    done = wq("-m", *settings, f"tracking_uri={server.uri}")
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    store = Store(server.uri, "long")
    (grid,) = store.client.search_runs([store.experiment_id], f"tags.`{GRID}` != ''")
    assert len(grid.info.run_name or "") == LONGEST_NAME
    assert grid.data.tags[WHOLE_NAME] == " ".join(text for text in (*settings, f"tracking_uri={server.uri}"))
    assert len(store.runs("attributes.status = 'FINISHED'")) == 3
