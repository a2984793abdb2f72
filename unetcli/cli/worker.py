"""``unetcli worker``."""

from __future__ import annotations

from unetcli.cli import options as o


def worker(
    scheduler: o.SchedulerOption,
    tls: o.CertificateOption = None,
    memory: o.WorkerMemoryOption = None,
    name: o.WorkerNameOption = None,
    death_timeout: o.DeathTimeoutOption = 60,
) -> None:
    """Work for a Dask scheduler, until it ends or SIGTERM comes.

    For sites that start workers in their own way, one per GPU (CUDA_VISIBLE_DEVICES says which) or per node without;
    `unetcli predict .. --scheduler ADDRESS` then uses them. A worker that dies is restarted; on SIGTERM the current
    block is finished first.
    """
    from unetcli.core.process import prepare

    prepare()
    from unetcli.executors.dask.worker import serve

    serve(scheduler, str(tls) if tls else None, _bytes(memory), name=name, death_timeout=death_timeout)


def _bytes(size: str | None) -> int | None:
    """A size as number of bytes.

    >>> _bytes("16GB"), _bytes("1.5 GiB"), _bytes(None)
    (16000000000, 1610612736, None)
    """
    if size is None:
        return None
    from dask.utils import parse_bytes

    from unetcli.core.errors import UnetcliError

    try:
        return int(parse_bytes(size))
    except ValueError as error:
        raise UnetcliError(f"--memory {size}: not a size; 16GB or 2GiB would be") from error
