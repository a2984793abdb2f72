"""Flat TOML: read with one line about what is wrong, written so that it reads back the same."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from unetcli.core.errors import UnetcliError


def read_toml(path: Path, missing: str = "no such file; a TOML file would do") -> dict[str, Any]:
    """The file's values by key; ``missing`` is what the error says of a file that is not there.

    Raises
    ------
    UnetcliError
        It cannot be read, or is no TOML; the message has tomllib's line and column.
    """
    try:
        return tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError:
        raise UnetcliError(f"{path}: {missing}") from None
    except OSError as error:
        raise UnetcliError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UnetcliError(f"{path}: line {line} is not UTF-8, which TOML has to be") from None
    except tomllib.TOMLDecodeError as error:
        raise UnetcliError(f"{path}: not TOML: {error}") from None


def to_toml(values: Mapping[str, Any]) -> str:
    """A line per value, in their order: text, numbers, true and false, paths, and lists of them.

    TOML has no None: such a value stays visible as a comment. Underscores in names become dashes, as in options.

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
        raise UnetcliError(f"{name} is {value!r}: not Unicode, so that TOML cannot hold it") from None


def toml_value(value: Any) -> str:
    r"""One value in TOML.

    >>> print(toml_value([1, 2.5, True, 'say "hi"\n', Path("x/y")]))
    [1, 2.5, true, "say \"hi\"\n", "x/y"]
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return float.__repr__(value)  # the shortest that reads back the same; inf and nan are TOML too
    if isinstance(value, str | PathLike):
        text = fspath(value)
        text.encode()  # lone surrogates are not allowed
        return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # escapes as TOML does, but for DEL
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    raise TypeError(f"{value!r} has no place in flat TOML")
