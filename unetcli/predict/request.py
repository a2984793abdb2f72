"""Options of ``predict`` and ``plan`` as the user gives them, before defaults are resolved."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from unetcli.core.errors import UnetcliError
from unetcli.core.files import Place, parse_place, stem, strip_scheme
from unetcli.core.options import (
    IMAGE,
    Heading,
    Options,
    Roi,
    Sections,
    argument,
    axes_option,
    channel_option,
    device_option,
    file_option,
    name_choices,
    network_option,
    option,
    overwrite_option,
    parse_roi,
    region_option,
    retries_option,
    run_option,
    same_place_option,
    sections_option,
    strict_option,
    take_over_option,
)
from unetcli.executors.options import ArrayOptions, ClusterOptions
from unetcli.volumes.other_formats import require_zarr_name

_planning = partial(option, heading=Heading.PLANNING)
Share = tuple[int, int] | Literal["auto"]
"""Share I of N, with I from 0; ``auto`` takes both from the environment of a SLURM array task."""


def parse_tile(text: str) -> int | None:
    """Parse ``--tile``: a side in voxels, or None for ``auto``.

    >>> parse_tile("572")
    572
    """
    if text == "auto":
        return None
    if not (text.isascii() and text.isdecimal()):
        raise UnetcliError(f"--tile {text}: expected a number of voxels such as 572, or auto")
    return int(text)


def parse_levels(text: str) -> int | None:
    """Parse ``--levels``: a number of levels, or None for ``auto``.

    >>> parse_levels("3")
    3
    """
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UnetcliError(f"--levels {text}: expected 1 (full resolution only), 2, 3, .. or auto")
    return int(text)


def parse_share(text: str) -> Share:
    """Parse ``--share``: I/N, with I from 0, or ``auto``.

    >>> parse_share("3/8")
    (3, 8)
    """
    if text == "auto":
        return "auto"
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise UnetcliError(f"--share {text}: expected I/N with I from 0 to N - 1, such as 3/8, or auto")
    return int(number), int(count)


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class VolumeOptions(Options):
    """Options that determine a plan: volume, region, network and output."""

    volume: str = field(kw_only=False, metadata=argument(f"Image: {IMAGE}", "VOLUME"))
    output: Place | None = file_option("OME-Zarr to write. Default: NAME.pred.zarr in the current folder.", short="-o")
    model: Path | tuple[Path, ...] | None = file_option(
        "Model file, or folder of a training; give it several times to average models. Default: ./model.",
        short="-m",
        env=True,
    )
    dtype: str = file_option(
        "Data type of the output: uint8 (255 times the probability), float16 or float32.", default="uint8"
    )
    output_classes: bool = file_option(
        "Write the most probable class of each voxel, as labels with names and colours, instead of probabilities.",
        default=False,
    )
    levels: int | None = file_option(
        "Number of resolution levels, each half as wide as the one before; auto: until 512 voxels wide.",
        default=1,
        parse=parse_levels,
        text="1",
    )
    max_files: int | None = file_option("Pack chunks into shards if there would be more files. Default: 250000.")
    zarr_format: int = file_option("Zarr version: 3 writes OME-Zarr 0.5, 2 writes OME-Zarr 0.4.", default=3)
    run_folder: Path | None = file_option(
        "Folder for the records of the run. Default: OUTPUT.run/predict. Required for s3:// outputs."
    )
    sections: Sections = sections_option()
    roi: Roi | None = region_option(
        "Predict only this region; voxels around it serve as context.", metavar="Z0:Z1,Y0:Y1,X0:X1", parse=parse_roi
    )
    mask: str | None = region_option(
        "Skip squares of 64 x 64 pixels where this mask is 0; they become background.", metavar="ZARR"
    )
    same_place: bool = same_place_option()
    skip_below: float | None = region_option(
        "Skip squares of 64 x 64 pixels whose values are all below V.", metavar="V"
    )
    channel: int | None = channel_option()
    axes: str | None = axes_option()
    level: int | None = region_option(
        "Resolution level of VOLUME to predict, counted from 0, the finest; as part of a name, image.zarr:level=2.",
        metavar="N",
        min=0,
    )
    rescale: bool = network_option(
        "Let the network see the pixel size of its training: VOLUME is resampled in y and x, and the probabilities are "
        "mapped back.",
        default=False,
    )
    tile: int | None = network_option(
        "Width of the tile that the network reads at once, in pixels; auto: up to 2236, as the memory allows.",
        env=True,
        parse=parse_tile,
        text="auto",
    )
    device: str | None = device_option()
    precision: str = network_option(
        "Number format of the network: float32, bfloat16, or auto: bfloat16 where it is faster and no tile shows.",
        default="auto",
    )
    normalise: str = network_option(
        "Normalise grey values by the statistics of the training images (model) or of VOLUME (volume).", default="model"
    )
    rotations: int = network_option(
        "Average the probabilities of N turned copies of each tile: 4 quarter turns, or 7 or 8 with mirror images.",
        default=1,
        metavar="1|4|7|8",
    )
    invert: bool = network_option("Invert the grey values: what is bright becomes dark.", default=False)
    overwrite: bool = overwrite_option()
    strict: bool = strict_option()

    def __post_init__(self) -> None:
        object.__setattr__(self, "volume", strip_scheme(self.volume))
        name_choices(self, "volume")
        object.__setattr__(self, "output", None if self.output is None else parse_place(self.output))
        object.__setattr__(self, "mask", strip_scheme(self.mask) if self.mask else None)
        require_zarr_name(self.output_path)
        super().__post_init__()

    @property
    def output_path(self) -> Place:
        """``--output``, else ``<name of the store>.pred.zarr`` in the current directory."""
        return self.output or Path(f"{stem(self.volume)}.pred.zarr")


@dataclass(frozen=True, kw_only=True)
class PredictRequest(VolumeOptions, ClusterOptions):
    """Options of ``predict``."""

    nonfinite: float | None = network_option(
        "Replace NaN and infinity by V. Default: report blocks that contain them and leave them out.", metavar="V"
    )
    share: Share | None = run_option(
        "Process only share I of N, counted from 0; auto: the share of this SLURM array element. The last share to "
        "finish marks the output complete.",
        metavar="I/N",
        parse=parse_share,
    )
    close: bool = run_option("Compute nothing; mark the output complete if all shares are done.", default=False)
    retries: int = retries_option()
    take_over: bool = take_over_option()
    remote: bool = False
    """Whether another machine computes: the device is not checked here, but by each worker."""
    threads: int | None = None
    """CPU threads of the network; None means all that this process may use."""


@dataclass(frozen=True, kw_only=True)
class PlanRequest(VolumeOptions, ArrayOptions):
    """Options of ``plan``."""

    probe: bool = _planning("Measure the speed of this device (a minute), for this and later plans.", default=False)
    tile_seconds: float | None = _planning("Seconds that one pass of a tile takes, if known.", metavar="S", min=1e-06)
    workers: int | None = _planning(
        "Number of workers (GPUs) at a time; adds the total time, the bandwidth and the bottleneck.", metavar="N", min=1
    )

    @classmethod
    def of(cls, request: PredictRequest) -> PlanRequest:
        """Options that plan a prediction, as ``predict --dry-run`` does."""
        return cls(**_planned(request))

    @property
    def prediction(self) -> PredictRequest:
        """Options of the prediction that is planned."""
        return PredictRequest(**_planned(self))


def _planned(request: PredictRequest | PlanRequest) -> dict[str, Any]:
    """The options that a prediction and its plan have in common."""
    shared = [*fields(VolumeOptions), *fields(ArrayOptions)]
    return {each.name: getattr(request, each.name) for each in shared}
