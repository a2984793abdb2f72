"""Imports point downwards: this file holds the list. A new module has to be given its place here."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import unetcli

PACKAGE = Path(unetcli.__file__).parent
LAYERS = [
    "checksums distinct errors files geometry footprint streams process ranges machine toml signals intensity",
    "architecture batchnorm config planning.plan planning.planner planning.pyramid_plan planning.estimate "
    "planning.pace training.request training.recipes training.targets training.border training.augment lock "
    "runs.receipts runs.paces runs.troubles runs.heartbeat network training.loss device metrics metrics.em "
    "metrics.pixels planning runs training volumes training.augmentation training.deformation training.greyvalues "
    "training.line metrics.bootstrap metrics.cells metrics.contingency metrics.objects metrics.probabilities "
    "metrics.sums metrics.voi metrics.compiled metrics.em_counts metrics.kernels metrics.partitions "
    "metrics.thinning metrics.warping labelling labelling.plan labelling.request labelling.components "
    "labelling.landscape labelling.watershed labelling.kernels labelling.tables labelling.measures "
    "labelling.finding labelling.merging labelling.objects evaluation evaluation.request evaluation.result "
    "evaluation.plan evaluation.families evaluation.counts evaluation.scoring evaluation.here metrics.em_sums "
    "planning.stages runs.ownership executors.slurm_commands executors.slurm_jobs executors.slurm_request "
    "executors.slurm_submit",
    "volumes.volume volumes.cached volumes.tiff volumes.omezarr volumes.opening skipping volumes.fingerprint "
    "volumes.output model training.settings training.checkpoint runs.runfolder training.folder pictures colours "
    "volumes.store volumes.ngff volumes.level runs.pyramid volumes.ctc labelling.image labelling.inputs "
    "labelling.folder labelling.ctc volumes.regions volumes.voxels",
    "training.weight_map training.weights training.lessons training.corpus training.split training.sampling "
    "training.survey training.world training.learner training.figures training.album inference runs.worker "
    "planning.resolve training.resolve runs.prediction training.validation training.learning training.train "
    "training.preview training.launch training.task runs.workbench runs.pyramid_run runs.canary runs.rounds "
    "runs.run runs.closing runs.shares lazy runs.machines runs.clusters runs.status runs.verify runs.seams "
    "runs.changes planning.probe planning.preview executors executors.contract executors.local executors.tls "
    "executors.dask executors.dask_batches executors.dask_cluster executors.dask_local executors.dask_worker "
    "executors.slurm executors.slurm_element "
    "executors.slurm_requeue executors.slurm_watch "
    "executors.slurm_word runs.keeping labelling.threshold labelling.work labelling.setting_up labelling.run "
    "evaluation.baseline evaluation.challenge evaluation.counting evaluation.evaluate evaluation.folder "
    "evaluation.kinds evaluation.pairing evaluation.run evaluation.settling evaluation.totals evaluation.work "
    "showing report report.behind report.charts report.errors report.html report.layers report.page "
    "report.pictures report.published report.summary report.svg report.tables report.view report.words runs.crew "
    "runs.liveness runs.steps runs.reading_back runs.repair labelling.repair evaluation.checking shown "
    "training.compiling training.pace",
    "cli cli.asking cli.evaluate cli.options cli.options_train cli.plan cli.plantable cli.predict cli.status "
    "cli.talk cli.train cli.verify cli.worker cli.configfile cli.signals cli.label cli.weights cli.scoretable "
    "cli.show cli.statuspicture",
]
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names.split()}
ABOVE_ALL = {"__init__", "__main__"}
LIGHT = (
    "architecture config planning.plan planning.planner planning.pyramid_plan planning.estimate planning.pace "
    "lock runs.receipts runs.status training.augmentation planning.stages"
)
WITHOUT_TORCH_AND_ZARR = [*LAYERS[0].split(), *LIGHT.split()]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(path: Path) -> set[str]:
    """Modules of ours that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.removeprefix("unetcli.") for name in found} & set(MODULES)


def test_every_module_has_its_place() -> None:
    assert set(LAYER) == set(MODULES) - ABOVE_ALL
    assert sum(len(names.split()) for names in LAYERS) == len(LAYER)


@pytest.mark.parametrize("name", sorted(LAYER))
def test_imports_point_downwards(name: str) -> None:
    upwards = {other for other in imported(MODULES[name]) if LAYER[other] > LAYER[name]}
    assert not upwards, f"{name} (layer {LAYER[name]}) imports {sorted(upwards)}"


def test_no_modules_import_each_other() -> None:
    """Counting imports inside functions and for type checkers too; commands and the app they register with may."""
    graph = {name: imported(MODULES[name]) - {name} for name, layer in LAYER.items() if layer < len(LAYERS) - 1}
    while leaves := {name for name, needs in graph.items() if not needs & set(graph)}:
        graph = {name: needs for name, needs in graph.items() if name not in leaves}
    assert not graph


@pytest.fixture(scope="module")
def loaded() -> dict[str, list[str]]:
    """What each light module loads when it is imported first in a fresh interpreter."""
    program = (
        "import importlib, json, os, sys\n"
        "told = {}\n"
        "for name in sys.argv[1:]:\n"
        "    read, write = os.pipe()\n"
        "    if not os.fork():\n"
        "        importlib.import_module('unetcli.' + name)\n"
        "        os.write(write, json.dumps(sorted({m.split('.')[0] for m in sys.modules})).encode())\n"
        "        os._exit(0)\n"
        "    os.close(write)\n"
        "    told[name] = json.loads(open(read).read())\n"
        "    os.wait()\n"
        "print(json.dumps(told))\n"
    )
    command = [sys.executable, "-c", program, *WITHOUT_TORCH_AND_ZARR]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", WITHOUT_TORCH_AND_ZARR)
def test_planning_needs_neither_torch_nor_zarr(loaded: dict[str, list[str]], name: str) -> None:
    assert "unetcli" in loaded[name]
    assert not {"torch", "zarr"} & set(loaded[name])
