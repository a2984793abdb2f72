"""The report: one HTML page that needs nothing beside itself, with a summary in words."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from unetcli import __version__
from unetcli.core.files import replacing
from unetcli.core.streams import ProgressCallback, silent
from unetcli.evaluate.result import Evaluation
from unetcli.report import measure_texts as texts
from unetcli.report import tables
from unetcli.report import tables as charts
from unetcli.report.measure_texts import EXTRA, MERGE, MISSED, NAMES, PUBLISHED, SPLIT, Measure, count, percent
from unetcli.report.viewer import Gallery, SourceImage, gallery, no_image
from unetcli.viz.markup import Html, join, tag


def sentences(evaluation: Evaluation, gallery: Gallery) -> Iterator[str]:
    """Plain sentences, the most important first."""
    height, width = evaluation.region.shape[-2:]
    number, size = len(evaluation.sections), f"{width:,} x {height:,} pixels"
    ends = f", {evaluation.sections[0].name} to {evaluation.sections[-1].name}" if number > 1 else ""
    yield f"Judged: {'one section' if number == 1 else count(number, 'section')} of {size}{ends}."
    yield from em_sentences(evaluation.scores.get("em", {}), gallery, number)
    yield from cells_sentences(evaluation.scores.get("cells", {}), gallery, number)
    yield from voi_sentences(evaluation.scores.get("voi", {}))
    yield from pixels_sentences(evaluation.scores.get("pixels", {}), evaluation.thresholds.get("foreground", 0.5))


def em_sentences(scores: Mapping[str, Any], gallery: Gallery, sections: int) -> Iterator[str]:
    wrong, at = scores.get("pixel_disagreement"), scores.get("pixel_disagreement_threshold")
    if wrong is not None:
        yield f"{percent(wrong)} of the pixels are on the wrong side of the membrane at the best threshold, {at:.1f}."
    if scores.get("rand_error") is not None:
        yield (
            f"The Rand error is {scores['rand_error']:.3f} at threshold {scores['rand_error_threshold']:.1f}: it grows "
            "with every cell that is cut or joined to another, by its area; 0 is perfect."
        )
    level, shown = scores.get("warping_error_threshold"), len(gallery.whole)
    if level is not None and shown:
        marks = sum((Counter(picture["found"]) for picture in gallery.whole), Counter())
        yield (
            f"In the {count(shown, 'section' if shown == sections else 'worst section')} shown below, "
            f"{count(marks[SPLIT], 'place')} {'cuts' if marks[SPLIT] == 1 else 'cut'} a cell and "
            f"{count(marks[MERGE], 'place')} {'joins' if marks[MERGE] == 1 else 'join'} cells, at threshold "
            f"{level:.1f} where the warping error is least."
        )


def cells_sentences(scores: Mapping[str, Any], gallery: Gallery, sections: int) -> Iterator[str]:
    truth, found, matched = (scores.get(key) for key in ("reference_objects", "result_objects", "matched"))
    if truth and matched is not None:
        yield (
            f"Of {count(truth, 'true cell')}, {matched:,} ({percent(matched / truth)}) overlap by more than half with "
            f"one of the {count(found or 0, 'found cell')}."
        )
    if scores.get("seg") is not None:
        share = percent(scores["seg"])
        yield f"A true cell and the one found in its place share {share} of their area on average (SEG)."
    if scores and gallery.objects:
        fates, looked = Counter(row.fate for row in gallery.objects), gallery.looked
        where = "" if looked == sections else f" in the worst {count(looked, 'section')}"
        yield (
            f"Errors{where}: {fates[MISSED]:,} missed, {fates[SPLIT]:,} split, {fates[MERGE]:,} merged with another; "
            f"{fates[EXTRA]:,} found that the truth does not have."
        )


def voi_sentences(scores: Mapping[str, Any]) -> Iterator[str]:
    split, merge = scores.get("split"), scores.get("merge")
    if split is None or merge is None:
        return
    lean = "it rather cuts objects than joins them" if split > merge else "it rather joins objects than cuts them"
    if max(split, merge) < 0.01:
        lean = "it hardly does either"
    yield f"Splits cost {split:.3f} nats of information and merges {merge:.3f}: {lean}."


def pixels_sentences(scores: Mapping[str, Any], at: float) -> Iterator[str]:
    accuracy, precision, recall = (scores.get(key) for key in ("accuracy", "precision", "recall"))
    if precision is not None and recall is not None:
        yield (
            f"Pixel by pixel, at threshold {at:g}: {percent(recall)} of the true foreground was found, and "
            f"{percent(precision)} of what was found is true."
        )
    elif accuracy is not None:
        yield f"{percent(accuracy)} of the pixels have the right class."


def headline_cards(evaluation: Evaluation) -> Iterator[Html]:
    """A group of large numbers for each metric."""
    for metric in texts.metrics_of(evaluation):
        cards = [card(measure, evaluation) for measure in texts.headlines(evaluation, metric)]
        yield tag("div", tag("h3", texts.METRIC_NAMES[metric]), tag("ul", cards, class_="cards"), class_="metric")


def card(measure: Measure, evaluation: Evaluation) -> Html:
    """One score: what it is, how large, how sure, and which way is better."""
    scores = evaluation.scores
    value, interval = measure.value(scores), measure.detail(scores, "interval")
    threshold, reason = (measure.detail(scores, what) for what in ("threshold", "reason"))
    at = f"at threshold {threshold:.2g} · " if threshold is not None else ""
    return tag(
        "li",
        tag("p", measure.name, class_="name"),
        tag("p", measure.text(value), class_="value"),
        tag("p", f"95 %: {measure.interval_text(interval)}", class_="interval") if interval else None,
        tag("p", at + measure.best, class_="small"),
        tag("p", reason, class_="small") if reason and value is None else None,
        tag("p", measure.meaning, class_="meaning"),
        class_="card",
    )


def interval_note(evaluation: Evaluation) -> str | None:
    """What the intervals mean, if there are any."""
    if not any(measure.detail(evaluation.scores, "interval") for measure in texts.MEASURES.values()):
        return None
    drawn = [found["intervals"] for found in evaluation.scores.values() if found.get("intervals")]
    few = " So few make them rough." if any(0 < each["units"] < 10 for each in drawn) else ""
    over = " and ".join(dict.fromkeys(count(each["units"], each["unit"]) for each in drawn if each["units"] > 1))
    return (
        f"95 % intervals say how far a score would move with other data of the same kind (bootstrap over {over}). "
        f"Neighbouring sections are alike, so that the truth may lie somewhat further out.{few}"
    )


PROGRAMS = ["page", "tables", "colours", "paint", "pane", "viewer", "errors", "pointers", "prints", "frame"]
"""Scripts of the page, in the order in which they need each other."""


def write_report(
    evaluation: Evaluation, file: Path, image: SourceImage = no_image, report: ProgressCallback = silent
) -> None:
    """Write the report; the file appears whole or not at all.

    Parameters
    ----------
    image
        Grey values (c, y, x) of a section, of any type; None where there are none.
    report
        Called with the number of sections that have been read again, and of all that will be.
    """
    text = page(evaluation, gallery(evaluation, image, report))
    with replacing(file) as draft:
        draft.write_text(text, encoding="utf-8")


def page(evaluation: Evaluation, shown: Gallery) -> str:
    """The whole HTML."""
    parts = {key: part for key, part in contents(evaluation, shown).items() if any(part[1])}
    sections = [
        tag("section", tag("h2", name, id=f"{key}-title"), content, id=key, aria_labelledby=f"{key}-title")
        for key, (name, content) in parts.items()
    ]
    return Template(asset("page.html")).substitute(
        title=join(f"{Path(evaluation.request.prediction).name}: evaluation"),
        style=asset("style.css"),
        programs="\n".join(asset(f"{name}.js") for name in PROGRAMS),
        header=header(evaluation),
        sections=join(sections),
        links=join([tag("li", tag("a", name, href=f"#{key}")) for key, (name, _) in parts.items()]),
        pictures=embedded(shown.pictures),
        version=__version__,
    )


def contents(evaluation: Evaluation, shown: Gallery) -> dict[str, tuple[str, list[Html | None]]]:
    """Name and content of each part of the page by its anchor; of some there may be nothing."""
    figures = charts.figures(evaluation)
    curves = tag("div", figures, class_="figures") if figures else None
    return {
        "summary": ("Summary", [*statements(evaluation, shown), *headline_cards(evaluation)]),
        "baseline": ("Against the baseline", [tables.comparison_table(evaluation)]),
        "pictures": ("Pictures, worst first", [viewer(evaluation, shown)]),
        "published": (
            "Published figures",
            [tables.published_table(each, evaluation) for each in PUBLISHED if each.metric in evaluation.metrics],
        ),
        "curves": ("Curves", [curves, tables.confusion_table(evaluation)]),
        "sections": ("Sections", [tables.sections_table(evaluation, shown)]),
        "cells": ("Cells, one by one", [tables.objects_table(evaluation, shown)]),
        "numbers": ("All numbers", [*tables.all_numbers(evaluation)]),
    }


def header(evaluation: Evaluation) -> Html:
    """What was compared with what."""
    request = evaluation.request
    facts = {"Prediction": request.prediction, "Truth": request.truth, "Judged": str(evaluation.scope["region"])}
    size, unit = evaluation.voxel_size.get("x"), evaluation.units.get("x")
    if size and unit:
        facts["Pixel size"] = f"{size:g} {unit}"
    rows = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts.items()]
    return join([tag("h1", "Evaluation of ", tag("span", Path(request.prediction).name)), tag("dl", rows)])


def statements(evaluation: Evaluation, shown: Gallery) -> Iterator[Html]:
    """Warnings, then the sentences, then what the intervals mean."""
    if notes := [tag("li", note) for note in evaluation.notes]:
        yield tag("div", tag("h3", "To know first"), tag("ul", notes), class_="notes", role="note")
    yield tag("ul", [tag("li", text) for text in sentences(evaluation, shown)], class_="sentences")
    if intervals := interval_note(evaluation):
        yield tag("p", intervals, class_="small")


def viewer(evaluation: Evaluation, shown: Gallery) -> Html | None:
    """The frame that the program fills, with what its pictures leave out."""
    if not shown.pictures:
        return None
    kinds = {kind for picture in shown.pictures for kind in picture["found"]}
    options = [tag("option", picture["name"], value=place) for place, picture in enumerate(shown.pictures)]
    filled = Template(asset("viewer.html")).substitute(
        limits=join([tag("p", text) for text in limits(evaluation, shown)]),
        options=join(options),
        kinds=join([kind_key(kind) for kind in NAMES if kind in kinds]),
    )
    return Html(filled)


def kind_key(kind: str) -> Html:
    """The sign of a kind of error and its meaning, with a box that shows or hides it."""
    letter, text = NAMES[kind]
    box = tag("input", type="checkbox", checked=True, data_kind=kind)
    return tag("li", tag("label", box, tag("span", letter, class_=f"sign {kind}", aria_hidden="true"), text))


def limits(evaluation: Evaluation, shown: Gallery) -> Iterator[str]:
    """What the pictures do not show."""
    pictures, every, first = len(shown.whole), len(evaluation.sections), shown.pictures[0]
    if pictures < every:
        yield f"The page stays small: pictures of the worst {pictures} of {count(every, 'section')}."
    if (factor := first["factor"]) > 1:
        yield (
            f"Thinned: a pixel here stands for {factor} x {factor}. Errors were found at full resolution; "
            "windows around the gravest follow each section."
        )
    if first["image"] is None:
        yield "Without the image itself: name it with --image to see the errors on it."


def embedded(values: Any) -> Html:
    """JSON inside a script element, where ``</`` and ``<!--`` would end or change it.

    >>> embedded({"name": "</script>"})
    '{"name":"\\\\u003c/script>"}'
    """
    return Html(json.dumps(values, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))


def asset(name: str) -> str:
    """A file of the page from the folder ``assets``."""
    return resources.files("unetcli.report").joinpath("assets", name).read_text(encoding="utf-8")
