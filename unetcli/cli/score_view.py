"""Scores as text for people, 80 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unetcli.evaluate.result import Evaluation

WIDTH = 80
"""Columns of a terminal."""
NAME, SCORE, INTERVAL = 32, 10, 22
"""Widths of columns."""
BESIDE = ("_threshold", "_reason", "_note", "_interval", "_interval_reason")
WORST = 3
MEANING = "better or worse is what is more than noise"
LEADING = {"pixels": ("iou", True), "em": ("rand_error", False), "cells": ("seg", True), "voi": ("split", False)}
"""By metric, the score that sections are ranked by, and whether more of it is better."""
COUNTED = {"tp", "fp", "fn", "tn", "reference_objects", "result_objects", "matched"}


def score_lines(found: Evaluation) -> list[str]:
    """Everything a person wants to see first; ``--json`` has the rest."""
    told = found.to_json()
    parts = [list(head(told))]
    for metric in found.metrics:
        section_scores = [(section.name, section.scores.get(metric, {})) for section in found.sections]
        parts.append([*table(metric, found.scores[metric]), *worst(metric, section_scores)])
    if found.comparison:
        parts.append(list(comparison(found.comparison)))
    if found.notes:
        parts.append([line for note in found.notes for line in bullet(note)])
    return [line for part in parts for line in [*part, ""]][:-1]


def head(told: Mapping[str, Any]) -> Iterator[str]:
    """What was judged by what."""
    judged = told["judged"]
    sections = len(told["sections"])
    where = judged["region"] + (f" ({counted(sections, 'section')})" if "sections" in judged else "")
    extra = {
        "foreground": above(told),
        "objects": judged["objects"],
        "not judged": None if judged["ignore"] is None else f"where the truth is {judged['ignore']}",
        "level": judged.get("level") or None,
    }
    named = {
        "prediction": f"{told['prediction']} ({told['kind']})",
        "truth": told["truth"],
        "judged": where,
        "foreground": above(told),
        **extra,
    }
    for name, value in named.items():
        if value is not None:
            yield from wrapped(f"{name:<12} ", str(value))


def above(told: Mapping[str, Any]) -> str | None:
    """At which threshold pixels and components are foreground."""
    return next((f"above {level:g}" for level in told["thresholds"].values()), None)


def table(metric: str, scores: Mapping[str, Any]) -> list[str]:
    """Scores of one metric: name, value, interval, threshold; reasons and notes below them.

    >>> for line in table("em", {"pixel_error": 0.0612, "pixel_error_threshold": 0.5, "looks_inverted": False}):
    ...     print(line)
    em                                   score                          at threshold
      pixel_error                     0.061200                                 0.500
    """
    found = [name for name, value in scores.items() if is_score(name, value)]
    rows = [name for name in found if name not in COUNTED]
    drawn = scores.get("intervals")
    has_intervals = drawn is not None and any(scores.get(f"{name}_interval") for name in rows)
    over = f"95 % over {counted(drawn['units'], drawn['unit'])}" if drawn and has_intervals else ""
    at = "at threshold" if any(scores.get(f"{name}_threshold") is not None for name in rows) else ""
    result = [f"{metric:<{NAME}}{'score':>{SCORE}}  {over:<{INTERVAL}}{at:>14}".rstrip()]
    for name in rows:
        result += row(name, scores) if scores[name] is not None else []
    for reason, names in undefined(rows, scores).items():
        result += wrapped("  undefined: ", f"{', '.join(names)} ({reason})")
    numbers = [f"{name} {scores[name]}" for name in found if name in COUNTED]
    return result + wrapped("  ", ", ".join(numbers)) if numbers else result


def is_score(name: str, value: Any) -> bool:
    """Whether a key is a score or a count, and not something beside one."""
    return not name.endswith(BESIDE) and not isinstance(value, dict | list | bool | str)


def row(name: str, scores: Mapping[str, Any]) -> list[str]:
    """A score and what is to be said of it."""
    interval, level = scores.get(f"{name}_interval"), scores.get(f"{name}_threshold")
    between = f"{interval[0]:.6f} to {interval[1]:.6f}" if interval else ""
    at = "" if level is None else f"{level:.3f}"
    line = f"  {name:<{NAME - 2}}{scores[name]:>{SCORE}.6f}  {between:<{INTERVAL}}{at:>14}".rstrip()
    note = scores.get(f"{name}_note")
    return [line, *(wrapped(" " * 6, note) if note else [])]


def undefined(names: Sequence[str], scores: Mapping[str, Any]) -> dict[str, list[str]]:
    """Scores that are not defined, by the reason."""
    found: dict[str, list[str]] = {}
    for name in names:
        if scores[name] is None:
            found.setdefault(scores.get(f"{name}_reason") or "nothing to judge", []).append(name)
    return found


def worst(metric: str, sections: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """The sections with the worst leading score."""
    leading, higher = LEADING[metric]
    scored = [(scores[leading], name) for name, scores in sections if scores.get(leading) is not None]
    if len(scored) <= WORST or min(scored)[0] == max(scored)[0]:
        return []
    ranked = sorted(scored, key=lambda pair: pair[0] if higher else -pair[0])
    return wrapped("  ", f"worst {leading}: " + ", ".join(f"{name} ({value:.4f})" for value, name in ranked[:WORST]))


def comparison(found: Mapping[str, Any]) -> Iterator[str]:
    """Each difference to the baseline, with what it means.

    >>> told = {"words": "worse by 0.0685", "gain": -0.0685, "gain_interval": [-0.0693, -0.0677],
    ...     "more_than_noise": True}
    >>> for line in comparison({"prediction": "a.zarr", "baseline": "a.json", "scores": {"em": {"v_info": told}}}):
    ...     print(line)
    compared with a.zarr (a.json); better or worse is what is more than noise
    em                                         gain  95 %
      v_info                                -0.0685  -0.0693 to -0.0677 worse
    """
    yield from wrapped("compared with ", f"{found['prediction']} ({found['baseline']}); {MEANING}")
    reasons: dict[str, list[str]] = {}
    for metric, scores in found["scores"].items():
        yield f"{metric:<{NAME}}{'gain':>15}  95 %"
        for name, told in scores.items():
            low, high = told["gain_interval"] or (None, None)
            between = "" if low is None else f"{low:+.4f} to {high:+.4f}"
            yield f"  {name:<{NAME - 2}}{told['gain']:>+15.4f}  {between:<18} {verdict(told)}".rstrip()
            if told["more_than_noise"] is None:
                reasons.setdefault(told["interval_reason"], []).append(name)
    for reason, names in reasons.items():
        yield from wrapped("  not known: ", f"{', '.join(names)} ({reason})")


def verdict(told: Mapping[str, Any]) -> str:
    """What a difference means, in a word."""
    if told["more_than_noise"] is None:
        return "not known"
    return ("better" if told["gain"] > 0 else "worse") if told["more_than_noise"] else "noise"


def counted(number: int, unit: str) -> str:
    """A number of things.

    >>> counted(1, "section"), counted(25, "section")
    ('1 section', '25 sections')
    """
    return f"{number} {unit}{'s' * (number != 1)}"


def bullet(text: str) -> list[str]:
    return wrapped("note: ", text)


def wrapped(start: str, text: str) -> list[str]:
    """Text after a start, indented where it goes on."""
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False)
