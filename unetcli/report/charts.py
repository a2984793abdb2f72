"""The curves of an evaluation as figures, each with its numbers in a table that opens below it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from unetcli.evaluate.result import Evaluation
from unetcli.report.html import Html, tag
from unetcli.report.svg import Axis, Line, Plot
from unetcli.report.words import MEASURES, Measure, count, metrics_of, percent

EM_CURVES = ("rand_error", "pixel_error", "warping_error", "warping_error_classic", "v_rand", "v_info")
MOST_ROWS = 33
"""Of a table of numbers: longer curves are told at every so many thresholds."""

Columns = Mapping[str, Sequence[float | None]]


def figures(evaluation: Evaluation) -> list[Html]:
    """All figures that the evaluation has data for."""
    drawn = {"em": em_figures, "pixels": pixel_figures, "cells": cell_figures}
    return [figure for metric in metrics_of(evaluation) if metric in drawn for figure in drawn[metric](evaluation)]


def em_figures(evaluation: Evaluation) -> Iterable[Html]:
    """One plot for each measure over the thresholds of the challenge."""
    curves = evaluation.curves.get("em", {})
    for key in EM_CURVES:
        if any(value is not None for value in curves.get(key, ())):
            yield measure_figure(evaluation, MEASURES[f"em.{key}"], curves["threshold"], curves[key])


def measure_figure(
    evaluation: Evaluation, measure: Measure, thresholds: Sequence[float | None], values: Sequence[float | None]
) -> Html:
    """One measure over thresholds, with its best point ringed."""
    line = [(t, v) for t, v in zip(thresholds, values, strict=True) if t is not None]
    y = Axis.share(measure.name)
    if measure.lower:
        y = Axis.up_to(measure.name, max(v for _, v in line if v is not None))
    plot = Plot(Axis.share("threshold"), y)
    names = [f"threshold {t:.1f}: {measure.written(v)}" for t, v in line]
    best, at = measure.of(evaluation.scores), measure.told(evaluation.scores, "threshold")
    marks = [plot.line(line, "ours"), plot.dots(line, "ours", names)]
    said = "no best point"
    if best is not None and at is not None:
        marks.append(plot.highlight(at, best, measure.written(best), below=not measure.lower))
        said = f"best {measure.written(best)} at threshold {at:.1f}"
    title = f"{measure.name} over the threshold: {said}"
    better = "lower is better" if measure.lower else "higher is better"
    columns: Columns = {"threshold": [t for t, _ in line], measure.name: [v for _, v in line]}
    return figure(measure.name, f"{said}; {better}", plot.drawn(*marks, title=title), numbers(columns, measure.digits))


def pixel_figures(evaluation: Evaluation) -> Iterable[Html]:
    """Precision over recall, Dice over the threshold, and whether probabilities mean what they say."""
    curves = evaluation.curves.get("pixels", {})
    if curves and any(value is not None for value in curves.get("recall", ())):
        yield precision_recall(evaluation)
        yield dice_figure(evaluation)
    table = evaluation.scores.get("pixels", {}).get("calibration")
    if table and any(table["pixels"]):
        yield reliability(evaluation)


def precision_recall(evaluation: Evaluation) -> Html:
    """The curve over all thresholds, the one in use ringed."""
    curves = evaluation.curves["pixels"]
    points = sorted((r, p) for r, p in zip(curves["recall"], curves["precision"], strict=True) if None not in (r, p))
    line: Line = [(r, p) for r, p in points if r is not None]
    plot = Plot(Axis.share("recall"), Axis.share("precision"))
    marks = [plot.line(line, "ours")]
    found, scores = MEASURES["pixels.average_precision"], evaluation.scores["pixels"]
    at = evaluation.thresholds.get("foreground", 0.5)
    precision, recall = scores.get("precision"), scores.get("recall")
    said = f"average precision {found.written(found.of(evaluation.scores))}"
    if precision is not None and recall is not None:
        marks.append(plot.highlight(recall, precision, f"threshold {at:g}", below=True))
        said += f"; at threshold {at:g} precision {precision:.4f}, recall {recall:.4f}"
    columns = {name: curves[name] for name in ("threshold", "precision", "recall")}
    title = f"Precision over recall of foreground pixels: {said}"
    return figure("Precision and recall", said, plot.drawn(*marks, title=title), numbers(columns))


def dice_figure(evaluation: Evaluation) -> Html:
    """Which threshold would suit pixels best."""
    curves, scores = evaluation.curves["pixels"], evaluation.scores["pixels"]
    line = [(t, v) for t, v in zip(curves["threshold"], curves["dice"], strict=True) if t is not None]
    plot = Plot(Axis.share("threshold"), Axis.share("Dice"))
    marks = [plot.line(line, "ours")]
    said = "no best point"
    if scores.get("dice_best") is not None:
        best, at = scores["dice_best"], scores["dice_best_threshold"]
        marks.append(plot.highlight(at, best, f"{best:.4f}", below=True))
        said = f"best {best:.4f} at threshold {at:.2f}"
    columns = {name: curves[name] for name in ("threshold", "dice")}
    title = f"Dice over the threshold: {said}"
    return figure("Dice", f"{said}; higher is better", plot.drawn(*marks, title=title), numbers(columns))


def reliability(evaluation: Evaluation) -> Html:
    """The share that is right in each bin of probability; on the diagonal, probabilities mean what they say."""
    scores = evaluation.scores["pixels"]
    table = scores["calibration"]
    bins, all_pixels = len(table["pixels"]), sum(table["pixels"])
    plot = Plot(Axis.share("probability"), Axis.share("share that is right"))
    marks = [plot.line([(0.0, 0.0), (1.0, 1.0)], "ideal")]
    for place, (pixels, right) in enumerate(zip(table["pixels"], table["right"], strict=True)):
        if right is not None:
            name = f"{place / bins:.2f} to {(place + 1) / bins:.2f}: {right:.3f} right, {percent(pixels / all_pixels)}"
            marks.append(plot.bar(place / bins, (place + 1) / bins, pixels / all_pixels, "amount", name))
    line: Line = [(p, r) for p, r in zip(table["probability"], table["right"], strict=True) if p is not None]
    names = [f"mean probability {p:.3f}: {r:.3f} right" for p, r in line]
    marks += [plot.line(line, "ours"), plot.dots(line, "ours", names)]
    error = MEASURES["pixels.calibration_error"].written(scores.get("calibration_error"))
    said = f"calibration error {error}; on the dashed line probabilities mean what they say; bars: share of pixels"
    columns: Columns = {name: table[name] for name in ("probability", "right", "pixels")}
    return figure("Calibration", said, plot.drawn(*marks, title=f"Calibration: error {error}"), numbers(columns))


def cell_figures(evaluation: Evaluation) -> Iterable[Html]:
    """How many objects still match as more overlap is asked for."""
    curves, scores = evaluation.curves.get("cells", {}), evaluation.scores["cells"]
    names = [name for name in ("precision", "recall", "f1", "ap") if name in curves and scores.get(name) is not None]
    if names:
        yield overlap_figure(curves, names)


def overlap_figure(curves: dict[str, list[float | None]], names: Sequence[str]) -> Html:
    """Matching over the overlap asked for."""
    shown = {"precision": "precision", "recall": "recall", "f1": "F1", "ap": "AP"}
    x = Axis("overlap (IoU) asked for", 0.5, 1.0, (0.5, 0.6, 0.7, 0.8, 0.9, 1.0))
    plot = Plot(x, Axis.share("score"))
    marks = []
    for place, name in enumerate(names):
        line = [(t, v) for t, v in zip(curves["threshold"], curves[name], strict=True) if t is not None]
        said = [f"{shown[name]} at IoU > {t:.2f}: {v:.4f}" for t, v in line if v is not None]
        marks += [
            plot.line(line, f"series{place}"),
            plot.dots([p for p in line if p[1] is not None], f"series{place}", said),
        ]
    legend = tag("ul", [tag("li", key(place), shown[name]) for place, name in enumerate(names)], class_="legend")
    columns: Columns = {"IoU": curves["threshold"]} | {shown[name]: curves[name] for name in names}
    title = "Matching of objects over the overlap asked for"
    drawn = Html(plot.drawn(*marks, title=title) + legend)
    return figure("Objects by overlap", "a pair matches where its overlap is greater", drawn, numbers(columns))


def key(place: int) -> Html:
    """A stroke of a series for its legend."""
    stroke = tag("line", x1=1, x2=23, y1=6, y2=6, class_=f"line series{place}")
    return tag("svg", stroke, viewBox="0 0 24 12", class_="key", aria_hidden="true")


def figure(name: str, said: str, drawn: Html, table: Html) -> Html:
    """A plot with its caption, and its numbers for who wants or needs them."""
    caption = tag("figcaption", tag("h3", name), tag("p", said))
    return tag("figure", caption, drawn, tag("details", tag("summary", f"Numbers of {name}"), table), class_="card")


def numbers(columns: Columns, digits: int = 4) -> Html:
    """A plain table of a curve."""
    rows = list(zip(*columns.values(), strict=True))
    step = -(-len(rows) // MOST_ROWS)
    head = tag("thead", tag("tr", [tag("th", name, scope="col") for name in columns]))
    body = tag("tbody", [tag("tr", [tag("td", written(v, digits)) for v in row]) for row in rows[::step]])
    left_out = f"Every {step}th of {count(len(rows), 'threshold')}." if step > 1 else None
    table = tag("div", tag("table", head, body), class_="scroll", tabindex=0, role="group", aria_label="numbers")
    return Html(table + (tag("p", left_out, class_="small") if left_out else ""))


def written(value: float | None, digits: int) -> str:
    """
    >>> written(0.5, 4), written(1200, 4), written(None, 4)
    ('0.5000', '1,200', 'undefined')
    """
    if value is None:
        return "undefined"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"
