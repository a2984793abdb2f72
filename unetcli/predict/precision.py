"""Choice of the number format of a prediction: bfloat16 where it is faster and the borders of tiles do not show."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from unetcli.core.geometry import Architecture, AxisFootprint, Box
from unetcli.core.process import Machine, computes_bfloat16
from unetcli.model.file import load_network
from unetcli.planning.plan import Settings, stored_values
from unetcli.predict.request import PredictRequest
from unetcli.predict.windows import read_seen
from unetcli.volumes.volume import Volume

if TYPE_CHECKING:
    from unetcli.predict.predictor import Predictor

log = logging.getLogger(__name__)

LEAST_CHANNELS = 8
"""First channels from which a CPU is faster in bfloat16: 1.0 times at 4, 1.6 at 8, 2.0 to 3.4 at 16 to 64."""
OUTPUTS = {"cpu": (64, 128), "cuda": (388, 1028)}
"""Sides of the outputs of the two tiles that are compared; a GPU takes other kernels for large tiles."""
SAME, CLOSE = 1, 2
"""Largest difference between tiles, and usual difference from float32, in levels of uint8."""
MOST_APART = 0.01
"""Fraction of the voxels that may differ by more from float32."""
UNKNOWN = "nothing is known of the GPUs of the jobs; on Ampere and later, --precision bfloat16 is many times faster"
PLACES = (0.5, 0.25, 0.75)
"""Places in the region where a window is tried, as fractions of its sides; a constant window says nothing."""


def foreseen_precision(request: PredictRequest, architecture: Architecture, machine: Machine) -> str:
    """Number format that a plan for another machine or process assumes; nothing is computed."""
    fast = machine.device == "cuda" or (machine.device == "cpu" and computes_bfloat16())
    return "bfloat16" if fast and may_be_short(request, architecture, machine.device) else "float32"


def may_be_short(request: PredictRequest, architecture: Architecture, device: str) -> bool:
    """Whether ``--precision auto`` may take bfloat16 for this output and network.

    Outputs of float16 and float32 are finer than what bfloat16 computes. Nothing is known of the machines of a cluster.
    """
    worth_it = device == "cuda" or architecture.base_channels >= LEAST_CHANNELS
    return request.dtype == "uint8" and not request.remote and worth_it


def choose_precision(
    request: PredictRequest,
    source: Volume,
    region: Box,
    models: Sequence[Path],
    architecture: Architecture,
    settings: Settings,
) -> str:
    """Number format of a new prediction with ``--precision auto``: bfloat16 where it holds what float32 promises.

    A window of the volume is computed with two tiles. If they differ by at most one level of uint8, and hardly any
    voxel differs by more than two from float32, bfloat16 is taken.
    """
    if request.remote:
        if settings.device == "cuda" and request.dtype == "uint8":
            log.info("float32 is used: %s", UNKNOWN)
        return "float32"
    import torch

    from unetcli.model.network import has_bfloat16, resolve_device
    from unetcli.predict.predictor import is_out_of_memory

    device = resolve_device(request.device)
    fast = has_bfloat16(device) and (device.type != "cpu" or computes_bfloat16())
    if not fast or not may_be_short(request, architecture, device.type):
        return "float32"
    try:
        reason, short = judged(source, region, models, architecture, settings)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason, short = "there is no memory to compare two tiles", False
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the tile is chosen by what is free
    chosen = "bfloat16" if short else "float32"
    log.info("%s is used: %s", chosen, reason)
    return chosen


def judged(
    source: Volume, region: Box, models: Sequence[Path], architecture: Architecture, settings: Settings
) -> tuple[str, bool]:
    """Why bfloat16 is taken or not, and whether it is."""
    small, large = sides_of(architecture.footprint().axes[-1], settings.device)
    settings = replace(settings, output_classes=False, outputs=stored_values(architecture.classes))
    window = sample_window(source, region, large, settings)
    if window is None:
        return "no window could be read to compare two tiles", False
    settings, margin = replace(settings, rescale=None), (large - small) // 2
    inner = window[:, margin:-margin, margin:-margin]
    short, exact = predictors(models, settings, ("bfloat16", "float32"))
    one, other = short(inner), short(window)
    cut = (other.shape[-1] - one.shape[-1]) // 2
    seam = levels(one, other[:, cut:-cut, cut:-cut]).max()
    apart = float(np.mean(levels(one, exact(inner)) > CLOSE))
    said = f"tiles of {small} and {large} differ by at most {seam} of 255 levels in bfloat16"
    far = f"{100 * apart:.2g} % of the voxels by more than {CLOSE} from float32"
    return f"{said}, and {far}", bool(seam <= SAME and apart <= MOST_APART)


def sides_of(axis: AxisFootprint, device: str) -> tuple[int, int]:
    """Input sides of the two tiles that are compared; their origins are a multiple of the alignment apart."""
    small, large = (axis.side_for(output) for output in OUTPUTS[device])
    return small, small + (large - small) // (2 * axis.alignment) * 2 * axis.alignment


def sample_window(source: Volume, region: Box, side: int, settings: Settings) -> NDArray[np.generic] | None:
    """Grey values (c, side, side) of a window that is not constant, if there is one; None if none can be read."""
    found = None
    for box in windows_of(region, side):
        try:
            voxels = read_seen(source, box, settings)
        except Exception as reason:  # codecs raise any type; the block is set aside when it is predicted
            log.debug("%s cannot be read: %s", box, reason)
            continue
        found = voxels.reshape(voxels.shape[0], side, side)
        if found.min() < found.max():
            return found
    return found


def windows_of(region: Box, side: int) -> Iterator[Box]:
    """Square windows of one section, with their middle at some places of the region."""
    for place in PLACES:
        middle = [start + int(place * n) for start, n in zip(region.start, region.shape, strict=True)]
        start = (*middle[:-2], *(at - side // 2 for at in middle[-2:]))
        yield Box(start, (*(at + 1 for at in middle[:-2]), *(at + side for at in start[-2:])))


def predictors(models: Sequence[Path], settings: Settings, precisions: Sequence[str]) -> list[Predictor]:
    """A predictor of the same networks for each number format."""
    import torch

    from unetcli.model.network import exact_float32, resolve_device
    from unetcli.predict.predictor import Predictor

    exact_float32()
    torch.set_num_threads(settings.threads)
    networks, device = [load_network(model) for model in models], resolve_device(settings.device)
    return [Predictor(networks, replace(settings, precision=each), device) for each in precisions]


def levels(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Differences of stored values."""
    return np.asarray(np.abs(one.astype(np.int64) - other))
