"""Resolution of a request: which sections are trained on, held out, or never read."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers import grey, write_zarr
from hypothesis import given
from hypothesis import strategies as st
from train.scenes import TINY, discs, volume, write_discs

from unetcli.core.errors import UnetcliError
from unetcli.core.options import Sections
from unetcli.train.data_checks import require_pairs
from unetcli.train.folder import TrainingFolder
from unetcli.train.loop import Training
from unetcli.train.request import TrainRequest
from unetcli.train.resolve import resolve_training
from unetcli.train.sections import split_sections
from unetcli.train.settings import Ranges
from unetcli.volumes.volume import Volume


def images(*counts: int) -> list[Volume]:
    """Stacks with these numbers of sections; 0 stands for a single image."""
    return [volume(grey(*((n, 5, 6) if n else (5, 6))), path=f"raw{k}.zarr") for k, n in enumerate(counts)]


def asked(
    sections: Sections = (None, None), validation: Sections | None = None, fraction: float | None = None
) -> TrainRequest:
    return replace(TINY, sections=sections, validation=validation, validation_fraction=fraction)


@pytest.mark.filterwarnings("ignore:<tifffile")
@pytest.mark.parametrize(
    ("labelled", "choice", "axes"),
    [((3, 40, 50), "", "zyx"), ((40, 50), ":axes=cyx", "yx")],
    ids=["sections", "colours"],
)
def test_planes_like_colours_are_sections_unless_the_name_says_channels(
    tmp_path: Path, labelled: tuple[int, ...], choice: str, axes: str
) -> None:
    paths = tmp_path / "raw.tif", tmp_path / "labels.tif"
    tifffile.imwrite(paths[0], grey(3, 40, 50))
    tifffile.imwrite(paths[1], grey(*labelled) // 128)
    ((raw, labels),) = require_pairs(replace(TINY, pair=((f"{paths[0]}{choice}", str(paths[1])),)))
    assert (raw.axes, labels.axes, raw.channels * math.prod(raw.extent)) == (axes, axes, 3 * 40 * 50)


@pytest.mark.parametrize(
    ("counts", "request_", "expected"),
    [
        ([30], asked(), (((0, 27),), ((27, 30),))),
        ([30], asked((0, 20)), (((0, 18),), ((18, 20),))),
        ([30], asked((0, 20), fraction=0.0), (((0, 20),), ((20, 20),))),
        ([30], asked((0, 17), (17, 20)), (((0, 17),), ((17, 20),))),
        ([30], asked((0, 20), (17, 20)), (((0, 17),), ((17, 20),))),
        ([30], asked((5, 20), (2, 4)), (((5, 20),), ((2, 4),))),
        ([30], asked(validation=(25, 28)), (((0, 25),), ((25, 28),))),
        ([30], asked(validation=(0, 3)), (((3, 30),), ((0, 3),))),
        ([4, 5], asked(), (((0, 3), (0, 4)), ((3, 4), (4, 5)))),
        ([4, 0, 5], asked((2, 7)), (((2, 3), (0, 1), (0, 1)), ((3, 4), (1, 1), (1, 2)))),
        ([4, 0, 5], asked(validation=(5, 10)), (((0, 4), (0, 1), (0, 0)), ((4, 4), (1, 1), (0, 5)))),
        ([0], asked(), (((0, 1),), ((1, 1),))),
        ([1], asked(), (((0, 1),), ((1, 1),))),
        ([2], asked(), (((0, 1),), ((1, 2),))),
    ],
    ids=[
        "the last tenth",
        "of those named",
        "none wanted",
        "both named",
        "held out of those named",
        "held out before",
        "up to those held out",
        "after those held out",
        "two pairs",
        "counted through pairs",
        "a pair held out",
        "a single image",
        "a stack of one",
        "a stack of two",
    ],
)
def test_which_sections_are_trained_on_and_held_out(
    counts: list[int], request_: TrainRequest, expected: tuple[Ranges, Ranges]
) -> None:
    assert split_sections(request_, images(*counts)) == expected


@pytest.mark.parametrize(
    ("counts", "request_", "message"),
    [
        ([8], asked((5, 20)), r"--sections 5:20.*0:8"),
        ([8], asked(validation=(5, 20)), r"--validation 5:20.*0:8"),
        ([8], asked((0, 8), (3, 5)), r"--validation 3:5: overlaps the training sections 0:8"),
        ([8], asked((0, 5), (0, 2)), r"--validation 0:2: overlaps the training sections 0:5"),
        ([8], asked(validation=(0, 8)), r"--validation 0:8: leaves no section to train on; hold out fewer"),
        ([8], asked((5, 8), (3, 8)), r"--validation 3:8: leaves no section to train on; hold out fewer"),
        ([4, 4], asked((9, 10)), r"all 2 pairs together"),
        ([8], asked(fraction=1.0), r"--validation-fraction 1.0: expected 0 <= fraction < 1"),
        ([8], asked(fraction=-0.1), r"--validation-fraction -0.1"),
    ],
    ids=["outside", "held out outside", "amid", "at the start", "all", "all named", "pairs", "fraction 1", "below 0"],
)
def test_what_cannot_be_split_is_refused_in_one_line(counts: list[int], request_: TrainRequest, message: str) -> None:
    with pytest.raises(UnetcliError, match=message) as caught:
        split_sections(request_, images(*counts))
    assert "\n" not in str(caught.value)


ENDS = st.none() | st.integers(0, 20)


@given(
    counts=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    sections=st.tuples(ENDS, ENDS),
    validation=st.none() | st.tuples(ENDS, ENDS),
    fraction=st.none() | st.floats(0, 0.99),
)
def test_no_section_is_both_trained_on_and_held_out_or_outside_what_was_named(
    counts: list[int], sections: Sections, validation: Sections | None, fraction: float | None
) -> None:
    try:
        training, held_out = split_sections(asked(sections, validation, fraction), images(*counts))
    except UnetcliError:
        return
    numbers = [max(count, 1) for count in counts]
    together = list(range(sum(numbers)))
    named = set(together[slice(*sections)]) | (set(together[slice(*validation)]) if validation else set())
    before = np.cumsum([0, *numbers])
    sets = [
        {int(before[pair]) + n for pair, (first, stop) in enumerate(ranges) for n in range(first, stop)}
        for ranges in (training, held_out)
    ]
    assert not sets[0] & sets[1]
    assert sets[0] | sets[1] <= named
    assert sets[0]
    assert all(0 <= a <= b <= n for ranges in (training, held_out) for (a, b), n in zip(ranges, numbers, strict=True))
    if validation:
        assert sets[1] == set(together[slice(*validation)])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_discs(tmp_path)
    return tmp_path


def resolved(request: TrainRequest) -> Training:
    return resolve_training(request, TrainingFolder(request.output), None)


def test_sections_that_are_neither_trained_on_nor_held_out_are_not_read(here: Path) -> None:
    """Sections 0, 3 and from 6 on cannot be used: NaN in the images, invalid labels."""
    raw, labels = discs()
    request = replace(TINY, sections=(1, 3), validation=(4, 6))
    clean = resolved(request)
    for z in (0, 3, 6, 7):
        labels[z] = grey(64, 72)
    write_zarr(
        here / "raw2.zarr", np.where(np.isin(np.arange(8), [0, 3, 6, 7])[:, None, None], np.nan, raw).astype("f4")
    )
    write_zarr(here / "labels2.zarr", labels)
    dirty = resolved(replace(request, pair=(("raw2.zarr", "labels2.zarr"),)))
    assert dirty.config.rules == clean.config.rules
    assert (dirty.statistics.mean, dirty.statistics.std) == pytest.approx((clean.statistics.mean, clean.statistics.std))
    assert dirty.statistics.class_counts.tolist() == clean.statistics.class_counts.tolist()
    for number in range(20):
        assert np.array_equal(dirty.sampler().sample(number).image, clean.sampler().sample(number).image)


def test_a_held_out_pair_alone_says_nothing_of_the_other_s_sections(here: Path) -> None:
    """The second pair is held out completely; unused sections of the first may hold any values."""
    labels = discs()[1]
    labels[6:] = grey(2, 64, 72)
    write_zarr(here / "a.zarr", labels)
    request = replace(
        TINY, pair=(("raw.zarr", "a.zarr"), ("raw.zarr", "labels.zarr")), sections=(0, 6), validation=(8, 16)
    )
    assert resolved(request).config.rules.truth == "binary"


def test_defaults_are_those_of_the_recipe_and_options_precede_them(here: Path) -> None:
    bare = replace(TINY, optimizer=None, lr=None, recipe="fast", steps=100)
    fast = resolved(bare).config.optimisation
    assert (fast.optimizer, fast.schedule, fast.learning_rate, fast.steps) == ("adamw", "cosine", 3e-3, 100)
    paper = resolved(replace(bare, recipe="paper")).config
    assert (paper.optimisation.optimizer, paper.optimisation.momentum) == ("sgd", 0.99)
    assert (paper.optimisation.schedule, paper.optimisation.steps) == ("constant", None)
    mixed = resolved(replace(bare, recipe="paper", optimizer="adam", ema=0.5, batch_norm=True)).config
    assert (mixed.optimisation.momentum, mixed.optimisation.learning_rate, mixed.optimisation.ema) == (0.9, 1e-3, 0.5)
    assert mixed.architecture.batch_norm


def test_no_augment_switches_off_all_but_what_is_asked_for(here: Path) -> None:
    found = resolved(replace(TINY, augment=False, rotation=30.0)).config.augmentation
    assert (found.rotation, found.elastic, found.flip, found.noise) == (30.0, 0.0, False, 0.0)


@pytest.mark.parametrize("measure", ["rand_error", "pixel_error", "seg"])
def test_measures_of_two_classes_are_refused_for_more(here: Path, measure: str) -> None:
    labels = discs()[1]
    labels[:, 50:] = 2
    write_zarr(here / "classes.zarr", labels)
    three = replace(TINY, pair=(("raw.zarr", "classes.zarr"),), truth="classes")
    with pytest.raises(
        UnetcliError, match=rf"--select {measure}: only for two classes; for 3, use pixel_disagreement or iou"
    ):
        resolved(replace(three, select=measure))
    assert resolved(replace(three, select="iou")).config.select == "iou"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "--steps 0: expected at least 1"),
        ({"patience": 0}, "--patience 0: expected at least 1"),
        ({"validate_every": -3}, "--validate-every -3"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"minutes": 0.0}, "--minutes 0.0: expected a number above 0"),
        ({"checkpoint_minutes": float("nan")}, "--checkpoint-minutes nan"),
        ({"recipe": "slow"}, "--recipe slow: expected fast or paper"),
        ({"select": "dice"}, "--select dice: expected one of pixel_disagreement"),
        ({"pair": ()}, "no images"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_request_that_cannot_be_meant_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UnetcliError, match=message):
        replace(TINY, **change)  # type: ignore[arg-type]
