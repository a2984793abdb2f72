from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from unetcli.metrics import em
from unetcli.metrics.em_counts import LEVELS, SectionCounts, section_counts

CASES = ("hand_gap_7", "hand_split_9", "noisy_128", "thin8_64", "stack3_96", "split_128")
TIE_FREE = ("noisy_128", "stack3_96")
OFFICIAL = {name: name for name in em.MEASURES} | {
    "pixel_disagreement": "pixel_disagreement_min",
    "warping_error_classic": "warping_error_classic_min",
    "v_rand": "v_rand_thin",
    "v_info": "v_info_thin",
}
Maps = NDArray[np.float32]
Masks = NDArray[np.bool_]
Expected = dict[str, dict[str, Any]]


@pytest.fixture(scope="session")
def official(data: Path) -> Expected:
    """Values of the official program, case by case."""
    return json.loads((data / "metrics_cases" / "expected.json").read_text())["cases"]  # type: ignore[no-any-return]


def case(data: Path, name: str) -> tuple[Maps, Masks]:
    """Probability and interior, (z, y, x)."""
    probability, label = (tifffile.imread(data / "metrics_cases" / f"{name}_{kind}.tif") for kind in ("prob", "label"))
    return probability, label > 0


def counted(probability: NDArray[Any], interior: NDArray[Any]) -> list[SectionCounts]:
    maps, masks = np.asarray(probability, np.float32), np.asarray(interior, bool)
    return [section_counts(p, i) for p, i in zip(maps, masks, strict=True)]


def scored(probability: NDArray[Any], interior: NDArray[Any]) -> dict[str, Any]:
    return em.scores(counted(probability, interior))


def as_uint8(probability: Maps) -> Maps:
    """Round probabilities as `predict` stores them."""
    stored = np.floor(255 * probability.astype(np.float64) + 0.5).astype(np.uint8)
    return stored.astype(np.float32) / np.float32(255)


def test_no_case_of_the_official_program_is_left_out(official: Expected) -> None:
    assert set(CASES) == set(official)


@pytest.mark.parametrize("name", CASES)
def test_scores_are_those_of_the_official_program(data: Path, official: Expected, name: str) -> None:
    """Equal to 1e-9, even measures that depend on the order of pixels, which is the same in both programs."""
    found, expected = scored(*case(data, name)), official[name]
    for measure, official_name in OFFICIAL.items():
        assert found[measure] == pytest.approx(expected["summary"][official_name], abs=1e-9), measure
        if measure in expected["best_threshold"]:
            assert found[f"{measure}_threshold"] == expected["best_threshold"][measure]
        elif official_name in expected["best_threshold"]:
            assert found[f"{measure}_threshold"] == expected["best_threshold"][official_name]


@pytest.mark.parametrize("turned", range(1, 8))
@pytest.mark.parametrize("name", CASES)
def test_turned_and_mirrored_sections_score_within_the_stated_range(
    data: Path, official: Expected, name: str, turned: int
) -> None:
    stacks = (np.rot90(stack, turned % 4, (1, 2)) for stack in case(data, name))
    probability, interior = (stack[:, ::-1] if turned > 3 else stack for stack in stacks)
    found, ranges = scored(probability, interior), official[name]["orientation_range"]
    for measure, official_name in OFFICIAL.items():
        low, high = ranges.get(official_name, [official[name]["summary"][official_name]] * 2)
        near = 1e-9 if measure.startswith(("pixel", "rand")) or name in TIE_FREE else 5 / interior.size
        slack = 0.005 if measure.startswith("v_") else near
        assert low - slack <= found[measure] <= high + slack, measure


LARGEST_STEP = {
    "hand_gap_7": {},
    "hand_split_9": {},
    "thin8_64": {},
    "split_128": {},
    "noisy_128": {"v_rand": 0.0007, "v_info": 0.0009},
    "stack3_96": {
        "rand_error": 0.0092,
        "rand_error_pairs": 0.0092,
        "warping_error": 0.00004,
        "v_rand": 0.0115,
        "v_info": 0.0026,
    },
}
"""Largest change of each score when the prediction is rounded to 1/255. Default: no change."""


@pytest.mark.parametrize("name", CASES)
def test_rounding_to_uint8_moves_scores_no_further_than_documented(data: Path, name: str) -> None:
    probability, interior = case(data, name)
    exact, rounded = scored(probability, interior), scored(as_uint8(probability), interior)
    for measure in em.MEASURES:
        assert abs(rounded[measure] - exact[measure]) <= LARGEST_STEP[name].get(measure, 0), measure


def test_on_a_real_section_rounding_moves_less(data: Path) -> None:
    interior = tifffile.imread(data / "isbi2012" / "train-labels.tif", key=[3]) > 0
    noise = np.random.default_rng(0).normal(0, 0.25, interior.shape)
    probability = np.clip(interior * 0.6 + 0.2 + noise, 0, 1).astype(np.float32)
    exact, rounded = scored(probability[None], interior[None]), scored(as_uint8(probability)[None], interior[None])
    assert max(abs(rounded[measure] - exact[measure]) for measure in em.MEASURES) < 0.002


