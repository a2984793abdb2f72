"""The saved model from which a training starts with ``--init`` (fine-tuning)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from unetcli.core.arrays import PerChannel
from unetcli.core.errors import UnetcliError, warn
from unetcli.core.geometry import Architecture
from unetcli.model.file import ModelHeader, digest_of, file_of, load_network, read_header, read_model
from unetcli.model.folding import unfolded
from unetcli.model.network import on_device
from unetcli.predict.comparison import FAR, distance
from unetcli.train.dataset import Dataset, DatasetStatistics
from unetcli.train.request import TrainRequest
from unetcli.train.settings import TrainingConfig

if TYPE_CHECKING:
    from unetcli.train.optim import Learner
    from unetcli.train.sampling import Sampler


@dataclass(frozen=True, slots=True)
class InitialModel:
    """A saved model whose weights a training starts from."""

    file: Path
    header: ModelHeader
    digest: str
    """Checksum of its weights."""


def find_initial(request: TrainRequest, frozen: TrainingConfig | None) -> InitialModel | None:
    """The model of ``--init``; None if it is not named, or is gone and was needed only when the training began.

    Raises
    ------
    UnetcliError
        There is no such model, or it is damaged.
    """
    if request.init is None:
        return None
    file = file_of(request.init)
    if not file.is_file():
        if frozen is not None and frozen.init is not None:
            return None
        raise UnetcliError(f"--init {file}: no such model; expected a model.safetensors, or the folder that has one")
    header = read_header(file)
    digest = None if frozen is None else header.digest
    return InitialModel(file, header, digest or checked_digest(file))


def checked_digest(file: Path) -> str:
    """Checksum of the weights of a model file, which are checked.

    Raises
    ------
    UnetcliError
        As :func:`unetcli.model.file.read_model`.
    """
    header, weights = read_model(file)  # compares the checksum that the header has with the weights
    return header.digest or digest_of(weights)


def resolve_intensity(
    request: TrainRequest, frozen: TrainingConfig | None, initial: InitialModel | None
) -> tuple[PerChannel, PerChannel] | None:
    """Mean and standard deviation of the initial model, if grey values are normalised with them; else None.

    Raises
    ------
    UnetcliError
        ``--normalise`` is given without ``--init``.
    """
    kept = frozen.intensity if frozen else None
    if initial is None and (frozen is None or frozen.init is None):
        if request.normalise is not None:
            raise UnetcliError(
                f"--normalise {request.normalise}: only with --init; else images have their own statistics"
            )
        return None
    if (request.normalise or ("volume" if frozen and kept is None else "model")) == "volume":
        return None
    return kept if initial is None else (initial.header.intensity.mean, initial.header.intensity.std)


def require_fits(initial: InitialModel, architecture: Architecture, dataset: Dataset, *, normalise: bool) -> None:
    """Raise UnetcliError if a network has other sizes than the initial model; ``normalise``: or images other integers.

    Parameters
    ----------
    initial : InitialModel
    architecture : Architecture
        Network to train.
    dataset : Dataset
        Its images and labels set the numbers of channels and classes.
    normalise : bool
        Whether grey values are normalised with the statistics of the model.
    """
    own, model, pair = initial.header.architecture, f"{initial.file}, the model of --init,", dataset.pairs[0]
    for name in ("depth", "base_channels"):
        wanted, found = getattr(architecture, name), getattr(own, name)
        if wanted != found:
            option = f"--{name.replace('_', '-')}"
            raise UnetcliError(f"{option} {wanted}: {model} has {found}; omit {option}, or give {found}")
    if architecture.in_channels != own.in_channels:
        hint = "; --channel N selects one" if own.in_channels == 1 else ""
        raise UnetcliError(
            f"{pair.raw.path}: has {architecture.in_channels} channels, but {model} takes {own.in_channels}{hint}"
        )
    if architecture.classes != own.classes:
        hint = "--truth binary makes two" if own.classes == 2 else f"label all {own.classes}"
        both = f"has {architecture.classes} classes, but {model} has {own.classes}"
        raise UnetcliError(f"{pair.labels.path}: {both}; {hint}, or omit --init")
    trained = np.dtype(initial.header.intensity.dtype)
    if normalise and pair.raw.dtype != trained and not pair.raw.dtype.kind == trained.kind == "f":
        raise UnetcliError(
            f"{pair.raw.path}: has {pair.raw.dtype} values, but {model} was trained on {trained}, another range of "
            "grey values; convert the images, or use their own mean and standard deviation with --normalise volume"
        )


def warn_about_grey(initial: InitialModel, dataset: Dataset, statistics: DatasetStatistics) -> None:
    """Warn about images whose grey values are far from those of the training images of the model."""
    trained = initial.header.training_data.grey if initial.header.training_data else ()
    for channel, (found, before) in enumerate(zip(statistics.grey, trained, strict=False)):
        if distance(np.array([[*found.percentiles, found.polarity]]), before) > FAR:
            warn(
                f"{dataset.pairs[0].raw.path}, channel {channel}: grey values are far from those that {initial.file}, "
                "the model of --init, was trained on; --normalise volume uses the statistics of the images"
            )


def initial_state(init: Path | None, digest: str, learner: Learner, sampler: Sampler) -> dict[str, Tensor]:
    """State of the network with which a training starts: that of the initial model, with batch norm if it trains so.

    Parameters
    ----------
    init : Path, optional
        Value of ``--init``.
    digest : str
        Checksum that the training's configuration has of the model.
    learner, sampler
        The running statistics of batch norm are those of this process's part of the first batch.

    Raises
    ------
    UnetcliError
        The model is gone, damaged, or another one.
    """
    file = None if init is None else file_of(init)
    if file is None or not file.is_file():
        raise UnetcliError(
            f"--init {file or 'MODEL'}: needed again, as the training was interrupted before its first checkpoint"
        )
    if (found := checked_digest(file)) != digest:
        raise UnetcliError(f"--init {file}: has checksum {found}; the training began with the model of {digest}")
    network = load_network(file)
    if not learner.config.architecture.batch_norm:
        return network.state_dict()
    tiles = first_tiles(learner, sampler)
    return unfolded(on_device(network, tiles.device), tiles).state_dict()  # type: ignore[arg-type]


def first_tiles(learner: Learner, sampler: Sampler) -> Tensor:
    """Images of this process's part of the first batch, (tiles, c, y, x)."""
    from unetcli.train.optim import batches

    (batch,) = batches(learner, sampler, range(1))
    batch.wait()
    return batch.images
