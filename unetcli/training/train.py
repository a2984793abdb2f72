"""train: resolve what is asked for, go on where an earlier call stopped, sum up."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from unetcli.architecture import Architecture
from unetcli.config import TrainingConfig, TrainRequest
from unetcli.device import cpu_threads
from unetcli.files import require_apart
from unetcli.network import UNet
from unetcli.training.folder import TrainingFolder
from unetcli.training.learning import Report, Training
from unetcli.training.resolve import MINUTES, PAPER, resolve_steps, resolve_training

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSummary:
    """What a call of train found and did."""

    model: str
    steps: int
    goal: int
    finished: bool
    found_finished: bool
    best_step: int | None
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
            return f"{self.model}: stopped at step {self.steps} of {self.goal}; the same command continues"
        begin = "finished already" if self.found_finished else "finished"
        best = f"; kept: step {self.best_step}"
        if self.best_error is not None:
            best += f", pixel disagreement {self.best_error:.4f} on the held-out sections"
        more = " (a larger --steps goes on, --overwrite starts anew)" if self.found_finished else ""
        return f"{begin}, {self.steps} steps{best}{more}"


def train_model(
    request: TrainRequest, report: Report = lambda done, total: None, stopping: Callable[[], bool] = bool
) -> TrainSummary:
    """Train a network on annotated images; goes on where an earlier call stopped.

    Raises
    ------
    UnetcliError
        Anything about the request that the user can put right; nothing has been written then.
    """
    folder = TrainingFolder(request.output)
    folder.require_ours()
    require_apart(request.output, [Path(request.raw), Path(request.labels)])
    torch.set_num_threads(cpu_threads())
    frozen = None if request.overwrite else folder.frozen()
    training = resolve_training(request, folder, frozen[0] if frozen else None)
    if frozen:
        folder.require_same(training.config)
    goal = resolve_steps(request, training, frozen[1] if frozen else None)
    announce(training.config, goal)
    if request.depth is None and request.base_channels is None:
        announce_choice(training.config, timed=request.steps is None and frozen is None)
    with folder.launcher(take_over=request.take_over):
        if request.overwrite:
            folder.forget()
        folder.require_same(training.config)  # again: another call may have been faster
        folder.freeze(training.config, goal)
        return finish(training, goal, report, stopping)


def finish(training: Training, goal: int, report: Report, stopping: Callable[[], bool]) -> TrainSummary:
    """Train what is left to train, draw the curves, sum up."""
    from unetcli.pictures import draw_curves

    before = training.folder.load_checkpoint()
    found_finished = before is not None and before.step >= goal
    state = before if before and found_finished else training.run(goal, report, stopping)
    rows = training.folder.rows()
    if not found_finished or not training.folder.curves.exists():
        draw_curves(rows, training.folder.curves)
    best: dict[str, Any] = next((row for row in reversed(rows) if row["best"]), {})
    return TrainSummary(
        model=str(training.folder.model),
        steps=state.step,
        goal=goal,
        finished=state.step >= goal,
        found_finished=found_finished,
        best_step=best.get("step"),
        best_error=best.get("error"),
        best_threshold=best.get("threshold"),
        seconds=round(state.seconds, 1),
        parameters=parameters(training.config.architecture),
        tile=training.config.tile,
    )


def announce(config: TrainingConfig, goal: int) -> None:
    """What is about to be trained, and on what."""
    a = config.architecture
    first, stop = config.validation
    held_out = f"held out {first}:{stop}" if first < stop else "none held out"
    size = f"depth {a.depth}, {a.base_channels} channels ({parameters(a):,} parameters)"
    log.info("%s: U-Net of %s, tile %d", config.device, size, config.tile)
    log.info("sections %d:%d, %s; %d steps", *config.sections, held_out, goal)


def announce_choice(config: TrainingConfig, *, timed: bool) -> None:
    """What was chosen on a CPU, and how to have the paper's network instead."""
    if config.architecture != replace(config.architecture, **PAPER):
        course = f" for about {MINUTES} minutes" if timed else ""
        log.info("chosen for a CPU: a small network%s; the paper's: --depth 4 --base-channels 64 --tile 572", course)


def parameters(architecture: Architecture) -> int:
    """Number of trained values."""
    with torch.device("meta"):
        return sum(values.numel() for values in UNet(architecture).parameters())
