"""Plots as SVG: axes that start where they say, lines, points and bars; colours come from the page's style."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from unetcli.report.html import Html, tag

WIDTH, HEIGHT = 340, 230
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 14, 44

Point = tuple[float, float]
Line = Sequence[tuple[float, float | None]]
"""Points in the order of x; where y is None the line has a gap."""


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis shows, from ``low`` to ``high``."""

    name: str
    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def share(cls, name: str) -> Axis:
        """From 0 to 1."""
        return cls(name, 0.0, 1.0, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0))

    @classmethod
    def up_to(cls, name: str, highest: float) -> Axis:
        """From 0 to the first round number that is not below ``highest``.

        >>> Axis.up_to("Rand error", 0.31).ticks
        (0.0, 0.1, 0.2, 0.3, 0.4)
        """
        step = round_step(highest or 1.0)
        steps = max(1, math.ceil(highest / step - 1e-9))
        return cls(name, 0.0, steps * step, tuple(round(n * step, 12) for n in range(steps + 1)))

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high end."""
        return (value - self.low) / (self.high - self.low)


def round_step(highest: float, most: int = 5) -> float:
    """The smallest of 1, 2, 2.5 and 5 times a power of ten of which ``most`` reach ``highest``.

    >>> round_step(0.31), round_step(90)
    (0.1, 20.0)
    """
    power = 10.0 ** math.floor(math.log10(highest / most))
    return next(
        step for step in (power, 2 * power, 2.5 * power, 5 * power, 10 * power) if step * most >= highest - 1e-12
    )


@dataclass(frozen=True, slots=True)
class Plot:
    """Two axes to draw marks on; the marks are SVG in its pixels."""

    x: Axis
    y: Axis
    width: int = WIDTH
    height: int = HEIGHT

    def at(self, x: float, y: float) -> Point:
        """Where a point lies, in pixels."""
        across, down = self.width - LEFT - RIGHT, self.height - TOP - BOTTOM
        return round(LEFT + across * self.x.place(x), 1), round(TOP + down * (1 - self.y.place(y)), 1)

    def line(self, line: Line, style: str) -> Html:
        """One polyline for each stretch without a gap; ``style`` is a class of the page."""
        runs = [" ".join(f"{x},{y}" for x, y in run) for run in self._runs(line)]
        return Html("".join(tag("polyline", points=points, class_=f"line {style}") for points in runs))

    def dots(self, line: Line, style: str, names: Sequence[str]) -> Html:
        """A dot at every point, with a name that shows when it is pointed at."""
        shown = [(self.at(x, y), name) for (x, y), name in zip(line, names, strict=True) if y is not None]
        circles = [tag("g", tag("title", name), dot(place, 3, style)) for place, name in shown]
        return Html("".join(circles))

    def highlight(self, x: float, y: float, text: str, *, below: bool = False) -> Html:
        """A ring around a point, and words above or below it, inside the plot."""
        across, down = self.at(x, y)
        room = 3.4 * len(text)  # half the width of the words, about
        middle = min(max(across, LEFT + room), self.width - RIGHT - room)
        height = down + 22 if below or down < TOP + 20 else down - 13
        words = tag("text", text, x=round(middle, 1), y=round(height, 1), text_anchor="middle", class_="said")
        return Html(dot((across, down), 5.5, "ring") + words)

    def bar(self, x0: float, x1: float, y: float, style: str, name: str) -> Html:
        """From the low end of y."""
        (left, top), (right, bottom) = self.at(x0, y), self.at(x1, self.y.low)
        size = {"width": round(max(right - left - 1, 0.5), 1), "height": round(max(bottom - top, 0), 1)}
        return tag("g", tag("title", name), tag("rect", x=left, y=top, class_=f"bar {style}", **size))

    def drawn(self, *marks: Html, title: str) -> Html:
        """The plot with its axes under the marks; ``title`` is what a screen reader says."""
        frame = Html("".join([*self._across(), *self._up()]))
        view = {"viewBox": f"0 0 {self.width} {self.height}"}
        return tag("svg", frame, *marks, class_="plot", role="img", aria_label=title, **view)

    def _runs(self, line: Line) -> Iterator[list[Point]]:
        run: list[Point] = []
        for x, y in line:
            if y is not None:
                run.append(self.at(x, y))
            elif run:
                yield run
                run = []
        if run:
            yield run

    def _across(self) -> Iterator[Html]:
        bottom = self.height - BOTTOM
        for tick, text in zip(self.x.ticks, tick_texts(self.x.ticks), strict=True):
            x, _ = self.at(tick, self.y.low)
            yield tag("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="tick")
            yield tag("text", text, x=x, y=bottom + 17, text_anchor="middle", class_="number")
        middle = (LEFT + self.width - RIGHT) / 2
        yield tag("text", self.x.name, x=middle, y=self.height - 6, text_anchor="middle", class_="axis")
        yield tag("line", x1=LEFT, x2=self.width - RIGHT, y1=bottom, y2=bottom, class_="tick")

    def _up(self) -> Iterator[Html]:
        for tick, text in zip(self.y.ticks, tick_texts(self.y.ticks), strict=True):
            _, y = self.at(self.x.low, tick)
            yield tag("line", x1=LEFT, x2=self.width - RIGHT, y1=y, y2=y, class_="grid")
            yield tag("text", text, x=LEFT - 6, y=y + 4, text_anchor="end", class_="number")
        middle = (TOP + self.height - BOTTOM) / 2
        turned = f"rotate(-90 11 {middle})"
        yield tag("text", self.y.name, x=11, y=middle, text_anchor="middle", transform=turned, class_="axis")


def dot(place: Point, radius: float, style: str) -> Html:
    """A circle."""
    return tag("circle", cx=place[0], cy=place[1], r=radius, class_=f"dot {style}")


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """Numbers with as many digits as tell them apart.

    >>> tick_texts((0.0, 0.25, 0.5)), tick_texts((0.0, 20.0, 40.0))
    (['0', '0.25', '0.50'], ['0', '20', '40'])
    """
    digits = next(d for d in range(13) if all(abs(round(t, d) - t) < 1e-9 * max(1, abs(t)) for t in ticks))
    return [f"{tick:,.{digits}f}" if tick else "0" for tick in ticks]
