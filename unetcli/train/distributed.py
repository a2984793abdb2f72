"""The processes that train together: one, or as many as ``torchrun`` or SLURM started."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from unetcli.core.errors import Incomplete, UnetcliError
from unetcli.model.batchnorm import BatchNorm

T = TypeVar("T")
GATHERING = timedelta(minutes=10)
"""How long a process waits for the others to start: nodes read torch from a file system under load."""
PATIENCE = timedelta(minutes=60)
"""How long it waits for them later: the first one validates meanwhile. One that died is noticed at once."""
BROKEN = re.compile(r"gloo/transport|NCCL|connection (?:closed|reset|refused)|broken pipe", re.IGNORECASE)
"""What torch says, as a plain RuntimeError, when a process at the other end is gone."""


class Elsewhere(UnetcliError):
    """Another process has the reason, and tells it."""


class Deserted(Incomplete):
    """Another process has ended, and cannot be trained without."""


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
        """Within, the processes hear each other.

        Raises
        ------
        Deserted
            One of them has ended.
        """
        if self.size == 1:
            yield
            return
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        store = self._gathered()
        try:
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size, timeout=PATIENCE)
            yield
        except RuntimeError as error:
            if not (isinstance(error, dist.DistError) or BROKEN.search(str(error))):
                raise
            raise Deserted(
                f"another of the {self.size} processes has ended; the same command continues from the last checkpoint"
            ) from error
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()

    def _gathered(self) -> Any:
        """Where the processes leave word for each other, once all have.

        Raises
        ------
        UnetcliError
            One does not come, or the first one's address leads nowhere.
        """
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        try:
            store, _, _ = next(rendezvous("env://", self.rank, self.size, timeout=GATHERING))
            store.set(f"here/{self.rank}", "")
            store.wait([f"here/{rank}" for rank in range(self.size)], GATHERING)
        except (RuntimeError, ValueError) as error:  # torch's own, and a missing MASTER_ADDR
            said = str(error).splitlines()[0]
            raise UnetcliError(
                f"process {self.rank}: does not find the {self.size} processes at {place} ({said}); "
                "under SLURM, UNETCLI_MASTER names an address of the first node that the others reach"
            ) from error
        return store

    def first(self, function: Callable[[], T]) -> T:
        """What the first process finds, in all of them; an error there ends all.

        Raises
        ------
        UnetcliError, OSError
            The first process's own; :class:`Elsewhere` in the others.
        """
        if self.size == 1:
            return function()
        found: T | None = None
        error = None
        if self.is_first:
            found, error = tried(function)
        told: list[Any] = [(found, error is not None)]
        dist.broadcast_object_list(told, src=0)
        result, failed = told[0]
        if failed:
            raise error or Elsewhere("process 0 tells why")
        return cast(T, found if self.is_first else result)

    def each(self, function: Callable[[], T]) -> T:
        """What each process finds for itself; an error in one ends all. They must not need each other meanwhile.

        Raises
        ------
        UnetcliError, OSError
            This process's own, where it is the first that has one; :class:`Elsewhere` in all others.
        """
        if self.size == 1:
            return function()
        found, error = tried(function)
        failed = [rank for rank, (fails,) in enumerate(self.of_each([error is not None])) if fails]
        if failed:
            raise error if error and failed[0] == self.rank else Elsewhere(f"process {failed[0]} tells why")
        return cast(T, found)

    def require_same(self, what: str, values: dict[str, Any]) -> None:
        """Refuse where processes would do different things, as hosts of different kinds may choose."""
        told = self.first(lambda: values)
        other = [name for name in values if values[name] != told.get(name)]

        def compare() -> None:
            if other:
                name = other[0]
                raise UnetcliError(
                    f"{what}: {name} is {values[name]} in process {self.rank} and {told.get(name)} in process 0; "
                    "name it, or take hosts of one kind"
                )

        self.each(compare)

    def of_each(self, numbers: Sequence[int]) -> list[list[int]]:
        """The numbers of each process, by rank."""
        mine = torch.tensor(numbers, dtype=torch.int64)
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(everyone, mine)
        return [values.tolist() for values in everyone]

    def greatest(self, *numbers: int) -> list[int]:
        """Of each number the greatest in any process: so all stop, or write a checkpoint, at the same step."""
        if self.size == 1:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return cast(list[int], values.tolist())

    def add(self, values: Tensor) -> Tensor:
        """Sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def mine(self, numbers: range) -> range:
        """This process's part of a step's samples: as many as the others', in one piece."""
        share = len(numbers) // self.size
        return numbers[self.rank * share : (self.rank + 1) * share]

    def shared(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network, its gradients averaged and its batch statistics taken over all processes."""
        if self.size == 1:
            return network
        for module in network.modules():
            if isinstance(module, BatchNorm):
                module.processes = self.size
        places = [device] if device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the option's new name is not there in older releases
            return nn.parallel.DistributedDataParallel(network, device_ids=places, broadcast_buffers=False)


def tried(function: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """What it returns, or the error that a user can put right."""
    try:
        return function(), None
    except (UnetcliError, OSError) as error:
        return None, error


def require_divisible(batch_size: int, world: World) -> None:
    """Refuse a batch that cannot be shared out evenly."""
    if batch_size % world.size:
        raise UnetcliError(
            f"--batch-size {batch_size}: cannot be shared by {world.size} processes; "
            f"{-(-batch_size // world.size) * world.size} can"
        )
