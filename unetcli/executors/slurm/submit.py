"""Submits functions of the package as SLURM jobs, through submitit."""

from __future__ import annotations

import io
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import Any

from unetcli.core.errors import UnetcliError
from unetcli.executors.slurm.commands import (
    SlurmError,
    array_limit,
    cancel,
    named,
    one_line,
    outside_of_jobs,
    require_slurm,
    run,
)
from unetcli.executors.slurm.request import SlurmRequest

SIGNAL_SECONDS = 90
"""Before the time limit, SLURM (it may be a minute early) tells the job by SIGUSR2."""


def submit_jobs(
    request: SlurmRequest,
    logs: Path,
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    *,
    name: str,
    nodes: int = 1,
    tasks_per_node: int = 1,
) -> list[str]:
    """Ids of jobs, ``123_0`` in an array, that call the function with one tuple of arguments each.

    Parameters
    ----------
    logs
        Folder that the nodes see. What belongs to the submission lies in ``logs/name``: nothing else should.
    function
        Of an importable module: it travels by name.
    name
        Of the jobs, too; unique, so that they can be found again.
    nodes, tasks_per_node
        Of one job: each task calls the function, with the same arguments.

    Raises
    ------
    UnetcliError
        No SLURM here, or it refuses; then nothing is left behind, no job and no file.
    """
    if not arguments:
        return []
    require_slurm()
    folder, limit = logs / name, array_limit()
    jobs: list[str] = []
    with _undone_where_refused(logs, folder, jobs):
        for start in range(0, len(arguments), limit):
            part = arguments[start : start + limit]
            jobs += _submit_array(request, folder, function, part, name, nodes, tasks_per_node)
    return jobs


@contextmanager
def _undone_where_refused(logs: Path, folder: Path, jobs: list[str]) -> Iterator[None]:
    made_logs = not logs.exists()
    folder.mkdir(parents=True)
    try:
        yield
    except BaseException:
        with suppress(SlurmError):
            cancel([*jobs, *named(folder.name)])  # by name too: an interrupt may come after sbatch has said yes
        shutil.rmtree(folder, ignore_errors=True)
        if made_logs:
            with suppress(OSError):
                logs.rmdir()
        raise


def _submit_array(
    request: SlurmRequest,
    folder: Path,
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    name: str,
    nodes: int,
    tasks_per_node: int,
) -> list[str]:
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = SlurmExecutor(folder)
    parameters = request.submitit_parameters()
    if nodes * tasks_per_node > 1:  # tasks that wait for one that failed would wait for long
        parameters["srun_args"] = [*(parameters["srun_args"] or []), "--kill-on-bad-exit=1"]
    executor.update_parameters(
        job_name=name,
        nodes=nodes,
        ntasks_per_node=tasks_per_node,
        array_parallelism=request.max_running or len(arguments),
        signal_delay_s=_signal_seconds(request),
        **parameters,
    )
    logging.getLogger("submitit").setLevel(logging.CRITICAL)  # its handlers would write to our stdout
    try:
        with outside_of_jobs(request.options()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            submitted = executor.map_array(function, *zip(*arguments, strict=True))
    except (FailedJobError, FailedSubmissionError) as error:
        raise UnetcliError(f"SLURM refuses the jobs: {one_line(str(error))}") from None
    for link in folder.glob(".submission_file_*.sh"):  # to the script, which has the job's id in its name
        link.unlink()
    return [str(job.job_id) for job in submitted]


def _signal_seconds(request: SlurmRequest) -> int:
    """Less where the whole limit is short."""
    limit = request.limit_minutes
    return SIGNAL_SECONDS if not limit else min(SIGNAL_SECONDS, limit * 60 // 4)


def log_of(logs: Path, name: str, job: str) -> Path:
    """What the job printed, and what SLURM said about it."""
    return logs / name / f"{job}_0_log.out"


def tidy(folder: Path) -> None:
    """Drop what carried function and results of a submission whose jobs have all ended; logs stay."""
    for pattern in ("*_submitted.pkl", "*_result.pkl", "*.save_tmp"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def complete(folder: Path, jobs: Sequence[str]) -> bool:
    """Whether submitit got so far as to give every job its function."""
    return all((folder / f"{job}_submitted.pkl").exists() for job in jobs)


def would_start(options: Mapping[str, str]) -> str:
    """When and where SLURM would start a job with these options of sbatch.

    Raises
    ------
    UnetcliError
        No SLURM here, or it would refuse.
    """
    require_slurm()
    flags = [f"--{name}" if value == "true" else f"--{name}={value}" for name, value in options.items()]
    with outside_of_jobs(options):
        try:
            return one_line(run("sbatch", "--test-only", *flags, "--wrap=true").stderr)
        except SlurmError as error:
            raise UnetcliError(f"SLURM would refuse the jobs: {error}") from None
