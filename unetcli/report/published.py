"""Published figures to stand beside ours, with what has to be said before anyone compares."""

from __future__ import annotations

from dataclasses import dataclass

from unetcli.evaluate.result import Evaluation
from unetcli.report.html import Html, tag
from unetcli.report.tables import interval_text, scrolling
from unetcli.report.words import MEASURES, Measure

UNET = "Ronneberger, Fischer and Brox, “U-Net: Convolutional Networks for Biomedical Image Segmentation”, MICCAI 2015"


@dataclass(frozen=True, slots=True)
class Published:
    """A table of a paper."""

    title: str
    measures: tuple[str, ...]
    """Paths in ``MEASURES``, one for each column; ours are shown under them."""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    """With as many digits as were published."""
    source: str
    comparable: tuple[str, ...]
    """Plain words on whether ours may be compared with them."""


EM = Published(
    "EM segmentation challenge of ISBI 2012 (membranes in the fly's nerve cord)",
    ("em.warping_error", "em.rand_error", "em.pixel_error"),
    ("warping error", "Rand error", "pixel error"),
    (
        ("human", ("0.000005", "0.0021", "0.0010")),
        ("U-Net (2015)", ("0.000353", "0.0382", "0.0611")),
        ("DIVE-SCI", ("0.000355", "0.0305", "0.0584")),
        ("IDSIA, sliding window (2012)", ("0.000420", "0.0504", "0.0613")),
    ),
    f"{UNET}, table 1, ranking of March 2015.",
    (
        "The published figures were measured by the organisers on 30 test sections whose labels were never made "
        "public, so nobody can repeat them. Yours come from other sections: they lie on the same scale, but are no "
        "rank in that list.",
        "They come close to comparable on held-out sections of that challenge's own training stack. For other tissue, "
        "pixel size or annotators, a difference says as much about the data as about the network.",
        "Like theirs, every score takes the threshold that suits it best on the very sections it is computed on.",
    ),
)
CELLS = Published(
    "Cell tracking challenge of ISBI 2015 (mean overlap of true cells, SEG)",
    ("cells.seg", "cells.seg"),
    ("PhC-U373", "DIC-HeLa"),
    (
        ("U-Net (2015)", ("0.9203", "0.7756")),
        ("second best of 2015", ("0.83", "0.46")),
        ("KTH-SE (2014)", ("0.7953", "0.4607")),
    ),
    f"{UNET}, table 2.",
    (
        "The published figures are for two particular data sets, glioblastoma cells in phase contrast and HeLa cells "
        "in differential interference contrast, on hidden test sequences. SEG is computed here exactly as the "
        "challenge computes it, but on your frames and your truth.",
        "For other cells they are orientation only. Even for the same two, public truth is of training sequences, and "
        "partly (silver truth) made by programs.",
    ),
)
TABLES = (EM, CELLS)


def beside(evaluation: Evaluation) -> list[Html]:
    """The tables that have something to do with what was scored."""
    return [table(each, evaluation) for each in TABLES if MEASURES[each.measures[0]].metric in evaluation.metrics]


def table(published: Published, evaluation: Evaluation) -> Html:
    """Ours first, then theirs, then what to know."""
    head = tag(
        "tr", tag("th", "result", scope="col"), [tag("th", c, scope="col", class_="number") for c in published.columns]
    )
    measures = [MEASURES[path] for path in published.measures]
    rows = [_ours(measures, evaluation), *(_theirs(name, values) for name, values in published.rows)]
    drawn = tag("table", tag("caption", published.title), tag("thead", head), tag("tbody", rows))
    words = [tag("p", text) for text in published.comparable]
    scroll = scrolling(drawn, published.title)
    return tag("div", scroll, words, tag("p", "Source: ", published.source, class_="small"), class_="published")


def _ours(measures: list[Measure], evaluation: Evaluation) -> Html:
    """One cell for each measure: SEG stands once, under both data sets."""
    if len(set(measures)) == 1:
        return tag(
            "tr",
            tag("th", "this evaluation", scope="row"),
            _our_cell(measures[0], evaluation, len(measures)),
            class_="ours",
        )
    cells = [_our_cell(measure, evaluation, 1) for measure in measures]
    return tag("tr", tag("th", "this evaluation", scope="row"), cells, class_="ours")


def _our_cell(measure: Measure, evaluation: Evaluation, columns: int) -> Html:
    interval = measure.told(evaluation.scores, "interval")
    said = tag("span", interval_text(measure, interval), class_="interval") if interval else None
    value = measure.written(measure.of(evaluation.scores))
    return tag("td", tag("strong", value), said, colspan=columns if columns > 1 else None, class_="number")


def _theirs(name: str, values: tuple[str, ...]) -> Html:
    return tag("tr", tag("th", name, scope="row"), [tag("td", value, class_="number") for value in values])
