"""Fixtures: a small model, the command line as users call it, real data and a SLURM cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import commands
import pytest
from helpers import grey, write_model, write_zarr
from hypothesis import settings
from slurm.cluster import SlurmCluster, enter, require_slurm

settings.register_profile("patient", deadline=None)  # tests must not fail on a busy machine
settings.load_profile("patient")

LONG_SECONDS = 3600
"""Time limit of a slow test, which may kill dozens of processes on a machine with shared cores."""
__all__ = ["grey", "write_model", "write_zarr"]


@pytest.hookimpl(tryfirst=True)  # before tests are left out by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if (kept := item.get_closest_marker("by_default")) and not any(words in item.name for words in kept.args):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LONG_SECONDS))


def pytest_configure() -> None:
    """Configure this process, and all processes that tests start, before torch is imported.

    OpenMP threads sleep while they wait: with spinning threads, a prediction took 10 s instead of 1 s when other
    processes used the cores. SIGINT is enabled, as a shell that starts the tests in the background disables it.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    return f"real data: {real_data() or 'not found; tests that need it are skipped'}"


def real_data() -> Path | None:
    """Folder of real images: ``$UNETCLI_DATA``, or ``shared/data`` beside the project; None if it does not exist."""
    named = os.environ.get("UNETCLI_DATA")
    place = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    return place if place.is_dir() else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """Kill the Python processes that a failed test has left running."""
    started: list[subprocess.Popen[bytes]] = []
    begin = subprocess.Popen.__init__

    def noting(process: subprocess.Popen[bytes], *words: object, **options: object) -> None:
        begin(process, *words, **options)  # type: ignore[call-overload]
        started.append(process)

    subprocess.Popen.__init__ = noting  # type: ignore[method-assign]
    commands.STARTED.clear()
    try:
        return (yield)
    except BaseException:
        for process in started:
            if isinstance(process.args, list) and process.args[0] == sys.executable and process.poll() is None:
                process.kill()
                process.wait()
        commands.kill_started()
        raise
    finally:
        subprocess.Popen.__init__ = begin  # type: ignore[method-assign]


@pytest.fixture(scope="session")
def data() -> Path:
    place = real_data()
    if place is None:
        pytest.skip("no real data: neither $UNETCLI_DATA nor ../shared/data exists")
    return place


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture
def unetcli(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Function that runs the command line in ``tmp_path``."""

    def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return commands.finished(*words, cwd=tmp_path, environment=environment)

    return run


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """SLURM cluster for all tests of this process, started by the first test that needs it."""
    require_slurm()
    with SlurmCluster() as cluster:
        yield cluster


@pytest.fixture
def slurm(slurm_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """The cluster, configured for this process and the commands it starts; jobs are cancelled after the test."""
    enter(slurm_cluster, monkeypatch)
    yield slurm_cluster
    slurm_cluster.cancel_all()
