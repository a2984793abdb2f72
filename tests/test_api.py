"""The functions of ``unetcli.api``."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import typer
from helpers import grey, write_zarr

from unetcli import api
from unetcli.cli import app
from unetcli.core.options import Options, options_of
from unetcli.evaluate.request import EvaluateRequest
from unetcli.label.request import LabelRequest
from unetcli.predict.request import PlanRequest, PredictRequest
from unetcli.train.request import TrainRequest

PROJECT = Path(__file__).parents[1]
REQUESTS: dict[str, type[Options]] = {
    "train": TrainRequest,
    "predict": PredictRequest,
    "label": LabelRequest,
    "evaluate": EvaluateRequest,
    "plan": PlanRequest,
}
TERMINAL_ONLY = {"json", "dry_run", "config", "print_config"}
SCRIPT = """
from unetcli import api

settings = {"depth": 2, "base_channels": 4, "tile": 60, "calibrate": False}
trained = api.train("raw.zarr", "labels.zarr", steps=5, device="cpu", **settings)
assert (trained.finished, trained.model) == (True, "model/model.safetensors")
assert api.plan("raw.zarr", device="cpu", tile=60).plan.blocks > 0
predicted = api.predict("raw.zarr", output="p.zarr", device="cpu", sections=(0, 2))
assert (predicted.finished, predicted.output) == (True, "p.zarr")
labelled = api.label("p.zarr", threshold=0.1)
assert (labelled.complete, labelled.output) == (True, "p.zarr/labels/instances")
scores = api.evaluate("p.zarr", "labels.zarr", sections=(0, 2), metrics=("pixels",), csv="scores.csv").scores
assert 0 <= scores["pixels"]["iou"] <= 1
try:
    api.predict("raw.zarr", precision="int8", output="other.zarr")
except api.UnetcliError as error:
    assert "--precision int8" in str(error)
"""


def test_a_script_trains_predicts_labels_and_evaluates(tmp_path: Path) -> None:
    disc = np.hypot(*np.ogrid[-60:60, -70:50]) < 30
    write_zarr(tmp_path / "raw.zarr", grey(3, 120, 120))
    write_zarr(tmp_path / "labels.zarr", np.stack([disc] * 3).astype(np.uint8))
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("name", REQUESTS)
def test_a_function_takes_the_options_of_its_command_with_their_defaults(name: str) -> None:
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    options = {option.name: option for option in command.params if option.name not in TERMINAL_ONLY}
    parameters = inspect.signature(getattr(api, name)).parameters
    assert parameters.keys() == options.keys()
    for declared in options_of(REQUESTS[name]).values():
        option, typed = options[declared.name], declared.option
        assert option.required == (parameters[declared.name].default is inspect.Parameter.empty)
        if typed.text is not None:
            assert typed.parse
            assert typed.parse(typed.text) == declared.default
        elif not option.required and not typed.parse:
            assert (option.default or None) == (declared.default or None)
        assert f"{declared.name} : " in (getattr(api, name).__doc__ or "")


def test_the_wheel_contains_py_typed(tmp_path: Path) -> None:
    if int(version("setuptools").partition(".")[0]) < 77:
        pytest.skip("pyproject.toml asks for a newer setuptools")
    for name in ("pyproject.toml", "README.md", "LICENSE"):  # copied, as building leaves files beside the sources
        shutil.copy(PROJECT / name, tmp_path)
    shutil.copytree(PROJECT / "unetcli", tmp_path / "unetcli", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-c", "from setuptools import build_meta; build_meta.build_wheel('.')"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert "unetcli/py.typed" in zipfile.ZipFile(wheel).namelist()
