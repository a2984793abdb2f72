"""The training loop: steps from the last checkpoint on, with validations on the held-out sections at intervals."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from signal import SIGTERM
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unetcli.core.errors import UnetcliError
from unetcli.core.process import Signals
from unetcli.core.streams import ProgressCallback, prefetch
from unetcli.train.dataset import Dataset, DatasetStatistics
from unetcli.train.distributed import ProcessGroup
from unetcli.train.folder import Checkpoint, TrainingFolder
from unetcli.train.initial import initial_state
from unetcli.train.optim import Learner, batches, output_side
from unetcli.train.pictures import draw_first_samples, draw_validation, remove_pictures_after, write_tensorboard
from unetcli.train.sampling import Sampler
from unetcli.train.saving import save_best, with_model
from unetcli.train.settings import TrainingConfig
from unetcli.train.validation import Validator
from unetcli.train.validation_results import describe_row, is_better

log = logging.getLogger(__name__)
BATCHES_AHEAD = 3
PROGRESS_SECONDS = 0.5
"""Shortest time between two updates of the progress bar, each of which waits for the device."""
PROBE_STEPS, PROBE_WARM_UP = 5, 3
"""Least number of steps that :func:`seconds_per_step` measures, and steps before them that are not counted."""
PROBE_SECONDS = 0.5
"""Time for which fast steps are measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Options that do not affect the trained weights."""

    checkpoint_minutes: float = 10.0
    patience: int | None = None
    """Number of validations without improvement after which training ends; None: no limit."""
    compile: bool = False
    tensorboard: bool = False
    init: Path | None = None
    """Model to start from, which is read only if there is no checkpoint; its checksum is in the configuration."""

    def is_over(self, state: Checkpoint, steps: int) -> bool:
        """Whether all steps are done and validated, or there was no improvement for ``patience`` validations."""
        return (state.step >= steps and not state.pending) or (
            self.patience is not None and state.validations_since_best >= self.patience
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A training: its configuration, data, folder, device and processes."""

    config: TrainingConfig
    dataset: Dataset
    statistics: DatasetStatistics
    folder: TrainingFolder
    device: torch.device
    group: ProcessGroup = field(default_factory=ProcessGroup)
    options: RunOptions = field(default_factory=RunOptions)

    def learner(self) -> Learner:
        return Learner(self.config, self.statistics, self.device, self.group, compiled=self.options.compile)

    def sampler(self) -> Sampler:
        config = self.config
        output, classes = output_side(config), config.architecture.classes
        return Sampler(self.dataset, config.tile, output, config.augmentation, config.seed, classes)

    def run(self, steps: int, report: ProgressCallback, signals: Signals) -> Checkpoint:
        """Continue from the last checkpoint up to ``steps`` steps, or until a signal asks to stop."""
        loop = TrainingLoop(self, steps, report)
        state = loop.begin()
        if self.options.is_over(state, steps):
            return state
        loop.start_clock()
        numbers = range(state.step, steps)
        if loop.validation_is_due(state.step) and loop.validate_or_save(state.step, signals):
            return loop.state
        with closing(prefetch(batches(loop.learner, loop.sampler, numbers), BATCHES_AHEAD)) as stream:
            for number, batch in zip(numbers, stream, strict=True):
                loop.losses.append(loop.learner.step(batch, number))
                done = number + 1
                requested = (signals.stop() or SIGTERM) if signals.stopping() else 0
                stop, save = self.group.maximum(requested, signals.checkpoint() or loop.checkpoint_is_due())
                if stop:
                    signals.note(stop)  # all processes end with the same exit code, whichever got the signal
                loop.show_progress(done)
                if loop.validate_or_save(done, signals, stop=stop, save=save):
                    break
        return loop.state


