"""The OME-Zarr image that predict writes."""

from __future__ import annotations

from typing import Any

from unetcli.core.files import Place
from unetcli.planning.plan import Plan
from unetcli.volumes.image import MARKER, ArraySpec, image_attributes
from unetcli.volumes.volume import Volume

KIND = "probabilities"


def spec_of(plan: Plan) -> ArraySpec:
    """The array that holds a plan's probabilities."""
    return ArraySpec(
        axes=plan.axes,
        shape=plan.region.shape,
        chunks=plan.chunks,
        write_chunks=plan.write_chunks,
        outputs=plan.settings.outputs,
        dtype=plan.settings.dtype,
        zarr_format=plan.zarr_format,
    )


def attributes_of(plan: Plan, path: Place, source: Volume) -> dict[str, Any]:
    """What the output says of itself: OME-Zarr metadata, and the marker."""
    start = dict(zip(plan.axes, plan.region.start, strict=True))
    own = {
        "complete": False,
        "kind": KIND,
        "outputs": plan.settings.outputs,
        "extent": list(plan.extent),
        "region": [[a, b] for a, b in zip(plan.region.start, plan.region.stop, strict=True)],
        "model": plan.sources.model_fingerprint,
    }
    return {**image_attributes(spec_of(plan), path, source, start), MARKER: own}
