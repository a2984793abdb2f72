"""What training needs to go on exactly where it stopped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unetcli.errors import UnetcliError
from unetcli.files import replacing

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Tensors and plain values only. Random streams need no state: they are keyed by seed and step."""

    config: dict[str, Any]
    step: int
    """Steps done."""
    network: dict[str, Any]
    optimizer: dict[str, Any]
    best: float | None
    """Best validation measure so far: what ``model.safetensors`` reached."""
    pending: list[float]
    """Losses since the last look at the held-out sections."""
    seconds: float
    """Time spent training."""

    def save(self, file: Path) -> None:
        """Write whole or not at all."""
        values = {name: getattr(self, name) for name in self.__slots__}
        with replacing(file) as draft:
            torch.save({"version": VERSION, **values}, draft)

    @classmethod
    def load(cls, file: Path) -> Checkpoint:
        """Read without pickle's code execution (``weights_only``)."""
        try:
            values = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises pickle, zip and runtime errors here
            raise UnetcliError(f"{file}: damaged checkpoint; --overwrite starts anew") from error
        if values.pop("version", None) != VERSION:
            raise UnetcliError(f"{file}: checkpoint of another version; --overwrite starts anew")
        return cls(**values)
