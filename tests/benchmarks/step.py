"""What a training step costs beyond forward, backward and optimiser of the same network on the same tile, in one run.

    python tests/benchmarks/step.py [--depth 4 --base-channels 64 --tile 572] [--steps 4] [--rounds 3] [--device cpu]

The bare step is plain torch: a batch that lies ready, the weighted loss, the optimiser. Beside it the whole course of
``train``: reading, augmenting, dropout, loss bookkeeping, progress. Both alternate; the medians' ratio is printed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from unetcli.core.process import prepare

prepare()

import numpy as np  # noqa: E402
import torch  # noqa: E402
import zarr  # noqa: E402

from unetcli.core.process import cpu_threads  # noqa: E402
from unetcli.core.streams import prefetch  # noqa: E402
from unetcli.train.folder import TrainingFolder  # noqa: E402
from unetcli.train.loop import BATCHES_AHEAD, Training, TrainingLoop  # noqa: E402
from unetcli.train.optim import (  # noqa: E402
    Batch,
    Learner,
    autocast,
    batches,
    weighted_cross_entropy,
)
from unetcli.train.request import TrainRequest  # noqa: E402
from unetcli.train.resolve import resolve_training  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--base-channels", type=int, default=64)
    parser.add_argument("--tile", type=int, default=572)
    parser.add_argument("--steps", type=int, default=4, help="of each kind in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device")
    parser.add_argument("--recipe", default="paper")
    options = parser.parse_args()
    torch.set_num_threads(cpu_threads())
    with TemporaryDirectory() as place:
        training = laid(Path(place), options)
        compare(training, Path(place), options.steps, options.rounds)


def laid(place: Path, options: argparse.Namespace) -> Training:
    """A training on sections of discs, as annotated as the EM challenge's."""
    y, x = np.mgrid[:512, :512]
    discs = np.stack([np.hypot((y + 7 * z) % 32 - 16, (x + 3 * z) % 32 - 16) < 14 for z in range(20)]).astype(np.uint8)
    grey = (discs * 90 + np.random.default_rng(0).integers(0, 90, discs.shape)).astype(np.uint8)
    for name, values in (("raw", grey), ("labels", discs)):
        zarr.create_array(place / f"{name}.zarr", data=values, chunks=(1, 512, 512))
    request = TrainRequest(
        pair=((str(place / "raw.zarr"), str(place / "labels.zarr")),),
        recipe=options.recipe,
        depth=options.depth,
        base_channels=options.base_channels,
        tile=options.tile,
        steps=10_000,
        device=options.device,
    )
    return resolve_training(request, TrainingFolder(place / "model"), None)


def compare(training: Training, place: Path, steps: int, rounds: int) -> None:
    learner, sampler = training.learner(), training.sampler()
    training.folder.path.mkdir()
    loop = TrainingLoop(training, 10_000, lambda done, total, note="": None)
    loop.begin()
    loop.start_clock()
    batch = next(iter(batches(learner, sampler, [0])))
    bare_once(learner, batch)
    with closing(prefetch(batches(learner, sampler, range(10**9)), BATCHES_AHEAD)) as stream:
        next(stream)
        bare, whole = [], []
        for _ in range(rounds):
            bare += [timed(learner, lambda: bare_once(learner, batch)) for _ in range(steps)]
            whole += [timed(learner, lambda: whole_once(loop, learner, stream)) for _ in range(steps)]
    a = training.config.architecture
    print(f"{training.device}, {training.config.precision}, depth {a.depth}, {a.base_channels} channels, tile", end=" ")
    print(f"{training.config.tile}: bare {median(bare):.4f} s, train {median(whole):.4f} s a step", end=", ")
    print(f"ratio {median(whole) / median(bare):.3f}, medians of {len(bare)}")


def bare_once(learner: Learner, batch: Batch) -> None:
    """Forward, backward, optimiser."""
    with autocast(learner.device, learner.config.precision):
        logits = learner.network(batch.images, batch.dropout_mask)
    total, weight = weighted_cross_entropy(logits, batch.classes, batch.border_weight, learner.table)
    learner.optimizer.zero_grad(set_to_none=True)
    (total / weight).backward()  # type: ignore[no-untyped-call]
    learner.optimizer.step()


def whole_once(loop: TrainingLoop, learner: Learner, stream: Iterator[Batch]) -> None:
    """A step as train takes it."""
    loop.losses.append(learner.step(next(stream), len(loop.losses)))
    loop.show_progress(len(loop.losses))


def timed(learner: Learner, work: object) -> float:
    assert callable(work)
    started = time.perf_counter()
    work()
    if learner.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
