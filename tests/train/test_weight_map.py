from __future__ import annotations

import json
import signal
import struct
import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from commands import Command
from helpers import wait_for, write_zarr
from matplotlib.image import imread
from numpy.typing import NDArray
from train.scenes import border_of
from yaozarrs import validate_zarr_store

from unetcli.core.errors import UnetcliError, collected_warnings
from unetcli.core.files import replacing_folder
from unetcli.train import targets as module
from unetcli.train.request import WeightsRequest
from unetcli.train.settings import IGNORED, TruthRules
from unetcli.train.targets import class_weights, classes_of, weight_table
from unetcli.train.weight_map import WeightsSummary, write_weights
from unetcli.viz.png import PNG_SIGNATURE
from unetcli.volumes.opening import open_volume

Run = Callable[..., subprocess.CompletedProcess[str]]
SHAPE = (4, 61, 83)
NAMES = {"dimension_names": ["z", "y", "x"]}


def crowd(*shape: int) -> NDArray[np.uint16]:
    """Sections with more and more cells, some of which touch; the first section is empty."""
    random = np.random.default_rng(0)
    labels = np.zeros(shape, np.uint16)
    for place, section in enumerate(labels):
        for number in range(1, 1 + place * shape[1] * shape[2] // 200):
            y, x = random.integers(0, shape[1]), random.integers(0, shape[2])
            height, width = random.integers(2, 9, 2)
            section[y : y + height, x : x + width] = number
    return labels


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures, which take longer and more memory than the weights, have no pixels, only the mark of their author."""
    mark = b"Software\0unetcli weights"
    empty = PNG_SIGNATURE + struct.pack(">I4s", len(mark), b"tEXt") + mark + bytes(4) + struct.pack(">I4s", 0, b"IEND")
    monkeypatch.setattr("unetcli.viz.png.draw_weights", lambda *values: values[-2].write_bytes(empty))


@pytest.fixture
def labels(tmp_path: Path, undrawn: None) -> Path:
    return write_zarr(tmp_path / "labels.zarr", crowd(*SHAPE), (1, 32, 32), **NAMES)


def write(labels: Path, **options: Any) -> WeightsSummary:
    output = options.pop("output", labels.with_name("weights.zarr"))
    return write_weights(WeightsRequest(labels=str(labels), output=str(output), truth="instances", **options))


def expected(values: NDArray[np.uint16], rules: TruthRules) -> NDArray[np.float32]:
    """Weights computed by the functions for whole sections; 0 in sections without labels."""
    drawn = [bool((v[v != rules.ignore]).any()) for v in values]
    classes = np.stack([classes_of(section, rules) for section in values])
    counts = np.bincount(classes[drawn].ravel(), minlength=IGNORED + 1)[:2]
    found = [
        (weight_table(class_weights(counts))[c] + border_of(v, c, rules)) * used
        for v, c, used in zip(values, classes, drawn, strict=True)
    ]
    return np.stack(found)


@pytest.mark.parametrize(
    "options",
    [{}, {"w0": 0.0}, {"w0": 3.0, "sigma": 2.0, "everywhere": True}, {"ignore": 1, "partial": 4}],
    ids=lambda options: ", ".join(options) or "as the paper",
)
def test_the_map_is_class_weight_plus_border_weight(labels: Path, options: dict[str, Any]) -> None:
    renamed = {"everywhere": "weights_everywhere"}
    summary = write(labels, **{renamed.get(name, name): value for name, value in options.items()})
    weights = expected(crowd(*SHAPE), TruthRules(truth="instances", **options))
    found = open_volume(summary.output)
    np.testing.assert_allclose(found.read(found.whole())[0], weights, rtol=1e-6)
    assert summary.highest == pytest.approx(weights.max(), rel=1e-6)


def test_sections_in_pieces_are_written_whole(labels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MAX_WHOLE", 40), ("PIECE", 32), ("PATCH", 16), ("CELL_MARGIN", 30)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr("unetcli.train.weight_map.CHUNK", 16)
    found = open_volume(write(labels).output)
    weights = expected(crowd(*SHAPE), TruthRules(truth="instances"))
    np.testing.assert_allclose(found.read(found.whole())[0], weights, rtol=1e-6)


@pytest.mark.usefixtures("undrawn")
def test_memory_does_not_grow_with_the_number_of_sections(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "labels.zarr", np.tile(crowd(2, 150, 200)[1:], (8, 1, 2)), (1, 150, 400), **NAMES)

    def peak(sections: int) -> int:
        tracemalloc.start()
        write(path, sections=(0, sections), sigma=2.0, overwrite=True)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(1)  # imports and caches are filled once
    few, many = peak(2), peak(8)
    one = 150 * 400 * np.dtype(np.float32).itemsize
    assert many < few + 2 * one


def test_the_summary_counts_what_is_in_the_sections(labels: Path) -> None:
    summary, values = write(labels, ignore=2), crowd(*SHAPE)
    classes = np.stack([classes_of(section, TruthRules(truth="instances", ignore=2)) for section in values])
    assert summary.sections == (0, 4)
    assert summary.left_out == 1
    assert [row.pixels for row in summary.classes] == [(classes[1:] == n).sum() for n in (0, 1)]
    assert summary.ignored == (classes == IGNORED).sum()
    assert summary.cells == sum(len(np.unique(v[c == 1])) for v, c in zip(values, classes, strict=True))


def test_empty_sections_are_background_where_that_is_said(labels: Path) -> None:
    summary = write(labels, keep_empty=True)
    values = zarr.open_array(f"{summary.output}/0", mode="r")[0]
    assert summary.left_out == 0
    assert np.unique(values).tolist() == pytest.approx([summary.classes[0].weight])


def test_pixels_weigh_the_same_without_balance(labels: Path) -> None:
    summary = write(labels, balance=False)
    assert [row.weight for row in summary.classes] == [1, 1]


def test_sections_lie_where_they_lie_in_the_labels(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "labels.zarr", zarr_format=3)
    group.create_array("0", shape=SHAPE, dtype="u2", chunks=(1, 32, 32), **NAMES)[...] = crowd(*SHAPE)
    scale, offset = [40.0, 4.0, 5.0], [7.0, 0.0, 1.0]
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    transforms = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": offset}]
    image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": transforms}]}
    group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    summary = write(tmp_path / "labels.zarr", sections=(2, 4))
    validate_zarr_store(summary.output)
    found = open_volume(summary.output)
    assert (found.axes, found.extent, found.dtype) == ("zyx", (2, 61, 83), np.float32)
    assert list(found.voxel_size.values()) == scale
    assert list(found.translation.values()) == [7 + 2 * 40, 0, 1]
    assert found.units == dict.fromkeys("zyx", "nanometer")
    all_of_them = expected(crowd(*SHAPE)[2:], TruthRules(truth="instances"))
    np.testing.assert_allclose(found.read(found.whole())[0], all_of_them, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:<tifffile")
def test_four_sections_of_a_tiff_that_were_stored_like_colours_are_sections(tmp_path: Path, labels: Path) -> None:
    tifffile.imwrite(tmp_path / "labels.tif", crowd(*SHAPE))
    both = [write(path, output=tmp_path / f"{path.suffix[1:]}.zarr") for path in (tmp_path / "labels.tif", labels)]
    found = [open_volume(summary.output) for summary in both]
    assert found[0].extent == SHAPE
    assert np.array_equal(*(volume.read(volume.whole()) for volume in found))


@pytest.mark.parametrize(
    ("shape", "truth"),
    [
        ((9, 7), "binary"),
        ((13, 900), "instances"),
        ((900, 13), "classes"),
        *(pytest.param((9, 7), truth, marks=pytest.mark.slow) for truth in ("instances", "classes")),
        *(pytest.param((13, 900), truth, marks=pytest.mark.slow) for truth in ("binary", "classes")),
        *(pytest.param((900, 13), truth, marks=pytest.mark.slow) for truth in ("binary", "instances")),
    ],
)
def test_images_of_any_size_have_a_picture(tmp_path: Path, shape: tuple[int, int], truth: str) -> None:
    values = np.random.default_rng(0).integers(0, 4, shape).astype(np.uint8)
    path = write_zarr(tmp_path / "image.zarr", values)
    output = tmp_path / "any.zarr"
    summary = write_weights(WeightsRequest(labels=str(path), output=str(output), truth=truth, ignore=3, partial=1))
    assert summary.picture == str(tmp_path / "any.png")
    assert np.std(imread(summary.picture)) > 0.05


def test_the_picture_shows_the_section_with_the_largest_border_weights(
    labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("unetcli.viz.png.draw_weights", lambda *what: shown.extend(what))
    write(labels)
    drawn, classes, weights, title, *_ = shown
    border_weights = [
        border_of(v, classes_of(v, TruthRules(truth="instances")), TruthRules(truth="instances")).sum()
        for v in crowd(*SHAPE)
    ]
    place = int(np.argmax(border_weights))
    assert title == f"labels.zarr: z {place}:{place + 1}, y 0:61, x 0:83"
    assert np.array_equal(drawn, crowd(*SHAPE)[place])
    assert classes.shape == weights.shape == drawn.shape


def test_a_weight_map_is_replaced_only_where_that_is_asked_for(labels: Path) -> None:
    before = write(labels)
    written = labels.with_name("weights.zarr").stat().st_mtime_ns
    assert write(labels) == before  # the same request: complete already
    assert labels.with_name("weights.zarr").stat().st_mtime_ns == written
    for options in ({"w0": 0.0}, {"balance": False}, {"sections": (1, 3)}):
        with pytest.raises(UnetcliError, match=r"weights.zarr: exists; --overwrite replaces it"):
            write(labels, **options)
    document = json.loads(labels.with_name("weights.zarr").joinpath("zarr.json").read_text())
    document["attributes"]["unetcli"]["summary"] = {"sections": "none"}  # damaged
    labels.with_name("weights.zarr").joinpath("zarr.json").write_text(json.dumps(document))
    with pytest.raises(UnetcliError, match=r"weights.zarr: exists; --overwrite replaces it"):
        write(labels)
    after = write(labels, w0=0.0, overwrite=True)
    assert after.highest < before.highest
    assert not list(labels.parent.glob("*.partial"))


def test_files_of_others_are_never_replaced(labels: Path, tmp_path: Path) -> None:
    other = write_zarr(tmp_path / "other.zarr", np.ones((3, 4)))
    (tmp_path / "free.png").write_text("mine")
    for output, message in (
        (other, "was not written by unetcli weights"),
        (tmp_path / "free.zarr", "free.png: exists"),
    ):
        with pytest.raises(UnetcliError, match=message):
            write(labels, output=output, overwrite=True)
    assert zarr.open_array(other, mode="r").shape == (3, 4)
    assert (tmp_path / "free.png").read_text() == "mine"


def test_an_output_of_predict_is_not_replaced(labels: Path, tmp_path: Path) -> None:
    output = Path(write(labels).output)
    document = json.loads((output / "zarr.json").read_text())
    document["attributes"]["unetcli"]["kind"] = "probabilities"
    (output / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(UnetcliError, match="was not written by unetcli weights"):
        write(labels, overwrite=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"w0": -1.0}, "--w0 -1: "),
        ({"sections": (0, 9)}, r"--sections 0:9: .* has sections 0:4"),
        ({"sections": (0, 1)}, "labels.zarr: no label in any section; --keep-empty"),
        ({"output": "s3://bucket/w.zarr"}, "--output s3://bucket/w.zarr: .* local path"),
        ({"output": "absent/w.zarr"}, "--output absent/w.zarr: folder absent does not exist; create it first"),
        ({"output": "w.tif"}, "--output w.tif: the output is an OME-Zarr folder, not a .tif file; .* works: w.zarr"),
        ({"output": "INPUT"}, "equal to, inside or around the input"),
        ({"output": "INPUT/w"}, "equal to, inside or around the input"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    labels: Path, options: dict[str, Any], message: str
) -> None:
    if str(options.get("output")).startswith("INPUT"):
        options = {"output": str(options["output"]).replace("INPUT", str(labels))}
    with pytest.raises(UnetcliError, match=message):
        write(labels, **options)
    assert [path.name for path in labels.parent.iterdir()] == ["labels.zarr"]


@pytest.mark.usefixtures("undrawn")
def test_a_killed_run_leaves_nothing_under_the_name_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    labels = write_zarr(tmp_path / "labels.zarr", np.tile(crowd(4, 200, 200), (10, 1, 1)), (1, 200, 200), **NAMES)
    words = ["labels.zarr", "--truth", "instances", "--sigma", "40", "-o", "weights.zarr"]  # a large sigma takes longer
    process = Command("weights", *words, cwd=tmp_path)
    wait_for(lambda: any(tmp_path.glob("weights.zarr.*.partial/new/0/c/*/*/*")) or process.poll() is not None)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "the command ended before the kill"
    assert not (tmp_path / "weights.zarr").exists()
    assert len(list(tmp_path.glob("*.partial"))) == 1
    write(labels, sections=(0, 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.zarr", "weights.png", "weights.zarr"]


def test_the_draft_of_a_living_run_stays(labels: Path) -> None:
    with replacing_folder(labels.with_name("weights.zarr")) as draft:
        (draft / "mine").touch()
        write(labels)
        assert (draft / "mine").exists()
        (draft.parents[1] / "weights.zarr").rename(labels.with_name("moved.zarr"))


def test_the_command_prints_classes_weights_and_cells(labels: Path, unetcli: Run) -> None:
    done = unetcli("weights", "labels.zarr", "--truth", "instances")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["class", "pixels", "share", "weight"]
    assert [line[0] for line in lines[1:4]] == ["background", "foreground", "objects"]
    assert "1 of them without labels" in done.stderr
    summary = json.loads(unetcli("weights", "labels.zarr", "--truth", "instances", "--overwrite", "--json").stdout)
    assert summary["output"] == "labels.weights.zarr"
    assert [f"{row['pixels']:,}" for row in summary["classes"]] == [line[1] for line in lines[1:3]]
    assert str(summary["cells"]) == lines[3][1]


def test_truth_of_two_values_beside_the_ignored_one_is_binary(tmp_path: Path, unetcli: Run) -> None:
    values = np.zeros((20, 30), np.uint8)
    values[3:9, 4:20], values[12:] = 255, 7
    write_zarr(tmp_path / "two.zarr", values)
    assert "3 different values" in unetcli("weights", "two.zarr").stderr
    done = unetcli("weights", "two.zarr", "--ignore", 7, "--json")
    assert json.loads(done.stdout)["rules"]["truth"] == "binary"
    assert json.loads(done.stdout)["ignored"] == 8 * 30


@pytest.mark.parametrize("truth", ["instances", "binary"])
def test_the_weights_do_not_depend_on_how_labels_are_stored(tmp_path: Path, undrawn: None, truth: str) -> None:
    values = crowd(3, 24, 30)[1:]
    highest = int(values.max())
    stored: dict[str, tuple[NDArray[Any], int | None]] = {
        "u2": (values, None),
        "f4": (values.astype("f4"), None),
        "f8": (values.astype("f8"), None),
        "last": (np.where(values == 0, highest + 1, values - 1), highest + 1),
        "below": (values.astype("i4") - 1, -1),
    }
    if truth == "binary":
        stored |= {"bool": (values > 0, None), "inverted": (values == 0, 1)}
        blurred = np.clip(
            np.where(values > 0, 255, 0) + np.random.default_rng(0).integers(-9, 10, values.shape), 0, 255
        )
        stored |= {"fringe": (blurred.astype("u1"), None)}
    found = set()
    for name, (array, background) in stored.items():
        path = write_zarr(tmp_path / f"{name}.zarr", array, (1, 24, 30), **NAMES)
        output = str(tmp_path / f"{name}.weights.zarr")
        threshold = 128 if name == "fringe" else None
        made = write_weights(
            WeightsRequest(
                labels=str(path), output=output, truth=truth, background=background, label_threshold=threshold
            )
        )
        found.add(zarr.open_array(f"{made.output}/0", mode="r")[:].tobytes())
    assert len(found) == 1
    if truth == "binary":
        with collected_warnings() as warnings:
            write_weights(WeightsRequest(labels=str(path), output=output, truth=truth, overwrite=True))
        assert "looks like a mask of 0 and 255" in " ".join(warnings)
