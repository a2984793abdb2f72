"""Destinations of labels: the group ``labels`` of an image, in which viewers look, or a store of their own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zarr
from zarr.errors import ZarrUserWarning

from unetcli.core.errors import UnetcliError, one_line
from unetcli.core.files import Place, is_remote, parent_of, parse_place, remove_abandoned_drafts
from unetcli.core.geometry import ceil_to
from unetcli.core.records import parse_json
from unetcli.label.image import find_offset
from unetcli.label.request import LabelRequest
from unetcli.planning.planner import output_chunks
from unetcli.planning.pyramid_plan import auto_levels, max_levels
from unetcli.volumes import ngff
from unetcli.volumes.image import class_names, group_file
from unetcli.volumes.opening import open_volume
from unetcli.volumes.places import require_same_place, require_same_voxels
from unetcli.volumes.store import MetadataStore, store_at
from unetcli.volumes.volume import Volume, shape

ZMETADATA = ".zmetadata"
CONSOLIDATED = ("zarr.json", ".zgroup", ".zattrs", ZMETADATA)
"""Files of a group that are written when its metadata are consolidated."""
AROUND = 3
"""Maximum number of groups around an image whose consolidated metadata are looked for."""


@dataclass(frozen=True, slots=True)
class ImageGroup:
    """Group of an OME-Zarr image."""

    place: Place
    zarr_format: int
    levels: int
    holds_labels: bool

    @classmethod
    def at(cls, name: str) -> ImageGroup | None:
        """Read the metadata of an image; None if this is no OME-Zarr image."""
        place = parse_place(name)
        found = group_file(store_at(place)) if is_remote(place) or Path(place).is_dir() else None
        with ngff.explain(place):
            images = [ngff.read_image(image) for image in ngff.images(found[1])] if found else []
        if found is None or not images:
            return None
        formats = {file: number for number, file in ngff.ATTRIBUTES.items()}
        holds_labels = ngff.is_labels(found[1]) and not class_names(place)
        return cls(place, formats[found[0]], len(images[0].levels), holds_labels)

    def require_no_labels(self, expected: str) -> None:
        """Raise :class:`UnetcliError` if the image is marked as labels of another image."""
        if self.holds_labels:
            raise UnetcliError(f"{self.place}: holds labels; expected {expected}")

    def labels(self, name: str) -> Place:
        """Path or URL of the labels called ``name``."""
        return f"{self.place}/labels/{name}" if is_remote(self.place) else Path(self.place) / "labels" / name


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Place and form of the labels that are written."""

    labels: Place
    store: Place
    """The image that the labels belong to, or the labels themselves if they are a store of their own."""
    zarr_format: int
    levels: int
    chunks: tuple[int, ...]
    write_chunks: tuple[int, ...]

    @property
    def array(self) -> str:
        """Path of the array of full resolution in the store."""
        return f"{str(self.labels).removeprefix(str(self.store))}/0".lstrip("/")

    @classmethod
    def of(cls, request: LabelRequest, prediction: Volume) -> Destination:
        """Destination of a request.

        Raises
        ------
        UnetcliError
            There is no image to store the labels in, it shows something else, or the prediction holds labels.
        """
        own = ImageGroup.at(request.prediction)
        if own is not None:
            own.require_no_labels("probabilities, as written by unetcli predict")
        if request.output is None:
            image = _image_of(request, own, prediction)
            labels, store, zarr_format = image.labels(request.name), image.place, image.zarr_format
        else:
            labels, store, zarr_format = request.output, request.output, 3
        levels = own.levels if own else auto_levels(prediction.extent, prediction.axes)
        chunks, write_chunks = _chunks(prediction, zarr_format, as_stored=own is not None)
        return cls(
            labels=labels,
            store=store,
            zarr_format=zarr_format,
            levels=min(levels, max_levels(prediction.extent, prediction.axes)),
            chunks=chunks,
            write_chunks=write_chunks,
        )


def _image_of(request: LabelRequest, own: ImageGroup | None, prediction: Volume) -> ImageGroup:
    """The image in which the labels are stored: that of ``--into``, or else the prediction."""
    name = request.into or request.prediction
    image = ImageGroup.at(request.into) if request.into else own
    if image is None:
        way = "expected one" if request.into else "--output LABELS.zarr or --into IMAGE.zarr name another place"
        raise UnetcliError(f"{name}: not an OME-Zarr image, so labels cannot be stored in it; {way}")
    if request.into:
        image.require_no_labels("an image")
        grid_in_image(image, prediction, parse_place(request.prediction))
    return image


