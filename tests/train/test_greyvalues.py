from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from unetcli.train.augment import GreyChange, change_grey, noise


def images(batch: int = 3, channels: int = 2, height: int = 21, width: int = 34) -> torch.Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1))


def changed(**strengths: float) -> tuple[torch.Tensor, torch.Tensor]:
    """One image before and after."""
    before = images(1)
    return before, change_grey(before.clone(), [GreyChange(**strengths)])  # type: ignore[arg-type]


def test_contrast_is_a_factor_and_brightness_is_added() -> None:
    before, after = changed(contrast=1.5, brightness=-0.25)
    assert torch.allclose(after, before * 1.5 - 0.25)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.2])
def test_blur_is_a_gaussian_mirrored_at_the_edges(sigma: float) -> None:
    before, after = changed(blur=sigma)
    reach = int(np.ceil(3 * sigma))
    expected = gaussian_filter(before.numpy(), (0, 0, sigma, sigma), mode="mirror", radius=(0, 0, reach, reach))
    assert np.allclose(after.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("gamma", [0.6, 0.9, 1.2, 2.0])
def test_gamma_bends_like_a_power_within_the_range_of_each_channel(gamma: float) -> None:
    before, after = changed(gamma=gamma)
    for one, other in zip(before[0], after[0], strict=True):
        low, high = one.min(), one.max()
        assert torch.allclose(torch.stack([other.min(), other.max()]), torch.stack([low, high]), atol=1e-5)
        tone, bent = ((values - low) / (high - low) for values in (one, other))
        assert (bent - tone**gamma).abs().max() < 0.2 * abs(np.log(gamma))
        order = one.flatten().argsort()
        assert (other.flatten()[order].diff() > -1e-5).all()
        assert ((bent - tone).mean() > 0) == (gamma < 1)


def test_gamma_leaves_a_uniform_image_as_it_is() -> None:
    uniform = torch.full((1, 1, 5, 8), 3.0)
    assert torch.equal(change_grey(uniform.clone(), [GreyChange(gamma=2.0)]), uniform)


def test_noise_has_the_standard_deviation_asked_for_and_differs_by_seed() -> None:
    added = [after - before for before, after in (changed(noise=0.3, seed=seed) for seed in (5, 5, 6))]
    assert torch.equal(added[0], added[1])
    assert abs(float(added[0].std()) - 0.3) < 0.02
    assert abs(float(added[0].mean())) < 0.03
    assert abs(float(torch.corrcoef(torch.stack([added[0].flatten(), added[2].flatten()]))[0, 1])) < 0.1


def test_channels_get_noise_of_their_own() -> None:
    one, other = noise(images(1)[0], 3)
    assert abs(float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])) < 0.1


def test_a_sample_changes_alone_as_among_others_and_neutral_ones_do_not_change() -> None:
    changes = [
        GreyChange(blur=1.7, noise=0.1, seed=1),
        GreyChange(),
        GreyChange(gamma=1.3, blur=0.4),
        GreyChange(contrast=0.8, brightness=0.1, gamma=0.7),
    ]
    before = images(4)
    together = change_grey(before.clone(), changes)
    assert torch.equal(together[1], before[1])
    for number, change in enumerate(changes):
        assert torch.equal(change_grey(before[number : number + 1].clone(), [change])[0], together[number])
