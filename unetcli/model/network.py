"""The U-Net of Ronneberger, Fischer and Brox (2015), in the order of the paper's figure 1."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from unetcli.core.footprint import Architecture, Layer
from unetcli.model.batchnorm import BatchNorm, fold


class DoubleConv(nn.Sequential):
    """Two valid 3x3 convolutions, each followed by a ReLU; batch normalisation between the two, where asked for."""

    def __init__(self, channels_in: int, channels: int, *, batch_norm: bool = False) -> None:
        steps: list[nn.Module] = []
        for width in (channels_in, channels):
            steps.append(nn.Conv2d(width, channels, kernel_size=3, bias=not batch_norm))
            steps += [BatchNorm(channels)] if batch_norm else []
            steps.append(nn.ReLU(inplace=True))
        super().__init__(*steps)


class UNet(nn.Module):
    """Valid convolutions only: ``(batch, c, y, x)`` to logits ``(batch, classes, y - 2*context, x - 2*context)``.

    With batch normalisation only the head has biases: any other is taken away again by the next mean, and Adam would
    move it at random.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = self.architecture = architecture
        widths = [a.channels(level) for level in range(a.depth + 1)]
        double = partial(DoubleConv, batch_norm=a.batch_norm)
        self.down = nn.ModuleList(double(i, o) for i, o in zip([a.in_channels, *widths], widths, strict=False))
        self.pool = nn.MaxPool2d(kernel_size=2, stride=2)
        up = partial(nn.ConvTranspose2d, kernel_size=2, stride=2, bias=not a.batch_norm)
        self.up = nn.ModuleList(up(2 * w, w) for w in reversed(widths[:-1]))
        self.merge = nn.ModuleList(double(2 * w, w) for w in reversed(widths[:-1]))
        self.head = nn.Conv2d(widths[0], a.classes, kernel_size=1)
        initialise(self)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Logits of ``x``; ``keep`` (batch, channels, 1, 1) is dropout at the end of the contracting path.

        It is given, not drawn here, so that a sample's does not depend on the batch or process that it is in.
        """
        skips = []
        for level, double in enumerate(self.down):
            x = double(x if level == 0 else self.pool(x))  # (batch, base * 2^level, y, x), 4 px less a side
            skips.append(x)
        x = skips.pop() if keep is None else skips.pop() * keep
        for up, double in zip(self.up, self.merge, strict=True):
            x = up(x)  # (batch, c/2, 2y, 2x)
            skip = crop_to(skips.pop(), x)  # (batch, c/2, 2y, 2x): context lost on the way down
            x = double(torch.cat([skip, x], dim=1))  # (batch, c/2, 2y - 4, 2x - 4)
        return self.head(x)  # type: ignore[no-any-return]  # (batch, classes, y, x)

    def layers(self) -> Iterator[Layer]:
        """The longest path, read off the modules themselves."""
        for level, double in enumerate(self.down):
            if level:
                yield _layer(self.pool)
            yield from _convolutions(double)
        for up, double in zip(self.up, self.merge, strict=True):
            yield _layer(up)
            yield from _convolutions(double)
        yield _layer(self.head)


@torch.no_grad()
def folded(network: UNet) -> UNet:
    """The same function without batch normalisation, at inference: what is kept as a model."""
    if not network.architecture.batch_norm:
        return network
    plain = UNet(replace(network.architecture, batch_norm=False))
    pairs = zip([*plain.down, *plain.merge], [*network.down, *network.merge], strict=True)
    for simple, double in pairs:
        steps = list(double.children())
        for number, place in enumerate(range(0, len(steps), 3)):
            weight, bias = fold(steps[place], steps[place + 1])
            target = list(simple.children())[2 * number]
            target.load_state_dict({"weight": weight, "bias": bias})
    plain.up.load_state_dict(network.up.state_dict(), strict=False)  # its biases stay 0
    plain.head.load_state_dict(network.head.state_dict())
    return plain


def crop_to(skip: Tensor, target: Tensor) -> Tensor:
    """The centre of ``skip`` (batch, c, y, x) with the spatial shape of ``target``."""
    top, left = ((a - b) // 2 for a, b in zip(skip.shape[2:], target.shape[2:], strict=True))
    return skip[:, :, top : top + target.shape[2], left : left + target.shape[3]]


def initialise(network: nn.Module) -> None:
    """Gaussian weights of standard deviation sqrt(2 / N), zero biases (paper, section 3).

    N, the number of incoming nodes of one neuron, is 9 C_in for a 3x3 convolution. A transposed 2x2 convolution of
    stride 2 gives each output pixel one pixel's channels, so N = C_in there (torch's own fan-in would count
    4 C_out = 2 C_in, and be off by sqrt(2)).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            taps = 1 if isinstance(module, nn.ConvTranspose2d) else math.prod(module.kernel_size)
            nn.init.normal_(module.weight, std=math.sqrt(2 / (taps * module.in_channels)))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _convolutions(double: nn.Module) -> Iterator[Layer]:
    return (_layer(module) for module in double.children() if isinstance(module, nn.Conv2d))


def _layer(module: nn.Module) -> Layer:
    """A torch module as one step of the walk; what is not shift-invariant or not valid has no place here."""
    match module:
        case nn.MaxPool2d(kernel_size=int(size), stride=int(stride)) if size == stride:
            return Layer("pool", (size, size))
        case nn.ConvTranspose2d() if module.kernel_size == module.stride:
            return Layer("up", (module.stride[0], module.stride[1]))
        case nn.Conv2d() if module.stride == (1, 1) and module.padding == (0, 0):
            return Layer("conv", (module.kernel_size[0], module.kernel_size[1]))
    raise TypeError(f"{module} has no footprint: only valid convolutions, pooling and up-convolutions tile exactly")
