"""Benchmarks of a GPU: one table per subject, as Markdown and JSON in one folder. ``tests/gpu.sh`` runs it.

    python tests/benchmarks/gpu.py --out FOLDER [--device cuda] [--quick] [--only forward,predict,..]

A part that fails is reported, and the others go on. ``--quick`` uses a small network and small volumes, so that the
script can be tried on any machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from unetcli.core.process import prepare

prepare()

import numpy as np  # noqa: E402
import tifffile  # noqa: E402
import torch  # noqa: E402
import zarr  # noqa: E402

from unetcli import api  # noqa: E402
from unetcli.core.geometry import Architecture  # noqa: E402
from unetcli.core.process import cpu_name, usable_cores  # noqa: E402
from unetcli.core.streams import prefetch  # noqa: E402
from unetcli.model.file import Intensity, ModelHeader, save_model  # noqa: E402
from unetcli.model.network import UNet, exact_float32  # noqa: E402
from unetcli.planning.estimate import device_bytes, multiply_adds  # noqa: E402
from unetcli.planning.plan import Settings  # noqa: E402
from unetcli.predict.predictor import Predictor, io_threads  # noqa: E402
from unetcli.train.loop import BATCHES_AHEAD, TrainingLoop  # noqa: E402
from unetcli.train.optim import batches  # noqa: E402
from unetcli.volumes.opening import open_volume  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from step import bare_once, laid, whole_once  # type: ignore[import-not-found]  # noqa: E402

Rows = list[dict[str, Any]]
MATRIX = 8192
"""Side of the matrix product that all speeds are compared with."""


@dataclass(frozen=True)
class Scene:
    """Options, and what all parts share."""

    device: torch.device
    quick: bool
    out: Path
    scratch: Path
    isbi: Path | None
    minutes: float

    @property
    def architecture(self) -> Architecture:
        return Architecture(depth=2, base_channels=8) if self.quick else Architecture()

    @property
    def tiles(self) -> tuple[int, ...]:
        return (100, 188) if self.quick else (572, 1212, 2236, 3260)

    def predictor(self, precision: str) -> Predictor:
        torch.manual_seed(0)
        settings = Settings(
            dtype="uint8",
            outputs=1,
            channel=None,
            normalise="model",
            mean=128.0,
            std=60.0,
            nonfinite=None,
            device=self.device.type,
            precision=precision,
            threads=usable_cores(),
        )
        return Predictor(UNet(self.architecture), settings, self.device)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], times: int = 10, warm_up: int = 5) -> float:
        """Median time of a call, until the device has finished."""
        found = []
        for number in range(times + warm_up):
            started = time.perf_counter()
            work()
            self.wait()
            found += [time.perf_counter() - started] if number >= warm_up else []
        return median(found)


def machine(scene: Scene) -> Rows:
    gpu = torch.cuda.get_device_name(scene.device) if scene.device.type == "cuda" else "none"
    return [
        {
            "GPU": gpu,
            "CPU": cpu_name(),
            "cores": usable_cores(),
            "torch": torch.__version__,
            "zarr": zarr.__version__,
            "pipeline": type(open_volume(str(volume(scene))).array._async_array.codec_pipeline).__name__,
            "Python": platform.python_version(),
        }
    ]


def limit(scene: Scene) -> float:
    """FLOP per second of a bfloat16 product of square matrices."""
    side = 512 if scene.quick else MATRIX
    a, b = (torch.randn(side, side, device=scene.device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / scene.seconds(lambda: a @ b)


def forward(scene: Scene) -> Rows:
    """Forward passes with normalisation, softmax and quantising, of voxels that lie on the device."""
    fastest, rows = limit(scene), []
    for precision, tiles in (("bfloat16", scene.tiles), ("float32", scene.tiles[:1])):
        predictor = scene.predictor(precision)
        for tile in tiles:
            voxels = torch.randint(0, 256, (1, tile, tile), device=scene.device, dtype=torch.uint8)
            seconds = scene.seconds(lambda predictor=predictor, voxels=voxels: on_device(predictor, voxels))
            flop = 2 * multiply_adds(scene.architecture, (tile, tile))
            pixels = (tile - 2 * scene.architecture.footprint().context[-1]) ** 2
            rows.append(
                {
                    "precision": precision,
                    "tile": tile,
                    "ms": round(1000 * seconds, 2),
                    "Mpixels/s": round(pixels / seconds / 1e6, 1),
                    "TFLOP/s": round(flop / seconds / 1e12, 1),
                    "of the matrix product": round(flop / seconds / fastest, 3),
                }
            )
    return rows


def on_device(predictor: Predictor, voxels: torch.Tensor) -> torch.Tensor:
    """Stored values of a tile, without copies to and from the host."""
    if predictor.device.type == "cuda":
        return predictor._graphs(predictor._stored, voxels)
    return predictor._stored(voxels)


def memory(scene: Scene) -> Rows:
    """Device memory that planning foresees, and the highest that torch reserved and the context."""
    if scene.device.type != "cuda":
        return []
    rows = []
    for precision, tiles in (("bfloat16", scene.tiles), ("float32", scene.tiles[:1])):
        for tile in tiles:
            free_before = torch.cuda.mem_get_info(scene.device)[0] + torch.cuda.memory_reserved()
            predictor = scene.predictor(precision)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            for _ in range(6):
                predictor(np.zeros((1, tile, tile), np.uint8))
            peak = torch.cuda.max_memory_reserved()
            foreseen = device_bytes(scene.architecture, tile, "cuda", precision)
            total = torch.cuda.mem_get_info(scene.device)[1]
            rows.append(
                {
                    "precision": precision,
                    "tile": tile,
                    "reserved GB": round(peak / 1e9, 2),
                    "context GB": round((total - free_before) / 1e9, 2),
                    "foreseen GB, with context": round(foreseen / 1e9, 2),
                }
            )
            del predictor
    return rows


def latency(scene: Scene) -> Rows:
    """Time for an image of 512 x 512 in memory, which takes one tile."""
    side = 92 if scene.quick else 700
    rows = []
    for precision in ("bfloat16", "float32"):
        predictor, voxels = scene.predictor(precision), np.zeros((1, side, side), np.uint8)
        seconds = scene.seconds(lambda predictor=predictor, voxels=voxels: predictor(voxels))
        rows.append({"precision": precision, "ms": round(1000 * seconds, 2)})
    return rows


def volume(scene: Scene) -> Path:
    """A volume of blurred noise, as compressible as micrographs; chunks of 512 x 512."""
    path, side = scene.scratch / "raw.zarr", 1024 if scene.quick else 16384
    if path.exists():
        return path
    random = np.random.default_rng(0)
    coarse = np.kron(random.integers(0, 240, (side // 8, side // 8), np.uint8), np.ones((8, 8), np.uint8))
    plane = coarse + random.integers(0, 16, (side, side), np.uint8)
    shape = (1 if scene.quick else 6, side, side)
    array = zarr.create_array(path, shape=shape, chunks=(1, 512, 512), dtype="uint8", dimension_names=("z", "y", "x"))
    for section in range(shape[0]):
        array[section] = np.roll(plane, 1000 * section, 0)
    return path


def model(scene: Scene) -> Path:
    path = scene.scratch / "model.safetensors"
    torch.manual_seed(0)
    header = ModelHeader(
        architecture=scene.architecture,
        class_names=("background", "foreground"),
        intensity=Intensity(dtype="uint8", mean=128.0, std=60.0),
        provenance={},
    )
    save_model(path, UNet(scene.architecture), header)
    return path


def stages(scene: Scene) -> Rows:
    """Reading and writing alone, with as many threads as prediction uses, and with one."""
    source = open_volume(str(volume(scene)))
    from concurrent.futures import ThreadPoolExecutor

    from unetcli.core.geometry import Box

    side = 512 if scene.quick else 4096
    starts = [(z, y, x) for z in range(source.extent[0]) for y, x in np.ndindex(2, 2)][:16]
    boxes = [Box((z, y * side, x * side), (z + 1, (y + 1) * side, (x + 1) * side)) for z, y, x in starts]
    rows = []
    for threads in sorted({1, io_threads("cuda")}):
        started = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            voxels = list(pool.map(source.read, boxes))
        rate = sum(v.size for v in voxels) / (time.perf_counter() - started)
        rows.append({"stage": "read", "threads": threads, "Mvoxels/s": round(rate / 1e6)})
    return rows


def end_to_end(scene: Scene) -> Rows:
    """``predict`` from Zarr to Zarr in a warm process: the whole call, and from the first written chunk to the last."""
    path, weights, rows = volume(scene), model(scene), []
    everything = {"volume": str(path), "model": str(weights), "overwrite": True, "device": scene.device.type}
    precision = "float32" if scene.quick else "bfloat16"
    sections, *plane = open_volume(str(path)).extent
    tiles = (188,) if scene.quick else (2236, 572)
    for number, tile in enumerate((tiles[0], *tiles)):
        part = (0, 1) if number == 0 else (0, 2) if tile == 572 else (0, sections)
        output = scene.scratch / "out.zarr"
        started = time.perf_counter()
        with busy(scene) as samples:
            api.predict(**everything, output=str(output), precision=precision, tile=tile, sections=part)
        seconds, pixels = time.perf_counter() - started, (part[1] - part[0]) * float(np.prod(plane))
        written = sorted(file.stat().st_mtime for file in (output / "0").rglob("*") if file.is_file())
        begun, ended = written[len(written) // 20], written[-1]
        inside = [percent for when, percent in samples if begun < when < ended]
        if number:
            rows.append(
                {
                    "tile": tile,
                    "Mpixels": round(pixels / 1e6),
                    "seconds of the call": round(seconds, 2),
                    "Mpixels/s of the call": round(pixels / seconds / 1e6, 1),
                    "Mpixels/s of the last 95 %": round(0.95 * pixels / max(ended - begun, 1e-3) / 1e6, 1),
                    "GPU busy, %": round(float(np.mean(inside)), 1) if inside else "",
                }
            )
    return rows


@contextmanager
def busy(scene: Scene) -> Iterator[list[tuple[float, int]]]:
    """Utilisation of the GPU in percent, sampled five times a second, each with its time."""
    samples: list[tuple[float, int]] = []
    if scene.device.type != "cuda":
        yield samples
        return
    query = ["nvidia-smi", "--query-gpu=timestamp,utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
    with subprocess.Popen(query, stdout=subprocess.PIPE, text=True) as watcher:
        try:
            yield samples
        finally:
            watcher.terminate()
            assert watcher.stdout
            for line in watcher.stdout.read().splitlines():
                with suppress(ValueError):
                    when, percent = line.split(", ")
                    samples.append((datetime.strptime(when, "%Y/%m/%d %H:%M:%S.%f").timestamp(), int(percent)))


def training(scene: Scene) -> Rows:
    """Training steps of the full network at batch 1: bare, and as train takes them."""
    rows = []
    for tile, recipe in ((100, "paper"),) if scene.quick else ((572, "paper"), (572, "fast")):
        place = scene.scratch / f"training-{recipe}"
        place.mkdir()
        a = scene.architecture
        options = argparse.Namespace(
            depth=a.depth, base_channels=a.base_channels, tile=tile, recipe=recipe, device=scene.device.type
        )
        found = laid(place, options)
        found.folder.path.mkdir(exist_ok=True)
        loop = TrainingLoop(found, 10**6, lambda done, total, note="": None)
        loop.begin()
        loop.start_clock()
        learner, size = loop.learner, found.config.optimisation.batch_size
        batch = next(iter(batches(learner, loop.sampler, [0])))
        steps = 2 if scene.quick else 60
        bare = scene.seconds(lambda learner=learner, batch=batch: bare_once(learner, batch), steps)
        stream = prefetch(batches(learner, loop.sampler, range(10**9)), BATCHES_AHEAD)
        for _ in range(steps):  # the border weights of each section are computed once
            whole_once(loop, learner, stream)
        scene.wait()
        started = time.perf_counter()
        for _ in range(2 * steps):
            whole_once(loop, learner, stream)
        scene.wait()
        whole = (time.perf_counter() - started) / (2 * steps)
        stream.close()
        rows.append(
            {
                "recipe": recipe,
                "precision": found.config.precision,
                "tile": tile,
                "batch": size,
                "steps/s, whole training": round(1 / whole, 1),
                "steps/s, unrecorded passes on one batch": round(1 / bare, 1),
            }
        )
    return rows


def isbi(scene: Scene) -> Rows:
    """The network trained on sections 0-16 of ISBI 2012, chosen by 17-19, scored on 20-24."""
    if scene.isbi is None:
        return []
    raw, labels = (scene.isbi / f"train-{name}.tif" for name in ("volume", "labels"))
    parts = {}
    for name, a, b in (("fit", 0, 20), ("test", 20, 25)):
        for kind, file in (("raw", raw), ("labels", labels)):
            parts[kind, name] = str(scene.scratch / f"{kind}-{name}.tif")
            tifffile.imwrite(parts[kind, name], tifffile.imread(file)[a:b], metadata={"axes": "ZYX"})
    folder, output = scene.scratch / "isbi-model", scene.scratch / "isbi.pred.zarr"
    small = ["--depth", "2", "--base-channels", "4", "--tile", "100"] if scene.quick else []
    begun = time.perf_counter()
    unetcli(
        scene,
        *("train", parts["raw", "fit"], parts["labels", "fit"], "-o", folder, "--validation", "17:20"),
        *("--minutes", "0.1" if scene.quick else str(scene.minutes), "--device", scene.device.type, *small),
    )
    trained = time.perf_counter() - begun
    unetcli(scene, "predict", parts["raw", "test"], "--model", folder, "-o", output, "--device", scene.device.type)
    scores = json.loads(
        unetcli(scene, "evaluate", output, parts["labels", "test"], "--metrics", "pixels,em,voi", "--json")
    )
    (scene.out / "isbi-scores.json").write_text(json.dumps(scores, indent=1))
    return [{"seconds of train": round(trained, 1), **headlines(scores)}]


def seams(scene: Scene) -> Rows:
    """Differences between tiles, and from float32, of the network that :func:`isbi` trained; uint8 probabilities."""
    folder = scene.scratch / "isbi-model"
    if not folder.exists():
        return []
    sections = tifffile.imread(scene.scratch / "raw-test.tif")[:2]
    side = 512 if scene.quick else 2048
    large = np.pad(sections, ((0, 0), *[(0, max(0, side - n)) for n in sections.shape[1:]]), mode="symmetric")
    raw = scene.scratch / "seams.zarr"
    zarr.create_array(raw, data=large, chunks=(1, 512, 512), dimension_names=("z", "y", "x"))
    given = {"volume": str(raw), "model": str(folder), "device": scene.device.type, "overwrite": True}
    found = {}
    for precision in ("float32", "bfloat16"):
        for tile in (100, 188) if scene.quick else (572, 1212, 2236):
            if precision == "float32" and found:
                continue  # float32 does not depend on the tile, as a test shows
            api.predict(**given, output=str(scene.scratch / "seams.pred.zarr"), precision=precision, tile=tile)
            found[precision, tile] = zarr.open_array(scene.scratch / "seams.pred.zarr/0", mode="r")[:]
    exact = next(iter(found.values()))
    others = [key for key in found if key[0] == "bfloat16"]
    return [compared(key, found[key], other, values) for key in others for other, values in against(found, key, exact)]


def against(found: dict[Any, Any], key: Any, exact: Any) -> list[tuple[str, Any]]:
    """What a result is compared with: float32, and larger tiles of the same precision."""
    larger = [(f"tile {tile}", found[key[0], tile]) for kind, tile in found if kind == key[0] and tile > key[1]]
    return [("float32", exact), *larger]


def compared(key: tuple[str, int], one: Any, name: str, other: Any) -> dict[str, Any]:
    """Differences of two results in levels of uint8."""
    levels = np.abs(one.astype(int) - other)
    return {
        "precision": key[0],
        "tile": key[1],
        "compared with": name,
        "largest difference, levels": int(levels.max()),
        "voxels that differ by more than 1 level": f"{np.mean(levels > 1):.2e}",
        "voxels on the other side of 0.5": f"{np.mean((one > 127) != (other > 127)):.2e}",
    }


def unetcli(scene: Scene, *words: object) -> str:
    """Standard output of a command; what it says goes to a log."""
    with (scene.out / "commands.log").open("a") as log:
        command = [sys.executable, "-m", "unetcli", *map(str, words)]
        print("$ unetcli", *words[:1], file=log, flush=True)
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=log, text=True).stdout


SCORES = ("pixel_disagreement", "rand_error", "warping_error", "v_rand", "v_info")
"""Scores of the EM challenge, each at its best threshold."""


def headlines(scores: dict[str, Any]) -> dict[str, float]:
    """The scores of the challenge, the disagreement of the threshold 0.5, and the calibration error."""
    pixels, em = scores["pixels"], scores["em"]
    found = {f"{name}, best threshold": round(em[name], 4) for name in SCORES}
    at_half = {"pixel disagreement at 0.5": round(1 - pixels["accuracy"], 4)}
    return at_half | found | {"calibration error": round(pixels["calibration_error"], 4)}


PARTS: dict[str, Callable[[Scene], Rows]] = {
    "machine": machine,
    "forward": forward,
    "latency": latency,
    "memory": memory,
    "stages": stages,
    "predict": end_to_end,
    "training": training,
    "isbi": isbi,
    "seams": seams,
}


def markdown(name: str, rows: Rows, seconds: float) -> str:
    if not rows:
        return f"## {name}\n\nnot run\n"
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([str(row.get(key, "")) for key in head] for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"## {name} ({seconds:.0f} s)\n\n{table}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True, help="folder on a fast disk, for volumes")
    parser.add_argument("--isbi", type=Path, help="folder with train-volume.tif and train-labels.tif of ISBI 2012")
    parser.add_argument("--minutes", type=float, default=2.0, help="time of the training on ISBI 2012")
    parser.add_argument("--only", default=",".join(PARTS))
    options = parser.parse_args()
    device = torch.device(options.device)
    scene = Scene(device, options.quick, options.out, options.scratch, options.isbi, options.minutes)
    for folder in (scene.out, scene.scratch):
        folder.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(scene.scratch / "cache")
    exact_float32()
    failed = [name for name in options.only.split(",") if not run(name, scene)]
    raise SystemExit(f"failed: {', '.join(failed)}" if failed else 0)


def run(name: str, scene: Scene) -> bool:
    """Run one part and write its table; returns whether it succeeded."""
    started = time.perf_counter()
    try:
        rows = PARTS[name](scene)
    except BaseException:
        traceback.print_exc()
        return False
    finally:
        if scene.device.type == "cuda":
            torch.cuda.empty_cache()
    table = markdown(name, rows, time.perf_counter() - started)
    print(table, flush=True)
    with (scene.out / "tables.md").open("a") as file:
        file.write(table + "\n")
    (scene.out / f"{name}.json").write_text(json.dumps(rows, indent=1))
    return True


if __name__ == "__main__":
    main()
