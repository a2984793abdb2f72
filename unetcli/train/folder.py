"""The folder of a training, ``model/``: its results, its log and the checkpoints from which it continues."""

from __future__ import annotations

import io
import json
import logging
import os
import platform
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unetcli import __version__
from unetcli.core.errors import UnetcliError, one_line
from unetcli.core.files import PARTIAL, draft_of, remove_aside, replacing, sweep, sync
from unetcli.core.lock import hold
from unetcli.core.records import OddFile, decoded, from_json, parse_json, read_text, to_json
from unetcli.model.calibration import Calibration
from unetcli.model.file import FILE_NAME
from unetcli.train.settings import TrainingConfig

CONFIG_VERSION = CHECKPOINT_VERSION = 2
STORED_NAMES = {"validations_since_best": "looks_since_best"}
"""Fields of a checkpoint that have another name in the file."""
_FIELDS = {stored: name for name, stored in STORED_NAMES.items()}
log = logging.getLogger(__name__)


class _Entry:
    """Descriptor of the path of a file or folder inside a training's folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folder: TrainingFolder, owner: type[TrainingFolder]) -> Path:
        return folder.path / self.name


@dataclass(frozen=True, slots=True)
class TrainingFolder:
    """Folder of one training; it owns all paths in it."""

    path: Path
    config = _Entry("training.json")
    model = _Entry(FILE_NAME)
    checkpoint = _Entry("checkpoint.pt")
    previous = _Entry("checkpoint.previous.pt")
    """Checkpoint before the last one."""
    damaged = _Entry("checkpoint.damaged.pt")
    """Checkpoint that could not be read, kept unchanged."""
    log = _Entry("log.jsonl")
    curves = _Entry("curves.png")
    samples = _Entry("samples.png")
    """Picture of the first training samples."""
    predictions = _Entry("predictions")
    """Pictures of held-out sections, one per validation."""
    jobs = _Entry("jobs")
    """Logs of SLURM jobs."""
    tensorboard = _Entry("tensorboard")

    @contextmanager
    def launcher(self, *, take_over: bool = False) -> Iterator[None]:
        """Lock the folder, so that only one training runs in it; see :func:`unetcli.core.lock.hold`."""
        self.path.mkdir(parents=True, exist_ok=True)
        with hold(self.path / "lock", take_over=take_over):
            sweep(self.path)
            yield

    def require_own(self) -> None:
        """Raise UnetcliError if the path exists and was not written by ``unetcli train``."""
        leftovers = ("lock", "lock.guard", "launcher", "launcher.guard", "jobs")  # of calls that were killed early
        if not self.path.exists() or self.config.exists():
            return
        if any((fold / self.config.name).exists() for fold in self.path.glob("fold-*")):
            raise UnetcliError(f"{self.path}: holds the models of --fold all; use another --output")
        if not self.path.is_dir() or any(p.name not in leftovers and p.suffix != PARTIAL for p in self.path.iterdir()):
            raise UnetcliError(f"{self.path}: exists and was not written by unetcli train; use another --output")

    def frozen(self) -> tuple[TrainingConfig, int] | None:
        """Return configuration and number of steps of the training in this folder; None if there is none.

        Raises
        ------
        UnetcliError
            The file is damaged or of another version.
        """
        try:
            found = self._stored()
        except FileNotFoundError:
            return None
        except OddFile as error:
            raise OddFile(f"{error}; --overwrite starts over") from error
        except (ValueError, UnetcliError) as error:
            raise OddFile(f"{self.config}: {error}; --overwrite starts over") from error
        return found.config, found.steps

    def require_same(self, config: TrainingConfig) -> None:
        """Raise UnetcliError if the configuration differs from the one frozen in this folder."""
        frozen = self.frozen()
        if frozen and (differences := frozen[0].differences(config)):
            raise UnetcliError(
                f"{self.path}: holds another training: {'; '.join(differences)}; "
                "use the same settings and data again, --overwrite to start over, or another --output"
            )

    def freeze(self, config: TrainingConfig, steps: int) -> None:
        """Record the configuration and the number of steps, and at the first call the versions of the software."""
        frozen = FrozenTraining(steps=steps, made_with=self.made_with(), config=config)
        with replacing(self.config) as draft:
            draft.write_text(to_json(frozen, CONFIG_VERSION, key="version"))

    def made_with(self) -> dict[str, str | None]:
        """Versions of the software at the first call of the training; the present ones if there was no call yet."""
        try:
            return self._stored().made_with
        except (OSError, ValueError, UnetcliError):
            return versions()

    def _stored(self) -> FrozenTraining:
        return from_json(FrozenTraining, read_text(self.config), CONFIG_VERSION, "a training", key="version")

    def clear(self) -> None:
        """Delete the files of a training, checkpoints first: without them, an interrupted call cannot continue."""
        files = (self.checkpoint, self.previous, self.damaged, self.log, self.model, self.curves, self.samples)
        for path in files:
            path.unlink(missing_ok=True)
        for folder in (self.predictions, self.tensorboard):
            remove_aside(folder)
        self.config.unlink(missing_ok=True)

    def load_checkpoint(self, restore: Callable[[Checkpoint], None] = lambda _: None) -> Checkpoint | None:
        """Return the last checkpoint, or None.

        The one before is returned if the last is damaged, or is missing because a save was killed between two renames.
        ``restore`` is called with the checkpoint, and raises if it does not fit the network.

        Raises
        ------
        UnetcliError
            No checkpoint can be read.
        """
        last, before = self.checkpoint, self.previous
        try:
            return _restored(last, restore)
        except FileNotFoundError:
            return _restored(before, restore) if before.exists() else None
        except UnetcliError as error:
            if not before.exists():
                raise
            found = _restored(before, restore)
            log.warning("%s; continuing from %s", error, before.name)
        with suppress(FileNotFoundError):  # another process of the same training was faster
            os.replace(last, self.damaged)  # otherwise the next save would keep it as the previous checkpoint
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of the log; lines that a crash left incomplete, or full of zero bytes, are omitted."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return []
        return [row for line in lines if (row := _row(line)) is not None]

    def append_log(self, row: dict[str, Any]) -> None:
        with self.log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        sync(self.log)

    def trim_log(self, step: int) -> None:
        """Remove the rows after a step: these steps are about to be repeated."""
        kept = [row for row in self.rows() if row["step"] <= step]
        with replacing(self.log) as draft:
            draft.write_text("".join(json.dumps(row) + "\n" for row in kept))


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenTraining:
    """Content of ``training.json``."""

    steps: int
    made_with: dict[str, str | None]
    """Versions of the software."""
    config: TrainingConfig

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise UnetcliError(f"steps is {self.steps}; expected 0 or more")


def _row(line: str) -> dict[str, Any] | None:
    """Parse a line of the log; return None if it is damaged."""
    try:
        row: dict[str, Any] = decoded(
            dict[str, bool | int | float | str | dict[str, Any] | None], parse_json(line.strip("\0"))
        )
        decoded(tuple[int, bool], [row.get("step"), row.get("best")])
        decoded(Calibration | None, row.get("calibration"))
        diagram = decoded(dict[str, list[float | None]] | None, row.get("reliability")) or {}
        if len({len(values) for values in diagram.values()}) > 1:
            return None
    except (ValueError, UnetcliError):
        return None
    return row


def versions() -> dict[str, str | None]:
    """Versions of unetcli and of the software that its results depend on."""
    return {
        "unetcli": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": str(torch.__version__),
        "revision": revision(),
    }


def revision() -> str | None:
    """Commit of the Git checkout that unetcli runs from, with ``+`` if files were changed; None outside a checkout."""
    here = str(Path(__file__).parent)
    command = ["git", "-C", here, "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def _restored(file: Path, restore: Callable[[Checkpoint], None]) -> Checkpoint:
    """Load a checkpoint and call ``restore`` with it; an error means that it is not of this network."""
    found = Checkpoint.load(file)
    try:
        restore(found)
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:  # torch checks no types
        reason = one_line(error).split(": ", 1)[-1]
        raise UnetcliError(
            f"{file}: checkpoint of another network ({reason[:200]}); --overwrite starts over"
        ) from error
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """State from which a training continues exactly; tensors and plain values only.

    Random streams need no state: they are keyed by seed and number.
    """

    config: dict[str, Any]
    step: int
    """Number of completed steps."""
    network: dict[str, Any]
    optimizer: dict[str, Any]
    averaged: dict[str, Any] | None
    """Moving average of the weights; None without averaging."""
    best: float | None
    """Best value so far of the measure that selects the model: the value of ``model.safetensors``."""
    validations_since_best: int
    """Number of validations since the best one."""
    pending: list[float]
    """Losses since the last validation."""
    seconds: float
    """Time spent training."""

    def save(self, file: Path, previous: Path) -> None:
        """Write the file atomically; an earlier one is kept as ``previous``."""
        values = {STORED_NAMES.get(name, name): getattr(self, name) for name in self.__slots__}
        content = io.BytesIO()  # torch's file writer would report a full disk as an error of its own
        torch.save({"version": CHECKPOINT_VERSION, **values}, content)
        draft = draft_of(file)
        try:
            draft.write_bytes(content.getbuffer())
            sync(draft)
            if file.exists():
                os.replace(file, previous)
            os.replace(draft, file)
            sync(file.parent)
        finally:
            draft.unlink(missing_ok=True)

    @classmethod
    def load(cls, file: Path) -> Checkpoint:
        """Read a checkpoint without executing code from it (``weights_only``), and verify its checksums.

        Raises
        ------
        UnetcliError
            The file is damaged or of another version.
        """
        try:
            with zipfile.ZipFile(file) as archive:  # torch verifies no checksums, and would continue with other weights
                if (part := archive.testzip()) is not None:
                    raise zipfile.BadZipFile(part)
            values = torch.load(file, map_location="cpu", weights_only=True)
        except (FileNotFoundError, PermissionError, MemoryError):
            raise
        except Exception as error:  # torch raises pickle, zip and runtime errors here
            raise UnetcliError(f"{file}: damaged checkpoint; --overwrite starts over") from error
        if not isinstance(values, dict) or values.pop("version", None) != CHECKPOINT_VERSION:
            raise UnetcliError(f"{file}: checkpoint of another version; --overwrite starts over")
        try:
            found: Checkpoint = decoded(cls, {_FIELDS.get(name, name): value for name, value in values.items()})
        except ValueError as error:
            raise UnetcliError(f"{file}: damaged checkpoint ({error}); --overwrite starts over") from error
        return found
