"""The saved model of a training: its header, and making it again from a checkpoint if the file is lost."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from unetcli.core.errors import UnetcliError, one_line, warn
from unetcli.core.records import decoded
from unetcli.model.calibration import LIKELIHOOD, Calibration
from unetcli.model.file import Intensity, ModelHeader, read_model, save_model
from unetcli.model.folding import calibrated, folded
from unetcli.model.network import UNet
from unetcli.model.training_data import TrainingData, TrainingObjects
from unetcli.train.dataset import Dataset, DatasetStatistics
from unetcli.train.distributed import ProcessGroup
from unetcli.train.folder import Checkpoint, TrainingFolder
from unetcli.train.object_sizes import smallest_objects
from unetcli.train.optim import Learner
from unetcli.train.settings import TrainingConfig
from unetcli.volumes.places import stated_sizes

log = logging.getLogger(__name__)
RUN_COLUMNS = {"step", "loss", "best", "learning_rate", "seconds", "calibration", "reliability"}
"""Columns of the log that are no measures of a validation."""


class Training(Protocol):
    """Part of a :class:`unetcli.train.loop.Training` that a saved model depends on."""

    @property
    def config(self) -> TrainingConfig: ...
    @property
    def dataset(self) -> Dataset: ...
    @property
    def statistics(self) -> DatasetStatistics: ...
    @property
    def folder(self) -> TrainingFolder: ...
    @property
    def device(self) -> torch.device: ...


def save_best(
    training: Training, network: UNet, step: int, validation: dict[str, Any] | None, calibration: Calibration | None
) -> None:
    """Save the network of a step as the model, with its calibration in the last layer.

    The network itself stays as it is: training goes on with it.

    Parameters
    ----------
    training : Training
    network : UNet
    step
        Number of training steps.
    validation
        Measures on the held-out sections.
    calibration
        None: the network is saved as it is.
    """
    saved = folded(network) if calibration is None else calibrated(folded(network), calibration)
    save_model(training.folder.model, saved, model_header(training, step, validation, calibration))


def model_header(
    training: Training, step: int, validation: dict[str, Any] | None, calibration: Calibration | None
) -> ModelHeader:
    """Create the header of a saved model: architecture, intensity statistics, calibration and provenance.

    Versions are those of the first call of the training, so that a training that was continued saves the same bytes.
    """
    config, statistics = training.config, training.statistics
    classes, versions = config.architecture.classes, training.folder.made_with()
    return ModelHeader(
        architecture=replace(config.architecture, batch_norm=False),
        class_names=config.rules.values.class_names(classes),
        intensity=Intensity(dtype=str(training.dataset.pairs[0].raw.dtype), mean=statistics.mean, std=statistics.std),
        training_data=training_data(training),
        calibration=calibration,
        objects=TrainingObjects(
            truth=config.rules.truth,
            smallest=smallest_objects(training.dataset, classes),
            values=config.rules.values,
        ),
        provenance={
            **{name: versions.get(name) for name in ("unetcli", "torch", "revision")},
            "step": step,
            "validation": validation,
            "validation_used_for": _uses_of_held_out(training, calibration),
            "class_counts": statistics.class_counts.tolist(),
            "config": config.to_dict(),
            "pairs": [[pair.raw.path, pair.labels.path] for pair in training.dataset.pairs],
        },
    )


def _uses_of_held_out(training: Training, calibration: Calibration | None) -> list[str]:
    """Uses of the held-out sections; scores on them are no scores of a test."""
    if not training.dataset.held_out:
        return []
    fitted = calibration is not None and calibration.method == LIKELIHOOD
    return ["selection", "calibration"] if fitted else ["selection"]


def training_data(training: Training) -> TrainingData:
    """Properties of the training images that a volume is compared with, as far as the images state them."""
    raw, channel = training.dataset.pairs[0].raw, training.config.channel
    stated = next((pair.raw for pair in training.dataset.pairs if stated_sizes(pair.raw)), raw)
    return TrainingData(
        voxel_size={axis: size for axis, (size, _) in stated_sizes(stated).items()},
        units={axis: unit for axis, (_, unit) in stated_sizes(stated).items() if unit},
        channels=raw.channel_names if channel is None else raw.channel_names[channel : channel + 1],
        grey=training.statistics.grey,
    )


def model_problem(file: Path) -> str | None:
    """Why a saved model cannot be used, in one line; None if it can."""
    if not file.is_file():
        return f"{file}: the saved model is gone"
    try:
        read_model(file)
    except UnetcliError as error:
        return str(error).rpartition("; ")[0] or str(error)
    return None


def restore_model(training: Training) -> str | None:
    """Make the saved model again from a checkpoint if its file is damaged or gone.

    Returns
    -------
    str or None
        Why the model cannot be used, if no checkpoint is of its step; else None.
    """
    folder, kept = training.folder, kept_row(training.folder)
    problem = None if kept is None else model_problem(folder.model)
    if kept is None or problem is None:
        return None
    if (state := checkpoint_of(folder, kept["step"])) is None:
        return f"{problem}, and no checkpoint is of its step {kept['step']}"
    learner = Learner(training.config, training.statistics, training.device, ProcessGroup())
    try:
        learner.restore(state)
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:  # torch checks no types
        return f"{problem}, and the checkpoint of its step {kept['step']} is damaged ({one_line(error)})"
    save_best(training, learner.validated, kept["step"], measures_of(kept) or None, calibration_of(kept))
    log.info("%s; made again from the checkpoint of step %d", problem, kept["step"])
    return None


def require_model(training: Training) -> None:
    """Raise UnetcliError if a finished training has lost its saved model, and it cannot be made again."""
    if (problem := restore_model(training)) is not None:
        further = "" if training.config.optimisation.decays else "a larger --steps saves the best from there on, "
        raise UnetcliError(f"{problem}; {further}--overwrite trains again, or put a copy of the file in its place")


def with_model(training: Training, state: Checkpoint) -> Checkpoint:
    """The state from which a training continues; if its best model is lost, the next one counts as the best."""
    if (problem := restore_model(training)) is None:
        return state
    if state.best is not None:
        warn(f"{problem}; the best of the validations from step {state.step} on is saved, --overwrite starts over")
    return replace(state, best=None, validations_since_best=0)


def measures_of(row: dict[str, Any]) -> dict[str, Any]:
    """The measures of a validation in a row of the log."""
    return {name: value for name, value in row.items() if name not in RUN_COLUMNS}


def calibration_of(row: dict[str, Any]) -> Calibration | None:
    """The calibration that a row of the log records."""
    found: Calibration | None = decoded(Calibration | None, row.get("calibration"))
    return found


def kept_row(folder: TrainingFolder) -> dict[str, Any] | None:
    """Row of the log for the validation whose network is the saved model; None before the first validation."""
    return next((row for row in reversed(folder.rows()) if row["best"]), None)


def checkpoint_of(folder: TrainingFolder, step: int) -> Checkpoint | None:
    """The checkpoint of a step, if it is one of the two that are kept and can be read."""
    for file in (folder.checkpoint, folder.previous):
        try:
            if (state := Checkpoint.load(file)).step == step:
                return state
        except (UnetcliError, FileNotFoundError):
            continue
    return None
