"""The network for inference on a GPU: the function of :class:`UNet`, with fewer passes over the device's memory.

The plain network spends half of its time on an H100 on passes over the feature maps of the first levels: ReLUs, biases,
crops and concatenations. Here

- each ReLU and bias is applied by the kernel of its convolution (cuDNN);
- the first convolution, which has few channels, is one matrix product of the neighbourhoods of all pixels;
- an up-convolution is one matrix product, written straight to its half of the maps that are convolved next;
- its bias is part of the bias of that convolution, which is exact: a valid convolution sees it at every tap;
- crops and upsampled maps are copied 16 bytes at a time;
- the head's logits are float32 in any precision.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from unetcli.model.network import UNet, crop_to

PATCH = 4
"""Side of the neighbourhoods of the first convolution: 3, enlarged so that rows of the matrix are aligned."""
ALIGNED = 8
"""Columns of a matrix to which the classes are filled up."""
UNIT = torch.complex128
"""A type of 16 bytes, the largest unit that a thread of a GPU copies."""
MOST_PATCH_CHANNELS = 3
"""Input channels up to which neighbourhoods are faster than a convolution."""


class InferenceUNet:
    """A trained network without batch normalisation, prepared for inference in one precision.

    Parameters
    ----------
    network : UNet
        Its weights are copied.
    dtype : torch.dtype
        Of weights and feature maps: float32, bfloat16 or float16.
    device : torch.device
    """

    def __init__(self, network: UNet, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        first, second = _pairs(network.down[0])
        self.first = FirstConvolution(*first, dtype, device)
        doubles = [[second], *map(_pairs, list(network.down)[1:])]
        self.down = [_laid_out(double, dtype, device) for double in doubles]
        self.up = [UpConvolution(up.weight, dtype, device) for up in _ups(network)]
        merged = zip(network.merge, _ups(network), strict=True)
        self.merge = [_laid_out(_with_bias_of(double, up), dtype, device) for double, up in merged]
        self.head = Head(network.head, dtype, device)

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """Logits of a batch.

        Parameters
        ----------
        x : (batch, c, y, x), float32
            Normalised grey values; y and x must be valid sides.

        Returns
        -------
        (batch, classes, y - 2*context, x - 2*context), float32
        """
        x = self.first(x.to(self.dtype))
        skips: list[Tensor] = []
        for level, layers in enumerate(self.down):
            x = convolve(x if level == 0 else max_pool(x), layers)
            skips.append(x)
        x = skips.pop()
        for up, layers in zip(self.up, self.merge, strict=True):
            x = convolve(up(skips.pop(), x), layers)
        return self.head(x)


Layers = list[tuple[Tensor, Tensor]]
"""Weight (out, in, y, x) and bias (out,) of each convolution."""


def _pairs(double: nn.Module) -> Layers:
    """Weights and biases of the convolutions of a module."""
    convolutions = [m for m in double.children() if isinstance(m, nn.Conv2d)]
    return [(m.weight, m.bias) for m in convolutions if m.bias is not None]


def _ups(network: UNet) -> list[nn.ConvTranspose2d]:
    return [up for up in network.up if isinstance(up, nn.ConvTranspose2d)]


@torch.no_grad()
def _with_bias_of(double: nn.Module, up: nn.ConvTranspose2d) -> Layers:
    """Weights and biases of the convolutions, with the effect of the up-convolution's bias in the first bias.

    The upsampled maps are the second half of the input channels.
    """
    assert up.bias is not None
    (weight, bias), second = _pairs(double)
    taps = weight[:, weight.shape[1] // 2 :].double().sum((2, 3))  # (out, c)
    return [(weight, (bias.double() + taps @ up.bias.double()).to(bias.dtype)), second]


def _laid_out(layers: Layers, dtype: torch.dtype, device: torch.device) -> Layers:
    """Layers on the device, weights in channels-last memory format."""
    return [
        (
            weight.detach().to(device, dtype).contiguous(memory_format=torch.channels_last),
            bias.detach().to(device, dtype),
        )
        for weight, bias in layers
    ]


def convolve(x: Tensor, layers: Layers) -> Tensor:
    """Valid convolutions, each followed by a ReLU."""
    for weight, bias in layers:
        x = conv_relu(x, weight, bias)
    return x


def conv_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A valid convolution and ReLU: one kernel on a GPU, in a short type."""
    if x.is_cuda and x.dtype != torch.float32:  # in float32 cuDNN chose kernels that took 72 GB for a tile of 1212
        return torch.cudnn_convolution_relu(x, weight, bias, (1, 1), (0, 0), (1, 1), 1)
    return functional.conv2d(x, weight, bias).relu_()


