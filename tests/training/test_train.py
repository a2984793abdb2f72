"""train, in this process: what it learns, resumes, refuses and writes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import grey, write_zarr

from unetcli.errors import UnetcliError
from unetcli.model import load_network, read_header
from unetcli.signals import Signals
from unetcli.training.checkpoint import Checkpoint
from unetcli.training.request import TrainRequest
from unetcli.training.train import train_model


@pytest.fixture
def request_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainRequest:
    """Eight sections of bright discs; a network of 5,000 parameters."""
    monkeypatch.chdir(tmp_path)
    disc = np.hypot(*np.ogrid[-30:34, -40:32]) < 16
    labels = np.stack([np.roll(disc, 3 * k, 1) for k in range(8)]).astype(np.uint8)
    write_zarr(Path("labels.zarr"), labels)
    write_zarr(Path("raw.zarr"), labels * 90 + grey(*labels.shape) // 4)
    return TrainRequest(
        pairs=(("raw.zarr", "labels.zarr"),),
        recipe="paper",
        steps=30,
        depth=1,
        base_channels=8,
        tile=44,
        optimizer="adam",
        learning_rate=0.01,
        device="cpu",
    )


class Stop(Signals):
    """Asks for an end after some steps."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def stopping(self) -> bool:
        self.left -= 1
        return self.left < 0


def weights(folder: str = "model") -> dict[str, torch.Tensor]:
    return load_network(Path(folder) / "model.safetensors").state_dict()


def state(folder: str = "model") -> dict[str, torch.Tensor]:
    return Checkpoint.load(Path(folder) / "checkpoint.pt").network


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one | other)


def test_it_learns_and_says_how_well_on_the_last_sections(request_: TrainRequest) -> None:
    summary = train_model(replace(request_, steps=150))
    assert summary.finished
    assert summary.best_error is not None
    assert summary.best_error < 0.05
    header = read_header(Path(summary.model))
    assert header.architecture.base_channels == 8
    assert header.intensity.dtype == "uint8"
    assert header.provenance["config"]["sections"] == [[0, 7]]
    assert header.provenance["config"]["validation"] == [[7, 8]]
    rows = [json.loads(line) for line in Path("model/log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [150]
    assert Path("model/curves.png").read_bytes().startswith(b"\x89PNG")


def test_intensity_statistics_are_those_of_the_training_sections(request_: TrainRequest) -> None:
    train_model(replace(request_, steps=1))
    import zarr

    seen = zarr.open_array("raw.zarr", mode="r")[:7].astype(float)
    intensity = read_header(Path("model/model.safetensors")).intensity
    assert intensity.mean == pytest.approx(seen.mean())
    assert intensity.std == pytest.approx(seen.std())


def test_the_same_seed_gives_the_same_weights_and_another_one_others(request_: TrainRequest) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_model(replace(request_, steps=5, seed=seed, output=Path(name)))
    assert same(state("a"), state("b"))
    assert not same(state("a"), state("c"))


def test_stopped_and_gone_on_equals_straight_through(request_: TrainRequest) -> None:
    stopped = train_model(request_, signals=Stop(after=12))
    assert not stopped.finished
    assert 0 < stopped.steps < 30
    assert train_model(request_).finished
    train_model(replace(request_, output=Path("straight")))
    assert same(state(), state("straight"))
    assert same(weights(), weights("straight"))
    rows = [json.loads(Path(f"{name}/log.jsonl").read_text()) for name in ("model", "straight")]
    assert rows[0]["loss"] == rows[1]["loss"]  # losses before the stop count


def test_killed_training_goes_on_to_the_same_weights(request_: TrainRequest) -> None:
    command = [sys.executable, "-m", "unetcli", "train", "raw.zarr", "labels.zarr", "--steps", "400", "--depth", "1"]
    command += ["--recipe", "paper"]
    command += ["--base-channels", "8", "--tile", "44", "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not Path("model/checkpoint.pt").exists():
        assert process.poll() is None
    process.kill()
    process.wait()
    assert subprocess.run(command, check=True, capture_output=True).returncode == 0
    subprocess.run([*command, "--output", "straight"], check=True, capture_output=True)
    assert same(state(), state("straight"))
    assert same(weights(), weights("straight"))
    assert [json.loads(line)["step"] for line in Path("model/log.jsonl").read_text().splitlines()] == [200, 400]


def test_more_steps_of_the_same_training_continue_it(request_: TrainRequest) -> None:
    train_model(replace(request_, steps=10))
    summary = train_model(replace(request_, steps=25))
    assert (summary.steps, summary.found_finished) == (25, False)
    train_model(replace(request_, steps=25, output=Path("straight")))
    assert same(state(), state("straight"))


def test_a_finished_training_says_so_and_changes_nothing(request_: TrainRequest) -> None:
    train_model(request_)
    before = {f.name: f.read_bytes() for f in Path("model").rglob("*") if f.is_file()}
    again = train_model(replace(request_, steps=None, depth=None, base_channels=None, tile=None, device=None))
    assert again.found_finished
    assert {f.name: f.read_bytes() for f in Path("model").rglob("*") if f.is_file()} == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"depth": 2, "tile": None}, r"depth 2 \(was 1\)"),
        ({"base_channels": 4}, r"base_channels 4 \(was 8\)"),
        ({"seed": 3}, "seed 3"),
        ({"learning_rate": 0.5}, "learning_rate 0.5"),
        ({"optimizer": "sgd"}, "optimizer sgd"),
        ({"sections": (0, 6)}, "sections"),
        ({"validation_fraction": 0.5}, "validation"),
        ({"truth": "instances"}, "truth instances"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_configuration_is_refused_by_name(
    request_: TrainRequest, change: dict[str, object], named: str
) -> None:
    train_model(replace(request_, steps=2))
    other = replace(request_, **change)  # type: ignore[arg-type]
    with pytest.raises(UnetcliError, match=named) as caught:
        train_model(other)
    assert "--overwrite" in str(caught.value)


def test_other_images_are_refused_and_overwrite_starts_anew(request_: TrainRequest) -> None:
    train_model(replace(request_, steps=2))
    write_zarr(Path("other.zarr"), grey(8, 64, 72))
    other = replace(request_, pairs=(("other.zarr", "labels.zarr"),), steps=2)
    with pytest.raises(UnetcliError, match="images or labels are others"):
        train_model(other)
    before = state()
    assert train_model(replace(other, overwrite=True)).finished
    assert not same(before, state())


def test_a_foreign_folder_is_not_touched(request_: TrainRequest) -> None:
    Path("thesis").mkdir()
    Path("thesis/chapter1.tex").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UnetcliError, match="--output"):
            train_model(replace(request_, output=Path("thesis"), overwrite=overwrite))
    with pytest.raises(UnetcliError, match="input"):
        train_model(replace(request_, output=Path("raw.zarr/model")))
    assert [f.name for f in Path("thesis").iterdir()] == ["chapter1.tex"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile": 45}, "nearest"),
        ({"steps": 0}, "at least 1"),
        ({"optimizer": "lbfgs"}, "sgd, adam or adamw"),
        ({"truth": "maybe"}, "auto, binary, instances or classes"),
        ({"validation_fraction": 1.0}, "validation-fraction"),
        ({"sections": (5, 20)}, "0:8"),
        ({"pairs": (("labels.tif", "labels.zarr"),)}, "no such file"),
        ({"depth": -1}, "depth"),
        ({"learning_rate": -1.0}, "above 0"),
        ({"channel": 1}, "channels 0 to 0"),
    ],
)
def test_bad_requests_write_nothing(request_: TrainRequest, change: dict[str, object], message: str) -> None:
    with pytest.raises(UnetcliError, match=message):
        train_model(replace(request_, **change))  # type: ignore[arg-type]
    assert not Path("model").exists()


