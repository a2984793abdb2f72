"""Unfinished resolution levels on the command line: exit code 3, and advice on what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from damage import truncate
from helpers import grey, write_zarr

from unetcli.executors.options import VerifyRequest
from unetcli.predict.request import PredictRequest
from unetcli.predict.run import close_run, predict_share, predict_volume
from unetcli.registry import verify_output
from unetcli.volumes.image import marker

Unetcli = Callable[..., subprocess.CompletedProcess[str]]
STORE = "big.pred.zarr"
PREDICT = ["predict", "big.zarr", "--tile", "204"]
STOPPED = """
import os, signal
from unetcli.engine.levels import Pyramid
build = Pyramid.build
def build_while_asked_to_stop(pyramid, *numbers):
    os.kill(os.getpid(), signal.SIGTERM)
    return build(pyramid, *numbers)
Pyramid.build = build_while_asked_to_stop
from unetcli.cli import main
main()
"""
"""The command line, with SIGTERM arriving while the first block of the coarser level is computed."""


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume of two blocks, whose coarser level has two blocks as well."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNETCLI_DEVICE", "cpu")
    monkeypatch.delenv("UNETCLI_MODEL", raising=False)
    write_zarr(Path("big.zarr"), grey(2, 1100, 40), chunks=(1, 550, 40))


def predict(*words: str, levels: int = 1) -> bool:
    """Run predict in this process as the command with these words does; returns whether nothing is missing."""
    request = PredictRequest(volume="big.zarr", tile=204, device="cpu", levels=levels)
    if not words:
        return predict_volume(request).complete
    if words == ("--close",):
        return close_run(request).complete
    number, _, count = words[1].partition("/")
    return predict_share(request, (int(number), int(count))).complete


def stopped(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", STOPPED, *words],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def shown() -> list[str]:
    """Levels listed in the metadata of the output."""
    image = json.loads(Path(STORE, "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]
    return [dataset["path"] for dataset in image["datasets"]]


def says_complete() -> bool:
    return bool((marker(STORE) or {}).get("complete"))


@pytest.mark.parametrize(
    ("before", "last", "complete"),
    [
        ([["--share", "0/2"]], ["--share", "1/2"], False),
        ([["--share", "0/2"], ["--share", "1/2"]], ["--close"], True),
        ([["--share", "0/2"], ["--share", "1/2"]], ["--share", "1/2"], True),
        ([[]], [], True),
    ],
    ids=["last share", "close", "share once more", "added later"],
)
def test_levels_stay_incomplete_until_damaged_voxels_are_repaired(
    unetcli: Unetcli, before: list[list[str]], last: list[str], complete: bool
) -> None:
    """Also if the output was ``complete`` before levels were requested."""
    for words in before:
        predict(*words)
    truncate(next(path for path in sorted(Path(STORE, "0/c/0").rglob("*")) if path.is_file()))
    assert says_complete() == complete
    done = unetcli(*PREDICT, *last, "--levels", 2, "--json")
    assert done.returncode == 3, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["finished"], summary["complete"], summary["levels_missing"]) == (False, False, 1)
    (failure,) = summary["set_aside"]
    assert f"{STORE}/0: cannot read z 0:1" in failure["reason"]
    assert "INCOMPLETE; 1 block of coarser levels missing; 1 set aside" in done.stderr
    assert f"`unetcli verify --repair {STORE}`" in done.stderr
    assert (shown(), says_complete()) == (["0"], complete)
    assert all(found.sound for found in verify_output(VerifyRequest(output=STORE, repair=True)))
    assert predict(*last, levels=2)
    assert (shown(), says_complete()) == (["0", "1"], True)


@pytest.mark.parametrize("how", ["at once", *(pytest.param(how, marks=pytest.mark.slow) for how in ("share", "close"))])
def test_sigterm_during_the_coarser_level_ends_with_3_and_status_reports_it(unetcli: Unetcli, how: str) -> None:
    words = {"at once": [], "share": ["--share", "0/1"], "close": ["--close"]}[how]
    if how == "close":
        predict("--share", "0/1")
    done = stopped(*PREDICT, *words, "--levels", "2", "--json")
    assert done.returncode == 3, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["finished"], summary["complete"], summary["levels_missing"]) == (False, False, 1)
    assert summary["set_aside"] == []
    assert "INCOMPLETE; 1 block of coarser levels missing; the same command continues" in done.stderr
    assert shown() == ["0"]
    status = json.loads(unetcli("status", STORE, "--json").stdout)
    assert [(stage["name"], stage["done"], stage["missing"]) for stage in status["stages"]] == [
        ("predict", 2, 0),
        ("level 1", 1, 1),
    ]
    if how != "close":  # --close leaves an output alone that was complete before levels were requested
        assert (status["complete"], status["levels_missing"]) == (False, 1)
        text = unetcli("status", STORE).stdout
        assert "coarser levels are missing; the same predict command continues" in text
        assert "--close" not in text
    assert predict(*words, levels=2)
    assert (shown(), says_complete()) == (["0", "1"], True)
