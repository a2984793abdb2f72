"""Commands that start within milliseconds, each as a fork of one process that has already imported torch.

They handle signals, can be killed and have exit codes like any process. Tests of the start of a process, or of its
imports, start a new Python interpreter instead.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from itertools import count
from multiprocessing import current_process, forkserver, get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

CONTEXT = get_context("forkserver")
HEAVY = [
    "built_commands",
    "unetcli.api",
    "unetcli.evaluate.evaluate",
    "unetcli.label.kernels",
    "unetcli.label.run",
    "unetcli.metrics.kernels",
    "unetcli.predict.preview",
    "unetcli.predict.run",
    "unetcli.registry",
    "unetcli.report.page",
    "unetcli.engine.status",
    "unetcli.engine.verify",
    "unetcli.train.train",
    "unetcli.viz.show",
    "torch._dynamo",
    "matplotlib.backends.backend_agg",
    "matplotlib.pyplot",
    "PIL.JpegImagePlugin",
    "pydantic.type_adapter",
    "contourpy",
    "imagecodecs",
    "rich.console",
    "safetensors.torch",
    "scipy.linalg",
    "torch.utils.serialization.config",
    "zoneinfo",
]

STARTED: list[Command] = []
"""Commands that the running test has started."""


class Command:
    """A running ``unetcli`` command, with the interface of ``subprocess.Popen``.

    Parameters
    ----------
    words
        Arguments of the command.
    talk
        File or device for stdout, and for stderr unless ``errors`` is given.
    errors
        File or device for stderr.
    killed_after
        Number of receipts after which the process is killed.
    """

    def __init__(
        self,
        *words: object,
        cwd: Path | None = None,
        talk: Path = Path(os.devnull),
        errors: Path | None = None,
        environment: Mapping[str, str] = {},
        killed_after: int | None = None,
    ) -> None:
        start_server()
        self.args, self.talk = ["unetcli", *map(str, words)], talk
        files = str(talk), str(errors or talk)
        surroundings = {**os.environ, **environment}
        words_of_run = self.args, str(cwd or Path.cwd()), *files, surroundings, killed_after
        self.process = CONTEXT.Process(target=run, args=words_of_run, daemon=True)
        self.process.start()
        STARTED.append(self)

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float = 300) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def finished(
    *words: object, cwd: Path | None = None, environment: Mapping[str, str] = {}
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return the completed process."""
    with TemporaryDirectory() as folder:
        talk, errors = Path(folder, "talk"), Path(folder, "errors")
        command = Command(*words, cwd=cwd, talk=talk, errors=errors, environment=environment)
        code = command.wait()
        return subprocess.CompletedProcess(command.args, code, talk.read_text(), errors.read_text())


def kill_started() -> None:
    """Kill the commands that a failed test has left running."""
    while STARTED:
        command = STARTED.pop()
        command.kill()
        command.wait()


def start_server() -> None:
    """Start the process that forks, with one OpenMP thread: OpenMP reads its variables when torch is imported."""
    with mock.patch.dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(Path(__file__).parent)):
        CONTEXT.set_forkserver_preload(HEAVY)
        forkserver.ensure_running()


def run(
    words: list[str], cwd: str, talk: str, errors: str, environment: dict[str, str], killed_after: int | None
) -> None:
    """Run ``unetcli`` in the forked process."""
    current_process().daemon = False  # a daemon may not start workers
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, name in ((1, talk), (2, errors)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.argv = words
    if killed_after is not None:
        kill_after(killed_after)
    from unetcli.cli import main

    main()


def kill_after(receipts: int) -> None:
    """Kill this process once it has written the given number of receipts, each of which is written immediately."""
    from unetcli.engine.receipts import DONE, Receipt, ReceiptBook

    add, done = ReceiptBook.add, count(1)

    def add_or_die(book: ReceiptBook, receipt: Receipt, written: Iterable[Path] = ()) -> None:
        add(book, receipt, written)
        if receipt.state == DONE:
            book.flush()
            if next(done) == receipts:
                os.kill(os.getpid(), signal.SIGKILL)

    ReceiptBook.add = add_or_die  # type: ignore[method-assign]
