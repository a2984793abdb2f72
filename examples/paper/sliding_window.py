"""The network that the paper was faster than: a classifier of the patch around every pixel (Ciresan et al. 2012).

    python examples/paper/sliding_window.py DATA [--output sliding_window] [--minutes 20] [--crop 128]

DATA holds ``isbi2012``. A small network of convolutions and max-pooling with two fully connected layers sees a window
of 65 x 65 pixels and says whether its centre is membrane. It is trained for ``--minutes`` on patches of sections 0 to
16, as many of membrane as of cells, mirrored and turned by quarters, and applied to the window of each pixel of a crop
of each of sections 20 to 24, one patch per pixel. A U-Net is trained for the same time by ``unetcli train``, and scored
on the same crops. All of it runs on one thread. The same command continues an interrupted run. Writes
``sliding_window.json`` and ``sliding_window.md`` to the results, and a picture to the output.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from experiment import SETS, Experiment, markdown, parser_of, ranged
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from unetcli.core.files import replacing
from unetcli.metrics.em import scores
from unetcli.metrics.em_counts import section_counts
from unetcli.volumes.opening import open_volume

WINDOW = 65
"""Side of a patch, in pixels; also that of the smaller networks of Ciresan et al. (2012)."""
MAPS, HIDDEN = 16, 100
"""Feature maps and hidden neurons; the original has 48 and 200."""
BATCH, AT_ONCE = 64, 256
"""Patches of a training step, and patches that are classified at once."""
SAVE_SECONDS = 20
NAMES = ("sliding window", "U-Net")
MEASURES = {"pixel_error": "pixel error", "v_rand": "V_Rand"}


def main() -> None:
    """Train both networks if they are not trained, score what is not scored, and write the table."""
    parser = parser_of(__doc__, "sliding_window")
    parser.add_argument("--minutes", type=float, default=20, help="time to train each network")
    parser.add_argument("--crop", type=int, default=128, help="side of the square that is scored, in pixels")
    given = parser.parse_args()
    torch.set_num_threads(1)
    experiment, isbi = Experiment(given.output, given.results / "sliding_window.json"), Sections(given.data, given.crop)
    for name, run in zip(NAMES, (run_sliding_window, run_unet), strict=True):
        if name not in experiment.results:
            found = run(experiment, isbi, given.minutes)
            experiment.keep(name, {**found, "crop": isbi.crop})
    draw(experiment, isbi, given.output / "sliding_window.png")
    text = table(experiment.results)
    (given.results / "sliding_window.md").write_text(text)
    print(text, end="")


class Sections:
    """Sections to train and to test on, and the square in the middle of each that is scored."""

    def __init__(self, data: Path, crop: int) -> None:
        self.set, self.data = SETS["ISBI"], data
        images, self.truth = (tifffile.imread(data / name) for name in (self.set.images, self.set.labels))
        part = images[slice(*self.set.train)].astype(np.float32)
        self.images: NDArray[np.float32] = (images - part.mean()) / part.std()
        self.crop = min(crop, *images.shape[1:])
        self.test = range(*self.set.test)

    @cached_property
    def square(self) -> tuple[slice, slice]:
        """The crop of a section, (y, x)."""
        starts = [(side - self.crop) // 2 for side in self.images.shape[1:]]
        return slice(starts[0], starts[0] + self.crop), slice(starts[1], starts[1] + self.crop)

    @cached_property
    def mirrored(self) -> NDArray[np.float32]:
        """Images continued by mirroring, so that every pixel has a window: (z, y + 64, x + 64)."""
        half = WINDOW // 2
        return np.pad(self.images, ((0, 0), (half, half), (half, half)), mode="reflect")

    def scores(self, probability: NDArray[np.float32]) -> dict[str, Any]:
        """Scores of the crops of the test sections; probability of interior, (z, y, x)."""
        truth = self.truth[slice(*self.set.test)][(slice(None), *self.square)] > 0
        found = scores([section_counts(*both) for both in zip(probability, truth, strict=True)])
        return {name: found[name] for name in MEASURES}

    def per_section(self, seconds: float) -> float:
        """Seconds for a whole section, from those for the crops of all test sections."""
        return seconds / len(self.test) * self.images[0].size / self.crop**2


class PatchNetwork(nn.Sequential):
    """Scores of membrane and interior for the centre of a patch: (patches, 1, 65, 65) to (patches, 2)."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for channels, kernel in ((1, 4), (MAPS, 4), (MAPS, 5), (MAPS, 4)):  # 65 > 31 > 14 > 5 > 1
            layers += [nn.Conv2d(channels, MAPS, kernel), nn.ReLU(), nn.MaxPool2d(2)]
        super().__init__(*layers, nn.Flatten(), nn.Linear(MAPS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2))


