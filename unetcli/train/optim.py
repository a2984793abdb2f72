"""Network, loss and optimiser, and one training step."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from unetcli.core.arrays import broadcast_channels
from unetcli.core.errors import UnetcliError
from unetcli.core.process import switch_threads_often, threads_beside
from unetcli.core.streams import ordered_map
from unetcli.model.network import UNet, channelwise, on_device
from unetcli.train.augment import augment
from unetcli.train.dataset import DatasetStatistics
from unetcli.train.distributed import ProcessGroup
from unetcli.train.folder import Checkpoint
from unetcli.train.sampling import Sample, Sampler
from unetcli.train.settings import IGNORED, Optimisation, TrainingConfig
from unetcli.train.targets import weight_table

MIN_WEIGHT_SUM = 1e-20
"""Smallest sum of weights by which a loss is divided, so that a step without ground truth has a loss of 0, not NaN."""
MOST_SAMPLING_THREADS, CORES_PER_THREAD = 4, 2
"""Threads that draw samples for a GPU, at most, and the cores for each of them."""
COMPILERS = ("torch._dynamo.", "torch._inductor.")
"""Modules of the errors that torch raises while compiling; they are named because importing them takes seconds."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The samples of one step, on the device."""

    images: Tensor
    """(batch, c, tile, tile) float32, mean 0 and standard deviation 1 over the training images."""
    classes: Tensor
    """(batch, output, output) int64"""
    border_weight: Tensor
    """(batch, output, output) float32: border weight, which is added to the class weight."""
    dropout_mask: Tensor
    """(batch, channels, 1, 1) float32: factors of the channels, 0 or 1 / (1 - p)."""
    ready: torch.cuda.Event | None = None
    """Reached when a GPU has prepared the batch; None if it is there already."""

    def wait(self) -> None:
        """Let the current stream of a GPU wait for the batch."""
        if self.ready is None:
            return
        stream = torch.cuda.current_stream(self.images.device)
        stream.wait_event(self.ready)
        for values in (self.images, self.classes, self.border_weight, self.dropout_mask):
            values.record_stream(stream)


