"""Meaning of training labels: two values, objects or classes, and the value of each class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from unetcli.core.arrays import distinct_values
from unetcli.core.errors import UnetcliError, note
from unetcli.core.geometry import Box
from unetcli.core.label_values import COLOURED, IGNORED, LabelValues, option_text, value_text, value_texts, values_text
from unetcli.train.settings import TRUTHS, require_one_of
from unetcli.volumes.label_fringe import fringe_text
from unetcli.volumes.volume import Volume

MAX_VALUES = 1000
"""Number of different labels after which counting stops."""
FEW_VALUES, MAX_MAPPED = 8, 32
"""Numbers of values below which one of them may mark what is not annotated, and up to which values with gaps are taken
for classes without being named."""
Regions = Sequence[tuple[Volume, Box]]
"""Regions of labels; those of one volume are taken together."""


def resolve_truth(truth: str, labels: Regions, ignore: int | None = None, background: int | None = None) -> str:
    """Meaning of labels: ``truth`` as given, or for ``auto`` binary, if each volume has at most two label values.

    Parameters
    ----------
    truth : str
        Value of ``--truth``.
    labels : sequence of (Volume, Box)
    ignore : int, optional
        Label value that is not counted.
    background : int, optional
        Value of ``--background``.

    Raises
    ------
    UnetcliError
        The word is unknown, or with ``auto`` a volume has more than two values, or two without background.
    """
    if truth in TRUTHS:
        return truth
    require_one_of("truth", truth, ("auto", *TRUTHS))
    for volume, values in _values_by_volume(labels, ignore):
        _require_two(volume, values, background)
    return "binary"


def _require_two(labels: Volume, values: Sequence[int], background: int | None) -> None:
    """Raise UnetcliError if labels have more than two values, or two of which none is background."""
    texts, number = value_texts(values), f"{labels.path}: {len(values)} different values"
    if len(values) > 2 and (text := fringe_text(labels)):
        raise UnetcliError(f"{labels.path}: {text}")
    if len(values) > 2 and values[0] < 0 and values[0] != background:
        raise UnetcliError(
            f"{number} from {texts[0]} to {texts[-1]}; --ignore {texts[0]} leaves {texts[0]} out, if it marks what is "
            f"not annotated, --background {texts[0]} makes it background"
        )
    if len(values) > 2:
        shown = ", ".join(texts[:4]) + (f", .. {texts[-1]}" if len(values) > 4 else "")
        other = _doubtful(values) if len(values) < FEW_VALUES else None
        raise UnetcliError(
            f"{number} ({shown}); state their meaning: --truth instances (one number per object), --truth classes (one "
            "per class) or --truth binary (all but 0 is foreground)"
            f"{'' if other is None else f'; or --ignore {other}, if {other} marks what is not annotated'}"
        )
    if len(values) == 2 and (background or 0) not in values:
        raise UnetcliError(
            f"{labels.path}: the values {' and '.join(texts)} without {value_text(background or 0)}, the background; "
            f"--background {option_text(values[0])} or --background {option_text(values[1])} says which one is"
        )


def resolve_class_values(
    given: Sequence[int] | None, labels: Regions, ignore: int | None, background: int | None = None
) -> tuple[int, ...] | None:
    """Label value of each class over all regions; None if the values are the numbers 0, 1, 2, .. themselves.

    Parameters
    ----------
    given : sequence of int, optional
        Value of ``--classes``; empty for the numbers. Default: the values that occur, in ascending order.
    labels : sequence of (Volume, Box)
    ignore : int, optional
        Label value that is no class.
    background : int, optional
        Value of ``--background``, which comes first. Default: the lowest one.

    Raises
    ------
    UnetcliError
        Values occur that are not given, or it is not clear which values are classes.
    """
    if given is not None and not given:
        return None
    found = {value: volume for volume, values in _values_by_volume(labels, ignore) for value in values}
    values = sorted(found)
    if given is not None:
        if other := [value for value in values if value not in given]:
            lost = option_text(other[0])
            raise UnetcliError(
                f"{found[other[0]].path}: label {lost} is none of --classes {option_text(*given)}; add it, or --ignore "
                f"{lost} leaves it out"
            )
        return tuple(given)
    if background is not None:
        if background not in values:
            raise UnetcliError(f"--background {option_text(background)}: expected one of {values_text(values)}")
        values = [background, *(value for value in values if value != background)]
    if len(values) < 2 or values == list(range(len(values))):
        return None
    _require_clear(found[values[-1]], values, known=background is not None)
    chosen = LabelValues(classes=tuple(values))
    note(f"values of the labels by class: {chosen.table}; --classes states another order")
    return chosen.classes


def _require_clear(labels: Volume, values: Sequence[int], *, known: bool) -> None:
    """Raise UnetcliError if it is not clear that all values are classes, and that the first one is background.

    ``known``: the user has said that it is background.
    """
    texts = value_texts(values)
    shown = f"{labels.path}: --truth classes, but the values are {values_text(values)}"
    classes = f"--classes {option_text(*values)}"
    if text := fringe_text(labels):
        raise UnetcliError(f"{labels.path}: {text}, with --truth binary")
    if len(values) > MAX_MAPPED:
        raise UnetcliError(
            f"{shown}; name the values of up to {IGNORED} classes (--classes V,V,..); --truth instances reads labels "
            "as numbers of objects"
        )
    if values[0] < 0 and not known:
        raise UnetcliError(f"{shown}; --ignore {texts[0]} leaves {texts[0]} out, {classes} makes it the background")
    if values[0] >= COLOURED and not known:
        hint = f"--background {option_text(values[0])} or another one says which is background"
        raise UnetcliError(f"{shown}, without black or grey; {hint}")
    if max(values) == IGNORED and 0 in values and len(values) > 2:
        doubtful = _doubtful(values)
        raise UnetcliError(f"{shown}; {classes} makes each a class, --ignore {doubtful} leaves {doubtful} out")


def _doubtful(values: Sequence[int]) -> int | None:
    """The value that may mark what is not annotated: one below 0, 255, or the one between 0 and 255."""
    low, high = min(values), max(values)
    if low < 0:
        return low
    between = [value for value in values if 1 < value < high]
    return None if high != IGNORED else between[0] if len(values) == 3 and between else IGNORED


def _values_by_volume(labels: Regions, ignore: int | None) -> Iterator[tuple[Volume, list[int]]]:
    """Each volume, and its label values in all its regions."""
    for volume in {id(volume): volume for volume, _ in labels}.values():
        regions = [region for other, region in labels if other is volume]
        found = {value for region in regions for value in label_values(volume, region)}
        yield volume, sorted(value for value in found if value != ignore)


def label_values(labels: Volume, region: Box) -> list[int]:
    """Different label values of a region, sorted; reading stops once there are more than ``MAX_VALUES``."""
    values: set[int] = set()
    for box in region.planes():
        if labels.is_absent(box):
            box = Box(box.start, tuple(a + 1 for a in box.start))
        values.update(distinct_values(labels.read(box)).tolist())
        if len(values) > MAX_VALUES:
            break
    return sorted(values)
