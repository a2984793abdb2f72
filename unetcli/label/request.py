"""What a user asks of label, before anything is resolved; ``None`` stands for "choose"."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from unetcli.core.errors import UnetcliError
from unetcli.core.files import strip_scheme
from unetcli.core.options import (
    Heading,
    argument,
    block_voxels_option,
    channel_option,
    option,
    overwrite_option,
    retries_option,
    take_over_option,
)
from unetcli.executors.options import ClusterOptions

TAKEN = ("predict", "pyramid", "evaluate")
"""Names of other steps' run folders."""
DEPTHS = {"distance": 1.5, "probability": 0.1}
"""Default of ``--depth`` by landscape."""
REACHES = {False: 64, True: 32}
"""Default of ``--reach`` in voxels, by whether objects are three-dimensional."""


@dataclass(frozen=True, kw_only=True)
class LabelRequest(ClusterOptions):
    """One call of label."""

    prediction: str = field(
        kw_only=False, metadata=argument("OME-Zarr with probabilities, as predict writes it.", "PREDICTION")
    )
    method: str = option(
        "components (connected foreground), or watershed, which separates touching objects.",
        Heading.OBJECTS,
        default="components",
    )
    threshold: float | None = option("Foreground is strictly above T. Default: 0.5.", Heading.OBJECTS, metavar="T")
    auto_threshold_from: str | None = option(
        "Take the threshold whose objects agree best with these (SEG).", Heading.OBJECTS, metavar="TRUTH"
    )
    connectivity: int | None = option(
        "Neighbours that touch: 4 or 8 in a section, 6, 18 or 26 with --three-d.",
        Heading.OBJECTS,
        metavar="4|8|6|18|26",
    )
    min_size: int = option("Remove objects of fewer than N voxels.", Heading.OBJECTS, default=0, metavar="N", min=0)
    three_d: bool = option(
        "Objects go through sections. Default: each section for itself.", Heading.OBJECTS, default=False
    )
    landscape: str = option(
        "What a watershed floods: distance (to the background) or probability.", Heading.OBJECTS, default="distance"
    )
    depth: float | None = option(
        "Touching objects stay apart if what joins them lies H below both peaks: voxels of distance (1.5), or "
        "probability (0.1).",
        Heading.OBJECTS,
        metavar="H",
        min=0,
    )
    reach: int | None = option(
        "Distances above N voxels count as N (64, with --three-d 32).", Heading.OBJECTS, metavar="N", min=1
    )
    smoothing: float = option(
        "Smooth the probability over S voxels before the watershed.", Heading.OBJECTS, default=2.0, metavar="S", min=0
    )
    channel: int | None = channel_option()
    name: str = option("Name of the labels, below labels/ in PREDICTION.", Heading.FILES, default="instances")
    intensity: str | None = option("Measure these grey values, not the probability.", Heading.FILES, metavar="VOLUME")
    ctc: Path | None = option(
        "Also write maskTTT.tif, as the cell tracking challenge.", Heading.FILES, metavar="FOLDER"
    )
    run_folder: Path | None = option(
        "Folder for plan and receipts. Default: PREDICTION.run/NAME. Needed for s3://.", Heading.FILES
    )
    allow_incomplete: bool = option("Label a prediction that is not finished.", Heading.RUN, default=False)
    block_voxels: int | None = block_voxels_option()
    retries: int = retries_option()
    overwrite: bool = overwrite_option()
    take_over: bool = take_over_option()

    def __post_init__(self) -> None:
        object.__setattr__(self, "prediction", strip_scheme(self.prediction).rstrip("/"))
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", self.name) or self.name in TAKEN:
            raise UnetcliError(
                f"--name {self.name}: expected letters, digits, - or _, and not {', '.join(TAKEN[:-1])} or {TAKEN[-1]}"
            )
        if self.threshold is not None and self.auto_threshold_from is not None:
            raise UnetcliError("--threshold and --auto-threshold-from: one of them")
        if self.block_voxels is not None and self.block_voxels < 1:
            raise UnetcliError(f"--block-voxels {self.block_voxels}: at least 1 is needed")
        super().__post_init__()
