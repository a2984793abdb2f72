from __future__ import annotations

import pytest
import torch
from torch import nn

from unetcli.core.geometry import Architecture, Footprint
from unetcli.model.network import UNet


@pytest.fixture(scope="module")
def paper() -> UNet:
    torch.manual_seed(0)
    return UNet(Architecture())


def test_the_paper_s_network_has_its_parameters_and_layers(paper: UNet) -> None:
    convolutions = [m for m in paper.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert sum(p.numel() for p in paper.parameters()) == 31_030_658
    assert len(convolutions) == 23


def test_the_paper_s_tile_of_572_gives_388() -> None:
    narrow = UNet(Architecture(base_channels=1))  # the width does not affect the geometry
    with torch.inference_mode():
        assert narrow(torch.zeros(1, 1, 572, 572)).shape == (1, 2, 388, 388)


@pytest.mark.parametrize("depth", range(5))
def test_the_modules_have_the_footprint_that_the_architecture_states(depth: int) -> None:
    network = UNet(Architecture(depth=depth, base_channels=2))
    assert Footprint.from_layers(network.layers()) == network.architecture.footprint()


@pytest.mark.parametrize("depth", range(4))
def test_exactly_the_valid_sides_pass(depth: int) -> None:
    network = UNet(Architecture(depth=depth, base_channels=1))
    axis = network.architecture.footprint().axes[0]
    with torch.inference_mode():
        for side in range(axis.smallest, axis.smallest + 3 * axis.alignment, axis.alignment):
            assert network(torch.zeros(1, 1, side, axis.smallest)).shape[2] == axis.output(side)


def test_feature_maps_keep_about_unit_variance(paper: UNet) -> None:
    """Weights of deviation sqrt(2 / N) keep the variance of feature maps near 1 (He et al. 2015).

    A wrong fan-in of the up-convolutions (off by sqrt(2) each) would halve their variance, 16-fold over four levels.
    """
    torch.manual_seed(1)
    seen: dict[str, float] = {}
    for name, module in paper.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and name != "head":
            module.register_forward_hook(
                lambda m, inputs, output, name=name: seen.update(
                    {name: float(output.square().mean() / (2 * inputs[0].square().mean()))}
                )
            )
    with torch.inference_mode():
        paper.eval()(torch.randn(1, 1, 188, 188))
    # E[y^2] = 2 E[x^2] for both kinds: N incoming nodes of variance 2/N each.
    assert all(abs(ratio - 1) < 0.25 for ratio in seen.values()), seen
    assert len(seen) == 22


def test_weights_are_gaussian_with_the_paper_s_deviation(paper: UNet) -> None:
    for module in paper.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            expected = (2 / (9 * module.in_channels)) ** 0.5
        elif isinstance(module, nn.ConvTranspose2d):
            expected = (2 / module.in_channels) ** 0.5
        else:
            continue
        assert float(module.weight.detach().std()) == pytest.approx(expected, rel=0.02)


def test_dropout_uses_the_given_factors_only() -> None:
    network = UNet(Architecture(depth=1, base_channels=8))
    x, keep = torch.randn(2, 1, 40, 40), torch.ones(2, 16, 1, 1)
    with torch.inference_mode():
        plain = network.train()(x)
        assert torch.equal(plain, network(x))
        assert torch.equal(plain, network(x, keep))
        keep[0, 3] = 0
        dropped = network(x, keep)
        assert not torch.equal(plain[0], dropped[0])
        assert torch.equal(plain[1], dropped[1])  # the factors are per sample


def test_a_padded_convolution_has_no_footprint() -> None:
    network = UNet(Architecture(depth=1, base_channels=2))
    network.head = nn.Conv2d(2, 2, kernel_size=3, padding=1)
    with pytest.raises(TypeError, match="tile exactly"):
        list(network.layers())
