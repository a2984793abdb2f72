"""Tables and figures of the report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from unetcli.evaluate.result import Evaluation, Section
from unetcli.report import measure_texts as texts
from unetcli.report.measure_texts import EXTRA, MEASURES, MERGE, Measure, ObjectRow, Published, count, percent
from unetcli.report.viewer import Gallery, ranked
from unetcli.viz.markup import Axis, Html, Line, Plot, join, tag

MOST_ROWS = 1000
"""Largest number of rows in a table of sections or objects; the worst are shown."""
OUTCOMES = {MERGE: "merged"}
"""Outcomes of cells whose text differs from the name of the error."""


@dataclass(frozen=True, slots=True)
class Column:
    """Heading of a column that the table can be sorted by."""

    name: str
    meaning: str = ""
    """Tooltip."""
    order: str = "none"
    """``ascending`` or ``descending`` if the rows are initially in this order."""
    number: bool = True

    def head(self) -> Html:
        arrow = tag("span", class_="arrow", aria_hidden="true")
        button = tag("button", self.name, arrow, type="button", title=self.meaning or None)
        return tag("th", button, scope="col", aria_sort=self.order, class_="number" if self.number else None)


def table(
    heads: Sequence[str | Html],
    rows: Sequence[Html],
    label: str,
    caption: Any = None,
    style: str = "scroll",
    **own: Any,
) -> Html:
    """Table that scrolls if it is wider than the window; ``label`` is its name for screen readers."""
    head = tag("tr", [name if isinstance(name, Html) else tag("th", name, scope="col") for name in heads])
    title = tag("caption", tag("span", caption)) if caption else None
    drawn = tag("table", title, tag("thead", head), tag("tbody", rows), **own)
    return tag("div", drawn, class_=style, tabindex=0, role="group", aria_label=label)


def sortable(caption: str, columns: Sequence[Column], rows: Sequence[Html], name: str) -> Html:
    """Table whose headings are buttons that sort it."""
    heads = [column.head() for column in columns]
    return table(heads, rows, caption, caption, "scroll tall", class_="sortable", id=name)


def row(name: Any, *cells: Any, **own: Any) -> Html:
    """Row with its heading; further attributes are the heading's."""
    return tag("tr", tag("th", name, scope="row", **own), cells)


def number(text: Any, **own: Any) -> Html:
    return tag("td", text, class_="number", **own)


def sorted_number(value: float | None, text: str) -> Html:
    """Number in a sortable table; a hyphen, which sorts last, if it is undefined."""
    return tag("td", "-" if value is None else text, data_sort="" if value is None else value, class_="number")


def sections_table(evaluation: Evaluation, gallery: Gallery) -> Html | None:
    """Table of the sections, the worst first, with a button for those that the viewer shows."""
    measures = section_measures(evaluation)
    if not measures:
        return None
    order, by = ranked(evaluation), texts.ranked_by(evaluation)
    shown = {picture["section"]: sum(picture["found"].values()) for picture in gallery.whole}
    worst_first = "descending" if by and by.lower else "ascending"
    columns = [Column("section", number=False)]
    columns += [Column(m.name, m.meaning, worst_first if m == by else "none") for m in measures]
    columns.append(Column("errors", "Number of errors in the section, if the viewer shows it."))
    rows = [_section_row(section, measures, shown) for section in order[:MOST_ROWS]]
    worst = f"The worst {MOST_ROWS:,} of {len(order):,} sections" if len(order) > MOST_ROWS else None
    by_name = f", worst {by.name} first" if by else ""
    caption = f"{worst or count(len(order), 'section')}{by_name}; each score at its best threshold"
    return sortable(caption, columns, rows, "sections-table")


def section_measures(evaluation: Evaluation) -> list[Measure]:
    """Measures of the summary that are also computed for single sections."""
    found = [measure for metric in texts.metrics_of(evaluation) for measure in texts.headlines(evaluation, metric)]
    sections = evaluation.sections
    return [m for m in found if any(m.key in section.scores.get(m.metric, {}) for section in sections)]


