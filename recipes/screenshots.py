"""The pictures of the README, from a grid: python recipes/screenshots.py DIRECTORY [docs]

The directory is where the grid ran, with its mlflow.db; `wq report` builds the page from it. It needs
chromium and playwright.
"""

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from wq.study.store.tracking import Store

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PORT = 5999
SETTINGS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


def draw_report(browser: "Browser", directory: Path, docs: Path) -> None:
    """docs/report.png: the upper part of the page; docs/pareto.png: the picture for papers."""
    with TemporaryDirectory() as out:
        subprocess.run([sys.executable, "-m", "wq", "report", f"out={out}"], cwd=directory, check=True)
        shutil.copy(Path(out) / "pareto.png", docs / "pareto.png")
        page = browser.new_page(viewport={"width": 1180, "height": 1100}, color_scheme="light")
        page.goto((Path(out) / "report.html").as_uri())
        page.screenshot(path=docs / "report.png")
        page.close()


def draw_mlflow(browser: "Browser", directory: Path, docs: Path) -> None:
    """docs/mlflow.png: runs of the grid, compared on MLflow's own page."""
    store = Store(f"sqlite:///{directory.absolute() / 'mlflow.db'}", "wq")
    runs = ",".join(f"%22{run.info.run_id}%22" for run in store.runs("params.format != 'fp32'"))
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "ui",
        "--host",
        "127.0.0.1",
        "--port",
        str(PORT),
        "--workers",
        "1",
    ]
    server = subprocess.Popen(command, cwd=directory, env=os.environ | SETTINGS)
    try:
        address = f"http://127.0.0.1:{PORT}"
        wait_for(f"{address}/health")
        page = browser.new_page(viewport={"width": 1400, "height": 640}, color_scheme="light")
        page.set_default_timeout(90_000)
        page.goto(f"{address}/#/compare-runs?runs=[{runs}]&experiments=[%22{store.experiment_id}%22]")
        page.get_by_text("Comparing").first.wait_for()
        page.get_by_text("MLflow Assistant").first.wait_for()
        page.locator("button:below(:text('MLflow Assistant'))").first.wait_for()
        page.get_by_role("button", name="Close").last.click()
        page.wait_for_timeout(5000)  # until its plot is drawn
        page.screenshot(path=docs / "mlflow.png")
        page.close()
    finally:
        server.terminate()
        server.wait()


def wait_for(url: str) -> None:
    for _ in range(240):
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"{url} does not answer")


def main() -> None:
    from playwright.sync_api import sync_playwright

    directory, docs = Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "docs").absolute()
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        draw_report(browser, directory, docs)
        draw_mlflow(browser, directory, docs)
        browser.close()


if __name__ == "__main__":
    main()
