"""The model file: weights in safetensors format (no pickle), with everything needed to use them in its header."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetcli.core.arrays import PerChannel, as_per_channel
from unetcli.core.errors import UnetcliError
from unetcli.core.files import replacing
from unetcli.core.geometry import Architecture
from unetcli.core.records import from_json

if TYPE_CHECKING:
    from unetcli.model.network import UNet

FILE_NAME = "model.safetensors"
HEADER_KEY = "unetcli"
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Intensity:
    """Statistics of the grey values of the training images; grey values are normalised with them."""

    dtype: str
    """Data type of the images, as numpy names it."""
    mean: PerChannel
    std: PerChannel
    """Standard deviation; 1 if all values are equal."""

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, as_per_channel(getattr(self, name)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelHeader:
    """Description of a model, readable without torch."""

    architecture: Architecture
    class_names: tuple[str, ...]
    intensity: Intensity
    provenance: dict[str, Any]
    """Command, data and scores of the training, as plain values."""

    def to_json(self) -> str:
        return json.dumps({"version": VERSION, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> ModelHeader:
        """Read a header; raises as :func:`unetcli.core.records.from_json`."""
        return from_json(cls, text, VERSION, "a model", key="version")


def find_model(named: Path | None = None) -> Path:
    """Path of the model file: ``named``, else ``$UNETCLI_MODEL``, else ``./model``.

    Parameters
    ----------
    named : path of a file, or of a folder with a ``model.safetensors``, optional

    Raises
    ------
    UnetcliError
        There is no such file.
    """
    path = named or Path(os.environ.get("UNETCLI_MODEL") or "model")
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise UnetcliError(f"{file}: no model found; create ./model with `unetcli train RAW LABELS`, or use --model")
    return file


def read_header(file: Path) -> ModelHeader:
    """Read the header of a model file without torch.

    Raises
    ------
    UnetcliError
        The file is not a model of unetcli, or it is damaged: its length must be the one that the header states.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as stored:  # checks the lengths
            return ModelHeader.from_json((stored.metadata() or {}).get(HEADER_KEY, ""))
    except SafetensorError as error:
        reason = str(error).splitlines()[0]
        raise UnetcliError(f"{file}: not a model written by unetcli, or a damaged model ({reason})") from error
    except (ValueError, UnetcliError) as error:
        raise UnetcliError(f"{file}: not a model written by unetcli ({error})") from error


def save_model(file: Path, network: UNet, header: ModelHeader) -> None:
    """Write weights and header; the file is replaced atomically."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    content = save(tensors, metadata={HEADER_KEY: header.to_json()})
    with replacing(file) as draft:
        draft.write_bytes(content)  # save_file would report a full disk as another error


def load_network(file: Path) -> UNet:
    """The network of a model file, on the CPU, in evaluation mode.

    Raises
    ------
    UnetcliError
        The file is not a model of unetcli, or it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from unetcli.model.network import UNet

    header = read_header(file)
    network = UNet(header.architecture)
    try:
        network.load_state_dict(load_file(file))
    except (SafetensorError, RuntimeError) as error:
        raise UnetcliError(f"{file}: damaged model ({str(error).splitlines()[0]})") from error
    return network.eval()