def _section_row(section: Section, measures: Sequence[Measure], shown: Mapping[int, int]) -> Html:
    errors, name = shown.get(section.number), join(section.name)
    if errors is not None:
        name = tag("button", name, type="button", class_="link", data_section=section.number)
    values = [(measure, measure.value(section.scores)) for measure in measures]
    cells = [sorted_number(value, measure.text(value)) for measure, value in values]
    return row(name, cells, sorted_number(errors, str(errors)), data_sort=section.number)


def objects_table(evaluation: Evaluation, gallery: Gallery) -> Html | None:
    """Table of the objects, the worst first."""
    if not gallery.objects:
        return None
    columns = [
        Column("true cell", "Label in the truth; none for an extra cell.", number=False),
        Column("section", number=False),
        Column("outcome", "Found, split, merged with another, missed, or extra: not in the truth.", number=False),
        Column("IoU", "Intersection over union with the found cell that covers it.", "ascending"),
        Column("size (px)"),
        Column("found cell", "Label in the prediction.", number=False),
    ]
    pictured = {picture["section"] for picture in gallery.pictures}
    rows = [_object_row(found, pictured) for found in gallery.objects[:MOST_ROWS]]
    return sortable(_objects_caption(evaluation, gallery), columns, rows, "objects-table")


def _object_row(found: ObjectRow, pictured: set[int]) -> Html:
    section, (y, x, radius) = found.section, found.place
    name = join(found.label or "none")
    if section.number in pictured:
        label = f"show {found.outcome} cell {found.label or found.result} of {section.name}"
        where = {"data_section": section.number, "aria_label": label, "data_y": y, "data_x": x, "data_radius": radius}
        name = tag("button", name, type="button", class_="link", **where)
    return row(
        name,
        tag("td", section.name, data_sort=section.number),
        tag("td", OUTCOMES.get(found.outcome, found.outcome)),
        sorted_number(None if found.outcome == EXTRA else found.overlap, f"{found.overlap:.3f}"),
        sorted_number(found.size, f"{found.size:,}"),
        tag("td", found.result or "none", data_sort=found.result),
        data_sort=found.label,
    )


def _objects_caption(evaluation: Evaluation, gallery: Gallery) -> str:
    every, extra = len(gallery.objects), sum(found.outcome == EXTRA for found in gallery.objects)
    text = f"{count(every - extra, 'true cell')} and {count(extra, 'extra cell')}"
    if every > MOST_ROWS:
        text = f"The worst {MOST_ROWS:,} of {every:,}: {text}"
    if gallery.sections_read < len(evaluation.sections):
        text += f" in the worst {gallery.sections_read} of {count(len(evaluation.sections), 'section')}"
    return text + "; smallest IoU first, extra cells last" + ("; one row per section" if evaluation.three_d else "")


def all_numbers(evaluation: Evaluation) -> Iterator[Html]:
    """One table for each metric: score, interval, threshold and meaning."""
    for metric in texts.metrics_of(evaluation):
        drawn, name = evaluation.scores[metric].get("intervals"), texts.METRIC_NAMES[metric]
        over = f"; intervals over {count(drawn['units'], drawn['unit'])}" if drawn and drawn["units"] > 1 else ""
        rows = [_numbers_row(measure, evaluation) for measure in texts.scored(evaluation, metric)]
        yield table(("score", "value", "95 % interval", "threshold", "meaning"), rows, name, name + over)


def _numbers_row(measure: Measure, evaluation: Evaluation) -> Html:
    details = ("interval", "interval_reason", "threshold", "reason", "note")
    interval, no_interval, threshold, *notes = (measure.detail(evaluation.scores, name) for name in details)
    return row(
        measure.name,
        number(measure.text(measure.value(evaluation.scores))),
        number(measure.interval_text(interval), title=no_interval),
        number("" if threshold is None else f"{threshold:.2f}".rstrip("0").rstrip(".")),
        tag("td", [tag("p", text) for text in (measure.meaning, *notes) if text], class_="long"),
    )


