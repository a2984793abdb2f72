"""Options of evaluate, and the metrics it offers; an option that is None is chosen by :mod:`.resolve`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from unetcli.core.errors import UnetcliError
from unetcli.core.files import strip_scheme
from unetcli.core.label_values import parse_value
from unetcli.core.options import (
    Heading,
    Roi,
    Sections,
    argument,
    background_option,
    block_voxels_option,
    classes_option,
    file_option,
    label_threshold_option,
    option,
    parse_roi,
    region_option,
    retries_option,
    run_option,
    same_place_option,
    sections_option,
    strict_option,
    take_over_option,
)
from unetcli.executors.options import ClusterOptions

_scores = partial(option, heading=Heading.SCORES)
PROBABILITY, LABELS, CLASSES = "probability", "labels", "classes"
KINDS = (PROBABILITY, LABELS, CLASSES)
"""Kinds of predictions: foreground or class probabilities, object labels, and class maps."""
THRESHOLD = 0.5


@dataclass(frozen=True, slots=True)
class Metric:
    """A group of scores that ``--metrics`` can name."""

    kinds: tuple[str, ...]
    """Kinds of predictions that it can score."""
    default_for: tuple[str, ...]
    """Kinds of predictions that it scores if ``--metrics`` is not given."""
    leading: str
    """Score by which the worst sections are chosen."""
    lower_is_better: bool = False
    """Whether lower is better for the leading score."""
    foreground: bool = False
    """Whether it scores the foreground above ``--threshold``."""
    objects: bool = False
    """Whether it scores objects. Such a metric also scores folders of the cell tracking challenge."""
    whole_sections: bool = False
    """Whether it can only count whole sections, for example to find connected components in them."""


METRICS = {
    "pixels": Metric(KINDS, (PROBABILITY, CLASSES), "iou", foreground=True),
    "em": Metric((PROBABILITY,), (PROBABILITY,), "rand_error", lower_is_better=True, whole_sections=True),
    "cells": Metric((PROBABILITY, LABELS), (LABELS,), "seg", objects=True),
    "voi": Metric((PROBABILITY, LABELS), (LABELS,), "split", lower_is_better=True, objects=True),
}
"""Metrics by name, in the order of the output. The scores of each one are in a module of :mod:`unetcli.metrics`."""


def scores_objects(metrics: Iterable[str]) -> bool:
    """Whether any of the metrics scores objects."""
    return any(METRICS[name].objects for name in metrics)


def parse_metrics(text: str) -> tuple[str, ...]:
    """Split names at commas.

    >>> parse_metrics("pixels, em")
    ('pixels', 'em')
    """
    return tuple(name.strip() for name in text.split(",") if name.strip())


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest(ClusterOptions):
    """Arguments and options of one call of evaluate."""

    prediction: str = field(
        kw_only=False, metadata=argument("Probabilities, labels, or a folder of masks (01_RES).", "PREDICTION")
    )
    truth: str = field(
        kw_only=False, metadata=argument("Ground truth; 0 is background (EM: membrane). Or a folder 01_GT.", "TRUTH")
    )
    metrics: tuple[str, ...] | None = _scores(
        "Scores to compute. Default: pixels,em for probabilities, cells,voi for labels.",
        metavar=",".join(METRICS),
        parse=parse_metrics,
    )
    kind: str | None = _scores(
        "Content of PREDICTION. Default: from its metadata, data type or values.", metavar="probability|labels|classes"
    )
    threshold: float = _scores("Pixels above T are foreground.", default=THRESHOLD, metavar="T")
    classes: tuple[int, ...] | None = classes_option(
        "Value of each class in TRUTH, background first, such as 0,128,255. none: values are class numbers. Default: "
        "as in the training of the model, else none.",
        Heading.SCORES,
    )
    background: int | None = background_option(
        "Value of background in TRUTH. Default: as in the training of the model, else 0.", Heading.SCORES
    )
    label_threshold: int | None = label_threshold_option(
        "Take values of V and above in TRUTH as one side of a mask, and all others as the other; for masks as JPEG.",
        Heading.SCORES,
    )
    three_d: bool | None = _scores("Connect objects across sections. Default: as in TRUTH.", negative="--per-section")
    sections: Sections = sections_option()
    roi: Roi | None = region_option("Score only this region of TRUTH.", metavar="Z0:Z1,Y0:Y1,X0:X1", parse=parse_roi)
    mask: str | None = region_option("Score only where this volume is not 0.", metavar="ZARR")
    ignore: int | None = region_option(
        "Leave out voxels where TRUTH has this value.", metavar="VALUE", parse=parse_value
    )
    same_place: bool = same_place_option()
    level: int = region_option("Resolution level to score; 0 is full resolution.", default=0, metavar="N", min=0)
    baseline: Path | None = file_option(
        "Compare with an earlier --json output; shows which differences exceed noise.", metavar="JSON"
    )
    csv: Path | None = file_option("Write the scores of each section to this file.", metavar="FILE")
    report: Path | None = file_option("Write a web page with scores, curves and pictures of errors.", metavar="HTML")
    image: str | None = file_option("With --report: image to show. Default: the input of predict.", metavar="VOLUME")
    run_folder: Path | None = file_option("Folder for the records of the run. Default: PREDICTION.run/evaluate.")
    allow_incomplete: bool = run_option("Score a prediction that is not complete.", default=False)
    block_voxels: int | None = block_voxels_option()
    retries: int = retries_option()
    take_over: bool = take_over_option()
    strict: bool = strict_option()

    def __post_init__(self) -> None:
        for name in ("prediction", "truth", "mask"):
            if (place := getattr(self, name)) is not None:
                object.__setattr__(self, name, strip_scheme(place))
        self._require_metrics()
        if self.kind is not None and self.kind not in KINDS:
            raise UnetcliError(f"--kind {self.kind}: expected {', '.join(KINDS[:-1])} or {KINDS[-1]}")
        if not 0 <= self.threshold < 1:
            raise UnetcliError(f"--threshold {self.threshold}: expected 0 <= threshold < 1")
        if self.level < 0:
            raise UnetcliError(f"--level {self.level}: expected 0 (full resolution) or higher")
        if self.block_voxels is not None and self.block_voxels < 1:
            raise UnetcliError(f"--block-voxels {self.block_voxels}: expected at least 1")
        if self.image is not None and self.report is None:
            raise UnetcliError(f"--image {self.image}: needs --report FILE.html, the page that shows the image")
        super().__post_init__()

    @property
    def states_values(self) -> bool:
        """Whether an option states the meaning of the values of the truth."""
        return any(value is not None for value in (self.classes, self.background, self.label_threshold))

    def _require_metrics(self) -> None:
        if self.metrics is None:
            return
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown or not self.metrics:
            raise UnetcliError(f"--metrics {','.join(unknown)}: expected one or more of {','.join(METRICS)}")
