"""A probe measures real work, is cached for the plans to which it applies, and can run in a job."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from helpers import grey, write_model, write_zarr

from unetcli.core.geometry import Architecture
from unetcli.model.file import find_model
from unetcli.planning.plan import Plan
from unetcli.planning.timing import STARTUP_SECONDS
from unetcli.predict.preview import PlanOptions, plan_volume
from unetcli.predict.probe import Probe, cache_file, cache_probe, cached_probes, find_cached, measure
from unetcli.predict.request import PredictRequest
from unetcli.volumes.opening import open_volume


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with a model, a volume and an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_model(tmp_path / "model")
    write_zarr(tmp_path / "big.zarr", grey(3, 200, 170), chunks=(2, 64, 64))
    return tmp_path


def plan_with(**changes: Any) -> tuple[Plan, Architecture]:
    report = plan_volume(PredictRequest(volume="big.zarr", device="cpu", **{"tile": 100, **changes}))
    return report.plan, report.architecture


def probed(plan: Plan, seconds: float = 2.0) -> Probe:
    return measure(plan, find_model(), open_volume("big.zarr"), seconds)


def test_a_probe_measures_forward_pass_reading_and_writing() -> None:
    plan, _ = plan_with()
    probe = probed(plan)
    assert probe.extrapolated_from is None
    assert 0 < probe.tile_seconds < probe.seconds
    assert probe.read_bytes_per_second > 0
    assert probe.write_bytes_per_second > 0
    assert 0 < probe.stored_fraction < 1.5
    assert probe.key.tile == 100
    assert probe.key.threads == plan.settings.threads


def test_a_probe_without_time_measures_the_smallest_tile_and_extrapolates() -> None:
    plan, architecture = plan_with()
    probe = probed(plan, seconds=0.0)
    assert probe.extrapolated_from == architecture.footprint().axes[0].side_for(1)
    assert probe.tile_seconds > 0


@pytest.mark.parametrize("outputs", [2, 5])
@pytest.mark.parametrize("shape", [(90, 70), (3, 30, 300), (2, 3, 90, 70)])
def test_a_probe_works_on_any_number_of_axes_and_classes(place: Path, outputs: int, shape: tuple[int, ...]) -> None:
    write_model(place / "model", classes=outputs)
    write_zarr(place / "big.zarr", grey(*shape), chunks=(1,) * (len(shape) - 2) + (32, 32), overwrite=True,
               dimension_names="tzyx"[-len(shape):])  # fmt: skip
    assert probed(plan_with()[0], seconds=0.2).tile_seconds > 0


def test_a_probe_leaves_nothing_behind(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "drafts").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place / "drafts"))
    before = sorted(place.rglob("*"))
    probed(plan_with()[0], seconds=0.2)
    assert sorted(place.rglob("*")) == before


def test_a_probe_is_cached_for_its_network_tile_precision_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, architecture = plan_with()
    probe = probed(plan, seconds=0.2)
    cache_probe(probe)
    assert cached_probes() == [probe]
    assert find_cached(plan, architecture, probe.key.device) == find_cached(plan, architecture, None) == probe
    assert find_cached(plan, architecture, "another processor") is None
    assert find_cached(plan, replace(architecture, classes=3), None) is None
    assert find_cached(plan_with(tile=104)[0], architecture, None) is None
    assert find_cached(plan_with(precision="bfloat16")[0], architecture, None) is None
    monkeypatch.setenv("OMP_NUM_THREADS", str(plan.settings.threads + 1))
    assert find_cached(plan_with()[0], architecture, None) is None


def test_a_newer_probe_replaces_an_older_one() -> None:
    plan, architecture = plan_with()
    probe = probed(plan, seconds=0.2)
    elsewhere = replace(probe, key=replace(probe.key, device="another processor"), when="2001-01-01T00:00:00+00:00")
    newer = replace(probe, tile_seconds=7.0, when="2999-01-01T00:00:00+00:00")
    for one in (elsewhere, probe, newer):
        cache_probe(one)
    assert cached_probes() == [elsewhere, newer]
    assert find_cached(plan, architecture, None) == newer


@pytest.mark.parametrize("text", ["", "{", "[{}]", "[1]", '{"a": 1}', "null"])
def test_a_damaged_cache_is_ignored_and_replaced(text: str) -> None:
    cache_file().parent.mkdir(parents=True)
    cache_file().write_text(text)
    assert cached_probes() == []
    probe = probed(plan_with()[0], seconds=0.1)
    cache_probe(probe)
    assert json.loads(cache_file().read_text()) == [asdict(probe)]


def test_a_probe_that_cannot_be_saved_is_reported_and_used(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    (place / "cache").write_text("a file where the folder would be")
    report = plan_volume(PredictRequest(volume="big.zarr", device="cpu", tile=100), options=PlanOptions(probe=True))
    assert report.gpu_hours is not None
    assert "not saved" in caplog.text


def test_the_read_rate_applies_to_the_measured_volume_only() -> None:
    probe = probed(plan_with()[0], seconds=0.2)
    assert probe.rates(probe.volume).read_bytes_per_second == probe.read_bytes_per_second
    assert probe.rates("/elsewhere.zarr").read_bytes_per_second is None
    assert probe.rates("/elsewhere.zarr").tile_seconds == probe.tile_seconds


def in_another_process(task: Callable[[str], dict[str, Any]], text: str) -> dict[str, Any]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(task, text).result()


@pytest.mark.slow
def test_a_probe_can_run_in_a_job_and_is_cached_here() -> None:
    """The task and its result are pickled to another process, as for a job of a cluster."""
    plan, architecture = plan_with()
    pids: list[int] = []

    def submit(task: Callable[[str], dict[str, Any]], text: str) -> dict[str, Any]:
        pids.append(os.getpid())
        return in_another_process(task, text)

    request = PredictRequest(volume="big.zarr", device="cpu", tile=100)
    report = plan_volume(request, options=PlanOptions(probe=True), submit=submit)
    assert pids == [os.getpid()]
    assert report.gpu_hours is not None
    assert plan_volume(request).rates == report.rates
    found = find_cached(plan, architecture, None)
    assert found is not None
    assert found.key.tile == 100


def test_hours_follow_from_the_measured_rates_and_the_work_of_all_tiles() -> None:
    report = plan_volume(PredictRequest(volume="big.zarr", device="cpu", tile=100), options=PlanOptions(probe=True))
    e, rates = report.estimate, report.rates
    assert rates is not None
    assert rates.read_bytes_per_second is not None
    assert rates.write_bytes_per_second is not None
    tiles = e.multiply_adds / e.tile_multiply_adds
    assert 0 < tiles < e.tiles  # the last tiles of a block are smaller
    stages = tiles * rates.tile_seconds + e.input_bytes / rates.read_bytes_per_second
    stages += e.output_bytes / rates.write_bytes_per_second
    assert report.timing.seconds_per_block == pytest.approx(stages / e.blocks)
    assert report.gpu_hours == pytest.approx((stages + report.timing.shares * STARTUP_SECONDS) / 3600)
    assert report.stored_bytes is not None
    assert 0 < report.stored_bytes < 1.5 * e.output_bytes
