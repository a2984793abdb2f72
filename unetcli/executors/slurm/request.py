"""Resource requests to SLURM, and calls of its commands."""

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
"""Time limit of a SLURM command. A busy controller answers late; squeue gives up after several 10 s timeouts."""
REQUIRED_PROGRAMS = ("sbatch", "srun", "squeue", "sinfo", "scontrol", "scancel")
CLUSTER_VARIABLES = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS")
JOB_VARIABLES = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SUBMITIT_")
DEFAULTS = {"SBATCH_ACCOUNT": "account", "SBATCH_PARTITION": "partition", "SBATCH_QOS": "qos"}
"""Variables that a user may set at login. For sbatch they override options in scripts; here, options override them."""


class SlurmError(UnetcliError):
    """A SLURM command failed. The message is the one of the command, on one line."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        """Exit code of the command, negative if a signal ended it; None if it did not start or did not end."""


def call(*words: str) -> str:
    """Run a SLURM command and return its stdout.

    Raises
    ------
    SlurmError
        The command failed or did not answer in time.
    """
    return run(*words).stdout


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a SLURM command and return the completed process; raises as :func:`call`."""
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
    """Error message of a SLURM command on one line, without the command's name and repetitions.

    >>> reason_in("sbatch: error: invalid partition specified: x\\nsbatch: error: Batch job submission failed: No x\\n")
    'invalid partition specified: x; Batch job submission failed: No x'
    """
    lines = (re.sub(r"^(?:\w+: )?(?:(?:error|fatal): )?", "", line.strip()) for line in stderr.splitlines())
    return "; ".join(dict.fromkeys(line for line in lines if line))


def require_slurm() -> None:
    """Raise :class:`UnetcliError` unless jobs can be submitted to SLURM from this host."""
    if missing := [program for program in REQUIRED_PROGRAMS if shutil.which(program) is None]:
        raise UnetcliError(f"--cluster slurm: {', '.join(missing)} not on PATH; run it on a host of the cluster")
    try:
        call("sinfo", "-h", "-o", "%P")
    except SlurmError as error:
        raise UnetcliError(f"--cluster slurm: no cluster answers ({error}); run it on a host of the cluster") from None


def require_log_folder(folder: Path) -> None:
    """Raise :class:`UnetcliError` if SLURM cannot write the logs of jobs to a folder.

    In the name of a log file, a backslash keeps SLURM from replacing %j by the job's id (manual of sbatch).
    """
    if "\\" in str(place := folder.absolute()):
        raise UnetcliError(
            f"{place}: a backslash in the name of a folder, where SLURM does not put the id of a job into the names of "
            "its logs; use a folder without one"
        )


def array_limit() -> int:
    """Maximum number of elements of a job array on this cluster."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", call("scontrol", "show", "config"), re.MULTILINE)
    return max(1, int(found[1])) if found else 1001


def nodes(partition: str | None = None) -> set[str]:
    """Names of the nodes that accept jobs, optionally of one partition."""
    selection = ["-p", partition] if partition else []
    states = (line.split() for line in call("sinfo", "-h", "-N", "-o", "%N %T", *selection).splitlines())
    return {name for name, state in states if not state.startswith(("down", "drain", "fail", "inval", "maint"))}


def jobs_named(name: str) -> list[str]:
    """Ids of the user's jobs with the given name that SLURM still knows, including ended ones."""
    return call("squeue", "-h", "-r", "-t", "all", "-o", "%i", f"--name={name}", "--me").split()


def would_start(options: Mapping[str, str]) -> str:
    """Ask SLURM when and where it would start a job with these sbatch options.

    Raises
    ------
    UnetcliError
        SLURM is not available or would refuse the job.
    """
    require_slurm()
    flags = [f"--{name}" if value == "true" else f"--{name}={value}" for name, value in options.items()]
    with outside_of_jobs(options):
        try:
            return reason_in(run("sbatch", "--test-only", *flags, "--wrap=true").stderr)
        except SlurmError as error:
            raise UnetcliError(f"SLURM would refuse the jobs: {error}") from None


def requeue(job: str) -> None:
    """Requeue the job that this process runs in.

    SLURM then ends all processes of the job, perhaps including ``scontrol`` before it has received its answer. That
    counts as success.
    """
    try:
        call("scontrol", "requeue", job)
    except SlurmError as error:
        if error.code != -signal.SIGTERM:
            raise


def cancel(jobs: Iterable[str]) -> None:
    """Cancel jobs, together with all other jobs of their arrays."""
    if arrays := sorted({job.partition("_")[0] for job in jobs}):
        call("scancel", *arrays)


