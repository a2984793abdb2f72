"""Measurement of the speed of one worker, in at most a minute, and a cache of the results for later plans."""

from __future__ import annotations

import json
import logging
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.arrays import checksum
from unetcli.core.errors import UnetcliError
from unetcli.core.files import replacing
from unetcli.core.geometry import Architecture, Box
from unetcli.core.process import cpu_name
from unetcli.core.records import OddFile, decoded, from_json, read_record, to_json
from unetcli.engine.clusters import cancel_jobs
from unetcli.executors.options import ClusterOptions, slurm_request
from unetcli.executors.slurm.journal import submit_jobs
from unetcli.executors.slurm.request import would_start
from unetcli.executors.slurm.watch import JobEnd, JobWatch
from unetcli.model.file import load_network, read_header
from unetcli.planning.estimate import CUDA_CONTEXT, multiply_adds
from unetcli.planning.plan import FORMAT, Plan, Tile
from unetcli.planning.timing import Rates
from unetcli.predict.stores import attributes_of, spec_of
from unetcli.volumes.image import Image
from unetcli.volumes.opening import open_volume
from unetcli.volumes.resampled import resampled
from unetcli.volumes.volume import Volume

if TYPE_CHECKING:
    import torch

    from unetcli.predict.predictor import Predictor

log = logging.getLogger(__name__)

