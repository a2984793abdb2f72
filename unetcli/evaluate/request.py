"""What a user asks of evaluate, before anything is resolved; ``None`` stands for "choose"."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from unetcli.core.errors import UnetcliError
from unetcli.core.files import strip_scheme
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

METRICS = ("pixels", "em", "cells", "voi")
PROBABILITY, LABELS, CLASSES = "probability", "labels", "classes"
KINDS = (PROBABILITY, LABELS, CLASSES)
THRESHOLD = 0.5


def parse_metrics(text: str) -> tuple[str, ...]:
    """Names with commas between them.

    >>> parse_metrics("pixels, em")
    ('pixels', 'em')
    """
    return tuple(name.strip() for name in text.split(",") if name.strip())


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest(ClusterOptions):
    """One call of evaluate."""

    prediction: str = field(
        kw_only=False, metadata=argument("Probabilities, labels, or a folder 01_RES.", "PREDICTION")
    )
    truth: str = field(kw_only=False, metadata=argument("0 is background (EM: membrane); or a folder 01_GT.", "TRUTH"))
    metrics: tuple[str, ...] | None = option(
        "Default: pixels,em for probabilities, cells,voi for labels.",
        Heading.SCORES,
        metavar="pixels,em,cells,voi",
        parse=parse_metrics,
    )
    kind: str | None = option(
        "What PREDICTION holds. Default: by metadata, data type or values.",
        Heading.SCORES,
        metavar="probability|labels|classes",
    )
    threshold: float = option(
        "Foreground, of pixels and of components, is above T.", Heading.SCORES, default=THRESHOLD, metavar="T"
    )
    three_d: bool | None = option(
        "Whether objects go through sections of z. Default: as in TRUTH.", Heading.SCORES, negative="--per-section"
    )
    sections: Sections = sections_option()
    roi: Roi | None = option(
        "Score only this region of TRUTH.", Heading.REGION, metavar="Z0:Z1,Y0:Y1,X0:X1", parse=parse_roi
    )
    mask: str | None = option("Score only where this volume is not 0.", Heading.REGION, metavar="ZARR")
    ignore: int | None = option("Do not score voxels where TRUTH has this value.", Heading.REGION, metavar="VALUE")
    level: int = option(
        "Resolution level of both that is scored; 0 is the full one.", Heading.REGION, default=0, metavar="N", min=0
    )
    baseline: Path | None = option(
        "Compare with an earlier --json output; says which differences are more than noise.",
        Heading.FILES,
        metavar="JSON",
    )
    csv: Path | None = option("Write the scores of each section.", Heading.FILES, metavar="FILE")
    report: Path | None = option(
        "Write a page with scores, curves, tables and pictures of errors.", Heading.FILES, metavar="HTML"
    )
    image: str | None = option("With --report: the image. Default: what predict read.", Heading.FILES, metavar="VOLUME")
    run_folder: Path | None = option(
        "Folder for the counts of a large evaluation. Default: PREDICTION.run/evaluate.", Heading.FILES
    )
    allow_incomplete: bool = option("Score what is there.", Heading.RUN, default=False)
    block_voxels: int | None = block_voxels_option()
    retries: int = retries_option()
    take_over: bool = take_over_option()

    def __post_init__(self) -> None:
        for name in ("prediction", "truth", "mask"):
            if (place := getattr(self, name)) is not None:
                object.__setattr__(self, name, strip_scheme(place))
        self._require_metrics()
        if self.kind is not None and self.kind not in KINDS:
            raise UnetcliError(f"--kind {self.kind}: expected {', '.join(KINDS[:-1])} or {KINDS[-1]}")
        if not 0 <= self.threshold < 1:
            raise UnetcliError(f"--threshold {self.threshold}: expected a probability from 0 up to, not with, 1")
        if self.level < 0:
            raise UnetcliError(f"--level {self.level}: expected 0 (full resolution) or more")
        if self.block_voxels is not None and self.block_voxels < 1:
            raise UnetcliError(f"--block-voxels {self.block_voxels}: at least 1 is needed")
        if self.image is not None and self.report is None:
            raise UnetcliError(f"--image {self.image}: only with --report FILE.html, which shows it")
        super().__post_init__()

    def _require_metrics(self) -> None:
        if self.metrics is None:
            return
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown or not self.metrics:
            raise UnetcliError(
                f"--metrics {','.join(unknown)}: expected {', '.join(METRICS[:-1])} or {METRICS[-1]}, "
                "commas between several"
            )
