"""What a user of evaluate asks for, before anything is resolved; ``None`` stands for "choose"."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unetcli.config import Roi, Sections
from unetcli.core.errors import UnetcliError
from unetcli.core.files import plain

METRICS = ("pixels", "em", "cells", "voi")
PROBABILITY, LABELS, CLASSES = "probability", "labels", "classes"
KINDS = (PROBABILITY, LABELS, CLASSES)
THRESHOLD = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateRequest:
    """One call of evaluate."""

    prediction: str
    truth: str
    metrics: tuple[str, ...] | None = None
    """Of ``METRICS``; None: those that apply."""
    kind: str | None = None
    """What the prediction's values mean, one of ``KINDS``; None: by its metadata, dtype and values."""
    threshold: float = THRESHOLD
    """Foreground is what is strictly above: for ``pixels``, and for the components that cells and voi judge."""
    three_d: bool | None = None
    """Whether objects go through the sections of z; None: as the truth has them."""
    sections: Sections = (None, None)
    """Counted in the truth."""
    roi: Roi | None = None
    """In voxels of the truth."""
    mask: str | None = None
    """A volume that is 0 where nothing is judged."""
    ignore: int | None = None
    """Value of the truth that is not judged."""
    level: int = 0
    """Resolution level of both."""
    baseline: Path | None = None
    """An earlier ``--json`` output to compare with."""
    allow_incomplete: bool = False
    block_voxels: int | None = None
    run_folder: Path | None = None
    retries: int = 1
    take_over: bool = False

    def __post_init__(self) -> None:
        for name in ("prediction", "truth", "mask"):
            if (place := getattr(self, name)) is not None:
                object.__setattr__(self, name, plain(place))
        self._require_metrics()
        if self.kind is not None and self.kind not in KINDS:
            raise UnetcliError(f"--kind {self.kind}: expected {', '.join(KINDS[:-1])} or {KINDS[-1]}")
        if not 0 <= self.threshold < 1:
            raise UnetcliError(f"--threshold {self.threshold}: expected a probability from 0 up to, not with, 1")
        if self.level < 0:
            raise UnetcliError(f"--level {self.level}: expected 0 (full resolution) or more")
        if self.block_voxels is not None and self.block_voxels < 1:
            raise UnetcliError(f"--block-voxels {self.block_voxels}: at least 1 is needed")

    def _require_metrics(self) -> None:
        if self.metrics is None:
            return
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown or not self.metrics:
            raise UnetcliError(
                f"--metrics {','.join(unknown)}: expected {', '.join(METRICS[:-1])} or {METRICS[-1]}, "
                "commas between several"
            )
