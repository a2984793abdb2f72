"""Two predictions of the same truth compared: which difference is more than noise.

The earlier one is known by its ``--json`` output, which holds what each section or object added to its scores. Both are
drawn from in the same way (a paired bootstrap), as what is hard for one prediction is hard for the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from unetcli.core.errors import UnetcliError
from unetcli.evaluate.request import EvaluateRequest
from unetcli.evaluate.result import VERSION, Scores
from unetcli.evaluate.scoring import OBJECT, OF_REFERENCE, Family, higher_is_better, unpack
from unetcli.metrics.cells import CellSums
from unetcli.metrics.sums import Difference, Interval, differences
from unetcli.volumes.volume import same_data

UNPAIRED = "objects of a result are others in another prediction, only sections can be paired, and there are too few"


def require_baseline(request: EvaluateRequest, judged: Mapping[str, Any]) -> None:
    """Refuse a baseline that cannot be compared with, before anything is counted."""
    if request.baseline is not None:
        require_comparable(request.baseline, read_baseline(request.baseline), judged)


def compared(request: EvaluateRequest, scores: Scores, families: Sequence[Family]) -> dict[str, Any] | None:
    """With the baseline, where there is one."""
    if request.baseline is None:
        return None
    return compare(request.baseline, read_baseline(request.baseline), scores, families)


def packed(families: Sequence[Family]) -> dict[str, Any]:
    """What each section or object adds, by metric and family, for a later comparison."""
    found: dict[str, Any] = {}
    for family in families:
        found.setdefault(family.metric, {})[family.name] = family.packed()
    return found


def read_baseline(path: Path) -> dict[str, Any]:
    """An earlier output.

    Raises
    ------
    UnetcliError
        It cannot be read, or is something else.
    """
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UnetcliError(f"--baseline {path}: no such file") from error
    except ValueError as error:
        raise UnetcliError(f"--baseline {path}: no JSON ({error})") from error
    if not isinstance(found, dict) or found.get("unetcli_evaluate") != VERSION:
        raise UnetcliError(f"--baseline {path}: expected what unetcli evaluate --json printed, of version {VERSION}")
    return found


def require_comparable(path: Path, baseline: Mapping[str, Any], judged: Mapping[str, Any]) -> None:
    """Refuse a baseline that judged another truth, or other voxels of it."""
    before = baseline.get("judged") or {}
    if not same_data(str(before.get("truth_fingerprint")), str(judged["truth_fingerprint"])):
        raise UnetcliError(
            f"--baseline {path}: judged by another truth, {before.get('truth')}; this is {judged['truth']}"
        )
    for name, value in judged.items():
        if name not in ("truth", "truth_fingerprint") and before.get(name) != value:
            raise UnetcliError(
                f"--baseline {path}: judged with {name.replace('_', ' ')} {_show(before.get(name))}, "
                f"this with {_show(value)}; both have to be the same"
            )


def _show(value: Any) -> str:
    return "none" if value is None else str(value)


def compare(path: Path, baseline: Mapping[str, Any], scores: Scores, families: Sequence[Family]) -> dict[str, Any]:
    """Differences by metric and score, for all that both have."""
    found: dict[str, Any] = {}
    for family in families:
        packed = (baseline.get("sums") or {}).get(family.metric, {}).get(family.name)
        ours, before = scores[family.metric], baseline.get(family.metric) or {}
        names = [name for name in family.scores if None not in (ours.get(name), before.get(name))]
        if packed is None or not names:
            continue
        try:
            theirs = type(family.sums)(*(unpack(packed["sums"][one.name]) for one in fields(family.sums)))
            values = {name: float(before[name]) for name in names}
            gaps = paired(family, theirs, names)
        except (KeyError, TypeError, ValueError) as error:
            raise UnetcliError(f"--baseline {path}: sums of {family.metric} that cannot be read ({error})") from error
        found.setdefault(family.metric, {}).update(
            {name: statement(family.metric, name, ours[name], values[name], gap) for name, gap in gaps.items()}
        )
    return {"baseline": str(path), "prediction": baseline.get("prediction"), "scores": found}


def paired(family: Family, theirs: Any, names: Sequence[str]) -> dict[str, Difference]:
    """Differences of some scores; those of result objects cannot be paired object by object."""
    chosen = {name: family.scores[name] for name in names}
    if family.unit != OBJECT:
        return differences(family.sums, theirs, chosen)
    assert isinstance(family.sums, CellSums)
    ours, before = references_of(family.sums), references_of(theirs)
    found = differences(ours, before, {name: score for name, score in chosen.items() if name in OF_REFERENCE})
    for name in set(chosen) - set(OF_REFERENCE):
        value = float(chosen[name](family.sums.total()) - chosen[name](theirs.total()))
        found[name] = Difference(value, Interval(None, None, 0, UNPAIRED))
    return {name: found[name] for name in names}


def references_of(sums: CellSums) -> CellSums:
    """Of all objects, those of the reference (or groups in which there is one)."""
    return sums.taken(np.flatnonzero(sums.references > 0))


def statement(metric: str, name: str, ours: float, before: float, found: Difference) -> dict[str, Any]:
    """A difference, with what it means; a gain is positive where ours is better."""
    sign = 1 if higher_is_better(metric, name) else -1
    gain = sign * (ours - before) + 0.0  # no minus zero
    interval, ends = found.interval, (found.interval.low, found.interval.high)
    told: dict[str, Any] = {"value": ours, "baseline": before, "difference": ours - before, "gain": gain}
    if None in ends or interval.reason is not None:
        reason = {"interval": None, "gain_interval": None, "interval_reason": interval.reason}
        told |= {**reason, "more_than_noise": None}
        return told | {"words": f"{direction(gain)}; whether that is noise cannot be told: {interval.reason}"}
    low, high = sorted(sign * float(end) + 0.0 for end in ends if end is not None)
    noise = "more than noise" if found.more_than_noise else "no more than noise"
    told |= {"interval": list(ends), "gain_interval": [low, high], "more_than_noise": found.more_than_noise}
    return told | {"words": f"{direction(gain)} (95 %: {low:+.4f} to {high:+.4f}), {noise}"}


def direction(gain: float) -> str:
    """Better or worse, and by how much.

    >>> direction(0.0123), direction(-0.5), direction(0.0)
    ('better by 0.0123', 'worse by 0.5000', 'the same')
    """
    return f"{'better' if gain > 0 else 'worse'} by {abs(gain):.4f}" if gain else "the same"
