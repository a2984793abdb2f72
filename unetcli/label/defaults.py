"""Defaults of label that follow from the truth that the model was trained on, as far as the prediction states it."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

from unetcli.core.errors import counted
from unetcli.core.files import Place
from unetcli.label.request import LabelRequest
from unetcli.volumes.image import find_marker

log = logging.getLogger(__name__)

LANDSCAPES = {"instances": "distance", "binary": "probability"}
"""Landscape of the watershed by the truth that the model was trained on. Instances are apart, as the network learned
the line between them; in two-valued truth, as of membranes, a gap of the foreground shows as a dip only."""
DEPTHS = {"distance": 1.5, "probability": 0.1}
"""Smallest depth by landscape, in voxels or probability: that of the unevenness of outlines."""
SIZE_KEPT = 0.5
"""Fraction of the smallest object of the training truth that an object must have."""
RADIUS_APART = 1 / 3
"""Depth in the distance landscape, as a fraction of the radius of the smallest object of the training truth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedObjects:
    """Objects that the network was trained to find in sections."""

    truth: str = ""
    """Meaning of the training labels: binary, instances or classes; empty if unknown."""
    smallest: int = 0
    """Pixels of the smallest object in a section of the training truth; 0 if unknown."""

    @classmethod
    def of(cls, prediction: Place, channel: int) -> TrainedObjects:
        """Read the marker of a prediction, for one of its channels."""
        marker: dict[str, Any] = find_marker(prediction) or {}
        sizes = marker.get("smallest_objects", ())
        classes, truth = marker.get("classes", ()), marker.get("truth", "")
        number = channel - (len(classes) == 2)  # of two classes, the size of the foreground is known
        return cls(
            truth="" if classes and truth == "binary" else truth,  # the map of classes has no dips between objects
            smallest=sizes[number] if 0 <= number < len(sizes) else 0,
        )

    @property
    def radius(self) -> float:
        """Radius of a disc of the size of the smallest object, in pixels."""
        return math.sqrt(self.smallest / math.pi)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectOptions:
    """Options that a request leaves open, resolved."""

    method: str
    landscape: str
    depth: float
    min_size: int


def resolve_objects(request: LabelRequest, trained: TrainedObjects) -> ObjectOptions:
    """Resolve method, smallest object and depth; defaults that the training truth sets are logged.

    The training truth is known by section. With ``--three-d`` only the smallest object follows from it: an object has
    at least the size of each of its sections.
    """
    separates = trained.truth in LANDSCAPES and not request.three_d
    landscape = request.landscape or LANDSCAPES.get(trained.truth if separates else "", "distance")
    chosen = ObjectOptions(
        method=request.method or ("watershed" if separates else "components"),
        landscape=landscape,
        depth=default_depth(landscape, 0 if request.three_d else trained.radius)
        if request.depth is None
        else request.depth,
        min_size=int(SIZE_KEPT * trained.smallest) if request.min_size is None else request.min_size,
    )
    _report(request, chosen, trained)
    return chosen


def default_depth(landscape: str, radius: float) -> float:
    """Depth below which touching objects are not separated, for the radius of the smallest object (0 if unknown).

    >>> default_depth("distance", 0), default_depth("distance", 37.8), default_depth("probability", 37.8)
    (1.5, 12.6, 0.1)
    """
    depth = DEPTHS.get(landscape, 0.0)  # a landscape that does not exist is refused later
    return max(depth, round(RADIUS_APART * radius, 1)) if landscape == "distance" else depth


def _report(request: LabelRequest, chosen: ObjectOptions, trained: TrainedObjects) -> None:
    """Log the defaults that the training truth sets, in one line."""
    known = trained.truth in LANDSCAPES and not request.three_d
    watershed = chosen.method == "watershed"
    follows = {
        "method": known,
        "landscape": known and watershed,
        "depth": known and watershed,
        "min_size": trained.smallest > 0,
    }
    found = [name for name, does in follows.items() if does and getattr(request, name) is None]
    if found:
        options = " ".join(f"--{name.replace('_', '-')} {getattr(chosen, name)}" for name in found)
        smallest = f", whose smallest object has {counted(trained.smallest, 'pixel')}" if trained.smallest else ""
        log.info("from the training truth (%s%s): %s", trained.truth, smallest, options)
