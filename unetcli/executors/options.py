"""Options of how a run is executed: cluster, SLURM, retries, run folder."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path

from unetcli.core.errors import UnetcliError
from unetcli.core.files import Place, parse_place
from unetcli.core.options import Heading, Option, Options, argument, device_option, option, take_over_option
from unetcli.executors.slurm.request import SlurmRequest, parse_extra

CLUSTERS = ("local", "slurm", "dask")
PROFILE = "UNETCLI_PROFILE"
SLURM = Heading.SLURM

tls_option = partial(
    option, "Folder with certificate.pem and key.pem, for tls://.", Heading.CLUSTER, metavar="FOLDER", env=True
)


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class SlurmOptions(Options):
    """What a job asks SLURM for: a profile, and options of ``sbatch`` that override it."""

    profile: Path | None = option("Requests to SLURM, as in slurm/gpu.toml.", SLURM, metavar="TOML", env=True)
    partition: str | None = option("As sbatch; overrides the profile.", SLURM, short="-p")
    account: str | None = option("As sbatch.", SLURM)
    qos: str | None = option("As sbatch.", SLURM)
    time: str | None = option("As sbatch: 30 (minutes), 04:00:00 or 1-00:00:00.", SLURM)
    gres: str | None = option("As sbatch: gpu:1, for sites that want it so.", SLURM)
    mem: str | None = option("As sbatch: 16G. Default: what plan expects.", SLURM)
    cpus_per_task: int | None = option("As sbatch; also the network's CPU threads.", SLURM)
    constraint: str | None = option("As sbatch.", SLURM)
    exclude: str | None = option("As sbatch: hosts that get no jobs.", SLURM)
    setup: tuple[str, ...] = option(
        "Line of shell before each job's work, as in 'module load cuda'. Repeatable.", SLURM, default=()
    )
    slurm: tuple[str, ...] = option("Any other option of sbatch. Repeatable.", SLURM, default=(), metavar="KEY=VALUE")


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class ArrayOptions(SlurmOptions):
    """Which machines are meant, and how a job array divides the blocks among them."""

    cluster: str = option(
        "local, slurm (a job array) or dask (workers as SLURM jobs).", Heading.CLUSTER, default="local", env=True
    )
    gpus: str | None = option("As sbatch: 1, a100:1.", SLURM)
    max_running: int | None = option("Jobs of the array that run at a time.", SLURM)
    blocks_per_job: int | None = option("Blocks of one job. Default: so many that starting takes under 2 %.", SLURM)

    def __post_init__(self) -> None:
        if self.cluster not in CLUSTERS:
            raise UnetcliError(f"--cluster {self.cluster}: expected {', '.join(CLUSTERS[:-1])} or {CLUSTERS[-1]}")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class ClusterOptions(ArrayOptions):
    """Where the blocks of a step run."""

    workers: int | None = option(
        "Processes here (default: one per GPU, or one), or Dask worker jobs.", Heading.CLUSTER, metavar="N"
    )
    detach: bool = option("With slurm: submit, print the array's id and return.", Heading.CLUSTER, default=False)
    scheduler: str | None = option(
        "With dask: a running scheduler, tls:// or tcp://.", Heading.CLUSTER, metavar="ADDRESS"
    )
    tls: Path | None = tls_option()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, only in (("detach", "slurm"), ("scheduler", "dask"), ("tls", "dask")):
            if getattr(self, name) and self.cluster != only:
                raise UnetcliError(f"--{name}: only with --cluster {only}")
        if self.workers is not None and self.workers < 1:
            raise UnetcliError(f"--workers {self.workers}: at least 1 is needed")
        if self.workers is not None and self.cluster == "slurm":
            raise UnetcliError("--workers: not with --cluster slurm; --max-running limits the jobs at a time")


@dataclass(frozen=True, kw_only=True)
class WorkerRequest(Options):
    """One call of worker: a process that works for a Dask scheduler."""

    scheduler: str = field(
        metadata={
            "option": Option("Dask scheduler: tls://.. or tcp://..", Heading.CLUSTER, metavar="ADDRESS", env=True)
        }
    )
    tls: Path | None = tls_option()
    memory: int | None = option(
        "As 16GB: restart a worker beyond 95 % of it. Default: no limit.",
        Heading.RUN,
        metavar="SIZE",
        parse=lambda text: parse_bytes(text),
    )
    name: str | None = option("Name of this worker in the scheduler.", Heading.RUN)
    death_timeout: float = option(
        "Give up where no scheduler answers for so long.", Heading.RUN, default=60, metavar="SECONDS", min=1
    )


def slurm_request(where: SlurmOptions) -> SlurmRequest:
    """What is asked of SLURM: the profile of ``--profile`` or ``$UNETCLI_PROFILE``, and options over it."""
    named = where.profile or (Path(os.environ[PROFILE]) if os.environ.get(PROFILE) else None)
    options = {each.name: getattr(where, each.name, None) for each in fields(SlurmRequest)}
    return SlurmRequest.load(named, **options | {"extra": parse_extra(list(where.slurm))})


def parse_bytes(size: str) -> int:
    """A size in bytes.

    >>> parse_bytes("16GB"), parse_bytes("1.5 GiB")
    (16000000000, 1610612736)
    """
    from dask.utils import parse_bytes  # half a second

    try:
        return int(parse_bytes(size))
    except ValueError as error:
        raise UnetcliError(f"--memory {size}: not a size; 16GB or 2GiB would be") from error


@dataclass(frozen=True, kw_only=True)
class RunRequest(Options):
    """Runs that write one output: one call of status."""

    output: Place = field(
        kw_only=False,
        metadata=argument("What predict writes or wrote, or labels in it: OUTPUT/labels/instances.", "OUTPUT"),
    )
    step: str | None = option("Only predict, instances (the labels' name) or evaluate.", Heading.RUN, metavar="NAME")
    run_folder: Path | None = option("Folder of plan and receipts. Default: below OUTPUT.run.", Heading.FILES)


@dataclass(frozen=True, kw_only=True)
class VerifyRequest(RunRequest):
    """One call of verify."""

    blocks: bool = option("Read every block back.", Heading.CHECKS, default=True, negative="--no-blocks")
    repair: bool = option("Compute damaged and missing blocks again.", Heading.CHECKS, default=False)
    seams: int = option(
        "Compute N windows across block borders again in other tiles, and compare.",
        Heading.CHECKS,
        default=0,
        metavar="N",
        min=0,
    )
    input: bool = option("Report whether volume or model changed since.", Heading.CHECKS, default=False)
    device: str | None = device_option()
    take_over: bool = take_over_option()
    retries: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", parse_place(self.output))
        super().__post_init__()
        if self.repair and not self.blocks:
            raise UnetcliError("--repair reads every block back; without --no-blocks it can")
