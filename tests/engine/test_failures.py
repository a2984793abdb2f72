"""Records of failures survive damage to their files."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from unetcli.engine.receipts import FAILED, UNUSABLE, BlockFailure, FailureBook, read_failures

FAILURE = BlockFailure(
    block=3,
    place="z 3:4, y 0:512",
    kind=FAILED,
    reason="OSError: ümlaut and \u2028 line",
    traceback="Traceback\n  line\n",
    host="node1",
    job="17_3",
)


def test_failures_are_read_in_order_including_line_breaks(tmp_path: Path) -> None:
    book = FailureBook(tmp_path)
    written = [FAILURE, replace(FAILURE, block=1, kind=UNUSABLE), replace(FAILURE, reason="again")]
    for failure in written:
        book.add(failure)
    assert list(read_failures(tmp_path)) == written


def test_a_line_torn_anywhere_is_left_out_and_the_others_are_not(tmp_path: Path) -> None:
    book = FailureBook(tmp_path)
    book.add(FAILURE)
    whole = book.path.read_bytes()
    for cut in range(len(whole) - 1):
        book.path.write_bytes(whole + whole[:cut])
        assert list(read_failures(tmp_path)) == [FAILURE], cut


def test_failures_of_several_workers_are_in_order_of_time(tmp_path: Path) -> None:
    books = sorted((FailureBook(tmp_path) for _ in range(2)), key=lambda book: book.path.name)
    for second, book in enumerate(reversed(books)):
        book.add(replace(FAILURE, reason=str(second)))
        os.utime(book.path, (1e9 + second, 1e9 + second))
    assert [failure.reason for failure in read_failures(tmp_path)] == ["0", "1"]


def test_a_worker_without_failures_writes_no_file(tmp_path: Path) -> None:
    FailureBook(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert list(read_failures(tmp_path)) == []
