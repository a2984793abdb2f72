"""The page: its parts put into the template, style and programs inline."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from string import Template

from unetcli import __version__
from unetcli.core.files import replacing
from unetcli.core.progress import ProgressCallback, silent
from unetcli.evaluate.result import Evaluation
from unetcli.report import charts, published, summary, tables
from unetcli.report.errors import NAMES
from unetcli.report.html import Html, embedded, join, tag
from unetcli.report.pictures import Gallery, Image, gallery
from unetcli.report.words import count

PROGRAMS = (
    "page.js",
    "tables.js",
    "colours.js",
    "paint.js",
    "pane.js",
    "viewer.js",
    "errors.js",
    "pointers.js",
    "prints.js",
    "frame.js",
)
MEGABYTE = 2**20


def write_report(
    evaluation: Evaluation,
    file: Path,
    image: Image = lambda section: None,
    report: ProgressCallback = silent,
) -> None:
    """Write the report; the file appears whole or not at all.

    Parameters
    ----------
    image
        Grey values (c, y, x) of a section, of any type; None where there are none.
    report
        Told how many of the sections have been read again.
    """
    text = page(evaluation, gallery(evaluation, image, report))
    with replacing(file) as draft:
        draft.write_text(text, encoding="utf-8")


def page(evaluation: Evaluation, shown: Gallery) -> str:
    """The whole HTML."""
    parts = {
        "title": join(f"{name_of(evaluation.request.prediction)}: evaluation"),
        "style": source("style.css"),
        "programs": "\n".join(source(name) for name in PROGRAMS),
        "header": header(evaluation),
        "sections": join(section(*part) for part in contents(evaluation, shown)),
        "links": join(tag("li", tag("a", name, href=f"#{key}")) for key, name, _ in contents(evaluation, shown)),
        "pictures": embedded(shown.pictures),
        "version": __version__,
    }
    return Template(source("page.html")).substitute(parts)


def contents(evaluation: Evaluation, shown: Gallery) -> list[tuple[str, str, list[Html | None]]]:
    """Anchor, name and content of each part that has something in it."""
    comparison, confusion = tables.comparison_table(evaluation), tables.confusion_table(evaluation)
    all_parts: list[tuple[str, str, list[Html | None]]] = [
        ("summary", "Summary", [*said(evaluation, shown), *summary.headline_cards(evaluation)]),
        ("baseline", "Against the baseline", [comparison]),
        ("pictures", "Pictures, worst first", [viewer(evaluation, shown)]),
        ("published", "Published figures", [*published.beside(evaluation)]),
        ("curves", "Curves", [tag("div", charts.figures(evaluation), class_="figures"), confusion]),
        ("sections", "Sections", [tables.sections_table(evaluation, shown)]),
        ("cells", "Cells, one by one", [tables.objects_table(evaluation, shown)]),
        ("numbers", "All numbers", [*tables.all_numbers(evaluation)]),
    ]
    return [part for part in all_parts if any(part[2]) and part[2] != [Html('<div class="figures"></div>'), None]]


def section(key: str, name: str, content: list[Html | None]) -> Html:
    return tag("section", tag("h2", name, id=f"{key}-title"), content, id=key, aria_labelledby=f"{key}-title")


def header(evaluation: Evaluation) -> Html:
    """What was compared with what."""
    request = evaluation.request
    pairs = [("Prediction", request.prediction), ("Truth", request.truth), ("Judged", str(evaluation.judged["region"]))]
    size = pixel_size(evaluation)
    pairs += [("Pixel size", size)] if size else []
    rows = [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs]
    return join([tag("h1", "Evaluation of ", tag("span", name_of(request.prediction))), tag("dl", rows)])


def pixel_size(evaluation: Evaluation) -> str | None:
    """Along x, with its unit; None where that is not known."""
    size, unit = evaluation.voxel_size.get("x"), evaluation.units.get("x")
    return f"{size:g} {unit}" if size and unit else None


def said(evaluation: Evaluation, shown: Gallery) -> list[Html | None]:
    """Warnings, then the sentences, then what the intervals mean."""
    notes = [tag("li", note) for note in evaluation.notes]
    intervals = summary.interval_words(evaluation)
    return [
        tag("div", tag("h3", "To know first"), tag("ul", notes), class_="notes", role="note") if notes else None,
        tag("ul", [tag("li", sentence) for sentence in summary.sentences(evaluation, shown)], class_="sentences"),
        tag("p", intervals, class_="small") if intervals else None,
    ]


def viewer(evaluation: Evaluation, shown: Gallery) -> Html | None:
    """The frame that the program fills; what is left out is said."""
    if not shown.pictures:
        return None
    kinds = {kind for picture in shown.pictures for kind in picture["found"]}
    options = [tag("option", picture["name"], value=place) for place, picture in enumerate(shown.pictures)]
    filled = Template(source("viewer.html")).substitute(
        limits=join([tag("p", text) for text in limits(evaluation, shown)]),
        options=join(options),
        kinds=join(kind_key(kind) for kind in NAMES if kind in kinds),
    )
    return Html(filled)


def kind_key(kind: str) -> Html:
    """What a sign in the picture means, and whether it is shown."""
    letter, text = NAMES[kind]
    box = tag("input", type="checkbox", checked=True, data_kind=kind)
    return tag("li", tag("label", box, tag("span", letter, class_=f"sign {kind}", aria_hidden="true"), text))


def limits(evaluation: Evaluation, shown: Gallery) -> list[str]:
    """What the pictures do not show."""
    told = []
    pictures, every = len(shown.whole), len(evaluation.sections)
    if pictures < every:
        told.append(f"The page stays small: pictures of the worst {pictures} of {count(every, 'section')}.")
    factor = shown.pictures[0]["factor"]
    if factor > 1:
        told.append(
            f"Thinned: a pixel here stands for {factor} x {factor}. Errors were found at full resolution; "
            "windows around the gravest follow each section."
        )
    if shown.pictures[0]["image"] is None:
        told.append("Without the image itself: name it with --image to see the errors on it.")
    return told


def name_of(path: str) -> str:
    """The last part of a path.

    >>> name_of("s3://bucket/big.pred.zarr/")
    'big.pred.zarr'
    """
    return path.rstrip("/").rpartition("/")[2]


def source(name: str) -> str:
    """A file of the page that lies beside this one."""
    return resources.files("unetcli.report").joinpath("assets", name).read_text(encoding="utf-8")
