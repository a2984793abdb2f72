from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import SETTINGS, Output, grey, plan_of, write_zarr
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Box
from unetcli.core.options import Sections
from unetcli.evaluate.evaluate import INVERTED
from unetcli.evaluate.evaluate import evaluate_volume as evaluate
from unetcli.evaluate.request import EvaluateRequest
from unetcli.evaluate.result import Scores
from unetcli.metrics.em import scores
from unetcli.metrics.em_counts import section_counts
from unetcli.volumes.volume import Volume

SHAPE = (6, 13, 22)
TRUTH = (grey(*SHAPE, seed=1) > 120).astype(np.uint8) * 255
VALUES = np.where(TRUTH > 0, grey(*SHAPE, seed=2) // 2 + 100, grey(*SHAPE, seed=3) // 2)


def predicted(path: Path, values: NDArray[Any], region: Box, extent: tuple[int, ...], *, complete: bool = True) -> str:
    """Write a prediction as predict does, with ``values`` of shape (outputs, *region.shape)."""
    settings = replace(SETTINGS, dtype=str(values.dtype), outputs=len(values))
    plan = plan_of(region, extent=extent, settings=settings, block_shape=(1,) * (len(extent) - 2) + (64, 64))
    output = Output(path, plan)
    output.create(Volume(path="in", array=np.zeros(extent, np.uint8), stored_axes=plan.axes))
    for number in range(plan.blocks):
        box = plan.output_box(plan.block(number))
        output.write(output.open(), box, values[(slice(None), *box.slices)])
    if complete:
        output.mark_complete()
    return str(path)


@pytest.fixture
def truth(tmp_path: Path) -> str:
    return str(write_zarr(tmp_path / "truth.zarr", TRUTH))


def stored(tmp_path: Path, values: NDArray[Any], name: str = "p.zarr", **options: Any) -> str:
    return str(write_zarr(tmp_path / name, values, **options))


def evaluate_volume(prediction: str, truth: str, metrics: Sequence[str] | None = None, **options: Any) -> Scores:
    """Scores without their intervals."""
    chosen = None if metrics is None else tuple(metrics)
    found = evaluate(EvaluateRequest(prediction=prediction, truth=truth, metrics=chosen, **options))
    return {
        metric: {name: value for name, value in scores.items() if "interval" not in name}
        for metric, scores in found.scores.items()
    }


def pixel_scores(values: NDArray[Any], truth: NDArray[Any]) -> dict[str, int]:
    found, there = values > 127.5, truth > 0
    counts = {"tp": found & there, "fp": found & ~there, "fn": ~found & there, "tn": ~found & ~there}
    return {name: int(mask.sum()) for name, mask in counts.items()}


def test_scores_equal_those_of_the_metrics_for_each_section(tmp_path: Path, truth: str) -> None:
    found = evaluate_volume(stored(tmp_path, VALUES), truth)
    assert pixel_scores(VALUES, TRUTH).items() <= found["pixels"].items()
    probability = (VALUES / 255).astype(np.float32)
    expected = scores([section_counts(p, t > 0) for p, t in zip(probability, TRUTH, strict=True)])
    assert found["em"] == expected | {"looks_inverted": False}


def test_an_inverted_prediction_is_reported_and_scored_unchanged(
    tmp_path: Path, truth: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = stored(tmp_path, 255 - TRUTH)
    found = evaluate_volume(path, truth, ["em"])["em"]
    assert found["looks_inverted"]
    assert found["pixel_disagreement"] > 0.4
    assert [record.getMessage() for record in caplog.records] == [f"{path}: {INVERTED}"]


def test_an_inverted_prediction_is_noticed_with_cells_too(tmp_path: Path, truth: str) -> None:
    inverted = evaluate(EvaluateRequest(prediction=stored(tmp_path, 255 - TRUTH), truth=truth, metrics=("cells",)))
    right = evaluate(EvaluateRequest(prediction=stored(tmp_path, VALUES, "v.zarr"), truth=truth, metrics=("cells",)))
    assert (INVERTED in inverted.notes, INVERTED in right.notes) == (True, False)
    assert set(inverted.scores) == {"cells"}


def test_uint8_and_the_same_probabilities_as_floats_score_the_same(tmp_path: Path, truth: str) -> None:
    results = [
        evaluate_volume(stored(tmp_path, values, f"{values.dtype}.zarr"), truth)
        for values in (VALUES, (VALUES / 255).astype(np.float32), VALUES / 255)
    ]
    assert results[0] == results[1] == results[2]


def test_a_binary_prediction_is_probability_0_and_1(tmp_path: Path, truth: str) -> None:
    found = evaluate_volume(stored(tmp_path, TRUTH > 0), truth)
    assert (found["pixels"]["iou"], found["em"]["rand_error"]) == (1, 0)


@pytest.mark.parametrize(
    "region",
    [Box((2, 0, 0), (6, 13, 22)), Box((0, 3, 5), (6, 13, 20)), Box((5, 12, 21), (6, 13, 22))],
    ids=["sections", "plane", "one voxel"],
)
def test_the_prediction_of_a_region_is_aligned_with_the_truth(tmp_path: Path, truth: str, region: Box) -> None:
    values = VALUES[region.slices]
    path = predicted(tmp_path / "p.zarr", values[np.newaxis], region, SHAPE)
    found = evaluate_volume(path, truth, ["pixels"])["pixels"]
    assert pixel_scores(values, TRUTH[region.slices]).items() <= found.items()


@pytest.mark.parametrize("sections", [(2, 4), (None, 3), (5, None)], ids=str)
def test_sections_are_counted_in_the_truth(tmp_path: Path, truth: str, sections: Sections) -> None:
    region = Box((1, 0, 0), SHAPE)
    path = predicted(tmp_path / "p.zarr", VALUES[1:][np.newaxis], region, SHAPE)
    part = slice(max(1, sections[0] or 0), sections[1])
    if sections[0] is None:
        with pytest.raises(UnetcliError, match=r"--sections 0:3: .* covers sections 1:6"):
            evaluate_volume(path, truth, ["pixels"], sections=sections)
        return
    found = evaluate_volume(path, truth, ["pixels"], sections=sections)["pixels"]
    assert pixel_scores(VALUES[part], TRUTH[part]).items() <= found.items()


@pytest.mark.parametrize("sections", [(4, 4), (3, 7), (-1, 3)], ids=str)
def test_sections_that_do_not_exist_are_refused(tmp_path: Path, truth: str, sections: Sections) -> None:
    with pytest.raises(UnetcliError, match="has sections 0:6"):
        evaluate_volume(stored(tmp_path, VALUES), truth, sections=sections)


def test_a_single_image_has_no_sections(tmp_path: Path) -> None:
    paths = stored(tmp_path, VALUES[0]), stored(tmp_path, TRUTH[0], "t.zarr")
    with pytest.raises(UnetcliError, match="is a single image"):
        evaluate_volume(*paths, sections=(0, 1))
    assert pixel_scores(VALUES[0], TRUTH[0]).items() <= evaluate_volume(*paths)["pixels"].items()


def test_shapes_that_differ_are_refused_naming_both(tmp_path: Path, truth: str) -> None:
    with pytest.raises(UnetcliError, match=r"p\.zarr is z 5, y 13, x 22, but \S+truth\.zarr is z 6, y 13, x 22"):
        evaluate_volume(stored(tmp_path, VALUES[:5]), truth)


def test_a_stack_of_one_section_is_an_image(tmp_path: Path) -> None:
    one = stored(tmp_path, VALUES[:1])
    assert evaluate_volume(one, stored(tmp_path, TRUTH[0], "t.zarr")) == evaluate_volume(
        one, stored(tmp_path, TRUTH[None, :1], "t4.zarr", dimension_names=list("tzyx"))
    )


def test_an_incomplete_prediction_is_refused_unless_asked_for(tmp_path: Path, truth: str) -> None:
    path = predicted(tmp_path / "p.zarr", VALUES[np.newaxis], Box.of_shape(SHAPE), SHAPE, complete=False)
    with pytest.raises(UnetcliError, match=r"p\.zarr: not complete; .*--allow-incomplete"):
        evaluate_volume(path, truth)
    assert evaluate_volume(path, truth, allow_incomplete=True)["pixels"]["tp"] > 0


def test_the_most_probable_of_several_classes_is_scored(tmp_path: Path) -> None:
    values, classes = grey(3, *SHAPE, seed=4), grey(*SHAPE, seed=5) % 3
    prediction = predicted(tmp_path / "p.zarr", values, Box.of_shape(SHAPE), SHAPE)
    truth = stored(tmp_path, classes, "t.zarr")
    found = evaluate_volume(prediction, truth, ["pixels"])["pixels"]
    assert found["accuracy"] == pytest.approx((values.argmax(0) == classes).mean())
    assert list(evaluate_volume(prediction, truth)) == ["pixels"]
    with pytest.raises(UnetcliError, match="3 classes, one channel each; --metrics em needs one channel"):
        evaluate_volume(prediction, truth, ["pixels", "em"])


@pytest.mark.parametrize("value", [3, -1])
def test_a_class_the_prediction_does_not_have_is_refused(tmp_path: Path, value: int) -> None:
    classes = np.zeros(SHAPE, np.int16)
    classes[4, 5, 6] = value
    prediction = predicted(tmp_path / "p.zarr", grey(3, *SHAPE), Box.of_shape(SHAPE), SHAPE)
    with pytest.raises(UnetcliError, match=rf"t\.zarr: class {value} in the truth; the prediction has classes 0 to 2"):
        evaluate_volume(prediction, stored(tmp_path, classes, "t.zarr"), ["pixels"])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (VALUES.astype("int32"), "int32; expected probabilities"),
        (VALUES.astype("uint16"), "uint16 with values up to 227; probabilities are value / 65535"),
        (VALUES.astype("float32"), "expected probabilities 0 to 1"),
        (np.full(SHAPE, np.nan), "NaN at z 0, y 0, x 0; expected probabilities 0 to 1"),
        (np.full(SHAPE, -0.1), "expected probabilities 0 to 1"),
    ],
    ids=["labels", "uint8 values as uint16", "grey values", "NaN", "negative"],
)
def test_values_that_are_not_probabilities_are_refused(
    tmp_path: Path, truth: str, values: NDArray[Any], said: str
) -> None:
    with pytest.raises(UnetcliError, match=rf"p\.zarr: .*{said}"):
        evaluate_volume(stored(tmp_path, values), truth, ["em"])


