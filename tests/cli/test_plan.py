"""The command plan as users see it: quick, and without writing anything."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zarr
from helpers import PEAK, grey, write_model, write_zarr

from unetcli.cli.views import plan_lines
from unetcli.core.process import may_have_gpu
from unetcli.executors.options import ClusterOptions
from unetcli.predict.preview import plan_volume
from unetcli.predict.request import PredictRequest

Run = Callable[..., subprocess.CompletedProcess[str]]
KEYS = (
    *("tile", "step", "context", "precision", "blocks", "tiles", "shares", "wasted_work"),
    *("device_bytes", "host_bytes", "output_bytes", "output_files", "gpu_hours", "slurm"),
)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and a volume."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_model(tmp_path / "model")
    write_zarr(tmp_path / "big.zarr", grey(3, 600, 170), chunks=(2, 64, 64))
    return tmp_path


def petabyte(place: Path) -> None:
    """Create a volume of 10^15 voxels that has metadata only."""
    zarr.create_array(place / "pb.zarr", shape=(10**5,) * 3, chunks=(1, 1024, 1024), dtype="uint8")


def test_json_has_the_documented_keys_in_order(unetcli: Run) -> None:
    done = unetcli("plan", "big.zarr", "--json", "--device", "cpu", "--tile", "60")
    plan = json.loads(done.stdout)
    assert (done.returncode, list(plan)[: len(KEYS)]) == (0, list(KEYS)), done.stderr
    assert (plan["tile"], plan["step"], plan["context"]) == ([1, 60, 60], [1, 20, 20], [0, 20, 20])
    assert (plan["gpu_hours"], plan["slurm"], plan["bandwidth"]) == (None, None, None)
    assert "--probe" in plan["gpu_hours_reason"]


def test_a_plan_is_what_predict_then_does(unetcli: Run) -> None:
    plan = json.loads(unetcli("plan", "big.zarr", "--json", "--device", "cpu", "--sections", "1:").stdout)
    done = json.loads(unetcli("predict", "big.zarr", "--json", "--device", "cpu", "--sections", "1:").stdout)
    for key in ("blocks", "tile", "block_shape", "wasted_work", "device", "precision"):
        assert plan[key] == done[key]
    assert not plan["begun"]
    assert json.loads(unetcli("plan", "big.zarr", "--json", "--sections", "1:").stdout)["begun"]


def test_settings_that_differ_from_those_of_the_output_are_listed(unetcli: Run) -> None:
    assert unetcli("predict", "big.zarr", "--device", "cpu", "--tile", "60").returncode == 0
    assert json.loads(unetcli("plan", "big.zarr", "--json").stdout)["conflicts"] == []
    done = unetcli("plan", "big.zarr", "--tile", "64", "--dtype", "float16")
    assert "tile 64 (was 60); dtype float16 (was uint8)" in " ".join(done.stdout.split())


def test_planning_writes_nothing_reads_no_voxel_and_needs_no_torch(place: Path) -> None:
    for chunk in (place / "big.zarr" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"not to be read")
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    code = (
        "import sys; from unetcli.cli import app\n"
        "try: app(['plan', 'big.zarr', '--normalise', 'volume', '--device', 'cpu'])\n"
        "except SystemExit as end: print('CODE', end.code)\n"
        "print('TORCH', 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["CODE 0", "TORCH False"], done.stdout + done.stderr
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before


def test_ten_million_sections_are_planned_in_less_than_100_megabytes(place: Path) -> None:
    """The limit is for the whole process; Python, numpy and zarr take most of it."""
    zarr.create_array(place / "tall.zarr", shape=(10**7, 512, 512), chunks=(1, 512, 512), dtype="uint8")
    code = (
        "from unetcli.cli import app\n"
        "try: app(['plan', 'tall.zarr', '--device', 'cpu', '--json'])\n"
        "except SystemExit as end: assert not end.code\n"
        "print(peak())"
    )
    done = subprocess.run([sys.executable, "-c", PEAK + code], capture_output=True, text=True, check=True)
    report, _, peak = done.stdout.strip().rpartition("\n")
    assert json.loads(report)["input_chunks"] == 10**7
    assert int(peak) < 100 * 10**6


def test_without_a_driver_s_device_files_there_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidiactl").touch()  # there without a GPU too
    assert not may_have_gpu(tmp_path)
    (tmp_path / "dev" / "nvidia1").touch()
    assert may_have_gpu(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not may_have_gpu(tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--workers", "1000"],
        ["--workers", "1000", "--tile-seconds", "0.05", "--device", "cuda", "--cluster", "slurm"],
        ["--workers", "1", "--tile-seconds", "7", "--cluster", "slurm", "--tile", "1004", "--dtype", "float32"],
    ],
    ids=" ".join,
)
def test_a_petabyte_is_planned_in_lines_of_80_columns(unetcli: Run, place: Path, words: list[str]) -> None:
    petabyte(place)
    write_model(place / "model", depth=4, base_channels=2)
    done = unetcli("plan", "pb.zarr", *words)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "1,000 Tvoxels" in done.stdout
    assert "e+" not in done.stdout
    assert ("bottleneck" in done.stdout) == ("--workers" in words)


def test_a_petabyte_on_a_thousand_gpus_names_the_bottleneck(unetcli: Run, place: Path) -> None:
    petabyte(place)
    write_model(place / "model", depth=4, base_channels=2)
    words = ("--tile", 2236, "--device", "cuda", "--tile-seconds", 0.2, "--workers", 1000)
    plan = json.loads(unetcli("plan", "pb.zarr", *words, "--json").stdout)
    together = plan["bandwidth"]
    assert together["weakest_link"] == "file operations"
    assert together["receipts_bytes"] == 110 * plan["blocks"]
    assert plan["gpu_hours"] > 0.2 * plan["multiply_adds"] / plan["tile_multiply_adds"] / 3600
    text = " ".join(unetcli("plan", "pb.zarr", *words).stdout.split())
    assert "GPU-hours" in text
    assert "0.2 s per tile" in text
    assert "at a typical 20,000/s" in text


def test_a_probe_gives_hours_and_later_plans_use_its_result(unetcli: Run) -> None:
    words = ("plan", "big.zarr", "--device", "cpu", "--tile", 60)
    assert "unknown" in unetcli(*words).stdout
    done = unetcli(*words, "--probe", "--json")
    plan = json.loads(done.stdout)
    assert plan["gpu_hours"] > 0, done.stderr
    assert plan["gpu_hours_reason"] is None
    assert json.loads(unetcli(*words, "--json").stdout)["gpu_hours"] == plan["gpu_hours"]
    assert "of one worker" in unetcli(*words).stdout
    assert json.loads(unetcli(*words[:-1], 64, "--json").stdout)["gpu_hours"] is None


def test_a_slurm_request_covers_the_needs_of_a_worker(unetcli: Run) -> None:
    words = ("plan", "big.zarr", "--json", "--cluster", "slurm", "--tile-seconds", 30, "--max-running", 2)
    gpu = ("--tile", 60, "--gpus", 1)
    plan = json.loads(unetcli(*words, *gpu).stdout)
    asked = plan["slurm"]
    assert asked["array"] == f"0-{plan['shares'] - 1}%2"
    assert asked["gpus"] == "1"
    assert int(asked["mem"].removesuffix("G")) * 2**30 > 1.19 * plan["host_bytes"]
    hours, minutes, _ = map(int, asked["time"].split(":"))
    assert 3600 * hours + 60 * minutes > plan["blocks_per_share"] * plan["seconds_per_block"]
    assert plan["device"] == "cuda"
    assert "gpus" not in json.loads(unetcli(*words, "--tile", 60).stdout)["slurm"]


def test_slurm_options_of_the_user_take_precedence_and_the_site_is_asked() -> None:
    asked: list[dict[str, str]] = []

    def site(request: dict[str, str]) -> str:
        asked.append(request)
        return "sbatch would start it on 2 nodes"

    where = ClusterOptions(cluster="slurm", gres="gpu:a100:1", mem="64G", blocks_per_job=1)
    report = plan_volume(PredictRequest(volume="big.zarr", tile=60), where, check_job=site)
    assert asked == [report.slurm]
    assert report.slurm is not None
    assert (report.slurm["gres"], report.slurm["mem"], "gpus" in report.slurm) == ("gpu:a100:1", "64G", False)
    assert report.timing.shares == report.plan.blocks
    assert "sbatch would start it on 2 nodes" in "\n".join(plan_lines(report))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("missing.zarr",), "missing.zarr"),
        (("big.zarr", "--tile", "61"), "60 and 64"),
        (("big.zarr", "--model", "nowhere"), "nowhere"),
        (("big.zarr", "--device", "gpu7"), "--device gpu7"),
        (("big.zarr", "--precision", "int8"), "--precision int8"),
        (("big.zarr", "--cluster", "cloud"), "--cluster cloud"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_gets_one_line(unetcli: Run, words: tuple[str, ...], message: str) -> None:
    done = unetcli("plan", *words)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1), done.stderr
    assert message in done.stderr
