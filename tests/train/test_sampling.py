"""Training samples: what they depend on, where they are drawn, and how much is read for them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import grey, write_zarr
from numpy.typing import NDArray
from train.scenes import TURNS, annotated, dataset, region, sampler

from unetcli.core.arrays import Checksum
from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Box
from unetcli.train import dataset as module
from unetcli.train import sampling
from unetcli.train.augment import augment
from unetcli.train.dataset import AnnotatedVolume, Dataset
from unetcli.train.sampling import ROUND, ROUND_CHUNKS, TRIES_PER_ROUND, Sample, Sampler
from unetcli.train.settings import IGNORED, Augmentation, TruthRules
from unetcli.train.truth_map import has_truth
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import Volume

TILE, OUTPUT = 18, 10
SHAPE = (3, 13, 22)


def seen(sample: Sample, tile: int = TILE, output: int = OUTPUT) -> tuple[NDArray[Any], NDArray[Any]]:
    """Network's view of a sample: the tile (c, y, x) and its classes (y, x)."""
    image = torch.from_numpy(sample.image.astype(np.float32))
    targets = torch.from_numpy(sample.classes), torch.from_numpy(sample.border_weight)
    images, classes, _ = augment([image], [targets[0]], [targets[1]], [sample.draw], tile=tile, output=output)
    return images[0].numpy(), classes[0].numpy()


def numbered(shape: tuple[int, ...]) -> NDArray[np.int32]:
    """Volume in which all voxels have different values."""
    return np.arange(np.prod(shape), dtype=np.int32).reshape(shape)


