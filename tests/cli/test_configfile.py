"""Options from files: ``--config`` and ``--print-config`` of every command."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import numpy as np
import pytest
import typer
from helpers import grey, write_zarr
from typer.testing import CliRunner

from unetcli.cli import app
from unetcli.cli.commands import train
from unetcli.cli.requests import GroupedCommand, configurable, takes_request
from unetcli.core.errors import UnetcliError
from unetcli.core.records import to_toml

Run = Callable[..., subprocess.CompletedProcess[str]]
COMMANDS = {str(info.callback.__name__): info.callback for info in app.registered_commands if info.callback}
PAGE = (Path(__file__).parents[2] / "docs" / "scripts.md").read_text()
HEAVY = ("numpy", "torch", "zarr", "scipy", "matplotlib")
EXAMPLES = {"pair": [["a.tif", "b.tif"], ["c.zarr", "d.zarr"]]}
"""Values for options whose annotation does not describe them."""
PAIR = ("raw.tif", "labels.tif")


def unresolved() -> typer.Typer:
    """The commands, with train printing the options given: the real one resolves defaults, which needs images."""
    plain = typer.Typer()
    plain.command("train", cls=GroupedCommand)(configurable(takes_request(train)))
    for name in COMMANDS.keys() - {"train"}:
        plain.command(name)(COMMANDS[name])
    return plain


@pytest.fixture
def images(place: Path) -> tuple[str, str]:
    disc = np.hypot(*np.ogrid[-60:60, -70:50]) < 30
    write_zarr(place / "raw.zarr", grey(3, 120, 120))
    write_zarr(place / "labels.zarr", np.stack([disc] * 3).astype(np.uint8))
    return "raw.zarr", "labels.zarr"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, without environment variables of unetcli."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("UNETCLI_")]:
        monkeypatch.delenv(name)
    return tmp_path


def write(file: str = "options.toml", **values: Any) -> str:
    Path(file).write_text(to_toml(values))
    return file


def printed(*words: str, of: typer.Typer = app) -> dict[str, Any]:
    """Output of ``--print-config`` read back, with underscores in names."""
    done = CliRunner().invoke(of, [*words, "--print-config"], catch_exceptions=False)
    assert (done.exit_code, done.stderr) == (0, "")
    return {key.replace("-", "_"): value for key, value in tomllib.loads(done.stdout).items()}


def refusal(*words: str, of: typer.Typer = app) -> str:
    with pytest.raises(UnetcliError) as error:
        CliRunner().invoke(of, list(words), catch_exceptions=False)
    assert "\n" not in str(error.value)
    return str(error.value)


def taken(command: str) -> dict[str, Any]:
    """Names and annotations of a command's parameters, without ``--config`` and ``--print-config``."""
    found = inspect.signature(COMMANDS[command], eval_str=True).parameters
    return {name: each.annotation for name, each in found.items() if name not in ("config", "print_config")}


def example(kind: Any) -> Any:
    """Example of a value that a file may have for a parameter with this annotation."""
    parts = [part for part in get_args(kind) if part is not NoneType]
    match get_origin(kind):
        case origin if origin in (Annotated, Union, UnionType):
            return example(parts[0])
        case origin if origin in (list, tuple):
            return [example(part) for part in parts]
    return {bool: True, int: 3, float: 1.5, str: "some 'text'", Path: "some/file"}[kind]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_and_argument_of_every_command_is_a_key_and_is_printed(command: str) -> None:
    values = {name: EXAMPLES.get(name) or example(kind) for name, kind in taken(command).items()}
    assert len(values) > 3
    assert printed(command, "--config", write(**values), of=unresolved()) == values


@pytest.mark.parametrize("command", COMMANDS)
def test_keys_are_what_options_are_called(command: str) -> None:
    group: Any = typer.main.get_command(app)
    for parameter in group.commands[command].params:
        assert f"--{parameter.name.replace('_', '-')}" in parameter.opts or parameter.param_type_name == "argument"


