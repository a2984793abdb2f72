"""Options of ``predict`` and ``plan`` as the user gives them, before defaults are resolved."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from unetcli.core.errors import UnetcliError
from unetcli.core.files import Place, place_of, plain, stem
from unetcli.core.options import (
    Heading,
    Options,
    Roi,
    Sections,
    argument,
    channel_option,
    device_option,
    option,
    overwrite_option,
    parse_roi,
    retries_option,
    sections_option,
    take_over_option,
)
from unetcli.executors.options import ArrayOptions, ClusterOptions

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

    volume: str = field(
        kw_only=False, metadata=argument("Zarr, OME-Zarr, store.zarr/path/inside or TIFF stack.", "VOLUME")
    )
    output: Place | None = option("OME-Zarr to write. Default: ./NAME.pred.zarr.", Heading.FILES, short="-o")
    model: Path | None = option("Model file or folder. Default: ./model.", Heading.FILES, short="-m", env=True)
    dtype: str = option(
        "Data type of the probabilities: uint8 (value / 255), float16 or float32.", Heading.FILES, default="uint8"
    )
    levels: int | None = option(
        "Number of resolution levels; auto: until a plane is at most 512 wide.",
        Heading.FILES,
        default=1,
        parse=parse_levels,
        text="1",
    )
    max_files: int | None = option(
        "Pack chunks into shards if there would be more files. Default: 250000.", Heading.FILES
    )
    zarr_format: int = option("3 writes OME-Zarr 0.5, 2 writes OME-Zarr 0.4.", Heading.FILES, default=3)
    run_folder: Path | None = option(
        "Folder for plan and receipts. Default: OUTPUT.run/predict. Required for s3:// outputs.", Heading.FILES
    )
    sections: Sections = sections_option()
    roi: Roi | None = option(
        "Predict only this region; the voxels around it are used as context.",
        Heading.REGION,
        metavar="Z0:Z1,Y0:Y1,X0:X1",
        parse=parse_roi,
    )
    mask: str | None = option(
        "Skip 64 x 64 cells in which this volume is 0; they become background.", Heading.REGION, metavar="ZARR"
    )
    skip_below: float | None = option(
        "Skip 64 x 64 cells whose grey values are all below V.", Heading.REGION, metavar="V"
    )
    channel: int | None = channel_option()
    tile: int | None = option(
        "Input side of a forward pass in voxels; auto: at most 700 on a CPU, 2236 on a GPU.",
        Heading.NETWORK,
        env=True,
        parse=parse_tile,
        text="auto",
    )
    device: str | None = device_option()
    precision: str = option("Precision of the network: float32 or bfloat16.", Heading.NETWORK, default="float32")
    normalise: str = option(
        "Statistics that normalise the grey values: model or volume.", Heading.NETWORK, default="model"
    )
    overwrite: bool = overwrite_option()

    def __post_init__(self) -> None:
        object.__setattr__(self, "volume", plain(self.volume))
        object.__setattr__(self, "output", None if self.output is None else place_of(self.output))
        object.__setattr__(self, "mask", plain(self.mask) if self.mask else None)
        super().__post_init__()

    @property
    def output_path(self) -> Place:
        """``--output``, else ``<name of the store>.pred.zarr`` in the current directory."""
        return self.output or Path(f"{stem(self.volume)}.pred.zarr")


@dataclass(frozen=True, kw_only=True)
class PredictRequest(VolumeOptions, ClusterOptions):
    """Options of ``predict``."""

    nonfinite: float | None = option(
        "Replace NaN and infinity by V. Default: set their blocks aside.", Heading.NETWORK, metavar="V"
    )
    share: Share | None = option(
        "Compute only share I of N (from 0); auto: that of this SLURM task. The last share completes the output.",
        Heading.RUN,
        metavar="I/N",
        parse=parse_share,
    )
    close: bool = option("Complete an output whose shares are all finished.", Heading.RUN, default=False)
    retries: int = retries_option()
    take_over: bool = take_over_option()
    remote: bool = False
    """Whether another machine computes: the device is not checked here, but by each worker."""
    threads: int | None = None
    """CPU threads of the network; None means all that this process may use."""


@dataclass(frozen=True, kw_only=True)
class PlanRequest(VolumeOptions, ArrayOptions):
    """Options of ``plan``."""

    probe: bool = option(
        "Measure the speed of this device in about a minute, and save it.", Heading.PLANNING, default=False
    )
    tile_seconds: float | None = option(
        "Seconds of one forward pass, if known.", Heading.PLANNING, metavar="S", min=1e-06
    )
    workers: int | None = option(
        "Workers (GPUs) at once; shows time, bandwidth and the weakest link.", Heading.PLANNING, metavar="N", min=1
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
