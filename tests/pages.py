"""Commands and their outputs that the pages show: ``python tests/pages.py quickstart`` writes them again.

``quickstart`` is the folder that ``sh examples/quickstart.sh`` makes; the commands run in a copy of it, on the CPU.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PAGES = [
    Path(__file__).parents[1] / "docs" / f"{name}.md" for name in ("predicting", "labelling", "metrics", "training")
]
"""Pages with console blocks, in the order in which their commands have to run."""
BLOCK = re.compile(r"(?<=^```console\n).*?(?=^```)", re.DOTALL | re.MULTILINE)
SESSION = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
INPUTS = ("raw.zarr", "labels.zarr", "big.zarr", "truth.zarr", "model")


def sessions(text: str) -> list[tuple[str, str]]:
    """Commands of the console blocks of a page, each with the output that the page shows."""
    return [session for block in BLOCK.findall(text) for session in SESSION.findall(block)]


def output_of(command: str, folder: Path) -> str:
    """Standard output and error of a shell command, which has to succeed."""
    environment = os.environ | {"UNETCLI_DEVICE": "cpu", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines())


def copy_inputs(quickstart: Path, folder: Path) -> None:
    """Copy the images and the model of a quickstart."""
    for name in INPUTS:
        shutil.copytree(quickstart / name, folder / name)


def main(quickstart: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        copy_inputs(quickstart, Path(folder))

        def run_block(match: re.Match[str]) -> str:
            return "\n".join(
                f"$ {command}\n{output_of(command, Path(folder))}" for command, _ in SESSION.findall(match[0])
            )

        for page in PAGES:
            page.write_text(BLOCK.sub(run_block, page.read_text()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
