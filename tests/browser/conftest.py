"""Debian's chromium, driven by playwright, with networking off but for loopback."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.points import points
from wq.study.report.report import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")

Visit = Callable[..., "Page"]


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make setup")
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    # Its sandbox refuses root; /dev/shm is small in containers.
    arguments = ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=executable, args=arguments)
        yield launched
        launched.close()


@pytest.fixture
def visit(browser) -> Iterator[Visit]:
    """Opens a file without a network. At the end, nothing must have been fetched, complained of or asked."""
    contexts, complaints = [], []

    def open_page(path: Path, width: int = 1280, height: int = 900, scheme: str = "light") -> "Page":
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, offline=True
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: fetched(request.url))
        page.goto(path.as_uri())
        return page

    def fetched(url: str) -> None:
        if not url.startswith(("file:", "data:")):
            complaints.append(f"request: {url}")

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture(scope="session")
def report(tmp_path_factory) -> Path:
    """The page of a grid over everything that the page has a picture for."""
    directory = tmp_path_factory.mktemp("report")
    return write_report(points(directory), directory, "A grid").html
