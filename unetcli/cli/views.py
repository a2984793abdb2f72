"""Tables of plans and scores for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unetcli.cli import console
from unetcli.core.errors import counted
from unetcli.evaluate.request import METRICS

if TYPE_CHECKING:
    from unetcli.evaluate.result import Evaluation
    from unetcli.planning.timing import Link, Traffic
    from unetcli.predict.preview import PlanReport

WIDTH = 80
"""Width of the text, in columns."""
NAME, SCORE, INTERVAL = 32, 10, 22
"""Widths of columns."""
BESIDE = ("_threshold", "_reason", "_note", "_interval", "_interval_reason")
WORST = 3
MEANING = "better and worse mean more than noise"
COUNTED = {"tp", "fp", "fn", "tn", "reference_objects", "result_objects", "matched"}


def score_lines(found: Evaluation) -> list[str]:
    """Summary of an evaluation; ``--json`` has the rest."""
    parts = [list(head(found.to_json()))]
    for metric in found.metrics:
        section_scores = [(section.name, section.scores.get(metric, {})) for section in found.sections]
        parts.append([*table(metric, found.scores[metric]), *worst(metric, section_scores)])
    if found.comparison:
        parts.append(list(comparison(found.comparison)))
    if found.notes:
        parts.append([line for note in found.notes for line in wrapped("note: ", note)])
    return [line for part in parts for line in [*part, ""]][:-1]


def head(found: Mapping[str, Any]) -> Iterator[str]:
    """Lines that say which voxels of which volumes were compared, and how."""
    scope = found["judged"]
    sections = f" ({counted(len(found['sections']), 'section')})" if "sections" in scope else ""
    values = {
        "prediction": f"{found['prediction']} ({found['kind']})",
        "truth": found["truth"],
        "region": scope["region"] + sections,
        "foreground": next((f"above {level:g}" for level in found["thresholds"].values()), None),
        "objects": scope["objects"],
        "left out": None if scope["ignore"] is None else f"where the truth is {scope['ignore']}",
        "level": scope.get("level") or None,
    }
    for name, value in values.items():
        if value is not None:
            yield from wrapped(f"{name:<12} ", str(value))


def table(metric: str, scores: Mapping[str, Any]) -> list[str]:
    """Table of one metric: name, value, interval and threshold of each score, then reasons and notes.

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
    """Whether a key is a score or a count, and not additional information about one."""
    return not name.endswith(BESIDE) and not isinstance(value, dict | list | bool | str)


def row(name: str, scores: Mapping[str, Any]) -> list[str]:
    """Lines of one score: value, interval, threshold and note."""
    interval, level = scores.get(f"{name}_interval"), scores.get(f"{name}_threshold")
    between = f"{interval[0]:.6f} to {interval[1]:.6f}" if interval else ""
    at = "" if level is None else f"{level:.3f}"
    line = f"  {name:<{NAME - 2}}{scores[name]:>{SCORE}.6f}  {between:<{INTERVAL}}{at:>14}".rstrip()
    note = scores.get(f"{name}_note")
    return [line, *(wrapped(" " * 6, note) if note else [])]


def undefined(names: Sequence[str], scores: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names of undefined scores, grouped by reason."""
    found: dict[str, list[str]] = {}
    for name in names:
        if scores[name] is None:
            found.setdefault(scores.get(f"{name}_reason") or "nothing to score", []).append(name)
    return found


def worst(metric: str, sections: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Line that names the worst sections by the leading score."""
    leading, sign = METRICS[metric].leading, -1 if METRICS[metric].lower_is_better else 1
    scored = [(scores[leading], name) for name, scores in sections if scores.get(leading) is not None]
    if len(scored) <= WORST or min(scored)[0] == max(scored)[0]:
        return []
    ranked = sorted(scored, key=lambda pair: sign * pair[0])
    return wrapped("  ", f"worst {leading}: " + ", ".join(f"{name} ({value:.4f})" for value, name in ranked[:WORST]))


def comparison(found: Mapping[str, Any]) -> Iterator[str]:
    """Table of the differences to a baseline, each with a verdict.

    >>> change = {"words": "worse by 0.0685", "gain": -0.0685, "gain_interval": [-0.0693, -0.0677],
    ...     "more_than_noise": True}
    >>> for line in comparison({"prediction": "a.zarr", "baseline": "a.json", "scores": {"em": {"v_info": change}}}):
    ...     print(line)
    compared with a.zarr (a.json); better and worse mean more than noise
    em                                         gain  95 %
      v_info                                -0.0685  -0.0693 to -0.0677 worse
    """
    yield from wrapped("compared with ", f"{found['prediction']} ({found['baseline']}); {MEANING}")
    reasons: dict[str, list[str]] = {}
    for metric, scores in found["scores"].items():
        yield f"{metric:<{NAME}}{'gain':>15}  95 %"
        for name, change in scores.items():
            interval = change["gain_interval"]
            between = f"{interval[0]:+.4f} to {interval[1]:+.4f}" if interval else ""
            yield f"  {name:<{NAME - 2}}{change['gain']:>+15.4f}  {between:<18} {verdict(change)}".rstrip()
            if change["more_than_noise"] is None:
                reasons.setdefault(change["interval_reason"], []).append(name)
    for reason, names in reasons.items():
        yield from wrapped("  unknown: ", f"{', '.join(names)} ({reason})")


def verdict(change: Mapping[str, Any]) -> str:
    """Verdict on a difference: better, worse, noise or unknown."""
    if change["more_than_noise"] is None:
        return "unknown"
    return ("better" if change["gain"] > 0 else "worse") if change["more_than_noise"] else "noise"


def wrapped(start: str, text: str) -> list[str]:
    """Wrap text after a label; further lines are indented by the width of the label."""
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False)


