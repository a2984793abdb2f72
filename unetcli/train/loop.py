"""The training loop: step after step from the last checkpoint, validated on the held-out sections at intervals."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from signal import SIGTERM
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unetcli import __version__
from unetcli.core.errors import UnetcliError
from unetcli.core.process import Signals
from unetcli.core.streams import ProgressCallback, prefetch
from unetcli.model.file import Intensity, ModelHeader, save_model
from unetcli.model.network import folded
from unetcli.train.dataset import Dataset, DatasetStatistics, Sampler
from unetcli.train.distributed import World
from unetcli.train.folder import Checkpoint, TrainingFolder
from unetcli.train.optim import Learner, batches, output_side
from unetcli.train.settings import TrainingConfig
from unetcli.train.validation import (
    ValidationMetrics,
    Validator,
    better,
    describe_row,
    draw_first_samples,
    draw_validation,
    remove_pictures_after,
    write_tensorboard,
)

log = logging.getLogger(__name__)
BATCHES_AHEAD = 3
PROGRESS_SECONDS = 0.5
"""Least time between two updates of the progress bar: each waits for the device."""
PROBE_STEPS, PROBE_WARM_UP = 5, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Options that do not affect what is learned."""

    checkpoint_minutes: float = 10.0
    patience: int | None = None
    """Validations without a better one after which training ends."""
    compile: bool = False
    tensorboard: bool = False

    def is_over(self, state: Checkpoint, steps: int) -> bool:
        """Whether all steps are done and validated, or patience is at its end."""
        return (state.step >= steps and not state.pending) or (
            self.patience is not None and state.looks_since_best >= self.patience
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One training: its configuration, its data, and its folder."""

    config: TrainingConfig
    dataset: Dataset
    statistics: DatasetStatistics
    folder: TrainingFolder
    device: torch.device
    world: World = field(default_factory=World)
    options: RunOptions = field(default_factory=RunOptions)

    def learner(self) -> Learner:
        return Learner(self.config, self.statistics, self.device, self.world, compiled=self.options.compile)

    def sampler(self) -> Sampler:
        config = self.config
        output, classes = output_side(config), config.architecture.classes
        return Sampler(self.dataset, config.tile, output, config.augmentation, config.seed, classes)

    def run(self, steps: int, report: ProgressCallback, signals: Signals) -> Checkpoint:
        """Go on from the last checkpoint to ``steps`` steps, or until a signal asks for an end."""
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
                asked = (signals.stop() or SIGTERM) if signals.stopping() else 0
                stop, save = self.world.greatest(asked, signals.checkpoint() or loop.checkpoint_is_due())
                if stop:
                    signals.note(stop)  # to end alike, whichever process was asked
                loop.show_progress(done)
                if loop.validate_or_save(done, signals, stop=stop, save=save):
                    break
        return loop.state


class TrainingLoop:
    """The state of a training between its steps."""

    def __init__(self, training: Training, steps: int, report: ProgressCallback) -> None:
        self.training, self.steps, self.report = training, steps, report
        self.learner, self.sampler = training.learner(), training.sampler()
        self.validator = Validator(training.config, training.dataset, training.statistics, training.device)
        self.losses: list[Tensor | float] = []
        """Losses since the last validation; tensors where the device has not been waited for."""
        self._lost: float | None = None
        self.state: Checkpoint
        self.note = ""

    def begin(self) -> Checkpoint:
        """The last checkpoint, or a first one."""
        world = self.training.world
        found = world.first(self.training.folder.load_checkpoint)  # another node may still see an older one
        step = 0
        if found is not None:
            self.learner.restore(found)
            self.losses, step = list(found.pending), found.step
        world.first(lambda: self._tidy(step))
        if found is None:
            self._save(0, None, 0, 0.0)
        else:
            self.state = found
        return self.state

    def _tidy(self, step: int) -> None:
        """Remove what was logged and drawn after a step, and draw the first samples."""
        folder = self.training.folder
        validated = step - self.validation_is_due(step)
        folder.trim_log(validated)
        remove_pictures_after(folder, validated)
        draw_first_samples(folder, self.learner, self.sampler)

    def start_clock(self) -> None:
        self._started = self._saved = self._shown = time.monotonic()
        self._show(self.state.step, "")

    def show_progress(self, done: int) -> None:
        """Report steps and loss, twice a second at most."""
        now = time.monotonic()
        if self.training.world.is_first and (now - self._shown >= PROGRESS_SECONDS or done == self.steps):
            self._shown = now
            self._show(done, f"loss {self._recent():.3f}{self.note}")

    def checkpoint_is_due(self) -> bool:
        """Also where the loss is no number: a checkpoint refuses that, in all processes alike."""
        minutes = self.training.options.checkpoint_minutes
        return self._lost is not None or time.monotonic() - self._saved >= 60 * minutes

    def validation_is_due(self, done: int) -> bool:
        """A validation that was interrupted stays due: the next call does it."""
        return bool(self.losses) and (done % self.training.config.validate_every == 0 or done >= self.steps)

    def validate_or_save(self, done: int, signals: Signals, *, stop: int = 0, save: int = 0) -> bool:
        """Validate or write a checkpoint where that is due; whether training ends. A request to end goes first."""
        if not stop and self.validation_is_due(done):
            stop = self._validate(done, signals)
        elif stop or save:
            self._save_between(done)
        return bool(stop) or self.training.options.is_over(self.state, self.steps)

    def _save_between(self, done: int) -> None:
        """Write a checkpoint between two validations."""
        self.training.world.first(self._loss)
        self._save(done, self.state.best, self.state.looks_since_best, self._seconds())

    def _validate(self, done: int, signals: Signals) -> int:
        """Validate, keep the model if it is the best so far, and write log, pictures and checkpoint.

        Where an end is asked for meanwhile, only a checkpoint is written, and the signal is returned; else 0.
        """
        world = self.training.world
        found = world.first(lambda: self._validate_here(done, lambda: signals.stop() is not None))
        if found is None:
            self._save_between(done)
            (stop,) = world.greatest(signals.stop() or 0)
            signals.note(stop)
            return stop
        self.losses = []
        self._save(done, *found, self._seconds())
        return 0

    def _validate_here(self, done: int, stopping: Callable[[], bool]) -> tuple[float | None, int] | None:
        """Best value so far, and how many validations ago it was found; None where it was stopped."""
        training, before = self.training, self.state
        self._show(done, f"loss {self._loss():.3f}, {'judging' if training.dataset.held_out else 'saving'} ..")
        metrics, shown = self.validator(self.learner.validated, stopping)
        if stopping():
            return None
        value = metrics.selected if metrics else None
        wins = before.best is None or (value is not None and better(training.config.select, value, before.best))
        if wins:
            save_model(training.folder.model, folded(self.learner.validated), model_header(training, done, metrics))
        row: dict[str, Any] = {"step": done, "loss": round(float(np.mean(self._floats())), 6), "best": wins}
        row |= metrics.to_dict() if metrics else {}
        row |= {"learning_rate": training.config.optimisation.rate(done - 1), "seconds": round(self._seconds(), 2)}
        training.folder.append_log(row)
        log.info("%s", describe_row(row, metrics))
        draw_validation(training.folder, done, shown)
        if training.options.tensorboard:
            write_tensorboard(training.folder, row)
        best = value if wins and value is not None else before.best
        since = 0 if wins else before.looks_since_best + 1
        self.note = "" if value is None else f", held out {value:.3f}, best {best:.3f}"
        self._show(done, f"loss {row['loss']:.3f}{self.note}")
        return best, since

    def _show(self, done: int, note: str) -> None:
        batch = self.training.config.optimisation.batch_size
        self.report(done * batch, self.steps * batch, note)

    def _loss(self) -> float:
        """The recent loss; refused where any since the last validation is no number."""
        recent = self._recent()
        if self._lost is not None:
            rate = self.training.config.optimisation.learning_rate
            raise UnetcliError(f"the loss is {self._lost}; a smaller --lr than {rate:g} may help")
        return recent

    def _recent(self) -> float:
        """Mean over the last steps; waits for the device."""
        return float(np.mean(self._floats()[-50:]))

    def _floats(self) -> list[float]:
        """All losses since the last validation as numbers; waits for the device."""
        for place in range(len(self.losses) - 1, -1, -1):
            loss = self.losses[place]
            if isinstance(loss, float):
                break
            self.losses[place] = value = float(loss)
            if not math.isfinite(value):
                self._lost = value
        return [float(loss) for loss in self.losses]

    def _seconds(self) -> float:
        return self.state.seconds + time.monotonic() - self._started

    def _save(self, step: int, best: float | None, since: int, seconds: float) -> None:
        """Make a checkpoint of the present state and write it."""
        learner, folder = self.learner, self.training.folder
        self._started = time.monotonic()
        self.state = Checkpoint(
            config=self.training.config.to_dict(),
            step=step,
            network=learner.network.state_dict(),
            optimizer=learner.optimizer.state_dict(),
            averaged=None if learner.averaged is None else learner.averaged.state_dict(),
            best=best,
            looks_since_best=since,
            pending=self._floats(),
            seconds=seconds,
        )
        self.training.world.first(lambda: self.state.save(folder.checkpoint, folder.previous))
        self._saved = time.monotonic()


def model_header(training: Training, step: int, metrics: ValidationMetrics | None) -> ModelHeader:
    """The header of a kept model: architecture, intensity statistics and provenance."""
    config, statistics = training.config, training.statistics
    classes = config.architecture.classes
    names = ("background", "foreground") if classes == 2 else tuple(f"class {k}" for k in range(classes))
    return ModelHeader(
        architecture=replace(config.architecture, batch_norm=False),
        class_names=names,
        intensity=Intensity(dtype=str(training.dataset.pairs[0].raw.dtype), mean=statistics.mean, std=statistics.std),
        provenance={
            "unetcli": __version__,
            "torch": torch.__version__,
            "step": step,
            "validation": metrics.to_dict() if metrics else None,
            "class_counts": statistics.class_counts.tolist(),
            "config": config.to_dict(),
            "pairs": [[pair.raw.path, pair.labels.path] for pair in training.dataset.pairs],
        },
    )


def seconds_per_step(training: Training, at_most: float = math.inf) -> float:
    """Duration of a training step on this machine, measured on a network that is thrown away.

    Takes about ``at_most`` seconds. A process that trains with others measures its own share of a batch.
    """
    config = training.config
    share = config.optimisation.batch_size // training.world.size
    own = replace(config, optimisation=replace(config.optimisation, batch_size=share))
    alone = replace(training, world=World(), config=own)
    learner, sampler = alone.learner(), alone.sampler()
    started = before = time.perf_counter()
    stream = batches(learner, sampler, range(PROBE_WARM_UP + PROBE_STEPS if at_most == math.inf else 10**9))
    took: list[float] = []
    with closing(prefetch(stream, BATCHES_AHEAD)) as items:
        for number, batch in enumerate(items):
            float(learner.step(batch, number))
            now = time.perf_counter()
            took.append(now - before)
            before = now
            if now - started > at_most and len(took) > 1:
                break
    counted = took[PROBE_WARM_UP:] or took[1:] or took
    return float(np.mean(counted))
