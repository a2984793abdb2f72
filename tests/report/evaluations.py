"""Evaluations made from arrays, by the functions of the metrics, for tests that need no files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.evaluation.request import CLASSES, LABELS, PROBABILITY, EvaluateRequest
from unetcli.evaluation.result import Curves, Evaluation, Scores, Section, SectionImages
from unetcli.geometry import Box
from unetcli.metrics import bootstrap, cells, em, probabilities, voi
from unetcli.metrics.contingency import Contingency
from unetcli.metrics.pixels import Confusion

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
    """0 on membrane between cells that fill the section, 255 inside them."""
    random = np.random.default_rng(seed)
    places = random.uniform(0, 1, (cells_wanted, 2)) * shape
    rows, columns = np.indices(shape)
    distance = [(rows - y) ** 2 + (columns - x) ** 2 for y, x in places]
    nearest = np.argmin(distance, axis=0)
    edge = ndimage.morphological_gradient(nearest, size=3) > 0
    return np.where(edge, 0, 255).astype(np.uint8)


def doubtful(interior: Array, seed: int = 0, blur: float = 1.2, noise: float = 0.25) -> NDArray[np.float32]:
    """A probability that is mostly right: the truth blurred and with smooth noise."""
    random = np.random.default_rng(seed)
    grain = ndimage.gaussian_filter(random.normal(size=interior.shape), 3)
    found = ndimage.gaussian_filter((interior != 0).astype(float), blur) + noise * grain / grain.std()
    return np.clip(found, 0, 1).astype(np.float32)


def em_evaluation(count: int = 3, **sizes: Any) -> Evaluation:
    truth = np.stack([membranes(seed=n, **sizes) for n in range(count)])
    found = np.stack([doubtful(section, seed=n) for n, section in enumerate(truth)])[:, None]
    return evaluate(truth, probability=found, metrics=("pixels", "em"))


def cells_evaluation(count: int = 3, **sizes: Any) -> Evaluation:
    truth = np.stack([cell_image(seed=n, **sizes) for n in range(count)])
    found = np.stack([doubtful(section, seed=n, noise=0.15) for n, section in enumerate(truth)])
    labels = np.stack([ndimage.label(section > 0.5)[0] for section in found])
    return evaluate(truth, probability=found[:, None], labels=labels, metrics=("pixels", "cells", "voi"))


def classes_evaluation(count: int = 2, classes: int = 4) -> Evaluation:
    truth = np.stack([cell_image(seed=n) % classes for n in range(count)])
    each = np.stack(
        [[doubtful(section == k, seed=n + k) + 1e-3 for k in range(classes)] for n, section in enumerate(truth)]
    )
    return evaluate(truth, probability=each / each.sum(1, keepdims=True), metrics=("pixels",))


def evaluate(
    truth: Array,
    *,
    metrics: tuple[str, ...],
    probability: Array | None = None,
    labels: Array | None = None,
    judged: Array | None = None,
    first: int = 20,
    notes: tuple[str, ...] = (),
    comparison: dict[str, Any] | None = None,
) -> Evaluation:
    """Of a stack of sections: truth, labels and judged (z, y, x), probability (z, c, y, x)."""

    def images(section: Section) -> SectionImages:
        n = section.number
        return SectionImages(
            reference=truth[n],
            probability=None if probability is None else probability[n].astype(np.float32),
            labels=None if labels is None else labels[n],
            judged=None if judged is None else judged[n],
        )

    made = [
        Section(number=n, place=(first + n,), name=f"z {first + n}", scores={}, curves={}) for n in range(len(truth))
    ]
    read = [images(section) for section in made]
    scorers: dict[str, Callable[[Sequence[SectionImages]], tuple[dict[str, Any], dict[str, Any]]]] = {
        "em": of_em,
        "pixels": of_pixels,
        "cells": of_cells,
        "voi": of_voi,
    }
    sections = tuple(
        Section(number=s.number, place=s.place, name=s.name, scores={m: scorers[m]([i])[0] for m in metrics}, curves={})
        for s, i in zip(made, read, strict=True)
    )
    found = {metric: scorers[metric](read) for metric in metrics}
    scores: Scores = {metric: told for metric, (told, _) in found.items()}
    curves: Curves = {metric: curve for metric, (_, curve) in found.items() if curve}
    kind = LABELS if probability is None else CLASSES if probability.shape[1] > 1 else PROBABILITY
    return Evaluation(
        request=EvaluateRequest(prediction="data/big.pred.zarr", truth="data/truth <1>.zarr"),
        metrics=metrics,
        kind=kind,
        three_d=False,
        scores=scores,
        sections=sections,
        curves=curves,
        thresholds={"foreground": 0.5, "objects": 0.5},
        axes="zyx",
        region=Box((first, 0, 0), (first + len(truth), *truth.shape[1:])),
        voxel_size={"z": 50.0, "y": 4.0, "x": 4.0},
        units={axis: "nanometer" for axis in "zyx"},
        notes=notes,
        sums={},
        comparison=comparison,
        read_section=images,
    )


def of_em(read: Sequence[SectionImages]) -> tuple[dict[str, Any], dict[str, Any]]:
    counts = [
        em.section_counts(i.probability[0], i.reference != 0, i.judged) for i in read if i.probability is not None
    ]
    return em.scores(counts), {"threshold": list(em.LEVELS), **em.curves(counts)}


def of_pixels(read: Sequence[SectionImages]) -> tuple[dict[str, Any], dict[str, Any]]:
    outputs = max(2, len(read[0].probability)) if read[0].probability is not None else 2
    confusions, sums = [], []
    for images in read:
        probability = images.probability
        assert probability is not None
        truth = images.reference if outputs > 2 else (images.reference != 0).astype(int)
        found = probability.argmax(0) if outputs > 2 else (probability[0] > 0.5).astype(int)
        confusions.append(Confusion.of(truth, found, outputs))
        sums.append(probabilities.ProbabilitySums.of(probability, truth))
    total = sum(sums[1:], start=sums[0])
    told = sum(confusions[1:], start=confusions[0]).scores() | probabilities.scores(total)
    if len(read) > 1:
        told |= bootstrap.interval(Confusion.stacked(confusions), lambda c: c_iou(c)).stated("iou")
    return told, probabilities.curve(total.classes[0]) if outputs == 2 else {}


def c_iou(confusion: Confusion) -> Array:
    from unetcli.metrics.pixels import SCORES

    return SCORES["iou"](confusion)


def of_cells(read: Sequence[SectionImages]) -> tuple[dict[str, Any], dict[str, Any]]:
    tables = [Contingency.of(i.reference, i.labels) for i in read if i.labels is not None]
    told = cells.scores([cells.CellSums.of(table) for table in tables])
    if len(read) > 1:
        stack = cells.CellSums.stacked([cells.CellSums.of(table) for table in tables])
        told |= bootstrap.interval(stack, cells.seg).stated("seg")
    return told, {"threshold": list(cells.THRESHOLDS), **{n: told[f"{n}_by_threshold"] for n in cells.CURVES}}


def of_voi(read: Sequence[SectionImages]) -> tuple[dict[str, Any], dict[str, Any]]:
    tables = [Contingency.of(i.reference, i.labels) for i in read if i.labels is not None]
    return voi.scores([voi.VoiSums.of(table) for table in tables]), {}
