"""Resolution of a request to a plan: each automatic choice is made once, and reruns take it from the frozen plan."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from unetcli.core.arrays import PerChannel, as_per_channel, file_sha256
from unetcli.core.errors import UnetcliError, warn
from unetcli.core.files import absolute
from unetcli.core.geometry import Architecture
from unetcli.core.memory import available_memory, total_memory
from unetcli.core.process import Machine, cpu_threads, usable_cores
from unetcli.core.rescaling import Rescaling
from unetcli.engine.runfolder import RunFolder
from unetcli.executors.options import ClusterOptions, slurm_request
from unetcli.model.file import ModelHeader, read_model
from unetcli.planning.estimate import device_bytes
from unetcli.planning.plan import DTYPES, ROTATIONS, ModelSource, Plan, Settings, Sources, Statistics, stored_values
from unetcli.planning.planner import (
    KNOWN_TO_FIT,
    LARGEST_TILE,
    MAX_FILES,
    Input,
    device_tile,
    largest_tile,
    make_plan,
    output_files,
    require_files,
)
from unetcli.planning.pyramid_plan import auto_levels, max_levels
from unetcli.predict.comparison import (
    Sample,
    grey_warnings,
    inverted,
    metadata_warnings,
    total_for_inversion,
    turn_warnings,
)
from unetcli.predict.models import require_agreeing
from unetcli.predict.precision import choose_precision, foreseen_precision
from unetcli.predict.request import PredictRequest
from unetcli.predict.rescale import resolve_rescale
from unetcli.predict.skipping import open_mask
from unetcli.volumes.places import (
    format_sizes,
    require_same_place,
    require_same_voxels,
    sizes_differ,
    stated_sizes,
)
from unetcli.volumes.resampled import resampled
from unetcli.volumes.samples import fingerprint, sampled_statistics
from unetcli.volumes.volume import Volume, resolve_region

PRECISIONS = ("auto", "float32", "bfloat16")
NORMALISE = ("model", "volume")
MOST_CLASSES = 256
"""Number of classes that uint8 can name."""
ASSUMED_GPU_BYTES = 16 * 2**30
"""Free memory that is assumed of a GPU of another machine when the tile is chosen. Workers with less memory use
smaller tiles."""


def resolve_plan(
    request: PredictRequest, source: Volume, models: Sequence[Path], frozen: Plan | None, machine: Machine | None = None
) -> Plan:
    """Resolve a request to a plan.

    Parameters
    ----------
    request : PredictRequest
    source : Volume
        The opened volume of the request.
    models : paths of the model files
        Their probabilities are averaged.
    frozen : Plan, optional
        Plan of an earlier run into the same output; automatic choices are taken from it.
    machine : Machine, optional
        If given, the plan is a preview for this machine. It has no fingerprints and no statistics of the volume, so
        it must not be run; but no voxel is read and torch is not needed.

    Raises
    ------
    UnetcliError
        An option has a bad value, or volume, model and options do not fit each other.
    """
    require_known(request)
    headers = [read_model(model)[0] for model in models]
    for header in headers:
        require_match(request, source, header)
    require_agreeing(models, headers, source)
    region = resolve_region(request.sections, request.roi, source)
    rescale = resolve_rescale(source, models, headers) if request.rescale else None
    seen = resampled(source, rescale)
    require_turnable(request, seen)
    seen_region = region if rescale is None else Rescaling(source.extent, rescale).needed(region)
    sample = None if machine else Sample.of(seen, seen_region, request.channel)
    settings = replace(resolve_settings(request, source, seen, headers, frozen, machine, sample), rescale=rescale)
    if request.precision == "auto" and frozen is None and machine is None:
        chosen = choose_precision(request, source, seen_region, models, headers[0].architecture, settings)
        settings = replace(settings, precision=chosen)
    compare(request, seen, dict(zip(models, headers, strict=True)), settings, sample)
    first, *others = [
        ModelSource(path=absolute(str(model)), fingerprint="" if machine else file_sha256(model)) for model in models
    ]
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
        region,
        headers[0].architecture,
        min(resolve_tile(request, header, frozen, settings, machine) for header in headers),
        settings,
        Sources(
            volume=absolute(request.volume),
            volume_fingerprint="" if machine else fingerprint(source),
            model=first.path,
            model_fingerprint=first.fingerprint,
            others=tuple(others),
        ),
        max_files=request.max_files or (output_files(frozen) if frozen else MAX_FILES),
        zarr_format=request.zarr_format,
    )
    plan = replace(plan, levels=resolve_levels(request, plan, frozen))
    if request.max_files is not None or (request.zarr_format == 2 and frozen is None):
        require_files(plan, request.max_files or MAX_FILES)
    return plan


def require_known(request: PredictRequest) -> None:
    """Raise :class:`UnetcliError` if an option has an unknown value."""
    for option, known in (("dtype", DTYPES), ("precision", PRECISIONS), ("normalise", NORMALISE)):
        if (value := getattr(request, option)) not in known:
            raise UnetcliError(f"--{option} {value}: expected {', '.join(known[:-1])} or {known[-1]}")
    if request.output_classes and request.dtype != "uint8":
        raise UnetcliError(f"--dtype {request.dtype}: --output-classes writes whole numbers as uint8; omit --dtype")
    if request.rotations not in ROTATIONS:
        raise UnetcliError(f"--rotations {request.rotations}: expected 1, 4, 7 or 8")
    if request.skip_below is not None and not np.isfinite(request.skip_below):
        raise UnetcliError(f"--skip-below {request.skip_below}: expected a finite grey value such as 12")


def require_match(request: PredictRequest, source: Volume, header: ModelHeader) -> None:
    """Raise :class:`UnetcliError` if the channels or grey values of the volume do not fit the model."""
    if request.channel is not None and not 0 <= request.channel < source.channels:
        raise UnetcliError(f"--channel {request.channel}: {source.path} has channels 0 to {source.channels - 1}")
    channels, expected = source.channels if request.channel is None else 1, header.architecture.in_channels
    if channels != expected:
        hint = "; --channel N selects one" if expected == 1 else ""
        hint += ", and --axes zyx reads them as sections" if hint and "c" in source.assumed else ""
        raise UnetcliError(f"{source.path}: has {channels} channels, but the model takes {expected}{hint}")
    if request.output_classes and header.architecture.classes > MOST_CLASSES:
        raise UnetcliError(
            f"--output-classes: the model has {header.architecture.classes} classes; expected at most {MOST_CLASSES}"
        )
    trained = np.dtype(header.intensity.dtype)
    both_floats = source.dtype.kind == trained.kind == "f"
    if request.normalise == "model" and source.dtype != trained and not both_floats:
        raise UnetcliError(
            f"{source.path}: has {source.dtype} values, but the model was trained on {trained}, another range of grey "
            f"values; convert the volume, or use its own mean and standard deviation with --normalise volume"
        )


def resolve_tile(
    request: PredictRequest, header: ModelHeader, frozen: Plan | None, settings: Settings, machine: Machine | None
) -> int:
    """Input side of a tile: that of the request, else the frozen one, else the largest that suits the device.

    Larger tiles repeat less context: in the paper's network, a tile of 700 costs 28 % more multiply-adds than one
    without end, and one of 2236 costs 6 % more.
    """
    if request.tile is not None:
        return request.tile
    if frozen is not None:
        return frozen.tile[-1]
    if settings.device == "cpu":
        footprint = header.architecture.footprint()
        return largest_tile(footprint, KNOWN_TO_FIT) if request.remote else cpu_tile(header.architecture, settings)
    if machine is not None and machine.free_bytes is not None:
        return device_tile(header.architecture, machine.free_bytes // 2)
    if request.remote:
        return device_tile(header.architecture, ASSUMED_GPU_BYTES // 2)
    from unetcli.model.network import free_bytes, resolve_device

    return device_tile(header.architecture, free_bytes(resolve_device(request.device)) // 2)


def cpu_tile(architecture: Architecture, settings: Settings) -> int:
    """Largest input side whose forward pass fits a quarter of the memory, and half of what is free.

    Of several workers, each has the part that belongs to its threads.
    """
    share = settings.threads / usable_cores()
    room = share * min(total_memory() / 4, available_memory()[0] / 2)
    footprint = architecture.footprint()
    known, largest = (largest_tile(footprint, side) for side in (KNOWN_TO_FIT, LARGEST_TILE))
    sides = range(largest, known, -footprint.axes[-1].alignment)
    return next((side for side in sides if device_bytes(architecture, side, "cpu", settings.precision) <= room), known)


def resolve_levels(request: PredictRequest, plan: Plan, frozen: Plan | None) -> int:
    """Number of resolution levels: that of the request; if it is 1, the default, that of the frozen plan."""
    shape = plan.region.shape
    if request.levels is None:
        return auto_levels(shape, plan.axes)
    most = max_levels(shape, plan.axes)
    if not 1 <= request.levels <= most:
        raise UnetcliError(f"--levels {request.levels}: expected 1 to {most} (one voxel wide), or auto")
    return frozen.levels if frozen and request.levels == 1 else request.levels


OTHER_MASK = "--mask covers another region; if it does not, --same-place says so"


def compare(
    request: PredictRequest,
    source: Volume,
    headers: Mapping[Path, ModelHeader],
    settings: Settings,
    sample: Sample | None,
) -> None:
    """Warn if a volume differs from the training images; without ``sample``, only the metadata are compared.

    What is true of all models is said once; otherwise the model is named.
    """
    if sample is not None and (text := sample.constant(source.path)) is not None:
        warn(text)
    pairs = zip(headers.items(), settings.statistics, strict=True)
    found = {file: list(differences_from(request, source, header, own, sample)) for (file, header), own in pairs}
    for text in dict.fromkeys(itertools.chain(*found.values())):
        files = [file for file, texts in found.items() if text in texts]
        for named in [""] if len(files) == len(found) else [f"--model {file}: " for file in files]:
            warn(named + text)


def differences_from(
    request: PredictRequest, source: Volume, header: ModelHeader, own: Statistics, sample: Sample | None
) -> Iterator[str]:
    """Warnings about differences from the training images of one model, whose statistics are ``own``."""
    yield from turn_warnings(request.rotations, header.augmentation)
    if (data := header.training_data) is None:
        return
    yield from metadata_warnings(source, request.channel, data)
    if sample is not None and len(sample.measures):
        measures = sample.measures
        if request.invert:  # with --normalise volume, brightness is not compared, and any sum will do
            measures = inverted(measures, np.atleast_1d(np.add(own.mean, header.intensity.mean))[:, np.newaxis])
        yield from grey_warnings(source.path, measures, data.grey, normalise=request.normalise, invert=request.invert)


def require_turnable(request: PredictRequest, source: Volume) -> None:
    """Raise :class:`UnetcliError` if quarter turns would exchange sides of different lengths."""
    sizes = {axis: size for axis, size in stated_sizes(source).items() if axis in "yx"}
    if request.rotations > 1 and len(sizes) > 1 and sizes_differ(sizes["y"], sizes["x"]):
        raise UnetcliError(
            f"--rotations {request.rotations}: {source.path} has pixels of {format_sizes(sizes)} (y x x), "
            "which quarter turns would exchange; --rotations 1, or a volume resampled to square pixels, would work"
        )


def resolve_statistics(
    request: PredictRequest,
    source: Volume,
    seen: Volume,
    header: ModelHeader,
    frozen: Statistics | None,
    sample: Sample | None,
) -> Statistics:
    """Mean and standard deviation by which grey values are normalised for one model.

    With ``--invert``, they invert the grey values.

    Those of the volume, and what ``--invert`` exchanges, are measured once, and are ``frozen`` then. Without ``sample``
    the plan is a preview, whose statistics are not used.
    """
    mean, std = header.intensity.mean, header.intensity.std
    measured = request.normalise == "volume" or request.invert
    if frozen is not None and measured:
        return frozen
    if sample is None:
        return Statistics(mean=mean, std=std)
    if request.normalise == "volume":
        mean, std = sampled_statistics(seen, request.channel)
        return Statistics(mean=mean, std=as_per_channel(_negative(std)) if request.invert else std)
    if not request.invert:
        return Statistics(mean=mean, std=std)
    grey = header.training_data.grey if header.training_data else ()
    inverse = np.asarray(total_for_inversion(source.dtype, sample, grey)) - np.asarray(mean)
    return Statistics(mean=as_per_channel(inverse.tolist()), std=as_per_channel(_negative(std)))


def _frozen_statistics(request: PredictRequest, frozen: Plan | None, models: int) -> Sequence[Statistics | None]:
    """Statistics of each model in an earlier plan that normalises in the same way; None if there is none."""
    if frozen is not None and frozen.settings.models == models:
        settings = frozen.settings
        if (settings.normalise, settings.invert) == (request.normalise, request.invert):
            return settings.statistics
    return [None] * models


def _negative(values: PerChannel) -> float | list[float]:
    negative: float | list[float] = (-np.asarray(values)).tolist()
    return negative


def resolve_settings(
    request: PredictRequest,
    source: Volume,
    seen: Volume,
    headers: Sequence[ModelHeader],
    frozen: Plan | None,
    machine: Machine | None = None,
    sample: Sample | None = None,
) -> Settings:
    """All other settings that affect the bytes of the result; ``seen`` is the volume as the network sees it."""
    kept = _frozen_statistics(request, frozen, len(headers))
    first, *others = [
        resolve_statistics(request, source, seen, header, known, sample)
        for header, known in zip(headers, kept, strict=True)
    ]
    device, threads = (machine.device, machine.threads) if machine else resolve_machine(request, frozen)
    architecture = headers[0].architecture
    mask = open_mask(request.mask, source, architecture.footprint().expanded_to(len(source.axes)))
    if mask and not request.same_place:
        require_same_voxels(source, mask.volume, OTHER_MASK, factors=mask.factors)
        require_same_place(source, mask.volume, OTHER_MASK, factors=mask.factors)
    return Settings(
        dtype=request.dtype,
        outputs=stored_values(architecture.classes, output_classes=request.output_classes),
        output_classes=request.output_classes,
        channel=request.channel,
        normalise=request.normalise,
        mean=first.mean,
        std=first.std,
        nonfinite=request.nonfinite,
        device=device,
        precision=resolve_precision(request, architecture, frozen, machine),
        threads=threads,
        mask=None if mask is None else mask.fingerprint(resolve_region(request.sections, request.roi, source)),
        skip_below=request.skip_below,
        invert=request.invert,
        rotations=request.rotations,
        others=tuple(others),
    )


def resolve_precision(
    request: PredictRequest, architecture: Architecture, frozen: Plan | None, machine: Machine | None
) -> str:
    """Number format: that of the request, else the frozen one, else one that is foreseen or, for now, float32."""
    if request.precision != "auto":
        return request.precision
    if frozen is not None:
        return frozen.settings.precision
    return "float32" if machine is None else foreseen_precision(request, architecture, machine)


def resolve_machine(request: PredictRequest, frozen: Plan | None) -> tuple[str, int]:
    """Kind of device and number of CPU threads; a rerun takes the frozen ones, so that the bytes are the same."""
    if frozen is not None and request.device is None:
        return frozen.settings.device, frozen.settings.threads
    threads = frozen.settings.threads if frozen else request.threads
    if request.remote:
        return device_kind(request.device or "cpu"), threads or 1
    from unetcli.model.network import resolve_device

    return resolve_device(request.device).type, threads or cpu_threads()


def device_kind(device: str) -> str:
    """Kind of a device, from its name alone.

    >>> device_kind("cuda:1"), device_kind("0"), device_kind("cpu")
    ('cuda', 'cuda', 'cpu')
    """
    return "cuda" if device.isdigit() else device.partition(":")[0]


def folder_of(request: PredictRequest) -> RunFolder:
    """Run folder of a request: the one it names, else the one beside the output."""
    return RunFolder(request.run_folder) if request.run_folder else RunFolder.of(request.output_path)


def with_machine(request: PredictRequest, cluster: ClusterOptions) -> PredictRequest:
    """The request with the device and threads of the machines that will compute, which may not be this one."""
    if cluster.on_this_machine:
        return replace(request, threads=max(1, cpu_threads() // cluster.workers)) if cluster.workers else request
    if not cluster.needs_slurm:
        return replace(request, remote=True, threads=request.threads or 1)
    asked = slurm_request(cluster)
    device = request.device or ("cuda" if asked.wants_gpu else "cpu")
    return replace(request, remote=True, device=device, threads=request.threads or asked.cpus_per_task or 1)
