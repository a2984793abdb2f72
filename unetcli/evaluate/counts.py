"""What blocks add up to: counts by section and by unit of objects, which travel as named arrays.

Sections are numbered as in :class:`unetcli.evaluate.plan.EvaluationPlan`; a unit is a section, or a volume whose
objects go through sections. Only tables are kept of a unit that is not whole yet.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from unetcli.metrics.cells import CellSums
from unetcli.metrics.contingency import Contingency
from unetcli.metrics.em_counts import SectionCounts
from unetcli.metrics.pixels import Confusion
from unetcli.metrics.probabilities import ProbabilitySums
from unetcli.metrics.sums import Sums
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
