from __future__ import annotations

import errno
import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import grey, write_model, write_prediction, write_zarr
from rich.console import Console
from rich.text import Text

from unetcli.cli.terminal import LONGEST, Printable, PrintableStream, printable, shortened, unguarded

Run = Callable[..., subprocess.CompletedProcess[str]]
TITLE = "\x1b]0;PWN\x07"
"""Changes the title of a terminal."""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (TITLE, r"\x1b]0;PWN\x07"),
        ("a\r\x08b", r"a\r\x08b"),
        ("\x9b31m", r"\x9b31m"),  # the one-byte form of escape [
        ("\u202egnp.exe", r"\u202egnp.exe"),  # shown from right to left
        (os.fsdecode(b"caf\xe9.tif"), r"caf\udce9.tif"),
        ("µm, naïve, 細胞\t\n", "µm, naïve, 細胞\t\n"),
    ],
)
def test_control_characters_are_shown_as_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_long_lines_keep_their_start_and_end() -> None:
    cut = shortened("a.zarr: found " + "x" * 50_000 + "; expected 1")
    assert len(cut) <= LONGEST
    assert cut.startswith("a.zarr: found x")
    assert cut.endswith("x; expected 1")
    lines = "\n".join(["line"] * LONGEST)
    assert shortened(lines) == lines


def test_pictures_keep_their_styles_but_no_control_characters_of_their_texts() -> None:
    file = io.StringIO()
    stream = unguarded(PrintableStream(file, "standard output"))  # type: ignore[arg-type]
    console = Console(file=stream, force_terminal=True, color_system="standard", width=60)
    console.print(Printable(Text.assemble(("bold", "bold"), TITLE)))
    assert "\x1b[1mbold" in file.getvalue()
    assert "\x1b]" not in file.getvalue()
    assert "\x07" not in file.getvalue()


@pytest.fixture
def prediction(tmp_path: Path) -> Path:
    write_prediction(tmp_path / "p.zarr", grey(2, 30, 30), (1, 16, 16))
    return tmp_path / "p.zarr"


def test_names_in_errors_and_in_a_received_run_folder_do_not_control_the_terminal(unetcli: Run, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_zarr(tmp_path / "raw.zarr", grey(2, 60, 60), (1, 60, 60))
    assert unetcli("predict", "raw.zarr", "--tile", "60", "-o", "o.zarr").returncode == 0
    run_folder = tmp_path / "o.zarr.run/predict"
    for receipts in (run_folder / "receipts").iterdir():
        receipts.unlink()
    failure = {"block": 0, "attempt": 1, "kind": "failed", "host": TITLE, "place": TITLE, "reason": f"no {TITLE}"}
    failure |= {"traceback": TITLE, "job": TITLE, "time": 1.0}
    (run_folder / "failures").mkdir(exist_ok=True)
    (run_folder / "failures/w.jsonl").write_text(json.dumps(failure) + "\n")
    (run_folder / "stop").write_text(f"stopped {TITLE}\n")
    for words in (("status", "o.zarr"), ("status", "o.zarr", "--json"), ("show", f"{TITLE}.zarr")):
        done = unetcli(*words)
        assert not {"\x1b", "\x07"} & set(done.stdout + done.stderr), words
    assert r"stopped \x1b]0;PWN" in unetcli("status", "o.zarr").stdout


def test_a_path_is_printed_for_scripts_as_it_is(unetcli: Run, tmp_path: Path, prediction: Path) -> None:
    done = unetcli("show", "p.zarr", "-o", f"{TITLE}.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / done.stdout.removesuffix("\n")).is_file()


@pytest.mark.parametrize("words", [("show", "p.zarr"), ("show", "--help"), ("--version",)])
def test_a_full_disk_behind_stdout_is_named(tmp_path: Path, prediction: Path, words: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        done = program(tmp_path, words, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr == "unetcli: standard output: No space left on device\n"


@pytest.mark.slow
def test_a_full_disk_behind_stderr_does_not_end_a_run(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_zarr(tmp_path / "raw.zarr", grey(2, 60, 60), (1, 60, 60))
    with Path("/dev/full").open("w") as full:
        done = program(tmp_path, ("predict", "raw.zarr", "--tile", "60"), stdout=subprocess.PIPE, stderr=full)
    assert (done.returncode, done.stdout) == (0, "raw.pred.zarr\n")
    assert json.loads((tmp_path / "raw.pred.zarr/zarr.json").read_text())["attributes"]["unetcli"]["complete"]


def test_a_file_that_grows_too_large_is_named(tmp_path: Path, prediction: Path) -> None:
    done = program(tmp_path, ("show", "p.zarr", "-o", "p.png"), preexec_fn=at_most_100_bytes)
    assert (done.returncode, done.stderr) == (1, f"unetcli: p.png: {os.strerror(errno.EFBIG)}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["p.zarr"]


def test_a_deleted_current_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    words = ("predict", str(tmp_path / "raw.zarr"), "--model", "m", "-o", "o.zarr")
    done = program(tmp_path / "gone", words, preexec_fn=(tmp_path / "gone").rmdir)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert not done.stderr.startswith("unetcli: file system")


def at_most_100_bytes() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))


def program(
    place: Path,
    words: tuple[str, ...],
    stdout: object = subprocess.PIPE,
    stderr: object = subprocess.PIPE,
    **more: object,
) -> subprocess.CompletedProcess[str]:
    """Run the program as a user does, in a new process."""
    command = [sys.executable, "-m", "unetcli", "-q", *words]
    return subprocess.run(command, cwd=place, text=True, stdout=stdout, stderr=stderr, check=False, **more)  # type: ignore[call-overload,no-any-return]
