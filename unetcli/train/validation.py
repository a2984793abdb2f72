"""How good a network is on sections held out from training, predicted as predict would."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from unetcli.core.geometry import Box
from unetcli.model.device import cpu_threads
from unetcli.model.network import UNet
from unetcli.planning.plan import Plan, Settings, Sources
from unetcli.planning.planner import CPU_TILE, Input, largest_tile, make_plan
from unetcli.predict.predictor import Predictor, predict_blocks
from unetcli.train.corpus import Corpus
from unetcli.train.figures import Judged, Sums, Validation
from unetcli.train.settings import TrainingConfig
from unetcli.train.survey import Survey
from unetcli.volumes.volume import Volume

SHOWN = 2
"""Sections in the picture of a look; those of the first blocks."""


class Validator:
    """Judges networks on the held-out sections of a training."""

    def __init__(self, config: TrainingConfig, corpus: Corpus, found: Survey, device: torch.device) -> None:
        self.config, self.corpus, self.found, self.device = config, corpus, found, device
        self.settings = settings_for(config, found, device)

    def __call__(self, network: UNet, stopping: Callable[[], bool] = bool) -> tuple[Validation | None, list[Judged]]:
        """Figures, and a few sections for a picture; nothing where no section is held out.

        Ends early, with figures of a part, once ``stopping()`` is true.
        """
        training = network.training
        predictor = Predictor(network, self.settings, self.device)
        sums = Sums(self.found.class_weights(balance=self.config.balance), self.config.select)
        shown: list[Judged] = []
        for item in self._judged(predictor, stopping):
            sums.add(item)
            if len(shown) < SHOWN:
                shown.append(item)
        network.train(training)
        return sums.result(), shown

    def _judged(self, predictor: Predictor, stopping: Callable[[], bool]) -> Iterator[Judged]:
        for part in self.corpus.held_out:
            pair = self.corpus.pairs[part.pair]
            plan = validation_plan(self.config, pair.raw, part.region, self.settings)
            for finished in predict_blocks(plan, predictor, pair.raw, range(plan.blocks), stopping):
                if finished.error is not None:
                    raise finished.error
                assert finished.values is not None
                for box in finished.block.box.planes():
                    if self.corpus.is_used(pair, box):
                        values = finished.values[(slice(None), *box.relative_to(finished.block.box).slices)]
                        yield Judged(pair, box, values.reshape(-1, *values.shape[-2:]), pair.classes(box))


def settings_for(config: TrainingConfig, found: Survey, device: torch.device) -> Settings:
    """As predict would choose, probabilities in float32."""
    classes = config.architecture.classes
    return Settings(
        dtype="float32",
        outputs=1 if classes == 2 else classes,
        channel=config.channel,
        normalise="model",
        mean=found.mean,
        std=found.std,
        nonfinite=None,
        device=device.type,
        precision=config.precision,
        threads=cpu_threads(),
    )


def validation_plan(config: TrainingConfig, raw: Volume, region: Box, settings: Settings) -> Plan:
    """Blocks of held-out sections."""
    bytes_per_voxel = raw.dtype.itemsize * config.architecture.in_channels
    source = Input(axes=raw.axes, extent=raw.extent, chunks=raw.chunks, bytes_per_voxel=bytes_per_voxel)
    tile = largest_tile(config.architecture.footprint(), CPU_TILE)
    nothing = Sources(volume="", volume_fingerprint="", model="", model_fingerprint="")
    return make_plan(source, region, config.architecture, tile, settings, nothing)
