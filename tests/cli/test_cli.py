"""The command line as users and scripts see it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers import grey, write_model, write_zarr

Run = Callable[..., subprocess.CompletedProcess[str]]
HEAVY = ("torch", "zarr", "numpy", "scipy", "dask", "matplotlib", "tifffile", "submitit")
PROBE = """
import sys
from unetcli.cli import app
try:
    app(sys.argv[1:])
except SystemExit:
    pass
print("LOADED", *(name for name in {heavy} if name in sys.modules))
"""


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["plan", "--help"],
        ["predict", "--help"],
        ["evaluate", "--help"],
        ["predict"],
    ],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    command = [sys.executable, "-c", PROBE.format(heavy=HEAVY), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].split() == ["LOADED"]


@pytest.mark.parametrize("command", ["predict", "train"])
def test_help_of_a_command_does_not_import_pydantic(command: str) -> None:
    """Typer checks values with pydantic, and its import would double the time of help."""
    program = [sys.executable, "-c", PROBE.format(heavy=("pydantic",)), command, "--help"]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].split() == ["LOADED"]


def test_the_list_of_commands_cuts_no_sentence_off(unetcli: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    commands = unetcli("--help", COLUMNS="80").stdout.partition("Commands:")[2]
    assert len(commands.splitlines()) > 10
    assert "..." not in commands


def complete(shell: str, line: str) -> str:
    """Completions of a command line, in the protocol of a shell."""
    variables = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    code = "from unetcli.cli import app; app(prog_name='unetcli')"
    environment = os.environ | variables | {"_UNETCLI_COMPLETE": f"complete_{shell}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    return done.stdout


@pytest.mark.by_default("bash")
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_offers_commands_and_options(shell: str) -> None:
    assert "train" in complete(shell, "unetcli tr")
    assert "--sections" in complete(shell, "unetcli predict --sec")


def test_completion_imports_nothing_heavy() -> None:
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('LOADED', *(n for n in {HEAVY} if n in sys.modules)))\n"
        "from unetcli.cli import app\napp(prog_name='unetcli')"
    )
    environment = os.environ | {"_UNETCLI_COMPLETE": "complete_bash", "COMP_WORDS": "unetcli pr", "COMP_CWORD": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "predict" in done.stdout
    assert done.stdout.splitlines()[-1].split() == ["LOADED"]


def test_the_three_lines_work_one_after_the_other(unetcli: Run, tmp_path: Path) -> None:
    """train RAW LABELS, predict VOLUME --tile 572, evaluate PREDICTION TRUTH, with a small network and few steps."""
    disc = np.hypot(*np.ogrid[-60:60, -70:50]) < 30
    labels = np.stack([np.roll(disc, k, 0) for k in range(6)]).astype(np.uint8) * 255
    images = np.where(labels > 0, 180, 60).astype(np.uint8) + grey(6, 120, 120) // 8
    tifffile.imwrite(tmp_path / "raw.tif", images)
    tifffile.imwrite(tmp_path / "labels.tif", labels)
    write_zarr(tmp_path / "big.zarr", images, chunks=(1, 64, 64))
    small = ("--steps", 30, "--lr", 0.01, "--depth", 2, "--base-channels", 8, "--tile", 140)
    done = unetcli("train", "raw.tif", "labels.tif", *small)
    assert (done.returncode, done.stdout) == (0, "model/model.safetensors\n"), done.stderr
    assert {"model.safetensors", "log.jsonl", "curves.png"} <= {f.name for f in (tmp_path / "model").iterdir()}
    done = unetcli("predict", "big.zarr", "--tile", "572")
    assert (done.returncode, done.stdout) == (0, "big.pred.zarr\n"), done.stderr
    done = unetcli("evaluate", "big.pred.zarr", "labels.tif", "--json")
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)
    assert set(scores["pixels"]) >= {"iou", "dice", "accuracy", "tp", "fp", "fn", "tn"}
    for key in ("pixel_error", "pixel_disagreement", "rand_error", "rand_error_pairs"):
        assert {key, f"{key}_threshold"} <= set(scores["em"])
    assert scores["em"]["pixel_disagreement"] < 0.1
    text = unetcli("evaluate", "big.pred.zarr", "labels.tif").stdout
    assert "pixel_disagreement" in text
    assert all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("predict", "missing.zarr"), 1, "missing.zarr"),
        (("predict", "big.zarr", "--model", "nowhere"), 1, "nowhere"),
        (("predict", "big.zarr", "--tile", "512"), 1, "508 and 516"),
        (("predict", "big.zarr", "-o", "out.tif"), 1, "--output out.tif: the output is an OME-Zarr folder, not a .tif"),
        (("plan", "big.zarr", "-o", "out.zarr.zip"), 1, "not a .zip file; a name that works: out.zarr"),
        (("predict", "big.zarr", "--tile", "big"), 1, "--tile big"),
        (("predict", "big.zarr", "--sections", "3"), 1, "A:B"),
        (("predict", "big.zarr", "--no-such-option"), 2, "no-such-option"),
        (("evaluate", "big.zarr", "missing.tif"), 1, "missing.tif"),
        (("evaluate", "big.zarr", "big.zarr", "--metrics", "dice"), 1, "pixels,em,cells,voi"),
        (("train", "big.zarr", "missing.tif", "--output", "new"), 1, "missing.tif"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_gets_one_line_and_its_code(
    unetcli: Run, tmp_path: Path, words: tuple[str, ...], code: int, text: str
) -> None:
    write_model(tmp_path / "model", depth=3)
    write_zarr(tmp_path / "big.zarr", grey(2, 30, 30))
    before = sorted(tmp_path.rglob("*"))
    done = unetcli(*words)
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    assert done.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before
    if code == 1:
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("unetcli: ")


def test_a_bug_ends_with_its_traceback_and_70(tmp_path: Path) -> None:
    code = (
        "import unetcli.predict.run\n"
        "def broken(*_): raise ZeroDivisionError('a bug')\n"
        "unetcli.predict.run.predict_volume = broken\n"
        "import sys; sys.argv = ['unetcli', 'predict', 'x']\n"
        "from unetcli.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 70
    assert "ZeroDivisionError: a bug" in done.stderr
    assert "bug" in done.stderr


def test_a_full_disk_ends_with_one_line(tmp_path: Path) -> None:
    code = (
        "import unetcli.predict.run, errno\n"
        "def full(*_): raise OSError(errno.ENOSPC, 'No space left on device', 'big.pred.zarr/0')\n"
        "unetcli.predict.run.predict_volume = full\n"
        "import sys; sys.argv = ['unetcli', 'predict', 'x']\n"
        "from unetcli.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "unetcli: big.pred.zarr/0: No space left on device\n")


def test_a_system_without_file_locks_ends_with_one_line() -> None:
    code = "import sys; sys.modules['fcntl'] = None; sys.argv = ['unetcli', 'info']; import unetcli.__main__"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "Windows" in done.stderr


def test_quiet_says_nothing_and_json_is_all_there_is_on_stdout(unetcli: Run, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_zarr(tmp_path / "big.zarr", grey(2, 30, 30), chunks=(1, 30, 30))
    done = unetcli("--quiet", "predict", "big.zarr", "--json")
    summary = json.loads(done.stdout)
    assert (done.returncode, done.stderr, summary["complete"], summary["blocks"]) == (0, "", True, 2)


def test_an_incomplete_prediction_exits_3_and_is_not_scored(unetcli: Run, tmp_path: Path) -> None:
    write_model(tmp_path / "model", dtype="float32")
    values = np.ones((2, 30, 30), np.float32)
    values[1, 3, 4] = np.inf
    write_zarr(tmp_path / "inf.zarr", values)
    done = unetcli("predict", "inf.zarr")
    assert done.returncode == 3
    assert "z 1:2, y 3:4, x 4:5" in done.stderr
    write_zarr(tmp_path / "truth.zarr", grey(2, 30, 30) // 128)
    assert unetcli("evaluate", "inf.pred.zarr", "truth.zarr").returncode == 1
    assert unetcli("evaluate", "inf.pred.zarr", "truth.zarr", "--allow-incomplete").returncode == 0
