"""From what a user asks for to a plan: every "choose" is resolved once, and taken from the frozen plan afterwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from unetcli.core.arrays import file_sha256
from unetcli.core.errors import UnetcliError
from unetcli.core.files import absolute
from unetcli.core.process import Machine, cpu_threads
from unetcli.engine.runfolder import RunFolder
from unetcli.executors.options import ClusterOptions, slurm_request
from unetcli.model.file import ModelHeader, read_header
from unetcli.planning.plan import Plan, Settings, Sources
from unetcli.planning.planner import (
    CPU_TILE,
    MAX_FILES,
    Input,
    device_tile,
    largest_tile,
    make_plan,
    output_files,
    require_files,
)
from unetcli.planning.pyramid_plan import auto_levels, max_levels
from unetcli.predict.request import PredictRequest
from unetcli.predict.skipping import open_mask
from unetcli.volumes.volume import Volume, fingerprint, resolve_region, sampled_statistics

DTYPES = ("uint8", "float16", "float32")
PRECISIONS = ("float32", "bfloat16")
NORMALISE = ("model", "volume")
GPU_BYTES_ELSEWHERE = 16 * 2**30
"""Memory of a GPU that cannot be asked, when the tile is chosen. Workers with less take smaller tiles."""


def resolve_plan(
    request: PredictRequest, source: Volume, model: Path, frozen: Plan | None, machine: Machine | None = None
) -> Plan:
    """The plan that a request means for a volume and a model file.

    ``machine`` asks for a sketch: the plan as it would be there. No voxel is read for one and torch is not needed; it
    has neither fingerprints nor the volume's statistics, so it is only to be looked at.

    Raises
    ------
    UnetcliError
        The request names something that does not exist or does not fit the model.
    """
    require_known(request)
    header = read_header(model)
    require_match(request, source, header)
    settings = resolve_settings(request, source, header, frozen, machine)
    channels = source.channels if request.channel is None else 1
    if request.zarr_format not in (2, 3):
        raise UnetcliError(f"--zarr-format {request.zarr_format}: expected 3 (OME-Zarr 0.5) or 2 (OME-Zarr 0.4)")
    plan = make_plan(
        Input(
            axes=source.axes,
            extent=source.extent,
            chunks=source.chunks,
            bytes_per_voxel=channels * source.dtype.itemsize,
        ),
        resolve_region(request.sections, request.roi, source),
        header.architecture,
        resolve_tile(request, header, frozen, settings.device, machine),
        settings,
        Sources(
            volume=absolute(request.volume),
            volume_fingerprint="" if machine else fingerprint(source),
            model=absolute(str(model)),
            model_fingerprint="" if machine else file_sha256(model),
        ),
        max_files=request.max_files or (output_files(frozen) if frozen else MAX_FILES),
        zarr_format=request.zarr_format,
    )
    plan = replace(plan, levels=resolve_levels(request, plan, frozen))
    if request.max_files is not None or (request.zarr_format == 2 and frozen is None):
        require_files(plan, request.max_files or MAX_FILES)
    return plan


def require_known(request: PredictRequest) -> None:
    """Refuse values that no option has."""
    for option, known in (("dtype", DTYPES), ("precision", PRECISIONS), ("normalise", NORMALISE)):
        if (value := getattr(request, option)) not in known:
            raise UnetcliError(f"--{option} {value}: expected {', '.join(known[:-1])} or {known[-1]}")
    if request.skip_below is not None and not np.isfinite(request.skip_below):
        raise UnetcliError(f"--skip-below {request.skip_below}: expected a grey value, as in 12")


def require_match(request: PredictRequest, source: Volume, header: ModelHeader) -> None:
    """Refuse a volume whose channels or grey values are not the model's."""
    if request.channel is not None and not 0 <= request.channel < source.channels:
        raise UnetcliError(f"--channel {request.channel}: {source.path} has channels 0 to {source.channels - 1}")
    channels, expected = source.channels if request.channel is None else 1, header.architecture.in_channels
    if channels != expected:
        hint = "; --channel N picks one" if expected == 1 else ""
        raise UnetcliError(f"{source.path}: {channels} channels, the model takes {expected}{hint}")
    trained = np.dtype(header.intensity.dtype)
    both_floats = source.dtype.kind == trained.kind == "f"
    if request.normalise == "model" and source.dtype != trained and not both_floats:
        raise UnetcliError(
            f"{source.path}: {source.dtype}, but the model was trained on {trained}, another range of grey values; "
            f"convert it, or --normalise volume uses this volume's own mean and deviation"
        )


