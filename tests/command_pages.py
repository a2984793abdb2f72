"""Write docs/commands/<command>.md from the declarations of the options: ``python tests/command_pages.py``."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, get_args, get_origin

from unetcli.cli import app, console
from unetcli.core.options import Heading

FOLDER = Path(__file__).parents[1] / "docs" / "commands"
WIDTH = 100
"""Columns of a page's text."""
VALUES = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
"""Placeholder for the value of an option, by type."""


class Example(NamedTuple):
    """A command line that works, and what it does."""

    meaning: str
    line: str


EXAMPLES = {
    "train": [
        Example("Train with the default settings. The model is written to the folder model/.", "raw.tif labels.tif"),
        Example(
            "Train with the recipe of the paper on two annotated stacks.",
            "raw.tif labels.tif --pair raw2.tif labels2.tif --recipe paper --output paper_model",
        ),
        Example(
            "Train five models, each of which holds out another fifth of the sections, and compare their scores.",
            "raw.tif labels.tif --folds 5 --output folds",
        ),
        Example(
            "Continue from the weights of a model with images of another kind.",
            "new.tif new_labels.tif --init model --output tuned",
        ),
        Example("See how long the training would take and how much memory it needs.", "raw.tif labels.tif --dry-run"),
    ],
    "weights": [Example("Look at the loss weights before training.", "labels.tif --truth instances --sections :5")],
    "plan": [
        Example("Estimate a prediction on this machine, with a measurement of its speed.", "big.zarr --probe"),
        Example(
            "Estimate a prediction on SLURM, and ask the site when its jobs would start.",
            "big.zarr --cluster slurm --gpus 1 --time 04:00:00",
        ),
    ],
    "predict": [
        Example("Segment a volume with the model in model/. The output is big.pred.zarr.", "big.zarr"),
        Example(
            "Segment a region with tiles of 572 x 572 pixels, and write a second resolution level.",
            "big.zarr --roi 10:20,0:2048,0:2048 --tile 572 --levels 2 --output part.zarr",
        ),
        Example(
            "Run on a SLURM cluster as an array of GPU jobs, at most 8 at a time.",
            "big.zarr --cluster slurm --gpus 1 --time 04:00:00 --max-running 8",
        ),
    ],
    "status": [Example("Follow a run until it is done.", "big.pred.zarr --watch")],
    "verify": [
        Example("Check an output and repair it.", "big.pred.zarr --repair"),
        Example("Check 20 windows across block borders for seams.", "big.pred.zarr --no-blocks --seams 20"),
    ],
    "label": [
        Example("Number the connected components, without small ones.", "big.pred.zarr --min-size 50"),
        Example(
            "Separate touching objects across sections, and measure their intensity in the image.",
            "big.pred.zarr --method watershed --three-d --intensity big.zarr",
        ),
    ],
    "evaluate": [
        Example(
            "Score a prediction and write a report with pictures.", "big.pred.zarr truth.zarr --report report.html"
        ),
        Example(
            "Compare with an earlier evaluation that was saved with --json.",
            "big.pred.zarr truth.zarr --baseline earlier.json",
        ),
    ],
    "show": [Example("Draw section 12 with the labels on top.", "big.zarr --section 12 --overlay labels.zarr")],
    "worker": [
        Example(
            "Run a worker on the first GPU, for a scheduler that is already running.",
            "--scheduler tls://node1:8786 --tls certificates",
        )
    ],
}
EXIT_CODES = {
    0: "done",
    console.USER: "error that you can fix; one line on stderr says what to change",
    2: "wrong usage of options",
    console.INCOMPLETE: "incomplete; run the same command again to continue",
    console.BUG: "bug in unetcli; please report the traceback",
    console.INTERRUPTED: "interrupted by Ctrl-C",
}
OTHER_EXIT_CODES: dict[str, dict[int, str]] = {
    "status": {0: "the status was read, whatever it is"},
    "verify": {
        0: "everything is as it was computed",
        console.INCOMPLETE: "blocks are damaged or missing, or --seams or --input found a difference",
    },
}
"""Meanings of exit codes that differ from the usual ones."""
NEVER_INCOMPLETE = ("weights", "plan", "status", "show", "worker")


def pages() -> Iterator[tuple[Path, str]]:
    """Path and text of each page."""
    for registered in app.registered_commands:
        assert registered.callback
        name = registered.callback.__name__
        yield FOLDER / f"{name}.md", page(name, registered.callback)


