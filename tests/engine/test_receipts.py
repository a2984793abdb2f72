from __future__ import annotations

import errno
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import read_receipts, wait_for
from hypothesis import given, settings
from hypothesis import strategies as st

from unetcli.core.arrays import checksum
from unetcli.core.files import sync_all
from unetcli.engine import receipts
from unetcli.engine.receipts import DONE, VOID, Ledger, Receipt, ReceiptBook
from unetcli.engine.status import recent_receipts

RECEIPT = Receipt(
    block=3,
    attempt=1,
    state=DONE,
    checksum="a1" * 16,
    tile=572,
    read_seconds=0.125,
    forward_seconds=2.0,
    write_seconds=0.5,
    device="cuda",
    host="node1",
    job="17_3",
)
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"]), min_size=1)
SECONDS = st.integers(0, 10**9).map(lambda ms: ms / 1000)


def counted(folder: Path) -> set[int]:
    """Return the blocks that are done."""
    return set(np.flatnonzero(Ledger(folder, 20).refresh().done).tolist())


@settings(max_examples=30)  # drawing the words takes most of the time
@given(
    st.builds(
        Receipt,
        block=st.integers(0, 2**60),
        attempt=st.integers(1, 10**6),
        state=st.sampled_from([DONE, VOID]),
        checksum=st.text("0123456789abcdef", min_size=32, max_size=32),
        tile=st.integers(0, 4096),
        read_seconds=SECONDS,
        forward_seconds=SECONDS,
        write_seconds=SECONDS,
        device=WORDS,
        host=WORDS,
        job=WORDS,
    )
)
def test_a_receipt_survives_its_line(receipt: Receipt) -> None:
    line = receipt.to_line()
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert Receipt.from_line(line) == receipt


@pytest.mark.timeout(20)
def test_what_is_no_file_is_no_receipt_and_no_failure(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(RECEIPT.to_line())
    for name in ("b.txt", "b.jsonl"):
        os.mkfifo(tmp_path / name)  # reading it would wait for a writer
        (tmp_path / f"folder-{name}").mkdir()
    assert counted(tmp_path) == {3}
    assert list(recent_receipts(tmp_path)) == [RECEIPT]
    assert list(receipts.read_failures(tmp_path)) == []


def test_an_incomplete_line_is_no_receipt(tmp_path: Path) -> None:
    whole, line = RECEIPT.to_line(), replace(RECEIPT, block=4).to_line()
    for cut in range(len(line)):
        (tmp_path / "a.txt").write_text(whole + line[:cut])
        assert counted(tmp_path) == {3}, cut
        assert list(read_receipts(tmp_path)) == [RECEIPT], cut
    (tmp_path / "a.txt").write_text(whole + line)
    assert counted(tmp_path) == {3, 4}


def test_a_ledger_reads_on_where_a_line_was_half_written(tmp_path: Path) -> None:
    line, ledger = RECEIPT.to_line(), Ledger(tmp_path, 20)
    with (tmp_path / "a.txt").open("w") as file:
        for cut in (0, 10, len(line)):
            file.write(line[file.tell() : cut])
            file.flush()
            assert bool(ledger.refresh().done[3]) == (cut == len(line))
    assert ledger.refresh().lines == 1


def test_a_ledger_knows_attempt_checksum_and_host(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(RECEIPT.to_line() + replace(RECEIPT, block=5, host="node2").to_line())
    ledger = Ledger(tmp_path, 6).refresh()
    assert ledger.attempts.tolist() == [0, 0, 0, 1, 0, 1]
    assert ledger.checksums[5].tobytes().hex() == RECEIPT.checksum
    assert [ledger.hosts[k] if k >= 0 else "" for k in ledger.host] == ["", "", "", "node1", "", "node2"]
    assert ledger.missing.tolist() == [0, 1, 2, 4]
    assert not ledger.complete


@pytest.mark.parametrize(
    "changes",
    [
        {"block": -1},
        {"block": "x"},
        {"attempt": 2**31},
        {"attempt": -1},
        {"state": "maybe"},
        {"checksum": "z" * 32},
        {"checksum": "-"},
        {"block": "1_0"},
        {"block": 10**30},
    ],
    ids=str,
)
def test_a_line_that_no_worker_writes_is_no_receipt_although_its_crc_is_right(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    """Block -1 would be the last block."""
    (tmp_path / "a.txt").write_text(RECEIPT.to_line() + replace(RECEIPT, **{"block": 19, **changes}).to_line())
    ledger = Ledger(tmp_path, 20).refresh()
    assert (np.flatnonzero(ledger.done).tolist(), int(ledger.attempts.max())) == ([3], 1)


def test_receipts_of_blocks_that_the_plan_does_not_have_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(replace(RECEIPT, block=6).to_line())
    assert not Ledger(tmp_path, 6).refresh().done.any()


def test_a_line_with_a_changed_character_is_no_receipt() -> None:
    line = RECEIPT.to_line()
    for place in range(len(line) - 1):
        assert Receipt.from_line(line[:place] + chr(ord(line[place]) ^ 1) + line[place + 1 :]) is None


@pytest.mark.parametrize("junk", [b"", b"\n\n", b"\xff\x00\xfe\n", b"3 1 done\n", b"0 00000000\n"], ids=repr)
def test_junk_between_lines_is_skipped(tmp_path: Path, junk: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(b"\n".join([RECEIPT.to_line().encode() + junk, RECEIPT.to_line().encode()]))
    assert list(read_receipts(tmp_path)) == [RECEIPT, RECEIPT]
    assert counted(tmp_path) == {3}


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2, 3, 1)], ids=str)
def test_the_highest_attempt_wins_in_whatever_order_and_file(tmp_path: Path, order: tuple[int, ...]) -> None:
    for name, attempt in zip("abc", order, strict=True):
        state = VOID if attempt == 3 else DONE
        (tmp_path / f"{name}.txt").write_text(replace(RECEIPT, attempt=attempt, state=state).to_line())
    ledger = Ledger(tmp_path, 20).refresh()
    assert (ledger.attempts[3], ledger.done[3]) == (3, False)


def test_a_folder_without_receipts_has_none(tmp_path: Path) -> None:
    assert counted(tmp_path) == set()


def test_data_are_synced_before_their_receipt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data" / "chunk"
    data.parent.mkdir()
    data.write_bytes(b"voxels")
    synced: list[tuple[str, int]] = []
    real = os.fsync

    def watched(handle: int) -> None:
        real(handle)
        synced.append((os.readlink(f"/proc/self/fd/{handle}"), len(counted(tmp_path))))  # noqa: PTH115

    monkeypatch.setattr(os, "fsync", watched)
    with ReceiptBook(tmp_path, data.parent) as book:
        book.add(RECEIPT, [data, data.with_name("all zero, so never stored")])
        assert counted(tmp_path) == set()
        own = str(book.path)
    assert synced[:3] == [(str(data), 0), (str(data.parent), 0), (own, 1)]


def test_receipts_are_written_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "GROUP_SECONDS", 1e9)
    monkeypatch.setattr(receipts, "GROUP_BLOCKS", 4)
    with ReceiptBook(tmp_path, tmp_path) as book:
        for number, expected in enumerate([0, 0, 0, 4, 4, 4, 4, 8, 8, 8]):
            book.add(replace(RECEIPT, block=number), [])
            wait_for(lambda expected=expected: len(counted(tmp_path)) >= expected)
            assert len(counted(tmp_path)) == expected
    assert counted(tmp_path) == set(range(10))