class TrainingLoop:
    """State of a running training, and what happens between its steps."""

    def __init__(self, training: Training, steps: int, report: ProgressCallback) -> None:
        self.training, self.steps, self.report = training, steps, report
        self.learner, self.sampler = training.learner(), training.sampler()
        self.validator = Validator(training.config, training.dataset, training.statistics, training.device)
        self.losses: list[Tensor | float] = []
        """Losses since the last validation; tensors if the device has not finished computing them."""
        self._nonfinite: float | None = None
        """Loss that is NaN or infinite, once there is one."""
        self.state: Checkpoint
        self.note = ""

    def begin(self) -> Checkpoint:
        """Load the last checkpoint, or write a first one."""
        group = self.training.group
        load = self.training.folder.load_checkpoint
        found = group.on_first(lambda: load(self.learner.restore))  # another node may still see an older one
        step = 0
        if found is not None:
            self.learner.restore(found)
            self.losses, step = list(found.pending), found.step
        group.on_first(lambda: self._prepare_folder(step))
        if found is None:
            self._start_from_initial()
            self._save(0, None, 0, 0.0)
        else:
            self.state = group.on_first(lambda: with_model(self.training, found))
        return self.state

    def _start_from_initial(self) -> None:
        """Load the weights of the model of ``--init``, if there is one, the same in all processes."""
        training, learner = self.training, self.learner
        if (digest := training.config.init) is not None:
            init = training.options.init
            learner.start_from(training.group.on_first(lambda: initial_state(init, digest, learner, self.sampler)))

    def _prepare_folder(self, step: int) -> None:
        """Remove log rows and pictures of later steps, and draw the first samples."""
        folder = self.training.folder
        validated = step - self.validation_is_due(step)
        folder.trim_log(validated)
        remove_pictures_after(folder, validated)
        draw_first_samples(folder, self.learner, self.sampler)

    def start_clock(self) -> None:
        self._started = self._saved = self._shown = time.monotonic()
        self._show(self.state.step, "")

    def show_progress(self, done: int) -> None:
        """Report steps and loss, at most twice a second."""
        now = time.monotonic()
        if self.training.group.is_first and (now - self._shown >= PROGRESS_SECONDS or done == self.steps):
            self._shown = now
            self._show(done, f"loss {self._recent():.3f}{self.note}")

    def checkpoint_is_due(self) -> bool:
        """Whether to write a checkpoint: it is time, or the loss is not finite.

        Writing a checkpoint raises the error about a loss that is not finite, in all processes.
        """
        minutes = self.training.options.checkpoint_minutes
        return self._nonfinite is not None or time.monotonic() - self._saved >= 60 * minutes

    def validation_is_due(self, done: int) -> bool:
        """Whether to validate after ``done`` steps; an interrupted validation stays due for the next call."""
        return bool(self.losses) and (done % self.training.config.validate_every == 0 or done >= self.steps)

    def validate_or_save(self, done: int, signals: Signals, *, stop: int = 0, save: int = 0) -> bool:
        """Validate or write a checkpoint if due, and return whether training ends; a request to stop goes first."""
        if not stop and self.validation_is_due(done):
            stop = self._validate(done, signals)
        elif stop or save:
            self._save_between(done)
        return bool(stop) or self.training.options.is_over(self.state, self.steps)

    def _save_between(self, done: int) -> None:
        """Write a checkpoint between two validations."""
        self.training.group.on_first(self._loss)
        self._save(done, self.state.best, self.state.validations_since_best, self._seconds())

    def _validate(self, done: int, signals: Signals) -> int:
        """Validate, save the model if it is the best so far, and write log, pictures and checkpoint.

        If a signal asks to stop meanwhile, only a checkpoint is written. Returns that signal, or 0.
        """
        group = self.training.group
        found = group.on_first(lambda: self._validate_on_first(done, lambda: signals.stop() is not None))
        if found is None:
            self._save_between(done)
            (stop,) = group.maximum(signals.stop() or 0)
            signals.note(stop)
            return stop
        self.losses = []
        self._save(done, *found, self._seconds())
        return 0

    def _validate_on_first(self, done: int, stopping: Callable[[], bool]) -> tuple[float | None, int] | None:
        """Validate on rank 0; return the best value so far and the number of validations since, or None if stopped."""
        training, before = self.training, self.state
        self._show(done, f"loss {self._loss():.3f}, {'validating' if training.dataset.held_out else 'saving'} ..")
        validation = self.validator(self.learner.validated, stopping)
        if stopping():
            return None
        metrics = validation.metrics
        value = metrics.selected if metrics else None
        is_best = before.best is None or (value is not None and is_better(training.config.select, value, before.best))
        if is_best:
            measures = metrics.to_dict() if metrics else None
            save_best(training, self.learner.validated, done, measures, validation.calibration)
        row: dict[str, Any] = {"step": done, "loss": round(float(np.mean(self._floats())), 6), "best": is_best}
        row |= validation.to_dict()
        row |= {"learning_rate": training.config.optimisation.rate(done - 1), "seconds": round(self._seconds(), 2)}
        training.folder.append_log(row)
        log.info("%s", describe_row(row, metrics))
        draw_validation(training.folder, done, validation.pictured)
        if training.options.tensorboard:
            write_tensorboard(training.folder, row)
        best = value if is_best and value is not None else before.best
        since = 0 if is_best else before.validations_since_best + 1
        self.note = "" if value is None else f", held out {value:.3f}, best {best:.3f}"
        self._show(done, f"loss {row['loss']:.3f}{self.note}")
        return best, since

    def _show(self, done: int, note: str) -> None:
        batch = self.training.config.optimisation.batch_size
        self.report(done * batch, self.steps * batch, note)

    def _loss(self) -> float:
        """Return the recent loss; raise UnetcliError if any loss since the last validation is not finite."""
        recent = self._recent()
        if self._nonfinite is not None:
            rate = self.training.config.optimisation.learning_rate
            raise UnetcliError(f"the loss is {self._nonfinite}; a smaller --lr than {rate:g} may help")
        return recent

    def _recent(self) -> float:
        """Mean loss over the last 50 steps; waits for the device."""
        return float(np.mean(self._floats()[-50:]))

    def _floats(self) -> list[float]:
        """Return all losses since the last validation as numbers; waits for the device."""
        for place in range(len(self.losses) - 1, -1, -1):
            loss = self.losses[place]
            if isinstance(loss, float):
                break
            self.losses[place] = value = float(loss)
            if not math.isfinite(value):
                self._nonfinite = value
        return [float(loss) for loss in self.losses]

    def _seconds(self) -> float:
        return self.state.seconds + time.monotonic() - self._started

    def _save(self, step: int, best: float | None, since: int, seconds: float) -> None:
        """Write a checkpoint of the present state."""
        learner, folder = self.learner, self.training.folder
        self._started = time.monotonic()
        self.state = Checkpoint(
            config=self.training.config.to_dict(),
            step=step,
            network=learner.network.state_dict(),
            optimizer=learner.optimizer.state_dict(),
            averaged=None if learner.averaged is None else learner.averaged.state_dict(),
            best=best,
            validations_since_best=since,
            pending=self._floats(),
            seconds=seconds,
        )
        self.training.group.on_first(lambda: self.state.save(folder.checkpoint, folder.previous))
        self._saved = time.monotonic()