def test_a_perfect_map_has_no_error_at_the_first_level() -> None:
    interior = np.zeros((2, 13, 22), bool)
    interior[:, 1:6, 2:9] = interior[:, 7:12, 3:20] = True
    found = scored(interior, interior)
    errors = [name for name in em.MEASURES if "error" in name or name == "pixel_disagreement"]
    assert [found[name] for name in em.MEASURES] == [0] * len(errors) + [1, 1]
    assert {found[f"{name}_threshold"] for name in em.MEASURES} == {0.0}
    assert not [key for key in found if key.endswith(("_note", "_reason"))]


@pytest.mark.parametrize("measure", em.MEASURES)
def test_thresholds_are_where_the_curve_is_best(data: Path, measure: str) -> None:
    counts = counted(*case(data, "stack3_96"))
    found, curve = em.scores(counts), em.curves(counts)[measure]
    assert curve[LEVELS.index(found[f"{measure}_threshold"])] == found[measure]
    assert found[measure] == em.MEASURES[measure].best(score for score in curve if score is not None)
    assert curve.count(None) == measure.startswith("warping")


def test_pixel_and_rand_errors_pool_sections_and_the_others_average_them(data: Path, official: Expected) -> None:
    counts = counted(*case(data, "stack3_96"))
    stack, apart = em.curves(counts), [em.curves([section]) for section in counts]
    for name in ("pixel_disagreement", "v_rand", "v_info", "warping_error", "warping_error_classic"):
        means = [np.mean([curve[name][n] for curve in apart]) for n in range(10)]
        assert stack[name][:10] == pytest.approx(means)
    wrong = official["stack3_96"]["common_wrong_values"]["rand_error_mean_of_slices"]
    means = [float(np.mean([curve["rand_error"][n] for curve in apart])) for n in range(11)]
    assert min(means) == pytest.approx(wrong)
    assert min(score for score in stack["rand_error"] if score is not None) < wrong - 0.05


def test_one_level_serves_all_sections() -> None:
    """Each section alone would be perfect, but at different levels."""
    interior = np.array([[[1, 1, 1, 0]]] * 2)
    probability = np.array([[[0.9, 0.9, 0.9, 0.6]], [[0.4, 0.4, 0.4, 0.1]]])
    assert [scored(p[None], i[None])["pixel_error"] for p, i in zip(probability, interior, strict=True)] == [0, 0]
    assert scored(probability, interior)["pixel_error"] == pytest.approx(1 - 12 / 13)


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(5)))
def test_the_order_of_sections_does_not_change_any_bit(order: list[int]) -> None:
    random = np.random.default_rng(0)
    counts = counted(random.random((5, 6, 7)), random.random((5, 6, 7)) > 0.4)
    assert em.scores([counts[n] for n in order]) == em.scores(counts)


@pytest.mark.parametrize("value", [0.0, 1.0], ids=["nothing found", "all found"])
def test_a_reference_without_interior_has_no_score_but_a_reason(value: float) -> None:
    found = scored(np.full((1, 5, 3), value), np.zeros((1, 5, 3)))
    for name in set(em.MEASURES) - {"pixel_disagreement", "warping_error_classic"}:
        assert (found[name], found[f"{name}_threshold"]) == (None, None)
        assert found[f"{name}_reason"] == "the reference has no interior"
    assert found["pixel_disagreement"] == value
    assert found["warping_error_classic"] == value  # without a cell, warping cannot flip any pixel


def test_an_empty_prediction_has_no_warping_error_rather_than_none() -> None:
    interior = np.zeros((1, 9, 9))
    interior[0, 1:4, 1:4] = interior[0, 5:8, 5:8] = 1
    found = scored(np.zeros((1, 9, 9)), interior)
    assert (found["warping_error"], found["warping_error_threshold"]) == (None, None)
    assert "no interior at any level" in found["warping_error_reason"]
    assert (found["pixel_error"], found["rand_error_pairs"]) == (1, 1)
    assert found["warping_error_classic"] == 2 / 81  # the last pixel of each cell
    assert found["v_rand"] == pytest.approx(2 * (2 * 9**2) / (2 * 9**2 + 18**2))
    assert found["v_rand_note"] == "at this level the prediction is empty in 1 of 1 sections, which count as one cell"


def test_a_level_without_prediction_wins_as_officially_but_with_a_note(data: Path) -> None:
    found = scored(*case(data, "thin8_64"))
    assert (found["warping_error"], found["warping_error_threshold"]) == (0, LEVELS[9])
    assert found["warping_error_note"] == (
        "at this level the prediction is empty in 1 of 1 sections, which have no split and no merge; "
        "best of the other levels: 0.000244 at 0.4"
    )


