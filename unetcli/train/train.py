"""The ``train`` command: resolve the options, continue where an earlier call stopped, and summarise; or preview."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from unetcli.core.errors import listed, pasted, require_no_warnings
from unetcli.core.files import explain_write_errors, require_apart
from unetcli.core.geometry import Architecture
from unetcli.core.process import Signals, cpu_threads
from unetcli.core.streams import ProgressCallback, silent
from unetcli.model.calibration import LIKELIHOOD
from unetcli.train.distributed import ProcessGroup
from unetcli.train.folder import Checkpoint, TrainingFolder
from unetcli.train.loop import RunOptions, Training, seconds_per_step
from unetcli.train.optim import output_side
from unetcli.train.pictures import require_tensorboard
from unetcli.train.request import TrainRequest
from unetcli.train.resolve import MINUTES, PAPER, resolve_steps, resolve_training
from unetcli.train.saving import calibration_of, kept_row, model_problem, require_model
from unetcli.train.sections import ranges_text, training_runs
from unetcli.train.settings import TrainingConfig

log = logging.getLogger(__name__)
PREVIEW_SECONDS = 2.0
"""Longest time for which a preview measures the speed, unless two steps take longer."""
LIBRARY_BYTES = 600e6
"""Memory of torch, validations and everything else in the process; with it, four real runs (depth 3 and 4, both
precisions, 585 to 906 MB) took 0.88 to 0.98 of the expected memory."""
MOST_CLASSES = 8
"""Number of classes whose fractions and weights are shown."""
OPTION_NAMES = {"learning_rate": "lr", "everywhere": "weights_everywhere", "class_values": "classes"}
"""Names of the options of settings with another name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSummary:
    """Result of a call of ``train``."""

    model: str
    """Path of the saved model."""
    steps: int
    """Number of completed steps."""
    goal: int
    """Number of steps after which the training is finished."""
    finished: bool
    found_finished: bool
    """Whether an earlier call had finished the training."""
    fixed: bool
    """Whether the number of steps is fixed, because the learning rate decays over them."""
    stopped_early: bool
    """Whether the training ended before the goal, for lack of improvement."""
    best_step: int | None
    """Step of the saved model."""
    measure: str
    """Measure that selects the model."""
    best_value: float | None
    """Value of the measure for the saved model, on the held-out sections."""
    best_error: float | None
    """Pixel disagreement of the saved model on the held-out sections, at its best threshold."""
    calibrated: bool
    """Whether the saved model was calibrated on the held-out sections."""
    calibration_error: float | None
    """Expected calibration error of the saved model on the held-out sections."""
    best_threshold: float | None
    """Threshold with the lowest pixel disagreement; None for more than two classes."""
    seconds: float
    """Time that all calls together spent on steps."""
    parameters: int
    """Number of trained weights."""
    tile: int
    warnings: tuple[str, ...] = ()
    """Warnings that this call gave: reasons to doubt the result."""

    @property
    def sentence(self) -> str:
        """The outcome in one line."""
        if not self.finished:
            return f"{Path(self.model).parent}: stopped at step {self.steps} of {self.goal}; the same command continues"
        begin = "already finished" if self.found_finished else "finished"
        early = " (stopped early: no improvement)" if self.stopped_early else ""
        best = f"; saved model: step {self.best_step}"
        if self.best_value is not None:
            chose = "selected and calibrated" if self.calibrated else "selected"
            best += (
                f", {self.measure.replace('_', ' ')} {self.best_value:.4f} on the held-out sections, which {chose} it"
            )
        ways = "--overwrite starts over" if self.fixed else "a larger --steps continues, --overwrite starts over"
        return f"{begin}, {self.steps} steps{early}{best}" + (f" ({ways})" if self.found_finished else "")

    @property
    def advice(self) -> str:
        """The command that uses the model, as advice to the user."""
        threshold = f" (best threshold: {self.best_threshold:.1f})" if self.best_threshold is not None else ""
        folder = Path(self.model).parent
        option = "" if folder == Path("model") else f" --model {pasted(folder)}"
        return f"to use the model{threshold}: unetcli predict VOLUME{option}"


