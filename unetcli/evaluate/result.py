"""What an evaluation found: scores of the whole and of each section, curves, and the images they came from.

A command prints it, a report draws it. Scores are plain values under stable names, as ``--json`` has them:

    pixels  iou, dice, accuracy, precision, recall, tp, fp, fn, tn, average_precision, calibration_error, dice_best
    em      pixel_error, pixel_disagreement, rand_error, rand_error_pairs, warping_error, warping_error_classic, v_rand,
            v_info
    cells   seg, det, precision, recall, f1, ap, pq
    voi     split, merge, split_bits, merge_bits, adapted_rand_error, adapted_rand_error_singletons

Beside a score ``x`` there may be ``x_threshold`` (the one it was reached at), ``x_interval`` ([low, high] at 95 %; else
None, with ``x_interval_reason``), ``x_reason`` (why it is None) and ``x_note`` (what to know when reading it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.geometry import Box
from unetcli.evaluate.request import EvaluateRequest
from unetcli.metrics.contingency import Contingency, ReferenceObjects, ResultObjects, matched_objects

VERSION = 1
"""Of the ``--json`` output."""
Scores = dict[str, dict[str, Any]]
"""By metric, then by name."""
Curves = dict[str, dict[str, list[float | None]]]
"""By metric, then by name; all lists of a metric are as long as its ``threshold``.

``em``: threshold and every measure; ``pixels`` (two classes): threshold, precision, recall, dice; ``cells``: threshold
(of the intersection over union), precision, recall, f1, ap.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One section (or frame) and its scores."""

    number: int
    """From 0, in the order of ``Evaluation.sections``."""
    place: tuple[int, ...]
    """Its coordinates before y, x in the truth; of a challenge's frame its time, or time and section."""
    name: str
    """For people, as in ``z 20``."""
    scores: Scores
    """Those of the metrics that are defined for a section alone, each at a threshold of its own."""
    curves: Curves
    """Of em and cells."""

    def to_json(self) -> dict[str, Any]:
        """Its scores, without tables and curves."""
        plain = {metric: _plain(found) for metric, found in self.scores.items()}
        return {"name": self.name, "place": list(self.place), **plain}

    def row(self) -> dict[str, Any]:
        """Its numbers by ``metric.name``, for a table."""
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
    """What one section was judged by; all of the same y and x."""

    reference: NDArray[Any]
    """(y, x), integer: the truth as stored."""
    true_objects: NDArray[Any] | None
    """(y, x), integer: objects of the truth, which are the pieces of a mask; None unless cells or voi ask."""
    probability: NDArray[np.float32] | None
    """(c, y, x), 0 to 1: of foreground, or of each class; None where the prediction is labels."""
    labels: NDArray[Any] | None
    """(y, x), integer: the prediction as stored where it is labels or classes; of probabilities the components, if
    cells or voi ask, else None."""
    judged: NDArray[np.bool_] | None
    """(y, x): the pixels that count; None: all."""

    def objects(self) -> tuple[ReferenceObjects, ResultObjects]:
        """What became of each object of the section (objects that go through sections: of their cut)."""
        assert self.labels is not None
        assert self.true_objects is not None
        judged = slice(None) if self.judged is None else self.judged
        return matched_objects(Contingency.of(self.true_objects[judged], self.labels[judged]))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """Everything that one call of evaluate found."""

    request: EvaluateRequest
    metrics: tuple[str, ...]
    """Those that were scored, in the order of ``METRICS``."""
    kind: str
    """What the prediction was taken for, one of ``KINDS``."""
    three_d: bool
    """Whether objects (of cells, voi) go through the sections."""
    scores: Scores
    sections: tuple[Section, ...]
    curves: Curves
    """Of all sections together."""
    thresholds: Mapping[str, float]
    """``foreground`` (of pixels), ``objects`` (of the components for cells and voi), where they apply."""
    axes: str
    """Of the region, as in ``zyx``."""
    region: Box
    """What was judged, in voxels of the truth (at its level)."""
    voxel_size: Mapping[str, float]
    units: Mapping[str, str]
    """Of the voxel size, by axis, as in ``nanometer``; may be empty."""
    notes: tuple[str, ...]
    """What to know when reading the scores: how the prediction was taken, a suspected slip, what was left out."""
    judged: Mapping[str, Any]
    """Truth, region and what else has to be the same for two predictions that are compared."""
    sums: Mapping[str, Any]
    """What each section (or object) adds to the scores, packed: what ``--baseline`` compares by."""
    comparison: Mapping[str, Any] | None
    """With the baseline, by metric and score: difference, interval, more_than_noise, words."""
    read_section: Callable[[Section], SectionImages] = field(repr=False)
    """Reads one section again; memory for that section only."""

    def images(self, section: Section) -> SectionImages:
        """The images of one section, read anew."""
        return self.read_section(section)

    def to_json(self) -> dict[str, Any]:
        """Everything that is plain values, as ``--json`` prints it."""
        return {
            "unetcli_evaluate": VERSION,
            "prediction": self.request.prediction,
            "truth": self.request.truth,
            "metrics": list(self.metrics),
            "kind": self.kind,
            "thresholds": dict(self.thresholds),
            "judged": dict(self.judged),
            "notes": list(self.notes),
            **self.scores,
            "comparison": self.comparison and dict(self.comparison),
            "sections": [section.to_json() for section in self.sections],
            "sums": dict(self.sums),
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row for each section: its name, and its scores as ``metric.name``."""
        return [section.row() for section in self.sections]
