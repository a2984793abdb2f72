"""The page: its parts put into the template, style and programs inline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from unetcli import __version__
from unetcli.core.files import replacing
from unetcli.core.progress import ProgressCallback, silent
from unetcli.evaluate.result import Evaluation
from unetcli.report import charts, summary, tables
from unetcli.report.errors import NAMES
from unetcli.report.measure_texts import count
from unetcli.report.viewer import Gallery, SourceImage, gallery, no_image
from unetcli.viz.markup import Html, join, tag

PROGRAMS = ["page", "tables", "colours", "paint", "pane", "viewer", "errors", "pointers", "prints", "frame"]
"""Scripts of the page, in the order in which they need each other."""


def write_report(
    evaluation: Evaluation,
    file: Path,
    image: SourceImage = no_image,
    report: ProgressCallback = silent,
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
        "summary": ("Summary", [*statements(evaluation, shown), *summary.headline_cards(evaluation)]),
        "baseline": ("Against the baseline", [tables.comparison_table(evaluation)]),
        "pictures": ("Pictures, worst first", [viewer(evaluation, shown)]),
        "published": ("Published figures", [*tables.published_tables(evaluation)]),
        "curves": ("Curves", [curves, tables.confusion_table(evaluation)]),
        "sections": ("Sections", [tables.sections_table(evaluation, shown)]),
        "cells": ("Cells, one by one", [tables.objects_table(evaluation, shown)]),
        "numbers": ("All numbers", [*tables.all_numbers(evaluation)]),
    }


def header(evaluation: Evaluation) -> Html:
    """What was compared with what."""
    request = evaluation.request
    facts = {"Prediction": request.prediction, "Truth": request.truth, "Judged": str(evaluation.judged["region"])}
    size, unit = evaluation.voxel_size.get("x"), evaluation.units.get("x")
    if size and unit:
        facts["Pixel size"] = f"{size:g} {unit}"
    rows = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts.items()]
    return join([tag("h1", "Evaluation of ", tag("span", Path(request.prediction).name)), tag("dl", rows)])


def statements(evaluation: Evaluation, shown: Gallery) -> Iterator[Html]:
    """Warnings, then the sentences, then what the intervals mean."""
    if notes := [tag("li", note) for note in evaluation.notes]:
        yield tag("div", tag("h3", "To know first"), tag("ul", notes), class_="notes", role="note")
    yield tag("ul", [tag("li", text) for text in summary.sentences(evaluation, shown)], class_="sentences")
    if intervals := summary.interval_note(evaluation):
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
