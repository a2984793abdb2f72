"""What the README tells a user to run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers import grey

from unetcli.volumes.opening import open_volume

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with sections of bright discs in the place of the ISBI 2012 ones."""
    place = tmp_path_factory.mktemp("data")
    disc = np.hypot(*np.ogrid[-30:34, -40:32]) < 16
    labels = np.stack([np.roll(disc, 3 * k, 1) for k in range(25)]).astype(np.uint8)
    (place / "isbi2012").mkdir()
    tifffile.imwrite(place / "isbi2012/train-labels.tif", labels * 255)
    tifffile.imwrite(place / "isbi2012/train-volume.tif", labels * 90 + grey(*labels.shape) // 4)
    return place


def test_the_quickstart_segments_small_sections(small: Path, tmp_path: Path) -> None:
    place = tmp_path / "quick start"
    require_result(place, run(place, UNETCLI_DATA=str(small), STEPS="25"))


def test_a_sample_is_made_once(tmp_path: Path) -> None:
    sizes = ["--train-sections", "2", "--sections", "3", "--size", "64"]
    command = [sys.executable, ROOT / "examples" / "make_sample.py", tmp_path, *sizes]
    told = [subprocess.run(command, check=True, capture_output=True, text=True).stderr for _ in range(2)]
    assert [line.count("made ") for line in told] == [2, 0]
    assert (
        told[1]
        == f"kept raw.zarr and labels.zarr (2 x 64 x 64), kept big.zarr and truth.zarr (3 x 64 x 64) in {tmp_path}\n"
    )
    for name, sections in {"raw": 2, "labels": 2, "big": 3, "truth": 3}.items():
        volume = open_volume(tmp_path / f"{name}.zarr")
        assert (volume.extent, volume.axes) == ((sections, 64, 64), "zyx")
        assert volume.read(volume.whole()).std() > 0


def require_result(place: Path, said: str) -> None:
    """What the quickstart leaves and says, of a model that has learned something."""
    found = re.search(r"pixel_disagreement +([0-9.]+)", said)
    assert found
    assert float(found[1]) < 0.10
    assert (place / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert (place / "model" / "curves.png").exists()
    assert [line.split()[0] for line in said.splitlines()[-3:]] == ["model", "prediction", "picture"]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The quickstart, run from another folder; its folder (with a blank in its name) and what it said."""
    place = tmp_path_factory.mktemp("a place") / "quick start"
    return place, run(place)


def run(place: Path, *, script: str = "quickstart.sh", words: tuple[Path, ...] = (), **chosen: str) -> str:
    """Run it in the environment that the tests run in."""
    environment = {name: value for name, value in os.environ.items() if name != "UNETCLI_DATA"} | chosen
    done = subprocess.run(
        ["sh", ROOT / "examples" / script, *words, place],
        cwd=place.parent,
        env=environment | {"UNETCLI_VENV": sys.prefix, "UNETCLI_MODEL": "another/model"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_quickstart_segments_sections_that_training_did_not_see(quickstart: tuple[Path, str]) -> None:
    require_result(*quickstart)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_quickstart_run_again_finds_everything_done(quickstart: tuple[Path, str]) -> None:
    place, said = quickstart
    before = (place / "model" / "model.safetensors").stat().st_mtime_ns
    again = run(place)
    assert (place / "model" / "model.safetensors").stat().st_mtime_ns == before
    assert again == said


@pytest.mark.slow
def test_the_quickstart_on_real_sections(tmp_path: Path, data: Path) -> None:
    said = run(tmp_path / "isbi", UNETCLI_DATA=str(data))
    found = re.search(r"pixel_disagreement +([0-9.]+)", said)
    assert found
    assert float(found[1]) < 0.12


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_cells_from_images_to_scores(tmp_path: Path, data: Path) -> None:
    said = run(tmp_path / "cells", script="instances.sh", words=(data,), STEPS="150")
    lines = [line for line in said.splitlines() if line.startswith(("| hela", "| psc"))]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[:2] for row in rows] == [
        [name, method] for name in ("hela", "psc") for method in ("components", "distance", "probability")
    ]
    seg = {(row[0], row[1]): float(row[3]) for row in rows}
    assert min(seg["psc", "distance"], seg["psc", "probability"]) > 0.5
    assert seg["hela", "distance"] > seg["hela", "components"]
