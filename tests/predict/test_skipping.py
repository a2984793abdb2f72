"""--mask, --skip-below and --roi: skipped cells are background, and the others do not change, whatever the blocks."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from helpers import Output, grey, read_receipts, write_model, write_placed, write_zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Box
from unetcli.engine.runfolder import RunFolder
from unetcli.planning import planner
from unetcli.predict.predictor import predict_blocks
from unetcli.predict.request import PredictRequest
from unetcli.predict.run import PredictSummary, predict_share, predict_volume, resolve_step
from unetcli.predict.skipping import Mask, factor
from unetcli.predict.step import PredictStep
from unetcli.volumes.image import marker
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import Volume

SHAPE = (3, 150, 200)
SIDES = (1, 64, 64)
TILES = (60, 68, 124)
REGIONS: list[tuple[tuple[int, int], ...]] = [
    ((1, 2), (33, 150), (65, 131)),
    ((0, 3), (63, 65), (0, 200)),
    ((2, 3), (77, 78), (101, 102)),
    ((0, 1), (149, 150), (199, 200)),
]


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(planner, "CHUNK", 40)  # block edges do not lie on edges of cells
    monkeypatch.setattr(planner, "BLOCK_LIMIT", 80)


@pytest.fixture
def cells() -> NDArray[np.bool_]:
    """Mask of cells, with sections in which all, some and none are computed."""
    wanted = np.random.default_rng(4).random((3, 3, 4)) < 0.4
    wanted[1], wanted[2, 0], wanted[2, 1:, 1:] = True, True, False
    return wanted


@pytest.fixture
def request_(model: Path) -> PredictRequest:
    write_zarr(Path("big.zarr"), grey(*SHAPE), chunks=(1, 32, 48))
    return PredictRequest(volume="big.zarr", tile=68, device="cpu")


def spread(cells: NDArray[Any], shape: tuple[int, ...] = SHAPE) -> NDArray[Any]:
    """Values of cells, repeated for each of their voxels."""
    for axis, (n, side) in enumerate(zip(shape, SIDES, strict=True)):
        cells = np.take(cells, np.arange(n) // side, axis=axis)
    return cells


def one_voxel_each(cells: NDArray[np.bool_], seed: int = 3) -> NDArray[np.uint8]:
    """Mask with a single nonzero voxel at a random place in each selected cell."""
    chance, mask = np.random.default_rng(seed), np.zeros(SHAPE, np.uint8)
    for z, y, x in np.argwhere(cells):
        mask[z, chance.integers(64 * y, min(64 * y + 64, 150)), chance.integers(64 * x, min(64 * x + 64, 200))] = 7
    return mask


def predicted(request: PredictRequest, **changes: Any) -> NDArray[Any]:
    """Values that a prediction would store, (c,) z, y, x; computed block by block, but not stored."""
    step = resolve_step(replace(request, **changes))
    values = np.empty((step.plan.settings.outputs, *step.plan.region.shape), step.plan.settings.dtype)
    for block in step.predict(range(step.plan.blocks)):
        assert block.values is not None
        values[(slice(None), *step.plan.output_box(block.block).slices)] = block.values
    return values[0] if len(values) == 1 else values


def stored(path: str) -> NDArray[Any]:
    return np.asarray(zarr.open_array(f"{path}/0", mode="r")[...])


def test_a_region_of_interest_is_the_crop_of_the_whole(request_: PredictRequest) -> None:
    whole = predicted(request_, dtype="float32")
    for roi, tile in itertools.product(REGIONS, (60, 68)):
        crop = whole[tuple(slice(*side) for side in roi)]
        part = predicted(request_, dtype="float32", roi=roi, tile=tile)
        assert part.shape == crop.shape
        assert np.abs(part - crop).max() < 2e-5


def test_a_region_in_plane_applies_to_every_section(request_: PredictRequest) -> None:
    whole = predicted(request_).astype(int)
    part = predicted(request_, roi=((None, 51), (7, None)))
    assert np.abs(part - whole[:, :51, 7:]).max() <= 1


@pytest.mark.by_default("124")
@pytest.mark.parametrize("tile", TILES)
def test_cells_of_a_mask_are_as_without_it_and_the_others_zero(
    request_: PredictRequest, cells: NDArray[np.bool_], tile: int
) -> None:
    write_zarr(Path("mask.zarr"), one_voxel_each(cells), chunks=(2, 50, 70))
    plain = predicted(request_, tile=tile)
    masked = predicted(request_, tile=tile, mask="mask.zarr")
    assert np.array_equal(masked, np.where(spread(cells), plain, 0))


@pytest.mark.by_default("124")
@pytest.mark.parametrize("tile", TILES)
def test_dark_cells_are_skipped_and_the_others_are_as_without_it(model: Path, tile: int, cells: NDArray[Any]) -> None:
    values = grey(*SHAPE) // 4 + 90 * (one_voxel_each(cells) > 0).astype(np.uint8)
    values[0, 0, 0] = 90  # equal to the threshold: computed
    write_zarr(Path("dark.zarr"), values)
    cells[0, 0, 0] = True
    request = PredictRequest(volume="dark.zarr", tile=tile, device="cpu")
    plain, skipped = predicted(request), predicted(request, skip_below=90)
    assert np.array_equal(skipped, np.where(spread(cells), plain, 0))


@pytest.mark.parametrize("way", ["mask", "skip-below"])
def test_a_region_does_not_move_the_cells(request_: PredictRequest, cells: NDArray[np.bool_], way: str) -> None:
    """Whether a cell is computed depends on all of its voxels, including those outside the region."""
    mask = one_voxel_each(cells)
    write_zarr(Path("mask.zarr"), mask)
    write_zarr(Path("bright.zarr"), grey(*SHAPE) // 4 + 90 * (mask > 0).astype(np.uint8))
    change: dict[str, Any] = {"mask": "mask.zarr"} if way == "mask" else {"volume": "bright.zarr", "skip_below": 90}
    whole = predicted(request_, dtype="float32", **change)
    for roi in REGIONS:
        part = predicted(request_, dtype="float32", roi=roi, **change)
        crop = tuple(slice(*side) for side in roi)
        assert np.array_equal(part == 0, ~spread(cells)[crop])
        assert np.abs(part - whole[crop]).max() < 2e-5


def test_mask_and_skip_below_together_compute_the_cells_that_both_select(
    request_: PredictRequest, cells: NDArray[Any]
) -> None:
    bright = np.random.default_rng(9).random(cells.shape) < 0.5
    write_zarr(Path("dark.zarr"), grey(*SHAPE) // 4 + 90 * (one_voxel_each(bright) > 0).astype(np.uint8))
    write_zarr(Path("mask.zarr"), one_voxel_each(cells, seed=8))
    dark = replace(request_, volume="dark.zarr")
    plain = predicted(dark)
    both = predicted(dark, mask="mask.zarr", skip_below=90.0)
    assert np.array_equal(both, np.where(spread(cells & bright), plain, 0))


def test_the_result_does_not_depend_on_the_blocks(
    request_: PredictRequest, cells: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_zarr(Path("mask.zarr"), one_voxel_each(cells))
    first = predicted(request_, mask="mask.zarr", dtype="float32")
    for chunk, limit in ((40, 40), (80, 120), (512, 4096)):
        monkeypatch.setattr(planner, "CHUNK", chunk)
        monkeypatch.setattr(planner, "BLOCK_LIMIT", limit)
        other = predicted(request_, mask="mask.zarr", dtype="float32")
        assert np.array_equal(first == 0, other == 0)
        assert np.abs(first - other).max() < 2e-5


def test_shares_and_a_single_run_give_the_same_bytes(request_: PredictRequest, cells: NDArray[Any]) -> None:
    write_zarr(Path("mask.zarr"), one_voxel_each(cells))
    request = replace(request_, mask="mask.zarr", skip_below=250)
    single = predicted(request)
    summaries = [predict_share(replace(request, output=Path("shares.zarr")), (n, 3)) for n in range(3)]
    assert [summary.complete for summary in summaries] == [False, False, True]
    assert np.array_equal(stored("shares.zarr"), single)


@pytest.mark.by_default("up-(1, 5, 3)", "down-(1, 5, 3)", "16")
@pytest.mark.parametrize("by", [(1, 2, 2), (3, 4, 4), (1, 5, 3), (1, 16, 16)], ids=str)
@pytest.mark.parametrize("rounded", ["up", "down"])
def test_a_coarser_mask_selects_the_cells_that_its_voxels_overlap(
    request_: PredictRequest, by: tuple[int, int, int], rounded: str
) -> None:
    shape = tuple(-(-n // f) if rounded == "up" else n // f for n, f in zip(SHAPE, by, strict=True))
    coarse = np.random.default_rng(5).random(shape) < 0.01
    write_zarr(Path("mask.zarr"), coarse, chunks=(1, 17, 19))
    places = [np.minimum(np.arange(n) // f, m - 1) for n, f, m in zip(SHAPE, by, shape, strict=True)]
    assert [factor(n, m) for n, m in zip(SHAPE, shape, strict=True)] == list(by)
    fine = Volume(path="fine", array=coarse[np.ix_(*places)].astype(np.uint16), stored_axes="zyx")
    source = open_volume("big.zarr")
    masks = [Mask.over(volume, source, SIDES) for volume in (open_volume("mask.zarr"), fine)]
    corners = itertools.product(*(range(0, n, side) for n, side in zip(SHAPE, (2, 40, 40), strict=True)))
    for corner in corners:
        box = Box(corner, tuple(a + side for a, side in zip(corner, (2, 40, 40), strict=True)))
        active = [mask.active_cells(box.clipped(source.whole())).cells for mask in masks]
        assert np.array_equal(*active)
    assert len({mask.fingerprint(source.whole()) for mask in masks}) == 1
    assert 0 < masks[0].active_cells(source.whole()).cells.mean() < 1


def test_a_coarser_mask_gives_the_result_and_fingerprint_of_the_upsampled_one(request_: PredictRequest) -> None:
    coarse = np.random.default_rng(5).random((3, 10, 13)) < 0.02  # 16 x 16 voxels each, the last ones more or less
    write_zarr(Path("mask.zarr"), coarse, chunks=(1, 7, 9))
    places = [np.minimum(np.arange(n) // f, m - 1) for n, f, m in zip(SHAPE, (1, 16, 16), coarse.shape, strict=True)]
    write_zarr(Path("fine.zarr"), coarse[np.ix_(*places)].astype(np.uint16))
    assert predict_volume(replace(request_, mask="mask.zarr")).complete
    run = stored("big.pred.zarr")
    assert run.any()
    assert not run.all()
    assert predict_volume(replace(request_, mask="fine.zarr")).computed == 0
    assert np.array_equal(run, predicted(request_, output=Path("fine.pred.zarr"), mask="fine.zarr"))


def test_wholly_skipped_blocks_have_receipts_and_no_tile(request_: PredictRequest, cells: NDArray[Any]) -> None:
    write_zarr(Path("mask.zarr"), one_voxel_each(cells))
    predict_volume(replace(request_, mask="mask.zarr"))
    folder = Path("big.pred.zarr.run/predict")
    step, wanted = PredictStep.open(RunFolder(folder)), spread(cells)
    tiles = {receipt.block: receipt.tile for receipt in read_receipts(folder / "receipts")}
    assert sorted(tiles) == list(range(step.plan.blocks))
    empty = {n for n in tiles if not wanted[step.plan.block(n).box.slices].any()}
    assert 0 < len(empty) < len(tiles)
    assert {n for n, tile in tiles.items() if tile == 0} == empty


def test_chunks_that_only_excluded_cells_need_are_not_read(request_: PredictRequest) -> None:
    """All chunks that no computed voxel needs are damaged, so that reading one would fail."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[1, 130, 10] = 1  # one cell: y 128:150, x 0:64
    write_zarr(Path("mask.zarr"), mask)
    plain = predicted(request_, roi=((1, 2), (128, 150), (0, 64)))
    needed = {(1, y, x) for y, x in itertools.product(range((128 - 24) // 32, 5), range((64 + 24) // 48 + 1))}
    damaged = 0
    for chunk in Path("big.zarr/c").rglob("*"):
        place = tuple(map(int, chunk.relative_to("big.zarr/c").parts))
        if len(place) == 3 and place not in needed:
            chunk.write_bytes(b"damaged")
            damaged += 1
    assert damaged > 60
    whole = Output(Path("masked.zarr"), resolve_step(replace(request_, mask="mask.zarr")).plan)
    masked = predicted(request_, mask="mask.zarr", tile=44)
    assert whole.plan.blocks > 9
    assert np.abs(masked[1, 128:, :64].astype(int) - plain[0]).max() <= 1
    assert masked.astype(int).sum() == masked[1, 128:, :64].astype(int).sum()


class Counting:
    """Array that counts the voxels that are read."""

    def __init__(self, array: Any) -> None:
        self.array, self.shape, self.dtype, self.chunks = array, array.shape, array.dtype, array.shape
        self.voxels = 0

    def __getitem__(self, picks: Any) -> NDArray[Any]:
        values = np.asarray(self.array[picks])
        self.voxels += values.size
        return values


def test_a_block_reads_the_hull_of_its_computed_tiles_and_an_empty_one_nothing(
    request_: PredictRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "CHUNK", 512)
    mask = np.zeros(SHAPE, np.uint8)
    mask[1, 70, 70] = 1
    write_zarr(Path("mask.zarr"), mask)
    step = resolve_step(replace(request_, tile=44, mask="mask.zarr"))
    counting = Counting(grey(*SHAPE))
    source = replace(step.source, array=counting)
    for _ in predict_blocks(step.plan, step.predictor, source, range(step.plan.blocks), mask=step.mask):
        pass
    assert 0 < counting.voxels <= (64 + 2 * 24) ** 2


def test_nan_in_excluded_cells_is_no_error_and_does_not_spread(tmp_path: Path) -> None:
    write_model(tmp_path / "model", dtype="float32", mean=0.25, std=1.0)
    values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    cells = np.ones((3, 3, 4), np.bool_)
    cells[0, 1, 1:3], cells[2] = False, False
    write_zarr(Path("mask.zarr"), spread(cells).astype(np.uint8))
    write_zarr(Path("filled.zarr"), np.where(spread(cells), values, np.float32(0.25)))
    write_zarr(Path("nan.zarr"), np.where(spread(cells), values, np.float32("nan")))
    results = []
    for tile, volume in itertools.product((60, 68), ("nan", "filled")):
        request = PredictRequest(volume=f"{volume}.zarr", device="cpu", mask="mask.zarr", tile=tile, dtype="float32")
        results.append(predicted(request))
    assert np.array_equal(results[0], results[1])  # the mean replaces them, also next to computed cells
    assert np.array_equal(results[2], results[3])
    assert np.abs(results[0] - results[2]).max() < 2e-5


def test_nan_in_a_computed_cell_is_set_aside_whatever_is_skipped(tmp_path: Path) -> None:
    write_model(tmp_path / "model", dtype="float32", mean=0.0, std=1.0)
    values = np.zeros(SHAPE, np.float32)
    values[1, 70, 70] = np.nan
    write_zarr(Path("nan.zarr"), values)
    request = PredictRequest(volume="nan.zarr", device="cpu", tile=68, skip_below=0.5)
    summary: PredictSummary = predict_volume(request)
    assert not summary.complete
    assert {aside["reason"].split("first at ")[1].split(";")[0] for aside in summary.set_aside} == {
        "z 1:2, y 70:71, x 70:71"
    }
    assert (
        predicted(request, output=Path("filled.zarr"), nonfinite=0.0).max() == 0
    )  # the replacement is compared with the threshold


def test_skipped_voxels_are_the_first_of_several_classes_with_certainty(tmp_path: Path) -> None:
    write_model(tmp_path / "model", classes=3)
    write_zarr(Path("flat.zarr"), grey(70, 150))
    write_zarr(Path("mask.zarr"), np.pad(np.ones((64, 64), np.uint8), ((0, 6), (0, 86))))
    for dtype, one in (("uint8", 255), ("float32", 1.0)):
        result = predicted(PredictRequest(volume="flat.zarr", device="cpu", mask="mask.zarr", dtype=dtype))
        for outside in (result[:, 64:], result[:, :, 64:]):
            assert (outside[0] == one).all()
            assert not outside[1:].any()
        assert len(np.unique(result[:, :64, :64])) > 20


def test_a_mask_that_selects_other_cells_is_refused_in_a_rerun(request_: PredictRequest, cells: NDArray[Any]) -> None:
    write_zarr(Path("mask.zarr"), one_voxel_each(cells))
    write_zarr(Path("moved.zarr"), one_voxel_each(cells, seed=77))  # other voxels of the same cells
    write_zarr(Path("other.zarr"), one_voxel_each(~cells))
    request = replace(request_, mask="mask.zarr")
    predict_volume(request)
    assert predict_volume(replace(request, mask="moved.zarr")).computed == 0
    for change, named in (
        ({"mask": "other.zarr"}, "mask"),
        ({"mask": None}, "mask"),
        ({"skip_below": 3}, "skip_below"),
    ):
        with pytest.raises(UnetcliError, match=named):
            predict_volume(replace(request, **change))  # type: ignore[arg-type]


def test_a_mask_may_change_outside_the_region(request_: PredictRequest, cells: NDArray[Any]) -> None:
    sections = replace(request_, sections=(0, 2), mask="mask.zarr")
    write_zarr(Path("mask.zarr"), spread(cells).astype(np.uint8))
    predict_volume(sections)
    zarr.open_array("mask.zarr", mode="r+")[2] = 0
    assert predict_volume(sections).computed == 0


@pytest.mark.parametrize(
    ("mask", "names", "message"),
    [
        ((3, 150, 199), None, "--mask mask.zarr: shape 3 x 150 x 199; expected 3 x 150 x 200"),
        ((3, 300, 400), None, "3 x 300 x 400"),
        ((150, 200), None, "axes y, x; expected z, y, x"),
        ((2, 150, 200), ["t", "y", "x"], "axes t, y, x; expected z, y, x"),
        ((2, 3, 150, 200), ["c", "z", "y", "x"], "2 channels"),
    ],
    ids=str,
)
def test_a_mask_that_does_not_fit_is_refused_in_one_line(
    request_: PredictRequest, mask: tuple[int, ...], names: list[str] | None, message: str
) -> None:
    zarr.create_array("mask.zarr", shape=mask, dtype="uint8", dimension_names=names)
    with pytest.raises(UnetcliError, match=message) as caught:
        predict_volume(replace(request_, mask="mask.zarr"))
    assert "\n" not in str(caught.value)
    assert not list(Path().glob("*.pred.zarr*"))


def test_an_output_does_not_touch_the_mask_and_nan_is_no_threshold(request_: PredictRequest) -> None:
    write_zarr(Path("mask.zarr"), np.ones(SHAPE, np.uint8))
    masked = replace(request_, mask="file://mask.zarr")
    with pytest.raises(UnetcliError, match=r"input mask\.zarr"):
        predict_volume(replace(masked, output=Path("mask.zarr"), overwrite=True))
    with pytest.raises(UnetcliError, match="--skip-below nan"):
        predict_volume(replace(request_, skip_below=float("nan")))
    assert predict_volume(masked).complete
    assert marker(Path("mask.zarr")) is None


@given(st.integers(1, 500), st.integers(1, 9), st.booleans())
def test_the_factor_of_a_downsampled_axis_is_found(extent: int, by: int, up: bool) -> None:
    coarse = -(-extent // by) if up else extent // by
    if coarse:
        found = factor(extent, coarse)
        assert coarse in (-(-extent // found), extent // found)
        assert coarse <= 2 * by or found == by


def test_a_fingerprint_depends_on_every_cell(model: Path, cells: NDArray[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unetcli.predict.skipping.HASHED_SIDE", 64)
    monkeypatch.setattr("unetcli.predict.skipping.HASHED_SECTIONS", 2)
    write_zarr(Path("big.zarr"), grey(*SHAPE))
    source, seen = open_volume("big.zarr"), set()
    for place in [None, *map(tuple, np.argwhere(cells | True))]:
        changed = cells.copy()
        if place is not None:
            changed[place] ^= True
        volume = Volume(path="mask", array=spread(changed).astype(np.uint8), stored_axes="zyx")
        seen.add(Mask.over(volume, source, SIDES).fingerprint(source.whole()))
    assert len(seen) == cells.size + 1


def test_a_mask_of_another_place_is_refused_and_one_of_sections_along_t_is_not(
    request_: PredictRequest, cells: NDArray[np.bool_]
) -> None:
    mask = one_voxel_each(cells)
    write_zarr(Path("mask.zarr"), mask, dimension_names=["t", "y", "x"])
    expected = predicted(request_, mask="mask.zarr")
    write_placed(Path("placed.zarr"), grey(*SHAPE), (0.0, 0.0, 80.0))
    placed = replace(request_, volume="placed.zarr", mask="m.zarr")
    for origin in ((0.0, 0.0, 0.0), (0.0, 4.0, 80.0), (50.0, 0.0, 80.0)):
        write_placed(Path("m.zarr"), mask, origin)
        with pytest.raises(
            UnetcliError, match=r"begins at .* but m\.zarr at .*: --mask covers another region; if it do"
        ):
            predict_volume(placed)
    assert not Path("placed.pred.zarr").exists()
    assert np.array_equal(predicted(placed, same_place=True), expected)
    for origin, values in (((0.0, 0.0, 80.0), mask), (None, mask), ((0.0, 2.0, 82.0), mask)):
        write_placed(Path("m.zarr"), values, origin)
        assert np.array_equal(predicted(placed), expected)


def test_a_prediction_states_its_place_where_its_input_does(request_: PredictRequest) -> None:
    write_placed(Path("placed.zarr"), grey(*SHAPE), (0.0, 8.0, 80.0))
    for volume, known in (("big.zarr", False), ("placed.zarr", True)):
        request = replace(request_, volume=volume, roi=((1, 2), (64, 128), (0, 64)))
        opened = open_volume(str(predict_volume(request).output))
        assert (opened.places, known and opened.translation) == (known, known and {"z": 50.0, "y": 264.0, "x": 80.0})
