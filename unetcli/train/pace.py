"""How long a training step takes here."""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import replace

import numpy as np

from unetcli.core.streams import prefetch
from unetcli.train.learner import batches
from unetcli.train.learning import BATCHES_AHEAD, Training
from unetcli.train.settings import TrainingConfig
from unetcli.train.world import World

PROBE_STEPS, PROBE_WARM_UP = 5, 3


def seconds_per_step(training: Training, at_most: float = math.inf) -> float:
    """Time of a training step here, measured on a network that is thrown away; about ``at_most`` seconds long."""
    alone = replace(training, world=World(), config=own_share(training))
    learner, sampler = alone.learner(), alone.sampler()
    started = time.perf_counter()
    stream = batches(learner, sampler, range(PROBE_WARM_UP + PROBE_STEPS if at_most == math.inf else 10**9))
    took: list[float] = []
    with closing(prefetch(stream, BATCHES_AHEAD)) as items:
        before = started
        for number, batch in enumerate(items):
            float(learner.step(batch, number))
            now = time.perf_counter()
            took, before = [*took, now - before], now
            if now - started > at_most and len(took) > 1:
                break
    counted = took[PROBE_WARM_UP:] or took[1:] or took
    return float(np.mean(counted))


def own_share(training: Training) -> TrainingConfig:
    """The configuration with the part of a batch that each process has."""
    optimisation = training.config.optimisation
    own = replace(optimisation, batch_size=optimisation.batch_size // training.world.size)
    return replace(training.config, optimisation=own)
