"""Remote stores, on a real S3 server on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3fs
import zarr
from helpers import SETTINGS, Output, grey, plan_of, write_zarr
from s3 import serving

from unetcli.core.errors import UnetcliError, UnreadableBlock
from unetcli.core.geometry import Box
from unetcli.evaluate.evaluate import evaluate_volume
from unetcli.evaluate.request import EvaluateRequest
from unetcli.executors.options import VerifyRequest
from unetcli.predict.request import PredictRequest
from unetcli.predict.run import predict_volume
from unetcli.registry import verify_output
from unetcli.volumes.image import find_marker, marker, remove_output, require_own_output
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import Volume

REGION = Box((1, 3, 5), (3, 29, 11))
KINDS: dict[str, dict[str, Any]] = {"zarr 3": {}, "shards": {"chunks": (1, 4, 8)}, "zarr 2": {"zarr_format": 2}}
SOME_BRIEFLY = ["shards", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("zarr 3", "zarr 2"))]
"""A store in a bucket takes seconds; by default only one kind is tried."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, serving(patch) as bucket:
        yield bucket


@pytest.fixture
def bucket(server: str) -> str:
    """URL of an empty bucket."""
    files = s3fs.S3FileSystem()
    if found := files.find("bucket"):
        files.rm(found)
    return server


def outputs(place: str | Path, kind: str = "zarr 3") -> Output:
    plan = plan_of(REGION, settings=replace(SETTINGS, outputs=2), **KINDS[kind])
    output = Output(place, plan)
    output.create(Volume(path="in", array=np.zeros(plan.extent, np.uint8), stored_axes=plan.axes))
    return output


def fill(output: Output, values: np.ndarray) -> None:
    array = output.open()
    for number in range(output.plan.blocks):
        box = output.plan.output_box(output.plan.block(number))
        output.write(array, box, values[(slice(None), *box.slices)])


def objects(url: str) -> dict[str, bytes]:
    """All objects below a URL, by name."""
    path = url.removeprefix("s3://")
    files = s3fs.S3FileSystem(use_listings_cache=False)
    return {name.removeprefix(f"{path}/"): files.cat_file(name) for name in files.find(path)}


def files_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("kind", SOME_BRIEFLY)
def test_a_remote_store_has_the_same_content_as_a_folder(bucket: str, tmp_path: Path, kind: str) -> None:
    values = grey(2, *REGION.shape)
    values[:, 1] = 0  # chunks of zeros are not stored
    for output in (outputs(f"{bucket}/a.zarr", kind), outputs(tmp_path / "a.zarr", kind)):
        fill(output, grey(*values.shape, seed=1))
        fill(output, values)
        output.mark_complete()
        assert np.array_equal(output.read(Box.of_shape(REGION.shape)), values)
    assert objects(f"{bucket}/a.zarr") == files_of(tmp_path / "a.zarr")
    assert np.array_equal(open_volume(f"{bucket}/a.zarr").read(Box.of_shape(REGION.shape)), values)
    assert (marker(f"{bucket}/a.zarr") or {})["complete"] is True
    assert find_marker(f"{bucket}/a.zarr/0") == marker(f"{bucket}/a.zarr")
    assert list(output.files(Box.of_shape(REGION.shape)))
    assert not list(outputs(f"{bucket}/a.zarr").files(Box.of_shape(REGION.shape)))  # nothing to sync


