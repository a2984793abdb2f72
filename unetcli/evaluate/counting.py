"""What one block adds to the scores, and what blocks add up to: counts that travel as named arrays."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Box
from unetcli.evaluate.plan import EvaluationPlan, Pair, Piece
from unetcli.evaluate.request import CLASSES, PROBABILITY
from unetcli.metrics.cells import CellSums
from unetcli.metrics.contingency import Contingency, components
from unetcli.metrics.em_counts import SectionCounts, above, section_counts
from unetcli.metrics.pixels import Confusion, require_classes
from unetcli.metrics.probabilities import ProbabilitySums
from unetcli.metrics.sums import MOST_UNITS, Sums
from unetcli.metrics.voi import VoiSums

S = TypeVar("S", bound=Sums)
Arrays = dict[str, NDArray[Any]]
TOGETHER = 16
"""Tables of a unit that are sorted at once."""
KINDS: dict[str, type[Sums]] = {
    "confusions": Confusion,
    "histograms": ProbabilitySums,
    "cells": CellSums,
    "voi": VoiSums,
    "cut_cells": CellSums,
    "cut_voi": VoiSums,
    "markers": CellSums,
}
"""Of the sums that are kept by number."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Counts:
    """Of some blocks."""

    confusions: dict[int, Confusion] = field(default_factory=dict)
    """By section, at the threshold."""
    histograms: dict[int, ProbabilitySums] = field(default_factory=dict)
    """By section, in grey values."""
    probabilities: ProbabilitySums | None = None
    """Of all sections together, in full steps."""
    em: dict[int, SectionCounts] = field(default_factory=dict)
    """By section."""
    tables: dict[int, Contingency] = field(default_factory=dict)
    """By unit; of those that are not whole."""
    cells: dict[int, CellSums] = field(default_factory=dict)
    """By unit."""
    objects: dict[int, CellSums] = field(default_factory=dict)
    """By unit: of each object, (object, ...), or of groups of them."""
    voi: dict[int, VoiSums] = field(default_factory=dict)
    """By unit."""
    cut_cells: dict[int, CellSums] = field(default_factory=dict)
    """By section, of objects that go through sections: as if each were alone."""
    cut_voi: dict[int, VoiSums] = field(default_factory=dict)
    """The same."""
    markers: dict[int, CellSums] = field(default_factory=dict)
    """By frame of a challenge: against the marked objects, not the drawn ones."""
    highest: float = 0.0
    """Probability."""

    def to_arrays(self) -> Arrays:
        """As a file holds it."""
        arrays: Arrays = {"highest": np.array(self.highest)}
        for name in KINDS:
            arrays |= _packed(name, getattr(self, name))
        if self.probabilities is not None:
            arrays |= _stacked("probabilities", self.probabilities)
        for number, sums in self.objects.items():
            arrays |= _stacked(f"objects/{number}", sums)
        for number, table in self.tables.items():
            columns = {"reference": table.reference, "result": table.result, "counts": table.counts}
            arrays |= {f"tables/{number}/{name}": values for name, values in columns.items()}
        text = json.dumps({number: counts.to_dict() for number, counts in self.em.items()})
        return {**arrays, "em": np.frombuffer(text.encode(), np.uint8)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Counts:
        """What :meth:`to_arrays` gave."""
        tables, objects = _numbers(arrays, "tables"), _numbers(arrays, "objects")
        told = json.loads(arrays["em"].tobytes().decode())
        has_probabilities = any(name.startswith("probabilities/") for name in arrays)
        sums: dict[str, Any] = {name: _unpacked(arrays, name, kind) for name, kind in KINDS.items()}
        return cls(
            **sums,
            probabilities=_one(arrays, "probabilities", ProbabilitySums) if has_probabilities else None,
            em={int(number): SectionCounts.from_dict(counts) for number, counts in told.items()},
            tables={
                number: Contingency(*(arrays[f"tables/{number}/{name}"] for name in ("reference", "result", "counts")))
                for number in tables
            },
            objects={number: _one(arrays, f"objects/{number}", CellSums) for number in objects},
            highest=float(arrays["highest"]),
        )

    @classmethod
    def total(cls, parts: Iterable[Counts]) -> Counts:
        """Sum of the counts of different blocks."""
        adding = Adding()
        for part in parts:
            adding.add(part)
        return adding.result()


@dataclass
class Adding:
    """Counts that grow, in place."""

    sums: dict[str, dict[int, Any]] = field(default_factory=lambda: {name: {} for name in KINDS})
    em: dict[int, SectionCounts] = field(default_factory=dict)
    objects: dict[int, CellSums] = field(default_factory=dict)
    tables: dict[int, list[Contingency]] = field(default_factory=dict)
    probabilities: ProbabilitySums | None = None
    highest: float = 0.0

    def add(self, part: Counts) -> None:
        for name, sums in self.sums.items():
            for number, found in getattr(part, name).items():
                sums[number] = sums[number] + found if number in sums else found
        self.em |= part.em
        self.objects |= part.objects
        for number, table in part.tables.items():
            self._add_table(number, table)
        if part.probabilities is not None:
            before = self.probabilities
            self.probabilities = part.probabilities if before is None else before + part.probabilities
        self.highest = max(self.highest, part.highest)

    def take_tables(self) -> dict[int, Contingency]:
        """The tables, which are forgotten here."""
        tables = {number: Contingency.total(several) for number, several in self.tables.items()}
        self.tables.clear()
        return tables

    def result(self) -> Counts:
        return Counts(
            **self.sums,
            probabilities=self.probabilities,
            em=dict(sorted(self.em.items())),
            tables=self.take_tables(),
            objects=self.objects,
            highest=self.highest,
        )

    def _add_table(self, number: int, table: Contingency) -> None:
        """Tables are sorted once for many."""
        waiting = self.tables.setdefault(number, [])
        waiting.append(table)
        if len(waiting) >= TOGETHER:
            waiting[:] = [Contingency.total(waiting)]


def _packed(name: str, sums: Mapping[int, Sums]) -> Arrays:
    """Sums of one kind by number, as one array a field."""
    if not sums:
        return {}
    stack = type(next(iter(sums.values()))).stacked(list(sums.values()))
    return {f"{name}/numbers": np.array(list(sums)), **_stacked(name, stack)}


def _unpacked(arrays: Mapping[str, NDArray[Any]], name: str, kind: type[S]) -> dict[int, S]:
    if f"{name}/numbers" not in arrays:
        return {}
    stack = _one(arrays, name, kind)
    return {int(number): stack.taken(place) for place, number in enumerate(arrays[f"{name}/numbers"])}


def _stacked(name: str, sums: Sums) -> Arrays:
    return {f"{name}/{one.name}": np.asarray(getattr(sums, one.name)) for one in fields(sums)}


def _one(arrays: Mapping[str, NDArray[Any]], name: str, kind: type[S]) -> S:
    return kind(*(arrays[f"{name}/{one.name}"] for one in fields(kind)))


def _numbers(arrays: Mapping[str, NDArray[Any]], name: str) -> list[int]:
    """The numbers behind a name."""
    return sorted({int(key.split("/")[1]) for key in arrays if key.startswith(f"{name}/")})


ORIGIN = MappingProxyType({"y": 0, "x": 0})


def count_block(plan: EvaluationPlan, pair: Pair, number: int) -> Counts:
    """Counts of one block.

    Raises
    ------
    UnetcliError
        The prediction holds no probabilities, or no labels; a class it does not have is in the truth.
    """
    box = plan.box(number)
    piece = pair.read(box)
    planes = zip(box.planes(), piece.planes(), strict=True)
    return Counts.total(count_section(plan, pair, plane, part) for plane, part in planes)


def count_section(plan: EvaluationPlan, pair: Pair, plane: Box, piece: Piece) -> Counts:
    """Counts of one section, or of the part of it that lies in a block; arrays (c, y, x) and (y, x)."""
    settings, section, values = plan.settings, plan.section_number(plane.start), piece.stored
    if settings.kind == PROBABILITY:
        values = probabilities(values, pair.prediction.path, dict(zip(plan.axes, plane.start, strict=True)))
    parts = []
    if "pixels" in settings.metrics:
        parts.append(count_pixels(plan, pair, section, values, piece))
    if "em" in settings.metrics:
        counts = section_counts(values[0], piece.reference != 0, piece.judged)
        parts.append(Counts(em={section: counts}))
    if settings.has_objects:
        parts.append(count_objects(plan, pair, section, labels_of(values, settings.threshold), piece))
        if settings.kind == PROBABILITY and "pixels" not in settings.metrics:
            parts.append(Counts(confusions={section: confusion_of(values, piece, settings.threshold)}))
    if settings.kind == PROBABILITY:
        parts.append(Counts(highest=float(values.max(initial=0))))
    return Counts.total(parts)


def count_pixels(plan: EvaluationPlan, pair: Pair, section: int, values: NDArray[Any], piece: Piece) -> Counts:
    """Confusion at the threshold, and how often each probability is right."""
    reference = judged_of(piece.reference, piece.judged)
    if plan.settings.kind == CLASSES:
        return Counts(tables={section: table_of(pair, reference, judged_of(values[0], piece.judged))})
    chosen = judged_of(values, piece.judged)
    if len(values) > 1:
        with naming(pair.truth.path):
            require_classes(reference, len(values))
    confusion = confusion_of(values, piece, plan.settings.threshold)
    if plan.settings.kind != PROBABILITY:
        return Counts(confusions={section: confusion})
    sums = ProbabilitySums.of(chosen, reference)
    return Counts(confusions={section: confusion}, histograms={section: sums.in_grey_values()}, probabilities=sums)


def confusion_of(values: NDArray[Any], piece: Piece, threshold: float) -> Confusion:
    """True against predicted class: foreground against the rest, or the likeliest of several."""
    chosen, reference = judged_of(values, piece.judged), judged_of(piece.reference, piece.judged)
    if len(values) > 1:
        return Confusion.of(reference, chosen.argmax(axis=0), len(values))
    found = above(chosen[0], threshold) if values.dtype.kind == "f" else chosen[0] != 0
    return Confusion.of((reference != 0).astype(np.int8), found.astype(np.int8), 2)


def count_objects(plan: EvaluationPlan, pair: Pair, section: int, labels: NDArray[Any], piece: Piece) -> Counts:
    """The table of one section, or what follows from it where it is all there is of its unit."""
    reference = reference_of(piece.reference, pieces=plan.settings.pieces)
    table = table_of(pair, judged_of(reference, piece.judged), judged_of(labels, piece.judged))
    if not plan.settings.three_d:
        return judge_unit(table, section, plan) if plan.sees_sections else Counts(tables={section: table})
    counts = Counts(tables={plan.unit_of(section): table})
    if not plan.sees_sections:
        return counts
    alone = Counts(cut_cells={section: CellSums.of(table)}, cut_voi={section: VoiSums.of(table)})
    return Counts.total([counts, alone])


def table_of(pair: Pair, reference: NDArray[Any], labels: NDArray[Any]) -> Contingency:
    """Pixels of each pair of labels."""
    with naming(f"{pair.prediction.path} against {pair.truth.path}"):
        return Contingency.of(reference, labels)


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Within, errors of values say where they are."""
    try:
        yield
    except UnetcliError as error:
        raise UnetcliError(f"{place}: {error}") from error


def judge_unit(table: Contingency, unit: int, plan: EvaluationPlan) -> Counts:
    """What the whole table of a unit adds."""
    return judge(table, unit, plan.settings.metrics, by_object=plan.by_object)


def judge(table: Contingency, unit: int, metrics: Collection[str], *, by_object: bool) -> Counts:
    """The same, by what is asked for."""
    counts = Counts()
    if "cells" in metrics:
        counts.cells[unit] = CellSums.of(table)
    if by_object:
        counts.objects[unit] = CellSums.of_objects(table, most=MOST_UNITS)
    if "voi" in metrics:
        counts.voi[unit] = VoiSums.of(table)
    return counts


def probabilities(stored: NDArray[Any], path: str, start: Mapping[str, int] = ORIGIN) -> NDArray[np.float32]:
    """Stored values (.., y, x) as probabilities: uint8 / 255, booleans as 0 and 1, floats as they are.

    ``start`` says where the plane begins, for people.
    """
    if stored.dtype == np.uint8:
        return stored.astype(np.float32) / np.float32(255)
    if stored.dtype.kind not in "bf":
        raise UnetcliError(f"{path}: {stored.dtype}; expected probabilities as uint8 (value / 255), float or boolean")
    values = stored.astype(np.float32)
    if (missing := np.argwhere(np.isnan(values))).size:
        inside = dict(zip("yx", missing[0, -2:].tolist(), strict=True))
        place = ", ".join(f"{axis} {first + inside.get(axis, 0)}" for axis, first in start.items())
        raise UnetcliError(f"{path}: NaN at {place}; expected probabilities 0 to 1 everywhere")
    if not ((values >= 0) & (values <= 1)).all():
        raise UnetcliError(f"{path}: values from {values.min()} to {values.max()}; expected probabilities 0 to 1")
    return values


def labels_of(values: NDArray[Any], threshold: float) -> NDArray[Any]:
    """Objects of a section, (y, x): the labels themselves, or 4-connected components above a threshold."""
    return components(above(values[0], threshold)) if values.dtype.kind == "f" else values[0]


def reference_of(reference: NDArray[Any], *, pieces: bool) -> NDArray[Any]:
    """True objects of a section, (y, x): the truth itself, or the 4-connected pieces of a mask."""
    return components(reference != 0) if pieces else reference


def judged_of(values: NDArray[Any], judged: NDArray[np.bool_] | None) -> NDArray[Any]:
    """The values that count, by the last two axes: (.., pixels)."""
    return values.reshape(*values.shape[:-2], -1) if judged is None else values[..., judged]


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
