"""Which machines a prediction is planned for: this one, or those that a scheduler will give."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from unetcli.config import PredictRequest, Where
from unetcli.core.process import cpu_threads
from unetcli.executors.slurm.request import SlurmRequest

PROFILE = "UNETCLI_PROFILE"


def slurm_request(where: Where) -> SlurmRequest:
    """What is asked of SLURM: the profile of ``--profile`` or ``$UNETCLI_PROFILE``, and options over it."""
    named = where.profile or (Path(os.environ[PROFILE]) if os.environ.get(PROFILE) else None)
    return SlurmRequest.load(named, **where.slurm)


def with_machine(request: PredictRequest, where: Where) -> PredictRequest:
    """The request, planned for the machines that will run it, which may not be this one."""
    if where.cluster == "local":
        return replace(request, threads=max(1, cpu_threads() // where.workers)) if where.workers else request
    if where.scheduler:
        return replace(request, elsewhere=True, threads=request.threads or 1)
    asked = slurm_request(where)
    device = request.device or ("cuda" if asked.wants_gpu else "cpu")
    return replace(request, elsewhere=True, device=device, threads=request.threads or asked.cpus_per_task or 1)
