"""From label maps to what the network is to say: a class per pixel. Arrays in, arrays out."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.train.line import dividing_line, numbered

TRUTHS = ("binary", "instances", "classes")
IGNORED = 255
"""Class of pixels without truth: they weigh nothing. Classes are 0 (background) to 254."""
LINE = 1
"""Pixels of an object that the line takes where it touches another."""
FAINTEST = 1e-6
"""Where the exponential of eq. 2 falls below this, the raise is taken for 0."""
WIDEST_SIGMA = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthRules:
    """How labels become classes and loss weights; as the options of the same names say."""

    truth: str
    """``binary``: 0 is background, all else foreground. ``instances``: likewise, one number per object, and where two
    touch, a line of background between them. ``classes``: labels are classes, 0 is background."""
    w0: float = 10.0
    """Height of the raise between cells that nearly touch (eq. 2); 0 switches it off."""
    sigma: float = 5.0
    """Pixels over which the raise fades."""
    everywhere: bool = False
    """Raise the weight of all pixels, not of the background alone."""
    ignore: int | None = None
    """Label of pixels without truth."""
    partial: int | None = None
    """Background farther than this many pixels from every drawn cell has no truth."""

    def __post_init__(self) -> None:
        if self.truth not in TRUTHS:
            raise UnetcliError(f"--truth {self.truth}: expected {', '.join(TRUTHS[:-1])} or {TRUTHS[-1]}")
        if not 0 <= self.w0 < math.inf:
            raise UnetcliError(f"--w0 {self.w0:g}: expected 0 (no raise) or more; the paper has 10")
        if not 0 < self.sigma <= WIDEST_SIGMA:
            raise UnetcliError(
                f"--sigma {self.sigma:g}: expected pixels above 0, at most {WIDEST_SIGMA:g}; the paper has 5"
            )
        if self.partial is not None and self.partial < 1:
            raise UnetcliError(f"--partial {self.partial}: expected at least 1 pixel")

    @property
    def fade(self) -> float:
        """The largest d1 + d2, in pixels, that raises the weight: there the exponential is ``FAINTEST``.

        >>> round(TruthRules(truth="binary").fade, 2)
        26.28
        """
        return self.sigma * math.sqrt(-2 * math.log(FAINTEST)) if self.w0 else 0.0

    @property
    def reach(self) -> int:
        """Pixels around a window that its classes and raise depend on, where objects are no larger.

        Objects matter as a whole: whether two parts are one, and whether the line would make one vanish.

        >>> TruthRules(truth="instances").reach, TruthRules(truth="instances", partial=40).reach
        (28, 41)
        """
        return max(math.ceil(self.fade), self.partial or 0) + LINE

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TruthRules:
        return cls(**values)


def classes_of(labels: NDArray[Any], rules: TruthRules) -> NDArray[np.uint8]:
    """Class of each pixel, ``IGNORED`` where there is no truth.

    Parameters
    ----------
    labels : (y, x), integer or bool

    Returns
    -------
    (y, x), uint8

    Raises
    ------
    UnetcliError
        A label that is no class, or below 0.
    """
    untold = None if rules.ignore is None else labels == rules.ignore
    drawn = labels if untold is None else np.where(untold, np.zeros((), labels.dtype), labels)
    _require_numbers(drawn, rules)
    classes = (drawn if rules.truth == "classes" else drawn != 0).astype(np.uint8)
    if rules.truth == "instances":
        classes[dividing_line(numbered(drawn))] = 0
    if rules.partial is not None:
        classes[_far(drawn != 0, rules.partial)] = IGNORED
    if untold is not None:
        classes[untold] = IGNORED
    return classes


def is_empty(labels: NDArray[Any], rules: TruthRules) -> bool:
    """Whether nothing is drawn: all labels are 0 or ignored. Such sections are left out of training."""
    return not ((labels != 0) & (True if rules.ignore is None else labels != rules.ignore)).any()


def class_weights(counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """w_c(k) = n / (K n_k): every class weighs the same in the loss; 0 for a class that does not occur."""
    occurring = np.maximum(counts, 1)
    weights = counts.sum() / (len(counts) * occurring)
    return np.where(counts > 0, weights, 0).astype(np.float32)


def _require_numbers(drawn: NDArray[Any], rules: TruthRules) -> None:
    """Refuse numbers that cannot be what the rules say."""
    if rules.truth == "binary":
        return
    lowest, highest = int(drawn.min(initial=0)), int(drawn.max(initial=0))
    if lowest < 0:
        raise UnetcliError(
            f"label {lowest}; {rules.truth} are numbered 0, 1, 2, ..; --ignore {lowest} where it means no truth"
        )
    if rules.truth == "classes" and highest >= IGNORED:
        raise UnetcliError(
            f"class {highest}; classes are numbered 0 to {IGNORED - 1}; --ignore {highest} where it means no truth, "
            "numbers of objects are --truth instances"
        )


def _far(drawn: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Pixels farther than that from all that is drawn (Euclidean, between centres)."""
    from scipy import ndimage

    if not drawn.any():
        return np.ones(drawn.shape, np.bool_)
    far: NDArray[np.bool_] = ndimage.distance_transform_edt(~drawn) > pixels
    return far