def confusion_table(evaluation: Evaluation) -> Html | None:
    """Confusion matrix of several classes as shares of the true pixels, with IoU and Dice of each class."""
    scores = evaluation.scores.get("pixels", {})
    counts = scores.get("confusion")
    if not counts:
        return None
    heads = ["truth", *(f"as class {k}" for k in range(len(counts))), "IoU", "Dice", "pixels"]
    caption = "Confusion matrix: share of the pixels of each true class that were predicted as each class"
    return table(heads, [_confusion_row(k, taken, scores) for k, taken in enumerate(counts)], caption, caption)


def _confusion_row(true: int, taken: Sequence[int], scores: Mapping[str, Any]) -> Html:
    total = sum(taken)
    cells = []
    for place, pixels in enumerate(taken):
        share, style = pixels / total if total else 0.0, "right" if place == true else "confused"
        cells.append(tag("td", f"{share:.3f}", class_=f"number {style}", style=f"--share:{share:.3f}"))
    values = [scores.get(name, {}).get(str(true)) for name in ("iou_per_class", "dice_per_class")]
    cells += [number("undefined" if value is None else f"{value:.4f}") for value in values]
    return row(f"class {true}", cells, number(f"{total:,}"))


def comparison_table(evaluation: Evaluation) -> Html | None:
    """Differences from the baseline, and whether they are more than noise."""
    comparison = evaluation.comparison or {}
    rows = []
    for metric, found in comparison.get("scores", {}).items():
        measures = {measure.key: measure for measure in texts.scored(evaluation, metric)}
        rows += [_comparison_row(measures[key], pair) for key, pair in found.items() if key in measures]
    if not rows:
        return None
    heads = ("score", "before", "now", "difference", "95 % interval", "more than noise")
    caption = f"Compared with {comparison.get('prediction')} ({comparison.get('baseline')}), on the same data"
    return table(heads, rows, caption, caption)


def _comparison_row(measure: Measure, pair: Mapping[str, Any]) -> Html:
    more = {True: "yes", False: "no", None: "unknown"}[pair["more_than_noise"]]
    better = {True: "better", False: "worse"}[pair["gain"] > 0] if pair["gain"] else "the same"
    shown = [measure.text(pair["baseline"]), measure.text(pair["value"]), f"{pair['difference']:+.{measure.digits}f}"]
    numbers = [number(text) for text in (*shown, measure.interval_text(pair.get("interval")))]
    answer = f"{more}: {better}" if pair["more_than_noise"] else more
    return row(measure.name, numbers, tag("td", answer, title=pair.get("interval_reason")))


def published_table(published: Published, evaluation: Evaluation) -> Html:
    """Table of this evaluation's scores and the published ones, with notes; columns of one measure share a cell."""
    paths = [list(same) for _, same in groupby(path for path, _ in published.columns)]
    cells = [_own_cell(texts.MEASURES[same[0]], evaluation, len(same)) for same in paths]
    own = tag("tr", tag("th", "this evaluation", scope="row"), cells, class_="own")
    rows = [own, *(row(name, [number(value) for value in values]) for name, values in published.rows.items())]
    heads = ["result", *(tag("th", name, scope="col", class_="number") for _, name in published.columns)]
    notes = [tag("p", text) for text in published.comparable]
    source = tag("p", "Source: ", published.source, class_="small")
    return tag("div", table(heads, rows, published.title, published.title), notes, source, class_="published")


def _own_cell(measure: Measure, evaluation: Evaluation, columns: int) -> Html:
    interval = measure.detail(evaluation.scores, "interval")
    text = tag("span", measure.interval_text(interval), class_="interval") if interval else None
    value = tag("strong", measure.text(measure.value(evaluation.scores)))
    return tag("td", value, text, colspan=columns if columns > 1 else None, class_="number")


