"""Training as one SLURM job of many processes: submitted, watched, and found again by the same command."""

from __future__ import annotations

import json
import logging
import os
import secrets
import subprocess
import time
from dataclasses import dataclass, replace

from unetcli.errors import UnetcliError
from unetcli.executors.slurm_commands import named
from unetcli.executors.slurm_request import SlurmRequest
from unetcli.executors.slurm_submit import log_of, submit_jobs, tidy
from unetcli.executors.slurm_watch import JobEnd, JobWatch, tail
from unetcli.files import replacing
from unetcli.lock import hold
from unetcli.signals import Signals
from unetcli.training.folder import TrainingFolder
from unetcli.training.learning import Report
from unetcli.training.request import TrainRequest
from unetcli.training.train import TrainSummary, resolve, summarise, train_model
from unetcli.training.world import World

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
PORTS = range(20_000, 60_000)
MASTER = "UNETCLI_MASTER"
"""Environment variable with the address of the first process, where its node's name does not resolve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """How many processes train together: one per GPU, or as many as asked for on CPUs."""

    nodes: int = 1
    gpus_per_node: int = 0
    tasks_per_node: int = 1

    def __post_init__(self) -> None:
        for name in ("nodes", "tasks_per_node"):
            if getattr(self, name) < 1:
                raise UnetcliError(f"--{name.replace('_', '-')} {getattr(self, name)}: at least 1")

    @property
    def on_each(self) -> int:
        return self.gpus_per_node or self.tasks_per_node


def launch(
    request: TrainRequest, slurm: SlurmRequest, processes: Processes, report: Report, signals: Signals, *, detach: bool
) -> TrainSummary | str:
    """Submit the training, or find its job, and wait for it; the job's id at once where ``detach``.

    An interrupt of the launcher leaves the job at work.

    Raises
    ------
    UnetcliError
        Bad input, told before anything is submitted; SLURM refuses; or the job failed, with its reason and log.
    """
    folder = TrainingFolder(request.output)
    done = None if request.overwrite else summarise(folder, request.steps, request.patience)
    if done is not None and done.finished:
        return done
    check(request, slurm, processes)
    folder.path.mkdir(parents=True, exist_ok=True)
    with hold(folder.path / "launcher", take_over=request.take_over):
        job = running(folder)
        if job and request.overwrite:
            raise UnetcliError(f"--overwrite: job {job} trains {folder.path}; scancel {job} first")
        job = job or submit(request, slurm, processes, folder)
        if detach:
            return job
        return wait(request, folder, job, report, signals)


def check(request: TrainRequest, slurm: SlurmRequest, processes: Processes) -> None:
    """Refuse here what the job would refuse, unless it needs a GPU that this host lacks."""
    if not (slurm.wants_gpu or processes.gpus_per_node):
        resolve_quietly(request)


def resolve_quietly(request: TrainRequest) -> None:
    """Whether a request can be trained; a number of steps is not looked for."""
    level = log.parent.level if log.parent else logging.NOTSET
    logging.getLogger("unetcli.training").setLevel(logging.WARNING)
    try:
        resolve(replace(request, steps=request.steps or 1), World())
    finally:
        logging.getLogger("unetcli.training").setLevel(level)


def running(folder: TrainingFolder) -> str | None:
    """The job of an earlier call that waits or runs."""
    record = folder.path / "slurm.json"
    if not record.exists():
        return None
    jobs = named(json.loads(record.read_text())["name"])
    if jobs:
        log.info("job %s is at work already", jobs[0])
    return jobs[0] if jobs else None


def submit(request: TrainRequest, slurm: SlurmRequest, processes: Processes, folder: TrainingFolder) -> str:
    """One job of all processes; recorded under its name before it is made."""
    name = f"unetcli-train-{secrets.token_hex(4)}"
    with replacing(folder.path / "slurm.json") as draft:
        draft.write_text(json.dumps({"name": name}))
    values = (request, os.getcwd())  # noqa: PTH109 - text that travels
    options = slurm.with_extra("gpus-per-node", processes.gpus_per_node) if processes.gpus_per_node else slurm
    jobs = submit_jobs(
        options, folder.jobs, train_here, [values], name=name, nodes=processes.nodes, tasks_per_node=processes.on_each
    )
    log.info("job %s: %d nodes with %d processes each", jobs[0], processes.nodes, processes.on_each)
    return jobs[0]


def wait(request: TrainRequest, folder: TrainingFolder, job: str, report: Report, signals: Signals) -> TrainSummary:
    """Show how far the job is until it ends."""
    name = json.loads((folder.path / "slurm.json").read_text())["name"]
    watch = JobWatch([job], every=LOOK_SECONDS, log_of=lambda job: log_of(folder.jobs, name, job))
    ends: list[JobEnd] = []
    while not ends and not signals.stopping():
        time.sleep(LOOK_SECONDS / 4)
        ends = watch.poll()
        tell(folder, report)
    summary = summarise(folder, request.steps, request.patience)
    if not ends:
        log.info("job %s stays at work; the same command attaches to it again", job)
    elif not (summary and summary.finished):
        end, said = ends[0], tail(log_of(folder.jobs, name, job))
        raise UnetcliError(f"job {job}: {end.reason}; {last_line(said)} (log: {log_of(folder.jobs, name, job)})")
    else:
        tidy(folder.jobs / name)
    if summary is None:
        raise UnetcliError(f"{folder.path}: nothing trained yet; the same command attaches to job {job}")
    return summary


def tell(folder: TrainingFolder, report: Report) -> None:
    """Progress as the log of the training has it."""
    frozen, rows = folder.frozen(), folder.rows()
    if frozen and rows:
        batch = frozen[0].optimisation.batch_size
        report(rows[-1]["step"] * batch, frozen[1] * batch, f"loss {rows[-1]['loss']:.3f}")


def last_line(said: str) -> str:
    """What unetcli said last in a job's log."""
    lines = [line for line in said.splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("unetcli: ") or line.startswith("error: ")]
    return (ours or lines or ["it said nothing"])[-1]


def train_here(request: TrainRequest, place: str) -> None:
    """One process of the job: joins the others and trains; SIGUSR2 before the time limit sends the job back."""
    import signal

    from unetcli.executors.slurm_requeue import requeue_job

    signals = Signals().listen()  # over submitit's own handlers: the work is told at its next step
    os.chdir(place)
    if int(os.environ.get("SLURM_RESTART_COUNT") or 0):
        request = replace(request, overwrite=False, take_over=False)  # its own earlier life's work is kept
    join()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        summary = train_model(request, signals=signals)
    except UnetcliError as error:
        log.error("unetcli: %s", error)
        raise SystemExit(1) from None
    log.info("%s", summary.sentence)
    if signals.stop() == signal.SIGUSR2 and not summary.finished:
        requeue_job()


def join() -> None:
    """Tell torch which process of how many this is, from what SLURM says."""
    words = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
    for ours, theirs in words.items():
        os.environ[ours] = os.environ.get(theirs, "0" if ours != "WORLD_SIZE" else "1")
    os.environ["MASTER_ADDR"] = os.environ.get(MASTER) or first_host()
    job = int(os.environ.get("SLURM_JOB_ID", "0"))
    os.environ["MASTER_PORT"] = str(PORTS[job % len(PORTS)])


def first_host() -> str:
    """The first node of the job; this host's own address where there is one node alone."""
    nodes = os.environ.get("SLURM_JOB_NODELIST", "")
    if not nodes or os.environ.get("SLURM_JOB_NUM_NODES") == "1":
        return "127.0.0.1"
    told = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    return told.stdout.split()[0]
