"""Tests of how ends of jobs are detected: from squeue, from accounting if a site has it, and from missing jobs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from slurm.cluster import Settings, SlurmCluster, enter, require_slurm, until

from unetcli.core.errors import UnetcliError
from unetcli.executors.slurm.request import outside_of_jobs, would_start
from unetcli.executors.slurm.watch import GONE, JobEnd, JobWatch

NEVER = "4000000"
"""Id of a job that never existed, for which SLURM reports the same as for one that it has forgotten."""


@pytest.mark.slow
def test_a_job_that_slurm_forgot_is_like_one_that_never_existed(monkeypatch: pytest.MonkeyPatch) -> None:
    require_slurm()
    with SlurmCluster(Settings(nodes=1, remember_seconds=2)) as forgetful:
        enter(forgetful, monkeypatch)
        job = forgetful.call("sbatch", "--parsable", "--output=/dev/null", "--wrap=exit 3")
        until(lambda: not forgetful.state(job), "SLURM to forget")
        watches = {number: JobWatch([number], every=0) for number in (job, NEVER)}
        ends = {number: [watch.poll(), watch.poll(), watch.poll()] for number, watch in watches.items()}
    assert ends[job] == [[], [JobEnd(job=job, state=GONE)], []]
    assert ends[NEVER] == [[], [JobEnd(job=NEVER, state=GONE)], []]


def wait(cluster: SlurmCluster) -> str:
    return cluster.call("sbatch", "--parsable", "--output=/dev/null", "--begin=now+1hour", "--wrap=true")


def test_a_job_that_slurm_does_not_know_twice_counts_as_ended(slurm: SlurmCluster) -> None:
    watch = JobWatch([NEVER], every=0)
    assert watch.poll() == []
    (end,) = watch.poll()
    assert (end.job, end.state) == (NEVER, GONE)
    assert watch.poll() == []
    assert not watch.states


def test_a_forgotten_job_among_others_is_detected_too(slurm: SlurmCluster) -> None:
    waiting = wait(slurm)
    watch = JobWatch([NEVER, waiting], every=0)
    assert [end.job for _ in range(3) for end in watch.poll()] == [NEVER]
    assert watch.states == {waiting: "PENDING"}


def test_accounting_is_queried_for_a_forgotten_job_if_available(
    slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster has no accounting, so a script prints what sacct printed on another cluster."""
    script = tmp_path / "sacct"
    script.write_text(f'#!/bin/sh\necho "{NEVER}|OUT_OF_MEMORY|0:125|node0|None"\necho "77|RUNNING|0:0|node0|None"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    watch = JobWatch([NEVER], every=0)
    watch.poll()
    (end,) = watch.poll()
    assert (end.state, end.host, end.reason) == ("OUT_OF_MEMORY", "node0", "out of memory: raise --mem")


def test_slurm_is_queried_no_more_often_than_requested(slurm: SlurmCluster) -> None:
    times = [0.0]
    watch = JobWatch([NEVER], every=10, clock=lambda: times[0])
    ended = [bool(watch.poll())]
    for now in (1, 9, 10, 11):
        times[0] = now
        ended.append(bool(watch.poll()))
    assert ended == [False, False, False, True, False]


def test_no_answer_says_nothing_about_the_jobs(slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = wait(slurm)
    watch = JobWatch([waiting], every=0)
    assert watch.poll() == []
    with monkeypatch.context() as lost:
        lost.delenv("SLURM_CONF")
        assert [watch.poll() for _ in range(3)] == [[], [], []]
        assert "squeue" in watch.problem
    assert watch.poll() == []
    assert not watch.problem
    assert watch.states == {waiting: "PENDING"}


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (JobEnd(job="1", state="NODE_FAIL"), "node was lost"),
        (JobEnd(job="1", state="BOOT_FAIL"), "did not boot"),
        (JobEnd(job="1", state="FAILED", signal=7), "signal 7 (SIGBUS)"),
        (JobEnd(job="1", state="FAILED", exit_code=1, note="JobLaunchFailure"), "can the node access the run folder?"),
        (JobEnd(job="1", state="SPECIAL_EXIT"), "ended as SPECIAL_EXIT"),
    ],
)
def test_rare_ends_are_explained_too(end: JobEnd, words: str) -> None:
    assert words in end.reason


def test_a_request_can_be_tested_without_a_job(slurm: SlurmCluster) -> None:
    before = slurm.jobs()
    assert "to start at" in would_start({"mem": "100M", "exclusive": "true"})
    with pytest.raises(UnetcliError, match=r"SLURM would refuse the jobs: .*not available"):
        would_start({"mem": "900G"})
    assert slurm.jobs() == before


def test_defaults_of_the_user_apply_unless_options_override_them(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"SBATCH_ACCOUNT": "mine", "SBATCH_PARTITION": "slow", "SLURM_JOB_ID": "7", "SLURM_CONF": "/x"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with outside_of_jobs({"partition": "fast"}):
        assert {name: os.environ.get(name) for name in variables} == {
            "SBATCH_ACCOUNT": "mine",
            "SBATCH_PARTITION": None,
            "SLURM_JOB_ID": None,
            "SLURM_CONF": "/x",
        }
    assert {name: os.environ.get(name) for name in variables} == variables
