"""Counts of all blocks brought together, slab by slab: a unit's table is kept until the unit is whole, no longer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from unetcli.evaluate.counting import judge_unit
from unetcli.evaluate.counts import Adding, Counts
from unetcli.evaluate.plan import EvaluationPlan
from unetcli.evaluate.request import CLASSES
from unetcli.metrics.contingency import Contingency
from unetcli.metrics.pixels import Confusion


def total_counts(plan: EvaluationPlan, counts: Iterator[Counts]) -> Counts:
    """Counts of everything, without tables, from those of the blocks in their order."""
    adding, keeps = Adding(), plan.settings.three_d or plan.settings.kind == CLASSES
    for slab in plan.slabs():
        for _ in slab:
            adding.add(next(counts))
        if not keeps:
            judge_tables(plan, adding)
    if plan.settings.kind == CLASSES:
        return with_confusions(adding.result())
    judge_tables(plan, adding)
    return adding.result()


def judge_tables(plan: EvaluationPlan, adding: Adding) -> None:
    """Put what follows from tables of whole units in their place."""
    for unit, table in adding.take_tables().items():
        adding.add(judge_unit(table, unit, plan))


def with_confusions(counts: Counts) -> Counts:
    """Tables of classes as confusions of all classes that occur."""
    classes = 1 + max((highest(table) for table in counts.tables.values()), default=1)
    confusions = {number: confusion_of_table(table, max(2, classes)) for number, table in counts.tables.items()}
    return replace(counts, tables={}, confusions=confusions)


def highest(table: Contingency) -> int:
    """The highest class of a table."""
    return int(max(table.reference.max(initial=0), table.result.max(initial=0)))


def confusion_of_table(table: Contingency, classes: int) -> Confusion:
    """A table of classes, dense."""
    counts = np.zeros((classes, classes), np.int64)
    counts[table.reference.astype(np.intp), table.result.astype(np.intp)] = table.counts
    return Confusion(counts)
