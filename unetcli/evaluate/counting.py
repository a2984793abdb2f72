"""Counts of one block that the scores are computed from, their sum over blocks, and their form as named arrays."""

from __future__ import annotations

import itertools
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
from unetcli.core.label_values import IGNORED
from unetcli.evaluate.pieces import PartialObjects, SectionPart, join_sections
from unetcli.evaluate.plan import EvaluationPlan, Pair, PairData
from unetcli.evaluate.request import CLASSES, PROBABILITY
from unetcli.metrics import voi
from unetcli.metrics.cells import CellSums
from unetcli.metrics.contingency import Contingency, components
from unetcli.metrics.em_counts import SectionCounts, above, section_counts
from unetcli.metrics.pixels import Confusion, require_classes
from unetcli.metrics.probabilities import ProbabilitySums
from unetcli.metrics.sums import MAX_UNITS, Sums, SumsMetric, TableSums

S = TypeVar("S", bound=Sums)
Arrays = dict[str, NDArray[Any]]
TABLES_PER_SORT = 16
"""Tables of a unit that are collected before they are sorted and added together."""
SUMS_METRICS: dict[str, SumsMetric[Any]] = {"voi": voi.METRIC}
"""Metrics that need nothing but their sums; the names are those of ``--metrics``."""
TABLE_SUMS: dict[str, type[TableSums]] = {"cells": CellSums} | {
    name: metric.sums for name, metric in SUMS_METRICS.items() if issubclass(metric.sums, TableSums)
}
"""Class of the sums of each metric that is computed from contingency tables."""
SUM_TYPES: dict[str, type[Sums]] = {
    "confusions": Confusion,
    "histograms": ProbabilitySums,
    "markers": CellSums,
    **{name: metric.sums for name, metric in SUMS_METRICS.items()},
    **TABLE_SUMS,
    **{f"cut_{name}": kind for name, kind in TABLE_SUMS.items()},
}
"""Class of the sums under each name of ``Counts.sums``.

- ``confusions``: confusion matrix of each section, at the threshold
- ``histograms``: histograms of probabilities of each section, in 256 grey values
- ``markers``: sums for cells of each frame of a challenge, against the markers instead of the segmented objects
- name of a metric: its sums of each unit
- ``cut_`` and the name of a metric: its sums of each section, if objects extend over sections; each section is then
  treated as a unit
"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Counts:
    """Counts of one or more blocks. A unit is a section, or a volume if objects extend over sections."""

    sums: Mapping[str, Mapping[int, Any]] = field(default_factory=dict)
    """Sums by name, one of ``SUM_TYPES``, and by number of the section, unit or frame."""
    probabilities: ProbabilitySums | None = None
    """Histogram of all sections, in full resolution."""
    em: dict[int, SectionCounts] = field(default_factory=dict)
    """Counts of the EM measures by section."""
    tables: dict[int, Contingency] = field(default_factory=dict)
    """Contingency tables by unit, of units that are not complete."""
    parts: dict[int, SectionPart] = field(default_factory=dict)
    """Parts of sections whose objects are components, by ``EvaluationPlan.part_number``."""
    objects: dict[int, CellSums] = field(default_factory=dict)
    """Sums of each object, or of groups of objects, by unit; fields (object, ...)."""
    highest: float = 0.0
    """Highest probability."""

    def listed(self, name: str) -> list[Any]:
        """Sums under a name, of each section, unit or frame."""
        return list(self.sums.get(name, {}).values())

    def to_arrays(self) -> Arrays:
        """Arrays by name, as a file stores them."""
        arrays: Arrays = {"highest": np.array(self.highest)}
        for name, sums in self.sums.items():
            arrays |= _packed(name, sums)
        if self.probabilities is not None:
            arrays |= _stacked("probabilities", self.probabilities)
        for number, objects in self.objects.items():
            arrays |= _stacked(f"objects/{number}", objects)
        for number, table in self.tables.items():
            columns = {"reference": table.reference, "result": table.result, "counts": table.counts}
            arrays |= {f"tables/{number}/{name}": values for name, values in columns.items()}
        for number, part in self.parts.items():
            arrays |= {f"parts/{number}/{name}": values for name, values in part.to_arrays().items()}
        different = {id(counts): counts for counts in self.em.values()}  # equal sections share their counts
        texts = {key: json.dumps(counts.to_dict()) for key, counts in different.items()}
        text = "{" + ", ".join(f'"{number}": {texts[id(counts)]}' for number, counts in self.em.items()) + "}"
        return {**arrays, "em": np.frombuffer(text.encode(), np.uint8)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Counts:
        """Restore counts from the result of :meth:`to_arrays`."""
        tables, objects = _numbers(arrays, "tables"), _numbers(arrays, "objects")
        em = json.loads(arrays["em"].tobytes().decode())
        has_probabilities = any(name.startswith("probabilities/") for name in arrays)
        return cls(
            sums={name: _unpacked(arrays, name, kind) for name, kind in SUM_TYPES.items()},
            probabilities=_one(arrays, "probabilities", ProbabilitySums) if has_probabilities else None,
            em={int(number): SectionCounts.from_dict(counts) for number, counts in em.items()},
            tables={
                number: Contingency(*(arrays[f"tables/{number}/{name}"] for name in ("reference", "result", "counts")))
                for number in tables
            },
            parts={
                number: SectionPart.from_arrays(_below(arrays, f"parts/{number}/"))
                for number in _numbers(arrays, "parts")
            },
            objects={number: _one(arrays, f"objects/{number}", CellSums) for number in objects},
            highest=float(arrays["highest"]),
        )

    @classmethod
    def total(cls, parts: Iterable[Counts]) -> Counts:
        """Sum of the counts of different blocks."""
        accumulator = CountsAccumulator()
        for part in parts:
            accumulator.add(part)
        return accumulator.result()


@dataclass
class CountsAccumulator:
    """Sum of counts that grows in place."""

    sums: dict[str, dict[int, Any]] = field(default_factory=dict)
    em: dict[int, SectionCounts] = field(default_factory=dict)
    objects: dict[int, CellSums] = field(default_factory=dict)
    tables: dict[int, list[Contingency]] = field(default_factory=dict)
    parts: dict[int, SectionPart] = field(default_factory=dict)
    probabilities: ProbabilitySums | None = None
    highest: float = 0.0

    def add(self, part: Counts) -> None:
        """Add the counts of other blocks."""
        for name, added in part.sums.items():
            sums = self.sums.setdefault(name, {})
            for number, found in added.items():
                sums[number] = sums[number] + found if number in sums else found
        self.em |= part.em
        self.objects |= part.objects
        self.parts |= part.parts
        for number, table in part.tables.items():
            self._add_table(number, table)
        if part.probabilities is not None:
            before = self.probabilities
            self.probabilities = part.probabilities if before is None else before + part.probabilities
        self.highest = max(self.highest, part.highest)

    def take_tables(self) -> dict[int, Contingency]:
        """Return the tables and remove them."""
        tables = {number: Contingency.total(several) for number, several in self.tables.items()}
        self.tables.clear()
        return tables

    def take_parts(self) -> dict[int, SectionPart]:
        """Return the parts of sections and remove them."""
        parts, self.parts = self.parts, {}
        return parts

    def result(self) -> Counts:
        """The sum so far."""
        return Counts(
            sums=self.sums,
            probabilities=self.probabilities,
            em=dict(sorted(self.em.items())),
            tables=self.take_tables(),
            parts=self.parts,
            objects=self.objects,
            highest=self.highest,
        )

    def _add_table(self, number: int, table: Contingency) -> None:
        """Collect tables, because sorting several at once is faster."""
        waiting = self.tables.setdefault(number, [])
        waiting.append(table)
        if len(waiting) >= TABLES_PER_SORT:
            waiting[:] = [Contingency.total(waiting)]


def _packed(name: str, sums: Mapping[int, Sums]) -> Arrays:
    """Sums by number as arrays: one stack per field."""
    if not sums:
        return {}
    stack = type(next(iter(sums.values()))).stacked(list(sums.values()))
    return {f"{name}/numbers": np.array(list(sums)), **_stacked(name, stack)}


def _unpacked(arrays: Mapping[str, NDArray[Any]], name: str, kind: type[S]) -> dict[int, S]:
    if f"{name}/numbers" not in arrays:
        return {}
    stack = _one(arrays, name, kind)
    return {int(number): stack.take(place) for place, number in enumerate(arrays[f"{name}/numbers"])}


def _stacked(name: str, sums: Sums) -> Arrays:
    return {f"{name}/{one.name}": np.asarray(getattr(sums, one.name)) for one in fields(sums)}


def _one(arrays: Mapping[str, NDArray[Any]], name: str, kind: type[S]) -> S:
    return kind(*(arrays[f"{name}/{one.name}"] for one in fields(kind)))


def _below(arrays: Mapping[str, NDArray[Any]], prefix: str) -> Arrays:
    """Arrays whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}


