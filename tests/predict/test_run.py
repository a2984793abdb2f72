"""Prediction in this process: resuming, refusals, blocks set aside, and the files that are written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from helpers import grey, read_receipts, write_model, write_zarr
from numpy.typing import NDArray

from unetcli.core.arrays import checksum
from unetcli.core.errors import UnetcliError, collected_warnings
from unetcli.engine.receipts import read_failures
from unetcli.evaluate.evaluate import evaluate_volume
from unetcli.evaluate.request import EvaluateRequest
from unetcli.label.request import LabelRequest
from unetcli.label.run import label_volume
from unetcli.model.file import load_network, read_header, save_model
from unetcli.model.training_data import TrainingObjects
from unetcli.predict.request import PredictRequest
from unetcli.predict.run import PredictSummary, close_run, predict_share, predict_volume, resolve_step
from unetcli.volumes.image import marker
from unetcli.volumes.opening import open_volume


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNETCLI_MODEL", raising=False)


@pytest.fixture
def request_(model: Path) -> PredictRequest:
    """Request for three sections of awkward size; ``./model`` is the default model."""
    write_zarr(Path("big.zarr"), grey(3, 70, 90), chunks=(1, 32, 32))
    return PredictRequest(volume="big.zarr", tile=68, device="cpu")


def stored(path: str = "big.pred.zarr") -> NDArray[np.generic]:
    return np.asarray(zarr.open_array(f"{path}/0", mode="r")[...])


def array_bytes(path: str) -> dict[str, bytes]:
    """Contents of every file of a store, by name."""
    return {str(f.relative_to(path)): f.read_bytes() for f in Path(path).rglob("*") if f.is_file()}


def stop_after(blocks: int) -> tuple[dict[str, int], object]:
    """A ``stopping`` function that returns True after some blocks, and its counter."""
    asked = {"times": 0}

    def stopping() -> bool:
        asked["times"] += 1
        return asked["times"] > blocks

    return asked, stopping


def test_the_result_is_named_after_the_volume_and_complete(request_: PredictRequest) -> None:
    summary = predict_volume(request_)
    assert summary.output == "big.pred.zarr"
    assert summary.complete
    assert (marker(Path("big.pred.zarr")) or {})["complete"] is True
    assert stored().shape == (3, 70, 90)
    assert len(np.unique(stored())) > 20
    assert not list(Path().rglob("*.partial"))


def test_the_marker_has_what_the_model_knows_of_objects(request_: PredictRequest, model: Path) -> None:
    predict_volume(request_)
    assert not {"truth", "smallest_objects"} & set(marker(Path("big.pred.zarr")) or {})
    objects = TrainingObjects(truth="instances", smallest=(40,))
    save_model(model, load_network(model), replace(read_header(model), objects=objects))
    predict_volume(replace(request_, overwrite=True))
    found = marker(Path("big.pred.zarr")) or {}
    assert (found["truth"], found["smallest_objects"]) == ("instances", [40])
    assert label_volume(LabelRequest("big.pred.zarr")).min_size == 20


def test_a_second_call_finds_everything_done_and_touches_nothing(request_: PredictRequest) -> None:
    first = predict_volume(request_)
    before = {f: f.stat().st_mtime_ns for f in Path("big.pred.zarr").rglob("*")}
    again = predict_volume(replace(request_, tile=None, device=None))  # the frozen values are used
    assert (again.found_done, again.computed) == (first.blocks, 0)
    assert {f: f.stat().st_mtime_ns for f in Path("big.pred.zarr").rglob("*")} == before


def test_a_stopped_run_is_incomplete_and_continues_to_the_same_bytes(request_: PredictRequest) -> None:
    _, stopping = stop_after(1)
    stopped: PredictSummary = predict_volume(request_, stopping=stopping)  # type: ignore[arg-type]
    assert 0 < stopped.computed < stopped.blocks
    assert not stopped.complete
    assert (marker(Path("big.pred.zarr")) or {})["complete"] is False
    finished = predict_volume(request_)
    assert (finished.found_done, finished.complete) == (stopped.computed, True)
    predict_volume(replace(request_, output=Path("whole.zarr")))
    assert array_bytes("big.pred.zarr/0") == array_bytes("whole.zarr/0")


def test_receipts_have_the_checksums_of_the_stored_voxels(request_: PredictRequest) -> None:
    predict_volume(request_)
    receipts = {receipt.block: receipt for receipt in read_receipts(Path("big.pred.zarr.run/predict/receipts"))}
    assert sorted(receipts) == [0, 1, 2]
    for number, receipt in receipts.items():
        assert receipt.checksum == checksum(stored()[number][None, None])


@pytest.mark.by_default("tile", "dtype")
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tile": 84}, "tile"),
        ({"dtype": "float32"}, "dtype"),
        ({"sections": (0, 2)}, "region"),
        ({"normalise": "volume"}, "normalise"),
        ({"nonfinite": 0.0}, "nonfinite"),
        ({"precision": "bfloat16"}, "precision"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_settings_are_refused_by_name_and_overwrite_starts_over(
    request_: PredictRequest, change: dict[str, object], named: str
) -> None:
    predict_volume(request_)
    before = array_bytes("big.pred.zarr")
    other = replace(request_, **change)  # type: ignore[arg-type]
    with pytest.raises(UnetcliError, match=named):
        predict_volume(other)
    assert array_bytes("big.pred.zarr") == before
    assert predict_volume(replace(other, overwrite=True)).found_done == 0


def test_overwriting_names_the_labels_that_go_and_the_tables_that_stay(
    request_: PredictRequest, caplog: pytest.LogCaptureFixture
) -> None:
    predict_volume(request_)
    label_volume(LabelRequest(prediction="big.pred.zarr", name="cells"))
    predict_volume(replace(request_, overwrite=True))
    said = "big.pred.zarr: --overwrite deletes the labels in it: cells; their tables stay: big.pred.zarr.cells.csv"
    assert said in caplog.messages
    assert not Path("big.pred.zarr/labels").exists()
    assert Path("big.pred.zarr.cells.csv").exists()


def test_a_file_system_without_hard_links_gets_the_same_bytes(
    request_: PredictRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    predict_volume(replace(request_, levels=2))
    monkeypatch.setattr(os, "link", link)
    predict_volume(replace(request_, levels=2, output="other.zarr"))
    assert array_bytes("other.zarr/0") == array_bytes("big.pred.zarr/0")
    assert label_volume(LabelRequest(prediction="other.zarr")).complete


def test_a_scheduler_that_does_not_answer_leaves_no_output(
    request_: PredictRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unetcli.executors.dask.cluster.CONNECT_SECONDS", 1.0)
    before = sorted(Path().iterdir())
    for address in ("BAD", "tcp://127.0.0.1:9"):
        with pytest.raises(UnetcliError, match=f"--scheduler {address}: no Dask scheduler answers"):
            predict_volume(replace(request_, cluster="dask", scheduler=address))
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "127.0.0.1:9"])
def test_a_scheduler_without_encryption_is_warned_of(
    request_: PredictRequest, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr("unetcli.executors.dask.cluster.CONNECT_SECONDS", 1.0)
    plain = replace(request_, cluster="dask", scheduler=address)
    with collected_warnings() as texts, pytest.raises(UnetcliError, match="no Dask scheduler answers"):
        predict_volume(plain)
    (text,) = texts
    assert text.startswith(f"--scheduler {address}: not encrypted; whoever reaches its port can read the data and run")
    assert text.endswith("use tls://HOST:PORT with --tls FOLDER")
    with collected_warnings(strict=True), pytest.raises(UnetcliError, match="--strict: 1 warning: --scheduler"):
        predict_volume(plain)


def test_another_model_or_other_data_are_refused(request_: PredictRequest, tmp_path: Path) -> None:
    predict_volume(request_)
    other = write_model(tmp_path / "other", base_channels=5)
    with pytest.raises(UnetcliError, match=r"model .*other"):
        predict_volume(replace(request_, model=other))
    zarr.open_array("big.zarr", mode="r+")[0, 0, 0] += 1
    with pytest.raises(UnetcliError, match=r"volume .*big.zarr"):
        predict_volume(request_)


def test_a_deleted_output_is_computed_again_despite_its_receipts(request_: PredictRequest) -> None:
    predict_volume(request_)
    before = array_bytes("big.pred.zarr")
    shutil.rmtree("big.pred.zarr")
    assert predict_volume(request_).computed == 3
    assert array_bytes("big.pred.zarr") == before


def test_an_output_without_its_run_folder_is_not_touched(request_: PredictRequest) -> None:
    predict_volume(request_)
    shutil.rmtree("big.pred.zarr.run")
    with pytest.raises(UnetcliError, match="--overwrite"):
        predict_volume(request_)
    assert predict_volume(replace(request_, overwrite=True)).complete


def test_inputs_and_paths_not_written_by_unetcli_are_never_overwritten(request_: PredictRequest) -> None:
    Path("foreign").mkdir()
    Path("foreign/notes.txt").write_text("mine")
    for output in ("foreign", "big.zarr", "big.zarr/inside", ".", "model"):
        for overwrite in (False, True):
            with pytest.raises(UnetcliError, match="--output"):
                predict_volume(replace(request_, output=Path(output), overwrite=overwrite))
    Path("link.zarr").symlink_to("big.zarr")
    with pytest.raises(UnetcliError, match="input"):
        predict_volume(replace(request_, output=Path("link.zarr")))
    assert Path("foreign/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("listed", [False, True])
def test_labels_not_written_by_unetcli_are_not_overwritten(request_: PredictRequest, listed: bool) -> None:
    predict_volume(request_)
    output = Path(request_.output_path)
    names = ["corrected"] if listed else []
    labels = zarr.open_group(output / "labels", mode="w", attributes={"ome": {"version": "0.5", "labels": names}})
    labels.create_array("corrected/0", data=np.ones((3, 4), np.uint8))
    with pytest.raises(UnetcliError, match=r"labels/corrected: not written by unetcli, .*--overwrite"):
        predict_volume(replace(request_, overwrite=True))
    assert zarr.open_array(output / "labels/corrected/0", mode="r")[...].all()
    shutil.rmtree(output / "labels/corrected")
    label_volume(LabelRequest(prediction=str(output)))
    assert predict_volume(replace(request_, overwrite=True)).found_done == 0
    assert not (output / "labels").exists()


def test_overwrite_is_refused_in_an_array_element(request_: PredictRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    predict_volume(request_)
    with pytest.raises(UnetcliError, match="array element 3"):
        predict_volume(replace(request_, overwrite=True))
    assert len(np.unique(stored())) > 20


def test_a_refused_output_gets_no_run_folder(request_: PredictRequest) -> None:
    with pytest.raises(UnetcliError, match="--output"):
        predict_volume(replace(request_, output=Path("big.zarr")))
    assert not list(Path().glob("*.run"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile": 66}, "nearest usable: 64 and 68"),
        ({"volume": "missing.zarr"}, "missing.zarr: no such"),
        ({"sections": (2, 9)}, "0:3"),
        ({"dtype": "int8"}, "uint8, float16 or float32"),
        ({"channel": 1}, "channels 0 to 0"),
        ({"device": "quantum"}, "cpu works"),
        ({"output": Path("no/such/folder.zarr")}, "does not exist"),
        ({"model": Path("nowhere")}, "no model"),
    ],
)
def test_bad_requests_get_one_line_and_write_nothing(
    request_: PredictRequest, change: dict[str, object], message: str
) -> None:
    before = sorted(Path().rglob("*"))
    with pytest.raises(UnetcliError, match=message) as caught:
        predict_volume(replace(request_, **change))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert sorted(Path().rglob("*")) == before


def test_another_integer_range_is_refused_naming_the_option(request_: PredictRequest) -> None:
    write_zarr(Path("wide.zarr"), grey(40, 40).astype(np.uint16) * 200)
    wide = replace(request_, volume="wide.zarr")
    with pytest.raises(UnetcliError, match="--normalise volume"):
        predict_volume(wide)
    assert predict_volume(replace(wide, normalise="volume")).complete


def test_a_block_with_nan_is_set_aside_with_its_place_and_the_rest_is_done(tmp_path: Path) -> None:
    write_model(tmp_path / "model", dtype="float32", mean=0.0, std=1.0)
    values = np.random.default_rng(0).normal(size=(3, 64, 64)).astype(np.float32)
    values[1, 5, 7] = np.nan
    write_zarr(Path("nan.zarr"), values, chunks=(1, 32, 32))
    request = PredictRequest(volume="nan.zarr", device="cpu")
    summary = predict_volume(request)
    assert not summary.complete
    assert (summary.computed, len(summary.set_aside)) == (2, 1)
    assert summary.set_aside[0]["block"] == 1
    assert "z 1:2, y 5:6, x 7:8" in summary.set_aside[0]["reason"]
    failures = list(read_failures(Path("nan.pred.zarr.run/predict/failures")))
    assert [failure.note() for failure in failures] == summary.set_aside
    assert failures[0].kind == "unusable"
    filled = predict_volume(replace(request, nonfinite=0.0, output=Path("filled.zarr")))
    assert filled.complete
    assert np.array_equal(stored("filled.zarr")[::2], stored("nan.pred.zarr")[::2])


def test_a_backslash_in_the_folder_of_logs_is_refused_before_anything_is_submitted(request_: PredictRequest) -> None:
    Path("a\\b").mkdir()
    before = set(Path().rglob("*"))
    odd = replace(request_, cluster="slurm", output=Path("a\\b/big.pred.zarr"))
    with pytest.raises(
        UnetcliError, match=r"a\\b/big\.pred\.zarr\.run/predict: a backslash .*; use a folder without one"
    ):
        predict_volume(odd)
    assert set(Path().rglob("*")) == before


def test_a_damaged_chunk_sets_its_block_aside_until_it_is_repaired(request_: PredictRequest) -> None:
    predict_volume(replace(request_, output=Path("sound.zarr")))
    chunk = Path("big.zarr/c/2/1/1")
    sound = chunk.read_bytes()
    chunk.write_bytes(sound[: len(sound) // 2])
    summary = predict_volume(request_)
    assert [aside["block"] for aside in summary.set_aside] == [2]
    assert summary.computed == 2
    assert not predict_volume(request_).complete
    chunk.write_bytes(sound)
    repaired = predict_volume(request_)
    assert (repaired.complete, repaired.found_done, repaired.computed) == (True, 2, 1)
    assert array_bytes("big.pred.zarr/0") == array_bytes("sound.zarr/0")


def test_a_file_url_is_a_path_like_any_other(request_: PredictRequest, tmp_path: Path) -> None:
    before = array_bytes("big.zarr")
    url = f"file://{tmp_path}/big.zarr"
    with pytest.raises(UnetcliError, match="input"):
        predict_volume(replace(request_, volume=url, output=Path("big.zarr"), overwrite=True))
    assert array_bytes("big.zarr") == before
    assert predict_volume(replace(request_, volume=url)).complete


def test_leftovers_of_a_killed_launcher_are_swept(request_: PredictRequest) -> None:
    _, stopping = stop_after(1)
    predict_volume(request_, stopping=stopping)  # type: ignore[arg-type]
    Path("big.pred.zarr.0123456789abcdef.partial/0").mkdir(parents=True)
    Path("big.pred.zarr/0/c.0123456789abcdef.partial").write_bytes(b"torn")
    Path("big.pred.zarr.run/predict/plan.json.0123456789abcdef.partial").write_text("torn")
    assert predict_volume(request_).complete
    assert not list(Path().rglob("*.partial"))


def test_a_truncated_model_is_refused_before_anything_is_written(request_: PredictRequest) -> None:
    file = Path("model/model.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UnetcliError, match="damaged model"):
        predict_volume(request_)
    assert not list(Path().glob("big.pred*"))


def test_channels_and_time_are_kept_apart(tmp_path: Path, model: Path) -> None:
    values = grey(2, 3, 40, 50)
    write_zarr(Path("film.zarr"), values, dimension_names=["t", "c", "y", "x"])
    with pytest.raises(UnetcliError, match="--channel N"):
        predict_volume(PredictRequest(volume="film.zarr", device="cpu"))
    predict_volume(PredictRequest(volume="film.zarr", device="cpu", channel=2))
    write_zarr(Path("one.zarr"), values[1, 2])
    predict_volume(PredictRequest(volume="one.zarr", device="cpu"))
    assert np.array_equal(stored("film.pred.zarr")[1], stored("one.pred.zarr"))
    assert open_volume("film.pred.zarr").axes == "tyx"


def test_several_classes_are_stored_as_channels_that_add_up_to_one(tmp_path: Path) -> None:
    write_model(tmp_path / "model", classes=3, in_channels=2)
    write_zarr(Path("two.zarr"), grey(2, 30, 33), dimension_names=["c", "y", "x"])
    predict_volume(PredictRequest(volume="two.zarr", device="cpu", dtype="float32"))
    assert stored("two.pred.zarr").shape == (3, 30, 33)
    assert np.allclose(stored("two.pred.zarr").sum(0, dtype=float), 1, atol=1e-5)


def test_bfloat16_is_close_and_float16_is_rounded_float32(request_: PredictRequest) -> None:
    exact = replace(request_, dtype="float32")
    predict_volume(exact)
    predict_volume(replace(exact, dtype="float16", output=Path("half.zarr")))
    predict_volume(replace(exact, precision="bfloat16", output=Path("brain.zarr")))
    assert np.array_equal(stored("half.zarr"), stored().astype(np.float16))
    assert 0 < np.abs(stored("brain.zarr").astype(float) - stored()).max() < 0.1


@pytest.mark.by_default("4")
@pytest.mark.parametrize("thickness", [1, 4, 8])
def test_chunks_thick_in_z_are_read_once_per_slab(model: Path, monkeypatch: pytest.MonkeyPatch, thickness: int) -> None:
    write_zarr(Path("thick.zarr"), grey(16, 100, 130), chunks=(thickness, 64, 64))
    reads: Counter[str] = Counter()
    real = zarr.storage.LocalStore.get

    async def counting(self: zarr.storage.LocalStore, key: str, *rest: object, **options: object) -> object:
        if self.root.name == "thick.zarr" and key.startswith("c/"):
            reads[key] += 1
        return await real(self, key, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(zarr.storage.LocalStore, "get", counting)
    request = PredictRequest(volume="thick.zarr", model=model, tile=68, device="cpu")
    resolve_step(request)  # computes a fingerprint, as every call does
    fingerprinting = reads.copy()
    reads.clear()
    assert predict_volume(request).complete
    computing = reads - fingerprinting
    assert len(computing) == 16 // thickness * 2 * 3
    assert set(computing.values()) == {1}


@pytest.mark.parametrize("kind", [{"max_files": 4}, {"zarr_format": 2}], ids=["shards", "zarr 2"])
def test_shards_and_zarr_2_hold_the_same_voxels_and_a_rerun_continues(
    request_: PredictRequest, kind: dict[str, int]
) -> None:
    predict_volume(replace(request_, output=Path("plain.zarr")))
    _, stopping = stop_after(1)
    first = replace(request_, **kind)  # type: ignore[arg-type]
    assert not predict_volume(first, stopping=stopping).complete  # type: ignore[arg-type]
    with pytest.raises(UnetcliError, match="not complete"):
        evaluate_volume(EvaluateRequest(prediction="big.pred.zarr", truth="plain.zarr"))
    rerun = replace(first, max_files=None)  # the frozen shards are kept
    assert predict_volume(rerun).complete
    assert predict_volume(rerun).computed == 0
    assert np.array_equal(stored(), stored("plain.zarr"))
    assert sum(path.is_file() for path in Path("big.pred.zarr").rglob("*")) == (4 if "max_files" in kind else 7)


def test_an_unreachable_limit_of_files_is_refused(request_: PredictRequest) -> None:
    with pytest.raises(UnetcliError, match="7 files, more than --max-files 4: Zarr 2 has no shards; --zarr-format 3"):
        predict_volume(replace(request_, max_files=4, zarr_format=2))
    with pytest.raises(UnetcliError, match="3 files, more than --max-files 2: no larger shard"):
        predict_volume(replace(request_, max_files=2))
    assert not list(Path().glob("big.pred*"))


def halved(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Means over 2 x 2 voxels in plane, rounded half up; the plane must have even sides."""
    four = values.astype(int).reshape(len(values), values.shape[1] // 2, 2, values.shape[2] // 2, 2)
    return ((four.sum((2, 4)) + 2) // 4).astype(np.uint8)


def levels(path: str = "big.pred.zarr") -> list[str]:
    image = json.loads(Path(path, "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]
    return [dataset["path"] for dataset in image["datasets"]]


def test_each_level_halves_the_previous_one_and_levels_can_be_added_later(tmp_path: Path, model: Path) -> None:
    write_zarr(Path("big.zarr"), grey(3, 64, 96), chunks=(1, 32, 32))
    request = PredictRequest(volume="big.zarr", device="cpu", levels=3)
    assert predict_volume(request).complete
    assert levels() == ["0", "1", "2"]
    one = np.asarray(zarr.open_array("big.pred.zarr/1", mode="r")[...])
    assert np.array_equal(one, halved(stored()))
    assert np.array_equal(zarr.open_array("big.pred.zarr/2", mode="r")[...], halved(one))
    before = array_bytes("big.pred.zarr")
    assert predict_volume(request).computed == 0
    assert array_bytes("big.pred.zarr") == before
    predict_volume(replace(request, levels=1, output=Path("other.zarr")))
    assert levels("other.zarr") == ["0"]
    predict_volume(replace(request, output=Path("other.zarr")))
    assert array_bytes("other.zarr/2") == array_bytes("big.pred.zarr/2")
    assert predict_volume(replace(request, overwrite=True)).computed == 3
    assert array_bytes("big.pred.zarr/1") == array_bytes("other.zarr/1")


def test_the_last_share_also_builds_the_levels(tmp_path: Path, model: Path) -> None:
    write_zarr(Path("big.zarr"), grey(4, 64, 96), chunks=(1, 32, 32))
    request = PredictRequest(volume="big.zarr", device="cpu", levels=2)
    assert not predict_share(request, (1, 2)).complete
    assert levels() == ["0"]
    assert predict_share(request, (0, 2)).complete
    assert levels() == ["0", "1"]
    assert close_run(request).complete


def test_impossible_levels_and_shares_are_refused_before_anything_is_written(
    request_: PredictRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    with pytest.raises(UnetcliError, match="expected 1 to 8"):
        predict_volume(replace(request_, levels=99))
    with pytest.raises(UnetcliError, match="use --share I/N"):
        predict_share(request_, None)
    assert not list(Path().glob("big.pred*"))
