"""Tests of predict with a real SLURM: as a job array, with Dask workers, and with the scripts of ``slurm/``."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import Command, finished
from helpers import grey, read_receipts, write_model, write_zarr
from slurm.cluster import SlurmCluster, until

from unetcli.registry import steps_of

SECTIONS = 24
ROOT = Path(__file__).parents[2]
SLURM = ["--cluster", "slurm", "--blocks-per-job", "6", "--mem", "1G", "--tile", "204"]
DASK = ["--cluster", "dask", "--workers", "2", "--mem", "1G", "--tile", "204"]


@pytest.fixture
def place(tmp_path: Path, slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model")
    write_zarr(tmp_path / "big.zarr", grey(SECTIONS, 70, 90), chunks=(1, 32, 32))
    return tmp_path


def predict(*words: object) -> subprocess.CompletedProcess[str]:
    return finished("predict", "big.zarr", *words)


def array_files(store: str) -> dict[str, bytes]:
    files = (f for level in "01" for f in Path(store, level).rglob("*") if f.is_file())
    return {str(f.relative_to(store)): f.read_bytes() for f in files}


def computed(store: str = "big.pred.zarr") -> list[int]:
    """Computed blocks with repetitions: those of full resolution, then those of the coarser levels."""
    return sorted(receipt.block for receipt in read_receipts(Path(f"{store}.run/predict/receipts")))


def slow_sections(sections: int = 200) -> None:
    """Replace the input by one that takes longer."""
    shutil.rmtree("big.zarr")
    write_zarr(Path("big.zarr"), grey(sections, 300, 300), chunks=(1, 128, 128))


def jobs_are_gone(slurm: SlurmCluster) -> bool:
    return not slurm.jobs()


@pytest.mark.slow
@pytest.mark.parametrize("how", [SLURM, DASK], ids=["slurm", "dask"])
def test_a_cluster_gives_the_same_bytes_as_one_process(place: Path, slurm: SlurmCluster, how: list[str]) -> None:
    assert predict("--tile", "204", "--levels", "2", "-o", "whole.zarr").returncode == 0
    done = predict(*how, "--levels", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["computed"] == SECTIONS
    assert array_files("big.pred.zarr") == array_files("whole.zarr")
    step = steps_of("big.pred.zarr")[0]
    assert [stage.name for stage in step.stages] == ["predict", "level 1"]
    assert computed() == list(range(step.blocks))
    until(lambda: jobs_are_gone(slurm), "an empty queue")
    again = predict(*how, "--levels", "2")
    assert again.returncode == 0
    assert "already complete" in again.stderr
    assert not list(place.rglob("*.partial"))
    assert not list(place.rglob("key.pem"))


@pytest.mark.slow
def test_detach_returns_the_id_and_the_same_command_attaches(place: Path, slurm: SlurmCluster) -> None:
    slow_sections(100)
    words = [*SLURM, "--blocks-per-job", "50"]
    detached = predict(*words, "--detach")
    assert detached.returncode == 0, detached.stderr
    array = detached.stdout.strip()
    assert {job.partition("_")[0] for job in slurm.jobs()} == {array}
    refused = predict("--tile", "204")
    assert refused.returncode == 1
    assert f"`scancel {array}`" in refused.stderr
    assert predict(*words, "--overwrite").returncode == 1
    attached = predict(*words)
    assert attached.returncode == 0, attached.stderr
    assert computed() == list(range(100))  # no block was computed twice
    assert Path("big.pred.zarr.run/predict/jobs.jsonl").read_text().count('"submit"') == 1


def test_detach_submits_a_job_for_the_levels_and_reports_it(place: Path, slurm: SlurmCluster) -> None:
    assert predict("--tile", "204").returncode == 0
    words = [*SLURM, "--levels", "2", "--json"]
    for _ in range(2):
        detached = predict(*words, "--slurm", "begin=now+1hour", "--detach")
        assert detached.returncode == 0, detached.stderr
        summary = json.loads(detached.stdout)
        assert summary["jobs"] == slurm.jobs()
        assert not summary["finished"]
    assert Path("big.pred.zarr.run/predict/jobs.jsonl").read_text().count('"submit"') == 1
    slurm.call("scontrol", "update", f"JobId={summary['jobs'][0]}", "StartTime=now")
    done = predict(*words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["complete"]


@pytest.mark.slow
def test_jobs_continue_after_ctrl_c_and_a_message_explains_how_to_attach(place: Path, slurm: SlurmCluster) -> None:
    slow_sections()
    process = Command("predict", "big.zarr", *SLURM, "--blocks-per-job", "50", talk=place / "talk")
    until(slurm.jobs, "jobs in the queue")
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130, (place / "talk").read_text()
    talk = (place / "talk").read_text()
    assert "the same command attaches" in talk
    assert "Traceback" not in talk
    assert slurm.jobs()
    assert predict(*SLURM, "--blocks-per-job", "50").returncode == 0
    assert computed() == list(range(200))


@pytest.mark.parametrize("how", ["slurm", "dask"])
def test_a_refused_submission_is_one_line_and_leaves_nothing(place: Path, slurm: SlurmCluster, how: str) -> None:
    before = sorted(place.rglob("*"))
    refused = predict("--cluster", how, "--partition", "nope")
    assert refused.returncode == 1
    assert "nope" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert sorted(place.rglob("*")) == before
    assert predict("--tile", "204").returncode == 0
    files = array_files("big.pred.zarr")
    assert predict("--cluster", how, "--partition", "nope", "--overwrite").returncode == 1
    assert array_files("big.pred.zarr") == files  # the old output is kept


@pytest.mark.slow
def test_of_two_simultaneous_launchers_one_is_refused(place: Path, slurm: SlurmCluster) -> None:
    slow_sections()
    words = ["predict", "big.zarr", *SLURM, "--blocks-per-job", "100"]
    both = [Command(*words, talk=place / f"talk{number}") for number in (0, 1)]
    codes = sorted(process.wait() for process in both)
    talks = [(place / f"talk{number}").read_text() for number in (0, 1)]
    assert codes == [0, 1], talks
    assert any("in use by another unetcli" in talk for talk in talks)
    assert computed() == list(range(200))


@pytest.mark.slow
def test_a_launcher_inside_a_job_submits_jobs(place: Path, slurm: SlurmCluster) -> None:
    script = (
        f"#!/bin/sh\n#SBATCH --mem=500M\n#SBATCH --output=outer.log\n{sys.executable} -m unetcli predict big.zarr "
        + " ".join(SLURM)
    )
    Path("outer.sh").write_text(script + "\n")
    job = slurm.call("sbatch", "--parsable", "outer.sh").strip()
    until(lambda: job not in slurm.jobs(), "the end of the outer job", seconds=120)
    assert '"complete": true' in Path("big.pred.zarr/zarr.json").read_text(), Path("outer.log").read_text()


def on_path(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a command ``unetcli`` on the PATH, for scripts."""
    command = place / "bin" / "unetcli"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m unetcli "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")


