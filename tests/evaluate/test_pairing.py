from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from helpers import grey, write_placed, write_prediction, write_zarr
from pairs import SHAPE, TRUTH, VALUES, blobs, evaluated, stored, without_intervals

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Box
from unetcli.evaluate.plan import Pair
from unetcli.evaluate.request import EvaluateRequest
from unetcli.volumes import ngff


def image(path: Path, *levels: np.ndarray, scale: float = 1.0, unit: str | None = None, axes: str = "zyx") -> str:
    """Write an OME-Zarr image; each level has half the resolution of the one before."""
    grids = [
        ngff.Grid(
            scale={axis: scale * (2**n if axis in "yx" else 1) for axis in axes}, translation=dict.fromkeys(axes, 0.0)
        )
        for n in range(len(levels))
    ]
    units = dict.fromkeys("zyx", unit) if unit else {}
    group = zarr.create_group(path, attributes=ngff.attributes(ngff.image(path.name, axes, units, grids), 3))
    for n, values in enumerate(levels):
        group.create_array(str(n), data=values, chunks=values.shape)
    return str(path)


def test_axes_that_differ_are_refused_naming_both(tmp_path: Path) -> None:
    four = np.stack([TRUTH, TRUTH])
    prediction = stored(tmp_path, np.stack([VALUES, VALUES]), dimension_names=list("tzyx"))
    with pytest.raises(UnetcliError, match=r"p\.zarr is t 2, z 6, \S+ \S+ x 22, but \S+t\.zarr is z 6, "):
        evaluated(prediction, stored(tmp_path, TRUTH, "t.zarr", dimension_names=list("zyx")))
    with pytest.raises(UnetcliError, match=r"p\.zarr is t 2, z 6, \S+ \S+ x 22, but \S+f\.zarr is t 2, z 6, y 22, "):
        evaluated(prediction, stored(tmp_path, four.swapaxes(2, 3), "f.zarr", dimension_names=list("tzyx")))


@pytest.mark.parametrize(("found", "true"), [("t", "z"), ("z", "t")])
def test_sections_pair_whether_their_axis_is_called_t_or_z(tmp_path: Path, found: str, true: str) -> None:
    labels = blobs(6, 40, 50, seed=1)
    prediction = stored(tmp_path, np.roll(labels, 1, axis=1), dimension_names=[found, "y", "x"])
    truth = stored(tmp_path, labels, "t.zarr", dimension_names=[true, "y", "x"])
    named = stored(tmp_path, np.roll(labels, 1, axis=1), "n.zarr", dimension_names=[true, "y", "x"])
    mask = stored(tmp_path, labels < 900, "m.zarr", dimension_names=[found, "y", "x"])
    paired, expected = evaluated(prediction, truth, mask=mask), evaluated(named, truth, mask=mask)
    assert (paired.axes, paired.three_d, paired.scores) == (f"{true}yx", true == "z", expected.scores)
    (note,) = [note for note in paired.notes if "were paired" in note]
    assert f"p.zarr along {found} were paired with those of {tmp_path}/t.zarr along {true}" in note
    assert note.endswith("objects can extend over sections" if true == "z" else "objects do not extend over sections")
    with pytest.raises(UnetcliError, match=f"p2.zarr is {found} 5, "):
        evaluated(stored(tmp_path, labels[:5], "p2.zarr", dimension_names=[found, "y", "x"]), truth)


def placed(*arguments: Any) -> str:
    return str(write_placed(*arguments))