def seconds_per_step(training: Training, at_most: float = math.inf) -> float:
    """Measure the duration of a training step on this machine, with a network that is discarded.

    The update of the weights, which takes about a hundredth of a step, is left out. A process that trains with others
    measures its own part of a batch, without communication.

    Parameters
    ----------
    training : Training
    at_most : seconds
        Time after which the measurement ends with fewer steps, but at least two.

    Returns
    -------
    float, seconds
    """
    config = training.config
    tiles = config.optimisation.batch_size // training.group.size
    own = replace(config, optimisation=replace(config.optimisation, batch_size=tiles))
    alone = replace(training, group=ProcessGroup(), config=own)
    learner, sampler = alone.learner(), alone.sampler()
    started = before = time.perf_counter()
    durations: list[float] = []
    with closing(prefetch(batches(learner, sampler, itertools.count()), BATCHES_AHEAD)) as items:
        for batch in items:
            float(learner.gradients(batch))
            now = time.perf_counter()
            durations.append(now - before)
            before = now
            enough = len(durations) >= PROBE_WARM_UP + PROBE_STEPS and now - started >= PROBE_SECONDS
            if enough or (now - started > at_most and len(durations) > 1):
                break
    return float(np.mean(durations[PROBE_WARM_UP:] or durations[1:]))
