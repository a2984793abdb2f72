"""What a user of label asks for, before anything is resolved; ``None`` stands for "choose"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from unetcli.core.errors import UnetcliError
from unetcli.core.files import plain

TAKEN = ("predict", "pyramid", "evaluate")
"""Steps of a run that have folders of these names already."""
DEPTHS = {"distance": 1.5, "probability": 0.1}
"""By landscape: what sets an object apart from its neighbour."""
REACHES = {False: 64, True: 32}
"""Voxels, by whether objects are three-dimensional."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRequest:
    """One call of label."""

    prediction: str
    method: str = "components"
    threshold: float | None = None
    auto_threshold_from: str | None = None
    three_d: bool = False
    connectivity: int | None = None
    min_size: int = 0
    channel: int | None = None
    landscape: str = "distance"
    depth: float | None = None
    reach: int | None = None
    smoothing: float = 2.0
    name: str = "instances"
    intensity: str | None = None
    ctc: Path | None = None
    block_voxels: int | None = None
    run_folder: Path | None = None
    retries: int = 1
    allow_incomplete: bool = False
    overwrite: bool = False
    take_over: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "prediction", plain(self.prediction).rstrip("/"))
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", self.name) or self.name in TAKEN:
            raise UnetcliError(
                f"--name {self.name}: expected letters, digits, - or _, and not {', '.join(TAKEN[:-1])} or {TAKEN[-1]}"
            )
        if self.threshold is not None and self.auto_threshold_from is not None:
            raise UnetcliError("--threshold and --auto-threshold-from: one of them")
        if self.block_voxels is not None and self.block_voxels < 1:
            raise UnetcliError(f"--block-voxels {self.block_voxels}: at least 1 is needed")
