"""Which machines a prediction is planned for: this one, or those that a scheduler will give."""

from __future__ import annotations

from dataclasses import replace

from unetcli.core.machine import cpu_threads
from unetcli.executors.options import ClusterOptions, slurm_request
from unetcli.predict.request import PredictRequest


def with_machine(request: PredictRequest, where: ClusterOptions) -> PredictRequest:
    """The request, planned for the machines that will run it, which may not be this one."""
    if where.cluster == "local":
        return replace(request, threads=max(1, cpu_threads() // where.workers)) if where.workers else request
    if where.scheduler:
        return replace(request, elsewhere=True, threads=request.threads or 1)
    asked = slurm_request(where)
    device = request.device or ("cuda" if asked.wants_gpu else "cpu")
    return replace(request, elsewhere=True, device=device, threads=request.threads or asked.cpus_per_task or 1)
