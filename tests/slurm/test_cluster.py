"""Tests of the SLURM cluster that the other tests use, which must behave like those of facilities."""

from __future__ import annotations

from pathlib import Path

from slurm.cluster import Settings, SlurmCluster, all_pids, until


def sbatch(cluster: SlurmCluster, folder: Path, script: str, *words: str) -> str:
    file = folder / "job.sh"
    file.write_text("#!/bin/bash\n" + script)
    return cluster.call("sbatch", "--parsable", f"--output={folder}/%x.%A_%a.txt", *words, str(file))


def test_elements_of_an_array_run_on_both_nodes_with_separate_gpus(slurm: SlurmCluster, tmp_path: Path) -> None:
    all_run = f"until [ $(ls {tmp_path}/*.got | wc -l) = 4 ]; do sleep 0.1; done"
    script = f"echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES > {tmp_path}/$SLURM_ARRAY_TASK_ID.got; {all_run}"
    sbatch(slurm, tmp_path, script, "--array=0-3", "--gres=gpu:1")
    until(lambda: not slurm.jobs(), "four elements")
    got = {path.read_text().strip() for path in tmp_path.glob("*.got")}
    assert got == {"node0 0", "node0 1", "node1 0", "node1 1"}


def test_a_cluster_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    with SlurmCluster(Settings(nodes=1)) as cluster:
        job = sbatch(cluster, tmp_path, "trap '' TERM; srun sleep 600")
        cluster.await_state(job, "RUNNING")
        place = cluster.place
    assert not place.exists()
    assert not [pid for pid in all_pids() if mentions(pid, str(place))]


def mentions(pid: int, text: str) -> bool:
    try:
        found = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return text.encode() in found
