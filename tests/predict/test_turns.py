"""Averages over turned copies: the right mean, whatever the tile and the place, and refused where it has no meaning."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest
import torch
import zarr
from helpers import grey, write_model, write_zarr
from numpy.typing import NDArray

from unetcli import api, lazy
from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Architecture, Box
from unetcli.model.file import load_network, read_model, save_model
from unetcli.model.network import UNet
from unetcli.planning.estimate import averaging_bytes
from unetcli.planning.plan import ROTATIONS
from unetcli.planning.planner import Input, make_plan
from unetcli.predict.predictor import Predictor, predict_blocks
from unetcli.predict.turns import TURNS, turns
from unetcli.volumes.volume import Volume

Plane = NDArray[np.float32]
NAMED: list[tuple[Callable[[Any], Any], Callable[[Any], Any]]] = [
    (lambda a: a, lambda a: a),
    (lambda a: np.rot90(a, 1), lambda a: np.rot90(a, -1)),
    (lambda a: np.rot90(a, 2), lambda a: np.rot90(a, -2)),
    (lambda a: np.rot90(a, 3), lambda a: np.rot90(a, -3)),
    (np.fliplr, np.fliplr),
    (lambda a: np.rot90(np.fliplr(a), 1), lambda a: np.fliplr(np.rot90(a, -1))),
    (lambda a: np.rot90(np.fliplr(a), 2), lambda a: np.fliplr(np.rot90(a, -2))),
    (lambda a: np.rot90(np.fliplr(a), 3), lambda a: np.fliplr(np.rot90(a, -3))),
]
"""Turn and its inverse of each copy, as the documentation names them, for planes (y, x)."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNETCLI_MODEL", raising=False)


def test_the_turns_are_those_of_the_square_and_are_undone() -> None:
    plane = torch.arange(24.0).reshape(2, 3, 4)  # (c, y, x)
    for turn, (apply, undo) in zip(TURNS, NAMED, strict=True):
        turned = turn.apply(plane)
        assert np.array_equal(turned, [apply(channel) for channel in plane.numpy()])
        assert np.array_equal(turn.undo(turned), [undo(channel) for channel in turned.numpy()])
        assert torch.equal(turn.undo(turned), plane)
    assert len({tuple(turn.apply(torch.arange(4.0).reshape(2, 2)).flatten().tolist()) for turn in TURNS}) == 8
    assert [len(turns(n)) for n in ROTATIONS] == list(ROTATIONS)


# ---- the result


@pytest.fixture(scope="module")
def network() -> UNet:
    torch.manual_seed(3)
    return UNet(Architecture(depth=3, base_channels=4)).eval()


@pytest.fixture(scope="module")
def image() -> Plane:
    return np.random.default_rng(5).normal(size=(131, 203)).astype(np.float32)


def whole_image(network: UNet, image: Plane, rotations: int) -> Plane:
    """Reference: the padded image turned by numpy, and the mean over single forward passes of all of it."""
    axis = network.architecture.footprint().axes[0]
    margins = [(axis.context, axis.side_for(n) - n - axis.context) for n in image.shape]
    padded, found = np.pad(image, margins, mode="reflect"), []
    for apply, undo in NAMED[:rotations]:
        turned = torch.from_numpy(np.ascontiguousarray(apply(padded)))[None, None]
        with torch.inference_mode():
            foreground = torch.softmax(network(turned)[0].double(), dim=0)[1].numpy()
        found.append(undo(foreground)[: image.shape[0], : image.shape[1]])
    return np.asarray(np.mean(found, axis=0), np.float32)


def predicted(network: UNet, image: Plane, tile: int, rotations: int, block: tuple[int, int] | None = None) -> Plane:
    settings = replace(helpers.SETTINGS, dtype="float32", mean=0.0, std=1.0, threads=2, rotations=rotations)
    source = Input(axes="yx", extent=image.shape, chunks=image.shape, bytes_per_voxel=4)
    plan = make_plan(source, Box.of_shape(image.shape), network.architecture, tile, settings, helpers.SOURCES)
    if block:
        plan = replace(plan, chunks=(1, 1), write_chunks=(1, 1), block_shape=block)
    result = np.full(image.shape, np.nan, np.float32)
    predictor, volume = (
        Predictor(network, settings, torch.device("cpu")),
        Volume(path="image", array=image, stored_axes="yx"),
    )
    for finished in predict_blocks(plan, predictor, volume, range(plan.blocks)):
        assert finished.values is not None, finished.error
        result[finished.block.box.slices] = finished.values[0]
    return result


