"""Files by other programs, and what these programs read of unetcli's; part of ``interchange.py``, without unetcli.

    python tests/benchmarks/other_programs.py write FOLDER
    python tests/benchmarks/other_programs.py read FOLDER

``write`` makes one file per function below, and a list of them with what is in each (``written.json``). ``read`` opens
the stores of unetcli in FOLDER with every reader below, and lists axes, voxel size and values (``read.json``).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

SIZE = {"z": 0.5, "y": 0.2, "x": 0.25}
"""Voxel size of the files, in micrometres."""
PLANE = {"y": 0.2, "x": 0.25}
UNITS = dict.fromkeys("zyx", "micrometer")
PACKAGES = {"Pillow": "PIL", "scikit-image": "skimage"}
"""Modules of the packages that do not have the name of their module."""

Entry = dict[str, Any]
"""One file: its name for unetcli, the array, axes and voxel size expected, and whether it holds labels."""
Writer = Callable[[Path, dict[str, Any]], Iterator[Entry]]
WRITERS: list[tuple[str, Writer]] = []


def arrays() -> dict[str, Any]:
    """The voxels that are written, by name."""
    z, y, x = np.indices((5, 96, 128))
    image = (120 + 60 * np.sin(y / 7 + z) + 50 * np.cos(x / 9) + (7 * x + 13 * y + 29 * z) % 23).astype(np.uint8)
    labels = ((y // 24) * 8 + x // 16 + 1 + 40 * z).astype(np.uint16)
    labels[(y % 24 == 0) | (x % 16 == 0)] = 0
    colours = np.stack([image[0], 255 - image[0], image[1]], axis=-1)
    return {
        "image": image,
        "section": image[0],
        "deep": image.astype(np.uint16) * 200,
        "channels": np.stack([255 - image, image], axis=1),
        "colours": colours,
        "labels": labels,
        "cells": labels[0],
        "mask": labels[0] > 0,
    }


def entry(what: str, file: Path | str, array: str, axes: str, size: Any = (), **more: Any) -> Entry:
    return {"what": what, "file": str(file), "array": array, "axes": axes, "size": dict(size), **more}


def writes(program: str) -> Callable[[Writer], Writer]:
    """Register a function that writes files with a program."""

    def register(write: Writer) -> Writer:
        WRITERS.append((program, write))
        return write

    return register


@writes("tifffile")
def tiff_files(folder: Path, a: dict[str, Any]) -> Iterator[Entry]:
    import tifffile

    tifffile.imwrite(folder / "plain.tif", a["image"], photometric="minisblack")
    yield entry("TIFF stack", folder / "plain.tif", "image", "zyx")
    tifffile.imwrite(folder / "tiled.tif", a["deep"], tile=(64, 64), compression="zlib", predictor=True, bigtiff=True)
    yield entry("BigTIFF, tiles, zlib with predictor, 16 bits", folder / "tiled.tif", "deep", "zyx")
    about = {"axes": "ZYX", "spacing": 0.5, "unit": "um"}
    tifffile.imwrite(folder / "ij.tif", a["image"], imagej=True, resolution=(4, 5), metadata=about)
    yield entry("ImageJ stack, voxel size", folder / "ij.tif", "image", "zyx", SIZE)
    about["axes"] = "ZCYX"
    tifffile.imwrite(folder / "hyper.tif", a["channels"], imagej=True, resolution=(4, 5), metadata=about)
    yield entry("ImageJ hyperstack, channel 1", folder / "hyper.tif:channel=1", "image", "zyx", SIZE)
    sizes = {f"PhysicalSize{axis.upper()}": size for axis, size in SIZE.items()}
    ome = {"axes": "ZYX", **sizes}
    tifffile.imwrite(folder / "stack.ome.tif", a["image"], metadata=ome)
    yield entry("OME-TIFF, voxel size", folder / "stack.ome.tif", "image", "zyx", SIZE)
    ome = {"axes": "ZCYX", **sizes, "Channel": {"Name": ["Membrane", "DAPI"]}}
    tifffile.imwrite(folder / "two.ome.tif", a["channels"], metadata=ome, photometric="minisblack")
    yield entry("OME-TIFF, channel by name", folder / "two.ome.tif:channel=DAPI", "image", "zyx", SIZE)
    with tifffile.TiffWriter(folder / "series.ome.tif", ome=True) as file:
        file.write(a["labels"], metadata={"axes": "ZYX", **sizes})
        file.write(a["image"], metadata={"axes": "ZYX", **sizes})
    yield entry("OME-TIFF of two images, the second", folder / "series.ome.tif:series=1", "image", "zyx", SIZE)
    yield entry("OME-TIFF of two images, none chosen", folder / "series.ome.tif", "image", "", refused=":series=1")
    with tifffile.TiffWriter(folder / "pyramid.ome.tif", ome=True) as file:
        file.write(a["image"], subifds=1, tile=(64, 64), metadata={"axes": "ZYX", **sizes})
        file.write(a["image"][:, ::2, ::2], subfiletype=1, tile=(32, 32))
    yield entry("pyramid (SubIFDs)", folder / "pyramid.ome.tif", "image", "zyx", SIZE)
    half = {**SIZE, "y": 0.4, "x": 0.5}
    yield entry("pyramid, level 1", folder / "pyramid.ome.tif:level=1", "half", "zyx", half)
    tifffile.imwrite(folder / "rgb.tif", a["colours"], photometric="rgb")
    yield entry("RGB", folder / "rgb.tif", "colours", "yxc")
    tifffile.imwrite(folder / "labels.tif", a["labels"], compression="zlib")
    yield entry("labels, 16 bits", folder / "labels.tif", "labels", "zyx", labels=True)


@writes("imageio")
def imageio_files(folder: Path, a: dict[str, Any]) -> Iterator[Entry]:
    import imageio.v3 as iio

    iio.imwrite(folder / "io.tif", a["image"])
    yield entry("TIFF stack", folder / "io.tif", "image", "zyx")
    iio.imwrite(folder / "io.png", a["section"])
    yield entry("PNG", folder / "io.png", "section", "yx")
    iio.imwrite(folder / "io16.png", a["cells"])
    yield entry("PNG of labels, 16 bits", folder / "io16.png", "cells", "yx", labels=True)
    iio.imwrite(folder / "io.jpg", a["section"], quality=95)
    np.save(folder / "io-jpeg.npy", iio.imread(folder / "io.jpg"))
    yield entry("JPEG", folder / "io.jpg", "io-jpeg", "yx")


@writes("Pillow")
def pillow_files(folder: Path, a: dict[str, Any]) -> Iterator[Entry]:
    from PIL import Image

    sections = [Image.fromarray(section) for section in a["image"]]
    sections[0].save(folder / "pil.tif", save_all=True, append_images=sections[1:], compression="tiff_lzw")
    yield entry("TIFF of several pages, LZW", folder / "pil.tif", "image", "zyx")
    sections[0].save(folder / "pil.png")
    yield entry("PNG", folder / "pil.png", "section", "yx")
    Image.fromarray(a["colours"]).save(folder / "rgb.png")
    yield entry("PNG, RGB", folder / "rgb.png", "colours", "yxc")
    Image.fromarray(a["cells"]).save(folder / "pil16.tif")
    yield entry("TIFF of labels, 16 bits (I;16)", folder / "pil16.tif", "cells", "yx", labels=True)
    palette = Image.fromarray(a["cells"].astype(np.uint8)).convert("P")
    palette.putpalette([value for n in range(256) for value in (n * 37 % 256, n * 91 % 256, n * 53 % 256)])
    palette.putdata(a["cells"].ravel().tolist())
    palette.save(folder / "palette.png")
    yield entry("PNG of labels with a palette", folder / "palette.png", "cells", "yx", labels=True)
    Image.fromarray(a["mask"]).save(folder / "bits.tif", compression="group4")
    yield entry("TIFF of a mask, 1 bit, Group 4", folder / "bits.tif", "mask", "yx", labels="cells")


@writes("scikit-image")
def skimage_files(folder: Path, a: dict[str, Any]) -> Iterator[Entry]:
    from skimage import io

    io.imsave(folder / "sk.tif", a["image"], check_contrast=False)
    yield entry("TIFF stack", folder / "sk.tif", "image", "zyx")
    (folder / "slices").mkdir()
    (folder / "sk-labels").mkdir()
    for z, (section, cells) in enumerate(zip(a["image"], a["labels"], strict=True)):
        io.imsave(folder / f"slices/s{2 * z}.png", section, check_contrast=False)
        io.imsave(folder / f"sk-labels/s{z:03d}.tif", cells, check_contrast=False)
    yield entry("folder of PNG, s0 to s8", folder / "slices", "image", "zyx")
    yield entry("pattern of TIFF, labels", folder / "sk-labels/s*.tif", "labels", "zyx", labels=True)


@writes("h5py")
def hdf5_files(folder: Path, a: dict[str, Any]) -> Iterator[Entry]:
    import h5py

    with h5py.File(folder / "one.h5", "w") as file:
        made = file.create_dataset("raw", data=a["image"], chunks=(1, 64, 64), compression="gzip", shuffle=True)
        made.attrs["element_size_um"] = list(SIZE.values())
    yield entry("HDF5, one dataset, element_size_um", folder / "one.h5", "image", "zyx", SIZE)
    with h5py.File(folder / "many.h5", "w") as file:
        file["volumes/raw"] = np.moveaxis(a["channels"], 1, -1)
        for axis, name in enumerate("zyxc"):
            file["volumes/raw"].dims[axis].label = name
        file["volumes/labels"] = a["labels"].astype(np.uint32)
    inside = folder / "many.h5:/volumes"
    yield entry("HDF5, labelled dimensions, channels last", f"{inside}/raw:channel=1", "image", "zyx")
    yield entry("HDF5, labels of 32 bits", f"{inside}/labels", "labels", "zyx", labels=True)
    yield entry("HDF5, several, none chosen", folder / "many.h5", "image", "", refused=":/volumes/raw")


@writes("zarr")
def zarr_files(folder: Path, a: dict[str, Any]) -> Iterator[Entry]:
    import zarr

    image = {"data": a["image"], "chunks": (1, 32, 32)}
    zarr.create_array(folder / "v2.zarr", zarr_format=2, **image)
    yield entry("array, Zarr v2", folder / "v2.zarr", "image", "zyx")
    names = ["depth", "height", "width"]
    zarr.create_array(folder / "v3.zarr", shards=(1, 64, 64), dimension_names=names, **image)
    yield entry("array, Zarr v3, shards, named dimensions", folder / "v3.zarr", "image", "zyx")
    with zarr.storage.ZipStore(folder / "packed.zarr.zip", mode="w") as store:
        zarr.create_array(store, **image)
    yield entry("array in a ZIP file", folder / "packed.zarr.zip", "image", "zyx")


@writes("dask")
def dask_files(folder: Path, a: dict[str, Any]) -> Iterator[Entry]:
    import dask.array as da

    da.to_zarr(da.from_array(a["image"], chunks=(2, 50, 50)), str(folder / "dask.zarr"))
    yield entry("array by to_zarr", folder / "dask.zarr", "image", "zyx")


@writes("ome-zarr")
def ome_zarr_files(folder: Path, a: dict[str, Any]) -> Iterator[Entry]:
    from ome_zarr import format as formats
    from ome_zarr import writer

    for version, fmt in (("0.4", formats.FormatV04()), ("0.5", formats.FormatV05())):
        place = folder / f"omezarr-{version}.zarr"
        about: dict[str, Any] = {"fmt": fmt, "scale": SIZE, "axes_units": UNITS, "scale_factors": [2]}
        writer.write_image(a["image"], str(place), axes="zyx", **about)
        yield entry(f"image {version}", place, "image", "zyx", SIZE)
        writer.write_labels(a["labels"], str(place), name="cells", axes="zyx", **about)
        yield entry(f"labels {version}", place / "labels/cells", "labels", "zyx", SIZE, labels=True)
        yield from ome_zarr_plate(folder / f"plate-{version}.zarr", a, fmt)
    channels = a["channels"].swapaxes(0, 1)[np.newaxis]
    window = dict(zip(("start", "min", "end", "max"), (0, 0, 255, 255), strict=True))
    shown = {"color": "FFFFFF", "window": window}
    omero = {"channels": [{"label": name, **shown} for name in ("Membrane", "DAPI")]}
    place = folder / "omezarr-5d.zarr"
    writer.write_image(channels, str(place), axes="tczyx", scale={"t": 1.0, "c": 1.0, **SIZE}, omero=omero)
    yield entry("image 0.5 of 5 axes, channel by name", f"{place}:channel=DAPI", "image", "zyx")


def ome_zarr_plate(place: Path, a: dict[str, Any], fmt: Any) -> Iterator[Entry]:
    """Plate of two wells with two fields each, by ome-zarr."""
    from ome_zarr import writer

    writer.write_plate_metadata(str(place), ["A", "B"], ["1", "2"], ["A/1", "B/2"], fmt=fmt, field_count=2)
    for well in ("A/1", "B/2"):
        writer.write_well_metadata(str(place / well), ["0", "1"], fmt=fmt)
        for field in range(2):
            image = a["image"] if field else 255 - a["image"]
            writer.write_image(image, str(place / well / str(field)), axes="zyx", fmt=fmt, scale=SIZE, axes_units=UNITS)
    yield entry(f"plate {fmt.version}, field by path", place / "B/2/1", "image", "zyx", SIZE)
    yield entry(f"plate {fmt.version}, field by number", f"{place}:series=3", "image", "zyx", SIZE)
    yield entry(f"plate {fmt.version}, well and field", f"{place}/A/1:series=1", "image", "zyx", SIZE)
    yield entry(f"plate {fmt.version}, no field chosen", place, "image", "", refused=":series=1")
    yield entry(f"plate {fmt.version}, well without field", place / "A/1", "image", "", refused=":series=1")


@writes("ngff-zarr")
def ngff_zarr_files(folder: Path, a: dict[str, Any]) -> Iterator[Entry]:
    import ngff_zarr

    for version in ("0.4", "0.5", "0.6"):
        for name in ("image", "labels"):
            about = {"dims": "zyx", "scale": SIZE, "axes_units": UNITS, "translation": {"z": 1.0, "y": 2.0, "x": 3.0}}
            image = ngff_zarr.to_ngff_image(a[name], **about)
            place = folder / f"ngff-{version}-{name}.zarr"
            ngff_zarr.to_ome_zarr(str(place), ngff_zarr.to_multiscales(image, scale_factors=[2]), version=version)
            yield entry(f"{name} {version}", place, name, "zyx", SIZE, labels=name == "labels")
    wells = [ngff_zarr.PlateWell(path="A/1", rowIndex=0, columnIndex=0)]
    rows, columns = [ngff_zarr.PlateRow(name="A")], [ngff_zarr.PlateColumn(name="1")]
    image = ngff_zarr.to_ngff_image(a["image"], dims="zyx", scale=SIZE, axes_units=UNITS)
    for version in ("0.4", "0.5"):
        place = folder / f"ngff-plate-{version}.zarr"
        plate = ngff_zarr.Plate(columns=columns, rows=rows, wells=wells, version=version)
        with ngff_zarr.HCSPlateWriter(str(place), plate, version=version) as writer:
            writer.write_well_image(ngff_zarr.to_multiscales(image, scale_factors=[2]), "A", "1", 0)
        yield entry(f"plate {version} of one field", place, "image", "zyx", SIZE)
    scales = ngff_zarr.to_multiscales(image, scale_factors=[2], chunks=32)
    ngff_zarr.to_ome_zarr(str(folder / "shards.zarr"), scales, version="0.5", chunks_per_shard=2)
    yield entry("image 0.5, shards", folder / "shards.zarr", "image", "zyx", SIZE)
    ngff_zarr.to_ome_zarr(str(folder / "packed.ozx"), scales, version="0.5")
    yield entry("image 0.5 in one file (.ozx)", folder / "packed.ozx", "image", "zyx", SIZE)


def version_of(program: str) -> str:
    """Version of an installed package; empty if it cannot be imported."""
    try:
        importlib.import_module(PACKAGES.get(program, program.replace("-", "_").lower()))
    except ImportError:
        return ""
    return importlib.metadata.version(program)


def write(folder: Path) -> list[Entry]:
    made = arrays()
    for name, array in {**made, "half": made["image"][:, ::2, ::2]}.items():
        np.save(folder / f"{name}.npy", array)
    found: list[Entry] = []
    for program, writer in WRITERS:
        if version := version_of(program):
            found += [{"program": program, "version": version, **each} for each in writer(folder, made)]
        else:
            found.append({"program": program, "version": "", "what": writer.__name__})
    return found


def by_zarr(place: Path) -> Entry:
    import zarr

    group = zarr.open_group(place, mode="r")
    metadata = group.attrs.get("ome", group.attrs)["multiscales"][0]
    return {"voxels": group["0"][:], "axes": "".join(axis["name"] for axis in metadata["axes"])}


def by_dask(place: Path) -> Entry:
    import dask.array as da

    return {"voxels": da.from_zarr(str(place), component="0").compute()}


def by_tensorstore(place: Path) -> Entry:
    import tensorstore

    driver = "zarr3" if (place / "zarr.json").exists() else "zarr"
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": str(place / "0")}}
    return {"voxels": tensorstore.open(spec).result().read().result()}


def by_ome_zarr(place: Path) -> Entry:
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    nodes = [node for node in Reader(parse_url(str(place)))() if Path(node.zarr.path) == place]
    node = nodes[0]
    transforms = node.metadata["coordinateTransformations"][0]
    axes = "".join(axis["name"] for axis in node.metadata["axes"])
    scale = next(each["scale"] for each in transforms if each["type"] == "scale")
    return {"voxels": node.data[0].compute(), "axes": axes, "size": dict(zip(axes, scale, strict=True))}


def by_ngff_zarr(place: Path) -> Entry:
    import ngff_zarr

    image = ngff_zarr.from_ome_zarr(str(place), validate=True).images[0]
    return {"voxels": np.asarray(image.data), "axes": "".join(image.dims), "size": dict(image.scale)}


def by_ome_zarr_models(place: Path) -> Entry:
    import zarr
    from ome_zarr_models import open_ome_zarr

    found = open_ome_zarr(zarr.open_group(place, mode="r")).ome_attributes.multiscales[0]
    return {"axes": "".join(axis.name for axis in found.axes)}


def by_napari_ome_zarr(place: Path) -> Entry:
    from napari_ome_zarr._reader import napari_get_reader

    image = place if place.parent.name != "labels" else place.parent.parent
    layers = napari_get_reader(str(image))(str(image))
    kind = "image" if image == place else "labels"
    data, metadata, _ = next(layer for layer in layers if layer[2] == kind)
    axes = "".join(metadata.get("axis_labels", ()))
    voxels, size = np.asarray(data[0]), dict(zip(axes, metadata["scale"], strict=True))
    if (channel := metadata.get("channel_axis")) is not None:  # which the names leave out
        axes = f"{axes[:channel]}c{axes[channel:]}"
    return {"voxels": voxels, "axes": axes, "size": size}


READERS: dict[str, Callable[[Path], Entry]] = {
    "zarr": by_zarr,
    "dask": by_dask,
    "tensorstore": by_tensorstore,
    "ome-zarr": by_ome_zarr,
    "ngff-zarr": by_ngff_zarr,
    "ome-zarr-models": by_ome_zarr_models,
    "napari-ome-zarr": by_napari_ome_zarr,
}


def by_pictures(program: str, place: Path) -> Entry:
    """Read TIFF files of masks with one of four programs."""
    if program == "tifffile":
        import tifffile

        return {"voxels": tifffile.imread(place)}
    if program == "Pillow":
        from PIL import Image

        return {"voxels": np.asarray(Image.open(place))}
    if program == "scikit-image":
        from skimage import io

        return {"voxels": io.imread(place)}
    import imageio.v3 as iio

    return {"voxels": iio.imread(place)}


def read(folder: Path) -> list[Entry]:
    """What each program reads of each of unetcli's outputs, which ``ours.json`` lists."""
    found: list[Entry] = []
    for number, ours in enumerate(json.loads((folder / "ours.json").read_text())):
        pictures = ours["file"].endswith(".tif")
        programs = ["tifffile", "imageio", "Pillow", "scikit-image"] if pictures else [*READERS]
        for program in programs:
            row: Entry = {"program": program, "version": version_of(program), "number": number}
            if row["version"]:
                try:
                    place = Path(ours["file"])
                    row |= by_pictures(program, place) if pictures else READERS[program](place)
                except Exception as error:
                    row["error"] = f"{type(error).__name__}: {error}"
            if "voxels" in row:
                np.save(folder / f"read-{len(found)}.npy", row.pop("voxels"))
                row["voxels"] = f"read-{len(found)}.npy"
            found.append(row)
    return found


def main() -> None:
    step, folder = sys.argv[1], Path(sys.argv[2])
    warnings.simplefilter("ignore")
    steps = {"write": ("written.json", write), "read": ("read.json", read)}
    name, run = steps[step]
    (folder / name).write_text(json.dumps(run(folder), indent=1))


if __name__ == "__main__":
    main()