def page(name: str, command: Any) -> str:
    """Markdown page of a command."""
    summary, _, details = inspect.cleandoc(command.__doc__).partition("\n\n")
    groups: dict[str, list[str]] = {heading: [] for heading in Heading}
    arguments = []
    for parameter in inspect.signature(command).parameters.values():
        kind, info = get_args(parameter.annotation)[0], parameter.annotation.__metadata__[0]
        if info.rich_help_panel == Heading.ARGUMENTS:
            arguments.append(info.metavar if parameter.default is inspect.Parameter.empty else f"[{info.metavar}]")
        groups[info.rich_help_panel or Heading.OTHER].append(entry(parameter, kind, info))
    parts = [
        f"# unetcli {name}",
        filled(summary),
        code(" ".join(["unetcli", name, "[OPTIONS]", *arguments])),
        *paragraphs(details),
        "## Examples" if len(EXAMPLES[name]) > 1 else "## Example",
        *(part for example in EXAMPLES[name] for part in (example.meaning, code(f"unetcli {name} {example.line}"))),
        *(f"## {heading}\n\n" + "\n".join(entries) for heading, entries in groups.items() if entries),
        "## Exit codes\n\n" + "\n".join(exit_codes(name)),
    ]
    return "\n\n".join(parts) + "\n"


def entry(parameter: inspect.Parameter, kind: Any, info: Any) -> str:
    """List item of an option or argument: names, meaning, default and environment variable."""
    text, default = split_default(info.help)
    value = info.metavar or placeholder(kind)
    if info.rich_help_panel == Heading.ARGUMENTS:
        names = f"`{info.metavar}`"
        notes = [] if parameter.default is None else ["Required."]
    else:
        words = [word for declared in (info.default, *(info.param_decls or ())) for word in declared.split("/")]
        names = ", ".join(f"`{word} {value}`" if value else f"`{word}`" for word in words)
        is_plain_flag = parameter.default is False and len(words) == 1
        shown = default or (None if is_plain_flag else stored_default(parameter.default))
        notes = [f"Default: {shown}."] if shown else []
        notes += ["Required."] if parameter.default is inspect.Parameter.empty else []
    notes += [f"Range: {limits}."] if (limits := limits_of(info)) else []
    notes += [f"Environment variable: `{info.envvar}`."] if info.envvar else []
    return filled(" ".join([f"- {names}: {text}", *notes]), indent="  ")


def split_default(text: str) -> tuple[str, str | None]:
    """Text of an option's help without the sentence on its default, and that default.

    >>> split_default("Folder to use. Default: OUTPUT.run/x. Required for s3://.")
    ('Folder to use. Required for s3://.', 'OUTPUT.run/x')
    """
    found = re.search(r" ?Default: (.+?)\.(?=\s|$)", text)
    return (text, None) if found is None else (text[: found.start()] + text[found.end() :], found[1])


def placeholder(kind: Any) -> str:
    """Placeholder for the value of an option of this type; empty for a flag.

    >>> placeholder(int | None), placeholder(bool)
    ('N', '')
    """
    parts = [part for part in get_args(kind) if part is not NoneType]
    if get_origin(kind) in (list, tuple) or parts:
        return placeholder(parts[0])
    return VALUES.get(kind, "")


def stored_default(value: Any) -> str | None:
    """Default as it is declared; None if there is none.

    >>> stored_default("auto"), stored_default(True), stored_default(None)
    ('`auto`', 'on', None)
    """
    if value is None or value is inspect.Parameter.empty:
        return None
    return ("on" if value else "off") if isinstance(value, bool) else f"`{value}`"


def limits_of(info: Any) -> str | None:
    """Range of a number; None if any number is allowed."""
    if info.min is None:
        return None
    if info.max is not None:
        return f"{info.min} to {info.max}"
    return f"{info.min:g} or more" if info.min == 0 or info.min >= 1 else "above 0"


def exit_codes(name: str) -> Iterator[str]:
    """Lines of the list of exit codes."""
    meanings: Mapping[int, str] = EXIT_CODES | OTHER_EXIT_CODES.get(name, {})
    for number, meaning in meanings.items():
        if number != console.INCOMPLETE or name not in NEVER_INCOMPLETE:
            yield f"- `{number}`: {meaning}"


def paragraphs(text: str) -> Iterator[str]:
    """Paragraphs of a docstring as Markdown; those that Click leaves unwrapped are code."""
    for part in filter(None, text.split("\n\n")):
        yield code(textwrap.dedent(part.removeprefix("\b\n"))) if part.startswith("\b") else filled(part)


def code(text: str) -> str:
    """Markdown of a block of code."""
    return f"```sh\n{text}\n```"


def filled(text: str, indent: str = "") -> str:
    """Text wrapped to the width of a page."""
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path, text in pages():
        path.write_text(text)
