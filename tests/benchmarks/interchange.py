"""Files of other programs read by unetcli, and unetcli's stores read by other programs. Run by hand:

    PYTHONPATH=tests python tests/benchmarks/interchange.py [--others PYTHON] [--only TEXT]

PYTHON is the interpreter of an environment with the other programs, such as tifffile, imageio, Pillow, scikit-image,
h5py, zarr, dask, ome-zarr, ngff-zarr and napari-ome-zarr with napari; default: that of unetcli. Programs that are not
installed get a row that says so. Every image is opened and compared voxel by voxel with what was written, with its axes
and voxel size; the result of ``predict`` must have the same bytes for every file of the same image; labels are
``evaluate``'s truth for the same labels in a Zarr array, which must score 1. Prints a table in Markdown; exit status 1
if anything differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from benchmarks.other_programs import SIZE, UNITS, Entry
from helpers import write_model
from numpy.typing import NDArray

from unetcli import api
from unetcli.core.errors import UnetcliError
from unetcli.volumes.ngff import Grid, attributes, image
from unetcli.volumes.opening import open_volume
from unetcli.volumes.places import METRES_PER_UNIT
from unetcli.volumes.volume import Volume

MODEL = Path(__file__).parents[2] / "examples/models/em-sample.safetensors"
COMPARED = {"voxels": "values", "axes": "axes", "size": "voxel size"}
"""What a program says of an image, by the key of what it read."""
HEADER = "| program | what | read by | as expected |\n|---|---|---|---|"


def squeezed(voxels: NDArray[Any], axes: str) -> tuple[NDArray[Any], str]:
    """Voxels and letters without the axes of extent 1, channels first."""
    kept = [n for n, size in enumerate(voxels.shape) if size > 1]
    order = sorted(kept, key=lambda n: "ctzyx".index(axes[n]))
    return voxels.transpose([*order, *(n for n in range(voxels.ndim) if n not in kept)]).reshape(
        [voxels.shape[n] for n in order]
    ), "".join(axes[n] for n in order)


def differences(
    voxels: NDArray[Any], axes: str, size: dict[str, float], expected: tuple[NDArray[Any], str, dict[str, float]]
) -> Iterator[str]:
    """What differs between an image that was read, and the expected one."""
    found, letters = squeezed(voxels, axes)
    wanted, its_letters = squeezed(*expected[:2])
    if letters != its_letters:
        yield f"axes {letters}, expected {its_letters}"
    if found.shape != wanted.shape:
        yield f"shape {found.shape}, expected {wanted.shape}"
    elif not np.array_equal(found, wanted):
        yield f"{np.mean(found != wanted):.1%} of the values"
    if any(not np.isclose(size.get(axis, 0), value) for axis, value in expected[2].items()):
        yield f"voxel size {size}, expected {expected[2]}"


def micrometres(volume: Volume) -> dict[str, float]:
    """Voxel size of a volume, for the axes with a unit of length."""
    units = {axis: METRES_PER_UNIT.get(unit, np.nan) * 1e6 for axis, unit in volume.units.items()}
    return {axis: size * units[axis] for axis, size in volume.voxel_size.items() if axis in units}


class Checks:
    """Files in a folder, opened by unetcli and compared with the arrays ``NAME.npy`` that were written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._predicted: dict[str, NDArray[Any]] = {}

    def array(self, name: str) -> NDArray[Any]:
        found: NDArray[Any] = np.load(self.folder / f"{name}.npy")
        return found

    def check(self, file: Entry) -> str:
        """What differs from what was written to a file; empty if nothing does."""
        try:
            volume = open_volume(file["file"])
        except UnetcliError as error:
            refused = file.get("refused")
            return "" if refused and refused in str(error) and "\n" not in str(error) else f"refused: {error}"
        if "refused" in file:
            return "opened, although nothing was chosen"
        voxels = volume.read(volume.whole())
        wanted = (self.array(file["array"]), file["axes"], file["size"])
        found = list(differences(voxels, f"c{volume.axes}", micrometres(volume), wanted))
        if not found and file.get("labels"):
            found = self._scores(file)
        elif not found and file["array"] in ("image", "section"):
            found = self._prediction(file)
        return "; ".join(found)

    def _scores(self, file: Entry) -> list[str]:
        """Score the labels that were written against the file as truth."""
        name = file["array"] if file["labels"] is True else file["labels"]  # the objects of which a mask has the pixels
        array = self.array(name)
        place = self.folder / f"unetcli-{name}.zarr"
        if not place.exists():
            zarr.create_array(place, data=array.astype(np.uint16), chunks=array.shape)
        scores = api.evaluate(str(place), file["file"], kind="labels").scores
        seg = scores["cells"]["seg"]
        return [] if seg == 1 else [f"evaluate: SEG {seg}, expected 1"]

    def _prediction(self, file: Entry) -> list[str]:
        """Compare the prediction with that of a plain array of the same voxels."""
        if file["array"] not in self._predicted:
            place = self.folder / f"unetcli-{file['array']}.zarr"
            voxels = self.array(file["array"])
            zarr.create_array(place, data=voxels, chunks=voxels.shape)
            self._predicted[file["array"]] = self._predict(str(place))
        same = np.array_equal(self._predict(file["file"]), self._predicted[file["array"]])
        return [] if same else ["predict: other values than for a plain array"]

    def _predict(self, name: str) -> NDArray[Any]:
        output = self.folder / "predicted.zarr"
        api.predict(name, output=output, model=(MODEL,), overwrite=output.exists())
        found = open_volume(output)
        return squeezed(found.read(found.whole()), f"c{found.axes}")[0]


