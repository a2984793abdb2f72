"""The scripts of the paper's tables run to their end, and continue with what is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from helpers import grey
from pairs import blobs

SCRIPTS = Path(__file__).parents[1] / "examples" / "paper"


def run(place: Path, script: str, *words: str) -> dict[str, Any]:
    """Run a script on the data in ``place``, and return its rows."""
    line = [sys.executable, SCRIPTS / script, ".", "--results", "results", "--output", "work", *words]
    done = subprocess.run(line, cwd=place, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    name = script.removesuffix(".py")
    assert done.stdout == (place / "results" / f"{name}.md").read_text()
    rows: dict[str, Any] = json.loads((place / "results" / f"{name}.json").read_text())["rows"]
    return rows


def write_data(place: Path, folder: str, images: str, labels: str, *shape: int) -> None:
    """Write images and labels of a data set."""
    (place / folder).mkdir()
    truth = blobs(*shape) > 0
    tifffile.imwrite(place / folder / images, grey(*shape) // 2 + truth.astype(np.uint8) * 100)
    tifffile.imwrite(place / folder / labels, truth.astype(np.uint8) * 255)


@pytest.mark.slow
def test_the_table_of_em_sections_is_made_and_continued(tmp_path: Path) -> None:
    write_data(tmp_path, "isbi2012", "train-volume.tif", "train-labels.tif", 25, 128, 128)
    rows = run(tmp_path, "em.py", "--steps", "2", "--recipes", "fast", "--jobs", "1")
    assert [row.split(", ")[1] for row in rows] == [
        "one pass",
        "mean of 7 turned copies",
        "mean of 8 turned copies",
        "mean of 5 folds",
    ]
    models = {path: path.stat().st_mtime_ns for path in tmp_path.glob("work/*/model.safetensors")}
    assert len(models) == 6
    kept = tmp_path / "results" / "em.json"
    last = json.loads(kept.read_text())
    del last["rows"]["recipe fast, mean of 5 folds"]
    kept.write_text(json.dumps(last))
    assert run(tmp_path, "em.py", "--steps", "2", "--recipes", "fast", "--jobs", "1") == rows
    assert models == {path: path.stat().st_mtime_ns for path in tmp_path.glob("work/*/model.safetensors")}


@pytest.mark.slow
def test_the_sliding_window_is_compared_with_the_network_and_continued(tmp_path: Path) -> None:
    write_data(tmp_path, "isbi2012", "train-volume.tif", "train-labels.tif", 25, 104, 112)
    words = ("--minutes", "0.005", "--crop", "12")
    rows = run(tmp_path, "sliding_window.py", *words)
    assert list(rows) == ["sliding window", "U-Net"]
    for row in rows.values():
        assert 0 <= row["pixel_error"] <= 1
        assert 0 <= row["v_rand"] <= 1
        assert row["seconds_per_section"] > 0
        assert row["steps"] >= 1
    times = rows["sliding window"]["seconds_per_section"] / rows["U-Net"]["seconds_per_section"]
    text = (tmp_path / "results" / "sliding_window.md").read_text()
    assert f"The U-Net predicts a section {times:.0f} times faster." in text
    assert (tmp_path / "work" / "sliding_window.png").exists()
    kept = tmp_path / "results" / "sliding_window.json"
    last = json.loads(kept.read_text())
    del last["rows"]["sliding window"]
    kept.write_text(json.dumps(last))
    again = run(tmp_path, "sliding_window.py", *words)
    assert again["U-Net"] == rows["U-Net"]  # it is not trained again, and the other network is loaded
    for name in ("steps", "training_seconds", "pixel_error", "v_rand"):
        assert again["sliding window"][name] == rows["sliding window"][name]


def test_each_pixel_is_classified_by_the_patch_around_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    script = import_module("sliding_window")
    write_data(tmp_path, "isbi2012", "train-volume.tif", "train-labels.tif", 25, 70, 66)
    sections = script.Sections(tmp_path, 9)
    patches = torch.cat(list(script.windows(sections, 20)))
    assert patches.shape == (81, 1, 65, 65)
    assert np.array_equal(patches[:, 0, 32, 32].reshape(9, 9), sections.images[20][sections.square])
    network = script.PatchNetwork().eval()
    found = script.classified(network, sections, 20)
    with torch.inference_mode():
        one = network(patches[40:41]).softmax(1)[0, 1]
    assert found[4, 4] == pytest.approx(float(one), abs=1e-6)
    images, classes = script.Patches(sections).batch(3)
    assert (images.shape, classes.bincount().tolist()) == ((64, 1, 65, 65), [32, 32])
    assert torch.equal(images, script.Patches(sections).batch(3)[0])