@pytest.mark.by_default("4-132-block4", "8-188-block1", "8-316-None")
@pytest.mark.parametrize(
    ("rotations", "tile", "block"),
    [(8, 116, None), (8, 188, (64, 203)), (8, 316, None), (7, 132, (50, 70)), (4, 132, (50, 70))],
)
def test_the_mean_over_turned_copies_does_not_depend_on_tiles(
    network: UNet, image: Plane, rotations: int, tile: int, block: tuple[int, int] | None
) -> None:
    """The last tiles of a block are no squares."""
    expected = whole_image(network, image, rotations)
    assert np.abs(predicted(network, image, tile, rotations, block) - expected).max() < 2e-5


def test_turned_copies_differ_from_each_other(network: UNet, image: Plane) -> None:
    """Otherwise the other tests would pass without any turn."""
    results = [whole_image(network, image, rotations) for rotations in ROTATIONS]
    assert min(np.abs(a - b).max() for n, a in enumerate(results) for b in results[:n]) > 1e-3


@pytest.mark.parametrize("rotations", ROTATIONS)
def test_the_mean_is_that_of_turned_volumes_predicted_one_by_one(rotations: int) -> None:
    """The sides are multiples of 2^depth, so that a turned volume is pooled on the same grid."""
    model, image = write_model(Path("model"), classes=3), grey(48, 64)
    options: dict[str, Any] = {"device": "cpu", "dtype": "float32"}
    copies = []
    for apply, undo in NAMED[:rotations]:
        turned = lazy.predict(np.ascontiguousarray(apply(image)), model, **options).compute(scheduler="synchronous")
        copies.append([undo(channel) for channel in turned])
    found = lazy.predict(image, model, rotations=rotations, **options).compute(scheduler="synchronous")
    assert found.shape == (3, 48, 64)
    assert np.abs(found - np.mean(copies, axis=0)).max() < 2e-5
    stored = lazy.predict(image, model, rotations=rotations, device="cpu").compute(scheduler="synchronous")
    assert np.abs(stored / 255 - np.mean(copies, axis=0)).max() < 0.5 / 255 + 2e-5  # quantised once, after the mean


# ---- the command


def stored(name: str) -> NDArray[np.uint8]:
    return np.asarray(zarr.open_array(f"{name}/0", mode="r")[...])


def test_shares_and_lazy_give_the_same_bytes() -> None:
    """For workers on any cluster, see tests/engine/test_steps.py."""
    write_model(Path("model"))
    write_zarr(Path("big.zarr"), grey(3, 90, 130), chunks=(1, 64, 64))
    options: dict[str, Any] = {"tile": 60, "device": "cpu", "rotations": 7}
    assert api.predict("big.zarr", output="one.zarr", **options).rotations == 7
    for share in ((1, 2), (0, 2)):
        api.predict("big.zarr", output="two.zarr", share=share, **options)
    assert np.array_equal(stored("one.zarr"), stored("two.zarr"))
    assert np.array_equal(stored("one.zarr"), lazy.predict("big.zarr", **options).compute())
    api.predict("big.zarr", output="single.zarr", tile=60, device="cpu")
    assert not np.array_equal(stored("one.zarr"), stored("single.zarr"))


def test_rotations_are_frozen_in_the_plan_and_recomputed_by_verify(unetcli: Callable[..., Any]) -> None:
    write_model(Path("model"))
    write_zarr(Path("big.zarr"), grey(2, 90, 130), chunks=(1, 64, 64))
    done = unetcli("predict", "big.zarr", "--rotations", "8", "--tile", "60", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "cpu float32; mean of 8 turned copies" in done.stderr
    again = unetcli("predict", "big.zarr", "--rotations", "4")
    assert again.returncode == 1
    assert "rotations 4 (was 8)" in again.stderr
    assert unetcli("predict", "big.zarr", "--rotations", "8").returncode == 0
    checked = unetcli("verify", "big.pred.zarr", "--seams", "4", "--json")
    seams = json.loads(checked.stdout)["seams"]
    assert (checked.returncode, seams["windows"], seams["exceeded"]) == (0, 4, [])


def test_a_plan_counts_the_passes(unetcli: Callable[..., Any]) -> None:
    write_model(Path("model"))
    write_zarr(Path("big.zarr"), grey(3, 90, 130), chunks=(1, 64, 64))
    options: dict[str, Any] = {"tile": 60, "device": "cpu", "tile_seconds": 10.0, "workers": 1}
    one, eight = (api.plan("big.zarr", rotations=n, **options) for n in (1, 8))
    assert (one.estimate.passes, eight.estimate.passes) == (1, 8)
    assert eight.estimate.multiply_adds == 8 * one.estimate.multiply_adds
    assert eight.estimate.tile_multiply_adds == one.estimate.tile_multiply_adds
    assert eight.estimate.tiles == one.estimate.tiles
    assert eight.estimate.input_bytes == one.estimate.input_bytes  # nothing is read twice
    assert eight.timing.seconds_per_block == pytest.approx(8 * (one.timing.seconds_per_block or 0))
    more = averaging_bytes(eight.plan, eight.architecture)
    assert eight.estimate.device_bytes - one.estimate.device_bytes == more == 4 * (2 * 2 + 1) * 60 * 60
    text = unetcli("plan", "big.zarr", "--rotations", "8", "--tile", "60", "--device", "cpu").stdout
    assert "mean of 8 turned copies" in " ".join(text.split())
    assert "in each of 8 passes" in " ".join(text.split())
    assert "pass" not in unetcli("plan", "big.zarr", "--tile", "60", "--device", "cpu").stdout


def placed(sizes: tuple[float, float], units: tuple[str, str] = ("nanometer", "nanometer")) -> str:
    """An OME-Zarr image with pixels of the given sizes along y and x."""
    axes = [{"name": axis, "type": "space", "unit": unit} for axis, unit in zip("yx", units, strict=True)]
    scale = [{"type": "scale", "scale": list(sizes)}]
    entry = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}
    group = zarr.create_group("in.zarr", attributes={"ome": {"version": "0.5", "multiscales": [entry]}}, overwrite=True)
    group.create_array("0", data=grey(64, 48), chunks=(64, 48))
    return "in.zarr"


