"""Tests of the examples that the README describes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pages
import pytest

from unetcli import api
from unetcli.core.arrays import file_sha256

ROOT = Path(__file__).parents[1]
SHORT = {"STEPS": "40", "SAMPLE": "--size 128 --sections 3 --train-sections 4"}


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Small quickstart, run from another folder; returns its folder, whose name has a blank, and its output."""
    place = tmp_path_factory.mktemp("a place") / "quick start"
    return place, run(place, **SHORT)


def disagreement(output: str) -> float:
    found = re.search(r"pixel_disagreement +([0-9.]+)", output)
    assert found
    return float(found[1])


def run(place: Path, *, script: str = "quickstart.sh", words: tuple[Path, ...] = (), **chosen: str) -> str:
    """Run an example in the environment of the tests and return its output."""
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


def test_the_quickstart_segments_sections_that_training_did_not_see(quickstart: tuple[Path, str]) -> None:
    place, output = quickstart
    assert disagreement(output) < 0.2  # 0.22 for a prediction without membranes
    assert (place / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert (place / "model" / "curves.png").exists()
    assert [line.split()[0] for line in output.splitlines()[-3:]] == ["model", "prediction", "picture"]


@pytest.mark.slow
def test_a_second_quickstart_finds_everything_done(quickstart: tuple[Path, str]) -> None:
    place, output = quickstart
    before = (place / "model" / "model.safetensors").stat().st_mtime_ns
    again = run(place, **SHORT)
    assert (place / "model" / "model.safetensors").stat().st_mtime_ns == before
    assert again == output


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_quickstart_of_the_readme_segments_well(tmp_path: Path) -> None:
    assert disagreement(run(tmp_path / "quickstart")) < 0.10


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_quickstart_on_real_sections(tmp_path: Path, data: Path) -> None:
    assert disagreement(run(tmp_path / "isbi", UNETCLI_DATA=str(data))) < 0.12


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_cells_from_images_to_scores(tmp_path: Path, data: Path) -> None:
    output = run(tmp_path / "cells", script="instances.sh", words=(data,), STEPS="150")
    lines = [line for line in output.splitlines() if line.startswith(("| hela", "| psc"))]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[:2] for row in rows] == [
        [name, method] for name in ("hela", "psc") for method in ("components", "distance", "probability")
    ]
    seg = {(row[0], row[1]): float(row[3]) for row in rows}
    assert min(seg["psc", "distance"], seg["psc", "probability"]) > 0.5
    assert seg["hela", "distance"] > seg["hela", "components"]


UNCOMPARED = ("note:", "worst", "assumed", "float16 is used", "float32 is used")
"""Beginnings of lines that depend on the number of sections, or on the instructions of the processor for bfloat16."""


def words(output: str) -> list[str]:
    """Words of an output that do not depend on the sizes and the numbers of what it reports.

    Three sections get a note on their intervals, more sections get a list of the worst. A network that was hardly
    trained is too far from float32 in bfloat16, and without instructions for bfloat16 nothing is assumed about it.

    >>> words("12 blocks of 1x512x512; 7.9 Mvoxels in 40 s")
    ['block', 'voxel']
    """
    lower = output.lower().replace("bfloat", "float")
    lines = [line for line in lower.splitlines() if not line.strip().startswith(UNCOMPARED)]
    return [word.rstrip("s") for word in re.findall(r"[a-z_]{5,}", re.sub(r"\b[kmg](?=voxels)", "", " ".join(lines)))]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_output_that_the_pages_show_is_that_of_the_commands(quickstart: tuple[Path, str], tmp_path: Path) -> None:
    """If it fails after a change of messages: ``python tests/pages.py quickstart``."""
    pages.copy_inputs(quickstart[0], tmp_path)
    for command, shown in [session for page in pages.PAGES for session in pages.sessions(page.read_text())]:
        printed = pages.output_of(command, tmp_path)
        assert words(printed) == words(shown), f"$ {command}\n{printed}"


def test_the_example_model_segments_sections_that_it_has_not_seen(quickstart: tuple[Path, str], tmp_path: Path) -> None:
    model = ROOT / "examples" / "models" / "em-sample.safetensors"
    assert f"`{file_sha256(model)}`" in (model.parent / "README.md").read_text()
    volume, truth = (str(quickstart[0] / name) for name in ("big.zarr", "truth.zarr"))
    api.predict(volume, model=str(model), output=str(tmp_path / "pred.zarr"), device="cpu")
    scores = api.evaluate(str(tmp_path / "pred.zarr"), truth=truth, metrics=("pixels", "em")).scores
    assert scores["em"]["pixel_disagreement"] < 0.08
    assert scores["pixels"]["calibration_error"] < 0.02
