"""The network for inference on a GPU computes what the plain network computes; this needs no GPU."""

from __future__ import annotations

import pytest
import torch

from unetcli.core.geometry import Architecture
from unetcli.model.inference import InferenceUNet, copy_pixels, max_pool, patches
from unetcli.model.network import UNet

CPU = torch.device("cpu")


def network(**architecture: int) -> UNet:
    """A network in which every weight and bias counts."""
    torch.manual_seed(1)
    found = UNet(Architecture(dropout=0.0, **architecture)).eval()
    for values in found.parameters():
        if values.ndim == 1:
            torch.nn.init.normal_(values, std=0.5)
    return found


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("base", [4, 16])
@pytest.mark.parametrize("classes", [2, 5])
def test_probabilities_are_those_of_the_plain_network(channels: int, base: int, classes: int) -> None:
    plain = network(in_channels=channels, base_channels=base, classes=classes, depth=2)
    x = torch.randn(2, channels, 60, 76)
    with torch.inference_mode():
        expected = plain(x).softmax(1)
    found = InferenceUNet(plain, torch.float32, CPU)(x)
    assert found.shape == expected.shape
    assert (found.softmax(1) - expected).abs().max() < 2e-5


def test_bfloat16_is_as_near_to_float32_as_that_of_the_plain_network() -> None:
    plain = network(base_channels=16, depth=2)
    x = torch.randn(1, 1, 140, 140)
    with torch.inference_mode():
        exact = plain(x)
        with torch.autocast("cpu", torch.bfloat16):
            usual = (plain(x).float() - exact).square().mean().sqrt()
    found = InferenceUNet(plain, torch.bfloat16, CPU)(x)
    assert found.dtype == torch.float32
    assert (found - exact).square().mean().sqrt() < 1.2 * usual


def test_a_neighbourhood_has_the_pixels_of_a_convolution_and_zeros_beyond_the_edge() -> None:
    x = torch.arange(40.0).view(1, 1, 5, 8)
    found = patches(x).view(3, 6, 4, 4)
    assert torch.equal(found[1, 2, :3, :3], x[0, 0, 1:4, 2:5])
    assert torch.equal(found[2, :, 3], torch.zeros(6, 4))
    assert torch.equal(found[:, 5, :, 3], torch.zeros(3, 4))


def test_pooling_takes_the_largest_of_four() -> None:
    x = torch.randn(2, 3, 6, 10).contiguous(memory_format=torch.channels_last)
    assert torch.equal(max_pool(x), torch.nn.functional.max_pool2d(x, 2))


@pytest.mark.parametrize("channels", [4, 8, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pixels_are_copied_whatever_the_number_of_channels(channels: int, dtype: torch.dtype) -> None:
    source, target = torch.randn(9, 9, channels).to(dtype), torch.zeros(6, 6, 2 * channels, dtype=dtype)
    copy_pixels(source[2:8, 1:7], target[..., channels:])
    assert torch.equal(target[..., channels:], source[2:8, 1:7])
    assert not target[..., :channels].any()
