"""The mean of several models is that of their predictions, and models that do not agree are refused with both names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from helpers import grey, write_zarr
from numpy.typing import NDArray

from unetcli import api, lazy
from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Architecture
from unetcli.engine.runfolder import RunFolder
from unetcli.model.file import Intensity, ModelHeader, load_network, read_model, save_model
from unetcli.model.network import UNet
from unetcli.model.training_data import TrainingData, grey_values
from unetcli.planning.estimate import multiply_adds
from unetcli.predict.models import find_models
from unetcli.predict.step import PredictStep
from unetcli.predict.stores import Paths

CPU: dict[str, Any] = {"device": "cpu", "tile": 60}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNETCLI_MODEL", raising=False)


def write_seeded(name: str, seed: int, *, mean: float = 100.0, std: float = 50.0, **sizes: Any) -> Path:
    """Write a model with random weights of its own and its own statistics."""
    torch.manual_seed(seed)
    architecture = Architecture(**{"depth": 2, "base_channels": 4, **sizes})
    names = ("background", "foreground", "border")[: architecture.classes]
    header = ModelHeader(
        architecture=architecture,
        class_names=names,
        intensity=Intensity(dtype="uint8", mean=mean, std=std),
        provenance={},
    )
    Path(name).mkdir()
    save_model(Path(name) / "model.safetensors", UNet(architecture), header)
    return Path(name)


@pytest.fixture
def models() -> list[Path]:
    """Three models of different widths and statistics."""
    write_zarr(Path("big.zarr"), grey(2, 90, 130), chunks=(1, 64, 64))
    return [write_seeded("a", 1), write_seeded("b", 2, mean=30.0, std=20.0), write_seeded("c", 3, base_channels=6)]


def alone(model: Path, **options: Any) -> NDArray[np.float32]:
    return np.asarray(lazy.predict("big.zarr", model, dtype="float32", **CPU, **options).compute())


@pytest.mark.parametrize(("count", "rotations"), [(2, 1), (3, 4), pytest.param(2, 4, marks=pytest.mark.slow)])
def test_the_mean_is_that_of_the_models_one_by_one(models: list[Path], count: int, rotations: int) -> None:
    each = [alone(model, rotations=rotations) for model in models[:count]]
    assert min(np.abs(a - b).max() for n, a in enumerate(each) for b in each[:n]) > 0.01
    options = {**CPU, "rotations": rotations, "dtype": "float32"}
    found = lazy.predict("big.zarr", models[:count], **options).compute()
    assert np.abs(found - np.mean(each, axis=0)).max() < 2e-5


@pytest.mark.by_default("invert")
@pytest.mark.parametrize("options", [{"normalise": "volume"}, {"invert": True}], ids=str)
def test_each_model_has_its_own_statistics(models: list[Path], options: dict[str, Any]) -> None:
    each = [alone(model, **options) for model in models[:2]]
    found = lazy.predict("big.zarr", models[:2], dtype="float32", **CPU, **options).compute()
    assert np.abs(found - np.mean(each, axis=0)).max() < 2e-5


def stored(name: str) -> NDArray[np.uint8]:
    return np.asarray(zarr.open_array(f"{name}/0", mode="r")[...])


def test_command_shares_api_and_lazy_give_the_same_bytes(models: list[Path], unetcli: Callable[..., Any]) -> None:
    words = ["--model", "a", "-m", "b", "--tile", "60", "--device", "cpu"]
    done = unetcli("predict", "big.zarr", *words)
    assert done.returncode == 0, done.stderr
    assert "mean of 2 models" in done.stderr
    for share in ((1, 2), (0, 2)):
        summary = api.predict("big.zarr", model=("a", "b"), output="two.zarr", share=share, **CPU)  # type: ignore[arg-type]
    assert (summary.models, summary.complete) == (2, True)
    assert np.array_equal(stored("big.pred.zarr"), stored("two.zarr"))
    assert np.array_equal(stored("big.pred.zarr"), lazy.predict("big.zarr", ["a", Path("b")], **CPU).compute())
    checked = unetcli("verify", "big.pred.zarr", "--seams", "2", "--input", "--json")
    assert (checked.returncode, json.loads(checked.stdout)["seams"]["exceeded"]) == (0, [])


def test_models_may_be_named_in_the_environment_and_in_a_file(
    models: list[Path], unetcli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def planned(*words: str) -> list[str]:
        return [
            Path(path).parent.name
            for path in json.loads(unetcli("plan", "big.zarr", "--json", *words).stdout)["models"]
        ]

    Path("one.toml").write_text('model = "c"\n')
    Path("two.toml").write_text('model = ["b", "a"]\n')
    assert planned("--config", "one.toml") == ["c"]
    assert planned("--config", "two.toml") == ["b", "a"]
    assert planned("-m", "a", "--config", "two.toml") == ["a"]
    monkeypatch.setenv("UNETCLI_MODEL", "a:c")
    assert planned() == ["a", "c"]
    assert find_models() == (Path("a/model.safetensors"), Path("c/model.safetensors"))


def test_the_plan_freezes_every_model(models: list[Path], unetcli: Callable[..., Any]) -> None:
    options: dict[str, Any] = {"output": "o.zarr", **CPU}
    assert api.predict("big.zarr", model=("a", "b"), **options).complete
    for other, words in ((("a",), "1 models"), (("a", "c"), "model .*c/model"), (("b", "a"), "model .*b/model")):
        with pytest.raises(UnetcliError, match=words):
            api.predict("big.zarr", model=other, **options)
    assert api.plan("big.zarr", model=("a", "b"), **options).conflicts == ()
    assert api.plan("big.zarr", model=("a",), **options).conflicts == ("1 models (was 2)",)
    save_model(
        Path("b/model.safetensors"),
        load_network(Path("c/model.safetensors")),
        read_model(Path("c/model.safetensors"))[0],
    )
    with pytest.raises(UnetcliError, match="or other data"):
        api.predict("big.zarr", model=("a", "b"), **options)
    changes = json.loads(unetcli("verify", "o.zarr", "--input", "--json").stdout)
    assert "b/model.safetensors" in json.dumps(changes)


def test_a_plan_counts_the_work_of_every_model(models: list[Path]) -> None:
    one, three = (api.plan("big.zarr", model=given, rotations=4, **CPU) for given in (("a",), ("a", "b", "c")))
    assert (one.estimate.passes, three.estimate.passes) == (4, 12)
    wide = multiply_adds(Architecture(depth=2, base_channels=6), (60, 60)) / one.estimate.tile_multiply_adds
    assert three.estimate.multiply_adds / one.estimate.multiply_adds == pytest.approx(2 + wide, rel=0.01)
    assert three.estimate.device_bytes > one.estimate.device_bytes


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"classes": 3}, "has the classes background, foreground, but --model .* has background, foreground, border"),
        ({"depth": 3}, "has depth 2, but --model .* has 3"),
    ],
    ids=str,
)
def test_models_that_do_not_agree_are_refused_with_both_names(
    models: list[Path], sizes: dict[str, Any], words: str
) -> None:
    write_seeded("other", 4, **sizes)
    for refuse in (api.plan, api.predict):
        with pytest.raises(UnetcliError, match=words) as error:
            refuse("big.zarr", model=("a", "other"), device="cpu")  # type: ignore[operator]
        assert "a/model.safetensors" in str(error.value)
        assert "other/model.safetensors" in str(error.value)
        assert "\n" not in str(error.value)
    assert not Path("big.pred.zarr").exists()


def with_training(model: Path, images: NDArray[Any], pixel: float) -> None:
    """Give a model the properties of training images, with square pixels of some nm."""
    file = model / "model.safetensors"
    data = TrainingData(
        voxel_size={"y": pixel, "x": pixel},
        units={"y": "nanometer", "x": "nanometer"},
        grey=grey_values(image[None] for image in images),
    )
    save_model(file, load_network(file), replace(read_model(file)[0], training_data=data))


def test_models_of_other_pixel_sizes_are_refused(models: list[Path]) -> None:
    for model, pixel in zip(models, (4.0, 8.0, 4.02), strict=True):
        with_training(model, grey(4, 64, 64), pixel)
    with pytest.raises(UnetcliError, match=r"pixels of 4 x 4 nanometer, but --model b.* has 8 x 8 nanometer"):
        api.plan("big.zarr", model=("a", "b"), **CPU)
    assert api.plan("big.zarr", model=("a", "c"), **CPU).estimate.passes == 2


def test_a_warning_is_said_once_if_it_is_true_of_all_and_else_names_the_model(models: list[Path]) -> None:
    bright = grey(4, 64, 64)
    for model, images in zip(models, (bright // 16, bright // 16, bright), strict=True):
        with_training(model, images, 4.0)
    (text,) = api.predict("big.zarr", model=("a", "b"), output="ab.zarr", **CPU).warnings
    assert text.startswith("big.zarr: grey values")
    (text,) = api.predict("big.zarr", model=("a", "c"), output="ac.zarr", **CPU).warnings
    assert text.startswith("--model a/model.safetensors: big.zarr: grey values")


def test_a_model_named_twice_is_refused(models: list[Path], unetcli: Callable[..., Any]) -> None:
    done = unetcli("predict", "big.zarr", "-m", "a", "-m", "a/model.safetensors")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "--model a/model.safetensors: named twice" in done.stderr


def test_all_models_are_named_by_absolute_paths_for_processes_in_other_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = Paths(volume="v.zarr", model="a", output="p.zarr", others=("b", "c")).absolute()
    assert found.models == tuple(str(tmp_path / name) for name in "abc")


@pytest.mark.parametrize("changed", ["a", "b"])
def test_a_worker_refuses_a_model_that_changed_since_the_run_was_planned(models: list[Path], changed: str) -> None:
    api.predict("big.zarr", model=models[:2], output="out.zarr", share=(0, 2), **CPU)
    shutil.copy("c/model.safetensors", f"{changed}/model.safetensors")
    step = PredictStep.open(RunFolder.of("out.zarr"))
    with pytest.raises(
        UnetcliError, match=rf"{changed}/model.safetensors: has changed since the run was planned; .*over"
    ):
        list(step.compute([1], bool))