def _numbers(arrays: Mapping[str, NDArray[Any]], name: str) -> list[int]:
    """Numbers that follow a name in the keys of arrays."""
    return sorted({int(key.split("/")[1]) for key in arrays if key.startswith(f"{name}/")})


ORIGIN = MappingProxyType({"y": 0, "x": 0})


def count_section(plan: EvaluationPlan, pair: Pair, plane: Box, data: PairData) -> Counts:
    """Counts of one section, or of its part within a block; arrays of ``data`` are (c, y, x) and (y, x)."""
    settings, section, values = plan.settings, plan.section_number(plane.start), data.prediction
    if settings.kind == PROBABILITY:
        values = probabilities(values, pair.prediction.path, dict(zip(plan.axes, plane.start, strict=True)))
    parts = []
    if "pixels" in settings.metrics:
        parts.append(count_pixels(plan, pair, section, values, data))
    if "em" in settings.metrics:
        counts = section_counts(values[0], data.reference != 0, data.valid)
        parts.append(Counts(em={section: counts}))
    if settings.has_objects:
        parts.append(count_objects(plan, pair, plane, values, data))
        if settings.kind == PROBABILITY and "pixels" not in settings.metrics:
            confusion = confusion_of(values, data, settings.threshold)
            parts.append(Counts(sums={"confusions": {section: confusion}}))
    if settings.kind == PROBABILITY:
        parts.append(Counts(highest=float(values.max(initial=0))))
    return Counts.total(parts)


