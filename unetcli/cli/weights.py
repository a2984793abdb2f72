"""``unetcli weights``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from unetcli.cli import options as o
from unetcli.cli import options_train as t
from unetcli.cli import talk

if TYPE_CHECKING:
    from unetcli.train.weight_map import WeightsSummary


def weights(
    labels: t.AnnotationArgument,
    output: t.WeightsOption = None,
    truth: t.TruthOption = "auto",
    sections: o.SectionsOption = None,
    w0: t.W0Option = None,
    sigma: t.SigmaOption = None,
    weights_everywhere: t.EverywhereOption = None,
    ignore: t.IgnoreOption = None,
    partial: t.PartialOption = None,
    keep_empty: t.KeepEmptyOption = None,
    balance: t.BalanceOption = None,
    overwrite: o.OverwriteOption = False,
    json: o.JsonOption = False,
) -> None:
    """Write the loss weights of LABELS, and a picture of them."""
    from dataclasses import asdict

    from unetcli.config import parse_sections
    from unetcli.train.weight_map import WeightsRequest, write_weights

    request = WeightsRequest(
        labels=labels,
        output=output,
        truth=truth,
        sections=parse_sections(sections),
        w0=w0,
        sigma=sigma,
        everywhere=weights_everywhere,
        ignore=ignore,
        partial=partial,
        keep_empty=keep_empty,
        balance=balance,
        overwrite=overwrite,
    )
    with talk.progress("looks at sections") as report:
        summary = write_weights(request, report)
    talk.say(summary.sentence)
    o.print_json(asdict(summary)) if json else typer.echo("\n".join(table(summary)))


def table(summary: WeightsSummary) -> list[str]:
    """Classes, pixels without truth and cells as aligned lines."""
    total = sum(row.pixels for row in summary.classes) + summary.ignored
    lines = [f"{'class':<12} {'pixels':>13} {'share':>8} {'weight':>9}"]
    rows = [(row.name, row.pixels, row.weight) for row in summary.classes]
    if summary.ignored:
        rows.append(("no truth", summary.ignored, 0.0))
    lines += [f"{name:<12} {pixels:>13,} {pixels / total:>8.2%} {weight:>9.4f}" for name, pixels, weight in rows]
    return [*lines, f"{'cells':<12} {summary.cells:>13,}", f"{'largest weight':<36} {summary.highest:>9.4f}"]
