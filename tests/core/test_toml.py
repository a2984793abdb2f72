from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetcli.core.errors import UnetcliError
from unetcli.core.records import read_toml, to_toml

names = st.from_regex(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]))
scalars = st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
values = scalars | st.lists(scalars) | st.lists(st.tuples(texts, texts).map(list))


@given(st.dictionaries(names, values | st.none()))
def test_written_options_are_read_back_unchanged(options: dict[str, Any]) -> None:
    found = {key.replace("-", "_"): value for key, value in tomllib.loads(to_toml(options)).items()}
    assert found == {name: value for name, value in options.items() if value is not None}
    assert all(type(found[name]) is type(value) for name, value in options.items() if value is not None)


def test_paths_and_tuples_are_written_as_text_and_lists() -> None:
    found = tomllib.loads(to_toml({"output": Path("a b/\x7fmodel"), "sections": (0, 20), "lr": math.nan}))
    assert (found["output"], found["sections"]) == ("a b/\x7fmodel", [0, 20])
    assert math.isnan(found["lr"])


def test_values_that_toml_cannot_represent_are_refused() -> None:
    with pytest.raises(UnetcliError, match=r"raw is .*Unicode"):
        to_toml({"raw": b"caf\xe9.tif".decode(errors="surrogateescape")})
    with pytest.raises(TypeError, match="TOML"):
        to_toml({"raw": {"a": 1}})


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such file"),
        (b"steps = 3\n\nlr =\n", "line 3, column 5"),
        (b"steps = 3\nsteps = 4\n", "line 2"),
        (b"steps = 3\nraw = 'caf\xe9'\n", "line 2 is not UTF-8"),
    ],
    ids=["missing", "no value", "twice", "Latin-1"],
)
def test_an_unreadable_file_is_named_with_the_line(tmp_path: Path, content: bytes | None, expected: str) -> None:
    file = tmp_path / "train.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UnetcliError) as refusal:
        read_toml(file)
    assert str(refusal.value).startswith(f"{file}: ")
    assert expected in str(refusal.value)
    with pytest.raises(UnetcliError, match="cannot be read"):
        read_toml(tmp_path)
