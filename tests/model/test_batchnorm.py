from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from unetcli.core.geometry import Architecture
from unetcli.model.file import Intensity, ModelHeader, load_network, save_model
from unetcli.model.folding import fold, folded, unfolded
from unetcli.model.network import BatchNorm, UNet


def trained(depth: int = 2, steps: int = 5) -> UNet:
    """A network with batch normalisation after a few batches, with scales and shifts of all sizes and signs."""
    torch.manual_seed(3)
    network = UNet(Architecture(depth=depth, base_channels=4, in_channels=2, classes=3, batch_norm=True)).train()
    side = network.architecture.footprint().axes[0].smallest
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, BatchNorm):
                module.weight.normal_()
                module.bias.normal_()
        for _ in range(steps):
            network(3 * torch.randn(2, 2, side, side) + 1)
    return network


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_folded_equals_unfolded_at_inference(depth: int) -> None:
    network = trained(depth)
    plain = folded(network).eval()
    assert not plain.architecture.batch_norm
    assert not any(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    assert plain.architecture == replace(network.architecture, batch_norm=False)
    side = network.architecture.footprint().axes[0].side_for(9)
    x = torch.randn(1, 2, side, side)
    with torch.inference_mode():
        expected = network.eval()(x)
        difference = (plain(x) - expected).abs().max()
    assert float(difference) <= 1e-5 * float(expected.abs().max())


def test_folding_leaves_the_network_as_it_was() -> None:
    network = trained()
    before = copy.deepcopy(network.state_dict())
    folded(network)
    assert network.training
    assert all(torch.equal(before[name], values) for name, values in network.state_dict().items())


def test_a_network_without_batch_norm_is_returned_as_it_is() -> None:
    network = UNet(Architecture(depth=1, base_channels=2))
    assert folded(network) is network


def test_a_saved_model_has_no_batch_norm_and_predicts_the_same(tmp_path: Path) -> None:
    network = trained(1)
    header = ModelHeader(
        architecture=replace(network.architecture, batch_norm=False),
        class_names=("a", "b", "c"),
        intensity=Intensity(dtype="uint8", mean=0, std=1),
        provenance={},
    )
    save_model(tmp_path / "m", folded(network), header)
    loaded = load_network(tmp_path / "m")
    assert not any("running" in name for name in loaded.state_dict())
    x = torch.randn(1, 2, 20, 28)
    with torch.inference_mode():
        assert torch.allclose(loaded(x), network.eval()(x), rtol=1e-5, atol=1e-5)


def biased(depth: int) -> UNet:
    """A network without batch normalisation, with biases of all signs in every layer."""
    torch.manual_seed(4)
    network = UNet(Architecture(depth=depth, base_channels=4, in_channels=2, classes=3)).eval()
    with torch.no_grad():
        for name, values in network.named_parameters():
            if name.endswith("bias"):
                values.normal_()
    return network


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_an_unfolded_network_equals_the_folded_one_at_inference(depth: int) -> None:
    network = biased(depth)
    side = network.architecture.footprint().axes[0].side_for(9)
    tiles, other = 3 * torch.randn(2, 2, side, side) + 1, torch.randn(1, 2, side, side)
    normed = unfolded(network, tiles)
    assert normed.architecture == replace(network.architecture, batch_norm=True)
    assert normed.training
    with torch.inference_mode():
        for x in (tiles, other):
            expected = network(x)
            assert float((normed.eval()(x) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
            assert float((folded(normed).eval()(x) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_an_unfolded_network_in_training_equals_the_folded_one_on_the_tiles_it_was_unfolded_with() -> None:
    """Each batch norm then has the statistics of its batch already."""
    network = biased(2)
    side = network.architecture.footprint().axes[0].side_for(9)
    tiles = 3 * torch.randn(2, 2, side, side) + 1
    normed = unfolded(network, tiles)
    with torch.inference_mode():
        expected = network(tiles)
        assert float((normed.train()(tiles) - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
        assert float((normed.train()(tiles - 3) - network(tiles - 3)).abs().max()) > 0.1


def test_a_channel_without_variance_is_unfolded_too() -> None:
    network = biased(1)
    with torch.no_grad():
        network.down[0][0].weight[0] = 0
    tiles = torch.randn(1, 2, 28, 28)
    with torch.inference_mode():
        assert torch.allclose(unfolded(network, tiles).eval()(tiles), network(tiles), rtol=1e-4, atol=1e-4)


def test_one_process_normalises_as_torch_does() -> None:
    torch.manual_seed(0)
    module, reference = BatchNorm(3), nn.BatchNorm2d(3)
    x = torch.randn(2, 3, 5, 7)
    assert torch.equal(module(x), reference(x))
    assert torch.equal(module.running_var, reference.running_var)  # type: ignore[arg-type]


def test_a_folded_convolution_equals_convolution_and_normalisation() -> None:
    torch.manual_seed(1)
    convolution, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm.running_mean, norm.running_var = torch.randn(4), torch.rand(4) + 0.1
    x = torch.randn(1, 3, 9, 8)
    weight, bias = fold(convolution, norm)
    expected = norm.eval()(convolution(x))
    assert torch.allclose(nn.functional.conv2d(x, weight, bias), expected, rtol=1e-4, atol=1e-5)
