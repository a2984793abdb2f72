"""A job that puts itself back into the queue, for commands that run as a SLURM job of their own."""

from __future__ import annotations

import logging
import os
import re

from unetcli.core.lock import job_id
from unetcli.executors.slurm.commands import SlurmError, call, requeue

log = logging.getLogger(__name__)

SCRIPT_REQUEUES = "UNETCLI_SCRIPT_REQUEUES"
"""Set by a batch script that requeues its job itself, to that job's id: jobs submitted from it inherit the variable."""


def requeue_job() -> bool:
    """Put the job this process runs in back into the queue, once; whether this call did.

    Done by the first task of a batch job that runs: a cancelled one is over, and stays so. Where SLURM does not want
    to, a warning says why. SLURM ends the job at once, so everything has to be on disk, and the log says what is asked
    for before it is asked.
    """
    if not _ours_to_do():
        return False
    job = job_id()
    try:
        if not _runs_as_batch(call("scontrol", "show", "job", "-o", job)):
            return False
        log.info("job %s asks to go back into the queue, to continue there", job)
        requeue(job)
    except SlurmError as error:
        log.warning("job %s does not go back into the queue (%s); the same command continues", job, error)
        return False
    return True


def _ours_to_do() -> bool:
    """Whether this process is the one of its job to ask."""
    job = os.environ.get("SLURM_JOB_ID")
    first = os.environ.get("SLURM_PROCID", "0") == "0"
    return job is not None and first and os.environ.get(SCRIPT_REQUEUES) != job


def _runs_as_batch(told: str) -> bool:
    """Whether a job, in scontrol's words, runs and has a script that can be run again.

    >>> _runs_as_batch("JobId=7 JobName=a JobState=RUNNING Reason=None Requeue=1 BatchFlag=1")
    True
    >>> _runs_as_batch("JobId=7 JobName=a JobState=COMPLETING Reason=None Requeue=1 BatchFlag=1")
    False
    """
    found = dict(re.findall(r"\b(JobState|BatchFlag)=(\w+)", told))
    return found.get("JobState") == "RUNNING" and found.get("BatchFlag") == "1"