class Learner:
    """Network, its moving average and the optimiser: everything that a training step changes.

    Parameters
    ----------
    config : TrainingConfig
    statistics : DatasetStatistics
        Normalisation of the images, and class counts for the class weights.
    device : torch.device
    group : ProcessGroup
        Processes that share each batch.
    compiled : bool
        Whether to compile the network with ``torch.compile``.
    """

    def __init__(
        self,
        config: TrainingConfig,
        statistics: DatasetStatistics,
        device: torch.device,
        group: ProcessGroup,
        *,
        compiled: bool = False,
    ) -> None:
        torch.manual_seed(config.seed)
        self.config, self.statistics, self.device, self.group = config, statistics, device, group
        self.network = UNet(config.architecture)
        on_device(self.network, device).train()
        self.averaged = copy.deepcopy(self.network) if config.optimisation.ema else None
        self.validated = self.network if self.averaged is None else self.averaged
        """Network that is validated and saved: the moving average if there is one."""
        self.table = torch.from_numpy(weight_table(statistics.class_weights(balance=config.balance))).to(device)
        network = group.data_parallel(self.network, device)
        self._forward = torch.compile(network) if compiled else network
        self._compiling = reporting_compile_errors if compiled else nullcontext
        if device.type == "cuda":
            switch_threads_often()
        if device.type == "cuda" and group.size == 1 and not compiled:
            self._forward = recorded(self.network, self._example(), config.precision)
        self._preparing = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """Optimiser of the network. Torch imports its compiler for the first one, which takes two seconds."""
        return create_optimizer(self.config.optimisation, self.network)

    def _example(self) -> tuple[Tensor, ...]:
        """Arguments of a forward pass of the shapes of a batch, for a process that trains alone."""
        a, tiles, side = self.config.architecture, self.config.optimisation.batch_size, self.config.tile
        images = torch.zeros(tiles, a.in_channels, side, side, device=self.device)
        images = images.contiguous(memory_format=torch.channels_last)
        mask = torch.ones(tiles, a.channels(a.depth), 1, 1, device=self.device)
        return (images, mask) if a.dropout else (images,)

    def batch(self, samples: Sequence[Sample], dropout_masks: Sequence[Any]) -> Batch:
        """Augment samples on the device and stack them; ``dropout_masks`` are (channels,), one per sample.

        A GPU does so on a stream of its own, beside the steps.
        """
        if self._preparing is None:
            return self._batch(samples, dropout_masks)
        with torch.cuda.stream(self._preparing):
            made = self._batch(samples, dropout_masks)
            return replace(made, ready=self._preparing.record_event())

    def _batch(self, samples: Sequence[Sample], dropout_masks: Sequence[Any]) -> Batch:
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
        dropout_mask = torch.from_numpy(np.stack(dropout_masks)).to(self.device)[:, :, None, None]
        return Batch(images, classes, border_weight, dropout_mask)

    def step(self, batch: Batch, number: int) -> Tensor:
        """Do one training step.

        Parameters
        ----------
        batch : Batch
            This process's part of the batch.
        number : int
            Number of the step, counted from 0.

        Returns
        -------
        (), float32
            Loss over all processes, on the device, which may still be computing it.
        """
        loss = self.gradients(batch)
        self._update(number)
        return loss

    def gradients(self, batch: Batch) -> Tensor:
        """Compute the gradients of a batch, and return the loss like :meth:`step`."""
        batch.wait()
        arguments = (batch.images, batch.dropout_mask) if self.config.architecture.dropout else (batch.images,)
        with self._compiling(), autocast(self.device, self.config.precision):
            logits = self._forward(*arguments)
        total, weight = weighted_cross_entropy(logits, batch.classes, batch.border_weight, self.table)
        sums = self.group.sum(torch.stack([total.detach(), weight]))
        weight_sum = sums[1].clamp_min(MIN_WEIGHT_SUM)
        self.network.zero_grad(set_to_none=True)
        loss = total * (self.group.size / weight_sum)  # gradients are averaged over the processes, not summed
        with self._compiling():
            loss.backward()  # type: ignore[no-untyped-call]
        return sums[0] / weight_sum

    def _update(self, number: int) -> None:
        """Update the weights and their moving average."""
        optimisation = self.config.optimisation
        for group in self.optimizer.param_groups:
            group["lr"] = optimisation.rate(number)
        if optimisation.clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), optimisation.clip)
        self.optimizer.step()
        if self.averaged is not None:
            self._average(self.averaged, number)

    def start_from(self, state: Mapping[str, Tensor]) -> None:
        """Load the weights, and running statistics, with which the training begins."""
        for network in (self.network, self.validated):
            network.load_state_dict(state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Load network, optimiser and moving average from a checkpoint.

        Raises
        ------
        RuntimeError, ValueError, LookupError, TypeError, AttributeError
            The checkpoint is of another network or optimiser.
        """
        self.network.load_state_dict(checkpoint.network)
        settings = [{name: group[name] for name in group if name != "params"} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(checkpoint.optimizer)
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)  # they follow from the configuration
        _require_state(self.optimizer)
        if self.averaged is not None and checkpoint.averaged is not None:
            self.averaged.load_state_dict(checkpoint.averaged)

    @torch.no_grad()
    def _average(self, averaged: nn.Module, number: int) -> None:
        """Update the moving average, with a smaller decay in the first steps, in which the weights change fast."""
        decay = min(self.config.optimisation.ema, (1 + number) / (10 + number))
        torch._foreach_lerp_(_averaged_values(averaged), _averaged_values(self.network), 1 - decay)

    def _grey(self, image: NDArray[Any]) -> Tensor:
        """Copy grey values to the device, uint8 as uint8 to copy less, all others as float32; the mean for NaN."""
        grey = image if image.dtype == np.uint8 else image.astype(np.float32)
        if image.dtype.kind == "f" and not (finite := np.isfinite(grey)).all():
            grey = np.where(finite, grey, broadcast_channels(self.statistics.mean, 3).astype(np.float32))
        return torch.from_numpy(np.ascontiguousarray(grey)).to(self.device)


class _Recorded(nn.Module):
    """A network whose recording leaves the network itself as it is."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *arguments: Tensor) -> Tensor:
        return self.network(*arguments)  # type: ignore[no-any-return]


def recorded(network: nn.Module, arguments: tuple[Tensor, ...], precision: str) -> nn.Module:
    """The network with forward and backward pass recorded on a GPU, for arguments of these shapes.

    A pass has hundreds of kernels, and the processor takes longer to start them one by one than the GPU takes to
    compute them: with batches of one tile, an H100 would wait for a third of the time. Results are the same. If the
    memory does not suffice for the recording, the network itself is returned.
    """
    if hasattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch"):
        # torch 2.10 warns that gradients were recorded on another stream than they are added on: so they are here.
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
    state = copy.deepcopy(network.state_dict())
    device = arguments[0].device.type
    dtype = torch.bfloat16 if precision == "bfloat16" else None
    try:
        with torch.autocast(device, dtype, enabled=dtype is not None, cache_enabled=False):
            return cast(nn.Module, torch.cuda.make_graphed_callables(_Recorded(network), arguments))
    except torch.OutOfMemoryError:
        return network
    finally:
        network.load_state_dict(state)  # passes before the recording change the statistics of batch normalisation


def _require_state(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError unless the optimiser's values fit the weights, which torch does not check."""
    names = {frozenset(state) for state in optimizer.state.values()}
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    known = all(isinstance(weights, Tensor) for weights in optimizer.state)  # torch keeps numbers that it cannot place
    if len(names) > 1 or len(optimizer.state) not in (0, count) or not known:
        raise ValueError("values of the optimiser are missing for some weights")
    for weights, state in optimizer.state.items():
        for name, values in state.items():
            fits = isinstance(values, Tensor) and (not values.ndim or values.shape == weights.shape)
            unused = values is None and name == "momentum_buffer"  # of SGD without momentum
            if not fits and not unused:
                raise ValueError(f"{name} of the optimiser does not fit the weights of shape {tuple(weights.shape)}")


def _averaged_values(network: nn.Module) -> list[Tensor]:
    """Weights and running statistics of batch normalisation, which would jump with each tile if not averaged."""
    return [*network.parameters(), *(values for values in network.buffers() if values.is_floating_point())]


def autocast(device: torch.device, precision: str) -> Any:
    """Context manager for a forward pass in float32 or bfloat16; weights and their updates stay float32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def output_side(config: TrainingConfig) -> int:
    """Side of the network's output for one training tile, in pixels."""
    return config.tile - 2 * config.architecture.footprint().context[-1]


def create_optimizer(optimisation: Optimisation, network: nn.Module) -> torch.optim.Optimizer:
    """Create the configured optimiser: SGD with momentum (as in the paper), Adam or AdamW with beta2 = 0.999."""
    rate, momentum, decay = optimisation.learning_rate, optimisation.momentum, optimisation.weight_decay
    parameters = list(network.parameters())
    if optimisation.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=momentum, weight_decay=decay)
    kind = torch.optim.AdamW if optimisation.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=rate, betas=(momentum, 0.999), weight_decay=decay, foreach=True)


