"""The volume is compared with the training: grey values, contrast, voxel size, channels, and a result of one class."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import zarr
from helpers import plan_of, write_zarr
from numpy.typing import NDArray

from unetcli import api, lazy
from unetcli.core.arrays import file_sha256
from unetcli.core.errors import UnetcliError, collected_warnings
from unetcli.core.geometry import Architecture, Box
from unetcli.engine.runfolder import RunFolder
from unetcli.model.file import Intensity, ModelHeader, read_header, read_model, save_model
from unetcli.model.network import UNet
from unetcli.model.training_data import GreyValues, TrainingData, grey_values, measure
from unetcli.predict.checks import single_class
from unetcli.predict.comparison import FAR, distance, looks_inverted, metadata_warnings
from unetcli.predict.request import PredictRequest
from unetcli.predict.resolve import resolve_plan
from unetcli.predict.step import PredictStep
from unetcli.predict.stores import Paths, attributes_of
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import Volume


def discs(sections: int = 4, top: float = 255, dtype: str = "uint8") -> NDArray[Any]:
    """Bright discs on a noisy ground, (z, y, x); grey values from 0 to ``top``."""
    random = np.random.default_rng(3)
    y, x = np.mgrid[:96, :96]
    image = np.full((sections, 96, 96), 0.2)
    for section in image:
        for cy, cx, radius in random.integers((8, 8, 5), (88, 88, 9), (9, 3)):
            section[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = 0.8
    return np.clip(top * (image + random.normal(0, 0.05, image.shape)), 0, top).astype(dtype)


def write_trained(folder: Path, images: NDArray[Any], *, bias: float = 0.0, **more: Any) -> Path:
    """Write a model with random weights and the statistics of training images (z, y, x); return its file."""
    torch.manual_seed(1)
    network = UNet(Architecture(depth=1, base_channels=2))
    with torch.no_grad():
        network.head.bias[1] += bias
    header = ModelHeader(
        architecture=network.architecture,
        class_names=("background", "foreground"),
        intensity=Intensity(dtype=str(images.dtype), mean=float(images.mean()), std=float(images.std())),
        provenance={},
        training_data=TrainingData(grey=grey_values(image[None] for image in images), **more),
    )
    folder.mkdir()
    save_model(folder / "model.safetensors", network, header)
    return folder / "model.safetensors"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def warnings_of(values: NDArray[Any], model: Path, **options: Any) -> list[str]:
    """Warnings of predict before it computes."""
    name = f"v{len(list(Path().iterdir()))}.zarr"
    write_zarr(Path(name), values, (1, 64, 64))
    with collected_warnings() as found:
        resolve_plan(PredictRequest(volume=name, tile=60, device="cpu", **options), open_volume(name), [model], None)
    return found


@pytest.mark.parametrize(("factor", "words"), [(16, "16 times as high"), (0.25, "1/4.0"), (1, None)])
def test_other_grey_values_are_named_with_both_figures(tmp_path: Path, factor: float, words: str | None) -> None:
    images = discs(8, top=4095, dtype="uint16")
    model = write_trained(tmp_path / "m", images[:4])
    found = warnings_of((images[4:] * factor).astype(np.uint16), model)
    assert len(found) == (words is not None)
    if words:
        (text,) = found
        low, high = (np.median([np.percentile(s * factor, p) for s in images[4:]]) for p in (1, 99))
        assert words[:4] in text
        assert f"grey values from {low:.6g}"[:18] in text
        assert "in training" in text
        assert str(int(high))[:2] in text
        assert "--normalise volume" in text
    assert warnings_of((images[4:] * factor).astype(np.uint16), model, normalise="volume") == []


@pytest.mark.parametrize("normalise", ["model", "volume"])
def test_inverted_contrast_is_named_and_invert_undoes_it(tmp_path: Path, normalise: str) -> None:
    images = discs(8)
    model = write_trained(tmp_path / "m", images[:4])
    options = {"normalise": normalise}
    (text,) = warnings_of(255 - images[4:], model, **options)
    assert "inverted contrast: what stood out bright in training is dark here" in text
    assert "--invert undoes this, --normalise volume cannot" in text
    assert warnings_of(255 - images[4:], model, invert=True, **options) == []
    (text,) = warnings_of(images[4:], model, invert=True, **options)
    assert text.endswith("; leave out --invert")


@pytest.mark.parametrize(("dtype", "top"), [("uint8", 255), ("uint16", 4095), ("uint16", 65535), ("float32", 1.0)])
@pytest.mark.parametrize("normalise", ["model", "volume"])
def test_an_inverted_volume_gives_the_result_of_the_original(
    tmp_path: Path, dtype: str, top: float, normalise: str
) -> None:
    images = discs(4, top, dtype)
    model = write_trained(tmp_path / "m", images)
    options = {"device": "cpu", "tile": 60, "dtype": "float32", "normalise": normalise}
    right = lazy.predict(images, model, **options).compute(scheduler="synchronous")
    turned = (top - images.astype(np.float64)).astype(dtype)
    found = lazy.predict(turned, model, invert=True, **options).compute(scheduler="synchronous")
    assert np.abs(found - right).max() < 2e-5
    assert right.std() > 1e-3


def test_invert_is_frozen_in_the_plan(tmp_path: Path) -> None:
    images = discs()
    model = write_trained(tmp_path / "m", images)
    write_zarr(tmp_path / "in.zarr", 255 - images, (1, 64, 64))
    options = {"model": model, "tile": 60, "output": Path("o.zarr")}
    assert api.predict("in.zarr", invert=True, **options).complete
    with pytest.raises(UnetcliError, match=r"invert False \(was True\)"):
        api.predict("in.zarr", **options)
    assert api.predict("in.zarr", invert=True, **options).found_done == 4
    assert api.plan("in.zarr", invert=True, **options).conflicts == ()
    assert any("invert" in text for text in api.plan("in.zarr", **options).conflicts)


def test_a_model_without_training_data_is_not_compared(tmp_path: Path) -> None:
    images = discs(4, 4095, "uint16")
    file = write_trained(tmp_path / "m", images)
    header, _ = read_model(file)
    save_model(file, network_of(file), replace(header, training_data=None))
    assert read_header(file).training_data is None
    assert warnings_of(4095 - images // 4, file) == []
    with pytest.raises(UnetcliError, match="--invert: the model has no grey values of its training"):
        lazy.predict(images, file, invert=True)


def network_of(file: Path) -> UNet:
    from unetcli.model.file import load_network

    return load_network(file)


def volume(shape: tuple[int, ...] = (4, 4), **more: Any) -> Volume:
    axes = "czyx"[-len(shape) :] if len(shape) != 3 else "cyx"
    return Volume(path="a.zarr", array=np.zeros(shape, np.uint8), stored_axes=axes, **more)


def test_another_pixel_size_is_named_with_both_figures() -> None:
    data = TrainingData(voxel_size={"z": 30.0, "y": 4.0, "x": 4.0}, units=dict.fromkeys("zyx", "nanometer"))

    def found(size: float, unit: str) -> list[str]:
        sizes = {"voxel_size": dict.fromkeys("yx", size), "units": dict.fromkeys("yx", unit)}
        return list(metadata_warnings(volume(**sizes), None, data))

    (text,) = found(8.0, "nanometer")
    assert text.startswith(
        "a.zarr: pixels of 8 x 8 nanometer, but the model was trained on 4 x 4 nanometer; --rescale "
    )
    assert len(found(0.5, "micrometer")) == 1
    assert found(0.004, "micrometer") == found(4.1, "nanometer") == found(8.0, "pixel") == []
    assert list(metadata_warnings(volume(), None, data)) == []


@pytest.mark.parametrize(
    ("names", "trained", "channel", "words"),
    [
        (("GFP", "DAPI"), ("DAPI",), 0, "channel GFP, but the model was trained on DAPI; --channel 1 selects DAPI"),
        (("GFP", "DAPI"), ("DAPI", "GFP"), None, "channels GFP, DAPI, .* in the order of training"),
        (("GFP", "DAPI"), ("dapi",), 1, None),
        (("Channel 0", "Channel 1"), ("DAPI", "GFP"), None, None),
        ((), ("DAPI", "GFP"), None, None),
    ],
    ids=["another one", "other order", "same", "without meaning", "no names"],
)
def test_channels_with_other_names_are_named(
    names: tuple[str, ...], trained: tuple[str, ...], channel: int | None, words: str | None
) -> None:
    found = list(metadata_warnings(volume((2, 4, 4), channel_names=names), channel, TrainingData(channels=trained)))
    assert len(found) == (words is not None)
    if words:
        with pytest.raises(UnetcliError, match=words):
            raise UnetcliError(found[0])


def test_plan_compares_metadata_and_strict_refuses(tmp_path: Path) -> None:
    images = discs()
    sizes = {"voxel_size": {"y": 4.0, "x": 4.0}, "units": {"y": "nm", "x": "nm"}}
    model = write_trained(tmp_path / "m", images, **sizes)
    write_zarr(tmp_path / "in.zarr", images, (1, 64, 64))
    api.predict("in.zarr", model=model, tile=60, output=Path("o.zarr"))
    group = zarr.create_group(tmp_path / "big.zarr")
    group.create_array("0", data=images, chunks=(1, 64, 64))
    transform = [{"type": "scale", "scale": [1.0, 8.0, 8.0]}]
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    entry = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": transform}]}
    group.attrs["ome"] = {"version": "0.5", "multiscales": [entry]}
    report = api.plan("big.zarr", model=model, tile=60)
    assert [text.partition(",")[0] for text in report.warnings] == ["big.zarr: pixels of 8 x 8 nanometer"]
    assert report.to_dict()["warnings"] == list(report.warnings)
    for call in (api.plan, api.predict):
        with pytest.raises(UnetcliError, match=r"--strict: 1 warning: big\.zarr: pixels of 8 x 8 nanometer"):
            call("big.zarr", model=model, tile=60, strict=True)
    assert not Path("big.pred.zarr").exists()


@pytest.mark.parametrize("normalise", ["model", "volume"])
def test_a_constant_image_is_named(tmp_path: Path, normalise: str) -> None:
    model = write_trained(tmp_path / "m", discs())
    (text,) = warnings_of(np.full((2, 96, 96), 7, np.uint8), model, normalise=normalise)
    assert text.endswith("a constant image, all sampled values are 7; is it the right file?")


@pytest.mark.parametrize(("bias", "words"), [(-50, "is background"), (50, "is foreground"), (0, None)])
def test_a_result_of_one_class_is_named(tmp_path: Path, bias: float, words: str | None) -> None:
    images = discs()
    model = write_trained(tmp_path / "m", images, bias=bias)
    write_zarr(tmp_path / "in.zarr", images, (1, 64, 64))
    if not bias:  # random weights may happen to see one class
        middle = lazy.predict(images, model, tile=60, dtype="float32").compute(scheduler="synchronous")
        logit = np.log(np.median(middle) / (1 - np.median(middle)))
        model = write_trained(tmp_path / "n", images, bias=-float(logit))
    for _ in range(2):  # the second call finds everything done
        found = api.predict("in.zarr", model=model, tile=60, output=Path("o.zarr")).warnings
        assert [words in text for text in found] == ([True] if words else [])
    if words:
        with pytest.raises(UnetcliError, match=r"--strict: 1 warning: o\.zarr: every voxel"):
            api.predict("in.zarr", model=model, tile=60, output=Path("o.zarr"), strict=True)


def test_a_result_of_one_class_is_looked_at_once(tmp_path: Path) -> None:
    """A later call reads nothing: it warns although every chunk has been cut short meanwhile."""
    model = write_trained(tmp_path / "m", discs(), bias=50)
    write_zarr(tmp_path / "in.zarr", discs(), (1, 64, 64))
    options: dict[str, Any] = {"model": model, "tile": 60, "output": Path("o.zarr")}
    (text,) = api.predict("in.zarr", **options).warnings
    for chunk in [path for path in Path("o.zarr/0/c").rglob("*") if path.is_file()]:
        chunk.write_bytes(chunk.read_bytes()[:9])
    assert api.predict("in.zarr", **options).warnings == (text,)


def test_a_result_of_which_nothing_is_stored_is_not_read(tmp_path: Path) -> None:
    """10^11 voxels of background: every one of them is looked at, by asking for the chunks' files."""
    zarr.create_array(tmp_path / "in.zarr", shape=(100, 40_000, 25_000), chunks=(50, 20_000, 25_000), dtype="u1")
    region = Box((0, 0, 0), (100, 40_000, 25_000))
    plan = plan_of(region, chunks=(50, 5000, 5000), write_chunks=(50, 5000, 5000), block_shape=(50, 20_000, 25_000))
    paths = Paths(volume=str(tmp_path / "in.zarr"), model=str(tmp_path / "m"), output=str(tmp_path / "o.zarr"))
    step = PredictStep(folder=RunFolder(tmp_path / "run"), plan=plan, paths=paths)
    step.image.create(attributes_of(plan, step.output, step.source))
    assert str(single_class(step)).startswith("every voxel is background; the highest probability is 0; ")


