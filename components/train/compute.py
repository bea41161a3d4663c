"""What a training computes with: device, precision, layout, and whether the network is compiled."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from components.core.config import TrainingConfig
from components.core.models import Classifier
from components.train.distributed import synchronised, world_size

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where and how: `bfloat16` for the products in the network (weights stay float32), `compiled` by torch.compile."""

    device: torch.device = CPU
    bfloat16: bool = False
    compiled: bool = False

    def place(self, network: nn.Module) -> nn.Module:
        """Move a network to the device, with the layout that convolutions are fastest in, and wrap it for training.

        Returns:
            A module that gives a tuple of logits (head, then auxiliary heads) and shares the network's weights.
        """
        network.to(self.device)
        network.to(memory_format=torch.channels_last)
        view: nn.Module = _Outputs(synchronised(network))
        if self.compiled:
            view.compile()
        if world_size() > 1:
            view = nn.parallel.DistributedDataParallel(view)
        return view

    def autocast(self) -> AbstractContextManager[object]:
        """bfloat16 where it was chosen."""
        if not self.bfloat16:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    @property
    def processor(self) -> str:
        """The model of the GPU, or 'CPU'."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"

    @property
    def description(self) -> str:
        """The device and how it is used, for people."""
        several = f"{world_size()} x " if world_size() > 1 else ""
        precision = "bfloat16" if self.bfloat16 else "float32"
        return f"{several}{self.processor}, {precision}{', compiled' if self.compiled else ''}"


class _Outputs(nn.Module):
    """What the loop calls: all logits of a classifier, or those of any other network, as a tuple."""

    network: nn.Module

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, rows: Tensor) -> tuple[Tensor, ...]:
        if isinstance(self.network, Classifier):
            return self.network.outputs(rows)
        return (self.network(rows),)


def choose_compute(config: TrainingConfig) -> Compute:
    """The best that this process has: its own GPU of several, else the CPU.

    bfloat16 by itself only on GPUs that multiply it faster than float32 (compute capability 8.0 and up); on CPUs it
    depends on the network (1.6 times faster for a ResNet, 1.4 times slower for a MobileNet), so it must be asked for.
    """
    if not torch.cuda.is_available():
        return Compute(bfloat16=config.precision == "bfloat16", compiled=config.compile)
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    fast = torch.cuda.get_device_capability(device) >= (8, 0)
    chosen = config.precision == "bfloat16" or (config.precision == "auto" and fast)
    return Compute(device=device, bfloat16=chosen, compiled=config.compile)


@contextmanager
def settings(*, threads: int | None = None, deterministic: bool = False) -> Iterator[None]:
    """Set torch up for a training, and back again."""
    before = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark)
    if threads:
        torch.set_num_threads(threads)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS refuses
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        torch.backends.cudnn.benchmark = before[2]
