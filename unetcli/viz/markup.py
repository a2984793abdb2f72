"""HTML and SVG as text: elements whose content is always escaped, and plots that a style sheet colours."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

VOID = frozenset({"input", "line", "circle", "rect", "polyline"})
"""Elements without content."""
WIDTH, HEIGHT = 340, 230
"""Size of a plot in its own pixels."""
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 14, 44
"""Margins around the axes of a plot, in its pixels."""

Point = tuple[float, float]
Line = Sequence[tuple[float, float | None]]
"""Points in ascending order of x; the line has a gap where y is None."""


class Html(str):
    """Text that is already HTML and must not be escaped again."""

    __slots__ = ()


def tag(name: str, *children: Any, **attributes: Any) -> Html:
    """Write an element. ``class_`` and ``for_`` lose their underscore, other underscores become hyphens.

    An attribute that is None or False is omitted; one that is True has no value.

    >>> tag("td", "a < b", class_="low", data_sort=0.5, hidden=False)
    '<td class="low" data-sort="0.5">a &lt; b</td>'
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Html(f"<{name}{written}/>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Any) -> Html:
    """Concatenate children. None is empty, lists are joined, and anything but :class:`Html` is escaped.

    >>> join(["1 < 2", tag("b", 3), None])
    '1 &lt; 2<b>3</b>'
    """
    if children is None:
        return Html("")
    if isinstance(children, Html):
        return children
    if isinstance(children, str | int | float):
        return Html(html.escape(str(children), quote=False))
    return Html("".join(join(child) for child in children))


def _attribute(key: str, value: Any) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")  # SVG's viewBox stays as it is
    return f" {name}" if value is True else f' {name}="{html.escape(str(value))}"'


@dataclass(frozen=True, slots=True)
class Axis:
    """Axis from ``low`` to ``high`` with its name and ticks."""

    name: str
    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def share(cls, name: str) -> Axis:
        """Axis from 0 to 1."""
        return cls(name, 0.0, 1.0, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0))

    @classmethod
    def up_to(cls, name: str, highest: float) -> Axis:
        """Axis from 0 to the first round number that is at least ``highest``.

        >>> Axis.up_to("Rand error", 0.31).ticks
        (0.0, 0.1, 0.2, 0.3, 0.4)
        """
        step = round_step(highest or 1.0)
        steps = max(1, math.ceil(highest / step - 1e-9))
        return cls(name, 0.0, steps * step, tuple(round(n * step, 12) for n in range(steps + 1)))

    def tick_texts(self) -> list[str]:
        """Ticks as text, with as many digits as the exact values need.

        >>> Axis("share", 0, 0.5, (0.0, 0.25, 0.5)).tick_texts(), Axis.up_to("cells", 40).tick_texts()
        (['0', '0.25', '0.50'], ['0', '10', '20', '30', '40'])
        """
        ticks = self.ticks
        digits = next(d for d in range(13) if all(abs(round(t, d) - t) < 1e-9 * max(1, abs(t)) for t in ticks))
        return [f"{tick:,.{digits}f}" if tick else "0" for tick in ticks]


def round_step(highest: float, most: int = 5) -> float:
    """Smallest of 1, 2, 2.5 and 5 times a power of ten for which ``most`` steps reach ``highest``.

    >>> round_step(0.31), round_step(90)
    (0.1, 20.0)
    """
    power = 10.0 ** math.floor(math.log10(highest / most))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power * most >= highest - 1e-12)


@dataclass(frozen=True, slots=True)
class Plot:
    """Two axes to draw marks on. Marks are SVG in the plot's pixels; a ``style`` is a class of the style sheet."""

    x: Axis
    y: Axis

    def at(self, x: float, y: float) -> Point:
        """Position of a point in pixels."""
        across, up = ((value - a.low) / (a.high - a.low) for value, a in ((x, self.x), (y, self.y)))
        return round(LEFT + across * (WIDTH - LEFT - RIGHT), 1), round(TOP + (1 - up) * (HEIGHT - TOP - BOTTOM), 1)

    def line(self, line: Line, style: str) -> Html:
        """Draw one polyline for each stretch without a gap."""
        placed = [None if y is None else self.at(x, y) for x, y in line]
        runs = [list(run) for known, run in groupby(placed, key=bool) if known]
        texts = [" ".join(f"{x},{y}" for x, y in filter(None, run)) for run in runs]
        return join([tag("polyline", points=text, class_=f"line {style}") for text in texts])

    def dots(self, line: Line, style: str, names: Sequence[str]) -> Html:
        """Draw a dot at every point, with its name as a tooltip."""
        shown = [(self.at(x, y), name) for (x, y), name in zip(line, names, strict=True) if y is not None]
        return join([tag("g", tag("title", name), _dot(place, 3, style)) for place, name in shown])

    def highlight(self, x: float, y: float, text: str, *, below: bool = False) -> Html:
        """Draw a ring around a point, with text above or below it that stays inside the plot."""
        across, down = self.at(x, y)
        room = 3.4 * len(text)  # about half the width of the text
        middle = min(max(across, LEFT + room), WIDTH - RIGHT - room)
        height = down + 22 if below or down < TOP + 20 else down - 13
        words = tag("text", text, x=round(middle, 1), y=round(height, 1), text_anchor="middle", class_="callout")
        return join([_dot((across, down), 5.5, "ring"), words])

    def bar(self, x0: float, x1: float, y: float, style: str, name: str) -> Html:
        """Draw a bar from the low end of the y axis, with its name as a tooltip."""
        (left, top), (right, bottom) = self.at(x0, y), self.at(x1, self.y.low)
        size = {"width": round(max(right - left - 1, 0.5), 1), "height": round(max(bottom - top, 0), 1)}
        return tag("g", tag("title", name), tag("rect", x=left, y=top, class_=f"bar {style}", **size))

    def drawn(self, *marks: Html, title: str) -> Html:
        """Draw the plot, with the marks over its axes; ``title`` is its name for screen readers."""
        view = {"viewBox": f"0 0 {WIDTH} {HEIGHT}"}
        return tag("svg", *self._across(), *self._up(), *marks, class_="plot", role="img", aria_label=title, **view)

    def _across(self) -> Iterator[Html]:
        bottom = HEIGHT - BOTTOM
        for tick, text in zip(self.x.ticks, self.x.tick_texts(), strict=True):
            x, _ = self.at(tick, self.y.low)
            yield tag("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="tick")
            yield tag("text", text, x=x, y=bottom + 17, text_anchor="middle", class_="number")
        middle = (LEFT + WIDTH - RIGHT) / 2
        yield tag("text", self.x.name, x=middle, y=HEIGHT - 6, text_anchor="middle", class_="axis")
        yield tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom, class_="tick")

    def _up(self) -> Iterator[Html]:
        for tick, text in zip(self.y.ticks, self.y.tick_texts(), strict=True):
            _, y = self.at(self.x.low, tick)
            yield tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid")
            yield tag("text", text, x=LEFT - 6, y=y + 4, text_anchor="end", class_="number")
        middle = (TOP + HEIGHT - BOTTOM) / 2
        turned = f"rotate(-90 11 {middle})"
        yield tag("text", self.y.name, x=11, y=middle, text_anchor="middle", transform=turned, class_="axis")


def _dot(place: Point, radius: float, style: str) -> Html:
    return tag("circle", cx=place[0], cy=place[1], r=radius, class_=f"dot {style}")
