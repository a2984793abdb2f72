"""Conversion of values to colours."""

from __future__ import annotations

import numpy as np
from helpers import grey

from unetcli.viz.png import label_colours, means, outlines


def test_downsampled_grey_values_are_means_to_the_far_edge() -> None:
    values = grey(2, 7, 11).astype(np.float64)
    thin = means(values, 3)
    assert thin.shape == (2, 3, 4)
    assert np.allclose(thin[:, 1, 2], values[:, 3:6, 6:9].mean(axis=(1, 2)))
    assert np.allclose(thin[:, 2, 3], values[:, 6:, 9:].mean(axis=(1, 2)))


def test_many_neighbouring_numbers_have_colours_that_differ() -> None:
    colours = label_colours(np.arange(1, 65537, dtype=np.uint32))
    assert abs(np.diff(colours, axis=0)).max(axis=1).min() > 0.2
    assert not label_colours(np.zeros((2, 3), np.int64)).any()


def test_outlines_lie_within_objects_and_between_those_that_touch() -> None:
    labels = np.zeros((9, 14), np.uint16)
    labels[2:8, 1:6], labels[2:8, 6:13] = 5, 2
    edge = outlines(labels)
    assert not edge[labels == 0].any()
    assert not edge[3:7, 2:5].any()
    assert not edge[3:7, 7:12].any()
    assert edge.sum() == 6 * 12 - 4 * 3 - 4 * 5
