"""Cross-validation with ``train --folds``: which sections a fold holds out, one model for each, and their scores."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Command, finished
from helpers import wait_for, write_zarr
from hypothesis import given
from hypothesis import strategies as st
from train.scenes import TINY, Stop, contents, discs, log_rows, volume

from unetcli import api
from unetcli.cli.commands import fold_lines
from unetcli.core.errors import UnetcliError
from unetcli.model.file import read_header
from unetcli.train.dataset import AnnotatedVolume, Dataset
from unetcli.train.folder import TrainingFolder
from unetcli.train.folds import FoldsSummary
from unetcli.train.request import TrainRequest
from unetcli.train.sections import fold_ranges, folds_of, split_sections, training_runs
from unetcli.train.settings import TruthRules
from unetcli.train.train import sections_text, train_model

SHORT = replace(TINY, steps=4, validate_every=2)


def stacks(*counts: int) -> list[Any]:
    return [volume(np.zeros((n, 5, 6), np.uint8), path=f"raw{k}.zarr") for k, n in enumerate(counts)]


@given(first=st.integers(0, 9), count=st.integers(2, 60), data=st.data())
def test_folds_are_runs_of_neighbours_that_cover_all_sections_once(first: int, count: int, data: st.DataObject) -> None:
    folds = data.draw(st.integers(2, count))
    runs = folds_of((first, first + count), folds)
    assert [n for a, b in runs for n in range(a, b)] == list(range(first, first + count))
    assert len(runs) == folds
    assert max(b - a for a, b in runs) - min(b - a for a, b in runs) <= 1


ENDS = st.tuples(st.integers(0, 9), st.integers(0, 9)).map(lambda ends: (min(ends), max(ends)))


@given(used=ENDS, held=ENDS)
def test_what_is_trained_on_is_all_but_what_is_held_out(used: tuple[int, int], held: tuple[int, int]) -> None:
    runs = training_runs(used, held)
    assert [n for a, b in runs for n in range(a, b)] == [n for n in range(*used) if n not in range(*held)]


def test_each_fold_is_held_out_once_and_the_rest_is_trained_on() -> None:
    request = replace(TINY, sections=(0, 7), folds=3)
    images = stacks(4, 5)
    assert fold_ranges(request, images) == [((0, 2), (0, 0)), ((2, 4), (0, 0)), ((4, 4), (0, 3))]
    for fold, held_out in enumerate(fold_ranges(request, images), 1):
        assert split_sections(replace(request, fold=fold), images) == (((0, 4), (0, 3)), held_out)


def test_a_fold_amid_the_sections_is_not_sampled() -> None:
    """The value of an image's pixels is the number of its section."""
    raw = np.broadcast_to(np.arange(9, dtype=np.uint8)[:, None, None], (9, 40, 40))
    labels = np.zeros((9, 40, 40), np.uint8)
    labels[:, 10:20, 10:20] = 1
    request = replace(TINY, folds=3, fold=2)
    pair = AnnotatedVolume.buffered(
        volume(raw, path="raw.zarr"), volume(labels), TruthRules(truth="binary", w0=0.0), None
    )
    dataset = Dataset.of_sections([pair], *split_sections(request, [pair.raw]), keep_empty=False)
    assert [box.start[0] for _, box in dataset.planes(dataset.train)] == [0, 1, 2, 6, 7, 8]
    assert [box.start[0] for _, box in dataset.planes(dataset.held_out)] == [3, 4, 5]
    from train.scenes import sampler

    drawn = {int(sampler(dataset, 12, 8).sample(n).image.max()) for n in range(100)}
    assert drawn == {0, 1, 2, 6, 7, 8}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, r"^--folds 1: expected at least 2$"),
        ({"fold": 2}, r"^--fold 2: give the number of folds too, such as --folds 5$"),
        ({"folds": 4, "fold": 0}, r"^--fold 0: expected 1 to 4, or all; folds are counted from 1$"),
        ({"folds": 4, "fold": 5}, r"^--fold 5: expected 1 to 4, or all; folds are counted from 1$"),
        ({"folds": 4, "validation": (0, 2)}, r"^--folds: holds out one fold after the other; omit --validation$"),
        ({"folds": 4, "validation_fraction": 0.2}, r"^--folds: .* omit --validation$"),
        ({"folds": 4, "cluster": "slurm"}, r"^--cluster slurm: not with --fold all.* --fold 1 --output model/fold-1$"),
    ],
)
def test_folds_that_make_no_sense_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnetcliError, match=message):
        replace(TINY, **options)


