"""A browser, a report of each kind, and pages whose errors fail the test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from report.evaluations import cells_evaluation, classes_evaluation, em_evaluation, labels_evaluation, membranes

from unetcli.evaluate.result import Evaluation
from unetcli.report.page import write_report

CHROMIUM = Path("/usr/bin/chromium")
KINDS: dict[str, Callable[[Path], Evaluation]] = {
    "em": em_evaluation,
    "cells": cells_evaluation,
    "labels": labels_evaluation,
    "classes": classes_evaluation,
}


SOME_KINDS = ["em", "cells", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("labels", "classes"))]
"""All kinds; the two with the most views are tested by default."""


@dataclass
class Opened:
    """A page, with its errors and the requests to other files."""

    page: Any
    failures: list[str]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium. Without it the test is skipped, or fails if ``UNETCLI_REQUIRE_BROWSER`` is set."""
    if not os.environ.get("UNETCLI_REQUIRE_BROWSER"):
        pytest.importorskip("playwright", reason="needs playwright: pip install --group test")
        if not CHROMIUM.exists():
            pytest.skip(f"needs a browser at {CHROMIUM}: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), headless=True)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of each kind; the one of em also has images."""
    found = {}
    for kind, evaluate in KINDS.items():
        folder = tmp_path_factory.mktemp(kind)
        found[kind] = folder / "a report.html"
        image = membranes()[None] if kind == "em" else None
        write_report(evaluate(folder), found[kind], lambda section, image=image: image)  # type: ignore[misc]
    return found


Open = Callable[..., Any]


@pytest.fixture
def opened(browser: Any, reports: dict[str, Path]) -> Iterator[Open]:
    """Open the report of a kind; fails at the end if the page had errors or requested other files."""
    pages: list[Opened] = []

    def open_(kind: str, **options: Any) -> Any:
        one = Opened(browser.new_page(**options), [])
        pages.append(one)
        watch(one)
        one.page.goto(reports[kind].as_uri())
        one.page.wait_for_selector("#viewer[data-painted]")
        return one.page

    yield open_
    for one in pages:
        one.page.close()
    assert [failure for one in pages for failure in one.failures] == []


def watch(one: Opened) -> None:
    one.page.on("console", lambda message: one.failures.append(message.text))
    one.page.on("pageerror", lambda error: one.failures.append(str(error)))
    one.page.on("request", lambda sent: require_inside(sent.url, one.failures))


def require_inside(url: str, failures: list[str]) -> None:
    if not url.startswith(("file:", "data:", "blob:")):
        failures.append(url)
