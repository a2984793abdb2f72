"""train: resolve what is asked for, go on where an earlier call stopped, sum up."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from unetcli.core.files import require_apart, telling_unwritable
from unetcli.core.progress import ProgressCallback, silent
from unetcli.core.signals import Signals
from unetcli.model.device import cpu_threads
from unetcli.model.network import UNet
from unetcli.train.album import require_tensorboard
from unetcli.train.checkpoint import Checkpoint
from unetcli.train.folder import TrainingFolder
from unetcli.train.learning import Manner, Training
from unetcli.train.request import TrainRequest
from unetcli.train.resolve import MINUTES, PAPER, resolve_steps, resolve_training
from unetcli.train.settings import TrainingConfig
from unetcli.train.survey import Survey
from unetcli.train.world import World

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSummary:
    """What a call of train found and did."""

    model: str
    steps: int
    goal: int
    finished: bool
    found_finished: bool
    fixed: bool
    """Whether the learning rate falls over the steps, so that more of them are another training."""
    stopped_early: bool
    """Whether patience ended it before the goal."""
    best_step: int | None
    measure: str
    """What the kept model is the best by."""
    best_value: float | None
    """That measure of the kept model on the held-out sections."""
    best_error: float | None
    """Pixel disagreement of the kept model on the held-out sections, at its best threshold."""
    best_threshold: float | None
    seconds: float
    """Spent on steps, by all calls together."""
    parameters: int
    tile: int

    @property
    def sentence(self) -> str:
        """The outcome in one line."""
        if not self.finished:
            return f"{Path(self.model).parent}: stopped at step {self.steps} of {self.goal}; the same command continues"
        begin = "finished already" if self.found_finished else "finished"
        early = " (no better one for long enough)" if self.stopped_early else ""
        best = f"; kept: step {self.best_step}"
        if self.best_value is not None:
            best += f", {self.measure.replace('_', ' ')} {self.best_value:.4f} on the held-out sections"
        ways = "--overwrite starts anew" if self.fixed else "a larger --steps goes on, --overwrite starts anew"
        return f"{begin}, {self.steps} steps{early}{best}" + (f" ({ways})" if self.found_finished else "")

    @property
    def advice(self) -> str:
        """How to use the model."""
        threshold = f" (best threshold there: {self.best_threshold:.1f})" if self.best_threshold is not None else ""
        folder = Path(self.model).parent
        named = "" if folder == Path("model") else f" --model {folder}"
        return f"to use it{threshold}: unetcli predict VOLUME{named}"


def train_model(
    request: TrainRequest, report: ProgressCallback = silent, signals: Signals | None = None
) -> TrainSummary:
    """Train a network on annotated images; goes on where an earlier call stopped.

    Raises
    ------
    UnetcliError
        Anything about the request that the user can put right; nothing has been written then.
    """
    world = World.from_environment()
    torch.set_num_threads(cpu_threads())
    with world.joined(), ExitStack() as stack, telling_unwritable(request.output):
        training, goal = resolve(request, world)
        world.first(lambda: claim(request, training, goal, stack))
        return finish(training, goal, report if world.is_first else silent, signals or Signals())


def settle(request: TrainRequest, world: World) -> tuple[Training, int | None]:
    """What is to be trained, and the frozen goal where it was begun before; nothing is written."""
    if request.tensorboard:
        require_tensorboard()
    folder = TrainingFolder(request.output)
    folder.require_ours()
    require_apart(request.output, [Path(path) for pair in request.pairs for path in pair])
    frozen = None if request.overwrite else folder.frozen()
    training = resolve_training(request, folder, frozen[0] if frozen else None, world)
    if frozen:
        folder.require_same(with_steps(training, frozen[1] if request.steps is None else request.steps).config)
    return training, frozen[1] if frozen else None


def resolve(request: TrainRequest, world: World) -> tuple[Training, int]:
    """What is to be trained, and for how many steps; said, and nothing is written."""
    training, frozen = world.each(lambda: settle(request, world))
    world.require_same("the training", training.config.to_dict())
    goal = world.first(lambda: resolve_steps(request, training, frozen))
    if world.is_first:
        announce(training, goal)
        if frozen is None and request.depth is None and request.base_channels is None:
            announce_choice(training.config, timed=request.steps is None, minutes=request.minutes)
    return with_steps(training, goal), goal


def with_steps(training: Training, steps: int) -> Training:
    """A decaying learning rate ends with the last step."""
    optimisation = training.config.optimisation
    if not optimisation.decays:
        return training
    return replace(training, config=replace(training.config, optimisation=replace(optimisation, steps=steps)))


def claim(request: TrainRequest, training: Training, goal: int, stack: ExitStack) -> None:
    """Take the folder, until the end of ``stack``, and freeze the configuration in it."""
    folder = training.folder
    stack.enter_context(folder.launcher(take_over=request.take_over))
    if request.overwrite:
        folder.forget()
    folder.require_same(training.config)  # again: another call may have been faster
    folder.freeze(training.config, goal)


def finish(training: Training, goal: int, report: ProgressCallback, signals: Signals) -> TrainSummary:
    """Train what is left to train, draw the curves, sum up."""
    from unetcli.viz.pictures import draw_curves

    before = training.world.first(lambda: finished_before(training, goal))
    found_finished = before is not None
    state = before or training.run(goal, report, signals)
    rows = training.folder.rows()
    if training.world.is_first and (not found_finished or not training.folder.curves.exists()):
        draw_curves(rows, training.folder.curves)
    return sum_up(training.folder, training.config, goal, state, found_finished, training.is_over(state, goal))


def finished_before(training: Training, goal: int) -> Checkpoint | None:
    """The last checkpoint, where nothing is left to do."""
    found = training.folder.load_checkpoint()
    return found if found and training.is_over(found, goal) else None


def sum_up(
    folder: TrainingFolder, config: TrainingConfig, goal: int, state: Checkpoint, found_finished: bool, over: bool
) -> TrainSummary:
    """What a training has come to."""
    best: dict[str, Any] = next((row for row in reversed(folder.rows()) if row["best"]), {})
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
        best_threshold=best.get("threshold"),
        seconds=round(state.seconds, 1),
        parameters=parameters(config),
        tile=config.tile,
    )


def summarise(folder: TrainingFolder, steps: int | None = None, patience: int | None = None) -> TrainSummary | None:
    """The same from its files alone, with what is asked of it now; None where nothing was trained yet."""
    frozen = folder.frozen()
    state = folder.load_checkpoint() if frozen else None
    if frozen is None or state is None:
        return None
    goal = max(frozen[1], steps or 0)
    return sum_up(folder, frozen[0], goal, state, True, Manner(patience=patience).is_over(state, goal))


def announce(training: Training, goal: int) -> None:
    """What is about to be trained, and on what."""
    config, found = training.config, training.found
    a, o = config.architecture, config.optimisation
    norm = ", batch norm" if a.batch_norm else ""
    size = f"depth {a.depth}, {a.base_channels} channels{norm} ({parameters(config):,} parameters)"
    log.info("%s, %s: U-Net of %s, tile %d", config.device, config.precision, size, config.tile)
    batch = f", batch of {o.batch_size}" if o.batch_size > 1 else ""
    course = f"{o.optimizer}, learning rate {o.learning_rate:g} ({o.schedule}){batch}"
    log.info("recipe %s: %s; %d steps", config.recipe, course, goal)
    log.info("sections %s, %s", ranges_text(config.sections), held_out_text(config))
    if found.left_out:
        log.info("%d of them left out: nothing is drawn there (--keep-empty keeps them)", found.left_out)
    log.info("%s", balance_text(config, found))


def balance_text(config: TrainingConfig, found: Survey) -> str:
    """Class frequencies and weights in one line."""
    counts = found.class_counts
    shares = ", ".join(f"{k}: {100 * n / counts.sum():.1f} %" for k, n in enumerate(counts))
    weights = ", ".join(f"{w:.2f}" for w in found.class_weights(balance=config.balance))
    return f"classes {shares}; weights {weights}"


def ranges_text(ranges: tuple[tuple[int, int], ...]) -> str:
    """Sections of each pair.

    >>> ranges_text(((0, 20), (0, 5)))
    '0:20 and 0:5'
    """
    return " and ".join(f"{a}:{b}" for a, b in ranges)


def held_out_text(config: TrainingConfig) -> str:
    return f"held out {ranges_text(config.validation)}" if any(a < b for a, b in config.validation) else "none held out"


def announce_choice(config: TrainingConfig, *, timed: bool, minutes: float | None) -> None:
    """What was chosen on a CPU, and how to have the paper's network instead."""
    a = config.architecture
    if (a.depth, a.base_channels) != tuple(PAPER.values()):
        course = f" for about {minutes or MINUTES:g} minutes" if timed else ""
        log.info(
            "chosen for a CPU: a small network%s; the paper's: --recipe paper --depth 4 --base-channels 64 --tile 572",
            course,
        )


def parameters(config: TrainingConfig) -> int:
    """Number of trained values."""
    with torch.device("meta"):
        return sum(values.numel() for values in UNet(config.architecture).parameters())
