"""What made the difference: a small network without deformations, border weights, .., and with fewer sections.

    python examples/paper/differences.py DATA [--output differences] [--steps 800] [--seeds 3] [--jobs 2]

Each network differs from the first in one setting. ISBI is scored on sections 20 to 24 at a threshold of 0.5, HeLa and
PSC by SEG of labelled objects (see ``cells.py``). With fewer sections, those before 17 are used. The same command
continues an interrupted run; results are kept one by one. Writes ``differences.json`` and ``differences.md``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cells import label_and_score
from experiment import SETS, DataSet, Experiment, at_once, markdown, ranged, training_parser_of

BORDER = ("--w0", 10)
"""The border weights of the paper, stated because the default depends on the data."""
VARIANTS: dict[str, tuple[Any, ...]] = {
    "all": BORDER,
    "no elastic deformation": (*BORDER, "--elastic", 0),
    "no augmentation": (*BORDER, "--no-augment"),
    "no border weights": ("--w0", 0),
    "dropout 0.5": (*BORDER, "--dropout", 0.5),
}
SECTIONS = (1, 2, 5, 10)
TURNED = 8
MEASURES = {"pixel_disagreement": "wrong pixels at 0.5", "rand_error": "Rand error", "v_rand": "V_Rand", "seg": "SEG"}


@dataclass(frozen=True)
class Run:
    """One network to train."""

    set: str
    variant: str
    seed: int
    sections: int | None = None

    @property
    def row(self) -> str:
        """What the run is called in the table."""
        return f"{self.set}: {self.variant if self.sections is None else f'{self.sections} sections'}"

    @property
    def folder(self) -> str:
        """Folder of the network."""
        sections = "" if self.sections is None else f" {self.sections}"
        return f"{self.set} {self.variant}{sections} {self.seed}".lower().replace(" ", "-")


def main() -> None:
    """Do the runs that are not done, and write the table."""
    parser = training_parser_of(__doc__, "differences")
    parser.set_defaults(steps=800)
    parser.add_argument("--seeds", type=int, default=3, help="networks of each kind")
    given = parser.parse_args()
    experiment = Experiment.of(given, "differences")
    at_once(partial(run, experiment, given.data, given.steps), runs(given.seeds), given.jobs)
    experiment.write(table(experiment.results))


def runs(seeds: int) -> list[Run]:
    """All runs; those of the first seed come first."""
    found = []
    for seed in range(seeds):
        found += [Run(name, variant, seed) for variant in VARIANTS for name in ("ISBI", "PSC", "HeLa")]
        found += [Run("ISBI", "all", seed, sections) for sections in SECTIONS]
    return found


def run(experiment: Experiment, data: Path, steps: int, which: Run) -> None:
    """Train, predict and score, unless the result is there."""
    if f"{which.row}, seed {which.seed}" in experiment.results:
        return
    chosen, stem = SETS[which.set], experiment.output / which.folder
    if which.sections is not None:
        chosen = replace(chosen, train=(chosen.train[1] - which.sections, chosen.train[1]))
    trained = train(experiment, data, chosen, steps, which)
    found = {which.row: score(experiment, data, chosen, stem)}
    if (which.set, which.variant, which.sections) == ("ISBI", "all", None):
        found[f"ISBI: mean of {TURNED} turned copies"] = score_em(experiment, data, chosen, stem, TURNED)
    for row, scores in found.items():
        experiment.keep(f"{row}, seed {which.seed}", {"row": row, **trained, **scores})


def score(experiment: Experiment, data: Path, chosen: DataSet, stem: Path) -> dict[str, Any]:
    """Scores of the test sections: of pixels and cells in EM sections, else of objects."""
    if chosen.truth == "binary":
        return score_em(experiment, data, chosen, stem, 1)
    return label_and_score(experiment, data, chosen, stem)


def train(experiment: Experiment, data: Path, chosen: DataSet, steps: int, which: Run) -> dict[str, Any]:
    """Train one network, and return its steps and seconds."""
    words = [*chosen.training_words(data), *experiment.network, "--steps", steps, "--seed", which.seed]
    words += [*VARIANTS[which.variant], *([] if chosen.truth == "binary" else ["--select", "seg"])]
    trained = experiment.json("train", *words, "--output", experiment.output / which.folder, *experiment.on)
    return {key: trained[key] for key in ("steps", "seconds")}


def score_em(experiment: Experiment, data: Path, chosen: DataSet, stem: Path, rotations: int) -> dict[str, Any]:
    """Scores of the test sections."""
    store, sections = f"{stem}.{rotations}.zarr", ["--sections", ranged(chosen.test)]
    words = [data / chosen.images, "--model", stem, *sections, "--rotations", rotations, "--output", store]
    experiment.unetcli("predict", *words, *experiment.on)
    found = experiment.json("evaluate", store, data / chosen.labels, *sections, "--metrics", "em")["em"]
    return {measure: found[measure] for measure in MEASURES if measure in found}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Mean of the seeds, and the least and greatest value."""
    rows = dict.fromkeys(result["row"] for result in found.values())
    lines = []
    for row in rows:
        results = [result for result in found.values() if result["row"] == row]
        minutes = f"{np.mean([result['seconds'] for result in results]) / 60:.1f}"
        lines.append([row, *(spread(results, measure) for measure in MEASURES), f"{len(results)}", minutes])
    return markdown(["", *MEASURES.values(), "seeds", "minutes"], lines)


def spread(results: list[dict[str, Any]], measure: str) -> str:
    """Mean of a score over the seeds, with the least and the greatest."""
    values = [result[measure] for result in results if measure in result]
    return f"{np.mean(values):.4f} ({min(values):.4f}-{max(values):.4f})" if values else ""


if __name__ == "__main__":
    main()
