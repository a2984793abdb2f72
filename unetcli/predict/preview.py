"""What a prediction would take, before anything is written or submitted: the library call behind ``plan``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from unetcli.core.geometry import Architecture
from unetcli.core.process import Machine, cpu_name, cpu_threads, may_have_gpu
from unetcli.core.records import to_json
from unetcli.executors.options import ClusterOptions, slurm_request
from unetcli.executors.slurm.request import SlurmRequest
from unetcli.model.file import find_model, read_header
from unetcli.planning.estimate import (
    STARTUP_SECONDS,
    Estimate,
    Rates,
    StoredInput,
    Timing,
    Traffic,
    estimate,
    timing,
    traffic,
)
from unetcli.planning.plan import FORMAT, Plan, differences
from unetcli.planning.pyramid_plan import pyramid_of
from unetcli.predict.probe import Probe, measure_plan, recall, remember, run_in_job
from unetcli.predict.request import PredictRequest
from unetcli.predict.resolve import GPU_BYTES_ELSEWHERE, folder_of, resolve_plan, with_machine
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import Volume

GIB = 2**30
MEMORY_MARGIN, TIME_MARGIN = 1.2, 1.5
"""What a SLURM request asks for beyond the estimate."""
GPU_JOB_CPUS = 4
"""To read, decode and encode beside a GPU."""

Submit = Callable[[Callable[[str], dict[str, Any]], str], dict[str, Any]]
"""Runs a task on one text in a job, and returns what it returned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What is asked beside the prediction itself."""

    workers: int | None = None
    """At once."""
    tile_seconds: float | None = None
    """Of one forward pass, where the user knows it."""
    probe: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport:
    """A plan, what it takes, and how sure that is."""

    request: PredictRequest
    source: Volume
    architecture: Architecture
    plan: Plan
    begun: bool
    """The output exists with a plan of its own, which a rerun keeps to."""
    conflicts: tuple[str, ...]
    """What differs from the plan that the output was begun with: predict would refuse."""
    estimate: Estimate
    rates: Rates | None
    rates_reason: str | None
    """Why there are none."""
    stored_bytes: int | None
    """Of the output on disk, where a probe compressed a block of this volume."""
    timing: Timing
    traffic: Traffic | None
    slurm: dict[str, str] | None
    slurm_check: str | None
    """What SLURM says to the request."""
    assumed: tuple[str, ...]
    """What had to be guessed, a sentence each."""

    @property
    def blocks_per_share(self) -> int:
        """Of the largest share."""
        return math.ceil(self.plan.blocks / self.timing.shares)

    @property
    def gpu_hours(self) -> float | None:
        """Hours of one worker, whatever its device."""
        seconds = self.timing.worker_seconds
        return None if seconds is None else seconds / 3600

    def to_dict(self) -> dict[str, Any]:
        plan, e = self.plan, self.estimate

        def estimated(*names: str) -> dict[str, Any]:
            return {name: getattr(e, name) for name in names}

        return {
            "tile": list(plan.tile),
            "step": list(plan.footprint.step(plan.tile)),
            "context": list(plan.footprint.context),
            "precision": plan.settings.precision,
            **estimated("blocks", "tiles"),
            "shares": self.timing.shares,
            "wasted_work": round(e.wasted_work, 4),
            **estimated("device_bytes", "host_bytes", "output_bytes", "output_files"),
            "gpu_hours": self.gpu_hours,
            "slurm": self.slurm,
            "gpu_hours_reason": self.rates_reason,
            "rates": asdict(self.rates) if self.rates else None,
            "seconds_per_block": self.timing.seconds_per_block,
            "blocks_per_share": self.blocks_per_share,
            "block_shape": list(plan.block_shape),
            "device": plan.settings.device,
            "stored_bytes": self.stored_bytes,
            **estimated("multiply_adds", "tile_multiply_adds", "input_bytes", "input_chunks", "receipts_bytes"),
            "bandwidth": self.traffic.to_dict() if self.traffic else None,
            "slurm_check": self.slurm_check,
            "begun": self.begun,
            "conflicts": list(self.conflicts),
            "assumed": list(self.assumed),
        }


def plan_volume(
    request: PredictRequest,
    where: ClusterOptions | None = None,
    question: PlanOptions | None = None,
    *,
    submit: Submit | None = None,
    site: Callable[[dict[str, str]], str] | None = None,
) -> PlanReport:
    """What predict would do with the same request; nothing is written, and without a probe no voxel is read.

    ``submit`` runs the probe in a job rather than here; ``site`` says what the site's SLURM thinks of a request.
    """
    where, question = where or request, question or PlanOptions()
    request, asked = with_machine(request, where), slurm_request(where)
    model, source = find_model(request.model), open_volume(request.volume)
    architecture = read_header(model).architecture
    frozen = None if request.overwrite else folder_of(request).read_plan(Plan, FORMAT)
    machine, assumed = find_machine(request, frozen)
    plan = resolve_plan(request, source, model, frozen, machine)
    numbers = estimate(plan, architecture, stored_input(plan, source))
    numbers = replace(numbers, output_files=numbers.output_files + pyramid_of(plan).files)
    probe = None if question.tile_seconds else find_probe(plan, architecture, question, machine, submit)
    if probe is not None and probe.device_bytes is not None:
        numbers = replace(numbers, device_bytes=probe.device_bytes)
    rates = find_rates(question, probe, plan)
    workers = question.workers or asked.max_running
    times = timing(numbers, plan.settings, rates, workers, asked.blocks_per_job)
    job = job_options(plan, numbers, times, asked) if where.cluster == "slurm" else None
    return PlanReport(
        request=request,
        source=source,
        architecture=architecture,
        plan=plan,
        begun=frozen is not None,
        conflicts=conflicts(frozen, plan) if frozen else (),
        estimate=numbers,
        rates=rates,
        rates_reason=None if rates else no_measurement(plan, machine),
        stored_bytes=stored_bytes(numbers, probe, plan),
        timing=times,
        traffic=traffic(numbers, workers, times.worker_seconds) if workers else None,
        slurm=job,
        slurm_check=site(job) if site and job else None,
        assumed=assumed,
    )


def conflicts(frozen: Plan, plan: Plan) -> tuple[str, ...]:
    """Settings in which a sketch differs from a frozen plan; what only the voxels would tell is taken as equal."""
    known = replace(frozen.settings, mean=plan.settings.mean, std=plan.settings.std)
    return tuple(differences(replace(frozen, sources=plan.sources, settings=known), plan))


def stored_input(plan: Plan, source: Volume) -> StoredInput:
    """How the volume lies on disk, with as many channels as are read."""
    chunk, read = source.chunk_channels, source.channels if plan.settings.channel is None else 1
    files = math.ceil(read / chunk)
    return StoredInput(
        chunks=source.chunks,
        bytes_per_voxel=read * source.dtype.itemsize,
        chunk_bytes=math.prod(source.chunks) * files * chunk * source.dtype.itemsize,
        files_per_place=files,
    )


def sizes(plan: Plan, source: Volume, model: Path, asked: SlurmRequest) -> tuple[Estimate, Timing]:
    """What the jobs of a plan need, and into how many shares it is divided; by a probe where one is remembered."""
    architecture = read_header(model).architecture
    numbers = estimate(plan, architecture, stored_input(plan, source))
    probe = recall(plan, architecture, None)
    rates = probe.rates(plan.sources.volume) if probe else None
    return numbers, timing(numbers, plan.settings, rates, asked.max_running, asked.blocks_per_job)


def find_machine(request: PredictRequest, frozen: Plan | None) -> tuple[Machine, tuple[str, ...]]:
    """Where the plan is to run, and what was assumed of it. Imports torch only where a GPU may be here and is meant."""
    threads = frozen.settings.threads if frozen else request.threads or cpu_threads()
    elsewhere, assumed = request.elsewhere, list[str]()
    kept = request.device is None and frozen is not None
    kind = frozen.settings.device if kept and frozen else kind_of_device(request.device)
    if kind == "cpu":
        return Machine(device=kind, threads=threads, name=None if elsewhere else cpu_name()), ()
    if kind == "cuda" and may_have_gpu() and not elsewhere:
        return gpu_here(request.device, threads), ()
    if request.tile is None and frozen is None:
        assumed.append(f"{GPU_BYTES_ELSEWHERE // GIB} GiB free on a GPU that is not at hand; --tile N fixes the tile")
    return Machine(device=kind, threads=threads, free_bytes=GPU_BYTES_ELSEWHERE), tuple(assumed)


def kind_of_device(name: str | None) -> str:
    """cpu, cuda or mps, of a device's name; torch is asked only where a GPU may be found, or the name is odd."""
    if name in (None, "auto"):
        if not may_have_gpu():
            return "cpu"
    elif (kind := "cuda" if str(name).isdigit() else str(name).partition(":")[0]) in ("cpu", "cuda", "mps"):
        return kind
    from unetcli.model.network import resolve_device

    return resolve_device(name).type


