"""Results do not depend on blocks, threads, their order, or on storing the counts."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from helpers import grey
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pairs import SHAPE, TRUTH, VALUES, blobs, each_section, evaluated, stored
from scipy import ndimage

from unetcli.cli.views import score_lines
from unetcli.evaluate.blocks import BlockCounter
from unetcli.evaluate.counting import SUMS_METRICS, TABLE_SUMS, Counts
from unetcli.evaluate.plan import BLOCK_VOXELS
from unetcli.evaluate.request import METRICS, EvaluateRequest
from unetcli.evaluate.resolve import ResolvedRequest
from unetcli.metrics import cells, voi
from unetcli.metrics.cells import CellSums
from unetcli.metrics.contingency import Contingency
from unetcli.metrics.voi import VoiSums

LABELS = blobs(7, 40, 50, seed=1)
FOUND = np.roll(LABELS, 1, axis=2)


def plain(found: Any) -> dict[str, Any]:
    """Output of ``--json`` without paths."""
    return {name: value for name, value in found.to_json().items() if name not in ("prediction", "judged")}


def approximately(found: Any, expected: Any) -> bool:
    """Equal up to rounding: floats may have been added in another order."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(approximately(found[name], expected[name]) for name in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(approximately, found, expected))
    return bool(
        found == expected or (isinstance(expected, float) and found == pytest.approx(expected, rel=1e-9, abs=1e-12))
    )


