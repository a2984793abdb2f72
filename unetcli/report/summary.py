"""What an evaluation says, in a few sentences and a few large numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from unetcli.evaluate.result import Evaluation
from unetcli.report import measure_texts as texts
from unetcli.report.errors import EXTRA, MERGE, MISSED, SPLIT
from unetcli.report.measure_texts import Measure, count, percent
from unetcli.report.viewer import Gallery
from unetcli.viz.markup import Html, tag


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