def train_model(
    request: TrainRequest, report: ProgressCallback = silent, signals: Signals | None = None
) -> TrainSummary:
    """Train a network on annotated images; continues where an earlier call stopped.

    Parameters
    ----------
    request : TrainRequest
        Options of the command.
    report : callable, optional
        Called with the tiles done, their total number and a note.
    signals : Signals, optional
        Asks to stop or to write a checkpoint.

    Raises
    ------
    UnetcliError
        The request or its data cannot be used (nothing has been written then), or the loss is not finite.
    """
    group = ProcessGroup.from_environment()
    torch.set_num_threads(cpu_threads())
    with group.connected(), ExitStack() as stack, explain_write_errors(request.output):
        training, goal = resolve(request, group)
        group.on_first(lambda: _claim(request, training, goal, stack))
        return _finish(training, goal, report if group.is_first else silent, signals or Signals())


def resolve_locally(request: TrainRequest, group: ProcessGroup) -> tuple[Training, int | None]:
    """Resolve the training in this process; return it with the frozen number of steps, if there is one.

    Nothing is written, and there is no communication with other processes.
    """
    if request.tensorboard:
        require_tensorboard()
    folder = TrainingFolder(request.output)
    folder.require_own()
    require_apart(request.output, inputs_of(request))
    frozen = None if request.overwrite else folder.frozen()
    training = resolve_training(request, folder, frozen[0] if frozen else None, group)
    if frozen:
        folder.require_same(_with_steps(training, frozen[1] if request.steps is None else request.steps).config)
    return training, frozen[1] if frozen else None


def inputs_of(request: TrainRequest) -> list[Path]:
    """Files and folders that a training reads."""
    initial = [] if request.init is None else [request.init]
    return [*initial, *(Path(path) for pair in request.pairs for path in pair)]


def resolve(request: TrainRequest, group: ProcessGroup) -> tuple[Training, int]:
    """Resolve the training, the same in all processes, and its number of steps; log it, and write nothing."""
    training, frozen = group.on_each(lambda: resolve_locally(request, group))
    group.require_same("the training", training.config.to_dict())
    group.on_each(require_no_warnings)
    goal = group.on_first(lambda: resolve_steps(request, training, frozen))
    if group.is_first:
        _log_training(training, goal)
        a = training.config.architecture
        by_default = frozen is None and request.depth is None and request.base_channels is None
        if by_default and (a.depth, a.base_channels) != tuple(PAPER.values()):
            timed = f", trained for about {request.minutes or MINUTES:g} minutes" if request.steps is None else ""
            log.info(
                "default on a CPU: a small network%s; "
                "the paper's network: --recipe paper --depth 4 --base-channels 64 --tile 572",
                timed,
            )
    return _with_steps(training, goal), goal


def _with_steps(training: Training, steps: int) -> Training:
    """Set the length of a decaying learning rate to the number of steps."""
    optimisation = training.config.optimisation
    if not optimisation.decays:
        return training
    return replace(training, config=replace(training.config, optimisation=replace(optimisation, steps=steps)))


def _claim(request: TrainRequest, training: Training, goal: int, stack: ExitStack) -> None:
    """Lock the folder until ``stack`` is closed, and freeze the configuration in it."""
    folder = training.folder
    stack.enter_context(folder.launcher(take_over=request.take_over))
    if request.overwrite:
        folder.clear()
    folder.require_same(training.config)  # again: another call may have been faster
    folder.freeze(training.config, goal)


def _finish(training: Training, goal: int, report: ProgressCallback, signals: Signals) -> TrainSummary:
    """Do the steps that are left, draw the curves, and summarise."""
    from unetcli.viz.png import draw_curves

    is_over, folder = training.options.is_over, training.folder

    def finished_before() -> Checkpoint | None:
        found = folder.load_checkpoint()
        if found is None or not is_over(found, goal):
            return None
        require_model(training)
        return found

    before = training.group.on_first(finished_before)
    state = before or training.run(goal, report, signals)
    if training.group.is_first and (before is None or not folder.curves.exists()):
        draw_curves(folder.rows(), folder.curves)
    return _summary(folder, training.config, goal, state, before is not None, is_over(state, goal))


