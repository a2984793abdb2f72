"""Training steps, compared with a plain implementation."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from train.scenes import annotated, border_of, dataset, discs

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Architecture
from unetcli.model.network import BatchNorm, UNet
from unetcli.train.dataset import dataset_statistics
from unetcli.train.distributed import ProcessGroup, require_divisible
from unetcli.train.optim import (
    MIN_WEIGHT_SUM,
    Batch,
    Learner,
    _require_state,
    batches,
    create_optimizer,
    weighted_cross_entropy,
)
from unetcli.train.sampling import Sampler
from unetcli.train.settings import IGNORED, Augmentation, Optimisation, TrainingConfig, TruthRules
from unetcli.train.targets import classes_of, weight_table

CPU = torch.device("cpu")
RAW, LABELS = discs()
CORPUS = dataset(annotated(RAW, LABELS, truth="binary", w0=10.0))
FOUND = dataset_statistics(CORPUS)
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
    """Configuration with changes to its optimisation."""
    return replace(CONFIG, optimisation=replace(CONFIG.optimisation, **changes))


def started(config: TrainingConfig = CONFIG) -> tuple[Learner, list[Batch]]:
    """Learner and the batches of three steps."""
    learner = Learner(config, FOUND, CPU, ProcessGroup())
    sampler = Sampler(CORPUS, config.tile, 28, config.augmentation, config.seed)
    return learner, list(batches(learner, sampler, range(3)))


def plain_loss(network: UNet, batch: Batch) -> torch.Tensor:
    """Weighted mean of the losses of a batch's pixels."""
    weights = torch.tensor(FOUND.class_weights(balance=True))[batch.classes] + batch.border_weight
    logits = network(batch.images, batch.dropout_mask)
    losses = torch.nn.functional.cross_entropy(logits, batch.classes, reduction="none")
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
    """The decay is min(ema, (1 + n) / (10 + n)); the average is validated and saved."""
    learner, items = started(configured(ema=0.25))
    expected = weights(learner.network)
    for number, batch in enumerate(items):
        learner.step(batch, number)
        decay = min(0.25, (1 + number) / (10 + number))
        expected = [decay * a + (1 - decay) * w for a, w in zip(expected, weights(learner.network), strict=True)]
    for one, other in zip(weights(learner.validated), expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(a, b) for a, b in zip(weights(learner.validated), weights(learner.network), strict=True))


def test_without_an_average_the_weights_themselves_are_kept() -> None:
    learner, _ = started()
    assert learner.validated is learner.network


def test_statistics_of_batch_normalisation_are_averaged_too() -> None:
    config = configured(ema=0.5)
    learner, items = started(replace(config, architecture=replace(config.architecture, batch_norm=True)))
    for number, batch in enumerate(items):
        learner.step(batch, number)
    norms = [
        [m for m in network.modules() if isinstance(m, BatchNorm)] for network in (learner.validated, learner.network)
    ]
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
    alone = learner.batch([sampler.sample(3)], [sampler.dropout_mask(3, 8, 0.5)])
    for name in ("images", "classes", "border_weight", "dropout_mask"):
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
    nothing = replace(
        items[0], classes=torch.full_like(items[0].classes, 255), border_weight=0 * items[0].border_weight
    )
    assert float(learner.step(nothing, 0)) == 0
    assert all(torch.equal(a, b) for a, b in zip(before, weights(learner.network), strict=True))


def test_processes_share_a_step_s_samples_without_overlap() -> None:
    parts = [ProcessGroup(rank, 4).part(range(24, 32)) for rank in range(4)]
    assert [n for part in parts for n in part] == list(range(24, 32))
    assert {len(part) for part in parts} == {2}


def test_a_batch_that_cannot_be_shared_evenly_is_refused_naming_one_that_can() -> None:
    require_divisible(8, ProcessGroup(size=4))
    with pytest.raises(UnetcliError, match=r"--batch-size 6: not divisible by the 4 processes; 8 would work"):
        require_divisible(6, ProcessGroup(size=4))


def test_a_share_of_no_weight_is_0_for_any_number_of_processes() -> None:
    """0 times an infinite factor would be NaN."""
    nothing = torch.zeros(())
    assert float(nothing * (4096 / nothing.clamp_min(MIN_WEIGHT_SUM))) == 0
    assert 0 < MIN_WEIGHT_SUM < 1e-6 * FOUND.class_weights(balance=True).min()


