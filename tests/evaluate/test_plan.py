from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Box
from unetcli.core.records import from_json, to_json
from unetcli.evaluate.plan import FORMAT, EvaluationPlan, Settings, choose_block

SETTINGS = Settings(
    metrics=("voi",),
    kind="labels",
    threshold=0.5,
    three_d=False,
    pieces=False,
    result_pieces=False,
    ignore=None,
    level=0,
)


def plan_of(region: Box, block_shape: tuple[int, ...], **changes: object) -> EvaluationPlan:
    values: dict[str, object] = {
        "axes": "tzyx"[-len(region.shape) :],
        "start": region.start,
        "stop": region.stop,
        "offset": (0,) * len(region.shape),
        "block_shape": block_shape,
        "settings": SETTINGS,
        "prediction": "p",
        "truth": "t",
        "mask": None,
    }
    return EvaluationPlan(**{**values, **changes})  # type: ignore[arg-type]


@given(st.data())
def test_blocks_cover_a_region_once_and_meet_on_multiples_of_their_sides(data: st.DataObject) -> None:
    sides = data.draw(
        st.lists(st.tuples(*[st.integers(0, 9), st.integers(1, 14), st.integers(1, 9)]), min_size=2, max_size=3)
    )
    start, length, side = zip(*sides, strict=True)
    region = Box(start, tuple(a + n for a, n in zip(start, length, strict=True)))
    offset = tuple(a // 2 for a in start)
    plan = plan_of(region, side, offset=offset)
    seen = np.zeros(region.stop, np.int64)
    for number in range(plan.blocks):
        box = plan.box(number)
        seen[box.slices] += 1
        for a, first, stop, by, o in zip(box.start, region.start, region.stop, side, offset, strict=True):
            assert a == first or (by < stop - first and (a - o) % by == 0)
    assert (seen[region.slices] == 1).all()
    assert seen.sum() == region.size == plan.grid.voxels(np.ones(plan.blocks, np.bool_))


def test_slabs_are_blocks_that_together_cover_whole_sections() -> None:
    plan = plan_of(Box((3, 0, 0), (8, 20, 30)), (2, 8, 30))
    slabs = [[plan.box(number) for number in slab] for slab in plan.slabs()]
    assert [sum(box.size for box in slab) for slab in slabs] == [600, 1200, 1200]
    assert [{(box.start[0], box.stop[0]) for box in slab} for slab in slabs] == [{(3, 4)}, {(4, 6)}, {(6, 8)}]


def test_sections_are_numbered_in_the_region_and_found_again() -> None:
    plan = plan_of(Box((1, 3, 4, 5), (3, 6, 9, 9)), (1, 1, 5, 4))
    places = [plan.section_box(number).start for number in range(plan.sections)]
    assert places == [(t, z, 4, 5) for t in (1, 2) for z in (3, 4, 5)]
    assert [plan.section_number(place) for place in places] == list(range(6))


def test_units_are_volumes_of_z_y_x_if_objects_extend_over_sections() -> None:
    through = replace(SETTINGS, metrics=("cells",), three_d=True)
    plan = plan_of(Box.of_shape((2, 3, 9, 9)), (1, 3, 9, 9), settings=through)
    assert (plan.units, [plan.unit_of(section) for section in range(6)]) == (2, [0, 0, 0, 1, 1, 1])
    assert plan_of(Box.of_shape((2, 3, 9, 9)), (1, 3, 9, 9)).units == 6


def test_blocks_contain_whole_sections_for_em() -> None:
    settings = replace(SETTINGS, metrics=("em",), kind="probability")
    region = Box.of_shape((70, 5000, 4000))
    block = choose_block(region, (64, 64, 64), settings)
    assert block[1:] == (5000, 4000)
    assert block[0] * 5000 * 4000 <= 2**25
    assert plan_of(region, block, settings=settings).sees_sections


def test_blocks_are_as_large_as_the_limit_allows_and_never_smaller_than_a_chunk() -> None:
    region = Box.of_shape((900, 30000, 20000))
    assert choose_block(region, (1, 512, 512), SETTINGS) == (1, 2048, 4096)
    assert choose_block(region, (1, 512, 512), SETTINGS, limit=1000) == (1, 512, 512)
    assert choose_block(Box.of_shape((5, 13, 22)), (5, 512, 512), SETTINGS) == (5, 13, 22)


def test_a_plan_can_be_restored_from_its_json() -> None:
    plan = plan_of(Box((3, 0, 0), (8, 20, 30)), (2, 8, 30), mask="m")
    assert from_json(EvaluationPlan, to_json(plan, FORMAT), FORMAT, "plan") == plan
    with pytest.raises(UnetcliError, match=f"version 7; this unetcli reads version {FORMAT}"):
        from_json(EvaluationPlan, to_json(plan, 7), FORMAT, "plan")
