"""Files that are not read are named as what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unetcli.core.errors import UnetcliError
from unetcli.volumes.opening import open_volume


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
