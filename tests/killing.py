"""Commands that kill themselves with SIGKILL at a chosen change of a folder, before or after the system call.

Each command is a fork of one process that has imported everything, so that a kill costs a fraction of a second.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from places import ENVIRONMENT

CALLS = ("link", "mkdir", "rename", "replace", "rmdir", "unlink")
"""Functions of ``os`` through which all files are created, moved and deleted."""
CHANCE = re.compile(r"[0-9a-f]{16}|(?<=/)[^/]+-\d+-[0-9a-f]{8}")
"""Random parts of the names of drafts and of workers' files."""
BEFORE, AFTER = "before", "after"


@dataclass(frozen=True)
class Point:
    """A change at which to kill: ``call name`` with random parts as ``*``, and its index among equal changes."""

    change: str
    nth: int = 0
    when: str = BEFORE

    def __str__(self) -> str:
        return f"{self.when} {self.change}" + (f" ({self.nth})" if self.nth else "")


@dataclass(frozen=True)
class Ended:
    """Result of a command that has ended."""

    code: int
    """Exit code; -9 if the command was killed."""
    out: str
    talk: str
    points: list[Point]
    """All changes that the command made, as points at which to kill it."""


@dataclass(frozen=True)
class Launcher:
    """Process that forks for each command."""

    process: subprocess.Popen[str]

    def run(self, place: Path, words: list[str], folder: str, kill: Point | None = None) -> Ended:
        """Run ``unetcli`` in ``place`` and record the changes of files whose relative path begins with ``folder``."""
        files = {name: f"{place}.{name}" for name in ("out", "talk", "changes")}
        asked = {"place": str(place), "words": words, "folder": folder, "kill": kill and vars(kill), **files}
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        out, talk, changes = (Path(file).read_text() for file in files.values())
        seen = changes.splitlines()
        points = [Point(change, seen[:number].count(change)) for number, change in enumerate(seen)]
        return Ended(code, out, talk, points)


@contextmanager
def launcher() -> Iterator[Launcher]:
    """Start a :class:`Launcher`, which ends with the block."""
    environment = ENVIRONMENT | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Launcher(process)
        finally:
            assert process.stdin
            process.stdin.close()


def serve() -> None:
    """Run a command for each line of standard input and write its exit code to standard output."""
    import torch
    import zarr

    assert torch, zarr
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            run_here(asked)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def run_here(asked: dict[str, Any]) -> NoReturn:
    """Run the command in this process and exit."""
    from unetcli.cli import main

    for number, name in ((1, "out"), (2, "talk")):
        os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(asked["place"])
    changes = os.open(asked["changes"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    watch(asked["folder"], changes, Point(**asked["kill"]) if asked["kill"] else None)
    sys.argv = ["unetcli", *asked["words"]]
    code: Any = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def watch(folder: str, changes: int, kill: Point | None) -> None:
    """Record every change of a folder and its content, and kill the process at one of them."""
    start, seen = str(Path.cwd() / folder), list[str]()

    def wrapped(call: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def change(path: Any, *more: Any, **options: Any) -> Any:
            made = more[0] if call in ("link", "replace") else path  # the new file; for other calls, the changed one
            name = name_of(made, options.get("dir_fd"))
            if not name.startswith(start) or "/workers/" in name:  # a thread writes heartbeats at any time
                return original(path, *more, **options)
            said = f"{call} {CHANCE.sub('*', name[len(start) - len(folder) :])}"
            here = kill is not None and (kill.change, kill.nth) == (said, seen.count(said))
            seen.append(said)
            os.write(changes, f"{said}\n".encode())
            if here and kill and kill.when == BEFORE:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return original(path, *more, **options)
            finally:
                if here:
                    os.kill(os.getpid(), signal.SIGKILL)

        return change

    for call in CALLS:
        setattr(os, call, wrapped(call, getattr(os, call)))


def name_of(path: Any, folder: int | None) -> str:
    """Absolute form of a path relative to the current folder, or to an open one."""
    start = os.getcwd() if folder is None else os.readlink(f"/proc/self/fd/{folder}")  # noqa: PTH109, PTH115
    return os.path.normpath(os.path.join(start, os.fspath(path)))  # noqa: PTH118


if __name__ == "__main__":
    serve()
