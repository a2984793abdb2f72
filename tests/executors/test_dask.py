"""Tests of the Dask executor that go beyond the contract of all executors."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import tasks
from helpers import wait_for
from hypothesis import given
from hypothesis import strategies as st
from places import ENVIRONMENT, begun, done, nothing_left, run, site

from unetcli.core.errors import UnetcliError
from unetcli.core.process import usable_cores
from unetcli.core.ranges import Cutter, numbers, to_ranges
from unetcli.executors.contract import InProcess, JobFailure
from unetcli.executors.dask import cluster as dask_cluster
from unetcli.executors.dask.cluster import Processes, existing_scheduler, local_workers, own_address, own_scheduler
from unetcli.executors.dask.executor import ALONE, BATCH, LARGEST, SINGLE, BatchQueue, DaskExecutor, batch_size


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path: Path) -> Iterator[None]:
    with nothing_left(tmp_path):
        yield


def workers(folder: Path) -> set[int]:
    """Process ids of the workers that have begun blocks."""
    return {pid for pids in begun(folder).values() for pid in pids}


def beside(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


# -- batches


@given(st.sets(st.integers(0, 3000)), st.integers(1, 50))
def test_batches_are_the_blocks_in_order_each_once(blocks: set[int], workers: int) -> None:
    cutter, sizes, found = Cutter(to_ranges(sorted(blocks))), [], []
    while cutter.left:
        batch = list(numbers(cutter.cut(batch_size(cutter.left, workers))))
        sizes.append(len(batch))
        found += batch
    assert found == sorted(blocks)
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes, default=1) <= LARGEST


@pytest.mark.parametrize("workers", [1, 2, 16, 1000])
def test_every_worker_gets_several_batches(workers: int) -> None:
    blocks = 10 * workers
    assert workers * batch_size(blocks, workers) <= blocks / 2


def test_blocks_whose_workers_die_are_retried_with_more_isolation_each_time_and_then_fail() -> None:
    batches, sent = BatchQueue(Cutter(((0, 2),)), frozenset()), []
    while batch := batches.next([], workers=1, expected=1):
        sent.append((batch.blocks, batch.isolation))
        batches.worker_died(batch, "node7")
    assert sorted(sent) == [(((block, block + 1),), level) for block in (0, 1) for level in (BATCH, SINGLE, ALONE)]
    (failure,) = batches.failures()
    assert (failure.job, failure.host) == ("blocks 0-1", "node7")


def test_a_block_that_raises_is_tried_once_more_on_another_host() -> None:
    batches, tried = BatchQueue(Cutter(((5, 6),)), frozenset({"node1"})), []
    while batch := batches.next([], workers=1, expected=1):
        tried.append(batch.avoid)
        batches.raised(batch, f"node{len(tried) + 1}", "ValueError: no")
    assert tried == [{"node1"}, {"node1", "node2"}]
    assert [(failure.job, failure.host) for failure in batches.failures()] == [("block 5", "node3")]


# -- failures


@pytest.mark.slow
def test_a_run_ends_early_if_all_blocks_fail(folder: Path) -> None:
    for block in range(500):
        (folder / f"raise-{block}").touch()
    with local_workers(folder, 2) as cluster:
        failures = run(DaskExecutor(cluster), folder, ((0, 500),))
    assert failures
    assert len(begun(folder)) < 200
    assert "Traceback" in (folder / "logs" / "dask.log").read_text()


@pytest.mark.slow
def test_a_lost_scheduler_is_one_clear_error_and_the_same_run_continues(folder: Path) -> None:
    (folder / "slow").write_text("0.05")
    with site(folder, workers=2) as there, existing_scheduler(there.address, folder, there.tls) as cluster:

        def kill_scheduler() -> None:
            wait_for(lambda: len(workers(folder)) == 2 and len(done(folder)) >= 10)
            there.scheduler.kill()

        beside(kill_scheduler)
        with pytest.raises(UnetcliError, match=rf"scheduler at {there.address} is gone; the same command continues"):
            run(DaskExecutor(cluster), folder, ((0, 3000),))
        for worker in there.workers:
            assert worker.wait(120) == 0  # they finish their current block and end
    assert set(begun(folder)) == set(done(folder))
    (folder / "slow").unlink()
    assert run(InProcess(), folder, ((0, 300),)) == []
    assert done(folder) == dict.fromkeys({*range(300), *begun(folder)}, 1)


def test_no_scheduler_is_one_clear_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_cluster, "CONNECT_SECONDS", 1.0)
    with (
        pytest.raises(UnetcliError, match=r"--scheduler tcp://127.0.0.1:9: no Dask scheduler"),
        existing_scheduler("tcp://127.0.0.1:9", folder),
    ):
        pass


def test_a_scheduler_without_workers_is_given_up_with_the_command_that_starts_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_cluster, "PATIENCE", 2.0)
    with site(folder, workers=0) as there, existing_scheduler(there.address, folder, there.tls) as cluster:
        (failure,) = run(DaskExecutor(cluster), folder, ((0, 5),))
    assert f"unetcli worker --scheduler {there.address}" in failure.reason


# -- workers that join and leave


@pytest.mark.slow
def test_late_workers_join(folder: Path) -> None:
    (folder / "slow").write_text("0.1")

    with site(folder, workers=0) as there, existing_scheduler(there.address, folder, there.tls) as cluster:

        def bring_two() -> None:
            there.start_worker("--name", "early")
            wait_for(lambda: len(done(folder)) >= 3)
            there.start_worker("--name", "late")

        thread = beside(bring_two)
        assert run(DaskExecutor(cluster), folder, ((0, 3000),), stopping=lambda: len(workers(folder)) == 2) == []
        thread.join()
    assert len(workers(folder)) == 2
    assert done(folder) == dict.fromkeys(begun(folder), 1)


@pytest.mark.slow
def test_a_terminated_worker_finishes_its_block_first(folder: Path) -> None:
    (folder / "slow").write_text("0.4")
    with site(folder, workers=1) as there, existing_scheduler(there.address, folder, there.tls) as cluster:

        def replace_worker() -> None:
            wait_for(lambda: len(begun(folder)) >= 2)
            there.workers[0].terminate()
            assert there.workers[0].wait(120) == 0
            there.start_worker()

        thread = beside(replace_worker)
        assert run(DaskExecutor(cluster), folder, ((0, 6),)) == []
        thread.join()
    assert {block: len(pids) for block, pids in begun(folder).items()} == dict.fromkeys(range(6), 1)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [(3,), (3, 15)], ids=["once", "twice"])
def test_a_worker_job_that_ends_is_replaced(folder: Path, kills: tuple[int, ...]) -> None:
    (folder / "slow").write_text("0.1")
    with local_workers(folder, 1) as cluster:

        def kill_jobs() -> None:
            for blocks in kills:
                wait_for(lambda blocks=blocks: len(done(folder)) >= blocks)  # type: ignore[misc]
                worker = psutil.Process(max(begun(folder).items())[1][-1])
                worker.parent().kill()  # the parent restarts the worker, and is the job

        beside(kill_jobs)
        assert run(DaskExecutor(cluster), folder, ((0, 30),)) == []
    assert done(folder) == dict.fromkeys(range(30), 1)


@pytest.mark.slow
def test_each_run_may_replace_jobs_although_an_earlier_run_used_all_replacements(folder: Path) -> None:
    (folder / "slow").write_text("0.05")
    with local_workers(folder, 1) as cluster:
        assert run(DaskExecutor(cluster), folder, ((0, 30),)) == []
        cluster.spare = 0  # no further replacement until a batch is done

        def kill_job() -> None:
            wait_for(lambda: len(done(folder)) >= 33)
            psutil.Process(max(begun(folder).items())[1][-1]).parent().kill()

        beside(kill_job)
        assert run(DaskExecutor(cluster), folder, ((30, 60),)) == []
    assert done(folder) == dict.fromkeys(range(60), 1)


class FailingJobs:
    """Launches jobs that end at once."""

    def __init__(self) -> None:
        self.launched, self.reported = 0, 0

    def launch(self, function: Callable[..., None], arguments: Sequence[Any], count: int) -> list[str]:
        self.launched += count
        return [f"job {self.launched}"] * count

    def ended(self) -> list[JobFailure]:
        new, self.reported = self.launched - self.reported, self.launched
        return [JobFailure(job=f"job {k}", host="node7", reason="no such partition") for k in range(new)]


def test_jobs_that_all_end_at_once_are_reported_and_not_replaced_forever(folder: Path) -> None:
    jobs = FailingJobs()
    with own_scheduler(folder, jobs.launch, jobs.ended, 4, host="127.0.0.1") as cluster:
        (failure,) = run(DaskExecutor(cluster), folder, ((0, 100),))
    assert (failure.host, failure.reason) == ("node7", "no such partition")
    assert jobs.launched <= 12


def test_a_refused_launch_is_reported_to_the_user(folder: Path) -> None:
    def refuse(function: Callable[..., None], arguments: Sequence[Any], count: int) -> list[str]:
        raise UnetcliError("sbatch: invalid partition")

    with (
        pytest.raises(UnetcliError, match="invalid partition"),
        own_scheduler(folder, refuse, list, 2, host="127.0.0.1"),
    ):
        pass


def test_an_address_of_another_host_is_refused(folder: Path) -> None:
    refused = pytest.raises(UnetcliError, match=r"192\.0\.2\.1: .*UNETCLI_HOST")
    with refused, own_scheduler(folder, FailingJobs().launch, list, 2, host="192.0.2.1"):
        pass


# -- encryption and addresses


def test_only_clients_with_the_certificate_can_connect(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unetcli.executors.dask.worker import write_certificate

    monkeypatch.setattr(dask_cluster, "CONNECT_SECONDS", 3.0)
    write_certificate(tmp_path / "other")
    with (
        closing(Processes(folder / "logs")) as jobs,
        own_scheduler(folder, jobs.launch, jobs.ended, 1, host="127.0.0.1") as own,
    ):
        modes = {path.name: path.stat().st_mode & 0o777 for path in (folder / "tls").iterdir()}
        assert modes == {"certificate.pem": 0o600, "key.pem": 0o600}
        assert (folder / "tls").stat().st_mode & 0o777 == 0o700
        assert own.address.startswith("tls://")
        plain = own.address.replace("tls://", "tcp://")
        for address, tls in ((plain, None), (own.address, tmp_path / "other"), (own.address, None)):
            with pytest.raises(UnetcliError), existing_scheduler(address, tmp_path / "intruder", tls):
                pass
        with existing_scheduler(own.address, tmp_path / "friend", folder / "tls") as friend:
            assert run(DaskExecutor(friend), folder, ((0, 3),)) == []


def test_a_worker_without_the_certificate_is_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    from unetcli.executors.dask.worker import write_certificate

    write_certificate(tmp_path / "other")
    with site(folder, workers=0) as there:
        there.tls = tmp_path / "other"
        worker = there.start_worker("--death-timeout", "3")
        assert worker.wait(120) == 1
    last = (folder / "site-worker-0.log").read_text().splitlines()[-1]
    assert last.startswith("unetcli: no Dask scheduler at tls://127.0.0.1")
    assert "--tls" in last


def test_all_processes_listen_at_the_chosen_address_only(folder: Path) -> None:
    others = set(psutil.Process().children(recursive=True))
    with local_workers(folder, 1) as cluster:
        run(DaskExecutor(cluster), folder, ((0, 1),))
        family = [psutil.Process(), *set(psutil.Process().children(recursive=True)) - others]
        listening = [c.laddr.ip for p in family for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
    assert set(listening) == {"127.0.0.1"}


@pytest.mark.parametrize("chosen", ["127.0.0.1", "localhost"])
def test_the_user_may_choose_the_address(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNETCLI_HOST", chosen)
    assert own_address() == chosen


# -- environment of the task


@pytest.mark.slow
def test_each_worker_gets_its_own_gpu_and_may_use_all_cores(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with local_workers(folder, 2, gpus=("2", "5")) as cluster:
        wait_for(lambda: len(cluster.client.nthreads()) == 2)
        assert run(DaskExecutor(cluster), folder, ((0, 12),), tasks.show_surroundings) == []
    seen = [json.loads(path.read_text()) for path in folder.glob("seen-*")]
    assert {found["CUDA_VISIBLE_DEVICES"] for found in seen} == {"2", "5"}
    assert {found["threads"] for found in seen} == {usable_cores()}
    assert {found["OMP_NUM_THREADS"] for found in seen} == {None}
    assert {found["MALLOC_ARENA_MAX"] for found in seen} == {"1"}
    assert {found["MALLOC_TRIM_THRESHOLD_"] for found in seen} == {str(2**31 - 1)}


PROGRAM = """
import sys
from pathlib import Path
import tasks
from unetcli.executors.dask.executor import DaskExecutor
from unetcli.executors.dask.cluster import local_workers
folder = Path(sys.argv[1])
with local_workers(folder, 1) as cluster:
    failures = DaskExecutor(cluster).run(tasks.write_files, folder, ((0, 60),), tick=lambda: None, stopping=bool)
