"""Table 1 of the paper with a small network: boundaries of neurons in EM sections of the ISBI 2012 challenge.

    python examples/paper/em.py DATA [--output em] [--steps 1500] [--jobs 2]

DATA holds ``isbi2012`` with the training sections. A network of depth 3 with 16 channels is trained with each recipe on
sections 0 to 16 and selected by 17 to 19, and five more on the folds of sections 0 to 19. All scores are of sections 20
to 24. The same command continues an interrupted run. Writes ``em.json`` and ``em.md`` to the results, and a
picture to the output.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from experiment import SETS, DataSet, Experiment, at_once, markdown, ranged, training_parser_of, value

FOLDS = 5
RECIPES = ("paper", "fast")
MEASURES = {
    "warping_error": ("warping error", 6),
    "rand_error": ("Rand error", 4),
    "pixel_error": ("pixel error", 4),
    "v_rand": ("V_Rand", 4),
    "v_info": ("V_Info", 4),
    "pixel_disagreement": ("wrong pixels at 0.5", 4),
}
PUBLISHED = {
    "people": (0.000005, 0.0021, 0.0010),
    "U-Net (the paper)": (0.000353, 0.0382, 0.0611),
    "DIVE-SCI": (0.000355, 0.0305, 0.0584),
    "IDSIA (sliding window)": (0.000420, 0.0504, 0.0613),
    "DIVE": (0.000430, 0.0545, 0.0582),
    "IDSIA-SCI": (0.000653, 0.0189, 0.1027),
}
"""Warping, Rand and pixel error on the 30 hidden sections: Table 1 of Ronneberger, Fischer and Brox (2015)."""


@dataclass(frozen=True)
class Row:
    """One way of predicting with the networks of a recipe."""

    recipe: str
    rotations: int
    folds: bool

    @property
    def networks(self) -> tuple[int | None, ...]:
        """The folds whose networks are averaged, or ``None`` for the network of no fold."""
        return tuple(range(1, FOLDS + 1)) if self.folds else (None,)

    @property
    def name(self) -> str:
        turned = "one pass" if self.rotations == 1 else f"mean of {self.rotations} turned copies"
        return f"recipe {self.recipe}, {f'mean of {FOLDS} folds' if self.folds else turned}"


ROWS = [Row(recipe, *how) for recipe in RECIPES for how in ((1, False), (7, False), (8, False), (1, True))]
NAMES = [row.name for row in ROWS]


def main() -> None:
    """Train what is not trained, score what is not scored, and write the table."""
    parser = training_parser_of(__doc__, "em")
    parser.add_argument("--recipes", nargs="+", default=RECIPES, choices=RECIPES, help="only networks of these recipes")
    parser.add_argument("--without-folds", action="store_true", help="leave out the means of five networks")
    given = parser.parse_args()
    experiment = Experiment.of(given, "em")
    rows = [row for row in ROWS if row.recipe in given.recipes and not (row.folds and given.without_folds)]
    at_once(partial(train, experiment, given.data, given.steps), trainings(rows), given.jobs)
    at_once(partial(score, experiment, given.data), rows, given.jobs)
    draw(experiment, given.data, given.recipes[-1], experiment.output / "em.png")
    experiment.write(table(experiment.results))


def trainings(rows: Sequence[Row]) -> list[tuple[str, int | None]]:
    """The recipe and fold of each network; fold ``None`` is the one that is selected by sections 17 to 19."""
    return list(dict.fromkeys((row.recipe, fold) for row in rows for fold in row.networks))


def model(experiment: Experiment, recipe: str, fold: int | None) -> Path:
    """Folder of a network."""
    return experiment.output / (recipe if fold is None else f"{recipe}-fold{fold}")


def train(experiment: Experiment, data: Path, steps: int, which: tuple[str, int | None]) -> None:
    """Train one network."""
    recipe, fold = which
    words = [*part(SETS["ISBI"], data, fold), *experiment.network, "--recipe", recipe, "--steps", steps]
    experiment.unetcli("train", *words, "--output", model(experiment, recipe, fold), *experiment.on)


def part(isbi: DataSet, data: Path, fold: int | None) -> list[Any]:
    """Arguments of ``train`` for the sections to train on and to select by."""
    if fold is None:
        return [*isbi.training_words(data)]
    sections = ranged((isbi.train[0], isbi.select[1]))
    files = [data / isbi.images, data / isbi.labels]
    return [*files, "--truth", isbi.truth, "--sections", sections, "--folds", FOLDS, "--fold", fold]


def score(experiment: Experiment, data: Path, row: Row) -> None:
    """Add a row to the results, unless it is there."""
    if row.name not in experiment.results:
        experiment.keep(row.name, scores(experiment, data, row))


def scores(experiment: Experiment, data: Path, row: Row) -> dict[str, Any]:
    """Predict the test sections as a row says, and score them."""
    isbi, store = SETS["ISBI"], prediction(experiment, row)
    models = [word for fold in row.networks for word in ("--model", model(experiment, row.recipe, fold))]
    sections = ["--sections", ranged(isbi.test)]
    words = [data / isbi.images, *sections, *models, "--rotations", row.rotations, "--output", store]
    experiment.unetcli("predict", *words, *experiment.on, "--dtype", "float32")
    found = experiment.json("evaluate", store, data / isbi.labels, *sections, "--metrics", "pixels,em")
    measures = {**found["em"], "calibration_error": found["pixels"]["calibration_error"]}
    return {name: kept for name, kept in measures.items() if isinstance(kept, float | list)}


def prediction(experiment: Experiment, row: Row) -> Path:
    """Store of the test sections as a row predicts them."""
    return experiment.output / f"{row.recipe}-{'folds' if row.folds else row.rotations}.zarr"


def draw(experiment: Experiment, data: Path, recipe: str, picture: Path) -> None:
    """Draw two test sections, the mean of eight turned copies, and the truth."""
    isbi, store = SETS["ISBI"], prediction(experiment, Row(recipe, 8, folds=False))
    script = Path(__file__).parents[1] / "draw_result.py"
    subprocess.run([sys.executable, script, data / isbi.images, store, data / isbi.labels, picture], check=True)


def table(found: dict[str, dict[str, Any]]) -> str:
    """The rows of this experiment, then those of the paper."""
    head = ["", *(title for title, _ in MEASURES.values())]
    ours = [
        [name, *(value(row, measure, MEASURES[measure][1]) for measure in MEASURES)]
        for name in NAMES
        if (row := found.get(name))
    ]
    theirs = [
        [f"{name}, hidden sections", f"{warping:.6f}", f"{rand:.4f}", f"{pixel:.4f}", "", "", ""]
        for name, (warping, rand, pixel) in PUBLISHED.items()
    ]
    return markdown(head, [*ours, *theirs])


if __name__ == "__main__":
    main()