class Patches:
    """Random patches of the training sections; those of a step depend only on its number."""

    def __init__(self, sections: Sections) -> None:
        truth = sections.truth[slice(*sections.set.train)] > 0
        self.images = sections.mirrored
        self.centres = [np.flatnonzero(truth == interior) for interior in (False, True)]
        self.shape = truth.shape

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Patches, (batch, 1, 65, 65), and their classes: as many of membrane (0) as of interior (1)."""
        random, patches = np.random.default_rng([0, step]), []
        for interior in (0, 1):
            for place in random.choice(self.centres[interior], BATCH // 2):
                z, y, x = np.unravel_index(place, self.shape)
                turned = np.rot90(self.images[z, y : y + WINDOW, x : x + WINDOW], random.integers(4))
                patches.append(turned[:, ::-1] if random.integers(2) else turned)
        classes = torch.arange(2).repeat_interleave(BATCH // 2)
        return torch.from_numpy(np.stack(patches)[:, None].copy()), classes


def run_sliding_window(experiment: Experiment, sections: Sections, minutes: float) -> dict[str, Any]:
    """Train the patch network, and classify each pixel of the crops."""
    network, steps, spent = trained(experiment.output / "patches.pt", sections, minutes)
    started = processor_seconds()
    probability = np.stack([classified(network, sections, z) for z in sections.test])
    seconds = processor_seconds() - started
    np.save(stored(experiment, "sliding window"), probability)
    times = {"seconds_per_section": sections.per_section(seconds), "training_seconds": spent}
    return {**sections.scores(probability), **times, "steps": steps}


def trained(file: Path, sections: Sections, minutes: float) -> tuple[PatchNetwork, int, float]:
    """The patch network, trained for some minutes from its last checkpoint on, its number of steps, and their time."""
    torch.manual_seed(0)
    network = PatchNetwork()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    step, seconds = load(file, network, optimizer)
    patches, saved = Patches(sections), seconds
    while seconds < 60 * minutes:
        started = time.perf_counter()
        images, classes = patches.batch(step)
        optimizer.zero_grad()
        functional.cross_entropy(network(images), classes).backward()
        optimizer.step()
        step, seconds = step + 1, seconds + time.perf_counter() - started
        if seconds - saved > SAVE_SECONDS or seconds >= 60 * minutes:
            save(file, network, optimizer, step, seconds)
            saved = seconds
    return network.eval(), step, seconds


def save(file: Path, network: nn.Module, optimizer: torch.optim.Optimizer, step: int, seconds: float) -> None:
    """Write a checkpoint, which replaces the last one at once."""
    states = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
    with replacing(file) as draft:
        torch.save({**states, "step": step, "seconds": seconds}, draft)


def load(file: Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Restore a checkpoint, if there is one; return its step and the seconds spent."""
    if not file.exists():
        return 0, 0.0
    found = torch.load(file, weights_only=True)
    network.load_state_dict(found["network"])
    optimizer.load_state_dict(found["optimizer"])
    return found["step"], found["seconds"]


def classified(network: nn.Module, sections: Sections, z: int) -> NDArray[np.float32]:
    """Probability of interior of each pixel of the crop of a section, (y, x), from the patch around it."""
    with torch.inference_mode():
        parts = [network(patches).softmax(1)[:, 1] for patches in windows(sections, z)]
    return torch.cat(parts).reshape(sections.crop, sections.crop).numpy()