@contextmanager
def outside_of_jobs(options: Mapping[str, str]) -> Iterator[None]:
    """Remove the environment variables of the surrounding job, as submitted jobs would inherit its resources.

    Variables that locate the cluster stay, and so do the user's defaults that no option overrides.
    """
    kept = {*CLUSTER_VARIABLES, *(name for name, option in DEFAULTS.items() if option not in options)}
    removed = [name for name in os.environ if name.startswith(JOB_VARIABLES) and name not in kept]
    hidden = {name: os.environ.pop(name) for name in removed}
    try:
        yield
    finally:
        os.environ.update(hidden)


TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<fields>\d+(?::\d+){0,2})")
UNITS = "KMGT"
MEMORY = re.compile(r"\d+[KMGT]?B?", re.IGNORECASE)
SIGNAL_SECONDS = 90
"""SLURM sends SIGUSR2 this many seconds before the time limit; it may be a minute early."""
OPTION = re.compile(r"[a-z][a-z0-9-]*")
"""Long option of sbatch, without dashes."""
RESERVED = {
    "array": "its size follows from the number of blocks; use --blocks-per-job or --max-running",
    "output": "logs are in the run folder",
    "error": "logs are in the run folder",
    "nodes": "every job is one process on one node; for train, use --nodes",
    "ntasks": "every job is one process on one node; for train, use --tasks-per-node",
    "ntasks-per-node": "every job is one process on one node; for train, use --tasks-per-node",
    "job-name": "unetcli finds its jobs by this name",
    "wrap": "the job runs unetcli",
}
"""sbatch options that the user cannot set, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmRequest:
    """Resources that one job requests, in the notation of ``sbatch``; None leaves the choice to the site."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | None = None
    """``30`` (minutes), ``04:00:00`` or ``1-00:00:00``."""
    gpus: str | None = None
    """``1`` or ``a100:1``."""
    gres: str | None = None
    """``gpu:1``, for sites that require it."""
    mem: str | None = None
    """``16G``; a number without unit is in megabytes."""
    cpus_per_task: int | None = None
    constraint: str | None = None
    exclude: str | None = None
    setup: tuple[str, ...] = ()
    """Shell commands that run before unetcli starts, such as ``module load cuda``."""
    max_running: int | None = None
    """Maximum number of jobs of one array running at a time."""
    blocks_per_job: int | None = None
    extra: tuple[tuple[str, str], ...] = ()
    """Other ``sbatch`` options, names without dashes; the value ``true`` stands for a flag."""

    def __post_init__(self) -> None:
        if self.time is not None:
            minutes(self.time)
        if self.mem is not None and not MEMORY.fullmatch(self.mem):
            raise UnetcliError(f"mem: {self.mem!r} is not an amount of memory; expected, for example, 16G or 500M")
        for name in NUMBERS:
            if (value := getattr(self, name)) is not None and value < 1:
                raise UnetcliError(f"{name}: {value}; expected at least 1")
        for name, value in self.extra:
            if not OPTION.fullmatch(name) or not value.isprintable():
                text = name if value == "true" else f"{name}={value}"
                raise UnetcliError(
                    f"slurm option {text!r}: expected the name of an sbatch option, with or without a value, such as "
                    "reservation=course or exclusive"
                )
            if reason := RESERVED.get(name):
                raise UnetcliError(f"slurm option {name}: cannot be set ({reason})")
            if name.replace("-", "_") in FIELDS:
                raise UnetcliError(f"slurm option {name}: use the option --{name} instead")

    @classmethod
    def load(cls, profile: Path | None = None, **options: Any) -> SlurmRequest:
        """Read a profile and override its values with those options that are neither None nor empty.

        Raises
        ------
        UnetcliError
            The profile cannot be read, or has an unknown key or an invalid value; the message names valid ones.
        """
        read = read_toml(profile, "no such profile; slurm/gpu.toml is an example") if profile else {}
        values = {name.replace("-", "_"): value for name, value in read.items()}
        given = {name: value for name, value in options.items() if value not in (None, (), [], {})}
        place = str(profile) if profile else "SLURM options"
        extra = _extra(values.pop("extra", {}), place) | _extra(given.pop("extra", {}), place)
        values |= given
        if unknown := sorted(set(values) - set(FIELDS)):
            known = ", ".join(name.replace("_", "-") for name in FIELDS)
            raise UnetcliError(f"{place}: unknown key {unknown[0]!r}; expected {known}, or others in a table [extra]")
        typed = {name: _typed(name, value, place) for name, value in values.items()}
        return cls(**typed, extra=tuple(extra.items()))

    @property
    def limit_minutes(self) -> int | None:
        return None if self.time is None else minutes(self.time)

    @property
    def wants_gpu(self) -> bool:
        """Whether the job requests a GPU, by any of sbatch's options."""
        return bool(self.gpus) or "gpu" in (self.gres or "") or any(n.startswith("gpus-per-") for n, _ in self.extra)

    def without(self, hosts: str) -> SlurmRequest:
        """Return the request with further hosts excluded."""
        return replace(self, exclude=",".join(filter(None, [self.exclude, hosts])))

    def options(self) -> dict[str, str]:
        """Long options of sbatch, without leading dashes.

        >>> SlurmRequest(gpus="a100:1", mem="16G", extra=(("reservation", "course"),)).options()
        {'gpus': 'a100:1', 'mem': '16G', 'reservation': 'course'}
        """
        values = {name: getattr(self, name) for name in SBATCH_FIELDS}
        set_here = {name.replace("_", "-"): str(value) for name, value in values.items() if value is not None}
        return set_here | dict(self.extra)

    def submitit_parameters(self) -> dict[str, Any]:
        """Parameters for submitit's SLURM executor, which passes options it does not know to sbatch unchanged."""
        options: dict[str, Any] = {name: True if value == "true" else value for name, value in self.options().items()}
        limit = self.limit_minutes
        throttle = {"array_parallelism": self.max_running} if self.max_running else {}
        return {
            **throttle,
            "time": limit,
            "signal_delay_s": min(SIGNAL_SECONDS, limit * 60 // 4) if limit else SIGNAL_SECONDS,
            "setup": list(self.setup) or None,
            "wckey": None,  # sites that keep a list of keys refuse submitit's default
            # since SLURM 22.05 a step does not inherit the CPUs of its job
            "srun_args": [f"--cpus-per-task={self.cpus_per_task}"] if self.cpus_per_task else None,
            "stderr_to_stdout": True,
            "additional_parameters": {"requeue": True, **options},
        }


FIELDS = tuple(field.name for field in fields(SlurmRequest))


def memory_in_bytes(amount: str) -> int:
    """Amount of memory as sbatch understands it: without a unit, it is in MB; 0 is the whole node.

    >>> memory_in_bytes("16G"), memory_in_bytes("500"), memory_in_bytes("2048kb")
    (17179869184, 524288000, 2097152)
    """
    number, unit = re.fullmatch(r"(\d+)([KMGT]?)B?", amount, re.IGNORECASE).groups()  # type: ignore[union-attr]
    size: int = int(number) * 1024 ** (1 + UNITS.index(unit.upper() or "M"))
    return size


SBATCH_FIELDS = ("partition", "account", "qos", "time", "gpus", "gres", "mem", "cpus_per_task", "constraint", "exclude")
NUMBERS = ("cpus_per_task", "max_running", "blocks_per_job")


def minutes(time: str) -> int:
    """Parse a SLURM time limit, in minutes rounded up.

    >>> minutes("30"), minutes("04:00:00"), minutes("1-00:00:00"), minutes("2-12"), minutes("90:30")
    (30, 240, 1440, 3600, 91)
    """
    found = seconds(time)
    if not found:
        raise UnetcliError(f"time: {time!r} is not a time limit; expected 30 (minutes), 04:00:00 or 1-00:00:00")
    return -(-found // 60)


def seconds(time: str) -> int | None:
    """Parse a time in SLURM's notation, in seconds; None if the text is not a time.

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
    """Parse values of ``--slurm key=value``; a key without value is a flag.

    >>> parse_extra(["reservation=course", "exclusive", "--nice=10"])
    {'reservation': 'course', 'exclusive': 'true', 'nice': '10'}
    """
    pairs = (word.removeprefix("--").partition("=") for word in words)
    return {key: value if equals else "true" for key, equals, value in pairs}


def _typed(name: str, value: Any, place: str) -> Any:
    """Check and convert the value of a field: integers, the lines of ``setup``, and text for all others."""
    if name == "setup":
        lines = value.splitlines() if isinstance(value, str) else value
        if not isinstance(lines, list | tuple) or not all(isinstance(line, str) for line in lines):
            raise UnetcliError(f"{place}: setup is {value!r}; expected shell commands, such as ['module load cuda']")
        return tuple(lines)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UnetcliError(f"{place}: {name} is {value!r}; expected text or an integer")
    if name not in NUMBERS:
        return str(value)
    try:
        return int(value)
    except ValueError:
        raise UnetcliError(f"{place}: {name} is {value!r}; expected an integer") from None


def _extra(values: Any, place: str) -> dict[str, str]:
    if not isinstance(values, Mapping):
        raise UnetcliError(f"{place}: extra is {values!r}; expected a table [extra]")
    texts = {str(key).replace("_", "-"): value for key, value in values.items()}
    return {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in texts.items()}
