"""verify finds damage of every kind and repairs it to the same bytes; it finds seams and changed input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from commands import Command
from damage import flip_a_bit, truncate
from helpers import Output, grey, read_receipts, write_model, write_zarr
from numpy.typing import NDArray

from unetcli.core.arrays import checksum
from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Box
from unetcli.engine.receipts import ReceiptBook
from unetcli.engine.runfolder import PREDICT, RunFolder
from unetcli.engine.verify import MISSING, OTHER, READ_BYTES, Verification, find_damage, reader_count
from unetcli.executors.options import VerifyRequest
from unetcli.predict.checks import plan_of_window, windows
from unetcli.predict.request import PredictRequest
from unetcli.predict.run import predict_volume
from unetcli.predict.step import PredictStep
from unetcli.registry import verify_output
from unetcli.volumes.image import Level, marker

OUTPUT = Path("big.pred.zarr")
CLI = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNETCLI_MODEL", raising=False)


def folder() -> RunFolder:
    return RunFolder.of(OUTPUT)


def predicted(*shape: int, **changes: Any) -> PredictRequest:
    """Finish a run; ``whole.zarr`` is a copy of its output."""
    write_zarr(Path("big.zarr"), grey(*(shape or (4, 530, 540))), chunks=(1, 128, 128))
    request = PredictRequest(**{"volume": "big.zarr", "tile": 220, "device": "cpu", **changes})
    assert predict_volume(request).complete
    shutil.copytree(OUTPUT, "whole.zarr")
    return request


def verified(**words: Any) -> Verification:
    (found,) = verify_output(VerifyRequest(output=OUTPUT, **words))
    return found


def array_bytes(path: Path) -> dict[str, bytes]:
    """Return every array file of a store."""
    return {
        str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file() and f.parent != path
    }


def chunk(block: int) -> Path:
    """Return the largest chunk file of a block."""
    plan = PredictStep.open(folder()).plan
    files = [file for file in Output(OUTPUT, plan).files(plan.output_box(plan.block(block))) if file.exists()]
    return max(files, key=lambda file: file.stat().st_size)


def put_zeros(file: Path) -> None:
    """Overwrite a file with zeros of the same length."""
    file.write_bytes(bytes(file.stat().st_size))


def put_another(file: Path) -> None:
    """Replace a chunk by another valid one."""
    shutil.copyfile(chunk(0), file)


DAMAGE = [truncate, flip_a_bit, Path.unlink, put_zeros, put_another]


@pytest.mark.by_default("unlink", "flip_a_bit")
@pytest.mark.parametrize("harm", DAMAGE, ids=lambda harm: harm.__name__)
def test_damage_is_named_and_repaired_to_the_same_bytes(harm: Callable[[Path], None]) -> None:
    predicted()
    harm(chunk(2))
    found = verified()
    assert [(damage.block, damage.place) for damage in found.damaged] == [(2, "z 2:3, y 0:530, x 0:540")]
    assert found.damaged[0].what == OTHER or found.damaged[0].what.startswith("unreadable (")
    assert (found.blocks, found.checked, found.sound) == (4, 4, False)
    before = folder().ledger(4).attempts.tolist()
    mended = verified(repair=True)
    assert (mended.damaged, [damage.block for damage in mended.repaired]) == ([], [2])
    assert mended.complete
    assert array_bytes(OUTPUT) == array_bytes(Path("whole.zarr"))
    assert folder().ledger(4).attempts.tolist() == [before[0], before[1], before[2] + 2, before[3]]  # void, then done
    assert not list(Path().rglob("*.partial"))


def test_a_sound_output_is_left_as_it_is() -> None:
    predicted()
    before = {f: f.stat().st_mtime_ns for f in OUTPUT.rglob("*")}
    for found in (verified(), verified(repair=True)):
        assert (found.damaged, found.repaired, found.sound) == ([], [], True)
    assert {f: f.stat().st_mtime_ns for f in OUTPUT.rglob("*")} == before


def test_damaged_chunks_at_the_far_edges_are_replaced() -> None:
    predicted(1, 700, 600)
    for file in (OUTPUT / "0/c/0").glob("*/*"):
        truncate(file)
    assert verified(repair=True).sound
    assert array_bytes(OUTPUT) == array_bytes(Path("whole.zarr"))


def test_blocks_with_incomplete_receipts_are_recomputed() -> None:
    predicted()
    (file,) = folder().receipts.glob("*.txt")
    os.truncate(file, file.stat().st_size - 5)
    lost = int(np.flatnonzero(~folder().ledger(4).done)[0])
    assert [(damage.block, damage.what) for damage in verified().damaged] == [(lost, MISSING)]
    assert verified(repair=True).sound
    assert array_bytes(OUTPUT) == array_bytes(Path("whole.zarr"))


def test_several_probabilities_a_voxel_and_a_region_are_compared_too() -> None:
    shutil.rmtree("model")
    write_model(Path("model"), classes=3)
    predicted(3, 90, 110, roi=((1, 3), (13, 87), (7, 110)), dtype="float16")
    assert verified(seams=6).sound
    flip_a_bit(chunk(1))
    assert [damage.block for damage in verified().damaged] == [1]
    assert verified(repair=True).sound
    assert array_bytes(OUTPUT) == array_bytes(Path("whole.zarr"))


def test_an_incomplete_run_is_finished_by_its_repair() -> None:
    write_zarr(Path("big.zarr"), grey(5, 70, 90), chunks=(1, 70, 90))
    asked: list[int] = []
    predict_volume(PredictRequest(volume="big.zarr", device="cpu"), stopping=lambda: asked.append(1) or len(asked) > 1)  # type: ignore[func-returns-value]
    found = verified()
    assert found.checked + len(found.damaged) == 5
    assert {damage.what for damage in found.damaged} == {MISSING}
    assert verified(repair=True).complete


def test_the_receipts_are_void_and_the_output_incomplete_before_data_is_touched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predicted()
    flip_a_bit(chunk(1))
    seen: list[tuple[list[int], bool, bytes]] = []
    damaged, real = chunk(1).read_bytes(), Level.write

    def watched(self: Level, array: Any, box: Box, values: NDArray[Any]) -> None:
        seen.append((folder().ledger(4).missing.tolist(), (marker(OUTPUT) or {})["complete"], chunk(1).read_bytes()))
        real(self, array, box, values)

    monkeypatch.setattr(Level, "write", watched)
    verified(repair=True)
    assert seen == [([1], False, damaged)]


def test_a_killed_repair_is_continued_to_the_same_bytes(unetcli: CLI) -> None:
    sections = 6
    predicted(sections, 300, 300)
    for file in [chunk(number) for number in range(sections)]:
        truncate(file)
    assert Command("verify", OUTPUT, "--repair", killed_after=2).wait() == -signal.SIGKILL
    assert (marker(OUTPUT) or {})["complete"] is False
    assert folder().ledger(sections).done.sum() == 2
    killed = [OUTPUT, Path(f"{OUTPUT}.run")]
    for path in killed:
        shutil.copytree(path, f"{path}.killed")
    for words in (("predict", "big.zarr", "--tile", "220"), ("verify", OUTPUT, "--repair")):
        done = unetcli(*words)
        assert done.returncode == 0, done.stderr
        assert array_bytes(OUTPUT) == array_bytes(Path("whole.zarr"))
        assert verified().complete
        assert verified().sound
        assert not list(Path().rglob("*.partial"))
        for path in killed:
            shutil.rmtree(path)
            shutil.copytree(f"{path}.killed", path)


def test_a_repair_waits_for_no_launcher_that_may_be_alive() -> None:
    predicted(2, 90, 90)
    truncate(chunk(1))
    with folder().launcher(PREDICT), pytest.raises(UnetcliError, match="in use by another unetcli"):
        verified(repair=True)


@pytest.mark.parametrize("source", ["volume", "model"])
def test_nothing_is_repaired_from_input_that_changed(source: str) -> None:
    predicted(2, 90, 90)
    truncate(chunk(1))
    if source == "volume":
        zarr.open_array("big.zarr")[0, 0, 0] += 1
    else:
        write_model(Path("model"), mean=101.0)
    before = array_bytes(OUTPUT)
    with pytest.raises(UnetcliError, match=f"cannot be repaired, the {source} "):
        verified(repair=True)
    assert array_bytes(OUTPUT) == before
    assert folder().ledger(2).complete


def test_a_block_recomputed_meanwhile_is_checked_again() -> None:
    predicted(3, 90, 90)
    step = PredictStep.open(folder())
    stale = folder().ledger(3)
    rewrite(np.zeros((3, 90, 90), np.uint8))
    assert find_damage(step, stale).damaged == {}


def test_a_missing_or_foreign_output_gives_a_one_line_error(unetcli: CLI) -> None:
    predicted(2, 90, 90)
    shutil.rmtree(OUTPUT / "0")
    done = unetcli("verify", OUTPUT)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    shutil.rmtree(OUTPUT)
    done = unetcli("verify", OUTPUT, "--repair")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "no output of unetcli predict" in done.stderr


def test_memory_limits_the_number_of_blocks_read_at_once() -> None:
    predicted(2, 90, 90)
    step = PredictStep.open(folder())
    assert reader_count(step.block_bytes) == len(os.sched_getaffinity(0))
    large = replace(step.plan, region=Box((0, 0, 0), (1, 90, 90)), block_shape=(1, 90 * 2**9, 90 * 2**9))
    assert reader_count(replace(step, plan=large).block_bytes) == 1
    assert READ_BYTES < 3 * 90 * 90 * 2**18


def rewrite(values: NDArray[Any]) -> None:
    """Store other values with matching receipts, as a faulty network would have."""
    plan = PredictStep.open(folder()).plan
    output, ledger = Output(OUTPUT, plan), folder().ledger(plan.blocks)
    last = {receipt.block: receipt for receipt in read_receipts(folder().receipts)}
    with ReceiptBook(folder().receipts, OUTPUT) as book:
        for number in range(plan.blocks):
            box = plan.output_box(plan.block(number))
            part = values[box.slices][np.newaxis]
            output.write(output.open(), box, part)
            attempt = int(ledger.attempts[number]) + 1
            book.add(replace(last[number], attempt=attempt, checksum=checksum(part)))


def stored() -> NDArray[Any]:
    return np.asarray(zarr.open_array(OUTPUT / "0", mode="r")[...])


@pytest.mark.by_default("uint8-float32", "float32-bfloat16")
@pytest.mark.parametrize(
    ("dtype", "precision"),
    [("uint8", "float32"), ("float16", "float32"), ("float32", "float32"), ("float32", "bfloat16")],
)
def test_windows_in_other_tiles_equal_what_is_stored(dtype: str, precision: str) -> None:
    predicted(2, 300, 310, tile=100, dtype=dtype, precision=precision)
    seams = verified(seams=10).seams
    assert seams is not None
    assert (seams.windows, seams.exceeded) == (10, [])
    assert seams.largest_difference <= seams.allowed
    assert seams.largest_difference > 0 or (dtype, precision) != ("float32", "float32")  # the arithmetic did differ


def test_parts_that_are_skipped_are_skipped_in_other_tiles_too() -> None:
    mask = np.zeros((2, 300, 310), np.uint8)
    mask[0, 100:200, 20:170] = 1
    write_zarr(Path("mask.zarr"), mask)
    predicted(2, 300, 310, tile=100, dtype="float32", mask="mask.zarr", skip_below=255.0)
    assert 0 < np.count_nonzero(stored()) < 0.2 * stored().size
    seams = verified(seams=20, input=True, repair=True).seams
    assert seams is not None
    assert (seams.windows, seams.exceeded) == (20, [])
    zarr.open_array("mask.zarr")[1, 250, 250] = 1
    (found,) = verified(input=True, blocks=False).input_changes or []
    assert (found.source, found.what) == ("mask", "selects other cells")
    flip_a_bit(chunk(0))
    with pytest.raises(UnetcliError, match="cannot be repaired, the mask "):
        verified(repair=True)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_data_shifted_by_a_pixel_are_found(dtype: str) -> None:
    predicted(2, 300, 310, tile=100, dtype=dtype)
    rewrite(np.roll(stored(), 1, axis=2))
    found = verified(seams=4)
    assert found.damaged == []
    assert found.seams is not None
    assert len(found.seams.exceeded) == 4
    assert not found.sound


def test_a_seam_at_one_tile_border_of_one_section_is_found_and_named() -> None:
    predicted(2, 300, 310, tile=100, dtype="float32")
    plan = PredictStep.open(folder()).plan
    border = sorted({tile.write.start[2] for tile in plan.tiles(plan.block(0))})[2]
    values = stored()
    values[1, :, border] += 0.001
    rewrite(values)
    found = verified(seams=40)
    assert found.seams is not None
    assert found.seams.exceeded
    assert {(seam.place[:6], seam.place.split("x ")[1]) for seam in found.seams.exceeded} == {
        ("z 1:2,", f"{border}:{border + 1}")
    }
    assert found.seams.largest_difference == pytest.approx(0.001, rel=0.1)


def test_seams_caused_by_changed_input_are_reported_as_such() -> None:
    predicted(2, 300, 310, tile=100)
    zarr.open_array("big.zarr")[...] = grey(2, 300, 310, seed=1)
    found = verified(seams=2)
    assert found.seams is not None
    assert found.seams.exceeded
    assert [change.source for change in found.input_changes or []] == ["volume"] * 18


def test_windows_cross_borders_of_tiles_and_blocks_in_tiles_that_the_plan_does_not_have() -> None:
    predicted(2, 1100, 1100, tile=212)
    plan = PredictStep.open(folder()).plan
    smaller = replace(plan, block_shape=(1, 512, 512))
    crossed = {"tile": 0, "block": 0}
    for box in [box for _, box in zip(range(60), windows(smaller, np.ones(smaller.blocks, np.bool_)), strict=False)]:
        assert box.clipped(plan.region) == box
        assert box.shape[0] == 1
        other = plan_of_window(smaller, box)
        (tile,) = other.tiles(other.block(0))
        assert tile.read.shape != plan.tile
        for axis in (1, 2):
            crossed["block"] += box.start[axis] // 512 != (box.stop[axis] - 1) // 512
            starts = {tile.write.start[axis] for n in range(9) for tile in smaller.tiles(smaller.block(n))}
            crossed["tile"] += any(box.start[axis] < start < box.stop[axis] for start in starts)
    assert crossed["tile"] > 60
    assert crossed["block"] > 10


def test_windows_stay_on_blocks_that_are_done() -> None:
    predicted(4, 90, 90)
    plan = PredictStep.open(folder()).plan
    done = np.array([True, False, True, False])
    assert {box.start[0] for _, box in zip(range(20), windows(plan, done), strict=False)} == {0, 2}
    assert not list(windows(plan, np.zeros(4, np.bool_)))


def test_input_that_changed_is_named(unetcli: CLI) -> None:
    predicted(3, 90, 200)
    assert verified(input=True, blocks=False).sound
    array = zarr.open_array("big.zarr")
    array[1, 5, 150] += 1
    write_model(Path("model"), mean=101.0)
    found = verified(input=True, blocks=False)
    assert found.input_changes is not None
    assert [(change.source, change.what) for change in found.input_changes] == [
        ("volume", "chunk at z 1:2, y 0:90, x 128:200 has changed"),
        ("model", "has changed"),
    ]
    done = unetcli("verify", OUTPUT, "--input")
    assert done.returncode == 3
    assert "chunk at z 1:2" in done.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: write_zarr(Path("big.zarr"), grey(3, 90, 201), chunks=(1, 128, 128)), "other shape, axes or dtype"),
        (
            lambda: write_zarr(Path("big.zarr"), grey(3, 90, 200).astype("u2"), chunks=(1, 128, 128)),
            "now zyx 3x90x200, 1 channels, uint16",
        ),
        (lambda: write_zarr(Path("big.zarr"), grey(3, 90, 200), chunks=(1, 32, 32)), "another chunk shape"),
        (lambda: None, "cannot be opened"),
    ],
    ids=["shape", "dtype", "chunks", "gone"],
)
def test_another_volume_is_reported(change: Callable[[], None], message: str) -> None:
    predicted(3, 90, 200)
    shutil.rmtree("big.zarr")
    change()
    (found,) = verified(input=True, blocks=False).input_changes or []
    assert message in found.what


def test_an_input_chunk_that_became_unreadable_is_reported() -> None:
    predicted(3, 90, 200)
    truncate(Path("big.zarr/c/2/0/0"))
    (found,) = verified(input=True, blocks=False).input_changes or []
    assert found.what == "chunk at z 2:3, y 0:90, x 0:128 can no longer be read"


def test_the_command_reports_everything_and_exits_with_3_until_repaired(unetcli: CLI) -> None:
    predicted(3, 90, 90)
    Path.unlink(chunk(1))
    done = unetcli("verify", OUTPUT)
    assert done.returncode == 3
    assert "2 of 3 blocks are intact" in done.stdout
    assert "block 1 (z 1:2, y 0:90, x 0:90): content differs from its receipt" in done.stdout
    done = unetcli("verify", OUTPUT, "--json")
    assert list(json.loads(done.stdout))[:3] == ["blocks", "checked", "damaged"]
    assert json.loads(done.stdout)["damaged"][0]["block"] == 1
    done = unetcli("verify", OUTPUT, "--repair", "--seams", "3")
    assert done.returncode == 0, done.stderr
    assert "1 block repaired" in done.stdout
    assert "3 windows" in done.stdout
    assert unetcli("verify", OUTPUT, "--repair", "--no-blocks").returncode == 1


def test_a_moved_output_is_verified_where_it_is() -> None:
    predicted(2, 90, 90)
    Path("elsewhere").mkdir()
    OUTPUT.rename("elsewhere/moved.zarr")
    Path(f"{OUTPUT}.run").rename("elsewhere/moved.zarr.run")
    truncate(next(f for f in Path("elsewhere/moved.zarr/0/c").rglob("*") if f.is_file()))
    request = VerifyRequest(output=Path("elsewhere/moved.zarr"), seams=2)
    assert len(verify_output(request)[0].damaged) == 1
    assert verify_output(replace(request, repair=True))[0].sound
    assert not OUTPUT.exists()


def test_a_repair_killed_before_the_output_is_opened_again_leaves_blocks_to_be_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = predicted()
    truncate(chunk(1))

    def killed(step: PredictStep) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PredictStep, "reopen", killed)
        with pytest.raises(KeyboardInterrupt):
            verified(repair=True)
    assert predict_volume(request).computed == 1
    assert array_bytes(OUTPUT) == array_bytes(Path("whole.zarr"))
