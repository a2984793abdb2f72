"""Choice of the sections to train on and of those held out: the last ones, named ones, or one of K folds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from unetcli.core.errors import UnetcliError, listed
from unetcli.core.options import Sections, resolve_sections
from unetcli.train.request import TrainRequest
from unetcli.train.settings import Ranges
from unetcli.volumes.volume import Volume

VALIDATION_FRACTION = 0.1
"""Default fraction of the sections of each pair that is held out."""
Ends = tuple[int, int]
"""First and stop section, half-open."""


def split_sections(request: TrainRequest, images: Sequence[Volume]) -> tuple[Ranges, Ranges]:
    """Split the sections into training sections and held-out sections.

    By default the last sections of each pair are held out; random ones would resemble their neighbours in training.
    The sections that options name, and those of a fold, are counted through all pairs in order. A fold may lie amid the
    training sections, which are then those of the first range without those of the second.

    Returns
    -------
    training, held_out : tuple of (first, stop)
        One range per pair, counted within the pair.

    Raises
    ------
    UnetcliError
        There are no such sections, or none is left to train on.
    """
    counts, name = section_counts(images), _name_of(images)
    used = resolve_sections(request.sections, sum(counts), name)
    if isinstance(request.fold, int):
        return by_pair(used, counts), fold_ranges(request, images)[request.fold - 1]
    if request.validation is not None:
        held_out = _resolve_validation(request.validation, sum(counts), name)
        kept = _without_named(used, held_out, sum(counts), named=request.sections != (None, None))
        return by_pair(kept, counts), by_pair(held_out, counts)
    fraction = VALIDATION_FRACTION if request.validation_fraction is None else request.validation_fraction
    if not 0 <= fraction < 1:
        raise UnetcliError(f"--validation-fraction {fraction}: expected 0 <= fraction < 1")
    ranges = by_pair(used, counts)
    held = tuple(held_out_count(b - a, fraction) for a, b in ranges)
    training = tuple((a, b - n) for (a, b), n in zip(ranges, held, strict=True))
    return training, tuple((b - n, b) for (_, b), n in zip(ranges, held, strict=True))


def fold_ranges(request: TrainRequest, images: Sequence[Volume]) -> list[Ranges]:
    """Sections of each of ``--folds``: runs of neighbouring sections, one range per pair; empty without ``--folds``.

    Raises
    ------
    UnetcliError
        There are fewer sections than folds.
    """
    if request.folds is None:
        return []
    counts, name = section_counts(images), _name_of(images)
    used = resolve_sections(request.sections, sum(counts), name)
    if request.folds > used[1] - used[0]:
        sections = f"{used[1] - used[0]} sections ({used[0]}:{used[1]} of {name})"
        raise UnetcliError(f"--folds {request.folds}: more than the {sections}; expected at most as many")
    return [by_pair(ends, counts) for ends in folds_of(used, request.folds)]


def folds_of(used: Ends, folds: int) -> list[Ends]:
    """Divide a range into runs whose lengths differ by at most 1.

    >>> folds_of((0, 17), 5)
    [(0, 3), (3, 6), (6, 10), (10, 13), (13, 17)]
    """
    first, count = used[0], used[1] - used[0]
    edges = [first + count * k // folds for k in range(folds + 1)]
    return list(itertools.pairwise(edges))


def training_runs(used: Ends, held_out: Ends) -> list[Ends]:
    """Runs of the used sections of a pair that are trained on: all but those held out.

    >>> training_runs((0, 20), (5, 10)), training_runs((0, 17), (17, 20)), training_runs((0, 4), (0, 4))
    ([(0, 5), (10, 20)], [(0, 17)], [])
    """
    if held_out[0] == held_out[1]:
        held_out = (used[1], used[1])
    runs = [(used[0], min(used[1], held_out[0])), (max(used[0], held_out[1]), used[1])]
    return [(first, stop) for first, stop in runs if first < stop]


def section_counts(images: Sequence[Volume]) -> list[int]:
    """Number of sections of each pair; 1 for a single image."""
    return [1 if raw.section_axis is None else raw.extent[raw.section_axis] for raw in images]


def _name_of(images: Sequence[Volume]) -> str:
    return images[0].path if len(images) == 1 else f"all {len(images)} pairs together"


def _without_named(used: Ends, held_out: Ends, count: int, *, named: bool) -> Ends:
    """Sections to train on beside those of ``--validation``; ``named``: ``used`` is the value of ``--sections``."""
    if not named:
        used = (0, held_out[0]) if held_out[0] > 0 else (held_out[1], count)
    option = f"--validation {held_out[0]}:{held_out[1]}"
    if held_out[0] < used[1] and used[0] < held_out[1]:
        if held_out[1] != used[1]:
            raise UnetcliError(
                f"{option}: overlaps the training sections {used[0]}:{used[1]}; give --sections without them"
            )
        used = (used[0], held_out[0])
    if used[0] >= used[1]:
        raise UnetcliError(f"{option}: leaves no section to train on; hold out fewer")
    return used


def held_out_count(count: int, fraction: float) -> int:
    """Number of held-out sections: at least one of two or more sections, unless the fraction is 0.

    >>> [held_out_count(n, 0.1) for n in (0, 1, 2, 25)]
    [0, 0, 1, 2]
    """
    return 0 if fraction == 0 else max(0, min(max(1, round(count * fraction)), count - 1))


def _resolve_validation(sections: Sections, count: int, name: str) -> Ends:
    """Resolve ``--validation``; errors name this option."""
    try:
        return resolve_sections(sections, count, name)
    except UnetcliError as error:
        raise UnetcliError(str(error).replace("--sections", "--validation")) from None


def by_pair(used: Ends, counts: Sequence[int]) -> Ranges:
    """Convert a range that is counted through all pairs to one range per pair.

    >>> by_pair((2, 7), [4, 5])
    ((2, 4), (0, 3))
    """
    ranges, before = [], 0
    for count in counts:
        first, stop = (min(max(end - before, 0), count) for end in used)
        ranges.append((first, stop))
        before += count
    return tuple(ranges)


def ranges_text(ranges: Ranges) -> str:
    """Format the sections of each pair.

    >>> ranges_text(((0, 20), (0, 5)))
    '0:20 and 0:5'
    >>> ranges_text(((0, 4),) * 200)
    '0:4 and 0:4 and 0:4 and 0:4 and .. (200 pairs)'
    """
    return listed([f"{a}:{b}" for a, b in ranges], "pairs", joint=" and ")