def test_more_folds_than_sections_are_refused(request_: TrainRequest) -> None:
    with pytest.raises(UnetcliError, match=r"^--folds 9: more than the 8 sections \(0:8 of raw.zarr\)"):
        train_model(replace(request_, folds=9, fold=1))
    assert not Path("model").exists()


def test_a_fold_without_labels_is_refused_before_any_fold_is_trained(request_: TrainRequest) -> None:
    labels = discs()[1]
    labels[4:6] = 0
    write_zarr(Path("sparse.zarr"), labels)
    request = replace(request_, pair=(("raw.zarr", "sparse.zarr"),), folds=4)
    message = r"^sparse.zarr: no label in sections 4:6, fold 3 of 4; give fewer --folds, or --sections with labels$"
    with pytest.raises(UnetcliError, match=message):
        api.run_train(request)
    assert not Path("model").exists()
    assert train_model(replace(request, keep_empty=True, steps=1, fold=3)).finished


def trained(request: TrainRequest) -> FoldsSummary:
    found = api.run_train(request)
    assert isinstance(found, FoldsSummary)
    return found


def test_all_folds_are_trained_each_in_its_folder_and_their_scores_are_those_of_the_logs(
    request_: TrainRequest,
) -> None:
    found = trained(replace(SHORT, folds=3))
    assert found.finished
    assert [each.held_out for each in found.folds] == [((0, 2),), ((2, 5),), ((5, 8),)]
    best = [next(row for row in reversed(log_rows(f"model/fold-{fold}")) if row["best"]) for fold in (1, 2, 3)]
    for name in ("pixel_disagreement", "iou", "validation_loss"):
        values = [row[name] for row in best]
        assert [each.scores[name] for each in found.folds] == values
        assert found.mean[name] == pytest.approx(sum(values) / 3, abs=1e-6)
        assert found.spread[name] == pytest.approx(statistics.stdev(values), abs=1e-6)
    assert "threshold" not in found.mean
    for fold, held_out in ((1, [[0, 2]]), (2, [[2, 5]]), (3, [[5, 8]])):
        config = read_header(Path(f"model/fold-{fold}/model.safetensors")).provenance["config"]
        assert (config["sections"], config["validation"]) == ([[0, 8]], held_out)
    frozen = TrainingFolder(Path("model/fold-2")).frozen()
    assert frozen is not None
    assert sections_text(frozen[0]) == "0:2, 5:8"


def test_one_fold_alone_is_the_model_of_all_folds(request_: TrainRequest) -> None:
    trained(replace(SHORT, folds=2))
    train_model(replace(SHORT, folds=2, fold=2, output=Path("alone")))
    one, other = (Path(f, "model.safetensors").read_bytes() for f in ("alone", "model/fold-2"))
    assert one == other
    with pytest.raises(UnetcliError, match=r"alone: holds another training: validation 0:4 \(was 4:8\)"):
        train_model(replace(SHORT, folds=2, fold=1, output=Path("alone")))
    before = contents(Path("model"))
    assert all(each.training.found_finished for each in trained(replace(SHORT, folds=2)).folds)
    assert contents(Path("model")) == before


