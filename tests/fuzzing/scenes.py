"""Scenes of the fuzz test: files that unetcli reads, and the commands that read them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray
from scipy import ndimage

SIDE, SECTIONS = 44, 4
TILE = ("--tile", "36")
SMALL = ("--depth", "1", "--base-channels", "2", "--schedule", "constant", "--seed", "1", "--device", "cpu", *TILE)
TRAIN = ("train", "raw.zarr", "labels.zarr", "--truth", "instances", "--validate-every", "2", *SMALL)
PREDICT = ("predict", "raw.zarr", "--model", "model", *TILE)
LABEL = ("label", "pred.zarr", "--threshold", "0.4", "--name", "inst")
EVALUATE = ("evaluate", "pred.zarr", "truth.zarr", "--metrics", "pixels,cells")


@dataclass(frozen=True)
class Scene:
    """Files that are copied, those of them that are damaged, and commands that read them."""

    items: tuple[str, ...]
    damaged: str
    """Pattern of the damaged files."""
    commands: tuple[tuple[str, ...], ...]
    inputs: tuple[str, ...]
    """Items that the commands must not change."""


def volume_scene(name: str) -> Scene:
    """Scene of a volume that every command reads."""
    commands = (
        ("plan", name, "--model", "model", *TILE),
        ("predict", name, "--model", "model", "-o", "out.zarr", *TILE),
        ("predict", "raw.zarr", "--model", "model", "-o", "out.zarr", "--mask", name, *TILE),
        ("show", name, "-o", "out.png"),
        ("train", name, "labels.zarr", "--truth", "instances", "--steps", "1", "-o", "out", *SMALL),
        ("weights", name, "-o", "out.zarr"),
        ("evaluate", name, "truth.zarr", "--metrics", "pixels"),
        ("evaluate", "truth.zarr", name, "--metrics", "cells"),
        ("label", name, "--threshold", "0.4"),
    )
    return Scene(
        (name, "raw.zarr", "labels.zarr", "truth.zarr", "model"), f"{name}/**", commands, ("labels.zarr", "model")
    )


RUN_ITEMS = ("raw.zarr", "model", "truth.zarr", "labels.zarr", "pred.zarr", "pred.zarr.run", "pred.zarr.inst.csv")
RUN_INPUTS = ("raw.zarr", "model", "truth.zarr", "labels.zarr")
OF_PREDICTION = (
    ("status", "pred.zarr", "--json"),
    ("verify", "pred.zarr"),
    ("verify", "pred.zarr", "--repair"),
    ("verify", "pred.zarr", "--input", "--seams", "1"),
    (*PREDICT, "-o", "pred.zarr", "--levels", "2"),
    ("plan", "raw.zarr", "--model", "model", "-o", "pred.zarr", *TILE),
)
OF_LABELS = (
    LABEL,
    (*LABEL, "--overwrite"),
    ("status", "pred.zarr/labels/inst"),
    ("verify", "pred.zarr", "--step", "inst"),
    ("verify", "pred.zarr/labels/inst", "--repair"),
)
OF_A_SHARE = (
    ("status", "part.zarr"),
    ("verify", "part.zarr"),
    ("verify", "part.zarr", "--repair"),
    (*PREDICT, "-o", "part.zarr"),
    (*PREDICT, "-o", "part.zarr", "--share", "1/2"),
    (*PREDICT, "-o", "part.zarr", "--close"),
    ("plan", "raw.zarr", "--model", "model", "-o", "part.zarr", *TILE),
)
OF_AN_OUTPUT = (
    EVALUATE,
    (*EVALUATE, "--json", "--report", "out.html", "--csv", "out.csv"),
    ("show", "raw.zarr", "--overlay", "pred.zarr", "-o", "out.png"),
    ("show", "raw.zarr", "--overlay", "pred.zarr/labels/inst", "-o", "out.png"),
    ("evaluate", "pred.zarr/labels/inst", "labels.zarr", "--metrics", "cells"),
)
SCENES: dict[str, Scene] = {
    **{
        f"volume {name}": volume_scene(name)
        for name in ("raw.zarr", "rawv2.zarr", "raws.zarr", "labels.zarr", "truth.zarr")
    },
    **{
        f"volume {name}": Scene(
            (name, *volume_scene(name).items[1:]), name, volume_scene(name).commands, ("labels.zarr", "model")
        )
        for name in ("raw.tif", "raw.ome.tif")
    },
    "model": Scene(
        ("raw.zarr", "model", "pred.zarr", "pred.zarr.run"),
        "model/*",
        (
            PREDICT,
            ("plan", "raw.zarr", "--model", "model", *TILE),
            ("verify", "pred.zarr", "--seams", "1"),
            ("verify", "pred.zarr", "--input"),
        ),
        ("raw.zarr",),
    ),
    "training": Scene(
        ("raw.zarr", "labels.zarr", "mc"),
        "mc/*.*",
        (
            (*TRAIN, "-o", "mc", "--steps", "6"),
            (*TRAIN, "-o", "mc", "--steps", "4"),
            ("train", "raw.zarr", "labels.zarr", "-o", "mc", "--steps", "5", "--seed", "1"),
        ),
        ("raw.zarr", "labels.zarr"),
    ),
    "run of predict": Scene(RUN_ITEMS, "pred.zarr.run/predict/**", OF_PREDICTION, RUN_INPUTS),
    "run of label": Scene(RUN_ITEMS, "pred.zarr.run/inst/**", OF_LABELS, RUN_INPUTS),
    "run of a share": Scene((*RUN_INPUTS, "part.zarr", "part.zarr.run"), "part.zarr.run/**", OF_A_SHARE, RUN_INPUTS),
    "output": Scene(RUN_ITEMS, "pred.zarr/**", (*OF_AN_OUTPUT, *OF_PREDICTION, *OF_LABELS), RUN_INPUTS),
    "table": Scene(RUN_ITEMS, "pred.zarr.inst.csv", OF_LABELS, RUN_INPUTS),
    "evaluation": Scene(
        ("pred.zarr", "truth.zarr", "ev"),
        "ev/**",
        (
            (*EVALUATE, "--run-folder", "ev", "--block-voxels", "1500"),
            ("status", "pred.zarr", "--run-folder", "ev"),
            ("verify", "pred.zarr", "--run-folder", "ev"),
        ),
        ("pred.zarr", "truth.zarr"),
    ),
    "baseline": Scene(
        ("pred.zarr", "truth.zarr", "base.json"),
        "base.json",
        (
            (*EVALUATE, "--baseline", "base.json"),
            (*EVALUATE, "--baseline", "base.json", "--json", "--report", "out.html"),
        ),
        ("pred.zarr", "truth.zarr", "base.json"),
    ),
    "challenge": Scene(
        ("ctc",),
        "ctc/**",
        (
            ("evaluate", "ctc/01_RES", "ctc/01_GT"),
            ("evaluate", "ctc/01_RES", "ctc/01_GT", "--metrics", "cells", "--json"),
        ),
        ("ctc",),
    ),
    "configuration": Scene(
        ("raw.zarr", "labels.zarr", "truth.zarr", "pred.zarr", "model", "conf"),
        "conf/*.toml",
        (
            ("predict", "raw.zarr", "-o", "out.zarr", "--config", "conf/predict.toml"),
            ("plan", "raw.zarr", "--config", "conf/predict.toml"),
            ("label", "pred.zarr", "--config", "conf/label.toml"),
            ("weights", "labels.zarr", "-o", "out.zarr", "--config", "conf/weights.toml"),
            ("evaluate", "pred.zarr", "truth.zarr", "--config", "conf/evaluate.toml"),
            ("show", "raw.zarr", "-o", "out.png", "--config", "conf/show.toml"),
            ("plan", "raw.zarr", "--model", "model", "--cluster", "slurm", "--profile", "conf/profile.toml"),
            ("train", "raw.zarr", "labels.zarr", "-o", "out", "--config", "conf/train.toml"),
        ),
        ("raw.zarr", "labels.zarr", "truth.zarr", "model", "conf"),
    ),
}
CONFIGURATIONS = {
    "predict": 'model = "model"\ntile = 36\nsections = "0:2"\ndevice = "cpu"\nlevels = "1"\nretries = 1\n',
    "label": 'threshold = 0.4\nname = "inst"\nmin-size = 3\nmethod = "components"\nconnectivity = 4\n',
    "weights": "w0 = 5\nsigma = 3.0\n",
    "evaluate": 'metrics = "pixels,cells"\nthreshold = 0.5\nsections = "0:2"\n',
    "show": 'section = 1\nroi = "0:40,0:40"\n',
    "profile": 'partition = "gpu"\ntime = "02:00:00"\nmem = "16G"\nsetup = ["module load x"]\n[extra]\nqos = "long"\n',
    "train": 'steps = 1\ntile = 36\ndepth = 1\nbase-channels = 2\nseed = 1\ntruth = "instances"\nsections = "0:3"\n',
}


def build(folder: Path, run: Any) -> None:
    """Make the files of all scenes in a folder; ``run(words)`` runs a command there and returns its exit code."""
    rng = np.random.default_rng(0)
    labels = np.stack([_cells(rng) for _ in range(SECTIONS)])
    raw = (ndimage.gaussian_filter((labels > 0) * 150.0, (0, 1, 1)) + rng.normal(40, 12, labels.shape)).clip(0, 255)
    raw = raw.astype(np.uint8)
    _write_zarr(folder / "raw.zarr", raw)
    _write_zarr(folder / "rawv2.zarr", raw, zarr_format=2)
    _write_zarr(folder / "raws.zarr", raw, shards=(1, 32, 32))
    _write_zarr(folder / "labels.zarr", labels)
    _write_zarr(folder / "truth.zarr", (labels > 0).astype(np.uint8))
    tifffile.imwrite(folder / "raw.tif", raw, photometric="minisblack", metadata={"axes": "ZYX"})
    tifffile.imwrite(
        folder / "raw.ome.tif", raw, photometric="minisblack", ome=True, metadata={"axes": "ZYX", "PhysicalSizeX": 4}
    )
    for name in ("01_GT/SEG/man_seg", "01_GT/TRA/man_track", "01_RES/mask"):
        (folder / "ctc" / name).parent.mkdir(parents=True, exist_ok=True)
        for t in range(2):
            tifffile.imwrite(folder / "ctc" / f"{name}{t:03}.tif", labels[t], photometric="minisblack")
    (folder / "conf").mkdir()
    for name, text in CONFIGURATIONS.items():
        (folder / "conf" / f"{name}.toml").write_text(text)
    _run_commands(folder, run)


def _run_commands(folder: Path, run: Any) -> None:
    def expect(code: int, *words: str) -> str:
        found, output, errors = run(words)
        assert found == code, (words, found, errors)
        return str(output)

    expect(0, *TRAIN, "-o", "mc", "--steps", "4")
    shutil.rmtree(folder / "mc/predictions", ignore_errors=True)
    (folder / "model").mkdir()
    shutil.copy(folder / "mc/model.safetensors", folder / "model")
    expect(0, *PREDICT, "-o", "pred.zarr", "--levels", "2")
    expect(0, *LABEL)
    expect(0, *PREDICT, "-o", "part.zarr", "--share", "0/2")
    (folder / "base.json").write_text(expect(0, *EVALUATE, "--json"))
    chunk = next(path for path in sorted((folder / "pred.zarr/0/c").rglob("*")) if path.is_file())
    content = chunk.read_bytes()
    chunk.write_bytes(content[:10])
    expect(1, *EVALUATE, "--run-folder", "ev", "--block-voxels", "1500")
    chunk.write_bytes(content)


def copy(base: Path, items: tuple[str, ...], work: Path) -> None:
    """Copy files of a scene; the absolute paths in run folders then name the copies."""
    for name in items:
        if (base / name).is_dir():
            shutil.copytree(base / name, work / name, dirs_exist_ok=True)
        elif (base / name).exists():
            shutil.copy(base / name, work / name)
    for file in work.rglob("paths.json"):
        file.write_text(file.read_text().replace(json.dumps(str(base))[1:-1], json.dumps(str(work))[1:-1]))


def files(work: Path, pattern: str) -> list[Path]:
    """Files that a pattern selects, in order, without those that no command reads."""
    found = work.glob(f"{pattern}/*" if pattern.endswith("**") else pattern)
    return sorted(path for path in found if path.is_file() and path.suffix not in (".guard", ".png", ".log"))


def _cells(rng: np.random.Generator) -> NDArray[np.uint16]:
    section = np.zeros((SIDE, SIDE), np.uint16)
    y, x = np.mgrid[:SIDE, :SIDE]
    for number in range(1, 7):
        cy, cx = rng.integers(5, SIDE - 5, 2)
        section[((y - cy) ** 2 + (x - cx) ** 2 < 20) & (section == 0)] = number
    return section


def _write_zarr(path: Path, values: NDArray[Any], zarr_format: int = 3, shards: tuple[int, ...] | None = None) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    names = {"dimension_names": ["z", "y", "x"]} if zarr_format == 3 else {}
    chunks = (1, 16, 16) if shards else (1, 32, 32)
    array = group.create_array("0", shape=values.shape, dtype=values.dtype, chunks=chunks, shards=shards, **names)
    array[:] = values
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    levels = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [50.0, 4.0, 4.0]}]}]
    images = [{"name": "x", "axes": axes, "datasets": levels} | ({"version": "0.4"} if zarr_format == 2 else {})]
    group.attrs.update(
        {"multiscales": images} if zarr_format == 2 else {"ome": {"version": "0.5", "multiscales": images}}
    )
