"""One step of network and optimiser, against the same written out plainly."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from train.scenes import annotated, corpus, discs

from unetcli.core.errors import UnetcliError
from unetcli.core.footprint import Architecture
from unetcli.model.batchnorm import BatchNorm
from unetcli.model.network import UNet
from unetcli.train.augmentation import Augmentation
from unetcli.train.learner import LEAST_WEIGHT, Batch, Learner, batches, create_optimizer
from unetcli.train.recipes import Optimisation
from unetcli.train.sampling import Sampler
from unetcli.train.settings import TrainingConfig
from unetcli.train.survey import survey
from unetcli.train.targets import TruthRules
from unetcli.train.world import World, require_divisible

CPU = torch.device("cpu")
RAW, LABELS = discs()
CORPUS = corpus(annotated(RAW, LABELS, truth="binary", w0=10.0))
FOUND = survey(CORPUS)
CONFIG = TrainingConfig(
    recipe="paper",
    architecture=Architecture(depth=1, base_channels=4),
    tile=44,
    rules=TruthRules(truth="binary"),
    keep_empty=False,
    balance=True,
    sections=((0, 8),),
    validation=((8, 8),),
    augmentation=Augmentation(),
    optimisation=Optimisation(
        optimizer="sgd",
        learning_rate=0.01,
        momentum=0.9,
        weight_decay=0.0,
        schedule="constant",
        warm_up=0,
        clip=None,
        ema=0.0,
        batch_size=2,
        steps=None,
    ),
    precision="float32",
    select="pixel_disagreement",
    validate_every=10,
    seed=5,
    channel=None,
    device="cpu",
    data=("",),
)


def configured(**changes: Any) -> TrainingConfig:
    """With another optimisation."""
    return replace(CONFIG, optimisation=replace(CONFIG.optimisation, **changes))


def started(config: TrainingConfig = CONFIG) -> tuple[Learner, list[Batch]]:
    """A learner and the batches of three steps."""
    learner = Learner(config, FOUND, CPU, World())
    sampler = Sampler(CORPUS, config.tile, 28, config.augmentation, config.seed)
    return learner, list(batches(learner, sampler, range(3)))


def plain_loss(network: UNet, batch: Batch) -> torch.Tensor:
    """The weighted mean over the batch's pixels."""
    weights = torch.tensor(FOUND.class_weights(balance=True))[batch.classes] + batch.raised
    losses = torch.nn.functional.cross_entropy(network(batch.images, batch.keep), batch.classes, reduction="none")
    return (losses * weights).sum() / weights.sum()


def weights(network: UNet) -> list[torch.Tensor]:
    return [values.detach().clone() for values in network.parameters()]


@pytest.mark.parametrize(
    "change",
    [{}, {"clip": 1e-3}, {"schedule": "cosine", "steps": 5, "warm_up": 2}, {"optimizer": "adamw", "weight_decay": 0.1}],
    ids=["constant", "clipped", "warm-up and cosine", "adamw"],
)
def test_steps_equal_those_written_out(change: dict[str, Any]) -> None:
    config = configured(**change)
    learner, items = started(config)
    network = copy.deepcopy(learner.network)
    optimizer = create_optimizer(config.optimisation, network)
    for number, batch in enumerate(items):
        loss = learner.step(batch, number)
        for group in optimizer.param_groups:
            group["lr"] = config.optimisation.rate(number)
        optimizer.zero_grad()
        expected = plain_loss(network, batch)
        expected.backward()
        if config.optimisation.clip:
            torch.nn.utils.clip_grad_norm_(network.parameters(), config.optimisation.clip)
        optimizer.step()
        assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    for one, other in zip(weights(learner.network), weights(network), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-7)


