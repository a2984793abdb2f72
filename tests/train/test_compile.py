"""``--compile`` with a real compiler: equal weights, resumption after a kill, and errors without a compiler."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import wait_for
from train.scenes import same, state, write_discs

from unetcli.core.errors import UnetcliError
from unetcli.train.folder import Checkpoint
from unetcli.train.optim import compiler_message, reporting_compile_errors
from unetcli.train.request import TrainRequest
from unetcli.train.train import train_model

WORDS = ["--depth", "1", "--base-channels", "4", "--tile", "44", "--device", "cpu", "--recipe", "fast"]
STEPS = ["--steps", "60", "--precision", "float32", "--checkpoint-minutes", "0.0005"]
COMPILER = os.environ.get("CXX") or "g++"

needs_compiler = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no C++ compiler: {COMPILER}")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    write_discs(tmp_path)
    return tmp_path


def train(output: str, *words: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "unetcli",
        "train",
        "raw.zarr",
        "labels.zarr",
        "-o",
        output,
        *WORDS,
        *STEPS,
        *words,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def done(process: subprocess.Popen[str]) -> str:
    """Wait for a training, which must succeed, and return its log."""
    _, log = process.communicate(timeout=600)
    assert process.returncode == 0, log
    return log


def kill_once_it_trains(process: subprocess.Popen[str], folder: str) -> None:
    wait_for(lambda: (Path(folder) / "checkpoint.previous.pt").exists() or process.poll() is not None, seconds=600)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_compiler
def test_compiled_and_uncompiled_trainings_continue_from_each_other_s_checkpoints(place: Path) -> None:
    """Mixed trainings give the same weights up to rounding; a killed compiled one gives the same bytes."""
    log = done(train("straight", "--compile"))
    assert "Warning" not in log
    process = train("model", "--compile")
    kill_once_it_trains(process, "model")
    at = Checkpoint.load(Path("model/checkpoint.pt")).step
    assert 0 < at < 60
    shutil.copytree("model", "other")
    done(train("model", "--compile"))
    done(train("other"))
    assert same(state("model"), state("straight"))
    assert Path("model/model.safetensors").read_bytes() == Path("straight/model.safetensors").read_bytes()
    one, other = state("other"), state("straight")
    assert not same(one, other)  # otherwise nothing was compiled
    for name, values in one.items():
        assert torch.allclose(values.float(), other[name].float(), rtol=0.05, atol=0.02), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler imports deprecated modules
def test_without_a_compiler_the_error_is_one_line_and_the_command_without_compile_continues(
    request_: TrainRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/no/compiler"))
    message = "^--compile: .*compiler.*; the same command without --compile continues$"
    with pytest.raises(UnetcliError, match=re.compile(message, re.IGNORECASE)):
        train_model(replace(request_, steps=2, compile=True))
    assert not Path("model/lock").exists()
    assert train_model(replace(request_, steps=2)).finished


@pytest.mark.slow
def test_the_command_reports_a_missing_compiler_in_one_line_and_without_compile_continues(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/no/compiler")
    process = train("model", "--compile")
    output, log = process.communicate(timeout=600)
    assert (process.returncode, output) == (1, "")
    assert "Traceback" not in log
    assert log.splitlines()[-1].startswith("unetcli: --compile: ")
    assert log.splitlines()[-1].endswith("the same command without --compile continues")
    assert "compiler" in log.splitlines()[-1].lower()
    assert not Path("model/lock").exists()
    done(train("model"))


@pytest.mark.slow
@needs_compiler
def test_a_compiler_that_fails_is_quoted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler fails as it does without header files."""
    broken = place / "g++"
    version = 'case "$*" in *--version*) exec g++ --version;; esac'
    broken.write_text(f'#!/bin/sh\n{version}\necho "a.cpp:1: fatal error: omp.h: gone" >&2\nexit 1\n')
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    process = train("model", "--compile")
    _, log = process.communicate(timeout=600)
    assert process.returncode == 1
    assert log.splitlines()[-1].startswith("unetcli: --compile: a.cpp:1: fatal error: omp.h: gone; ")
    assert "Traceback" not in log


def test_errors_of_the_compiler_are_one_line_and_others_pass() -> None:
    class CompilerMissing(RuntimeError):
        __module__ = "torch._inductor.exc"

    line = "^--compile: no compiler; the same command without --compile continues$"
    with pytest.raises(UnetcliError, match=line), reporting_compile_errors():
        raise CompilerMissing("no compiler\nin any of 3 places")
    with pytest.raises(RuntimeError, match="shapes differ"), reporting_compile_errors():
        raise RuntimeError("shapes differ")


def test_an_error_without_words_still_has_a_line() -> None:
    assert compiler_message("\n \n") == "torch gives no reason"