@pytest.mark.by_default("origin0", "origin2", "None")
@pytest.mark.parametrize("place", ["truth", "mask"])
@pytest.mark.parametrize(
    ("origin", "unit", "refused"),
    [
        ((100.0, 40.0, 41.9), "nanometer", False),
        ((100.0, 40.0, 42.1), "nanometer", True),
        ((126.0, 40.0, 40.0), "nanometer", True),
        ((100.0, 40.0, 40.0), "micrometer", False),
        ((100.0, 60.0, 40.0), "micrometer", True),
        ((0.0, 0.0, 0.0), "nanometer", True),
        (None, "nanometer", False),
    ],
)
def test_volumes_of_other_places_are_refused(
    tmp_path: Path, place: str, origin: tuple[float, ...] | None, unit: str, refused: bool
) -> None:
    prediction = placed(tmp_path / "p.zarr", VALUES, (100.0, 40.0, 40.0))
    other = placed(tmp_path / "o.zarr", TRUTH, origin, unit)
    truth = other if place == "truth" else placed(tmp_path / "t.zarr", TRUTH, (100.0, 40.0, 40.0))
    options = {"mask": other} if place == "mask" else {}
    expected = evaluated(prediction, truth, "pixels", same_place=True, **options).scores
    if refused:
        with pytest.raises(UnetcliError, match=r"zarr begins at z .*, y .*, x .*meter, but .*--same-place says so"):
            evaluated(prediction, truth, "pixels", **options)
    else:
        assert evaluated(prediction, truth, "pixels", **options).scores == expected


def test_a_prediction_of_a_region_lies_at_its_region(tmp_path: Path) -> None:
    """Its origin is that of the region; where the input's place is unknown, so is that of the prediction."""
    part = Box((1, 2, 4), (5, 12, 20))
    truth = placed(tmp_path / "t.zarr", TRUTH, (100.0, 40.0, 40.0))
    for origin, known, fits in (
        ((150.0, 48.0, 56.0), True, True),
        ((100.0, 40.0, 40.0), True, False),
        ((50.0, 8.0, 16.0), False, True),
    ):
        prediction = placed(tmp_path / "p.zarr", VALUES[part.slices], origin)
        marker = {"complete": True, "kind": "probabilities", "extent": list(SHAPE), "placed": known}
        marker["region"] = [list(side) for side in zip(part.start, part.stop, strict=True)]
        zarr.open_group(prediction).attrs["unetcli"] = marker
        if fits:
            assert evaluated(prediction, truth, "pixels").region == part
        else:
            with pytest.raises(UnetcliError, match="expected z 150 nanometer, y 48 nanometer, x 56 nanometer"):
                evaluated(prediction, truth, "pixels")


@pytest.mark.parametrize("changed", ["shape", "region"])
def test_a_marker_that_contradicts_its_array_is_named(tmp_path: Path, changed: str) -> None:
    place = str(write_prediction(tmp_path / "p.zarr", VALUES, (1, 8, 8), levels=2))
    truth = stored(tmp_path, TRUTH, "t.zarr")
    evaluated(place, truth, "pixels")
    evaluated(f"{place}/1", stored(tmp_path, TRUTH[:, ::2, ::2], "half.zarr"), "pixels")
    metadata = tmp_path / ("p.zarr/0/zarr.json" if changed == "shape" else "p.zarr/zarr.json")
    stored_metadata = json.loads(metadata.read_text())
    if changed == "shape":
        stored_metadata["shape"][0] = 1
    else:
        stored_metadata["attributes"]["unetcli"]["region"][0] = [0, 1]
    metadata.write_text(json.dumps(stored_metadata))
    sides = ("1 x 13 x 22", "6 x 13 x 22")
    found, stated = sides if changed == "shape" else sides[::-1]
    with pytest.raises(UnetcliError, match=f"p.zarr: the array is {found}, but its metadata state {stated}: one of"):
        evaluated(place, truth, "pixels")


def test_unnamed_axes_are_those_of_the_other_volume(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "t.tif", TRUTH)
    found = evaluated(stored(tmp_path, VALUES, dimension_names=list("tyx")), str(tmp_path / "t.tif"), "pixels")
    assert (found.axes, found.sections[4].name) == ("tyx", "t 4")


