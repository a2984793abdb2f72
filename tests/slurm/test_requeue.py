"""Tests of commands that run in a user's own SLURM job, are requeued at the time limit and continue.

One test uses ``train``; the others use a stand-in that works in steps (``command``, ``AT_WORK``, ``Job.steps``).
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import grey, write_zarr
from slurm.cluster import SlurmCluster, until

ROOT = Path(__file__).parents[2]
AT_WORK = "at work"
"""Line that the command logs once it handles signals."""
NAME = "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
BIRTH = f'echo "${{SLURM_RESTART_COUNT:-0}}" >> "lives.{NAME}"'
ENOUGH = 100_000
"""Number of steps that takes longer than any test."""
QUEUE_SECONDS = 7
"""Time to observe that a job is not requeued, in seconds; SLURM starts a requeued job within this time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job that appends a line to a file each time it starts."""

    cluster: SlurmCluster
    place: Path
    id: str

    @property
    def lives(self) -> list[str]:
        """Values of ``SLURM_RESTART_COUNT``, one for each start."""
        file = self.place / f"lives.{self.id}"
        return file.read_text().split() if file.exists() else []

    @property
    def log(self) -> str:
        return "".join(file.read_text() for file in self.place.glob(f"*-{self.id}[._]*log"))

    @property
    def state(self) -> str:
        return self.cluster.state(self.id)

    @property
    def restarts(self) -> int:
        """Number of restarts according to SLURM, which counts from the request of a requeue."""
        shown = self.cluster.call("scontrol", "show", "job", "-o", self.id)
        return int(shown.partition("Restarts=")[2].split()[0])

    def steps(self, task: int = 0) -> int:
        """Number of steps in the last checkpoint of a task."""
        return int((self.place / f"checkpoint.{task}").read_text())

    def wait_until_running(self, life: int = 0, tasks: int = 1) -> None:
        """Wait until all tasks handle signals, after the given number of restarts."""
        times = tasks * (life + 1)
        until(lambda: self.log.count(AT_WORK) == times, f"life {life} of {self.id} to begin: {self.state} {self.log}")

    def signal(self, name: str, *how: str) -> None:
        self.cluster.call("scancel", f"--signal={name}", *how, self.id)

    def stays(self, *states: str) -> None:
        """Check that the job ends in one of these states and is not requeued."""
        until(lambda: self.state in states, f"{self.id} to end ({self.state}), {self.log}")
        deadline = time.monotonic() + QUEUE_SECONDS
        while time.monotonic() < deadline:
            assert self.state in states
            time.sleep(0.2)
        assert self.lives == ["0"]


@pytest.fixture
def place(tmp_path: Path, slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(place: Path, steps: int) -> str:
    return f"{sys.executable} -m slurm.steps {place} {steps}"


def submit(slurm: SlurmCluster, place: Path, line: str, *options: str) -> Job:
    """Submit a batch script with one command."""
    script = place / "job.sh"
    script.write_text(f"#!/bin/bash\n{BIRTH}\n{line}\n")
    words = ["--mem=300M", "--output=job-%A_%a.log", "--open-mode=append", *options]
    return Job(cluster=slurm, place=place, id=slurm.call("sbatch", "--parsable", *words, str(script)))


def submit_ours(slurm: SlurmCluster, place: Path, script: str, *options: str) -> Job:
    """Submit an unchanged script of ``slurm/``, with a stand-in for ``unetcli`` on its PATH."""
    stand_in = place / "bin" / "unetcli"
    stand_in.parent.mkdir()
    stand_in.write_text(f"#!/bin/bash\n{BIRTH}\nexec {command(place, ENOUGH)}\n")
    stand_in.chmod(0o755)
    path = f"--export=ALL,PATH={stand_in.parent}{os.pathsep}{slurm.environment['PATH']}"
    words = ["--mem=300M", "--cpus-per-task=1", path, *options, str(ROOT / "slurm" / script), "train"]
    return Job(cluster=slurm, place=place, id=slurm.call("sbatch", "--parsable", *words))


@pytest.mark.slow
def test_a_job_near_its_time_limit_is_requeued_and_finishes(place: Path, slurm: SlurmCluster) -> None:
    """SLURM checks time limits, which are at least a minute, every 30 s, so the warning comes within 30 s."""
    steps = 350  # of 0.1 s
    job = submit(slurm, place, f"exec {command(place, steps)}", "--time=1", "--signal=B:USR2@45")
    until(lambda: job.state == "COMPLETED", f"the end of {job.id}: {job.log}", seconds=180)
    assert job.lives == [str(life) for life in range(len(job.lives))]
    assert 2 <= len(job.lives) <= 3
    assert job.steps() == steps
    assert "asks SLURM to requeue it" in job.log


@pytest.mark.slow
def test_train_is_requeued_and_finishes(place: Path, slurm: SlurmCluster) -> None:
    write_zarr(place / "raw.zarr", grey(3, 90, 90))
    write_zarr(place / "labels.zarr", grey(3, 90, 90, seed=1) // 128)
    words = "raw.zarr labels.zarr --truth binary --depth 2 --base-channels 4 --tile 60 --steps 500 --device cpu"
    job = submit(slurm, place, f"exec {sys.executable} -m unetcli train {words}", "--mem=1G")
    until(lambda: "step 200: " in job.log, f"steps: {job.log}", seconds=120)
    job.signal("USR2", "--batch")
    until(lambda: job.state == "COMPLETED", f"the end of {job.id}: {job.log}", seconds=180)
    assert job.lives == ["0", "1"]
    assert "of 500; the same command continues" in job.log
    assert "asks SLURM to requeue it" in job.log
    assert "finished, 500 steps" in job.log


@pytest.mark.slow
def test_of_several_tasks_one_requests_the_requeue(place: Path, slurm: SlurmCluster) -> None:
    """``--signal=USR2@N`` without ``B:`` signals each task that srun started, but not the script."""
    job = submit(slurm, place, f"srun {command(place, ENOUGH)}", "--ntasks=2")
    job.wait_until_running(tasks=2)
    job.signal("USR2")
    job.wait_until_running(life=1, tasks=2)
    assert job.lives == ["0", "1"]
    assert job.log.count("asks SLURM to requeue it") == 1
    assert min(job.steps(task) for task in (0, 1)) > 0


@pytest.mark.slow
def test_one_element_of_an_array_is_requeued_alone(place: Path, slurm: SlurmCluster) -> None:
    """The job id of one element is that of the array, and requeueing this id would requeue all elements."""
    array = submit(slurm, place, f"exec {command(place, ENOUGH)}", "--array=0-1")
    elements = [Job(cluster=slurm, place=place, id=f"{array.id}_{index}") for index in (0, 1)]
    for element in elements:
        element.wait_until_running()
    elements[1].signal("USR2", "--batch")
    elements[1].wait_until_running(life=1)
    assert [element.restarts for element in elements] == [0, 1]
    assert slurm.call("squeue", "-h", "-j", elements[1].id, "-o", "%A") == array.id


@pytest.mark.slow
def test_sigterm_ends_a_job_with_exit_code_3(place: Path, slurm: SlurmCluster) -> None:
    job = submit(slurm, place, f"exec {command(place, ENOUGH)}")
    job.wait_until_running()
    job.signal("TERM", "--batch")
    job.stays("FAILED")
    assert job.steps() > 0
    assert "ExitCode=3:0" in slurm.call("scontrol", "show", "job", job.id)


@pytest.mark.slow
@pytest.mark.parametrize("warned", [False, True], ids=["running", "while it stops for its time limit"])
def test_a_cancelled_job_is_not_requeued(place: Path, slurm: SlurmCluster, warned: bool) -> None:
    job = submit(slurm, place, f"exec {command(place, ENOUGH)}")
    job.wait_until_running()
    if warned:
        job.signal("USR2", "--batch")
        time.sleep(0.3)
    slurm.call("scancel", job.id)
    job.stays("CANCELLED", "COMPLETING")
    assert job.steps() > 0


@pytest.mark.slow
def test_a_job_that_must_not_be_requeued_logs_a_warning(place: Path, slurm: SlurmCluster) -> None:
    job = submit(slurm, place, f"exec {command(place, ENOUGH)}", "--no-requeue")
    job.wait_until_running()
    job.signal("USR2", "--batch")
    job.stays("FAILED")
    assert f"job {job.id} is not requeued (" in job.log
    assert "the same command continues" in job.log


def test_sigusr1_writes_a_checkpoint_and_the_job_continues(place: Path, slurm: SlurmCluster) -> None:
    job = submit_ours(slurm, place, "unetcli.sbatch")
    job.wait_until_running()
    job.signal("USR1", "--batch")
    until((place / "checkpoint.0").exists, "a checkpoint")
    time.sleep(1)
    assert (job.state, job.lives) == ("RUNNING", ["0"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "signal",
    [("TERM", "--batch"), ("USR2", "--batch"), ("USR2", "--full")],
    ids=["TERM to the script", "USR2 to the script", "USR2 to script and command"],
)
def test_the_script_of_the_package_requeues_its_job_once(
    place: Path, slurm: SlurmCluster, signal: tuple[str, str]
) -> None:
    job = submit_ours(slurm, place, "unetcli.sbatch")
    job.wait_until_running()
    job.signal(*signal)
    job.wait_until_running(life=1)
    assert job.lives == ["0", "1"]
    assert "asks SLURM to requeue it" not in job.log  # the script requeues the job, not the command


@pytest.mark.slow
def test_the_script_of_the_package_stays_cancelled(place: Path, slurm: SlurmCluster) -> None:
    job = submit_ours(slurm, place, "unetcli.sbatch")
    job.wait_until_running()
    slurm.call("scancel", job.id)
    job.stays("CANCELLED", "COMPLETING")


@pytest.mark.slow
def test_the_array_script_of_the_package_requeues_one_element(place: Path, slurm: SlurmCluster) -> None:
    array = submit_ours(slurm, place, "predict_array.sbatch", "--array=0-1")
    elements = [Job(cluster=slurm, place=place, id=f"{array.id}_{index}") for index in (0, 1)]
    for element in elements:
        element.wait_until_running()
    elements[1].signal("TERM", "--batch")
    elements[1].wait_until_running(life=1)
    assert [element.restarts for element in elements] == [0, 1]
