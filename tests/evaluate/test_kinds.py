from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from helpers import grey
from numpy.typing import NDArray
from pairs import SHAPE, TRUTH, VALUES, blobs, each_section, evaluated, stored
from scipy import ndimage
from skimage.metrics import variation_of_information

from unetcli.core.errors import UnetcliError
from unetcli.evaluate.resolve import mask_values
from unetcli.volumes.opening import open_volume

LABELS = blobs(6, 60, 70, seed=3)


@pytest.mark.parametrize(
    ("values", "kind", "metrics"),
    [
        (VALUES, "probability", ("pixels", "em")),
        (VALUES / 255, "probability", ("pixels", "em")),
        (TRUTH > 0, "probability", ("pixels", "em")),
        (TRUTH, "probability", ("pixels", "em")),
        (blobs(*SHAPE), "labels", ("cells", "voi")),
        (blobs(*SHAPE, dtype="int32"), "labels", ("cells", "voi")),
        (blobs(*SHAPE, dtype="uint8"), "labels", ("cells", "voi")),
        (blobs(*SHAPE, dtype="float32"), "labels", ("cells", "voi")),
        (np.float32(TRUTH > 0), "probability", ("pixels", "em")),
    ],
    ids=["uint8 values", "floats", "booleans", "0 and 255", "uint16", "int32", "small uint8", "whole", "0.0 and 1.0"],
)
def test_default_metrics_follow_from_the_kind(
    tmp_path: Path, values: NDArray[Any], kind: str, metrics: tuple[str, ...]
) -> None:
    found = evaluated(stored(tmp_path, values), stored(tmp_path, blobs(*SHAPE), "t.zarr"))
    assert (found.kind, found.metrics) == (kind, metrics)
    assert set(found.scores) == set(metrics)


