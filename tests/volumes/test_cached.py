from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from helpers import grey
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from unetcli.core.geometry import Box
from unetcli.volumes.cached import cached
from unetcli.volumes.volume import Volume

SHAPE, CHUNKS = (5, 13, 22), (2, 5, 6)
VALUES = grey(*SHAPE)


class Stored:
    """An array that notes what is read of it."""

    def __init__(self, values: NDArray[Any], chunks: tuple[int, ...]) -> None:
        self.values, self.chunks = values, chunks
        self.shape, self.dtype, self.size = values.shape, values.dtype, values.size
        self.read: list[tuple[int, ...]] = []

    def __getitem__(self, picks: tuple[slice, ...]) -> NDArray[Any]:
        self.read.append(tuple(pick.start // c for pick, c in zip(picks, self.chunks, strict=True)))
        return self.values[picks]


def laid(budget: int = 2**20, chunks: tuple[int, ...] = CHUNKS) -> tuple[Volume, Stored]:
    stored = Stored(VALUES, chunks)
    return cached(Volume(path="v.zarr", array=stored, stored_axes="zyx"), budget), stored


def slices(n: int) -> st.SearchStrategy[slice]:
    ends = st.none() | st.integers(-2 * n, 2 * n)
    return st.builds(slice, ends, ends)


@given(picks=st.tuples(*map(slices, SHAPE)), chunks=st.tuples(*(st.integers(1, n + 3) for n in SHAPE)))
def test_slices_are_those_of_the_array_itself(picks: tuple[slice, ...], chunks: tuple[int, ...]) -> None:
    volume, _ = laid(chunks=chunks)
    found = volume.array[picks]
    assert found.dtype == VALUES.dtype
    assert np.array_equal(found, VALUES[picks])


def test_a_step_is_refused_rather_than_left_out() -> None:
    volume, _ = laid()
    with pytest.raises(NotImplementedError):
        volume.array[::2, :, :]


def test_windows_that_reach_outside_are_mirrored_as_without() -> None:
    volume, _ = laid()
    plain = Volume(path="v.zarr", array=VALUES, stored_axes="zyx")
    for box in (Box((0, -30, -5), (1, 30, 40)), Box((4, 12, 21), (5, 13, 22)), Box((1, 0, 0), (4, 13, 22))):
        assert np.array_equal(volume.read(box), plain.read(box))
    assert (volume.chunks, volume.extent, volume.dtype) == (CHUNKS, SHAPE, VALUES.dtype)


def test_each_chunk_is_decoded_once_while_there_is_room() -> None:
    volume, stored = laid()
    for _ in range(3):
        volume.read(volume.whole())
        volume.read(Box((1, 3, 4), (4, 11, 20)))
    assert len(stored.read) == len(set(stored.read)) == 3 * 3 * 4


def test_what_is_kept_stays_within_the_budget_and_those_used_last_stay() -> None:
    """Chunks of a section each, room for three of them."""
    section = VALUES[0].size
    volume, stored = laid(budget=3 * section, chunks=(1, 13, 22))

    def read(*numbers: int) -> list[int]:
        before = len(stored.read)
        for z in numbers:
            assert np.array_equal(volume.read(Box((z, 0, 0), (z + 1, 13, 22)))[0, 0], VALUES[z])
            assert volume.array._bytes == sum(chunk.nbytes for chunk in volume.array._kept.values()) <= 3 * section
        return [place[0] for place in stored.read[before:]]

    assert read(0, 1, 2, 0) == [0, 1, 2]
    assert read(3, 0, 2, 3) == [3]  # 1 went: it was not used for the longest time
    assert read(1) == [1]


def test_a_chunk_larger_than_the_budget_is_kept_alone() -> None:
    volume, stored = laid(budget=1)
    one = Box((0, 0, 0), (1, 2, 2))
    volume.read(one)
    volume.read(one)
    assert len(stored.read) == 1
    assert len(volume.array._kept) == 1


def test_threads_share_it() -> None:
    volume, stored = laid()
    wrong: list[int] = []

    def look(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(200):
            start = [int(random.integers(n)) for n in SHAPE]
            stop = [int(random.integers(a + 1, n + 1)) for a, n in zip(start, SHAPE, strict=True)]
            box = Box(tuple(start), tuple(stop))
            if not np.array_equal(volume.read(box)[0], VALUES[box.slices]):
                wrong.append(seed)

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(stored.read) == len(set(stored.read))