@pytest.mark.parametrize("metrics", ["pixels", "em", "cells"])
def test_the_position_of_a_nan_is_reported(tmp_path: Path, truth: str, metrics: str) -> None:
    values = VALUES.astype(np.float32) / 255
    values[3, 9, 17] = np.nan
    with pytest.raises(UnetcliError, match=r"p\.zarr: NaN at z 3, y 9, x 17; expected probabilities 0 to 1"):
        evaluate_volume(stored(tmp_path, values), truth, [metrics], block_voxels=20, roi=((2, 5), (3, 13), (4, 22)))


def test_truth_is_one_channel_of_integers(tmp_path: Path) -> None:
    prediction = stored(tmp_path, VALUES)
    with pytest.raises(UnetcliError, match=r"t\.zarr: float32 with values such as 127\.5; expected labels"):
        evaluate_volume(prediction, stored(tmp_path, TRUTH / np.float32(2), "t.zarr"))
    with pytest.raises(UnetcliError, match=r"c\.zarr: 6 channels of uint8.*; expected labels in one channel"):
        evaluate_volume(prediction, stored(tmp_path, TRUTH, "c.zarr", dimension_names=list("cyx")))


def test_an_unknown_metric_is_refused_before_anything_is_read() -> None:
    with pytest.raises(UnetcliError, match="--metrics iou: expected one or more of pixels,em,cells,voi"):
        evaluate_volume("missing", "missing", ["pixels", "iou"])
    with pytest.raises(UnetcliError, match="--metrics : expected one or more of pixels,em,cells,voi"):
        evaluate_volume("missing", "missing", [])


