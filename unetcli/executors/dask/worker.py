"""A Dask worker: one process that works, and one that watches over it and replaces it when it dies."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetcli.core.errors import UnetcliError
from unetcli.core.process import spin_briefly
from unetcli.executors.dask.batches import BUSY, LEAVE, SCRATCH

if TYPE_CHECKING:
    from distributed import Nanny

DEATH_TIMEOUT = 60.0
"""Seconds in which the scheduler has to answer."""
GRACE = 20.0
"""Seconds that a worker asked to leave has for its current block; SLURM kills 30 s after SIGTERM by default."""
SECONDS_TO_CLOSE = 5.0


def serve(
    scheduler: str,
    tls: str | None = None,
    memory: int | None = None,
    name: str | None = None,
    death_timeout: float = DEATH_TIMEOUT,
    scratch: str | None = None,
) -> None:
    """Work for a scheduler until it ends, or until SIGTERM; takes plain values, so that any launcher can call it.

    Parameters
    ----------
    tls : folder
        With the certificate of the run.
    memory : bytes
        A worker that holds 95 % of it is restarted; by itself nothing is limited but by the job.
    scratch : folder
        Where its own folder is made, and removed at the end; by itself the system's place for temporary files.
    """
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "warning")  # read when dask is first imported, as in children
    spin_briefly()
    own = tempfile.mkdtemp(prefix="unetcli-worker-", dir=scratch)
    try:
        asyncio.run(_serve(scheduler, tls, memory, name, death_timeout, own))
    finally:
        shutil.rmtree(own, ignore_errors=True)


async def _serve(
    scheduler: str, tls: str | None, memory: int | None, name: str | None, death_timeout: float, own: str
) -> None:
    import dask.config
    from distributed import Nanny

    if os.environ["DASK_LOGGING__DISTRIBUTED"] == "warning":  # dask may have been imported before
        logging.getLogger("distributed").setLevel(logging.WARNING)
    asked = _signals()
    with dask.config.set(settings()):
        nanny = Nanny(
            scheduler,
            nthreads=1,
            name=name,
            host=_address_towards(scheduler),
            dashboard_address="127.0.0.1:0",
            memory_limit=memory or 0,
            death_timeout=death_timeout,
            local_directory=own,
            security=_security(scheduler, tls),
            env={SCRATCH: own},
        )
        await _started(nanny, scheduler, asked, death_timeout)
        await _either(nanny.finished(), asked.wait(), _without_worker(nanny, death_timeout))
        if asked.is_set():
            await _finish_block(nanny, Path(own))
        await _close(nanny, own)


def _address_towards(scheduler: str) -> str:
    """The address of this host on the network of the scheduler; by itself a worker would listen on all networks."""
    from distributed.comm.addressing import get_address_host, unparse_host_port
    from distributed.utils import get_ip

    try:
        return str(unparse_host_port(get_ip(get_address_host(scheduler))))
    except (OSError, ValueError) as error:
        raise UnetcliError(f"--scheduler {scheduler}: no such host or address ({error}); tls://HOST:PORT") from error


def _signals() -> asyncio.Event:
    """Set once someone asks this process to end. SIGUSR2 is how submitit tells that the time limit is near."""
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    return asked


async def _started(nanny: Nanny, scheduler: str, asked: asyncio.Event, death_timeout: float) -> None:
    """Wait until the worker runs; whoever asks it to end meanwhile is heard too."""
    starting = asyncio.ensure_future(_start(nanny))
    try:
        await asyncio.wait_for(_either(starting, asked.wait()), death_timeout)
        if starting.done():
            starting.result()
    except (OSError, TimeoutError, RuntimeError) as error:  # a refused certificate is an OSError
        await nanny.close(timeout=2)
        raise UnetcliError(
            f"no Dask scheduler let this worker in at {scheduler} within {death_timeout:g} s "
            f"({' '.join(str(error).split()) or type(error).__name__}); is it running, and is --tls its certificate?"
        ) from error


async def _start(nanny: Nanny) -> None:
    await nanny


async def _either(*waits: Any) -> None:
    """Return when the first has ended; the others are given up."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _without_worker(nanny: Nanny, seconds: float) -> None:
    """Return when there was no worker process for that long: Dask does not try a second time to restart one."""
    clock = asyncio.get_running_loop().time
    seen = clock()
    while clock() - seen < seconds:
        await asyncio.sleep(1)
        seen = clock() if nanny.worker_address else seen


async def _finish_block(nanny: Nanny, own: Path) -> None:
    """Have the worker end after its current block, so that nobody has to do it again."""
    clock = asyncio.get_running_loop().time
    nanny.close_gracefully()  # no new process in place of this one
    (own / LEAVE).touch()
    deadline = clock() + GRACE
    while nanny.pid in _pids(own / BUSY) and clock() < deadline:
        await asyncio.sleep(0.1)
    await asyncio.sleep(0.2)  # the outcome is on its way to the scheduler


def _pids(busy: Path) -> set[int | None]:
    """The process that said it is at work; it may have died since."""
    try:
        return {int(busy.read_text())}
    except (FileNotFoundError, ValueError):
        return set()


async def _close(nanny: Nanny, own: str) -> None:
    """End worker and nanny; at once where an orderly end fails, as it does while the worker is just starting."""
    try:
        await asyncio.wait_for(nanny.close(timeout=2), SECONDS_TO_CLOSE)
    except (TimeoutError, OSError):
        shutil.rmtree(own, ignore_errors=True)
        os._exit(0)  # the worker process sees it, and ends too


def _security(scheduler: str, tls: str | None) -> Any:
    from unetcli.executors.dask.tls import security

    if scheduler.startswith("tls://") and tls is None:
        raise UnetcliError(f"--scheduler {scheduler}: needs the certificate of its run; --tls FOLDER names it")
    return security(Path(tls)) if tls is not None else None


def settings() -> dict[str, Any]:
    """Dask's settings for a worker: nothing kept or spilled, no pages served, memory allocated as the network needs."""
    return {
        "distributed.nanny.pre-spawn-environ": malloc_variables(),
        "distributed.worker.http.routes": [],
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": 0.95,
    }


def malloc_variables() -> dict[str, str]:
    """Variables that do what :func:`unetcli.core.process.keep_freed_memory` does; empty where the user chose.

    Dask runs tasks in a thread of their own, and one arena for all threads has to be chosen before threads start. And
    Dask's own variables, which these replace, would limit the network to one thread.
    """
    if os.environ.get("UNETCLI_MALLOC") == "0" or any(name.startswith("MALLOC_") for name in os.environ):
        return {}
    return {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
        "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    }
