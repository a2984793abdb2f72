"""Dask clusters to run on: one that others started, or a scheduler here with workers that we launch."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from unetcli.core.errors import UnetcliError
from unetcli.executors.contract import JobFailure
from unetcli.executors.dask.tls import run_certificate, security
from unetcli.executors.dask.worker import serve, settings

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

LOG = "dask.log"
CONNECT_SECONDS = 30.0
PATIENCE = 300.0
"""Seconds without any worker after which a scheduler of others is given up."""
TALKERS = ("distributed", "distributed.client", "distributed.gc", "bokeh", "tornado", "tornado.application", "asyncio")


class Cluster(Protocol):
    """Where batches run."""

    @property
    def client(self) -> Client: ...

    @property
    def address(self) -> str:
        """Of the scheduler."""

    @property
    def expected(self) -> int:
        """Workers that will come, as far as is known."""

    def tend(self, batches_done: int) -> None:
        """Called every second while work remains: replaces worker jobs that ended."""

    def hopeless(self, seconds_without_workers: float) -> JobFailure | None:
        """Why no worker will ever come again; None while one may."""


class Launch(Protocol):
    """Starts worker jobs: each calls ``function(*arguments)``, a function of the package and plain values."""

    def __call__(self, function: Callable[..., None], arguments: Sequence[Any], count: int) -> list[str]:
        """Names of the jobs. Raises :class:`UnetcliError` where they are refused."""


Ended = Callable[[], Sequence[JobFailure]]
"""Worker jobs that ended, each told once, with the reason."""


@dataclass(frozen=True, slots=True)
class Existing:
    """A scheduler that others started; its workers come and go as they please."""

    client: Client
    address: str
    expected: int = 1

    def tend(self, batches_done: int) -> None:
        """Nothing: its workers are not ours."""

    def hopeless(self, seconds_without_workers: float) -> JobFailure | None:
        if seconds_without_workers < PATIENCE:
            return None
        return JobFailure(
            job=self.address,
            host="-",
            reason=f"no worker for {PATIENCE:.0f} s; `unetcli worker --scheduler {self.address}` starts one",
        )


@dataclass(slots=True)
class Own:
    """A scheduler in this process; its workers are jobs, replaced when they end while work goes on."""

    client: Client
    address: str
    expected: int
    launch: Callable[[int], list[str]]
    ended: Ended
    alive: int = 0
    spare: int = 0
    """Replacements that may still be launched before the next batch is done."""
    batches_done: int = -1
    last: JobFailure = field(default_factory=lambda: JobFailure(job="-", host="-", reason="no worker was started"))

    def tend(self, batches_done: int) -> None:
        if batches_done > self.batches_done:
            self.batches_done, self.spare = batches_done, max(3, self.expected)
        for failure in self.ended():
            self.last, self.alive = failure, self.alive - 1
            log.warning("worker job %s ended (%s: %s)", failure.job, failure.host, failure.reason)
        if missing := min(self.expected - self.alive, self.spare):
            self._start(missing)

    def _start(self, count: int) -> None:
        self.spare -= count
        try:
            self.alive += len(self.launch(count))
        except UnetcliError as error:  # the site refuses more jobs: those that run go on
            log.warning("no worker job in place of those that ended: %s", error)
            self.last = JobFailure(job="-", host="-", reason=str(error))
            self.expected = max(self.alive, 1)

    def hopeless(self, seconds_without_workers: float) -> JobFailure | None:
        return self.last if self.alive <= 0 and self.spare <= 0 else None


@contextmanager
def existing_scheduler(address: str, folder: Path, tls: Path | None = None) -> Iterator[Existing]:
    """Use the scheduler at ``tcp://..`` or ``tls://..`` (then ``tls`` is the folder of its certificate)."""
    from distributed import Client

    if address.startswith("tls://") and tls is None:
        raise UnetcliError(f"--scheduler {address}: needs the certificate of its run; --tls FOLDER names it")
    with quiet(folder), ExitStack() as stack:
        try:
            client = Client(
                address,
                security=security(tls) if tls else None,
                timeout=CONNECT_SECONDS,
                set_as_default=False,
            )
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UnetcliError(f"--scheduler {address}: no Dask scheduler let us in ({reason})") from error
        stack.callback(client.close)
        yield Existing(client, address)