def middles(sampler: Sampler, samples: int) -> Counter[int]:
    """Number of samples by the voxel of a numbered volume at their centre."""
    found: Counter[int] = Counter()
    for number in range(samples):
        image = sampler.sample(number).image
        found[int(image[0, image.shape[1] // 2, image.shape[2] // 2])] += 1
    return found


SAME = dataset(annotated(grey(*SHAPE) % 250, grey(*SHAPE) % 250), keep_empty=True)
"""The image is its own label."""


@pytest.mark.parametrize("number", range(20))
def test_image_and_classes_stay_aligned_when_mirrored(number: int) -> None:
    image, classes = seen(sampler(SAME, TILE, OUTPUT).sample(number))
    assert (image.shape, classes.shape) == ((1, TILE, TILE), (OUTPUT, OUTPUT))
    assert np.array_equal(image[0, 4:-4, 4:-4], classes)


def test_a_sample_depends_on_seed_and_number_and_nothing_else() -> None:
    straight = [sampler(SAME, TILE, OUTPUT, augmentation=Augmentation()).sample(n) for n in (0, 1, 70, 500)]
    np.random.seed(99)
    torch.manual_seed(99)
    other = sampler(SAME, TILE, OUTPUT, augmentation=Augmentation())
    backwards = [other.sample(n) for n in (500, 70, 1, 0)]
    for one, again in zip(straight, reversed(backwards), strict=True):
        assert one.draw == again.draw
        for name in ("image", "classes", "border_weight"):
            assert np.array_equal(getattr(one, name), getattr(again, name))


def test_other_seeds_and_numbers_give_other_samples() -> None:
    found = {
        sampler(SAME, TILE, OUTPUT, seed).sample(number).image.tobytes() for number in range(20) for seed in range(5)
    }
    assert len(found) > 90


def test_dropout_depends_on_seed_and_number_and_keeps_the_mean() -> None:
    one, other = (sampler(SAME, TILE, OUTPUT, seed) for seed in (0, 1))
    kept = np.stack([one.dropout_mask(number, 64, 0.25) for number in range(200)])
    assert np.array_equal(kept[7], sampler(SAME, TILE, OUTPUT).dropout_mask(7, 64, 0.25))
    assert not np.array_equal(kept[7], other.dropout_mask(7, 64, 0.25))
    assert set(np.unique(kept)) == {np.float32(0), np.float32(4 / 3)}
    assert kept.mean() == pytest.approx(1, abs=0.02)
    assert (one.dropout_mask(7, 64, 0.0) == 1).all()


@pytest.mark.parametrize(
    ("box", "samples"),
    [(Box((1, 0, 0), (3, 13, 22)), 3500), (Box((0, 5, 6), (1, 7, 9)), 200), (Box((2, 12, 21), (3, 13, 22)), 9)],
    ids=["sections", "part of a section", "the last pixel"],
)
def test_every_pixel_of_the_training_sections_and_no_other_is_a_centre(box: Box, samples: int) -> None:
    places = numbered(SHAPE)
    data = region(annotated(places, np.zeros(SHAPE, np.uint8)), box)
    found = middles(sampler(data, 5, 1, augmentation=Augmentation.none()), samples)
    expected = set(places[box.slices].ravel().tolist())
    assert set(found) <= expected
    assert len(found) > 0.98 * len(expected)


def test_what_lies_outside_is_mirrored_classes_too() -> None:
    """Windows equal those of the section padded by numpy, here up to four times its height."""
    raw = grey(1, 7, 22) % 250
    padded = np.pad(raw[0], [(30, 30), (30, 30)], mode="reflect")
    windows = {padded[y : y + TILE, x : x + TILE].tobytes() for y in range(50) for x in range(65)}
    data = sampler(dataset(annotated(raw, raw), keep_empty=True), TILE, TILE)
    for number in range(30):
        sample = data.sample(number)
        assert sample.image[0].tobytes() in windows
        assert np.array_equal(sample.image[0], sample.classes)


def test_channels_stay_apart_and_one_can_be_picked() -> None:
    raw = np.stack([grey(13, 22), grey(13, 22) // 2])
    both, second = (annotated(raw, grey(13, 22) % 250, axes="cyx", channel=channel) for channel in (None, 1))
    image, _ = seen(sampler(dataset(both, keep_empty=True), TILE, OUTPUT).sample(3))
    assert np.array_equal(image[0] // 2, image[1])
    alone, _ = seen(sampler(dataset(second, keep_empty=True), TILE, OUTPUT).sample(3))
    assert np.array_equal(alone[0], image[1])


def test_samples_come_from_all_pairs_by_their_number_of_voxels() -> None:
    """Sections of 300 and an image of 100 pixels: a quarter of the samples is drawn from the image."""
    large, small = np.zeros((3, 10, 10), np.uint8), np.ones((10, 10), np.uint8)
    data = dataset(annotated(large, large), annotated(small, small), keep_empty=True)
    found = middles(sampler(data, 5, 1), 2000)
    assert found[1] / 2000 == pytest.approx(0.25, abs=0.05)


def test_places_without_truth_are_passed_over() -> None:
    """Only a corner of one section is annotated; the window of each sample intersects it."""
    labels = np.full((3, 60, 70), 9, np.uint8)
    labels[1, :8, :8] = grey(8, 8) % 2
    data = sampler(dataset(annotated(grey(3, 60, 70), labels, ignore=9)), TILE, OUTPUT)
    for number in range(30):
        assert (data.sample(number).classes != IGNORED).any()


SPOT = Box((1, 900, 700), (2, 924, 730))
"""Annotated part of two sections of 1000 x 1200 pixels: 0.03 % of them."""


def spotted() -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    labels = np.full((2, 1000, 1200), 9, np.uint8)
    labels[SPOT.slices] = grey(*SPOT.shape) % 2
    return numbered(labels.shape), labels


@pytest.mark.parametrize("stored", [False, True], ids=["in memory", "on disk"])
def test_places_are_drawn_from_where_truth_is(stored: bool, on_disk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All places from which truth is seen are equally likely, as if drawn from everywhere and rejected."""
    raw, labels = spotted()
    pair = on_disk(raw, labels, (1, 500, 500))[0].pairs[0] if stored else annotated(raw, labels)
    drawn = sampler(dataset(annotated(pair.raw.array, pair.labels.array, ignore=9)), TILE, OUTPUT)
    tries: list[Box] = []

    def counted(labels: Volume, rules: TruthRules, window: Box) -> bool:
        tries.append(window)
        return has_truth(labels, rules, window)

    monkeypatch.setattr(sampling, "has_truth", counted)
    places = np.array([np.unravel_index(place, raw.shape) for place in middles(drawn, 50).elements()])
    assert len(tries) < 50 * 2 * TRIES_PER_ROUND  # 1,800 of 2,400,000 places see truth: about 1,300 tries each
    near = SPOT.grown((0, OUTPUT // 2, OUTPUT // 2))
    assert ((places >= near.start) & (places <= near.stop)).all()
    for axis in (1, 2):
        middle = (near.start[axis] + near.stop[axis]) / 2
        assert 0.25 < (places[:, axis] < middle).mean() < 0.75
    outside = ((places < SPOT.start) | (places >= SPOT.stop)).any(axis=1).mean()
    assert outside == pytest.approx(1 - 24 * 30 / (33 * 39), abs=0.25)


def test_samples_found_at_once_are_those_of_earlier_versions(on_disk: Any) -> None:
    """Continued trainings depend on it: numbers are drawn as ever where truth is found within the first tries."""
    raw, full = grey(3, 90, 110), (grey(3, 90, 110, seed=1) > 128).astype(np.uint8)
    half = full.copy()
    half[:, :, 55:] = 9
    stored = on_disk(raw, half, (1, 40, 40))[0].pairs[0]
    found = []
    for pair in (
        annotated(raw, full, w0=10.0),
        annotated(raw, half, w0=10.0, ignore=9),
        annotated(stored.raw.array, stored.labels.array, ignore=9),
    ):
        samples = [sampler(dataset(pair), 44, 28, augmentation=Augmentation()).sample(n) for n in (0, 1, 2, 70, 500)]
        total = Checksum()
        for sample in samples:
            for values in (sample.image, sample.classes, sample.border_weight):
                total.add(values)
        found.append(total.hexdigest())
    assert found == [
        "e9769f2c2b2780d94962ce5c79f3463f",
        "f3e476ea3482f9d6d0bf4e1f2e00b44c",
        "2e75279c40a14b81223cb4ee9e8cb569",
    ]


def test_where_nothing_is_drawn_nothing_is_learned_unless_asked_for() -> None:
    raw, labels = numbered((4, 6, 7)), np.zeros((4, 6, 7), np.uint8)
    labels[2, 0, 0] = 1
    for keep_empty, sections in ((False, {2}), (True, {0, 1, 2, 3})):
        data = dataset(annotated(raw, labels), keep_empty=keep_empty)
        found = middles(sampler(data, 5, 1), 400)
        assert {place // 42 for place in found} == sections


def test_no_truth_anywhere_ends_with_one_line() -> None:
    labels = np.full(SHAPE, 9, np.uint8)
    labels[0, 0, 0] = 1  # a label, so the section is used; the dataset below excludes it
    data = region(annotated(grey(*SHAPE), labels, ignore=9), Box((2, 0, 0), SHAPE))
    with pytest.raises(
        UnetcliError, match=r"labels\.zarr: no ground truth in the training sections; choose other"
    ) as caught:
        sampler(data, 5, 1).sample(0)
    assert "\n" not in str(caught.value)


def test_numbers_that_float32_cannot_multiply_are_refused_naming_the_place() -> None:
    raw = np.zeros(SHAPE, np.float32)
    raw[2, 3, 4] = 2e30
    data = annotated(raw, grey(*SHAPE) % 250)
    assert data.image(Box((1, 0, 0), (2, 13, 22))).shape == (1, 13, 22)
    with pytest.raises(UnetcliError, match=r"raw\.zarr: a number beyond 1e\+30 at z 2:3, y 0:13"):
        data.image(Box((2, 0, 0), (3, 13, 22)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_where_grey_values_are_not_finite_there_is_no_truth_unless_they_are_replaced(value: float) -> None:
    raw, labels = np.full((2, 13, 22), 7.0, np.float32), grey(13, 22) % 5
    raw[1, 3, 4] = value  # one of two channels
    pair, box = annotated(raw, labels, axes="cyx", w0=10.0), Box((-4, 0), (9, 8))
    replaced = replace(pair, nonfinite=-1.0)
    classes, border_weights = pair.window(box)
    expected, expected_weights = replaced.window(box)
    lost = np.zeros((13, 8), bool)
    lost[[1, 7], 4] = True  # once mirrored
    assert np.array_equal(classes, np.where(lost, IGNORED, expected))
    assert np.array_equal(pair.classes(box), classes)
    assert np.array_equal(border_weights, np.where(lost, 0, expected_weights))
    assert (replaced.image(box)[1][lost] == -1).all()
    assert replaced.image(box).sum() == pair.image(box)[:, ~lost].sum() + 2 * (7 - 1)


def test_places_that_show_only_nan_are_passed_over() -> None:
    raw, labels = np.full((60, 70), np.nan, np.float32), grey(60, 70) % 2
    raw[20:30, 50:] = 1
    drawn = sampler(dataset(annotated(raw, labels)), TILE, OUTPUT)
    assert all((drawn.sample(number).classes != IGNORED).any() for number in range(30))


class Counted:
    """Stored array that records which chunks are decoded."""

    def __init__(self, array: Any) -> None:
        self.array, self.shape, self.dtype, self.chunks = array, array.shape, array.dtype, array.chunks
        self.size = array.size
        self.read: list[tuple[int, ...]] = []

    def __getitem__(self, picks: tuple[slice, ...]) -> NDArray[Any]:
        self.read.append(tuple(pick.start // c for pick, c in zip(picks, self.chunks, strict=True)))
        for pick, c, n in zip(picks, self.chunks, self.shape, strict=True):
            assert (pick.start % c, pick.stop) == (0, min(pick.start + c, n)), "not one whole chunk"
        return np.asarray(self.array[picks])


@pytest.fixture
def on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a dataset of volumes that are read by chunk, as if they were too large for memory."""

    def make(raw: NDArray[Any], labels: NDArray[Any], chunks: tuple[int, ...], **more: Any) -> tuple[Dataset, Counted]:
        monkeypatch.setattr(module, "IN_MEMORY_BYTES", min(raw.nbytes, labels.nbytes) - 1)
        opened = [
            open_volume(write_zarr(tmp_path / f"{name}.zarr", values, chunks)).array
            for name, values in (("raw", raw), ("labels", labels))
        ]
        counted = Counted(opened[0])
        return dataset(annotated(counted, opened[1]), **more), counted

    return make


def test_volumes_on_disk_are_sampled_uniformly_over_their_voxels(on_disk: Any) -> None:
    """Chunks of 4 x 5 x 6 in 6 x 13 x 14 are smaller at the ends; their voxels are not more likely for that."""
    shape = (6, 13, 14)
    data, _ = on_disk(numbered(shape), np.zeros(shape, np.int32), (4, 5, 6), train=((1, 6),), keep_empty=True)
    one_per_round = sampler(data, 5, 1, augmentation=Augmentation.none())
    counts = np.zeros(int(np.prod(shape)))
    rounds = 600
    for number in range(rounds):
        image = one_per_round.sample(number * ROUND).image
        counts[int(image[0, 2, 2])] += 1
    counts = counts.reshape(shape)
    assert counts[0].sum() == 0
    by_chunk = {
        (z, y, x): counts[z : z + 4, y : y + 5, x : x + 6][1 - z if z < 1 else 0 :]
        for z in (0, 4)
        for y in (0, 5, 10)
        for x in (0, 6, 12)
    }
    assert sum(part.sum() for part in by_chunk.values()) == rounds
    inside = counts[1:]
    for (z, y, x), part in by_chunk.items():
        expected = rounds * part.size / inside.size
        assert abs(part.sum() - expected) < 5 * expected**0.5 + 1, (z, y, x)


def test_a_round_decodes_few_chunks_each_of_them_once(on_disk: Any) -> None:
    """A window of 5 x 5 around a voxel intersects at most 4 of the 400 chunks of 40 x 40."""
    shape = (4, 400, 400)
    data, counted = on_disk(grey(*shape), grey(*shape) % 2, (1, 40, 40), keep_empty=True)
    drawn = sampler(data, 5, 1, augmentation=Augmentation.none())
    for number in range(ROUND):
        drawn.sample(number)
    assert len(counted.read) == len(set(counted.read))
    assert len(counted.read) <= 2 * ROUND_CHUNKS  # most windows lie in the chunk of their centre


def test_sparse_sections_of_a_volume_on_disk_are_found(on_disk: Any) -> None:
    """Two of 200 sections are annotated; 16 chunks drawn from all would usually miss both."""
    labels = np.zeros((200, 8, 8), np.uint8)
    labels[[20, 150], 3, 3] = 1
    raw = np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None, None], labels.shape)
    data, _ = on_disk(np.ascontiguousarray(raw), labels, (1, 8, 8))
    found = middles(sampler(data, 5, 1), 4 * ROUND)
    assert set(found) == {20, 150}


def test_truth_in_a_corner_of_a_volume_on_disk_is_found(on_disk: Any) -> None:
    """Three of 256 chunks have ground truth; the others are ignored."""
    labels = np.full((1, 128, 128), 9, np.uint8)
    labels[0, :8, :24] = grey(8, 24) % 2
    data, _ = on_disk(grey(1, 128, 128), labels, (1, 8, 8))
    pair = annotated(data.pairs[0].raw.array, data.pairs[0].labels.array, ignore=9)
    drawn = sampler(dataset(pair), 5, 1)
    for number in (0, 70, 200):
        assert (drawn.sample(number).classes != IGNORED).any()


def test_samples_on_disk_and_in_memory_come_from_the_same_data(on_disk: Any) -> None:
    raw, labels = grey(*SHAPE), grey(*SHAPE, seed=1) % 250
    data, _ = on_disk(raw, labels, (2, 5, 6), keep_empty=True)
    padded = np.pad(raw, [(0, 0), (30, 30), (30, 30)], mode="reflect")
    windows = {s[y : y + TILE, x : x + TILE].tobytes() for s in padded for y in range(55) for x in range(64)}
    for number in range(20):
        assert sampler(data, TILE, OUTPUT).sample(number).image[0].tobytes() in windows


def test_small_volumes_are_read_once(tmp_path: Path) -> None:
    opened = open_volume(write_zarr(tmp_path / "raw.zarr", grey(*SHAPE)))
    data = AnnotatedVolume.buffered(opened, opened, annotated(grey(*SHAPE), grey(*SHAPE)).rules, None)
    assert isinstance(data.raw.array, np.ndarray)
    assert isinstance(data.labels.array, np.ndarray)


def test_turns_are_only_those_asked_for() -> None:
    """Mirroring alone gives four orientations, without rotations."""
    values = np.arange(100 * 100).reshape(100, 100)
    data = sampler(region(annotated(values, values % 200), Box((30, 30), (60, 60))), TILE, OUTPUT, augmentation=TURNS)
    steps = set()
    for number in range(60):
        image = seen(data.sample(number))[0][0].astype(int)
        steps.add((int(image[0, 1] - image[0, 0]), int(image[1, 0] - image[0, 0])))
    assert steps == {(a, b) for a in (1, -1) for b in (100, -100)}


def test_a_class_that_the_network_does_not_have_is_an_error() -> None:
    labels = np.full(SHAPE, 2, np.uint8)
    both = dataset(annotated(grey(*SHAPE), labels))
    assert Sampler(both, TILE, OUTPUT, TURNS, 0, classes=3).sample(0).classes.max() == 2
    with pytest.raises(UnetcliError, match=r"labels\.zarr: class 2, but the sampled part of the labels has 2 classes"):
        Sampler(both, TILE, OUTPUT, TURNS, 0, classes=2).sample(0)
