"""From options as typed to the requests of the library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unetcli.config import PredictRequest, Where

WHERE = ("cluster", "workers", "scheduler", "tls", "profile", "detach")
SLURM = (
    *("partition", "account", "qos", "time", "gpus", "gres", "mem", "cpus_per_task", "constraint", "exclude", "setup"),
    *("max_running", "blocks_per_job"),
)


def asked(options: Mapping[str, Any]) -> tuple[PredictRequest, Where]:
    """What the options of predict, or of plan, mean; those that a command does not have are left out."""
    from unetcli.config import PredictRequest, parse_levels, parse_roi, parse_sections, parse_tile

    read: dict[str, Callable[[Any], Any]] = {
        "tile": parse_tile,
        "sections": parse_sections,
        "roi": parse_roi,
        "levels": parse_levels,
    }
    values: dict[str, Any] = {name: read[name](value) if name in read else value for name, value in options.items()}
    return (
        PredictRequest(**{field.name: values[field.name] for field in fields(PredictRequest) if field.name in values}),
        asked_where(values),
    )


def asked_where(options: Mapping[str, Any]) -> Where:
    """On which machines, by the options of a command that runs blocks."""
    from unetcli.config import Where
    from unetcli.executors.slurm.request import parse_extra

    slurm = {name: options.get(name) for name in SLURM} | {"extra": parse_extra(options.get("slurm") or [])}
    return Where(**{name: options[name] for name in WHERE if name in options}, slurm=slurm)
