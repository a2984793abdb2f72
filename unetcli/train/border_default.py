"""Default of the border weight: that of the paper, or none where most background is a border."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from unetcli.train.dataset import Dataset

log = logging.getLogger(__name__)

RAISED = 1.0
"""Border weight from which a pixel counts as raised; the mean class weight of all pixels is 1."""
MOST = 0.5
"""Fraction of raised background pixels above which border weights are off. Measured: 0.01 to 0.03 for separate cells
(HeLa, PSC, DSB), 0.79 for membranes (ISBI 2012)."""
WINDOWS = 8
"""Number of windows in which the fraction is measured."""


def with_default_border_weight(dataset: Dataset) -> Dataset:
    """The dataset itself, or without border weights if they would raise most of its background.

    The border weight of the paper (eq. 2) raises the few background pixels between close objects. If nearly all
    background is between close objects, as membranes are, it only makes background count more than the class weights
    intend, and results get worse.
    """
    raised = raised_fraction(dataset)
    if raised <= MOST:
        return dataset
    log.info("border weights are off (--w0 0), as they would raise %.0f %% of the background", 100 * raised)
    return replace(dataset, pairs=tuple(replace(pair, rules=replace(pair.rules, w0=0.0)) for pair in dataset.pairs))


def raised_fraction(dataset: Dataset) -> float:
    """Fraction of the background of the training sections whose border weight is above ``RAISED``; 0 without any."""
    raised = background = 0
    for pair, box in dataset.windows(WINDOWS):
        classes, border_weight = pair.window(box)
        raised += int(np.count_nonzero(border_weight[classes == 0] > RAISED))
        background += int(np.count_nonzero(classes == 0))
    return raised / max(background, 1)
