"""Which sections serve training, and which are held out to judge by: never random neighbours, which look alike."""

from __future__ import annotations

from collections.abc import Sequence

from unetcli.core.errors import UnetcliError
from unetcli.core.sections import Sections, resolve_sections
from unetcli.train.request import TrainRequest
from unetcli.train.settings import Ranges
from unetcli.volumes.volume import Volume

VALIDATION_FRACTION = 0.1


def split(request: TrainRequest, images: Sequence[Volume]) -> tuple[Ranges, Ranges]:
    """Training sections of each pair and those held out: the last of each, never random neighbours, which look alike.

    Sections are counted through all pairs in their order.
    """
    counts = [1 if raw.section_axis is None else raw.extent[raw.section_axis] for raw in images]
    named = images[0].path if len(images) == 1 else f"all {len(images)} pairs together"
    used = resolve_sections(request.sections, sum(counts), named)
    if request.validation is not None:
        held_out = resolve_validation(request.validation, sum(counts), named)
        if request.sections == (None, None):
            used = (0, held_out[0]) if held_out[0] > 0 else (held_out[1], sum(counts))
        if held_out[0] < used[1] and used[0] < held_out[1]:
            if held_out[1] != used[1]:
                raise UnetcliError(
                    f"--validation {held_out[0]}:{held_out[1]}: inside the training sections {used[0]}:{used[1]}; "
                    "give --sections that do not overlap it"
                )
            used = (used[0], held_out[0])
        if used[0] >= used[1]:
            raise UnetcliError(f"--validation {held_out[0]}:{held_out[1]}: leaves no section to train on")
        return by_pair(used, counts), by_pair(held_out, counts)
    fraction = VALIDATION_FRACTION if request.validation_fraction is None else request.validation_fraction
    if not 0 <= fraction < 1:
        raise UnetcliError(f"--validation-fraction {fraction}: expected 0 up to, not with, 1")
    ranges = by_pair(used, counts)
    held = tuple(held_out_of(b - a, fraction) for a, b in ranges)
    training = tuple((a, b - n) for (a, b), n in zip(ranges, held, strict=True))
    return training, tuple((b - n, b) for (_, b), n in zip(ranges, held, strict=True))


def held_out_of(count: int, fraction: float) -> int:
    """How many of ``count`` sections are held out: one at least, where there are two and any are wanted.

    >>> [held_out_of(n, 0.1) for n in (0, 1, 2, 25)]
    [0, 0, 1, 2]
    """
    return 0 if fraction == 0 else max(0, min(max(1, round(count * fraction)), count - 1))


def resolve_validation(asked: Sections, count: int, named: str) -> tuple[int, int]:
    try:
        return resolve_sections(asked, count, named)
    except UnetcliError as error:
        raise UnetcliError(str(error).replace("--sections", "--validation")) from None


def by_pair(used: tuple[int, int], counts: Sequence[int]) -> Ranges:
    """A range of sections counted through all pairs, as one range of each.

    >>> by_pair((2, 7), [4, 5])
    ((2, 4), (0, 3))
    """
    ranges, before = [], 0
    for count in counts:
        first, stop = (min(max(end - before, 0), count) for end in used)
        ranges.append((first, stop))
        before += count
    return tuple(ranges)
