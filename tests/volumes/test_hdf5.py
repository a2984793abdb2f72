"""HDF5 files, written by h5py."""

from __future__ import annotations

import builtins
import json
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import grey

from unetcli.core.errors import UnetcliError
from unetcli.volumes.opening import open_volume

h5py = pytest.importorskip("h5py")
VALUES = grey(5, 30, 37)


def write(path: Path, **datasets: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file.create_dataset(name.replace("__", "/"), data=values, chunks=(1, 16, 16) if values.ndim == 3 else None)
    return path


def test_the_only_image_of_a_file_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", exported__data=VALUES, table=np.arange(4), names=np.zeros((3, 3)))
    volume = open_volume(path)
    assert (volume.axes, volume.assumed, volume.chunks) == ("zyx", "zyx", (1, 16, 16))
    assert np.array_equal(volume.read(volume.whole())[0], VALUES)


def test_a_dataset_is_chosen_by_its_path(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", raw=VALUES, labels=VALUES[:2])
    with pytest.raises(UnetcliError, match=r"2 images; expected one of \S+:/labels \(2 x 30 x 37\), \S+:/raw "):
        open_volume(path)
    assert open_volume(f"{path}:/labels").extent == (2, 30, 37)
    with pytest.raises(UnetcliError, match=r"a\.h5:/other: no such dataset; expected one of"):
        open_volume(f"{path}:/other")


def test_axistags_of_ilastik_name_the_axes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", raw=VALUES)
    with h5py.File(path, "a") as file:
        file["raw"].attrs["axistags"] = json.dumps({"axes": [{"key": key} for key in "tyx"]})
    volume = open_volume(path)
    assert (volume.axes, volume.assumed) == ("tyx", "")
    assert open_volume(f"{path}:axes=cyx").channels == 5


def test_labels_of_dimensions_and_the_voxel_size_of_fiji_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", raw=VALUES)
    with h5py.File(path, "a") as file:
        for dimension, label in zip(file["raw"].dims, ("depth", "height", "width"), strict=True):
            dimension.label = label
        file["raw"].attrs["element_size_um"] = [0.5, 0.1, 0.2]
    volume = open_volume(path)
    assert (volume.axes, volume.assumed) == ("zyx", "")
    assert volume.voxel_size == {"z": 0.5, "y": 0.1, "x": 0.2}
    assert volume.units == dict.fromkeys("zyx", "micrometer")


def test_a_dataset_without_chunks_is_read_section_by_section(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = VALUES
    assert open_volume(tmp_path / "a.h5").chunks == (1, 30, 37)


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    content = write(tmp_path / "a.h5", raw=VALUES).read_bytes()
    for length in (9, 600, len(content) // 2, len(content) - 1):
        (tmp_path / "cut.h5").write_bytes(content[:length])
        with pytest.raises(UnetcliError, match=r"cut\.h5: not a whole HDF5 file"):
            open_volume(tmp_path / "cut.h5")


def test_voxels_in_files_that_are_not_there_are_refused_and_not_zeros(tmp_path: Path) -> None:
    source = write(tmp_path / "part.h5", raw=VALUES)
    layout = h5py.VirtualLayout(VALUES.shape, "u1")
    layout[:] = h5py.VirtualSource("part.h5", "raw", VALUES.shape)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_virtual_dataset("raw", layout)
    volume = open_volume(tmp_path / "a.h5")
    assert np.array_equal(volume.read(volume.whole())[0], VALUES)
    source.unlink()
    with pytest.raises(UnetcliError, match=r"a\.h5:/raw: refers to part\.h5, not found in"):
        open_volume(tmp_path / "a.h5")


def read(array: Any) -> bool:
    return np.array_equal(array[0:5, 0:30, 0:37], VALUES)


def test_other_processes_open_the_file_by_its_path(tmp_path: Path) -> None:
    array = open_volume(write(tmp_path / "a.h5", raw=VALUES)).array
    assert read(array)
    assert read(pickle.loads(pickle.dumps(array)))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(read, (array,))


def test_without_h5py_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, load = write(tmp_path / "a.h5", raw=VALUES), builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name == "h5py":
            raise ImportError(name)
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UnetcliError, match=r'pip install "unetcli\[h5py\]"'):
        open_volume(path)
