"""Options that control how a run is executed: cluster, SLURM, retries and run folder."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path

from unetcli.core.errors import UnetcliError
from unetcli.core.files import Place, parse_place
from unetcli.core.options import (
    Heading,
    Option,
    Options,
    argument,
    cluster_option,
    device_option,
    file_option,
    option,
    run_option,
    take_over_option,
)
from unetcli.executors.slurm.request import SlurmRequest, parse_extra

CLUSTERS = ("local", "slurm", "dask")
PROFILE = "UNETCLI_PROFILE"

tls_option = partial(cluster_option, "Folder with certificate.pem and key.pem, for tls://.", metavar="FOLDER", env=True)
_slurm = partial(option, heading=Heading.SLURM)
_checks = partial(option, heading=Heading.CHECKS)


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class SlurmOptions(Options):
    """Resources that a job requests from SLURM: a profile, and ``sbatch`` options that override it."""

    profile: Path | None = _slurm("File of SLURM options, such as slurm/gpu.toml.", metavar="TOML", env=True)
    partition: str | None = _slurm("Partition, as for sbatch.", short="-p")
    account: str | None = _slurm("Account, as for sbatch.")
    qos: str | None = _slurm("Quality of service, as for sbatch.")
    time: str | None = _slurm("Time limit, as for sbatch: 30 (minutes), 04:00:00 or 1-00:00:00.")
    gres: str | None = _slurm("Generic resources, as for sbatch: gpu:1 (for sites without --gpus).")
    mem: str | None = _slurm("Memory of a job, as for sbatch: 16G. Default: the estimated need.")
    cpus_per_task: int | None = _slurm("CPU cores of a job, as for sbatch; all are used.")
    constraint: str | None = _slurm("Node features required, as for sbatch.")
    exclude: str | None = _slurm("Nodes not to use, as for sbatch.")
    setup: tuple[str, ...] = _slurm(
        "Shell command at the start of each job, such as 'module load cuda'. Repeatable.", default=(), metavar="COMMAND"
    )
    slurm: tuple[str, ...] = _slurm("Any other option of sbatch. Repeatable.", default=(), metavar="KEY=VALUE")


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class ArrayOptions(SlurmOptions):
    """Kind of cluster, and how a job array divides the blocks."""

    cluster: str = cluster_option(
        "Where to run: local, slurm (as a job array) or dask (with Dask workers).", default="local", env=True
    )
    gpus: str | None = _slurm("GPUs of a job, as for sbatch: 1 or a100:1.")
    max_running: int | None = _slurm("Maximum number of jobs of the array that run at a time.")
    blocks_per_job: int | None = _slurm("Blocks per job. Default: enough for start-up to take under 2 % of the time.")

    def __post_init__(self) -> None:
        if self.cluster not in CLUSTERS:
            raise UnetcliError(f"--cluster {self.cluster}: expected {', '.join(CLUSTERS[:-1])} or {CLUSTERS[-1]}")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class ClusterOptions(ArrayOptions):
    """Options for the machines on which the blocks of a step run."""

    workers: int | None = cluster_option(
        "Number of worker processes (default: one per GPU, else one), or of Dask worker jobs.", metavar="N"
    )
    detach: bool = cluster_option("With slurm: submit, print the job id and return.", default=False)
    scheduler: str | None = cluster_option(
        "With dask: address of a running scheduler, tls://HOST:PORT (tcp:// is not encrypted).", metavar="ADDRESS"
    )
    tls: Path | None = tls_option()

    @property
    def needs_slurm(self) -> bool:
        """Whether the workers are SLURM jobs."""
        return self.cluster == "slurm" or (self.cluster == "dask" and self.scheduler is None)

    @property
    def on_this_machine(self) -> bool:
        """Whether the workers are processes of this machine, which share its cores."""
        return self.cluster == "local"

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
            "option": Option(
                "Dask scheduler: tls://HOST:PORT (tcp:// is not encrypted).",
                Heading.CLUSTER,
                metavar="ADDRESS",
                env=True,
            )
        }
    )
    tls: Path | None = tls_option()
    memory: int | None = run_option(
        "Memory limit, such as 16GB; a worker that uses more than 95 % of it is restarted. Default: no limit.",
        metavar="SIZE",
        parse=lambda text: parse_bytes(text),
    )
    name: str | None = run_option("Name of this worker at the scheduler.")
    death_timeout: float = run_option(
        "Time to wait for the scheduler to answer before giving up.", default=60, metavar="SECONDS", min=1
    )


def unencrypted(scheduler: str) -> str | None:
    """Warning about the address of a Dask scheduler that is reached without encryption; None if it is encrypted.

    >>> unencrypted("tls://node1:8786") is None
    True
    """
    if scheduler.startswith("tls://"):
        return None
    return (
        f"--scheduler {scheduler}: not encrypted; whoever reaches its port can read the data and run code as you; "
        "start scheduler and workers with certificates, and use tls://HOST:PORT with --tls FOLDER"
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
        kw_only=False, metadata=argument("Output of predict, or labels in it: OUTPUT/labels/instances.", "OUTPUT")
    )
    step: str | None = run_option("Only predict, evaluate, or the labels of this name (instances).", metavar="NAME")
    run_folder: Path | None = file_option("Folder with the records of the run. Default: inside OUTPUT.run.")


@dataclass(frozen=True, kw_only=True)
class VerifyRequest(RunRequest):
    """Options of the command ``verify``."""

    blocks: bool = _checks("Read every block back and compare its checksum.", default=True, negative="--no-blocks")
    repair: bool = _checks("Compute damaged and missing blocks again.", default=False)
    seams: int = _checks(
        "Compute N windows across block borders again with other tiles, and compare.", default=0, metavar="N", min=0
    )
    input: bool = _checks("Report whether the volume or the model has changed.", default=False)
    device: str | None = device_option()
    take_over: bool = take_over_option()
    retries: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", parse_place(self.output))
        super().__post_init__()
        if self.repair and not self.blocks:
            raise UnetcliError("--repair needs to read every block back; remove --no-blocks")
