"""Lazy prediction as a Dask array, for notebooks and viewers: blocks are computed when they are needed."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import zarr
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError, collected_warnings, require_no_warnings
from unetcli.model.file import load_network
from unetcli.planning.plan import Plan
from unetcli.predict.models import Named, find_models
from unetcli.predict.request import PredictRequest
from unetcli.predict.resolve import resolve_plan
from unetcli.volumes.axes import axes_from_names, given_names
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import Volume

if TYPE_CHECKING:
    from unetcli.predict.predictor import Predictor

CHUNK_BYTES = 64 * 2**20
"""Approximate limit for a chunk of the result; neighbouring blocks share a chunk, so that the graph stays small."""
_one_at_a_time = threading.Lock()


def predict(x: Any, model: Named = None, *, axes: str | None = None, **options: Any) -> da.Array:
    """Class probabilities of a volume as a Dask array; nothing is computed or written yet.

    Parameters
    ----------
    x : path, Zarr array, NumPy array or Dask array
        The axes of a path are found as by :func:`unetcli.volumes.opening.open_volume`.
    model : path of a model file or folder, or several, optional
        The probabilities of several are averaged. Default: ``$UNETCLI_MODEL``, else ``./model``.
    axes : letters of t, c, z, y, x, optional
        Axes of an array, in array order. Default: its dimension names, else y, x or z, y, x.
    **options
        Options of ``unetcli predict``: level, rescale, tile, dtype, output_classes, device, precision, channel,
        normalise, invert, rotations, nonfinite, sections, roi, strict.

    Returns
    -------
    (t,) (c,) (z,) y, x, uint8 or the dtype in ``options``
        The same bytes as ``unetcli predict`` writes with the same options. Indices start at the start of the region;
        c exists if there are more than two classes.

    Raises
    ------
    UnetcliError
        Volume, model or options do not fit, as in ``unetcli predict``.
    """
    named = isinstance(x, str | Path)
    if not named and options.get("level") is not None:
        raise UnetcliError("level: an array has no levels; expected a path")
    request = PredictRequest(volume=str(x) if named else type(x).__name__, axes=axes if named else None, **options)
    source, files = as_volume(request.volume if named else x, axes), find_models(model)
    with collected_warnings(strict=request.strict):
        plan = resolve_plan(request, source, files, None)
        require_no_warnings()
    lead = 1 if "t" in plan.axes else 0
    several = plan.settings.outputs > 1
    groups = group_shape(plan)
    numbers = da.from_array(np.arange(plan.blocks).reshape(plan.grid.shape), chunks=groups)  # type: ignore[no-untyped-call]
    sides = [merged_sides(sides, n) for sides, n in zip(block_sides(plan), groups, strict=True)]
    if several:
        sides.insert(lead, (plan.settings.outputs,))
    result: da.Array = da.map_blocks(  # type: ignore[no-untyped-call]
        BlockGroup(plan, source, tuple(str(file.absolute()) for file in files), lead if several else None),
        numbers,
        dtype=plan.settings.dtype,
        chunks=tuple(sides),
        new_axis=[lead] if several else None,
        meta=np.empty((0,) * len(sides), plan.settings.dtype),
    )
    return result


@dataclass(frozen=True, slots=True, eq=False)
class BlockGroup:
    """Function from block numbers to their voxels; it is pickled and sent to Dask workers."""

    plan: Plan
    source: Volume
    models: tuple[str, ...]
    channel_axis: int | None

    def __call__(self, numbers: NDArray[np.intp]) -> NDArray[Any]:
        from unetcli.predict.predictor import predict_blocks

        plan = self.plan
        first, last = plan.block(int(numbers.flat[0])).box, plan.block(int(numbers.flat[-1])).box
        shape = tuple(b - a for a, b in zip(first.start, last.stop, strict=True))
        values = np.empty((plan.settings.outputs, *shape), plan.settings.dtype)
        with _one_at_a_time:  # a single network uses all of its threads, or the GPU
            predictor = _loaded(self.models, plan.settings.device, plan.settings)
            for block in predict_blocks(plan, predictor, self.source, map(int, numbers.flat)):
                if block.error is not None:
                    raise block.error
                place = block.block.box.shifted(tuple(-a for a in first.start))
                values[(slice(None), *place.slices)] = block.values
        return values[0] if self.channel_axis is None else np.moveaxis(values, 0, self.channel_axis)


def as_volume(x: Any, axes: str | None) -> Volume:
    """Volume of a path or an array.

    Parameters
    ----------
    x : path, Zarr array, NumPy array or Dask array
    axes : letters of t, c, z, y, x, or None

    Raises
    ------
    UnetcliError
        ``x`` is neither a path nor an array, or the axes do not fit it.
    """
    if isinstance(x, str | Path):
        return open_volume(x, parts=True)
    if not (hasattr(x, "shape") and hasattr(x, "dtype")):
        raise UnetcliError(f"predict: {type(x).__name__}; expected a path, or a Zarr, NumPy or Dask array")
    names = list(axes) if axes else given_names(getattr(getattr(x, "metadata", None), "dimension_names", None) or [])
    name = str(getattr(x, "store_path", type(x).__name__))
    array = _Computed(x) if isinstance(x, da.Array) else x if isinstance(x, zarr.Array) else np.asarray(x)
    return Volume(path=name, array=array, stored_axes=axes_from_names(name, names, x.shape))


class _Computed:
    """Dask array that is read like a stored array, in the calling thread."""

    def __init__(self, array: da.Array) -> None:
        self._array, self.shape, self.dtype = array, array.shape, array.dtype
        self.chunks = array.chunksize

    def __getitem__(self, picks: tuple[slice, ...]) -> NDArray[Any]:
        return np.asarray(self._array[picks].compute(scheduler="synchronous"))


@functools.lru_cache(maxsize=1)
def _loaded(models: tuple[str, ...], device: str | None, settings: Any) -> Predictor:
    from unetcli.model.network import exact_float32, resolve_device
    from unetcli.predict.predictor import Predictor

    exact_float32()
    return Predictor([load_network(Path(model)) for model in models], settings, resolve_device(device))


def block_sides(plan: Plan) -> list[tuple[int, ...]]:
    """Sides of the blocks along each axis, in voxels; the last block is cut to the region."""
    pairs = zip(plan.region.shape, plan.block_shape, strict=True)
    return [tuple(min(side, extent - at) for at in range(0, extent, side)) for extent, side in pairs]


def group_shape(plan: Plan) -> tuple[int, ...]:
    """Number of blocks along each axis that share a chunk of at most ``CHUNK_BYTES``; the last axes grow first."""
    held = math.prod(plan.block_shape) * plan.settings.outputs * np.dtype(plan.settings.dtype).itemsize
    shape = [1] * len(plan.grid.shape)
    for axis in reversed(range(len(shape))):
        shape[axis] = min(plan.grid.shape[axis], max(1, CHUNK_BYTES // held))
        held *= shape[axis]
    return tuple(shape)


def merged_sides(sides: Sequence[int], count: int) -> tuple[int, ...]:
    """Sums of each ``count`` neighbouring sides.

    >>> merged_sides((4, 4, 4, 1), 3)
    (12, 1)
    """
    return tuple(sum(sides[at : at + count]) for at in range(0, len(sides), count))