"""


@pytest.mark.slow
def test_dask_prints_nothing_to_the_terminal(folder: Path) -> None:
    (folder / "kill-7").touch()
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=True)
    assert (ended.stdout, ended.stderr) == ("", "")
    assert len(done(folder)) == 59


@pytest.mark.slow
def test_workers_end_when_their_launcher_is_killed(folder: Path, tmp_path: Path) -> None:
    (folder / "slow").write_text("0.1")
    launcher = subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder)], env=ENVIRONMENT)
    wait_for(lambda: len(done(folder)) >= 4)
    family = psutil.Process(launcher.pid).children(recursive=True)
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    assert family
    wait_for(lambda: not any(process.is_running() for process in family))
    left = list((tmp_path / "tmp").iterdir())
    assert len(left) <= 2  # folders of the launcher, which could not clean up
    for path in [*left, folder / "tls"]:
        subprocess.run(["rm", "-r", str(path)], check=True)


# -- at scale


@pytest.mark.slow
def test_memory_of_the_launcher_does_not_grow_with_the_blocks(folder: Path) -> None:
    with local_workers(folder, 2) as cluster:
        executor, me = DaskExecutor(cluster), psutil.Process()
        run(executor, folder, ((0, 20_000),), tasks.nothing)
        before = me.memory_info().rss
        run(executor, folder, ((0, 200_000),), tasks.nothing)
        grown = me.memory_info().rss - before
    assert grown < 16 * 2**20
