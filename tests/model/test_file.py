from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import write_model
from safetensors.numpy import save_file

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Architecture
from unetcli.model.file import (
    HEADER_KEY,
    Intensity,
    ModelHeader,
    damage,
    find_model,
    load_network,
    read_header,
    read_model,
    save_model,
)
from unetcli.model.network import UNet

HEADER = ModelHeader(
    architecture=Architecture(depth=1, base_channels=3, in_channels=2, classes=3, dropout=0.25),
    class_names=("background", "cell, wall", "nucleus ä"),
    intensity=Intensity(dtype="uint16", mean=1234.5678901234567, std=0.1),
    provenance={"command": "unetcli train a b", "steps": 7},
)


def test_a_model_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    torch.manual_seed(5)
    network = UNet(HEADER.architecture).eval()
    save_model(tmp_path / "m", network, HEADER)
    assert read_header(tmp_path / "m") == HEADER
    x = torch.randn(1, 2, 34, 36)
    assert torch.equal(load_network(tmp_path / "m")(x), network(x))
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_each_channel_keeps_its_own_statistics(tmp_path: Path) -> None:
    intensity = Intensity(dtype="uint16", mean=(3.5, 1e4), std=(0.25, 2e3))
    save_model(tmp_path / "m", UNet(HEADER.architecture), replace(HEADER, intensity=intensity))
    assert read_header(tmp_path / "m").intensity == intensity


def test_a_loaded_network_is_in_evaluation_mode(model: Path) -> None:
    assert not load_network(model).training


def test_the_header_is_read_without_torch(model: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from unetcli.model.file import read_header; "
        "print(read_header(Path(sys.argv[1])).architecture.depth, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(model)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]


def test_weights_without_a_header_of_unetcli_are_refused(tmp_path: Path) -> None:
    save_file({"weight": np.zeros((3, 3), np.float32)}, tmp_path / "a.safetensors", metadata={"format": "pt"})
    save_file({"weight": np.zeros((3, 3), np.float32)}, tmp_path / "b.safetensors")
    for name in "ab":
        with pytest.raises(UnetcliError, match=rf"{name}\.safetensors: not a model written by unetcli"):
            read_header(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 a pickle",
        b"\xff" * 100,
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{}",
        (50).to_bytes(8, "little") + b'{"__metadata__"',
    ],
    ids=["empty", "zip", "huge header", "list", "nothing", "torn"],
)
def test_a_file_that_is_no_model_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (file := tmp_path / "m.safetensors").write_bytes(content)
    for read in (read_header, load_network):
        with pytest.raises(UnetcliError, match=r"m\.safetensors: not a model") as caught:
            read(file)
        assert "\n" not in str(caught.value)


def test_torn_weights_are_refused_in_one_line(model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-100])
    for read in (read_header, load_network):
        with pytest.raises(UnetcliError, match=r"model\.safetensors: .*damaged model") as caught:
            read(model)
        assert "\n" not in str(caught.value)


def test_weights_of_another_architecture_are_refused_in_one_line(tmp_path: Path) -> None:
    save_model(tmp_path / "m", UNet(Architecture(depth=1, base_channels=2)), HEADER)
    with pytest.raises(UnetcliError, match="damaged model") as caught:
        load_network(tmp_path / "m")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "architecture",
    [
        Architecture(depth=1, base_channels=3, in_channels=2, classes=3),
        Architecture(depth=3, base_channels=4, batch_norm=True),
    ],
    ids=["plain", "batch norm"],
)
def test_the_shapes_of_the_weights_are_those_of_the_network(architecture: Architecture) -> None:
    state = UNet(architecture).state_dict()
    assert architecture.weight_shapes() == {name: tuple(values.shape) for name, values in state.items()}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("digest", [True, False], ids=["digest", "without digest"])
