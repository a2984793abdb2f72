"""The curves of an evaluation as figures, each with its numbers in a table that opens below it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from unetcli.evaluate.result import Evaluation
from unetcli.report.measure_texts import MEASURES, Measure, count, percent
from unetcli.report.tables import table
from unetcli.viz.markup import Axis, Html, Line, Plot, join, tag

EM_CURVES = ("rand_error", "pixel_error", "warping_error", "warping_error_classic", "v_rand", "v_info")
CURVE_ROWS = 33
"""Rows of a table of numbers; of longer curves every so many thresholds are shown."""

Values = Sequence[float | None]
Columns = Mapping[str, Values]


def figures(evaluation: Evaluation) -> list[Html]:
    """All figures that the evaluation has data for."""
    return [*em_figures(evaluation), *cell_figures(evaluation), *pixel_figures(evaluation)]


def em_figures(evaluation: Evaluation) -> Iterable[Html]:
    """One plot for each measure over the thresholds of the challenge."""
    curves = evaluation.curves.get("em", {})
    for key in EM_CURVES:
        if any(value is not None for value in curves.get(key, ())):
            measure = MEASURES[f"em.{key}"]
            yield over_threshold(evaluation, measure, measure.name, curves["threshold"], curves[key], digits=1)


def pixel_figures(evaluation: Evaluation) -> Iterable[Html]:
    """Precision over recall, Dice over the threshold, and whether probabilities mean what they say."""
    curves = evaluation.curves.get("pixels", {})
    if curves and any(value is not None for value in curves.get("recall", ())):
        yield precision_recall(evaluation)
        best = MEASURES["pixels.dice_best"]
        yield over_threshold(evaluation, best, "Dice", curves["threshold"], curves["dice"], digits=2)
    calibration = evaluation.scores.get("pixels", {}).get("calibration")
    if calibration and any(calibration["pixels"]):
        yield reliability(evaluation)


def over_threshold(
    evaluation: Evaluation, measure: Measure, name: str, thresholds: Values, values: Values, *, digits: int
) -> Html:
    """One measure over thresholds of so many digits, with its best point ringed; few points are dots."""
    line = points(thresholds, values)
    y = Axis.up_to(name, max(v for _, v in line if v is not None)) if measure.lower else Axis.share(name)
    plot = Plot(Axis.share("threshold"), y)
    best, at = measure.value(evaluation.scores), measure.detail(evaluation.scores, "threshold")
    marks = [plot.line(line, "ours")]
    if len(line) <= CURVE_ROWS:
        marks.append(plot.dots(line, "ours", [f"threshold {t:.{digits}f}: {measure.text(v)}" for t, v in line]))
    said = "no best point"
    if best is not None and at is not None:
        marks.append(plot.highlight(at, best, measure.text(best), below=not measure.lower))
        said = f"best {measure.text(best)} at threshold {at:.{digits}f}"
    drawn = plot.drawn(*marks, title=f"{name} over the threshold: {said}")
    better = "lower is better" if measure.lower else "higher is better"
    return figure(name, f"{said}; {better}", drawn, {"threshold": thresholds, name: values}, measure.digits)


def precision_recall(evaluation: Evaluation) -> Html:
    """The curve over all thresholds, the one in use ringed."""
    curves, scores = evaluation.curves["pixels"], evaluation.scores["pixels"]
    pairs = points(curves["recall"], curves["precision"])
    plot = Plot(Axis.share("recall"), Axis.share("precision"))
    marks = [plot.line(sorted(pair for pair in pairs if pair[1] is not None), "ours")]
    average = MEASURES["pixels.average_precision"]
    at = evaluation.thresholds.get("foreground", 0.5)
    precision, recall = scores.get("precision"), scores.get("recall")
    said = f"average precision {average.text(average.value(evaluation.scores))}"
    if precision is not None and recall is not None:
        marks.append(plot.highlight(recall, precision, f"threshold {at:g}", below=True))
        said += f"; at threshold {at:g} precision {precision:.4f}, recall {recall:.4f}"
    drawn = plot.drawn(*marks, title=f"Precision over recall of foreground pixels: {said}")
    columns = {name: curves[name] for name in ("threshold", "precision", "recall")}
    return figure("Precision and recall", said, drawn, columns)


def reliability(evaluation: Evaluation) -> Html:
    """The share that is right in each bin of probability; on the diagonal, probabilities mean what they say."""
    scores = evaluation.scores["pixels"]
    found = scores["calibration"]
    bins, all_pixels = len(found["pixels"]), sum(found["pixels"])
    plot = Plot(Axis.share("probability"), Axis.share("share that is right"))
    marks = [plot.line([(0.0, 0.0), (1.0, 1.0)], "ideal")]
    for place, (pixels, right) in enumerate(zip(found["pixels"], found["right"], strict=True)):
        if right is not None:
            name = f"{place / bins:.2f} to {(place + 1) / bins:.2f}: {right:.3f} right, {percent(pixels / all_pixels)}"
            marks.append(plot.bar(place / bins, (place + 1) / bins, pixels / all_pixels, "amount", name))
    line = points(found["probability"], found["right"])
    names = [f"mean probability {p:.3f}: {r:.3f} right" for p, r in line]
    marks += [plot.line(line, "ours"), plot.dots(line, "ours", names)]
    error = MEASURES["pixels.calibration_error"].text(scores.get("calibration_error"))
    said = f"calibration error {error}; on the dashed line probabilities mean what they say; bars: share of pixels"
    columns = {name: found[name] for name in ("probability", "right", "pixels")}
    return figure("Calibration", said, plot.drawn(*marks, title=f"Calibration: error {error}"), columns)


def cell_figures(evaluation: Evaluation) -> Iterable[Html]:
    """How many objects still match as more overlap is required."""
    curves, scores = evaluation.curves.get("cells", {}), evaluation.scores.get("cells", {})
    shown = {"precision": "precision", "recall": "recall", "f1": "F1", "ap": "AP"}
    shown = {key: name for key, name in shown.items() if key in curves and scores.get(key) is not None}
    if not shown:
        return
    x = Axis("overlap (IoU) asked for", 0.5, 1.0, (0.5, 0.6, 0.7, 0.8, 0.9, 1.0))
    plot = Plot(x, Axis.share("score"))
    marks, keys = [], []
    for place, (key, name) in enumerate(shown.items()):
        line = [(t, v) for t, v in points(curves["threshold"], curves[key]) if v is not None]
        said = [f"{name} at IoU > {t:.2f}: {v:.4f}" for t, v in line]
        marks += [plot.line(line, f"series{place}"), plot.dots(line, f"series{place}", said)]
        stroke = tag("line", x1=1, x2=23, y1=6, y2=6, class_=f"line series{place}")
        keys.append(tag("li", tag("svg", stroke, viewBox="0 0 24 12", class_="key", aria_hidden="true"), name))
    plotted = plot.drawn(*marks, title="Matching of objects over the overlap asked for")
    columns = {"IoU": curves["threshold"]} | {name: curves[key] for key, name in shown.items()}
    drawn = join([plotted, tag("ul", keys, class_="legend")])
    yield figure("Objects by overlap", "a pair matches where its overlap is greater", drawn, columns)


def points(x: Values, y: Values) -> Line:
    """Points whose x is known."""
    return [(a, b) for a, b in zip(x, y, strict=True) if a is not None]


def figure(name: str, said: str, drawn: Html, columns: Columns, digits: int = 4) -> Html:
    """A plot with its caption, and its numbers for who wants or needs them."""
    rows = list(zip(*columns.values(), strict=True))
    step = -(-len(rows) // CURVE_ROWS)
    cells = [tag("tr", [tag("td", number_text(value, digits)) for value in row]) for row in rows[::step]]
    left_out = tag("p", f"Every {step}th of {count(len(rows), 'threshold')}.", class_="small") if step > 1 else None
    numbers = tag("details", tag("summary", f"Numbers of {name}"), table(list(columns), cells, "numbers"), left_out)
    return tag("figure", tag("figcaption", tag("h3", name), tag("p", said)), drawn, numbers, class_="card")


def number_text(value: float | None, digits: int) -> str:
    """
    >>> number_text(0.5, 4), number_text(1200, 4), number_text(None, 4)
    ('0.5000', '1,200', 'undefined')
    """
    if value is None:
        return "undefined"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"
