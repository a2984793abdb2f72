from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import grey
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from unetcli.train.augment import Deformation, Draw, GreyChange, augment, change_grey, draw, noise
from unetcli.train.settings import Augmentation

TILE, OUTPUT = 44, 20
ALL = Augmentation(noise=0.5, blur=2.0)
SOURCE = 101
"""Side of the images that windows are cut from."""
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def drawn(settings: Augmentation, number: int, tile: int = TILE) -> Draw:
    return draw(settings, np.random.default_rng([3, number]), tile)


def window(source: NDArray[np.generic], side: int, number: int) -> torch.Tensor:
    """Square around a random pixel near the centre of the source; ``number`` is the seed."""
    y, x = np.random.default_rng(number).integers(0, 5, 2) + (SOURCE - TILE) // 2 - (side - TILE) // 2
    return torch.from_numpy(np.ascontiguousarray(source[..., y : y + side, x : x + side]))


IMAGE = np.random.default_rng(1).normal(size=(2, SOURCE, SOURCE)).astype(np.float32)
CLASSES = (grey(SOURCE, SOURCE) % 4).astype(np.uint8)
CLASSES[::7] = 255
BORDER_WEIGHTS = np.arange(SOURCE * SOURCE, dtype=np.float32).reshape(SOURCE, SOURCE)
"""Each pixel's own number."""


def augmented(draws: list[Draw], numbers: list[int], image: NDArray[np.generic] = IMAGE, **options: float) -> Batch:
    """Batch of augmented samples, cut at places that depend on ``numbers``."""
    images = [window(image, one.deformation.window_side(TILE), n) for one, n in zip(draws, numbers, strict=True)]
    classes, border_weights = (
        [window(source, one.deformation.window_side(TILE), n) for one, n in zip(draws, numbers, strict=True)]
        for source in (CLASSES, BORDER_WEIGHTS)
    )
    return augment(images, classes, border_weights, draws, tile=TILE, output=OUTPUT, **options)


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_with_everything_off_samples_are_plain_crops_bit_for_bit() -> None:
    numbers = list(range(5))
    draws = [drawn(Augmentation.none(), n) for n in numbers]
    images, classes, border_weights = augmented(draws, numbers)
    edge = (TILE - OUTPUT) // 2
    for n in numbers:
        assert draws[n].deformation.window_side(TILE) == TILE
        inner = [window(source, TILE, n)[edge:-edge, edge:-edge] for source in (CLASSES, BORDER_WEIGHTS)]
        assert torch.equal(images[n], window(IMAGE, TILE, n))
        assert torch.equal(classes[n], inner[0].long())
        assert torch.equal(border_weights[n], inner[1])


def test_with_flips_alone_pixels_only_move_and_all_four_flips_occur() -> None:
    settings = replace(Augmentation.none(), flip=True)
    seen = set()
    for number in range(40):
        flipped = augmented([drawn(settings, number)], [0])[0][0].numpy()
        plain = window(IMAGE, TILE, 0).numpy()
        seen |= {axes for axes in ((), (1,), (2,), (1, 2)) if np.array_equal(flipped, np.flip(plain, axes))}
    assert len(seen) == 4


def test_shapes_and_types_are_what_the_network_and_the_loss_take() -> None:
    images, classes, border_weights = augmented([drawn(ALL, n) for n in range(3)], [0, 1, 2])
    assert (images.shape, images.dtype) == ((3, 2, TILE, TILE), torch.float32)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert (classes.shape, classes.dtype) == ((3, OUTPUT, OUTPUT), torch.int64)
    assert (border_weights.shape, border_weights.dtype) == ((3, OUTPUT, OUTPUT), torch.float32)


@pytest.mark.parametrize("number", range(8))
def test_labels_stay_labels_and_a_weight_stays_with_its_pixel(number: int) -> None:
    """Each weight is the number of its pixel, which shows where the class must come from."""
    _, classes, border_weights = augmented([drawn(ALL, number)], [number])
    assert torch.equal(classes[0], torch.from_numpy(CLASSES.ravel()[border_weights[0].long().numpy()].astype(np.int64)))
    assert 255 in classes


