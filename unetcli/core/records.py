"""Frozen dataclasses as JSON and back, and how two of them differ."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from unetcli.core.errors import UnetcliError

T = TypeVar("T")
VERSION_KEY = "format"


def to_json(record: Any, version: int) -> str:
    """A dataclass as JSON text; ``version`` is that of its format."""
    return json.dumps({VERSION_KEY: version, **dataclasses.asdict(record)}, indent=1)


def from_json(kind: type[T], text: str, version: int, what: str) -> T:
    """The dataclass that :func:`to_json` wrote; ``what`` names it in errors.

    Raises
    ------
    UnetcliError
        It was written in another version of its format.
    ValueError, TypeError, KeyError
        The text is something else.
    """
    values: dict[str, Any] = json.loads(text)
    if (found := values.pop(VERSION_KEY, None)) != version:
        raise UnetcliError(f"{what} of version {found}, this unetcli reads version {version}")
    return typing.cast(T, decoded(kind, values))


def decoded(kind: Any, value: Any) -> Any:
    """A value as its type says: JSON has lists for tuples, and mappings for dataclasses.

    >>> decoded(tuple[int, ...] | None, [1, 2]), decoded(float | tuple[float, ...], 0.5)
    ((1, 2), 0.5)
    """
    if dataclasses.is_dataclass(kind):
        hints = _hints(typing.cast(type, kind))
        return kind(**{name: decoded(hints[name], each) for name, each in value.items()})  # type: ignore[operator]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        fitting = (other for other in arguments if isinstance(value, list) == (typing.get_origin(other) is tuple))
        return value if value is None else decoded(next(fitting, None), value)
    if origin is tuple:
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(decoded(each, item) for each, item in zip(kinds, value, strict=True))
    return value


def _hints(kind: type) -> Mapping[str, Any]:
    return typing.get_type_hints(kind)


def changed(old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """Names of the fields in which two records of a kind differ, with the old and the new value."""
    for field in dataclasses.fields(old):
        before, now = getattr(old, field.name), getattr(new, field.name)
        if before != now:
            yield field.name, before, now