def test_a_receipt_does_not_wait_longer_than_its_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "GROUP_SECONDS", 0.0)
    with ReceiptBook(tmp_path, tmp_path) as book:
        book.add(RECEIPT, [])
        wait_for(lambda: counted(tmp_path) == {3})


def test_blocks_go_on_while_a_group_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "GROUP_BLOCKS", 2)
    gate = threading.Event()

    def slow(files: Any, root: Path) -> None:
        assert gate.wait(120)
        sync_all(files, root)

    monkeypatch.setattr("unetcli.engine.receipts.sync_all", slow)
    with ReceiptBook(tmp_path, tmp_path) as book:
        for number in range(3):
            book.add(replace(RECEIPT, block=number), [])
        assert counted(tmp_path) == set()
        gate.set()
    assert counted(tmp_path) == {0, 1, 2}


def test_an_error_of_a_group_is_raised_and_its_blocks_have_no_receipts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts, "GROUP_BLOCKS", 1)

    def full(files: Any, root: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("unetcli.engine.receipts.sync_all", full)
    with pytest.raises(OSError, match="No space left"), ReceiptBook(tmp_path, tmp_path) as book:
        book.add(RECEIPT, [])
    assert counted(tmp_path) == set()


def test_finished_blocks_have_receipts_if_others_fail(tmp_path: Path) -> None:
    def one_and_fail(book: ReceiptBook) -> None:
        book.add(RECEIPT, [])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), ReceiptBook(tmp_path, tmp_path) as book:
        one_and_fail(book)
    assert counted(tmp_path) == {3}


def test_a_process_has_one_file_or_none_without_receipts(tmp_path: Path) -> None:
    with ReceiptBook(tmp_path, tmp_path) as one, ReceiptBook(tmp_path, tmp_path) as other:
        assert one.path == other.path
    assert list(tmp_path.iterdir()) == []
    if not (child := os.fork()):
        with ReceiptBook(tmp_path, tmp_path) as second_book:
            second_book.add(replace(RECEIPT, block=5), [])
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    with one:
        one.add(RECEIPT, [])
    assert len(list(tmp_path.iterdir())) == 2
    assert counted(tmp_path) == {3, 5}


def test_writing_continues_after_a_line_that_a_full_disk_cut_off(tmp_path: Path) -> None:
    with ReceiptBook(tmp_path, tmp_path) as book:
        book.path.write_text(RECEIPT.to_line()[:20])
        book.add(replace(RECEIPT, block=4), [])
    assert counted(tmp_path) == {4}


def test_the_checksum_is_of_the_voxels_not_of_their_layout() -> None:
    values = np.random.default_rng(1).integers(0, 256, (2, 13, 22), dtype=np.uint8)
    assert checksum(values) == checksum(np.asfortranarray(values)) == checksum(values[:, ::-1][:, ::-1])
    changed = values.copy()
    changed[1, 12, 21] ^= 1
    assert checksum(changed) != checksum(values)
    assert len(checksum(values)) == 32