def resolve_tile(
    request: PredictRequest, header: ModelHeader, frozen: Plan | None, device: str, machine: Machine | None = None
) -> int:
    """The tile side asked for, else the frozen one, else the largest that is sensible on the device."""
    if request.tile is not None:
        return request.tile
    if frozen is not None:
        return frozen.tile[-1]
    if device == "cpu":
        return largest_tile(header.architecture.footprint(), CPU_TILE)
    if machine is not None and machine.free_bytes is not None:
        return device_tile(header.architecture, machine.free_bytes // 2)
    if request.elsewhere:
        return device_tile(header.architecture, GPU_BYTES_ELSEWHERE // 2)
    from unetcli.model.network import free_bytes, resolve_device

    return device_tile(header.architecture, free_bytes(resolve_device(request.device)) // 2)


def resolve_levels(request: PredictRequest, plan: Plan, frozen: Plan | None) -> int:
    """Resolution levels of the output: those asked for; with 1, the default, those that it was begun with."""
    shape = plan.region.shape
    if request.levels is None:
        return auto_levels(shape, plan.axes)
    most = max_levels(shape, plan.axes)
    if not 1 <= request.levels <= most:
        raise UnetcliError(f"--levels {request.levels}: expected 1 to {most}, where one voxel is left, or auto")
    return frozen.levels if frozen and request.levels == 1 else request.levels


def resolve_settings(
    request: PredictRequest, source: Volume, header: ModelHeader, frozen: Plan | None, machine: Machine | None = None
) -> Settings:
    """All other settings that show in the bytes of the result."""
    mean, std = header.intensity.mean, header.intensity.std
    if frozen is not None and frozen.settings.normalise == request.normalise == "volume":
        mean, std = frozen.settings.mean, frozen.settings.std
    elif request.normalise == "volume" and machine is None:
        mean, std = sampled_statistics(source, request.channel)
    device, threads = (machine.device, machine.threads) if machine else resolve_machine(request, frozen)
    classes = header.architecture.classes
    mask = open_mask(request.mask, source, header.architecture.footprint().lifted(len(source.axes)))
    return Settings(
        dtype=request.dtype,
        outputs=1 if classes == 2 else classes,
        channel=request.channel,
        normalise=request.normalise,
        mean=mean,
        std=std,
        nonfinite=request.nonfinite,
        device=device,
        precision=request.precision,
        threads=threads,
        mask=None if mask is None else mask.fingerprint(resolve_region(request.sections, request.roi, source)),
        skip_below=request.skip_below,
    )


def resolve_machine(request: PredictRequest, frozen: Plan | None) -> tuple[str, int]:
    """Kind of device and number of threads; a rerun takes the frozen ones, and so gives the same bytes."""
    if frozen is not None and request.device is None:
        return frozen.settings.device, frozen.settings.threads
    threads = frozen.settings.threads if frozen else request.threads
    if request.elsewhere:
        return kind_of(request.device or "cpu"), threads or 1
    from unetcli.model.network import resolve_device

    return resolve_device(request.device).type, threads or cpu_threads()


def kind_of(device: str) -> str:
    """The kind of a device by its name alone.

    >>> kind_of("cuda:1"), kind_of("0"), kind_of("cpu")
    ('cuda', 'cuda', 'cpu')
    """
    return "cuda" if device.isdigit() else device.partition(":")[0]


def folder_of(request: PredictRequest) -> RunFolder:
    """The run folder of a request: the one it names, else the one beside the output."""
    return RunFolder(request.run_folder) if request.run_folder else RunFolder.of(request.output_path)


def with_machine(request: PredictRequest, where: ClusterOptions) -> PredictRequest:
    """The request, planned for the machines that will run it, which may not be this one."""
    if where.cluster == "local":
        return replace(request, threads=max(1, cpu_threads() // where.workers)) if where.workers else request
    if where.scheduler:
        return replace(request, elsewhere=True, threads=request.threads or 1)
    asked = slurm_request(where)
    device = request.device or ("cuda" if asked.wants_gpu else "cpu")
    return replace(request, elsewhere=True, device=device, threads=request.threads or asked.cpus_per_task or 1)
