"""Evaluations of small synthetic volumes: cells, membranes, and predictions that are mostly right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.evaluate.evaluate import evaluate_volume
from unetcli.evaluate.request import EvaluateRequest
from unetcli.evaluate.result import Evaluation

Array = NDArray[Any]


def cell_image(shape: tuple[int, int] = (83, 120), cells_wanted: int = 14, seed: int = 0) -> NDArray[np.uint16]:
    """Labels (y, x) of round cells, some touching."""
    random = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint16)
    rows, columns = np.indices(shape)
    for label in range(1, cells_wanted + 1):
        y, x, radius = random.uniform(0, shape[0]), random.uniform(0, shape[1]), random.uniform(5, 11)
        labels[((rows - y) ** 2 + (columns - x) ** 2 < radius**2) & (labels == 0)] = label
    return labels


def membranes(shape: tuple[int, int] = (96, 110), cells_wanted: int = 18, seed: int = 0) -> NDArray[np.uint8]:
    """Membranes (0) between cells (255) that fill the section."""
    random = np.random.default_rng(seed)
    places = random.uniform(0, 1, (cells_wanted, 2)) * shape
    rows, columns = np.indices(shape)
    distance = [(rows - y) ** 2 + (columns - x) ** 2 for y, x in places]
    nearest = np.argmin(distance, axis=0)
    edge = ndimage.morphological_gradient(nearest, size=3) > 0
    return np.where(edge, 0, 255).astype(np.uint8)


def doubtful(interior: Array, seed: int = 0, blur: float = 1.2, noise: float = 0.25) -> NDArray[np.float32]:
    """Probability that is mostly right: the blurred truth with smooth noise."""
    random = np.random.default_rng(seed)
    grain = ndimage.gaussian_filter(random.normal(size=interior.shape), 3)
    found = ndimage.gaussian_filter((interior != 0).astype(float), blur) + noise * grain / grain.std()
    return np.clip(found, 0, 1).astype(np.float32)


def em_evaluation(folder: Path, count: int = 3, **sizes: Any) -> Evaluation:
    """Evaluation of cells that fill their sections, by pixels and em."""
    truth = np.stack([membranes(seed=n, **sizes) for n in range(count)])
    found = np.stack([doubtful(section, seed=n) for n, section in enumerate(truth)])
    return evaluate(folder, found, truth)


def cells_evaluation(folder: Path, count: int = 3, **sizes: Any) -> Evaluation:
    """Evaluation of single cells, by all metrics that are defined for components of a probability."""
    truth = np.stack([cell_image(seed=n, **sizes) for n in range(count)])
    found = np.stack([doubtful(section, seed=n, noise=0.15) for n, section in enumerate(truth)])
    return evaluate(folder, found, truth, metrics=("pixels", "cells", "voi"))


def labels_evaluation(folder: Path, count: int = 2) -> Evaluation:
    """Evaluation of labels of single cells."""
    truth = np.stack([cell_image(seed=n) for n in range(count)])
    found = np.stack([ndimage.label(doubtful(section, seed=n, noise=0.15) > 0.5)[0] for n, section in enumerate(truth)])
    return evaluate(folder, found.astype(np.uint16), truth)


def classes_evaluation(folder: Path, count: int = 2, classes: int = 4) -> Evaluation:
    """Evaluation of several classes, each with a probability."""
    truth = np.stack([cell_image(seed=n) % classes for n in range(count)])
    each = np.stack([[doubtful(s == k, seed=n + k) + 1e-3 for n, s in enumerate(truth)] for k in range(classes)])
    return evaluate(folder, each / each.sum(0), truth, axes="czyx")


def evaluate(folder: Path, prediction: Array, truth: Array, axes: str = "zyx", **request: Any) -> Evaluation:
    """Store prediction and truth as Zarr arrays in a folder, and evaluate them as the command does."""
    places = {}
    for name, values in (("prediction", prediction), ("truth", truth)):
        names = axes[-values.ndim :]
        places[name] = str(folder / f"{name}.zarr")
        array = zarr.create_array(places[name], shape=values.shape, dtype=values.dtype, dimension_names=list(names))
        array[...] = values
    return evaluate_volume(EvaluateRequest(**places, **request))
