"""What a job asks of SLURM, read from a profile in TOML and from options, in SLURM's own words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from unetcli.core.errors import UnetcliError
from unetcli.core.toml import read_toml

TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<fields>\d+(?::\d+){0,2})")
MEMORY = re.compile(r"\d+[KMGT]?B?", re.IGNORECASE)
SIGNAL_SECONDS = 90
"""Before the time limit, SLURM (it may be a minute early) tells the job by SIGUSR2."""
RESERVED = {
    "array": "the blocks decide how many elements there are; --blocks-per-job, --max-running",
    "output": "logs are in the run folder",
    "error": "logs are in the run folder",
    "nodes": "every job is one process on one node; those of train have --nodes",
    "ntasks": "every job is one process on one node; those of train have --tasks-per-node",
    "ntasks-per-node": "every job is one process on one node; those of train have --tasks-per-node",
    "job-name": "jobs are found again by it",
    "wrap": "the job runs unetcli",
}
"""sbatch options that unetcli sets itself, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmRequest:
    """What one job asks for; None leaves the choice to the site. Values are written as for ``sbatch``."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | None = None
    """``30`` (minutes), ``04:00:00`` or ``1-00:00:00``."""
    gpus: str | None = None
    """``1`` or ``a100:1``."""
    gres: str | None = None
    """``gpu:1``, for sites that want it so."""
    mem: str | None = None
    """``16G``; a bare number is megabytes."""
    cpus_per_task: int | None = None
    constraint: str | None = None
    exclude: str | None = None
    setup: tuple[str, ...] = ()
    """Lines of shell before unetcli starts, as in ``module load cuda``."""
    max_running: int | None = None
    """Of one array's jobs at a time."""
    blocks_per_job: int | None = None
    extra: tuple[tuple[str, str], ...] = ()
    """Any other option of ``sbatch``, without its dashes; the value ``true`` is a bare flag."""

    def __post_init__(self) -> None:
        if self.time is not None:
            minutes(self.time)
        if self.mem is not None and not MEMORY.fullmatch(self.mem):
            raise UnetcliError(f"mem: {self.mem!r} is no amount of memory; SLURM writes 16G or 500M")
        for name in NUMBERS:
            if (value := getattr(self, name)) is not None and value < 1:
                raise UnetcliError(f"{name}: {value} is too few; 1 or more")
        for name, _ in self.extra:
            if reason := RESERVED.get(name):
                raise UnetcliError(f"slurm option {name}: set by unetcli ({reason})")
            if name.replace("-", "_") in FIELDS:
                raise UnetcliError(f"slurm option {name}: has an option of its own, --{name}")

    @classmethod
    def load(cls, profile: Path | None = None, **options: Any) -> SlurmRequest:
        """The profile's request with options put over it; options that are None or empty leave it as it is.

        Raises
        ------
        UnetcliError
            The profile cannot be read, or a key or value is none of ours; the message names those that are.
        """
        read = read_toml(profile, "no such profile; slurm/gpu.toml is an example") if profile else {}
        values = {name.replace("-", "_"): value for name, value in read.items()}
        given = {name: value for name, value in options.items() if value not in (None, (), [], {})}
        place = str(profile) if profile else "SLURM options"
        extra = _extra(values.pop("extra", {}), place) | _extra(given.pop("extra", {}), place)
        values |= given
        if unknown := sorted(set(values) - set(FIELDS)):
            known = ", ".join(name.replace("_", "-") for name in FIELDS)
            raise UnetcliError(f"{place}: unknown key {unknown[0]!r}; known are {known}; others go under [extra]")
        typed = {name: _typed(name, value, place) for name, value in values.items()}
        return cls(**typed, extra=tuple(extra.items()))

    @property
    def limit_minutes(self) -> int | None:
        return None if self.time is None else minutes(self.time)

    @property
    def wants_gpu(self) -> bool:
        """Whether the job asks for a GPU, in whichever of the sites' ways."""
        return bool(self.gpus) or "gpu" in (self.gres or "") or any(n.startswith("gpus-per-") for n, _ in self.extra)

    def with_extra(self, name: str, value: object) -> SlurmRequest:
        """The same with another option of ``sbatch``."""
        return replace(self, extra=(*self.extra, (name, str(value))))

    def without(self, hosts: str) -> SlurmRequest:
        """The same, and not on these hosts."""
        return replace(self, exclude=",".join(filter(None, [self.exclude, hosts])))

    def options(self) -> dict[str, str]:
        """sbatch's long options, without dashes before them.

        >>> SlurmRequest(gpus="a100:1", mem="16G", extra=(("reservation", "course"),)).options()
        {'gpus': 'a100:1', 'mem': '16G', 'reservation': 'course'}
        """
        values = {name: getattr(self, name) for name in SBATCH_FIELDS}
        set_here = {name.replace("_", "-"): str(value) for name, value in values.items() if value is not None}
        return set_here | dict(self.extra)

    def submitit_parameters(self) -> dict[str, Any]:
        """For submitit's SLURM executor; it writes what it does not know by name as given."""
        options: dict[str, Any] = {name: True if value == "true" else value for name, value in self.options().items()}
        limit = self.limit_minutes
        throttle = {"array_parallelism": self.max_running} if self.max_running else {}
        return {
            **throttle,
            "time": limit,
            "signal_delay_s": min(SIGNAL_SECONDS, limit * 60 // 4) if limit else SIGNAL_SECONDS,
            "setup": list(self.setup) or None,
            "wckey": None,  # submitit's own is refused by sites that keep a list
            # since 22.05 a step does not inherit the CPUs of its job
            "srun_args": [f"--cpus-per-task={self.cpus_per_task}"] if self.cpus_per_task else None,
            "stderr_to_stdout": True,
            "additional_parameters": {"requeue": True, **options},
        }


FIELDS = tuple(field.name for field in fields(SlurmRequest))
SBATCH_FIELDS = ("partition", "account", "qos", "time", "gpus", "gres", "mem", "cpus_per_task", "constraint", "exclude")
NUMBERS = ("cpus_per_task", "max_running", "blocks_per_job")


def minutes(time: str) -> int:
    """A time limit as SLURM writes it, in minutes rounded up.

    >>> minutes("30"), minutes("04:00:00"), minutes("1-00:00:00"), minutes("2-12"), minutes("90:30")
    (30, 240, 1440, 3600, 91)
    """
    found = seconds(time)
    if not found:
        raise UnetcliError(f"time: {time!r} is no time limit; SLURM writes 30 (minutes), 04:00:00 or 1-00:00:00")
    return -(-found // 60)


def seconds(time: str) -> int | None:
    """A time as SLURM reads and writes it, in seconds; None where it is none.

    >>> seconds("9:58"), seconds("1-02:00:00"), seconds("UNLIMITED")
    (598, 93600, None)
    """
    found = TIME.fullmatch(time.strip())
    if not found:
        return None
    parts = [int(part) for part in found["fields"].split(":")]
    if found["days"] is None and len(parts) < 3:  # minutes[:seconds], not hours[:minutes[:seconds]]
        parts = [0, *parts]
    hours, mins, secs = [*parts, 0, 0][:3]
    return int(found["days"] or 0) * 86400 + hours * 3600 + mins * 60 + secs


def parse_extra(words: list[str]) -> dict[str, str]:
    """``--slurm key=value`` options; a key alone is a flag.

    >>> parse_extra(["reservation=course", "exclusive", "--nice=10"])
    {'reservation': 'course', 'exclusive': 'true', 'nice': '10'}
    """
    pairs = (word.removeprefix("--").partition("=") for word in words)
    return {key: value if equals else "true" for key, equals, value in pairs}


def _typed(name: str, value: Any, place: str) -> Any:
    """The value of a field: numbers stay numbers, setup is lines, all else is text as sbatch takes it."""
    if name == "setup":
        lines = value.splitlines() if isinstance(value, str) else value
        if not isinstance(lines, list | tuple) or not all(isinstance(line, str) for line in lines):
            raise UnetcliError(f"{place}: setup is {value!r}; lines of shell would do, as in ['module load cuda']")
        return tuple(lines)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UnetcliError(f"{place}: {name} is {value!r}; text or a whole number would do")
    if name not in NUMBERS:
        return str(value)
    try:
        return int(value)
    except ValueError:
        raise UnetcliError(f"{place}: {name} is {value!r}; a whole number would do") from None


def _extra(values: Any, place: str) -> dict[str, str]:
    if not isinstance(values, Mapping):
        raise UnetcliError(f"{place}: extra is {values!r}; a table [extra] would do")
    texts = {str(key).replace("_", "-"): value for key, value in values.items()}
    return {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in texts.items()}