def table_of(weights: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(weight_table(weights))


def problem(seed: int, classes: int = 3, shape: tuple[int, int] = (7, 11)) -> tuple[torch.Tensor, ...]:
    """Logits, classes (a fifth of them ignored), border weights and the table of class weights."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, (2, *shape))
    truth[random.random(truth.shape) < 0.2] = IGNORED
    border_weight = random.random(truth.shape).astype(np.float32) * 5
    border_weight[truth == IGNORED] = 0
    table = table_of(random.random(classes).astype(np.float32) + 0.1)
    logits = torch.from_numpy(random.standard_normal((2, classes, *shape)).astype(np.float32) * 3)
    return logits.requires_grad_(), torch.from_numpy(truth), torch.from_numpy(border_weight), table


@given(seed=st.integers(0, 10_000), classes=st.integers(2, 5))
def test_it_is_the_weighted_sum_of_equation_1(seed: int, classes: int) -> None:
    """E is the sum of -w(x) log p(x) over the pixels with ground truth, here in double precision."""
    logits, truth, border_weight, table = problem(seed, classes)
    total, weight = weighted_cross_entropy(logits, truth, border_weight, table)
    values = logits.detach().double().numpy()
    p = np.exp(values) / np.exp(values).sum(1, keepdims=True)
    expected, weights = 0.0, 0.0
    for b, y, x in np.ndindex(*truth.shape):
        k = int(truth[b, y, x])
        if k != IGNORED:
            w = float(table[k]) + float(border_weight[b, y, x])
            expected, weights = expected - w * np.log(p[b, k, y, x]), weights + w
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert weight.item() == pytest.approx(weights, rel=1e-5)


def test_pixels_without_truth_have_no_gradient_and_no_weight() -> None:
    logits, truth, border_weight, table = problem(0)
    total, weight = weighted_cross_entropy(logits, truth, border_weight, table)
    total.backward()
    assert logits.grad is not None
    steep = logits.grad.abs().sum(1)
    assert (steep[truth == IGNORED] == 0).all()
    assert (steep[truth != IGNORED] > 0).all()
    garbage = torch.where((truth == IGNORED)[:, None], torch.full_like(logits, 50.0), logits.detach())
    again = weighted_cross_entropy(garbage, truth, border_weight, table)
    assert (again[0].item(), again[1].item()) == (total.item(), weight.item())


def test_nothing_but_ignored_pixels_is_a_loss_of_0() -> None:
    logits, truth, border_weight, table = problem(0)
    total, weight = weighted_cross_entropy(logits, torch.full_like(truth, IGNORED), 0 * border_weight, table)
    total.backward()
    assert (total.item(), weight.item()) == (0, 0)
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_twice_the_weight_counts_like_the_pixel_twice() -> None:
    logits, truth, border_weight, table = problem(1)
    one, two = (
        weighted_cross_entropy(logits, truth, r, t) for r, t in ((border_weight, table), (2 * border_weight, 2 * table))
    )
    assert two[0].item() == pytest.approx(2 * one[0].item(), rel=1e-6)
    assert two[1].item() == pytest.approx(2 * one[1].item(), rel=1e-6)


def test_logits_in_bfloat16_are_summed_in_float32() -> None:
    logits, truth, border_weight, table = problem(2)
    half = logits.detach().to(torch.bfloat16)
    total, _ = weighted_cross_entropy(half, truth, border_weight, table)
    exact, _ = weighted_cross_entropy(half.float(), truth, border_weight, table)
    assert total.dtype == torch.float32
    assert total.item() == exact.item()


@pytest.mark.parametrize("everywhere", [False, True])
def test_the_border_weight_is_on_background_between_two_cells_only(everywhere: bool) -> None:
    labels = np.zeros((30, 60), np.uint8)
    labels[5:25, 5:20], labels[5:25, 24:40] = 1, 2
    labels[:, 55:] = 9
    rules = TruthRules(truth="instances", ignore=9, everywhere=everywhere)
    classes = classes_of(labels, rules)
    border_weight = border_of(labels, classes, rules)
    table = table_of(np.ones(2, np.float32))
    flat = torch.zeros(1, 2, *labels.shape)  # every pixel costs log 2 times its weight

    def cost(weights: np.ndarray) -> float:
        found = weighted_cross_entropy(
            flat, torch.from_numpy(classes[None].astype(np.int64)), torch.from_numpy(weights[None]), table
        )
        return found[0].item() / np.log(2)

    assert cost(np.zeros_like(border_weight)) == pytest.approx((classes != IGNORED).sum(), rel=1e-5)
    assert cost(border_weight) == pytest.approx((classes != IGNORED).sum() + border_weight.sum(), rel=1e-5)
    assert (border_weight[classes == IGNORED] == 0).all()
    assert border_weight[10:20, 20:24].min() > 5
    assert border_weight[:, 50:].max() < 1e-4
    assert (border_weight[classes == 1] > 0).any() == everywhere


def test_an_optimiser_that_lacks_a_value_is_refused() -> None:
    learner, (first, *_) = started(configured(optimizer="adamw"))
    learner.step(first, 0)
    _require_state(learner.optimizer)
    next(iter(learner.optimizer.state.values()))["exp_avg"] = None
    with pytest.raises(ValueError, match="exp_avg of the optimiser does not fit the weights"):
        _require_state(learner.optimizer)


def test_sgd_without_momentum_lacks_nothing() -> None:
    learner, (first, *_) = started(configured(momentum=0.0))
    learner.step(first, 0)
    _require_state(learner.optimizer)
