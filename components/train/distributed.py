"""Several processes that train one model: who they are, and what they agree on. One process is the common case.

Every rank holds the whole model and takes its share of each step's rows; gradients are averaged (DDP). What is drawn
depends on the step alone, so the number of processes may change between a checkpoint and its resumption.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = timedelta(hours=6)  # the others wait while rank 0 decodes images, asks the champion or searches


_alone = False  # inside `first_alone`, where the others wait, or are done


def rank() -> int:
    """This process's number among those that train together."""
    return dist.get_rank() if dist.is_initialized() and not _alone else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the others, as torchrun's environment says: NCCL between GPUs, gloo between CPUs."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def first_alone(first: bool) -> Iterator[None]:
    """Let one process do what follows before the others do it: they find what it has left in the cache or the store.

    Each does it as if there were no others, so it may train: a head, or the trials of a search.

    Args:
        first: Whether this is the one (of all, or of its node).
    """
    global _alone
    if not first:
        wait_for_all()
    _alone = True
    try:
        yield
    finally:
        _alone = False
    if first:
        wait_for_all()


def is_first() -> bool:
    """Whether this is the first of all processes: the one that writes."""
    return not dist.is_initialized() or dist.get_rank() == 0


def is_first_of_node() -> bool:
    """Whether this is the first process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def wait_for_all() -> None:
    """Return when every process has come here."""
    any_of_all(False)  # not a barrier: NCCL's would take a GPU's kernel and its time limit


def any_of_all(*flags: bool) -> list[bool]:
    """Which flags are up in any process; all get the same answer."""
    if world_size() == 1:
        return list(flags)
    votes = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(votes, dist.ReduceOp.MAX)
    return [bool(vote) for vote in votes]


def sum_of_all(value: Tensor) -> Tensor:
    """The sum over all processes; the argument stays as it is."""
    if world_size() == 1:
        return value
    total = value.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def share_of(index: Tensor) -> Tensor:
    """The part of a step's rows that this process takes."""
    return index.tensor_split(world_size())[rank()]


def synchronised(network: nn.Module) -> nn.Module:
    """Let batch norm see the rows of all processes: torch's own between GPUs, ours between CPUs."""
    if world_size() == 1:
        return network
    if next(network.parameters()).is_cuda:
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # its layers, in place
        return network
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, CpuSyncBatchNorm):
            module.__class__ = CpuSyncBatchNorm  # the same tensors, another forward
    return network


class _Sum(torch.autograd.Function):
    """`sum_of_all` with a gradient: what all processes lose by it."""

    @staticmethod
    def forward(ctx: object, value: Tensor) -> Tensor:
        return sum_of_all(value)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return sum_of_all(gradient)


class CpuSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the rows of all processes, which torch has for GPUs only: two sums over the processes a layer."""

    def _check_input_dim(self, input: Tensor) -> None:  # torch's name
        assert input.dim() >= 2

    def forward(self, input: Tensor) -> Tensor:  # torch's name
        if not self.training:
            return super().forward(input)
        dims, shape = [0, *range(2, input.dim())], [1, -1, *[1] * (input.dim() - 2)]
        count = input.new_full((1,), input.numel() / input.shape[1])
        sums: Tensor = _Sum.apply(torch.cat([input.sum(dims), count]))
        total = sums[-1].detach()
        mean = sums[:-1] / total
        # Not the mean of squares less the square of the mean: where a mean is large, nothing is left of the variance.
        centred = input - mean.view(shape)
        variance: Tensor = _Sum.apply(centred.square().sum(dims)) / total
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                assert self.momentum is not None
                assert self.num_batches_tracked is not None
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * total / (total - 1), self.momentum)
        normalised = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normalised = normalised * self.weight.view(shape) + self.bias.view(shape)
        return normalised
