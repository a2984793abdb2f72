from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

import pytest

from unetcli.core.streams import prefetch


@dataclass
class Source:
    """Iterable that counts the items it produced."""

    stop: int
    fail_at: int | None = None
    made: int = 0
    closed: bool = False
    threads: set[int] = field(default_factory=set)

    def __iter__(self) -> Iterator[int]:
        try:
            for number in range(self.stop):
                self.threads.add(threading.get_ident())
                if number == self.fail_at:
                    raise OSError(f"item {number}")
                self.made += 1
                yield number
        finally:
            self.closed = True


def settled(source: Source) -> int:
    """Number of items produced, once it no longer grows."""
    made = -1
    while made != source.made:
        made = source.made
        time.sleep(0.02)
    return made


@pytest.mark.parametrize("ahead", [1, 2, 7, 100])
@pytest.mark.parametrize("count", [0, 1, 5, 50])
def test_items_come_in_order_and_once(count: int, ahead: int) -> None:
    source = Source(count)
    assert list(prefetch(source, ahead)) == list(range(count))
    assert source.closed


def test_items_are_produced_in_another_thread() -> None:
    source = Source(3)
    list(prefetch(source, 1))
    assert threading.get_ident() not in source.threads
    assert len(source.threads) == 1


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_a_bounded_number_of_items_is_produced_ahead(ahead: int) -> None:
    source, most = Source(30), 0
    with closing(prefetch(source, ahead)) as items:
        for taken, _ in enumerate(items, start=1):
            made = settled(source)
            assert made - taken <= ahead + 1
            most = max(most, made - taken)
    assert most >= ahead  # items are indeed produced ahead


@pytest.mark.parametrize("place", [0, 1, 4])
@pytest.mark.parametrize("ahead", [1, 10])
def test_an_exception_is_raised_in_its_place(place: int, ahead: int) -> None:
    items = prefetch(Source(9, fail_at=place), ahead)
    assert [next(items) for _ in range(place)] == list(range(place))
    with pytest.raises(OSError, match=f"item {place}"):
        next(items)


@pytest.mark.parametrize("ahead", [1, 5])
def test_closing_early_ends_the_thread_and_closes_the_source(ahead: int) -> None:
    source, before = Source(10**9), threading.active_count()
    items = prefetch(source, ahead)
    assert next(items) == 0
    assert threading.active_count() == before + 1
    items.close()
    assert threading.active_count() == before
    assert source.closed


def test_an_exception_of_the_consumer_ends_the_thread() -> None:
    source, before = Source(10**9), threading.active_count()
    with pytest.raises(ZeroDivisionError), closing(prefetch(source, 2)) as items:
        1 / next(items)
    assert threading.active_count() == before
    assert source.closed


def test_nothing_is_produced_before_the_first_item_is_requested() -> None:
    source = Source(5)
    prefetch(source, 2)
    assert settled(source) == 0


def test_chained_stages_run_concurrently_and_end_together() -> None:
    source, before = Source(10**9), threading.active_count()
    doubled = (2 * item for item in prefetch(source, 2))
    with closing(prefetch(doubled, 2)) as items:
        assert [next(items) for _ in range(5)] == [0, 2, 4, 6, 8]
        assert threading.active_count() == before + 2
    assert threading.active_count() == before
    assert source.closed


def test_a_failure_passes_through_two_stages() -> None:
    doubled = (2 * item for item in prefetch(Source(9, fail_at=2), 1))
    items = prefetch(doubled, 1)
    assert [next(items), next(items)] == [0, 2]
    with pytest.raises(OSError, match="item 2"):
        next(items)
