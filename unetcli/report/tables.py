"""Tables: every number of the evaluation, section by section and object by object, beside the baseline and papers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from unetcli.evaluate.result import Evaluation, Section
from unetcli.report import measure_texts as texts
from unetcli.report.errors import EXTRA, MERGE, ObjectRow
from unetcli.report.measure_texts import Measure, Published, count
from unetcli.report.viewer import Gallery, ranked
from unetcli.viz.markup import Html, join, tag

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


def published_tables(evaluation: Evaluation) -> list[Html]:
    """The published figures of the measures that were scored, below those of this evaluation."""
    return [_published_table(each, evaluation) for each in texts.PUBLISHED if each.metric in evaluation.metrics]


def _published_table(published: Published, evaluation: Evaluation) -> Html:
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
