"""The report in a real browser, as a person meets it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report.evaluations import cells_evaluation

from unetcli.report.page import write_report

CHROMIUM = Path("/usr/bin/chromium")
if not CHROMIUM.exists() and not os.environ.get("UNETCLI_REQUIRE_BROWSER"):
    pytest.skip("needs chromium", allow_module_level=True)
from playwright.sync_api import Page, sync_playwright  # noqa: E402

Opened = tuple[Page, list[str]]


@pytest.fixture(scope="module", params=["light", "dark"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """The page, and all that went wrong or left the file."""
    folder = tmp_path_factory.mktemp("report")
    write_report(cells_evaluation(folder), folder / "report.html")
    troubles: list[str] = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), headless=True)
        page = browser.new_page(color_scheme=request.param)
        page.on("console", lambda said: troubles.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on(
            "request",
            lambda sent: None if sent.url.startswith(("file:", "data:", "blob:")) else troubles.append(sent.url),
        )
        page.goto((folder / "report.html").as_uri())
        page.wait_for_selector("#viewer[data-painted]")
        yield page, troubles
        browser.close()


def at(page: Page) -> Any:
    return page.locator("#choose").input_value()


def test_sections_are_stepped_by_click_and_by_key(opened: Opened) -> None:
    page, troubles = opened
    page.click("#next")
    assert at(page) == "1"
    page.locator("#panes canvas").first.focus()
    page.keyboard.press("ArrowLeft")
    assert at(page) == "0"
    assert not troubles


def test_a_table_sorts_by_click_and_by_key(opened: Opened) -> None:
    page, troubles = opened
    head = page.locator("table.sortable th").nth(1)
    head.locator("button").click()
    first = head.get_attribute("aria-sort")
    assert first in ("ascending", "descending")
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert {first, head.get_attribute("aria-sort")} == {"ascending", "descending"}
    assert not troubles


def test_zoom_changes_the_scale(opened: Opened) -> None:
    page, troubles = opened
    before = page.locator("#scale").inner_text()
    page.click("#zoom-in")
    assert page.locator("#scale").inner_text() != before
    assert not troubles
