"""Fine-tuning with ``train --init``: where it starts, what must agree, and what is frozen."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Command, finished
from helpers import wait_for, write_zarr
from train.scenes import TINY, Stop, discs, same, state, weights

from unetcli.core.errors import UnetcliError, collected_warnings
from unetcli.model.file import digest_of, load_network, read_header, read_model
from unetcli.train.folder import Checkpoint, TrainingFolder
from unetcli.train.request import TrainRequest
from unetcli.train.resolve import resolve_training
from unetcli.train.train import options_in_force, train_model

OLD = Path("old")
PLAIN = replace(TINY, steps=4, validate_every=2)
FAST = replace(PLAIN, recipe="fast", optimizer=None, lr=None)
TUNED = replace(FAST, depth=None, base_channels=None, init=OLD, output=Path("tuned"))


@pytest.fixture(params=["fast", "paper"])
def old(request_: TrainRequest, request: pytest.FixtureRequest) -> Path:
    """Model trained with or without batch norm; without, its up-convolutions have biases too."""
    train_model(replace(FAST if request.param == "fast" else PLAIN, output=OLD, steps=20))
    return OLD / "model.safetensors"


@pytest.fixture
def plain(request_: TrainRequest) -> Path:
    train_model(replace(PLAIN, output=OLD))
    return OLD / "model.safetensors"


def stopped(request: TrainRequest) -> None:
    """Begin a training and stop after its first step."""
    assert not train_model(request, signals=Stop(1)).finished


def begun(request: TrainRequest) -> dict[str, Any]:
    """State with which a training begins: at step 0."""
    folder = TrainingFolder(request.output)
    training = resolve_training(request, folder, None)
    folder.path.mkdir()
    from unetcli.core.process import Signals
    from unetcli.core.streams import silent

    training.run(0, silent, Signals())
    return Checkpoint.load(folder.checkpoint).network


@pytest.mark.by_default("fast-fast")
@pytest.mark.parametrize("recipe", ["fast", pytest.param("paper", marks=pytest.mark.slow)])
def test_step_0_is_the_initial_model(old: Path, recipe: str) -> None:
    request = replace(TUNED, recipe=recipe)
    first, network = begun(request), load_network(old)
    training = resolve_training(request, TrainingFolder(Path("tuned")), None)
    learner = training.learner()
    learner.start_from(first)
    assert learner.config.architecture.batch_norm == (recipe == "fast")
    assert (learner.config.architecture.depth, learner.config.architecture.base_channels) == (1, 8)
    x = torch.randn(1, 1, 44, 52)
    with torch.inference_mode():
        expected = network(x)
        for begin in (learner.network, learner.validated):
            found = begin.eval()(x)
            assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    if recipe == "paper":
        assert same(first, network.state_dict())


@pytest.mark.by_default("fast")
def test_the_first_step_of_a_batch_norm_training_has_the_loss_of_the_initial_model(old: Path) -> None:
    from unetcli.train.optim import batches, weighted_cross_entropy

    begun(TUNED)
    training = resolve_training(TUNED, TrainingFolder(Path("tuned")), None)
    learner = training.learner()
    learner.start_from(Checkpoint.load(Path("tuned/checkpoint.pt")).network)
    (batch,) = batches(learner, training.sampler(), range(1))
    with torch.inference_mode():
        logits = load_network(old)(batch.images)
        total, weight = weighted_cross_entropy(logits, batch.classes, batch.border_weight, learner.table)
    assert float(learner.step(batch, 0)) == pytest.approx(float(total / weight), rel=1e-4)


def test_the_header_says_which_model_the_training_began_with_and_keeps_its_statistics(plain: Path) -> None:
    raw, _ = discs()
    write_zarr(Path("brighter.zarr"), raw + 3)
    request = replace(TUNED, pair=(("brighter.zarr", "labels.zarr"),))
    assert train_model(request).finished
    header, old = read_header(Path("tuned/model.safetensors")), read_header(plain)
    assert header.provenance["config"]["init"] == old.digest == digest_of(read_model(plain)[1])
    assert header.intensity == old.intensity
    train_model(replace(request, normalise="volume", output=Path("other")))
    own = read_header(Path("other/model.safetensors"))
    assert own.provenance["config"]["init"] == old.digest
    assert own.intensity.mean == pytest.approx(float(raw[:7].mean()) + 3)


def test_images_far_from_those_of_the_model_are_a_warning(plain: Path) -> None:
    raw, _ = discs()
    write_zarr(Path("dark.zarr"), raw // 8)
    request = replace(TUNED, pair=(("dark.zarr", "labels.zarr"),), steps=1)
    with collected_warnings() as warnings:
        train_model(request)
    assert len(warnings) == 1
    assert warnings[0].startswith("dark.zarr, channel 0: grey values are far from those that old/model.safetensors")
    with collected_warnings() as warnings:
        train_model(replace(request, normalise="volume", output=Path("other")))
        train_model(replace(TUNED, output=Path("third")))
    assert not warnings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 2, "tile": None}, r"^--depth 2: old/model.safetensors, .* has 1; omit --depth, or give 1$"),
        (
            {"base_channels": 4},
            r"^--base-channels 4: old/model.safetensors, .* has 8; omit --base-channels, or give 8$",
        ),
        (
            {"pair": (("raw.zarr", "three.zarr"),), "truth": "classes"},
            r"^three.zarr: has 3 classes.* has 2; --truth bin",
        ),
        (
            {"pair": (("colour.zarr", "labels.zarr"),)},
            r"^colour.zarr: has 2 channels.* takes 1; --channel N selects one$",
        ),
        ({"pair": (("deep.zarr", "labels.zarr"),)}, r"^deep.zarr: has uint16 values.* on uint8.*--normalise volume$"),
        ({"init": Path("nothing")}, r"^--init nothing: no such model; expected a model.safetensors"),
        ({"init": Path("labels.zarr/zarr.json")}, r"^labels.zarr/zarr.json: not a model"),
        ({"init": None, "normalise": "model"}, r"^--normalise model: only with --init"),
        (
            {"output": OLD, "overwrite": True},
            r"^old: equal to, inside or around the input old; choose another --output$",
        ),
    ],
    ids=["depth", "width", "classes", "channels", "integers", "missing", "no model", "no init", "itself"],
)
def test_what_does_not_fit_the_initial_model_is_refused_in_one_line(
    plain: Path, change: dict[str, Any], message: str
) -> None:
    raw, labels = discs()
    write_zarr(Path("three.zarr"), labels + np.roll(labels, 20, 2) * (labels == 0) * 2)
    write_zarr(Path("colour.zarr"), np.stack([raw, raw]), dimension_names=tuple("czyx"))
    write_zarr(Path("deep.zarr"), raw.astype(np.uint16))
    before = plain.read_bytes()
    with pytest.raises(UnetcliError, match=message) as caught:
        train_model(replace(TUNED, **change))
    assert "\n" not in str(caught.value)
    assert not Path("tuned").exists()
    assert plain.read_bytes() == before


def test_other_integers_train_with_their_own_statistics(plain: Path) -> None:
    write_zarr(Path("deep.zarr"), discs()[0].astype(np.uint16) * 256)
    request = replace(TUNED, pair=(("deep.zarr", "labels.zarr"),), normalise="volume")
    assert train_model(request).finished
    assert read_header(Path("tuned/model.safetensors")).intensity.dtype == "uint16"


def test_only_the_first_start_needs_the_initial_model(plain: Path) -> None:
    train_model(replace(TUNED, output=Path("straight")))
    stopped(TUNED)
    shutil.rmtree(OLD)
    assert train_model(TUNED).finished
    for name in ("tuned", "straight"):
        assert Path(name, "model.safetensors").is_file()
    one, other = (Path(name, "model.safetensors").read_bytes() for name in ("tuned", "straight"))
    assert one == other
    assert train_model(replace(TUNED, init=None)).found_finished


def test_before_the_first_checkpoint_the_initial_model_is_needed_again(plain: Path) -> None:
    stopped(TUNED)
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        Path("tuned", name).unlink(missing_ok=True)
    plain.rename("moved")
    with pytest.raises(
        UnetcliError, match=r"^--init .*: needed again, as the training was interrupted before its first"
    ):
        train_model(TUNED)
    Path("moved").rename(plain)
    assert train_model(TUNED).finished


def test_another_initial_model_is_refused_like_other_settings(plain: Path) -> None:
    train_model(replace(PLAIN, output=Path("else"), seed=1))
    train_model(TUNED)
    digests = [read_header(Path(name, "model.safetensors")).digest for name in ("else", "old")]
    message = rf"tuned: holds another training: init {digests[0]} \(was {digests[1]}, the checksum of"
    with pytest.raises(UnetcliError, match=message):
        train_model(replace(TUNED, init=Path("else")))
    with pytest.raises(UnetcliError, match=rf"else: .*init {digests[1]} \(was None"):
        train_model(replace(PLAIN, output=Path("else"), seed=1, init=OLD, normalise="volume"))
    with pytest.raises(UnetcliError, match=r"intensity is normalised with other statistics \(--normalise\)"):
        train_model(replace(TUNED, normalise="volume"))
    before = weights("tuned")
    assert train_model(TUNED).found_finished
    assert same(before, weights("tuned"))


def test_the_resolved_options_name_the_model(plain: Path) -> None:
    done = finished(
        "train", "raw.zarr", "labels.zarr", "--init", "old", "--steps", "3", "--output", "t", "--print-config"
    )
    assert done.returncode == 0, done.stderr
    assert 'init = "old"\n' in done.stdout
    assert "depth = 1\n" in done.stdout
    assert options_in_force(replace(TUNED, output=Path("t")))["base_channels"] == 8


@pytest.mark.slow
def test_killed_fine_tuning_continues_to_the_same_bytes(plain: Path, tmp_path: Path) -> None:
    words = "train raw.zarr labels.zarr --init old --tile 44 --device cpu --precision float32 --steps 40"
    often = "--validate-every 20 --checkpoint-minutes 0.001"
    straight = finished(*words.split(), *often.split(), "--output", "straight")
    assert straight.returncode == 0, straight.stderr
    killed = Command(*words.split(), *often.split(), "--output", "tuned")
    wait_for((tmp_path / "tuned/checkpoint.pt").exists)
    killed.kill()
    killed.wait()
    again = finished(*words.split(), *often.split(), "--output", "tuned")
    assert again.returncode == 0, again.stderr
    assert same(state("tuned"), state("straight"))
    one, other = (tmp_path / name / "model.safetensors" for name in ("straight", "tuned"))
    assert one.read_bytes() == other.read_bytes()
