"""Names of volumes: parts, choices, and what is no choice."""

from __future__ import annotations

from pathlib import Path

import pytest

from unetcli.core.errors import UnetcliError
from unetcli.core.files import absolute, overlaps, parse_place, stem
from unetcli.core.names import VolumeName, with_choices


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a.tif", {"place": "a.tif"}),
        ("a.ome.tif:series=1", {"place": "a.ome.tif", "series": 1}),
        ("s3://b/a.zarr:level=2:axes=ZYX", {"place": "s3://b/a.zarr", "level": 2, "axes": "zyx"}),
        ("a.h5:/raw/0", {"place": "a.h5", "inside": "/raw/0"}),
        ("a.h5:/raw:axes=zyxc:channel=DAPI: 405", {"place": "a.h5", "inside": "/raw", "axes": "zyxc"}),
        ("at 12:30/a:b.tif", {"place": "at 12:30/a:b.tif"}),
        ("s3://b/a.h5", {"place": "s3://b/a.h5"}),
    ],
)
def test_a_name_has_parts_and_is_written_as_it_was_read(text: str, parts: dict[str, object]) -> None:
    found = VolumeName.parse(text)
    assert {key: getattr(found, key) for key in parts} == parts
    assert VolumeName.parse(str(found)) == found
    assert found.channel == ("DAPI: 405" if "DAPI" in text else "")


@pytest.mark.parametrize("text", ["a.tif:series=x", "a.tif:level=-1", "a.zarr:axes=zz", "a.zarr:axes=zx", "a:axes=qyx"])
def test_choices_with_bad_values_are_refused(text: str) -> None:
    with pytest.raises(UnetcliError, match=r"expected (a number|y, x)"):
        VolumeName.parse(text)


def test_options_do_not_replace_what_the_name_says() -> None:
    assert with_choices("a.tif:axes=cyx", axes="zyx") == "a.tif:axes=cyx"
    assert with_choices("a.tif:series=1", axes="zyx", channel="2") == "a.tif:series=1:axes=zyx:channel=2"


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("a.ome.tif:series=1", "a"),
        ("x/a.zarr.zip", "a"),
        ("a.h5:/raw", "a"),
        ("x/slices/", "slices"),
        ("x/slices/*.tif", "slices"),
        ("x/img_[0-9].png", "x"),
        ("cells.png", "cells"),
    ],
)
def test_results_are_named_after_the_file_or_folder(name: str, short: str) -> None:
    assert stem(name) == short


def test_a_pattern_in_the_current_folder_is_named_after_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert stem("*.tif") == stem(".") == tmp_path.name


def test_the_absolute_name_of_a_pattern_matches_in_a_folder_with_brackets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a[1]").mkdir()
    monkeypatch.chdir(tmp_path / "a[1]")
    assert absolute("*.tif:axes=tyx") == f"{tmp_path}/a[[]1]/*.tif:axes=tyx"
    assert absolute("b.tif:series=1") == f"{tmp_path}/a[1]/b.tif:series=1"


def test_choices_are_no_part_of_a_place() -> None:
    assert parse_place("a.zarr:level=1") == Path("a.zarr")
    assert overlaps("a.zarr", "a.zarr:level=1")