def count_pixels(plan: EvaluationPlan, pair: Pair, section: int, values: NDArray[Any], data: PairData) -> Counts:
    """Confusion at the threshold, and histograms of probabilities."""
    reference = valid_values(data.reference, data.valid)
    if plan.settings.kind == CLASSES:
        return Counts(tables={section: table_of(pair, reference, valid_values(values[0], data.valid))})
    chosen = valid_values(values, data.valid)
    if len(values) > 1:
        with error_prefix(pair.truth.path):
            require_classes(reference, len(values))
    confusion = confusion_of(values, data, plan.settings.threshold)
    if plan.settings.kind != PROBABILITY:
        return Counts(sums={"confusions": {section: confusion}})
    found = ProbabilitySums.of(chosen, reference)
    histograms = {section: found.to_grey_values()}
    return Counts(sums={"confusions": {section: confusion}, "histograms": histograms}, probabilities=found)


def confusion_of(values: NDArray[Any], data: PairData, threshold: float) -> Confusion:
    """Confusion matrix: foreground above the threshold, or the most probable of several classes."""
    chosen, reference = valid_values(values, data.valid), valid_values(data.reference, data.valid)
    if len(values) > 1:
        return Confusion.of(reference, chosen.argmax(axis=0), len(values))
    return Confusion.of((reference != 0).astype(np.int8), foreground_of(chosen, threshold).astype(np.int8), 2)


