"""The contract of every step of the engine: predict with levels, label, evaluate, and the minimal step."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import plus_one
import pytest
from damage import flip_a_bit
from helpers import grey, read_receipts, write_model, write_prediction, write_zarr
from label.maps import blobs
from places import ENVIRONMENT, OPTIONS
from slurm.cluster import SlurmCluster
from typer.testing import CliRunner

from unetcli.cli import app
from unetcli.core.errors import UnetcliError
from unetcli.engine import worker
from unetcli.engine.receipts import FAILED, read_failures
from unetcli.engine.run import RunOptions
from unetcli.engine.runfolder import RunFolder
from unetcli.evaluate.evaluate import Unfinished, evaluate_volume
from unetcli.evaluate.request import EvaluateRequest
from unetcli.executors import options
from unetcli.executors.options import ClusterOptions
from unetcli.label.request import LabelRequest
from unetcli.label.run import label_volume
from unetcli.predict.request import PredictRequest
from unetcli.predict.run import predict_volume
from unetcli.registry import STEPS

SECTIONS = 6
Stopping = Callable[[], bool]


@dataclass(frozen=True)
class Scene:
    """A step and the function that runs it; all paths are in the current folder."""

    run: Callable[[ClusterOptions, Stopping], bool]
    """Run the step; return whether it is complete."""
    source: str
    """Path of the input file that each block of the first stage reads, with {} for the section."""
    blocked: Path
    """Path at which a file prevents blocks of the first stage from being written."""
    folder: RunFolder
    output: Path | None
    """The output, for comparisons, status and verify; None if the step leaves none."""
    result: Callable[[], Any] = lambda: None

    def bytes(self) -> dict[str, Any]:
        kept = {} if self.output is None else {
            str(path): path.read_bytes() for path in self.output.rglob("*") if path.is_file()
        }  # fmt: skip
        return {**kept, "result": self.result()}


def predict(where: ClusterOptions, stopping: Stopping) -> bool:
    request = PredictRequest(volume="big.zarr", output=Path("p.zarr"), tile=68, device="cpu", levels=2, rotations=7)
    return predict_volume(request, stopping=stopping, cluster=where).complete


def label(where: ClusterOptions, stopping: Stopping) -> bool:
    return label_volume(
        LabelRequest(prediction="done.zarr", block_voxels=2000), stopping=stopping, where=where
    ).complete


def add_one(where: ClusterOptions, stopping: Stopping) -> bool:
    return plus_one.add_one("big.zarr", Path("one.zarr"), RunOptions(where=where), stopping).complete


def evaluate(scores: list[Any], where: ClusterOptions, stopping: Stopping) -> bool:
    request = EvaluateRequest(
        prediction="done.zarr",
        truth="truth.zarr",
        metrics=("pixels", "cells"),
        block_voxels=2000,
        run_folder=Path("ev"),
    )
    try:
        scores[:] = [json.dumps(evaluate_volume(request, stopping=stopping, where=where).scores, default=str)]
    except Unfinished:
        return False
    return True


def scenes() -> dict[str, Scene]:
    scores: list[Any] = []
    raw, predicted, labels = "big.zarr/c/{}/0/0", "done.zarr/0/c/{}/0/0", Path("done.zarr.run/instances")
    return {
        "predict": Scene(predict, raw, Path("p.zarr/0/c"), run_folder("p.zarr.run/predict"), Path("p.zarr")),
        "label": Scene(label, predicted, labels / "blocks", RunFolder(labels), Path("done.zarr/labels/instances")),
        "evaluate": Scene(
            partial(evaluate, scores), predicted, Path("ev/counts"), run_folder("ev"), None, lambda: list(scores)
        ),
        "plus one": Scene(add_one, raw, Path("one.zarr/0/c"), run_folder("one.zarr.run/plus-one"), Path("one.zarr")),
    }


def run_folder(path: str) -> RunFolder:
    return RunFolder(Path(path))


STEP_NAMES = list(scenes())
HERE = ClusterOptions()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("base")
    write_model(place / "model")
    write_zarr(place / "big.zarr", grey(SECTIONS, 40, 50), chunks=(1, 40, 50))
    made = blobs((SECTIONS, 40, 50), 2, seed=7)
    write_prediction(place / "done.zarr", made, (1, 40, 50))
    write_zarr(place / "truth.zarr", (made > 127).astype(np.uint8), chunks=(1, 40, 50))
    return place


@pytest.fixture
def scene(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Scene]:
    shutil.copytree(base, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    monkeypatch.delenv("UNETCLI_MODEL", raising=False)
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])  # workers import the minimal step
    monkeypatch.setitem(STEPS, plus_one.COMMAND, plus_one.PlusOne)
    yield scenes()[request.param]
    worker._opened.cache_clear()


each_step = pytest.mark.parametrize("scene", STEP_NAMES, indirect=True)
with_output = pytest.mark.parametrize("scene", [name for name in STEP_NAMES if name != "evaluate"], indirect=True)


def after(count: int) -> Stopping:
    """Return a function that asks to stop after ``count`` calls."""
    answers = iter([False] * count)
    return lambda: next(answers, True)


def done(scene: Scene) -> list[int]:
    return sorted(receipt.block for receipt in read_receipts(scene.folder.receipts))


@each_step
def test_stopped_again_and_again_it_ends_in_the_same_bytes_and_nothing_is_done_twice(scene: Scene) -> None:
    assert scene.run(HERE, bool)
    whole = scene.bytes()
    forget(scene)
    for _ in range(100):
        if scene.run(HERE, after(2)):
            break
        assert len(set(done(scene))) == len(done(scene))
    assert scene.run(HERE, bool) or scene.output is None
    assert scene.bytes() == whole


def forget(scene: Scene) -> None:
    """Delete everything that a run created."""
    shutil.rmtree(scene.folder.path, ignore_errors=True)
    if scene.output is not None:
        shutil.rmtree(scene.output)
    for table in Path().glob("*.csv"):
        table.unlink()


QUICK = ("predict", "two processes")
"""The default tests run one step in other processes; those of label and evaluate start processes too."""


@pytest.mark.parametrize(
    ("scene", "how"),
    [
        pytest.param(name, how, marks=() if (name, how) == QUICK else pytest.mark.slow)
        for how in OPTIONS
        for name in STEP_NAMES
    ],
    indirect=["scene"],
)
def test_other_processes_give_the_same_bytes(scene: Scene, tmp_path: Path, how: str) -> None:
    assert scene.run(HERE, bool)
    whole = scene.bytes()
    forget(scene)
    with OPTIONS[how](tmp_path) as where:
        assert scene.run(where, bool)
    assert scene.bytes() == whole


@each_step
def test_an_executor_of_another_name_needs_no_slurm(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM is not asked, as its jobs are not needed; a name that ``executor_for`` does not know runs here."""
    monkeypatch.setattr(options, "CLUSTERS", (*options.CLUSTERS, "elsewhere"))
    assert scene.run(ClusterOptions(cluster="elsewhere"), bool)


