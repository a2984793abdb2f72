"""Options of evaluate, and the metrics it offers; an option that is None is chosen by :mod:`.resolve`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from unetcli.core.errors import UnetcliError
from unetcli.core.files import plain
from unetcli.core.options import (
    Heading,
    Roi,
    Sections,
    argument,
    block_voxels_option,
    option,
    parse_roi,
    retries_option,
    sections_option,
    take_over_option,
)
from unetcli.executors.options import ClusterOptions

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
    objects: bool = False
    """Whether it scores objects. Such a metric also scores folders of the cell tracking challenge."""
    whole_sections: bool = False
    """Whether it can only count whole sections, for example to find connected components in them."""


METRICS = {
    "pixels": Metric(KINDS, default_for=(PROBABILITY, CLASSES)),
    "em": Metric((PROBABILITY,), default_for=(PROBABILITY,), whole_sections=True),
    "cells": Metric((PROBABILITY, LABELS), default_for=(LABELS,), objects=True),
    "voi": Metric((PROBABILITY, LABELS), default_for=(LABELS,), objects=True),
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
        kw_only=False, metadata=argument("Probabilities or labels; or a challenge folder 01_RES.", "PREDICTION")
    )
    truth: str = field(kw_only=False, metadata=argument("Labels, 0 is background/membrane; or folder 01_GT.", "TRUTH"))
    metrics: tuple[str, ...] | None = option(
        "Scores to compute. Default: pixels,em for probabilities, cells,voi for labels.",
        Heading.SCORES,
        metavar=",".join(METRICS),
        parse=parse_metrics,
    )
    kind: str | None = option(
        "What PREDICTION contains. Default: detected from metadata, data type or values.",
        Heading.SCORES,
        metavar="probability|labels|classes",
    )
    threshold: float = option(
        "Pixels and objects are foreground above this probability.", Heading.SCORES, default=THRESHOLD, metavar="T"
    )
    three_d: bool | None = option(
        "Whether objects extend over sections along z. Default: as in TRUTH.", Heading.SCORES, negative="--per-section"
    )
    sections: Sections = sections_option()
    roi: Roi | None = option(
        "Score only this region of TRUTH.", Heading.REGION, metavar="Z0:Z1,Y0:Y1,X0:X1", parse=parse_roi
    )
    mask: str | None = option("Score only voxels where this volume is not 0.", Heading.REGION, metavar="ZARR")
    ignore: int | None = option("Do not score voxels where TRUTH has this value.", Heading.REGION, metavar="VALUE")
    level: int = option(
        "Resolution level of both volumes; 0 is full resolution.", Heading.REGION, default=0, metavar="N", min=0
    )
    baseline: Path | None = option(
        "Compare with an earlier --json output and report which differences are more than noise.",
        Heading.FILES,
        metavar="JSON",
    )
    csv: Path | None = option("Write the scores of each section as a table.", Heading.FILES, metavar="FILE")
    report: Path | None = option(
        "Write an HTML page with scores, curves, tables and pictures of errors.", Heading.FILES, metavar="HTML"
    )
    image: str | None = option("Image in --report. Default: the input of predict.", Heading.FILES, metavar="VOLUME")
    run_folder: Path | None = option(
        "Folder for intermediate counts of a large evaluation. Default: PREDICTION.run/evaluate.", Heading.FILES
    )
    allow_incomplete: bool = option("Score an incomplete prediction.", Heading.RUN, default=False)
    block_voxels: int | None = block_voxels_option()
    retries: int = retries_option()
    take_over: bool = take_over_option()

    def __post_init__(self) -> None:
        for name in ("prediction", "truth", "mask"):
            if (place := getattr(self, name)) is not None:
                object.__setattr__(self, name, plain(place))
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

    def _require_metrics(self) -> None:
        if self.metrics is None:
            return
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown or not self.metrics:
            raise UnetcliError(f"--metrics {','.join(unknown)}: expected one or more of {','.join(METRICS)}")
