"""The number format that ``--precision auto`` takes: bfloat16 only where it keeps what float32 promises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from helpers import write_model, write_zarr
from scipy import ndimage

from unetcli import api
from unetcli.core import process
from unetcli.core.geometry import AxisFootprint, Box
from unetcli.predict import precision
from unetcli.predict.precision import sides_of, windows_of
from unetcli.predict.request import PredictRequest
from unetcli.predict.resolve import resolve_plan
from unetcli.volumes.opening import open_volume

SHAPE = (2, 300, 310)
CPU: dict[str, Any] = {"volume": "raw.zarr", "model": "model", "device": "cpu"}


@pytest.fixture(autouse=True)
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A smooth volume and a model with random weights, which is far from float32 unless that is allowed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(precision, "computes_bfloat16", lambda: True)
    monkeypatch.setattr("unetcli.model.network.has_bfloat16", lambda device: True)
    grey = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=SHAPE), (0, 3, 3))
    write_zarr(Path("raw.zarr"), ((grey - grey.min()) / np.ptp(grey) * 255).astype(np.uint8), (1, 128, 128))
    write_model(Path("model"), base_channels=8)
    monkeypatch.setattr(precision, "MOST_APART", 1.0)


def stored(output: str) -> Any:
    return zarr.open_array(f"{output}/0", mode="r")[:].astype(int)


def test_bfloat16_is_taken_where_no_tile_shows(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "unetcli")
    for output, tile in (("a.zarr", 60), ("b.zarr", 140)):
        assert api.predict(**CPU, output=output, tile=tile).precision == "bfloat16"
    assert "bfloat16 is used: tiles of" in caplog.text
    assert np.abs(stored("a.zarr") - stored("b.zarr")).max() <= 1
    api.predict(**CPU, output="exact.zarr", tile=140, precision="float32")
    assert 0 < np.abs(stored("b.zarr") - stored("exact.zarr")).max() < 10  # it was bfloat16 that was computed


def test_float32_is_taken_where_bfloat16_is_far_from_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "unetcli")
    monkeypatch.setattr(precision, "CLOSE", 0)
    monkeypatch.setattr(precision, "MOST_APART", 0.01)
    assert api.predict(**CPU, output="a.zarr", tile=60).precision == "float32"
    assert "float32 is used: tiles of" in caplog.text


def test_float32_is_taken_where_tiles_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "SAME", -1)
    assert api.predict(**CPU, output="a.zarr", tile=60).precision == "float32"


def test_the_choice_is_frozen(unetcli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    api.predict(**CPU, output="a.zarr", tile=60, share=(0, 2))
    monkeypatch.setattr(precision, "computes_bfloat16", lambda: False)
    assert api.predict(**CPU, output="a.zarr").precision == "bfloat16"
    assert api.plan(**CPU, output="a.zarr").conflicts == ()
    refused = unetcli("predict", "raw.zarr", "--model", "model", "-o", "a.zarr", "--precision", "float32")
    assert (refused.returncode, "precision float32 (was bfloat16)" in refused.stderr) == (1, True)
    api.predict(**CPU, output="whole.zarr", tile=60, precision="bfloat16")
    assert np.array_equal(stored("a.zarr"), stored("whole.zarr"))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_finer_outputs_are_computed_in_float32(dtype: str) -> None:
    assert api.predict(**CPU, output="a.zarr", dtype=dtype).precision == "float32"


def test_a_processor_without_the_instructions_takes_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "computes_bfloat16", lambda: False)
    assert api.predict(**CPU, output="a.zarr").precision == "float32"


def test_jobs_on_gpus_take_float32_and_the_line_names_what_is_faster(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "unetcli")
    request = PredictRequest(volume="raw.zarr", model=(Path("model"),), device="cuda", remote=True)  # a login node
    plan = resolve_plan(request, open_volume("raw.zarr"), [Path("model/model.safetensors")], None)
    assert (plan.settings.device, plan.settings.precision) == ("cuda", "float32")
    assert "--precision bfloat16 is many times faster" in caplog.text


def test_a_small_network_gains_nothing() -> None:
    write_model(Path("tiny"))
    assert api.predict(**{**CPU, "model": "tiny"}, output="a.zarr").precision == "float32"


def test_a_plan_foresees_the_choice(unetcli: Callable[..., Any]) -> None:
    assert api.plan(**CPU).plan.settings.precision == "bfloat16"
    assert api.plan(**CPU, dtype="float32").plan.settings.precision == "float32"
    assert api.plan(**CPU, cluster="slurm").plan.settings.precision == "float32"  # nothing is known of its machines
    text = unetcli("plan", "raw.zarr", "--model", "model", "--device", "cpu").stdout
    if process.computes_bfloat16():
        assert "bfloat16 if two tiles agree; --precision fixes it" in " ".join(text.split())


def test_a_constant_or_damaged_volume_is_no_error() -> None:
    write_zarr(Path("flat.zarr"), np.full(SHAPE, 7, np.uint8), (1, 128, 128))
    assert api.predict(**{**CPU, "volume": "flat.zarr"}, output="a.zarr").precision == "bfloat16"
    for chunk in Path("raw.zarr/c").rglob("*/*/*"):
        chunk.write_bytes(b"torn")
    summary = api.predict(**CPU, output="b.zarr")
    assert (summary.precision, summary.finished) == ("float32", False)


def test_windows_lie_in_one_section_and_tiles_on_one_grid() -> None:
    axis = AxisFootprint(context=92, alignment=16, smallest=188)
    for device in ("cpu", "cuda"):
        small, large = sides_of(axis, device)
        assert axis.is_valid(small)
        assert axis.is_valid(large)
        assert (large - small) % (2 * axis.alignment) == 0 < large - small
    for box in windows_of(Box((10, 0, 0), (30, 400, 500)), 220):
        assert box.shape == (1, 220, 220)
        assert 10 <= box.start[0] < 30
