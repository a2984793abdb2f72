"""Kills of every command at chosen system calls: the same command then ends in the same bytes, and no draft is left.

A command is run once without a kill, which counts its calls of link, mkdir, rename, rmdir, unlink and fsync. Then it is
killed with SIGKILL before calls that are spread evenly over it, once for each, and run again to its end.

    python tests/kills.py                      150 kills over all commands; a table at the end
    python tests/kills.py --kills 1000 weights label
    python tests/kills.py --folder FOLDER      continues where an earlier call with the same folder stopped

Results are kept in ``FOLDER/kills.jsonl``, and the place of a kill that went wrong in ``FOLDER/wrong``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from commands import CONTEXT, start_server
from helpers import grey, write_model, write_placed, write_zarr
from killing import place_of, run_here

CALLS = ("fsync", "link", "mkdir", "remove", "rename", "replace", "rmdir", "unlink")
"""Functions of ``os`` that create, move, delete or flush files."""
TOTAL = 150
VOLATILE = re.compile(
    r"[^/]+\.run/.*"  # receipts have times and hosts
    r"|ev/.*"
    r"|model2/(log\.jsonl|checkpoint.*|curves\.png|jobs.*|.*\.guard|training\.json)"
)
"""Files that differ between two runs without a kill, or that hold the state of a run."""
DATE = re.compile(rb"\d{4}-\d\d-\d\dT[0-9:.+]+")
PREDICT = "predict raw.zarr --model model --tile 60 --device cpu -o o.zarr"
LABEL = "label p.zarr --name cells --threshold 0.45"
EVALUATE = "evaluate p.zarr truth.zarr --metrics pixels,cells --block-voxels 4000 --json"
TRAIN = (
    "train raw.zarr labels.zarr -o model2 --steps 4 --validate-every 2 --depth 1 --base-channels 2 --tile 44 --seed 1"
)


@dataclass(frozen=True)
class Case:
    """A command to kill, and what is done before it."""

    words: str
    first: str | None = None
    """Command that is run to its end before."""
    damaged: str | None = None
    """File that is damaged before."""


CASES = {
    "predict": Case(f"{PREDICT} --levels 2"),
    "predict --overwrite": Case(f"{PREDICT} --overwrite", first=f"{PREDICT} --dtype float32"),
    "label": Case(LABEL),
    "label --overwrite": Case(f"{LABEL} --overwrite --min-size 3", first=LABEL),
    "label --into": Case(f"{LABEL} --into image.zarr"),
    "label --output": Case("label p.zarr -o cells.zarr --threshold 0.45"),
    "label watershed --ctc": Case(f"{LABEL} --method watershed --ctc frames"),
    "evaluate": Case(f"{EVALUATE} --csv scores.csv --report report.html"),
    "evaluate --run-folder": Case(f"{EVALUATE} --run-folder ev --csv scores.csv"),
    "train": Case(f"{TRAIN} --truth instances --device cpu --checkpoint-minutes 0.001"),
    "weights": Case("weights labels.zarr --truth instances -o w.zarr"),
    "show": Case("show raw.zarr --overlay labels.zarr -o section.png"),
    "verify --repair": Case("verify p.zarr --repair", damaged="p.zarr/0/c/1/0/0"),
}


def make_base(place: Path) -> Path:
    """Make volumes, a model and a complete prediction with its run folder."""
    place.mkdir()
    write_model(place / "model")
    write_zarr(place / "raw.zarr", grey(3, 70, 90), (1, 64, 64), dimension_names=["z", "y", "x"])
    labels = np.zeros((3, 70, 90), np.uint16)
    for number, (y, x) in enumerate(((5, 5), (5, 16), (30, 40), (50, 70)), start=1):
        labels[:, y : y + 11, x : x + 11] = number
    write_zarr(place / "labels.zarr", labels, (1, 64, 64), dimension_names=["z", "y", "x"])
    write_zarr(place / "truth.zarr", (labels > 0).astype(np.uint8), (1, 64, 64), dimension_names=["z", "y", "x"])
    write_placed(place / "image.zarr", grey(3, 70, 90), None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in Zarr v3, consolidated metadata are not yet part of the standard
        zarr.consolidate_metadata(place / "image.zarr")
    run(place, PREDICT.replace("o.zarr", "p.zarr"))
    return place


@dataclass(frozen=True)
class Ended:
    """The end of a command: its exit code (-9 if killed), its output, and how many calls it made."""

    code: int
    out: str
    talk: str
    calls: int


def run(place: Path, words: str, kill_at: int = 0) -> Ended:
    """Run a command in a folder; with ``kill_at``, it is killed before the call of this number, from 1."""
    start_server()
    files = [f"{place}.{name}" for name in ("out", "talk", "calls")]
    where = str(place)
    how = (where, files[2], kill_at)
    process = CONTEXT.Process(target=run_here, args=(where, words.split(), *files[:2], count_calls, *how))
    process.start()
    process.join(300)
    if process.exitcode is None:
        process.kill()
        process.join()
    out, talk, calls = (Path(file).read_text() for file in files)
    ended = Ended(process.exitcode or 0, out, talk, len(calls))
    assert kill_at or ended.code == 0, f"{words}: exit code {ended.code}: {talk}"
    return ended


def count_calls(place: str, calls: str, kill_at: int) -> None:
    """Write a byte to a file for each call that concerns one below ``place``, and kill this process before a call."""
    done, record = [0], os.open(calls, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *more: Any, **options: Any) -> Any:
            name = place_of(path, options.get("dir_fd"))
            if (
                f"{name}/".startswith(f"{place}/") and "/workers/" not in name
            ):  # heartbeats come from a thread, at any time
                done[0] += 1
                os.write(record, b".")
                if done[0] == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
            return original(path, *more, **options)

        return call

    for name in CALLS:
        setattr(os, name, wrapped(getattr(os, name)))


def results(place: Path) -> dict[str, bytes]:
    """Content of every file that should not depend on kills, without dates."""
    files = {path.relative_to(place).as_posix(): path for path in sorted(place.rglob("*")) if path.is_file()}
    return {name: DATE.sub(b"", path.read_bytes()) for name, path in files.items() if not VOLATILE.fullmatch(name)}


def scores(out: str) -> object:
    """Scores of an evaluation; None for other commands."""
    return json.loads(out) if out.startswith("{") else None


class Bench:
    """Runs the cases in copies of one base folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.rmtree(folder / "bench", ignore_errors=True)
        (folder / "bench").mkdir(parents=True)
        self.base = make_base(folder / "bench/base")
        self.before = cache(self._before)
        self.undisturbed = cache(self._undisturbed)

    def _before(self, name: str) -> Path:
        """Folder as it is before the command."""
        case = CASES[name]
        place = self.copy(self.base, f"{name} before")
        if case.first:
            run(place, case.first)
        if case.damaged:
            (place / case.damaged).write_bytes(b"damaged")
        return place

    def copy(self, place: Path, name: str) -> Path:
        copy = self.folder / "bench" / re.sub(r"\W+", "-", name)
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(place, copy)
        return copy

    def _undisturbed(self, name: str) -> tuple[dict[str, bytes], object, int]:
        """Results, scores and number of calls of the command without a kill."""
        place = self.copy(self.before(name), "place")
        ended = run(place, CASES[name].words)
        return results(place), scores(ended.out), ended.calls

    def positions(self, name: str, kills: int) -> list[int]:
        """Numbers of the calls to kill at, spread evenly over the command."""
        calls = self.undisturbed(name)[2]
        number = min(kills, calls)
        return sorted({round(1 + (calls - 1) * k / max(1, number - 1)) for k in range(number)})

    def shares(self, names: list[str], kills: int) -> dict[str, int]:
        """Number of kills of each command: the same for all, but no more than a command has calls."""
        found: dict[str, int] = {}
        for name in sorted(names, key=lambda name: self.undisturbed(name)[2]):
            left = len(names) - len(found)
            found[name] = min(-(-(kills - sum(found.values())) // left), self.undisturbed(name)[2])
        return {name: found[name] for name in names}

    def kill(self, name: str, position: int) -> list[str]:
        """Kill the command before a call and run it again; returns what is wrong afterwards."""
        expected, values, _ = self.undisturbed(name)
        killed = Ended(0, "", "", position)
        while not killed.code and killed.calls:  # again, before its last call, if it made fewer calls than before
            place = self.copy(self.before(name), "place")
            killed = run(place, CASES[name].words, min(position, killed.calls))
        if killed.code != -signal.SIGKILL:
            return [f"not killed: exit code {killed.code}: {killed.talk.strip()}"]
        again = run(place, CASES[name].words, kill_at=10**9)
        if again.code:
            return [f"exit code {again.code} of the second run: {again.talk.strip()}"]
        found = results(place)
        wrong = [
            f"differs: {file}"
            for file in sorted(expected.keys() | found.keys())
            if expected.get(file) != found.get(file)
        ]
        wrong += ["other scores"] if scores(again.out) != values else []
        return wrong + [f"left: {path.relative_to(place)}" for path in place.rglob("*") if is_left_over(path)]


def is_left_over(path: Path) -> bool:
    """Whether a file or folder is a draft or a lock, which no ended command may leave."""
    return path.name.endswith(".partial") or path.name in ("lock", "labels.lock") or path.name.startswith("share-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", choices=[[], *CASES], metavar="COMMAND", help=f"default: {', '.join(CASES)}"
    )
    parser.add_argument("--kills", type=int, default=TOTAL, help="number of kills of all commands together")
    parser.add_argument("--folder", type=Path, help="where results are kept; default: a temporary folder")
    options = parser.parse_args()
    names = options.names or list(CASES)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        table = run_all(folder, names, options.kills)
    table["all"] = Counter({what: sum(counts[what] for counts in table.values()) for what in ("kills", "wrong")})
    for name, counts in table.items():
        print(f"{name:<24} {counts['kills']:>5} kills {counts['wrong']:>5} wrong")
    sys.exit(table["all"]["wrong"] > 0)


def run_all(folder: Path, names: list[str], kills: int) -> dict[str, Counter[str]]:
    """Kill the commands ``kills`` times together, except where the folder has results; count what went wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "kills.jsonl"
    known = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    done = {(line["command"], line["position"]): line["wrong"] for line in known}
    bench, table = Bench(folder), dict[str, Counter[str]]()
    for name, number in bench.shares(names, kills).items():
        counts = table.setdefault(name, Counter())
        for position in bench.positions(name, number):
            if (name, position) not in done:
                done[name, position] = wrong = bench.kill(name, position)
                with record.open("a") as file:
                    file.write(json.dumps({"command": name, "position": position, "wrong": wrong}) + "\n")
                if wrong:
                    print(f"{name}, killed before call {position}: {'; '.join(wrong)[:500]}", flush=True)
                    shutil.copytree(
                        folder / "bench/place",
                        folder / "wrong" / re.sub(r"\W+", "-", f"{name} {position}"),
                        dirs_exist_ok=True,
                    )
            counts.update(kills=1, wrong=bool(done[name, position]))
    return table


if __name__ == "__main__":
    main()