SECONDS = 60.0
"""Approximate time limit of a probe."""
PROBE_TIME = "00:10:00"
"""Time limit of the SLURM job of a probe: a probe takes a minute, but libraries may load slowly."""
RUNS = 5
"""Forward passes that are timed if time allows; the median counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeKey:
    """Properties that the speed of a network depends on."""

    kind: str
    """Kind of device: cpu, cuda or mps."""
    device: str
    """Name of the CPU or GPU."""
    network: str
    """Architecture as JSON."""
    tile: int
    precision: str
    threads: int
    """CPU threads; 0 on a GPU, where they do not matter."""

    @classmethod
    def of(cls, plan: Plan, architecture: Architecture, device: str) -> ProbeKey:
        settings = plan.settings
        return cls(
            kind=settings.device,
            device=device,
            network=json.dumps(architecture.to_dict(), sort_keys=True),
            tile=plan.tile[-1],
            precision=settings.precision,
            threads=settings.threads if settings.device == "cpu" else 0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Measured speed of one worker."""

    key: ProbeKey
    tile_seconds: float
    """Seconds of one forward pass of the plan's tile."""
    volume: str
    """Path of the volume that was read."""
    read_bytes_per_second: float
    """Decoded input bytes per second; valid for this volume only."""
    write_bytes_per_second: float
    """Output bytes per second, counted before compression, when written to the folder for temporary files."""
    stored_fraction: float
    """Bytes on disk per byte of the result."""
    device_bytes: int | None
    """Peak memory of a GPU with the plan's tile; None on a CPU, where it is part of the process."""
    extrapolated_from: int | None
    """Side of the smaller tile that was measured instead, if the plan's tile would have taken too long."""
    when: str
    """Date and time (UTC) in ISO format."""
    seconds: float
    """Duration of the probe."""

    def rates(self, volume: str) -> Rates:
        """Rates for a plan of ``volume``; the read rate is unknown if another volume was measured."""
        key = self.key
        threads = f", {key.threads} thread{'s' if key.threads > 1 else ''}" if key.threads else ""
        scaled = f" with tile {self.extrapolated_from} and scaled" if self.extrapolated_from else ""
        return Rates(
            tile_seconds=self.tile_seconds,
            read_bytes_per_second=self.read_bytes_per_second if volume == self.volume else None,
            write_bytes_per_second=self.write_bytes_per_second,
            origin=f"measured on {key.device}{threads}{scaled}, {self.when[:10]}",
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Probe:
        """Restore a probe from plain values; raises ValueError if they are not those of a probe."""
        found: Probe = decoded(cls, values)
        return found


def cache_file() -> Path:
    """Path of the cache of probes: ``$XDG_CACHE_HOME/unetcli/probes.json``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "unetcli" / "probes.json"


def cached_probes() -> list[Probe]:
    """All probes in the cache; none if the file is missing or has another format."""
    try:
        return read_record(cache_file(), list[Probe], "")
    except (OSError, OddFile):
        return []


def cache_probe(probe: Probe) -> None:
    """Add a probe to the cache; it replaces one of the same key. A cache that cannot be written causes a warning."""
    others = [old for old in cached_probes() if old.key != probe.key]
    file = cache_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as draft:
            draft.write_text(json.dumps([asdict(one) for one in [*others, probe]], indent=1))
    except OSError as error:
        log.warning("%s: the probe is not saved (%s); set XDG_CACHE_HOME to a writable folder", file, error.strerror)


def find_cached(plan: Plan, architecture: Architecture, device: str | None) -> Probe | None:
    """The cached probe of a plan's network, tile, precision and threads.

    Parameters
    ----------
    plan : Plan
    architecture : Architecture
    device : name of a CPU or GPU
        None means the latest probe on any device of the plan's kind.
    """
    wanted = ProbeKey.of(plan, architecture, device or "")
    names = [field.name for field in fields(ProbeKey) if field.name != "device" or device]
    fitting = [p for p in cached_probes() if all(getattr(p.key, n) == getattr(wanted, n) for n in names)]
    return max(fitting, key=lambda probe: probe.when, default=None)


def run_in_job(plan: Plan, submit: Callable[[Callable[[str], dict[str, Any]], str], dict[str, Any]]) -> Probe:
    """Measure a plan in a job; ``submit(task, text)`` runs ``task(text)`` there and returns its result."""
    return Probe.from_dict(submit(measure_plan, to_json(plan, FORMAT)))


def measure_plan(text: str) -> dict[str, Any]:
    """Measure a plan given as JSON and return the probe as plain values; this is the task of a job."""
    from unetcli.core.process import prepare

    prepare()  # before torch is imported
    plan = from_json(Plan, text, FORMAT, "plan")
    return asdict(measure(plan, Path(plan.sources.model), open_volume(plan.sources.volume, parts=True)))


def measure(plan: Plan, model: Path, source: Volume, seconds: float = SECONDS) -> Probe:
    """Measure forward passes, reading of one window, and encoding and writing of one block on this machine.

    Parameters
    ----------
    plan : Plan
    model : path of the model file
    source : Volume
    seconds : approximate time limit
        If the plan's tile would take too long, a smaller one is measured and its time extrapolated.
    """
    import torch

    from unetcli.model.network import exact_float32, resolve_device
    from unetcli.predict.predictor import Predictor

    started = time.perf_counter()
    exact_float32()
    torch.set_num_threads(plan.settings.threads)
    device = resolve_device(plan.settings.device)
    architecture = read_header(model).architecture
    predictor = Predictor(load_network(model), replace(plan.settings, rotations=1, others=(), rescale=None), device)
    block = plan.block(plan.blocks // 2)
    tile = next(plan.tiles(block))
    read_rate, voxels = _time_reading(plan, resampled(source, plan.settings.rescale), tile, seconds / 6)
    side, tile_seconds = _time_forward(plan, predictor, architecture, seconds / 2)
    values = predictor(voxels[:, : plan.tile[-2], : plan.tile[-1]])
    write_rate, stored = _time_writing(plan, source, values)
    return Probe(
        key=ProbeKey.of(plan, architecture, device_name(device)),
        tile_seconds=tile_seconds,
        volume=plan.sources.volume,
        read_bytes_per_second=read_rate,
        write_bytes_per_second=write_rate,
        stored_fraction=stored,
        device_bytes=_device_peak(device) if side == plan.tile[-1] else None,
        extrapolated_from=None if side == plan.tile[-1] else side,
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - started, 3),
    )


def device_name(device: torch.device) -> str:
    """Product name of a GPU or of this machine's CPU."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def _time_forward(plan: Plan, predictor: Predictor, architecture: Architecture, seconds: float) -> tuple[int, float]:
    """Side of the tile that was measured, and seconds of a pass of the plan's tile, extrapolated if it is larger.

    The smallest tile is measured first: as a warm-up, and to predict the time of larger ones.
    """
    axis, whole = plan.footprint.axes[-1], plan.tile[-1]
    smallest = axis.side_for(1)
    needed = multiply_adds(architecture, (whole, whole))

    def passes(side: int) -> float:
        return multiply_adds(architecture, (side, side)) / needed

    _time_pass(predictor, architecture, smallest)
    expected = _time_pass(predictor, architecture, smallest) / passes(smallest)
    sides = range(whole, smallest - 1, -axis.alignment)
    side = next((s for s in sides if 2 * expected * passes(s) < seconds), smallest)
    times: list[float] = []
    ends = time.perf_counter() + seconds
    _time_pass(predictor, architecture, side)  # the first pass of a size prepares kernels
    while len(times) < RUNS and (not times or time.perf_counter() + times[-1] < ends):
        times.append(_time_pass(predictor, architecture, side))
    return side, float(np.median(times)) / passes(side)


def _time_pass(predictor: Predictor, architecture: Architecture, side: int) -> float:
    voxels = np.zeros((architecture.in_channels, side, side), np.float32)
    started = time.perf_counter()
    predictor(voxels)  # returns an array on the host, so the device has finished
    return time.perf_counter() - started


def _time_reading(plan: Plan, source: Volume, tile: Tile, seconds: float) -> tuple[float, NDArray[Any]]:
    """Decoded bytes per second, and the voxels (c, y, x) of a tile; a whole window is timed if that is fast enough."""
    block = plan.block(plan.blocks // 2)
    window = plan.window(block)
    started = time.perf_counter()
    voxels = source.read(tile.read, plan.settings.channel)
    box, took = tile.read, time.perf_counter() - started
    if took * window.size / tile.read.size < seconds:
        started = time.perf_counter()
        source.read(window, plan.settings.channel)
        box, took = window, time.perf_counter() - started
    plane = voxels.reshape(voxels.shape[0], *voxels.shape[-2:])
    return _chunk_bytes(plan, source, box) / max(took, 1e-6), plane


def _chunk_bytes(plan: Plan, source: Volume, box: Box) -> int:
    """Decoded bytes of the chunks that overlap a box."""
    inner = box.clipped(source.whole())
    places = [
        -(-stop // chunk) - start // chunk
        for start, stop, chunk in zip(inner.start, inner.stop, source.chunks, strict=True)
    ]
    channels = source.channels if plan.settings.channel is None else 1
    return int(np.prod(places) * np.prod(source.chunks)) * source.dtype.itemsize * channels


def _time_writing(plan: Plan, source: Volume, values: NDArray[Any]) -> tuple[float, float]:
    """Output bytes per second through checksum, codec and file system, and bytes on disk per byte.

    The block consists of repeated real values of a tile, because noise would compress differently.
    """
    block = plan.block(plan.blocks // 2)
    box = plan.output_box(block)
    filled = _repeated(values, block.box.shape)
    with tempfile.TemporaryDirectory(prefix="unetcli-probe-") as folder:
        image = Image(Path(folder) / "probe.zarr", spec_of(plan))
        image.create(attributes_of(plan, image.path, source))
        array = image.level.open()
        started = time.perf_counter()
        checksum(filled)
        image.level.write(array, box, filled)
        took = time.perf_counter() - started
        stored = sum(file.stat().st_size for file in image.level.files(box) if file.exists())
    return filled.nbytes / max(took, 1e-6), stored / filled.nbytes


def _repeated(values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Values (outputs, y, x) repeated to fill (outputs, \\*shape)."""
    times = [-(-n // have) for n, have in zip(shape[-2:], values.shape[-2:], strict=True)]
    plane = np.tile(values, (1, *times))[:, : shape[-2], : shape[-1]]
    lead = (1,) * (len(shape) - 2)
    return np.ascontiguousarray(
        np.broadcast_to(plane.reshape(plane.shape[0], *lead, *shape[-2:]), (len(values), *shape))
    )


def _device_peak(device: torch.device) -> int | None:
    import torch

    return torch.cuda.max_memory_reserved(device) + CUDA_CONTEXT if device.type == "cuda" else None


def check_by_slurm(options: Mapping[str, str]) -> str:
    """Answer of SLURM to the options of a job: when it would start, or why it is refused or SLURM is not found."""
    try:
        return would_start(options)
    except UnetcliError as error:
        return str(error)


def probe_in_job(cluster: ClusterOptions) -> Callable[[Callable[[str], dict[str, Any]], str], dict[str, Any]]:
    """Return a function that runs ``task(text)`` in a short SLURM job and returns its result."""

    def submit(task: Callable[[str], dict[str, Any]], text: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix=".unetcli-probe-", dir=Path.cwd()) as folder:  # visible to all nodes
            result = Path(folder) / "result.json"
            request = replace(slurm_request(cluster), time=PROBE_TIME)
            arguments = [(task, text, str(result))]
            jobs = submit_jobs(request, Path(folder), write_result, arguments, name=f"unetcli-{secrets.token_hex(6)}")
            log.info("probe: SLURM job %s", jobs[0])
            try:
                end = wait_for_end(jobs)
            finally:
                cancel_jobs(jobs)
            if not result.exists():
                raise UnetcliError(f"probe: job {end.job} on {end.host} failed: {end.reason}")
            return read_record(result, dict[str, Any], "plan once more")

    return submit


def write_result(task: Callable[[str], dict[str, Any]], text: str, path: str) -> None:
    """Run a task and store its result as JSON; this is what the job of a probe executes."""
    with replacing(Path(path)) as draft:
        draft.write_text(json.dumps(task(text)))


def wait_for_end(jobs: Sequence[str]) -> JobEnd:
    """Wait until the first of some jobs ends."""
    watch = JobWatch(jobs, every=2)
    while True:
        if ends := watch.poll():
            return ends[0]
        time.sleep(0.5)
