"""What a user asks of status and of verify."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from unetcli.core.errors import UnetcliError
from unetcli.core.files import Place, place_of
from unetcli.core.options import Heading, Options, argument, device_option, option, take_over_option


@dataclass(frozen=True, kw_only=True)
class RunRequest(Options):
    """Runs that write one output: one call of status."""

    output: Place = field(
        kw_only=False,
        metadata=argument("What predict writes or wrote, or labels in it: OUTPUT/labels/instances.", "OUTPUT"),
    )
    step: str | None = option(
        "Only predict, pyramid (coarser levels), instances (labels' name) or evaluate.", Heading.RUN, metavar="NAME"
    )
    run_folder: Path | None = option("Folder of plan and receipts. Default: below OUTPUT.run.", Heading.FILES)


@dataclass(frozen=True, kw_only=True)
class VerifyRequest(RunRequest):
    """One call of verify."""

    blocks: bool = option("Read every block back.", Heading.CHECKS, default=True, negative="--no-blocks")
    repair: bool = option("Compute damaged and missing blocks again.", Heading.CHECKS, default=False)
    seams: int = option(
        "Compute N windows across block borders again in other tiles, and compare.",
        Heading.CHECKS,
        default=0,
        metavar="N",
        min=0,
    )
    input: bool = option("Report whether volume or model changed since.", Heading.CHECKS, default=False)
    device: str | None = device_option()
    take_over: bool = take_over_option()
    retries: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", place_of(self.output))
        super().__post_init__()
        if self.repair and not self.blocks:
            raise UnetcliError("--repair reads every block back; without --no-blocks it can")
