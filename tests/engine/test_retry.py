"""Retries: failed blocks are retried on other hosts, except those that cannot succeed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from helpers import grey, write_zarr

from unetcli.core.ranges import Ranges, numbers
from unetcli.engine.receipts import FAILED, UNUSABLE, BlockFailure, FailureBook, current_failures
from unetcli.engine.run import Progress, RetryLoop, RunOptions, launching, prepare
from unetcli.executors.contract import InProcess, JobFailure, Task
from unetcli.predict.request import PredictRequest
from unetcli.predict.run import resolve_step
from unetcli.predict.step import PredictStep

SECTIONS = 6
ALL = np.arange(SECTIONS)


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(model: Path) -> PredictStep:
    """Set up a run with one block per section."""
    write_zarr(Path("big.zarr"), grey(SECTIONS, 40, 50), chunks=(1, 32, 32))
    step = resolve_step(PredictRequest(volume="big.zarr", tile=68, device="cpu"))
    with launching(step, RunOptions()):
        prepare(step)
    return step


@dataclass
class Losing:
    """A local executor; in the first ``lost`` calls the job dies after its first block."""

    lost: int
    final: bool = False
    calls: list[tuple[list[int], list[str]]] = field(default_factory=list)

    def run(
        self,
        task: Task,
        folder: Path,
        blocks: Ranges,
        *,
        tick: Callable[[], None],
        stopping: Callable[[], bool],
        avoid: Sequence[str] = (),
    ) -> list[JobFailure]:
        self.calls.append((list(numbers(blocks)), list(avoid)))
        dies = len(self.calls) <= self.lost
        todo = blocks if not dies else ((blocks[0][0], blocks[0][0] + 1),)
        InProcess().run(task, folder, todo, tick=tick, stopping=stopping)
        return [JobFailure(job="17", host="node1", reason="killed", final=self.final)] if dies else []


def retry_loop(
    run: PredictStep, executor: Losing | InProcess, retries: int = 1, reported: list[tuple[int, int]] | None = None
) -> RetryLoop:
    report = (lambda done, total: None) if reported is None else lambda done, total: reported.append((done, total))
    return RetryLoop(
        step=run,
        executor=executor,
        progress=Progress(run, report),
        stopping=bool,
        retries=retries,
    )


def test_blocks_of_a_job_that_died_are_computed_elsewhere(run: PredictStep) -> None:
    executor = Losing(lost=1)
    loop = retry_loop(run, executor)
    assert loop.run(ALL) == []  # the failed blocks succeeded
    assert loop.step.ledger.complete
    assert executor.calls == [(list(range(SECTIONS)), []), (list(range(1, SECTIONS)), ["node1"])]


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_failed_blocks_are_retried_as_often_as_requested(run: PredictStep, retries: int) -> None:
    executor = Losing(lost=99)
    failures = retry_loop(run, executor, retries).run(ALL)
    assert len(executor.calls) == 1 + retries
    assert [failure.reason for failure in failures] == ["killed"]


def test_a_final_failure_is_not_tried_again(run: PredictStep) -> None:
    executor = Losing(lost=1, final=True)
    assert [failure.final for failure in retry_loop(run, executor, 3).run(ALL)] == [True]
    assert len(executor.calls) == 1


def test_a_stopped_run_is_not_tried_again(run: PredictStep) -> None:
    executor = Losing(lost=99)
    loop = retry_loop(run, executor, 3)
    loop.stopping = lambda: bool(executor.calls)
    loop.run(ALL)
    assert len(executor.calls) == 1


def test_only_the_blocks_asked_for_are_computed(run: PredictStep) -> None:
    executor = Losing(lost=0)
    loop = retry_loop(run, executor)
    loop.run(np.array([1, 4]))
    loop.run(np.array([0, 1, 4]))
    loop.run(np.array([0, 1]))
    assert [blocks for blocks, _ in executor.calls] == [[1, 4], [0]]
    assert loop.step.ledger.missing.tolist() == [2, 3, 5]


def test_blocks_with_damaged_input_are_not_retried(run: PredictStep) -> None:
    Path("big.zarr/c/3/0/0").write_bytes(b"damaged")
    executor = Losing(lost=1)
    loop = retry_loop(run, executor, retries=2)
    loop.run(ALL)
    assert [blocks for blocks, _ in executor.calls] == [[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5]]
    assert [failure.block for failure in current_failures(run.folder.failures, loop.step.ledger)] == [3]


def test_the_last_failure_of_a_missing_block_counts(run: PredictStep) -> None:
    book = FailureBook(run.folder.failures)
    failure = BlockFailure(block=2, place="", kind=UNUSABLE, reason="first", traceback="", host="a", job="-")
    for change in (failure, BlockFailure(**{**_values(failure), "kind": FAILED, "reason": "second"})):
        book.add(change)
    loop = retry_loop(run, InProcess())
    assert [found.reason for found in current_failures(run.folder.failures, loop.step.ledger)] == ["second"]
    loop.run(ALL)
    assert current_failures(run.folder.failures, loop.step.ledger) == []


def test_progress_includes_earlier_blocks_and_grows_to_all_voxels(run: PredictStep) -> None:
    first: list[tuple[int, int]] = []
    retry_loop(run, InProcess(), reported=first).run(np.array([0, 1]))
    second: list[tuple[int, int]] = []
    retry_loop(run, InProcess(), reported=second).run(ALL)
    section = 40 * 50
    assert first[-1] == (2 * section, SECTIONS * section)
    assert second[-1] == (SECTIONS * section, SECTIONS * section)
    done = [voxels for voxels, _ in first + second]
    assert done == sorted(done)


def test_progress_of_a_share_counts_its_own_blocks(run: PredictStep) -> None:
    retry_loop(run, InProcess()).run(np.array([0, 5]))
    reported: list[tuple[int, int]] = []
    Progress(run, lambda done, total: reported.append((done, total)), np.array([0, 1, 2])).report_now()
    assert reported == [(40 * 50, 3 * 40 * 50)]


def _values(failure: BlockFailure) -> dict[str, object]:
    return {name: getattr(failure, name) for name in BlockFailure.__slots__}
