"""Defaults of label that follow from the truth that the model was trained on, as far as the prediction states it."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

from unetcli.core.files import Place
from unetcli.label.request import LabelRequest
from unetcli.volumes.image import find_marker

log = logging.getLogger(__name__)

DEPTHS = {"distance": 1.5, "probability": 0.1}
"""Smallest depth by landscape, in voxels or probability: that of the unevenness of outlines."""
SIZE_KEPT = 0.5
"""Fraction of the smallest object of the training truth that an object must have."""
RADIUS_APART = 1 / 3
"""Depth in the distance landscape, as a fraction of the radius of the smallest object of the training truth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedObjects:
    """Objects that the network was trained to find in sections."""

    instances: bool = False
    """Whether the training truth had a number for each object."""
    smallest: int = 0
    """Pixels of the smallest object in a section of the training truth; 0 if unknown."""

    @classmethod
    def of(cls, prediction: Place, channel: int) -> TrainedObjects:
        """What the marker of a prediction states about one of its channels."""
        marker: dict[str, Any] = find_marker(prediction) or {}
        sizes = marker.get("smallest_objects", ())
        return cls(
            instances=marker.get("truth") == "instances", smallest=sizes[channel] if channel < len(sizes) else 0
        )

    @property
    def radius(self) -> float:
        """Radius of a disc of the size of the smallest object, in pixels."""
        return math.sqrt(self.smallest / math.pi)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectOptions:
    """Options that a request leaves open, resolved."""

    method: str
    min_size: int
    depth: float


def resolve_objects(request: LabelRequest, trained: TrainedObjects) -> ObjectOptions:
    """Resolve method, smallest object and depth; defaults that the training truth sets are logged.

    The training truth is known by section. With ``--three-d`` only the smallest object follows from it: an object has
    at least the size of each of its sections.
    """
    chosen = ObjectOptions(
        method=request.method or ("watershed" if trained.instances and not request.three_d else "components"),
        min_size=int(SIZE_KEPT * trained.smallest) if request.min_size is None else request.min_size,
        depth=default_depth(request, trained) if request.depth is None else request.depth,
    )
    _report(request, chosen, trained)
    return chosen


def default_depth(request: LabelRequest, trained: TrainedObjects) -> float:
    """Depth below which touching objects are not separated.

    >>> [default_depth(LabelRequest("p"), TrainedObjects(smallest=pixels)) for pixels in (0, 21, 4499)]
    [1.5, 1.5, 12.6]
    """
    depth = DEPTHS.get(request.landscape, 0.0)  # a landscape that does not exist is refused later
    if request.landscape != "distance" or request.three_d:
        return depth
    return max(depth, round(RADIUS_APART * trained.radius, 1))


def _report(request: LabelRequest, chosen: ObjectOptions, trained: TrainedObjects) -> None:
    """Log the defaults that the training truth sets, in one line."""
    found = []
    if request.method is None and trained.instances:
        found.append(f"--method {chosen.method}")
    if request.depth is None and trained.smallest and chosen.method == "watershed":
        found.append(f"--depth {chosen.depth:g}")
    if request.min_size is None and trained.smallest:
        found.append(f"--min-size {chosen.min_size}")
    if found:
        smallest = f"; its smallest object has {trained.smallest} pixels" if trained.smallest else ""
        log.info("from the training truth: %s%s", " ".join(found), smallest)
