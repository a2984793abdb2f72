"""``unetcli evaluate``."""

from __future__ import annotations

import textwrap
from typing import Any

import typer

from unetcli.cli import options as o
from unetcli.cli import talk


def evaluate(
    prediction: o.PredictionArgument,
    truth: o.TrueArgument,
    metrics: o.MetricsOption = None,
    sections: o.SectionsOption = None,
    allow_incomplete: o.AllowIncompleteOption = False,
    json: o.JsonOption = False,
) -> None:
    """Score PREDICTION against TRUTH."""
    from unetcli.config import parse_sections
    from unetcli.evaluation.volumes import evaluate_volume

    names = None if metrics is None else [name.strip() for name in metrics.split(",") if name.strip()]
    with talk.progress("sections") as report:
        scores = evaluate_volume(
            prediction, truth, names, parse_sections(sections), allow_incomplete=allow_incomplete, report=report
        )
    if json:
        o.print_json(scores)
    else:
        typer.echo("\n".join(line for name, found in scores.items() for line in table(name, found)))


def table(name: str, scores: dict[str, Any]) -> list[str]:
    """Scores of one metric as aligned lines: name, value, threshold or reason; notes below them.

    >>> table("em", {"pixel_error": 0.0612, "pixel_error_threshold": 0.5, "tp": 7})
    ['em', '  pixel_error             0.061200  at threshold 0.5', '  tp                      7']
    """
    lines = [name]
    for key, value in scores.items():
        if key.endswith(("_threshold", "_reason", "_note")) or isinstance(value, dict | list | bool):
            continue
        text = "undefined" if value is None else f"{value:.6f}" if isinstance(value, float) else str(value)
        level = scores.get(f"{key}_threshold")
        lines.append(f"  {key:<22}  {text}" + (f"  at threshold {level:.1f}" if level is not None else ""))
        said = scores.get(f"{key}_reason") or scores.get(f"{key}_note") or ""
        lines += textwrap.wrap(said, 80, initial_indent=" " * 26, subsequent_indent=" " * 26)
    return lines