def test_folds_and_a_single_training_do_not_share_a_folder(request_: TrainRequest) -> None:
    train_model(replace(SHORT, output=Path("single")))
    with pytest.raises(UnetcliError, match=r"^single: holds a training, not folds of one; use another --output$"):
        trained(replace(SHORT, folds=2, output=Path("single")))
    trained(replace(SHORT, folds=2))
    with pytest.raises(UnetcliError, match=r"^model: holds the models of --fold all; use another --output$"):
        train_model(SHORT)


def test_steps_measured_for_the_first_fold_are_those_of_the_others(request_: TrainRequest) -> None:
    found = trained(replace(TINY, folds=2, steps=None, minutes=0.005, recipe="fast", tile=44))
    one, two = (each.training.goal for each in found.folds)
    assert one == two
    again = trained(replace(TINY, folds=2, steps=None, minutes=0.005, recipe="fast", tile=44))
    assert [each.training.goal for each in again.folds] == [one, one]


def test_a_stopped_fold_ends_the_call_and_does_not_count(request_: TrainRequest) -> None:
    signals = Stop(6)
    found = api.run_train(replace(SHORT, folds=3), signals=signals)
    assert isinstance(found, FoldsSummary)
    assert [each.training.finished for each in found.folds] == [True, False]
    assert found.sentence == "model: 1 of 3 folds finished; the same command continues"
    assert found.mean["pixel_disagreement"] == found.folds[0].scores["pixel_disagreement"]
    assert found.spread["pixel_disagreement"] is None
    lines = fold_lines(found)
    assert lines[0].split() == [
        "fold",
        "held",
        "out",
        "step",
        "validation",
        "loss",
        "pixel",
        "disagreement",
        "iou",
        "calibration",
        "error",
    ]
    assert lines[2].split()[:3] == ["2", "(stopped)", "2:5"]
    assert lines[-1].split() == ["spread", "-", "-", "-", "-"]
    assert len({len(line) for line in lines}) == 1


WORDS = (
    "train raw.zarr labels.zarr --folds 2 --depth 1 --base-channels 4 --tile 44 --device cpu --precision float32 "
    "--steps 40 --validate-every 20 --checkpoint-minutes 0.001 --json"
)


@pytest.mark.slow
def test_folds_killed_in_the_middle_continue_to_the_same_bytes(request_: TrainRequest, tmp_path: Path) -> None:
    straight = finished(*WORDS.split(), "--output", "straight")
    assert straight.returncode == 0, straight.stderr
    killed = Command(*WORDS.split())
    wait_for((tmp_path / "model/fold-2/checkpoint.previous.pt").exists)
    killed.kill()
    killed.wait()
    again = finished(*WORDS.split())
    assert again.returncode == 0, again.stderr
    for fold in ("fold-1", "fold-2"):
        one, other = (tmp_path / name / fold / "model.safetensors" for name in ("straight", "model"))
        assert one.read_bytes() == other.read_bytes(), fold
    expected, found = json.loads(straight.stdout), json.loads(again.stdout)
    assert [each["scores"] for each in found["folds"]] == [each["scores"] for each in expected["folds"]]
    assert (found["mean"], found["spread"]) == (expected["mean"], expected["spread"])
    assert [each["fold"] for each in found["folds"]] == [1, 2]
    assert found["warnings"] == []


def test_the_table_of_folds_is_printed(request_: TrainRequest) -> None:
    words = [word for word in WORDS.split() if word != "--json"]
    done = finished(*words, "--fold", "all", "--steps", "2")
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in lines] == ["fold", "1", "2", "mean", "spread"]
    assert "model: all 2 folds finished\n" in done.stderr
    assert "unetcli predict VOLUME --model model/fold-1 --model model/fold-2\n" in done.stderr


@pytest.mark.slow
def test_the_preview_of_folds_is_that_of_the_first_and_says_how_many(request_: TrainRequest) -> None:
    done = finished(*WORDS.split()[:-1], "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "4 to train on, 4 held out" in done.stdout
    assert "for 40 steps (recipe fast), for each of 2 folds" in done.stdout
    assert not Path("model").exists()
