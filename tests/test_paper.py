"""The scripts of the paper's tables run to their end, and continue with what is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from helpers import grey
from pairs import blobs

SCRIPTS = Path(__file__).parents[1] / "examples" / "paper"


def run(place: Path, script: str, *words: str) -> dict[str, Any]:
    """Run a script on the data in ``place``, and return its rows."""
    line = [sys.executable, SCRIPTS / script, ".", "--results", "results", "--output", "work", "--jobs", "1", *words]
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
    rows = run(tmp_path, "em.py", "--steps", "2", "--recipes", "fast")
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
    assert run(tmp_path, "em.py", "--steps", "2", "--recipes", "fast") == rows
    assert models == {path: path.stat().st_mtime_ns for path in tmp_path.glob("work/*/model.safetensors")}
