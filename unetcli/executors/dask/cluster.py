"""Dask clusters: an existing scheduler, or one in this process whose workers unetcli launches."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from unetcli.core.errors import UnetcliError, one_line
from unetcli.executors.contract import JobFailure
from unetcli.executors.dask.worker import run_certificate, security, security_for, serve, settings

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

LOG = "dask.log"
CONNECT_SECONDS = 30.0
PATIENCE = 300.0
"""Seconds without any worker after which an existing scheduler is given up."""
SECONDS_TO_END = 10.0
"""Time for worker processes of this host to end before they are killed."""
LOGGERS = ("distributed", "distributed.client", "distributed.gc", "bokeh", "tornado", "tornado.application", "asyncio")


class Launch(Protocol):
    """Starts worker jobs that call ``function(*arguments)``, a function of the package with plain values."""

    def __call__(self, function: Callable[..., None], arguments: Sequence[Any], count: int) -> list[str]:
        """Start ``count`` jobs and return their names. Raises :class:`UnetcliError` if they are refused."""


EndedJobs = Callable[[], Sequence[JobFailure]]
"""Returns the worker jobs that have ended since the last call, with the reason."""


@dataclass(frozen=True, slots=True)
class ExternalCluster:
    """A scheduler that the user started, with workers that may join and leave at any time."""

    client: Client
    address: str
    expected: int = 1

    def replace_workers(self, *, progress: bool) -> None:
        """Do nothing, as the user manages the workers."""

    def give_up(self, seconds_without_workers: float) -> JobFailure | None:
        """Return why no worker is expected to join any more; None while one may."""
        if seconds_without_workers < PATIENCE:
            return None
        return JobFailure(
            job=self.address,
            host="-",
            reason=f"no worker for {PATIENCE:.0f} s; `unetcli worker --scheduler {self.address}` starts one",
        )


@dataclass(slots=True)
class OwnCluster:
    """A scheduler in this process. Its workers are jobs, which are replaced if they end before the work is done."""

    client: Client
    address: str
    expected: int
    launch: Callable[[int], list[str]]
    ended: EndedJobs
    alive: int = 0
    spare: int = 0
    """Number of replacements that may still be launched before the next batch is done."""
    last: JobFailure = field(default_factory=lambda: JobFailure(job="-", host="-", reason="no worker was started"))

    def replace_workers(self, *, progress: bool) -> None:
        """Replace worker jobs that have ended; called every second while work remains.

        ``progress`` is true if a run has just begun or a batch was done since the last call.
        """
        if progress:
            self.spare = max(3, self.expected)
        for failure in self.ended():
            self.last, self.alive = failure, self.alive - 1
            log.warning("worker job %s ended (%s: %s)", failure.job, failure.host, failure.reason)
        if missing := min(self.expected - self.alive, self.spare):
            self._start(missing)

    def _start(self, count: int) -> None:
        self.spare -= count
        try:
            self.alive += len(self.launch(count))
        except UnetcliError as error:  # the site refuses more jobs; the running ones continue
            log.warning("worker jobs that ended cannot be replaced: %s", error)
            self.last = JobFailure(job="-", host="-", reason=str(error))
            self.expected = max(self.alive, 1)

    def give_up(self, seconds_without_workers: float) -> JobFailure | None:
        """Return why no worker is expected to join any more; None while one may."""
        return self.last if self.alive <= 0 and self.spare <= 0 else None


Cluster = ExternalCluster | OwnCluster
"""A scheduler with workers that run batches; ``expected`` is the number of workers that should join."""


@contextmanager
def existing_scheduler(address: str, folder: Path, tls: Path | None = None) -> Iterator[ExternalCluster]:
    """Connect to the scheduler at ``tcp://..`` or ``tls://..``; for the latter, ``tls`` has its certificate."""
    from distributed import Client

    trusted = security_for(address, tls)
    with quiet(folder):
        try:
            client = Client(address, security=trusted, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise UnetcliError(f"--scheduler {address}: no Dask scheduler answers ({one_line(error)})") from error
        with closing(client):
            yield ExternalCluster(client, address)


def require_scheduler(address: str, tls: Path | None = None) -> None:
    """Raise :class:`UnetcliError` unless a scheduler answers, without writing to any run folder."""
    with (
        tempfile.TemporaryDirectory(prefix="unetcli-", ignore_cleanup_errors=True) as scratch,
        existing_scheduler(address, Path(scratch), tls),
    ):
        pass


@contextmanager
def own_scheduler(
    folder: Path,
    launch: Launch,
    ended: EndedJobs,
    count: int,
    *,
    host: str | None = None,
    memory: int | None = None,
    scratch: str | None = None,
) -> Iterator[OwnCluster]:
    """Run an encrypted scheduler in this process, and ``count`` worker jobs that end with the ``with`` block.

    Parameters
    ----------
    host : address
        Address at which workers reach this process; see :func:`own_address`.
    memory, scratch
        As in :func:`unetcli.executors.dask.worker.serve`.
    """
    host = own_address(host)
    with quiet(folder), run_certificate(folder / "tls") as tls, _scheduler(tls, host) as client:
        address = str(client.scheduler_info(n_workers=0)["address"])
        arguments = [address, str(tls), memory, scratch]
        cluster = OwnCluster(client, address, count, lambda number: launch(serve, arguments, number), ended)
        cluster.alive = len(launch(serve, arguments, count))  # if these are refused, the user gets the error
        yield cluster


@contextmanager
def _scheduler(tls: Path, host: str) -> Iterator[Client]:
    import dask.config
    from distributed import Client, Scheduler, SpecCluster

    trusted = security(tls)
    options = {
        "host": host,
        "port": 0,
        "protocol": "tls",
        "dashboard": False,
        "dashboard_address": "127.0.0.1:0",
        "allowed_failures": 1,  # a batch that ran when two workers died is retried block by block
        "security": trusted,
    }
    own = {
        "distributed.scheduler.http.routes": [],  # no pages are served
        "distributed.scheduler.worker-saturation": 1.0,  # a busy worker gets no further batch
    }
    scheduler = {"cls": Scheduler, "options": options}
    with (
        tempfile.TemporaryDirectory(prefix="unetcli-", ignore_cleanup_errors=True) as scratch,
        dask.config.set(settings() | own | {"temporary-directory": scratch}),  # nothing is left on disk
        closing(SpecCluster({}, scheduler, security=trusted, silence_logs=False, name="unetcli")) as cluster,
        closing(Client(cluster, security=trusted, set_as_default=False)) as client,
    ):
        try:
            yield client
        finally:
            client.shutdown()  # ends the workers too; retiring them may silently do nothing


def own_address(chosen: str | None = None) -> str:
    """Address at which other nodes reach this host.

    This is the address chosen by the caller or in ``$UNETCLI_HOST``; else that of the host name; else, as some
    distributions map the host name to a loopback address, that of the default route.
    """
    chosen = chosen or os.environ.get("UNETCLI_HOST")
    if chosen:
        _require_own(chosen)
        return chosen
    with suppress(OSError):
        address = socket.gethostbyname(socket.gethostname())
        if not ipaddress.ip_address(address).is_loopback:
            return address
    from distributed.utils import get_ip

    return str(get_ip())


def _require_own(host: str) -> None:
    try:
        family, *_, place = socket.getaddrinfo(host.strip("[]"), 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as attempt:
            attempt.bind(place)
    except OSError as error:
        raise UnetcliError(
            f"{host}: not an address of this host ({error.strerror}), so no scheduler can listen there; set "
            f"UNETCLI_HOST to one that the workers' nodes can reach"
        ) from error


@contextmanager
def quiet(folder: Path) -> Iterator[None]:
    """Redirect Dask's log messages from the terminal to ``logs/dask.log`` in the run folder."""
    import distributed

    assert distributed  # its loggers exist from here on
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / "logs" / LOG, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
        handler.close()


@contextmanager
def local_workers(
    folder: Path, count: int, *, gpus: Sequence[str] = (), memory: int | None = None
) -> Iterator[OwnCluster]:
    """Run a scheduler and ``count`` workers on this host; worker k uses the k-th entry of ``gpus``, if any."""
    with (
        tempfile.TemporaryDirectory(prefix="unetcli-", ignore_cleanup_errors=True) as scratch,
        closing(Processes(folder / "logs", gpus)) as started,
        own_scheduler(
            folder, started.launch, started.ended, count, host="127.0.0.1", memory=memory, scratch=scratch
        ) as cluster,
    ):
        yield cluster


@dataclass(slots=True)
class Processes:
    """Runs worker jobs as processes of this host; :meth:`close` ends them."""

    logs: Path
    gpus: Sequence[str] = ()
    running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    """Processes by index. A replacement takes over the index, and so the GPU, of the worker that ended."""

    def launch(self, function: Callable[..., None], arguments: Sequence[Any], count: int) -> list[str]:
        return [self._start(function, arguments) for _ in range(count)]

    def _start(self, function: Callable[..., None], arguments: Sequence[Any]) -> str:
        place = next(place for place in range(len(self.running) + 1) if place not in self.running)
        call = f"from {function.__module__} import {function.__name__} as work; work(*{list(arguments)!r})"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[place % len(self.gpus)]
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / f"worker-{place}.log").open("ab") as output:
            self.running[place] = subprocess.Popen(
                [sys.executable, "-P", "-c", call],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # so that Ctrl-C reaches only the launcher; workers finish their blocks
            )
        return str(self.running[place].pid)

    def ended(self) -> list[JobFailure]:
        failures = []
        for place, process in list(self.running.items()):
            if process.poll() is not None:
                del self.running[place]
                reason = f"{_describe_exit(process.returncode)}; see {self.logs / f'worker-{place}.log'}"
                failures.append(JobFailure(job=str(process.pid), host=os.uname().nodename, reason=reason))
        return failures

    def close(self) -> None:
        """Terminate all processes, which finish their current block first; kill those that do not end in time."""
        for process in self.running.values():
            process.terminate()
        deadline = time.monotonic() + SECONDS_TO_END
        for process in self.running.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            process.kill()  # no effect if it has ended
            process.wait()
        self.running.clear()


def _describe_exit(code: int) -> str:
    """Describe the exit code of a process.

    >>> _describe_exit(-9), _describe_exit(1)
    ('killed by signal 9', 'ended with code 1')
    """
    return f"killed by signal {-code}" if code < 0 else f"ended with code {code}"