@contextmanager
def own_scheduler(
    folder: Path, launch: Launch, ended: Ended, count: int, *, host: str | None = None, **worker: Any
) -> Iterator[Own]:
    """A scheduler here, encrypted, and ``count`` worker jobs; at the end all of them end, whatever happened.

    Parameters
    ----------
    host : address
        Where workers reach this process; see :func:`own_address`.
    worker : ``memory``, ``death_timeout``, ``scratch``
        As :func:`unetcli.executors.dask.worker.serve` takes them.
    """
    host = own_address(host)
    with quiet(folder), run_certificate(folder / "tls") as tls, _scheduler(tls, host) as client:
        address = str(client.scheduler_info(n_workers=0)["address"])
        values = {"memory": None, "name": None, "death_timeout": 60.0, "scratch": None, **worker}
        arguments = [address, str(tls), *(values[k] for k in ("memory", "name", "death_timeout", "scratch"))]
        cluster = Own(client, address, count, lambda number: launch(serve, arguments, number), ended)
        cluster.alive = len(launch(serve, arguments, count))  # a refusal is the user's to hear
        yield cluster


@contextmanager
def _scheduler(tls: Path, host: str) -> Iterator[Client]:
    import dask.config
    from distributed import Client, Scheduler, SpecCluster

    options = {
        "host": host,
        "port": 0,
        "protocol": "tls",
        "dashboard": False,
        "dashboard_address": "127.0.0.1:0",
        "allowed_failures": 1,  # a batch that was at work when two workers died is looked at block by block
        "security": security(tls),
    }
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="unetcli-", ignore_cleanup_errors=True))
        stack.enter_context(dask.config.set(settings() | _scheduler_settings(scratch)))
        cluster = SpecCluster(
            workers={},
            scheduler={"cls": Scheduler, "options": options},
            security=security(tls),
            silence_logs=False,
            name="unetcli",
        )
        stack.callback(cluster.close)
        client = Client(cluster, security=security(tls), set_as_default=False)
        stack.callback(client.close)
        stack.callback(client.shutdown)  # workers end by this alone: retiring them may silently do nothing
        yield client


def _scheduler_settings(scratch: str) -> dict[str, Any]:
    """Of Dask: no pages served, no batch given to a worker that has one, nothing left on disk."""
    return {
        "distributed.scheduler.http.routes": [],
        "distributed.scheduler.worker-saturation": 1.0,
        "temporary-directory": scratch,
    }


def own_address(chosen: str | None = None) -> str:
    """The address at which other nodes reach this host.

    That chosen here or by ``$UNETCLI_HOST``; else that of the host's name; else, as some distributions give the name a
    loopback address, that of the default route.
    """
    chosen = chosen or os.environ.get("UNETCLI_HOST")
    if chosen:
        _require_ours(chosen)
        return chosen
    with suppress(OSError):
        address = socket.gethostbyname(socket.gethostname())
        if not ipaddress.ip_address(address).is_loopback:
            return address
    from distributed.utils import get_ip

    return str(get_ip())


def _require_ours(host: str) -> None:
    try:
        family, *_, place = socket.getaddrinfo(host.strip("[]"), 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as attempt:
            attempt.bind(place)
    except OSError as error:
        raise UnetcliError(
            f"{host}: no address of this host ({error.strerror}), so no scheduler can listen there; UNETCLI_HOST names "
            f"one that the workers' nodes reach"
        ) from error


@contextmanager
def quiet(folder: Path) -> Iterator[None]:
    """Have what Dask says of itself go to ``logs/dask.log`` of the run folder, not to the user's terminal."""
    import distributed

    assert distributed  # its loggers exist from here on
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / "logs" / LOG, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger(name) for name in TALKERS]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
        handler.close()