def gpu_here(name: str | None, threads: int) -> Machine:
    """The GPU meant, which is at hand."""
    from unetcli.model.network import free_bytes, resolve_device
    from unetcli.predict.probe import device_name

    device = resolve_device(name)
    return Machine(device=device.type, threads=threads, name=device_name(device), free_bytes=free_bytes(device))


def find_probe(
    plan: Plan, architecture: Architecture, question: PlanOptions, machine: Machine, submit: Submit | None
) -> Probe | None:
    """A probe made now where one is asked for, else one that is remembered."""
    if not question.probe:
        return recall(plan, architecture, machine.name)
    made = run_in_job(plan, submit) if submit else Probe.from_dict(measure_plan(to_json(plan, FORMAT)))
    remember(made)
    return made


def find_rates(question: PlanOptions, probe: Probe | None, plan: Plan) -> Rates | None:
    """How fast a worker is, by the user's word or by a probe."""
    if question.tile_seconds:
        return Rates(tile_seconds=question.tile_seconds, origin=f"by --tile-seconds {question.tile_seconds:g}")
    return probe.rates(plan.sources.volume) if probe else None


def stored_bytes(numbers: Estimate, probe: Probe | None, plan: Plan) -> int | None:
    """What the output takes on disk if all blocks compress like the one that a probe stored."""
    if probe is None or probe.volume != plan.sources.volume:
        return None
    return int(probe.stored_fraction * numbers.output_bytes)


