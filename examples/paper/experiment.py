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
from pathlib import Path
from threading import Lock
from typing import Any

import unetcli
from unetcli.core.files import replacing

RESULTS = Path(__file__).parent / "results"
NETWORKS = {"small": ("--depth", 3, "--base-channels", 16), "full": ("--depth", 4, "--base-channels", 64)}
"""A network that a processor trains in minutes, and that of the paper, for which a GPU is needed."""


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
    device
        Where networks are trained and applied.
    network
        A key of ``NETWORKS``.
    """

    def __init__(self, output: Path, results: Path, device: str = "cpu", network: str = "small") -> None:
        self.output, self.file, self.keeping = output, results, Lock()
        self.on, self.network = ("--device", device), NETWORKS[network]
        self.output.mkdir(parents=True, exist_ok=True)
        self.results: dict[str, Any] = json.loads(results.read_text())["rows"] if results.exists() else {}

    @classmethod
    def of(cls, given: argparse.Namespace, name: str) -> Experiment:
        """The experiment that the arguments of :func:`training_parser_of` describe; each network has its own files."""
        small = given.network == "small"
        output = given.output if small else given.output / given.network
        file = f"{name}.json" if small else f"{name}-{given.network}.json"
        return cls(output, given.results / file, given.device, given.network)

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
            with replacing(self.file) as draft:
                draft.write_text(json.dumps({"made_by": made_by(self.on[1]), "rows": self.results}, indent=1) + "\n")

    def write(self, table: str) -> None:
        """Write the table beside the results, and print it."""
        self.file.with_suffix(".md").write_text(table)
        print(table, end="")


def made_by(device: str) -> dict[str, Any]:
    """Where the results were computed."""
    where = {"unetcli": unetcli.__version__, "cores": os.cpu_count(), "python": platform.python_version()}
    if device == "cpu":
        return where
    import torch  # takes seconds

    return where | {"gpu": torch.cuda.get_device_name(device), "torch": torch.__version__}


def parser_of(doc: str | None, output: str) -> argparse.ArgumentParser:
    """Parser of the arguments that all scripts have."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder with the data sets as TIFF stacks")
    parser.add_argument("--output", type=Path, default=Path(output), help="folder of models and predictions")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the tables")
    return parser


def training_parser_of(doc: str | None, output: str) -> argparse.ArgumentParser:
    """Parser of the arguments of scripts that train several networks of one kind."""
    parser = parser_of(doc, output)
    parser.add_argument("--steps", type=int, default=1500, help="training steps of each network")
    parser.add_argument("--jobs", type=int, default=2, help="simultaneous trainings, on one thread each")
    parser.add_argument("--network", default="small", choices=NETWORKS, help="full is that of the paper")
    parser.add_argument("--device", default="cpu", help="where networks are trained and applied: cpu or cuda")
    return parser


def at_once(work: Any, items: Iterable[Any], jobs: int) -> None:
    """Call a function with each item, some of them at the same time."""
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(work, items))


def value(scores: dict[str, Any], name: str, digits: int = 4) -> str:
    """A score with its 95 % interval over sections: ``0.1234 (0.1100-0.1300)``."""
    shown, interval = f"{scores[name]:.{digits}f}", scores.get(f"{name}_interval")
    return shown + (f" ({interval[0]:.{digits}f}-{interval[1]:.{digits}f})" if interval else "")


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