def windows(sections: Sections, z: int) -> Iterator[Tensor]:
    """Yield the patches around the pixels of a crop, row by row, some at once: (patches, 1, 65, 65)."""
    rows, columns = sections.square
    half = WINDOW - 1
    area = sections.mirrored[z, rows.start : rows.stop + half, columns.start : columns.stop + half]
    every = np.lib.stride_tricks.sliding_window_view(area, (WINDOW, WINDOW))
    for first in range(0, sections.crop**2, AT_ONCE):
        places = np.arange(first, min(first + AT_ONCE, sections.crop**2))
        yield torch.from_numpy(every[places // sections.crop, places % sections.crop][:, None])


def run_unet(experiment: Experiment, sections: Sections, minutes: float) -> dict[str, Any]:
    """Train a U-Net and predict the test sections with the commands of unetcli."""
    chosen, model = sections.set, experiment.output / "unet"
    words = [*chosen.training_words(sections.data), "--depth", 3, "--base-channels", 16, "--minutes", minutes]
    training = experiment.json("train", *words, "--output", model, "--device", "cpu")
    store, test = experiment.output / "unet.zarr", ["--sections", ranged(chosen.test)]
    common = ["--model", model, "--device", "cpu", "--dtype", "float32", "--output", store, "--overwrite"]
    started = processor_seconds()
    experiment.unetcli("predict", sections.data / chosen.images, *test, *common)
    seconds = processor_seconds() - started
    stack = open_volume(store).in_memory().array
    probability = np.asarray(stack[(slice(None), *sections.square)], np.float32)
    np.save(stored(experiment, "U-Net"), probability)
    found = sections.scores(probability)
    times = {"seconds_per_section": seconds / len(sections.test), "training_seconds": training["seconds"]}
    return {**found, **times, "steps": training["steps"]}


def processor_seconds() -> float:
    """Processor time of this process and of those that it has waited for, which other programs hardly change."""
    return sum(os.times()[:4])


def stored(experiment: Experiment, name: str) -> Path:
    """File with the probability of the crops, (z, y, x)."""
    return experiment.output / f"{name.replace(' ', '_').lower()}.npy"


def draw(experiment: Experiment, sections: Sections, picture: Path) -> None:
    """Draw the crop of the first test section: input, both probabilities, truth."""
    z = sections.test[0]
    panels = {"input": sections.images[z][sections.square]}
    panels |= {name: np.load(stored(experiment, name))[0] for name in NAMES}
    panels["truth"] = sections.truth[z][sections.square] > 0
    figure = Figure(figsize=(4 * len(panels), 4.4), layout="constrained")
    for axes, (name, pixels) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axes.imshow(pixels, cmap="gray", interpolation="nearest")
        axes.set_title(name)
        axes.set_axis_off()
    figure.savefig(picture, dpi=80)


def cells(row: dict[str, Any]) -> list[str]:
    """Scores and times of a network, as text."""
    times = f"{row['seconds_per_section']:.2f}", str(row["steps"]), f"{row['training_seconds'] / 60:.1f}"
    return [*(f"{row[score]:.4f}" for score in MEASURES), *times]


def table(found: dict[str, dict[str, Any]]) -> str:
    """Scores and times of both networks, and how many times faster the U-Net is."""
    slow, fast = (found[name] for name in NAMES)
    head = ["", *MEASURES.values(), "processor seconds per section", "training steps", "minutes of training"]
    rows = [[name, *cells(row)] for name, row in found.items()]
    times = slow["seconds_per_section"] / fast["seconds_per_section"]
    return markdown(head, rows) + (
        f"\nThe U-Net predicts a section {times:.0f} times faster. Both were trained and applied "
        f"on one thread. Scores are of the middle {slow['crop']} x {slow['crop']} pixels of sections 20 to 24. "
        "The sliding window was timed on these pixels and scaled to the pixels of a section; the time of the U-Net is "
        "that of the whole command `unetcli predict` on the five sections, its start included.\n"
    )


if __name__ == "__main__":
    main()
