"""From ``--cluster`` and its options to an executor that stands ready."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unetcli.config import PredictRequest, Where
from unetcli.executors.contract import Executor, JobFailure
from unetcli.executors.local import InProcess
from unetcli.executors.slurm_request import SlurmRequest
from unetcli.run import Run

log = logging.getLogger(__name__)

PROFILE = "UNETCLI_PROFILE"


def slurm_request(where: Where) -> SlurmRequest:
    """What is asked of SLURM: the profile of ``--profile`` or ``$UNETCLI_PROFILE``, and options over it."""
    named = where.profile or (Path(os.environ[PROFILE]) if os.environ.get(PROFILE) else None)
    return SlurmRequest.load(named, **where.slurm)


def with_machine(request: PredictRequest, where: Where) -> PredictRequest:
    """The request, planned for the machines that will run it, which may not be this one."""
    if where.cluster == "local":
        return replace(request, threads=threads_each(where.workers)) if where.workers else request
    if where.scheduler:
        return replace(request, elsewhere=True, threads=request.threads or 1)
    asked = slurm_request(where)
    device = request.device or ("cuda" if asked.wants_gpu else "cpu")
    return replace(request, elsewhere=True, device=device, threads=request.threads or asked.cpus_per_task or 1)


def threads_each(workers: int) -> int:
    """CPU threads for each of several processes here."""
    from unetcli.device import cpu_threads

    return max(1, cpu_threads() // workers)


@contextmanager
def executor_for(where: Where, run: Run) -> Iterator[Executor]:
    """The executor that was asked for; what it started ends with the block, except SLURM arrays."""
    if where.cluster == "slurm":
        yield slurm_array(where, run)
    elif where.cluster == "dask":
        with dask_cluster(where, run) as executor:
            yield executor
    else:
        with local(where, run) as executor:
            yield executor
