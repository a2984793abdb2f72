"""Input that is not whole, and stores that lead elsewhere: what commands do with them, and with which exit code."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from helpers import grey, write_model, write_zarr
from volumes.test_tiff import SET, VALUES, ome_xml

Unetcli = Callable[..., subprocess.CompletedProcess[str]]
MODEL = ("--model", "model", "--tile", 60)


def write_set(folder: Path, *, without: tuple[int, ...] = ()) -> None:
    """Write a multi-file OME-TIFF whose first file is ``s0.ome.tif``."""
    for n, name in enumerate(SET):
        if n not in without:
            description = ome_xml(n)
            tifffile.imwrite(folder / name, VALUES[n], photometric="minisblack", description=description, metadata=None)


def voxels(path: Path) -> np.ndarray:
    return np.asarray(zarr.open_array(path, mode="r")[...])


def test_predict_sets_missing_sections_aside_and_completes_with_them(unetcli: Unetcli, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_set(tmp_path)
    assert unetcli("predict", SET[0], *MODEL, "-o", "whole.zarr").returncode == 0
    for n in (1, 3):
        (tmp_path / SET[n]).unlink()
    done = unetcli("predict", SET[0], *MODEL, "-o", "parts.zarr", "--json")
    assert done.returncode == 3, done.stderr
    summary = json.loads(done.stdout)
    assert [each["place"].split(",")[0] for each in summary["set_aside"]] == ["z 1:2", "z 3:4"]
    assert ["2 of 4 images are missing" in text for text in summary["warnings"]] == [True]
    assert unetcli("predict", SET[0], *MODEL, "-o", "none.zarr", "--strict").returncode == 1
    assert not (tmp_path / "none.zarr").exists()
    verified = unetcli("verify", "parts.zarr", "--input")
    assert (verified.returncode, "2 of 4 images are missing" in verified.stdout) == (3, True)
    write_set(tmp_path)
    assert unetcli("predict", SET[0], *MODEL, "-o", "parts.zarr").returncode == 0
    assert np.array_equal(voxels(tmp_path / "parts.zarr/0"), voxels(tmp_path / "whole.zarr/0"))
    assert unetcli("verify", "parts.zarr", "--input").returncode == 0


@pytest.mark.by_default("cut")
@pytest.mark.parametrize("kind", ["set", "cut"])
def test_other_commands_refuse_what_is_not_whole(unetcli: Unetcli, tmp_path: Path, kind: str) -> None:
    write_zarr(tmp_path / "whole.zarr", (VALUES > 60).astype(np.uint8))
    write_set(tmp_path, without=(2,))
    if kind == "cut":
        tifffile.imwrite(tmp_path / SET[0], VALUES, photometric="minisblack")
        content = (tmp_path / SET[0]).read_bytes()
        (tmp_path / SET[0]).write_bytes(content[: len(content) // 2])
    for words in (
        ("train", SET[0], "whole.zarr", "--depth", 2, "--tile", 60),
        ("train", "whole.zarr", SET[0], "--depth", 2, "--tile", 60),
        ("evaluate", "whole.zarr", SET[0]),
        ("evaluate", SET[0], "whole.zarr"),
        ("evaluate", "whole.zarr", "whole.zarr", "--mask", SET[0]),
        ("label", SET[0]),
        ("weights", SET[0]),
        ("show", SET[0]),
    ):
        done = unetcli(*words)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1), (words, done.stderr)
        assert f"{SET[0]}: not " in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({*SET, "whole.zarr"} - {SET[2]})


@pytest.mark.by_default("empty")
@pytest.mark.parametrize("damage", ["empty", "folder"])
def test_a_damaged_shard_is_never_read_as_background(unetcli: Unetcli, tmp_path: Path, damage: str) -> None:
    write_model(tmp_path / "model")
    values = grey(3, 40, 50) // 2 + 1
    write_zarr(tmp_path / "raw.zarr", values, chunks=(1, 16, 16), shards=(1, 48, 64))
    write_zarr(tmp_path / "truth.zarr", (values > 60).astype(np.uint8) * 255)
    assert unetcli("predict", "raw.zarr", *MODEL, "-o", "pred.zarr").returncode == 0
    shutil.copytree(tmp_path / "raw.zarr", tmp_path / "damaged.zarr")
    chunk = next(file for file in sorted((tmp_path / "pred.zarr/0/c").rglob("*")) if file.is_file())
    for file in (tmp_path / "damaged.zarr/c/1/0/0", chunk):
        file.unlink()
        if damage == "empty":
            file.touch()
        else:
            file.mkdir()
    done = unetcli("predict", "damaged.zarr", *MODEL, "--json")
    assert done.returncode == 3, done.stderr
    assert [each["place"].split(",")[0] for each in json.loads(done.stdout)["set_aside"]] == ["z 1:2"]
    message = "is empty" if damage == "empty" else "is a folder"
    for words in (
        (
            "train",
            "damaged.zarr",
            "truth.zarr",
            "-o",
            "trained",
            "--depth",
            2,
            "--base-channels",
            4,
            "--steps",
            2,
            "--tile",
            60,
        ),
        ("evaluate", "pred.zarr", "truth.zarr"),
        ("label", "pred.zarr"),
    ):
        done = unetcli(*words)
        assert (done.returncode, message in done.stderr) == (1, True), done.stderr
    assert not json.loads((tmp_path / "pred.zarr/zarr.json").read_text()).get("labels")


@pytest.fixture
def predicted(unetcli: Unetcli, tmp_path: Path) -> Path:
    """Folder with a prediction ``pred.zarr`` of ``raw.zarr``."""
    write_model(tmp_path / "model")
    write_zarr(tmp_path / "raw.zarr", grey(3, 40, 50), chunks=(1, 40, 50))
    assert unetcli("predict", "raw.zarr", *MODEL, "-o", "pred.zarr").returncode == 0
    return tmp_path


def test_repair_does_not_write_through_a_link_inside_a_store(unetcli: Unetcli, predicted: Path) -> None:
    inside, elsewhere = predicted / "pred.zarr/0/c/1", predicted / "elsewhere"
    shutil.move(inside, elsewhere)
    inside.symlink_to(elsewhere)
    (elsewhere / "0/0").write_bytes(b"mine")
    done = unetcli("verify", "pred.zarr", "--repair")
    assert done.returncode != 0
    assert "a symbolic link to" in done.stderr + done.stdout
    assert (elsewhere / "0/0").read_bytes() == b"mine"
    inside.unlink()
    assert unetcli("verify", "pred.zarr", "--repair").returncode == 0


def test_repair_writes_only_into_the_named_store(unetcli: Unetcli, predicted: Path) -> None:
    """The paths in a run folder, which others may have made, do not lead it elsewhere."""
    shutil.copytree(predicted / "pred.zarr", predicted / "other.zarr")
    for store in ("pred.zarr", "other.zarr"):
        (predicted / store / "0/c/1/0/0").write_bytes(b"damaged")
    paths = predicted / "pred.zarr.run/predict/paths.json"
    found = json.loads(paths.read_text())
    paths.write_text(json.dumps({**found, "output": str(predicted / "other.zarr")}))
    assert unetcli("verify", "pred.zarr", "--repair").returncode == 0
    assert (predicted / "other.zarr/0/c/1/0/0").read_bytes() == b"damaged"
    assert (predicted / "pred.zarr/0/c/1/0/0").read_bytes() != b"damaged"


def test_labels_that_are_said_to_be_elsewhere_are_refused(unetcli: Unetcli, predicted: Path) -> None:
    assert unetcli("label", "pred.zarr").returncode == 0
    before = sorted(path for path in (predicted / "pred.zarr").rglob("*"))
    paths = predicted / "pred.zarr.run/instances/paths.json"
    paths.write_text(json.dumps({**json.loads(paths.read_text()), "output": str(predicted / "pred.zarr/labels/..")}))
    done = unetcli("verify", "pred.zarr", "--repair")
    assert "expected a path ending in labels/NAME" in done.stderr
    assert sorted(path for path in (predicted / "pred.zarr").rglob("*")) == before


@pytest.mark.by_default("labels/instances")
@pytest.mark.parametrize("linked", ["labels", "labels/instances"])
def test_labels_are_not_written_or_deleted_through_a_link(unetcli: Unetcli, predicted: Path, linked: str) -> None:
    assert unetcli("label", "pred.zarr").returncode == 0
    inside, elsewhere = predicted / "pred.zarr" / linked, predicted / "elsewhere"
    shutil.move(inside, elsewhere)
    inside.symlink_to(elsewhere)
    before = {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()}
    for words in (("label", "pred.zarr", "--threshold", 0.4, "--overwrite"), ("label", "pred.zarr", "--name", "more")):
        done = unetcli(*words)
        if "more" not in words or linked == "labels":
            assert (done.returncode, "a symbolic link to" in done.stderr) == (1, True), done.stderr
    assert {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()} == before


def test_torn_metadata_of_labels_are_repaired(unetcli: Unetcli, predicted: Path) -> None:
    assert unetcli("label", "pred.zarr").returncode == 0
    file = predicted / "pred.zarr/labels/instances/0/zarr.json"
    before = file.read_text()
    file.write_text(before[:100])
    assert unetcli("verify", "pred.zarr").returncode == 3
    assert unetcli("verify", "pred.zarr", "--repair").returncode == 0
    assert file.read_text() == before
