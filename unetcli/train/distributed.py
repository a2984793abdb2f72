"""Training in several processes that ``torchrun`` or SLURM started, or in a single one."""

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
START_TIMEOUT = timedelta(minutes=10)
"""Time that a process waits for the others to start: nodes may read torch from a file system under load."""
TIMEOUT = timedelta(minutes=60)
"""Time that a process waits for the others later, as while rank 0 validates. A lost process is noticed at once."""
CONNECTION_LOST = re.compile(r"gloo/transport|NCCL|connection (?:closed|reset|refused)|broken pipe", re.IGNORECASE)
"""Messages of the plain RuntimeError that torch raises when another process has ended."""


class OtherRankFailed(UnetcliError):
    """Another rank failed and reports the error."""


class PeerLost(Incomplete):
    """Another rank has ended; the rest cannot train without it."""


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The processes that train together, seen from one of them; the methods are no-ops for a single process."""

    rank: int = 0
    """Number of this process, from 0."""
    size: int = 1
    """Number of processes."""
    local_rank: int = 0
    """Number of this process on its host, which selects its GPU."""

    @classmethod
    def from_environment(cls) -> ProcessGroup:
        """Read the environment variables that ``torchrun`` sets; without them, the process is a single one."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        if any(not os.environ.get(name, "").isdecimal() for name in names[:2]):
            return cls()
        return cls(*(int(os.environ.get(name) or 0) for name in names))

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes files, validates and logs."""
        return self.rank == 0

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Connect the processes while the context is active.

        Raises
        ------
        UnetcliError
            A process does not start, or rank 0 cannot be reached.
        PeerLost
            Another process has ended.
        """
        if self.size == 1:
            yield
            return
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        store = self._rendezvous()
        try:
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size, timeout=TIMEOUT)
            yield
        except RuntimeError as error:
            if not (isinstance(error, dist.DistError) or CONNECTION_LOST.search(str(error))):
                raise
            raise PeerLost(
                f"another of the {self.size} processes has ended; the same command continues from the last checkpoint"
            ) from error
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()

    def _rendezvous(self) -> Any:
        """Wait until all processes have started, and return the store that connects them.

        Raises
        ------
        UnetcliError
            A process does not start, or rank 0 cannot be reached at its address.
        """
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        try:
            store, _, _ = next(rendezvous("env://", self.rank, self.size, timeout=START_TIMEOUT))
            store.set(f"started/{self.rank}", "")
            store.wait([f"started/{rank}" for rank in range(self.size)], START_TIMEOUT)
        except (RuntimeError, ValueError) as error:  # torch's own errors, and a missing MASTER_ADDR
            reason = str(error).splitlines()[0]
            raise UnetcliError(
                f"process {self.rank}: cannot connect to the {self.size} processes at {address} ({reason}); "
                "under SLURM, set UNETCLI_MASTER to an address of the first node that the other nodes can reach"
            ) from error
        return store

    def on_first(self, function: Callable[[], T]) -> T:
        """Call a function on rank 0 and return its result in all processes.

        Raises
        ------
        UnetcliError, OSError
            On rank 0, the function's own error; on the others, :class:`OtherRankFailed`.
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
            raise error or OtherRankFailed("process 0 failed; see its message")
        return cast(T, found if self.is_first else result)

    def on_each(self, function: Callable[[], T]) -> T:
        """Call a function in every process and return its result there, unless it fails in any of them.

        The function must not communicate with other processes.

        Raises
        ------
        UnetcliError, OSError
            The function's own error on the lowest rank that failed; :class:`OtherRankFailed` on all others.
        """
        if self.size == 1:
            return function()
        found, error = _tried(function)
        everyone = [torch.empty(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(everyone, torch.tensor([int(error is not None)]))
        failed = [rank for rank, fails in enumerate(everyone) if fails]
        if failed:
            raise error if error and failed[0] == self.rank else OtherRankFailed(f"process {failed[0]} failed")
        return cast(T, found)

    def require_same(self, what: str, values: dict[str, Any]) -> None:
        """Raise UnetcliError if values differ between processes, as defaults do on hosts with different hardware."""
        first = self.on_first(lambda: values)
        other = [name for name in values if values[name] != first.get(name)]

        def compare() -> None:
            if other:
                name = other[0]
                raise UnetcliError(
                    f"{what}: {name} is {values[name]} in process {self.rank} and {first.get(name)} in process 0; "
                    "set this option, or use hosts with the same hardware"
                )

        self.on_each(compare)

    def maximum(self, *numbers: int) -> list[int]:
        """Return the maximum of each number over all processes.

        With it, all processes stop, or write a checkpoint, at the same step.
        """
        if self.size == 1:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return cast(list[int], values.tolist())

    def sum(self, values: Tensor) -> Tensor:
        """Add values over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def part(self, numbers: range) -> range:
        """This process's part of the numbers of a step's samples: contiguous, and of the same size in each process."""
        share = len(numbers) // self.size
        return numbers[self.rank * share : (self.rank + 1) * share]

    def data_parallel(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Wrap a network so that gradients are averaged, and batch statistics computed, over all processes."""
        if self.size == 1:
            return network
        for module in network.modules():
            if isinstance(module, BatchNorm):
                module.processes = self.size
        places = [device] if device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # older releases do not have the option's new name
            return nn.parallel.DistributedDataParallel(network, device_ids=places, broadcast_buffers=False)


def _tried(function: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """Call a function; return its result, or its error if the user can correct it."""
    try:
        return function(), None
    except (UnetcliError, OSError) as error:
        return None, error


def require_divisible(batch_size: int, group: ProcessGroup) -> None:
    """Raise UnetcliError if a batch cannot be divided evenly among the processes."""
    if batch_size % group.size:
        raise UnetcliError(
            f"--batch-size {batch_size}: not divisible by the {group.size} processes; "
            f"{-(-batch_size // group.size) * group.size} would work"
        )
