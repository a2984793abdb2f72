"""Tests of resource requests: profiles, options and their form for sbatch."""

from __future__ import annotations

from pathlib import Path

import pytest

import unetcli
from unetcli.core.errors import UnetcliError
from unetcli.executors.slurm.request import SlurmRequest, parse_extra

PROFILES = Path(unetcli.__file__).parents[1] / "slurm"


def written(folder: Path, text: str) -> Path:
    path = folder / "profile.toml"
    path.write_text(text)
    return path


def test_options_override_the_profile(tmp_path: Path) -> None:
    profile = written(tmp_path, 'time = "1:00:00"\ngpus = 2\nsetup = ["module load cuda"]\n[extra]\nnice = 10\n')
    request = SlurmRequest.load(profile, time="30", partition="gpu", mem=None, setup=(), extra={"exclusive": "true"})
    assert request.options() == {
        "partition": "gpu",
        "time": "30",
        "gpus": "2",
        "nice": "10",
        "exclusive": "true",
    }
    assert request.setup == ("module load cuda",)
    assert request.limit_minutes == 30


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("gpus = 2", {"gpus": "2"}),
        ('gpus = "a100:2"', {"gpus": "a100:2"}),
        ('gres = "gpu:1"', {"gres": "gpu:1"}),
        ('[extra]\n"gpus-per-node" = "v100:1"', {"gpus-per-node": "v100:1"}),
        ("[extra]\ngpus_per_task = 1", {"gpus-per-task": "1"}),
        ("[extra]\nexclusive = true", {"exclusive": "true"}),
    ],
)
def test_gpus_can_be_requested_in_the_way_of_each_site(tmp_path: Path, text: str, options: dict[str, str]) -> None:
    assert SlurmRequest.load(written(tmp_path, text)).options() == options


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('partion = "gpu"', r"profile.toml: unknown key 'partion'; expected partition, account, .*\[extra\]"),
        ("time = soon", r"profile.toml: not TOML"),
        ('time = "soon"', r"time: 'soon' .* 04:00:00"),
        ('mem = "much"', r"mem: 'much' .* 16G"),
        ('cpus-per-task = "four"', r"cpus_per_task is 'four'"),
        ("cpus-per-task = 0", r"cpus_per_task: 0; expected at least 1"),
        ("gpus = 1.5", r"gpus is 1.5"),
        ("setup = 3", r"setup is 3"),
        ("[extra]\narray = '0-3'", r"slurm option array: cannot be set .*--blocks-per-job"),
        ("[extra]\npartition = 'x'", r"slurm option partition: use the option --partition"),
        ("extra = 3", r"extra is 3; expected a table"),
    ],
)
def test_a_mistake_in_a_profile_is_named_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UnetcliError, match=message) as caught:
        SlurmRequest.load(written(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("word", ["", "=3", "--", "a b", "nice=1\n2", "Nice=3"])
def test_a_word_that_is_no_option_of_sbatch_is_named(word: str) -> None:
    with pytest.raises(UnetcliError, match=r"^slurm option .*: expected the name of an sbatch option, .*reservation="):
        SlurmRequest.load(extra=parse_extra([word]))


def test_a_missing_profile_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnetcliError, match=r"none\.toml: no such profile"):
        SlurmRequest.load(tmp_path / "none.toml")


@pytest.mark.parametrize("name", ["gpu.toml", "cpu.toml"])
def test_the_profiles_of_the_package_are_valid_with_all_lines_uncommented(tmp_path: Path, name: str) -> None:
    text = (PROFILES / name).read_text()
    assert SlurmRequest.load(PROFILES / name).limit_minutes
    uncommented = [line.removeprefix("# ") if " = " in line else line for line in text.splitlines()]
    full = SlurmRequest.load(written(tmp_path, "\n".join(uncommented)))
    assert full.partition
    assert full.account