def test_labels_of_another_shape_or_many_values_are_refused(request_: TrainRequest) -> None:
    write_zarr(Path("small.zarr"), grey(8, 64, 71) // 128)
    with pytest.raises(UnetcliError, match=r"8x64x72.*8x64x71"):
        train_model(replace(request_, pairs=(("raw.zarr", "small.zarr"),)))
    write_zarr(Path("many.zarr"), grey(8, 64, 72) // 16)
    with pytest.raises(UnetcliError, match=r"16 different values.*instances.*classes.*binary"):
        train_model(replace(request_, pairs=(("raw.zarr", "many.zarr"),)))


def test_a_loss_that_diverges_ends_with_one_line_and_keeps_no_model(request_: TrainRequest) -> None:
    with pytest.raises(UnetcliError, match="smaller --lr"):
        train_model(replace(request_, optimizer="sgd", learning_rate=1e30))
    assert not Path("model/model.safetensors").exists()


def test_labels_with_another_number_of_axes_or_damaged_data_get_one_line(request_: TrainRequest) -> None:
    write_zarr(Path("flat.zarr"), grey(64, 72) // 128)
    with pytest.raises(UnetcliError, match="same voxels"):
        train_model(replace(request_, pairs=(("raw.zarr", "flat.zarr"),)))
    for chunk in Path("raw.zarr/c").rglob("0"):
        if chunk.is_file():
            chunk.write_bytes(b"damaged")
    with pytest.raises(UnetcliError, match=r"cannot read z 0:8"):
        train_model(request_)


def test_leftovers_of_a_killed_call_are_no_obstacle(request_: TrainRequest) -> None:
    Path("model").mkdir()
    for name in ("training.json.0123456789abcdef.partial", "lock.0123456789abcdef.partial", "lock.guard"):
        Path("model", name).write_text("torn")
    assert train_model(replace(request_, steps=1)).finished
    assert not list(Path("model").glob("*.partial"))


def test_curves_are_drawn_even_if_the_last_call_was_killed_before(request_: TrainRequest) -> None:
    train_model(replace(request_, steps=2))
    Path("model/curves.png").unlink()
    assert train_model(replace(request_, steps=2)).found_finished
    assert Path("model/curves.png").exists()


def test_several_classes_are_learned_as_such(request_: TrainRequest) -> None:
    import zarr

    labels = zarr.open_array("labels.zarr", mode="r")[...].copy()
    labels[:, 50:] = 2
    write_zarr(Path("classes.zarr"), labels)
    summary = train_model(replace(request_, pairs=(("raw.zarr", "classes.zarr"),), truth="classes", steps=3))
    assert read_header(Path(summary.model)).architecture.classes == 3


def test_a_single_image_trains_without_held_out_sections(request_: TrainRequest) -> None:
    import zarr

    for name in ("raw", "labels"):
        write_zarr(Path(f"one-{name}.zarr"), zarr.open_array(f"{name}.zarr", mode="r")[0])
    summary = train_model(replace(request_, pairs=(("one-raw.zarr", "one-labels.zarr"),), steps=3))
    assert (summary.finished, summary.best_error) == (True, None)
    assert len(weights()) > 0


def test_without_steps_the_probe_chooses_them(request_: TrainRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    import unetcli.training.resolve

    monkeypatch.setattr(unetcli.training.resolve, "MINUTES", 1 / 60)
    summary = train_model(replace(request_, steps=None))
    assert summary.finished
    assert 5 <= summary.goal <= 5000  # about a second's worth
