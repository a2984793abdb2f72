"""Predictions and truths for tests of evaluate, and helpers to evaluate them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from helpers import grey, write_zarr
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.evaluate.evaluate import evaluate_volume
from unetcli.evaluate.request import EvaluateRequest
from unetcli.evaluate.result import Evaluation, Scores

SHAPE = (6, 13, 22)
TRUTH = (grey(*SHAPE, seed=1) > 120).astype(np.uint8) * 255
VALUES = np.where(TRUTH > 0, grey(*SHAPE, seed=2) // 2 + 100, grey(*SHAPE, seed=3) // 2)


def stored(folder: Path, values: NDArray[Any], name: str = "p.zarr", **options: Any) -> str:
    return str(write_zarr(folder / name, values, **options))


def evaluated(prediction: str, truth: str, *metrics: str, **options: Any) -> Evaluation:
    return evaluate_volume(EvaluateRequest(prediction=prediction, truth=truth, metrics=metrics or None, **options))


def without_intervals(scores: Mapping[str, Mapping[str, Any]]) -> Scores:
    return {
        metric: {name: value for name, value in found.items() if "interval" not in name}
        for metric, found in scores.items()
    }


def blobs(*shape: int, seed: int = 0, dtype: str = "uint16") -> NDArray[Any]:
    """Labels of connected objects that extend along all axes and are a few voxels thick."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.2, mode="wrap")
    return ndimage.label(noise > 0.12)[0].astype(dtype)


def each_section(labels: NDArray[Any]) -> NDArray[Any]:
    """Label the connected components of each section separately, starting from 1."""
    return np.stack([ndimage.label(section)[0] for section in labels > 0]).astype(labels.dtype)