@pytest.mark.parametrize("number", range(8))
def test_image_and_labels_move_together(number: int) -> None:
    """Grey values are numbers of pixels, which bicubic interpolation reproduces; labels are of the nearest pixel."""
    one = replace(drawn(ALL, number), grey=GreyChange())
    rows, columns = np.indices((SOURCE, SOURCE)).astype(np.float32)
    images, _, border_weights = augmented([one], [number], np.stack([rows, columns]))
    edge = (TILE - OUTPUT) // 2
    y, x = images[0, :, edge:-edge, edge:-edge]
    assert ((border_weights[0] // SOURCE - y).abs() < 0.501).all()
    assert ((border_weights[0] % SOURCE - x).abs() < 0.501).all()


def test_a_sample_is_the_same_alone_and_among_others_in_any_order() -> None:
    draws = [drawn(ALL, n) for n in range(6)] + [drawn(Augmentation.none(), 6)]
    numbers = list(range(7))
    together = augmented(draws, numbers)
    backwards = augmented(draws[::-1], numbers[::-1])
    for n in numbers:
        alone = augmented([draws[n]], [n])
        assert same(alone, tuple(part[n : n + 1] for part in together))  # type: ignore[arg-type]
        assert same(alone, tuple(part[6 - n : 7 - n] for part in backwards))  # type: ignore[arg-type]


def test_the_number_of_threads_does_not_show() -> None:
    """The size makes torch split the work, into pieces that are no multiple of the vector length."""
    tile, image = 316, torch.from_numpy(grey(1, 700, 700))
    labels, zeros = image[0] % 3, torch.zeros(700, 700)
    results = []
    for count in (1, 2, 3):
        with threads(count):
            draws = [drawn(ALL, n, tile) for n in range(8)]
            results.append(
                augment([image] * 8, [labels] * 8, [zeros] * 8, draws, tile=tile, output=228, mean=100, std=50)
            )
    assert same(results[0], results[1])
    assert same(results[0], results[2])


def test_lower_precision_around_it_does_not_show() -> None:
    draws = [drawn(ALL, n) for n in range(4)]
    with torch.autocast("cpu", torch.bfloat16):
        inside = augmented(draws, [0, 1, 2, 3])
    assert same(inside, augmented(draws, [0, 1, 2, 3]))


def test_inputs_are_left_as_they_are() -> None:
    for settings in (ALL, Augmentation.none(), replace(ALL, elastic=0, rotation=0, scale=0)):
        one = drawn(settings, 1)
        parts = [window(source, one.deformation.window_side(TILE), 1) for source in (IMAGE, CLASSES, BORDER_WEIGHTS)]
        before = [part.clone() for part in parts]
        augment([parts[0]], [parts[1]], [parts[2]], [one], tile=TILE, output=OUTPUT, mean=1.0, std=2.0)
        assert all(torch.equal(a, b) for a, b in zip(parts, before, strict=True))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float64])
def test_raw_grey_values_are_normalised_on_the_way(dtype: type) -> None:
    raw = grey(1, SOURCE, SOURCE).astype(dtype)
    normalised = ((raw.astype(np.float32) - 100) / 50).astype(np.float32)
    draws = [drawn(settings, n) for n, settings in enumerate([ALL, ALL, Augmentation.none()])]
    direct = augmented(draws, [0, 1, 2], raw, mean=100.0, std=50.0)
    before = augmented(draws, [0, 1, 2], normalised)
    assert torch.allclose(direct[0], before[0], atol=1e-5)
    assert torch.equal(direct[0][2], before[0][2])


def test_each_channel_can_have_its_own_statistics() -> None:
    means, stds = torch.tensor([[[1.0]], [[2.0]]]), torch.tensor([[[3.0]], [[4.0]]])
    plain = [drawn(Augmentation.none(), 0)]
    images, _, _ = augmented(plain, [0], mean=means, std=stds)  # type: ignore[arg-type]
    assert torch.equal(images[0], (window(IMAGE, TILE, 0) - means) / stds)


def test_smaller_windows_of_labels_are_enough_and_larger_ones_give_the_same() -> None:
    one = drawn(ALL, 2)
    sides = (
        one.deformation.window_side(OUTPUT),
        one.deformation.window_side(TILE),
        one.deformation.window_side(TILE) + 2,
    )
    assert sides[0] < sides[1]
    found = []
    for side in sides:
        classes, border_weights = window(CLASSES, side, 2), window(BORDER_WEIGHTS, side, 2)
        image = window(IMAGE, one.deformation.window_side(TILE), 2)
        found.append(augment([image], [classes], [border_weights], [one], tile=TILE, output=OUTPUT))
    assert same(found[0], found[1])
    assert same(found[0], found[2])