def foreground_of(values: NDArray[Any], threshold: float) -> NDArray[np.bool_]:
    """Predicted foreground, (...), from values (1, ...): probabilities above the threshold, or any label."""
    found: NDArray[np.bool_] = above(values[0], threshold) if values.dtype.kind == "f" else values[0] != 0
    return found


def count_objects(plan: EvaluationPlan, pair: Pair, plane: Box, values: NDArray[Any], data: PairData) -> Counts:
    """Table of one section or of its part, or the sums computed from it if the section is a complete unit."""
    settings, section = plan.settings, plan.section_number(plane.start)
    reference = reference_of(data.reference, pieces=settings.pieces)
    labels = labels_of(values, settings.threshold, pieces=settings.result_pieces)
    table = table_of(pair, valid_values(reference, data.valid), valid_values(labels, data.valid))
    if plan.sees_sections and not settings.three_d:
        return unit_counts(table, section, settings.metrics, by_object=plan.by_object)
    if settings.finds_components:
        return Counts(parts={plan.part_number(plane.start): section_part(plan, plane, table, reference, labels)})
    counts = Counts(tables={plan.unit_of(section): table})
    if not plan.sees_sections:
        return counts
    alone = {f"cut_{name}": {section: kind.of(table)} for name, kind in TABLE_SUMS.items()}
    return Counts.total([counts, Counts(sums=alone)])


def section_part(
    plan: EvaluationPlan, plane: Box, table: Contingency, reference: NDArray[Any], labels: NDArray[Any]
) -> SectionPart:
    """Part of a section in one block, with what joining the components of several blocks needs."""
    y, x = (a - first for a, first in zip(plane.start[-2:], plan.start[-2:], strict=True))
    sides = ((reference, plan.settings.pieces), (labels, plan.settings.result_pieces))
    width = plan.region.shape[-1]
    return SectionPart(table, *(PartialObjects.of(found, (y, x), width) if cut else None for found, cut in sides))


def table_of(pair: Pair, reference: NDArray[Any], labels: NDArray[Any]) -> Contingency:
    """Contingency table; errors name both volumes."""
    with error_prefix(f"{pair.prediction.path} against {pair.truth.path}"):
        return Contingency.of(reference, labels)


@contextmanager
def error_prefix(place: str) -> Iterator[None]:
    """Prepend a path to the messages of errors raised within the context."""
    try:
        yield
    except UnetcliError as error:
        raise UnetcliError(f"{place}: {error}") from error


def unit_counts(table: Contingency, unit: int, metrics: Collection[str], *, by_object: bool) -> Counts:
    """Sums of the requested metrics, from the complete table of a unit."""
    objects = {unit: CellSums.of_objects(table, max_units=MAX_UNITS)} if by_object else {}
    return Counts(
        sums={name: {unit: kind.of(table)} for name, kind in TABLE_SUMS.items() if name in metrics}, objects=objects
    )


def probabilities(stored: NDArray[Any], path: str, start: Mapping[str, int] = ORIGIN) -> NDArray[np.float32]:
    """Convert stored values to probabilities: uint8 / 255, uint16 / 65535, booleans to 0 and 1, floats unchanged.

    Parameters
    ----------
    stored : (..., y, x), uint8, uint16, bool or float
    path
        Path of the volume, for messages.
    start
        Coordinates of the first pixel by axis, for messages.

    Returns
    -------
    same shape, float32, 0 to 1

    Raises
    ------
    UnetcliError
        The data type does not fit, or a value is NaN (the message gives its position) or outside 0 to 1.
    """
    require_probability_dtype(stored.dtype, path)
    if stored.dtype.kind == "u":
        return stored.astype(np.float32) / np.float32(np.iinfo(stored.dtype).max)
    values = stored.astype(np.float32)
    if (missing := np.argwhere(np.isnan(values))).size:
        inside = dict(zip("yx", missing[0, -2:].tolist(), strict=True))
        place = ", ".join(f"{axis} {first + inside.get(axis, 0)}" for axis, first in start.items())
        raise UnetcliError(f"{path}: NaN at {place}; expected probabilities 0 to 1 everywhere")
    if not ((values >= 0) & (values <= 1)).all():
        raise UnetcliError(f"{path}: values from {values.min()} to {values.max()}; expected probabilities 0 to 1")
    return values


