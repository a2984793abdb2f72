"""HTML that cannot be put together wrongly: whatever is not ``Html`` already is escaped."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from typing import Any

VOID = frozenset({"input", "br", "img", "meta", "line", "circle", "rect", "path", "polyline", "polygon", "col"})
"""Elements without content; those of SVG close themselves."""


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = str | float | None | Iterable["Child"]


def tag(name: str, *children: Any, **attributes: Any) -> Html:
    """An element. ``class_`` and ``for_`` lose their underscore, other underscores are hyphens.

    An attribute that is None or False is left out, one that is True has no value.

    >>> tag("td", "a < b", class_="low", data_sort=0.5, hidden=False)
    '<td class="low" data-sort="0.5">a &lt; b</td>'
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Html(f"<{name}{written}/>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Any) -> Html:
    """Children one after the other; None is nothing.

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


def embedded(values: Any) -> Html:
    """JSON inside a script element, where ``</`` and ``<!--`` would end or change it.

    >>> embedded({"name": "</script>"})
    '{"name":"\\\\u003c/script>"}'
    """
    return Html(json.dumps(values, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))


def _attribute(key: str, value: Any) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-") if key != "viewBox" else key
    return f" {name}" if value is True else f' {name}="{html.escape(str(value))}"'
