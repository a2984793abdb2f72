"""Files that are not read are named as what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unetcli.core.errors import UnetcliError
from unetcli.volumes.opening import open_volume
from unetcli.volumes.other_formats import require_zarr_name


@pytest.mark.parametrize(
    ("name", "content", "what", "way"),
    [
        ("a.czi", b"ZISRAWFILE", "a Zeiss CZI file", "bioformats2raw"),
        ("a.nd2", b"junk", "a Nikon ND2 file", "bioformats2raw"),
        ("a.lif", b"junk", "a Leica LIF file", "bioformats2raw"),
        ("a.nii.gz", b"\x1f\x8b", "a NIfTI file", "nibabel"),
        ("a.MRC", bytes(1024), "an MRC file", "mrcfile"),
        ("renamed.tif", b"\x93NUMPY\x01", "a NumPy array", r"numpy\.load"),
        ("a.bmp", b"BM", "a BMP picture", "PNG or TIFF"),
    ],
)
def test_a_file_of_another_format_is_named_with_a_way(
    tmp_path: Path, name: str, content: bytes, what: str, way: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnetcliError, match=rf"{name}: {what}, which unetcli does not read; .*{way}"):
        open_volume(tmp_path / name)


def test_n5_containers_and_their_datasets_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.n5/raw").mkdir(parents=True)
    (tmp_path / "a.n5/raw/attributes.json").write_text("{}")
    for name in ("a.n5", "a.n5/raw"):
        with pytest.raises(UnetcliError, match="an N5 container, which unetcli does not read; convert it to OME-Zarr"):
            open_volume(tmp_path / name)


def test_numpy_arrays_are_named_by_what_numpy_writes(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 4)))
    with pytest.raises(UnetcliError, match="a NumPy array"):
        open_volume(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("name", "ending", "works"),
    [
        ("out.tif", ".tif", "out.zarr"),
        ("there/out.ome.TIFF", ".tiff", "there/out.ome.zarr"),
        ("out.btf", ".btf", "out.zarr"),
        ("out.png", ".png", "out.zarr"),
        ("out.h5", ".h5", "out.zarr"),
        ("out.zarr.zip", ".zip", "out.zarr"),
        ("out.nii.gz", ".nii.gz", "out.zarr"),
        ("out.n5", ".n5", "out.zarr"),
        ("s3://bucket/out.tif", ".tif", "s3://bucket/out.zarr"),
    ],
)
def test_an_output_is_not_named_like_a_file_of_another_format(name: str, ending: str, works: str) -> None:
    with pytest.raises(UnetcliError) as caught:
        require_zarr_name(name)
    assert str(caught.value) == (
        f"--output {name}: the output is an OME-Zarr folder, not a {ending} file; a name that works: {works}"
    )


@pytest.mark.parametrize("name", ["out.zarr", "out.ome.zarr", "out", "out.pred", "a.tif.zarr", "slides.tif/out", "tif"])
def test_other_names_of_outputs_are_accepted(name: str) -> None:
    require_zarr_name(Path(name))
