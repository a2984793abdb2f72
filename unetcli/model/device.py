"""Where the network runs, and with how many threads."""

from __future__ import annotations

import torch
from torch import nn

from unetcli.core.arrays import PerChannel
from unetcli.core.errors import UnetcliError
from unetcli.core.process import cpu_threads as cpu_threads


def resolve_device(name: str | None, local_rank: int = 0) -> torch.device:
    """The device named (cpu, cuda, cuda:1, 1, mps), or the first GPU there is, else the CPU.

    Of several processes on a host each takes the GPU of its number, where ``cuda`` is named or found.
    """
    if name in (None, "auto"):
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local_rank:
        name = str(local_rank)
    try:
        device = torch.device(f"cuda:{name}" if str(name).isdigit() else str(name))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UnetcliError(f"--device {name}: not available here ({str(error).splitlines()[0]}); cpu works") from error
    return device


def require_precision(device: torch.device, precision: str) -> None:
    """Refuse a GPU that only emulates the precision: what it gives is slow, and not what others give."""
    if precision == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        name = torch.cuda.get_device_name(device)
        raise UnetcliError(f"--precision bfloat16: {name} has none; float32 works on it, bfloat16 on Ampere or later")


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16, and faster than in float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(False))
    return device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU."""
    return int(torch.cuda.mem_get_info(device)[0])


def exact_float32() -> None:
    """Full float32 and repeatable kernels on a GPU too, so that tiling does not show."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def channelwise(values: PerChannel, device: torch.device) -> torch.Tensor | float:
    """To compute with images (.., c, y, x) there; a plain number as it is."""
    return values if isinstance(values, int | float) else torch.tensor(values, device=device)[:, None, None]


def on_device(network: nn.Module, device: torch.device) -> nn.Module:
    """The network there, its weights in the order (out, y, x, in): about 1.8 times as fast on a CPU, forward."""
    network.to(device)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
