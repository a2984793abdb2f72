"""What a user asks of predict and of plan, before anything is resolved."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from unetcli.core.errors import UnetcliError
from unetcli.core.files import Place, parse_place, stem, strip_scheme
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
"""Share I, from 0, of N; ``auto``: as the SLURM array element that this process is says."""


def parse_tile(text: str) -> int | None:
    """A side in voxels, or ``auto``: None.

    >>> parse_tile("572")
    572
    """
    if text == "auto":
        return None
    if not (text.isascii() and text.isdecimal()):
        raise UnetcliError(f"--tile {text}: expected a number of voxels, as in 572, or auto")
    return int(text)


def parse_levels(text: str) -> int | None:
    """A number of levels, or ``auto``: None.

    >>> parse_levels("3")
    3
    """
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UnetcliError(f"--levels {text}: expected 1 (full resolution alone), 2, 3 .. or auto")
    return int(text)


def parse_share(text: str) -> Share:
    """``I/N`` as share I, from 0, of N; or ``auto``.

    >>> parse_share("3/8")
    (3, 8)
    """
    if text == "auto":
        return "auto"
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise UnetcliError(f"--share {text}: expected I/N with I from 0 to N - 1, as in 3/8, or auto")
    return int(number), int(count)


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class VolumeOptions(Options):
    """What is predicted, by which network, into which output: all that shapes a plan."""

    volume: str = field(
        kw_only=False, metadata=argument("Zarr, OME-Zarr, store.zarr/path/inside or TIFF stack.", "VOLUME")
    )
    output: Place | None = option("OME-Zarr to write. Default: NAME.pred.zarr here.", Heading.FILES, short="-o")
    model: Path | None = option("Model file or folder. Default: ./model.", Heading.FILES, short="-m", env=True)
    dtype: str = option(
        "Data type of the probabilities: uint8 (value / 255), float16 or float32.", Heading.FILES, default="uint8"
    )
    levels: int | None = option(
        "Resolution levels, each half the one before; auto: down to 512 wide.",
        Heading.FILES,
        default=1,
        parse=parse_levels,
        text="1",
    )
    max_files: int | None = option(
        "Pack chunks into shards where there would be more files. Default: 250000.", Heading.FILES
    )
    zarr_format: int = option("3 writes OME-Zarr 0.5, 2 writes OME-Zarr 0.4.", Heading.FILES, default=3)
    run_folder: Path | None = option(
        "Folder for plan and receipts. Default: OUTPUT.run/predict. Needed for s3:// outputs.", Heading.FILES
    )
    sections: Sections = sections_option()
    roi: Roi | None = option(
        "Only this region; the voxels around it serve as context.",
        Heading.REGION,
        metavar="Z0:Z1,Y0:Y1,X0:X1",
        parse=parse_roi,
    )
    mask: str | None = option(
        "Skip 64 x 64 cells where this volume is 0; they become background.", Heading.REGION, metavar="ZARR"
    )
    skip_below: float | None = option(
        "Skip 64 x 64 cells without a grey value of at least V.", Heading.REGION, metavar="V"
    )
    channel: int | None = channel_option()
    tile: int | None = option(
        "Input side of a forward pass; auto: 700 on a CPU, or what fits.",
        Heading.NETWORK,
        env=True,
        parse=parse_tile,
        text="auto",
    )
    device: str | None = device_option()
    precision: str = option("Precision of the network: float32 or bfloat16.", Heading.NETWORK, default="float32")
    normalise: str = option(
        "Whose statistics normalise the grey values: model or volume.", Heading.NETWORK, default="model"
    )
    overwrite: bool = overwrite_option()

    def __post_init__(self) -> None:
        object.__setattr__(self, "volume", strip_scheme(self.volume))
        object.__setattr__(self, "output", None if self.output is None else parse_place(self.output))
        object.__setattr__(self, "mask", strip_scheme(self.mask) if self.mask else None)
        super().__post_init__()

    @property
    def output_path(self) -> Place:
        """``--output``, else ``<name of the store>.pred.zarr`` in the current directory."""
        return self.output or Path(f"{stem(self.volume)}.pred.zarr")


@dataclass(frozen=True, kw_only=True)
class PredictRequest(VolumeOptions, ClusterOptions):
    """One call of predict."""

    nonfinite: float | None = option(
        "Put V for NaN and infinity. Default: their blocks are set aside.", Heading.NETWORK, metavar="V"
    )
    share: Share | None = option(
        "Only share I, from 0, of N; auto: as this SLURM array element says. The last one closes.",
        Heading.RUN,
        metavar="I/N",
        parse=parse_share,
    )
    close: bool = option("Compute nothing; mark complete what all shares finished.", Heading.RUN, default=False)
    retries: int = retries_option()
    take_over: bool = take_over_option()
    elsewhere: bool = False
    """Whether the device is another machine's: its kind is taken as given, and workers check it."""
    threads: int | None = None
    """CPU threads of the network; None: as many as this process may use."""


@dataclass(frozen=True, kw_only=True)
class PlanRequest(VolumeOptions, ArrayOptions):
    """One call of plan."""

    probe: bool = option(
        "Measure this device for a minute at most; the result is kept.", Heading.PLANNING, default=False
    )
    tile_seconds: float | None = option(
        "Seconds of one forward pass, if known.", Heading.PLANNING, metavar="S", min=1e-06
    )
    workers: int | None = option(
        "Workers (GPUs) at once: adds time, bandwidth and the weakest link.", Heading.PLANNING, metavar="N", min=1
    )

    @classmethod
    def of(cls, request: PredictRequest) -> PlanRequest:
        """The plan of a prediction: ``predict --dry-run``."""
        return cls(**_planned(request))

    @property
    def prediction(self) -> PredictRequest:
        """The prediction that is planned."""
        return PredictRequest(**_planned(self))


def _planned(request: PredictRequest | PlanRequest) -> dict[str, Any]:
    """The options that a prediction and its plan have in common."""
    shared = [*fields(VolumeOptions), *fields(ArrayOptions)]
    return {each.name: getattr(request, each.name) for each in shared}
