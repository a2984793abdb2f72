"""Training on a GPU: recorded passes change nothing, and an interrupted training ends in the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from train.scenes import write_discs

from unetcli import api
from unetcli.model.network import exact_float32
from unetcli.train import optim
from unetcli.train.folder import Checkpoint

pytestmark = pytest.mark.gpu
SMALL = {"depth": 2, "base_channels": 16, "tile": 108, "device": "cuda", "validate_every": 5}


def trained(place: Path, output: str, recipe: str, steps: int) -> dict[str, torch.Tensor]:
    exact_float32()
    pair = (str(place / "raw.zarr"), str(place / "labels.zarr"))
    api.train(pair=(pair,), output=place / output, recipe=recipe, steps=steps, **SMALL)
    return Checkpoint.load(place / output / "checkpoint.pt").network


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("recipe", ["fast", "paper"])
def test_recorded_passes_give_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    write_discs(tmp_path)
    recorded = trained(tmp_path, "recorded", recipe, 12)
    monkeypatch.setattr(optim, "recorded", lambda network, arguments, precision: network)
    assert same(recorded, trained(tmp_path, "plain", recipe, 12))


@pytest.mark.parametrize("recipe", ["fast", "paper"])
def test_a_training_that_goes_on_ends_in_the_weights_of_one_that_was_not_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    write_discs(tmp_path)
    straight = trained(tmp_path, "straight", recipe, 12)
    step, taken = optim.Learner.step, []

    def interrupted(self: optim.Learner, batch: optim.Batch, number: int) -> torch.Tensor:
        taken.append(number)
        if len(taken) == 8:
            raise KeyboardInterrupt
        return step(self, batch, number)

    monkeypatch.setattr(optim.Learner, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, "resumed", recipe, 12)
    assert same(straight, trained(tmp_path, "resumed", recipe, 12))