@pytest.mark.filterwarnings("ignore:<tifffile")  # a warning that a future version will write such a stack as grey
@pytest.mark.parametrize("sections", [3, 4])
def test_three_or_four_sections_of_a_tiff_are_no_colours(tmp_path: Path, sections: int) -> None:
    """By default tifffile writes such a stack as red, green and blue pages."""
    values, truth = VALUES[:sections].astype(np.float32) / 255, TRUTH[:sections]
    for name, array in (("p", values), ("t", truth), ("m", truth // 255)):
        tifffile.imwrite(tmp_path / f"{name}.tif", array)
        stored(tmp_path, array, f"{name}.zarr")
    paths = str(tmp_path / "p.zarr"), str(tmp_path / "t.zarr")
    expected = evaluated(*paths, "em")
    for prediction, true in (("p.tif", "t.tif"), ("p.tif", "t.zarr"), ("p.zarr", "t.tif")):
        found = evaluated(str(tmp_path / prediction), str(tmp_path / true), "em")
        assert (found.axes, found.scores) == ("zyx", expected.scores)
    masked = [evaluated(*paths, "pixels", mask=str(tmp_path / f"m{end}")).scores for end in (".tif", ".zarr")]
    assert masked[0] == masked[1] != evaluated(*paths, "pixels").scores


def test_three_pages_are_three_classes_where_the_truth_is_one_section(tmp_path: Path) -> None:
    classes = (grey(13, 22, seed=5) % 3).astype(np.uint8)
    values = np.stack([classes == n for n in range(3)]).astype(np.float32)
    tifffile.imwrite(tmp_path / "p.tif", values, photometric="rgb", planarconfig="separate")
    found = evaluated(f"{tmp_path}/p.tif:axes=cyx", stored(tmp_path, classes, "t.zarr"))
    assert (found.metrics, found.scores["pixels"]["accuracy"]) == (("pixels",), 1)


@pytest.mark.parametrize("named", ["truth", "mask"])
def test_a_mask_with_unnamed_axes_fits_any_axes(tmp_path: Path, named: str) -> None:
    kept = TRUTH > 0
    names = {"dimension_names": list("tyx")}
    truth = stored(tmp_path, TRUTH, "t.zarr", **(names if named == "truth" else {}))
    mask = stored(tmp_path, kept, "m.zarr", **(names if named == "mask" else {}))
    prediction = stored(tmp_path, VALUES)
    found = evaluated(prediction, truth, "pixels", mask=mask).scores["pixels"]
    assert found["tp"] + found["fn"] == np.count_nonzero(kept)
    assert found["fp"] == found["tn"] == 0
    other = stored(tmp_path, TRUTH[0], "z.zarr")
    with pytest.raises(UnetcliError, match=r"--mask \S+m2\.zarr: axes t, y, x; expected y, x"):
        evaluated(stored(tmp_path, VALUES[0], "p2.zarr"), other, mask=stored(tmp_path, kept, "m2.zarr", **names))


@pytest.mark.parametrize(
    "asked",
    [{"roi": ((0, 1), (2, 9), (3, 20))}, {"roi": ((2, 9), (3, 20))}, {"sections": (0, 1)}],
    ids=["z, y, x", "y, x", "sections"],
)
def test_a_region_of_a_stack_of_one_section_may_omit_its_axis(tmp_path: Path, asked: dict[str, Any]) -> None:
    truth = stored(tmp_path, TRUTH[:1], "t.zarr")
    place = (slice(2, 9), slice(3, 20)) if "roi" in asked else ()
    prediction = stored(tmp_path, VALUES[0])
    part = evaluated(prediction, truth, "em", "pixels", **asked)
    alone = evaluated(stored(tmp_path, VALUES[0][place], "c.zarr"), stored(tmp_path, TRUTH[0][place], "ct.zarr"))
    assert part.scores == alone.scores
    with pytest.raises(UnetcliError, match="--roi: z 1:2"):
        evaluated(prediction, truth, roi=((1, 2), (2, 9), (3, 20)))


@pytest.mark.parametrize(
    ("one", "other"),
    [((4.0, "nanometer"), (5.0, "nanometer")), ((4.0, "nanometer"), (4.0, "micrometer")), ((4.0, None), (5.0, None))],
    ids=["size", "unit", "without unit"],
)
def test_voxel_sizes_that_differ_are_refused_naming_both(
    tmp_path: Path, one: tuple[float, str], other: tuple[float, str]
) -> None:
    prediction = image(tmp_path / "p.zarr", VALUES, scale=one[0], unit=one[1])
    truth = image(tmp_path / "t.zarr", TRUTH, scale=other[0], unit=other[1])
    with pytest.raises(UnetcliError, match=rf"p\.zarr has voxels of {one[0]:g}.* but \S+t\.zarr of {other[0]:g}"):
        evaluated(prediction, truth)


def test_voxel_sizes_in_other_units_or_not_stated_match(tmp_path: Path) -> None:
    prediction = image(tmp_path / "p.zarr", VALUES, scale=4.0, unit="nanometer")
    for truth in (
        image(tmp_path / "t.zarr", TRUTH, scale=0.004, unit="micrometer"),
        image(tmp_path / "u.zarr", TRUTH),
        stored(tmp_path, TRUTH, "plain.zarr"),
    ):
        assert evaluated(prediction, truth, "pixels").scores["pixels"]["tp"] > 0


def test_a_level_is_scored_against_the_same_level(tmp_path: Path) -> None:
    prediction = image(tmp_path / "p.zarr", VALUES, VALUES[:, ::2, ::2])
    truth = image(tmp_path / "t.zarr", TRUTH, TRUTH[:, ::2, ::2])
    half = evaluated(prediction, truth, level=1)
    plain = evaluated(stored(tmp_path, VALUES[:, ::2, ::2], "h.zarr"), stored(tmp_path, TRUTH[:, ::2, ::2], "ht.zarr"))
    assert half.scores == plain.scores
    with pytest.raises(UnetcliError, match=r"t\.zarr: no level 2; .*level < 2"):
        evaluated(prediction, truth, level=2)
    with pytest.raises(UnetcliError, match=r"plain\.zarr: no level 1, .*single array"):
        evaluated(prediction, stored(tmp_path, TRUTH, "plain.zarr"), level=1)


@pytest.mark.parametrize("metrics", [("pixels", "em"), ("cells", "voi")], ids=",".join)
def test_a_region_scores_as_the_cropped_volumes_do(tmp_path: Path, metrics: tuple[str, ...]) -> None:
    box = Box((1, 2, 3), (5, 13, 20))
    truth = blobs(*SHAPE)
    part = evaluated(
        stored(tmp_path, VALUES),
        stored(tmp_path, truth, "t.zarr"),
        *metrics,
        roi=((1, 5), (2, None), (3, 20)),
        three_d=False,
    )
    alone = evaluated(
        stored(tmp_path, VALUES[box.slices], "c.zarr"),
        stored(tmp_path, truth[box.slices], "ct.zarr"),
        *metrics,
        three_d=False,
    )
    assert part.scores == alone.scores
    assert [section.place for section in part.sections] == [(1,), (2,), (3,), (4,)]
    with pytest.raises(UnetcliError, match="--roi: z 1:7"):
        evaluated(part.request.prediction, part.request.truth, roi=((1, 7), (2, None), (3, 20)))


@pytest.mark.parametrize("metrics", ["pixels", "cells", "voi"])
def test_ignored_voxels_do_not_count(tmp_path: Path, metrics: str) -> None:
    """The prediction there does not matter, nor whether a value of the truth or a mask excludes it."""
    truth = blobs(*SHAPE, seed=2)
    found = np.roll(truth, 1, axis=2)
    left_out = grey(*SHAPE, seed=9) < 40
    ignored = np.where(left_out, 999, truth).astype(np.uint16)
    other = np.where(left_out, 77, found).astype(np.uint16)
    kept = stored(tmp_path, found), stored(tmp_path, truth, "t.zarr")
    by_value = evaluated(kept[0], stored(tmp_path, ignored, "i.zarr"), metrics, ignore=999, kind="labels")
    by_mask = evaluated(
        stored(tmp_path, other, "o.zarr"),
        kept[1],
        metrics,
        mask=stored(tmp_path, ~left_out, "m.zarr"),
        kind="labels",
    )
    assert by_value.scores == by_mask.scores
    assert by_value.scores != evaluated(*kept, metrics, kind="labels").scores


def test_pixels_outside_a_mask_are_not_scored(tmp_path: Path) -> None:
    inside = np.zeros(SHAPE, np.uint8)
    inside[:, :, 5:15] = 1
    truth = stored(tmp_path, TRUTH, "t.zarr")
    changed = np.where(inside > 0, VALUES, 255 - VALUES)
    mask = stored(tmp_path, inside, "m.zarr")
    found = [
        evaluated(stored(tmp_path, values, f"{n}.zarr"), truth, "pixels", "em", mask=mask).scores
        for n, values in enumerate((VALUES, changed))
    ]
    assert found[0]["pixels"] == found[1]["pixels"]
    assert found[0]["em"]["pixel_error"] == found[1]["em"]["pixel_error"]
    assert found[0]["em"] != evaluated(stored(tmp_path, VALUES), truth, "em").scores["em"]


@pytest.mark.parametrize(
    "inside", ["labels/found", "labels/found/0", ""], ids=["labels", "array of labels", "probabilities"]
)
def test_labels_in_a_prediction_of_a_region_have_the_same_offset(tmp_path: Path, inside: str) -> None:
    part = Box((1, 2, 4), (5, 12, 20))
    truth = blobs(*SHAPE, seed=2)
    marker = {"complete": True, "kind": "probabilities", "extent": list(SHAPE)}
    marker["region"] = [list(side) for side in zip(part.start, part.stop, strict=True)]
    group = zarr.create_group(tmp_path / "p.zarr", attributes={"unetcli": marker})
    for name, values in (("0", VALUES[part.slices]), ("labels/found/0", truth[part.slices])):
        group.create_array(name, data=values, chunks=values.shape, dimension_names=list("zyx"))
    prediction = str(tmp_path / "p.zarr" / (inside or "0"))
    found = evaluated(prediction, stored(tmp_path, truth, "t.zarr"), *(["cells"] if inside else ["pixels"]))
    assert found.region == part
    assert found.scores["cells"]["seg"] == 1 if inside else found.scores["pixels"]["tp"] > 0


def test_a_coarser_mask_covers_whole_voxels(tmp_path: Path) -> None:
    coarse = grey(6, 7, 11, seed=5) > 100
    fine = coarse.repeat(2, axis=1).repeat(2, axis=2)[:, :13, :22]
    paths = stored(tmp_path, VALUES), stored(tmp_path, TRUTH, "t.zarr")
    found = [
        evaluated(*paths, "pixels", mask=stored(tmp_path, mask, f"m{n}.zarr")) for n, mask in enumerate((coarse, fine))
    ]
    assert found[0].scores == found[1].scores
    with pytest.raises(UnetcliError, match=r"--mask \S+bad\.zarr: shape 6 x 9 x 11"):
        evaluated(*paths, mask=stored(tmp_path, grey(6, 9, 11), "bad.zarr"))


def test_sections_are_named_by_their_coordinates(tmp_path: Path) -> None:
    found = evaluated(stored(tmp_path, VALUES), stored(tmp_path, TRUTH, "t.zarr"), "em", sections=(2, 4))
    assert [(s.number, s.place, s.name) for s in found.sections] == [(0, (2,), "z 2"), (1, (3,), "z 3")]
    assert without_intervals(found.scores)["em"].keys() >= found.sections[0].scores["em"].keys() - {"v_info_note"}
    images = found.images(found.sections[1])
    assert np.array_equal(images.reference, TRUTH[3])
    assert images.probability is not None
    assert np.array_equal(images.probability[0], VALUES[3].astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("lead", [(1,), (1, 1)], ids=["z", "t and z"])
def test_a_region_of_a_single_section_is_aligned_with_a_2d_truth(tmp_path: Path, lead: tuple[int, ...]) -> None:
    truth = write_zarr(tmp_path / "t.zarr", grey(40, 50) // 128)
    part = (grey(40, 50) // 128 * 255)[7:33, 5:41].reshape(*lead, 26, 36)
    place = write_prediction(tmp_path / "p.zarr", part, (*lead, 16, 16))
    group = zarr.open_group(place, mode="r+")
    region = [[0, 1] for _ in lead] + [[7, 33], [5, 41]]
    group.attrs["unetcli"] = {**group.attrs["unetcli"], "extent": [*lead, 40, 50], "region": region}  # type: ignore[dict-item]
    assert Pair.open(EvaluateRequest(prediction=str(place), truth=str(truth))).offset == (7, 5)
    assert evaluated(str(place), str(truth), "pixels").scores["pixels"]["iou"] == 1