LABEL = 12


def plan_lines(report: PlanReport) -> list[str]:
    """Lines of a plan for the terminal."""
    head = f"{report.source.path} -> {report.request.output_path}"
    return [head, *(_row(label, text) for label, text in rows(report))]


def rows(report: PlanReport) -> Iterator[tuple[str, str]]:
    """Label and text of each line of a plan."""
    yield from _geometry(report)
    yield from _costs(report)
    yield "time", _time(report)
    if report.traffic:
        yield from _together(report.traffic)
    if report.slurm:
        yield "slurm", " ".join(f"--{name}={value}" for name, value in report.slurm.items())
    if report.slurm_check:
        yield "", report.slurm_check
    if report.begun:
        differs = "; ".join(report.conflicts)
        yield "started", f"with other settings: {differs}; predict would refuse" if differs else "the output exists"
    for guess in report.assumed:
        yield "assumed", guess


def _geometry(report: PlanReport) -> Iterator[tuple[str, str]]:
    plan, a, e = report.plan, report.architecture, report.estimate
    extent = ", ".join(f"{axis} {n}" for axis, n in zip(plan.axes, plan.region.shape, strict=True))
    channels = f" in {report.source.channels} channels" if report.source.channels > 1 else ""
    yield "volume", f"{extent}: {_voxels(plan.region.size)} of {report.source.dtype}{channels}"
    if plan.settings.rescale is not None:
        yield "resampled", f"{plan.resampled_text} for the network"
    network = f"depth {a.depth}, {a.base_channels} channels, {a.classes} classes"
    averaged = f"; {plan.settings.averaged}" if plan.settings.averaged else ""
    yield "network", f"{network}; {plan.settings.device}, {plan.settings.precision}{averaged}"
    side, footprint = plan.tile[-1], plan.footprint
    step, context = footprint.step(plan.tile)[-1], footprint.context[-1]
    out, adds = footprint.output(plan.tile)[-1], console.amount(e.tile_multiply_adds)
    each = f" in each of {e.passes} passes" if e.passes > 1 else ""
    yield "tile", f"{side} -> {out}, step {step}, context {context}; {adds} multiply-adds{each}"
    yield "blocks", f"{_count(e.blocks)} of {'x'.join(map(str, plan.block_shape))}, {_count(e.tiles)} tiles"


def _costs(report: PlanReport) -> Iterator[tuple[str, str]]:
    e, choices = report.estimate, report.plan.settings
    yield "wasted work", f"{e.wasted_work:.0%} more than with one tile without end (context, alignment, edges)"
    largest = f"{_count(report.blocks_per_share)} block{'s' if report.blocks_per_share > 1 else ''}"
    yield "shares", f"{_count(report.timing.shares)} of {'at most ' if report.timing.shares > 1 else ''}{largest}"
    host = f"{size(e.host_bytes)} on the host"
    device = f"{size(e.device_bytes)} of it for the network" if choices.device == "cpu" else ""
    yield "memory", f"per worker {host}{', ' + device if device else f', {size(e.device_bytes)} on the device'}"
    yield "reads", f"{size(e.input_bytes)} decoded, in {_count(e.input_chunks)} chunks"
    stored = f", about {size(report.stored_bytes)} after" if report.stored_bytes is not None else ""
    before = f"{size(e.output_bytes)} of {choices.dtype} before compression{stored}"
    yield "writes", f"{before}, in {_count(e.output_files)} files"


