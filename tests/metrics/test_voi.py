from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.metrics import adapted_rand_error, variation_of_information

from unetcli.metrics.contingency import Contingency
from unetcli.metrics.voi import METRIC, VoiSums

Labels = NDArray[np.integer]
IMAGES = st.integers(2, 24).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 4), min_size=n, max_size=n).map(np.array)] * 2)
)
scores = METRIC.entries
SCORES = ("split", "merge", "split_bits", "merge_bits", "adapted_rand_error", "adapted_rand_error_singletons")


def sums(reference: Labels, result: Labels, ignore: int | None = None) -> VoiSums:
    return VoiSums.of(Contingency.of(reference, result, ignore=ignore))


def entropy(labels: Labels) -> float:
    """Entropy in nats of the label of a random pixel."""
    shares = np.unique(labels, return_counts=True)[1] / labels.size
    return float(-(shares * np.log(shares)).sum())


def pair_error(reference: Labels, result: Labels) -> float | None:
    """1 - F, counting every pair of different pixels of reference objects one by one."""
    inside = [(a, b) for a, b in zip(reference.tolist(), result.tolist(), strict=True) if a]
    couples = list(itertools.combinations(inside, 2))
    both = sum(p == q for p, q in couples)
    either = sum(p[0] == q[0] for p, q in couples) + sum(p[1] == q[1] for p, q in couples)
    return 1 - 2 * both / either if either else None


def apart(result: Labels) -> Labels:
    """Make each background pixel a segment of its own."""
    return np.where(result == 0, 10**6 + np.arange(result.size), result)


@given(IMAGES)
def test_split_and_merge_are_conditional_entropies_in_nats(images: tuple[Labels, Labels]) -> None:
    reference, result = images
    found = scores([sums(*images)])
    joint = entropy(100 * reference + result)
    assert found["split"] == pytest.approx(joint - entropy(reference), abs=1e-12)
    assert found["merge"] == pytest.approx(joint - entropy(result), abs=1e-12)
    assert (found["unit"], found["split_bits"] * math.log(2)) == ("nats", pytest.approx(found["split"]))


@given(IMAGES)
def test_adapted_rand_error_is_that_of_counting_every_pair(images: tuple[Labels, Labels]) -> None:
    reference, result = images
    found = scores([sums(*images)])
    for name, segments in (("adapted_rand_error", result), ("adapted_rand_error_singletons", apart(result))):
        expected = pair_error(reference, segments)
        assert found[name] == (pytest.approx(expected, abs=1e-12) if expected is not None else None), name


@pytest.mark.parametrize("shape", [(13, 22), (5, 7, 11)], ids=["2-D", "3-D"])
def test_scores_are_those_of_scikit_image(shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(5)
    reference = generator.integers(0, 5, shape)
    result = np.where(generator.random(shape) < 0.8, reference * 3 + 1, generator.integers(0, 9, shape))
    found = scores([sums(reference, result)])
    bits = variation_of_information(reference, result)
    assert [found["split_bits"], found["merge_bits"]] == pytest.approx(bits.tolist(), abs=1e-12)
    assert found["adapted_rand_error"] == pytest.approx(adapted_rand_error(reference, result)[0], abs=1e-12)
    ignoring = scores([sums(reference, result, ignore=0)])
    bits = variation_of_information(reference, result, ignore_labels=(0,))
    assert [ignoring["split_bits"], ignoring["merge_bits"]] == pytest.approx(bits.tolist(), abs=1e-12)


@given(IMAGES, st.permutations(range(5)), st.permutations(range(1, 5)))
def test_names_of_labels_do_not_matter(images: tuple[Labels, Labels], new: list[int], other: list[int]) -> None:
    """Label 0 is background for the adapted Rand error, but an ordinary segment for the variation of information."""
    reference, result = images
    found, renamed = (scores([sums(reference, r)]) for r in (result, np.array(new)[result] * 7))
    assert [renamed[name] for name in SCORES[:4]] == pytest.approx([found[name] for name in SCORES[:4]])
    keeping = scores([sums(np.array([0, *other])[reference], np.array([0, *other])[result])])
    assert [keeping[name] for name in SCORES] == pytest.approx([found[name] for name in SCORES])


@given(IMAGES)
def test_a_perfect_result_has_no_error(images: tuple[Labels, Labels]) -> None:
    reference, _ = images
    found = scores([sums(reference, reference * 5 + 2)])
    assert [found[name] for name in SCORES[:4]] == pytest.approx([0] * 4, abs=1e-12)
    assert found["adapted_rand_error"] in (0, None)


def test_split_and_merge_distinguish_the_two_errors() -> None:
    two, one = np.repeat([1, 2], 8), np.ones(16, int)
    assert [scores([sums(one, two)])[name] for name in ("split", "merge")] == pytest.approx([math.log(2), 0])
    assert [scores([sums(two, one)])[name] for name in ("split", "merge")] == pytest.approx([0, math.log(2)])


def test_objects_of_different_frames_are_different_objects() -> None:
    """Two frames with the same labels have the scores of one image in which all labels differ."""
    generator = np.random.default_rng(6)
    frames = [(generator.integers(1, 4, 30), generator.integers(1, 4, 30)) for _ in range(2)]
    whole = [np.concatenate([frames[0][side], frames[1][side] + 10]) for side in (0, 1)]
    found, expected = scores([sums(*frame) for frame in frames]), scores([sums(whole[0], whole[1])])
    assert [found[name] for name in SCORES] == pytest.approx([expected[name] for name in SCORES])


def test_without_a_pixel_or_a_pair_there_is_no_score_but_a_reason() -> None:
    nothing = np.zeros(0, int)
    found = scores([sums(nothing, nothing)])
    assert [found[name] for name in SCORES] == [None] * 6
    assert (found["split_reason"], scores([])["split"]) == ("no pixel to score", None)
    found = scores([sums(np.array([0, 0, 4]), np.array([1, 1, 1]))])
    assert (found["adapted_rand_error"], found["split"]) == (None, 0)
    assert "no two pixels" in found["adapted_rand_error_reason"]


def test_pairs_of_a_large_volume_do_not_overflow() -> None:
    one = Contingency(np.array([1], np.uint64), np.array([0], np.uint64), np.array([10**13]))
    found = scores([VoiSums.of(one)])
    assert (found["split"], found["adapted_rand_error"], found["adapted_rand_error_singletons"]) == (0, 0, 1)
