"""Scores of the command line equal those of the official programs, for float32 maps and for uint8 output of predict."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from helpers import write_zarr
from numpy.typing import NDArray
from typer.testing import CliRunner

from unetcli.cli import app

CASES = ("hand_gap_7", "hand_split_9", "noisy_128", "thin8_64", "stack3_96", "split_128")
NAMES = {
    "pixel_error": "pixel_error",
    "pixel_disagreement": "pixel_disagreement_min",
    "rand_error": "rand_error",
    "rand_error_pairs": "rand_error_pairs",
    "warping_error": "warping_error",
    "warping_error_classic": "warping_error_classic_min",
    "v_rand": "v_rand_thin",
    "v_info": "v_info_thin",
}
MOVED_BY_ROUNDING = {"rand_error": 0.011, "rand_error_pairs": 0.011, "v_rand": 0.013, "v_info": 0.013}
"""Largest change of a score by rounding to 1/255 on these small maps; pixel and warping errors change less."""


def evaluate(*words: object) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["--quiet", "evaluate", *map(str, words), "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def expected(data: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((data / "metrics_cases" / "expected.json").read_text())
    return found


def as_stored(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Convert probabilities to uint8 as predict stores them."""
    return np.floor(255 * values + 0.5).astype(np.uint8)


@pytest.mark.parametrize("case", CASES)
def test_em_equals_the_official_program(
    case: str, data: Path, expected: dict[str, Any], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    folder, official = data / "metrics_cases", expected["cases"][case]["summary"]
    prediction, truth = folder / f"{case}_prob.tif", folder / f"{case}_label.tif"
    found = evaluate(prediction, truth, "--metrics", "em")["em"]
    values = tifffile.imread(prediction).astype(np.float32)
    rounded = evaluate(write_zarr(tmp_path / "p.zarr", as_stored(values)), truth, "--metrics", "em")["em"]
    for name, official_name in NAMES.items():
        assert found[name] == pytest.approx(official[official_name], abs=1e-9), name
        record_property(f"{name} moved by rounding to uint8", rounded[name] - found[name])
        assert rounded[name] == pytest.approx(found[name], abs=MOVED_BY_ROUNDING.get(name, 0.003)), name


@pytest.mark.parametrize("case", ["ctc_mixed", "ctc_empty_frame"])
def test_cells_equal_the_challenge_program(case: str, data: Path, expected: dict[str, Any]) -> None:
    folder, official = data / "metrics_cases" / case, expected["ctc"][case]
    found = evaluate(folder / "01_RES", folder / "01_GT", "--metrics", "cells")["cells"]
    assert found["seg"] == pytest.approx(official["SEG"], abs=1e-9)
    assert found["det"] == (official["DET"] and pytest.approx(official["DET"], abs=1e-9))
    assert official["DET"] is not None or "refuses" in found["det_reason"]
