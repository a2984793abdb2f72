"""The command evaluate as users and scripts see it."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pairs import TRUTH, VALUES, blobs, each_section, stored
from scipy import ndimage
from typer.testing import CliRunner

from unetcli.cli import app

Run = Callable[..., subprocess.CompletedProcess[str]]
LABELS = each_section(blobs(6, 40, 50, seed=1))
KEYS = {
    "pixels": {"iou", "dice", "accuracy", "precision", "recall", "average_precision", "calibration_error"},
    "em": {
        *("pixel_error", "pixel_disagreement", "rand_error", "rand_error_pairs", "warping_error"),
        *("warping_error_classic", "v_rand", "v_info"),
    },
    "cells": {"seg", "det", "precision", "recall", "f1", "ap", "pq"},
    "voi": {"split", "merge", "adapted_rand_error"},
}


@pytest.fixture
def volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(tmp_path, VALUES)
    stored(tmp_path, 255 - VALUES, "slip.zarr")
    stored(tmp_path, TRUTH, "t.zarr")
    stored(tmp_path, np.roll(LABELS, 1, axis=2), "l.zarr")
    stored(tmp_path, LABELS, "lt.zarr")
    stored(tmp_path, ndimage.gaussian_filter((LABELS > 0).astype(np.float32), (0, 1, 1)), "soft.zarr")
    monkeypatch.chdir(tmp_path)


def scores(*words: object) -> dict[str, Any]:
    """JSON of an evaluation, run in this process because that is faster."""
    done = CliRunner().invoke(app, ["--quiet", "evaluate", *map(str, words), "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout, parse_constant=pytest.fail)
    return found


@pytest.mark.usefixtures("volumes")
def test_json_has_every_score_under_its_name() -> None:
    for words in (("p.zarr", "t.zarr"), ("l.zarr", "lt.zarr", "--per-section")):
        found = scores(*words)
        for metric in found["metrics"]:
            assert KEYS[metric] <= found[metric].keys()
            for name in KEYS[metric]:
                assert (found[metric][name] is None) == (f"{name}_reason" in found[metric])
                assert f"{name}_interval" in found[metric] or found[metric][name] is None
            assert metric != "em" or all(f"{name}_threshold" in found["em"] for name in KEYS["em"])
        assert [section["name"] for section in found["sections"]] == [f"z {n}" for n in range(6)]
        assert all(
            KEYS[metric] <= section[metric].keys() for section in found["sections"] for metric in found["metrics"]
        )


@pytest.mark.usefixtures("volumes")
def test_text_fits_80_columns_and_says_what_json_does(unetcli: Run, tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(json.dumps(scores("slip.zarr", "t.zarr")))
    (tmp_path / "l.json").write_text(json.dumps(scores("l.zarr", "lt.zarr", "--per-section")))
    for words in (
        ("p.zarr", "t.zarr", "--baseline", "b.json"),
        ("soft.zarr", "lt.zarr", "--metrics", "pixels,cells,voi"),
        ("l.zarr", "lt.zarr", "--per-section", "--baseline", "l.json"),
        ("l.zarr", "lt.zarr", "--three-d"),
        ("slip.zarr", "t.zarr", "--ignore", 7),
    ):
        done = unetcli("evaluate", *words)
        assert done.returncode == 0, done.stderr
        assert all(len(line) <= 80 for line in done.stdout.splitlines()), done.stdout
        found = scores(*words)
        for metric in found["metrics"]:
            for name in KEYS[metric]:
                value = found[metric][name]
                shown = f"{value:.6f}" if value is not None else "undefined"
                assert name in done.stdout
                assert shown in done.stdout


@pytest.mark.usefixtures("volumes")
def test_an_inverted_prediction_causes_a_warning_and_is_scored_as_it_is(unetcli: Run) -> None:
    done = unetcli("evaluate", "slip.zarr", "t.zarr")
    assert "warning: slip.zarr: the prediction looks inverted" in done.stderr
    assert "the prediction looks inverted" in " ".join(done.stdout.split())
    found = scores("slip.zarr", "t.zarr")
    assert found["pixels"]["iou"] < 0.3
    assert found["em"]["looks_inverted"]
    assert not scores("p.zarr", "t.zarr")["em"]["looks_inverted"]


@pytest.mark.usefixtures("volumes")
def test_a_warning_is_in_the_json_and_strict_makes_the_exit_code_1(
    unetcli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = unetcli("evaluate", "slip.zarr", "t.zarr", "--json", "--strict")
    (warning,) = json.loads(done.stdout)["warnings"]
    assert warning.startswith("slip.zarr: the prediction looks inverted")
    assert [line for line in done.stderr.splitlines() if line.startswith("warning: ")] == [f"warning: {warning}"]
    assert done.stderr.splitlines()[-1] == f"unetcli: --strict: 1 warning: {warning}"
    assert done.returncode == 1
    monkeypatch.setenv("UNETCLI_STRICT", "1")
    assert unetcli("evaluate", "slip.zarr", "t.zarr").returncode == 1
    right = unetcli("evaluate", "p.zarr", "t.zarr", "--json")
    assert (right.returncode, json.loads(right.stdout)["warnings"]) == (0, [])


@pytest.mark.usefixtures("volumes")
def test_csv_has_a_row_for_each_section(tmp_path: Path) -> None:
    found = scores("p.zarr", "t.zarr", "--csv", "s.csv", "--sections", "2:5")
    with (tmp_path / "s.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["section"] for row in rows] == ["z 2", "z 3", "z 4"]
    for row, section in zip(rows, found["sections"], strict=True):
        assert float(row["pixels.iou"]) == section["pixels"]["iou"]
        assert float(row["em.v_rand"]) == section["em"]["v_rand"]
        assert float(row["em.v_rand_threshold"]) == section["em"]["v_rand_threshold"]


@pytest.mark.usefixtures("volumes")
def test_a_comparison_has_numbers_and_a_verdict(unetcli: Run, tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(json.dumps(scores("slip.zarr", "t.zarr")))
    lines = unetcli("evaluate", "p.zarr", "t.zarr", "--baseline", "b.json").stdout.splitlines()
    compared = lines[next(n for n, line in enumerate(lines) if line.startswith("compared with slip.zarr")) :]
    verdicts = {line.split()[0]: line.split()[-1] for line in compared if line.startswith("  ")}
    assert (verdicts["iou"], verdicts["pixel_disagreement"]) == ("better", "better")


@pytest.mark.usefixtures("volumes")
@pytest.mark.parametrize("words", [(), pytest.param(("--workers", 2), marks=pytest.mark.slow)], ids=str)
def test_workers_and_a_run_folder_give_the_same(tmp_path: Path, words: tuple[object, ...]) -> None:
    plain = scores("p.zarr", "t.zarr")
    blockwise = scores("p.zarr", "t.zarr", *words, "--run-folder", "run", "--block-voxels", 286)
    assert {name: blockwise[name] for name in ("pixels", "em", "sections", "sums")} == {
        name: plain[name] for name in ("pixels", "em", "sections", "sums")
    }
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("p.zarr", "lt.zarr"), "p.zarr is z 6, y 13, x 22, but lt.zarr is z 6, y 40, x 50: not the same region"),
        (("l.zarr", "lt.zarr", "--metrics", "em"), "uint16 with values up to 33; probabilities are value / 65535"),
        (("p.zarr", "t.zarr", "--roi", "0:9,:,:"), "--roi: z 0:9 is not a range inside t.zarr, which has z 0:6"),
        (("p.zarr", "t.zarr", "--threshold", "1.5"), "--threshold 1.5: expected 0 <= threshold < 1"),
        (("p.zarr", "t.zarr", "--level", "1"), "no level 1"),
        (("p.zarr", "t.zarr", "--baseline", "none.json"), "--baseline none.json: no such file"),
        (("p.zarr", "t.zarr", "--mask", "lt.zarr"), "--mask lt.zarr: shape 6 x 40 x 50"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
@pytest.mark.usefixtures("volumes")
def test_input_that_cannot_be_scored_gets_one_line(unetcli: Run, words: tuple[str, ...], message: str) -> None:
    done = unetcli("evaluate", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_report_is_written_beside_the_scores(tmp_path: Path, volumes: None) -> None:
    stored(tmp_path, VALUES, "raw.zarr")
    done = CliRunner().invoke(
        app, ["evaluate", "p.zarr", "t.zarr", "--report", "r.html", "--image", "raw.zarr", "--json"]
    )
    assert done.exit_code == 0, done.output
    assert set(json.loads(done.stdout)) > {"pixels", "em"}
    assert (tmp_path / "r.html").read_text().startswith("<!DOCTYPE html>")


def test_an_image_of_another_region_prevents_only_the_report(unetcli: Run, tmp_path: Path, volumes: None) -> None:
    stored(tmp_path, VALUES[:1], "part.zarr")
    done = unetcli("-q", "evaluate", "p.zarr", "t.zarr", "--json", "--report", "r.html", "--image", "part.zarr")
    assert done.returncode == 1
    assert "--image part.zarr: covers z 0:1" in done.stderr
    assert json.loads(done.stdout)["em"]
    assert not (tmp_path / "r.html").exists()


def test_files_of_an_earlier_call_are_replaced(tmp_path: Path, volumes: None) -> None:
    files = []
    for sections in ("0:1", "0:2"):
        words = ["--report", "r.html", "--csv", "s.csv", "--sections", sections]
        done = CliRunner().invoke(app, ["evaluate", "p.zarr", "t.zarr", *words])
        assert done.exit_code == 0, done.output
        files.append([(tmp_path / name).read_text() for name in ("r.html", "s.csv")])
    assert files[0][0] != files[1][0]
    assert files[0][1] != files[1][1]


@pytest.mark.by_default("words0", "words2", "words4")
@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--csv", "wood.csv"], "sample,cross-section,area\n1,2,3\n"),
        (["--csv", "wood.csv"], "section,\n1,2\n"),
        (["--csv", "wood.csv"], "section,pixels.iou,area\n1,2,3\n"),
        (["--csv", "wood.csv"], "section,pixels.count\n1,2\n"),
        (["--report", "pipeline.sh"], "#!/bin/sh\nunetcli evaluate a b\n"),
        (["--report", "notes.html"], '<!DOCTYPE html>\n<p><meta name="generator" content="unetcli evaluate">'),
    ],
)
def test_files_of_others_are_kept_whatever_words_they_contain(
    unetcli: Run, tmp_path: Path, volumes: None, words: list[str], text: str
) -> None:
    file = tmp_path / words[1]
    file.write_text(text)
    done = unetcli("evaluate", "p.zarr", "t.zarr", "--metrics", "pixels", *words)
    assert (done.returncode, file.read_text()) == (1, text)
    assert f"{words[0]} {words[1]}: exists and was not written by evaluate" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--report", "none/r.html"], "--report none/r.html: expected a file in a folder that exists"),
        (["--report", "."], "--report .: expected a file in a folder that exists"),
        (["--csv", "none/s.csv"], "--csv none/s.csv: expected a file in a folder that exists"),
        (["--csv", "."], "--csv .: expected a file in a folder that exists"),
        (["--csv", "notes.txt"], "--csv notes.txt: exists and was not written by evaluate; choose another file"),
        (["--report", "notes.txt"], "--report notes.txt: exists and was not written by evaluate; choose another file"),
        (["--image", "p.zarr"], "--image p.zarr: needs --report"),
        (["--report", "r.html", "--image", "none.zarr"], "none.zarr: no such file or folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_in_one_line_before_scoring(
    unetcli: Run, tmp_path: Path, volumes: None, words: list[str], message: str
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    done = unetcli("-q", "evaluate", "p.zarr", "t.zarr", *words)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not (tmp_path / "r.html").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"
