"""Calibration of logits, and the same calibration inside a network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Architecture
from unetcli.model.calibration import Calibration
from unetcli.model.folding import calibrated
from unetcli.model.network import UNet


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=0))
    return powers / powers.sum(axis=0)


def test_probabilities_are_those_of_scaled_and_shifted_logits() -> None:
    logits = np.random.default_rng(1).normal(0, 6, (3, 40, 50))
    found = Calibration(scale=0.7, shift=(0.3, -1.0, 0.2), method="").apply(softmax(logits).astype(np.float32))
    expected = softmax(0.7 * logits + np.array([0.3, -1.0, 0.2]).reshape(3, 1, 1))
    assert np.abs(found - expected).max() < 1e-5


def test_a_probability_of_0_and_1_stays() -> None:
    found = Calibration(scale=0.5, shift=(3.0, -3.0), method="").apply(np.array([[0.0, 1.0], [1.0, 0.0]], np.float32))
    assert found.round(6).tolist() == [[0.0, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize("classes", [2, 3])
def test_a_calibrated_network_has_the_calibrated_logits_and_the_other_is_unchanged(classes: int) -> None:
    torch.manual_seed(0)
    network = UNet(Architecture(depth=2, base_channels=4, classes=classes)).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    shift = tuple(float(k) for k in range(classes))
    with torch.no_grad():
        image = torch.randn(1, 1, 60, 60)
        plain, changed = network(image), calibrated(network, Calibration(scale=1.7, shift=shift, method=""))(image)
    assert torch.allclose(changed, 1.7 * plain + torch.tensor(shift).view(-1, 1, 1), atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("values", [{"scale": 0.0}, {"scale": float("nan")}, {"shift": (0.0, float("inf"))}], ids=str)
def test_a_record_of_other_numbers_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(UnetcliError, match="expected a scale above 0 and finite numbers"):
        Calibration(**{"scale": 1.0, "shift": (0.0, 0.0), "method": "", **values})
