"""Mutations of files: bytes of any file, and values of JSON, TOML, receipts, models, checkpoints and tables."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from unetcli.core.records import CHECKSUM_KEY, _checksum

ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    2**31,
    2**63,
    10**30,
    0.5,
    -0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "0",
    "\x1b]0;title\x07",
    "\u202e",
    "a\nb",
    "../..",
    "/",
    "é" * 3,
    "x" * 5000,
    [],
    [None],
    [1],
    [1, 2, 3],
    [[1]],
    {},
    {"a": 1},
    {"": None},
    [0.5] * 4,
    list(range(300)),
)
WORDS = ("-1", "0", "x", "", "9" * 12, "9" * 25, "1e5", "nan", "done", "void", "-", "z" * 32, "a1" * 16, "\xff", "0x1")


def mutate(path: Path, random: Random) -> str:
    """Damage a file in a way that fits its content, or in one that does not; return what was done."""
    content = path.read_bytes()
    typed = [each for suffix, each in TYPED if path.name.endswith(suffix)]
    if typed and random.random() < 0.75:
        try:
            return random.choice(typed)(path, content, random)
        except (ValueError, KeyError, IndexError, RuntimeError):
            pass
    return random.choice(BYTE_MUTATIONS)(path, content, random)


# ---- bytes


def flip(path: Path, content: bytes, random: Random) -> str:
    changed = bytearray(content or b"\0")
    places = [
        random.randrange(min(len(changed), random.choice([16, 64, 512, 10**9])))
        for _ in range(random.choice([1, 1, 8]))
    ]
    for place in places:
        changed[place] ^= 1 << random.randrange(8)
    path.write_bytes(changed)
    return f"bits flipped at {places}"


def cut(path: Path, content: bytes, random: Random) -> str:
    length = random.randrange(len(content) + 1)
    path.write_bytes(content[:length])
    return f"cut to {length} bytes"


def empty(path: Path, content: bytes, random: Random) -> str:
    path.write_bytes(b"")
    return "emptied"


def zeros(path: Path, content: bytes, random: Random) -> str:
    start = random.randrange(len(content) + 1)
    path.write_bytes(content[:start] + bytes(len(content) - start + random.choice([0, 0, 100])))
    return f"zero bytes from {start}"


def insert(path: Path, content: bytes, random: Random) -> str:
    start, more = (
        random.randrange(len(content) + 1),
        random.choice([b"\xff\xfe", b"\0", b"{", b"\n", b"[" * 5000, b"9" * 5000]),
    )
    path.write_bytes(content[:start] + more + content[start:])
    return f"{len(more)} bytes {more[:4]!r} inserted at {start}"


def replace(path: Path, content: bytes, random: Random) -> str:
    other = random.choice(
        [
            b"[" * 100_000,
            b"\xff{}",
            b"null",
            b"[]",
            b"{}",
            b"3",
            b'"text"',
            b"hello\n",
            random.randbytes(200),
            b"\x1f\x8b" + bytes(50),
        ]
    )
    path.write_bytes(other)
    return f"replaced by {other[:12]!r}"


def delete(path: Path, content: bytes, random: Random) -> str:
    path.unlink()
    return "deleted"


def folder(path: Path, content: bytes, random: Random) -> str:
    path.unlink()
    path.mkdir()
    return "replaced by a folder"


def pipe(path: Path, content: bytes, random: Random) -> str:
    path.unlink()
    os.mkfifo(path)
    return "replaced by a pipe"


BYTE_MUTATIONS = (flip, flip, cut, cut, empty, zeros, insert, replace, delete, folder)


# ---- values


def places_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values in a tree of dictionaries and lists."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in children:
        yield from places_in(each, (*path, key))


def change_tree(values: Any, random: Random) -> tuple[Any, str]:
    """Change one place of a tree: another value, a key more or less, or deep nesting."""
    *above, last = random.choice(list(places_in(values))[1:] or [(None,)])
    if last is None:
        return random.choice(ODD_VALUES), "all replaced"
    parent, where = values, ".".join(map(str, [*above, last]))
    for key in above:
        parent = parent[key]
    kind = random.choice(["value"] * 6 + ["scaled", "less", "more", "nested"])
    if kind == "scaled" and isinstance(parent[last], int | float) and not isinstance(parent[last], bool):
        parent[last] = parent[last] * random.choice([-1, 2, 10, 0, 1000, 10**6]) + random.choice([0, 1])
    elif kind == "less":
        del parent[last]
    elif kind == "more" and isinstance(parent, dict):
        parent[random.choice(["other", "\x1b[31m", "x" * 300])] = random.choice(ODD_VALUES)
    elif kind == "nested":
        for _ in range(random.choice([3, 100, 900])):
            parent[last] = [parent[last]]
    else:
        kind = "value"
        parent[last] = random.choice(ODD_VALUES)
    return values, f"{kind} at {where}"


def json_value(path: Path, content: bytes, random: Random) -> str:
    values, what = change_tree(json.loads(content), random)
    if isinstance(values, dict) and CHECKSUM_KEY in values and random.random() < 0.7:
        del values[CHECKSUM_KEY]  # a wrong content with the right checksum
        values[CHECKSUM_KEY] = _checksum(values)
        what += ", right checksum"
    path.write_text(json.dumps(values))
    return what


def json_line(path: Path, content: bytes, random: Random) -> str:
    lines = content.decode().splitlines()
    number = random.randrange(len(lines))
    values, what = change_tree(json.loads(lines[number] or "{}"), random)
    lines[number] = json.dumps(values)
    path.write_text("\n".join(lines) + "\n")
    return f"line {number}: {what}"


def receipt(path: Path, content: bytes, random: Random) -> str:
    """Change a word of a receipt, with the right CRC."""
    lines = content.decode().splitlines()
    number = random.randrange(len(lines))
    words = lines[number].split(" ")[:-1]
    place = random.randrange(len(words))
    words[place] = random.choice(WORDS)
    body = " ".join(words).encode(errors="replace")
    lines.append(f"{body.decode()} {zlib.crc32(body):08x}")
    path.write_text("\n".join(lines) + "\n")
    return f"receipt {number}, word {place}: {words[place]!r}, right CRC"


def model_header(path: Path, content: bytes, random: Random) -> str:
    """Change the header of a safetensors file: that of the format, or that of the model in it."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if random.random() < 0.3:
        header, what = change_tree(header, random)
    else:
        inner, what = change_tree(json.loads(header["__metadata__"]["unetcli"]), random)
        header["__metadata__"]["unetcli"] = json.dumps(inner)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    return f"header: {what}"


