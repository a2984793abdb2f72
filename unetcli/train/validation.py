"""Validation of a network: prediction and calibration on the held-out sections."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from unetcli.core.geometry import Box
from unetcli.core.process import cpu_threads
from unetcli.model.calibration import Calibration
from unetcli.model.network import UNet
from unetcli.planning.plan import Plan, Settings, Sources
from unetcli.planning.planner import KNOWN_TO_FIT, Input, largest_tile, make_plan
from unetcli.predict.predictor import Predictor, predict_blocks
from unetcli.train.calibration import HeldOutPixels, by_loss_weights, fitted, mean_loss_weights
from unetcli.train.dataset import Dataset, DatasetStatistics, Part
from unetcli.train.settings import TrainingConfig
from unetcli.train.validation_results import ValidatedSection, Validation, ValidationSums
from unetcli.volumes.volume import Volume

SAMPLE_PIXELS = 2**22
"""Held-out pixels that a calibration may refer to; of more, evenly spread blocks are taken."""


class Validator:
    """Validates a network on the held-out sections of a training."""

    def __init__(
        self, config: TrainingConfig, dataset: Dataset, statistics: DatasetStatistics, device: torch.device
    ) -> None:
        self.config, self.dataset, self.statistics, self.device = config, dataset, statistics, device
        self.settings = Settings(
            dtype="float32",
            outputs=config.architecture.classes,  # of two classes both: near 1, the probability of one has few digits
            channel=config.channel,
            normalise="model",
            mean=statistics.mean,
            std=statistics.std,
            nonfinite=None,
            device=device.type,
            precision=config.precision,
            threads=cpu_threads(),
        )

    def __call__(self, network: UNet, stopping: Callable[[], bool] = bool) -> Validation:
        """Predict the held-out sections, calibrate the network, and compare the sections with their labels.

        Parameters
        ----------
        network : UNet
        stopping : callable, optional
            Validation ends early, with the results of a part of the sections, once this returns true.
        """
        training = network.training
        predictor = Predictor(network, self.settings, self.device)
        sampled = self._sampled_blocks()
        sample = [item for part in sampled for item in self._predicted(predictor, part, stopping)]
        calibration = self._calibration(sample)
        rest = (item for part in self._other_blocks(sampled) for item in self._predicted(predictor, part, stopping))
        sums = ValidationSums.of(self.statistics.class_weights(balance=self.config.balance), self.config.select)
        for item in itertools.chain(sample, rest):
            sums.add(item, calibration)
        network.train(training)
        return sums.result(calibration)

    def _calibration(self, sample: list[ValidatedSection]) -> Calibration | None:
        """The calibration of the network on a sample of the held-out sections."""
        if not self.config.calibrate:
            return None
        if self.config.rules.partial is not None:  # background is annotated near objects only
            return self._by_loss_weights
        pixels = HeldOutPixels.of(((item.per_class, item.classes) for item in sample), self.settings.outputs)
        return fitted(pixels, self._by_loss_weights, self.config.validation)

    @cached_property
    def _by_loss_weights(self) -> Calibration:
        return by_loss_weights(mean_loss_weights(self.dataset, self.statistics, self.config))

    @cached_property
    def _blocks(self) -> list[tuple[Part, Plan]]:
        """The held-out sections, and the plan that divides them into blocks."""
        return [(part, self._plan(self.dataset.pairs[part.pair].raw, part.region)) for part in self.dataset.held_out]

    def _sampled_blocks(self) -> list[Blocks]:
        """Evenly spread blocks of all held-out sections, with up to ``SAMPLE_PIXELS`` pixels; all if they are few."""
        pixels = sum(plan.region.size for _, plan in self._blocks)
        step, before, chosen = max(1, math.ceil(pixels / SAMPLE_PIXELS)), 0, []
        for part, plan in self._blocks:  # every n-th block of all parts together
            chosen.append(Blocks(part, plan, range(-before % step, plan.blocks, step)))
            before += plan.blocks
        return chosen

    def _other_blocks(self, sampled: list[Blocks]) -> list[Blocks]:
        """The blocks that are not in a sample."""
        return [
            Blocks(blocks.part, blocks.plan, [n for n in range(blocks.plan.blocks) if n not in blocks.numbers])
            for blocks in sampled
            if len(blocks.numbers) < blocks.plan.blocks
        ]

    def _predicted(
        self, predictor: Predictor, blocks: Blocks, stopping: Callable[[], bool]
    ) -> Iterator[ValidatedSection]:
        pair = self.dataset.pairs[blocks.part.pair]
        fill = self.statistics.mean if pair.nonfinite is None else pair.nonfinite
        for finished in predict_blocks(blocks.plan, predictor, pair.raw.filled(fill), blocks.numbers, stopping):
            if finished.error is not None:
                raise finished.error
            assert finished.values is not None
            for box in finished.block.box.planes():
                if self.dataset.is_used(pair, box):
                    values = finished.values[(slice(None), *box.relative_to(finished.block.box).slices)]
                    yield ValidatedSection(pair, box, values.reshape(-1, *values.shape[-2:]), pair.classes(box))

    def _plan(self, raw: Volume, region: Box) -> Plan:
        """Plan the blocks of held-out sections."""
        architecture = self.config.architecture
        bytes_per_voxel = raw.dtype.itemsize * architecture.in_channels
        source = Input(axes=raw.axes, extent=raw.extent, chunks=raw.chunks, bytes_per_voxel=bytes_per_voxel)
        tile = largest_tile(architecture.footprint(), KNOWN_TO_FIT)
        nothing = Sources(volume="", volume_fingerprint="", model="", model_fingerprint="")
        return make_plan(source, region, architecture, tile, self.settings, nothing)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Some blocks of the held-out sections of one pair."""

    part: Part
    plan: Plan
    numbers: Sequence[int]
