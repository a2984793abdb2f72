"""The model file: weights in safetensors format (no pickle), with everything needed to use them in its header."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.arrays import Checksum, PerChannel, as_per_channel
from unetcli.core.errors import UnetcliError, format_shape
from unetcli.core.files import replacing
from unetcli.core.geometry import Architecture
from unetcli.core.records import from_json
from unetcli.model.calibration import Calibration
from unetcli.model.training_data import TrainingData, TrainingObjects

if TYPE_CHECKING:
    from unetcli.model.network import UNet

FILE_NAME = "model.safetensors"
HEADER_KEY = "unetcli"
VERSION = 1
REMEDY = "copy it again, or train it again"
"""Advice in errors about a damaged model."""
Weights = dict[str, NDArray[Any]]


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
    training_data: TrainingData | None = None
    """Properties of the training images; None in files of older versions."""
    calibration: Calibration | None = None
    """Calibration that the weights contain; None in files without one."""
    objects: TrainingObjects | None = None
    """Objects in the training truth; None in files of older versions."""
    digest: str | None = field(default=None, compare=False)
    """Checksum of the weights (XXH3, 128 bits), which :func:`save_model` computes; None in files of older versions."""

    @property
    def augmentation(self) -> dict[str, Any]:
        """Settings of the augmentation in training; empty if the file does not state them."""
        config = self.provenance.get("config")
        found = config.get("augmentation") if isinstance(config, dict) else None
        return found if isinstance(found, dict) else {}

    def to_json(self) -> str:
        return json.dumps({"version": VERSION, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> ModelHeader:
        """Read a header; raises as :func:`unetcli.core.records.from_json`."""
        return from_json(cls, text, VERSION, "a model", key="version")


def file_of(model: Path) -> Path:
    """Path of a model file, given as such or as its folder."""
    return model / FILE_NAME if model.is_dir() else model


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
    file = file_of(named or Path(os.environ.get("UNETCLI_MODEL") or "model"))
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
    digest = digest_of({name: tensor.numpy() for name, tensor in tensors.items()})
    content = save(tensors, metadata={HEADER_KEY: replace(header, digest=digest).to_json()})
    with replacing(file) as draft:
        draft.write_bytes(content)  # save_file would report a full disk as another error


def read_model(file: Path) -> tuple[ModelHeader, Weights]:
    """Read a model file without torch, and check its weights.

    Returns
    -------
    header : ModelHeader
    weights : dict of arrays
        By the names of :meth:`Architecture.weight_shapes`.

    Raises
    ------
    UnetcliError
        The file is not a model of unetcli, or it is damaged: the weights are not those of its architecture, one is
        NaN or infinite, or their checksum is not that of the header.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    header = read_header(file)
    try:
        weights: Weights = load_file(file)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:  # a data type that numpy lacks
        raise UnetcliError(f"{file}: damaged model ({str(error).splitlines()[0]}); {REMEDY}") from error
    if (reason := damage(header, weights)) is not None:
        raise UnetcliError(f"{file}: damaged model ({reason}); {REMEDY}")
    return header, weights


def damage(header: ModelHeader, weights: Weights) -> str | None:
    """Phrase that describes what is wrong with the weights of a model; None if nothing is."""
    expected = header.architecture.weight_shapes()
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights or name not in expected:
            return f"{name} is {'missing' if name in expected else 'no weight of its architecture'}"
        if weights[name].shape != expected[name]:
            needed = format_shape(expected[name])
            return f"{name} is {format_shape(weights[name].shape)}, its architecture needs {needed}"
        if not (finite := np.isfinite(weights[name])).all():
            return f"{name} has NaN or infinity in {int((~finite).sum())} of its {finite.size} values"
    if header.digest is not None and digest_of(weights) != header.digest:
        return "its weights are not those that were saved: another checksum"
    return None


def digest_of(weights: Weights) -> str:
    """Checksum of names, data types, shapes and values of weights, whatever their order: 32 hexadecimal digits."""
    total = Checksum()
    for name, values in sorted(weights.items()):
        total.add(f"{name} {values.dtype} {values.shape}\n".encode())
        total.add(values)
    return total.hexdigest()


def load_network(file: Path) -> UNet:
    """The network of a model file, on the CPU, in evaluation mode.

    Raises
    ------
    UnetcliError
        The file is not a model of unetcli, or it is damaged; see :func:`read_model`.
    """
    import torch

    from unetcli.model.network import UNet

    header, weights = read_model(file)
    with torch.device("meta"):  # random weights of the full network would take half a second
        network = UNet(header.architecture)
    network.load_state_dict({name: torch.from_numpy(values) for name, values in weights.items()}, assign=True)
    return network.eval()