def _summary(
    folder: TrainingFolder, config: TrainingConfig, goal: int, state: Checkpoint, found_finished: bool, over: bool
) -> TrainSummary:
    best = kept_row(folder) or {}
    return TrainSummary(
        model=str(folder.model),
        steps=state.step,
        goal=goal,
        finished=over,
        found_finished=found_finished,
        fixed=config.optimisation.decays,
        stopped_early=state.step < goal and over,
        best_step=best.get("step"),
        measure=config.select,
        best_value=best.get(config.select),
        best_error=best.get("pixel_disagreement"),
        calibrated=(found := calibration_of(best)) is not None and found.method == LIKELIHOOD,
        calibration_error=best.get("calibration_error"),
        best_threshold=best.get("threshold"),
        seconds=round(state.seconds, 1),
        parameters=config.architecture.parameters,
        tile=config.tile,
    )


def summarise(folder: TrainingFolder, steps: int | None = None, patience: int | None = None) -> TrainSummary | None:
    """Summarise a training from its files; None if there is no checkpoint yet.

    A training without a model that can be used is not finished: the next call makes the model again, or says why not.
    ``steps`` and ``patience`` are those of the present request.
    """
    frozen = folder.frozen()
    state = folder.load_checkpoint() if frozen else None
    if frozen is None or state is None:
        return None
    goal = max(frozen[1], steps or 0)
    over = RunOptions(patience=patience).is_over(state, goal) and model_problem(folder.model) is None
    return _summary(folder, frozen[0], goal, state, True, over)


def _log_training(training: Training, goal: int) -> None:
    """Log network, optimisation, sections and classes of a training."""
    config, statistics = training.config, training.statistics
    a, o = config.architecture, config.optimisation
    norm = ", batch norm" if a.batch_norm else ""
    size = f"depth {a.depth}, {a.base_channels} channels{norm} ({config.architecture.parameters:,} parameters)"
    log.info("%s, %s: U-Net of %s, tile %d", config.device, config.precision, size, config.tile)
    batch = f", batch of {o.batch_size}" if o.batch_size > 1 else ""
    optimisation = f"{o.optimizer}, learning rate {o.learning_rate:g} ({o.schedule}){batch}"
    log.info("recipe %s: %s; %d steps", config.recipe, optimisation, goal)
    held_out = f"held out {ranges_text(config.validation)}" if training.dataset.held_out else "no held-out sections"
    log.info("training on sections %s, %s", sections_text(config), held_out)
    if statistics.left_out:
        log.info("left out: %d sections without labels (--keep-empty uses them)", statistics.left_out)
    if statistics.nonfinite:
        log.info("%s", nonfinite_text(statistics.nonfinite, config.nonfinite))
    counts = statistics.class_counts
    fractions = [f"{k}: {100 * n / counts.sum():.1f} %" for k, n in enumerate(counts)]
    weights = [f"{w:.2f}" for w in statistics.class_weights(balance=config.balance)]
    shown = (listed(values, "classes", MOST_CLASSES) for values in (fractions, weights))
    log.info("classes %s; weights %s", *shown)


def nonfinite_text(fraction: float, value: float | None) -> str:
    """Say what becomes of a fraction of the pixels that are NaN or infinite.

    >>> nonfinite_text(0.2083, None)
    '20.8 % of the pixels are NaN or infinite and have no weight; --nonfinite V uses the value V for them'
    """
    what = f"{100 * fraction:.3g} % of the pixels are NaN or infinite"
    if value is not None:
        return f"{what}; {value:g} is used for them (--nonfinite)"
    return f"{what} and have no weight; --nonfinite V uses the value V for them"


def sections_text(config: TrainingConfig) -> str:
    """Format the runs of sections that are trained on, by pair: ``0:5, 10:20 and 0:8``."""
    runs = [training_runs(*both) for both in zip(config.sections, config.validation, strict=True)]
    return listed([", ".join(f"{a}:{b}" for a, b in own) or "none" for own in runs], "pairs", joint=" and ")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPreview:
    """Preview of a training: sections, classes, memory, speed and time (``train --dry-run``)."""

    sections: int
    """Number of training sections with labels."""
    left_out: int
    """Number of training sections without labels, which are not used."""
    held_out: int
    """Number of held-out sections."""
    classes: dict[str, float]
    """Fraction of the pixels by class, from 0 to 1."""
    class_weights: list[float]
    cells: int
    """Number of objects in the training sections; touching ones count separately."""
    device: str
    precision: str
    recipe: str
    depth: int
    base_channels: int
    parameters: int
    tile: int
    output: int
    batch_size: int
    memory_gb: float
    """Expected peak memory, in GB, of the process on a CPU or of the device on a GPU."""
    steps: int
    steps_per_second: float
    minutes: float
    """Expected time for all steps of one model, without validations, from the speed of a few steps."""
    models: int = 1
    """Number of models that are trained one after another: one for each fold of ``--fold all``, else 1."""
    warnings: tuple[str, ...] = ()
    """Warnings that this call gave: reasons to doubt the result."""


