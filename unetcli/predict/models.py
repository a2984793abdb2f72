"""Models whose probabilities are averaged: their files, and whether they agree."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from unetcli.core.errors import UnetcliError
from unetcli.model.file import ModelHeader, find_model
from unetcli.predict.rescale import plane_sizes
from unetcli.volumes.places import format_sizes, sizes_differ
from unetcli.volumes.volume import Volume

Named = Path | str | Sequence[Path | str] | None
"""One or several paths of model files or of folders of trainings; None: the default."""


def find_models(named: Named = None) -> tuple[Path, ...]:
    """Paths of the model files: ``named``, else those of ``$UNETCLI_MODEL``, else ``./model``.

    Several paths in the variable are divided as those of ``$PATH``.

    Raises
    ------
    UnetcliError
        There is no such file, or one is named twice.
    """
    given = [named] if isinstance(named, Path | str) else list(named or _of_environment())
    files = tuple(find_model(Path(each)) for each in given) or (find_model(),)
    for number, file in enumerate(files):
        if file.resolve() in {other.resolve() for other in files[:number]}:
            raise UnetcliError(f"--model {file}: named twice; name each model once")
    return files


def _of_environment() -> list[str]:
    return [part for part in os.environ.get("UNETCLI_MODEL", "").split(os.pathsep) if part]


def require_agreeing(files: Sequence[Path], headers: Sequence[ModelHeader], source: Volume) -> None:
    """Raise :class:`UnetcliError`, which names both, if the probabilities of two models cannot be averaged.

    Models agree in their footprint, the channels of their images, their classes and, where it is stated, the pixel size
    of their training images.
    """
    for file, header in zip(files[1:], headers[1:], strict=True):
        for what, one, other in _differences(headers[0], header, source):
            raise UnetcliError(
                f"--model {files[0]} has {what} {one}, but --model {file} has {other}: their probabilities cannot be "
                "averaged; name models that agree, or one of them"
            )


def _differences(one: ModelHeader, other: ModelHeader, source: Volume) -> Iterator[tuple[str, str, str]]:
    """Properties in which two models differ although they must not, with the value of each."""
    a, b = one.architecture, other.architecture
    for what, first, second in (
        ("depth", str(a.depth), str(b.depth)),
        ("a number of image channels of", str(a.in_channels), str(b.in_channels)),
        ("the classes", ", ".join(one.class_names), ", ".join(other.class_names)),
    ):
        if first != second:
            yield what, first, second
    own, others = (plane_sizes(source, header) for header in (one, other))
    if any(sizes_differ(own[axis], others[axis]) for axis in own.keys() & others.keys()):
        yield "training images with pixels of", format_sizes(own), format_sizes(others)
