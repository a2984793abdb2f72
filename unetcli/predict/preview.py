"""Preview of a prediction before anything is written or submitted: the library call behind ``plan``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from unetcli.core.errors import require_no_warnings
from unetcli.core.geometry import Architecture
from unetcli.core.process import Machine, cpu_name, cpu_threads, may_have_gpu
from unetcli.core.records import to_json
from unetcli.executors.options import ClusterOptions, slurm_request
from unetcli.executors.slurm.request import SlurmRequest
from unetcli.model.file import read_header
from unetcli.planning.estimate import Estimate, StoredInput, averaging_bytes, estimate
from unetcli.planning.plan import FORMAT, Plan, differences
from unetcli.planning.pyramid_plan import pyramid_of
from unetcli.planning.timing import STARTUP_SECONDS, Rates, Timing, Traffic, timing, traffic
from unetcli.predict.models import find_models
from unetcli.predict.probe import Probe, cache_probe, find_cached, measure_plan, run_in_job
from unetcli.predict.request import PredictRequest
from unetcli.predict.resolve import ASSUMED_GPU_BYTES, folder_of, resolve_plan, with_machine
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import Volume

GIB = 2**30
MEMORY_MARGIN, TIME_MARGIN = 1.2, 1.5
"""Factors by which a SLURM request exceeds the estimate."""
GPU_JOB_CPUS = 4
"""CPUs of a GPU job, which read, decode and encode beside the GPU."""

Submit = Callable[[Callable[[str], dict[str, Any]], str], dict[str, Any]]
"""Function that runs ``task(text)`` in a job and returns its result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """Options of ``plan`` beyond those of the prediction."""

    workers: int | None = None
    """Workers that run at once; None if unknown."""
    tile_seconds: float | None = None
    """Seconds of one forward pass, if the user knows them."""
    probe: bool = False
    """Whether to measure the speed of a worker now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport:
    """A plan, its estimated cost, and the assumptions behind it."""

    request: PredictRequest
    source: Volume
    architecture: Architecture
    plan: Plan
    begun: bool
    """Whether the output has been begun; a rerun keeps its plan."""
    conflicts: tuple[str, ...]
    """Differences from the plan of an output that has been begun; predict would refuse to continue."""
    estimate: Estimate
    rates: Rates | None
    """Speed of a worker; None if unknown."""
    rates_reason: str | None
    """Why the speed is unknown, and how to measure it."""
    stored_bytes: int | None
    """Bytes of the output on disk; None unless a probe compressed a block of this volume."""
    timing: Timing
    traffic: Traffic | None
    """Load on the file system; None if the number of workers is unknown."""
    slurm: dict[str, str] | None
    """Options of sbatch for the jobs, without dashes; None for other clusters."""
    slurm_check: str | None
    """Answer of SLURM to these options."""
    assumed: tuple[str, ...]
    """Assumptions, as phrases."""
    warnings: tuple[str, ...] = ()
    """Warnings that this call gave: reasons to doubt the result."""

    @property
    def blocks_per_share(self) -> int:
        """Blocks of the largest share."""
        return math.ceil(self.plan.blocks / self.timing.shares)

    @property
    def gpu_hours(self) -> float | None:
        """Hours of the run on one worker, whatever its device; None if its speed is unknown."""
        seconds = self.timing.worker_seconds
        return None if seconds is None else seconds / 3600

    def to_dict(self) -> dict[str, Any]:
        """The report as ``plan --json`` prints it: sizes in voxels, memory in bytes, times in seconds or hours."""
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
            "rotations": plan.settings.rotations,
            "rescale": None if plan.settings.rescale is None else list(plan.settings.rescale),
            "models": [model.path for model in plan.sources.models],
            **estimated(
                "passes", "multiply_adds", "tile_multiply_adds", "input_bytes", "input_chunks", "receipts_bytes"
            ),
            "bandwidth": self.traffic.to_dict() if self.traffic else None,
            "slurm_check": self.slurm_check,
            "begun": self.begun,
            "conflicts": list(self.conflicts),
            "assumed": list(self.assumed),
            "warnings": list(self.warnings),
        }


def plan_volume(
    request: PredictRequest,
    cluster: ClusterOptions | None = None,
    options: PlanOptions | None = None,
    *,
    submit: Submit | None = None,
    check_job: Callable[[dict[str, str]], str] | None = None,
) -> PlanReport:
    """Plan a prediction and estimate its cost; no output is written, and without a probe no voxel is read.

    Parameters
    ----------
    request : PredictRequest
    cluster : ClusterOptions, optional
        Where the prediction would run. Default: as the request says.
    options : PlanOptions, optional
    submit : callable, optional
        Runs the probe in a job. Default: the probe runs in this process.
    check_job : callable, optional
        Returns the answer of SLURM to the options of a job.

    Raises
    ------
    UnetcliError
        Volume, model or options do not fit.
    """
    cluster, options = cluster or request, options or PlanOptions()
    request, asked = with_machine(request, cluster), slurm_request(cluster)
    models, source = find_models(request.model), open_volume(request.volume, parts=True)
    architecture, *others = [read_header(model).architecture for model in models]
    frozen = None if request.overwrite else folder_of(request).read_plan(Plan, FORMAT)
    machine, assumed = find_machine(request, frozen)
    plan = resolve_plan(request, source, models, frozen, machine)
    if request.precision == "auto" and frozen is None and plan.settings.precision != "float32":
        assumed = (*assumed, f"{plan.settings.precision} if two tiles agree; --precision fixes it")
    require_no_warnings()
    numbers = estimate(plan, architecture, stored_input(plan, source), others)
    numbers = replace(numbers, output_files=numbers.output_files + pyramid_of(plan).files)
    probe = None if options.tile_seconds else find_probe(plan, architecture, options, machine, submit)
    if probe is not None and probe.device_bytes is not None:
        numbers = replace(numbers, device_bytes=probe.device_bytes + averaging_bytes(plan, architecture, others))
    rates = find_rates(options, probe, plan)
    workers = options.workers or asked.max_running
    times = timing(numbers, plan.settings, rates, workers, asked.blocks_per_job)
    job = job_options(plan, numbers, times, asked) if cluster.cluster == "slurm" else None
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
        slurm_check=check_job(job) if check_job and job else None,
        assumed=assumed,
    )


def conflicts(frozen: Plan, plan: Plan) -> tuple[str, ...]:
    """Differences of a preview from a frozen plan; statistics and sources, which need voxels, are not compared."""
    known = replace(frozen.settings, mean=plan.settings.mean, std=plan.settings.std)
    if known.models == plan.settings.models:
        known = replace(known, others=plan.settings.others)
    return tuple(differences(replace(frozen, sources=plan.sources, settings=known), plan))


def stored_input(plan: Plan, source: Volume) -> StoredInput:
    """Storage layout of a volume, with the channels that the plan reads."""
    chunk, read = source.chunk_channels, source.channels if plan.settings.channel is None else 1
    files = math.ceil(read / chunk)
    return StoredInput(
        chunks=source.chunks,
        bytes_per_voxel=read * source.dtype.itemsize,
        chunk_bytes=math.prod(source.chunks) * files * chunk * source.dtype.itemsize,
        files_per_place=files,
    )


def sizes(plan: Plan, source: Volume, models: Sequence[Path], asked: SlurmRequest) -> tuple[Estimate, Timing]:
    """Estimate and shares of a plan; the size of shares follows from a cached probe if there is one."""
    architecture, *others = [read_header(model).architecture for model in models]
    numbers = estimate(plan, architecture, stored_input(plan, source), others)
    probe = find_cached(plan, architecture, None)
    rates = probe.rates(plan.sources.volume) if probe else None
    return numbers, timing(numbers, plan.settings, rates, asked.max_running, asked.blocks_per_job)


def find_machine(request: PredictRequest, frozen: Plan | None) -> tuple[Machine, tuple[str, ...]]:
    """The machine that will run a plan, and assumptions about it.

    Torch is imported only if the plan is for a GPU of this machine.
    """
    threads = frozen.settings.threads if frozen else request.threads or cpu_threads()
    remote, assumed = request.remote, list[str]()
    kept = request.device is None and frozen is not None
    kind = frozen.settings.device if kept and frozen else resolve_kind(request.device)
    if kind == "cpu":
        return Machine(device=kind, threads=threads, name=None if remote else cpu_name()), ()
    if kind == "cuda" and may_have_gpu() and not remote:
        return local_gpu(request.device, threads), ()
    if request.tile is None and frozen is None:
        assumed.append(f"{ASSUMED_GPU_BYTES // GIB} GiB free on a GPU that this machine lacks; --tile N fixes the tile")
    return Machine(device=kind, threads=threads, free_bytes=ASSUMED_GPU_BYTES), tuple(assumed)


def resolve_kind(name: str | None) -> str:
    """Kind of a device (cpu, cuda or mps); torch is imported only if a GPU is likely or the name is unusual."""
    if name in (None, "auto"):
        if not may_have_gpu():
            return "cpu"
    elif (kind := "cuda" if str(name).isdigit() else str(name).partition(":")[0]) in ("cpu", "cuda", "mps"):
        return kind
    from unetcli.model.network import resolve_device

    return resolve_device(name).type


def local_gpu(name: str | None, threads: int) -> Machine:
    """A GPU of this machine, with its name and free memory."""
    from unetcli.model.network import free_bytes, resolve_device
    from unetcli.predict.probe import device_name

    device = resolve_device(name)
    return Machine(device=device.type, threads=threads, name=device_name(device), free_bytes=free_bytes(device))


def find_probe(
    plan: Plan, architecture: Architecture, options: PlanOptions, machine: Machine, submit: Submit | None
) -> Probe | None:
    """A new probe if the options ask for one, else a cached one."""
    if not options.probe:
        return find_cached(plan, architecture, machine.name)
    probe = run_in_job(plan, submit) if submit else Probe.from_dict(measure_plan(to_json(plan, FORMAT)))
    cache_probe(probe)
    return probe


def find_rates(options: PlanOptions, probe: Probe | None, plan: Plan) -> Rates | None:
    """Speed of a worker, given by the user or measured by a probe."""
    if options.tile_seconds:
        return Rates(tile_seconds=options.tile_seconds, origin=f"by --tile-seconds {options.tile_seconds:g}")
    return probe.rates(plan.sources.volume) if probe else None


def stored_bytes(numbers: Estimate, probe: Probe | None, plan: Plan) -> int | None:
    """Bytes of the output on disk, if all blocks compress like the one that a probe stored."""
    if probe is None or probe.volume != plan.sources.volume:
        return None
    return int(probe.stored_fraction * numbers.output_bytes)


def no_measurement(plan: Plan, machine: Machine) -> str:
    """Reason why the time of a run is unknown, and how to measure it."""
    place = machine.name or ("a GPU" if machine.device == "cuda" else machine.device)
    return (
        f"this network was not measured with tile {plan.tile[-1]} in {plan.settings.precision} on {place}; "
        "--probe measures it in a minute, --tile-seconds S states it"
    )


def job_options(plan: Plan, numbers: Estimate, times: Timing, asked: SlurmRequest) -> dict[str, str]:
    """Long options of sbatch, without dashes; options of the user override the estimates."""
    on_gpu, running = plan.settings.device != "cpu", f"%{asked.max_running}" if asked.max_running else ""
    estimated = {
        "array": f"0-{times.shares - 1}{running}",
        "mem": f"{math.ceil(MEMORY_MARGIN * numbers.host_bytes / GIB)}G",
        "cpus-per-task": str(GPU_JOB_CPUS if on_gpu else plan.settings.threads),
    }
    if on_gpu and not asked.wants_gpu:
        estimated["gpus"] = "1"
    if times.seconds_per_block is not None:
        share = STARTUP_SECONDS + math.ceil(plan.blocks / times.shares) * times.seconds_per_block
        estimated["time"] = time_limit(TIME_MARGIN * share)
    return estimated | asked.options()


def time_limit(seconds: float) -> str:
    """A time limit of SLURM, rounded up to ten minutes.

    >>> time_limit(1800), time_limit(90_001)
    ('00:30:00', '25:10:00')
    """
    minutes = 10 * math.ceil(seconds / 600)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:00"
