"""Records survive a round trip through JSON, and list the fields in which they differ."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from unetcli.core.errors import UnetcliError
from unetcli.core.records import changed, from_json, to_json


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


def test_text_that_is_not_a_record_raises_an_error_of_values() -> None:
    for text in ("", "[]", '{"format": 1, "other": 3}'):
        with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
            from_json(Inner, text, 1, "plan")


def test_differences_have_names_and_both_values() -> None:
    before, now = Inner((1,), 0.5), Inner((1,), 0.25)
    assert list(changed(before, now)) == [("value", 0.5, 0.25)]
    assert not list(changed(before, before))
