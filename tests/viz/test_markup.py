from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetcli.viz.markup import HEIGHT, WIDTH, Axis, Html, Plot, join, tag


@given(st.text())
def test_text_never_becomes_an_element(text: str) -> None:
    assert "<" not in join(text)
    assert tag("p", text).count("<") == 2
    assert tag("p", title=text).count('"') == 2


def test_what_is_html_already_stays_as_it_is() -> None:
    assert tag("p", Html("<b>1</b>"), [None, "a&b"]) == "<p><b>1</b>a&amp;b</p>"


@given(st.floats(1e-7, 1e7))
def test_an_axis_starts_at_zero_and_reaches_over_its_highest_value_with_few_ticks(highest: float) -> None:
    axis = Axis.up_to("score", highest)
    assert axis.ticks[0] == axis.low == 0
    assert axis.ticks[-1] == pytest.approx(axis.high)
    assert highest <= axis.high * (1 + 1e-9) <= 2.6 * highest
    assert 2 <= len(axis.ticks) <= 6


@given(st.floats(1e-6, 1e6))
def test_texts_of_ticks_differ(highest: float) -> None:
    texts = Axis.up_to("score", highest).tick_texts()
    assert len(set(texts)) == len(texts)


def test_an_axis_of_nothing_but_zeros_still_has_a_length() -> None:
    assert Axis.up_to("error", 0.0).high > 0


def test_a_line_has_a_gap_where_there_is_no_value() -> None:
    plot = Plot(Axis.share("x"), Axis.share("y"))
    drawn = plot.line([(0.0, 0.1), (0.2, 0.2), (0.4, None), (0.6, 0.3), (0.8, 0.4)], "measured")
    assert [len(points.split()) for points in re.findall('points="([^"]*)"', drawn)] == [2, 2]


def test_larger_values_lie_higher_and_further_right() -> None:
    plot = Plot(Axis.share("x"), Axis.share("y"))
    (left, low), (right, high) = plot.at(0.1, 0.1), plot.at(0.9, 0.9)
    assert right > left
    assert high < low


def test_words_beside_a_point_stay_inside_the_plot() -> None:
    plot = Plot(Axis.share("x"), Axis.share("y"))
    for x in (0.0, 1.0):
        for y in (0.0, 1.0):
            words = plot.highlight(x, y, "threshold 0.5")
            place = [float(found) for found in re.findall(r'<text x="([\d.]+)" y="([\d.]+)"', words)[0]]
            assert 40 < place[0] < WIDTH - 40
            assert 8 < place[1] < HEIGHT
