"""What augmentation costs: tiles per second, and its share of a training step, measured in the same run.

    python tests/benchmarks/augmentation.py [--device cuda] [--threads N] [--batch N] [--seconds S]

A tile's time is all of it: random choices, the window's size, windows of uint8 sent to the device, image, classes and
weights out. A step is forward, loss, backward and optimiser on a tile that is there already.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from unetcli.core.geometry import Architecture
from unetcli.core.process import cpu_threads
from unetcli.model.network import UNet, on_device, resolve_device
from unetcli.train.augment import Draw, augment, draw
from unetcli.train.optim import weighted_cross_entropy
from unetcli.train.settings import Augmentation

NETWORKS = {"full": (Architecture(), 572), "small": (Architecture(depth=3, base_channels=16), 316)}
SOURCE = 1400
"""Side of the images that windows are cut from."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Where samples are cut from: made-up images, grey values, classes and weights of the same place."""

    grey: torch.Tensor
    classes: torch.Tensor
    border_weight: torch.Tensor

    @classmethod
    def made_up(cls, device: torch.device) -> Windows:
        random = torch.Generator().manual_seed(0)
        grey = torch.randint(256, (1, SOURCE, SOURCE), generator=random, dtype=torch.uint8)
        windows = cls(grey, grey[0] % 2, torch.rand(SOURCE, SOURCE, generator=random))
        return windows if device.type == "cpu" else cls(*(part.pin_memory() for part in windows.parts))

    @property
    def parts(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.grey, self.classes, self.border_weight

    def cut(self, draws: list[Draw], tile: int, output: int, device: torch.device) -> list[list[torch.Tensor]]:
        """Windows of the draws on the device: images, classes, weights."""
        return [
            [
                part[..., : one.deformation.window_side(extent), : one.deformation.window_side(extent)].to(
                    device, non_blocking=True
                )
                for one in draws
            ]
            for part, extent in zip(self.parts, (tile, output, output), strict=True)
        ]


def main() -> None:
    options = parse()
    device = resolve_device(options.device)
    torch.set_num_threads(options.threads)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{options.threads} threads"
    print(f"{device} ({name}), torch {torch.__version__}, batches of {options.batch}")
    for network, (architecture, tile) in NETWORKS.items():
        output = tile - 2 * architecture.footprint().context[-1]
        pace = seconds(augmentation(tile, output, options.batch, device), device, options.seconds) / options.batch
        print(f"{network} network, tile {tile} -> {output}: {1 / pace:.0f} tiles/s, {pace * 1e3:.2f} ms a tile")
        for precision in (torch.float32, torch.bfloat16):
            step = seconds(training_step(architecture, tile, output, precision, device), device, options.seconds)
            kind = str(precision).removeprefix("torch.")
            print(f"  of a step in {kind} ({step * 1e3:.1f} ms): {pace / step:.2%}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=cpu_threads())
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    return parser.parse_args()


def augmentation(tile: int, output: int, batch: int, device: torch.device) -> Callable[[], None]:
    """One batch with the default settings; other random choices at each call."""
    windows, settings, numbers = Windows.made_up(device), Augmentation(), iter(range(10**9))

    def run() -> None:
        draws = [draw(settings, np.random.default_rng([0, next(numbers)]), tile) for _ in range(batch)]
        images, classes, raised = windows.cut(draws, tile, output, device)
        augment(images, classes, raised, draws, tile=tile, output=output, mean=128.0, std=74.0)

    return run


def training_step(
    architecture: Architecture, tile: int, output: int, precision: torch.dtype, device: torch.device
) -> Callable[[], None]:
    """Forward, loss, backward, optimiser: SGD with the paper's momentum."""
    network: torch.nn.Module = on_device(UNet(architecture), device)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.99)
    image = torch.randn(1, 1, tile, tile, device=device).to(memory_format=torch.channels_last)
    target = torch.randint(2, (1, output, output), device=device)
    border_weight, table = torch.zeros(1, output, output, device=device), torch.ones(256, device=device)

    def run() -> None:
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            logits = network(image)
        optimizer.zero_grad(set_to_none=True)
        loss, weight = weighted_cross_entropy(logits, target, border_weight, table)
        (loss / weight).backward()
        optimizer.step()

    return run


def seconds(run: Callable[[], None], device: torch.device, at_least: float) -> float:
    """Seconds a call, the median of several stretches; the device is waited for at their ends only."""
    stretches, calls = [], 1
    run()
    until = time.perf_counter() + at_least
    while len(stretches) < 3 or time.perf_counter() < until:
        wait(device)
        started = time.perf_counter()
        for _ in range(calls):
            run()
        wait(device)
        stretches.append((time.perf_counter() - started) / calls)
        calls = max(1, int(0.2 / stretches[-1]))
    return float(np.median(stretches))


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
