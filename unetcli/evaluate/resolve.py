"""One evaluation: request, volumes and plan, brought together and checked before anything is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Box
from unetcli.evaluate.counting import count_block, labels_of, probabilities, reference_of
from unetcli.evaluate.counts import Counts
from unetcli.evaluate.kinds import Kind, is_mask, kind_of, metrics_of, objects_go_through
from unetcli.evaluate.pairing import Pair
from unetcli.evaluate.plan import EvaluationPlan, Settings, choose_block
from unetcli.evaluate.request import PROBABILITY, EvaluateRequest
from unetcli.evaluate.result import Section, SectionImages
from unetcli.volumes.fingerprint import fingerprint
from unetcli.volumes.volume import describe

PIECES = "the truth is a mask; its objects are what is 4-connected in a section"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """A request with all that it means."""

    request: EvaluateRequest
    pair: Pair
    plan: EvaluationPlan
    notes: tuple[str, ...]

    @classmethod
    def of(cls, request: EvaluateRequest) -> Evaluated:
        """Resolve a request; nothing is written.

        Raises
        ------
        UnetcliError
            Anything about the request that the user can put right.
        """
        pair = Pair.open(request)
        region, kind = pair.select(request), kind_of(request, pair.prediction)
        metrics = metrics_of(request, kind.name, pair.prediction)
        pieces = bool({"cells", "voi"} & set(metrics)) and not request.three_d and is_mask(pair.truth)
        three_d, said = resolve_three_d(request, pair, region, kind, metrics) if not pieces else (False, PIECES)
        settings = Settings(
            metrics=metrics,
            kind=kind.name,
            threshold=request.threshold,
            three_d=three_d,
            pieces=pieces,
            ignore=request.ignore,
            level=request.level,
        )
        plan = EvaluationPlan(
            axes=pair.axes,
            start=region.start,
            stop=region.stop,
            offset=pair.offset,
            block_shape=choose_block(region, pair.prediction.chunks, settings, request.block_voxels),
            settings=settings,
            prediction=fingerprint(pair.prediction),
            truth=fingerprint(pair.truth),
            mask=pair.mask.fingerprint(region) if pair.mask else None,
        )
        return cls(request=request, pair=pair, plan=plan, notes=tuple(filter(None, [*notes_on(kind, plan), said])))

    def count(self, number: int) -> Counts:
        """Counts of one block."""
        return count_block(self.plan, self.pair, number)

    def places(self) -> list[tuple[tuple[int, ...], str]]:
        """Coordinates and name of each section."""
        axes = self.plan.axes[:-2]
        starts = (self.plan.section_box(number).start[:-2] for number in range(self.plan.sections))
        return [(lead, " ".join(map("{} {}".format, axes, lead)) or "image") for lead in starts]

    def images(self, section: Section) -> SectionImages:
        """What one section was judged by."""
        settings = self.plan.settings
        piece = next(self.pair.read(self.plan.section_box(section.number)).planes())
        found = probabilities(piece.stored, self.pair.prediction.path) if settings.kind == PROBABILITY else None
        values = piece.stored if found is None else found
        integers = settings.has_objects or settings.kind != PROBABILITY
        labels = labels_of(values, settings.threshold) if integers else None
        true = reference_of(piece.reference, pieces=settings.pieces) if settings.has_objects else None
        return SectionImages(
            reference=piece.reference, true_objects=true, probability=found, labels=labels, judged=piece.judged
        )

    def thresholds(self) -> dict[str, float]:
        """Of foreground, and of the components that are objects, where there are such."""
        settings = self.plan.settings
        if settings.kind != PROBABILITY:
            return {}
        asked = {"foreground": "pixels" in settings.metrics, "objects": settings.has_objects}
        return {name: settings.threshold for name, applies in asked.items() if applies}

    def judged(self) -> dict[str, Any]:
        """What was judged: has to be the same for two predictions that are compared."""
        settings = self.plan.settings
        return {
            "truth": self.pair.truth.path,
            "truth_fingerprint": self.plan.truth,
            "region": describe(self.plan.region, self.plan.axes),
            "sections": self.plan.sections,
            "ignore": settings.ignore,
            "mask": self.plan.mask,
            "level": settings.level,
            "objects": objects_in_words(settings) if settings.has_objects else None,
        }

    def require_probabilities(self, counts: Counts) -> None:
        """Refuse a mask of 0 and 1 stored as uint8, which would read as probabilities of 0 and 1/255."""
        is_uint8 = self.plan.settings.kind == PROBABILITY and self.pair.prediction.dtype == np.uint8
        if is_uint8 and self.request.kind is None and 0 < counts.highest <= np.float32(1) / np.float32(255):
            raise UnetcliError(
                f"{self.pair.prediction.path}: 0 and 1 as uint8 mean 0 and 1/255; "
                "store a mask as bool or as 0 and 255, or --kind labels"
            )


def resolve_three_d(
    request: EvaluateRequest, pair: Pair, region: Box, kind: Kind, metrics: Sequence[str]
) -> tuple[bool, str]:
    """Whether objects go through sections, and what to say about it."""
    if not {"cells", "voi"} & set(metrics):
        return False, ""
    if request.three_d and "z" not in pair.axes:
        raise UnetcliError(f"--three-d: {pair.truth.path} has axes {', '.join(pair.axes)}, no z")
    if kind.name == PROBABILITY:
        if request.three_d:
            raise UnetcliError(
                f"--three-d: {pair.prediction.path} holds probabilities, whose components are found section by "
                "section; `unetcli label --three-d` makes objects first"
            )
        return False, ""
    return objects_go_through(pair, region) if request.three_d is None else (request.three_d, "")


def notes_on(kind: Kind, plan: EvaluationPlan) -> list[str]:
    """How the prediction was taken."""
    found = [f"the prediction is taken for {kind.name} ({kind.because})"] if kind.because else []
    if plan.settings.kind == PROBABILITY and plan.settings.has_objects:
        found.append(
            f"objects are what is 4-connected in a section above {plan.settings.threshold:g}; "
            "`unetcli label` makes better ones where they touch"
        )
    return found


def objects_in_words(settings: Settings) -> str:
    """What is an object."""
    return "through all sections" if settings.three_d else "each section alone"