def test_a_uint8_mask_of_0_and_1_is_refused_but_bool_and_0_255_are_scored(tmp_path: Path) -> None:
    mask = grey(*SHAPE, seed=8) // 128
    truth = stored(tmp_path, mask, "t.zarr")
    with pytest.raises(UnetcliError, match="bool or as 0 and 255"):
        evaluate_volume(stored(tmp_path, mask, "m.zarr"), truth)
    for name, values in (("b.zarr", mask > 0), ("w.zarr", mask * 255)):
        assert evaluate_volume(stored(tmp_path, values, name), truth)["pixels"]["iou"] == 1


def test_negative_truth_is_foreground_too(tmp_path: Path) -> None:
    mask = grey(*SHAPE, seed=8) // 128
    truth = stored(tmp_path, -mask.astype(np.int16), "t.zarr")
    scores = evaluate_volume(stored(tmp_path, mask * 255, "m.zarr"), truth)
    assert (scores["pixels"]["iou"], scores["em"]["pixel_error"]) == (1, 0)


def test_progress_counts_voxels(tmp_path: Path, truth: str) -> None:
    calls: list[tuple[int, int]] = []
    prediction = stored(tmp_path, VALUES, chunks=(2, 13, 22))
    request = EvaluateRequest(prediction=prediction, truth=truth, block_voxels=13 * 22)
    evaluate(request, lambda *now: calls.append(now))
    assert calls == [(n * 13 * 22, 6 * 13 * 22) for n in range(1, 7)]