def test_sections_without_interior_are_excluded_from_the_means_with_a_note() -> None:
    interior = np.zeros((3, 5, 9), bool)
    interior[:2, 1:4, 1:4] = interior[:2, 1:4, 5:8] = True
    found = scored(interior, interior)
    assert [found[name] for name in ("pixel_error", "rand_error", "warping_error", "v_rand", "v_info")] == [
        0,
        0,
        0,
        1,
        1,
    ]
    assert found["v_rand_note"] == "excluded: 1 of 3 sections, without interior in the reference"


def test_an_empty_prediction_splits_a_ring_that_is_larger_than_the_window() -> None:
    """The window does not show that the cut ends are connected, so splits are counted, as in the official program."""
    y, x = np.mgrid[:70, :75]
    distance = np.hypot(y - 35, x - 37)
    ring = ((distance > 24) & (distance < 33))[np.newaxis]
    found = scored(np.zeros(ring.shape), ring)
    assert (found["warping_error"], found["warping_error_threshold"]) == (216 / ring.size, 0)
    assert (
        found["warping_error_note"] == "at this level the prediction is empty in 1 of 1 sections, which have no merge"
    )
    filled = (distance < 33)[np.newaxis]
    assert scored(np.zeros(filled.shape), filled)["warping_error"] is None


def test_one_cell_scores_0_in_v_info_as_officially_with_a_note(data: Path) -> None:
    """V_Info of a single cell, cut in two or found."""
    one = np.zeros((1, 5, 9))
    one[0, 1:4, 1:8] = 1
    for proposal, reference in (case(data, "hand_split_9"), (one, one)):
        found = scored(proposal, reference)
        assert (found["v_info"], found["v_info_threshold"]) == (0, 0)
        assert found["v_info_note"] == "1 of 1 sections are one cell, which scores 0 for any prediction"
    assert found["v_rand"] == 1


def test_a_single_pixel_of_interior_has_no_pair() -> None:
    interior = np.array([[[0, 1, 0]]])
    found = scored(interior, interior)
    assert (found["rand_error"], found["rand_error_pairs"]) == (0, None)
    assert found["rand_error_pairs_reason"] == "no two pixels of reference interior belong together"


def test_a_reference_without_membrane_is_one_cell_inside_a_frame_of_membrane() -> None:
    cut = np.ones((1, 9, 11))
    cut[0, :, 5] = 0
    found = scored(cut, np.ones((1, 9, 11)))
    assert found["warping_error"] == 1 / 99  # the last pixel that connects it
    assert scored(np.ones((1, 9, 11)), np.ones((1, 9, 11)))["warping_error"] == 0


def test_no_section_at_all_has_no_score() -> None:
    found = em.scores([])
    assert {found[name] for name in em.MEASURES} == {None}
    assert em.roc_auc([]) is None


@settings(deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_scores_are_none_with_a_reason_or_in_0_to_1(seed: int, share: float, found: float) -> None:
    random = np.random.default_rng(seed)
    scores = scored(random.random((2, 4, 6)) * found, random.random((2, 4, 6)) < share)
    for name in em.MEASURES:
        assert (scores[name] is None) == (f"{name}_reason" in scores) == (scores[f"{name}_threshold"] is None)
        assert scores[name] is None or 0 <= scores[name] <= 1
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_pixels_at_a_level_are_the_confusion_of_the_stack(data: Path) -> None:
    probability, interior = case(data, "stack3_96")
    found, proposal = em.pixels_at(counted(probability, interior), 0.5), probability > 0.5
    assert (found.tp, found.fp) == ((proposal & interior).sum(), (proposal & ~interior).sum())
    assert (found.fn, found.tn) == ((~proposal & interior).sum(), (~proposal & ~interior).sum())


@pytest.mark.parametrize("name", CASES)
def test_membrane_given_as_interior_is_recognised(data: Path, name: str) -> None:
    probability, interior = case(data, name)
    upright, inverted = counted(probability, interior), counted(1 - probability, interior)
    assert (em.looks_inverted(upright), em.looks_inverted(inverted)) == (False, True)
    assert em.roc_auc(inverted) == pytest.approx(1 - (em.roc_auc(upright) or math.nan), abs=0.02)


def test_an_unrelated_map_does_not_look_inverted() -> None:
    random = np.random.default_rng(1)
    interior = random.random((2, 40, 50)) < 0.8
    for probability in (random.random(interior.shape), np.full(interior.shape, 0.3), np.zeros(interior.shape)):
        counts = counted(probability, interior)
        assert em.roc_auc(counts) == pytest.approx(0.5, abs=0.03)
        assert not em.looks_inverted(counts)
    assert em.roc_auc(counted(interior, np.ones_like(interior))) is None
