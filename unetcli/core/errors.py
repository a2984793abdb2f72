"""Errors that a user can put right, as opposed to bugs, and any error as one line of text."""


class UnetcliError(Exception):
    """A problem the user can put right: the command prints it as one line and exits 1.

    The message says what, where, the value found and a value that would work.
    """


class Incomplete(UnetcliError):
    """Work is left to do and nothing is wrong with the request: the same command continues, exit code 3."""


class UnreadableBlock(UnetcliError):
    """Input voxels that cannot be used (damaged chunk, NaN, infinity); the block is set aside and the rest goes on."""


def one_line(error: BaseException, *, kind: bool = False) -> str:
    r"""The text of an error as one line, or the name of its class where it has no text.

    With ``kind`` the class comes first, unless the user can put the error right: then the text speaks for itself.

    >>> one_line(OSError("two\nlines")), one_line(OSError())
    ('two lines', 'OSError')
    >>> one_line(ValueError("two\nlines"), kind=True), one_line(UnetcliError("no model"), kind=True)
    ('ValueError: two lines', 'no model')
    """
    name, text = type(error).__name__, " ".join(str(error).split())
    return f"{name}: {text}" if text and kind and not isinstance(error, UnetcliError) else text or name