def batches(learner: Learner, sampler: Sampler, numbers: Iterable[int]) -> Iterable[Batch]:
    """Yield this process's part of the batch of each step in ``numbers``.

    For a GPU, several threads draw samples; a sample depends only on its number.
    """
    size, architecture = learner.config.optimisation.batch_size, learner.config.architecture
    width = architecture.channels(architecture.depth)

    def drawn(number: int) -> tuple[list[Sample], list[NDArray[np.float32]]]:
        part = learner.group.part(range(number * size, (number + 1) * size))
        masks = [sampler.dropout_mask(n, width, architecture.dropout) for n in part]
        return [sampler.sample(n) for n in part], masks

    threads = threads_beside(learner.device.type, MOST_SAMPLING_THREADS, CORES_PER_THREAD)
    if threads == 1:
        yield from itertools.starmap(learner.batch, map(drawn, numbers))
    else:
        with closing(ordered_map(drawn, numbers, threads)) as ready:
            yield from (learner.batch(*future.result()) for _, future in ready)


def weighted_cross_entropy(
    logits: Tensor, classes: Tensor, border_weight: Tensor, table: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy of the pixel-wise softmax: eq. 1 of the U-Net paper (2015), with the weights of eq. 2.

    The paper minimises the sum over the pixels. Dividing the sum of losses by the sum of weights, as training does,
    makes the learning rate independent of the tile's size; both are returned so that processes can share one mean.

    Parameters
    ----------
    logits : (batch, classes, y, x), float
    classes : (batch, y, x), int64
        ``IGNORED`` (255) without ground truth.
    border_weight : (batch, y, x), float32
        Second term of eq. 2, which is added to the class weight; 0 on ignored pixels.
    table : (256,), float32
        w_c of eq. 2 by class; 0 for ``IGNORED``.

    Returns
    -------
    loss : (), float32
        Sum of -w(x) log p(true class).
    weight : (), float32
        Sum of w(x).
    """
    losses = functional.cross_entropy(logits.float(), classes, reduction="none", ignore_index=IGNORED)  # (batch, y, x)
    weights = table[classes] + border_weight
    return (losses * weights).sum(), weights.sum()


@contextmanager
def reporting_compile_errors() -> Iterator[None]:
    """Convert errors of torch's compilers to :class:`UnetcliError`."""
    try:
        yield
    except RuntimeError as error:
        if not any(kind.__module__.startswith(COMPILERS) for kind in type(error).__mro__):
            raise
        message = compiler_message(str(error))
        raise UnetcliError(f"--compile: {message}; the same command without --compile continues") from error


def compiler_message(text: str) -> str:
    """Line that explains a compiler's error: the first error of the C++ compiler, otherwise the first line.

    >>> compiler_message("CppCompileError: C++ compile error\\n\\ng++ a\\n\\nfatal error: omp.h: not found\\n")
    'fatal error: omp.h: not found'
    >>> compiler_message("InvalidCxxCompiler: No working C++ compiler found")
    'InvalidCxxCompiler: No working C++ compiler found'
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["torch gives no reason"]
    return next((line for line in lines[1:] if "error:" in line), lines[0])
