"""Cases of the fuzz test: made from their number, run in this process, and checked."""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import io
import os
import re
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

from fuzzing.mutations import mutate
from fuzzing.scenes import LABEL, PREDICT, SCENES, SMALL, Scene, build, copy, files
from unetcli.cli.terminal import LONGEST

HANG_SECONDS = 240.0
"""Time after which a command counts as hanging; other processes may use most of the machine."""
MAX_LINES = 12
"""Largest number of lines on stderr; none of them is longer than ``LONGEST``."""
HANG, BUG = -1, 70
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
KINDS = [*SCENES, "options", "options", "environment"]
VARIABLES = {
    "SLURM_RESTART_COUNT": ["x", "-1", "9" * 30],
    "SLURM_MEM_PER_CPU": ["x", "0", "9" * 30],
    "SLURM_MEM_PER_NODE": ["x", "0"],
    "SLURM_CPUS_ON_NODE": ["x", "", "0"],
    "SLURM_ARRAY_TASK_ID": ["x", "-1", "5"],
    "SLURM_ARRAY_JOB_ID": ["x", "7"],
    "SLURM_ARRAY_TASK_MIN": ["x", "0"],
    "SLURM_ARRAY_TASK_MAX": ["x", "0"],
    "SLURM_ARRAY_TASK_STEP": ["x", "0"],
    "SLURM_ARRAY_TASK_COUNT": ["x", "0"],
    "SLURM_JOB_ID": ["x", "../..", "7"],
    "SLURM_PROCID": ["x"],
    "OMP_NUM_THREADS": ["x", "0"],
    "COLUMNS": ["0", "x", "1"],
    "RANK": ["x", "7"],
    "WORLD_SIZE": ["x", "0"],
    "LOCAL_RANK": ["x"],
    "UNETCLI_MODEL": ["nowhere", "raw.zarr", ""],
    "UNETCLI_PROFILE": ["nowhere", "raw.zarr"],
    "UNETCLI_DEVICE": ["x", "99"],
    "CUDA_VISIBLE_DEVICES": ["99", "x"],
    "XDG_CACHE_HOME": ["raw.zarr/zarr.json"],
    "TERM": ["dumb", ""],
    "NO_COLOR": ["1"],
    "LC_ALL": ["C", "x"],
    "TZ": ["x"],
    "TMPDIR": ["nowhere"],
    "HOME": ["nowhere"],
}
ODD_WORDS = (
    "",
    "x",
    "-1",
    "0",
    "1",
    "3",
    "2:1",
    "::",
    "1:2:3",
    "0:1,0:1",
    "0:1,x",
    "nan",
    "inf",
    "1e400",
    "9" * 25,
    "-0.5",
    "0.5",
    "2",
    "é",
    "a\nb",
    "\x1b[31m",
    ".",
    "..",
    "../..",
    "raw.zarr",
    "raw.zarr/zarr.json",
    "nowhere/x.png",
    "x.png",
    "x" * 300,
    "auto",
    "all",
    ",",
    "a,b",
    "slurm",
    "[]",
    "s3:",
    "file://",
    "http://",
    "memory://x",
    "%s",
    "{}",
    "\udcff",
    "true",
    "1/2",
    "2/1",
    "0/0",
    "a=b",
    "=",
)
OPTION_COMMANDS: dict[str, tuple[str, ...]] = {
    "predict": (*PREDICT, "-o", "out.zarr"),
    "plan": ("plan", "raw.zarr", "--model", "model", "--tile", "36"),
    "label": LABEL,
    "evaluate": ("evaluate", "pred.zarr", "truth.zarr", "--metrics", "pixels,cells"),
    "show": ("show", "raw.zarr", "-o", "out.png"),
    "weights": ("weights", "labels.zarr", "-o", "out.zarr"),
    "status": ("status", "pred.zarr"),
    "verify": ("verify", "pred.zarr"),
    "train": ("train", "raw.zarr", "labels.zarr", "-o", "out", "--steps", "1", *SMALL),
}
SLOW_OPTIONS = {
    "--steps",
    "--minutes",
    "--watch",
    "--probe",
    "--scheduler",
    "--workers",
    "--verbose",
    "--install-completion",
    "--show-completion",
}
"""Options whose odd values may take long without a fault, such as a training of 10^25 steps."""