def test_the_average_follows_the_weights_by_its_formula() -> None:
    """decay = min(ema, (1 + n) / (10 + n)); what is judged and kept is the average."""
    learner, items = started(configured(ema=0.25))
    expected = weights(learner.network)
    for number, batch in enumerate(items):
        learner.step(batch, number)
        decay = min(0.25, (1 + number) / (10 + number))
        expected = [decay * a + (1 - decay) * w for a, w in zip(expected, weights(learner.network), strict=True)]
    for one, other in zip(weights(learner.kept), expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(a, b) for a, b in zip(weights(learner.kept), weights(learner.network), strict=True))


def test_without_an_average_the_weights_themselves_are_kept() -> None:
    learner, _ = started()
    assert learner.kept is learner.network


def test_statistics_of_batch_normalisation_are_averaged_too() -> None:
    config = configured(ema=0.5)
    learner, items = started(replace(config, architecture=replace(config.architecture, batch_norm=True)))
    for number, batch in enumerate(items):
        learner.step(batch, number)
    norms = [[m for m in network.modules() if isinstance(m, BatchNorm)] for network in (learner.kept, learner.network)]
    for averaged, last in zip(*norms, strict=True):
        assert averaged.running_mean is not None
        assert last.running_mean is not None
        assert not torch.equal(averaged.running_mean, last.running_mean)
        assert averaged.running_mean.abs().sum() > 0


def test_weights_stay_float32_and_finite_in_bfloat16() -> None:
    learner, items = started(replace(CONFIG, precision="bfloat16"))
    for number, batch in enumerate(items):
        assert torch.isfinite(learner.step(batch, number))
    assert all(values.dtype == torch.float32 for values in learner.network.parameters())


def test_a_batch_is_its_samples_whatever_they_are_batched_with() -> None:
    learner, items = started()
    sampler = Sampler(CORPUS, CONFIG.tile, 28, CONFIG.augmentation, CONFIG.seed)
    alone = learner.batch([sampler.sample(3)], [sampler.keep(3, 8, 0.5)])
    for name in ("images", "classes", "raised", "keep"):
        assert torch.equal(getattr(items[1], name)[1:], getattr(alone, name)), name


def test_images_are_normalised_by_the_training_images() -> None:
    plain = replace(CONFIG, augmentation=Augmentation.none())
    items = started(plain)[1]
    sampler = Sampler(CORPUS, 44, 28, plain.augmentation, plain.seed)
    grey = np.stack([sampler.sample(number).image for number in (0, 1)]).astype(np.float32)
    assert torch.allclose(items[0].images, torch.from_numpy((grey - FOUND.mean) / FOUND.std), atol=1e-5)
    assert items[0].classes.shape == (2, 28, 28)


def test_pixels_without_truth_change_nothing_at_all() -> None:
    learner, items = started()
    before = weights(learner.network)
    nothing = replace(items[0], classes=torch.full_like(items[0].classes, 255), raised=0 * items[0].raised)
    assert float(learner.step(nothing, 0)) == 0
    assert all(torch.equal(a, b) for a, b in zip(before, weights(learner.network), strict=True))


def test_processes_share_a_step_s_samples_without_overlap() -> None:
    parts = [World(rank, 4).mine(range(24, 32)) for rank in range(4)]
    assert [n for part in parts for n in part] == list(range(24, 32))
    assert {len(part) for part in parts} == {2}


def test_a_batch_that_cannot_be_shared_evenly_is_refused_naming_one_that_can() -> None:
    require_divisible(8, World(size=4))
    with pytest.raises(UnetcliError, match=r"--batch-size 6: cannot be shared by 4 processes; 8 can"):
        require_divisible(6, World(size=4))


def test_a_share_of_no_weight_is_0_for_any_number_of_processes() -> None:
    """0 times an infinite factor would be no number."""
    nothing = torch.zeros(())
    assert float(nothing * (4096 / nothing.clamp_min(LEAST_WEIGHT))) == 0
    assert 0 < LEAST_WEIGHT < 1e-6 * FOUND.class_weights(balance=True).min()
