"""Compiled inner loops of the watershed: distances, ways down to the minima, basins joined pass by pass.

Importing this module imports numba: do it inside functions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unetcli.core.process import compiled

BACKGROUND = np.uint32(2**32 - 1)
"""Rank of what is no foreground."""


@compiled("void(int32[:, :, ::1], int64)")
def spread(square: NDArray[np.int32], side: int) -> None:
    """Squared distances in one more axis: of each line along the middle one, the least of all plus what lies between.

    ``side`` is the squared step along that axis. One axis after the other, from 0 in the background and as much as is
    of interest in the foreground, gives Euclidean distances (Saito and Toriwaki 1994).
    """
    line = np.empty(square.shape[1], np.int32)
    for a in range(square.shape[0]):
        for b in range(square.shape[2]):
            line[:] = square[a, :, b]
            for i in range(len(line)):
                least, k = np.int64(line[i]), 1
                while k * k * side < least:
                    if i >= k:
                        least = min(least, line[i - k] + k * k * side)
                    if i + k < len(line):
                        least = min(least, line[i + k] + k * k * side)
                    k += 1
                square[a, i, b] = least


@compiled("void(uint32[::1], int64[::1], int64[::1])")
def descend(rank: NDArray[np.uint32], steps: NDArray[np.int64], below: NDArray[np.int64]) -> None:
    """Each voxel's lowest neighbour, or itself where none is lower; -1 for background. All flat.

    ``rank`` is padded with background as far as ``steps`` reach, and no two neighbours have the same.
    """
    for here in range(len(rank)):
        lowest, below[here] = rank[here], here
        if lowest == BACKGROUND:
            below[here] = -1
            continue
        for step in steps:
            if rank[here + step] < lowest:
                lowest, below[here] = rank[here + step], here + step


@compiled("void(int64[::1])")
def follow(below: NDArray[np.int64]) -> None:
    """Where each voxel's way down ends, in place of its first step."""
    for start in range(len(below)):
        end = below[start]
        if end < 0:
            continue
        while below[end] != end:
            end = below[end]
        here = start
        while below[here] != end:
            below[here], here = end, below[here]


@compiled("int64(int64[::1], int64)")
def find(parent: NDArray[np.int64], node: int) -> int:
    """The representative of a node's set; ways are halved on the way."""
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@compiled("void(int64[:, ::1], int64[::1], int64[::1], boolean[::1], float64, int64[::1], boolean[::1])")
def join_basins(
    ends: NDArray[np.int64],
    height: NDArray[np.int64],
    lowest: NDArray[np.int64],
    is_open: NDArray[np.bool_],
    depth: float,
    region: NDArray[np.int64],
    deferred: NDArray[np.bool_],
) -> None:
    """Join basins over their passes, ``ends`` (n, 2), lowest pass first, unless both are ``depth`` deep there.

    ``lowest`` is the height of each basin's minimum; of equal ones the basin that comes first counts as lower. A basin
    that is open continues elsewhere, where it may be lower, or have a lower pass: a pass at which that matters is
    ``deferred``. ``region`` (a union-find, each basin its own at first) and ``is_open`` are changed.
    """
    tree = np.arange(len(lowest))
    for number in range(len(height)):
        a, b = find(tree, ends[number, 0]), find(tree, ends[number, 1])
        if a == b:
            continue  # whoever meets here has met at lower passes: they are one, or both deep
        tree[a] = b
        deep, shallow = find(region, ends[number, 0]), find(region, ends[number, 1])
        if lowest[deep] > lowest[shallow] or (lowest[deep] == lowest[shallow] and deep > shallow):
            deep, shallow = shallow, deep
        if height[number] - lowest[shallow] >= depth:
            continue
        if is_open[shallow]:
            deferred[number] = is_open[deep] = True
        else:
            region[shallow] = deep


@compiled("void(int64[::1])")
def representatives(parent: NDArray[np.int64]) -> None:
    """The representative of every node, in place of its parent."""
    for node in range(len(parent)):
        parent[node] = find(parent, node)


def joined(
    ends: NDArray[np.int64],
    height: NDArray[np.int64],
    lowest: NDArray[np.int64],
    is_open: NDArray[np.bool_],
    depth: float,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Region of each basin, and which passes were deferred; see :func:`join_basins`."""
    region, deferred = np.arange(len(lowest)), np.zeros(len(height), np.bool_)
    is_open = is_open.copy()
    join_basins(np.ascontiguousarray(ends), height, lowest, is_open, depth, region, deferred)
    representatives(region)
    return region, deferred
