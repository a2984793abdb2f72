"""Conversion of frozen dataclasses to and from JSON, and reading and writing of TOML files."""

from __future__ import annotations

import dataclasses
import json
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeVar

from unetcli.core.errors import UnetcliError


def read_toml(path: Path, missing: str = "no such file; expected a TOML file") -> dict[str, Any]:
    """Read a TOML file; ``missing`` is the error message for a file that does not exist.

    Raises
    ------
    UnetcliError
        The file cannot be read or is not TOML; the message has the line and column of the error.
    """
    try:
        return tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError:
        raise UnetcliError(f"{path}: {missing}") from None
    except OSError as error:
        raise UnetcliError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UnetcliError(f"{path}: line {line} is not UTF-8, as TOML requires") from None
    except tomllib.TOMLDecodeError as error:
        raise UnetcliError(f"{path}: not TOML: {error}") from None


def to_toml(values: Mapping[str, Any]) -> str:
    """Write values as TOML, one per line: strings, numbers, booleans, paths, and lists of these.

    TOML has no None, so a None value is written as a comment. Underscores in names become dashes, as in options.

    >>> print(to_toml({"raw": "a.tif", "base_channels": 16, "lr": 3e-4, "json": False, "depth": None}), end="")
    raw = "a.tif"
    base-channels = 16
    lr = 0.0003
    json = false
    # depth = (not set)
    """
    return "".join(f"{_line(name.replace('_', '-'), value)}\n" for name, value in values.items())


def _line(name: str, value: Any) -> str:
    try:
        return f"# {name} = (not set)" if value is None else f"{name} = {toml_value(value)}"
    except UnicodeEncodeError:
        raise UnetcliError(f"{name} is {value!r}: TOML cannot store text that is not valid Unicode") from None


def toml_value(value: Any) -> str:
    r"""Format one value as TOML.

    >>> print(toml_value([1, 2.5, True, 'say "hi"\n', Path("x/y")]))
    [1, 2.5, true, "say \"hi\"\n", "x/y"]
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return float.__repr__(value)  # shortest text that parses to the same number; TOML has inf and nan too
    if isinstance(value, str | PathLike):
        text = fspath(value)
        text.encode()  # lone surrogates are not allowed
        return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON escapes like TOML, except DEL
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    raise TypeError(f"cannot write {value!r} as a TOML value")


T = TypeVar("T")
VERSION_KEY = "format"


def to_json(record: Any, version: int) -> str:
    """Convert a dataclass to JSON text with the given format version."""
    return json.dumps({VERSION_KEY: version, **dataclasses.asdict(record)}, indent=1)


def from_json(kind: type[T], text: str, version: int, what: str) -> T:
    """Read a dataclass ``kind`` that :func:`to_json` wrote; ``what`` names it in errors.

    Raises
    ------
    UnetcliError
        The text has another format version.
    ValueError, TypeError, KeyError
        The text is not such a record.
    """
    values: dict[str, Any] = json.loads(text)
    if (found := values.pop(VERSION_KEY, None)) != version:
        raise UnetcliError(f"{what} of version {found}; this unetcli reads version {version}")
    return typing.cast(T, decoded(kind, values))


def decoded(kind: Any, value: Any) -> Any:
    """Convert a JSON value to the type ``kind``: lists to tuples and mappings to dataclasses.

    >>> decoded(tuple[int, ...] | None, [1, 2]), decoded(float | tuple[float, ...], 0.5)
    ((1, 2), 0.5)
    """
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: decoded(hints[name], each) for name, each in value.items()})  # type: ignore[operator]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        fitting = (other for other in arguments if isinstance(value, list) == (typing.get_origin(other) is tuple))
        return value if value is None else decoded(next(fitting, None), value)
    if origin is tuple:
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(decoded(each, item) for each, item in zip(kinds, value, strict=True))
    return value


def changed(old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """Iterate over the fields in which two records of one class differ, as (name, old value, new value)."""
    for field in dataclasses.fields(old):
        before, now = getattr(old, field.name), getattr(new, field.name)
        if before != now:
            yield field.name, before, now
