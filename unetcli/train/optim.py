"""Network, loss and optimiser, and one step of them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from unetcli.core.errors import UnetcliError
from unetcli.model.network import UNet, channelwise, on_device
from unetcli.train.augment import augment
from unetcli.train.dataset import DatasetStatistics, Sample, Sampler
from unetcli.train.distributed import World
from unetcli.train.folder import Checkpoint
from unetcli.train.settings import IGNORED, Optimisation, TrainingConfig
from unetcli.train.targets import weight_table

LEAST_WEIGHT = 1e-20
"""Smallest sum of weights that a loss is divided by: a step without any truth has the loss 0, not NaN."""
COMPILERS = ("torch._dynamo.", "torch._inductor.")
"""Modules of the errors that torch raises while it compiles; importing them takes seconds."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The samples of one step, on the device."""

    images: Tensor
    """(batch, c, tile, tile) float32, mean 0 and standard deviation 1 over the training images."""
    classes: Tensor
    """(batch, output, output) int64"""
    border_weight: Tensor
    """(batch, output, output) float32: what the border adds to the class weight."""
    keep: Tensor
    """(batch, channels, 1, 1) float32: dropout."""


class Learner:
    """Everything that a step changes: the network, its moving average and the optimiser."""

    def __init__(
        self,
        config: TrainingConfig,
        statistics: DatasetStatistics,
        device: torch.device,
        world: World,
        *,
        compiled: bool = False,
    ) -> None:
        torch.manual_seed(config.seed)
        self.config, self.statistics, self.device, self.world = config, statistics, device, world
        self.network = UNet(config.architecture)
        on_device(self.network, device).train()
        self.averaged = copy.deepcopy(self.network) if config.optimisation.ema else None
        self.validated = self.network if self.averaged is None else self.averaged
        """The network that is validated and saved: the average over the last steps, where there is one."""
        self.optimizer = create_optimizer(config.optimisation, self.network)
        self.table = torch.from_numpy(weight_table(statistics.class_weights(balance=config.balance))).to(device)
        shared = world.shared(self.network, device)
        self._forward = torch.compile(shared) if compiled else shared
        self._compiling = reporting_compile_errors if compiled else nullcontext

    def batch(self, samples: Sequence[Sample], keeps: Sequence[Any]) -> Batch:
        """Samples augmented on the device."""
        images, classes, border_weight = augment(
            [self._grey(item.image) for item in samples],
            [torch.from_numpy(item.classes).to(self.device) for item in samples],
            [torch.from_numpy(item.border_weight).to(self.device) for item in samples],
            [item.draw for item in samples],
            tile=self.config.tile,
            output=output_side(self.config),
            mean=channelwise(self.statistics.mean, self.device),
            std=channelwise(self.statistics.std, self.device),
        )
        keep = torch.from_numpy(np.stack(keeps)).to(self.device)[:, :, None, None]
        return Batch(images, classes, border_weight, keep)

    def step(self, batch: Batch, number: int) -> Tensor:
        """One step of gradient descent, ``number`` from 0; its loss over all processes, which is not waited for."""
        optimisation = self.config.optimisation
        for group in self.optimizer.param_groups:
            group["lr"] = optimisation.rate(number)
        with self._compiling(), autocast(self.device, self.config.precision):
            logits = self._forward(batch.images, batch.keep if self.config.architecture.dropout else None)
        total, weight = weighted_cross_entropy(logits, batch.classes, batch.border_weight, self.table)
        sums = self.world.add(torch.stack([total.detach(), weight]))
        everything = sums[1].clamp_min(LEAST_WEIGHT)
        self.optimizer.zero_grad(set_to_none=True)
        share = total * (self.world.size / everything)  # gradients are averaged over the processes: a sum is wanted
        with self._compiling():
            share.backward()  # type: ignore[no-untyped-call]
        if optimisation.clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), optimisation.clip)
        self.optimizer.step()
        if self.averaged is not None:
            self._average(self.averaged, number)
        return sums[0] / everything

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to a checkpoint."""
        self.network.load_state_dict(checkpoint.network)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        if self.averaged is not None and checkpoint.averaged is not None:
            self.averaged.load_state_dict(checkpoint.averaged)

    @torch.no_grad()
    def _average(self, averaged: nn.Module, number: int) -> None:
        """Move the average a little; over fewer steps in the beginning, when they go far."""
        decay = min(self.config.optimisation.ema, (1 + number) / (10 + number))
        mine, theirs = _floating(averaged), _floating(self.network)
        torch._foreach_lerp_(mine, theirs, 1 - decay)

    def _grey(self, image: NDArray[Any]) -> Tensor:
        """Grey values on the device, bytes as bytes: the rest is made of them there."""
        grey = image if image.dtype == np.uint8 else image.astype(np.float32)
        return torch.from_numpy(np.ascontiguousarray(grey)).to(self.device)


def _floating(network: nn.Module) -> list[Tensor]:
    """Weights, and the running statistics of batch normalisation, which a single tile would make jump."""
    return [*network.parameters(), *(values for values in network.buffers() if values.is_floating_point())]


def autocast(device: torch.device, precision: str) -> Any:
    """Context of a forward pass in that precision; weights and their updates stay float32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def output_side(config: TrainingConfig) -> int:
    """Side of the network's output for one tile, in pixels."""
    return config.tile - 2 * config.architecture.footprint().context[-1]


