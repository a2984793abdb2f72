"""Crash test: processes are killed at random moments, disks become full or read-only, and stored data are damaged.

After the last rerun the output must equal that of an undisturbed run, byte for byte.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from commands import Command
from helpers import grey, read_receipts, write_model, write_zarr
from slurm.cluster import SlurmCluster, until

from unetcli.core.lock import Holder
from unetcli.engine.receipts import DONE, VOID

SECTIONS_PER_ROUND, SIDE = 20, 300
TILE = ["--tile", "204"]
WAYS = {
    "slurm": ["--cluster", "slurm", "--blocks-per-job", "16", "--mem", "1G"],
    "local": ["--workers", "2"],
    "dask": ["--cluster", "dask", "--workers", "2", "--mem", "1G"],
}


@dataclass
class Scene:
    """An output on a small separate disk, and the events that disturb it."""

    place: Path
    slurm: SlurmCluster
    chance: random.Random
    events: list[str] = field(default_factory=list)

    @property
    def disk(self) -> Path:
        return self.place / "disk"

    @property
    def output(self) -> Path:
        return self.disk / "big.pred.zarr"

    @property
    def folder(self) -> Path:
        """Run folder, which is not on the disk: jobs keep logs open, and a disk with open files cannot be read-only."""
        return self.place / "run"

    def start(self, *words: str) -> Command:
        return Command(*words, cwd=self.place, talk=self.place / "talk.txt")

    def predict(self, way: str) -> Command:
        self.events.append(f"{way} ({len(list(read_receipts(self.folder / 'receipts')))} receipts)")
        words = ["--output", str(self.output), "--run-folder", str(self.folder), "--dtype", "float32"]
        return self.start("predict", "big.zarr", *words, *TILE, *WAYS[way])

    def verify(self, *words: str) -> int:
        return self.start("verify", str(self.output), "--run-folder", str(self.folder), *words).wait(timeout=300)

    def talk(self) -> str:
        return " > ".join(self.events) + "\n" + (self.place / "talk.txt").read_text()[-6000:]

    # -- events

    def kill_worker(self) -> None:
        if pids := self.workers():
            with suppress(ProcessLookupError):
                os.kill(self.chance.choice(pids), signal.SIGKILL)

    def requeue(self) -> None:
        if running := [job for job in self.slurm.jobs() if self.slurm.state(job) == "RUNNING"]:
            with suppress(subprocess.CalledProcessError):
                self.slurm.call("scontrol", "requeue", self.chance.choice(running))

    def fill_disk(self) -> None:
        with suppress(OSError), (self.disk / "filler").open("wb") as file:
            while True:
                file.write(bytes(2**16))

    def read_only(self) -> None:
        remount(self.disk, "ro")

    def damage(self) -> None:
        """Truncate a stored chunk or flip one of its bits."""
        if chunks := sorted(path for path in (self.output / "0" / "c").rglob("*") if path.is_file()):
            victim = self.chance.choice(chunks)
            content = bytearray(victim.read_bytes())
            if self.chance.random() < 0.5:
                del content[len(content) // 2 :]
            else:
                content[self.chance.randrange(len(content))] ^= 1 << self.chance.randrange(8)
            with suppress(OSError):  # the disk may be full or read-only by now
                victim.write_bytes(content)

    def mend(self) -> None:
        """Cancel all jobs, and make the disk writable and free its space, as an administrator would."""
        self.slurm.cancel_all()
        remount(self.disk, "rw")
        (self.disk / "filler").unlink(missing_ok=True)

    def workers(self) -> list[int]:
        """Ids of the processes that work on the output, according to their heartbeats."""
        found = []
        for path in sorted((self.folder / "workers").glob("*.json")):
            with suppress(OSError, ValueError):
                beat = json.loads(path.read_text())
                if beat["state"] == "working" and not Holder(**beat["holder"]).is_gone():
                    found.append(beat["holder"]["pid"])
        return found


def remount(disk: Path, mode: str) -> None:
    """Remount a disk, which becomes read-only only at a moment when no file is being written."""
    command = ["mount", "-o", f"remount,{mode}", str(disk)]
    until(lambda: subprocess.run(command, capture_output=True).returncode == 0, f"remount {mode}")


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """Mount a disk of 400 MB at ``place/disk``."""
    disk = place / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"needs to mount a small disk: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture
def scene(tmp_path: Path, slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_model(tmp_path / "model", depth=3, base_channels=16)
    with small_disk(tmp_path):
        yield Scene(tmp_path, slurm, random.Random(2015))
        until(lambda: not slurm.jobs(), "an empty queue")


def array_files(store: Path) -> dict[str, bytes]:
    return {str(f.relative_to(store)): f.read_bytes() for f in sorted((store / "0").rglob("*")) if f.is_file()}


@pytest.mark.parametrize("rounds", [1, *(pytest.param(rounds, marks=pytest.mark.slow) for rounds in (3, 20))])
def test_the_last_rerun_gives_the_same_bytes_after_any_events(scene: Scene, rounds: int) -> None:
    sections = SECTIONS_PER_ROUND * rounds
    write_zarr(scene.place / "big.zarr", grey(sections, SIDE, SIDE), chunks=(1, 128, 128))
    whole = scene.start("predict", "big.zarr", "--output", "whole.zarr", "--dtype", "float32", *TILE)
    assert whole.wait(timeout=300) == 0, scene.talk()
    events = [scene.kill_worker, scene.requeue, scene.fill_disk, scene.read_only, scene.damage]
    for number in range(rounds):
        launcher = scene.predict(list(WAYS)[number % len(WAYS)])
        if number % 4 != 3:  # otherwise the events begin while the launcher starts
            until(lambda launcher=launcher: scene.workers() or launcher.poll() is not None, "a worker")  # type: ignore[misc]
        disturb(scene, launcher, scene.chance.sample(events, 2))
        scene.mend()
    print(" > ".join(scene.events))
    finish(scene)
    assert array_files(scene.output) == array_files(scene.place / "whole.zarr"), scene.talk()
    check_receipts(scene, sections)
    check_nothing_is_left(scene)


def disturb(scene: Scene, launcher: Command, events: list[Callable[[], None]]) -> None:
    """Cause the events while the launcher works, then kill it or stop it with SIGTERM."""
    for event in events:
        with suppress(subprocess.TimeoutExpired):
            launcher.wait(timeout=scene.chance.uniform(0.5, 4))
        scene.events.append(event.__name__)
        event()
    how = scene.chance.choice(["kill", "terminate"])  # so that work is left for the next launch
    scene.events.append(f"{how} launcher")
    getattr(launcher, how)()
    code = launcher.wait(timeout=300)
    assert code in (0, 1, 3, -signal.SIGKILL), scene.talk()


def finish(scene: Scene) -> None:
    """Rerun until the output is complete, then find and repair damaged data."""
    for _ in range(4):
        launcher = scene.predict("slurm")
        if launcher.wait(timeout=300) == 0:
            break
    else:
        pytest.fail(scene.talk())
    assert scene.verify("--repair") == 0, scene.talk()
    assert scene.verify() == 0, scene.talk()


def check_receipts(scene: Scene, sections: int) -> None:
    """Check that each block was computed once, and once more for each void receipt."""
    receipts = list(read_receipts(scene.folder / "receipts"))
    done = Counter(receipt.block for receipt in receipts if receipt.state == DONE)
    void = Counter(receipt.block for receipt in receipts if receipt.state == VOID)
    assert set(done) == set(range(sections))
    assert {block: count - void[block] for block, count in done.items()} == dict.fromkeys(range(sections), 1)


def check_nothing_is_left(scene: Scene) -> None:
    until(lambda: not scene.slurm.jobs(), "an empty queue")
    until(lambda: not scene.workers(), "the workers to end")
    for place in (scene.disk, scene.folder):
        assert not list(place.rglob("*.partial"))
        assert not list(place.rglob("key.pem"))
