"""Batch normalisation folded into the convolutions of a saved model, or unfolded to train on; calibration of logits."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from unetcli.model.calibration import Calibration
from unetcli.model.network import UNet


@torch.no_grad()
def fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of one convolution that equals a convolution followed by batch normalisation at inference.

    Parameters
    ----------
    convolution, norm
        The norm must have running statistics.

    Returns
    -------
    weight : (out, in, y, x)
    bias : (out,)
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)  # (c,)
    shift = norm.running_mean if convolution.bias is None else norm.running_mean - convolution.bias
    bias = norm.bias - shift * scale
    return convolution.weight * scale[:, None, None, None], bias


@torch.no_grad()
def folded(network: UNet) -> UNet:
    """An equivalent network for inference without batch normalisation; this is what a model file contains.

    A network without batch normalisation is returned as it is.
    """
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
    plain.up.load_state_dict(network.up.state_dict(), strict=False)  # the biases of ``plain`` stay 0
    plain.head.load_state_dict(network.head.state_dict())
    return plain


@torch.no_grad()
def unfolded(network: UNet, tiles: Tensor) -> UNet:
    """A network with batch normalisation that equals a network without, at inference; the inverse of :func:`folded`.

    Any statistics can be unfolded: scale and shift follow from them. Those of the features of some training tiles are
    taken, so that in training, where a batch is normalised with its own statistics, little changes either.

    Parameters
    ----------
    network : UNet
        Network without batch normalisation, on the device of the tiles.
    tiles : (batch, c, y, x), float32
        Normalised images.

    Returns
    -------
    UNet
        On the CPU, in training mode.
    """
    statistics = feature_statistics(network, tiles)
    normed = UNet(replace(network.architecture, batch_norm=True))
    normed.head.load_state_dict(network.head.state_dict())
    for target, up in zip(normed.up, network.up, strict=True):
        target.load_state_dict({"weight": up.weight})
    for target, convolution, norm, shift in _places(network, normed):
        variance, mean = (values.cpu() for values in statistics[convolution])
        assert convolution.bias is not None
        target.load_state_dict({"weight": convolution.weight})
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.copy_(mean)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(mean - convolution.bias.cpu() - shift.cpu())
        norm.running_var.copy_(variance)
    return normed


def feature_statistics(network: UNet, tiles: Tensor) -> dict[nn.Conv2d, tuple[Tensor, Tensor]]:
    """Variance and mean of the result of each convolution before its ReLU, (channels,) each, over a batch of tiles."""
    found: dict[nn.Conv2d, tuple[Tensor, Tensor]] = {}

    def keep(convolution: nn.Module, _: object, result: Tensor) -> None:
        assert isinstance(convolution, nn.Conv2d)
        found[convolution] = torch.var_mean(result.float(), dim=(0, 2, 3), correction=0)

    hooks = [each.register_forward_hook(keep) for each in network.modules() if isinstance(each, nn.Conv2d)]
    with torch.no_grad():
        network.eval()(tiles)
    for hook in hooks:
        hook.remove()
    return found


def _places(network: UNet, normed: UNet) -> Iterator[tuple[nn.Conv2d, nn.Conv2d, nn.BatchNorm2d, Tensor]]:
    """Yield each convolution to fill, the one of the network without batch norm, the norm, and a shift of its input.

    Up-convolutions before a batch norm have no bias. What a bias of the network adds to the input of the next
    convolution adds a constant to its result, everywhere, since convolutions are valid; this is the shift.
    """
    ups = [None] * len(network.down) + list(network.up)
    doubles = zip([*network.down, *network.merge], [*normed.down, *normed.merge], ups, strict=True)
    for plain, double, up in doubles:
        old, new = list(plain.children()), list(double.children())
        for number in (0, 1):
            convolution = old[2 * number]
            shift = torch.zeros_like(convolution.bias)
            if up is not None and number == 0:  # the input is the skip connection, then the result of ``up``
                assert isinstance(up.bias, Tensor)
                shift = convolution.weight[:, -len(up.bias) :].sum((2, 3)) @ up.bias
            yield new[3 * number], convolution, new[3 * number + 1], shift


@torch.no_grad()
def calibrated(network: UNet, calibration: Calibration) -> UNet:
    """A copy of a network whose logits are scaled and shifted: both are in the weights of the last layer."""
    copied = copy.deepcopy(network)
    head = copied.head
    assert head.bias is not None
    head.weight.copy_(head.weight.cpu().double() * calibration.scale)  # on the CPU: some devices have no float64
    head.bias.copy_(head.bias.cpu().double() * calibration.scale + torch.tensor(calibration.shift).double())
    return copied
