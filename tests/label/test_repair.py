"""verify finds and repairs damage of every kind to the same bytes, and changes nothing else."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zarr
from commands import Command
from damage import flip_a_bit, truncate
from helpers import read_receipts, write_prediction
from label.maps import blobs
from label.store import FOLDER, LABELS, STORE, TABLE, files, label, stop_after, tables

from unetcli.core.errors import UnetcliError
from unetcli.engine.verify import MISSING, OTHER, Verification
from unetcli.executors.options import VerifyRequest
from unetcli.registry import verify_output
from unetcli.volumes.opening import open_volume
from unetcli.volumes.samples import sampled_boxes

pytestmark = pytest.mark.usefixtures("here")
CLI = Callable[..., subprocess.CompletedProcess[str]]


def verified(output: Path = STORE, **words: Any) -> Verification:
    (found,) = verify_output(VerifyRequest(output=output, **words))
    return found


def put_another(file: Path) -> None:
    """Replace a chunk by another valid one."""
    shutil.copyfile(LABELS / "0/c/0/0/0", file)


def attempts() -> dict[int, int]:
    return {receipt.block: receipt.attempt for receipt in read_receipts(FOLDER / "receipts")}


HARM = [truncate, flip_a_bit, Path.unlink, put_another]


@pytest.mark.by_default("watershed-flip_a_bit", "components-unlink")
@pytest.mark.parametrize(
    ("method", "harm"),
    [*(("components", harm) for harm in HARM), ("watershed", flip_a_bit)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_only_a_damaged_block_is_named_and_made_again(labels: None, method: str, harm: Callable[[Path], None]) -> None:
    if method != "components":
        label(method=method, overwrite=True)
    whole, before = files(), attempts()
    harm(LABELS / "0/c/1/2/3")
    found = verified()
    assert [damage.place for damage in found.damaged] == ["z 1:2, y 32:64, x 32:64"]
    assert found.damaged[0].what == OTHER or found.damaged[0].what.startswith("unreadable (")
    assert (found.sound, found.not_kept, found.checked) == (False, 27, found.blocks - 27)
    (number,) = [damage.block for damage in found.damaged]
    mended = verified(repair=True)
    assert ([damage.block for damage in mended.repaired], mended.sound, mended.complete) == ([number], True, True)
    assert files() == whole
    assert attempts() == before | {number: 3}  # void, then made
    assert not (FOLDER / "blocks").exists()
    assert not list(Path().rglob("*.partial"))


def test_labels_that_are_sound_stay_as_they_are(labels: None) -> None:
    before = {path: path.stat().st_mtime_ns for path in [*LABELS.rglob("*"), FOLDER / "numbers.npy"]}
    for found in (verified(), verified(repair=True), verified(LABELS), verified(step="instances")):
        assert (found.sound, found.repaired, found.step) == (True, [], "instances")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_coarser_level_is_repaired_too(labels: None) -> None:
    whole = files()
    flip_a_bit(LABELS / "1/c/1/0/0")
    flip_a_bit(LABELS / "0/c/2/0/0")
    assert [damage.place for damage in verified().damaged] == [
        "z 2:3, y 0:32, x 0:32",
        "level 0, z 0:3, y 0:64, x 0:64",
    ]
    assert verified(repair=True).sound
    assert files() == whole


@pytest.mark.by_default("shards")
@pytest.mark.parametrize("kind", [{"shards": (1, 32, 32)}, {"zarr_format": 2}], ids=str)
def test_shards_and_zarr_2_are_repaired_too(kind: dict[str, Any]) -> None:
    write_prediction(STORE, blobs((3, 75, 90), 2, seed=7), (1, 16, 16), **kind)
    label()
    whole = files()
    for path in [path for path in (LABELS / "0").rglob("*") if path.is_file() and path.suffix != ".json"][3:9]:
        if not path.name.startswith("."):
            truncate(path)
    assert verified().damaged
    assert verified(repair=True).sound
    assert files() == whole


SELDOM = [pytest.param(name, marks=pytest.mark.slow) for name in ("offsets.npy", "merged.json")]


@pytest.mark.by_default("unlink")
@pytest.mark.parametrize("harm", [truncate, flip_a_bit, Path.unlink], ids=lambda harm: harm.__name__)
def test_the_table_is_written_again(labels: None, harm: Callable[[Path], None]) -> None:
    whole, made = files(), attempts()
    harm(TABLE)
    found = verified()
    assert found.damaged == []
    assert found.table is not None
    assert found.table.startswith("big.pred.zarr.instances.csv: ")
    assert not found.sound
    assert verified(repair=True).sound
    assert files() == whole
    assert attempts() == made


@pytest.mark.by_default("unlink-objects.csv", "flip_a_bit-numbers.npy")
@pytest.mark.parametrize("name", ["numbers.npy", "objects.csv", *SELDOM])
@pytest.mark.parametrize("harm", [flip_a_bit, Path.unlink], ids=lambda harm: harm.__name__)
def test_the_merging_is_repeated_where_what_it_gave_is_lost(
    labels: None, name: str, harm: Callable[[Path], None]
) -> None:
    whole, kept = files(), {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.is_file()}
    harm(FOLDER / name)
    flip_a_bit(LABELS / "0/c/1/2/3")
    assert [damage.place.split(":")[0] for damage in verified().damaged] == ["merge", "z 1"]
    assert verified(repair=True).sound
    assert files() == whole
    assert (FOLDER / name).read_bytes() == kept[name]


@pytest.mark.by_default("truncate-objects.csv", "unlink-numbers.npy")
@pytest.mark.parametrize("name", ["numbers.npy", "objects.csv"])
@pytest.mark.parametrize("harm", [truncate, flip_a_bit, Path.unlink], ids=lambda harm: harm.__name__)
def test_a_damaged_result_of_the_merge_is_never_published(
    labels: None, name: str, harm: Callable[[Path], None]
) -> None:
    whole = files()
    harm(FOLDER / name)
    with pytest.raises(UnetcliError, match=r"content of the merge .* has changed .*`unetcli verify --repair "):
        label()
    assert files() == whole
    assert verified(repair=True).sound
    TABLE.write_text(TABLE.read_text()[:300])
    assert label().complete
    assert files() == whole


def test_a_prediction_whose_shape_contradicts_its_metadata_is_named(labels: None) -> None:
    metadata = STORE / "0/zarr.json"
    metadata.write_text(metadata.read_text().replace("75", "64"))
    for name in ("instances", "others"):
        with pytest.raises(UnetcliError, match="the array is 3 x 64 x 90, but its metadata state 3 x 75 x 90"):
            label(name=name)


def test_of_unfinished_labels_what_was_found_is_checked_and_a_repair_finishes_them(labels: None) -> None:
    whole = files()
    label(overwrite=True, stopping=stop_after(14))
    path = sorted(FOLDER.rglob("*.tables"))[3]
    truncate(path)
    found = verified()
    assert found.checked == len(tables())
    torn, *rest = found.damaged
    assert (torn.block, torn.place) == (3, "find: z 0:1, y 32:64, x 0:32")
    assert torn.what.startswith("unreadable (")
    assert {damage.what for damage in rest} == {MISSING}
    mended = verified(repair=True)
    assert (mended.sound, mended.complete) == (True, True)
    assert files() == whole


def test_nothing_is_repaired_from_a_prediction_that_changed(labels: None) -> None:
    flip_a_bit(LABELS / "0/c/1/2/3")
    before = files()
    zarr.open_array(STORE / "0", mode="r+")[0, :16, :16] = 255
    (change,) = verified(input=True, blocks=False).input_changes or []
    assert (change.source, change.what) == ("prediction", "holds other values")
    with pytest.raises(UnetcliError, match=r"cannot be repaired, the prediction .* label --overwrite"):
        verified(repair=True)
    assert files() == before


def test_a_change_that_no_sample_shows_is_noticed_where_it_matters(labels: None) -> None:
    volume = open_volume(str(STORE))
    sampled = {box.start for box in sampled_boxes(volume)}
    place = next(
        (z, y, x) for z in range(3) for y in range(0, 64, 16) for x in range(0, 64, 16) if (z, y, x) not in sampled
    )
    flip_a_bit(LABELS / "0/c" / str(place[0]) / str(place[1] // 16) / str(place[2] // 16))
    zarr.open_array(STORE / "0", mode="r+")[place[0], place[1] : place[1] + 16, place[2] : place[2] + 16] = 255
    before = files()
    assert verified(input=True, blocks=False).input_changes == []
    with pytest.raises(UnetcliError, match="does not come out as before"):
        verified(repair=True)
    assert files() == before


def test_labels_that_are_gone_are_one_line(labels: None, unetcli: CLI) -> None:
    shutil.rmtree(LABELS)
    done = unetcli("verify", STORE)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"unetcli: {LABELS}: ")
    assert "the same label command" in line


def test_a_repair_that_is_killed_is_gone_on_with_to_the_same_bytes(labels: None) -> None:
    whole = files()
    for path in (LABELS / "0/c").rglob("*"):
        if path.is_file():
            truncate(path)
    assert Command("verify", STORE, "--repair", killed_after=10).wait() == -signal.SIGKILL
    assert zarr.open_group(LABELS, mode="r").attrs["unetcli"]["complete"] is False
    killed = {LABELS: "labels.killed", FOLDER: "run.killed"}
    for path, copy in killed.items():
        shutil.copytree(path, copy)
    for go_on in (label, lambda: verified(repair=True)):
        assert go_on().complete
        assert files() == whole
        assert verified().sound
        for path, copy in killed.items():
            shutil.rmtree(path)
            shutil.copytree(copy, path)


def test_the_command_says_what_was_checked_and_exits_with_3(labels: None, unetcli: CLI) -> None:
    done = unetcli("verify", STORE)
    assert done.returncode == 0
    assert "labels at all levels, table of objects" in done.stdout
    flip_a_bit(LABELS / "0/c/1/2/3")
    TABLE.unlink()
    done = unetcli("verify", STORE)
    assert done.returncode == 3
    assert "z 1:2, y 32:64, x 32:64" in done.stdout
    assert "the same label command computes" in done.stdout
    assert "big.pred.zarr.instances.csv: missing" in done.stdout
    assert unetcli("verify", STORE, "--repair").returncode == 0
    assert unetcli("verify", STORE, "--input", "--no-blocks").stdout.startswith("input: prediction (sampled chunks)")
