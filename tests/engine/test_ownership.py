"""Run folders belong to unetcli by their marker: foreign files never change, and a kill never disowns a folder."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import killing
import numpy as np
import pytest
from helpers import grey, write_model, write_prediction, write_zarr
from killing import AFTER, BEFORE, Ended, Point
from label.maps import blobs

from unetcli.core.errors import UnetcliError
from unetcli.engine import runfolder
from unetcli.engine.levels import Tables
from unetcli.engine.runfolder import (
    EVALUATE,
    FORMAT,
    LABEL,
    MARKER,
    PREDICT,
    RunFolder,
    claim,
    read_mark,
    remove_run_folder,
    require_claimable,
)
from unetcli.evaluate.evaluate import Unfinished, evaluate_volume
from unetcli.evaluate.request import EvaluateRequest
from unetcli.executors.options import VerifyRequest
from unetcli.executors.slurm.worker import ShareOutcome
from unetcli.label.request import LabelRequest
from unetcli.label.run import label_volume
from unetcli.predict.request import PredictRequest
from unetcli.predict.run import close_run, predict_share, predict_volume
from unetcli.registry import steps_of, verify_output

RUN = Path("run")
HEX = "0123456789abcdef"
MINE = [
    *(f"{name}/mine.txt" for name in ("receipts", "workers", "failures", "logs", "canaries", "blocks", "counts")),
    *("downloads/film.mkv.partial", "objects.csv", "numbers.npy", "merged.json", "plan.json", "shares.json", "lock"),
    *(f"receipts.{HEX}.partial/mine.txt", f"plan.json.{HEX}.partial", "x.partial"),
]
"""Files of a user with names that unetcli uses."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a volume, a model, a complete prediction and a truth."""
    place = tmp_path_factory.mktemp("base")
    write_model(place / "model")
    write_zarr(place / "big.zarr", grey(2, 70, 90), chunks=(1, 32, 32))
    made = blobs((2, 40, 50), 2, seed=7)
    write_prediction(place / "p.zarr", made, (1, 32, 32), levels=2)
    write_zarr(place / "t.zarr", (made > 127).astype(np.uint8), chunks=(1, 32, 32))
    return place


