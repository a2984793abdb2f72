"""Memory depends on the block and the contingency table, not on the size of the volume."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from helpers import PEAK
from pairs import TRUTH, VALUES, blobs, stored

from unetcli.core.errors import UnetcliError
from unetcli.evaluate import evaluate as evaluate_module
from unetcli.evaluate.evaluate import evaluate_volume
from unetcli.evaluate.request import EvaluateRequest
from unetcli.evaluate.resolve import ResolvedRequest

MEASURE = f"""
{PEAK}
import sys
from unetcli.evaluate.evaluate import evaluate_volume
from unetcli.evaluate.request import EvaluateRequest
names = dict(prediction=sys.argv[1], truth="t-" + sys.argv[1])
found = evaluate_volume(EvaluateRequest(**names, three_d=sys.argv[2] == "3", block_voxels=2**19))
assert found.scores["cells"]["reference_objects"] > 0
print(peak() // 2**20)
"""


def peak_megabytes(place: Path, sections: int, dimensions: int) -> int:
    """Peak memory of a process that evaluates sections of 4 MB (32-bit labels), in MB."""
    name = f"big{sections}.zarr"
    if not (place / name).exists():
        tile = np.tile(blobs(256, 256, seed=1, dtype="uint32"), (4, 4))
        for prefix in ("", "t-"):
            shape = (sections, 1024, 1024)
            array = zarr.create_array(place / f"{prefix}{name}", shape=shape, chunks=(1, 512, 512), dtype="uint32")
            for number in range(sections):
                array[number] = np.roll(tile, number if prefix else number + 1, axis=1)
    command = [sys.executable, "-c", MEASURE, name, str(dimensions)]
    done = subprocess.run(command, cwd=place, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("dimensions", [3, 2])
def test_12_and_48_sections_need_the_same_memory(tmp_path: Path, dimensions: int) -> None:
    """The large pair of volumes has 403 MB."""
    small, large = (peak_megabytes(tmp_path, sections, dimensions) for sections in (12, 48))
    print(f"peak: {small} MB for 101 MB, {large} MB for 403 MB")
    assert large < small + 16


def peak_of_components(place: Path, side: int) -> int:
    """Peak memory in MB of a process that evaluates objects of probabilities in one section with few objects."""
    rows, columns = np.indices((512, 512))
    for name, values in (("p", (rows + columns) // 7 % 2 * 200), ("t", (rows + columns) // 7 % 2)):
        array = zarr.create_array(place / f"{name}{side}.zarr", shape=(side, side), chunks=(512, 512), dtype="u1")
        array[:512, :512] = values
    command = [sys.executable, "-c", COMPONENTS, f"p{side}.zarr", f"t{side}.zarr"]
    done = subprocess.run(command, cwd=place, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.split()[-1])


COMPONENTS = f"""
{PEAK}
import sys
from unetcli.evaluate.evaluate import evaluate_volume
from unetcli.evaluate.request import EvaluateRequest
request = EvaluateRequest(prediction=sys.argv[1], truth=sys.argv[2], kind="probability", metrics=("cells", "voi"),
                          block_voxels=2**20)
assert evaluate_volume(request).scores["cells"]["reference_objects"] > 50
print(peak() // 2**20)
"""


@pytest.mark.slow
def test_components_of_larger_sections_need_the_same_memory(tmp_path: Path) -> None:
    """A section of 2048 x 2048 pixels has 4.2 million, one of 6144 x 6144 37.7 million."""
    small, large = (peak_of_components(tmp_path, side) for side in (2048, 6144))
    print(f"peak: {small} MB and {large} MB")
    assert large < small + 32


def test_a_section_that_does_not_fit_is_refused_with_both_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("p", "t"):
        zarr.create_array(tmp_path / f"{name}.zarr", shape=(40_000, 40_000), chunks=(512, 512), dtype="u1")
    paths = {"prediction": str(tmp_path / "p.zarr"), "truth": str(tmp_path / "t.zarr"), "kind": "probability"}
    em = EvaluateRequest(**paths, metrics=("em",))
    said = r"--metrics em: a section of 40000 x 40000 pixels needs 115\.2 GB of memory, "
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "8192")
    with pytest.raises(
        UnetcliError, match=said + r"[4-8]\.\d GB are left within the memory limit of this job"
    ) as caught:
        evaluate_volume(em)
    assert str(caught.value).endswith("--roi selects a smaller region, and other metrics are counted in blocks")
    with pytest.raises(UnetcliError, match=said + r"17\.2 GB are requested with --mem"):
        evaluate_volume(replace(em, cluster="slurm", mem="16G"))
    with pytest.raises(UnetcliError, match=r"--report: a section of 40000 x 40000 pixels needs 76\.8 GB of memory, "):
        evaluate_volume(EvaluateRequest(**paths, metrics=("cells",), report=tmp_path / "r.html"))


def test_threads_share_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = stored(tmp_path, VALUES), stored(tmp_path, TRUTH, "t.zarr")
    resolved = ResolvedRequest.of(EvaluateRequest(prediction=paths[0], truth=paths[1], metrics=("em",)))
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    section = evaluate_module.EM_PIXEL_BYTES * 13 * 22
    for sections, threads in ((100, 8), (3.5, 3), (1, 1)):
        monkeypatch.setattr(evaluate_module, "available_memory", lambda n=sections: (n * section, "free"))
        assert evaluate_module.threads_that_fit(resolved) == threads
