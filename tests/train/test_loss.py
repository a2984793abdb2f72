from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from train.scenes import border_of

from unetcli.train.optim import weighted_cross_entropy
from unetcli.train.recipes import IGNORED, TruthRules
from unetcli.train.targets import classes_of, weight_table


def table_of(weights: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(weight_table(weights))


def problem(seed: int, classes: int = 3, shape: tuple[int, int] = (7, 11)) -> tuple[torch.Tensor, ...]:
    """Logits, classes of which a fifth is ignored, raised weights, table."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, (2, *shape))
    truth[random.random(truth.shape) < 0.2] = IGNORED
    raised = random.random(truth.shape).astype(np.float32) * 5
    raised[truth == IGNORED] = 0
    table = table_of(random.random(classes).astype(np.float32) + 0.1)
    logits = torch.from_numpy(random.standard_normal((2, classes, *shape)).astype(np.float32) * 3)
    return logits.requires_grad_(), torch.from_numpy(truth), torch.from_numpy(raised), table


@given(seed=st.integers(0, 10_000), classes=st.integers(2, 5))
def test_it_is_the_weighted_sum_of_equation_1(seed: int, classes: int) -> None:
    """E = sum of w(x) log p(x), over the pixels with truth, in double precision."""
    logits, truth, raised, table = problem(seed, classes)
    total, weight = weighted_cross_entropy(logits, truth, raised, table)
    values = logits.detach().double().numpy()
    p = np.exp(values) / np.exp(values).sum(1, keepdims=True)
    expected, weights = 0.0, 0.0
    for b, y, x in np.ndindex(*truth.shape):
        k = int(truth[b, y, x])
        if k != IGNORED:
            w = float(table[k]) + float(raised[b, y, x])
            expected, weights = expected - w * np.log(p[b, k, y, x]), weights + w
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert weight.item() == pytest.approx(weights, rel=1e-5)


def test_pixels_without_truth_have_no_gradient_and_no_weight() -> None:
    logits, truth, raised, table = problem(0)
    total, weight = weighted_cross_entropy(logits, truth, raised, table)
    total.backward()
    assert logits.grad is not None
    steep = logits.grad.abs().sum(1)
    assert (steep[truth == IGNORED] == 0).all()
    assert (steep[truth != IGNORED] > 0).all()
    garbage = torch.where((truth == IGNORED)[:, None], torch.full_like(logits, 50.0), logits.detach())
    again = weighted_cross_entropy(garbage, truth, raised, table)
    assert (again[0].item(), again[1].item()) == (total.item(), weight.item())


def test_nothing_but_ignored_pixels_is_a_loss_of_0() -> None:
    logits, truth, raised, table = problem(0)
    total, weight = weighted_cross_entropy(logits, torch.full_like(truth, IGNORED), 0 * raised, table)
    total.backward()
    assert (total.item(), weight.item()) == (0, 0)
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_twice_the_weight_counts_like_the_pixel_twice() -> None:
    logits, truth, raised, table = problem(1)
    one, two = (weighted_cross_entropy(logits, truth, r, t) for r, t in ((raised, table), (2 * raised, 2 * table)))
    assert two[0].item() == pytest.approx(2 * one[0].item(), rel=1e-6)
    assert two[1].item() == pytest.approx(2 * one[1].item(), rel=1e-6)


def test_logits_in_bfloat16_are_summed_in_float32() -> None:
    logits, truth, raised, table = problem(2)
    half = logits.detach().to(torch.bfloat16)
    total, _ = weighted_cross_entropy(half, truth, raised, table)
    exact, _ = weighted_cross_entropy(half.float(), truth, raised, table)
    assert total.dtype == torch.float32
    assert total.item() == exact.item()


@pytest.mark.parametrize("everywhere", [False, True])
def test_the_border_raises_background_between_two_cells_and_nothing_else(everywhere: bool) -> None:
    labels = np.zeros((30, 60), np.uint8)
    labels[5:25, 5:20], labels[5:25, 24:40] = 1, 2
    labels[:, 55:] = 9
    rules = TruthRules(truth="instances", ignore=9, everywhere=everywhere)
    classes = classes_of(labels, rules)
    raised = border_of(labels, classes, rules)
    table = table_of(np.ones(2, np.float32))
    flat = torch.zeros(1, 2, *labels.shape)  # every pixel costs log 2 times its weight

    def cost(weights: np.ndarray) -> float:
        found = weighted_cross_entropy(
            flat, torch.from_numpy(classes[None].astype(np.int64)), torch.from_numpy(weights[None]), table
        )
        return found[0].item() / np.log(2)

    assert cost(np.zeros_like(raised)) == pytest.approx((classes != IGNORED).sum(), rel=1e-5)
    assert cost(raised) == pytest.approx((classes != IGNORED).sum() + raised.sum(), rel=1e-5)
    assert (raised[classes == IGNORED] == 0).all()
    assert raised[10:20, 20:24].min() > 5
    assert raised[:, 50:].max() < 1e-4
    assert (raised[classes == 1] > 0).any() == everywhere