@pytest.mark.parametrize(
    ("sides", "tile", "message"),
    [
        ((TILE - 2, TILE, TILE), TILE, r"window of 42 x 42 for 44 x 44: see Deformation\.window_side"),
        ((TILE + 1, TILE, TILE), TILE, r"window of 45 x 45"),
        ((TILE, OUTPUT - 2, OUTPUT - 2), TILE, r"window of 18 x 18 for 20 x 20"),
        ((TILE, TILE, OUTPUT), TILE, r"weights of shape \(20, 20\), expected \(44, 44\)"),
        ((TILE, TILE, TILE), TILE + 4, r"drawn for a tile of 48, expected 44"),
    ],
    ids=["small", "not concentric", "few classes", "other weights", "other tile"],
)
def test_windows_that_cannot_be_are_refused(sides: tuple[int, int, int], tile: int, message: str) -> None:
    one = drawn(Augmentation.none(), 0, tile)
    image, classes, border_weights = (
        window(part, n, 0) for part, n in zip((IMAGE, CLASSES, BORDER_WEIGHTS), sides, strict=True)
    )
    with pytest.raises(ValueError, match=message):
        augment([image], [classes], [border_weights], [one], tile=TILE, output=OUTPUT)


def test_a_draw_depends_on_its_generator_alone() -> None:
    assert drawn(ALL, 5) == drawn(ALL, 5)
    assert len({drawn(ALL, number) for number in range(200)}) == 200


@pytest.mark.parametrize(
    "name", ["elastic", "rotation", "flip", "scale", "gamma", "contrast", "brightness", "noise", "blur"]
)
def test_switching_one_change_off_leaves_the_others_as_they_were(name: str) -> None:
    off = False if name == "flip" else 0.0
    fewer = replace(ALL, **{name: off})
    differing = set()
    for number in range(40):
        one, other = drawn(ALL, number), drawn(fewer, number)
        differing |= {
            part
            for part in ("matrix", "displacements")
            if getattr(one.deformation, part) != getattr(other.deformation, part)
        }
        differing |= {
            part
            for part in ("gamma", "contrast", "brightness", "noise", "blur")
            if getattr(one.grey, part) != getattr(other.grey, part)
        }
    assert differing == {
        {"elastic": "displacements", "rotation": "matrix", "flip": "matrix", "scale": "matrix"}.get(name, name)
    }


def test_strengths_are_those_of_the_settings() -> None:
    draws = [drawn(Augmentation(), number, 572) for number in range(2000)]
    moved = np.array([one.deformation.displacements for one in draws])
    assert abs(moved.std() - 10) < 0.1
    scales = np.sqrt([abs(np.linalg.det(np.reshape(one.deformation.matrix, (2, 2)))) for one in draws])
    assert scales.min() > 1 / 1.1001
    assert scales.max() < 1.1001
    gammas = np.array([one.grey.gamma for one in draws])
    assert abs(np.log(gammas).mean()) < 0.02
    assert (gammas.min(), gammas.max()) == (pytest.approx(1 / 1.3, rel=0.01), pytest.approx(1.3, rel=0.01))
    assert max(abs(one.grey.brightness) for one in draws) == pytest.approx(0.25, rel=0.01)
    for name in ("noise", "blur"):
        assert abs(np.mean([getattr(one.grey, name) > 0 for one in draws]) - 0.25) < 0.04


def test_angles_are_spread_over_the_whole_turn_or_within_the_limit() -> None:
    for limit in (180.0, 20.0):
        settings = replace(Augmentation.none(), rotation=limit)
        matrices = [drawn(settings, number).deformation.matrix for number in range(2000)]
        angles = np.degrees([np.arctan2(matrix[1], matrix[0]) for matrix in matrices])
        counts, _ = np.histogram(angles, 8, (-limit, limit))
        assert counts.sum() == 2000
        assert counts.min() > 180


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_gpu_is_never_waited_for_and_gives_the_same_up_to_rounding() -> None:
    draws = [drawn(replace(ALL, noise=0), number) for number in range(4)]
    expected = augmented(draws, [0, 1, 2, 3])
    parts = [
        [window(source, one.deformation.window_side(TILE), n).cuda() for n, one in enumerate(draws)]
        for source in (IMAGE, CLASSES, BORDER_WEIGHTS)
    ]
    augment(*parts, draws, tile=TILE, output=OUTPUT)  # the first call may wait for initialisation
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = augment(*parts, draws, tile=TILE, output=OUTPUT)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.allclose(found[0].cpu(), expected[0], atol=1e-3)
    assert (found[1].cpu() == expected[1]).float().mean() > 0.999


def test_a_draw_can_be_put_together_by_hand() -> None:
    one = Draw(Deformation.of(TILE, degrees=90), GreyChange())
    images, _, _ = augmented([one], [0])
    assert np.array_equal(images[0], np.rot90(window(IMAGE, TILE, 0).numpy(), axes=(1, 2)))


def images(batch: int = 3, channels: int = 2, height: int = 21, width: int = 34) -> torch.Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1))


def changed(**strengths: float) -> tuple[torch.Tensor, torch.Tensor]:
    """One image before and after a grey value change."""
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
