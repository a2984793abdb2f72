"""What the scripts of the paper's experiments share: the data sets and their parts, calls of unetcli, tables.

Every experiment is a set of calls of the command line. Each call continues where it was interrupted and does nothing
if its result is complete, so that a script can be stopped and started again at any time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import unetcli

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class DataSet:
    """Annotated images, with the sections to train on, to select by, and to test on (used for nothing else)."""

    images: str
    labels: str
    truth: str
    train: tuple[int, int]
    select: tuple[int, int]
    test: tuple[int, int]

    def training_words(self, data: Path) -> list[str]:
        """Arguments of ``unetcli train`` for the sections to train on and to select by."""
        parts = ["--sections", ranged(self.train), "--validation", ranged(self.select)]
        return [str(data / self.images), str(data / self.labels), "--truth", self.truth, *parts]


SETS = {
    "ISBI": DataSet("isbi2012/train-volume.tif", "isbi2012/train-labels.tif", "binary", (0, 17), (17, 20), (20, 25)),
    "HeLa": DataSet("dic_hela/01-images.tif", "dic_hela/01-labels.tif", "instances", (0, 50), (50, 60), (60, 84)),
    "PSC": DataSet("phc_psc/01-images.tif", "phc_psc/01-labels.tif", "instances", (0, 18), (18, 22), (22, 30)),
    "DSB": DataSet("dsb2018/images.tif", "dsb2018/labels.tif", "instances", (0, 160), (160, 200), (200, 250)),
}


def ranged(sections: tuple[int, int]) -> str:
    """Sections as an option has them: ``20:25``."""
    return f"{sections[0]}:{sections[1]}"


class Experiment:
    """One script's data, folder of models and predictions, and the results that it has found so far.

    Parameters
    ----------
    output
        Folder of models and predictions.
    results
        File of results that are kept, as JSON; each is written as soon as it is there.
    """

    def __init__(self, output: Path, results: Path) -> None:
        self.output, self.file, self.keeping = output, results, Lock()
        self.output.mkdir(parents=True, exist_ok=True)
        self.results: dict[str, Any] = json.loads(results.read_text())["rows"] if results.exists() else {}

    @staticmethod
    def unetcli(*words: Any) -> str:
        """Run unetcli on one thread, and return what it prints on stdout."""
        line = [sys.executable, "-m", "unetcli", "--quiet", *map(str, words)]
        alone = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(line, env=alone, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"exit code {done.returncode}: {shlex.join(line)}")
        return done.stdout

    @staticmethod
    def json(*words: Any) -> dict[str, Any]:
        """Run unetcli with ``--json``, and return what it prints."""
        found: dict[str, Any] = json.loads(Experiment.unetcli(*words, "--json"))
        return found

    def keep(self, row: str, found: dict[str, Any]) -> None:
        """Add a row to the results, and write them to the file."""
        with self.keeping:
            self.results[row] = found
            self.file.parent.mkdir(parents=True, exist_ok=True)
            draft = self.file.with_suffix(".partial")
            draft.write_text(json.dumps({"made_by": made_by(), "rows": self.results}, indent=1) + "\n")
            draft.replace(self.file)


def made_by() -> dict[str, Any]:
    """Where the results were computed."""
    return {"unetcli": unetcli.__version__, "cores": os.cpu_count(), "python": platform.python_version()}


def parser_of(doc: str | None, output: str) -> argparse.ArgumentParser:
    """Parser of the arguments that all scripts have."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder with the data sets as TIFF stacks")
    parser.add_argument("--output", type=Path, default=Path(output), help="folder of models and predictions")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the tables")
    parser.add_argument("--steps", type=int, default=1500, help="training steps of each network")
    parser.add_argument("--jobs", type=int, default=2, help="simultaneous trainings, on one thread each")
    return parser


def at_once(work: Any, items: Iterable[Any], jobs: int) -> None:
    """Call a function with each item, some of them at the same time."""
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(work, items))


def value(scores: dict[str, Any], name: str, digits: int = 4) -> str:
    """A score with its 95 % interval over sections: ``0.1234 (0.1100-0.1300)``."""
    shown = partial(format, format_spec=f".{digits}f")
    interval = scores.get(f"{name}_interval")
    return shown(scores[name]) + (f" ({shown(interval[0])}-{shown(interval[1])})" if interval else "")


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
