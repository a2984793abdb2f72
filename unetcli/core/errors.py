"""Errors that a user can fix, as opposed to bugs, and the formatting of messages."""


class UnetcliError(Exception):
    """A problem that the user can fix; the command prints it on one line and exits with code 1.

    The message states what is wrong, where, the value found and a value that would work.
    """


class Incomplete(UnetcliError):
    """The request is valid but work remains; running the same command continues it. Exit code 3."""


class UnreadableBlock(UnetcliError):
    """Input voxels that cannot be used (damaged chunk, NaN, infinity); only their block fails."""


def one_line(error: BaseException, *, kind: bool = False) -> str:
    r"""Message of an error on one line, or its class name if it has no message.

    With ``kind``, the class name precedes the message of any error but :class:`UnetcliError`.

    >>> one_line(OSError("two\nlines")), one_line(OSError())
    ('two lines', 'OSError')
    >>> one_line(ValueError("two\nlines"), kind=True), one_line(UnetcliError("no model"), kind=True)
    ('ValueError: two lines', 'no model')
    """
    name, text = type(error).__name__, " ".join(str(error).split())
    return f"{name}: {text}" if text and kind and not isinstance(error, UnetcliError) else text or name


def counted(number: int, unit: str) -> str:
    """Format a number of things.

    >>> counted(1, "section"), counted(25, "section")
    ('1 section', '25 sections')
    """
    return f"{number} {unit}{'s' * (number != 1)}"
