"""Options of label as the user gives them; ``None`` stands for the default or an automatic choice."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from unetcli.core.errors import UnetcliError
from unetcli.core.files import plain
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
"""Run folders of other steps, whose names labels cannot have."""
DEPTHS = {"distance": 1.5, "probability": 0.1}
"""Default of ``--depth`` by landscape."""
REACHES = {False: 64, True: 32}
"""Default of ``--reach`` in voxels, by whether objects are three-dimensional."""


@dataclass(frozen=True, kw_only=True)
class LabelRequest(ClusterOptions):
    """Options of one call of label."""

    prediction: str = field(
        kw_only=False, metadata=argument("OME-Zarr with probabilities, as written by predict.", "PREDICTION")
    )
    method: str = option(
        "components (connected foreground) or watershed (also separates touching objects).",
        Heading.OBJECTS,
        default="components",
    )
    threshold: float | None = option("Foreground lies strictly above T. Default: 0.5.", Heading.OBJECTS, metavar="T")
    auto_threshold_from: str | None = option(
        "Choose the threshold with the best SEG score against the labels TRUTH.", Heading.OBJECTS, metavar="TRUTH"
    )
    connectivity: int | None = option(
        "Number of neighbours of a voxel: 4 (default) or 8; with --three-d 6 (default), 18 or 26.",
        Heading.OBJECTS,
        metavar="4|8|6|18|26",
    )
    min_size: int = option("Remove objects of fewer than N voxels.", Heading.OBJECTS, default=0, metavar="N", min=0)
    three_d: bool = option("Find objects in 3-D. Default: in each section separately.", Heading.OBJECTS, default=False)
    landscape: str = option(
        "Map flooded by the watershed: distance (to the background) or probability.",
        Heading.OBJECTS,
        default="distance",
    )
    depth: float | None = option(
        "Separate touching objects if the pass between them lies at least H below both peaks. Default: 1.5 (voxels of "
        "distance) or 0.1 (probability).",
        Heading.OBJECTS,
        metavar="H",
        min=0,
    )
    reach: int | None = option(
        "Cut off distances at N voxels. Default: 64, or 32 with --three-d.", Heading.OBJECTS, metavar="N", min=1
    )
    smoothing: float = option(
        "Smooth the probability with a Gaussian of S voxels first.", Heading.OBJECTS, default=2.0, metavar="S", min=0
    )
    channel: int | None = channel_option()
    name: str = option("Name of the labels, stored as PREDICTION/labels/NAME.", Heading.FILES, default="instances")
    intensity: str | None = option("Average VOLUME, not the probability, per object.", Heading.FILES, metavar="VOLUME")
    ctc: Path | None = option(
        "Also write maskTTT.tif files as in the Cell Tracking Challenge.", Heading.FILES, metavar="FOLDER"
    )
    run_folder: Path | None = option(
        "Folder for plan and receipts. Default: PREDICTION.run/NAME. Required for s3://.", Heading.FILES
    )
    allow_incomplete: bool = option("Label a prediction that is not complete.", Heading.RUN, default=False)
    block_voxels: int | None = block_voxels_option()
    retries: int = retries_option()
    overwrite: bool = overwrite_option()
    take_over: bool = take_over_option()

    def __post_init__(self) -> None:
        object.__setattr__(self, "prediction", plain(self.prediction).rstrip("/"))
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", self.name) or self.name in TAKEN:
            raise UnetcliError(
                f"--name {self.name}: expected letters, digits, - or _, and not {', '.join(TAKEN[:-1])} or {TAKEN[-1]}"
            )
        if self.threshold is not None and self.auto_threshold_from is not None:
            raise UnetcliError("--threshold and --auto-threshold-from: expected only one of them")
        if self.block_voxels is not None and self.block_voxels < 1:
            raise UnetcliError(f"--block-voxels {self.block_voxels}: expected at least 1")
        super().__post_init__()