def create_optimizer(optimisation: Optimisation, network: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum, Adam or AdamW, as configured."""
    rate, momentum, decay = optimisation.learning_rate, optimisation.momentum, optimisation.weight_decay
    parameters = list(network.parameters())
    if optimisation.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=momentum, weight_decay=decay)
    kind = torch.optim.AdamW if optimisation.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=rate, betas=(momentum, 0.999), weight_decay=decay, foreach=True)


def batches(learner: Learner, sampler: Sampler, numbers: Iterable[int]) -> Iterable[Batch]:
    """This process's part of the batch of each step."""
    size, architecture = learner.config.optimisation.batch_size, learner.config.architecture
    width = architecture.channels(architecture.depth)
    for number in numbers:
        mine = learner.world.mine(range(number * size, (number + 1) * size))
        samples = [sampler.sample(n) for n in mine]
        yield learner.batch(samples, [sampler.keep(n, width, architecture.dropout) for n in mine])


def weighted_cross_entropy(
    logits: Tensor, classes: Tensor, border_weight: Tensor, table: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum of -w(x) log p(true class), and the sum of w: the softmax and cross-entropy of eq. 1 and 2 of the paper.

    The paper sums; the mean makes the learning rate independent of the tile's size. Two numbers are returned, so that
    processes can share one mean.

    Parameters
    ----------
    logits : (batch, classes, y, x), float
    classes : (batch, y, x), int64
        ``IGNORED`` where there is no truth.
    border_weight : (batch, y, x), float32
        What is added to the class's weight near borders; 0 where ignored.
    table : (256,), float32
        w_c of eq. 2 by class, 0 where ignored.
    """
    losses = functional.cross_entropy(logits.float(), classes, reduction="none", ignore_index=IGNORED)  # (batch, y, x)
    weights = table[classes] + border_weight
    return (losses * weights).sum(), weights.sum()


@contextmanager
def reporting_compile_errors() -> Iterator[None]:
    """Turn errors of torch's compilers into a :class:`UnetcliError`."""
    try:
        yield
    except RuntimeError as error:
        if not any(kind.__module__.startswith(COMPILERS) for kind in type(error).__mro__):
            raise
        raise UnetcliError(f"--compile: {reason(str(error))}; the same command without --compile goes on") from error


def reason(message: str) -> str:
    """The line that explains an error of a compiler: a C++ compiler's first error, else the first one.

    >>> reason("CppCompileError: C++ compile error\\n\\nCommand:\\ng++ a.cpp\\n\\nfatal error: omp.h: not found\\n")
    'fatal error: omp.h: not found'
    >>> reason("InvalidCxxCompiler: No working C++ compiler found")
    'InvalidCxxCompiler: No working C++ compiler found'
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["torch does not say why"]
    return next((line for line in lines[1:] if "error:" in line), lines[0])
