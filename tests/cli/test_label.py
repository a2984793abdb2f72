"""The command label as users see it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr
from helpers import write_prediction
from label.maps import blobs

Unetcli = Callable[..., subprocess.CompletedProcess[str]]


def test_labels_are_written_and_summarised(unetcli: Unetcli, tmp_path: Path) -> None:
    write_prediction(tmp_path / "big.pred.zarr", blobs((2, 40, 50), 2), (1, 16, 16))
    done = unetcli("label", "big.pred.zarr", "--threshold", 0.45, "--min-size", 5, "--json", "--ctc", "01_RES")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    labels = np.asarray(zarr.open_array(tmp_path / "big.pred.zarr/labels/instances/0", mode="r")[...])
    assert summary["objects"] == labels.max() > 0
    assert (summary["complete"], summary["threshold"], summary["ctc_frames"]) == (True, 0.45, 2)
    assert {"sizes", "removed", "dtype", "seconds", "table", "method"} <= set(summary)
    assert len((tmp_path / summary["table"]).read_text().splitlines()) == 1 + summary["objects"]
    again = unetcli("label", "big.pred.zarr", "--threshold", 0.45, "--min-size", 5)
    assert (again.returncode, again.stdout) == (0, "big.pred.zarr/labels/instances\n")
    assert "already complete" in again.stderr


def test_errors_are_one_line_and_damaged_predictions_are_refused(unetcli: Unetcli, tmp_path: Path) -> None:
    store = Path(write_prediction(tmp_path / "big.pred.zarr", blobs((2, 40, 50), 2), (1, 16, 16)))
    refused = unetcli("label", "big.pred.zarr", "--connectivity", 7)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    (store / "0/c/1/1/1").write_bytes(b"")
    damaged = unetcli("label", "big.pred.zarr")
    assert (damaged.returncode, damaged.stdout) == (1, "")
    assert "is empty" in damaged.stderr or "cannot read" in damaged.stderr
