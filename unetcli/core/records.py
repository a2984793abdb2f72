"""Conversion of frozen dataclasses to and from JSON, and reading and writing of JSON and TOML files.

Files may be damaged, or written by others. Every file in JSON is therefore read by :func:`read_record` (or, if the text
comes from elsewhere, by :func:`parse_json` and :func:`decoded`), which compares each value with the type of its field
and names the file, the field, the value found and the value expected.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
import types
import typing
import zlib
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeVar

from unetcli.core.errors import UnetcliError

MAX_BYTES = 2**26
"""Largest file that is read as a whole, unless its reader allows more."""
MAX_DEPTH = 64
"""Deepest nesting of lists and objects."""
MAX_DIGITS = 20
"""Longest whole number, that of the largest uint64."""
MAX_INTEGER = 2**63
"""Integer fields of records are below it in size."""
MAX_SHOWN = 60
"""Longest text of a value in a message."""


class OddFile(UnetcliError):
    """The content of a file is not what its reader expects."""


def read_text(path: Path, limit: int = MAX_BYTES) -> str:
    """Read a file as UTF-8.

    Raises
    ------
    FileNotFoundError
    OddFile
        The path is not a file, the file is larger than ``limit`` bytes, or it is not UTF-8.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            size = os.fstat(file.fileno()).st_size  # read() allocates what it is asked for
            content = file.read(min(size, limit) + 1)
    except IsADirectoryError:
        raise OddFile(f"{path}: cannot be read: a folder; expected a file") from None
    if len(content) > limit:
        raise OddFile(f"{path}: larger than {limit / 2**20:g} MB; expected a smaller file")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise OddFile(f"{path}: line {line} is not UTF-8") from None


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a path; a pipe in the place of a file would otherwise block until another process writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_toml(path: Path, missing: str = "no such file; expected a TOML file") -> dict[str, Any]:
    """Read a TOML file; ``missing`` is the error message for a file that does not exist.

    Raises
    ------
    UnetcliError
        The file cannot be read or is not TOML; the message has the line and column of the error.
    """
    try:
        values = tomllib.loads(read_text(path))
        _require_shallow(values)
        return values
    except FileNotFoundError:
        raise UnetcliError(f"{path}: {missing}") from None
    except OSError as error:
        raise UnetcliError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # a subclass of ValueError if it is not TOML
        raise UnetcliError(f"{path}: not TOML: {_reason(error)}") from None


def parse_json(text: str | bytes) -> Any:
    """Parse JSON from a file that may be damaged.

    Raises
    ------
    ValueError
        The text is not UTF-8 or not JSON, is nested too deeply, or contains a number that is too long. The message is
        one short line.
    """
    try:
        values = json.loads(text if isinstance(text, str) else text.decode(), parse_int=_whole_number)
        _require_shallow(values)
        return values
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return f"nested more than {MAX_DEPTH} deep" if isinstance(error, RecursionError) else str(error)


