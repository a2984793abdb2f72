"""Lazy prediction as a Dask array gives the bytes of ``unetcli predict``."""

from __future__ import annotations

import pickle
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from helpers import grey, write_model, write_zarr
from numpy.typing import NDArray

from unetcli import lazy
from unetcli.core.errors import UnetcliError
from unetcli.predict.request import PredictRequest
from unetcli.predict.run import predict_volume


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNETCLI_MODEL", raising=False)


def written(**options: object) -> NDArray[np.generic]:
    predict_volume(PredictRequest(volume="big.zarr", device="cpu", **options))  # type: ignore[arg-type]
    return np.asarray(zarr.open_array("big.pred.zarr/0", mode="r")[...])


@pytest.mark.parametrize("chunk_bytes", [1, 10_000, 2**26], ids=["a block a chunk", "some", "all in one"])
def test_a_lazy_prediction_equals_the_output_of_predict(
    model: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    write_zarr(Path("big.zarr"), grey(5, 70, 90), chunks=(2, 32, 32))
    monkeypatch.setattr(lazy, "CHUNK_BYTES", chunk_bytes)
    result = lazy.predict("big.zarr", tile=68, device="cpu")
    assert result.dtype == np.uint8
    assert np.array_equal(result.compute(), written(tile=68))


def test_a_part_computes_only_its_blocks_and_can_be_pickled(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zarr(Path("big.zarr"), grey(6, 70, 90), chunks=(1, 32, 32))
    monkeypatch.setattr(lazy, "CHUNK_BYTES", 1)
    result = lazy.predict("big.zarr", device="cpu")
    assert result.numblocks == (6, 1, 1)
    part = pickle.loads(pickle.dumps(result))[4, 10:20]
    computed: list[int] = []
    original = lazy.BlockGroup.__call__

    def counting(self: lazy.BlockGroup, numbers: NDArray[np.intp]) -> NDArray[np.generic]:
        computed.extend(numbers.flat)
        return original(self, numbers)

    monkeypatch.setattr(lazy.BlockGroup, "__call__", counting)
    assert np.array_equal(part.compute(), written()[4, 10:20])
    assert computed == [4]


@pytest.mark.parametrize("kind", ["numpy", "zarr", "dask"])
def test_every_kind_of_array_is_accepted(model: Path, kind: str) -> None:
    values = grey(2, 41, 53)
    write_zarr(Path("big.zarr"), values)
    x = {"numpy": values, "zarr": zarr.open_array("big.zarr"), "dask": da.from_array(values, chunks=(1, 20, 30))}[kind]
    with dask.config.set(scheduler="threads"):
        assert np.array_equal(lazy.predict(x, "model", device="cpu").compute(), written())


def test_channels_and_classes_have_their_axes(tmp_path: Path) -> None:
    write_model(tmp_path / "model", classes=3, in_channels=2)
    values = grey(2, 2, 30, 33)
    write_zarr(Path("big.zarr"), values, dimension_names=["t", "c", "y", "x"])
    result = lazy.predict(values, axes="tcyx", device="cpu")
    assert result.shape == (2, 3, 30, 33)
    assert np.array_equal(result.compute(), written())


def test_regions_and_refusals_are_as_in_predict(model: Path) -> None:
    write_zarr(Path("big.zarr"), grey(2, 41, 53))
    part = lazy.predict("big.zarr", roi=((1, 2), (3, 30), (5, 50)), device="cpu")
    assert part.shape == (1, 27, 45)
    assert np.array_equal(part.compute(), written()[1:, 3:30, 5:50])
    with pytest.raises(UnetcliError, match="nearest usable"):
        lazy.predict("big.zarr", tile=69)
    with pytest.raises(UnetcliError, match="expected a path"):
        lazy.predict([1, 2])
