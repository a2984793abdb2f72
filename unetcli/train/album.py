"""What a training shows: the tiles that the network sees, held-out sections at each look, figures for TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.files import remove_aside, replacing
from unetcli.train.figures import Judged
from unetcli.train.folder import TrainingFolder
from unetcli.viz.colour import stretched
from unetcli.viz.png import draw_samples

if TYPE_CHECKING:
    from unetcli.train.learner import Learner
    from unetcli.train.sampling import Sampler

SEEN = 4
"""Tiles in the picture of what the network sees."""
SIDE = 512
"""Pixels of a section that a picture shows, at most; larger ones are thinned out."""
GAP = 4
WHITE = 255
QUALITY = 90
"""Of JPEG: a look takes about 100 kB a section."""


def draw_seen(folder: TrainingFolder, learner: Learner, sampler: Sampler) -> None:
    """The first tiles of a training, augmented, with classes and weights; drawn once."""
    if folder.samples.exists():
        return
    samples = [sampler.sample(number) for number in range(SEEN)]
    batch = learner.batch(samples, [np.ones(1, np.float32)] * SEEN)
    weights = learner.table[batch.classes] + batch.raised
    images, classes = batch.images.cpu().numpy(), batch.classes.cpu().numpy()
    draw_samples(images, classes, weights.cpu().numpy(), folder.samples)


def draw_look(folder: TrainingFolder, step: int, shown: Sequence[Judged]) -> None:
    """Held-out sections: image, probability of the foreground (or likeliest class), and truth, side by side."""
    if not shown:
        return
    folder.predictions.mkdir(exist_ok=True)
    rows = [np.concatenate([_framed(plane) for plane in planes(item)], axis=1) for item in shown]
    width = max(row.shape[1] for row in rows)
    page = np.concatenate([np.pad(r, ((0, 0), (0, width - r.shape[1])), constant_values=WHITE) for r in rows])
    _write(page, folder, step)


def planes(item: Judged) -> list[NDArray[np.uint8]]:
    """Image, prediction and truth of a section as grey values; grey where there is no truth."""
    thin = -(-max(item.classes.shape) // SIDE)
    image = item.pair.image(item.box)[0].astype(np.float32)
    top = max(1, len(item.values) - 1)
    likeliest = item.values[0] if len(item.values) == 1 else item.values.argmax(0) / top
    truth = np.where(item.counted, item.classes / top, 0.5)
    return [(WHITE * plane[::thin, ::thin]).astype(np.uint8) for plane in (stretched(image), likeliest, truth)]


def forget_looks(folder: TrainingFolder, step: int) -> None:
    """Remove pictures of looks after a step: they are about to happen again."""
    if folder.predictions.is_dir():
        for file in folder.predictions.glob("step-*.jpg"):
            if int(file.stem.removeprefix("step-")) > step:
                file.unlink()
    if step == 0:
        remove_aside(folder.tensorboard)


def require_tensorboard() -> None:
    """Refuse to begin without the package that would be missing at the first look."""
    if find_spec("tensorboard") is None:
        raise UnetcliError("--tensorboard: tensorboard is not installed; pip install 'unetcli[tensorboard]'")


def tell_tensorboard(folder: TrainingFolder, row: dict[str, Any]) -> None:
    """The numbers of a look, for ``tensorboard --logdir``."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder.tensorboard)) as writer:
        for name, value in row.items():
            if isinstance(value, float):
                writer.add_scalar(name, value, row["step"])


def _framed(plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.pad(plane, GAP // 2, constant_values=WHITE)


def _write(page: NDArray[np.uint8], folder: TrainingFolder, step: int) -> None:
    from imagecodecs import jpeg8_encode

    with replacing(folder.prediction(step)) as draft:
        draft.write_bytes(jpeg8_encode(page, level=QUALITY))