@pytest.mark.parametrize("rotations", [4, 7, 8])
def test_quarter_turns_of_pixels_that_are_no_squares_are_refused(rotations: int) -> None:
    write_model(Path("model"))
    path = placed((4.0, 8.0))
    for refuse in (api.plan, api.predict, lazy.predict):
        with pytest.raises(UnetcliError, match=f"--rotations {rotations}: in.zarr has pixels of 4 x 8 ") as error:
            refuse(path, rotations=rotations, device="cpu")  # type: ignore[operator]
        assert "--rotations 1" in str(error.value)
        assert "\n" not in str(error.value)
    assert not Path("in.pred.zarr").exists()
    assert api.predict(path, rotations=1, device="cpu").complete


def test_square_pixels_in_two_units_are_turned() -> None:
    write_model(Path("model"))
    assert api.predict(placed((500.0, 0.5), ("nanometer", "micrometer")), rotations=4, device="cpu").complete


def test_other_numbers_are_refused(unetcli: Callable[..., Any]) -> None:
    write_model(Path("model"))
    write_zarr(Path("big.zarr"), grey(20, 30))
    done = unetcli("predict", "big.zarr", "--rotations", "5")
    assert (done.returncode, done.stderr) == (1, "unetcli: --rotations 5: expected 1, 4, 7 or 8\n")


@pytest.mark.parametrize(
    ("augmentation", "rotations", "words"),
    [
        ({"rotation": 180.0, "flip": True}, 8, []),
        ({"rotation": 0.0, "flip": True}, 1, []),
        ({"rotation": 0.0, "flip": True}, 4, ["trained on no turned images"]),
        ({"rotation": 15.0, "flip": True}, 7, ["images turned by at most 15 degrees"]),
        ({"rotation": 180.0, "flip": False}, 4, []),
        ({"rotation": 180.0, "flip": False}, 7, ["no mirrored images"]),
        ({"rotation": 0.0, "flip": False}, 8, ["no turned images", "no mirrored images"]),
        (None, 8, []),
    ],
)
def test_turns_that_the_training_did_not_have_cause_a_warning(
    augmentation: dict[str, Any] | None, rotations: int, words: list[str]
) -> None:
    file = write_model(Path("model"))
    header, _ = read_model(file)
    provenance = {} if augmentation is None else {"config": {"augmentation": augmentation}}
    save_model(file, load_network(file), replace(header, provenance=provenance))
    write_zarr(Path("big.zarr"), grey(40, 60))
    found = api.plan("big.zarr", rotations=rotations, device="cpu").warnings
    assert len(found) == len(words)
    assert all(word in text for word, text in zip(words, found, strict=True))


def test_the_header_of_a_training_states_its_augmentation() -> None:
    write_zarr(Path("raw.zarr"), grey(3, 100, 100))
    write_zarr(Path("labels.zarr"), (grey(3, 100, 100) > 127).astype(np.uint8))
    options: dict[str, Any] = {"depth": 1, "base_channels": 2, "steps": 1, "device": "cpu", "validation": (2, 3)}
    api.train("raw.zarr", "labels.zarr", rotation=0.0, **options)
    found = api.plan("raw.zarr", rotations=4, device="cpu").warnings
    assert any("trained on no turned images" in text for text in found)
