"""What is asked of SLURM, and its commands."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from unetcli.core.errors import UnetcliError
from unetcli.core.records import read_toml

SECONDS = 60
"""A controller under load answers late; squeue itself gives up after a multiple of its MessageTimeout of 10 s."""
NEEDED = ("sbatch", "srun", "squeue", "sinfo", "scontrol", "scancel")
FINDS_THE_CLUSTER = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS")
JOB_VARIABLES = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SUBMITIT_")
DEFAULTS = {"SBATCH_ACCOUNT": "account", "SBATCH_PARTITION": "partition", "SBATCH_QOS": "qos"}
"""What a user may have in the shell's start-up file; unlike for sbatch, options go before it."""


class SlurmError(UnetcliError):
    """A SLURM command failed; the message is its own reason, in one line."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        """Exit code of the command, negative where a signal ended it; None where it was not run to its end."""


def call(*words: str) -> str:
    """What a SLURM command prints.

    Raises
    ------
    SlurmError
        It failed, or did not answer.
    """
    return run(*words).stdout


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """A SLURM command that ended well, with what it wrote to stdout and stderr; raises as :func:`call` does."""
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except FileNotFoundError:
        raise SlurmError(f"{words[0]}: not on PATH; run it on a host of the cluster") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{words[0]}: no answer from SLURM within {SECONDS} s") from None
    if done.returncode:
        reason = reason_in(done.stderr) or f"failed with exit code {done.returncode}"
        raise SlurmError(f"{words[0]}: {reason}", done.returncode)
    return done


def reason_in(stderr: str) -> str:
    """What a SLURM command wrote to stderr as one line, without its own name and repetitions.

    >>> reason_in("sbatch: error: invalid partition specified: x\\nsbatch: error: Batch job submission failed: No x\\n")
    'invalid partition specified: x; Batch job submission failed: No x'
    """
    lines = (re.sub(r"^(?:\w+: )?(?:(?:error|fatal): )?", "", line.strip()) for line in stderr.splitlines())
    return "; ".join(dict.fromkeys(line for line in lines if line))


def require_slurm() -> None:
    """Raise where there is no SLURM to submit to."""
    if missing := [program for program in NEEDED if shutil.which(program) is None]:
        raise UnetcliError(f"--cluster slurm: {', '.join(missing)} not on PATH; run it on a host of the cluster")
    try:
        call("sinfo", "-h", "-o", "%P")
    except SlurmError as error:
        raise UnetcliError(f"--cluster slurm: no cluster answers ({error}); run it on a host of the cluster") from None


def array_limit() -> int:
    """Elements that one array may have here."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", call("scontrol", "show", "config"), re.MULTILINE)
    return max(1, int(found[1])) if found else 1001


def nodes(partition: str | None = None) -> set[str]:
    """Names of the nodes that take jobs."""
    where = ["-p", partition] if partition else []
    states = (line.split() for line in call("sinfo", "-h", "-N", "-o", "%N %T", *where).splitlines())
    return {name for name, state in states if not state.startswith(("down", "drain", "fail", "inval", "maint"))}


def named(name: str) -> list[str]:
    """Jobs of that name that SLURM still knows, ended ones too."""
    return call("squeue", "-h", "-r", "-t", "all", "-o", "%i", f"--name={name}", "--me").split()


def would_start(options: Mapping[str, str]) -> str:
    """When and where SLURM would start a job with these options of sbatch.

    Raises
    ------
    UnetcliError
        No SLURM here, or it would refuse.
    """
    require_slurm()
    flags = [f"--{name}" if value == "true" else f"--{name}={value}" for name, value in options.items()]
    with outside_of_jobs(options):
        try:
            return reason_in(run("sbatch", "--test-only", *flags, "--wrap=true").stderr)
        except SlurmError as error:
            raise UnetcliError(f"SLURM would refuse the jobs: {error}") from None


def requeue(job: str) -> None:
    """Put the job this process runs in back into the queue.

    SLURM then ends all processes of the job, and ``scontrol`` may be among them before it has its answer. That is a
    success, whatever ``scontrol`` printed until then.
    """
    try:
        call("scontrol", "requeue", job)
    except SlurmError as error:
        if error.code != -signal.SIGTERM:
            raise


def cancel(jobs: Iterable[str]) -> None:
    """End jobs, whole arrays at once."""
    if arrays := sorted({job.partition("_")[0] for job in jobs}):
        call("scancel", *arrays)


@contextmanager
def outside_of_jobs(options: Mapping[str, str]) -> Iterator[None]:
    """Within, the variables of the job this may run in are gone: jobs submitted with them would ask for what it has.

    How the cluster is found stays, and so do the user's defaults where the options say nothing.
    """
    kept = {*FINDS_THE_CLUSTER, *(name for name, option in DEFAULTS.items() if option not in options)}
    ours = [name for name in os.environ if name.startswith(JOB_VARIABLES) and name not in kept]
    hidden = {name: os.environ.pop(name) for name in ours}
    try:
        yield
    finally:
        os.environ.update(hidden)


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
