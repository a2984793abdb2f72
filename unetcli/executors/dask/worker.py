"""A Dask worker, which consists of a process that runs batches and one that restarts it if it dies.

Also the certificate of a run: only processes that can read its files may connect to the scheduler and workers of the
run. The certificates of Dask's ``Security.temporary()`` become valid at the second of their creation, so that a node
whose clock is slow rejects them.
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
"""Seconds within which the scheduler must answer."""
GRACE = 20.0
"""Seconds for a terminated worker to finish its current block; by default SLURM kills a job 30 s after SIGTERM."""
SECONDS_TO_CLOSE = 5.0
SCRATCH = "UNETCLI_WORKER_SCRATCH"
"""Environment variable with the path of the worker's temporary folder."""
LEAVE, BUSY = "leave", "busy"
"""Files in that folder: one asks the worker to end, the other has the id of the process that runs a block."""
CERTIFICATE, KEY = "certificate.pem", "key.pem"
DAYS = 90
"""Validity of a certificate, longer than any job may run."""


def serve(
    scheduler: str,
    tls: str | None = None,
    memory: int | None = None,
    scratch: str | None = None,
    name: str | None = None,
    death_timeout: float = DEATH_TIMEOUT,
) -> None:
    """Work for a scheduler until it ends, or until SIGTERM.

    All arguments are plain values, so that any launcher can start it.

    Parameters
    ----------
    scheduler : address
        ``tls://HOST:PORT`` or ``tcp://HOST:PORT``.
    tls : folder
        Folder with the certificate of the run.
    memory : bytes
        The worker is restarted when it uses 95 % of this. Default: no limit other than that of the job.
    scratch : folder
        Parent of the worker's temporary folder. Default: the system's folder for temporary files.
    name
        Name of the worker at the scheduler.
    death_timeout : seconds
        Time without an answer of the scheduler after which the worker ends.

    Raises
    ------
    UnetcliError
        No scheduler answers at the address, or it rejects the certificate.
    """
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "warning")  # read at the first import of dask, also in children
    os.environ["PYTHONSAFEPATH"] = "1"  # child processes import nothing from the current folder
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

    if os.environ["DASK_LOGGING__DISTRIBUTED"] == "warning":  # dask may already be imported
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
    """Address of this host on the scheduler's network; by default a worker would listen on all networks."""
    from distributed.comm.addressing import get_address_host, unparse_host_port
    from distributed.utils import get_ip

    try:
        return str(unparse_host_port(get_ip(get_address_host(scheduler))))
    except (OSError, ValueError) as error:
        raise UnetcliError(f"--scheduler {scheduler}: no such address ({error}); expected tls://HOST:PORT") from error


def _signals() -> asyncio.Event:
    """Event that is set by a signal to end; SIGUSR2 is submitit's warning of the time limit."""
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    return asked


async def _started(nanny: Nanny, scheduler: str, asked: asyncio.Event, death_timeout: float) -> None:
    """Wait until the worker runs, or until a signal asks this process to end."""
    starting = asyncio.ensure_future(nanny)
    try:
        await asyncio.wait_for(_either(starting, asked.wait()), death_timeout)
        if starting.done():
            starting.result()
    except (OSError, TimeoutError, RuntimeError) as error:  # a refused certificate is an OSError
        await nanny.close(timeout=2)
        raise UnetcliError(
            f"no Dask scheduler at {scheduler} accepted this worker within {death_timeout:g} s "
            f"({one_line(error)}); check that it is running and that --tls has its certificate"
        ) from error


