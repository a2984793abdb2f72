"""Meaning of the values of labels: which value stands for which class, and their text for the user."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from unetcli.core.errors import UnetcliError, listed

IGNORED = 255
"""Class of pixels without ground truth. Classes are 0 (background) to 254."""
COLOURED = 2**24
"""Number of the colour #000000 if it were not grey; that of #0000ff is 255 more. Grey colours have their grey value."""


def parse_value(text: str) -> int:
    """Parse a label value: a whole number, or a colour as in web pages.

    >>> parse_value("-1"), parse_value("#ff0000"), parse_value("#808080")
    (-1, 33488896, 128)
    """
    try:
        if not text.startswith("#"):
            return int(text)
        red, green, blue = bytes.fromhex(text[1:])
        return red if red == green == blue else COLOURED + int(text[1:], 16)
    except ValueError:
        raise UnetcliError(f"label {text}: expected a whole number, or a colour such as #ff0000") from None


def parse_values(text: str) -> tuple[int, ...]:
    """Parse label values, separated by commas; ``none`` is an empty list.

    >>> parse_values("0,128, 255"), parse_values("none")
    ((0, 128, 255), ())
    """
    return () if text == "none" else tuple(parse_value(part.strip()) for part in text.split(","))


def is_colour(value: int) -> bool:
    """Whether a label value is the number of a colour that is not grey."""
    return COLOURED <= value < 2 * COLOURED


def value_text(value: int) -> str:
    """Format a label value for the user.

    >>> value_text(128), value_text(33488896)
    ('128', '#ff0000')
    """
    return f"#{value - COLOURED:06x}" if is_colour(value) else str(value)


def value_texts(values: Sequence[int]) -> list[str]:
    """Format each of several label values; grey values among colours are shown as colours.

    >>> value_texts((0, 128, 255)), value_texts((0, 33488896))
    (['0', '128', '255'], ['#000000', '#ff0000'])
    """
    coloured = any(map(is_colour, values))
    greys = {value: f"#{value:02x}{value:02x}{value:02x}" for value in values if coloured and 0 <= value < 256}
    return [greys.get(value, value_text(value)) for value in values]


def values_text(values: Sequence[int], most: int = 12) -> str:
    """Format label values for a sentence; of many, the first few."""
    return listed(value_texts(values), "values", most)


def option_text(*values: int) -> str:
    """Format label values as the value of an option, which can be pasted into a shell.

    >>> option_text(0, 128), option_text(0, 33488896)
    ('0,128', "'#000000,#ff0000'")
    """
    return shlex.quote(",".join(value_texts(values)))


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelValues:
    """Meaning of the values of labels, where they are not the numbers of classes or objects with background 0.

    Raises
    ------
    UnetcliError
        The values of classes cannot be those of ``--classes``, or background is another one.
    """

    classes: tuple[int, ...] | None = None
    """Value of each class, background first; None: the values are the numbers of the classes or objects."""
    background: int = 0
    """Value of the background; with values of classes, the first of them."""
    threshold: int | None = None
    """Values from here on are one side of a mask, and lower ones the other; the side of the background is 0."""

    def __post_init__(self) -> None:
        values = self.classes
        if values is not None and self.background not in (0, values[0] if values else 0):
            raise UnetcliError(
                f"--background {option_text(self.background)}: not with --classes {option_text(*values)}, the first of "
                "which is the background; omit one of them"
            )
        if values is not None and self.threshold is not None:
            raise UnetcliError("--label-threshold: not with values of classes; omit --classes")
        if values is not None and not (2 <= len(values) == len(set(values)) <= IGNORED):
            raise UnetcliError(
                f"--classes {option_text(*values)}: expected 2 to {IGNORED} different values, background first"
            )

    @property
    def table(self) -> str:
        """The class of each value, as text for the user; empty if the values are the numbers.

        >>> LabelValues(classes=(1, 2)).table, LabelValues(background=255).table, LabelValues(threshold=128).table
        ('1 is class 0 (background), 2 is class 1', '255 is background', '128 and above is foreground')
        """
        if self.threshold is not None:
            below = self.background >= self.threshold
            return f"{'below ' * below}{self.threshold}{' and above' * (not below)} is foreground"
        if self.classes is None:
            return f"{value_text(self.background)} is background" if self.background else ""
        texts = value_texts(self.classes)
        return ", ".join(f"{text} is class {n}{' (background)' * (n == 0)}" for n, text in enumerate(texts))

    def class_text(self, number: int) -> str:
        """Format a class for the user.

        >>> LabelValues(classes=(0, 128, 255)).class_text(2), LabelValues().class_text(2)
        ('class 2 (label 255)', 'class 2')
        """
        if self.classes is None or number >= len(self.classes):
            return f"class {number}"
        return f"class {number} (label {value_texts(self.classes)[number]})"

    def class_names(self, count: int) -> tuple[str, ...]:
        """Names of the classes of a model.

        >>> LabelValues(classes=(0, 1, 3)).class_names(3), LabelValues().class_names(3), LabelValues().class_names(2)
        (('background', 'label 1', 'label 3'), ('class 0', 'class 1', 'class 2'), ('background', 'foreground'))
        """
        if count == 2:
            return ("background", "foreground")
        if self.classes is None:
            return tuple(f"class {number}" for number in range(count))
        return ("background", *(f"label {text}" for text in value_texts(self.classes)[1:count]))
