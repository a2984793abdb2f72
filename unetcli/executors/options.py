"""Options that control how a run is executed: cluster, SLURM, retries and run folder."""

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
    """Resources that a job requests from SLURM: a profile, and ``sbatch`` options that override it."""

    profile: Path | None = option("File of SLURM options, such as slurm/gpu.toml.", SLURM, metavar="TOML", env=True)
    partition: str | None = option("As in sbatch; overrides the profile.", SLURM, short="-p")
    account: str | None = option("As in sbatch.", SLURM)
    qos: str | None = option("As in sbatch.", SLURM)
    time: str | None = option("As in sbatch: 30 (minutes), 04:00:00 or 1-00:00:00.", SLURM)
    gres: str | None = option("As in sbatch: gpu:1, for sites that require it.", SLURM)
    mem: str | None = option("As in sbatch: 16G. Default: the estimate of plan.", SLURM)
    cpus_per_task: int | None = option("As in sbatch; also the network's CPU threads.", SLURM)
    constraint: str | None = option("As in sbatch.", SLURM)
    exclude: str | None = option("As in sbatch: hosts that get no jobs.", SLURM)
    setup: tuple[str, ...] = option(
        "Shell command to run first in each job, such as 'module load cuda'. Repeatable.", SLURM, default=()
    )
    slurm: tuple[str, ...] = option("Any other sbatch option. Repeatable.", SLURM, default=(), metavar="KEY=VALUE")


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class ArrayOptions(SlurmOptions):
    """Kind of cluster, and how a job array divides the blocks."""

    cluster: str = option(
        "local, slurm (a job array) or dask (workers as SLURM jobs).", Heading.CLUSTER, default="local", env=True
    )
    gpus: str | None = option("As in sbatch: 1 or a100:1.", SLURM)
    max_running: int | None = option("Maximum number of jobs of the array running at a time.", SLURM)
    blocks_per_job: int | None = option("Blocks per job. Default: enough to keep start-up under 2 %.", SLURM)

    def __post_init__(self) -> None:
        if self.cluster not in CLUSTERS:
            raise UnetcliError(f"--cluster {self.cluster}: expected {', '.join(CLUSTERS[:-1])} or {CLUSTERS[-1]}")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class ClusterOptions(ArrayOptions):
    """Options for the machines on which the blocks of a step run."""

    workers: int | None = option(
        "Local processes (default: one per GPU, or one), or Dask worker jobs.", Heading.CLUSTER, metavar="N"
    )
    detach: bool = option("With slurm: submit, print the array's id and return.", Heading.CLUSTER, default=False)
    scheduler: str | None = option(
        "With dask: address of a running scheduler, tls:// or tcp://.", Heading.CLUSTER, metavar="ADDRESS"
    )
    tls: Path | None = tls_option()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, only in (("detach", "slurm"), ("scheduler", "dask"), ("tls", "dask")):
            if getattr(self, name) and self.cluster != only:
                raise UnetcliError(f"--{name}: only with --cluster {only}")
        if self.workers is not None and self.workers < 1:
            raise UnetcliError(f"--workers {self.workers}: expected at least 1")
        if self.workers is not None and self.cluster == "slurm":
            raise UnetcliError("--workers: not with --cluster slurm; limit concurrent jobs with --max-running")


@dataclass(frozen=True, kw_only=True)
class WorkerRequest(Options):
    """Options of the command ``worker``, a process that works for a Dask scheduler."""

    scheduler: str = field(
        metadata={
            "option": Option("Dask scheduler, tls://.. or tcp://..", Heading.CLUSTER, metavar="ADDRESS", env=True)
        }
    )
    tls: Path | None = tls_option()
    memory: int | None = option(
        "Restart the worker above 95 % of this memory, such as 16GB. Default: no limit.",
        Heading.RUN,
        metavar="SIZE",
        parse=lambda text: parse_bytes(text),
    )
    name: str | None = option("Name of this worker at the scheduler.", Heading.RUN)
    death_timeout: float = option(
        "Give up if the scheduler does not answer for this long.", Heading.RUN, default=60, metavar="SECONDS", min=1
    )


def slurm_request(given: SlurmOptions) -> SlurmRequest:
    """Combine the profile of ``--profile`` or ``$UNETCLI_PROFILE`` with the options, which override it."""
    profile = given.profile or (Path(os.environ[PROFILE]) if os.environ.get(PROFILE) else None)
    options = {each.name: getattr(given, each.name, None) for each in fields(SlurmRequest)}
    return SlurmRequest.load(profile, **options | {"extra": parse_extra(list(given.slurm))})


def parse_bytes(size: str) -> int:
    """Parse an amount of memory, in bytes.

    >>> parse_bytes("16GB"), parse_bytes("1.5 GiB")
    (16000000000, 1610612736)
    """
    from dask.utils import parse_bytes  # takes half a second

    try:
        return int(parse_bytes(size))
    except ValueError as error:
        raise UnetcliError(f"--memory {size}: expected a size such as 16GB or 2GiB") from error


@dataclass(frozen=True, kw_only=True)
class RunRequest(Options):
    """Options of the command ``status``, which reports the runs that write one output."""

    output: Place = field(
        kw_only=False,
        metadata=argument("Output of predict, or labels inside it: OUTPUT/labels/instances.", "OUTPUT"),
    )
    step: str | None = option(
        "Only this step: predict, instances (the labels' name) or evaluate.", Heading.RUN, metavar="NAME"
    )
    run_folder: Path | None = option("Folder of plan and receipts. Default: inside OUTPUT.run.", Heading.FILES)


@dataclass(frozen=True, kw_only=True)
class VerifyRequest(RunRequest):
    """Options of the command ``verify``."""

    blocks: bool = option("Read every block back.", Heading.CHECKS, default=True, negative="--no-blocks")
    repair: bool = option("Recompute damaged and missing blocks.", Heading.CHECKS, default=False)
    seams: int = option(
        "Recompute N windows across block borders with other tiles, and compare.",
        Heading.CHECKS,
        default=0,
        metavar="N",
        min=0,
    )
    input: bool = option("Report whether volume or model changed since the run.", Heading.CHECKS, default=False)
    device: str | None = device_option()
    take_over: bool = take_over_option()
    retries: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", parse_place(self.output))
        super().__post_init__()
        if self.repair and not self.blocks:
            raise UnetcliError("--repair needs to read every block back; remove --no-blocks")
