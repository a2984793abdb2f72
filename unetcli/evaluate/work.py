"""The task of an evaluation that any executor can be given: count blocks, and keep the counts."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from unetcli.core.arrays import Checksum
from unetcli.core.files import telling_unwritable
from unetcli.core.process import cpu_threads, prepare
from unetcli.core.ranges import Ranges, numbers
from unetcli.engine.heartbeat import Heartbeat
from unetcli.engine.keeping import keep
from unetcli.engine.pyramid import Built
from unetcli.engine.receipts import ReceiptBook
from unetcli.engine.runfolder import RunFolder
from unetcli.evaluate.counting import count_block
from unetcli.evaluate.counts import Arrays, Counts
from unetcli.evaluate.folder import EvaluationFolder, Inputs
from unetcli.evaluate.here import in_order
from unetcli.evaluate.pairing import Pair
from unetcli.evaluate.plan import EvaluationPlan
from unetcli.evaluate.request import EvaluateRequest
from unetcli.volumes.volume import describe


@dataclass(frozen=True)
class Bench:
    """Everything that a worker process needs of one evaluation."""

    folder: EvaluationFolder
    plan: EvaluationPlan
    inputs: Inputs

    @functools.cached_property
    def pair(self) -> Pair:
        settings = self.plan.settings
        return Pair.open(
            EvaluateRequest(
                prediction=self.inputs.prediction,
                truth=self.inputs.truth,
                mask=self.inputs.mask,
                ignore=settings.ignore,
                level=settings.level,
                allow_incomplete=True,  # the launcher has asked
            )
        )

    def count(self, blocks: Iterable[int]) -> Iterator[tuple[int, Future[Counts]]]:
        """Each block with its counts, several at a time."""
        pair = self.pair  # opened before threads are
        return in_order(
            lambda number: count_block(self.plan, pair, number), blocks, self.inputs.threads or cpu_threads()
        )

    def store(self, number: int, counts: Future[Counts]) -> Built:
        """Keep the counts of a block; raises what counting it raised."""
        arrays = counts.result().to_arrays()
        return Built(digest(arrays), [self.folder.counts.save(number, arrays)])


def count_blocks(folder: str, blocks: Ranges, stopping: Callable[[], bool] = bool) -> int:
    """Count the blocks of an evaluation that have no receipt; how many were finished.

    A task (see :class:`unetcli.executors.contract.Task`).
    """
    prepare()
    run, finished = RunFolder(Path(folder)), 0
    bench = _bench(run, run.plan_file.read_text(), EvaluationFolder(run).inputs())
    ledger = run.ledger(bench.plan.blocks).refresh()
    todo = [number for number in numbers(blocks) if not ledger.done[number]]
    with (
        telling_unwritable(run.path),
        Heartbeat(run.workers, len(todo)) as beat,
        ReceiptBook(run.receipts, run.path) as book,
    ):
        for number, counts in bench.count(itertools.takewhile(lambda _: not stopping(), todo)):
            box = bench.plan.box(number)
            store = functools.partial(bench.store, number, counts)
            if keep(store, number, int(ledger.attempts[number]) + 1, describe(box, bench.plan.axes), run, book):
                beat.done(box.size)
                finished += 1
            else:
                beat.set_aside()
    return finished


def digest(arrays: Arrays) -> str:
    """Of all values, as a receipt has it."""
    found = Checksum()
    for name in sorted(arrays):
        found.add(arrays[name])
    return found.hexdigest()


@functools.lru_cache(maxsize=1)
def _bench(run: RunFolder, plan_text: str, inputs: Inputs) -> Bench:
    """Opened once for all calls of a process."""
    return Bench(EvaluationFolder(run), EvaluationPlan.from_json(plan_text), inputs)