class FirstConvolution:
    """The first 3x3 convolution and its ReLU."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, device: torch.device) -> None:
        ((self.weight, self.bias),) = _laid_out([(weight, bias)], dtype, device)
        padded = functional.pad(weight.detach(), (0, PATCH - 3, 0, PATCH - 3))
        self.matrix = padded.flatten(1).T.contiguous().to(device, dtype)  # (c * PATCH^2, out)

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[1] > MOST_PATCH_CHANNELS:
            return conv_relu(x.contiguous(memory_format=torch.channels_last), self.weight, self.bias)
        batch, _, height, width = x.shape
        rows = patches(x).view(-1, len(self.matrix))
        product = torch._addmm_activation(self.bias, rows, self.matrix)  # with its ReLU
        return product.view(batch, height - 2, width - 2, -1).permute(0, 3, 1, 2)


def patches(x: Tensor) -> Tensor:
    """The neighbourhood of each output pixel of a valid 3x3 convolution, with a row and a column more.

    Parameters
    ----------
    x : (batch, c, y, x)

    Returns
    -------
    (batch, y - 2, x - 2, c * PATCH^2)
        Order of the last axis: channels, rows, columns. Zeros lie beyond the last row and column.
    """
    padded = functional.pad(x, (0, PATCH - 3, 0, PATCH - 3)).contiguous()
    windows = padded.unfold(2, PATCH, 1).unfold(3, PATCH, 1)  # (batch, c, y - 2, x - 2, PATCH, PATCH), a view
    return windows.permute(0, 2, 3, 1, 4, 5).flatten(3)


class UpConvolution:
    """Crop of the skip, and a 2x2 up-convolution of stride 2, without its bias, beside it."""

    def __init__(self, weight: Tensor, dtype: torch.dtype, device: torch.device) -> None:
        taps = weight.detach().permute(0, 2, 3, 1)  # (in, 2, 2, out)
        self.matrix = taps.flatten(1).contiguous().to(device, dtype)  # (in, 4 * out)

    def __call__(self, skip: Tensor, x: Tensor) -> Tensor:
        """Channels of the skip (batch, c/2, ..), then those of the up-convolution: (batch, c, 2y, 2x)."""
        batch, channels, height, width = x.shape
        half = self.matrix.shape[1] // 4
        shape = (batch, 2 * half, 2 * height, 2 * width)
        merged = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        copy_pixels(crop_to(skip, merged).permute(0, 2, 3, 1), merged[:, :half].permute(0, 2, 3, 1))
        pixels = x.permute(0, 2, 3, 1).reshape(-1, channels) @ self.matrix  # (batch * y * x, 4 * out)
        taps = pixels.view(batch, height, width, 2, 2, half)
        upsampled = merged.permute(0, 2, 3, 1)[..., half:].view(batch, height, 2, width, 2, half)
        copy_pixels(taps.transpose(2, 3), upsampled)
        return merged


def copy_pixels(source: Tensor, target: Tensor) -> None:
    """Copy maps whose last axis, the channels, is contiguous: 16 bytes at a time where the channels fill them."""
    if source.shape[-1] * source.element_size() % UNIT.itemsize == 0:
        source, target = source.view(UNIT), target.view(UNIT)
    target.copy_(source)


def max_pool(x: Tensor) -> Tensor:
    """2x2 max-pooling of stride 2; both sides are even."""
    batch, channels, height, width = x.shape
    windows = x.permute(0, 2, 3, 1).view(batch, height // 2, 2, width // 2, 2, channels)
    return windows.amax((2, 4)).permute(0, 3, 1, 2)


class Head:
    """The 1x1 convolution to classes."""

    def __init__(self, head: nn.Conv2d, dtype: torch.dtype, device: torch.device) -> None:
        assert head.bias is not None
        weight = head.weight.detach().flatten(1).T  # (in, classes)
        self.classes = weight.shape[1]
        self.matrix = functional.pad(weight, (0, -self.classes % ALIGNED)).contiguous().to(device, dtype)
        self.bias = head.bias.detach().to(device)

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (batch, classes, y, x), float32."""
        rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        logits = product(rows, self.matrix)[:, : self.classes] + self.bias
        return logits.view(x.shape[0], *x.shape[2:], self.classes).permute(0, 3, 1, 2)


def product(rows: Tensor, matrix: Tensor) -> Tensor:
    """Matrix product in float32; the sums of a GPU are not rounded to a shorter type before."""
    if rows.is_cuda and rows.dtype != torch.float32 and hasattr(torch.ops.aten.mm, "dtype"):
        return torch.mm(rows, matrix, out_dtype=torch.float32)  # since torch 2.8
    return (rows @ matrix).float()
