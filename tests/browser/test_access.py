"""Accessibility of the report: the most important checks of WCAG 2.2, such as contrast, names and keyboard use."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from browser.conftest import SOME_KINDS, Open

CHECKS = (Path(__file__).parent / "checks.js").read_text()


def checked(page: Any, check: str) -> Any:
    """Result of one of the checks in ``checks.js``."""
    return page.evaluate(f"(() => {{ {CHECKS}; return {check}; }})()")


@pytest.mark.parametrize("kind", SOME_KINDS)
@pytest.mark.parametrize("theme", ["dark", pytest.param("light", marks=pytest.mark.slow)])
def test_every_text_has_enough_contrast(opened: Open, kind: str, theme: str) -> None:
    found = checked(opened(kind, color_scheme=theme), "poorContrast()")
    assert found["seen"] > 100
    assert found["poor"] == []


@pytest.mark.parametrize("kind", SOME_KINDS)
def test_every_control_and_picture_has_a_name(opened: Open, kind: str) -> None:
    page = opened(kind)
    assert checked(page, "nameless()") == []
    assert checked(page, "danglingReferences()") == []


@pytest.mark.parametrize("kind", SOME_KINDS)
def test_headings_go_down_one_level_at_a_time(opened: Open, kind: str) -> None:
    levels = opened(kind).evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map((h) => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


@pytest.mark.parametrize("kind", SOME_KINDS)
def test_landmarks_and_ids_are_unique(opened: Open, kind: str) -> None:
    page = opened(kind)
    for landmark in ("banner", "navigation", "main", "contentinfo"):
        assert page.get_by_role(landmark).count() == 1
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))
    assert page.evaluate("document.documentElement.lang") == "en"


def test_everything_that_can_be_clicked_can_be_reached_by_key(opened: Open) -> None:
    page = opened("cells")
    assert checked(page, "unreachable()") == []
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the scores"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_focused_elements_are_outlined(opened: Open) -> None:
    page = opened("em")
    for _ in range(4):
        page.keyboard.press("Tab")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


@pytest.mark.parametrize("viewport", [{"width": 1280, "height": 900}, {"width": 390, "height": 844}])
def test_controls_are_large_enough_to_hit(opened: Open, viewport: dict[str, int]) -> None:
    """At least 24 x 24 pixels, as WCAG 2.2 (2.5.8) requires."""
    page = opened("cells", viewport=viewport)
    assert checked(page, "tooSmall(24)") == []


def test_a_change_of_section_is_announced(opened: Open) -> None:
    page = opened("cells")
    status = page.locator("#status")
    assert status.get_attribute("aria-live") == "polite"
    before = status.inner_text()
    page.click("#next")
    assert status.inner_text() != before


def test_the_file_needs_and_allows_no_external_requests(reports: dict[str, Path]) -> None:
    text = reports["em"].read_text()
    assert "default-src 'none'" in text
    assert "http://" not in text
    assert "https://" not in text
