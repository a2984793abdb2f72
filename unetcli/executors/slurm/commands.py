"""SLURM's commands as functions: what they print, or one line that says why they failed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from unetcli.core.errors import UnetcliError

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