@pytest.fixture
def here(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a copy of the base folder."""
    place = tmp_path / "place"
    shutil.copytree(base, place)
    monkeypatch.chdir(place)
    monkeypatch.delenv("UNETCLI_MODEL", raising=False)
    return place


def files(place: Path | str = ".") -> dict[str, bytes | None]:
    """Return all files and folders with their contents."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(Path(place).rglob("*"))}


def predict(*, overwrite: bool = False, levels: int | None = None) -> None:
    predict_volume(request_(overwrite=overwrite, levels=levels))


def request_(*, overwrite: bool = False, levels: int | None = None) -> PredictRequest:
    return PredictRequest(
        volume="big.zarr",
        output=Path("o.zarr"),
        tile=60,
        device="cpu",
        run_folder=RUN,
        overwrite=overwrite,
        levels=levels,
    )


def label(*, overwrite: bool = False) -> None:
    label_volume(LabelRequest(prediction="p.zarr", run_folder=RUN, overwrite=overwrite))


def evaluate(stopping: Callable[[], bool] = bool, folder: Path = RUN) -> float:
    request = EvaluateRequest(
        prediction="p.zarr", truth="t.zarr", metrics=("pixels",), block_voxels=500, run_folder=folder
    )
    return float(evaluate_volume(request, stopping=stopping).scores["pixels"]["iou"])


WRITING: dict[str, Callable[[], object]] = {
    "predict": predict,
    "predict --overwrite": lambda: predict(overwrite=True),
    "predict --share": lambda: predict_share(request_(), (0, 2)),
    "label": label,
    "label --overwrite": lambda: label(overwrite=True),
    "evaluate": evaluate,
}
READING: dict[str, Callable[[], object]] = {
    "status": lambda: steps_of("o.zarr", RUN),
    "verify": lambda: verify_output(VerifyRequest(output="o.zarr", run_folder=RUN)),
    "verify --repair": lambda: verify_output(VerifyRequest(output="o.zarr", run_folder=RUN, repair=True)),
}


@pytest.mark.parametrize("command", WRITING)
def test_a_folder_with_files_of_others_is_refused_and_stays(here: Path, command: str) -> None:
    for name in MINE:
        (RUN / name).parent.mkdir(parents=True, exist_ok=True)
        (RUN / name).write_text("mine")
    before = files()
    with pytest.raises(
        UnetcliError, match=r"^run: contains blocks, canaries, counts and \d+ more but no unetcli-run"
    ) as error:
        WRITING[command]()
    assert "--run-folder with an empty or new folder" in str(error.value)
    assert files() == before


@pytest.mark.parametrize("name", MINE)
def test_a_single_file_of_others_is_enough(here: Path, name: str) -> None:
    (RUN / name).parent.mkdir(parents=True)
    (RUN / name).write_text("mine")
    before = files()
    for command in (predict, label, evaluate):
        with pytest.raises(UnetcliError, match=r"^run: contains .* but no unetcli-run\.json"):
            command()
    assert files() == before


@pytest.mark.parametrize("command", READING)
@pytest.mark.parametrize("content", ["plan.json", None])
def test_reading_says_in_one_line_that_it_is_no_run_folder(here: Path, command: str, content: str | None) -> None:
    RUN.mkdir()
    if content:
        (RUN / content).write_text('{"unetcli_plan": 2}')
    before = files()
    with pytest.raises(UnetcliError, match=r"^o\.zarr: run is no run folder \(no unetcli-run\.json\)"):
        READING[command]()
    assert files() == before


def test_a_share_that_closes_makes_nothing_of_a_folder_of_others(here: Path) -> None:
    RUN.mkdir()
    (RUN / "notes.txt").write_text("mine")
    before = files()
    with pytest.raises(UnetcliError, match=r"run: contains notes\.txt but no"):
        close_run(request_())
    assert files() == before


@pytest.mark.parametrize("command", ["predict", "label", "evaluate"])
@pytest.mark.parametrize("content", [[], [f"{MARKER}.{HEX}.partial", f"{MARKER}.{HEX[::-1]}.partial"]], ids=len)
def test_an_empty_folder_is_taken_and_drafts_of_the_marker_count_for_nothing(
    here: Path, command: str, content: list[str]
) -> None:
    RUN.mkdir()
    for name in content:
        (RUN / name).write_text("torn")
    WRITING[command]()
    assert not list(here.rglob("*.partial"))
    assert RUN.exists() == (command != "evaluate")


@pytest.mark.parametrize("made", [PREDICT, LABEL, EVALUATE])
@pytest.mark.parametrize("command", WRITING)
def test_the_run_folder_of_another_step_is_refused_and_stays(here: Path, command: str, made: str) -> None:
    step = command.partition(" ")[0]
    if made == step:
        return
    claim(RUN, made)
    (RUN / "plan.json").write_text("{}")
    before = files()
    with pytest.raises(UnetcliError, match=f"^run: a run folder of {made}; .* {step} with --run-folder"):
        WRITING[command]()
    assert files() == before


def other_format(step: str) -> None:
    claim(RUN, step)
    (RUN / MARKER).write_text(json.dumps({"unetcli": "9.1.0", "format": 9, "step": step}))
    (RUN / "plan.json").write_text("of another format")


@pytest.mark.parametrize("step", [PREDICT, LABEL, EVALUATE])
def test_the_run_folder_of_another_version_is_refused_by_its_number(here: Path, step: str) -> None:
    other_format(step)
    before = files()
    for call in (WRITING[step], *READING.values()):
        with pytest.raises(
            UnetcliError, match=r"^run: a run folder of format 9, made by unetcli 9\.1\.0; this unetcli"
        ):
            call()
        assert files() == before


@pytest.mark.parametrize("step", [PREDICT, LABEL])
def test_overwrite_replaces_the_run_folder_of_another_version(here: Path, step: str) -> None:
    other_format(step)
    WRITING[f"{step} --overwrite"]()
    found = read_mark(RUN)
    assert found
    assert (found.format, found.step) == (FORMAT, step)
    WRITING[step]()


def test_overwrite_deletes_files_that_only_format_1_had(here: Path) -> None:
    other_format(PREDICT)
    (RUN / MARKER).write_text(json.dumps({"unetcli": "0.0.9", "format": 1, "step": PREDICT}))
    for name in ("places.json", f"places.json.{HEX}.partial", "places.json.mine"):
        (RUN / name).write_text("{}")
    (RUN / "troubles").mkdir()
    (RUN / "troubles" / "node1-7.jsonl").write_text("{}")
    predict(overwrite=True)
    names = {path.name for path in RUN.iterdir()}
    assert "places.json.mine" in names
    assert not names & {"places.json", f"places.json.{HEX}.partial", "troubles"}


def test_overwrite_keeps_the_marker_of_this_version(here: Path) -> None:
    predict()
    before = (RUN / MARKER).stat()
    predict(overwrite=True)
    assert (RUN / MARKER).stat() == before


@pytest.mark.parametrize("text", ["", "[]", "notes", '{"unetcli": "1", "step": "predict"}', "[" * 100_000])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_invalid_marker_is_refused_and_stays(here: Path, text: str, overwrite: bool) -> None:
    RUN.mkdir()
    (RUN / MARKER).write_text(text)
    before = files()
    for command in (lambda: predict(overwrite=overwrite), lambda: label(overwrite=overwrite), evaluate):
        with pytest.raises(UnetcliError, match=r"^run/unetcli-run\.json: .*damaged, or not written by unetcli"):
            command()
    assert files() == before


def test_a_file_in_the_place_of_the_folder_is_refused(here: Path) -> None:
    RUN.write_text("mine")
    with pytest.raises(UnetcliError, match="run: not a folder"):
        predict()
    assert RUN.read_text() == "mine"


def test_a_link_to_nothing_is_refused(here: Path) -> None:
    RUN.symlink_to("missing")
    with pytest.raises(UnetcliError, match="run: not a folder"):
        require_claimable(RUN, PREDICT)
    assert RUN.is_symlink()


THEIRS = [
    "downloads/film.mkv.partial",
    "x.partial",
    "plan.json.partial",
    f"notes.{HEX}.partial",
    f"a/lock.{HEX}.partial",
]
OURS = [
    *(f"{name}.{HEX}.partial" for name in (MARKER, "plan.json", "paths.json", "lock", "share-3.lock", "stop")),
    *(f"{name}.{HEX}.partial/x" for name in ("receipts", "failures", "workers", "logs", "canaries", "tls")),
    f"canaries/node1.json.{HEX}.partial",
    f"logs/slurm/unetcli-1/outcomes/0.json.{HEX}.partial",
]
OURS_BY_STEP = {
    PREDICT: [],
    LABEL: [
        *(
            f"{name}.{HEX}.partial"
            for name in ("numbers.npy", "offsets.npy", "objects.csv", "merged.json", "labels.lock")
        ),
        *(f"blocks.{HEX}.partial/0000/0000000.tables", f"blocks/0000/0000000.tables.{HEX}.partial"),
        f"../p.zarr.instances.csv.{HEX}.partial",
    ],
    EVALUATE: [f"counts.{HEX}.partial/0000/0000000.tables", f"counts/0000/0000000.tables.{HEX}.partial"],
}


@pytest.mark.parametrize("step", OURS_BY_STEP)
def test_only_drafts_with_names_and_places_of_unetcli_are_deleted(here: Path, step: str) -> None:
    claim(RUN, step)
    for name in (*THEIRS, *OURS, *OURS_BY_STEP[step]):
        (RUN / name).parent.mkdir(parents=True, exist_ok=True)
        (RUN / name).write_text("x")
    WRITING[step]()
    left = {str(path.relative_to(RUN)) for path in RUN.rglob("*.partial")}
    assert left == set(THEIRS)
    assert {path.name for path in here.glob("*.partial")} == set()


def test_a_store_keeps_files_of_others_that_are_called_partial(here: Path) -> None:
    predict_volume(request_(), stopping=lambda: True)
    zarrs = Path(f"o.zarr/0/c/0.{HEX}{HEX}.partial")
    for path in (Path("o.zarr/film.mkv.partial"), zarrs, Path(f"o.zarr/zarr.json.{HEX}.partial")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    predict()
    assert [path.name for path in Path("o.zarr").rglob("*.partial")] == ["film.mkv.partial"]


def stop_after(calls: int) -> Callable[[], bool]:
    answers = iter([False] * calls)
    return lambda: next(answers, True)


def test_an_evaluation_leaves_files_of_others_and_with_them_the_marker(here: Path) -> None:
    with pytest.raises(Unfinished):
        evaluate(stop_after(2))
    for name in ("notes.txt", "numbers.npy", "blocks/mine.txt"):
        (RUN / name).parent.mkdir(exist_ok=True)
        (RUN / name).write_text("mine")
    for _ in range(2):  # the second one finds the marker
        evaluate()
        left = {str(path.relative_to(RUN)) for path in RUN.rglob("*") if path.is_file()}
        assert left == {"notes.txt", "numbers.npy", "blocks/mine.txt", MARKER, "lock.guard"}
    for path in ("notes.txt", "numbers.npy"):
        (RUN / path).unlink()
    shutil.rmtree(RUN / "blocks")
    evaluate()
    assert not RUN.exists()


def test_an_evaluation_deletes_no_folder_above_the_one_that_is_named(here: Path) -> None:
    Path("project").mkdir()
    evaluate(folder=Path("project/run"))
    assert list(Path("project").iterdir()) == []


def test_a_file_of_others_that_comes_at_the_last_moment_stays(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def late(source: Path, target: Path) -> None:
        if Path(source) == RUN:
            (RUN / "notes.txt").write_text("mine")
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    evaluate()
    assert {path.name for path in RUN.iterdir()} == {"notes.txt", MARKER, "lock.guard"}
    assert not list(here.glob("*.partial"))
    evaluate()


@pytest.mark.parametrize("kind", ["link", "mount"])
def test_a_folder_that_cannot_be_moved_stays_with_its_marker(
    here: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "link":
        Path("there").mkdir()
        RUN.symlink_to("there")
    else:

        def refused(source: Path, target: Path) -> None:
            if Path(source) == RUN:
                raise OSError(16, "Device or resource busy", str(source))
            rename(source, target)

        rename = os.rename
        monkeypatch.setattr(os, "rename", refused)
    for _ in range(2):
        evaluate()
        assert {path.name for path in RUN.iterdir()} == {MARKER, "lock.guard"}


def test_interrupted_removals_of_run_folders_are_finished(here: Path) -> None:
    own, empty, foreign, other = (Path(f"run.{digit * 16}.partial") for digit in "1234")
    claim(own, EVALUATE)
    (own / "receipts").mkdir()
    empty.mkdir()
    foreign.mkdir()
    (foreign / "receipts").mkdir()
    claim(other, LABEL)
    evaluate()
    assert sorted(here.glob("run*")) == [here / foreign, here / other]
    assert (foreign / "receipts").is_dir()


def test_a_launcher_waiting_for_the_lock_of_a_deleted_folder_creates_it_again(here: Path) -> None:
    first, second = RunFolder(RUN), RunFolder(RUN)
    waiting, done = threading.Event(), list[bool]()

    def wait() -> None:
        waiting.set()
        with second.launcher(EVALUATE, wait=60):
            done.append((RUN / MARKER).exists() and second.lock.exists() and second.receipts.is_dir())

    with first.launcher(EVALUATE):
        thread = threading.Thread(target=wait)
        thread.start()
        waiting.wait()
        for _ in range(3):
            with suppress(UnetcliError), second.launcher(EVALUATE):
                raise AssertionError("the lock is held")
        remove_run_folder(RUN, [path.name for path in first.contents])
    thread.join(60)
    assert done == [True]
    assert not second.lock.exists()


def test_of_many_launchers_that_come_and_go_none_is_refused(here: Path) -> None:
    errors = list[BaseException]()

    def again() -> None:
        try:
            for _ in range(15):
                folder = RunFolder(RUN)
                with folder.launcher(EVALUATE, wait=60):
                    assert read_mark(RUN)
                    remove_run_folder(RUN, [path.name for path in folder.contents])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=again) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not errors
    assert not list(here.glob("run*"))


def test_a_folder_that_another_launcher_claims_between_two_looks_is_accepted(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def claimed_meanwhile(folder: Path) -> list[str]:
        Path("other").rename(folder)
        return list_names(folder)

    claim(Path("other"), EVALUATE)
    Path("other", "lock").touch()
    list_names = runfolder._names_in
    monkeypatch.setattr(runfolder, "_names_in", claimed_meanwhile)
    require_claimable(RUN, EVALUATE)
    RUN.rename("other")
    with pytest.raises(UnetcliError, match=r"^run: a run folder of evaluate; .* label with --run-folder"):
        require_claimable(RUN, LABEL)


@pytest.mark.parametrize("listed", [("lock",), ("lock", MARKER)], ids=["without marker", "with marker"])
def test_a_folder_that_another_launcher_deletes_between_two_looks_is_accepted(
    here: Path, monkeypatch: pytest.MonkeyPatch, listed: tuple[str, ...]
) -> None:
    looks = iter([list(listed)])
    list_names = runfolder._names_in
    monkeypatch.setattr(runfolder, "_names_in", lambda folder: next(looks, None) or list_names(folder))
    require_claimable(RUN, EVALUATE)


def test_a_folder_is_refused_after_a_bounded_number_of_looks(here: Path) -> None:
    RUN.mkdir()
    (RUN / MARKER).symlink_to("missing")
    with pytest.raises(UnetcliError, match=r"^run: contains unetcli-run\.json but no unetcli-run\.json"):
        require_claimable(RUN, EVALUATE)


def test_a_late_worker_does_not_bring_a_folder_back(here: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Tables(RUN / "counts").save(0, {"a": np.zeros(3)})
    ShareOutcome.of_this_job(3).write(RUN / "logs/slurm/unetcli-1/outcomes/0.json")
    assert not RUN.exists()


# Kills before and after each change of a run folder: the same command then succeeds and gives the same bytes.


@dataclass(frozen=True)
class Command:
    """A command and the points at which it is killed."""

    words: str
    folder: str
    """Prefixes of the paths whose changes are points to kill at."""
    points: tuple[Point, ...]
    """Points that the default tests use."""
    first: str | None = None
    """Command to run first."""
    empty: bool = False
    """Whether the folder exists before."""


def points(*changes: str) -> tuple[Point, ...]:
    """Return the points before the first of these changes, or after it for names with a ``+``."""
    return tuple(Point(change.strip("+"), when=AFTER if change.endswith("+") else BEFORE) for change in changes)


PREDICTING = "predict big.zarr --model model --tile 60 --device cpu -o o.zarr --run-folder run --levels 2"
LABELLING = "label p.zarr --name cells"
EVALUATING = "evaluate p.zarr t.zarr --metrics pixels --block-voxels 1500 --run-folder run --json"
COMMANDS = {
    "predict": Command(PREDICTING, "run", points("link run.*.partial/unetcli-run.json+", "link run/lock+")),
    "predict --overwrite": Command(
        f"{PREDICTING} --overwrite", "run", points("unlink run/plan.json+"), first=PREDICTING
    ),
    "label": Command(LABELLING, "p.zarr.run", points("link p.zarr.run/labels.lock")),
    "label --overwrite": Command(
        f"{LABELLING} --overwrite", "p.zarr.run", points("rename p.zarr.run/cells/blocks+"), first=LABELLING
    ),
    "evaluate": Command(EVALUATING, "run", points("rename run+", "unlink run.*.partial/unetcli-run.json+")),
    "evaluate in an empty folder": Command(EVALUATING, "run", points("link run/unetcli-run.json"), empty=True),
}


@dataclass
class Killed:
    """A command, its result without a kill, and copies of the folder in which it can be killed."""

    command: Command
    before: Path
    made: dict[str, bytes | None]
    """Results of the same command without a kill."""
    out: str
    copies: int = 0

    def run(self, place: Path, kill: Point | None = None) -> Ended:
        return killing.run(place, self.command.words.split(), self.command.folder, kill)

    def fresh(self) -> Path:
        self.copies += 1
        place = self.before.with_name(f"copy-{self.copies}")
        shutil.copytree(self.before, place)
        return place

    def points(self) -> list[Point]:
        """Return all points, recorded in a run without a kill."""
        ended = self.run(self.fresh())
        assert ended.code == 0, ended.talk
        return ended.points

    def kill(self, point: Point) -> None:
        place = self.fresh()
        killed = self.run(place, point)
        assert killed.code == -9, f"{point}: {killed.talk}"
        again = self.run(place)
        assert again.code == 0, f"{point}: {again.talk}"
        assert results(place) == self.made, str(point)
        assert json_of(again.out) == json_of(self.out), str(point)
        assert not list(place.rglob("*.partial")), str(point)
        assert not list(place.rglob("lock")), str(point)
        shutil.rmtree(place)


def results(place: Path) -> dict[str, bytes | None]:
    """Return all files outside of run folders, and the run folders that are left."""
    found = {name.removeprefix(f"{place}/"): content for name, content in files(place).items()}
    return {
        name: content
        for name, content in found.items()
        if not name.startswith(("run/", "p.zarr.run/")) or name.endswith(MARKER)
    }


def json_of(out: str) -> object:
    """Return the scores; None for other commands."""
    return json.loads(out) if out.startswith("{") else None


Finished = Callable[[str, str], tuple[Path, str]]


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Run a command in a copy of the base folder, once per module; return the copy and the command's output."""

    @cache
    def run(words: str, folder: str) -> tuple[Path, str]:
        place = tmp_path_factory.mktemp("finished") / "place"
        shutil.copytree(base, place)
        ended = killing.run(place, words.split(), folder)
        assert ended.code == 0, ended.talk
        return place, ended.out

    return run


@pytest.fixture(params=COMMANDS)
def killed(request: pytest.FixtureRequest, finished: Finished, base: Path, tmp_path: Path) -> Killed:
    command = COMMANDS[request.param]
    place, out = finished(command.first or command.words, command.folder)
    before = tmp_path / "before"
    shutil.copytree(place if command.first else base, before)
    if command.empty:
        (before / command.folder).mkdir()
    return Killed(command, before, results(place), out)


@pytest.mark.by_default("predict --overwrite", "evaluate in an empty folder", "label")
def test_killed_at_a_decisive_point_the_same_command_continues(killed: Killed) -> None:
    for point in killed.command.points:
        killed.kill(point)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_before_and_after_every_change_of_its_folder_the_same_command_continues(killed: Killed) -> None:
    known = killed.points()
    for point in known:
        killed.kill(point)
        if point.change.startswith(("link", "rename", "replace")) or point == known[-1]:
            killed.kill(replace(point, when=AFTER))
