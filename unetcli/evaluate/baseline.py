"""Comparison of two predictions of the same truth: which differences are more than noise.

The earlier prediction (the baseline) is given by its ``--json`` output, which contains the sums of each section or
object. Both are resampled with the same draws (paired bootstrap): see :mod:`unetcli.metrics.sums`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from unetcli.core.errors import UnetcliError
from unetcli.core.records import OddFile, decoded, parse_json, read_text
from unetcli.evaluate.request import METRICS, EvaluateRequest
from unetcli.evaluate.result import VERSION, Scores
from unetcli.evaluate.scoring import OBJECT, REFERENCE_ONLY, ScoreGroup, unpack
from unetcli.metrics.cells import CellSums
from unetcli.metrics.sums import Difference, Interval, Score, differences
from unetcli.volumes.samples import same_data

BASELINE_BYTES = 2**30
"""Largest baseline; it has sums of each section or object."""
BASELINE_TYPES: dict[str, Any] = {
    "prediction": str,
    "judged": dict[str, Any],
    "sums": dict[str, dict[str, dict[str, Any]]],
    **dict.fromkeys(METRICS, dict[str, Any]),
}
"""Types of the values that a baseline is read for."""
UNPAIRED = "result objects differ between predictions, so only sections can be paired, and there are too few of them"


def require_baseline(request: EvaluateRequest, scope: Mapping[str, Any]) -> None:
    """Raise ``UnetcliError`` for a baseline that cannot be compared; called before anything is counted."""
    if request.baseline is not None:
        require_comparable(request.baseline, read_baseline(request.baseline), scope)


def comparison_of(request: EvaluateRequest, scores: Scores, groups: Sequence[ScoreGroup]) -> dict[str, Any] | None:
    """Comparison with the baseline of the request; None without one."""
    if request.baseline is None:
        return None
    return compare(request.baseline, read_baseline(request.baseline), scores, groups)


def packed(groups: Sequence[ScoreGroup]) -> dict[str, Any]:
    """Sums of each section or object by metric and group, for a later comparison."""
    found: dict[str, Any] = {}
    for group in groups:
        found.setdefault(group.metric, {})[group.name] = group.packed()
    return found


def read_baseline(path: Path) -> dict[str, Any]:
    """Read an earlier ``--json`` output.

    Raises
    ------
    UnetcliError
        The file is missing, or is not such an output.
    """
    try:
        found: Any = parse_json(read_text(path, BASELINE_BYTES))
        if not isinstance(found, dict) or found.get("unetcli_evaluate") != VERSION:
            raise ValueError(f"not output of version {VERSION}")
        for name, kind in BASELINE_TYPES.items():
            decoded(kind | None, found.get(name), name)
    except FileNotFoundError as error:
        raise UnetcliError(f"--baseline {path}: no such file") from error
    except (ValueError, OddFile) as error:
        what = str(error).removeprefix(f"{path}: ")
        raise UnetcliError(f"--baseline {path}: {what}; expected output of unetcli evaluate --json") from error
    return dict(found)


def require_comparable(path: Path, baseline: Mapping[str, Any], scope: Mapping[str, Any]) -> None:
    """Raise ``UnetcliError`` for a baseline that was scored against another truth, or on other voxels."""
    before = baseline.get("judged") or {}
    if not same_data(str(before.get("truth_fingerprint")), str(scope["truth_fingerprint"])):
        raise UnetcliError(
            f"--baseline {path}: scored against another truth, {before.get('truth')}; expected {scope['truth']}"
        )
    for name, value in scope.items():
        if name not in ("truth", "truth_fingerprint") and before.get(name) != value:
            raise UnetcliError(
                f"--baseline {path}: scored with {name.replace('_', ' ')} {_show(before.get(name))}; "
                f"expected {_show(value)}, as in this evaluation"
            )


def _show(value: Any) -> str:
    return "none" if value is None else str(value)


def compare(path: Path, baseline: Mapping[str, Any], scores: Scores, groups: Sequence[ScoreGroup]) -> dict[str, Any]:
    """Differences by metric and score, for all scores that both have."""
    found: dict[str, Any] = {}
    for group in groups:
        packed = (baseline.get("sums") or {}).get(group.metric, {}).get(group.name)
        current, before = scores[group.metric], baseline.get(group.metric) or {}
        names = [name for name in group.scores if None not in (current.get(name), before.get(name))]
        if packed is None or not names:
            continue
        try:
            earlier = type(group.sums)(*(unpack(packed["sums"][one.name]) for one in fields(group.sums)))
            values = {name: float(before[name]) for name in names}
            gaps = paired(group, earlier, names)
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            raise UnetcliError(f"--baseline {path}: cannot read the sums of {group.metric} ({error})") from error
        found.setdefault(group.metric, {}).update(
            {name: difference_entry(group.scores[name], current[name], values[name], gap) for name, gap in gaps.items()}
        )
    return {"baseline": str(path), "prediction": baseline.get("prediction"), "scores": found}


def paired(group: ScoreGroup, earlier: Any, names: Sequence[str]) -> dict[str, Difference]:
    """Paired differences of scores; without an interval if result objects would have to be paired."""
    chosen = {name: group.scores[name] for name in names}
    if group.unit != OBJECT:
        return differences(group.sums, earlier, chosen)
    assert isinstance(group.sums, CellSums)
    current, before = references_of(group.sums), references_of(earlier)
    found = differences(current, before, {name: score for name, score in chosen.items() if name in REFERENCE_ONLY})
    for name in set(chosen) - set(REFERENCE_ONLY):
        value = float(chosen[name](group.sums.total()) - chosen[name](earlier.total()))
        found[name] = Difference(value, Interval(None, None, 0, UNPAIRED))
    return {name: found[name] for name in names}


def references_of(sums: CellSums) -> CellSums:
    """Sums of the objects, or groups of objects, that include a reference object."""
    return sums.take(np.flatnonzero(sums.references > 0))


def difference_entry(score: Score[Any], current: float, before: float, found: Difference) -> dict[str, Any]:
    """A difference and its meaning; ``gain`` is positive if the current prediction is better."""
    sign = 1 if score.higher_is_better else -1
    gain = sign * (current - before) + 0.0  # avoids -0.0
    interval, ends = found.interval, (found.interval.low, found.interval.high)
    entry: dict[str, Any] = {"value": current, "baseline": before, "difference": current - before, "gain": gain}
    if None in ends or interval.reason is not None:
        reason = {"interval": None, "gain_interval": None, "interval_reason": interval.reason}
        entry |= {**reason, "more_than_noise": None}
        return entry | {"words": f"{direction(gain)}; it is not known whether this is noise: {interval.reason}"}
    low, high = sorted(sign * float(end) + 0.0 for end in ends if end is not None)
    noise = "more than noise" if found.more_than_noise else "no more than noise"
    entry |= {"interval": list(ends), "gain_interval": [low, high], "more_than_noise": found.more_than_noise}
    return entry | {"words": f"{direction(gain)} (95 %: {low:+.4f} to {high:+.4f}), {noise}"}


def direction(gain: float) -> str:
    """Text that says whether a gain is better or worse, and by how much.

    >>> direction(0.0123), direction(-0.5), direction(0.0)
    ('better by 0.0123', 'worse by 0.5000', 'the same')
    """
    return f"{'better' if gain > 0 else 'worse'} by {abs(gain):.4f}" if gain else "the same"
