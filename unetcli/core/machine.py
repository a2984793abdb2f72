"""What this machine has, as far as that can be said without importing torch."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

GPU_FILES = ("dev/nvidia[0-9]*", "dev/kfd", "dev/dxg")
"""Device files of NVIDIA's driver, AMD's, and either under Windows' Linux."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where a plan is to run."""

    device: str
    """Kind of device: cpu, cuda, mps."""
    threads: int
    name: str | None = None
    """Of the device; None where it is not at hand."""
    free_bytes: int | None = None
    """Free memory of a GPU that is at hand."""


def cpu_threads() -> int:
    """Threads for the network on a CPU: ``OMP_NUM_THREADS``, else the cores this process may use."""
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    return int(chosen) if chosen.isdigit() and int(chosen) > 0 else len(os.sched_getaffinity(0))


def cpu_name() -> str:
    """The processor as it calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def may_have_gpu(root: Path = Path("/")) -> bool:
    """False where torch need not be asked: no driver's device file is there, or all GPUs are hidden."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1", "NoDevFiles")
    return not hidden and any(any(root.glob(pattern)) for pattern in GPU_FILES)
