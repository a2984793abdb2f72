"""Records survive a round trip through JSON, and list the fields in which they differ."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from unetcli.core.errors import UnetcliError
from unetcli.core.records import MAX_DEPTH, OddFile, changed, decoded, from_json, read_record, to_json


@dataclass(frozen=True)
class Inner:
    sides: tuple[int, ...]
    value: float | tuple[float, ...]


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    pair: tuple[Inner, int] | None = None
    nested: tuple[tuple[int, ...], ...] = ()


@pytest.mark.parametrize(
    "record",
    [
        Outer("a", Inner((1, 2), 0.5)),
        Outer("b", Inner((), (0.5, 1.0)), (Inner((3,), 1.0), 4), ((1, 2), (3,))),
    ],
    ids=["plain", "nested"],
)
def test_a_record_survives_json(record: Outer) -> None:
    assert from_json(Outer, to_json(record, 1), 1, "record") == record


def test_another_version_is_refused_by_name() -> None:
    with pytest.raises(UnetcliError, match="plan of version 2; this unetcli reads version 1"):
        from_json(Inner, to_json(Inner((1,), 0.0), 2), 1, "plan")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON: Expecting value"),
        ("[]", "content is []; expected an object"),
        ('{"format": 1, "other": 3}', "unknown key other"),
        ('{"format": 1, "sides": [1]}', "no value"),
        ('{"format": 1, "sides": [1, true], "value": 0}', "sides[1] is true; expected a whole number"),
        ('{"format": 1, "sides": 3, "value": 0}', "sides is 3; expected a list (a whole number ..)"),
        ('{"format": 1, "sides": [], "value": "x"}', 'value is "x"; expected a number or a list (a number ..)'),
        ('{"format": 1, "sides": [9223372036854775808], "value": 0}', "expected a whole number"),
        (
            '{"format": 1, "sides": [%s], "value": 0}' % ("9" * 5000),
            "a whole number of 5000 digits; expected at most 20",
        ),
        ("[" * 100_000, f"not JSON: nested more than {MAX_DEPTH} deep"),
        ("[" * 70 + "]" * 70, f"nested more than {MAX_DEPTH} deep"),
    ],
    ids=lambda value: value[:30],
)
def test_text_that_is_not_a_record_is_refused_with_field_value_and_expectation(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as refusal:
        from_json(Inner, text, 1, "plan")
    assert len(str(refusal.value)) < 200


def test_a_changed_record_is_refused_by_its_checksum() -> None:
    text = to_json(Inner((1, 2), 0.5), 1)
    assert from_json(Inner, json.dumps(json.loads(text), sort_keys=True), 1, "plan") == Inner((1, 2), 0.5)
    with pytest.raises(ValueError, match="damaged: its checksum is"):
        from_json(Inner, text.replace("0.5", "0.25"), 1, "plan")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"sides": [1], "value": 0}\xff', "line 1 is not UTF-8; delete it"),
        (b"{", "not JSON: Expecting property name"),
        (b"{}", "no sides; delete it"),
        (b"[" * 200, "larger than 0.0001"),
    ],
    ids=["not UTF-8", "torn", "empty", "too large"],
)
def test_a_file_that_is_not_a_record_is_named_with_what_would_work(
    tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(OddFile, match=re.escape(f"{file}: ") + ".*" + re.escape(message)):
        read_record(file, Inner, "delete it", limit=105)


def test_a_pipe_or_a_folder_in_the_place_of_a_file_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(OddFile):
            read_record(tmp_path / name, Inner, "delete it")
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path / "missing", Inner, "delete it")


def test_control_characters_of_a_file_are_escaped_in_messages() -> None:
    with pytest.raises(ValueError, match="sides") as refusal:
        decoded(Inner, {"sides": "\x1b]0;title\x07", "value": 0})
    assert "\x1b" not in str(refusal.value)


def test_differences_have_names_and_both_values() -> None:
    before, now = Inner((1,), 0.5), Inner((1,), 0.25)
    assert list(changed(before, now)) == [("value", 0.5, 0.25)]
    assert not list(changed(before, before))
