"""A SLURM cluster for the whole session, and the environment to reach it in."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from slurm.cluster import OWN_VARIABLES, SlurmCluster, lacking


def require_slurm() -> None:
    """Skip where SLURM is not installed; fail where it has to be, as a skip would hide that."""
    if not (missing := ", ".join(lacking())):
        return
    if os.environ.get("UNETCLI_REQUIRE_SLURM") == "1":
        pytest.fail(f"UNETCLI_REQUIRE_SLURM=1, but not installed: {missing} (Debian: slurm-wlm, munge)")
    pytest.skip(f"not installed: {missing} (Debian: slurm-wlm, munge)")


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    require_slurm()
    with SlurmCluster() as cluster:
        yield cluster


@pytest.fixture
def slurm(slurm_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """The cluster, reachable from this process and from the commands it starts; its queue is empty afterwards."""
    enter(slurm_cluster, monkeypatch)
    yield slurm_cluster
    slurm_cluster.cancel_all()


def enter(cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process be one on a submit host of the cluster."""
    for name in os.environ:
        if name.startswith(OWN_VARIABLES):
            monkeypatch.delenv(name)
    for name in ("SLURM_CONF", "PATH", "PYTHONPATH"):
        monkeypatch.setenv(name, cluster.environment[name])
