"""Training by several processes together, as ``torchrun`` or SLURM started them; or by one alone."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from unetcli.core.errors import Incomplete, UnetcliError
from unetcli.model.network import BatchNorm

T = TypeVar("T")
GATHERING = timedelta(minutes=10)
"""Time that a process waits for the others to start: nodes read torch from a file system under load."""
PATIENCE = timedelta(minutes=60)
"""Time that it waits for them later: the first one validates meanwhile. One that died is noticed at once."""
BROKEN = re.compile(r"gloo/transport|NCCL|connection (?:closed|reset|refused)|broken pipe", re.IGNORECASE)
"""Messages of torch, in a plain RuntimeError, when a process at the other end is gone."""


class OtherRankFailed(UnetcliError):
    """Another rank failed and reports the error."""


class PeerLost(Incomplete):
    """Another rank has ended; the rest cannot train without it."""


@dataclass(frozen=True, slots=True)
class World:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> World:
        """From the variables of ``torchrun``; a process alone where they are not set."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        if any(not os.environ.get(name, "").isdecimal() for name in names[:2]):
            return cls()
        return cls(*(int(os.environ.get(name) or 0) for name in names))

    @property
    def is_first(self) -> bool:
        """Whether this process writes files, validates and logs."""
        return self.rank == 0

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Connect the processes for the block.

        Raises
        ------
        PeerLost
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
            raise PeerLost(
                f"another of the {self.size} processes has ended; the same command continues from the last checkpoint"
            ) from error
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()

    def _gathered(self) -> Any:
        """The store that connects the processes, once all of them have come.

        Raises
        ------
        UnetcliError
            One does not come, or the first one cannot be reached at its address.
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
        """The result of the first process, in all of them; an error there ends all.

        Raises
        ------
        UnetcliError, OSError
            The first process's own; :class:`OtherRankFailed` in the others.
        """
        if self.size == 1:
            return function()
        found: T | None = None
        error = None
        if self.is_first:
            found, error = _tried(function)
        message: list[Any] = [(found, error is not None)]
        dist.broadcast_object_list(message, src=0)
        result, failed = message[0]
        if failed:
            raise error or OtherRankFailed("process 0 tells why")
        return cast(T, found if self.is_first else result)

    def each(self, function: Callable[[], T]) -> T:
        """The result of each process; an error in one ends all. They must not need each other meanwhile.

        Raises
        ------
        UnetcliError, OSError
            This process's own, where it is the first that has one; :class:`OtherRankFailed` in all others.
        """
        if self.size == 1:
            return function()
        found, error = _tried(function)
        everyone = [torch.empty(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(everyone, torch.tensor([int(error is not None)]))
        failed = [rank for rank, fails in enumerate(everyone) if fails]
        if failed:
            raise error if error and failed[0] == self.rank else OtherRankFailed(f"process {failed[0]} tells why")
        return cast(T, found)

    def require_same(self, what: str, values: dict[str, Any]) -> None:
        """Refuse values that differ between processes, as hosts of different kinds may choose."""
        first = self.first(lambda: values)
        other = [name for name in values if values[name] != first.get(name)]

        def compare() -> None:
            if other:
                name = other[0]
                raise UnetcliError(
                    f"{what}: {name} is {values[name]} in process {self.rank} and {first.get(name)} in process 0; "
                    "name it, or take hosts of one kind"
                )

        self.each(compare)

    def greatest(self, *numbers: int) -> list[int]:
        """The maximum of each number over all processes: so all stop, or write a checkpoint, at the same step."""
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
        """The network with gradients averaged and batch statistics taken over all processes."""
        if self.size == 1:
            return network
        for module in network.modules():
            if isinstance(module, BatchNorm):
                module.processes = self.size
        places = [device] if device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the option's new name is not there in older releases
            return nn.parallel.DistributedDataParallel(network, device_ids=places, broadcast_buffers=False)


def _tried(function: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """The result of a function, or the error that a user can put right."""
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
