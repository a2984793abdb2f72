"""Run folders are ours by their marker: nothing of others is ever changed, and no kill makes our own look foreign."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from helpers import grey, write_model, write_prediction, write_zarr
from killing import AFTER, BEFORE, Launcher, Point, launcher
from label.maps import blobs

from unetcli.core.errors import UnetcliError
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
"""Files of a user that are called as ours are."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume, a model, a complete prediction and a truth."""
    place = tmp_path_factory.mktemp("base")
    write_model(place / "model")
    write_zarr(place / "big.zarr", grey(2, 70, 90), chunks=(1, 32, 32))
    made = blobs((2, 40, 50), 2, seed=7)
    write_prediction(place / "p.zarr", made, (1, 32, 32), levels=2)
    write_zarr(place / "t.zarr", (made > 127).astype(np.uint8), chunks=(1, 32, 32))
    return place


@pytest.fixture
def here(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of those, as the current folder."""
    place = tmp_path / "place"
    shutil.copytree(base, place)
    monkeypatch.chdir(place)
    monkeypatch.delenv("UNETCLI_MODEL", raising=False)
    return place


def files(place: Path | str = ".") -> dict[str, bytes | None]:
    """All files and folders."""
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
        UnetcliError, match=r"^run: holds blocks, canaries, counts and \d+ more and no unetcli-run"
    ) as told:
        WRITING[command]()
    assert "--run-folder names an empty or a new folder" in str(told.value)
    assert files() == before


@pytest.mark.parametrize("name", MINE)
def test_a_single_file_of_others_is_enough(here: Path, name: str) -> None:
    (RUN / name).parent.mkdir(parents=True)
    (RUN / name).write_text("mine")
    before = files()
    for command in (predict, label, evaluate):
        with pytest.raises(UnetcliError, match=r"^run: holds .* and no unetcli-run\.json"):
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
    with pytest.raises(UnetcliError, match=r"run: holds notes\.txt and no"):
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
    with pytest.raises(UnetcliError, match=f"^run: a run folder of {made}; {step} needs one of its own; --run-folder"):
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


def test_overwrite_keeps_the_marker_of_this_version(here: Path) -> None:
    predict()
    before = (RUN / MARKER).stat()
    predict(overwrite=True)
    assert (RUN / MARKER).stat() == before


@pytest.mark.parametrize("text", ["", "[]", "notes", '{"unetcli": "1", "step": "predict"}', "[" * 100_000])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_marker_that_is_none_is_refused_and_stays(here: Path, text: str, overwrite: bool) -> None:
    RUN.mkdir()
    (RUN / MARKER).write_text(text)
    before = files()
    for command in (lambda: predict(overwrite=overwrite), lambda: label(overwrite=overwrite), evaluate):
        with pytest.raises(UnetcliError, match=r"^run/unetcli-run\.json: not a marker of unetcli, or damaged"):
            command()
    assert files() == before


def test_a_file_in_the_place_of_the_folder_is_refused(here: Path) -> None:
    RUN.write_text("mine")
    with pytest.raises(UnetcliError, match="run: not a folder"):
        predict()
    assert RUN.read_text() == "mine"


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
def test_drafts_of_ours_are_swept_by_name_and_place_and_no_others(here: Path, step: str) -> None:
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


def test_interrupted_removals_are_finished_where_the_folder_is_ours(here: Path) -> None:
    ours, empty, theirs, other = (Path(f"run.{digit * 16}.partial") for digit in "1234")
    claim(ours, EVALUATE)
    (ours / "receipts").mkdir()
    empty.mkdir()
    theirs.mkdir()
    (theirs / "receipts").mkdir()
    claim(other, LABEL)
    evaluate()
    assert sorted(here.glob("run*")) == [here / theirs, here / other]
    assert (theirs / "receipts").is_dir()


def test_who_waits_for_the_lock_of_a_folder_that_vanishes_makes_it_again(here: Path) -> None:
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


def test_a_late_worker_does_not_bring_a_folder_back(here: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Tables(RUN / "counts").save(0, {"a": np.zeros(3)})
    ShareOutcome.of_this_job(3).write(RUN / "logs/slurm/unetcli-1/outcomes/0.json")
    assert not RUN.exists()


# Kills: before and after each change of a run folder, the same command then succeeds, to the same bytes.


@dataclass(frozen=True)
class Command:
    """A command to be killed, and where."""

    words: str
    folder: str
    """Changes of what begins so are points to be killed at."""
    points: tuple[Point, ...]
    """Those of the default tests."""
    first: str | None = None
    """A command before."""
    empty: bool = False
    """Whether the folder is there before."""


def points(*changes: str) -> tuple[Point, ...]:
    """The moments before the first of these changes, but for those with a ``+``: after it."""
    return tuple(Point(change.strip("+"), when=AFTER if change.endswith("+") else BEFORE) for change in changes)


PREDICTING = "predict big.zarr --model model --tile 60 --device cpu -o o.zarr --run-folder run --levels 2"
LABELLING = "label p.zarr --name cells"
EVALUATING = "evaluate p.zarr t.zarr --metrics pixels --block-voxels 1500 --run-folder run --json"
COMMANDS = {
    "predict": Command(
        PREDICTING, "run", points("link run.*.partial/unetcli-run.json+", "rename run.*.partial+", "link run/lock+")
    ),
    "predict --overwrite": Command(
        f"{PREDICTING} --overwrite", "run", points("unlink run/plan.json+", "link run/plan.json"), first=PREDICTING
    ),
    "label": Command(LABELLING, "p.zarr.run", points("link p.zarr.run/cells/plan.json", "link p.zarr.run/labels.lock")),
    "label --overwrite": Command(
        f"{LABELLING} --overwrite", "p.zarr.run", points("rename p.zarr.run/cells/blocks+"), first=LABELLING
    ),
    "evaluate": Command(EVALUATING, "run", points("rename run+", "unlink run.*.partial/unetcli-run.json+")),
    "evaluate in an empty folder": Command(EVALUATING, "run", points("link run/unetcli-run.json"), empty=True),
}


@pytest.fixture(scope="module")
def killer() -> Iterator[Launcher]:
    with launcher() as ready:
        yield ready


@dataclass
class Killing:
    """A command, what it makes when nobody kills it, and copies of the place where it can be killed."""

    command: Command
    killer: Launcher
    before: Path
    copies: int = 0

    def run(self, place: Path, kill: Point | None = None) -> tuple[int, str, str]:
        ended = self.killer.run(place, self.command.words.split(), self.command.folder, kill)
        self.points = ended.points
        return ended.code, ended.out, ended.talk

    def fresh(self) -> Path:
        self.copies += 1
        place = self.before.with_name(f"copy-{self.copies}")
        shutil.copytree(self.before, place)
        return place

    def undisturbed(self) -> list[Point]:
        """All points, from a run that nobody kills."""
        place = self.fresh()
        code, self.out, talk = self.run(place)
        assert code == 0, talk
        self.made = results(place)
        return self.points

    def kill(self, point: Point) -> None:
        place = self.fresh()
        code, _, talk = self.run(place, point)
        assert code == -9, f"{point}: {talk}"
        code, out, talk = self.run(place)
        assert code == 0, f"{point}: {talk}"
        assert results(place) == self.made, str(point)
        assert json_of(out) == json_of(self.out), str(point)
        assert not list(place.rglob("*.partial")), str(point)
        assert not list(place.rglob("lock")), str(point)
        shutil.rmtree(place)


def results(place: Path) -> dict[str, bytes | None]:
    """All that is made beside run folders; where such are left."""
    found = {name.removeprefix(f"{place}/"): content for name, content in files(place).items()}
    return {
        name: content
        for name, content in found.items()
        if not name.startswith(("run/", "p.zarr.run/")) or name.endswith(MARKER)
    }


def json_of(out: str) -> object:
    """Scores; of other commands nothing."""
    return json.loads(out) if out.startswith("{") else None


@pytest.fixture(params=COMMANDS)
def killing(request: pytest.FixtureRequest, killer: Launcher, base: Path, tmp_path: Path) -> Killing:
    command = COMMANDS[request.param]
    before = tmp_path / "before"
    shutil.copytree(base, before)
    if command.empty:
        (before / command.folder).mkdir()
    if command.first:
        ended = killer.run(before, command.first.split(), command.folder)
        assert ended.code == 0, ended.talk
    return Killing(command, killer, before)


def test_killed_at_a_step_that_matters_the_same_command_goes_on(killing: Killing) -> None:
    known = killing.undisturbed()
    for point in killing.command.points:
        assert Point(point.change) in known
        killing.kill(point)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_before_and_after_every_change_of_its_folder_the_same_command_goes_on(killing: Killing) -> None:
    known = killing.undisturbed()
    for point in known:
        killing.kill(point)
        if point.change.startswith(("link", "rename", "replace")) or point == known[-1]:
            killing.kill(replace(point, when=AFTER))