EM_CURVES = ("rand_error", "pixel_error", "warping_error", "warping_error_classic", "v_rand", "v_info")
CURVE_ROWS = 33
"""Largest number of rows in the table of a curve; longer curves are sampled at regular steps."""

Values = Sequence[float | None]
Columns = Mapping[str, Values]


def figures(evaluation: Evaluation) -> list[Html]:
    """Figures of the evaluation."""
    return [*em_figures(evaluation), *cell_figures(evaluation), *pixel_figures(evaluation)]


def em_figures(evaluation: Evaluation) -> Iterable[Html]:
    """One plot per measure over the thresholds of the challenge."""
    curves = evaluation.curves.get("em", {})
    for key in EM_CURVES:
        if any(value is not None for value in curves.get(key, ())):
            measure = MEASURES[f"em.{key}"]
            yield over_threshold(evaluation, measure, measure.name, curves["threshold"], curves[key], digits=1)


def pixel_figures(evaluation: Evaluation) -> Iterable[Html]:
    """Precision over recall, Dice over the threshold, and the calibration of the probabilities."""
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
    """Plot a measure over thresholds of ``digits`` digits, with its best point ringed; short curves get dots."""
    line = points(thresholds, values)
    y = Axis.up_to(name, max(v for _, v in line if v is not None)) if measure.lower else Axis.share(name)
    plot = Plot(Axis.share("threshold"), y)
    best, at = measure.value(evaluation.scores), measure.detail(evaluation.scores, "threshold")
    marks = [plot.line(line, "own")]
    if len(line) <= CURVE_ROWS:
        marks.append(plot.dots(line, "own", [f"threshold {t:.{digits}f}: {measure.text(v)}" for t, v in line]))
    caption = "no best point"
    if best is not None and at is not None:
        marks.append(plot.highlight(at, best, measure.text(best), below=not measure.lower))
        caption = f"best {measure.text(best)} at threshold {at:.{digits}f}"
    drawn = plot.drawn(*marks, title=f"{name} over the threshold: {caption}")
    better = "lower is better" if measure.lower else "higher is better"
    return figure(name, f"{caption}; {better}", drawn, {"threshold": thresholds, name: values}, measure.digits)


def precision_recall(evaluation: Evaluation) -> Html:
    """Plot precision over recall, with the threshold in use ringed."""
    curves, scores = evaluation.curves["pixels"], evaluation.scores["pixels"]
    pairs = points(curves["recall"], curves["precision"])
    plot = Plot(Axis.share("recall"), Axis.share("precision"))
    marks = [plot.line(sorted(pair for pair in pairs if pair[1] is not None), "own")]
    average = MEASURES["pixels.average_precision"]
    at = evaluation.thresholds.get("foreground", 0.5)
    precision, recall = scores.get("precision"), scores.get("recall")
    caption = f"average precision {average.text(average.value(evaluation.scores))}"
    if precision is not None and recall is not None:
        marks.append(plot.highlight(recall, precision, f"threshold {at:g}", below=True))
        caption += f"; at threshold {at:g}: precision {precision:.4f}, recall {recall:.4f}"
    drawn = plot.drawn(*marks, title=f"Precision over recall of foreground pixels: {caption}")
    columns = {name: curves[name] for name in ("threshold", "precision", "recall")}
    return figure("Precision and recall", caption, drawn, columns)