def test_what_is_printed_is_read_back_to_the_same(place: Path) -> None:
    words = ("--steps", "7", "--lr", "1e-5", "-o", "x y/m", "--pair", "a", "b", "--pair", "c", "d", "--overwrite")
    done = CliRunner().invoke(unresolved(), ["train", *PAIR, *words, "--print-config"])
    (place / "train.toml").write_text(done.stdout)
    again = CliRunner().invoke(unresolved(), ["train", "--config", "train.toml", "--print-config"])
    assert again.stdout == done.stdout
    assert "# depth = (not set)\n" in done.stdout
    values = tomllib.loads(done.stdout)
    assert values["pair"] == [["a", "b"], ["c", "d"]]
    assert (values["raw"], values["steps"], values["lr"], values["overwrite"]) == ("raw.tif", 7, 1e-5, True)


def test_the_command_line_goes_before_the_environment_and_that_before_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["predict", "--config", write(volume="of file", model="m1", setup=["a", "b"], tile=204, levels=3)]
    found = printed(*words)
    assert (found["model"], found["tile"], found["setup"], found["levels"]) == (["m1"], "204", ["a", "b"], "3")
    monkeypatch.setenv("UNETCLI_MODEL", "m2")
    monkeypatch.setenv("UNETCLI_TILE", "300")
    found = printed(*words)
    assert (found["model"], found["tile"], found["volume"]) == (["m2"], "300", "of file")
    found = printed(*words, "typed", "--model", "m3", "--setup", "c")
    assert (found["model"], found["volume"], found["setup"], found["tile"]) == (["m3"], "typed", ["c"], "300")


def test_flags_are_true_or_false_and_can_be_turned_where_they_have_a_no() -> None:
    words = ["verify", "--config", write(output="x.zarr", blocks=False, repair=True)]
    assert (printed(*words)["blocks"], printed(*words)["repair"]) == (False, True)
    assert printed(*words, "--blocks")["blocks"] is True


def test_dashes_and_underscores_both_do(place: Path) -> None:
    Path("a.toml").write_text("raw = 'r'\nlabels = 'l'\nbase_channels = 8\ntake-over = true\n")
    found = printed("train", "--config", "a.toml", of=unresolved())
    assert (found["base_channels"], found["take_over"]) == (8, True)
    Path("a.toml").write_text("base_channels = 8\nbase-channels = 16\n")
    assert "base-channels is given twice" in refusal("train", "--config", "a.toml")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("base-chanels = 8", "unknown key 'base-chanels'; did you mean 'base-channels'?"),
        ("help = true", "unknown key 'help'"),
        ("config = 'b.toml'", "unknown key 'config'"),
        ("xyzzy = 1", "unknown key 'xyzzy'; `unetcli train --help` lists"),
        ("steps = 'many'", 'steps is "many"; expected a whole number'),
        ("steps = 1.5", "steps is 1.5; expected a whole number"),
        ("steps = true", "steps is true; expected a whole number"),
        ("overwrite = 1", "overwrite is 1; expected true or false"),
        ("lr = '1e-3'", 'lr is "1e-3"; expected a number'),
        ("raw = ['a', 'b']", 'raw is ["a", "b"]; expected text'),
        ("output = 3", "output is 3; expected text"),
        ("truth = 0.5", "truth is 0.5; expected text"),
        ("seed = -1", "seed is -1; "),
        ("[optimizer]\nname = 'sgd'", "optimizer is a table; expected text"),
        ("[train]\nsteps = 3", "unknown key 'train'"),
        ("raw = 2026-11-22", "raw is 2026-11-22; expected text"),
        ("steps = 5\nlr = \n", "line 2"),
    ],
    ids=lambda text: text.partition("\n")[0],
)
def test_a_wrong_key_or_value_is_named_with_its_file(line: str, message: str) -> None:
    Path("a.toml").write_text(line)
    found = refusal("train", *PAIR, "--config", "a.toml", "--print-config")
    assert found.startswith("a.toml: ")
    assert message in found


def test_lists_are_checked_item_by_item() -> None:
    Path("a.toml").write_text("setup = 'module load cuda'\n")
    assert 'setup is "module load cuda"; expected a list of text' in refusal("predict", "v", "--config", "a.toml")
    Path("a.toml").write_text("setup = ['a', true]\n")
    assert "expected a list of text" in refusal("predict", "v", "--config", "a.toml")
    Path("a.toml").write_text("pair = ['raw', 'labels']\n")
    assert "expected a list of lists [text, text]" in refusal("train", "--config", "a.toml")


