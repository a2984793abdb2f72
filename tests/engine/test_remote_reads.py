"""A remote store that answers "503 Service Unavailable" now and then, on a real HTTP server on loopback."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import plus_one
import pytest
import zarr
from helpers import grey, read_receipts, write_model, write_prediction, write_zarr
from label.maps import blobs
from typer.testing import CliRunner

from unetcli.cli import app
from unetcli.engine.receipts import FAILED, read_failures
from unetcli.engine.runfolder import RunFolder
from unetcli.evaluate.evaluate import evaluate_volume
from unetcli.evaluate.request import EvaluateRequest
from unetcli.predict.request import PredictRequest
from unetcli.predict.run import predict_volume

SECTIONS = 4
CHUNK = "c/2/0/0"
"""The chunk that the server refuses."""


@dataclass
class Server:
    """Serves a folder; answers 503 to the next ``refusals`` requests for :data:`CHUNK`, once planning is over."""

    url: str = ""
    planned: Path = Path()
    """A file that exists once the run is planned, which reads the input too."""
    refusals: float = 0
    asked: Counter[str] = field(default_factory=Counter)

    def refuses(self, path: str) -> bool:
        if not path.endswith(CHUNK) or not self.planned.exists():
            return False
        self.asked[path] += 1
        return self.asked[path] <= self.refusals


class Handler(SimpleHTTPRequestHandler):
    def __init__(self, settings: Server, *arguments: Any, **options: Any) -> None:
        self.settings = settings
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        if self.settings.refuses(self.path):
            self.send_error(503)
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model")
    write_zarr(tmp_path / "big.zarr", grey(SECTIONS, 40, 50), chunks=(1, 40, 50))
    made = blobs((SECTIONS, 40, 50), 2, seed=7)
    write_prediction(tmp_path / "done.zarr", made, (1, 40, 50))
    write_zarr(tmp_path / "truth.zarr", (made > 127).astype(np.uint8), chunks=(1, 40, 50))
    found = Server()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, found, directory=str(tmp_path))) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        found.url = f"http://127.0.0.1:{http.server_port}"
        yield found
        http.shutdown()
        thread.join()


def predict(source: str, output: str) -> Any:
    predict_volume(PredictRequest(volume=f"{source}/big.zarr", output=Path(output), tile=68, device="cpu"))
    return zarr.open_array(f"{output}/0", mode="r")[...].tolist()


def add_one(source: str, output: str) -> Any:
    plus_one.add_one(f"{source}/big.zarr", Path(output))
    return zarr.open_array(f"{output}/0", mode="r")[...].tolist()


def evaluate(source: str, output: str) -> Any:
    request = EvaluateRequest(
        prediction=f"{source}/done.zarr", truth="truth.zarr", block_voxels=2000, run_folder=Path(f"{output}.run")
    )
    return json.dumps(evaluate_volume(request).scores, default=str)


@pytest.mark.parametrize("run", [predict, evaluate, add_one])
def test_a_chunk_that_is_refused_for_a_while_is_read_again(server: Server, run: Callable[[str, str], Any]) -> None:
    whole = run(".", "here")
    folders = {predict: "there.run/predict", evaluate: "there.run", add_one: f"there.run/{plus_one.COMMAND}"}
    server.planned, server.refusals = Path(folders[run], "plan.json"), 1
    assert run(server.url, "there") == whole
    assert [count > 1 for count in server.asked.values()] == [True]


def test_a_chunk_that_is_refused_for_ever_is_set_aside_with_the_reason(server: Server) -> None:
    folder = RunFolder(Path("p.zarr.run/predict"))
    server.planned, server.refusals = folder.plan_file, float("inf")
    words = ["predict", f"{server.url}/big.zarr", "--output", "p.zarr", "--tile", "68", "--device", "cpu"]
    ended = CliRunner().invoke(app, words)
    assert ended.exit_code == 3, ended.output
    failures = list(read_failures(folder.failures))
    assert [(failure.block, failure.kind, "503" in failure.reason) for failure in failures] == [(2, FAILED, True)] * 2
    assert "503" in ended.stderr
    assert sorted(receipt.block for receipt in read_receipts(folder.receipts)) == [0, 1, 3]
    server.refusals = 0
    assert CliRunner().invoke(app, words).exit_code == 0
