"""One process of a training that runs as a SLURM job. Torch is imported once it knows which process it is."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING

from unetcli.core.errors import UnetcliError, one_line
from unetcli.core.process import prepare
from unetcli.core.signals import Signals
from unetcli.executors.slurm.worker import requeue_job
from unetcli.train.request import TrainRequest

if TYPE_CHECKING:
    from unetcli.train.train import TrainSummary

log = logging.getLogger(__name__)

USER, INCOMPLETE, BUG = 1, 3, 70
"""Exit codes, as the command's own; SLURM keeps the highest of all processes."""
PORTS = range(20_000, 60_000)
MASTER = "UNETCLI_MASTER"
"""Environment variable with the address of the first process, where its node's name does not resolve."""


def train_here(request: TrainRequest, place: str) -> None:
    """Join the others and train; SIGUSR2, before the time limit or for preemption, sends the job back into the queue.

    Called by submitit in each task of the job, again from the start after each requeue. It ends by SystemExit wherever
    work is left: submitit would note a return as a success, and an exception as one that it has to tell.
    """
    signals = Signals().listen()  # over submitit's own handlers: the work is told at its next step
    os.chdir(place)
    os.environ |= joining()
    first = os.environ["RANK"] == "0"
    logging.basicConfig(level=logging.INFO if first else logging.WARNING, format="%(message)s")
    prepare()  # before torch is imported
    try:
        summary = trained(of_this_life(request), signals, first)
        if not summary.finished:
            raise SystemExit(ended_early(signals) if first else 0)
    finally:
        # srun ends the others as soon as one has failed: that must not replace the exit code of who is about to leave
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def of_this_life(request: TrainRequest) -> TrainRequest:
    """A job that comes back keeps what its earlier life has done."""
    again = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    return replace(request, overwrite=False, take_over=False) if again else request


def trained(request: TrainRequest, signals: Signals, first: bool) -> TrainSummary:
    """How far it came; whatever goes wrong is one line of the log and an exit code."""
    from unetcli.train.train import train_model
    from unetcli.train.world import Deserted, Elsewhere

    try:
        summary = train_model(request, signals=signals)
    except Elsewhere:
        raise SystemExit(USER) from None
    except Deserted as error:
        if not first:  # SLURM keeps the highest code of all: the lowest leaves the word to whoever ended first
            raise SystemExit(USER) from None
        log.error("unetcli: %s", error)
        raise SystemExit(INCOMPLETE) from None
    except (UnetcliError, OSError) as error:
        log.error("unetcli: %s", one_line(error))
        raise SystemExit(USER) from None
    except Exception:
        traceback.print_exc()
        raise SystemExit(BUG) from None
    log.info("%s", summary.sentence)
    return summary


def ended_early(signals: Signals) -> int:
    """Exit code of the first process, once the job is in the queue again where it belongs there."""
    requeued = signals.stop() == signal.SIGUSR2 and requeue_job()
    return 0 if requeued else INCOMPLETE


def joining() -> dict[str, str]:
    """What tells torch which process of how many this is, and where the first one is."""
    words = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
    found = {ours: os.environ[theirs] for ours, theirs in words.items()}
    port = PORTS[int(os.environ["SLURM_JOB_ID"]) % len(PORTS)]  # jobs that share a node do not meet
    return {**found, "MASTER_ADDR": os.environ.get(MASTER) or first_host(), "MASTER_PORT": str(port)}


def first_host() -> str:
    """The job's first node, where SLURM starts process 0; this host itself where there is no other."""
    if os.environ.get("SLURM_JOB_NUM_NODES") == "1":
        return "127.0.0.1"
    command = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
