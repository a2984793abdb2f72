"""Resources requested from SLURM, and the outcome of a job; tests with real jobs are in tests/slurm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from unetcli.core.errors import Incomplete, UnetcliError
from unetcli.core.process import Signals
from unetcli.core.streams import silent
from unetcli.executors.slurm.request import SlurmRequest
from unetcli.executors.slurm.watch import JobEnd
from unetcli.train.request import TrainRequest
from unetcli.train.slurm import PORTS, Processes, first_host, launch, outcome, torch_environment


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        (SlurmRequest(gpus="1", mem="16G"), {"mem": "16G", "gpus-per-node": "4"}),
        (SlurmRequest(gpus="a100:1"), {"gpus-per-node": "a100:4"}),
        (SlurmRequest(gres="gpu:1"), {"gpus-per-node": "4"}),
        (SlurmRequest(gres="lscratch:9"), {"gres": "lscratch:9", "gpus-per-node": "4"}),
        (
            SlurmRequest(extra=(("gpus-per-task", "1"), ("reservation", "x"))),
            {"reservation": "x", "gpus-per-node": "4"},
        ),
    ],
    ids=["gpus", "of a kind", "gres", "another gres", "extra"],
)
def test_the_gpus_of_each_node_replace_a_profiles_one(asked: SlurmRequest, wanted: dict[str, str]) -> None:
    assert Processes(nodes=2, gpus_per_node=4).with_gpus(asked).options() == wanted
    assert Processes(nodes=2).with_gpus(asked) == asked


def test_there_is_a_process_per_gpu_or_as_many_as_asked_for() -> None:
    assert Processes(nodes=2, gpus_per_node=4).total == 8
    assert Processes(nodes=3, tasks_per_node=2).total == 6
    assert Processes().total == 1


@pytest.mark.parametrize(
    ("end", "content", "kind", "line"),
    [
        (JobEnd(job="5", state="FAILED", exit_code=1), "unetcli: no\n", UnetcliError, "job 5: no (log: "),
        (
            JobEnd(job="5", state="FAILED", exit_code=70),
            "ValueError: 3\n",
            UnetcliError,
            "exit code 70: ValueError: 3 (",
        ),
        (JobEnd(job="5", state="OUT_OF_MEMORY"), "", UnetcliError, "out of memory: raise --mem (log"),
        (JobEnd(job="5", state="FAILED", note="JobLaunchFailure"), "", UnetcliError, "could not start it"),
        (
            JobEnd(job="5", state="FAILED", exit_code=3),
            "unetcli: x\n",
            Incomplete,
            "job 5: x; the same command continues (",
        ),
        (JobEnd(job="5", state="FAILED", signal=9), "", Incomplete, "killed (SIGKILL)"),
        (JobEnd(job="5", state="CANCELLED"), "", Incomplete, "job 5: cancelled; the same command continues (log: "),
        (JobEnd(job="5", state="NODE_FAIL"), "", Incomplete, "its node was lost; the same command continues"),
        (JobEnd(job="5", state="COMPLETED"), "", Incomplete, "job 5: completed; the same command continues"),
    ],
)
def test_a_job_that_ended_is_reported_with_its_reason(
    tmp_path: Path, end: JobEnd, content: str, kind: type[UnetcliError], line: str
) -> None:
    file = tmp_path / "log"
    file.write_text(content)
    with pytest.raises(UnetcliError) as caught:
        outcome(end, file, lambda: None, late=0.1)
    assert type(caught.value) is kind
    assert line in str(caught.value)
    assert str(caught.value).endswith(f"(log: {file})")


def test_rank_and_address_come_from_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"PROCID": "3", "NTASKS": "4", "LOCALID": "1", "JOB_ID": "123456", "JOB_NUM_NODES": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.delenv("UNETCLI_MASTER", raising=False)
    found = torch_environment()
    assert int(found.pop("MASTER_PORT")) in PORTS
    assert found == {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}
    monkeypatch.setenv("UNETCLI_MASTER", "10.0.0.7")
    assert torch_environment()["MASTER_ADDR"] == "10.0.0.7"
    assert first_host() == "127.0.0.1"


def test_a_backslash_in_the_output_is_refused_before_anything_is_written(request_: TrainRequest) -> None:
    with pytest.raises(UnetcliError, match=r"model\\1: a backslash in the name of a folder"):
        launch(replace(request_, output=Path("model\\1")), SlurmRequest(), Processes(), silent, Signals(), detach=True)
    assert not Path("model\\1").exists()
