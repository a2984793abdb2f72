"""Tests of the SLURM executor with a real SLURM, including failures of jobs, nodes, launcher and controller."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from slurm.cluster import Settings, SlurmCluster, enter, until
from slurm.work import REQUEST, begun, done, order, release, work

from unetcli.core.errors import UnetcliError
from unetcli.core.ranges import Ranges, numbers
from unetcli.executors.contract import JobFailure
from unetcli.executors.slurm.executor import SlurmExecutor, blocks_of
from unetcli.executors.slurm.journal import JobJournal, submit_jobs
from unetcli.executors.slurm.watch import JobState, JobStates

Tick = Callable[[], None]


def executor(blocks_per_job: int = 1, **changes: Any) -> SlurmExecutor:
    options = {name: changes.pop(name) for name in ("detach", "every") if name in changes}
    return SlurmExecutor(request=replace(REQUEST, **changes), blocks_per_job=blocks_per_job, **{"every": 1, **options})


def run(launcher: SlurmExecutor, folder: Path, blocks: Ranges, *ticks: Tick) -> list[JobFailure]:
    def tick() -> None:
        for each in ticks:
            each()

    return launcher.run(work, folder, blocks, tick=tick, stopping=bool)


def once(condition: Callable[[], bool], action: Callable[[], object]) -> Tick:
    """Tick that performs the action the first time that the condition holds."""
    did: list[object] = []

    def tick() -> None:
        if not did and condition():
            did.append(action() or True)

    return tick


def job_of(folder: Path, block: int) -> str:
    """Job that owns a block, according to the journal."""
    owners = [
        job
        for submission in JobJournal(folder).on_record()
        for job, share in submission.open_jobs.items()
        if block in set(numbers(share))
    ]
    return owners[-1]


def test_every_block_is_done_once_and_submitit_s_files_are_deleted(slurm: SlurmCluster, tmp_path: Path) -> None:
    launcher = executor(blocks_per_job=3, gpus="1", setup=("export GREETING=hello",))
    assert run(launcher, tmp_path, ((0, 7), (9, 12))) == []
    assert sorted(done(tmp_path)) == [*range(7), *range(9, 12)]
    assert len(launcher.jobs) == 4
    assert JobJournal(tmp_path).live() == []
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".pkl" or path.name.startswith(".")]
    before = set(tmp_path.rglob("*"))
    assert run(executor(), tmp_path, ()) == []
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_each_kind_of_failure_is_distinguished_and_does_not_stop_the_others(
    slurm: SlurmCluster, tmp_path: Path
) -> None:
    orders = ["signal 9", "exit 3", "signal 11", "raise", "memory", "hold", "nothing"]
    reasons = ["killed", "exit code 3", "SIGSEGV", "ValueError: as ordered", "out of memory: raise --mem", "cancelled"]
    for block, what in enumerate(orders):
        order(tmp_path, block, what)
    cancel = once(lambda: begun(tmp_path, 5), lambda: slurm.call("scancel", job_of(tmp_path, 5)))
    failures = run(executor(), tmp_path, ((0, 7),), cancel)
    by_element = {int(failure.job.partition("_")[2]): failure for failure in failures}
    assert sorted(by_element) == list(range(6))
    for index, words in enumerate(reasons):
        assert words in by_element[index].reason, by_element[index]
    assert all(failure.host.startswith("node") for failure in failures)
    assert done(tmp_path) == [6]


def test_waiting_jobs_that_are_cancelled_singly_or_together_are_reported(
    slurm: SlurmCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """SLURM forgets a cancelled element at once, but remembers a cancelled array."""
    launcher = executor(extra=(("begin", "now+1hour"),))
    cancel_one = once(lambda: bool(waiting) and len(slurm.jobs()) == 3, lambda: slurm.call("scancel", launcher.jobs[1]))
    cancel_all = once(lambda: bool(caplog.messages), lambda: slurm.call("scancel", *array_of(launcher.jobs)))
    waiting: list[bool] = []
    states = JobStates(every=1)
    ask = once(
        lambda: states(launcher.jobs[:1]) == {launcher.jobs[0]: JobState("waiting", "BeginTime")},
        lambda: waiting.append(True),
    )
    failures = run(launcher, tmp_path, ((0, 3),), ask, cancel_one, cancel_all)
    assert waiting
    assert sorted(failure.job for failure in failures) == launcher.jobs
    assert {failure.reason for failure in failures} == {"cancelled"}


def array_of(jobs: list[str]) -> set[str]:
    return {job.partition("_")[0] for job in jobs}


@pytest.mark.slow
def test_a_job_at_its_time_limit_is_requeued_and_finishes_and_one_without_progress_fails(
    slurm: SlurmCluster, tmp_path: Path
) -> None:
    for block in range(8):
        order(tmp_path, block, "sleep 6")
    order(tmp_path, 8, "sleep 1000")
    launcher = executor(blocks_per_job=8, time="1")
    failures = run(launcher, tmp_path, ((0, 16),))
    assert [(failure.job, failure.reason) for failure in failures] == [
        (launcher.jobs[1], "stopped at its time limit: raise --time")
    ]
    assert done(tmp_path) == list(range(8))
    assert restarts(slurm, launcher.jobs[0]) == 1
    assert restarts(slurm, launcher.jobs[1]) == 0


@pytest.mark.slow
def test_a_job_near_its_time_limit_is_requeued_and_finishes(slurm: SlurmCluster, tmp_path: Path) -> None:
    """After a block of 13 s, three more would exceed the limit of one minute, the smallest possible one."""
    order(tmp_path, 0, "sleep 13")
    launcher = executor(blocks_per_job=2, time="1")
    assert run(launcher, tmp_path, ((0, 2),)) == []
    assert done(tmp_path) == [0, 1]
    assert restarts(slurm, launcher.jobs[0]) == 1


def restarts(cluster: SlurmCluster, job: str) -> int:
    shown = cluster.call("scontrol", "-o", "show", "job", job)
    return int(shown.partition("Restarts=")[2].split()[0])


def preemptor(cluster: SlurmCluster) -> None:
    """Submit a job that needs all CPUs of both nodes."""
    words = ["--partition=high", "--nodes=2", "--cpus-per-task=4", "--mem=100M", "--output=/dev/null"]
    cluster.call("sbatch", *words, "--wrap=sleep 1")


@pytest.mark.slow
def test_preempted_jobs_finish_their_blocks_and_continue_in_partitions_that_requeue_or_cancel(
    slurm: SlurmCluster, tmp_path: Path
) -> None:
    launchers, folders = [], [tmp_path / "low", tmp_path / "cancel"]
    for folder in folders:
        folder.mkdir()
        for block in range(8):
            order(folder, block, "sleep 1")
        launchers.append(executor(8, time="60", cpus_per_task=4, partition=folder.name, detach=True))
        run(launchers[-1], folder, ((0, 8),))
    preempt = once(lambda: all(begun(folder, 1) for folder in folders), lambda: preemptor(slurm))
    for folder in folders:
        assert run(executor(), folder, ((0, 8),), preempt) == []
        assert done(folder) == list(range(8))
    assert [restarts(slurm, launcher.jobs[0]) for launcher in launchers] == [1, 1]


@pytest.mark.slow
def test_a_job_that_is_preempted_and_not_requeued_is_reported(slurm: SlurmCluster, tmp_path: Path) -> None:
    order(tmp_path, 0, "hold")
    launcher = executor(time="60", cpus_per_task=4, partition="drop")
    (failure,) = run(launcher, tmp_path, ((0, 1),), once(lambda: begun(tmp_path, 0), lambda: preemptor(slurm)))
    assert failure.reason == "preempted by another job and not requeued"


@pytest.mark.slow
def test_a_cancelled_job_counts_as_cancelled_although_it_finishes_its_block(
    slurm: SlurmCluster, tmp_path: Path
) -> None:
    for block in range(200):
        order(tmp_path, block, "sleep 0.2")
    launcher = executor(blocks_per_job=200, time="60")
    cancel = once(lambda: begun(tmp_path, 3), lambda: slurm.call("scancel", job_of(tmp_path, 0)))
    (failure,) = run(launcher, tmp_path, ((0, 200),), cancel)
    assert failure.reason == "cancelled"
    assert slurm.state(failure.job) == "CANCELLED"
    assert done(tmp_path) == list(range(len(done(tmp_path))))  # the current block was finished and no other begun
    assert not begun(tmp_path, len(done(tmp_path)))


@pytest.mark.slow
def test_a_lost_node_costs_no_block(slurm: SlurmCluster, tmp_path: Path) -> None:
    for block in range(8):
        order(tmp_path, block, "sleep 0.5")
    launcher = executor(blocks_per_job=4, cpus_per_task=4)
    lose = once(lambda: begun(tmp_path, 1) and begun(tmp_path, 5), lambda: slurm.kill_node(1))
    try:
        assert run(launcher, tmp_path, ((0, 8),), lose) == []
    finally:
        slurm.start_node(1)
        slurm.await_nodes()
    assert sorted(set(done(tmp_path))) == list(range(8))
    assert sorted(restarts(slurm, job) for job in launcher.jobs) == [0, 1]


@pytest.mark.slow
def test_hosts_to_avoid_are_excluded_as_long_as_there_are_others(slurm: SlurmCluster, tmp_path: Path) -> None:
    launcher = executor()
    assert launcher.run(work, tmp_path, ((0, 1),), tick=lambda: None, stopping=bool, avoid=["node0"]) == []
    assert "ExcNodeList=node0 " in slurm.call("scontrol", "-o", "show", "job", launcher.jobs[0])
    again = executor()
    both = ["node0", "node1.example.org"]
    assert again.run(work, tmp_path, ((1, 2),), tick=lambda: None, stopping=bool, avoid=both) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"partition": "nope"}, "SLURM refuses the jobs: invalid partition specified: nope"),
        ({"mem": "900G"}, "SLURM refuses the jobs: .*Requested node configuration is not available"),
        ({"gpus": "h100:1"}, "SLURM refuses the jobs: .*Requested node configuration is not available"),
        ({"extra": (("nonsense", "1"),)}, "SLURM refuses the jobs: .*nonsense"),
    ],
)
def test_a_refused_submission_is_one_line_and_leaves_nothing(
    slurm: SlurmCluster, tmp_path: Path, changes: dict[str, Any], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UnetcliError, match=message) as caught:
        run(executor(**changes), tmp_path, ((0, 30),))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["jobs.jsonl"]
    assert slurm.jobs() == []
    assert JobJournal(tmp_path).live() == []
    assert capfd.readouterr() == ("", "")


def test_missing_slurm_commands_are_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnetcliError, match=r"sbatch, .* not on PATH"):
        run(executor(), tmp_path, ((0, 1),))


def test_a_cluster_that_does_not_answer_is_reported_in_one_line(
    slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_CONF")
    with pytest.raises(UnetcliError, match="no cluster answers") as caught:
        run(executor(), tmp_path, ((0, 1),))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_small_array_limits_and_jobs_that_are_soon_forgotten_are_handled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm: SlurmCluster
) -> None:
    order(tmp_path, 9, "exit 3")
    with SlurmCluster(Settings(max_array=4, remember_seconds=2)) as small:
        enter(small, monkeypatch)
        launcher = executor(max_running=2)
        failures = run(launcher, tmp_path, ((0, 10),))
    assert len(array_of(launcher.jobs)) == 3
    assert sorted(done(tmp_path)) == list(range(9))
    assert [(failure.job, failure.reason) for failure in failures] == [(launcher.jobs[9], "crashed with exit code 3")]


def test_a_launcher_may_run_in_a_job(slurm: SlurmCluster, tmp_path: Path) -> None:
    script = tmp_path / "launcher.sh"
    program = "from pathlib import Path; from slurm.work import launch; launch(Path.cwd(), ((0, 2),))"
    script.write_text(f"#!/bin/bash\ncd {tmp_path}\nexec {sys.executable} -c '{program}'\n")
    words = ["--array=7", "--mem-per-cpu=200M", "--ntasks=2", "--gpus=1", f"--output={tmp_path}/launcher.txt"]
    array = slurm.call("sbatch", "--parsable", *words, str(script))
    slurm.await_state(f"{array}_7", "COMPLETED", "FAILED")
    assert sorted(done(tmp_path)) == [0, 1], (tmp_path / "launcher.txt").read_text()
    assert slurm.state(f"{array}_7") == "COMPLETED"


def test_jobs_of_a_killed_launcher_are_found_again(slurm: SlurmCluster, tmp_path: Path) -> None:
    order(tmp_path, 0, "hold")
    order(tmp_path, 1, "hold")
    program = f"from pathlib import Path; from slurm.work import launch; launch(Path('{tmp_path}'), ((0, 2),))"
    first = subprocess.Popen([sys.executable, "-c", program])
    until(lambda: begun(tmp_path, 0) and begun(tmp_path, 1), "both blocks")
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = executor()
    jobs = slurm.jobs()
    assert blocks_of(JobJournal(tmp_path).live()) == ((0, 2),)
    assert run(second, tmp_path, ((0, 3),), lambda: release(tmp_path)) == []
    assert len(jobs) == 2
    assert set(jobs) < set(second.jobs)
    assert sorted(done(tmp_path)) == [0, 1, 2]


def test_jobs_are_found_although_their_launcher_died_before_it_recorded_them(
    slurm: SlurmCluster, tmp_path: Path
) -> None:
    from unetcli.executors.slurm.worker import run_share

    order(tmp_path, 0, "hold")
    journal = JobJournal(tmp_path)
    shares: list[Ranges] = [((0, 1),), ((1, 2),)]
    submission = journal.intend(shares)
    place = str(journal.logs / submission.name)
    elements = [(work, str(tmp_path), place, index, share) for index, share in enumerate(shares)]
    jobs = submit_jobs(REQUEST, journal.logs, run_share, elements, name=submission.name)
    journal.intend([((2, 3),)])  # a submission that was only announced
    with journal.file.open("a") as file:
        file.write('\n{"submit": "unetcli-to')  # an incomplete line
    launcher = executor()
    assert run(launcher, tmp_path, ((0, 3),), lambda: release(tmp_path)) == []
    assert jobs[0] in launcher.jobs  # the second may have ended
    assert sorted(done(tmp_path)) == [0, 1, 2]


def test_detached_jobs_continue_and_the_next_call_waits_for_them(slurm: SlurmCluster, tmp_path: Path) -> None:
    order(tmp_path, 0, "hold")
    launcher = executor(blocks_per_job=2, detach=True)
    assert run(launcher, tmp_path, ((0, 2),)) == []
    assert launcher.jobs == slurm.jobs()
    assert blocks_of(JobJournal(tmp_path).live()) == ((0, 2),)
    until(lambda: begun(tmp_path, 0), "the job to begin")
    assert JobStates(every=0)(launcher.jobs) == {launcher.jobs[0]: JobState("running")}
    again = executor()
    assert run(again, tmp_path, ((0, 2),), lambda: release(tmp_path)) == []
    assert again.jobs == launcher.jobs
    assert done(tmp_path) == [0, 1]


def test_jobs_continue_after_an_interrupt(slurm: SlurmCluster, tmp_path: Path) -> None:
    order(tmp_path, 0, "hold")

    def interrupt() -> None:
        raise KeyboardInterrupt

    launcher = executor()
    with pytest.raises(KeyboardInterrupt):
        run(launcher, tmp_path, ((0, 1),), once(lambda: begun(tmp_path, 0), interrupt))
    assert slurm.state(launcher.jobs[0]) == "RUNNING"
    assert run(executor(), tmp_path, ((0, 1),), lambda: release(tmp_path)) == []
    assert done(tmp_path) == [0]


@pytest.mark.slow
def test_a_silent_controller_is_waited_for_and_reported_once(
    slurm: SlurmCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    order(tmp_path, 0, "hold")
    order(tmp_path, 1, "exit 3")
    launcher = executor()
    stop = once(lambda: begun(tmp_path, 0) and begun(tmp_path, 1), slurm.stop_controller)

    def silences() -> list[str]:
        return [message for message in caplog.messages if message.startswith("SLURM does not answer (squeue")]

    def resume() -> None:
        slurm.start_controller()
        release(tmp_path)

    failures = run(launcher, tmp_path, ((0, 2),), stop, once(lambda: bool(silences()), resume))
    assert [(failure.job, failure.reason) for failure in failures] == [(launcher.jobs[1], "crashed with exit code 3")]
    assert len(silences()) == 1
    assert done(tmp_path) == [0]