def sbatch(slurm: SlurmCluster, *words: str) -> str:
    """Submit a script with smaller resources than it requests, as the nodes are small; returns the job's id."""
    path = f"--export=ALL,PATH={os.environ['PATH']}"
    return slurm.call("sbatch", "--parsable", "--cpus-per-task=1", "--mem=500M", path, *words).strip()


@pytest.mark.slow
def test_the_array_script_runs_unchanged_and_elements_can_be_repeated(
    place: Path, slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path(place, monkeypatch)
    script = str(ROOT / "slurm" / "predict_array.sbatch")
    job = sbatch(slurm, script, "big.zarr", "--tile", "204")
    until(lambda: jobs_are_gone(slurm), "the end of the array")
    log = Path(f"unetcli-predict-{job}_0.log").read_text()
    assert '"complete": true' in Path("big.pred.zarr/zarr.json").read_text(), log
    assert computed() == list(range(SECTIONS))
    assert len(list(Path("big.pred.zarr.run/predict").glob("receipts/*.txt"))) == 8
    gone = [9, 10, 11, 21, 22, 23]  # blocks of shares 3 and 7
    for path in Path("big.pred.zarr.run/predict/receipts").glob("*.txt"):
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if int(line.split()[0]) not in gone))
    job = sbatch(slurm, "--array=3,7", script, "big.zarr", "--tile", "204")
    until(lambda: jobs_are_gone(slurm), "the end of the two elements")
    assert "share 3 of 8" in Path(f"unetcli-predict-{job}_3.log").read_text()
    assert computed() == list(range(SECTIONS))
    assert not Path(f"unetcli-predict-{job}_0.log").exists()


@pytest.mark.slow
def test_an_afterany_job_completes_the_output_of_an_array(
    place: Path, slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path(place, monkeypatch)
    array = sbatch(slurm, "--array=0-1", str(ROOT / "slurm" / "predict_array.sbatch"), "big.zarr", "--tile", "204")
    closing = [str(ROOT / "slurm" / "unetcli.sbatch"), "predict", "big.zarr", "--tile", "204", "--close"]
    job = sbatch(slurm, f"--dependency=afterany:{array}", *closing)
    until(lambda: jobs_are_gone(slurm), "the end of all jobs")
    assert "already complete (24 blocks)" in Path(f"unetcli-{job}.log").read_text()
