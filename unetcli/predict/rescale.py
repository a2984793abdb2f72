"""The pixel size at which ``--rescale`` shows a volume to the network."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unetcli.core.errors import UnetcliError
from unetcli.core.rescaling import MOST, exact_size
from unetcli.model.file import ModelHeader
from unetcli.volumes.places import METRES_PER_UNIT, Sizes, format_sizes, in_one_unit, sizes_differ, stated_sizes
from unetcli.volumes.volume import Volume

log = logging.getLogger(__name__)


def resolve_rescale(source: Volume, models: Sequence[Path], headers: Sequence[ModelHeader]) -> tuple[float, ...] | None:
    """Side of a pixel of the training along each axis, in voxels of a volume; None if they have the same size.

    Only y and x are rescaled. Of several models, which agree in it, the first that states its pixel size counts.

    Raises
    ------
    UnetcliError
        The volume or the model does not state its pixel size as lengths, or the sizes are too different.
    """
    own = require_lengths(plane_sizes(source), source.path)
    pairs = [(plane_sizes(source, header), str(model)) for model, header in zip(models, headers, strict=True)]
    trained, file = next((pair for pair in pairs if pair[0]), pairs[0])
    trained = require_lengths(trained, f"--model {file}", " of the training images")
    sizes = {axis: _factor(own[axis], trained[axis]) for axis in "yx"}
    now, before = format_sizes(own), format_sizes(trained)
    if all(size == 1 for size in sizes.values()):
        log.info("--rescale has no effect: %s has pixels of %s, as in training", source.path, now)
        return None
    if not all(1 / MOST <= size <= MOST for size in sizes.values()):
        raise UnetcliError(
            f"--rescale: {source.path} has pixels of {now}, but the model was trained on {before}; expected factors "
            f"from 1/{MOST} to {MOST}: check the sizes, or predict another --level"
        )
    log.info("%s is resampled from pixels of %s to %s, as in training", source.path, now, before)
    return tuple(sizes.get(axis, 1.0) for axis in source.axes)


def plane_sizes(source: Volume, header: ModelHeader | None = None) -> Sizes:
    """Pixel size along y and x of a volume, or of the training images of a model, as far as it is stated."""
    if header is not None:
        if (data := header.training_data) is None:
            return {}
        source = replace(source, voxel_size=data.voxel_size, units=data.units)
    return {axis: size for axis, size in stated_sizes(source).items() if axis in "yx"}


def require_lengths(sizes: Sizes, name: str, of: str = "") -> Sizes:
    """The pixel size along y and x; raises :class:`UnetcliError` unless both are lengths."""
    lengths = [size for size, unit in sizes.values() if unit in METRES_PER_UNIT and size > 0]
    if len(lengths) < 2:
        states = f"has pixels of {format_sizes(sizes)}" if sizes else f"states no pixel size{of}"
        raise UnetcliError(f"--rescale: {name} {states}; expected lengths along y and x, such as 4 x 4 nm")
    return sizes


def _factor(own: tuple[float, str], trained: tuple[float, str]) -> float:
    """Side of a pixel of the training in pixels of the volume; 1 if they differ by at most 1 %."""
    length, wanted = in_one_unit(own, trained)
    return exact_size(wanted / length) if sizes_differ(own, trained) else 1.0
