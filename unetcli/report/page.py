"""The HTML page of the report, and its summary in words."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from unetcli import __version__
from unetcli.core.files import remove_abandoned_drafts, replacing, starts_with
from unetcli.core.streams import ProgressCallback, silent
from unetcli.evaluate.result import Evaluation
from unetcli.report import measure_texts as texts
from unetcli.report import tables
from unetcli.report.measure_texts import EXTRA, MERGE, MISSED, NAMES, PUBLISHED, SPLIT, Measure, count, percent
from unetcli.report.viewer import Gallery, SourceImage, gallery, no_image
from unetcli.viz.markup import Html, join, tag


def sentences(evaluation: Evaluation, gallery: Gallery) -> Iterator[str]:
    """Summary of the scores in sentences, the most important first."""
    height, width = evaluation.region.shape[-2:]
    number, size = len(evaluation.sections), f"{width:,} x {height:,} pixels"
    ends = f", {evaluation.sections[0].name} to {evaluation.sections[-1].name}" if number > 1 else ""
    yield f"Evaluated: {'one section' if number == 1 else count(number, 'section')} of {size}{ends}."
    yield from em_sentences(evaluation.scores.get("em", {}), gallery, number)
    yield from cells_sentences(evaluation.scores.get("cells", {}), gallery, number)
    yield from voi_sentences(evaluation.scores.get("voi", {}))
    yield from pixels_sentences(evaluation.scores.get("pixels", {}), evaluation.thresholds.get("foreground", 0.5))


def em_sentences(scores: Mapping[str, Any], gallery: Gallery, sections: int) -> Iterator[str]:
    wrong, at = scores.get("pixel_disagreement"), scores.get("pixel_disagreement_threshold")
    if wrong is not None:
        yield f"At the best threshold ({at:.1f}), {percent(wrong)} of the pixels are misclassified."
    if scores.get("rand_error") is not None:
        yield (
            f"The Rand error is {scores['rand_error']:.3f} at threshold {scores['rand_error_threshold']:.1f}. Every "
            "cell that is split or merged with another raises it, in proportion to its area; 0 is perfect."
        )
    level, shown = scores.get("warping_error_threshold"), len(gallery.whole)
    if level is not None and shown:
        marks = sum((Counter(picture["found"]) for picture in gallery.whole), Counter())
        yield (
            f"In the {count(shown, 'section' if shown == sections else 'worst section')} shown below, "
            f"there {'is' if marks[SPLIT] == 1 else 'are'} {count(marks[SPLIT], 'split')} and "
            f"{count(marks[MERGE], 'merge')} of cells at threshold {level:.1f}, where the warping error is least."
        )


def cells_sentences(scores: Mapping[str, Any], gallery: Gallery, sections: int) -> Iterator[str]:
    truth, found, matched = (scores.get(key) for key in ("reference_objects", "result_objects", "matched"))
    if truth and matched is not None:
        yield (
            f"Of {count(truth, 'true cell')}, {matched:,} ({percent(matched / truth)}) match one of the "
            f"{count(found or 0, 'found cell')} with IoU > 0.5."
        )
    if scores.get("seg") is not None:
        yield f"The mean IoU of the true cells with the found cells is {scores['seg']:.3f} (SEG); 1 is perfect."
    if scores and gallery.objects:
        outcomes, read = Counter(row.outcome for row in gallery.objects), gallery.sections_read
        where = "" if read == sections else f" in the worst {count(read, 'section')}"
        yield (
            f"Errors{where}: {outcomes[MISSED]:,} missed, {outcomes[SPLIT]:,} split, {outcomes[MERGE]:,} merged with "
            f"another, and {outcomes[EXTRA]:,} extra cells that are not in the truth."
        )


def voi_sentences(scores: Mapping[str, Any]) -> Iterator[str]:
    split, merge = scores.get("split"), scores.get("merge")
    if split is None or merge is None:
        return
    dominant = "splits prevail" if split > merge else "merges prevail"
    if max(split, merge) < 0.01:
        dominant = "both are negligible"
    yield f"Splits cost {split:.3f} nats of information and merges {merge:.3f}: {dominant}."


def pixels_sentences(scores: Mapping[str, Any], at: float) -> Iterator[str]:
    accuracy, precision, recall = (scores.get(key) for key in ("accuracy", "precision", "recall"))
    if precision is not None and recall is not None:
        yield (
            f"At threshold {at:g}, {percent(recall)} of the true foreground pixels are found, and "
            f"{percent(precision)} of the predicted foreground pixels are correct."
        )
    elif accuracy is not None:
        yield f"{percent(accuracy)} of the pixels have the correct class."


def headline_cards(evaluation: Evaluation) -> Iterator[Html]:
    """One group of cards for each metric."""
    for metric in texts.metrics_of(evaluation):
        cards = [card(measure, evaluation) for measure in texts.headlines(evaluation, metric)]
        yield tag("div", tag("h3", texts.METRIC_NAMES[metric]), tag("ul", cards, class_="cards"), class_="metric")


def card(measure: Measure, evaluation: Evaluation) -> Html:
    """Card of one score: name, value, interval, threshold and meaning."""
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
    """Explanation of the intervals; None if there are none."""
    if not any(measure.detail(evaluation.scores, "interval") for measure in texts.MEASURES.values()):
        return None
    drawn = [found["intervals"] for found in evaluation.scores.values() if found.get("intervals")]
    few = " With so few, the intervals are rough." if any(0 < each["units"] < 10 for each in drawn) else ""
    over = " and ".join(dict.fromkeys(count(each["units"], each["unit"]) for each in drawn if each["units"] > 1))
    return (
        f"95 % intervals show how much a score would vary with other data of the same kind (bootstrap over {over}). "
        f"Neighbouring sections are similar, so the intervals tend to be too narrow.{few}"
    )


PROGRAMS = ["page", "tables", "colours", "paint", "pane", "viewer", "errors", "pointers", "prints", "frame"]
"""Scripts of the page, in the order in which they depend on each other."""
GENERATOR = '<meta name="generator" content="unetcli evaluate">'
"""Tag near the start of the page that marks it as written by unetcli."""


def write_report(
    evaluation: Evaluation, file: Path, image: SourceImage = no_image, report: ProgressCallback = silent
) -> None:
    """Write the report atomically: the file appears complete or not at all.

    Parameters
    ----------
    image
        Returns the image (c, y, x) of a section, of any type, or None if there is none.
    report
        Called with the number of sections read so far, and of all that will be read.
    """
    text = page(evaluation, gallery(evaluation, image, report))
    remove_abandoned_drafts(file)
    with replacing(file) as draft:
        draft.write_text(text, encoding="utf-8")


def is_report(file: Path) -> bool:
    """Whether a file begins as every report does: with the tag that names unetcli evaluate as its generator."""
    head, tag_name, _ = asset("page.html").partition(GENERATOR)
    return starts_with(file, f"{head}{tag_name}".encode())


def page(evaluation: Evaluation, shown: Gallery) -> str:
    """HTML of the report."""
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
    """Name and content of each part of the page, by anchor; parts without content are omitted later."""
    figures = tables.figures(evaluation)
    curves = tag("div", figures, class_="figures") if figures else None
    return {
        "summary": ("Summary", [*statements(evaluation, shown), *headline_cards(evaluation)]),
        "baseline": ("Comparison with the baseline", [tables.comparison_table(evaluation)]),
        "pictures": ("Sections, worst first", [viewer(evaluation, shown)]),
        "published": (
            "Published scores",
            [tables.published_table(each, evaluation) for each in PUBLISHED if each.metric in evaluation.metrics],
        ),
        "curves": ("Curves", [curves, tables.confusion_table(evaluation)]),
        "sections": ("Scores by section", [tables.sections_table(evaluation, shown)]),
        "cells": ("Single cells", [tables.objects_table(evaluation, shown)]),
        "numbers": ("All scores", [*tables.all_numbers(evaluation)]),
    }


def header(evaluation: Evaluation) -> Html:
    """Title, and the compared volumes with the evaluated region."""
    request = evaluation.request
    facts = {"Prediction": request.prediction, "Truth": request.truth, "Region": str(evaluation.scope["region"])}
    size, unit = evaluation.voxel_size.get("x"), evaluation.units.get("x")
    if size and unit:
        facts["Pixel size"] = f"{size:g} {unit}"
    rows = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts.items()]
    return join([tag("h1", "Evaluation of ", tag("span", Path(request.prediction).name)), tag("dl", rows)])


def statements(evaluation: Evaluation, shown: Gallery) -> Iterator[Html]:
    """Warnings, the summary in sentences, and the explanation of the intervals."""
    if notes := [tag("li", note) for note in evaluation.notes]:
        yield tag("div", tag("h3", "Notes"), tag("ul", notes), class_="notes", role="note")
    yield tag("ul", [tag("li", text) for text in sentences(evaluation, shown)], class_="sentences")
    if intervals := interval_note(evaluation):
        yield tag("p", intervals, class_="small")


def viewer(evaluation: Evaluation, shown: Gallery) -> Html | None:
    """Controls of the viewer, which its scripts fill with pictures; None without pictures."""
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
    """Legend entry of a kind of error, with a checkbox that shows or hides its marks."""
    letter, text = NAMES[kind]
    box = tag("input", type="checkbox", checked=True, data_kind=kind)
    return tag("li", tag("label", box, tag("span", letter, class_=f"sign {kind}", aria_hidden="true"), text))


def limits(evaluation: Evaluation, shown: Gallery) -> Iterator[str]:
    """Notes on what the pictures leave out."""
    pictures, every, first = len(shown.whole), len(evaluation.sections), shown.pictures[0]
    if pictures < every:
        yield f"To keep the page small, only the worst {pictures} of {count(every, 'section')} are shown."
    if (factor := first["factor"]) > 1:
        yield (
            f"Downsampled: one pixel here stands for {factor} x {factor}. Errors were found at full resolution; "
            "close-ups of the largest follow each section."
        )
    if first["image"] is None:
        yield "The image is not shown. To see the errors on it, pass it with --image."


def embedded(values: Any) -> Html:
    """JSON for a script element, in which ``</`` and ``<!--`` must not occur.

    >>> embedded({"name": "</script>"})
    '{"name":"\\\\u003c/script>"}'
    """
    return Html(json.dumps(values, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))


def asset(name: str) -> str:
    """Text of a file in the folder ``assets``."""
    return resources.files("unetcli.report").joinpath("assets", name).read_text(encoding="utf-8")