def checkpoint(path: Path, content: bytes, random: Random) -> str:
    """Change a value of a checkpoint; tensors get other shapes and types too."""
    import torch

    values = torch.load(io.BytesIO(content), weights_only=True)
    keys = [key for key in places_in(values) if key]
    *above, last = random.choice(keys)
    parent = values
    for key in above:
        parent = parent[key]
    others = [
        *ODD_VALUES[:24],
        [],
        {},
        torch.zeros(3),
        torch.zeros(2, 2, dtype=torch.int64),
        torch.full((1,), float("nan")),
    ]
    if random.random() < 0.25:
        del parent[last]
        what = "deleted"
    else:
        parent[last] = random.choice(others)
        what = f"set to {parent[last]!r:.60}"
    torch.save(values, path)
    return f"{'.'.join(map(str, [*above, last]))} {what}"


def toml_line(path: Path, content: bytes, random: Random) -> str:
    lines = content.decode().splitlines()
    number = random.randrange(len(lines))
    key = lines[number].partition("=")[0].strip() or "x"
    value = random.choice(
        [
            "-1",
            "0",
            '""',
            '"x"',
            "[]",
            "[[1]]",
            "{}",
            "{ a = 1 }",
            "9" * 5000,
            "[" * 5000,
            "nan",
            "1e999",
            "true",
            "1979-05-27",
            '"\\u001b[31m"',
            "[1, 'a']",
            "9" * 19,
            '"' + "x" * 3000 + '"',
        ]
    )
    lines[number] = f"{key} = {value}"
    path.write_text("\n".join(lines) + "\n")
    return f"{lines[number][:60]}"


def text_value(path: Path, content: bytes, random: Random) -> str:
    """Change one number or quoted word in text: CSV, or the XML in a TIFF file (of the same length)."""
    import re

    found = list(re.finditer(rb'"[^"\n]{1,40}"|\d+', content[: 2**16]))
    match = random.choice(found)
    new = random.choice([b"-1", b"0", b"x", b'""', b"nan", b"9" * 20, b"\xff\xfe", b"1e9", b"\x1b[m"])
    if path.suffix == ".tif":
        new = new[: len(match.group())].ljust(len(match.group()), b"9")
    path.write_bytes(content[: match.start()] + new + content[match.end() :])
    return f"{match.group()[:30]!r} replaced by {new[:30]!r}"


Mutation = Callable[[Path, bytes, Random], str]
TYPED: tuple[tuple[str, Mutation], ...] = (
    (".json", json_value),
    (".zarray", json_value),
    (".zattrs", json_value),
    (".zgroup", json_value),
    (".jsonl", json_line),
    ("lock", json_value),
    (".txt", receipt),
    (".safetensors", model_header),
    (".pt", checkpoint),
    (".toml", toml_line),
    (".csv", text_value),
    (".tif", text_value),
)


def remove(path: Path) -> None:
    """Delete a file or folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