def make_outputs(folder: Path) -> list[Entry]:
    """Predictions and labels by unetcli of an image with voxel size, and what other programs must read of them."""
    source = folder / "unetcli-source.zarr"
    voxels = np.load(folder / "image.npy")
    grid = Grid(scale=SIZE, translation={"z": 1.0, "y": 2.0, "x": 3.0})
    group = zarr.create_group(source, attributes=attributes(image("source", "zyx", UNITS, [grid]), 3))
    group.create_array("0", data=voxels, chunks=(1, 64, 64))
    kinds: dict[str, dict[str, Any]] = {
        "probabilities, OME-Zarr 0.5, 2 levels": {"levels": 2},
        "probabilities, OME-Zarr 0.4, float32": {"zarr_format": 2, "dtype": "float32"},
        "probabilities, OME-Zarr 0.5, shards": {"max_files": 3},
    }
    made: list[Entry] = []
    for number, (what, options) in enumerate(kinds.items()):
        output = folder / f"unetcli-{number}.pred.zarr"
        api.predict(str(source), output=output, model=(MODEL,), **options)
        api.label(str(output), min_size=0, ctc=folder / f"ctc-{number}" if number == 0 else None)
        made += [{"what": what, "file": str(output)}]
        made += [{"what": what.replace("probabilities", "labels"), "file": str(output / "labels/instances")}]
    output = folder / "unetcli-classes.pred.zarr"
    api.predict(str(source), output=output, model=(write_model(folder / "model", classes=3),))
    made.append({"what": "probabilities of 3 classes, OME-Zarr 0.5", "file": str(output)})
    mask = sorted((folder / "ctc-0").glob("*.tif"))[1]
    made.append({"what": f"{mask.name} of label --ctc", "file": str(mask), "of": made[1]["file"], "section": 1})
    for number, ours in enumerate(made):
        volume = open_volume(ours.get("of", ours["file"]))
        values, ours["axes"] = squeezed(volume.read(volume.whole()), f"c{volume.axes}")
        if "section" in ours:  # each frame of the challenge numbers its objects from 1
            values, ours["axes"] = np.unique(values[ours["section"]], return_inverse=True)[1], "yx"
        np.save(folder / f"ours-{number}.npy", values)
    (folder / "ours.json").write_text(json.dumps(made))
    return made


def compare(folder: Path, ours: Entry, number: int, read: Entry) -> str:
    """What another program reads of an output differently; empty if nothing."""
    if "error" in read:
        return f"{read['error']}"[:200]
    wanted = np.load(folder / f"ours-{number}.npy")
    axes = read.get("axes") or ours["axes"]
    found = np.load(folder / read["voxels"]) if "voxels" in read else wanted
    size = read.get("size", SIZE)
    return "; ".join(differences(found, axes, size, (wanted, ours["axes"], SIZE)))


def table(folder: Path, others: str, only: str, run: Callable[[str], None]) -> Iterator[tuple[str, ...]]:
    """Rows of the table; the last entry is empty if all is as expected."""
    run("write")
    checks = Checks(folder)
    for file in json.loads((folder / "written.json").read_text()):
        if only not in f"{file['program']} {file['what']}":
            continue
        if not file["version"]:
            yield file["program"], "", "", "not installed"
            continue
        reader = "refused, with the names" if "refused" in file else "evaluate" if file.get("labels") else "unetcli"
        yield f"{file['program']} {file['version']}", file["what"], reader, checks.check(file)
    ours = make_outputs(folder)
    run("read")
    for row in json.loads((folder / "read.json").read_text()):
        made, reader = ours[row["number"]], f"{row['program']} {row['version']}".strip()
        what = ", ".join(text for key, text in COMPARED.items() if key in row)
        result = compare(folder, made, row["number"], row) if row["version"] else "not installed"
        if only in f"{reader} {made['what']}":
            yield "unetcli", made["what"], f"{reader} ({what})" if what else reader, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--others", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows with this text in program or description")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        script = Path(__file__).with_name("other_programs.py")

        def run(step: str) -> None:
            subprocess.run([chosen.others, script, step, folder], check=True, stdout=sys.stderr)  # some programs talk

        print(HEADER, flush=True)
        failed = False
        for *cells, result in table(folder, chosen.others, chosen.only, run):
            failed |= result not in ("", "not installed")
            print(f"| {' | '.join([*cells, result or 'yes'])} |", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