def _time(report: PlanReport) -> str:
    from unetcli.planning.timing import STARTUP_SECONDS  # numpy

    if report.rates is None or report.gpu_hours is None:
        return f"unknown: {report.rates_reason}"
    on_cpu, hours = report.plan.settings.device == "cpu", report.gpu_hours
    if hours < 1:
        takes = f"{console.duration(3600 * hours)} of one {'worker' if on_cpu else 'GPU'}"
    else:
        takes = f"{_figure(hours)} {'hours of one worker' if on_cpu else 'GPU-hours'}"
    takes += f", including {STARTUP_SECONDS:.0f} s to start each share"
    one = "pass of a tile" if report.estimate.passes > 1 else "tile"
    return f"{takes}; {report.rates.tile_seconds:.3g} s per {one}, {report.rates.origin}"


def _together(traffic: Traffic) -> Iterator[tuple[str, str]]:
    name = f"{_count(traffic.workers)} workers" if traffic.workers > 1 else "1 worker"
    if traffic.seconds is not None and traffic.network_seconds is not None:
        reading, writing, files = (traffic.per_second(link.amount) or 0.0 for link in traffic.links)
        yield "together", f"{name}: {console.duration(traffic.seconds)}"
        receipts = f"{_figure(traffic.per_second(traffic.receipts) or 0)} receipts/s"
        demand = f"{_rate(reading)} read, {_rate(writing)} written, {_figure(files)} file operations/s, {receipts}"
        yield "", f"at full speed {demand}"
    else:
        yield "together", name
    yield "", f"receipts {size(traffic.receipts_bytes)} in total"
    yield "bottleneck", bottleneck(traffic)


def bottleneck(traffic: Traffic) -> str:
    """Slowest part of the system in one sentence, with its numbers."""
    link = traffic.weakest
    demand = size(link.amount) if link.unit == "bytes" else _count(link.amount)
    takes = f"{demand} take {_wait(link.seconds)} at a typical {_limit(link)}"
    if traffic.network_seconds is None:
        return f"unknown without the speed of the network; in the file system it is {link.name}: {takes}"
    network = _wait(traffic.network_seconds)
    if traffic.network_is_weakest:
        return f"the network, {network}; in the file system {link.name}: {takes}"
    return f"{link.name}: {takes}, the network {network}; {link.remedy}"


def _wait(seconds: float) -> str:
    return console.duration(seconds) if seconds >= 1 else "under 1 s"


def _voxels(count: int) -> str:
    """Format a number of voxels.

    >>> _voxels(900), _voxels(13_500_000), _voxels(10**15)
    ('900 voxels', '13.5 Mvoxels', '1,000 Tvoxels')
    """
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if count >= factor:
            return f"{_figure(count / factor)} {letter}voxels"
    return f"{count:,} voxels"


def _limit(link: Link) -> str:
    return _rate(link.limit) if link.unit == "bytes" else f"{link.limit:,.0f}/s"


def size(value: float) -> str:
    """Format a number of bytes.

    >>> size(100), size(2.5 * 2**30), size(2**50)
    ('100 B', '2.5 GiB', '1 PiB')
    """
    for power, unit in ((5, "PiB"), (4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if value >= 1024**power:
            return f"{_figure(value / 1024**power)} {unit}"
    return f"{value:.0f} B"


def _rate(value: float) -> str:
    """Format a rate in bytes per second, with decimal units as usual for networks."""
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if value >= factor:
            return f"{_figure(value / factor)} {unit}/s"
    return f"{value / 1e3:.3g} kB/s"


def _figure(value: float) -> str:
    """Format a number with three significant digits and without exponent.

    >>> _figure(0.01234), _figure(12.34), _figure(12345.6)
    ('0.0123', '12.3', '12,346')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _count(value: float) -> str:
    """Format a count: exactly below a million, with three significant digits above.

    >>> _count(12345), _count(2_621_440)
    ('12,345', '2.62 M')
    """
    return f"{value:,.0f}" if value < 1e6 else console.amount(value)


def _row(label: str, text: str) -> str:
    """Wrap text beside its label."""
    lines = textwrap.wrap(text, WIDTH - LABEL, break_on_hyphens=False, break_long_words=False) or [""]
    return "\n".join(f"{label if n == 0 else '':{LABEL}}{line}" for n, line in enumerate(lines))
