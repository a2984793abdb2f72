"""``train_model`` in this process: accuracy, resumption, choice of the model, and files."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from signal import SIGTERM
from typing import Any

import imagecodecs
import numpy as np
import pytest
import torch
import zarr
from helpers import grey, write_zarr
from train.scenes import Stop, contents, discs, log_rows, same, state, weights

from unetcli.core.errors import UnetcliError
from unetcli.core.process import Signals
from unetcli.evaluate.evaluate import evaluate_volume
from unetcli.evaluate.request import EvaluateRequest
from unetcli.model.file import load_network, read_header
from unetcli.model.network import UNet
from unetcli.model.training_data import TrainingObjects
from unetcli.predict.predictor import predict_blocks
from unetcli.predict.request import PredictRequest
from unetcli.predict.run import predict_volume
from unetcli.train import loop, optim
from unetcli.train.folder import Checkpoint
from unetcli.train.folds import FoldsSummary, FoldSummary
from unetcli.train.loop import Training
from unetcli.train.request import MEASURES, TrainRequest
from unetcli.train.train import preview_training, train_model


def test_it_learns_and_says_how_well_on_the_last_sections(trained: TrainRequest) -> None:
    summary = train_model(trained)
    assert summary.found_finished
    assert summary.best_error is not None
    assert summary.best_error < 0.05
    header = read_header(Path(summary.model))
    assert header.architecture.base_channels == 8
    assert header.intensity.dtype == "uint8"
    assert header.objects == TrainingObjects(truth="binary", smallest=(0,))  # too few discs to know their sizes
    assert header.provenance["config"]["sections"] == [[0, 7]]
    assert header.provenance["config"]["validation"] == [[7, 8]]
    assert [row["step"] for row in log_rows()] == [50, 100, 150]


def test_the_saved_model_is_the_best_of_all_validations(trained: TrainRequest) -> None:
    rows, summary = log_rows(), train_model(trained)
    best = min(rows, key=lambda row: row["pixel_disagreement"])
    assert (summary.best_step, summary.best_error) == (best["step"], best["pixel_disagreement"])
    assert read_header(Path(summary.model)).provenance["step"] == best["step"]
    lowest = [min(row["pixel_disagreement"] for row in rows[: n + 1]) for n in range(len(rows))]
    assert [row["best"] for row in rows] == [n == 0 or lowest[n] < lowest[n - 1] for n in range(len(rows))]


def test_metrics_of_the_held_out_section_are_those_that_predict_and_evaluate_give(
    trained: TrainRequest, tmp_path: Path
) -> None:
    request = PredictRequest(
        volume="raw.zarr", output=tmp_path / "p.zarr", sections=(7, 8), dtype="float32", device="cpu"
    )
    predict_volume(request)
    scores = evaluate_volume(EvaluateRequest(prediction=str(tmp_path / "p.zarr"), truth="labels.zarr")).scores
    best = next(row for row in reversed(log_rows()) if row["best"])
    assert scores["em"]["pixel_disagreement"] == pytest.approx(best["pixel_disagreement"], abs=2e-4)
    assert scores["pixels"]["iou"] == pytest.approx(best["iou"], abs=2e-3)


def test_a_faint_channel_beside_a_bright_one_is_learned_from_and_predicted_from(request_: TrainRequest) -> None:
    """One mean and standard deviation for both channels would hide the discs of one behind the noise of the other."""
    raw, labels = discs()
    both = np.stack([raw.astype(np.uint16), grey(*raw.shape, seed=5).astype(np.uint16) * 230])
    write_zarr(Path("both.zarr"), both, dimension_names=list("czyx"))
    write_zarr(Path("truth.zarr"), labels, dimension_names=list("zyx"))
    summary = train_model(replace(request_, pair=(("both.zarr", "truth.zarr"),), steps=150))
    assert summary.best_error is not None
    assert summary.best_error < 0.05
    intensity = read_header(Path(summary.model)).intensity
    assert intensity.mean == pytest.approx(tuple(both[:, :7].mean((1, 2, 3))))
    for normalise in ("model", "volume"):  # nearly the same here
        output = Path(f"{normalise}.zarr")
        predict_volume(
            PredictRequest(volume="both.zarr", output=output, sections=(7, 8), device="cpu", normalise=normalise)
        )
        scores = evaluate_volume(EvaluateRequest(prediction=str(output), truth="truth.zarr")).scores
        assert scores["em"]["pixel_disagreement"] == pytest.approx(summary.best_error, abs=0.01)


def test_pixels_that_are_nan_weigh_nothing_in_training_and_validation(request_: TrainRequest) -> None:
    """What the labels are there does not matter; with --nonfinite it does."""
    raw, labels = discs()
    grey_values = raw.astype(np.float32)
    grey_values[:, :, :20], grey_values[:, 40, 50] = np.nan, np.inf
    write_zarr(Path("nan.zarr"), grey_values)
    other = labels.copy()
    other[:, :, :20] = 1 - labels[:, :, :20]
    write_zarr(Path("other.zarr"), other)
    found, scores = [], []
    for n, (name, nonfinite) in enumerate([("labels", None), ("other", None), ("other", 0.0)]):
        output, pair = f"model-{n}", (("nan.zarr", f"{name}.zarr"),)
        train_model(replace(request_, pair=pair, steps=2, w0=0.0, output=Path(output), nonfinite=nonfinite))
        found.append(weights(output))
        scores.append([(row["loss"], row["pixel_disagreement"]) for row in log_rows(output)])
        assert all(torch.isfinite(values).all() for values in found[-1].values())
    assert scores[0] == scores[1] != scores[2]
    assert same(found[0], found[1])
    assert not same(found[1], found[2])
    intensity = read_header(Path("model-2/model.safetensors")).intensity
    assert intensity.mean == pytest.approx(np.ma.masked_invalid(grey_values[:7]).mean())


def test_pictures_show_what_the_network_sees_and_says(trained: TrainRequest) -> None:
    model = Path("model")
    for name in ("curves.png", "samples.png"):
        assert min(imagecodecs.png_decode((model / name).read_bytes()).shape[:2]) > 200
    pictures = sorted(path.name for path in (model / "predictions").iterdir())
    assert pictures == ["step-0000050.jpg", "step-0000100.jpg", "step-0000150.jpg"]
    for name in pictures:
        page = imagecodecs.jpeg8_decode((model / "predictions" / name).read_bytes())
        assert page.shape == (64 + 4, 3 * (72 + 4))  # image, prediction and ground truth side by side, with frames
        assert page.std() > 50
    truth = page[2:66, 2 * 76 + 2 : 2 * 76 + 74] > 128
    assert (truth == (discs()[1][7] > 0)).mean() > 0.98


def test_intensity_statistics_are_those_of_the_training_sections(trained: TrainRequest) -> None:
    seen = discs()[0][:7].astype(float)
    intensity = read_header(Path("model/model.safetensors")).intensity
    assert intensity.mean == pytest.approx(seen.mean())
    assert intensity.std == pytest.approx(seen.std())


def test_the_same_seed_gives_the_same_weights_and_another_one_others(request_: TrainRequest) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_model(replace(request_, steps=3, seed=seed, output=Path(name)))
    assert same(state("a"), state("b"))
    assert not same(state("a"), state("c"))


def test_stopped_and_continued_equals_uninterrupted(request_: TrainRequest) -> None:
    stopped = train_model(request_, signals=Stop(after=12))
    assert not stopped.finished
    assert 0 < stopped.steps < 30
    assert train_model(request_).finished
    train_model(replace(request_, output=Path("straight")))
    assert same(state(), state("straight"))
    assert same(weights(), weights("straight"))
    rows = [json.loads(Path(f"{name}/log.jsonl").read_text()) for name in ("model", "straight")]
    assert rows[0]["loss"] == rows[1]["loss"]  # losses before the stop are included


@pytest.mark.parametrize("after", [9, 29], ids=["at a validation", "at the last step"])
def test_a_request_to_stop_precedes_a_due_validation_which_the_next_call_does(
    request_: TrainRequest, straight: Path, after: int
) -> None:
    request = replace(request_, validate_every=10)
    stopped = train_model(request, signals=Stop(after))
    assert (stopped.finished, stopped.steps) == (False, after + 1)
    assert [row["step"] for row in log_rows()] == [10, 20][: after // 10]
    assert not train_model(request, signals=Asked()).finished  # called again, before the result is used
    assert len(log_rows()) == after // 10
    assert train_model(request).finished
    require_same_training("model", straight)


def test_a_request_to_stop_interrupts_a_validation(
    request_: TrainRequest, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unetcli.train import validation

    request, signals = replace(request_, validate_every=10), Signals()

    def slowly(*words: Any) -> Iterator[Any]:
        blocks = predict_blocks(*words)
        yield next(blocks)
        signals.note(SIGTERM)  # the stop comes after the first block
        yield from blocks

    with monkeypatch.context() as patch:
        patch.setattr(validation, "predict_blocks", slowly)
        stopped = train_model(request, signals=signals)
    assert (stopped.finished, stopped.steps) == (False, 10)
    assert (log_rows(), list(Path("model").glob("*.safetensors"))) == ([], [])
    assert train_model(request).finished
    require_same_training("model", straight)


class Asked(Signals):
    """Signals that ask to stop from the beginning."""

    def __init__(self) -> None:
        super().__init__()
        self.note(SIGTERM)


def require_same_training(name: str, straight: Path) -> None:
    """Assert equal models, weights and logs, durations aside."""
    folders = (name, str(straight))
    assert same(*map(state, folders))
    assert Path(name, "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()
    logs = [[{k: v for k, v in row.items() if k != "seconds"} for row in log_rows(folder)] for folder in folders]
    assert logs[0] == logs[1]


def test_more_steps_of_the_same_training_continue_it(request_: TrainRequest) -> None:
    train_model(replace(request_, steps=5))
    summary = train_model(replace(request_, steps=10))
    assert (summary.steps, summary.found_finished) == (10, False)
    train_model(replace(request_, steps=10, output=Path("straight")))
    assert same(state(), state("straight"))


def test_stopped_and_continued_equals_uninterrupted_with_all_kinds_of_state(request_: TrainRequest) -> None:
    """The training has an average, batch normalisation, AdamW and a decaying rate with warm-up, in bfloat16."""
    request = replace(request_, recipe="fast", optimizer=None, batch_size=2, warm_up=5, precision="bfloat16", steps=24)
    for after in (7, 9):
        assert not train_model(request, signals=Stop(after)).finished
    assert train_model(request).finished
    train_model(replace(request, output=Path("straight")))
    one, other = (Checkpoint.load(Path(name, "checkpoint.pt")) for name in ("model", "straight"))
    assert same(one.network, other.network)
    assert one.averaged is not None
    assert other.averaged is not None
    assert same(one.averaged, other.averaged)
    assert Path("model/model.safetensors").read_bytes() == Path("straight/model.safetensors").read_bytes()


def test_a_damaged_checkpoint_costs_a_few_steps_and_nothing_else(
    request_: TrainRequest, straight: Path, caplog: pytest.LogCaptureFixture
) -> None:
    request = replace(request_, validate_every=10)
    train_model(request, signals=Stop(after=15))
    content = bytearray(Path("model/checkpoint.pt").read_bytes())
    content[len(content) // 2] ^= 1
    Path("model/checkpoint.pt").write_bytes(bytes(content))
    assert train_model(request).finished
    assert caplog.text.count("damaged checkpoint") == 1
    require_same_training("model", straight)


def test_without_improvement_training_ends_and_more_patience_continues(request_: TrainRequest) -> None:
    """The learning rate is so small that nothing changes: the first validation is the best."""
    request = replace(request_, lr=1e-12, steps=30, validate_every=2, patience=3)
    summary = train_model(request)
    assert (summary.finished, summary.stopped_early, summary.steps, summary.best_step) == (True, True, 8, 2)
    assert "stopped early" in summary.sentence
    assert train_model(request).found_finished
    more = train_model(replace(request, patience=5))
    assert (more.steps, more.stopped_early) == (12, True)


@pytest.mark.by_default("pixel_disagreement", "rand_error")
@pytest.mark.parametrize("measure", MEASURES)
def test_the_model_is_chosen_by_the_measure_asked_for(request_: TrainRequest, measure: str) -> None:
    summary = train_model(replace(request_, select=measure, steps=30, validate_every=6))
    rows = log_rows()
    values = [row[measure] for row in rows]
    assert len(values) == 5
    best = (max if measure in ("iou", "seg") else min)(value for value in values if value is not None)
    assert (summary.measure, summary.best_value) == (measure, best)
    assert summary.best_step == rows[values.index(best)]["step"]
    assert read_header(Path(summary.model)).provenance["validation"][measure] == best


def test_a_model_of_batch_normalisation_has_none_and_is_the_average(request_: TrainRequest) -> None:
    summary = train_model(replace(request_, batch_norm=True, ema=0.9, steps=12, calibrate=False))
    kept, checkpoint = load_network(Path(summary.model)), Checkpoint.load(Path("model/checkpoint.pt"))
    assert not kept.architecture.batch_norm
    whole = UNet(replace(kept.architecture, batch_norm=True))
    assert checkpoint.averaged is not None
    whole.load_state_dict(checkpoint.averaged)
    x = torch.randn(1, 1, 44, 48)
    with torch.inference_mode():
        expected = whole.eval()(x)
        assert float((kept(x) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_metrics_of_each_validation_are_in_the_tensorboard_log(request_: TrainRequest) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_model(replace(request_, tensorboard=True, steps=4, validate_every=2))
    events = EventAccumulator("model/tensorboard").Reload()
    rows = log_rows()
    assert [event.step for event in events.Scalars("loss")] == [2, 4]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([row["loss"] for row in rows])


def test_a_finished_training_is_reported_and_not_changed(trained: TrainRequest) -> None:
    before = contents(Path("model"))
    again = train_model(replace(trained, steps=None, depth=None, base_channels=None, tile=None, device=None))
    assert again.found_finished
    assert "already finished, 150 steps" in again.sentence
    assert "a larger --steps continues" in again.sentence
    assert contents(Path("model")) == before


def test_the_printed_command_can_be_pasted(trained: TrainRequest) -> None:
    summary = train_model(trained)
    assert summary.advice.endswith(": unetcli predict VOLUME")
    moved = replace(summary, model="my models/m (1)/model.safetensors")
    assert moved.advice.endswith(": unetcli predict VOLUME --model 'my models/m (1)'")
    fold = FoldSummary(fold=2, held_out=(), scores={}, training=summary)
    folds = FoldsSummary(output="my models", total=2, folds=(fold,), mean={}, spread={})
    assert folds.advice == "to average the models: unetcli predict VOLUME --model 'my models/fold-2'"


def test_several_pairs_are_learned_from_together(request_: TrainRequest) -> None:
    raw, labels = discs()
    write_zarr(Path("single-raw.zarr"), raw[3, :50])
    write_zarr(Path("single-labels.zarr"), labels[3, :50])
    pairs = (*request_.pairs, ("single-raw.zarr", "single-labels.zarr"))
    summary = train_model(replace(request_, pair=pairs, steps=5))
    config = read_header(Path(summary.model)).provenance["config"]
    assert (config["sections"], config["validation"]) == ([[0, 7], [0, 1]], [[7, 8], [1, 1]])
    with pytest.raises(UnetcliError, match="images or labels have changed"):
        train_model(replace(request_, pair=tuple(reversed(pairs)), sections=(0, 9), steps=5))


def test_a_network_without_levels_and_tiles_of_one_class_alone_train_too(pictured: TrainRequest) -> None:
    """Their pictures have no outlines."""
    labels = np.ones((4, 40, 40), np.uint8)
    labels[:, 0, 0] = 0
    write_zarr(Path("full.zarr"), labels)
    write_zarr(Path("grey.zarr"), grey(4, 40, 40))
    summary = train_model(replace(pictured, pair=(("grey.zarr", "full.zarr"),), depth=0, tile=5, steps=3))
    assert summary.finished


def test_leftovers_of_a_killed_call_are_no_obstacle(request_: TrainRequest) -> None:
    Path("model").mkdir()
    for name in ("training.json.0123456789abcdef.partial", "lock.0123456789abcdef.partial", "lock.guard"):
        Path("model", name).write_text("torn")
    assert train_model(replace(request_, steps=1)).finished
    assert not list(Path("model").glob("*.partial"))


def test_curves_are_drawn_even_if_the_last_call_was_killed_before(pictured: TrainRequest) -> None:
    train_model(replace(pictured, steps=2))
    Path("model/curves.png").unlink()
    assert train_model(replace(pictured, steps=2)).found_finished
    assert Path("model/curves.png").exists()


def test_several_classes_are_learned_as_such(request_: TrainRequest) -> None:
    labels = zarr.open_array("labels.zarr", mode="r")[...].copy()
    labels[:, 50:] = 2
    write_zarr(Path("classes.zarr"), labels)
    request_ = replace(request_, pair=(("raw.zarr", "classes.zarr"),), truth="classes", steps=3)
    summary = train_model(request_)
    header = read_header(Path(summary.model))
    assert (header.architecture.classes, header.class_names[2]) == (3, "class 2")
    before = weights()
    write_zarr(Path("values.zarr"), np.choose(labels, [1, 5, 200]).astype(np.uint8))
    train_model(replace(request_, pair=(("raw.zarr", "values.zarr"),), overwrite=True))
    header = read_header(Path(summary.model))
    assert header.class_names == ("background", "label 5", "label 200")
    assert header.objects is not None
    assert header.objects.values.classes == (1, 5, 200) == tuple(header.provenance["config"]["rules"]["class_values"])
    assert json.loads(Path("model/training.json").read_text())["config"]["rules"]["class_values"] == [1, 5, 200]
    assert all(np.array_equal(values, before[name]) for name, values in weights().items())
    with pytest.raises(UnetcliError, match=r"class_values 5, 1, 200 \(was 1, 5, 200\)"):
        train_model(replace(request_, pair=(("raw.zarr", "values.zarr"),), classes=(5, 1, 200)))


def test_a_single_image_trains_without_held_out_sections(
    request_: TrainRequest, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("raw", "labels"):
        write_zarr(Path(f"one-{name}.zarr"), zarr.open_array(f"{name}.zarr", mode="r")[0])
    with caplog.at_level("INFO", "unetcli"):
        summary = train_model(replace(request_, pair=(("one-raw.zarr", "one-labels.zarr"),), steps=3))
    assert (summary.finished, summary.best_error) == (True, None)
    assert "no held-out sections" in caplog.text
    assert "best so far" not in caplog.text
    assert len(weights()) > 0


def test_without_steps_the_probe_chooses_them(request_: TrainRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    from unetcli.train import resolve

    found: list[float] = []

    def measured(training: Training) -> float:
        found.append(loop.seconds_per_step(training))
        return found[0]

    monkeypatch.setattr(resolve, "MINUTES", 1 / 60)
    monkeypatch.setattr(resolve, "seconds_per_step", measured)
    started = time.perf_counter()
    summary = train_model(replace(request_, steps=None))
    assert summary.finished
    assert 0 < found[0] < time.perf_counter() - started
    assert summary.goal == max(1, float(f"{1 / found[0]:.1e}"))  # the steps of about a second


def test_a_preview_measures_a_few_steps_and_makes_no_optimiser(
    request_: TrainRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch imports its compiler for an optimiser, which takes longer than the rest of the preview."""
    measured: list[torch.Tensor] = []
    gradients = optim.Learner.gradients

    def counted(learner: optim.Learner, batch: optim.Batch) -> torch.Tensor:
        measured.append(gradients(learner, batch))
        return measured[-1]

    monkeypatch.delattr(optim, "create_optimizer")
    monkeypatch.setattr(optim.Learner, "gradients", counted)
    monkeypatch.setattr(loop, "PROBE_SECONDS", 0.0)
    found = preview_training(request_)
    assert (found.sections, found.held_out, found.steps) == (7, 1, 30)
    assert 2 <= len(measured) <= loop.PROBE_WARM_UP + loop.PROBE_STEPS
    assert found.minutes == round(30 / found.steps_per_second / 60, 1)
    assert not Path("model").exists()