async def _either(*waits: Any) -> None:
    """Return when the first awaitable has ended, and cancel the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _without_worker(nanny: Nanny, seconds: float) -> None:
    """Return after the given time without a worker process, as Dask tries only once to restart it."""
    clock = asyncio.get_running_loop().time
    seen = clock()
    while clock() - seen < seconds:
        await asyncio.sleep(1)
        seen = clock() if nanny.worker_address else seen


async def _finish_block(nanny: Nanny, own: Path) -> None:
    """Let the worker finish its current block, so that it need not be computed again."""
    clock = asyncio.get_running_loop().time
    nanny.close_gracefully()  # do not restart the worker process
    (own / LEAVE).touch()
    deadline = clock() + GRACE
    while nanny.pid in _pids(own / BUSY) and clock() < deadline:
        await asyncio.sleep(0.1)
    await asyncio.sleep(0.2)  # for the result to reach the scheduler


def _pids(busy: Path) -> set[int | None]:
    """Id of the process that runs a block, as a set; empty if none does. The process may have died since."""
    try:
        return {int(busy.read_text())}
    except (FileNotFoundError, ValueError):
        return set()


async def _close(nanny: Nanny, own: str) -> None:
    """End worker and nanny, by force if closing fails, as it does while the worker is starting."""
    try:
        await asyncio.wait_for(nanny.close(timeout=2), SECONDS_TO_CLOSE)
    except (TimeoutError, OSError):
        shutil.rmtree(own, ignore_errors=True)
        os._exit(0)  # the worker process notices and ends too


def settings() -> dict[str, Any]:
    """Dask settings of a worker: no spilling to disk, no web server, and malloc configured for the network."""
    return {
        "distributed.nanny.pre-spawn-environ": malloc_variables(),
        "distributed.worker.http.routes": [],
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": 0.95,
    }


class BatchResult(NamedTuple):
    """Result of a batch; small, as it is sent to the client."""

    done: int
    """Number of blocks finished."""
    host: str
    left: bool = False
    """Whether the worker was asked to end, so that blocks may be unfinished."""
    error: str = ""
    """Exception of the task, on one line; empty if there was none."""
    details: str = ""
    """Traceback of the exception, for the log."""


_one_at_a_time = threading.Lock()  # the user's workers may have several threads, but a task needs the whole process
_stopped: set[str] = set()
"""Runs whose batches have to stop in this worker process."""


def request_stop(run: str) -> None:
    """Stop the batches of a run in this worker process after their current block."""
    _stopped.add(run)


def run_batch(task: Task, folder: str, blocks: Ranges, run: str) -> BatchResult:
    """Process a batch on a Dask worker. Exceptions are returned as text, which needs no import at the client."""
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
    """Whether a batch is still needed: its client is connected and the worker is not closing."""
    state = worker.state.tasks.get(key)  # type: ignore[call-overload]
    return state is not None and state.state == "executing" and worker.status.name == "running"


def leaving() -> bool:
    """Whether this worker was asked to end, for example by SIGTERM."""
    scratch = os.environ.get(SCRATCH)
    return scratch is not None and (Path(scratch) / LEAVE).exists()


@contextmanager
def _busy() -> Iterator[None]:
    """Record the process id in the worker's folder while a block is processed; see :func:`_finish_block`."""
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
    """Create a folder with a new certificate for the duration of the block; that of a killed run is replaced."""
    remove_aside(folder)
    write_certificate(folder)
    try:
        yield folder
    finally:
        remove_aside(folder)


def write_certificate(folder: Path) -> None:
    """Create a folder (mode 0700) with a new key and its self-signed certificate (mode 0600), in PEM format."""
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
        (folder / file).touch(mode=0o600, exist_ok=False)  # restrict access before writing the content
        (folder / file).write_bytes(content)


def security_for(scheduler: str, tls: Path | None) -> Security | None:
    """Security settings to connect to a scheduler; raises :class:`UnetcliError` if it needs a certificate."""
    if scheduler.startswith("tls://") and tls is None:
        raise UnetcliError(f"--scheduler {scheduler}: needs the certificate of its run; add --tls FOLDER")
    return security(tls) if tls else None


def security(folder: Path) -> Security:
    """Security settings for Dask's scheduler, workers and clients, which trust only the certificate in a folder."""
    from distributed.security import Security

    certificate, key = (str(folder / name) for name in (CERTIFICATE, KEY))
    for path in (certificate, key):
        if not os.access(path, os.R_OK):
            raise UnetcliError(f"{path}: cannot be read; --tls expects a folder with {CERTIFICATE} and {KEY}")
    pair = (("cert", certificate), ("key", key))
    roles = {f"tls_{role}_{what}": path for role in ("scheduler", "worker", "client") for what, path in pair}
    return Security(require_encryption=True, tls_ca_file=certificate, **roles)