@pytest.mark.parametrize("kind", SOME_BRIEFLY)
def test_damaged_objects_are_reported_and_replaced(bucket: str, kind: str) -> None:
    output, values = outputs(f"{bucket}/a.zarr", kind), grey(2, *REGION.shape)
    fill(output, values)
    sound, files = objects(f"{bucket}/a.zarr"), s3fs.S3FileSystem()
    for name in sound:
        if name.rpartition("/")[2].isdigit():
            files.pipe_file(f"bucket/a.zarr/{name}", sound[name][: len(sound[name]) // 2])
    with pytest.raises(UnetcliError, match=r"s3://bucket/a\.zarr/0: cannot read z 0:2"):
        output.read(Box.of_shape(REGION.shape))
    fill(output, values)
    assert objects(f"{bucket}/a.zarr") == sound


@pytest.mark.parametrize("kind", SOME_BRIEFLY)
def test_an_interrupted_creation_can_be_repeated(bucket: str, kind: str) -> None:
    outputs(f"{bucket}/a.zarr", kind)
    whole, files = objects(f"{bucket}/a.zarr"), s3fs.S3FileSystem()
    for name in whole:
        if name.startswith("0/"):
            files.rm_file(f"bucket/a.zarr/{name}")
    assert marker(f"{bucket}/a.zarr") is None
    require_own_output(f"{bucket}/a.zarr", "predict", "")
    outputs(f"{bucket}/a.zarr", kind)
    assert objects(f"{bucket}/a.zarr") == whole


@pytest.mark.parametrize("kind", SOME_BRIEFLY)
def test_only_outputs_of_unetcli_are_removed(bucket: str, kind: str) -> None:
    fill(outputs(f"{bucket}/a.zarr", kind), grey(2, *REGION.shape))
    zarr.create_array(f"{bucket}/a.zarr.mine", data=grey(4, 4))
    before = objects(f"{bucket}/a.zarr.mine")
    for name in ("a.zarr", "a.zarr.mine", "missing.zarr"):
        remove_output(f"{bucket}/{name}")
    require_own_output(f"{bucket}/a.zarr", "predict", "")
    with pytest.raises(UnetcliError, match="was not written by unetcli"):
        require_own_output(f"{bucket}/a.zarr.mine", "predict", "")
    assert objects(bucket) == {f"a.zarr.mine/{name}": data for name, data in before.items()}


@pytest.fixture
def request_(bucket: str, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> PredictRequest:
    """Request to predict a volume of the bucket, with the output in the same bucket."""
    monkeypatch.chdir(tmp_path)
    zarr.create_array(f"{bucket}/big.zarr", data=grey(3, 40, 50), chunks=(1, 32, 32))
    write_zarr(Path("big.zarr"), grey(3, 40, 50), chunks=(1, 32, 32))
    return PredictRequest(
        volume=f"{bucket}/big.zarr",
        output=f"{bucket}/pred.zarr",
        run_folder=Path("run"),
        model=model,
        tile=68,
        device="cpu",
    )


def test_predict_reads_and_writes_a_bucket_and_continues_a_stopped_run(request_: PredictRequest) -> None:
    calls = iter([False, True, True, True])
    stopped = predict_volume(request_, stopping=lambda: next(calls, True))
    assert 0 < stopped.computed < stopped.blocks
    summary = predict_volume(request_)
    assert (summary.output, summary.complete, summary.found_done) == ("s3://bucket/pred.zarr", True, stopped.computed)
    assert predict_volume(request_).found_done == summary.blocks
    local = replace(request_, volume="big.zarr", output=Path("pred.zarr"), run_folder=None)
    predict_volume(local)
    assert objects("s3://bucket/pred.zarr") == files_of(Path("pred.zarr"))
    (found,) = verify_output(VerifyRequest(output="s3://bucket/pred.zarr", run_folder=Path("run")))
    assert (found.sound, found.checked) == (True, summary.blocks)
    zarr.create_array("truth.zarr", data=grey(3, 40, 50) // 128)
    scores = [
        evaluate_volume(EvaluateRequest(prediction=place, truth="truth.zarr")).scores
        for place in ("s3://bucket/pred.zarr", "pred.zarr")
    ]
    assert scores[0] == scores[1]
    assert predict_volume(replace(request_, overwrite=True)).found_done == 0


def test_a_damaged_object_of_the_input_sets_its_block_aside(request_: PredictRequest) -> None:
    files = s3fs.S3FileSystem()
    files.pipe_file("bucket/big.zarr/c/2/1/1", files.cat_file("bucket/big.zarr/c/2/1/1")[:100])
    summary = predict_volume(request_)
    assert [aside["block"] for aside in summary.set_aside] == [2]
    assert "s3://bucket/big.zarr" in summary.set_aside[0]["reason"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run_folder": None}, "s3://bucket/pred.zarr: .*--run-folder FOLDER, a local folder"),
        ({"volume": "s3://bucket/no.zarr"}, "s3://bucket/no.zarr: contains no Zarr array or group"),
        pytest.param(
            {"volume": "s3://nobucket/no.zarr"},
            "s3://nobucket/no.zarr: contains no Zarr array or group",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"output": "s3://nobucket/p.zarr"}, "s3://nobucket/p.zarr: .*bucket does not exist", marks=pytest.mark.slow
        ),
        pytest.param(
            {"output": "s3://bucket/big.zarr"}, "equal to, inside or around the input", marks=pytest.mark.slow
        ),
        ({"output": "s3://bucket/big.zarr/0"}, "equal to, inside or around the input"),
        ({"output": "s3://bucket/other.zarr"}, "other.zarr: exists and was not written by unetcli"),
        ({"volume": "gopher://bucket/no.zarr"}, "gopher://bucket/no.zarr: .*gopher"),
    ],
)
def test_an_invalid_request_is_refused_in_one_line(
    request_: PredictRequest, change: dict[str, Any], message: str
) -> None:
    zarr.create_array("s3://bucket/other.zarr", data=grey(4, 4))
    before = objects("s3://bucket")
    with pytest.raises(UnetcliError, match=message) as caught:
        predict_volume(replace(request_, **change))
    assert "\n" not in str(caught.value)
    assert objects("s3://bucket") == before


def test_a_bucket_without_permission_is_reported_in_one_line(request_: PredictRequest) -> None:
    endpoint = os.environ["AWS_ENDPOINT_URL"]

    def allow(requests: bytes) -> None:
        plain = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset-auth", requests, plain)).close()

    output = outputs("s3://bucket/a.zarr")
    array = output.open()
    box = output.plan.output_box(output.plan.block(0))
    allow(b"0")
    try:
        for call in (
            lambda: open_volume("s3://bucket/big.zarr"),
            lambda: marker("s3://bucket/a.zarr"),
            lambda: output.write(array, box, np.ones((2, *box.shape), np.uint8)),
        ):
            with pytest.raises(UnetcliError, match=r"s3://bucket/(big|a)\.zarr: cannot be reached: \S") as caught:
                call()
            assert "\n" not in str(caught.value)
    finally:
        allow(b"1000000000")


@pytest.mark.by_default("words0")
@pytest.mark.parametrize("words", [["predict", "s3://bucket/a.zarr"], ["evaluate", "s3://bucket/a.zarr", "b.zarr"]])
def test_an_unreachable_server_is_reported_in_one_line(
    unetcli: Callable[..., subprocess.CompletedProcess[str]], model: Path, tmp_path: Path, words: list[str]
) -> None:
    write_zarr(tmp_path / "b.zarr", grey(4, 4))
    keys = dict.fromkeys(["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"], "test")
    done = unetcli(
        *words, AWS_ENDPOINT_URL="http://127.0.0.1:9", AWS_DEFAULT_REGION="us-east-1", AWS_MAX_ATTEMPTS="1", **keys
    )
    assert done.returncode == 1, done.stderr
    assert "s3://bucket/a.zarr" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_without_s3fs_the_extra_is_named() -> None:
    program = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from unetcli.core.errors import UnetcliError\n"
        "from unetcli.volumes.opening import open_volume; from unetcli.volumes.image import marker\n"
        "for call in (open_volume, marker):\n"
        "    try: call('s3://bucket/a.zarr')\n"
        "    except UnetcliError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == second
    assert first.startswith("s3://bucket/a.zarr: ")
    assert first.endswith('pip install "unetcli[s3]"')


@pytest.mark.parametrize("kind", SOME_BRIEFLY)
def test_an_empty_object_is_an_error_and_an_absent_one_is_zero(bucket: str, kind: str) -> None:
    place, files = f"{bucket}/o.zarr", s3fs.S3FileSystem()
    output = outputs(place, kind)
    values = grey(2, *REGION.shape) // 2 + 1
    fill(output, values)
    key = next(
        key for key in sorted(files.find("bucket/o.zarr/0")) if not key.endswith((".json", ".zarray", ".zattrs"))
    )
    files.pipe_file(key, b"")
    volume = open_volume(place)
    with pytest.raises(UnreadableBlock, match="is empty"):
        volume.read(volume.whole())
    files.rm(key)
    found = open_volume(place).read(volume.whole())
    assert (found == 0).any()
    assert ((found == 0) | (found == values)).all()