def _whole_number(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a whole number of {len(text)} digits; expected at most {MAX_DIGITS}")
    return int(text)


def _require_shallow(value: Any, left: int = MAX_DEPTH) -> None:
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(each, dict | list):
            if not left:
                raise ValueError(f"nested more than {MAX_DEPTH} deep")
            _require_shallow(each, left - 1)


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


CHECKSUM_KEY = "checksum"


def to_json(record: Any, version: int, key: str = VERSION_KEY) -> str:
    """Convert a dataclass to JSON text, with its format version as the value of ``key`` and a checksum."""
    values = {key: version, **dataclasses.asdict(record)}
    return json.dumps({**values, CHECKSUM_KEY: _checksum(values)}, indent=1)


def _checksum(values: Mapping[str, Any]) -> str:
    """CRC-32 of the values, independent of white space and of the order of the keys."""
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"


def from_json(kind: type[T], text: str, version: int, what: str, key: str = VERSION_KEY) -> T:
    """Read a dataclass ``kind`` that :func:`to_json` wrote with the same ``key``; ``what`` names it in errors.

    Text without a checksum, which earlier versions wrote, is accepted.

    Raises
    ------
    UnetcliError
        The text has another format version, or the record's own checks refuse its values.
    ValueError
        The text is not such a record.
    """
    values = parse_json(text)
    if isinstance(values, dict) and (found := values.pop(key, None)) != version:
        raise UnetcliError(f"{what} of version {shown(found)}; this unetcli reads version {version}")
    if isinstance(values, dict) and CHECKSUM_KEY in values:
        _require_checksum({key: version, **values})
        del values[CHECKSUM_KEY]
    return typing.cast(T, decoded(kind, values))


def _require_checksum(values: dict[str, Any]) -> None:
    stated = values.pop(CHECKSUM_KEY)
    if stated != (computed := _checksum(values)):
        raise ValueError(f"damaged: its checksum is {shown(stated)}; {computed} is that of its content")


def read_record(path: Path, kind: type[T], remedy: str, limit: int = MAX_BYTES) -> T:
    """Read a file in JSON as a value of type ``kind``; ``remedy`` ends the message about a file that is not one.

    Raises
    ------
    FileNotFoundError
    OddFile
        The content is not such a value; the message names the field, the value found and the value expected.
    """
    try:
        return typing.cast(T, decoded(kind, parse_json(read_text(path, limit))))
    except OddFile as error:
        raise OddFile(f"{error}; {remedy}") from None
    except (ValueError, UnetcliError) as error:
        raise OddFile(f"{path}: {error}; {remedy}") from error


def decoded(kind: Any, value: Any, where: str = "") -> Any:
    """Convert a JSON value to the type ``kind``: lists to tuples and objects to dataclasses; check all other types.

    Parameters
    ----------
    kind
        A dataclass, a tuple, list or dict of types, a union, ``Any``, bool, int, float, str or None.
    where
        Name of the value, for messages.

    Raises
    ------
    ValueError
        A value has another type; the message names its field, the value found and the type expected.

    Examples
    --------
    >>> decoded(tuple[int, ...] | None, [1, 2]), decoded(float | tuple[float, ...], 0.5)
    ((1, 2), 0.5)
    >>> decoded(dict[str, tuple[int, ...]], {"sides": [1, "2"]})
    Traceback (most recent call last):
    ValueError: sides[1] is "2"; expected a whole number
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _decoded_record(kind, value, where)
    if origin in (typing.Union, types.UnionType):
        return _decoded_union(kind, arguments, value, where)
    if origin in (tuple, list):
        return origin(_decoded_items(kind, arguments, value, where))
    if origin is dict:
        _require(isinstance(value, dict), kind, value, where)
        return {name: decoded(arguments[1], each, _inside(where, name)) for name, each in value.items()}
    _require(_is_plain(kind, value), kind, value, where)
    return value


def _decoded_record(kind: Any, value: Any, where: str) -> Any:
    _require(isinstance(value, dict), kind, value, where)
    hints, known = typing.get_type_hints(kind), {each.name: each for each in dataclasses.fields(kind)}
    if unknown := next((name for name in value if name not in known), None):
        raise ValueError(f"unknown key {_inside(where, unknown)}")
    for name, each in known.items():
        if name not in value and each.default is each.default_factory is dataclasses.MISSING:
            raise ValueError(f"no {_inside(where, name)}")
    fields = {name: decoded(hints[name], each, _inside(where, name)) for name, each in value.items()}
    try:
        return kind(**fields)
    except (ArithmeticError, LookupError, TypeError) as error:  # of its own checks, for values that do not fit together
        raise ValueError(f"{where or 'values'} do not fit together ({error})") from error


def _decoded_union(kind: Any, arguments: Sequence[Any], value: Any, where: str) -> Any:
    others = [other for other in arguments if other is not types.NoneType]
    if len(others) == 1 and value is not None:
        return decoded(others[0], value, where)
    for other in arguments:
        try:
            return decoded(other, value, where)
        except ValueError:
            continue
    raise ValueError(_message(kind, value, where))


def _decoded_items(kind: Any, arguments: Sequence[Any], value: Any, where: str) -> list[Any]:
    _require(isinstance(value, list), kind, value, where)
    open_ended = typing.get_origin(kind) is list or arguments[-1] is Ellipsis
    kinds = [arguments[0]] * len(value) if open_ended else arguments
    _require(len(kinds) == len(value), kind, value, where)
    return [decoded(each, item, f"{where}[{n}]") for n, (each, item) in enumerate(zip(kinds, value, strict=True))]


def _is_plain(kind: Any, value: Any) -> bool:
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < MAX_INTEGER
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return kind is Any or (value is None if kind is types.NoneType else isinstance(value, kind))


def _require(fits: bool, kind: Any, value: Any, where: str) -> None:
    if not fits:
        raise ValueError(_message(kind, value, where))


def _message(kind: Any, value: Any, where: str) -> str:
    return f"{where or 'content'} is {shown(value)}; expected {expected(kind)}"


def _inside(where: str, name: str) -> str:
    return f"{where}.{shown_name(name)}" if where else shown_name(name)


def shown(value: Any) -> str:
    """Format a value for a message: as JSON, shortened, and without control characters.

    >>> shown({"a": [1, None]}), shown("x" * 1000), shown("\\x1b[0m")
    ('{"a": [1, null]}', '"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...', '"\\\\u001b[0m"')
    """
    text = json.dumps(value, default=lambda other: f"a {type(other).__name__}")
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def shown_name(name: str) -> str:
    """Format the name of a key for a message."""
    return name if name.isidentifier() and len(name) <= MAX_SHOWN else shown(name)


NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", types.NoneType: "null"}


def expected(kind: Any) -> str:
    """Describe the values of a type.

    >>> expected(int | None), expected(tuple[float, ...]), expected(tuple[int, int])
    ('a whole number or null', 'a list (a number ..)', 'a list (a whole number, a whole number)')
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(expected, arguments))
    if origin is list or (origin is tuple and arguments[-1] is Ellipsis):
        return f"a list ({expected(arguments[0])} ..)"
    if origin is tuple:
        return f"a list ({', '.join(map(expected, arguments))})"
    return NAMES.get(kind, "an object") if isinstance(kind, type) else "an object"


def changed(old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """Iterate over the fields in which two records of one class differ, as (name, old value, new value)."""
    for field in dataclasses.fields(old):
        before, now = getattr(old, field.name), getattr(new, field.name)
        if before != now:
            yield field.name, before, now