@pytest.mark.by_default("sections-300", "through-1")
@pytest.mark.parametrize("block", [1, 300, pytest.param(3000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("three_d", [False, True], ids=["sections", "through"])
def test_scores_of_labels_are_the_same_for_any_block(tmp_path: Path, block: int, three_d: bool) -> None:
    truth = stored(tmp_path, LABELS, "t.zarr", chunks=(2, 16, 16))
    prediction = stored(tmp_path, FOUND, chunks=(3, 8, 24))
    whole = evaluated(prediction, truth, "cells", "voi", three_d=three_d)
    parts = evaluated(prediction, truth, "cells", "voi", three_d=three_d, block_voxels=block)
    assert approximately(parts.scores, whole.scores)
    if not three_d:
        assert approximately(plain(parts)["sections"], plain(whole)["sections"])


def test_objects_through_sections_are_scored_from_the_table_of_the_whole(tmp_path: Path) -> None:
    found = evaluated(stored(tmp_path, FOUND), stored(tmp_path, LABELS, "t.zarr"), "cells", "voi", block_voxels=500)
    table = Contingency.of(LABELS, FOUND)
    assert found.three_d
    assert found.scores["cells"].items() >= cells.scores([CellSums.of(table)]).items()
    for name, value in voi.METRIC.entries([VoiSums.of(table)]).items():
        assert found.scores["voi"][name] == pytest.approx(value)


def test_objects_of_sections_are_scored_section_by_section(tmp_path: Path) -> None:
    labels, result = each_section(LABELS), each_section(FOUND)
    found = evaluated(stored(tmp_path, result), stored(tmp_path, labels, "t.zarr"), three_d=False, block_voxels=500)
    tables = [Contingency.of(*pair) for pair in zip(labels, result, strict=True)]
    expected = cells.scores([CellSums.of(table) for table in tables])
    assert approximately({name: found.scores["cells"][name] for name in expected}, expected)
    for section, table in zip(found.sections, tables, strict=True):
        assert section.scores["cells"]["seg"] == pytest.approx(cells.scores([CellSums.of(table)])["seg"])
        assert section.scores["voi"]["split"] == pytest.approx(voi.METRIC.entries([VoiSums.of(table)])["split"])


@pytest.mark.parametrize("three_d", [False, True], ids=["sections", "volume"])
def test_a_metric_added_to_the_tables_is_scored_like_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, three_d: bool
) -> None:
    """The steps of "How to add a metric" in :mod:`unetcli.metrics`, for a second metric with the scores of voi."""
    monkeypatch.setitem(METRICS, "added", METRICS["voi"])
    monkeypatch.setitem(SUMS_METRICS, "added", voi.METRIC)
    monkeypatch.setitem(TABLE_SUMS, "added", VoiSums)
    found = evaluated(stored(tmp_path, FOUND), stored(tmp_path, LABELS, "t.zarr"), "voi", "added", three_d=three_d)
    assert found.metrics == ("voi", "added")
    assert found.scores["added"] == found.scores["voi"]
    assert all(section.scores["added"] == section.scores["voi"] for section in found.sections)
    assert found.to_json()["sums"]["added"]["added"] == found.to_json()["sums"]["voi"]["voi"]
    assert any(line.startswith("added ") for line in score_lines(found))


def test_a_metric_of_the_foreground_has_its_threshold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = stored(tmp_path, VALUES), stored(tmp_path, TRUTH, "t.zarr")
    assert evaluated(*paths, "em", threshold=0.7).thresholds == {}
    monkeypatch.setitem(METRICS, "em", replace(METRICS["em"], foreground=True))
    assert evaluated(*paths, "em", threshold=0.7).thresholds == {"foreground": 0.7}


def test_scores_of_probabilities_do_not_depend_on_blocks_or_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = stored(tmp_path, TRUTH, "t.zarr")
    prediction = stored(tmp_path, VALUES, chunks=(2, 5, 22))
    results = []
    for threads, block in ((1, None), (1, 1), (5, 300), (2, 600)):
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        results.append(plain(evaluated(prediction, truth, "pixels", "em", "cells", "voi", block_voxels=block)))
    assert all(approximately(found, results[0]) for found in results[1:])


def counts_of(tmp_path: Path, values: NDArray[Any], truth: NDArray[Any], **options: Any) -> list[Counts]:
    paths = stored(tmp_path, values, chunks=(2, 8, 16)), stored(tmp_path, truth, "t.zarr")
    evaluation = ResolvedRequest.of(EvaluateRequest(prediction=paths[0], truth=paths[1], block_voxels=1, **options))
    return list(map(BlockCounter(evaluation.plan, evaluation.pair), range(evaluation.plan.blocks)))


def test_counts_can_be_restored_from_their_arrays(tmp_path: Path) -> None:
    for place, (values, truth, options) in enumerate(
        [
            (VALUES, TRUTH, {"metrics": ("pixels", "em", "cells", "voi")}),
            (FOUND, LABELS, {}),
            (FOUND, LABELS, {"three_d": False}),
            (FOUND % 4, LABELS % 3, {"kind": "classes"}),
        ]
    ):
        (tmp_path / str(place)).mkdir()
        for counts in counts_of(tmp_path / str(place), values, truth, **options)[:5]:
            there = counts.to_arrays()
            back = Counts.from_arrays(there).to_arrays()
            assert there.keys() == back.keys()
            assert all(np.array_equal(there[name], back[name]) for name in there)


@given(st.permutations(range(12)))
def test_counts_add_up_in_any_order(order: list[int]) -> None:
    tables = [Contingency.of(LABELS[:, i : i + 3], FOUND[:, i : i + 3]) for i in range(0, 36, 3)]
    parts = [Counts(tables={number % 2: tables[number]}, highest=float(number)) for number in order]
    together = Counts.total(parts)
    assert together.highest == 11
    for unit in (0, 1):
        expected = Contingency.total(tables[unit::2])
        assert np.array_equal(together.tables[unit].counts, expected.counts)
        assert np.array_equal(together.tables[unit].reference, expected.reference)


def test_blocks_of_whole_sections_store_no_tables(tmp_path: Path) -> None:
    counts = counts_of(tmp_path, VALUES, TRUTH, metrics=("em", "cells", "voi"))
    assert [list(part.sums["cells"]) for part in counts] == [[section] for section in range(SHAPE[0])]
    assert not any(part.tables or part.parts for part in counts)


WINDING = np.kron(np.indices((60, 70)).sum(axis=0) % 17 > 3, np.ones((2, 2), np.bool_))
"""Diagonal stripes, which pass through many blocks; a spiral would be one object everywhere."""
SPIRAL = np.zeros((61, 61), np.bool_)
for _n in range(0, 30, 2):
    SPIRAL[_n : 61 - _n, _n : 61 - _n] = True
    SPIRAL[_n + 1 : 60 - _n, _n + 1 : 60 - _n] = False
    SPIRAL[_n + 1, _n] = False


@pytest.mark.by_default("1500-probability-3")
@pytest.mark.parametrize(
    ("block", "kind", "ignore"), [(1, "probability", None), (500, "mask", 3), (1500, "probability", 3)]
)
def test_components_over_blocks_are_those_of_whole_sections(
    tmp_path: Path, block: int, kind: str, ignore: int | None
) -> None:
    """Every number, interval and random group of objects is the same: the objects are numbered alike."""
    noise = np.stack([np.where(grey(61, 61, seed=n) > 118, 230, 20) for n in (1, 2)]).astype(np.uint8)
    values = np.stack([SPIRAL * 200, WINDING[:61, :61] * 255, *noise]).astype(np.uint8)
    truth = np.stack([WINDING[:61, :61], SPIRAL, noise[1] > 100, noise[0] > 100]).astype(np.uint8)
    left_out = grey(4, 61, 61, seed=9) < 20
    if ignore is not None:
        truth[left_out] = ignore
    true = stored(tmp_path, truth, "t.zarr", chunks=(1, 61, 61))
    found = stored(tmp_path, values if kind == "probability" else (values > 127).astype(np.uint8), chunks=(1, 7, 9))
    options = {"kind": "probability" if kind == "probability" else None, "ignore": ignore}
    whole = evaluated(found, true, "cells", "voi", block_voxels=4 * 61 * 61, **options)
    parts = evaluated(found, true, "cells", "voi", block_voxels=block, **options)
    assert plain(parts) == plain(whole)
    tables = [
        Contingency.of(
            *(ndimage.label(array)[0][~left_out[n] | (ignore is None)] for array in (truth[n], values[n] > 127))
        )
        for n in range(4)
    ]
    assert whole.scores["cells"]["reference_objects"] == sum(int(CellSums.of(table).references) for table in tables)
    assert whole.scores["voi"]["split"] == voi.METRIC.entries([VoiSums.of(table) for table in tables])["split"]


@pytest.mark.slow
def test_components_of_a_huge_section_are_counted_in_blocks(tmp_path: Path) -> None:
    for name in ("p.zarr", "t.zarr"):
        zarr.create_array(tmp_path / name, shape=(40_000, 40_000), chunks=(512, 512), dtype="u1")
    places = {"prediction": str(tmp_path / "p.zarr"), "truth": str(tmp_path / "t.zarr")}
    plan = ResolvedRequest.of(EvaluateRequest(**places, kind="probability", metrics=("cells", "voi"))).plan
    assert math.prod(plan.block_shape) <= BLOCK_VOXELS


def test_a_huge_section_is_scored_in_blocks_even_if_the_truth_is_2d(tmp_path: Path) -> None:
    for name, lead in (("p.zarr", (1,)), ("t.zarr", ())):
        shape, chunks = (*lead, 30_000, 30_000), (*lead, 512, 512)
        zarr.create_array(tmp_path / name, shape=shape, chunks=chunks, dtype="u2")
    places = {"prediction": str(tmp_path / "p.zarr"), "truth": str(tmp_path / "t.zarr")}
    request = EvaluateRequest(**places, kind="labels", metrics=("pixels",))
    plan = ResolvedRequest.of(request).plan
    assert math.prod(plan.block_shape) <= BLOCK_VOXELS
    assert plan.blocks > 100
