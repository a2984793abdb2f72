"""Probabilities of other programs, labels that are a store of their own, and labels that are put into an image."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from helpers import write_placed, write_prediction, write_zarr
from label.maps import blobs
from label.store import SHAPE, STORE, label, stored
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.executors.options import VerifyRequest
from unetcli.label.objects import label_section
from unetcli.registry import steps_of, verify_output
from unetcli.volumes.image import marker
from unetcli.volumes.opening import open_volume

pytestmark = [pytest.mark.usefixtures("here"), pytest.mark.filterwarnings("ignore:Consolidated metadata is currently")]
MAP = blobs((2, 40, 50), 2, seed=7)
"""Probabilities as uint8."""
OWN = Path("cells.zarr")


def expected(probability: NDArray[Any], threshold: float = 0.5) -> NDArray[Any]:
    """Components of each section, numbered through."""
    found, last = [], 0
    for section in probability:
        labels = label_section(section, threshold)
        found.append(np.where(labels > 0, labels + last, 0))
        last += int(labels.max())
    return np.stack(found)


def write_image(path: str, shape: tuple[int, ...], zarr_format: int, *, levels: int = 1, axes: str = "tczyx") -> Path:
    """Write an image as other programs do, with consolidated metadata; voxels are 2 x 0.5 x 0.5 micrometers."""
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)  # type: ignore[arg-type]
    datasets: list[dict[str, Any]] = []
    for level in range(levels):
        step = (..., slice(None, None, 2**level), slice(None, None, 2**level))
        group.create_array(str(level), data=np.zeros(shape, np.uint8)[step], chunks=(1,) * (len(shape) - 2) + (16, 16))
        scale = [{"z": 2.0, "y": 0.5 * 2**level, "x": 0.5 * 2**level}.get(axis, 1.0) for axis in axes]
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    entry = {"axes": [{"name": axis, "unit": "micrometer"} for axis in axes], "datasets": datasets}
    new = {"ome": {"version": "0.5", "multiscales": [entry]}}
    group.attrs.update(new if zarr_format == 3 else {"multiscales": [{"version": "0.4", **entry}]})
    zarr.consolidate_metadata(path)
    return Path(path)


def test_probabilities_of_others_are_labelled_into_a_store_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    tifffile.imwrite("p.tif", MAP.astype(np.uint16) * 257, metadata={"axes": "ZYX"})
    with caplog.at_level(logging.INFO):
        summary = label(prediction="p.tif", kind="probability", output=OWN, threshold=0.4)
    assert "p.tif: probabilities are value / 65535, as its values are uint16" in caplog.messages
    assert (summary.complete, summary.output, summary.table) == (True, "cells.zarr", "cells.zarr.instances.csv")
    assert np.array_equal(stored(place=OWN), expected(MAP / np.float32(255), 0.4))
    own = zarr.open_group(OWN, mode="r").attrs["ome"]
    assert own["image-label"] == {}  # type: ignore[index,call-overload]
    assert float(Path(summary.table).read_text().splitlines()[1].rpartition(",")[2]) > 0.4
    assert label(prediction="p.tif", kind="probability", output=OWN, threshold=0.4).made == 0
    assert [step.output for step in steps_of("cells.zarr")] == [OWN]
    shutil.move(OWN, "moved.zarr")
    shutil.move("cells.zarr.run", "moved.zarr.run")
    shutil.move(summary.table, "moved.zarr.instances.csv")
    next(path for path in Path("moved.zarr/0/c").rglob("*") if path.is_file()).write_bytes(b"damaged")
    verify_output(VerifyRequest(output=Path("moved.zarr"), repair=True))
    assert np.array_equal(stored(place=Path("moved.zarr")), expected(MAP / np.float32(255), 0.4))


@pytest.mark.by_default("float32")
@pytest.mark.parametrize("dtype", ["float32", "bool", "uint8"])
def test_values_of_other_types_need_no_option(dtype: str, caplog: pytest.LogCaptureFixture) -> None:
    values = {"float32": MAP / np.float32(255), "bool": MAP > 127, "uint8": MAP}[dtype]
    write_zarr(Path("p.zarr"), values)
    with caplog.at_level(logging.INFO):
        label(prediction="p.zarr", output=OWN)
    notes = {
        "float32": "p.zarr: its values are taken as probabilities",
        "uint8": "p.zarr: probabilities are value / 255",
    }
    assert any(text.startswith(notes.get(dtype, "p.zarr -> cells.zarr")) for text in caplog.messages)
    assert np.array_equal(stored(place=OWN), expected(values))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "p.zarr: data type uint16; .*--kind probability reads value / 65535"),
        ({"prediction": "f.zarr"}, r"f.zarr: values from 0 to 255; expected probabilities from 0 to 1"),
        ({"kind": "labels"}, "--kind labels: expected probability"),
        ({"output": Path("out.tif")}, "--output out.tif: .*a name that works: out.zarr"),
        ({"output": Path("out")}, "--output out: expected a name that ends in .zarr"),
        ({"name": "cells"}, "--output cells.zarr: .* omit --name"),
        ({"into": "f.zarr"}, "--output cells.zarr: .* omit --into"),
        ({"output": Path("p.zarr/o.zarr")}, "inside or around the input p.zarr"),
        ({"output": Path("no/o.zarr")}, "the folder .*/no does not exist"),
        ({"output": None}, "p.zarr: not an OME-Zarr image, .*; --output LABELS.zarr or --into IMAGE.zarr name another"),
        ({"output": None, "into": "f.zarr"}, "f.zarr: not an OME-Zarr image, .*; expected one"),
        ({"output": Path("f.zarr"), "kind": "probability"}, "f.zarr: exists and was not written .* another --output"),
    ],
)
def test_what_has_no_place_or_no_scale_is_refused(options: dict[str, Any], said: str) -> None:
    write_zarr(Path("p.zarr"), MAP.astype(np.uint16))
    write_zarr(Path("f.zarr"), np.where(MAP > 250, 255, 0).astype(np.float32))
    with pytest.raises(UnetcliError, match=said):
        label(**{"prediction": "p.zarr", "output": OWN, **options})
    assert sorted(path.name for path in Path().iterdir()) == ["f.zarr", "p.zarr"]


@pytest.mark.by_default("[2]")
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_labels_are_put_where_viewers_of_the_image_look(zarr_format: int) -> None:
    image = write_image("container.zarr/0", (1, 2, *MAP.shape), zarr_format, levels=2)
    zarr.open_group("container.zarr", mode="a", zarr_format=zarr_format)  # type: ignore[arg-type]
    zarr.consolidate_metadata("container.zarr")
    write_prediction(STORE, MAP, (1, 16, 16), levels=2)
    write_zarr(Path("plain.zarr"), MAP)
    label(prediction="plain.zarr", into=str(image), name="cells")
    found = open_volume("container.zarr/0/labels/cells")
    assert np.array_equal(found.array[...], expected(MAP))
    assert (found.voxel_size, found.units["x"]) == ({"z": 2.0, "y": 0.5, "x": 0.5}, "micrometer")
    assert (image / "labels/cells" / ("zarr.json" if zarr_format == 3 else ".zattrs")).exists()
    for place, inside in ((image, "labels"), (Path("container.zarr"), "0/labels")):
        opened = zarr.open_consolidated(place)
        assert f"{inside}/cells/0" in dict(opened.members(max_depth=None))
        attributes = opened[inside].attrs.asdict()
        assert attributes.get("ome", attributes)["labels"] == ["cells"]
    assert steps_of(str(image))[0].output == image / "labels/cells"
    assert [each.complete for each in verify_output(VerifyRequest(output=image))] == [True]
    label(prediction="plain.zarr", into=str(image), name="more")
    assert f"{zarr.open_consolidated(image)['labels/more'].path}" == "labels/more"


def test_labels_of_a_region_or_level_lie_in_their_place_of_the_image() -> None:
    image = write_image("image.zarr", (2, 90, 120), 3, levels=2, axes="zyx")
    write_prediction(STORE, MAP, (1, 16, 16))
    group = zarr.open_group(STORE, mode="r+")
    region = {"extent": [2, 45, 60], "region": [[0, 2], [5, 45], [10, 60]]}
    group.attrs["unetcli"] = {**group.attrs["unetcli"], **region}  # type: ignore[dict-item]
    entry = dict(group.attrs["ome"])  # type: ignore[arg-type,call-overload]
    entry["multiscales"][0]["datasets"][0]["coordinateTransformations"] = [{"type": "scale", "scale": [1, 1, 1]}]
    group.attrs["ome"] = entry
    label(into=str(image))
    found = open_volume("image.zarr/labels/instances")
    assert (found.voxel_size["x"], found.translation) == (1.0, {"z": 0.0, "y": 5.0, "x": 10.0})
    own = marker(image / "labels/instances")
    assert own is not None
    assert own["region"] == region["region"]


def test_an_image_of_something_else_is_refused(values: NDArray[np.uint8]) -> None:
    write_image("other.zarr", (3, 75, 91), 3, axes="zyx")
    with pytest.raises(UnetcliError, match=r"--into other\.zarr: z 3, y 75, x 91, and no level has the shape of big"):
        label(into="other.zarr")
    write_placed(Path("large.zarr"), np.zeros(SHAPE, np.uint8), None)
    write_placed(Path("small.zarr"), values, None, unit="micrometer")
    text = Path("small.zarr/zarr.json").read_text().replace("0.004", "0.002")
    Path("small.zarr/zarr.json").write_text(text)
    with pytest.raises(UnetcliError, match=r"large\.zarr has voxels of .*: not the same image"):
        label(prediction="small.zarr", into="large.zarr")
    label()
    with pytest.raises(UnetcliError, match=r"instances: holds labels; expected an image"):
        label(into=f"{STORE}/labels/instances")
    assert json.loads((STORE / "labels/zarr.json").read_text())["attributes"]["ome"]["labels"] == ["instances"]
