"""Files of named arrays: reading returns what was stored, or raises an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unetcli.core.errors import UnreadableBlock
from unetcli.engine import levels as tables
from unetcli.engine.levels import Tables

ARRAYS: dict[str, NDArray[Any]] = {
    "labels": np.random.default_rng(0).integers(0, 9, (3, 7, 11)).astype(np.int32),
    "none": np.zeros((0, 2), np.int64),
    "one": np.array([2.5]),
    "far": np.arange(300, dtype=np.int64)[::3],
}


@pytest.fixture(params=[64, 2**26], ids=["many frames", "one frame"])
def stored(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tables:
    monkeypatch.setattr(tables, "FRAME_BYTES", request.param)
    place = Tables(tmp_path / "blocks")
    place.save(1234, ARRAYS)
    return place


def test_arrays_come_back_as_they_were(stored: Tables) -> None:
    found = stored.load(1234)
    assert list(found) == list(ARRAYS)
    for name, values in ARRAYS.items():
        assert (found[name].dtype, found[name].shape) == (values.dtype, values.shape)
        assert np.array_equal(found[name], values)


def test_some_arrays_are_read_without_the_others(stored: Tables) -> None:
    found = stored.load(1234, ["one", "far", "unknown"])
    assert list(found) == ["one", "far"]
    assert np.array_equal(found["far"], ARRAYS["far"])


def test_no_folder_gets_more_than_a_thousand_files(stored: Tables) -> None:
    assert stored.path(999).parent != stored.path(1000).parent
    assert stored.path(1000).parent == stored.path(1999).parent


@pytest.mark.parametrize("how", ["half", "bit", "empty", "gone"])
def test_damage_is_reported_with_its_file(stored: Tables, how: str) -> None:
    path = stored.path(1234)
    data = bytearray(path.read_bytes())
    data[-20] ^= 8
    path.write_bytes({"half": data[: len(data) // 2], "bit": data}.get(how, b""))
    if how == "gone":
        path.unlink()
    with pytest.raises(UnreadableBlock, match=r"0001/0001234\.tables: cannot be read .* recomputes it"):
        stored.load(1234)


def test_saving_again_replaces_and_removing_leaves_nothing(stored: Tables, tmp_path: Path) -> None:
    stored.save(1234, {"one": np.ones(3)})
    assert list(stored.load(1234)) == ["one"]
    stored.remove()
    stored.remove()
    assert list(tmp_path.iterdir()) == []
