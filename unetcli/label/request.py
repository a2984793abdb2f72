"""Options of label as the user gives them; ``None`` stands for the default or an automatic choice."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from unetcli.core.errors import UnetcliError
from unetcli.core.files import Place, parse_place, strip_scheme
from unetcli.core.options import (
    Heading,
    argument,
    block_voxels_option,
    channel_option,
    file_option,
    name_choices,
    option,
    overwrite_option,
    retries_option,
    run_option,
    strict_option,
    take_over_option,
)
from unetcli.executors.options import ClusterOptions
from unetcli.volumes.other_formats import require_zarr_name

_objects = partial(option, heading=Heading.OBJECTS)
NAME = "instances"
"""Default name of labels, and the name of the run of labels that are a store of their own."""
PROBABILITY = "probability"
TAKEN = ("predict", "pyramid", "evaluate")
"""Run folders of other steps, whose names labels cannot have."""
STORE = ".zarr"
"""Ending of the labels that are a store of their own; names of labels in an image have no dot."""
REACHES = {False: 64, True: 32}
"""Default of ``--reach`` in voxels, by whether objects are three-dimensional."""


@dataclass(frozen=True, kw_only=True)
class LabelRequest(ClusterOptions):
    """Options of one call of label."""

    prediction: str = field(kw_only=False, metadata=argument("Probabilities, as written by predict.", "PREDICTION"))
    method: str | None = _objects(
        "components (connected foreground) or watershed (also separates touching objects). Default: watershed if "
        "the model was trained on binary labels or instances, else components; with --three-d components."
    )
    threshold: float | None = _objects("Voxels above T are foreground. Default: 0.5.", metavar="T")
    auto_threshold_from: str | None = _objects(
        "Use the threshold whose objects agree best (SEG score) with these instances.", metavar="TRUTH"
    )
    connectivity: int | None = _objects(
        "Number of neighbours of a voxel: 4 or 8 in a section, 6, 18 or 26 with --three-d.", metavar="4|8|6|18|26"
    )
    min_size: int | None = _objects(
        "Remove objects smaller than N voxels; 0 keeps all. Default: half the smallest object of the training truth.",
        metavar="N",
        min=0,
    )
    three_d: bool = _objects("Connect objects across sections. Default: label each section separately.", default=False)
    landscape: str | None = _objects(
        "What the watershed floods: distance (to the background) or probability. Default: distance, or probability if "
        "the model was trained on binary labels."
    )
    depth: float | None = _objects(
        "Separate touching objects if both peaks lie at least H above the saddle between them. Default: a third of the "
        "radius of the smallest object of the training truth, at least 1.5 voxels; or 0.1 of probability.",
        metavar="H",
        min=0,
    )
    reach: int | None = _objects(
        "Compute distances to the background up to N voxels. Default: 64, or 32 with --three-d.", metavar="N", min=1
    )
    smoothing: float = _objects(
        "Smooth the probability before the watershed; sigma in voxels.", default=2.0, metavar="S", min=0
    )
    channel: int | None = channel_option()
    kind: str | None = file_option(
        "Content of PREDICTION. probability: whole numbers of 16 or 32 bits are probabilities, as value / 65535.",
        metavar="probability",
    )
    name: str = file_option("Name of the labels, stored as PREDICTION/labels/NAME.", default=NAME)
    into: str | None = file_option(
        "Store the labels in this OME-Zarr image, where viewers look for them, instead of in PREDICTION.",
        metavar="IMAGE.zarr",
    )
    output: Place | None = file_option(
        "OME-Zarr of labels to write, a store of its own, instead of labels in PREDICTION.",
        short="-o",
        metavar="LABELS.zarr",
    )
    intensity: str | None = file_option(
        "Measure the mean of each object in this image, not in the probability.", metavar="VOLUME"
    )
    ctc: Path | None = file_option("Also write maskTTT.tif files as in the Cell Tracking Challenge.", metavar="FOLDER")
    run_folder: Path | None = file_option(
        "Folder for the records of the run. Default: PREDICTION.run/NAME. Required for s3://."
    )
    allow_incomplete: bool = run_option("Label a prediction that is not complete.", default=False)
    block_voxels: int | None = block_voxels_option()
    retries: int = retries_option()
    overwrite: bool = overwrite_option()
    take_over: bool = take_over_option()
    strict: bool = strict_option()

    def __post_init__(self) -> None:
        object.__setattr__(self, "prediction", strip_scheme(self.prediction).rstrip("/"))
        name_choices(self, "prediction")
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", self.name) or self.name in TAKEN:
            raise UnetcliError(
                f"--name {self.name}: expected letters, digits, - or _, and not {', '.join(TAKEN[:-1])} or {TAKEN[-1]}"
            )
        if self.kind not in (None, PROBABILITY):
            raise UnetcliError(f"--kind {self.kind}: expected {PROBABILITY}; labels of others are labelled already")
        object.__setattr__(self, "into", strip_scheme(self.into).rstrip("/") if self.into else None)
        object.__setattr__(self, "output", None if self.output is None else parse_place(self.output))
        self._require_one_place()
        if self.threshold is not None and self.auto_threshold_from is not None:
            raise UnetcliError("--threshold and --auto-threshold-from: expected only one of them")
        if self.block_voxels is not None and self.block_voxels < 1:
            raise UnetcliError(f"--block-voxels {self.block_voxels}: expected at least 1")
        super().__post_init__()

    def _require_one_place(self) -> None:
        if self.output is None:
            return
        require_zarr_name(self.output)
        if self.into is not None or self.name != NAME:
            other = "--into" if self.into is not None else "--name"
            raise UnetcliError(f"--output {self.output}: the labels are a store of their own there; omit {other}")
        if not str(self.output).endswith(STORE):
            raise UnetcliError(f"--output {self.output}: expected a name that ends in {STORE}")
