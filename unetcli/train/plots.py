"""Pictures of a training: the first samples, held-out sections at each validation, and curves for TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.files import remove_aside, replacing
from unetcli.train.dataset import Sampler
from unetcli.train.folder import TrainingFolder
from unetcli.train.optim import Learner
from unetcli.train.validation import ValidatedSection
from unetcli.viz.colour import stretched
from unetcli.viz.png import draw_samples

SAMPLES = 4
"""Tiles in the picture of the first samples."""
SIDE = 512
"""Largest side of a section in a picture; larger ones are thinned out."""
GAP = 4
WHITE = 255
QUALITY = 90
"""JPEG quality: a section takes about 100 kB."""


def draw_first_samples(folder: TrainingFolder, learner: Learner, sampler: Sampler) -> None:
    """Draw the first tiles of a training, augmented, with classes and weights; once."""
    if folder.samples.exists():
        return
    samples = [sampler.sample(number) for number in range(SAMPLES)]
    batch = learner.batch(samples, [np.ones(1, np.float32)] * SAMPLES)
    weights = learner.table[batch.classes] + batch.border_weight
    images, classes = batch.images.cpu().numpy(), batch.classes.cpu().numpy()
    draw_samples(images, classes, weights.cpu().numpy(), folder.samples)


def draw_validation(folder: TrainingFolder, step: int, shown: Sequence[ValidatedSection]) -> None:
    """Draw held-out sections: image, probability of the foreground (or likeliest class), and truth, side by side."""
    if not shown:
        return
    from imagecodecs import jpeg8_encode

    folder.predictions.mkdir(exist_ok=True)
    frame = GAP // 2
    rows = [np.hstack([np.pad(plane, frame, constant_values=WHITE) for plane in _planes(item)]) for item in shown]
    width = max(row.shape[1] for row in rows)
    page = np.vstack([np.pad(row, ((0, 0), (0, width - row.shape[1])), constant_values=WHITE) for row in rows])
    with replacing(folder.predictions / f"step-{step:07d}.jpg") as draft:
        draft.write_bytes(jpeg8_encode(page, level=QUALITY))


def _planes(item: ValidatedSection) -> list[NDArray[np.uint8]]:
    """Image, prediction and truth of a section as grey values; grey where there is no truth."""
    thin = -(-max(item.classes.shape) // SIDE)
    image = item.pair.image(item.box)[0].astype(np.float32)
    top = max(1, len(item.values) - 1)
    likeliest = item.values[0] if len(item.values) == 1 else item.values.argmax(0) / top
    truth = np.where(item.counted, item.classes / top, 0.5)
    return [(WHITE * plane[::thin, ::thin]).astype(np.uint8) for plane in (stretched(image), likeliest, truth)]


def remove_pictures_after(folder: TrainingFolder, step: int) -> None:
    """Remove pictures of validations after a step: they are about to happen again."""
    if folder.predictions.is_dir():
        for file in folder.predictions.glob("step-*.jpg"):
            if int(file.stem.removeprefix("step-")) > step:
                file.unlink()
    if step == 0:
        remove_aside(folder.tensorboard)


def require_tensorboard() -> None:
    """Refuse to begin without the package that would be missing at the first validation."""
    if find_spec("tensorboard") is None:
        raise UnetcliError("--tensorboard: tensorboard is not installed; pip install 'unetcli[tensorboard]'")


def write_tensorboard(folder: TrainingFolder, row: dict[str, Any]) -> None:
    """Write the numbers of a validation, for ``tensorboard --logdir``."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder.tensorboard)) as writer:
        for name, value in row.items():
            if isinstance(value, float):
                writer.add_scalar(name, value, row["step"])
