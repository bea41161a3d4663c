"""The training loop: shuffled batches, AdamW, warm-up and cosine decay. Values in, values out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from components.core.config import LoopConfig


class Rows(Protocol):
    """Training rows: a tensor (n, ...), or pixels on disk that are gathered when they are asked for."""

    device: torch.device

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor, /) -> Tensor:
        """The rows at an index, int64 (b,), on `device`."""


def fit(
    network: nn.Module,
    inputs: Rows,
    labels: Tensor,
    config: LoopConfig,
    *,
    batch_size: int,
    generator: torch.Generator,
    on_epoch: Callable[[int], object] = lambda rows: None,
) -> list[float]:
    """Minimise cross-entropy over the rows, in place. The caller chooses train or evaluation mode.

    Args:
        network: Maps a batch of `inputs` to logits (n, classes); its parameters with `requires_grad` are updated.
        inputs: n >= 2 rows, on any device.
        labels: Class indices, int64, shape (n,), on the network's device.
        config: Epochs and rates.
        batch_size: Most rows of one step; the rows are spread evenly, so that no step has fewer than two.
        generator: Order of the rows; on the CPU.
        on_epoch: Called with the number of rows done since the last call.

    Returns:
        Mean loss of each epoch, in nats.

    Raises:
        FloatingPointError: The loss is not finite any more.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    batches = max(1, min(math.ceil(len(inputs) / batch_size), len(inputs) // 2))
    steps = config.epochs * batches
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, steps))
    losses = []
    for _ in range(config.epochs):
        order = torch.randperm(len(inputs), generator=generator)
        total = torch.zeros((), device=labels.device)
        for index in order.tensor_split(batches):
            rows = inputs[index.to(inputs.device)].to(labels.device)
            loss = nn.functional.cross_entropy(network(rows), labels[index.to(labels.device)])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach() * len(index)
        losses.append(float(total) / len(inputs))
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"loss is {losses[-1]} in epoch {len(losses)}: lower the learning rate")
        on_epoch(len(inputs))
    return losses


def warmup_cosine(step: int, steps: int) -> float:
    """Factor on the peak rate, in [0, 1]: linear over the first 5 % of the steps, then half a cosine to zero.

    Source:
        Loshchilov & Hutter, "SGDR", ICLR 2017; warm-up: Goyal et al., "Accurate, Large Minibatch SGD", 2017.
    """
    warmup = max(1, round(0.05 * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