@pytest.mark.slow
@each_step
def test_job_arrays_give_the_same_bytes(scene: Scene, slurm: SlurmCluster) -> None:
    assert scene.run(HERE, bool)
    whole = scene.bytes()
    forget(scene)
    assert scene.run(ClusterOptions(cluster="slurm", mem="600M", blocks_per_job=3), bool)
    assert scene.bytes() == whole


@each_step
def test_slurm_is_asked_before_anything_is_written(scene: Scene, slurm: SlurmCluster) -> None:
    before = sorted(Path().rglob("*"))
    with pytest.raises(UnetcliError, match="invalid partition"):
        scene.run(ClusterOptions(cluster="slurm", partition="nope"), bool)
    assert sorted(Path().rglob("*")) == before


@each_step
def test_after_ctrl_c_the_jobs_that_go_on_are_named_and_attached_to(
    scene: Scene, slurm: SlurmCluster, caplog: pytest.LogCaptureFixture
) -> None:
    held = ClusterOptions(cluster="slurm", blocks_per_job=3, slurm=("begin=now+1hour",))  # quick, because no job starts

    def interrupt() -> bool:
        if slurm.jobs():
            raise KeyboardInterrupt
        return False

    caplog.set_level(logging.INFO, "unetcli")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            scene.run(held, interrupt)
        message = caplog.messages[-1]
        arrays = {job.partition("_")[0] for job in slurm.jobs()}
        assert message.startswith(f"SLURM jobs still running: {len(slurm.jobs())}; ")
        assert f"`scancel {' '.join(arrays)}`" in message
    journal = Path(scene.folder.path, "jobs.jsonl").read_text()
    assert journal.count('"submit"') == len(arrays) == 1


