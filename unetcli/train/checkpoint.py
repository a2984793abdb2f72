"""What training needs to go on exactly where it stopped."""

from __future__ import annotations

import io
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unetcli.core.errors import UnetcliError
from unetcli.core.files import draft_of, sync

VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Tensors and plain values only. Random streams need no state: they are keyed by seed and number."""

    config: dict[str, Any]
    step: int
    """Steps done."""
    network: dict[str, Any]
    optimizer: dict[str, Any]
    averaged: dict[str, Any] | None
    """The moving average of the weights, where one is kept."""
    best: float | None
    """Best value of the measure selected by so far: what ``model.safetensors`` reached."""
    looks_since_best: int
    """Looks at the held-out sections since then."""
    pending: list[float]
    """Losses since the last look."""
    seconds: float
    """Time spent training."""

    def save(self, file: Path, previous: Path) -> None:
        """Write whole or not at all; what was there is kept as ``previous``."""
        values = {name: getattr(self, name) for name in self.__slots__}
        content = io.BytesIO()  # torch's own file writer hides a full disk behind an error of its own
        torch.save({"version": VERSION, **values}, content)
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
        """Read without pickle's code execution (``weights_only``), and only as it was written."""
        try:
            _require_whole(file)
            values = torch.load(file, map_location="cpu", weights_only=True)
        except (FileNotFoundError, PermissionError, MemoryError):
            raise
        except Exception as error:  # torch raises pickle, zip and runtime errors here
            raise UnetcliError(f"{file}: damaged checkpoint; --overwrite starts anew") from error
        if values.pop("version", None) != VERSION:
            raise UnetcliError(f"{file}: checkpoint of another version; --overwrite starts anew")
        return cls(**values)


def _require_whole(file: Path) -> None:
    """Compare the checksums in the file with its content: torch does not, and would go on with other weights."""
    with zipfile.ZipFile(file) as archive:
        if (part := archive.testzip()) is not None:
            raise zipfile.BadZipFile(part)
