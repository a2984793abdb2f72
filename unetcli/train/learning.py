"""The course of a training: step after step, from where the last checkpoint stands, with looks at held-out sections."""

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
from unetcli.core.progress import ProgressCallback
from unetcli.core.signals import Signals
from unetcli.core.streams import prefetch
from unetcli.model.file import Intensity, ModelHeader, save_model
from unetcli.model.network import folded
from unetcli.train.album import draw_look, draw_seen, forget_looks, tell_tensorboard
from unetcli.train.checkpoint import Checkpoint
from unetcli.train.corpus import Corpus
from unetcli.train.figures import Validation, better, describe_row, note_of
from unetcli.train.folder import TrainingFolder
from unetcli.train.learner import Learner, batches
from unetcli.train.sampling import Sampler
from unetcli.train.settings import TrainingConfig
from unetcli.train.survey import Survey
from unetcli.train.validation import Validator
from unetcli.train.world import World

log = logging.getLogger(__name__)

BATCHES_AHEAD = 3
TELL_SECONDS = 0.5
"""Between two looks at the loss for the progress bar, each of which waits for the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How a training is run, which does not show in what it learns."""

    checkpoint_minutes: float = 10.0
    patience: int | None = None
    """Looks without a better one after which it ends."""
    compiled: bool = False
    tensorboard: bool = False

    def is_over(self, state: Checkpoint, steps: int) -> bool:
        """Whether all steps are done and looked at, or patience is at its end."""
        return (state.step >= steps and not state.pending) or (
            self.patience is not None and state.looks_since_best >= self.patience
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One training: what is learned, from what, and where it is kept."""

    config: TrainingConfig
    corpus: Corpus
    found: Survey
    folder: TrainingFolder
    device: torch.device
    world: World = field(default_factory=World)
    manner: Manner = field(default_factory=Manner)

    def learner(self) -> Learner:
        return Learner(self.config, self.found, self.device, self.world, compiled=self.manner.compiled)

    def sampler(self) -> Sampler:
        output = self.config.tile - 2 * self.config.architecture.footprint().context[-1]
        classes = self.config.architecture.classes
        return Sampler(self.corpus, self.config.tile, output, self.config.augmentation, self.config.seed, classes)

    def is_over(self, state: Checkpoint, steps: int) -> bool:
        return self.manner.is_over(state, steps)

    def run(self, steps: int, report: ProgressCallback, signals: Signals) -> Checkpoint:
        """Go on from the last checkpoint to ``steps`` steps, or until a signal asks for an end."""
        course = Course(self, steps, report)
        state = course.begin()
        if self.is_over(state, steps):
            return state
        course.start_clock()
        numbers = range(state.step, steps)
        if course.look_is_due(state.step) and course.settle(state.step, signals):
            return course.state
        with closing(prefetch(batches(course.learner, course.sampler, numbers), BATCHES_AHEAD)) as stream:
            for number, batch in zip(numbers, stream, strict=True):
                course.losses.append(course.learner.step(batch, number))
                done = number + 1
                asked = (signals.stop() or SIGTERM) if signals.stopping() else 0
                stop, save = self.world.greatest(asked, signals.checkpoint() or course.checkpoint_is_due())
                if stop:
                    signals.note(stop)  # to end alike, whichever process was asked
                course.tell(done)
                if course.settle(done, signals, stop=stop, save=save):
                    break
        return course.state


class Course:
    """Where a training is, between its steps."""

    def __init__(self, training: Training, steps: int, report: ProgressCallback) -> None:
        self.training, self.steps, self.report = training, steps, report
        self.learner, self.sampler = training.learner(), training.sampler()
        self.validator = Validator(training.config, training.corpus, training.found, training.device)
        self.losses: list[Tensor | float] = []
        self._lost: float | None = None
        self.state: Checkpoint
        self.note = ""

    def begin(self) -> Checkpoint:
        """The last checkpoint, or a first one."""
        world = self.training.world
        found = world.first(self.training.folder.load_checkpoint)  # another node may still see an older one
        if found is not None:
            self.learner.restore(found)
            self.state = found
        else:
            self.state = self._state(0, None, 0, 0.0)
        self.losses = list(self.state.pending)
        world.first(self._tidy)
        if found is None:
            self._save()
        return self.state

    def _tidy(self) -> None:
        """Forget what came after the checkpoint, and show what the network is about to see."""
        folder = self.training.folder
        looked_at = self.state.step - self.look_is_due(self.state.step)
        folder.trim_log(looked_at)
        forget_looks(folder, looked_at)
        draw_seen(folder, self.learner, self.sampler)

    def start_clock(self) -> None:
        self._started = self._saved = self._told = time.monotonic()
        self._show(self.state.step, "")

    def tell(self, done: int) -> None:
        """Show where it is."""
        now = time.monotonic()
        if self.training.world.is_first and (now - self._told >= TELL_SECONDS or done == self.steps):
            self._told = now
            self._show(done, f"loss {self._recent():.3f}{self.note}")

    def checkpoint_is_due(self) -> bool:
        """At once where the loss is seen to be no number: a checkpoint refuses that, in all processes alike."""
        return self._lost is not None or time.monotonic() - self._saved >= 60 * self.training.manner.checkpoint_minutes

    def look_is_due(self, done: int) -> bool:
        """Where an end was asked for before or while it was taken, the next call takes it."""
        return bool(self.losses) and (done % self.training.config.validate_every == 0 or done >= self.steps)

    def settle(self, done: int, signals: Signals, *, stop: int = 0, save: int = 0) -> bool:
        """Look, or write a checkpoint, where that is due; whether it ends here. An end asked for goes first."""
        if not stop and self.look_is_due(done):
            stop = self.look(done, signals)
        elif stop or save:
            self.keep(done)
        return bool(stop) or self.training.is_over(self.state, self.steps)

    def keep(self, done: int) -> None:
        """A checkpoint between two looks."""
        self.training.world.first(self._loss)
        self.state = self._state(done, self.state.best, self.state.looks_since_best, self._seconds())
        self._save()

    def look(self, done: int, signals: Signals) -> int:
        """Validate, keep the model if it is the best so far, and write log, pictures and checkpoint.

        Where an end is asked for meanwhile, a checkpoint alone is written: the signal, else 0.
        """
        world = self.training.world
        found = world.first(lambda: self._judge(done, lambda: signals.stop() is not None))
        if found is None:
            self.keep(done)
            (stop,) = world.greatest(signals.stop() or 0)
            signals.note(stop)
            return stop
        self.losses = []
        self.state = self._state(done, *found, self._seconds())
        self._save()
        return 0

    def _judge(self, done: int, stopping: Callable[[], bool]) -> tuple[float | None, int] | None:
        """Best value so far, and how many looks ago it was found; None where it was stopped."""
        training, before = self.training, self.state
        self._show(done, f"loss {self._loss():.3f}, {'judging' if training.corpus.held_out else 'saving'} ..")
        result, shown = self.validator(self.learner.kept, stopping)
        if stopping():
            return None
        value = result.selected if result else None
        wins = before.best is None or (value is not None and better(training.config.select, value, before.best))
        if wins:
            save_model(training.folder.model, folded(self.learner.kept), header(training, done, result))
        row: dict[str, Any] = {"step": done, "loss": round(float(np.mean(self._floats())), 6), "best": wins}
        row |= result.to_dict() if result else {}
        row |= {"learning_rate": training.config.optimisation.rate(done - 1), "seconds": round(self._seconds(), 2)}
        training.folder.append_log(row)
        log.info("%s", describe_row(row, result))
        draw_look(training.folder, done, shown)
        if training.manner.tensorboard:
            tell_tensorboard(training.folder, row)
        best = value if wins and value is not None else before.best
        since = 0 if wins else before.looks_since_best + 1
        self.note = f", {note_of(value, best)}" if value is not None else ""
        self._show(done, f"loss {row['loss']:.3f}{self.note}")
        return best, since

    def _show(self, done: int, note: str) -> None:
        self.report(self._tiles(done), self._tiles(self.steps), note)

    def _loss(self) -> float:
        """The recent loss; refused where any since the last look is no number."""
        recent = self._recent()
        if self._lost is not None:
            rate = self.training.config.optimisation.learning_rate
            raise UnetcliError(f"the loss is {self._lost}; a smaller --lr than {rate:g} may help")
        return recent

    def _recent(self) -> float:
        """Mean over the last steps; waits for the device."""
        return float(np.mean(self._floats()[-50:]))

    def _floats(self) -> list[float]:
        """All losses since the last look as numbers."""
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

    def _tiles(self, steps: int) -> int:
        return steps * self.training.config.optimisation.batch_size

    def _state(self, step: int, best: float | None, since: int, seconds: float) -> Checkpoint:
        learner = self.learner
        self._started = time.monotonic()
        return Checkpoint(
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

    def _save(self) -> None:
        folder = self.training.folder
        self.training.world.first(lambda: self.state.save(folder.checkpoint, folder.previous))
        self._saved = time.monotonic()


def header(training: Training, step: int, result: Validation | None) -> ModelHeader:
    """What a kept model says of itself."""
    config, found, raw = training.config, training.found, training.corpus.raw
    classes = config.architecture.classes
    names = ("background", "foreground") if classes == 2 else tuple(f"class {k}" for k in range(classes))
    return ModelHeader(
        architecture=replace(config.architecture, batch_norm=False),
        class_names=names,
        intensity=Intensity(dtype=str(raw.dtype), mean=found.mean, std=found.std),
        provenance={
            "unetcli": __version__,
            "torch": torch.__version__,
            "step": step,
            "validation": result.to_dict() if result else None,
            "class_counts": found.class_counts.tolist(),
            "config": config.to_dict(),
            "pairs": [[pair.raw.path, pair.labels.path] for pair in training.corpus.pairs],
        },
    )
