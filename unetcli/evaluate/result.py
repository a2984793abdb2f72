"""Result of an evaluation: scores of the whole region and of each section, curves, and images of the sections.

The command prints it, and the report draws it. Scores are plain values under stable names, as in ``--json``:

    pixels  iou, dice, accuracy, precision, recall, tp, fp, fn, tn, average_precision, calibration_error, dice_best
    em      pixel_error, pixel_disagreement, rand_error, rand_error_pairs, warping_error, warping_error_classic, v_rand,
            v_info
    cells   seg, det, precision, recall, f1, ap, pq
    voi     split, merge, split_bits, merge_bits, adapted_rand_error, adapted_rand_error_singletons

A score ``x`` may come with ``x_threshold`` (the threshold that reaches it), ``x_interval`` ([low, high] at 95 %, or
None with ``x_interval_reason``), ``x_reason`` (why it is None) and ``x_note`` (how to read a misleading value).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.files import remove_abandoned_drafts, replacing
from unetcli.core.geometry import Box
from unetcli.evaluate.request import METRICS, EvaluateRequest
from unetcli.metrics.contingency import Contingency, ReferenceObjects, ResultObjects, matched_objects

VERSION = 1
"""Version of the ``--json`` output."""
Scores = dict[str, dict[str, Any]]
"""Scores by metric, then by name."""
Curves = dict[str, dict[str, list[float | None]]]
"""Curves by metric, then by name; all lists of a metric have the length of its ``threshold``.

``em``: threshold and every measure; ``pixels`` (two classes): threshold, precision, recall, dice; ``cells``: threshold
(of the IoU), precision, recall, f1, ap.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One section (or frame) and its scores."""

    number: int
    """Number of the section, from 0, in the order of ``Evaluation.sections``."""
    place: tuple[int, ...]
    """Coordinates in the truth, without y and x; for a frame of a challenge: time, or time and section."""
    name: str
    """Name to display, such as ``z 20``."""
    scores: Scores
    """Scores of the metrics that are defined for a single section, each at its own best threshold."""
    curves: Curves
    """Curves of em and cells."""

    def to_json(self) -> dict[str, Any]:
        """Name, coordinates and scores, without tables and curves."""
        plain = {metric: _plain(found) for metric, found in self.scores.items()}
        return {"name": self.name, "place": list(self.place), **plain}

    def row(self) -> dict[str, Any]:
        """Name and numbers by ``metric.name``, for a table."""
        numbers = {
            f"{metric}.{name}": value
            for metric, found in self.scores.items()
            for name, value in _plain(found).items()
            if not isinstance(value, str)
        }
        return {"section": self.name, **numbers}


def _plain(scores: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in scores.items() if not isinstance(value, dict | list)}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SectionImages:
    """Images of one section, all with the same y and x."""

    reference: NDArray[Any]
    """(y, x), integer: the truth as stored."""
    true_objects: NDArray[Any] | None
    """(y, x), integer: objects of the truth, or components of a mask; None unless cells or voi are scored."""
    probability: NDArray[np.float32] | None
    """(c, y, x), 0 to 1: probability of foreground, or of each class; None if the prediction contains labels."""
    labels: NDArray[Any] | None
    """(y, x), integer: labels or classes of the prediction as stored, or the components of probabilities if cells or
    voi are scored; else None."""
    valid: NDArray[np.bool_] | None
    """(y, x): pixels that are scored; None: all."""

    def objects(self) -> tuple[ReferenceObjects, ResultObjects]:
        """Match the objects of the section; objects that extend over sections are reduced to this section."""
        assert self.labels is not None
        assert self.true_objects is not None
        valid = slice(None) if self.valid is None else self.valid
        return matched_objects(Contingency.of(self.true_objects[valid], self.labels[valid]))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """Result of one call of evaluate."""

    request: EvaluateRequest
    metrics: tuple[str, ...]
    """Metrics that were scored, in the order of ``METRICS``."""
    kind: str
    """Kind of the prediction, one of ``KINDS``."""
    three_d: bool
    """Whether objects (of cells, voi) extend over sections."""
    scores: Scores
    """Scores of the whole region."""
    sections: tuple[Section, ...]
    curves: Curves
    """Curves of the whole region."""
    thresholds: Mapping[str, float]
    """Thresholds of ``foreground`` (pixels) and ``objects`` (components for cells and voi), if they apply."""
    axes: str
    """Axes of the region, such as ``zyx``."""
    region: Box
    """Region that was scored, in voxels of the truth at the scored level."""
    voxel_size: Mapping[str, float]
    """Voxel size by axis; may be empty."""
    units: Mapping[str, str]
    """Unit of the voxel size by axis, such as ``nanometer``; may be empty."""
    notes: tuple[str, ...]
    """Notes for the reader: how the prediction was interpreted, suspected mistakes, scores that were withheld."""
    scope: Mapping[str, Any]
    """Truth, region and settings, which must be the same for two predictions that are compared."""
    sums: Mapping[str, Any]
    """Sums of each section or object, compressed; a later evaluation with ``--baseline`` compares them."""
    comparison: Mapping[str, Any] | None
    """Comparison with the baseline by metric and score: difference, interval, more_than_noise, words."""
    read_section: Callable[[Section], SectionImages] = field(repr=False)
    """Function that reads the images of one section; needs memory for that section only."""
    warnings: tuple[str, ...] = ()
    """Warnings that this call gave: reasons to doubt the result."""

    def images(self, section: Section) -> SectionImages:
        """Read the images of one section."""
        return self.read_section(section)

    def to_json(self) -> dict[str, Any]:
        """All plain values, as ``--json`` prints them."""
        return {
            "unetcli_evaluate": VERSION,
            "prediction": self.request.prediction,
            "truth": self.request.truth,
            "metrics": list(self.metrics),
            "kind": self.kind,
            "thresholds": dict(self.thresholds),
            "judged": dict(self.scope),
            "notes": list(self.notes),
            "warnings": list(self.warnings),
            **self.scores,
            "comparison": self.comparison and dict(self.comparison),
            "sections": [section.to_json() for section in self.sections],
            "sums": dict(self.sums),
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row for each section: its name, and its scores as ``metric.name``."""
        return [section.row() for section in self.sections]


FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""Text cells that begin with one of these are taken for formulas by spreadsheets."""
COLUMN = re.compile(r"(\w+)\.\w+")
"""Name of a column of scores: ``metric.name``."""


def write_score_table(evaluation: Evaluation, file: Path) -> None:
    """Write the scores of each section as CSV, atomically; the first column is the name of the section."""
    rows = [{name: harmless(value) for name, value in row.items()} for row in evaluation.rows()]
    remove_abandoned_drafts(file)
    with replacing(file) as draft, draft.open("w", newline="", encoding="utf-8") as table:
        writer = csv.DictWriter(table, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)


def harmless(value: Any) -> Any:
    """Prefix text that a spreadsheet would take for a formula with an apostrophe; numbers stay as they are.

    >>> harmless("=1+1"), harmless(-0.5), harmless("-0.5"), harmless("z 3")
    ("'=1+1", -0.5, '-0.5', 'z 3')
    """
    if not isinstance(value, str) or not value.startswith(FORMULA_STARTS):
        return value
    with suppress(ValueError):
        float(value)
        return value
    return f"'{value}"


def is_score_table(file: Path) -> bool:
    """Whether the whole header of a CSV file is one that :func:`write_score_table` writes."""
    try:
        with file.open(newline="", encoding="utf-8") as table:
            first, *columns = next(csv.reader(table), [""])
    except (OSError, ValueError, csv.Error):
        return False
    matches = [COLUMN.fullmatch(column) for column in columns]
    metrics = {match[1] for match in matches if match}
    leading = all(name in METRICS and f"{name}.{METRICS[name].leading}" in columns for name in metrics)
    return first == "section" and bool(metrics) and all(matches) and leading