def preview_training(request: TrainRequest) -> TrainPreview:
    """Resolve a request and measure a few of its steps; nothing is written."""
    torch.set_num_threads(cpu_threads())
    models, request = request.models, request.first
    training, frozen = resolve_locally(request, ProcessGroup())
    require_no_warnings()
    config, statistics, dataset = training.config, training.statistics, training.dataset
    seconds = seconds_per_step(training, PREVIEW_SECONDS)
    steps = resolve_steps(request, training, frozen, seconds)
    counts, a = statistics.class_counts, config.architecture
    return TrainPreview(
        sections=statistics.sections,
        left_out=statistics.left_out,
        held_out=sum(1 for _ in dataset.planes(dataset.held_out)),
        classes={str(k): round(float(n / counts.sum()), 4) for k, n in enumerate(counts)},
        class_weights=[round(float(w), 3) for w in statistics.class_weights(balance=config.balance)],
        cells=sum(pair.targets.count(box).cells for pair, box in dataset.planes(dataset.train)),
        device=str(training.device),
        precision=config.precision,
        recipe=config.recipe,
        depth=a.depth,
        base_channels=a.base_channels,
        parameters=config.architecture.parameters,
        tile=config.tile,
        output=output_side(config),
        batch_size=config.optimisation.batch_size,
        memory_gb=round(_memory_bytes(training) / 1e9, 2),
        steps=steps,
        steps_per_second=round(1 / seconds, 3),
        minutes=round(steps * seconds / 60, 1),
        models=models,
    )


def _memory_bytes(training: Training) -> float:
    """Expected peak memory: activations kept for the backward pass, weights, optimiser state and data in memory."""
    config = training.config
    tiles = config.optimisation.batch_size // training.group.size
    activations = tiles * _activation_values(config.architecture, config.tile)
    width = 2 if config.precision == "bfloat16" else 4
    copies = {"sgd": 3, "adam": 4, "adamw": 4}[config.optimisation.optimizer] + bool(config.optimisation.ema)
    device = width * activations + 4 * copies * config.architecture.parameters
    if training.device.type != "cpu":
        return device
    volumes = [volume for pair in training.dataset.pairs for volume in (pair.raw, pair.labels)]
    return LIBRARY_BYTES + sum(getattr(volume.array, "nbytes", 0) for volume in volumes) + device


def _activation_values(architecture: Architecture, tile: int) -> float:
    """Number of values that a training step keeps per tile.

    They are the results of both convolutions of each level, the concatenations and the gradients. The peak of the
    backward pass needs about two more of the largest results.
    """
    a, side, total, widest = architecture, float(tile), 0.0, 0.0
    per_convolution = 3 if a.batch_norm else 1
    for level in range(a.depth + 1):
        for _ in range(2):
            side -= 2
            total += per_convolution * a.channels(level) * side**2
            widest = max(widest, a.channels(level) * side**2)
        side = side / 2 if level < a.depth else side
    for level in reversed(range(a.depth)):
        side *= 2
        total += 3 * a.channels(level) * side**2  # up-convolution, and its concatenation
        for _ in range(2):
            side -= 2
            total += per_convolution * a.channels(level) * side**2
    return total + 3 * widest


def options_in_force(request: TrainRequest) -> Mapping[str, Any]:
    """Resolve all options, by their names on the command line, as ``--print-config`` prints them."""
    torch.set_num_threads(cpu_threads())
    training, goal = resolve(request.first, ProcessGroup())
    config = training.config
    values = config.to_dict()
    for part in ("architecture", "rules", "augmentation", "optimisation"):
        values |= values[part]
    values |= {name: ",".join(map(str, values[name])) for name in ("class_values",) if values[name] is not None}
    return {OPTION_NAMES.get(name, name): value for name, value in values.items()} | {"steps": goal}
