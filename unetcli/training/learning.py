"""The training loop: one large tile a step, straight through, from where the last checkpoint stands."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from unetcli import __version__
from unetcli.config import TrainingConfig
from unetcli.device import on_device
from unetcli.errors import UnetcliError
from unetcli.geometry import Box
from unetcli.model import Intensity, ModelHeader, save_model
from unetcli.network import UNet
from unetcli.streams import prefetch
from unetcli.training.checkpoint import Checkpoint
from unetcli.training.folder import TrainingFolder
from unetcli.training.loss import weighted_cross_entropy
from unetcli.training.sampling import Annotated, Sample, sample
from unetcli.training.survey import Survey
from unetcli.training.targets import class_weights
from unetcli.training.validation import Validation, validate

log = logging.getLogger(__name__)

VALIDATE_EVERY = 200
"""Steps between looks at the validation sections, with a checkpoint each."""
SAMPLES_AHEAD = 4
MOMENTUM = 0.99
PROBE_STEPS, PROBE_WARM_UP = 5, 3

Report = Callable[[int, int], None]


class Learner:
    """Network and optimiser, and one step of both."""

    def __init__(self, config: TrainingConfig, found: Survey, device: torch.device) -> None:
        torch.manual_seed(config.seed)
        self.config, self.found, self.device = config, found, device
        self.network: UNet = UNet(config.architecture)
        on_device(self.network, device)
        self.optimizer = create_optimizer(config, self.network)
        self.weights = torch.from_numpy(class_weights(found.class_counts)).to(device)

    def step(self, item: Sample, number: int) -> float:
        """One step of gradient descent; its loss. Random choices depend on seed and number alone."""
        torch.manual_seed(step_seed(self.config.seed, number))  # dropout
        self.network.train()
        image = torch.from_numpy(item.image.astype(np.float32)).to(self.device)[None]  # (1, c, y, x)
        image = ((image - self.found.mean) / self.found.std).to(memory_format=torch.channels_last)
        truth = torch.from_numpy(np.ascontiguousarray(item.target)).to(self.device)[None]  # (1, y, x)
        loss = weighted_cross_entropy(self.network(image), truth, self.weights)
        if not math.isfinite(value := float(loss.detach())):
            rate = self.config.learning_rate
            raise UnetcliError(f"step {number + 1}: the loss is {value}; a smaller --lr than {rate:g} may help")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return value

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to a checkpoint."""
        self.network.load_state_dict(checkpoint.network)
        self.optimizer.load_state_dict(checkpoint.optimizer)


def step_seed(seed: int, number: int) -> int:
    """32 bits for one step's random choices; torch's CPU generator takes no more, so seed and number are mixed."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def create_optimizer(config: TrainingConfig, network: UNet) -> torch.optim.Optimizer:
    """SGD with the paper's momentum of 0.99, or Adam."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), lr=config.learning_rate, momentum=MOMENTUM)
    return torch.optim.Adam(network.parameters(), lr=config.learning_rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One training: what is learned, from what, and where it is kept."""

    config: TrainingConfig
    data: Annotated
    region: Box
    held_out: Box | None
    found: Survey
    folder: TrainingFolder
    device: torch.device

    def run(self, steps: int, report: Report, stopping: Callable[[], bool]) -> Checkpoint:
        """Go on from the last checkpoint to ``steps`` steps, or until ``stopping()``."""
        learner = Learner(self.config, self.found, self.device)
        state = self._begin(learner)
        losses, started = list(state.pending), time.perf_counter()
        report(state.step, steps)
        with closing(prefetch(self._samples(state.step, steps), SAMPLES_AHEAD)) as items:
            for done, item in enumerate(items, start=state.step + 1):
                losses.append(learner.step(item, done - 1))
                report(done, steps)
                stop = stopping()
                if done % VALIDATE_EVERY == 0 or done == steps:
                    state = self._look(learner, state, done, losses, time.perf_counter() - started)
                    losses, started = [], time.perf_counter()
                elif stop:
                    seconds = state.seconds + time.perf_counter() - started
                    state = self._checkpoint(learner, done, state.best, seconds, losses)
                if stop:
                    break
        return state

    def _samples(self, first: int, stop: int) -> Iterator[Sample]:
        context = self.config.architecture.footprint().context[-1]
        for number in range(first, stop):
            yield sample(self.data, self.region, self.config.tile, context, self.config.seed, number)

    def _begin(self, learner: Learner) -> Checkpoint:
        state = self.folder.load_checkpoint()
        self.folder.trim_log(state.step if state else 0)
        if state is None:
            return self._checkpoint(learner, 0, None, 0.0, [])
        learner.restore(state)
        return state

    def _look(self, learner: Learner, before: Checkpoint, step: int, losses: list[float], seconds: float) -> Checkpoint:
        """Validate, keep the model if it is the best so far, and write log and checkpoint."""
        result = validate(learner.network, self.config, self.data, self.held_out, self.found, self.device)
        better = result is None or before.best is None or result.error < before.best
        best = (result.error if better else before.best) if result else None
        if better:
            save_model(self.folder.model, learner.network, self._header(step, result))
        row: dict[str, Any] = {"step": step, "loss": round(float(np.mean(losses)), 6), "best": better}
        self.folder.append_log(row | (result.to_dict() if result else {}) | {"seconds": round(seconds, 2)})
        log.info("%s", describe_row(row, result))
        return self._checkpoint(learner, step, best, before.seconds + seconds, [])

    def _checkpoint(
        self, learner: Learner, step: int, best: float | None, seconds: float, pending: list[float]
    ) -> Checkpoint:
        state = Checkpoint(
            config=self.config.to_dict(),
            step=step,
            network=learner.network.state_dict(),
            optimizer=learner.optimizer.state_dict(),
            best=best,
            pending=pending,
            seconds=seconds,
        )
        state.save(self.folder.checkpoint)
        return state

    def _header(self, step: int, result: Validation | None) -> ModelHeader:
        classes = self.config.architecture.classes
        names = ("background", "foreground") if classes == 2 else tuple(f"class {k}" for k in range(classes))
        return ModelHeader(
            architecture=self.config.architecture,
            class_names=names,
            intensity=Intensity(dtype=str(self.data.raw.dtype), mean=self.found.mean, std=self.found.std),
            provenance={
                "unetcli": __version__,
                "torch": torch.__version__,
                "step": step,
                "validation": result.to_dict() if result else None,
                "class_counts": self.found.class_counts.tolist(),
                "config": self.config.to_dict(),
                "raw": self.data.raw.path,
                "labels": self.data.labels.path,
            },
        )


def seconds_per_step(
    config: TrainingConfig, data: Annotated, region: Box, found: Survey, device: torch.device
) -> float:
    """Time of a training step here, measured on a network that is thrown away."""
    learner = Learner(config, found, device)
    item = sample(data, region, config.tile, config.architecture.footprint().context[-1], config.seed, 0)
    for number in range(PROBE_WARM_UP):
        learner.step(item, number)
    started = time.perf_counter()
    for number in range(PROBE_STEPS):
        learner.step(item, number)
    return (time.perf_counter() - started) / PROBE_STEPS


def describe_row(row: dict[str, Any], result: Validation | None) -> str:
    """One line about a look at the validation sections."""
    text = f"step {row['step']}: loss {row['loss']:.4f}"
    if result:
        text += f", held-out sections: loss {result.loss:.4f}, pixel disagreement {result.error:.4f}"
    return text + (" (best so far, kept)" if row["best"] else "")
