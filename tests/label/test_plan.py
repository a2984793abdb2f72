"""Blocks and stages of a labelling plan."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from label.maps import plan_of

from unetcli.core.errors import UnetcliError
from unetcli.core.records import from_json, to_json
from unetcli.engine.clusters import job_request
from unetcli.engine.runfolder import RunFolder
from unetcli.executors.options import ClusterOptions
from unetcli.executors.slurm.request import SlurmRequest
from unetcli.label.finding import working_bytes
from unetcli.label.plan import FORMAT, LabelPlan, Settings, choose_block, differences
from unetcli.label.step import LabelPaths, LabelStep
from unetcli.planning.plan import pending

SHAPES = st.integers(2, 4).flatmap(
    lambda n: st.tuples(st.tuples(*[st.integers(1, 60 // n**2)] * n), st.tuples(*[st.integers(1, 9)] * n))
)


@given(SHAPES, st.integers(1, 5000), st.booleans())
def test_blocks_are_whole_chunks_within_the_limit(
    sizes: tuple[tuple[int, ...], tuple[int, ...]], limit: int, three_d: bool
) -> None:
    shape, chunks = sizes
    block = choose_block(shape, "tzyx"[-len(shape) :], chunks, limit, three_d=three_d)
    assert all(side % chunk == 0 for side, chunk in zip(block, chunks, strict=True))
    assert math.prod(block) <= max(limit, math.prod(chunks))
    assert all(side < n + chunk for side, n, chunk in zip(block, shape, chunks, strict=True))


@given(SHAPES)
def test_blocks_cover_a_volume_once(sizes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    shape, block = sizes
    plan = plan_of(shape, block)
    covered = np.zeros(shape, np.int64)
    for piece in range(plan.pieces):
        covered[plan.box(piece).slices] += 1
    assert (covered == 1).all()


@given(SHAPES, st.booleans())
def test_a_block_sees_right_behind_it_what_its_neighbours_own(
    sizes: tuple[tuple[int, ...], tuple[int, ...]], three_d: bool
) -> None:
    shape, block = sizes
    plan = plan_of(shape, block, three_d=three_d and len(shape) > 2, connectivity=4)
    for piece in range(plan.pieces):
        extended = plan.extended(piece)
        seen = plan.box(piece).size
        for step, other in plan.neighbours(piece, 1):
            assert (tuple(-d for d in step), piece) in plan.neighbours(other, -1)
            seen += plan.box(other).clipped(extended).size
        assert seen == extended.size


def test_stages_follow_each_other_and_share_no_block() -> None:
    plan = plan_of((4, 900, 1100), (1, 512, 512), levels=2)
    assert [stage.name for stage in plan.stages] == ["find", "merge", "number", "level"]
    assert [number for stage in plan.stages for number in stage.blocks] == list(range(plan.blocks))
    missing = np.arange(plan.blocks)
    for stage in plan.stages:
        assert pending(plan.stages, missing).tolist() == list(stage.blocks)
        missing = missing[missing >= stage.blocks.stop]
    assert len(pending(plan.stages, missing)) == 0
    none, every = np.zeros(plan.blocks, np.bool_), np.ones(plan.blocks, np.bool_)
    assert (plan.voxels(none), plan.voxels(every) > 2 * 4 * 900 * 1100) == (0, True)
    with pytest.raises(IndexError):
        plan.stage(plan.blocks)


def test_a_plan_comes_back_from_its_file() -> None:
    plan = plan_of((3, 50, 40), (1, 16, 16), method="watershed", threshold=0.3, voxel_size=(2.5, 1.0, 1.0))
    assert from_json(LabelPlan, to_json(plan, FORMAT), FORMAT, "plan") == plan
    with pytest.raises(UnetcliError, match=f"plan of version 0; this unetcli reads version {FORMAT}"):
        from_json(LabelPlan, to_json(plan, 0), FORMAT, "plan")


def test_differences_are_named_by_option() -> None:
    old, new = plan_of((9, 9), (4, 4)), plan_of((9, 9), (4, 8), min_size=7)
    assert differences(old, old) == []
    assert differences(old, new) == [
        "min-size 7 (was 0)",
        "write chunks (4, 8) (was (4, 4))",
        "block shape (4, 8) (was (4, 4))",
    ]


def test_a_block_of_parts_of_chunks_is_refused() -> None:
    with pytest.raises(UnetcliError, match=r"block of 4 along x: .*chunk 3"):
        plan_of((9, 9), (4, 4), write_chunks=(4, 3))


@pytest.mark.parametrize("method", ["components", "watershed"])
def test_slurm_jobs_ask_for_memory_and_get_many_blocks(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNETCLI_PROFILE", raising=False)
    plan = plan_of((100, 8192, 8192), (1, 2048, 2048), method=method)
    paths = LabelPaths(prediction="big.zarr", output="big.zarr/labels/instances")
    step = LabelStep(folder=RunFolder(Path("run")), plan=plan, paths=paths)
    request, blocks = job_request(ClusterOptions(cluster="slurm"), step)
    assert request.mem is not None
    asked = int(request.mem.removesuffix("G")) * 2**30
    assert working_bytes(plan) + 2**31 <= asked < working_bytes(plan) + 2**31 + 2**30
    assert 50 < blocks < 2000
    assert job_request(ClusterOptions(cluster="slurm", mem="7G", blocks_per_job=3), step) == (
        SlurmRequest(mem="7G", blocks_per_job=3),
        3,
    )
    assert Settings(method=method) == plan.settings