def require_probability_dtype(dtype: np.dtype[Any], path: str) -> None:
    """Raise :class:`UnetcliError` if a data type cannot hold probabilities."""
    if dtype not in (np.uint8, np.uint16) and dtype.kind not in "bf":
        raise UnetcliError(
            f"{path}: {dtype}; expected probabilities as uint8 (value / 255), uint16 (value / 65535), float or boolean"
        )


def labels_of(values: NDArray[Any], threshold: float, *, pieces: bool) -> NDArray[Any]:
    """Predicted objects of a section, (y, x): the labels, or the 4-connected components of the foreground (pieces)."""
    return components(foreground_of(values, threshold)) if pieces else values[0]


def reference_of(reference: NDArray[Any], *, pieces: bool) -> NDArray[Any]:
    """True objects of a section, (y, x): the truth, or the 4-connected components of a mask (``pieces``)."""
    return components(reference != 0) if pieces else reference


def valid_values(values: NDArray[Any], valid: NDArray[np.bool_] | None) -> NDArray[Any]:
    """Select the pixels that are scored: (..., y, x) to (..., pixels)."""
    return values.reshape(*values.shape[:-2], -1) if valid is None else values[..., valid]


def total_counts(plan: EvaluationPlan, counts: Iterator[Counts]) -> Counts:
    """Sum of the counts of all blocks, given in order; tables are replaced by the sums computed from them."""
    accumulator, keeps = CountsAccumulator(), plan.settings.three_d or plan.settings.kind == CLASSES
    for slab in plan.slabs():
        for _ in slab:
            accumulator.add(next(counts))
        if not keeps:
            count_tables(plan, accumulator)
    if plan.settings.kind == CLASSES:
        return tables_to_confusions(accumulator.result())
    count_tables(plan, accumulator)
    return accumulator.result()


def count_tables(plan: EvaluationPlan, accumulator: CountsAccumulator) -> None:
    """Replace the tables of complete units by the sums computed from them."""
    parts = join_sections(accumulator.take_parts(), plan.grid.shape[-2:])
    for unit, table in itertools.chain(accumulator.take_tables().items(), parts):
        accumulator.add(unit_counts(table, unit, plan.settings.metrics, by_object=plan.by_object))


def tables_to_confusions(counts: Counts) -> Counts:
    """Convert tables of classes to confusion matrices of all classes up to the highest one."""
    classes = 1 + max((highest(table) for table in counts.tables.values()), default=1)
    if classes > IGNORED:
        raise UnetcliError(
            f"class {classes - 1}: expected 0 to {IGNORED - 1}; --classes V,V,.. states the values of classes"
        )
    confusions = {number: confusion_of_table(table, max(2, classes)) for number, table in counts.tables.items()}
    return replace(counts, tables={}, sums={**counts.sums, "confusions": confusions})


def highest(table: Contingency) -> int:
    """Highest class of a table."""
    return int(max(table.reference.max(initial=0), table.result.max(initial=0)))


def confusion_of_table(table: Contingency, classes: int) -> Confusion:
    """Convert a table of classes to a confusion matrix, (class, class)."""
    counts = np.zeros((classes, classes), np.int64)
    counts[table.reference.astype(np.intp), table.result.astype(np.intp)] = table.counts
    return Confusion(counts)