def grid_in_image(image: ImageGroup, prediction: Volume, place: Place) -> tuple[Volume, tuple[int, ...]]:
    """The level of an image that a prediction was made of, and the voxel of it at which the prediction begins.

    Raises
    ------
    UnetcliError
        No level has the shape of the prediction, or of the volume that it is a region of.
    """
    for level in range(image.levels):
        volume = open_volume(str(image.place), level).with_axes_of(prediction).with_single_axes_of(prediction)
        if (offset := find_offset(volume, prediction, place)) is not None:
            require_same_voxels(volume, prediction, "not the same image")
            require_same_place(volume, prediction, "not the same image", offset=offset)
            return volume, offset
    whole = open_volume(str(image.place))
    raise UnetcliError(
        f"--into {whole.path}: {shape(whole)}, and no level has the shape of {prediction.path}, {shape(prediction)}: "
        "not the same image"
    )


def _chunks(prediction: Volume, zarr_format: int, *, as_stored: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the chunks and shards of labels: those of the prediction if it is an OME-Zarr image."""
    if not as_stored:
        chunks = output_chunks(prediction.extent, 2)
        return chunks, chunks
    chunks = tuple(map(min, prediction.chunks, prediction.extent))
    shards = getattr(prediction.array, "shards", None)
    if not shards or zarr_format < 3:
        return chunks, chunks
    by_axis = dict(zip(prediction.stored_axes, shards, strict=True))
    triples = zip(prediction.axes, chunks, prediction.extent, strict=True)
    return chunks, tuple(min(ceil_to(by_axis[axis], chunk), ceil_to(n, chunk)) for axis, chunk, n in triples)


def make_labels_group(image: Place, zarr_format: int) -> None:
    """Create the group that holds all labels of an image, unless it exists."""
    if not is_remote(image):
        (Path(image) / "labels").mkdir(exist_ok=True)
    if group_file(store_at(f"{image}/labels")) is None:
        _write_list(image, {}, [], zarr_format)


def list_labels(image: Place, name: str, zarr_format: int, *, listed: bool) -> None:
    """Add labels to the list that viewers read, or remove them. Only one process at a time may call this."""
    for key in () if is_remote(image) else ngff.documents({}, zarr_format):
        remove_abandoned_drafts(Path(image) / "labels" / key)
    found = group_file(store_at(f"{image}/labels"))
    attributes = found[1] if found else {}
    with ngff.explain(f"{image}/labels"):
        names = ngff.label_names(attributes)
    if (name in names) != listed:
        _write_list(image, attributes, [*names, name] if listed else [n for n in names if n != name], zarr_format)


def _write_list(image: Place, attributes: dict[str, Any], names: list[str], zarr_format: int) -> None:
    store = store_at(f"{image}/labels")
    for key, text in ngff.documents(ngff.with_label_names(attributes, names, zarr_format), zarr_format).items():
        store.replace_text(key, text)


def consolidate(image: Place) -> None:
    """Bring up to date the consolidated metadata of an image, and of groups around it, that have such metadata.

    Programs that read them know of no labels but those in them.
    """
    for place in consolidated_groups(image):
        for key in () if is_remote(place) else CONSOLIDATED:
            remove_abandoned_drafts(Path(place) / key)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ZarrUserWarning)  # in Zarr v3 they are not yet part of the standard
                zarr.consolidate_metadata(MetadataStore(store_at(place)))
        except UnetcliError:
            raise
        except Exception as error:  # of many classes, as in opening
            raise UnetcliError(f"{place}: its consolidated metadata cannot be updated: {one_line(error)}") from error


def consolidated_groups(image: Place) -> Iterator[Place]:
    """An image, and groups around it, whose metadata are consolidated."""
    place = image
    for _ in range(1 if is_remote(image) else 1 + AROUND):
        store = store_at(place)
        text = store.read_text("zarr.json")
        if store.read_text(ZMETADATA) is not None or (text and _has_consolidated(place, text)):
            yield place
        place = parent_of(place)


def _has_consolidated(place: Place, text: str) -> bool:
    with ngff.explain(f"{place}/zarr.json"):
        found = parse_json(text)
    return isinstance(found, dict) and found.get("consolidated_metadata") is not None