def no_measurement(plan: Plan, machine: Machine) -> str:
    """Why there are no hours."""
    place = machine.name or ("a GPU" if machine.device == "cuda" else machine.device)
    return (
        f"no measurement of this network with tile {plan.tile[-1]} in {plan.settings.precision} on {place}; "
        "--probe makes one in a minute, --tile-seconds S gives it"
    )


def job_options(plan: Plan, numbers: Estimate, times: Timing, asked: SlurmRequest) -> dict[str, str]:
    """Long options of sbatch, without dashes; the user's own go before ours."""
    on_gpu, chosen = plan.settings.device != "cpu", asked.options()
    running = f"%{asked.max_running}" if asked.max_running else ""
    ours = {
        "array": f"0-{times.shares - 1}{running}",
        "mem": f"{math.ceil(MEMORY_MARGIN * numbers.host_bytes / GIB)}G",
        "cpus-per-task": str(GPU_JOB_CPUS if on_gpu else plan.settings.threads),
    }
    if on_gpu and not asked.wants_gpu:
        ours["gpus"] = "1"
    if times.seconds_per_block is not None:
        share = STARTUP_SECONDS + math.ceil(plan.blocks / times.shares) * times.seconds_per_block
        ours["time"] = time_limit(TIME_MARGIN * share)
    return ours | chosen


def time_limit(seconds: float) -> str:
    """At least that long, in steps of ten minutes, as SLURM writes it.

    >>> time_limit(1800), time_limit(90_001)
    ('00:30:00', '25:10:00')
    """
    minutes = 10 * math.ceil(seconds / 600)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:00"
