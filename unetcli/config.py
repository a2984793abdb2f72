"""What a user asks for, before anything is resolved; ``None`` stands for "choose"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unetcli.core.errors import UnetcliError
from unetcli.core.files import Place, place_of, plain

CLUSTERS = ("local", "slurm", "dask")
Sections = tuple[int | None, int | None]
"""First and stop, as in a Python slice; None: from the start, to the end."""


Roi = tuple[Sections, ...]
"""First and stop along each of the last axes, z, y, x."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictRequest:
    """One call of predict."""

    volume: str
    output: Place | None = None
    model: Path | None = None
    tile: int | None = None
    sections: Sections = (None, None)
    dtype: str = "uint8"
    device: str | None = None
    elsewhere: bool = False
    """Whether the device is another machine's: its kind is taken as said, and workers check it."""
    threads: int | None = None
    """Of the network on a CPU; None: as many as this process may use."""
    precision: str = "float32"
    channel: int | None = None
    normalise: str = "model"
    nonfinite: float | None = None
    roi: Roi | None = None
    mask: str | None = None
    skip_below: float | None = None
    levels: int | None = 1
    """Resolution levels of the output; None: as many as are sensible."""
    max_files: int | None = None
    zarr_format: int = 3
    run_folder: Path | None = None
    retries: int = 1
    """How often a failed block is tried again, where there is one on another host."""
    overwrite: bool = False
    take_over: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "volume", plain(self.volume))
        object.__setattr__(self, "output", None if self.output is None else place_of(self.output))
        object.__setattr__(self, "mask", plain(self.mask) if self.mask else None)

    @property
    def output_path(self) -> Place:
        """``--output``, else ``<name of the store>.pred.zarr`` in the current directory."""
        return self.output or Path(f"{stem(self.volume)}.pred.zarr")


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """On which machines a prediction runs."""

    cluster: str = "local"
    """``local``, ``slurm`` or ``dask``."""
    workers: int | None = None
    """Processes (local) or worker jobs (dask); None: one per GPU, one on a CPU, or one job."""
    scheduler: str | None = None
    """Address of a Dask scheduler that runs already."""
    tls: Path | None = None
    """Folder of its certificate."""
    profile: Path | None = None
    """What to ask SLURM for, a TOML file."""
    slurm: Mapping[str, Any] = field(default_factory=dict)
    """The same by options, over the profile."""
    detach: bool = False

    def __post_init__(self) -> None:
        if self.cluster not in CLUSTERS:
            raise UnetcliError(f"--cluster {self.cluster}: expected {', '.join(CLUSTERS[:-1])} or {CLUSTERS[-1]}")
        for name, only in (("detach", "slurm"), ("scheduler", "dask"), ("tls", "dask")):
            if getattr(self, name) and self.cluster != only:
                raise UnetcliError(f"--{name}: only with --cluster {only}")
        if self.workers is not None and self.workers < 1:
            raise UnetcliError(f"--workers {self.workers}: at least 1 is needed")
        if self.workers is not None and self.cluster == "slurm":
            raise UnetcliError("--workers: not with --cluster slurm; --max-running limits the jobs at a time")


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyRequest:
    """One call of verify."""

    output: Place
    step: str | None = None
    """Only this one of a store: predict, pyramid, instances .., evaluate."""
    run_folder: Path | None = None
    blocks: bool = True
    """Read every block back."""
    repair: bool = False
    seams: int = 0
    """Windows to compute anew in other tiles."""
    input: bool = False
    """Compare volume and model with what they were."""
    device: str | None = None
    """For what is computed anew; None: as the run."""
    retries: int = 1
    take_over: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", place_of(self.output))
        if self.repair and not self.blocks:
            raise UnetcliError("--repair reads every block back; without --no-blocks it can")


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


def parse_sections(text: str | None) -> Sections:
    """``A:B`` as two numbers; either may be missing.

    >>> parse_sections("20:")
    (20, None)
    """
    if text is None:
        return (None, None)
    first, colon, stop = text.partition(":")
    try:
        if not colon:
            raise ValueError
        return (int(first) if first else None, int(stop) if stop else None)
    except ValueError:
        raise UnetcliError(f"--sections {text}: expected A:B, first and stop, as in 20:25, 20: or :5") from None


def parse_roi(text: str | None) -> Roi | None:
    """``z0:z1,y0:y1,x0:x1``, or fewer of the last axes.

    >>> parse_roi("3:5,10:,:200")
    ((3, 5), (10, None), (None, 200))
    """
    if text is None:
        return None
    try:
        return tuple(parse_sections(part.strip()) for part in text.split(","))
    except UnetcliError:
        raise UnetcliError(f"--roi {text}: expected z0:z1,y0:y1,x0:x1, as in 10:20,512:2048,0:1000") from None


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


def parse_share(text: str) -> tuple[int, int] | None:
    """``I/N`` as share I, from 0, of N; None for ``auto``.

    >>> parse_share("3/8")
    (3, 8)
    """
    if text == "auto":
        return None
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise UnetcliError(f"--share {text}: expected I/N with I from 0 to N - 1, as in 3/8, or auto")
    return int(number), int(count)


def resolve_sections(sections: Sections, count: int, name: str) -> tuple[int, int]:
    """First and stop within ``count`` sections.

    >>> resolve_sections((20, None), 25, "raw.zarr")
    (20, 25)
    """
    first = 0 if sections[0] is None else sections[0]
    stop = count if sections[1] is None else sections[1]
    if not 0 <= first < stop <= count:
        raise UnetcliError(f"--sections {first}:{stop}: {name} has sections 0:{count}")
    return first, stop


def stem(volume: str) -> str:
    """Name of the store or file without its ending, wherever in the store the array is.

    >>> stem("data/big.ome.zarr/raw/0"), stem("big.tif"), stem("s3://bucket/big.zarr")
    ('big', 'big', 'big')
    """
    parts = [part for part in volume.split("/") if part]
    store = next((part for part in parts if part.endswith((".zarr", ".tif", ".tiff"))), parts[-1])
    for ending in (".zarr", ".tif", ".tiff", ".ome"):
        store = store.removesuffix(ending)
    return store
