"""Tables that sort: every number of the evaluation, section by section and object by object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unetcli.evaluate.result import Evaluation, Section
from unetcli.report.errors import EXTRA, MERGE
from unetcli.report.html import Html, join, tag
from unetcli.report.pictures import Gallery, ranked
from unetcli.report.view import ObjectRow
from unetcli.report.words import HEADLINES, METRIC_NAMES, Measure, count, metrics_of, ranked_by, scored

MOST_SECTIONS = 1000
MOST_OBJECTS = 1000
"""Rows of a table; the worst are shown."""
FATES = {MERGE: "merged"}
"""What became of a cell, where that is not the name of the error."""


@dataclass(frozen=True, slots=True)
class Column:
    """The head of a column."""

    name: str
    said: str = ""
    """What it means, for who points at it."""
    sorted_: str | None = None
    """``ascending`` or ``descending`` where rows come in that order."""
    number: bool = True


def sortable(caption: str, columns: Sequence[Column], rows: Sequence[Html], name: str) -> Html:
    """A table whose heads are buttons that sort it."""
    head = tag("thead", tag("tr", [_head(column) for column in columns]))
    table = tag("table", tag("caption", caption), head, tag("tbody", rows), class_="sortable", id=name)
    return tag("div", table, class_="scroll tall", tabindex=0, role="group", aria_label=caption)


def cell(value: float | int | None, text: str) -> Html:
    """A number; what is not defined sorts last."""
    return tag("td", text, data_sort="" if value is None else value, class_="number")


def sections_table(evaluation: Evaluation, gallery: Gallery) -> Html | None:
    """The sections, the worst first, with a button for those that there is a picture of."""
    measures = section_measures(evaluation)
    if not measures:
        return None
    order, by = ranked(evaluation), ranked_by(evaluation)
    shown = {picture["section"]: sum(picture["found"].values()) for picture in gallery.whole}
    columns = [Column("section", number=False)]
    for measure in measures:
        worst_first = ("descending" if measure.lower else "ascending") if measure == by else None
        columns.append(Column(measure.name, measure.meaning, worst_first))
    columns.append(Column("errors seen", "Places where the picture shows an error, where there is a picture."))
    rows = [_section_row(section, measures, shown) for section in order[:MOST_SECTIONS]]
    return sortable(_sections_caption(len(order), by), columns, rows, "sections-table")


def section_measures(evaluation: Evaluation) -> list[Measure]:
    """What sections are compared by: headlines that a section alone can have."""
    found = []
    for metric in metrics_of(evaluation):
        for measure in scored(evaluation, metric):
            has = any(measure.key in section.scores.get(metric, {}) for section in evaluation.sections)
            if has and measure.key in HEADLINES[metric]:
                found.append(measure)
    return found


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
    rows = [_object_row(row, pictured) for row in gallery.objects[:MOST_OBJECTS]]
    return sortable(_objects_caption(evaluation, gallery), columns, rows, "objects-table")


def all_numbers(evaluation: Evaluation) -> Iterator[Html]:
    """One table for each metric: score, interval, threshold, and what there is to say."""
    for metric in metrics_of(evaluation):
        head = [tag("th", name, scope="col") for name in ("score", "value", "95 % interval", "threshold", "meaning")]
        rows = [_numbers_row(measure, evaluation) for measure in scored(evaluation, metric)]
        caption = tag("caption", METRIC_NAMES[metric], _drawn_from(evaluation, metric))
        yield scrolling(tag("table", caption, tag("thead", tag("tr", head)), tag("tbody", rows)), METRIC_NAMES[metric])


def confusion_table(evaluation: Evaluation) -> Html | None:
    """Of several classes: what each was taken for, as shares of what is true; and IoU and Dice of each."""
    scores = evaluation.scores.get("pixels", {})
    counts = scores.get("confusion")
    if not counts:
        return None
    names = [f"class {k}" for k in range(len(counts))]
    head = [tag("th", "truth", scope="col"), *(tag("th", f"as {name}", scope="col") for name in names)]
    head += [tag("th", name, scope="col") for name in ("IoU", "Dice", "pixels")]
    rows = [_confusion_row(number, counts[number], scores) for number in range(len(counts))]
    caption = "Share of the pixels of each true class that were taken for each class"
    table = tag("table", tag("caption", caption), tag("thead", tag("tr", head)), tag("tbody", rows))
    return scrolling(table, caption)


def comparison_table(evaluation: Evaluation) -> Html | None:
    """What is better or worse than in the baseline, and whether that is more than noise."""
    comparison = evaluation.comparison or {}
    rows = []
    for metric, found in comparison.get("scores", {}).items():
        measures = {measure.key: measure for measure in scored(evaluation, metric)}
        rows += [_comparison_row(measures[key], told) for key, told in found.items() if key in measures]
    if not rows:
        return None
    columns = ("score", "before", "now", "difference", "95 % interval", "more than noise")
    caption = f"Compared with {comparison.get('prediction')} ({comparison.get('baseline')}), on the same data"
    head = tag("tr", [tag("th", name, scope="col") for name in columns])
    return scrolling(tag("table", tag("caption", caption), tag("thead", head), tag("tbody", rows)), caption)


def scrolling(table: Html, name: str) -> Html:
    """A table that may be wider than the window."""
    return tag("div", table, class_="scroll", tabindex=0, role="group", aria_label=name)


def interval_text(measure: Measure, interval: Any) -> str:
    """Both ends, as many digits as the score."""
    if not interval or None in interval:
        return "-"
    return f"{measure.written(interval[0])} to {measure.written(interval[1])}"


def _drawn_from(evaluation: Evaluation, metric: str) -> str | None:
    """What the intervals of a metric were drawn from."""
    drawn = evaluation.scores[metric].get("intervals")
    return f"; intervals over {count(drawn['units'], drawn['unit'])}" if drawn and drawn["units"] > 1 else None


def _head(column: Column) -> Html:
    arrow = tag("span", class_="arrow", aria_hidden="true")
    button = tag("button", column.name, arrow, type="button", title=column.said or None)
    style = "number" if column.number else None
    return tag("th", button, scope="col", aria_sort=column.sorted_ or "none", class_=style)


def _section_row(section: Section, measures: Sequence[Measure], shown: dict[int, int]) -> Html:
    name: Any = section.name
    if section.number in shown:
        name = tag("button", section.name, type="button", class_="link", data_section=section.number)
    cells = [tag("th", name, scope="row", data_sort=section.number)]
    for measure in measures:
        value = measure.of(section.scores)
        cells.append(cell(value, "-" if value is None else measure.written(value)))
    marked = shown.get(section.number)
    cells.append(cell(marked, "-" if marked is None else str(marked)))
    return tag("tr", cells)


def _sections_caption(number: int, by: Measure | None) -> str:
    shown = (
        f"The worst {MOST_SECTIONS:,} of {number:,} sections" if number > MOST_SECTIONS else count(number, "section")
    )
    order = f", worst {by.name} first" if by else ""
    return f"{shown}{order}; each at the threshold that suits it best"


def _object_row(row: ObjectRow, pictured: set[int]) -> Html:
    name: Any = str(row.label) if row.label else "none"
    if row.section.number in pictured:
        where = {"data_y": row.place[0], "data_x": row.place[1], "data_radius": row.place[2]}
        said = f"show {row.fate} cell {row.label or row.result} of {row.section.name}"
        shown = {"data_section": row.section.number, "aria_label": said}
        name = tag("button", name, type="button", class_="link", **shown, **where)
    return tag(
        "tr",
        tag("th", name, scope="row", data_sort=row.label),
        tag("td", row.section.name, data_sort=row.section.number),
        tag("td", FATES.get(row.fate, row.fate)),
        cell(None, "-") if row.fate == EXTRA else cell(row.overlap, f"{row.overlap:.3f}"),
        cell(row.size, f"{row.size:,}"),
        tag("td", row.result or "none", data_sort=row.result),
    )


def _objects_caption(evaluation: Evaluation, gallery: Gallery) -> str:
    every, extra = len(gallery.objects), sum(row.fate == EXTRA for row in gallery.objects)
    said = f"{count(every - extra, 'true cell')} and {extra:,} extra found"
    if every > MOST_OBJECTS:
        said = f"The worst {MOST_OBJECTS:,} of {every:,}: {said}"
    if gallery.looked < len(evaluation.sections):
        said += f" of the worst {gallery.looked} of {count(len(evaluation.sections), 'section')}"
    return said + "; smallest overlap first, extra ones last" + ("; cut by sections" if evaluation.three_d else "")


def _numbers_row(measure: Measure, evaluation: Evaluation) -> Html:
    value, threshold = measure.of(evaluation.scores), measure.told(evaluation.scores, "threshold")
    interval = interval_text(measure, measure.told(evaluation.scores, "interval"))
    said = [measure.meaning, measure.told(evaluation.scores, "reason"), measure.told(evaluation.scores, "note")]
    interval_reason = measure.told(evaluation.scores, "interval_reason")
    return tag(
        "tr",
        tag("th", measure.name, scope="row"),
        tag("td", measure.written(value), class_="number"),
        tag("td", interval, class_="number", title=interval_reason),
        tag("td", "" if threshold is None else f"{threshold:.2f}".rstrip("0").rstrip("."), class_="number"),
        tag("td", join(tag("p", text) for text in said if text), class_="long"),
    )


def _confusion_row(number: int, row: Sequence[int], scores: dict[str, Any]) -> Html:
    total = sum(row)
    cells = [tag("th", f"class {number}", scope="row")]
    for place, pixels in enumerate(row):
        share = pixels / total if total else 0.0
        style = "right" if place == number else "confused"
        cells.append(tag("td", f"{share:.3f}", class_=f"number {style}", style=f"--share:{share:.3f}"))
    for name in ("iou_per_class", "dice_per_class"):
        value = scores.get(name, {}).get(str(number))
        cells.append(tag("td", "undefined" if value is None else f"{value:.4f}", class_="number"))
    return tag("tr", cells, tag("td", f"{total:,}", class_="number"))


def _comparison_row(measure: Measure, told: Mapping[str, Any]) -> Html:
    more = {True: "yes", False: "no", None: "not known"}[told["more_than_noise"]]
    better = {True: "better", False: "worse"}[told["gain"] > 0] if told["gain"] else "the same"
    numbers = [measure.written(told["baseline"]), measure.written(told["value"])]
    numbers += [f"{told['difference']:+.{measure.digits}f}", interval_text(measure, told.get("interval"))]
    cells = [tag("td", number, class_="number") for number in numbers]
    answer = tag("td", f"{more}: {better}" if told["more_than_noise"] else more, title=told.get("interval_reason"))
    return tag("tr", tag("th", measure.name, scope="row"), cells, answer)
