"""Pictures of a training: its first samples and its held-out sections; and its TensorBoard log."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.files import remove_aside, replacing
from unetcli.train.folder import TrainingFolder
from unetcli.train.optim import Learner
from unetcli.train.sampling import Sampler
from unetcli.train.validation_results import ValidatedSection
from unetcli.viz.png import draw_samples, stretched

SAMPLES = 4
"""Number of tiles in the picture of the first samples."""
SIDE = 512
"""Largest side of a section in a picture, in pixels; larger sections are subsampled."""
GAP = 4
"""White pixels between the images of a picture."""
WHITE = 255
QUALITY = 90
"""JPEG quality: a section takes about 100 kB."""


def draw_first_samples(folder: TrainingFolder, learner: Learner, sampler: Sampler) -> None:
    """Draw the first augmented tiles of a training with classes and weights, if they are not drawn yet."""
    if folder.samples.exists():
        return
    samples = [sampler.sample(number) for number in range(SAMPLES)]
    batch = learner.batch(samples, [np.ones(1, np.float32)] * SAMPLES)
    weights = learner.table[batch.classes] + batch.border_weight
    images, classes = batch.images.cpu().numpy(), batch.classes.cpu().numpy()
    draw_samples(images, classes, weights.cpu().numpy(), folder.samples)


def draw_validation(folder: TrainingFolder, step: int, pictured: Sequence[ValidatedSection]) -> None:
    """Draw held-out sections side by side: image, foreground probability (or likeliest class), and ground truth."""
    if not pictured:
        return
    from imagecodecs import jpeg8_encode

    folder.predictions.mkdir(exist_ok=True)
    frame = GAP // 2
    rows = [np.hstack([np.pad(plane, frame, constant_values=WHITE) for plane in _planes(item)]) for item in pictured]
    width = max(row.shape[1] for row in rows)
    page = np.vstack([np.pad(row, ((0, 0), (0, width - row.shape[1])), constant_values=WHITE) for row in rows])
    with replacing(folder.predictions / f"step-{step:07d}.jpg") as draft:
        draft.write_bytes(jpeg8_encode(page, level=QUALITY))


def _planes(item: ValidatedSection) -> list[NDArray[np.uint8]]:
    """Image, prediction and ground truth of a section as grey values; pixels without ground truth are mid-grey."""
    step = -(-max(item.classes.shape) // SIDE)
    image = item.pair.image(item.box)[0].astype(np.float32)
    top = max(1, len(item.values) - 1)
    likeliest = item.foreground if top == 1 else item.values.argmax(0) / top
    truth = np.where(item.has_truth, item.classes / top, 0.5)
    return [(WHITE * plane[::step, ::step]).astype(np.uint8) for plane in (stretched(image), likeliest, truth)]


def remove_pictures_after(folder: TrainingFolder, step: int) -> None:
    """Remove pictures and TensorBoard logs of validations after a step, which are about to be repeated."""
    if folder.predictions.is_dir():
        for file in folder.predictions.glob("step-*.jpg"):
            if int(file.stem.removeprefix("step-")) > step:
                file.unlink()
    if step == 0:
        remove_aside(folder.tensorboard)


def require_tensorboard() -> None:
    """Raise UnetcliError, before training, if the ``tensorboard`` package is not installed."""
    if find_spec("tensorboard") is None:
        raise UnetcliError("--tensorboard: tensorboard is not installed; pip install 'unetcli[tensorboard]'")


def write_tensorboard(folder: TrainingFolder, row: dict[str, Any]) -> None:
    """Write the numbers of a validation to the TensorBoard log."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder.tensorboard)) as writer:
        for name, value in row.items():
            if isinstance(value, float):
                writer.add_scalar(name, value, row["step"])