def make_unreadable(scene: Scene, section: int) -> Path:
    """Replace a chunk by a link to itself: the file system reports an error even to root."""
    chunk = Path(scene.source.format(section))
    chunk.rename(f"{chunk}.sound")
    chunk.symlink_to(chunk.name)
    return chunk


def mend(chunk: Path) -> None:
    Path(f"{chunk}.sound").replace(chunk)


@each_step
def test_a_read_that_fails_and_may_pass_is_tried_again(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    chunks = [make_unreadable(scene, 2)]

    class Mending(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "retrying" in record.getMessage():
                mend(chunks.pop())

    log, handler = logging.getLogger("unetcli.engine.run"), Mending()
    caplog.set_level(logging.INFO, "unetcli")
    log.addHandler(handler)
    try:
        assert scene.run(HERE, bool)
    finally:
        log.removeHandler(handler)
    assert not chunks


@each_step
def test_a_read_that_keeps_failing_is_tried_once_more_and_the_rest_goes_on(scene: Scene) -> None:
    chunk = make_unreadable(scene, 2)
    assert not scene.run(HERE, bool)
    failures = list(read_failures(scene.folder.failures))
    assert {(failure.kind, "symbolic links" in failure.reason) for failure in failures} == {(FAILED, True)}
    tries = Counter(failure.block for failure in failures)  # a step may read a section for several blocks
    assert set(tries.values()) == {2}
    assert len(done(scene)) == SECTIONS - len(tries)
    mend(chunk)
    assert scene.run(HERE, bool)


@each_step
def test_the_first_reads_failing_equally_stop_the_run(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "STOP_POLL_SECONDS", 0)
    chunks = [make_unreadable(scene, section) for section in range(SECTIONS)]
    with pytest.raises(UnetcliError, match="the first 3 blocks all failed with the same error"):
        scene.run(HERE, bool)
    assert len(list(read_failures(scene.folder.failures))) == worker.SAME_FAILURES
    for chunk in chunks:
        mend(chunk)
    assert scene.run(HERE, bool)


@each_step
def test_the_first_writes_failing_equally_stop_the_run(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of drafts differ from block to block but do not count."""
    monkeypatch.setattr(worker, "STOP_POLL_SECONDS", 0)
    scene.run(HERE, lambda: True)
    shutil.rmtree(scene.blocked, ignore_errors=True)
    scene.blocked.write_text("in the way of a folder")
    with pytest.raises(UnetcliError, match="the first 3 blocks all failed with the same error"):
        scene.run(HERE, bool)
    assert len(list(read_failures(scene.folder.failures))) == worker.SAME_FAILURES
    scene.blocked.unlink()
    assert scene.run(HERE, bool)


@with_output
def test_status_and_verify_know_it_and_repair_makes_the_same_bytes(scene: Scene) -> None:
    assert scene.run(HERE, bool)
    whole, output = scene.bytes(), str(scene.output)
    status = json.loads(command("status", output, "--json"))
    assert (status["complete"], status["done"]) == (True, status["blocks"])
    assert command("verify", output, "--json")
    damaged = next(path for path in sorted(Path(output, "0").rglob("*")) if path.is_file() and "zarr" not in path.name)
    flip_a_bit(damaged)
    assert len(json.loads(command("verify", output, "--json", code=3))["damaged"]) == 1
    found = json.loads(command("verify", output, "--repair", "--json"))
    assert (len(found["repaired"]) >= 1, found["sound"]) == (True, True)
    assert scene.bytes() == whole


@with_output
def test_another_input_is_not_mixed_into_what_was_begun(scene: Scene) -> None:
    scene.run(HERE, after(3))
    for section in range(SECTIONS):
        source = Path(scene.source.format(section))
        source.unlink()
    worker._opened.cache_clear()
    with pytest.raises(UnetcliError, match="begun with other settings"):
        scene.run(HERE, bool)


def command(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == code, done.output
    return done.stdout


def test_a_step_is_small() -> None:
    """A new step fits in one file of under 150 lines."""
    assert len(Path(plus_one.__file__).read_text().splitlines()) < 150
