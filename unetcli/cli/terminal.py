"""The edge to the terminal: text from files never controls it, and a full disk behind stderr does not end a run."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters except tab and line feed, Unicode's line separators and direction overrides, and the bytes of file
names that are not UTF-8."""
LONGEST = 1500
"""Length of the longest line on stderr, in characters."""
KEPT_END = 400
"""Number of characters kept from the end of a longer line, where messages say what would work."""
STDOUT, STDERR = "standard output", "standard error"


def printable(text: str) -> str:
    r"""Replace characters that could control a terminal by their escapes; tabs and line breaks stay.

    >>> print(printable("a\x1b]0;title\x07b\n"), end="")
    a\x1b]0;title\x07b
    """
    return HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def shortened(text: str) -> str:
    """Cut out the middle of each line that is longer than :data:`LONGEST`.

    >>> shortened("a.zarr: " + 5000 * "x")[1050:1094]
    'xxxxxxxxxx [.. 3,548 characters ..] xxxxxxxx'
    """
    return "\n".join(map(_shortened, text.split("\n"))) if len(text) > LONGEST else text


def _shortened(line: str) -> str:
    if len(line) <= LONGEST:
        return line
    start = LONGEST - KEPT_END - 40
    return f"{line[:start]} [.. {len(line) - start - KEPT_END:,} characters ..] {line[-KEPT_END:]}"


class PrintableStream:
    """Text stream that passes on :func:`printable` text, or with ``raw`` any text.

    What cannot be written to stderr is dropped, because a full disk behind a log must not end a run. An error of stdout
    is raised with its name.
    """

    def __init__(self, stream: TextIO, name: str, *, raw: bool = False) -> None:
        self.stream, self.name, self.raw = stream, name, raw

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # otherwise click would write to it directly if the encoding is ASCII
            raise AttributeError(name)
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        shown = text if self.raw else printable(text)
        encoding = self.stream.encoding or "utf-8"
        encodable = shown.encode(encoding, "backslashreplace").decode(encoding)
        self._attempt(lambda: self.stream.write(encodable))
        return len(text)

    def write_exactly(self, text: str) -> None:
        """Write text as the bytes that a file name has."""
        self.flush()
        self._attempt(lambda: self.stream.buffer.write(os.fsencode(text)))

    def flush(self) -> None:
        self._attempt(self.stream.flush)

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            if self.name == STDOUT:
                error.filename = None if error.errno == errno.EPIPE else STDOUT
                raise


def drop_stdout() -> None:
    """Discard what could not be written to stdout: Python would try again when it exits, and report it once more."""
    sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - open until the process ends


def guard_streams() -> None:
    """Let this process print through :class:`PrintableStream`."""
    for attribute, name in (("stdout", STDOUT), ("stderr", STDERR)):
        stream = getattr(sys, attribute)
        if not isinstance(stream, PrintableStream):
            setattr(sys, attribute, PrintableStream(stream, name))


def unguarded(stream: TextIO) -> TextIO:
    """Stream for rich, whose own control characters are wanted; see :class:`Printable` for its contents."""
    return PrintableStream(stream.stream, stream.name, raw=True) if isinstance(stream, PrintableStream) else stream  # type: ignore[return-value]


class Printable:
    """Content for rich whose texts are shown by :func:`printable`; styles stay."""

    def __init__(self, content: RenderableType) -> None:
        self.content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.content, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))
