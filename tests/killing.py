"""Commands that kill themselves at a chosen change of a folder: by SIGKILL, before the system call or after it.

They are forks of the process that :mod:`commands` keeps ready, so that a kill costs a fraction of a second.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from commands import CONTEXT, start_server

CALLS = ("link", "mkdir", "rename", "replace", "rmdir", "unlink")
"""Functions of ``os`` that create, move or delete files."""
CHANCE = re.compile(r"[0-9a-f]{16}|(?<=/)[^/]+-\d+-[0-9a-f]{8}")
"""Random parts of the names of drafts and of workers' files."""
BEFORE, AFTER = "before", "after"


@dataclass(frozen=True)
class Point:
    """A change to kill at: ``call name`` with random parts as ``*``, and which of several equal changes, from 0."""

    change: str
    nth: int = 0
    when: str = BEFORE

    def __str__(self) -> str:
        return f"{self.when} {self.change}" + (f" ({self.nth})" if self.nth else "")


@dataclass(frozen=True)
class Ended:
    """The end of a command."""

    code: int
    """Exit code; -9 if killed."""
    out: str
    talk: str
    points: list[Point]
    """All changes that the command made, as points to kill before."""


def run(place: Path, words: list[str], folder: str, kill: Point | None = None) -> Ended:
    """Run ``unetcli`` in ``place``; changes of files whose path there begins with ``folder`` are recorded."""
    start_server()
    files = [f"{place}.{name}" for name in ("out", "talk", "changes")]
    words_and_files = (str(place), words, *files[:2])
    process = CONTEXT.Process(target=run_here, args=(*words_and_files, watch, folder, files[2], kill), daemon=True)
    process.start()
    process.join()
    assert process.exitcode is not None
    out, talk, changes = (Path(file).read_text() for file in files)
    seen = changes.splitlines()
    return Ended(process.exitcode, out, talk, [Point(change, seen[:n].count(change)) for n, change in enumerate(seen)])


def run_here(place: str, words: list[str], out: str, talk: str, watch: Callable[..., None], *how: Any) -> NoReturn:
    """Run the command in this process, which ends with it; ``watch(*how)`` replaces functions of ``os`` before."""
    from unetcli.cli import main

    for number, name in ((1, out), (2, talk)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(place)
    watch(*how)
    sys.argv = ["unetcli", *words]
    code: Any = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def watch(folder: str, changes: str, kill: Point | None) -> None:
    """Record every change of a folder and below it in a file, and kill this process at one of them."""
    start, seen = str(Path.cwd() / folder), list[str]()
    record = os.open(changes, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def wrapped(call: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def change(path: Any, *more: Any, **options: Any) -> Any:
            made = more[0] if call in ("link", "replace") else path  # the target, or the file moved or deleted
            name = place_of(made, options.get("dir_fd"))
            if not name.startswith(start) or "/workers/" in name:  # heartbeats come from a thread, at any time
                return original(path, *more, **options)
            said = f"{call} {CHANCE.sub('*', name[len(start) - len(folder) :])}"
            here = kill is not None and (kill.change, kill.nth) == (said, seen.count(said))
            seen.append(said)
            os.write(record, f"{said}\n".encode())
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


def place_of(path: Any, folder: int | None) -> str:
    """Return the absolute path of a file, given by its number or by its name in the current or an open folder."""
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}")  # noqa: PTH115
    start = os.getcwd() if folder is None else os.readlink(f"/proc/self/fd/{folder}")  # noqa: PTH109, PTH115
    return os.path.normpath(os.path.join(start, os.fspath(path)))  # noqa: PTH118
