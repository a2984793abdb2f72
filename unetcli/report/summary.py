"""What an evaluation says, in a few sentences and a few large numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from unetcli.evaluate.result import Evaluation
from unetcli.report.errors import EXTRA, MERGE, MISSED, SPLIT
from unetcli.report.html import Html, tag
from unetcli.report.pictures import Gallery
from unetcli.report.tables import interval_text
from unetcli.report.words import HEADLINES, MEASURES, METRIC_NAMES, Measure, count, metrics_of, percent, scored


def sentences(evaluation: Evaluation, gallery: Gallery) -> Iterator[str]:
    """Plain words, the most important first."""
    yield judged(evaluation)
    tellers = {"em": of_em, "cells": of_cells, "voi": of_voi, "pixels": of_pixels}
    for metric in metrics_of(evaluation):
        yield from tellers[metric](evaluation, gallery)


def judged(evaluation: Evaluation) -> str:
    """How much was judged."""
    height, width = evaluation.region.shape[-2:]
    number = len(evaluation.sections)
    if number == 1:
        return f"Judged: one section of {width:,} x {height:,} pixels."
    first, last = evaluation.sections[0].name, evaluation.sections[-1].name
    return f"Judged: {count(number, 'section')} of {width:,} x {height:,} pixels, {first} to {last}."


def of_em(evaluation: Evaluation, gallery: Gallery) -> Iterator[str]:
    scores = evaluation.scores["em"]
    wrong, at = scores.get("pixel_disagreement"), scores.get("pixel_disagreement_threshold")
    if wrong is not None:
        yield f"{percent(wrong)} of the pixels are on the wrong side of the membrane at the best threshold, {at:.1f}."
    if scores.get("rand_error") is not None:
        yield (
            f"The Rand error is {scores['rand_error']:.3f} at threshold {scores['rand_error_threshold']:.1f}: it grows "
            "with every cell that is cut or joined to another, by its area; 0 is perfect."
        )
    marks = sum((Counter(picture["found"]) for picture in gallery.whole), Counter())
    level = scores.get("warping_error_threshold")
    if level is not None and gallery.whole:
        where = "" if len(gallery.whole) == len(evaluation.sections) else " worst"
        yield (
            f"In the {count(len(gallery.whole), f'{where} section'.strip())} shown below, "
            f"{count(marks[SPLIT], 'place')} {'cuts' if marks[SPLIT] == 1 else 'cut'} a cell and "
            f"{count(marks[MERGE], 'place')} {'joins' if marks[MERGE] == 1 else 'join'} cells, at threshold "
            f"{level:.1f} where the warping error is least."
        )


def of_cells(evaluation: Evaluation, gallery: Gallery) -> Iterator[str]:
    scores = evaluation.scores["cells"]
    truth, found, matched = (scores.get(key) for key in ("reference_objects", "result_objects", "matched"))
    if truth and matched is not None:
        yield (
            f"Of {count(truth, 'true cell')}, {matched:,} ({percent(matched / truth)}) overlap by more than half with "
            f"one of the {count(found or 0, 'found cell')}."
        )
    if scores.get("seg") is not None:
        share = percent(scores["seg"])
        yield f"A true cell and the one found in its place share {share} of their area on average (SEG)."
    yield from fates_of(evaluation, gallery)


def fates_of(evaluation: Evaluation, gallery: Gallery) -> Iterator[str]:
    """Of the objects that the report looked at."""
    if not gallery.objects:
        return
    fates = Counter(row.fate for row in gallery.objects)
    where = "" if gallery.looked == len(evaluation.sections) else f" in the worst {count(gallery.looked, 'section')}"
    yield (
        f"Errors{where}: {fates[MISSED]:,} missed, {fates[SPLIT]:,} split, {fates[MERGE]:,} merged with another; "
        f"{fates[EXTRA]:,} found that the truth does not have."
    )


def of_voi(evaluation: Evaluation, gallery: Gallery) -> Iterator[str]:
    scores = evaluation.scores["voi"]
    split, merge = scores.get("split"), scores.get("merge")
    if split is None or merge is None:
        return
    if max(split, merge) < 0.01:
        lean = "it hardly does either"
    elif split > merge:
        lean = "it rather cuts objects than joins them"
    else:
        lean = "it rather joins objects than cuts them"
    yield f"Splits cost {split:.3f} nats of information and merges {merge:.3f}: {lean}."


def of_pixels(evaluation: Evaluation, gallery: Gallery) -> Iterator[str]:
    scores = evaluation.scores["pixels"]
    accuracy, precision, recall = (scores.get(key) for key in ("accuracy", "precision", "recall"))
    at = evaluation.thresholds.get("foreground", 0.5)
    if precision is not None and recall is not None:
        yield (
            f"Pixel by pixel, at threshold {at:g}: {percent(recall)} of the true foreground was found, and "
            f"{percent(precision)} of what was found is true."
        )
    elif accuracy is not None:
        yield f"{percent(accuracy)} of the pixels have the right class."


def headline_cards(evaluation: Evaluation) -> Iterator[Html]:
    """A group of large numbers for each metric."""
    for metric in metrics_of(evaluation):
        shown = [measure for measure in scored(evaluation, metric) if measure.key in HEADLINES[metric]]
        cards = [card(measure, evaluation) for measure in shown]
        yield tag("div", tag("h3", METRIC_NAMES[metric]), tag("ul", cards, class_="cards"), class_="metric")


def card(measure: Measure, evaluation: Evaluation) -> Html:
    """One score: what it is, how large, how sure, and which way is better."""
    value, interval = measure.of(evaluation.scores), measure.told(evaluation.scores, "interval")
    threshold, reason = (measure.told(evaluation.scores, what) for what in ("threshold", "reason"))
    details = [f"at threshold {threshold:.2g}" if threshold is not None else None, measure.best]
    return tag(
        "li",
        tag("p", measure.name, class_="name"),
        tag("p", measure.written(value), class_="value"),
        tag("p", f"95 %: {interval_text(measure, interval)}", class_="interval") if interval else None,
        tag("p", " · ".join(part for part in details if part), class_="small"),
        tag("p", reason, class_="small") if reason and value is None else None,
        tag("p", measure.meaning, class_="meaning"),
        class_="card",
    )


def interval_words(evaluation: Evaluation) -> str | None:
    """What the intervals mean, if there are any."""
    if not any(measure.told(evaluation.scores, "interval") for measure in MEASURES.values()):
        return None
    drawn = [found["intervals"] for found in evaluation.scores.values() if found.get("intervals")]
    few = " So few make them rough." if any(0 < each["units"] < 10 for each in drawn) else ""
    over = " and ".join(dict.fromkeys(count(each["units"], each["unit"]) for each in drawn if each["units"] > 1))
    return (
        f"95 % intervals say how far a score would move with other data of the same kind (bootstrap over {over}). "
        f"Neighbouring sections are alike, so that the truth may lie somewhat further out.{few}"
    )