def test_a_weight_that_is_not_finite_is_refused_by_predict_plan_and_verify(tmp_path: Path) -> None:
    from unetcli.executors.options import VerifyRequest
    from unetcli.registry import verify_output

    images = discs()
    model = write_trained(tmp_path / "m", images)
    write_zarr(tmp_path / "in.zarr", images, (1, 64, 64))
    options = {"model": model, "tile": 60, "output": Path("o.zarr")}
    api.predict("in.zarr", **options)
    before = file_sha256(model)
    content = model.read_bytes()
    model.write_bytes(content[:-4] + np.float32(np.nan).tobytes())
    plan = Path("o.zarr.run/predict/plan.json")
    planned = json.loads(plan.read_text().replace(before, file_sha256(model)))  # as if the result were of these weights
    del planned["checksum"]
    plan.write_text(json.dumps(planned))
    for call in (
        lambda: api.predict("in.zarr", **options),
        lambda: api.plan("in.zarr", **options),
        lambda: lazy.predict("in.zarr", model),
        lambda: verify_output(VerifyRequest(output="o.zarr"), lambda *_: None, lambda: bool),
    ):
        with pytest.raises(UnetcliError, match=r"damaged model \(.* has NaN or infinity in 1 of its"):
            call()


@pytest.mark.by_default("isbi2012", "flyem")
@pytest.mark.parametrize("name", ["isbi2012/train-volume", "dic_hela/01-images", "phc_psc/01-images", "flyem/volume"])
def test_parts_of_a_data_set_are_alike_and_other_scales_are_not(data: Path, name: str) -> None:
    measures = measured(data / f"{name}.tif")
    for count in (3, 5, len(measures) // 2):
        for start in (0, len(measures) - count):
            trained = GreyValues.of(measures[start : start + count])
            for part in (measures[: len(measures) // 2][:16], measures[len(measures) // 2 :][:16]):
                assert distance(part, trained) < FAR
                assert not looks_inverted(part, trained)
                assert distance(part * 16, trained) > FAR < distance(part / 4, trained)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["isbi2012/train-volume", "dic_hela/01-images", "phc_psc/01-images", "flyem/volume"])
def test_no_few_sections_of_a_data_set_look_inverted_to_a_training_on_few(data: Path, name: str) -> None:
    """Neighbouring sections, as users choose them: a few of dense tissue differ in polarity from others by chance."""
    with tifffile.TiffFile(data / f"{name}.tif") as tif:
        count = len(tif.pages)
        measures = np.array([measure(tif.pages[page].asarray()) for page in range(count)])
    for size in (2, 3, 12):
        for start in range(0, count - size + 1, 3):
            trained = GreyValues.of(measures[start : start + size])
            for few in (1, 2, 3):
                for first in range(0, count - few + 1, 3):
                    assert not looks_inverted(measures[first : first + few], trained), (size, start, few, first)


def test_an_image_of_a_few_pixels_is_not_compared(tmp_path: Path) -> None:
    model = write_trained(tmp_path / "m", discs())
    for shape in ((1, 3, 3), (1, 7, 300), (1, 300, 20)):
        assert warnings_of(255 - np.resize(discs(), shape), model) == []
    (text,) = warnings_of(np.full((1, 3, 3), 9, np.uint8), model)
    assert "a constant image" in text


def test_parts_of_nuclei_of_many_laboratories_are_alike(data: Path) -> None:
    measures = measured(data / "dsb2018/images.tif", 100)
    for count in (5, 10, 50):
        for start in range(0, 100 - count + 1, 10):
            trained = GreyValues.of(measures[start : start + count])
            for first in range(0, 100, 20):
                assert distance(measures[first : first + 16], trained) < FAR
                assert not looks_inverted(measures[first : first + 16], trained)


@pytest.mark.parametrize("name", ["isbi2012/train-volume", "dic_hela/01-images", "phc_psc/01-images"])
def test_inverted_parts_are_found(data: Path, name: str) -> None:
    measures = measured(data / f"{name}.tif")
    trained, turned = GreyValues.of(measures[:12]), measures[12:].copy()
    turned[:, :5], turned[:, 5] = 255 - turned[:, 4::-1], -turned[:, 5]
    assert looks_inverted(turned, trained)


def measured(file: Path, most: int = 24) -> NDArray[np.float64]:
    """Measures of some sections of a TIFF stack, (sections, 6)."""
    with tifffile.TiffFile(file) as tif:
        pages = np.unique(np.linspace(0, len(tif.pages) - 1, most).astype(int))
        return np.array([measure(tif.pages[int(page)].asarray()) for page in pages])


def test_grey_values_of_a_damaged_header_are_refused() -> None:
    whole = GreyValues.of(np.zeros((3, 6)))
    for name in ("percentiles", "spread"):
        with pytest.raises(UnetcliError, match="expected 5 percentiles of the grey values, each with its spread"):
            replace(whole, **{name: (1.0, 2.0)})