def disc(radius: float, side: int = 400) -> NDArray[np.float64]:
    """Distance to a circle, positive inside."""
    return radius - np.hypot(*np.ogrid[-side // 2 : side // 2, -side // 2 : side // 2])


@pytest.mark.parametrize("softness", [0.5, 3, 20], ids=["sharp", "soft", "blurred"])
def test_a_uint8_map_of_one_large_object_is_a_probability_however_sharp(tmp_path: Path, softness: float) -> None:
    sharp = np.clip(disc(150) / softness + 0.5, 0, 1)
    found = evaluated(stored(tmp_path, (255 * sharp).astype(np.uint8)), stored(tmp_path, disc(150) > 0, "t.zarr"))
    assert found.kind == "probability"


def test_uint8_labels_up_to_255_are_recognised_and_reported(tmp_path: Path) -> None:
    """There are many small objects; the values of a probability map would vary within them."""
    points = np.pad(np.arange(1, 257).reshape(16, 16) % 256, 0).astype(np.uint8)
    labels = np.kron(points, np.pad(np.ones((9, 9), np.uint8), 1))
    found = evaluated(stored(tmp_path, labels), stored(tmp_path, labels, "t.zarr"))
    assert (found.kind, found.scores["cells"]["seg"]) == ("labels", 1)
    assert "neighbouring pixels mostly have the same value" in found.notes[0]
    assert "--kind probability" in found.notes[0]


@pytest.mark.parametrize("kind", ["probability", "labels"])
def test_the_kind_can_be_chosen(tmp_path: Path, kind: str) -> None:
    found = evaluated(stored(tmp_path, blobs(*SHAPE, dtype="uint8")), stored(tmp_path, TRUTH, "t.zarr"), kind=kind)
    assert found.kind == kind


def test_labels_as_float_and_masks_as_pictures_score_as_they_are(tmp_path: Path) -> None:
    labels = blobs(*SHAPE)
    truth = stored(tmp_path, labels.astype(np.float64), "t.zarr")
    assert (
        evaluated(stored(tmp_path, labels.astype(np.float32)), truth, run_folder=tmp_path / "run").scores["cells"][
            "seg"
        ]
        == 1
    )
    picture = tmp_path / "mask.tif"
    tifffile.imwrite(picture, np.repeat(TRUTH[0][..., None], 3, -1), photometric="rgb")
    found = evaluated(str(picture), str(picture), "pixels", run_folder=tmp_path / "run2")
    assert (found.kind, found.scores["pixels"]["iou"]) == ("probability", 1)


def test_a_kind_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    truth = stored(tmp_path, TRUTH, "t.zarr")
    with pytest.raises(UnetcliError, match=r"p\.zarr: float64 with values such as 0\.\d+; expected labels"):
        evaluated(stored(tmp_path, VALUES / 255), truth, kind="labels")
    with pytest.raises(UnetcliError, match=r"--metrics em: \S+l\.zarr contains labels; expected .* pixels, cells, voi"):
        evaluated(stored(tmp_path, blobs(*SHAPE), "l.zarr"), truth, "em", kind="labels")
    with pytest.raises(UnetcliError, match="--kind masks: expected probability, labels or classes"):
        evaluated("p", truth, kind="masks")


def test_classes_are_scored_class_by_class(tmp_path: Path) -> None:
    classes, found = grey(*SHAPE, seed=4) % 4, grey(*SHAPE, seed=5) % 3
    scores = evaluated(stored(tmp_path, found), stored(tmp_path, classes, "t.zarr"), kind="classes").scores["pixels"]
    assert scores["accuracy"] == pytest.approx((found == classes).mean())
    both = (found == 2) & (classes == 2)
    assert scores["iou_per_class"]["2"] == pytest.approx(both.sum() / ((found == 2) | (classes == 2)).sum())
    assert np.shape(scores["confusion"]) == (4, 4)


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_components_of_probabilities_above_the_threshold_are_scored(tmp_path: Path, threshold: float) -> None:
    values = ndimage.gaussian_filter((LABELS > 0).astype(float), (0, 1, 1))
    components = np.stack([ndimage.label(section > threshold)[0] for section in values.astype(np.float32)])
    truth = stored(tmp_path, each_section(LABELS), "t.zarr")
    found = evaluated(stored(tmp_path, values.astype(np.float32)), truth, "cells", "voi", threshold=threshold)
    as_labels = evaluated(stored(tmp_path, components, "l.zarr"), truth, three_d=False)
    assert found.scores == as_labels.scores
    assert found.thresholds == {"objects": threshold}
    assert f"4-connected components of a section above {threshold:g}" in found.notes[0]
    with pytest.raises(UnetcliError, match="`unetcli label --three-d`"):
        evaluated(found.request.prediction, truth, "cells", three_d=True)


def test_objects_extend_over_sections_if_those_of_the_truth_do(tmp_path: Path) -> None:
    prediction = stored(tmp_path, np.roll(LABELS, 1, axis=1))
    through = evaluated(prediction, stored(tmp_path, LABELS, "t.zarr"))
    alone = evaluated(prediction, stored(tmp_path, each_section(LABELS)[:, ::-1], "s.zarr"))
    assert (through.three_d, alone.three_d) == (True, False)
    assert "objects extend over sections" in through.notes[0]
    assert evaluated(prediction, through.request.truth, three_d=False).scores != through.scores
    section_by_section = evaluated(stored(tmp_path, each_section(LABELS), "e.zarr"), through.request.truth)
    assert "objects of the prediction do not" in section_by_section.notes[0]


def test_variation_of_information_in_three_dimensions_is_that_of_scikit_image(tmp_path: Path) -> None:
    for place, truth in enumerate((LABELS, grey(6, 60, 70) % 5)):  # objects, and noise
        found = np.roll(truth, 2, axis=2)
        paths = stored(tmp_path, found, f"{place}.zarr"), stored(tmp_path, truth, f"t{place}.zarr")
        scores = evaluated(*paths, block_voxels=4000).scores["voi"]
        conditional = variation_of_information(truth, found)
        assert [scores["split_bits"], scores["merge_bits"]] == pytest.approx(conditional[::-1].tolist())


def test_frames_in_time_are_scored_separately(tmp_path: Path) -> None:
    truth = stored(tmp_path, LABELS, "t.zarr", dimension_names=list("tyx"))
    found = evaluated(stored(tmp_path, LABELS), truth)
    assert not found.three_d
    assert [section.name for section in found.sections] == [f"t {n}" for n in range(6)]
    with pytest.raises(UnetcliError, match=r"--three-d: \S+t\.zarr has axes t, y, x; expected an axis z"):
        evaluated(stored(tmp_path, LABELS, "l.zarr"), truth, three_d=True)


def test_objects_of_a_mask_are_its_components(tmp_path: Path) -> None:
    mask = (LABELS > 0).astype(np.uint8) * 255
    found = evaluated(stored(tmp_path, each_section(LABELS)), stored(tmp_path, mask, "t.zarr"), "cells")
    assert (found.three_d, found.scores["cells"]["seg"]) == (False, 1)
    assert any("the truth is a mask" in note for note in found.notes)
    images = found.images(found.sections[2])
    assert images.true_objects is not None
    assert images.true_objects.max() == ndimage.label(mask[2])[1]


@pytest.mark.by_default("bool-(0, 1)", "uint8-(0, 255)", "uint16-(0, 60000)", "int32-(0, 7)")
@pytest.mark.parametrize("values", [(0, 1), (0, 255), (0, 7), (0, 60_000)], ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "bool"])
def test_pieces_of_a_mask_are_objects_whatever_its_two_values(
    tmp_path: Path, values: tuple[int, int], dtype: str
) -> None:
    if values[1] > 255 and dtype in ("uint8", "bool"):
        pytest.skip("does not fit")
    mask = np.where(LABELS > 0, values[1], values[0]).astype(dtype)
    truth, found = stored(tmp_path, mask, "t.zarr"), each_section(LABELS)
    scored = evaluated(stored(tmp_path, found), truth, "cells", "voi")
    assert (scored.three_d, scored.scores["cells"]["seg"], scored.scores["voi"]["split"]) == (False, 1, 0)
    assert scored.scores["cells"]["reference_objects"] == sum(int(section.max()) for section in found)
    shown = 1 if dtype == "bool" else values[1]
    assert any(f"the truth is a mask (0 and {shown}); its objects are the 4-conn" in note for note in scored.notes)
    through = evaluated(scored.request.prediction, truth, "cells", three_d=True)
    assert through.scores["cells"]["reference_objects"] == 1


def test_a_mask_is_recognised_from_every_voxel_that_is_scored(tmp_path: Path) -> None:
    """A sample of the chunks of sparse labels shows one object, or none; ignored voxels are no second object."""
    labels = np.zeros((200, 16, 16), np.uint8)
    labels[101, 2:5, 2:5], labels[101, 8:12, 8:12], labels[150, 3:9] = 1, 2, 3
    truth = stored(tmp_path, labels, "t.zarr", chunks=(1, 16, 16))
    found = evaluated(stored(tmp_path, labels.astype(np.uint16)), truth, "cells")
    assert not any("the truth is a mask" in note for note in found.notes)
    assert found.scores["cells"]["reference_objects"] == 3
    only = evaluated(found.request.prediction, truth, "cells", roi=((140, 200), (0, 16), (0, 16)), ignore=2)
    assert "the truth is a mask (0 and 3)" in only.notes[0]
    two = evaluated(found.request.prediction, truth, "cells", sections=(90, 120), ignore=2)
    assert "the truth is a mask (0 and 1)" in two.notes[0]


def test_values_of_a_mask_are_those_of_every_voxel_whatever_is_stored(tmp_path: Path) -> None:
    """Labels are recognised although most chunks are absent; absent chunks of another fill value count as read."""
    options = {"shape": (3, 64, 64), "chunks": (1, 8, 8), "dtype": "u2"}
    for values, expected in (({}, ()), ({(2, 60, 9): 5}, (5,)), ({(0, 0, 0): 5, (2, 63, 63): 6}, None)):
        array = zarr.create_array(tmp_path / "t.zarr", overwrite=True, **options)
        for place, value in values.items():
            array[place] = value
        volume = open_volume(tmp_path / "t.zarr")
        assert mask_values(volume, volume.whole()) == expected
    assert mask_values(volume, volume.whole(), ignore=6) == (5,)
    filled = zarr.create_array(tmp_path / "f.zarr", fill_value=9, **options)
    filled[1] = 0
    volume = open_volume(tmp_path / "f.zarr")
    assert mask_values(volume, volume.whole()) == (9,)
    filled[1, 0, 0] = 4
    assert mask_values(volume, volume.whole()) is None


def test_a_guessed_mask_as_prediction_has_its_pieces_as_objects(tmp_path: Path) -> None:
    mask, truth = (LABELS > 0).astype(np.uint8), stored(tmp_path, each_section(LABELS), "t.zarr")
    for dtype in ("uint8", "uint16", "int64"):
        found = evaluated(stored(tmp_path, mask.astype(dtype), f"{dtype}.zarr"), truth, "cells")
        assert (found.kind, found.scores["cells"]["seg"]) == ("labels", 1)
        assert any("the prediction is a mask" in note for note in found.notes)
    stated = evaluated(str(tmp_path / "uint8.zarr"), truth, "cells", kind="labels", three_d=False)
    assert stated.scores["cells"]["result_objects"] == 6
    assert stated.scores["cells"]["seg"] < 0.5


def test_16_bit_probabilities_are_recognised_or_noted(tmp_path: Path) -> None:
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(6, 60, 70)), (0, 2, 2))
    values = (smooth - smooth.min()) / np.ptp(smooth)
    truth = stored(tmp_path, (values > 0.5).astype(np.uint8), "t.zarr")
    wide = (values * 65535 + 0.5).astype(np.uint16)
    stored(tmp_path, wide, "w.zarr")
    stored(tmp_path, (wide / np.float32(65535)).astype(np.float32), "f.zarr")
    for metrics in (("cells",), ("em",), ()):
        found = evaluated(str(tmp_path / "w.zarr"), truth, *metrics)
        expected = evaluated(str(tmp_path / "f.zarr"), truth, *metrics)
        assert (found.kind, found.scores) == ("probability", expected.scores)
        assert "em" in metrics or "uint16, value / 65535; otherwise use --kind labels" in found.notes[0]
    two = np.where(values > 0.5, 62_258, 3_276).astype(np.uint16)
    found = evaluated(stored(tmp_path, two, "two.zarr"), truth, "pixels")
    assert found.kind == "labels"
    assert "uint16, highest value 62258; otherwise use --kind probability" in found.notes[0]
    assert evaluated(str(tmp_path / "two.zarr"), truth, "pixels", kind="probability").scores["pixels"]["iou"] == 1


def test_a_truth_without_background_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    truth = stored(tmp_path, (LABELS > 0).astype(np.uint8) + 1, "t.zarr")
    evaluated(stored(tmp_path, LABELS), truth, "pixels")
    assert "t.zarr: has the values 1 and 2 and no 0, which is background (membrane)" in caplog.text