class Hang(BaseException):
    """A command took longer than ``HANG_SECONDS``."""


@dataclass(frozen=True)
class Outcome:
    """Damage of a case, its command, and how that ended."""

    number: int
    kind: str
    what: str
    """Damaged files, and the damage."""
    words: list[str]
    code: int
    faults: list[str] = field(default_factory=list)
    message: str = ""
    """Last line on stderr; for a bug, the end of the traceback."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Bench:
    """Folder with the undamaged files, and one for the cases."""

    def __init__(self, folder: Path) -> None:
        self.base, self.work = folder.resolve() / "base", folder.resolve() / "work"
        self.work.mkdir(parents=True, exist_ok=True)

    def prepare(self) -> None:
        """Build the undamaged files unless they exist."""
        if not self.base.exists():
            draft = Path(tempfile.mkdtemp(dir=self.base.parent))
            build(draft, lambda words: run(words, draft))
            for file in draft.rglob("paths.json"):
                file.write_text(file.read_text().replace(str(draft), str(self.base)))
            draft.rename(self.base)

    def case(self, number: int, *, keep: bool = False) -> Outcome:
        """Make, run and check one case; its folder is deleted unless ``keep``."""
        folder, random = self.work / f"case{number}", Random(f"unetcli {number}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        kind = random.choice(KINDS)  # the first number drawn, as in kind_of
        try:
            return self._case(number, kind, folder, random)
        finally:
            if not keep:
                shutil.rmtree(folder, ignore_errors=True)

    def _case(self, number: int, kind: str, folder: Path, random: Random) -> Outcome:
        environment: dict[str, str] = {}
        scene = SCENES.get(kind, OPTIONS_SCENE)
        copy(self.base, scene.items, folder)
        if kind == "options":
            words, what = odd_options(random)
        elif kind == "environment":
            name = random.choice(list(VARIABLES))
            environment = {name: random.choice(VARIABLES[name])}
            words, what = list(random.choice(list(OPTION_COMMANDS.values()))), f"{environment}"
        else:
            words, what = list(random.choice(scene.commands)), damage(scene, folder, random)
        before = digests(folder, scene.inputs)
        existing = {path.name for path in folder.iterdir()}
        code, output, errors = run(words, folder, environment)
        faults = list(faults_of(code, output, errors))
        faults += [f"changed {name}" for name, found in digests(folder, scene.inputs).items() if found != before[name]]
        faults += left_behind(code, folder, existing)
        lines = errors.rstrip().splitlines()
        end = " | ".join(lines[-6:]) if code in (BUG, HANG) else lines[-1] if lines else ""
        return Outcome(number, kind, what, words, code, faults, end[:1500])


def kind_of(number: int) -> str:
    """Kind of files of a case."""
    return Random(f"unetcli {number}").choice(KINDS)


OPTIONS_SCENE = Scene(
    ("raw.zarr", "labels.zarr", "truth.zarr", "model", "pred.zarr", "pred.zarr.run", "pred.zarr.inst.csv", "base.json"),
    "",
    (),
    ("raw.zarr", "labels.zarr", "truth.zarr", "model", "base.json"),
)


def damage(scene: Scene, folder: Path, random: Random) -> str:
    """Damage one or two files of a scene; metadata more often than voxels."""
    done = []
    for _ in range(random.choice([1, 1, 1, 2])):
        found = files(folder, scene.damaged)
        metadata = [path for path in found if path.suffix or path.name.startswith(".")]
        chosen = random.choice(metadata if metadata and random.random() < 0.8 else found) if found else None
        if chosen is not None:
            done.append(f"{chosen.relative_to(folder)}: {mutate(chosen, random)}")
    return "; ".join(done)


def odd_options(random: Random) -> tuple[list[str], str]:
    """Return a command with one or two odd options."""
    import typer

    from unetcli.cli import app

    name = random.choice(list(OPTION_COMMANDS))
    words, odd = list(OPTION_COMMANDS[name]), []
    parameters = typer.main.get_command(app).commands[name].params  # type: ignore[attr-defined]
    for _ in range(random.choice([1, 1, 2])):
        parameter = random.choice(parameters)
        option = random.choice([*parameter.opts, *parameter.secondary_opts])
        if not option.startswith("-"):  # an argument by position
            words[1] = random.choice(ODD_WORDS)
            odd.append(words[1])
        elif option not in SLOW_OPTIONS:
            value = [] if parameter.is_flag else [random.choice(ODD_WORDS) for _ in range(parameter.nargs)]
            odd += [option, *value]
    return [*words, *odd], " ".join(map(repr, odd))


def run(words: Sequence[str], folder: Path, environment: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Run a command in this process, in a folder; return its exit code, stdout and stderr."""
    from unetcli.cli import main
    from unetcli.engine.worker import _opened

    output, errors = (io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape", write_through=True) for _ in range(2))
    with (
        clean_process(folder, environment or {}),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
    ):
        sys.argv = ["unetcli", *words]
        try:
            with alarm():
                main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except Hang as hang:
            code = HANG
            print(hang, file=errors)
        finally:
            _opened.cache_clear()
    texts = [stream.buffer.getvalue().decode(errors="replace") for stream in (output, errors)]  # type: ignore[attr-defined]
    return code, texts[0], texts[1]


@contextlib.contextmanager
def clean_process(folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Set working folder, environment and signal handlers, and restore them afterwards."""
    before, place, words = dict(os.environ), Path.cwd(), sys.argv
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    handlers = [signal.getsignal(number) for number in numbers]
    for name in [name for name in os.environ if name.startswith(("UNETCLI_", "SLURM_"))]:
        del os.environ[name]
    os.environ.update(
        {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "XDG_CACHE_HOME": str(folder / ".cache")} | environment
    )
    os.chdir(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # as in a process of its own
            yield
    finally:
        os.chdir(place)
        sys.argv = words
        os.environ.clear()
        os.environ.update(before)
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def alarm(seconds: float = HANG_SECONDS) -> Iterator[None]:
    """Raise :class:`Hang` in this thread after some seconds."""

    def stop(number: int, frame: FrameType | None) -> None:
        at = [f"{f.f_code.co_filename}:{f.f_lineno}" for f in frames(frame)][:4]
        raise Hang(f"still running after {seconds:g} s, in {', '.join(at)}")

    handler = signal.signal(signal.SIGALRM, stop)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)
        signal.signal(signal.SIGALRM, handler)


def frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def faults_of(code: int, output: str, errors: str) -> Iterator[str]:
    """Yield what is wrong with the way in which a command ended."""
    if code not in (0, 1, 2, 3):
        yield "hang" if code == HANG else f"exit code {code}"
    elif "Traceback (most recent" in errors + output:
        yield "traceback"
    elif code:
        lines = errors.splitlines()
        if len(lines) > MAX_LINES:
            yield f"{len(lines)} lines"
        if (longest := max(map(len, lines), default=0)) > LONGEST:
            yield f"a line of {longest} letters"
    if CONTROL.search(errors):
        yield "control characters"


def digests(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Digest of each item: names and contents of all files in it."""
    found = {}
    for name in names:
        digest = hashlib.sha256()
        for path in sorted([folder / name, *(folder / name).rglob("*")]):
            digest.update(str(path.relative_to(folder)).encode(errors="surrogateescape"))
            digest.update(path.read_bytes() if path.is_file() else b"")
        found[name] = digest.hexdigest()
    return found


def left_behind(code: int, folder: Path, existing: set[str]) -> list[str]:
    """Files that a refused command has left: outputs of its own, and drafts anywhere.

    A run folder may stay: labelling that finds damage keeps its records, with which the same command continues.
    """
    if code not in (1, 2):
        return []
    own = existing | {".cache"}
    new = sorted(path.name for path in folder.iterdir() if path.name not in own and path.suffix != ".run")
    drafts = sorted(path.name for path in folder.rglob("*.partial"))
    return [f"left {name}" for name in dict.fromkeys([*new, *drafts])]


faulthandler.enable()