def reliability(evaluation: Evaluation) -> Html:
    """Reliability diagram: observed share of foreground in each bin of probability."""
    scores = evaluation.scores["pixels"]
    found = scores["calibration"]
    bins, all_pixels = len(found["pixels"]), sum(found["pixels"])
    plot = Plot(Axis.share("probability"), Axis.share("observed share"))
    marks = [plot.line([(0.0, 0.0), (1.0, 1.0)], "ideal")]
    for place, (pixels, right) in enumerate(zip(found["pixels"], found["right"], strict=True)):
        if right is not None:
            edges, share = f"{place / bins:.2f} to {(place + 1) / bins:.2f}", percent(pixels / all_pixels)
            name = f"probability {edges}: {share} of the pixels, observed share {right:.3f}"
            marks.append(plot.bar(place / bins, (place + 1) / bins, pixels / all_pixels, "amount", name))
    line = points(found["probability"], found["right"])
    names = [f"mean probability {p:.3f}: observed share {r:.3f}" for p, r in line]
    marks += [plot.line(line, "own"), plot.dots(line, "own", names)]
    error = MEASURES["pixels.calibration_error"].text(scores.get("calibration_error"))
    caption = f"calibration error {error}; dashed line: perfect calibration; bars: share of the pixels"
    columns = {"probability": found["probability"], "observed share": found["right"], "pixels": found["pixels"]}
    return figure("Calibration", caption, plot.drawn(*marks, title=f"Calibration: error {error}"), columns)


def cell_figures(evaluation: Evaluation) -> Iterable[Html]:
    """Plot the scores of matched objects over the IoU that a match requires."""
    curves, scores = evaluation.curves.get("cells", {}), evaluation.scores.get("cells", {})
    shown = {"precision": "precision", "recall": "recall", "f1": "F1", "ap": "AP"}
    shown = {key: name for key, name in shown.items() if key in curves and scores.get(key) is not None}
    if not shown:
        return
    x = Axis("required IoU", 0.5, 1.0, (0.5, 0.6, 0.7, 0.8, 0.9, 1.0))
    plot = Plot(x, Axis.share("score"))
    marks, keys = [], []
    for place, (key, name) in enumerate(shown.items()):
        line = [(t, v) for t, v in points(curves["threshold"], curves[key]) if v is not None]
        names = [f"{name} at IoU > {t:.2f}: {v:.4f}" for t, v in line]
        marks += [plot.line(line, f"series{place}"), plot.dots(line, f"series{place}", names)]
        stroke = tag("line", x1=1, x2=23, y1=6, y2=6, class_=f"line series{place}")
        keys.append(tag("li", tag("svg", stroke, viewBox="0 0 24 12", class_="key", aria_hidden="true"), name))
    plotted = plot.drawn(*marks, title="Scores of matched objects over the required IoU")
    columns = {"IoU": curves["threshold"]} | {name: curves[key] for key, name in shown.items()}
    drawn = join([plotted, tag("ul", keys, class_="legend")])
    yield figure("Matched objects", "a pair of objects matches if its IoU is above the required one", drawn, columns)


def points(x: Values, y: Values) -> Line:
    """Points of a curve; those without x are left out."""
    return [(a, b) for a, b in zip(x, y, strict=True) if a is not None]


def figure(name: str, caption: str, drawn: Html, columns: Columns, digits: int = 4) -> Html:
    """Plot with its caption and a table of its values."""
    rows = list(zip(*columns.values(), strict=True))
    step = -(-len(rows) // CURVE_ROWS)
    cells = [tag("tr", [tag("td", number_text(value, digits)) for value in row]) for row in rows[::step]]
    note = f"One row for every {step} of {count(len(rows), 'threshold')}." if step > 1 else None
    values = table(list(columns), cells, f"values of {name}")
    details = tag("details", tag("summary", "Values"), values, tag("p", note, class_="small") if note else None)
    return tag("figure", tag("figcaption", tag("h3", name), tag("p", caption)), drawn, details, class_="card")


def number_text(value: float | None, digits: int) -> str:
    """Format a number; integers get a thousands separator instead of ``digits``.

    >>> number_text(0.5, 4), number_text(1200, 4), number_text(None, 4)
    ('0.5000', '1,200', 'undefined')
    """
    if value is None:
        return "undefined"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"
