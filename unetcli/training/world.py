"""The processes that train together: one, or as many as ``torchrun`` or SLURM started."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from unetcli.errors import UnetcliError

T = TypeVar("T")
PATIENCE = timedelta(minutes=60)
"""How long a process waits for the others: the first one validates while they wait."""


@dataclass(frozen=True, slots=True)
class World:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> World:
        """As ``torchrun`` says; alone where nobody does."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        if any(not os.environ.get(name, "").isdecimal() for name in names[:2]):
            return cls()
        return cls(*(int(os.environ.get(name) or 0) for name in names))

    @property
    def is_first(self) -> bool:
        """Whether this process writes files, judges and talks."""
        return self.rank == 0

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Within, the processes hear each other."""
        if self.size == 1:
            yield
            return
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, rank=self.rank, world_size=self.size, timeout=PATIENCE)
        try:
            yield
        finally:
            dist.destroy_process_group()

    def first(self, function: Callable[[], T]) -> T:
        """What the first process finds, in all of them; an error there is an error everywhere.

        Raises
        ------
        UnetcliError
            The first process's own in the first, and the same words in the others.
        """
        if self.size == 1:
            return function()
        told: list[Any] = [None, None]
        error: UnetcliError | None = None
        if self.is_first:
            try:
                told[0] = function()
            except UnetcliError as caught:
                error, told[1] = caught, str(caught)
        dist.broadcast_object_list(told, src=0)
        if error or told[1] is not None:
            raise error or UnetcliError(told[1])
        return cast(T, told[0])

    def add(self, values: Tensor) -> Tensor:
        """Sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, wish: bool) -> bool:
        """Whether any process wishes it: all end at the same step."""
        if self.size == 1:
            return wish
        wishes = torch.tensor([int(wish)])
        dist.all_reduce(wishes)
        return bool(wishes.item())

    def mine(self, numbers: range) -> range:
        """This process's part of a step's samples: as many as the others', in one piece."""
        share = len(numbers) // self.size
        return numbers[self.rank * share : (self.rank + 1) * share]

    def shared(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network, its gradients averaged over all processes."""
        if self.size == 1:
            return network
        places = [device] if device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the option's new name is not there in older releases
            return nn.parallel.DistributedDataParallel(network, device_ids=places, broadcast_buffers=False)


def require_divisible(batch_size: int, world: World) -> None:
    """Refuse a batch that cannot be shared out evenly."""
    if batch_size % world.size:
        raise UnetcliError(
            f"--batch-size {batch_size}: cannot be shared by {world.size} processes; "
            f"{-(-batch_size // world.size) * world.size} can"
        )