def test_plan_takes_the_file_of_predict_and_skips_options_that_it_does_not_have() -> None:
    file = write(volume="big.zarr", tile=300, workers=3, share="1/2", detach=True)
    assert "share" in printed("predict", "--config", file)
    found = printed("plan", "--config", file)
    assert (found["tile"], found["workers"], "share" in found) == ("300", 3, False)


def test_a_command_may_print_defaults_that_it_chose() -> None:
    def work(
        level: Annotated[str, typer.Option()] = "low",
        pair: Annotated[tuple[str, int] | None, typer.Option()] = None,
        depth: Annotated[int | None, typer.Option()] = None,
    ) -> None:
        raise AssertionError("only printing was asked for")

    def chosen(options: Any) -> Any:
        return options | {"depth": options["depth"] or 4}

    own = typer.Typer()
    own.command()(configurable(work, resolve=chosen))
    file = write(pair=["a", 3], level="high")
    assert printed("--config", file, of=own) == {"level": "high", "pair": ["a", 3], "depth": 4}
    assert "expected a list [text, a whole number]" in refusal("--config", write(pair=["a"]), of=own)


def test_train_prints_its_options_with_defaults_and_reads_them_back_to_the_same(images: tuple[str, str]) -> None:
    words = ("--steps", "7", "--tile", "60", "--depth", "2", "--base-channels", "4", "--no-flip", "--device", "cpu")
    found = printed("-q", "train", *images, *words)
    assert (found["steps"], found["tile"], found["flip"], found["truth"]) == (7, 60, False, "binary")
    assert (found["optimizer"], found["schedule"], found["batch_norm"], found["w0"]) == ("adamw", "cosine", True, 10.0)
    assert printed("-q", "train", "--config", write(**found)) == found
    assert not Path("model").exists()


def test_without_a_file_nothing_is_different() -> None:
    assert printed("status", "a.zarr")["output"] == "a.zarr"
    assert not [value for value in printed("status", "a.zarr").values() if value not in ("a.zarr", False, 10.0)]


@pytest.mark.slow
def test_a_file_alone_trains(unetcli: Run, images: tuple[str, str]) -> None:
    values = {"raw": "raw.zarr", "labels": "labels.zarr", "depth": 2, "base_channels": 4, "tile": 60, "steps": 2}
    done = unetcli("train", "--config", write("train.toml", **values), "--output", "m")
    assert (done.returncode, done.stdout) == (0, "m/model.safetensors\n"), done.stderr
    done = unetcli("train", "--config", write("train.toml", stpes=3))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "unetcli: train.toml: unknown key 'stpes'; did you mean 'steps'?\n"


def test_printing_imports_nothing_heavy(place: Path) -> None:
    code = (
        "import sys\nfrom unetcli.cli import app\n"
        "try:\n    app(['predict', '--config', 'a.toml', '--print-config'])\n"
        "except SystemExit as end:\n    print(end.code)\n"
        f"print(*(name for name in {HEAVY} if name in sys.modules))"
    )
    write("a.toml", volume="v")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["0", ""]


def test_completion_reads_no_file() -> None:
    words = "unetcli train --config nowhere.toml --st"
    environment = os.environ | {"_UNETCLI_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "4"}
    code = "from unetcli.cli import app; app(prog_name='unetcli')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "--steps" in done.stdout
    assert done.stderr == ""


def test_environment_variables_are_named_as_their_options_and_the_page_has_them_all() -> None:
    group: Any = typer.main.get_command(app)
    found = {p.envvar: p.name for command in group.commands.values() for p in command.params if p.envvar}
    assert found.keys() == {f"UNETCLI_{name.upper()}" for name in found.values()}
    (named,) = re.findall(r"The command line takes precedence over(.+?) the file\.", PAGE, re.DOTALL)
    assert set(re.findall("`(UNETCLI_[A-Z]+)`", named)) == set(found)
