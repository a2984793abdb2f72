"""Private, temporary SLURM cluster for tests. It uses free ports, and needs no file in /etc, no systemd and no root.

Needs the programs of Debian's packages slurm-wlm and munge. One machine simulates several nodes, whose GPUs are links
to /dev/null. The cluster has no accounting, as unetcli must work without ``sacct``.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "sinfo", "scontrol", "scancel", "munged")
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/sbin"])
OWN_VARIABLES = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SUBMITIT_")


class ClusterError(Exception):
    """The cluster failed to start, or one of its commands failed."""


def lacking() -> list[str]:
    """Programs that are not installed."""
    return [program for program in PROGRAMS if shutil.which(program, path=SEARCH_PATH) is None]


def require_slurm() -> None:
    """Skip the test if SLURM is not installed; fail it if UNETCLI_REQUIRE_SLURM is set, as skips go unnoticed."""
    if not (missing := ", ".join(lacking())):
        return
    if os.environ.get("UNETCLI_REQUIRE_SLURM") == "1":
        pytest.fail(f"UNETCLI_REQUIRE_SLURM=1, but not installed: {missing} (Debian: slurm-wlm, munge)")
    pytest.skip(f"not installed: {missing} (Debian: slurm-wlm, munge)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings that tests change; :func:`configuration` has the other lines of slurm.conf."""

    nodes: int = 2
    cpus: int = 4
    memory_mb: int = 16000
    gpus: int = 2
    max_array: int = 1001
    """MaxArraySize, which limits the number of elements of an array."""
    remember_seconds: int = 300
    """MinJobAge: time for which squeue lists a job that has ended, at least 2 s."""
    kill_wait: int = 2
    """Seconds from SIGTERM to SIGKILL."""
    partitions: tuple[str, ...] = (
        "main Default=YES PriorityTier=1 PreemptMode=OFF",
        "low PriorityTier=1 PreemptMode=REQUEUE GraceTime=10",
        "cancel PriorityTier=1 PreemptMode=CANCEL GraceTime=10",
        "drop PriorityTier=1 PreemptMode=CANCEL",
        "high PriorityTier=10 PreemptMode=OFF",
    )
    more: Mapping[str, str] = field(default_factory=dict)
    """Lines of slurm.conf that replace those of :func:`configuration`."""


def configuration(place: Path, settings: Settings) -> dict[str, str]:
    """slurm.conf without nodes and partitions."""
    host, user = socket.gethostname().split(".")[0], getpass.getuser()
    control_port = free_ports(1)[0]
    return {
        "ClusterName": "unetcli",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmctldPort": str(control_port),
        "SlurmUser": user,
        "SlurmdUser": user,
        "AuthType": "auth/munge",
        "CredType": "cred/munge",
        # a requeued job waits until its credential has expired: by default 120 s, at least 5 s
        "AuthInfo": f"socket={place}/munge/socket,cred_expire=5",
        "StateSaveLocation": f"{place}/state",
        "SlurmdSpoolDir": f"{place}/spool/%n",
        "SlurmctldPidFile": f"{place}/slurmctld.pid",
        "SlurmdPidFile": f"{place}/slurmd.%n.pid",
        "SlurmctldLogFile": f"{place}/log/slurmctld.log",
        "SlurmdLogFile": f"{place}/log/slurmd.%n.log",
        "MailProg": "/bin/true",
        "SwitchType": "switch/none",
        "MpiDefault": "none",
        "ProctrackType": "proctrack/linuxproc",  # with proctrack/pgid a step takes 3 s longer to end
        "TaskPlugin": "task/none",
        # without cgroups the step daemon checks once a second and kills a step that exceeds its memory
        "JobAcctGatherType": "jobacct_gather/linux",
        "JobAcctGatherFrequency": "task=1",
        "JobAcctGatherParams": "OverMemoryKill",
        "AccountingStorageType": "accounting_storage/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core_Memory",
        "DefMemPerCPU": "500",  # by default a job would get all memory of a node and run alone
        "SlurmdParameters": "config_overrides",  # nodes may claim more than this machine has
        "SchedulerType": "sched/backfill",
        "SchedulerParameters": "batch_sched_delay=0,sched_interval=1,bf_interval=1",
        "PriorityType": "priority/basic",
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
        "SlurmctldParameters": "preempt_send_user_signal",
        "JobRequeue": "1",
        "ReturnToService": "2",
        "SlurmdTimeout": "300",
        "KillWait": str(settings.kill_wait),
        "MinJobAge": str(settings.remember_seconds),
        "MaxArraySize": str(settings.max_array),
        "GresTypes": "gpu",
        **settings.more,
    }