def test_one_weight_that_is_not_finite_is_refused(model: Path, value: float, digest: bool) -> None:
    def poison(weights: dict[str, np.ndarray]) -> None:
        weights["up.1.bias"][2] = value

    change_weights(model, poison, digest=digest)
    for read in (read_model, load_network):
        with pytest.raises(UnetcliError, match=r"\(up.1.bias has NaN or infinity in 1 of its 4 values\);"):
            read(model)


def test_a_weight_that_was_changed_is_noticed_by_the_digest(model: Path) -> None:
    def flip(weights: dict[str, np.ndarray]) -> None:
        weights["head.weight"][0] *= 1.001

    change_weights(model, flip)
    with pytest.raises(UnetcliError, match=r"damaged model \(.*another checksum\); copy it again, or train it again"):
        read_model(model)


def test_a_model_without_a_digest_is_accepted(model: Path) -> None:
    before = load_network(model).state_dict()
    change_weights(model, lambda _: None, digest=False)
    assert read_header(model).digest is None
    assert all(torch.equal(before[name], values) for name, values in load_network(model).state_dict().items())


def test_missing_and_further_weights_are_named(model: Path) -> None:
    header, weights = read_model(model)
    assert damage(header, weights) is None
    less = {name: values for name, values in weights.items() if name != "head.bias"}
    assert damage(header, less) == "head.bias is missing"
    assert damage(header, weights | {"tail": np.zeros(1)}) == "tail is no weight of its architecture"
    turned = weights | {"head.weight": weights["head.weight"].reshape(4, 2, 1, 1)}
    assert damage(header, turned) == "head.weight is 4 x 2 x 1 x 1, its architecture needs 2 x 4 x 1 x 1"


def change_weights(file: Path, change: Callable[[dict[str, np.ndarray]], None], *, digest: bool = True) -> None:
    """Change the weights of a model file, but not the digest in its header, which can be left out."""
    header, weights = read_model(file)
    change(weights)
    kept = header if digest else replace(header, digest=None)
    save_file(weights, file, metadata={HEADER_KEY: kept.to_json()})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 99}, "version 99"),
        ({"architecture": {"depth": -1}}, "depth = -1"),
        ({"architecture": {"levels": 4}}, "not a model"),
        ({"intensity": None}, "intensity is null; expected an object"),
        (
            {"intensity": {"dtype": [1.0, 2.0], "mean": 1, "std": 1}},
            r"intensity\.dtype is \[1\.0, 2\.0\]; expected text",
        ),
        ({"class_names": "ab"}, "class_names is"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_header_that_cannot_be_used_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    text = json.dumps({**json.loads(HEADER.to_json()), **changes})
    save_file({"w": np.zeros(1, np.float32)}, tmp_path / "m", metadata={HEADER_KEY: text})
    with pytest.raises(UnetcliError, match=message):
        read_header(tmp_path / "m")


def test_the_model_is_the_named_one_else_that_of_the_variable_else_the_local_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {name: write_model(tmp_path / name, depth=1) for name in ("named", "variable", "model")}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNETCLI_MODEL", str(files["variable"]))
    assert find_model(tmp_path / "named") == find_model(files["named"]) == files["named"]
    assert find_model() == files["variable"]
    monkeypatch.setenv("UNETCLI_MODEL", str(tmp_path / "variable"))
    assert find_model() == files["variable"]
    monkeypatch.delenv("UNETCLI_MODEL")
    assert find_model().resolve() == files["model"]


def test_a_missing_model_says_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNETCLI_MODEL", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnetcliError, match=r"^model: no model found; .*`unetcli train"):
        find_model()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnetcliError, match=r"empty/model\.safetensors: no model"):
        find_model(tmp_path / "empty")


def test_a_failed_save_leaves_the_earlier_model(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = model.read_bytes()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as broken:
        broken.setattr(Path, "write_bytes", full_disk)
        with pytest.raises(OSError, match="no space"):
            save_model(model, UNet(Architecture(depth=1, base_channels=2)), HEADER)
    assert model.read_bytes() == before
    assert list(model.parent.iterdir()) == [model]
