"""Records of failures survive damage to their files."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from unetcli.engine.receipts import FAILED, UNUSABLE, BlockFailure, FailureBook, read_failures

TROUBLE = BlockFailure(
    block=3,
    place="z 3:4, y 0:512",
    kind=FAILED,
    reason="OSError: ümlaut and \u2028 line",
    traceback="Traceback\n  line\n",
    host="node1",
    job="17_3",
)


def test_troubles_come_back_in_order_line_breaks_and_all(tmp_path: Path) -> None:
    book = FailureBook(tmp_path)
    told = [TROUBLE, replace(TROUBLE, block=1, kind=UNUSABLE), replace(TROUBLE, reason="again")]
    for trouble in told:
        book.add(trouble)
    assert list(read_failures(tmp_path)) == told


def test_a_line_torn_anywhere_is_left_out_and_the_others_are_not(tmp_path: Path) -> None:
    book = FailureBook(tmp_path)
    book.add(TROUBLE)
    whole = book.path.read_bytes()
    for cut in range(len(whole) - 1):
        book.path.write_bytes(whole + whole[:cut])
        assert list(read_failures(tmp_path)) == [TROUBLE], cut


def test_of_several_workers_the_last_to_meet_a_trouble_comes_last(tmp_path: Path) -> None:
    books = sorted((FailureBook(tmp_path) for _ in range(2)), key=lambda book: book.path.name)
    for second, book in enumerate(reversed(books)):
        book.add(replace(TROUBLE, reason=str(second)))
        os.utime(book.path, (1e9 + second, 1e9 + second))
    assert [trouble.reason for trouble in read_failures(tmp_path)] == ["0", "1"]


def test_a_worker_without_trouble_leaves_no_file(tmp_path: Path) -> None:
    FailureBook(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert list(read_failures(tmp_path)) == []
