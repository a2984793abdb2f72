"""Errors that a user can fix, as opposed to bugs, warnings about the result, and the formatting of messages."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

MOST_LETTERS = 400
"""Letters of the message of another program's error that are shown."""


class UnetcliError(Exception):
    """A problem that the user can fix; the command prints it on one line and exits with code 1.

    The message states what is wrong, where, the value found and a value that would work.
    """


class Incomplete(UnetcliError):
    """The request is valid but work remains; running the same command continues it. Exit code 3."""


class UnreadableBlock(UnetcliError):
    """Input voxels that cannot be used (damaged chunk, NaN, infinity); only their block fails."""


class LabelError(UnetcliError):
    """A value that labels must not have; where they are read, their name and place are added."""


def one_line(error: BaseException, *, kind: bool = False) -> str:
    r"""Message of an error on one line, or its class name if it has no message.

    With ``kind``, the class name precedes the message of any error but :class:`UnetcliError`. Of messages of others,
    which may quote whole files, the first letters are kept.

    >>> one_line(OSError("two\nlines")), one_line(OSError())
    ('two lines', 'OSError')
    >>> one_line(ValueError("two\nlines"), kind=True), one_line(UnetcliError("no model"), kind=True)
    ('ValueError: two lines', 'no model')
    """
    name, text = type(error).__name__, " ".join(str(error).split())
    if isinstance(error, UnetcliError):
        return text or name
    text = text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]}.."
    return f"{name}: {text}" if text and kind else text or name


def counted(number: int, unit: str) -> str:
    """Format a number of things.

    >>> counted(1, "section"), counted(25, "section")
    ('1 section', '25 sections')
    """
    return f"{number} {unit}{'s' * (number != 1)}"


def format_shape(shape: Sequence[int]) -> str:
    """Format the sides of an array.

    >>> format_shape((5, 13, 22))
    '5 x 13 x 22'
    """
    return " x ".join(map(str, shape))


def listed(names: Sequence[str], unit: str, most: int = 4, joint: str = ", ") -> str:
    """List the first few of many names.

    >>> listed(["a", "b"], "arrays"), listed(["a", "b", "c"], "arrays", most=2)
    ('a, b', 'a, b, .. (3 arrays)')
    """
    shown = joint.join(names[:most])
    return shown if len(names) <= most else f"{shown}{joint}.. ({len(names)} {unit})"


def pasted(path: object) -> str:
    """Format a path so that it can be pasted into a command.

    >>> print(pasted("a.zarr"), pasted("my data/a.zarr"), pasted("-a.zarr"))
    a.zarr 'my data/a.zarr' ./-a.zarr
    """
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


@dataclass(frozen=True, slots=True)
class _Warnings:
    """Warnings of one call of a command."""

    strict: bool
    texts: list[str] = field(default_factory=list)
    notes: set[str] = field(default_factory=set)


_collected: ContextVar[_Warnings | None] = ContextVar("warnings", default=None)


_silent: ContextVar[bool] = ContextVar("silent", default=False)


@contextmanager
def collected_warnings(*, strict: bool = False) -> Iterator[list[str]]:
    """Collect the texts of all warnings within the context, for ``warnings`` of ``--json``.

    Parameters
    ----------
    strict
        Value of ``--strict``, which :func:`require_no_warnings` obeys.
    """
    collected = _Warnings(strict)
    token = _collected.set(collected)
    try:
        yield collected.texts
    finally:
        _collected.reset(token)


def warn(text: str) -> None:
    """Warn that a result may be wrong: a line on stderr, and an entry in ``warnings`` of ``--json``.

    The text states what is wrong, where, the value found and a value that would work. A text that was given before in
    the same call is not repeated. Events that a run deals with itself, such as a failed job, are only logged.
    """
    collected = _collected.get()
    if collected is None or text not in collected.texts:
        log.warning("%s", text)
    if collected is not None and text not in collected.texts:
        collected.texts.append(text)


@contextmanager
def without_notes() -> Iterator[None]:
    """Suppress notes in this context, such as those on the later files of a stack, which repeat those on the first."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


def note(text: str) -> None:
    """Say which of several readings of an input was chosen: a line on stderr, once in a call of a command."""
    collected = _collected.get()
    if not _silent.get() and (collected is None or text not in collected.notes):
        log.info("%s", text)
        if collected is not None:
            collected.notes.add(text)


def require_no_warnings() -> None:
    """Raise :class:`UnetcliError` if there was a warning and ``--strict`` is given; for use before computing."""
    if (collected := _collected.get()) is not None:
        refuse_warnings(collected.texts, strict=collected.strict)


def refuse_warnings(texts: Sequence[str], *, strict: bool) -> None:
    """Raise :class:`UnetcliError` if there are warnings and ``--strict`` is given.

    >>> refuse_warnings(["a.tif: all values are 0"], strict=True)
    Traceback (most recent call last):
    unetcli.core.errors.UnetcliError: --strict: 1 warning: a.tif: all values are 0
    """
    if strict and texts:
        raise UnetcliError(f"--strict: {counted(len(texts), 'warning')}: {'; '.join(texts)}")
