"""Tests of who can change the jobs of a submission."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unetcli.core.errors import collected_warnings
from unetcli.executors.slurm.job import command, require_own
from unetcli.executors.slurm.journal import make_private


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o077])
def test_the_folder_of_jobs_is_private_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with collected_warnings() as warnings:
            make_private(tmp_path / "jobs")
    finally:
        os.umask(before)
    assert (tmp_path / "jobs").stat().st_mode & 0o777 == 0o700
    assert warnings == []


def test_a_file_system_that_ignores_modes_gets_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir = os.mkdir

    def without_modes(path: Path, mode: int = 0o777) -> None:
        mkdir(path)
        os.chmod(path, 0o777)  # noqa: PTH101

    monkeypatch.setattr(os, "mkdir", without_modes)
    with collected_warnings() as warnings:
        make_private(tmp_path / "jobs")
    assert len(warnings) == 1
    assert f"{tmp_path}/jobs: its file system ignores modes" in warnings[0]


def test_a_folder_of_another_user_is_not_run(tmp_path: Path) -> None:
    require_own(tmp_path)
    if os.getuid():
        pytest.skip("only root can give a folder to another user")
    os.chown(tmp_path, 54321, -1)
    with pytest.raises(SystemExit, match="belongs to user 54321"):
        require_own(tmp_path)


def test_a_job_imports_nothing_from_the_current_folder(tmp_path: Path) -> None:
    for module in ("argparse", "queue", "submitit", "typing_extensions"):
        (tmp_path / f"{module}.py").write_text("open('run', 'w')")
    words = [*command(tmp_path / "jobs").split()[:-1], "--help"]
    assert words[0] == sys.executable
    (tmp_path / "--help").mkdir()  # the folder of jobs, which belongs to this user
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Folder where the jobs are stored" in done.stdout, done.stderr
    assert not (tmp_path / "run").exists()
