"""A Dask worker: one process that works off batches, and one that watches over it and replaces it when it dies.

Also the certificate of the run: who holds its files may talk to the run's scheduler and workers, nobody else. Dask's
own ``Security.temporary()`` would do but for one thing: its certificates are good from the second they are made, so
that a node whose clock is slow refuses them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from unetcli.core.errors import UnetcliError, one_line
from unetcli.core.files import remove_aside
from unetcli.core.process import malloc_variables, spin_briefly
from unetcli.core.ranges import Ranges
from unetcli.executors.contract import Task

if TYPE_CHECKING:
    from distributed import Nanny, Worker
    from distributed.security import Security

DEATH_TIMEOUT = 60.0
"""Seconds in which the scheduler has to answer."""
GRACE = 20.0
"""Seconds that a worker asked to leave has for its current block; SLURM kills 30 s after SIGTERM by default."""
SECONDS_TO_CLOSE = 5.0
SCRATCH = "UNETCLI_WORKER_SCRATCH"
"""Variable that names the worker's own folder."""
LEAVE, BUSY = "leave", "busy"
"""Files there: one asks the worker to leave, the other says which process is at work."""
CERTIFICATE, KEY = "certificate.pem", "key.pem"
DAYS = 90
"""How long a certificate is good for: longer than any job may run."""


def serve(
    scheduler: str,
    tls: str | None = None,
    memory: int | None = None,
    scratch: str | None = None,
    name: str | None = None,
    death_timeout: float = DEATH_TIMEOUT,
) -> None:
    """Work for a scheduler until it ends, or until SIGTERM; takes plain values, so that any launcher can call it.

    Parameters
    ----------
    tls : folder
        With the certificate of the run.
    memory : bytes
        A worker that holds 95 % of it is restarted; by default only the job limits it.
    scratch : folder
        Where its own folder is made, and removed at the end; by default the system's place for temporary files.
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
            security=security_for(scheduler, Path(tls) if tls else None),
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
    starting = asyncio.ensure_future(nanny)
    try:
        await asyncio.wait_for(_either(starting, asked.wait()), death_timeout)
        if starting.done():
            starting.result()
    except (OSError, TimeoutError, RuntimeError) as error:  # a refused certificate is an OSError
        await nanny.close(timeout=2)
        raise UnetcliError(
            f"no Dask scheduler let this worker in at {scheduler} within {death_timeout:g} s "
            f"({one_line(error)}); is it running, and is --tls its certificate?"
        ) from error


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


class BatchResult(NamedTuple):
    """What became of a batch; small, as it travels back."""

    done: int
    host: str
    left: bool = False
    """The worker was asked to leave, so blocks may be left."""
    error: str = ""
    """What the task raised, as one line."""
    details: str = ""
    """Its traceback, for the log."""


_one_at_a_time = threading.Lock()  # a worker of others may have several threads; the task takes the whole process
_stopped: set[str] = set()
"""Runs that were stopped, as this worker process was told."""


def request_stop(run: str) -> None:
    """Have batches of that run stop after their current block, in this worker process."""
    _stopped.add(run)


def run_batch(task: Task, folder: str, blocks: Ranges, run: str) -> BatchResult:
    """Work off a batch on a Dask worker; an exception comes back as text, which any client can read."""
    from distributed import get_worker

    worker, host = get_worker(), socket.gethostname()
    key = worker.get_current_task()

    def stopping() -> bool:
        return run in _stopped or leaving() or not _is_wanted(worker, key)

    with _one_at_a_time:
        if stopping():
            return BatchResult(0, host, left=leaving())
        try:
            with _busy():
                done = task(folder, blocks, stopping)
        except (Exception, SystemExit) as error:
            return BatchResult(0, host, error=one_line(error, kind=True), details=traceback.format_exc())
    return BatchResult(done, host, left=leaving())


def _is_wanted(worker: Worker, key: object) -> bool:
    """False where the batch was given up: its client is gone, or the worker is closing."""
    state = worker.state.tasks.get(key)  # type: ignore[call-overload]
    return state is not None and state.state == "executing" and worker.status.name == "running"


def leaving() -> bool:
    """Whether this worker was asked to leave, as by SIGTERM."""
    scratch = os.environ.get(SCRATCH)
    return scratch is not None and (Path(scratch) / LEAVE).exists()


@contextmanager
def _busy() -> Iterator[None]:
    """Say in the worker's own folder that it works, for who asks it to leave."""
    scratch = os.environ.get(SCRATCH)
    mark = Path(scratch) / BUSY if scratch else None
    if mark:
        mark.write_text(str(os.getpid()))
    try:
        yield
    finally:
        if mark:
            mark.unlink(missing_ok=True)


@contextmanager
def run_certificate(folder: Path) -> Iterator[Path]:
    """A folder with a fresh certificate, removed when the block ends; one of a killed run is replaced."""
    remove_aside(folder)
    write_certificate(folder)
    try:
        yield folder
    finally:
        remove_aside(folder)


def write_certificate(folder: Path) -> None:
    """Make the folder (mode 0700) with a new key and the certificate that it signed for itself (0600), in PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import NameOID

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "unetcli run")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # clocks of nodes differ
        .not_valid_after(now + timedelta(days=DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(mode=0o700, parents=True)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for file, content in ((CERTIFICATE, certificate.public_bytes(Encoding.PEM)), (KEY, secret)):
        (folder / file).touch(mode=0o600, exist_ok=False)  # before there is anything to read in it
        (folder / file).write_bytes(content)


def security_for(scheduler: str, tls: Path | None) -> Security | None:
    """What a client or worker needs to be let in; raises where a certificate is needed and none is named."""
    if scheduler.startswith("tls://") and tls is None:
        raise UnetcliError(f"--scheduler {scheduler}: needs the certificate of its run; --tls FOLDER names it")
    return security(tls) if tls else None


def security(folder: Path) -> Security:
    """What Dask's scheduler, workers and clients need to trust that certificate, and nothing else."""
    from distributed.security import Security

    certificate, key = (str(folder / name) for name in (CERTIFICATE, KEY))
    for path in (certificate, key):
        if not os.access(path, os.R_OK):
            raise UnetcliError(f"{path}: not readable; --tls names a folder with {CERTIFICATE} and {KEY}")
    pair = (("cert", certificate), ("key", key))
    roles = {f"tls_{role}_{what}": path for role in ("scheduler", "worker", "client") for what, path in pair}
    return Security(require_encryption=True, tls_ca_file=certificate, **roles)
