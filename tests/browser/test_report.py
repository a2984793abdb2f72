"""The report in a real browser, as a user sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser.conftest import SOME_KINDS, Open

Page = Any
PHONE = {"width": 390, "height": 844}


def shot(page: Page, where: str = "#panes canvas") -> bytes:
    return page.locator(where).first.screenshot()


def settled(page: Page, before: bytes) -> bytes:
    """Screenshot of the picture, once it differs from ``before``."""
    for _ in range(100):
        after = shot(page)
        if after != before:
            return after
        page.wait_for_timeout(30)
    raise AssertionError("the picture stays the same")


@pytest.mark.by_default("light-cells")
@pytest.mark.parametrize("kind", SOME_KINDS)
@pytest.mark.parametrize("theme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_every_view_of_every_section_is_painted(opened: Open, kind: str, theme: str) -> None:
    page = opened(kind, color_scheme=theme)
    views = page.locator("#views input").evaluate_all("inputs => inputs.map((input) => input.value)")
    assert len(views) >= 4
    for section in page.locator("#choose option").evaluate_all("options => options.map((option) => option.text)"):
        page.locator("#choose").select_option(label=section)
        for view in views:
            page.locator(f"#view-{view}").check(force=True)
            page.wait_for_selector(f'#viewer[data-painted="{section} {view}"]')


@pytest.mark.parametrize("kind", SOME_KINDS)
def test_every_image_decodes_to_its_size(opened: Open, kind: str) -> None:
    sizes = opened(kind).evaluate(
        """async () => {
          const urls = PICTURES.flatMap((p) => Object.values(p).filter((v) => String(v).startsWith("data:"))
            .map((url) => [url, p.width, p.height]));
          return Promise.all(urls.map(async ([url, width, height]) => {
            const image = await decodeImage(url);
            return [image.naturalWidth - width, image.naturalHeight - height];
          }));
        }"""
    )
    assert len(sizes) >= 4
    assert all(size == [0, 0] for size in sizes)


def test_what_is_painted_is_what_was_scored(opened: Open, reports: dict[str, Path]) -> None:
    """The page applies the threshold as the scores do: it finds the same number of wrong pixels."""
    page = opened("em")
    page.locator("#view-difference").check(force=True)
    counted = page.evaluate(
        """async () => {
          let wrong = 0, all = 0;
          for (const [at, picture] of PICTURES.entries()) {
            const layers = await decode(at), values = predicted(layers, 0.5);
            for (let i = 0; i < values.length; i++) { wrong += !values[i] !== !layers.truth[i]; all += 1; }
          }
          return 1 - wrong / all;
        }"""
    )
    row = page.locator("#numbers tr", has=page.locator("th", has_text="accuracy"))
    assert counted == pytest.approx(float(row.locator("td").first.inner_text()), abs=0.002)  # pixels of 8 bits


def test_sections_are_stepped_by_buttons_keys_and_choice(opened: Open) -> None:
    page = opened("cells")
    at = page.locator("#choose")
    assert page.locator("#previous").is_disabled()
    page.click("#next")
    assert at.input_value() == "1"
    page.locator("#panes canvas").focus()
    page.keyboard.press("ArrowRight")
    assert at.input_value() == "2"
    assert page.locator("#next").is_disabled()
    page.keyboard.press("ArrowLeft")
    assert at.input_value() == "1"
    at.select_option("0")
    assert "1 of 3" in page.locator("#status").inner_text()


def test_stepping_shows_another_picture(opened: Open) -> None:
    page = opened("cells")
    before = shot(page)
    page.click("#next")
    settled(page, before)


def test_the_picture_is_zoomed_by_buttons_keys_and_wheel_and_fitted_again(opened: Open) -> None:
    page = opened("em")
    scale = page.locator("#scale")
    fitted = scale.inner_text()
    before = shot(page)
    page.click("#zoom-in")
    zoomed = scale.inner_text()
    assert float(zoomed.split()[0]) > float(fitted.split()[0])
    settled(page, before)
    canvas = page.locator("#panes canvas")
    canvas.focus()
    page.keyboard.press("+")
    assert float(scale.inner_text().split()[0]) > float(zoomed.split()[0])
    page.keyboard.press("0")
    assert scale.inner_text() == fitted
    canvas.hover()
    page.mouse.wheel(0, -300)
    page.wait_for_function("was => document.getElementById('scale').textContent !== was", arg=fitted)


def test_the_wheel_scrolls_the_page_until_the_picture_is_in_use(opened: Open) -> None:
    page = opened("em")
    page.locator("#panes canvas").scroll_into_view_if_needed()
    page.locator("#panes canvas").hover()
    before, top = page.locator("#scale").inner_text(), page.evaluate("scrollY")
    page.mouse.wheel(0, 200)
    page.wait_for_function("top => scrollY > top", arg=top)
    assert page.locator("#scale").inner_text() == before


def test_dragging_moves_the_picture(opened: Open) -> None:
    page = opened("em")
    page.click("#zoom-in")
    page.locator("#panes canvas").scroll_into_view_if_needed()
    box = page.locator("#panes canvas").bounding_box()
    assert box is not None
    before = page.evaluate("state.camera.x")
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 150, box["y"] + 200, steps=4)
    page.mouse.up()
    assert page.evaluate("state.camera.x") == pytest.approx(before + 50 / page.evaluate("state.camera.scale"), abs=1)


def test_an_error_of_the_list_is_brought_to_the_middle_and_named(opened: Open) -> None:
    page = opened("em")
    errors = page.locator("#errors button")
    assert errors.count() > 1
    errors.nth(1).click()
    mark = page.evaluate("state.marked")
    assert (page.evaluate("state.camera.x"), page.evaluate("state.camera.y")) == (mark["x"] + 0.5, mark["y"] + 0.5)
    assert errors.nth(1).get_attribute("aria-current") == "true"
    page.locator("#panes canvas").focus()
    page.keyboard.press("Shift+E")
    assert errors.nth(0).get_attribute("aria-current") == "true"


def test_a_click_on_a_mark_chooses_its_error(opened: Open) -> None:
    page = opened("em")
    page.locator("#panes canvas").scroll_into_view_if_needed()
    place = page.evaluate("(() => { const m = PICTURES[0].marks[0]; return panes[0].place(m.x + 0.5, m.y + 0.5); })()")
    page.locator("#panes canvas").click(position={"x": place[0], "y": place[1]})
    assert page.locator("#errors [aria-current]").count() == 1


def test_kinds_of_errors_can_be_left_out(opened: Open) -> None:
    page = opened("em")
    every = page.locator("#errors button").count()
    page.locator("#kinds input[data-kind=split]").uncheck()
    kept = page.locator("#errors button").all_inner_texts()
    assert 0 < len(kept) < every
    assert not any("split" in text for text in kept)


def test_the_threshold_changes_the_prediction(opened: Open) -> None:
    page = opened("em")
    page.locator("#view-prediction").check(force=True)
    page.wait_for_selector('#viewer[data-painted$="prediction"]')
    before = shot(page)
    page.locator("#threshold").fill("0.9")
    settled(page, before)
    assert "0.90" in page.locator("#threshold-value").inner_text()


def test_the_pointer_says_what_lies_under_it(opened: Open) -> None:
    page = opened("cells")
    page.locator("#panes canvas").hover()
    page.wait_for_function("document.getElementById('pointer').textContent.includes('truth')")


def test_a_cell_of_the_table_is_shown_in_its_picture(opened: Open) -> None:
    page = opened("cells")
    button = page.locator("#objects-table button.link").nth(2)
    name = page.locator("#objects-table tbody tr").nth(2).locator("td").first.inner_text()
    button.click()
    assert page.locator("#choose option:checked").inner_text() == name
    assert page.evaluate("state.camera.scale > smallest() * 1.05")
    x, y = float(button.get_attribute("data-x") or 0), float(button.get_attribute("data-y") or 0)
    assert page.evaluate("state.camera.x") == pytest.approx(x, abs=1)
    assert page.evaluate("state.camera.y") == pytest.approx(y, abs=1)


def column(page: Page, table: str, place: int) -> list[str]:
    return page.locator(f"#{table} tbody tr").evaluate_all(
        "(rows, place) => rows.map((row) => row.cells[place].textContent)", place
    )


def test_a_table_sorts_both_ways_by_click_and_by_key(opened: Open) -> None:
    page = opened("cells")
    head = page.locator("#objects-table thead th").nth(4)
    head.locator("button").click()
    sizes = [int(text.replace(",", "")) for text in column(page, "objects-table", 4)]
    assert head.get_attribute("aria-sort") == "descending"
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 3
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(page, "objects-table", 4)[0] == f"{min(sizes):,}"
    assert page.locator("#objects-table th[aria-sort=none]").count() == 5


def test_what_is_not_defined_sorts_last_either_way(opened: Open) -> None:
    page = opened("cells")
    button = page.locator("#objects-table thead th").nth(3).locator("button")
    for _ in range(2):
        button.click()
        overlaps = column(page, "objects-table", 3)
        assert "-" in overlaps
        assert "-" not in overlaps[: overlaps.index("-")]
        assert set(overlaps[overlaps.index("-") :]) == {"-"}


def test_the_worst_section_comes_first(opened: Open) -> None:
    page = opened("em")
    errors = np.array(column(page, "sections-table", 1), float)
    assert (np.diff(errors) <= 0).all()
    assert page.locator("#choose option").first.inner_text() == column(page, "sections-table", 0)[0]


def test_the_button_changes_between_light_and_dark(opened: Open) -> None:
    page = opened("em", color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_role("button", name="Change to dark colours").click()
    dark = page.evaluate(ground)
    assert (brightness(light), brightness(dark)) == pytest.approx((255, 20), abs=10)
    page.get_by_role("button", name="Change to light colours").click()
    assert page.evaluate(ground) == light


def brightness(colour: str) -> float:
    return float(np.mean([int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]))


@pytest.mark.parametrize("kind", SOME_KINDS)
def test_on_a_phone_nothing_is_wider_than_the_screen(opened: Open, kind: str) -> None:
    page = opened(kind, viewport=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_on_paper_there_are_pictures_and_no_controls_on_white(opened: Open) -> None:
    page = opened("em", color_scheme="dark")
    page.wait_for_selector("#prints img", state="attached")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.locator("#prints img").first.is_visible()
    assert not page.locator("#viewer").is_visible()
    assert brightness(page.evaluate("getComputedStyle(document.body).backgroundColor")) == 255


def test_without_javascript_the_numbers_are_there(browser: Any, reports: dict[str, Path]) -> None:
    page = browser.new_page(java_script_enabled=False)
    page.goto(reports["em"].as_uri())
    assert page.locator("noscript").count() == 1
    assert page.locator("#sections-table tbody tr").count() == 3
    assert not page.locator("#viewer").is_visible()
    page.close()
