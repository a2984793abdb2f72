"""Metadata of OME-Zarr images that others wrote or damaged: one line that names the field, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import Output, grey, plan_of, write_zarr

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Box
from unetcli.volumes.image import find_region_marker, group_file, marker
from unetcli.volumes.opening import open_volume
from unetcli.volumes.store import store_at
from unetcli.volumes.volume import Volume

SCALE = {"type": "scale", "scale": [1, 1, 1]}
AXES = [{"name": "z"}, {"name": "y"}, {"name": "x"}]
LEVEL = {"path": "0", "coordinateTransformations": [SCALE]}


def write_group(path: Path, attributes: Any) -> Path:
    path.mkdir()
    (path / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}))
    write_zarr(path / "0", grey(2, 13, 22), chunks=(1, 8, 8))
    return path


def image(**changes: Any) -> dict[str, Any]:
    return {"ome": {"multiscales": [{"axes": AXES, "datasets": [LEVEL], **changes}]}}


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"ome": "text"}, 'ome is "text"; expected an object'),
        ({"ome": [1]}, r"ome is \[1\]"),
        ({"ome": {"multiscales": 1}}, "multiscales is 1; expected a list"),
        ({"ome": {"multiscales": [None, 1]}}, r"multiscales\[0\] is null"),
        ({"multiscales": "x"}, 'multiscales is "x"'),
        (image(datasets=None), r"datasets is null"),
        (image(datasets=[]), r"datasets is \[\]"),
        (image(datasets=[1]), r"datasets\[0\] is 1"),
        (image(datasets=[{}]), r"no datasets\[0\]\.path"),
        (image(datasets=[{"path": 3}]), r"datasets\[0\]\.path is 3; expected text"),
        (image(axes=7), "axes is 7"),
        (image(axes=[{"name": "z"}, {"name": 1}, "x"]), r"axes\[1\]\.name is 1"),
        (image(axes=[{"name": "z", "unit": 4}, "y", "x"]), r"axes\[0\]\.unit is 4"),
        (image(coordinateTransformations={"a": 1}), "coordinateTransformations is"),
        (image(coordinateTransformations=[{"type": "scale"}]), r"no multiscales\[0\]\.scale"),
        (image(coordinateTransformations=[{"type": "scale", "scale": ["1", 1, 1]}]), r'scale\[0\] is "1"'),
        (image(coordinateTransformations=[{"type": "scale", "scale": [1, 1]}]), "scale has 2 numbers; expected 3"),
        (image(coordinateTransformations=[{"type": "scale", "scale": [1, 0, 1]}]), "no scale of 0"),
        (image(coordinateTransformations=[{"type": "translation", "translation": [1, float("inf"), 1]}]), "finite"),
        (image(coordinateTransformations=[{"type": 3}]), "type is 3"),
        (image(coordinateTransformations=[{"type": "sequence", "transformations": 3}]), "transformations is 3"),
        (image(coordinateSystems=[1]), r"coordinateSystems\[0\] is 1"),
        ({"ome": {"plate": {"wells": [{"path": 1}]}}}, r"plate\.wells\[0\]\.path is 1"),
        ({"ome": {"well": {"images": [{}]}}}, r"no well\.images\[0\]\.path"),
    ],
    ids=str,
)
def test_odd_metadata_are_named_in_one_line(tmp_path: Path, attributes: Any, message: str) -> None:
    path = write_group(tmp_path / "a.zarr", attributes)
    with pytest.raises(UnetcliError, match=rf"{path}.*: .*{message}") as caught:
        open_volume(path)
    assert len(str(caught.value).splitlines()) == 1


def test_version_0_6_places_its_levels_in_a_coordinate_system(tmp_path: Path) -> None:
    axes = [{"name": name, "unit": "micrometer"} for name in "zyx"]
    steps = [{"type": "scale", "scale": [0.5, 0.2, 0.1]}, {"type": "translation", "translation": [1, 2, 3]}]
    sequence = {"type": "sequence", "transformations": steps, "output": {"name": "intrinsic"}}
    stage = {"type": "scale", "scale": [9, 9, 9], "input": {"name": "intrinsic"}, "output": {"name": "stage"}}
    entry = {
        "coordinateSystems": [{"name": "stage", "axes": axes[::-1]}, {"name": "intrinsic", "axes": axes}],
        "datasets": [{"path": "0", "coordinateTransformations": [sequence]}],
        "coordinateTransformations": [stage],
    }
    volume = open_volume(write_group(tmp_path / "a.zarr", {"ome": {"version": "0.6", "multiscales": [entry]}}))
    assert (volume.axes, volume.assumed, volume.places) == ("zyx", "", True)
    assert volume.voxel_size == {"z": 0.5, "y": 0.2, "x": 0.1}
    assert volume.translation == {"z": 1, "y": 2, "x": 3}
    assert volume.units == dict.fromkeys("zyx", "micrometer")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff{}", "not UTF-8 at byte 0"),
        (b"[" * 100_000, "nested more than"),
        (b'{"attributes": {"a": ' + b"9" * 5000 + b"}}", "5000 digits"),
        (b'{"zarr_for', "not JSON"),
        (b"", "not JSON"),
        (b"[1]", "contains no attributes"),
    ],
    ids=["UTF-8", "nested", "digits", "torn", "empty", "list"],
)
def test_files_of_attributes_that_cannot_be_read_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = write_group(tmp_path / "a.zarr", image())
    (path / "zarr.json").write_bytes(content)
    with pytest.raises(UnetcliError, match=r"a\.zarr/zarr\.json: .*" + message):
        group_file(store_at(path))
    with pytest.raises(UnetcliError, match=r"a\.zarr: "):
        open_volume(path)


def test_the_metadata_of_a_level_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = write_group(tmp_path / "a.zarr", image())
    (path / "0/zarr.json").write_text("{")
    with pytest.raises(UnetcliError, match=r"a\.zarr: its level '0' cannot be opened"):
        open_volume(path)


def test_an_array_of_impossible_size_is_refused(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "a.zarr", grey(2, 13, 22))
    found = json.loads((path / "zarr.json").read_text())
    (path / "zarr.json").write_text(json.dumps({**found, "shape": [2, 13, 10**30]}))
    with pytest.raises(UnetcliError, match=r"2\.6e\+31 voxels; expected at most"):
        open_volume(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"region": [1]}, r"unetcli\.region\[0\] is 1"),
        ({"region": [[0, 3], [0, 29]]}, "unetcli.region is .* expected a part of an extent"),
        ({"region": [[0, 99], [0, 29], [0, 20]]}, "unetcli.region is .* expected a part of an extent"),
        ({"extent": "all"}, 'unetcli.extent is "all"'),
        ({"complete": "yes"}, 'unetcli.complete is "yes"; expected true or false'),
        ({"kind": 3}, "unetcli.kind is 3"),
        ({"outputs": None}, "unetcli.outputs is null"),
    ],
    ids=str,
)
def test_a_damaged_marker_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    plan = plan_of(Box((0, 0, 0), (3, 29, 20)))
    output = Output(tmp_path / "o.zarr", plan)
    output.create(Volume(path="in", array=grey(3, 29, 20), stored_axes="zyx"))
    found = json.loads((tmp_path / "o.zarr/zarr.json").read_text())
    assert marker(tmp_path / "o.zarr") == found["attributes"]["unetcli"]
    found["attributes"]["unetcli"].update(changes)
    (tmp_path / "o.zarr/zarr.json").write_text(json.dumps(found))
    for read in (marker, find_region_marker):
        with pytest.raises(UnetcliError, match=rf"o\.zarr/zarr\.json: invalid metadata: {message}"):
            read(tmp_path / "o.zarr")
