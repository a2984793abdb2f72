"""Tables and charts of the scores."""

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
"""Rows of a table of sections or objects; the worst are shown."""
FATES = {MERGE: "merged"}
"""What became of a cell, where that is not the name of the error."""


@dataclass(frozen=True, slots=True)
class Column:
    """The head of a column that its table can be sorted by."""

    name: str
    meaning: str = ""
    """Shown to who points at it."""
    order: str = "none"
    """``ascending`` or ``descending`` where rows come in that order."""
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
    """A table that may be larger than the window; ``label`` is what a screen reader says."""
    head = tag("tr", [name if isinstance(name, Html) else tag("th", name, scope="col") for name in heads])
    title = tag("caption", caption) if caption else None
    drawn = tag("table", title, tag("thead", head), tag("tbody", rows), **own)
    return tag("div", drawn, class_=style, tabindex=0, role="group", aria_label=label)


def sortable(caption: str, columns: Sequence[Column], rows: Sequence[Html], name: str) -> Html:
    """A table whose heads are buttons that sort it."""
    heads = [column.head() for column in columns]
    return table(heads, rows, caption, caption, "scroll tall", class_="sortable", id=name)


def row(name: Any, *cells: Any, **own: Any) -> Html:
    """A row with its head; further attributes are the head's."""
    return tag("tr", tag("th", name, scope="row", **own), cells)


def number(text: Any, **own: Any) -> Html:
    return tag("td", text, class_="number", **own)


def sorted_number(value: float | None, text: str) -> Html:
    """A number of a table that sorts; a hyphen, which sorts last, where it is not defined."""
    return tag("td", "-" if value is None else text, data_sort="" if value is None else value, class_="number")


def sections_table(evaluation: Evaluation, gallery: Gallery) -> Html | None:
    """The sections, the worst first, with a button for those that there is a picture of."""
    measures = section_measures(evaluation)
    if not measures:
        return None
    order, by = ranked(evaluation), texts.ranked_by(evaluation)
    shown = {picture["section"]: sum(picture["found"].values()) for picture in gallery.whole}
    worst_first = "descending" if by and by.lower else "ascending"
    columns = [Column("section", number=False)]
    columns += [Column(m.name, m.meaning, worst_first if m == by else "none") for m in measures]
    columns.append(Column("errors seen", "Places where the picture shows an error, where there is a picture."))
    rows = [_section_row(section, measures, shown) for section in order[:MOST_ROWS]]
    worst = f"The worst {MOST_ROWS:,} of {len(order):,} sections" if len(order) > MOST_ROWS else None
    by_name = f", worst {by.name} first" if by else ""
    caption = f"{worst or count(len(order), 'section')}{by_name}; each at the threshold that suits it best"
    return sortable(caption, columns, rows, "sections-table")


def section_measures(evaluation: Evaluation) -> list[Measure]:
    """What sections are compared by: headlines that a section alone can have."""
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
    """The objects, the worst first."""
    if not gallery.objects:
        return None
    columns = [
        Column("true cell", "Its label in the truth; none for a found cell that is extra.", number=False),
        Column("section", number=False),
        Column("fate", "Found, split, merged with another, missed; extra: found, but not in the truth.", number=False),
        Column("overlap", "Intersection over union with the found cell that covers it.", "ascending"),
        Column("size (px)"),
        Column("found cell", "Its label in the prediction.", number=False),
    ]
    pictured = {picture["section"] for picture in gallery.pictures}
    rows = [_object_row(found, pictured) for found in gallery.objects[:MOST_ROWS]]
    return sortable(_objects_caption(evaluation, gallery), columns, rows, "objects-table")


def _object_row(found: ObjectRow, pictured: set[int]) -> Html:
    section, (y, x, radius) = found.section, found.place
    name = join(found.label or "none")
    if section.number in pictured:
        said = f"show {found.fate} cell {found.label or found.result} of {section.name}"
        where = {"data_section": section.number, "aria_label": said, "data_y": y, "data_x": x, "data_radius": radius}
        name = tag("button", name, type="button", class_="link", **where)
    return row(
        name,
        tag("td", section.name, data_sort=section.number),
        tag("td", FATES.get(found.fate, found.fate)),
        sorted_number(None if found.fate == EXTRA else found.overlap, f"{found.overlap:.3f}"),
        sorted_number(found.size, f"{found.size:,}"),
        tag("td", found.result or "none", data_sort=found.result),
        data_sort=found.label,
    )


def _objects_caption(evaluation: Evaluation, gallery: Gallery) -> str:
    every, extra = len(gallery.objects), sum(found.fate == EXTRA for found in gallery.objects)
    said = f"{count(every - extra, 'true cell')} and {extra:,} extra found"
    if every > MOST_ROWS:
        said = f"The worst {MOST_ROWS:,} of {every:,}: {said}"
    if gallery.looked < len(evaluation.sections):
        said += f" of the worst {gallery.looked} of {count(len(evaluation.sections), 'section')}"
    return said + "; smallest overlap first, extra ones last" + ("; cut by sections" if evaluation.three_d else "")


def all_numbers(evaluation: Evaluation) -> Iterator[Html]:
    """One table for each metric: score, interval, threshold, and what there is to say."""
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
    """Of several classes: what each was taken for, as shares of what is true; and IoU and Dice of each."""
    scores = evaluation.scores.get("pixels", {})
    counts = scores.get("confusion")
    if not counts:
        return None
    heads = ["truth", *(f"as class {k}" for k in range(len(counts))), "IoU", "Dice", "pixels"]
    caption = "Share of the pixels of each true class that were taken for each class"
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
    """What is better or worse than in the baseline, and whether that is more than noise."""
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
    more = {True: "yes", False: "no", None: "not known"}[pair["more_than_noise"]]
    better = {True: "better", False: "worse"}[pair["gain"] > 0] if pair["gain"] else "the same"
    shown = [measure.text(pair["baseline"]), measure.text(pair["value"]), f"{pair['difference']:+.{measure.digits}f}"]
    numbers = [number(text) for text in (*shown, measure.interval_text(pair.get("interval")))]
    answer = f"{more}: {better}" if pair["more_than_noise"] else more
    return row(measure.name, numbers, tag("td", answer, title=pair.get("interval_reason")))


def published_table(published: Published, evaluation: Evaluation) -> Html:
    """This evaluation's scores first, then those published, then what to know; one measure stands once."""
    paths = [list(same) for _, same in groupby(path for path, _ in published.columns)]
    cells = [_own_cell(texts.MEASURES[same[0]], evaluation, len(same)) for same in paths]
    own = tag("tr", tag("th", "this evaluation", scope="row"), cells, class_="ours")
    rows = [own, *(row(name, [number(value) for value in values]) for name, values in published.rows.items())]
    heads = ["result", *(tag("th", name, scope="col", class_="number") for _, name in published.columns)]
    words = [tag("p", text) for text in published.comparable]
    source = tag("p", "Source: ", published.source, class_="small")
    return tag("div", table(heads, rows, published.title, published.title), words, source, class_="published")


def _own_cell(measure: Measure, evaluation: Evaluation, columns: int) -> Html:
    interval = measure.detail(evaluation.scores, "interval")
    said = tag("span", measure.interval_text(interval), class_="interval") if interval else None
    value = tag("strong", measure.text(measure.value(evaluation.scores)))
    return tag("td", value, said, colspan=columns if columns > 1 else None, class_="number")


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