class SlurmCluster:
    """SLURM cluster that runs during a ``with`` block and leaves no process behind."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        # not in pytest's folder, as paths of the sockets of munge and slurm may have at most 107 characters
        self.place = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.user = getpass.getuser()
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(OWN_VARIABLES)}
        packages = [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
        self.environment |= {
            "SLURM_CONF": str(self.place / "slurm.conf"),
            "PATH": SEARCH_PATH,
            "PYTHONPATH": os.pathsep.join(filter(None, packages)),  # jobs import modules of the tests
        }
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> SlurmCluster:
        for attempt in range(3):  # another cluster may have taken one of the ports
            try:
                self._start()
                return self
            except ClusterError:
                self._end_daemons()
                if attempt == 2:
                    raise
        raise AssertionError

    def __exit__(self, *error: object) -> None:
        try:
            self.cancel_all()
        finally:
            self._end_daemons()
            self._sweep()
            shutil.rmtree(self.place, ignore_errors=True)

    # commands of users and administrators
    def call(self, *words: str) -> str:
        """Run a SLURM command and return its output; raises ClusterError if it fails."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise ClusterError(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """State of a job or array element; empty once SLURM has forgotten it."""
        try:
            return self.call("squeue", "-h", "-r", "-t", "all", "-o", "%T", "-j", job)
        except ClusterError as error:
            if "Invalid job id" in str(error):
                return ""
            raise

    def await_state(self, job: str, *states: str, seconds: float = 120) -> None:
        until(lambda: self.state(job) in states, f"{job} to be {' or '.join(states)}", seconds)

    def jobs(self) -> list[str]:
        """Waiting and running jobs; SLURM lists a job for some seconds after its end."""
        return self.call("squeue", "-h", "-r", "-t", "PENDING,CONFIGURING,RUNNING,SUSPENDED", "-o", "%i").split()

    def cancel_all(self) -> None:
        """Cancel all jobs and wait until they have ended."""
        with suppress(ClusterError, subprocess.TimeoutExpired, TimeoutError):
            self.call("scancel", "--full", "-u", self.user)
            until(lambda: not self.jobs(), "the queue to be empty")

    def kill_node(self, number: int, *, notice: bool = True) -> None:
        """Kill the daemon, step daemons and tasks of a node; with ``notice``, also mark it as down in SLURM."""
        daemon = self._daemons.pop(f"slurmd{number}")
        daemon.kill()
        daemon.wait()
        for pid in self._processes(f"node{number}"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if notice:
            self.call("scontrol", "update", f"nodename=node{number}", "state=down", "reason=test")

    def start_node(self, number: int) -> None:
        """Start the daemon of a node, also after :meth:`kill_node`; see :meth:`await_nodes`."""
        self._spawn(f"slurmd{number}", "slurmd", "-D", "-N", f"node{number}", "-f", self._file("slurm.conf"))

    def await_nodes(self) -> None:
        """Wait until all nodes accept jobs."""
        self._await(lambda: len(self._healthy_nodes()) == self.settings.nodes, "the nodes")

    def stop_controller(self) -> None:
        """Stop the controller, so that SLURM's commands fail while jobs continue."""
        self._end("slurmctld")

    def start_controller(self) -> None:
        """Start the controller again, with the state it saved."""
        self._spawn("slurmctld", "slurmctld", "-D", "-f", self._file("slurm.conf"))
        self._await(lambda: bool(self._healthy_nodes()), "slurmctld")

    # files
    def _file(self, name: str) -> str:
        return str(self.place / name)

    def _write_files(self) -> None:
        for folder in ("state", "log", "munge", "devices", *(f"spool/node{i}" for i in range(self.settings.nodes))):
            (self.place / folder).mkdir(parents=True, exist_ok=True)
        (self.place / "munge").chmod(0o755)
        key = self.place / "munge/key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        self._write_gpus()
        lines = [f"{name}={value}" for name, value in configuration(self.place, self.settings).items()]
        lines += [*self._node_lines(), *self._partition_lines()]
        (self.place / "slurm.conf").write_text("\n".join(lines) + "\n")

    def _write_gpus(self) -> None:
        """Write gres.conf. ``File=`` must be a device or a link to one."""
        lines = ["AutoDetect=off"]
        for number in range(self.settings.gpus):
            device = self.place / f"devices/gpu{number}"
            device.unlink(missing_ok=True)
            device.symlink_to("/dev/null")
            nodes = f"node[0-{self.settings.nodes - 1}]"
            lines.append(f"NodeName={nodes} Name=gpu File={device} Flags=nvidia_gpu_env")
        (self.place / "gres.conf").write_text("\n".join(lines) + "\n")

    def _node_lines(self) -> Iterator[str]:
        host, settings = socket.gethostname().split(".")[0], self.settings
        gpus = f" Gres=gpu:{settings.gpus}" if settings.gpus else ""
        for number, port in enumerate(free_ports(settings.nodes)):
            yield (
                f"NodeName=node{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={settings.cpus} "
                f"RealMemory={settings.memory_mb}{gpus} State=UNKNOWN"
            )

    def _partition_lines(self) -> Iterator[str]:
        for line in self.settings.partitions:
            yield f"PartitionName={line} Nodes=ALL DefaultTime=10 MaxTime=INFINITE State=UP"

    # processes
    def _start(self) -> None:
        self._write_files()
        munge = self.place / "munge"
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        # with -F, as munged otherwise refuses sockets below folders that other users can write to, such as /tmp
        self._spawn("munged", "munged", "-F", "-f", *(f"--{word}={munge / name}" for word, name in files.items()))
        self._await((munge / "socket").exists, "munged")
        self._spawn("slurmctld", "slurmctld", "-D", "-c", "-f", self._file("slurm.conf"))
        for number in range(self.settings.nodes):
            self.start_node(number)
        self.await_nodes()

    def _spawn(self, name: str, *command: str) -> None:
        program = str(shutil.which(command[0], path=SEARCH_PATH))
        words = [program, *command[1:]]
        if guard := shutil.which("setpriv"):  # ends with this process, even if that is killed
            words = [guard, "--pdeathsig", "TERM", *words]
        with (self.place / f"log/{name}.out").open("ab") as output:
            self._daemons[name] = subprocess.Popen(
                words,
                env=self.environment,
                cwd=self.place,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C ends the tests, which end the daemons
            )

    def _await(self, condition: Callable[[], bool], what: str) -> None:
        def holds() -> bool:
            for name, daemon in self._daemons.items():
                if daemon.poll() is not None:
                    output = (self.place / f"log/{name}.out").read_text(errors="replace")[-2000:]
                    raise ClusterError(f"{name} ended with {daemon.returncode}: {output}")
            return condition()

        try:
            until(holds, what)
        except TimeoutError as error:
            raise ClusterError(str(error)) from None

    def _healthy_nodes(self) -> list[str]:
        with suppress(ClusterError, subprocess.TimeoutExpired):
            states = dict(line.split() for line in self.call("sinfo", "-h", "-N", "-o", "%N %T").splitlines())
            return [node for node, state in states.items() if state in ("idle", "mixed", "allocated", "completing")]
        return []

    def _end_daemons(self) -> None:
        for name in sorted(self._daemons, key=_last_munged):
            self._end(name)

    def _end(self, name: str) -> None:
        daemon = self._daemons.pop(name)
        daemon.terminate()
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _sweep(self) -> None:
        """Kill step daemons, which outlive slurmd, and tasks, which outlive step daemons."""
        for pid in self._processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _processes(self, node: str | None = None) -> list[int]:
        """Ids of the step daemons and tasks of this cluster, or of one node."""
        return [pid for pid in all_pids() if self._is_step_daemon(pid, node) or self._is_task(pid, node)]

    def _is_step_daemon(self, pid: int, node: str | None) -> bool:
        """Whether a process is a step daemon; these clear their environment, but keep the log of their node open."""
        logs = [self._file(f"log/slurmd.{node}.log")] if node else self._logs()
        with suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "slurmstepd":
                return any(str(link.readlink()) in logs for link in Path(f"/proc/{pid}/fd").iterdir())
        return False

    def _logs(self) -> list[str]:
        return [self._file(f"log/slurmd.node{number}.log") for number in range(self.settings.nodes)]

    def _is_task(self, pid: int, node: str | None) -> bool:
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            return False
        in_a_job = any(variable.startswith("SLURM_JOB_ID=") for variable in variables)
        own = f"SLURM_CONF={self._file('slurm.conf')}" in variables and in_a_job
        return own and (node is None or f"SLURMD_NODENAME={node}" in variables)


def enter(cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configure this process as one on a submit host of the cluster."""
    for name in os.environ:
        if name.startswith(OWN_VARIABLES):
            monkeypatch.delenv(name)
    for name in ("SLURM_CONF", "PATH", "PYTHONPATH"):
        monkeypatch.setenv(name, cluster.environment[name])


def _last_munged(name: str) -> int:
    """Sort key for ending daemons: all need munge to sign off, and nodes sign off at the controller."""
    return {"munged": 2, "slurmctld": 1}.get(name, 0)


def all_pids() -> Iterable[int]:
    return [int(folder.name) for folder in Path("/proc").iterdir() if re.fullmatch("[0-9]+", folder.name)]


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def until(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    """Wait until the condition holds; raises TimeoutError, which names ``what``, if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.05)
