"""Comparison of a host's results with those of other hosts; another host is simulated by editing receipts."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from helpers import grey, read_receipts, write_zarr

from unetcli.core.errors import UnetcliError
from unetcli.core.records import from_json, to_json
from unetcli.engine.runfolder import RunFolder
from unetcli.engine.worker import StepTask
from unetcli.planning.plan import FORMAT, Plan
from unetcli.predict.checks import TOLERANCE, blocks_of_others, tolerance
from unetcli.predict.request import PredictRequest
from unetcli.predict.run import predict_volume
from unetcli.predict.step import PredictStep

FOLDER = Path("big.pred.zarr.run/predict")
HERE, SECTIONS, DONE = socket.gethostname(), 6, 3


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def request_(model: Path) -> PredictRequest:
    write_zarr(Path("big.zarr"), grey(SECTIONS, 40, 50), chunks=(1, 32, 32))
    return PredictRequest(volume="big.zarr", tile=68, device="cpu", dtype="uint8")


def sign_as(host: str, blocks: Iterable[int] = range(SECTIONS)) -> None:
    """Change the host in the receipts of some blocks."""
    for path in (FOLDER / "receipts").glob("*.txt"):
        receipts = [r for r in read_receipts(path.parent) if path.read_text().count(r.to_line())]
        signed = [replace(r, host=host) if r.block in blocks else r for r in receipts]
        path.write_text("".join(receipt.to_line() for receipt in signed))


def begun_elsewhere(request: PredictRequest, host: str = "elsewhere") -> None:
    """Begin a run, and attribute its finished blocks to another host."""
    asked = [False] * DONE
    predict_volume(request, stopping=lambda: not asked or asked.pop())
    sign_as(host)
    assert PredictStep.open(RunFolder(FOLDER)).ledger.refresh().done.sum() == DONE


def record() -> dict[str, object]:
    return json.loads((FOLDER / f"canaries/{HERE}.json").read_text())  # type: ignore[no-any-return]


def test_a_host_with_the_same_results_is_accepted_and_compared_once(request_: PredictRequest) -> None:
    begun_elsewhere(request_)
    assert StepTask(PredictStep)(str(FOLDER), ((3, 4),)) == 1
    assert record() == {"block": 0, "host": "elsewhere", "difference": 0.0}
    zarr.open_array("big.pred.zarr/0", mode="r+")[:3] = 0  # a second comparison would not pass
    assert StepTask(PredictStep)(str(FOLDER), ((0, SECTIONS),)) == 2


def test_a_host_alone_has_nothing_to_compare(request_: PredictRequest) -> None:
    assert predict_volume(request_).complete
    assert not list((FOLDER / "canaries").iterdir())


def test_a_host_with_other_results_is_refused_and_writes_nothing(request_: PredictRequest) -> None:
    begun_elsewhere(request_)
    array = zarr.open_array("big.pred.zarr/0", mode="r+")
    array[0, 5, 5] = (int(array[0, 5, 5]) + 100) % 256
    before = {f: f.stat().st_mtime_ns for f in Path("big.pred.zarr").rglob("*")}
    with pytest.raises(UnetcliError, match=f"host {HERE}: .*block 0 differs from .*elsewhere") as caught:
        predict_volume(request_)
    assert "\n" not in str(caught.value)
    assert {f: f.stat().st_mtime_ns for f in Path("big.pred.zarr").rglob("*")} == before
    assert not list((FOLDER / "canaries").iterdir())


def test_a_difference_of_one_level_is_accepted(request_: PredictRequest) -> None:
    begun_elsewhere(request_)
    array = zarr.open_array("big.pred.zarr/0", mode="r+")
    array[0, 5, 5] = int(array[0, 5, 5]) + (1 if array[0, 5, 5] < 255 else -1)
    assert predict_volume(request_).complete
    assert record()["difference"] == 1.0


@pytest.mark.parametrize(("dtype", "change", "passes"), [("float32", 1e-5, True), ("float32", 1e-4, False)])
def test_floats_agree_within_the_promise(request_: PredictRequest, dtype: str, change: float, passes: bool) -> None:
    request = replace(request_, dtype=dtype)
    begun_elsewhere(request)
    array = zarr.open_array("big.pred.zarr/0", mode="r+")
    array[0, 5, 5] = np.float32(array[0, 5, 5]) + np.float32(change)
    if passes:
        assert predict_volume(request).complete
    else:
        with pytest.raises(UnetcliError, match="differs"):
            predict_volume(request)


def test_nan_is_refused(request_: PredictRequest) -> None:
    request = replace(request_, dtype="float32")
    begun_elsewhere(request)
    zarr.open_array("big.pred.zarr/0", mode="r+")[0, 5, 5] = np.nan
    with pytest.raises(UnetcliError, match="differs"):
        predict_volume(request)


@pytest.mark.parametrize("broken", ["stored", "input"])
def test_if_a_block_is_damaged_another_is_compared(request_: PredictRequest, broken: str) -> None:
    begun_elsewhere(request_)
    place = "big.pred.zarr/0/c/0/0/0" if broken == "stored" else "big.zarr/c/0/0/0"
    Path(place).write_bytes(b"damaged")
    PredictStep.open(RunFolder(FOLDER)).ledger.refresh()
    assert StepTask(PredictStep)(str(FOLDER), ((3, SECTIONS),)) == 3
    assert record()["block"] == 1


def test_a_skipped_block_is_not_compared(request_: PredictRequest) -> None:
    mask = np.ones((SECTIONS, 40, 50), np.uint8)
    mask[0] = 0
    write_zarr(Path("mask.zarr"), mask)
    request = replace(request_, mask="mask.zarr")
    begun_elsewhere(request)
    assert predict_volume(request).complete
    assert record()["block"] == 1


def test_few_blocks_of_other_hosts_far_apart_are_compared(request_: PredictRequest) -> None:
    predict_volume(request_)
    sign_as("elsewhere", {0, 1, 2, 4, 5})
    step = PredictStep.open(RunFolder(FOLDER))
    step.ledger.refresh()
    assert blocks_of_others(step, HERE) == [0, 1, 2, 5]  # four of 0, 1, 2, 4, 5
    assert blocks_of_others(step, "elsewhere") == [3]


def test_a_plan_for_a_gpu_is_refused_where_there_is_none_naming_the_host(
    request_: PredictRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    predict_volume(request_, stopping=lambda: True)
    file = FOLDER / "plan.json"
    plan = from_json(Plan, file.read_text(), FORMAT, "plan")
    file.write_text(to_json(replace(plan, settings=replace(plan.settings, device="cuda")), FORMAT))
    paths = json.loads((FOLDER / "paths.json").read_text()) | {"device": None}
    (FOLDER / "paths.json").write_text(json.dumps(paths))
    with pytest.raises(UnetcliError, match=f"host {HERE}: --device cuda: not available"):
        StepTask(PredictStep)(str(FOLDER), ((0, SECTIONS),))
    with pytest.raises(UnetcliError, match=f"host {HERE}: --device cuda: not available"):
        predict_volume(replace(request_, device=None))  # takes the frozen device


def test_bfloat16_is_compared_more_loosely(request_: PredictRequest) -> None:
    predict_volume(request_, stopping=lambda: True)
    settings = PredictStep.open(RunFolder(FOLDER)).plan.settings
    assert tolerance(settings) == TOLERANCE["uint8"] == 1
    assert tolerance(replace(settings, precision="bfloat16")) > 10
