from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report.evaluations import (
    cell_image,
    cells_evaluation,
    classes_evaluation,
    em_evaluation,
    evaluate,
    labels_evaluation,
    membranes,
)

from unetcli.evaluate.request import METRICS
from unetcli.evaluate.result import Evaluation
from unetcli.report import measure_texts as texts
from unetcli.report.page import embedded, write_report


def written(evaluation: Evaluation, folder: Path, **options: Any) -> str:
    write_report(evaluation, folder / "report.html", **options)
    return (folder / "report.html").read_text()


def parts(text: str) -> list[str]:
    return re.findall(r'<section id="(\w+)"', text)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (em_evaluation, "summary pictures published curves sections numbers"),
        (cells_evaluation, "summary pictures published curves sections cells numbers"),
        (labels_evaluation, "summary pictures published curves sections cells numbers"),
        (classes_evaluation, "summary pictures curves sections numbers"),
    ],
)
def test_a_page_has_the_parts_that_there_is_something_for(
    tmp_path: Path, kind: Callable[[Path], Evaluation], wanted: str
) -> None:
    assert parts(written(kind(tmp_path), tmp_path)) == wanted.split()


def test_published_scores_stand_beside_the_same_measure_only(tmp_path: Path) -> None:
    em, cells = written(em_evaluation(tmp_path), tmp_path), ""
    (tmp_path / "cells").mkdir()
    cells = written(cells_evaluation(tmp_path / "cells"), tmp_path)
    assert "0.000353" in em
    assert "0.9203" not in em
    assert "0.9203" in cells
    assert "0.000353" not in cells
    assert "never made public" in em


def zeros(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


ODD: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "an empty prediction": (zeros(2, 96, 110), np.stack([membranes()] * 2), {}),
    "a truth without interior": (zeros(2, 40, 50) + 0.7, np.zeros((2, 40, 50), np.uint8), {}),
    "a perfect map": (np.stack([membranes()] * 2) > 0, np.stack([membranes()] * 2), {}),
    "a single image": ((membranes() > 0).astype(np.float32), membranes(), {"axes": "yx"}),
    "a single pixel": (zeros(1, 1), np.ones((1, 1), np.uint8), {"axes": "yx"}),
    "an inverted map": (1.0 - (np.stack([membranes()] * 2) > 0), np.stack([membranes()] * 2), {}),
    "labels without any object": (np.zeros((2, 30, 40), np.uint16), np.zeros((2, 30, 40), np.uint16), {}),
    "labels by pixels alone": (
        np.stack([cell_image()] * 2),
        np.stack([cell_image(seed=1)] * 2),
        {"metrics": ("pixels",)},
    ),
    "class numbers": (cell_image()[None] % 3, cell_image(seed=1)[None] % 3, {"kind": "classes"}),
    "objects through sections": (np.stack([cell_image()] * 4), np.stack([cell_image()] * 4), {"three_d": True}),
    "frames of time": (np.stack([cell_image()] * 2), np.stack([cell_image(seed=1)] * 2), {"axes": "tyx"}),
    "several times and sections": (
        np.stack([[cell_image()] * 2] * 2),
        np.stack([[cell_image()] * 2] * 2),
        {"axes": "tzyx"},
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_a_page_is_written_of(tmp_path: Path, case: str) -> None:
    prediction, truth, request = ODD[case]
    text = written(evaluate(tmp_path, prediction, truth, **request), tmp_path)
    assert "NaN" not in text.replace("isNaN", "")
    assert "summary" in parts(text)
    json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)[0])


def test_every_metric_has_its_texts() -> None:
    assert set(METRICS) == set(texts.METRIC_NAMES) == set(texts.HEADLINES)
    for name, metric in METRICS.items():
        assert texts.MEASURES[f"{name}.{metric.leading}"].lower == metric.lower_is_better


def test_undefined_scores_come_with_their_reason(tmp_path: Path) -> None:
    prediction, truth, _ = ODD["a truth without interior"]
    text = written(evaluate(tmp_path, prediction, truth), tmp_path)
    assert "undefined" in text
    assert "the reference has no interior" in text


def test_an_inverted_map_is_reported_first(tmp_path: Path) -> None:
    prediction, truth, _ = ODD["an inverted map"]
    text = written(evaluate(tmp_path, prediction, truth), tmp_path)
    assert text.index("the prediction looks inverted") < text.index("Evaluated: ")


def test_names_of_files_are_text_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "<script>alert(1)</script> & $title"
    folder.mkdir(parents=True)
    text = written(em_evaluation(folder, count=1), tmp_path)
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; $title" in text


def test_a_comparison_says_what_is_more_than_noise(tmp_path: Path) -> None:
    before = em_evaluation(tmp_path, count=4)
    (tmp_path / "before.json").write_text(json.dumps(before.to_json()))
    truth = np.stack([membranes(seed=n) for n in range(4)])
    (tmp_path / "now").mkdir()
    now = evaluate(tmp_path / "now", truth > 0, truth, baseline=tmp_path / "before.json")
    text = written(now, tmp_path)
    assert "baseline" in parts(text)
    assert "yes: better" in text


def test_a_report_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path) -> None:
    evaluation = em_evaluation(tmp_path, count=1)
    written(evaluation, tmp_path)
    before = (tmp_path / "report.html").read_text()

    def broken(section: Any) -> Any:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        write_report(evaluation, tmp_path / "report.html", broken)
    assert (tmp_path / "report.html").read_text() == before


def test_the_same_evaluation_gives_the_same_page(tmp_path: Path) -> None:
    evaluation = cells_evaluation(tmp_path)
    assert written(evaluation, tmp_path) == written(evaluation, tmp_path)


@given(st.dictionaries(st.text(), st.text()))
def test_data_in_a_script_element_cannot_end_it_and_can_be_read_back(values: dict[str, str]) -> None:
    data = embedded(values | {"end": "</script><!--"})
    assert "<" not in data
    assert json.loads(data) == values | {"end": "</script><!--"}
