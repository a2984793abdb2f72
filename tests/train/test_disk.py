"""A disk that is full or read-only: a one-line error, an intact last checkpoint, and the same command continues."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from commands import finished
from train.scenes import TINY, leave_pictures_out, write_discs

from unetcli.core.errors import UnetcliError
from unetcli.core.process import Signals
from unetcli.train.folder import Checkpoint
from unetcli.train.request import TrainRequest, WeightsRequest
from unetcli.train.train import train_model
from unetcli.train.weight_map import write_weights

DISK = Path("disk")
REQUEST = replace(TINY, output=DISK / "model", steps=40, validate_every=10)
AGAIN = replace(REQUEST, take_over=True)
"""On a read-only disk the lock cannot be released, and its holder, this process, is still alive."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Model of an undisturbed training."""
    place = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("OMP_NUM_THREADS", "1")
        leave_pictures_out(patch)
        write_discs(place)
        assert train_model(replace(REQUEST, output=Path("model"))).finished
    return (place / "model/model.safetensors").read_bytes()


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Mounted disk of 8 MB; images and labels are outside of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    leave_pictures_out(monkeypatch)
    write_discs(tmp_path)
    DISK.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", "disk"], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"needs to mount a small disk: {made.stderr.strip()}")
    try:
        yield DISK
    finally:
        subprocess.run(["umount", "-l", str(tmp_path / "disk")], check=True)


def fill() -> None:
    with suppress(OSError), (DISK / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**12))


def make_room() -> None:
    (DISK / "filler").unlink()


def turn_read_only() -> None:
    subprocess.run(["mount", "-o", "remount,ro", "disk"], check=True)


def turn_writable() -> None:
    subprocess.run(["mount", "-o", "remount,rw", "disk"], check=True)


TROUBLES = {"full": (fill, make_room, "No space left"), "read-only": (turn_read_only, turn_writable, "Read-only")}


class At(Signals):
    """Signals that call ``event`` after some steps and, with ``stop``, ask to stop then."""

    def __init__(self, after: int, event: Callable[[], None] = lambda: None, *, stop: bool = False) -> None:
        super().__init__()
        self.left, self.event, self.stop_then = after, event, stop

    def stopping(self) -> bool:
        self.left -= 1
        if self.left == 0:
            self.event()
        return self.stop_then and self.left <= 0


def require_intact(request: TrainRequest, least: int) -> None:
    """Assert that the last checkpoint can be read and has at least ``least`` steps."""
    assert Checkpoint.load(request.output / "checkpoint.pt").step >= least


@pytest.mark.by_default("full-10")
@pytest.mark.parametrize(
    ("trouble", "after"),
    [
        ("full", 10),
        ("read-only", 23),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (("full", 5), ("full", 23))),
        *(pytest.param("read-only", after, marks=pytest.mark.slow) for after in (5, 10)),
    ],
)
def test_a_disk_error_during_training_is_one_line_and_the_same_command_gives_the_same_bytes(
    disk: Path, undisturbed: bytes, trouble: str, after: int
) -> None:
    begin, end, message = TROUBLES[trouble]
    with pytest.raises(
        UnetcliError, match=rf"^disk/model: cannot write.*{message}.*the same command continues"
    ) as caught:
        train_model(REQUEST, signals=At(after, begin))
    assert "\n" not in str(caught.value)
    require_intact(REQUEST, least=(after - 1) // 10 * 10)
    end()
    assert train_model(AGAIN).finished
    assert not list(disk.rglob("*.partial"))
    assert (REQUEST.output / "model.safetensors").read_bytes() == undisturbed


@pytest.mark.by_default("full")
@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_disk_error_before_continuing_changes_nothing(disk: Path, undisturbed: bytes, trouble: str) -> None:
    begin, end, message = TROUBLES[trouble]
    stopped = train_model(REQUEST, signals=At(13, stop=True))
    before = {f: f.read_bytes() for f in REQUEST.output.rglob("*") if f.is_file()}
    begin()
    with pytest.raises(UnetcliError, match=rf"^disk/model: cannot write.*{message}"):
        train_model(REQUEST)
    assert {f: f.read_bytes() for f in before} == before
    require_intact(REQUEST, least=stopped.steps)
    end()
    assert train_model(AGAIN).finished
    assert (REQUEST.output / "model.safetensors").read_bytes() == undisturbed


@pytest.mark.parametrize("trouble", TROUBLES)
def test_the_command_reports_a_disk_error_in_one_line_and_exits_1(disk: Path, trouble: str) -> None:
    TROUBLES[trouble][0]()
    sizes = ["--depth", "1", "--base-channels", "4", "--tile", "44", "--steps", "5", "--device", "cpu"]
    done = finished("-q", "train", "raw.zarr", "labels.zarr", "--output", "disk/model", *sizes)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "disk/model: cannot write" in done.stderr


@pytest.mark.by_default("full")
@pytest.mark.parametrize("trouble", TROUBLES)
def test_weights_reports_a_disk_error_in_one_line_and_leaves_nothing_behind(disk: Path, trouble: str) -> None:
    begin, end, message = TROUBLES[trouble]
    begin()
    request = WeightsRequest(labels="labels.zarr", output="disk/w.zarr")
    with pytest.raises(
        UnetcliError, match=rf"^disk/w\.zarr: cannot write.*{message}.*, the same command writes it again$"
    ):
        write_weights(request)
    end()
    assert write_weights(request).cells > 0
    assert sorted(f.name for f in disk.iterdir() if f.name != "filler") == ["w.png", "w.zarr"]
