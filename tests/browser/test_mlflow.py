"""MLflow's own pages on the store of a grid: its runs are there, two are compared, the report opens."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import environment
from wq.study.compare.selection import of_stores
from wq.study.store import results
from wq.study.store.tracking import FINGERPRINT, GRID, Store

pytestmark = pytest.mark.browser

POINTS = ("fp32", "int8", "int4")
SECONDS = 90_000  # milliseconds in which a page must have come, on a busy machine


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """Of a grid of two points and their reference."""
    directory = tmp_path_factory.mktemp("grid")
    command = [sys.executable, "-m", "wq.main", "-m", "format=int8,int4", "limit=8", "resamples=100"]
    done = subprocess.run(
        command, cwd=directory, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return Store(f"sqlite:///{directory / 'mlflow.db'}", "wq")


@pytest.fixture(scope="module")
def server(store, tmp_path_factory) -> Iterator[str]:
    """What `make ui` starts: on loopback, in the directory of the store."""
    directory = Path(store.uri.removeprefix("sqlite:///")).parent
    [command] = [
        line
        for line in (Path(__file__).parents[2] / "Makefile").read_text().splitlines()
        if "mlflow ui" in line
    ]
    settings = dict(re.findall(r"(MLFLOW_\w+)=(\S+)", command))
    arguments = command.split("mlflow ui")[1].split()
    assert arguments[:2] == ["--host", "127.0.0.1"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (tmp_path_factory.mktemp("log") / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "ui", *arguments, "--port", str(port)],
            cwd=directory, env=environment(**settings), stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        wait_for(f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def wait_for(url: str) -> None:
    end = time.monotonic() + SECONDS / 1000
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            assert time.monotonic() < end, f"{url} does not answer"
            time.sleep(0.5)


def test_runs_are_compared_and_the_report_opens(browser, store, server):
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    context.set_default_timeout(SECONDS)
    page = context.new_page()
    runs = f"{server}/#/experiments/{store.experiment_id}/runs"
    page.goto(runs)
    [parent] = [run for run in store.client.search_runs([store.experiment_id]) if GRID in run.data.tags]
    names = page.locator("[role=gridcell][col-id*='Run Name']")
    names.filter(has_text=parent.info.run_name).get_by_role("button").click()  # its children fold out
    for point in POINTS:
        names.filter(has_text=point).filter(has_not_text="limit=").wait_for()
    ticks = page.locator("input.ag-checkbox-input[aria-label*=row]")
    for n in (1, 2):
        ticks.nth(n).click()
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_text("Comparing 2 Runs").first.wait_for()
    page.get_by_text("bits_per_weight").first.wait_for(state="attached")

    page.goto(f"{runs}/{parent.info.run_id}/artifacts/report.html")
    frame = page.frame_locator("iframe").first
    frame.locator(".points path").first.wait_for()
    assert frame.locator("h1").inner_text() == "wq grid"
    assert frame.locator(".points path").count() == 3

    [point] = store.runs("params.format = 'int4'")
    page.goto(f"{runs}/{point.info.run_id}/artifacts/transcripts.json")
    page.get_by_text("pred_text").first.wait_for()
    context.close()


def test_what_a_server_keeps_is_fetched_once(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store(server, "kept by the server")
    row = {"fingerprint": "abc", "point": "int4", "status": "finished", "wer": 0.25}
    results.write_row(tmp_path / results.RESULT, row)
    results.write_rows(tmp_path / results.HYPOTHESES, [{"id": "a"}])
    with store.running("int4", {FINGERPRINT: "abc"}, None) as run_id:
        assert run_id
        store.record(run_id, {}, {"wer": 0.25}, [tmp_path / results.RESULT, tmp_path / results.HYPOTHESES])
    assert str(store.client.get_run(run_id).info.artifact_uri).startswith("mlflow-artifacts:")
    first = of_stores([store])
    assert first.rows == [row]
    assert results.read_rows(first.transcripts["abc"]) == [{"id": "a"}]
    monkeypatch.setattr(type(store.client), "download_artifacts", None)
    assert of_stores([store]) == first
