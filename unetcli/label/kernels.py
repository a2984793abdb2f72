"""Compiled inner loops of the watershed: distance transform, descent to the minima, joining of basins.

Importing this module imports numba, which is slow: import it inside functions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unetcli.core.process import compiled

BACKGROUND = np.uint32(2**32 - 1)
"""Rank of background voxels."""


@compiled("void(int32[:, :, ::1], int64)")
def distance_pass(square: NDArray[np.int32], side: int) -> None:
    """Extend squared distances by one axis, in place: a pass of a separable distance transform.

    Each value becomes the minimum, over its line along the middle axis, of the values there plus the squared distance
    to them. ``side`` is the squared voxel size along that axis. Called for one axis after another, starting from 0 in
    the background and the largest distance of interest in the foreground, it gives the squared Euclidean distance to
    the background (Saito and Toriwaki 1994).
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
def lowest_neighbours(rank: NDArray[np.uint32], steps: NDArray[np.int64], below: NDArray[np.int64]) -> None:
    """Write to ``below`` each voxel's lowest neighbour, or the voxel itself if none is lower; -1 for background.

    All arrays are flat. ``rank`` is padded with background as far as ``steps`` reach; neighbours differ in rank.
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
def follow_descents(below: NDArray[np.int64]) -> None:
    """Replace each voxel's first step down by the end of its descent, in place."""
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
def find_root(parent: NDArray[np.int64], node: int) -> int:
    """Root of a node's set in a union-find forest, with path halving."""
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
    """Join basins across their passes, lowest pass first, unless both are at least ``depth`` deep there.

    Parameters
    ----------
    ends : (n, 2)
        The two basins that meet at each pass, in ascending order of ``height``.
    height : (n,)
        Height of each pass.
    lowest : (basins,)
        Height of each basin's minimum; among equal ones, the basin with the smaller index counts as lower.
    is_open : (basins,), changed
        Whether a basin continues in another block, where it may have a lower minimum or a lower pass.
    depth
        Smallest depth of a separate object, in units of height.
    region : (basins,), changed
        Union-find forest of the basins; each is its own root at first.
    deferred : (n,), changed
        Set at passes whose outcome depends on other blocks.
    """
    tree = np.arange(len(lowest))
    for number in range(len(height)):
        a, b = find_root(tree, ends[number, 0]), find_root(tree, ends[number, 1])
        if a == b:
            continue  # connected by lower passes already: joined there, or both deep enough
        tree[a] = b
        deep, shallow = find_root(region, ends[number, 0]), find_root(region, ends[number, 1])
        if lowest[deep] > lowest[shallow] or (lowest[deep] == lowest[shallow] and deep > shallow):
            deep, shallow = shallow, deep
        if height[number] - lowest[shallow] >= depth:
            continue
        if is_open[shallow]:
            deferred[number] = is_open[deep] = True
        else:
            region[shallow] = deep


@compiled("void(int64[::1])")
def replace_by_roots(parent: NDArray[np.int64]) -> None:
    """Replace every node's parent by the root of its set, in place."""
    for node in range(len(parent)):
        parent[node] = find_root(parent, node)


def regions_of(
    ends: NDArray[np.int64],
    height: NDArray[np.int64],
    lowest: NDArray[np.int64],
    is_open: NDArray[np.bool_],
    depth: float,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Region of each basin, and whether each pass is deferred; parameters as in :func:`join_basins`."""
    region, deferred = np.arange(len(lowest)), np.zeros(len(height), np.bool_)
    is_open = is_open.copy()
    join_basins(np.ascontiguousarray(ends), height, lowest, is_open, depth, region, deferred)
    replace_by_roots(region)
    return region, deferred
