from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from unetcli.core.errors import UnetcliError, collected_warnings, require_no_warnings, warn
from unetcli.core.streams import ordered_map, prefetch


def test_a_warning_is_logged_once_and_collected(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "unetcli"), collected_warnings() as found:
        for text in ("a.tif is dark", "b.tif is dark", "a.tif is dark"):
            warn(text)
    assert found == ["a.tif is dark", "b.tif is dark"]
    assert [record.getMessage() for record in caplog.records] == found


def test_calls_do_not_share_their_warnings(caplog: pytest.LogCaptureFixture) -> None:
    with collected_warnings() as one:
        warn("first")
        with collected_warnings() as other:
            warn("second")
    warn("outside of any call, it is only logged")
    assert (one, other) == (["first"], ["second"])
    assert len(caplog.records) == 3


def test_strict_refuses_all_warnings_in_one_line() -> None:
    with collected_warnings(strict=True):
        require_no_warnings()
        warn("a.tif is dark")
        warn("b.tif is dark")
        with pytest.raises(UnetcliError, match=r"^--strict: 2 warnings: a.tif is dark; b.tif is dark$"):
            require_no_warnings()
    with collected_warnings():
        warn("a.tif is dark")
        require_no_warnings()


def test_warnings_of_threads_belong_to_the_call_that_started_them() -> None:
    def numbers() -> Iterator[int]:
        warn("from a stage")
        yield 3

    def doubled(number: int) -> int:
        warn(f"from the pool: {number}")
        return 2 * number

    with collected_warnings() as found:
        assert [result.result() for _, result in ordered_map(doubled, prefetch(numbers(), ahead=1), threads=2)] == [6]
    assert found == ["from a stage", "from the pool: 3"]
