"""The U-Net of Ronneberger, Fischer and Brox (2015), and choice of the device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from unetcli.core.arrays import PerChannel
from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Architecture, Layer
from unetcli.core.process import cpu_threads as cpu_threads


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation over a batch that may be divided among processes (``torch.nn.SyncBatchNorm`` needs GPUs)."""

    processes = 1
    """Number of processes that each hold a part of the batch. Not taken from ``torch.distributed``: one of several
    processes may train a network alone, for example to measure its speed."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.processes == 1:
            return super().forward(x)
        values, pixels = x.float(), x.numel() // x.shape[1] * self.processes
        mean = _total(values.sum((0, 2, 3))) / pixels  # (c,)
        centred = values - mean[:, None, None]
        variance = _total(centred.square().sum((0, 2, 3))) / pixels
        self._remember(mean.detach(), variance.detach() * pixels / max(pixels - 1, 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics, which inference uses, as ``torch.nn.BatchNorm2d`` does."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked.add_(1)


class _Total(torch.autograd.Function):
    """Sum over all processes. Each process contributes to every sum, so gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def _total(values: Tensor) -> Tensor:
    return _Total.apply(values)  # type: ignore[no-any-return,no-untyped-call]


def resolve_device(name: str | None, local_rank: int = 0) -> torch.device:
    """The torch device of a name, or by default a GPU if there is one, else the CPU.

    Parameters
    ----------
    name : {"cpu", "cuda", "cuda:1", "1", "mps", "auto"} or None
        None means auto.
    local_rank : number of this process among those on the host
        Each process takes the GPU of its number if ``cuda`` is named or chosen.

    Raises
    ------
    UnetcliError
        The device does not exist on this machine.
    """
    if name in (None, "auto"):
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local_rank:
        name = str(local_rank)
    try:
        device = torch.device(f"cuda:{name}" if str(name).isdigit() else str(name))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UnetcliError(f"--device {name}: not available ({str(error).splitlines()[0]}); cpu works") from error
    return device


def require_precision(device: torch.device, precision: str) -> None:
    """Raise :class:`UnetcliError` if a GPU only emulates the precision, which is slow and gives other results."""
    if precision == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        name = torch.cuda.get_device_name(device)
        raise UnetcliError(f"--precision bfloat16: not supported by {name} (needs Ampere or later); float32 works")


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device supports bfloat16 in hardware, so that it is faster than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(False))
    return device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU, in bytes."""
    return int(torch.cuda.mem_get_info(device)[0])


def exact_float32() -> None:
    """Disable TF32 and nondeterministic kernels, so that results on a GPU do not depend on the tiles."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def channelwise(values: PerChannel, device: torch.device) -> torch.Tensor | float:
    """Values per channel as (c, 1, 1) on a device, to be combined with images (.., c, y, x); a number is unchanged."""
    return values if isinstance(values, int | float) else torch.tensor(values, device=device)[:, None, None]


def on_device(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to a device, in channels-last memory format: about 1.8 times as fast in inference on a CPU."""
    network.to(device)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


class DoubleConv(nn.Sequential):
    """Two valid 3x3 convolutions, each followed by a ReLU, with batch normalisation before each ReLU if requested."""

    def __init__(self, channels_in: int, channels: int, *, batch_norm: bool = False) -> None:
        steps: list[nn.Module] = []
        for width in (channels_in, channels):
            steps.append(nn.Conv2d(width, channels, kernel_size=3, bias=not batch_norm))
            steps += [BatchNorm(channels)] if batch_norm else []
            steps.append(nn.ReLU(inplace=True))
        super().__init__(*steps)


class UNet(nn.Module):
    """U-Net with valid convolutions: ``(batch, c, y, x)`` to ``(batch, classes, y - 2*context, x - 2*context)`` logits.

    With batch normalisation only the head has biases: any other bias is cancelled when the mean is subtracted, and
    Adam would move it at random.
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
        """Logits of a batch.

        Parameters
        ----------
        x : (batch, c, y, x), float32
            Normalised grey values; y and x must be valid sides.
        keep : (batch, channels, 1, 1), float32, optional
            Factors of the feature maps at the end of the contracting path, for dropout. The caller draws them, so
            that those of a sample do not depend on its batch or process. Default: no dropout.

        Returns
        -------
        (batch, classes, y - 2*context, x - 2*context), float32
        """
        skips = []
        for level, double in enumerate(self.down):
            x = double(x if level == 0 else self.pool(x))  # (batch, base * 2^level, y - 4, x - 4)
            skips.append(x)
        x = skips.pop() if keep is None else skips.pop() * keep
        for up, double in zip(self.up, self.merge, strict=True):
            x = up(x)  # (batch, c/2, 2y, 2x)
            skip = crop_to(skips.pop(), x)  # (batch, c/2, 2y, 2x), cropped by the context lost below this level
            x = double(torch.cat([skip, x], dim=1))  # (batch, c/2, 2y - 4, 2x - 4)
        return self.head(x)  # type: ignore[no-any-return]  # (batch, classes, y, x)

    def layers(self) -> Iterator[Layer]:
        """Layers along the deepest path, derived from the modules; :class:`Footprint` follows from them."""
        for level, double in enumerate(self.down):
            if level:
                yield _layer(self.pool)
            yield from _convolutions(double)
        for up, double in zip(self.up, self.merge, strict=True):
            yield _layer(up)
            yield from _convolutions(double)
        yield _layer(self.head)


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
    """The footprint layer of a torch module.

    Raises
    ------
    TypeError
        The module is not shift-invariant or pads its input, so that tiles would not be exact.
    """
    match module:
        case nn.MaxPool2d(kernel_size=int(size), stride=int(stride)) if size == stride:
            return Layer("pool", (size, size))
        case nn.ConvTranspose2d() if module.kernel_size == module.stride:
            return Layer("up", (module.stride[0], module.stride[1]))
        case nn.Conv2d() if module.stride == (1, 1) and module.padding == (0, 0):
            return Layer("conv", (module.kernel_size[0], module.kernel_size[1]))
    raise TypeError(f"{module} has no footprint: only valid convolutions, pooling and up-convolutions tile exactly")
