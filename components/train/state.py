"""What changes from step to step of a training: weights, optimiser, moving average, best epoch. What a snapshot holds.

Not covered: taking steps (`loop`) and keeping snapshots (`checkpoint`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from components.core.recipes import LoopConfig
from components.train.checkpoint import Progress, Snapshot
from components.train.compute import Compute

MOMENTUM = 0.9


class State:
    """Everything that changes from step to step: what a snapshot holds."""

    def __init__(self, network: nn.Module, config: LoopConfig, compute: Compute) -> None:
        self.network = network
        self.named = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.moving = list(self.named.values())
        self.buffers = list(network.buffers())
        self.buffers_before = [buffer.clone() for buffer in self.buffers]
        self.optimizer = _optimizer(self.moving, config)
        self.averaged = {n: v.detach().clone() for n, v in network.state_dict().items()} if config.ema_decay else {}
        self.best: dict[str, Tensor] = {}
        self.total = torch.zeros((), device=compute.device)
        self.step = 0
        self.epochs = Progress()  # but for the step, which changes too often for a document

    @classmethod
    def begin(cls, network: nn.Module, config: LoopConfig, compute: Compute, snapshot: Snapshot | None) -> State:
        """The state before the first step, or that of a snapshot."""
        state = cls(network, config, compute)
        if snapshot is not None:
            state.restore(snapshot)
        return state

    @property
    def progress(self) -> Progress:
        """How far it is."""
        return self.epochs.model_copy(update={"step": self.step})

    def begin_step(self) -> None:
        """Remember what a forward pass changes already: the statistics of batch norm."""
        if self.buffers:
            torch._foreach_copy_(self.buffers_before, self.buffers)

    def undo_step(self) -> None:
        """Be as before a step whose gradients were not finished."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.buffers:
            torch._foreach_copy_(self.buffers, self.buffers_before)

    def check_finite(self) -> None:
        """Look at the weights too: a loss tells of them only in the step after.

        Raises:
            FloatingPointError: The loss of the epoch, or a weight, is not finite.
        """
        for name, value in {"the loss": self.total, **self.named}.items():
            if not bool(value.isfinite().all()):
                raise FloatingPointError(
                    f"{name} is not finite any more in epoch {len(self.epochs.losses) + 1}: lower the learning rate"
                )

    def snapshot(self) -> Snapshot:
        """All of it, sharing memory.

        Raises:
            FloatingPointError: See `check_finite`.
        """
        self.check_finite()
        optimizer = {
            f"{name}/{key}": torch.as_tensor(value)
            for name, parameter in self.named.items()
            for key, value in self.optimizer.state[parameter].items()
            if value is not None
        }
        groups = {
            "network": self.network.state_dict(),
            "optimizer": optimizer,
            "averaged": self.averaged,
            "best": self.best,
            "sum": {"loss": self.total},
        }
        tensors = {f"{group}:{name}": value for group, values in groups.items() for name, value in values.items()}
        return Snapshot(tensors=tensors, progress=self.progress)

    @torch.no_grad()
    def restore(self, snapshot: Snapshot) -> None:
        """Take everything over from a snapshot."""
        groups: dict[str, dict[str, Tensor]] = {}
        for key, value in snapshot.tensors.items():
            group, _, name = key.partition(":")
            groups.setdefault(group, {})[name] = value
        self.network.load_state_dict(groups["network"])
        for name, parameter in self.named.items():
            entries = {
                k.rpartition("/")[2]: v for k, v in groups.get("optimizer", {}).items() if k.startswith(f"{name}/")
            }
            for key, value in entries.items():
                # Moments lie in memory as their weights do: a fused kernel walks both as if they were flat.
                like = parameter if value.shape == parameter.shape else value.to(parameter.device)
                self.optimizer.state[parameter][key] = torch.empty_like(like).copy_(value)
        for name, value in groups.get("averaged", {}).items():
            self.averaged[name].copy_(value)
        self.best = {name: value.to(self.total.device) for name, value in groups.get("best", {}).items()}
        self.total.copy_(groups["sum"]["loss"])
        self.epochs, self.step = snapshot.progress, snapshot.progress.step

    def finished(self, config: LoopConfig) -> bool:
        """Whether the last `patience` epochs were no better than the best before them."""
        progress = self.epochs
        if config.patience is None or progress.best is None:
            return False
        return len(progress.accuracies) - 1 - progress.best >= config.patience

    def count(self, loss: Tensor, rows: int) -> None:
        """Add a step."""
        self.total += loss * rows
        self.step += 1

    @torch.no_grad()
    def average(self, decay: float) -> None:
        """Move the average toward the weights as they are now; at first faster, or most of it would be the start."""
        if not self.averaged:
            return
        decay = min(decay, (1 + self.step) / (10 + self.step))
        now = self.network.state_dict()
        floats = [name for name, value in now.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.averaged[n] for n in floats], [now[n] for n in floats], 1 - decay)
        for name in now.keys() - set(floats):
            self.averaged[name].copy_(now[name])

    def end_epoch(self, rows: int, validate: Callable[[], float] | None) -> None:
        """Close the sum of the epoch's losses, and look whether it was the best epoch so far."""
        self.check_finite()
        update: dict[str, object] = {"losses": (*self.epochs.losses, float(self.total) / rows)}
        self.total.zero_()
        if validate:
            with self._averaged_weights():
                accuracies = (*self.epochs.accuracies, validate())
                update["accuracies"] = accuracies
                if self.epochs.best is None or accuracies[-1] > accuracies[self.epochs.best]:
                    update["best"] = len(accuracies) - 1
                    self.best = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.epochs = self.epochs.model_copy(update=update)

    def take_best(self) -> None:
        """Leave the network with the best epoch's weights, or with the average, or as it is."""
        if self.best or self.averaged:
            self.network.load_state_dict(self.best or self.averaged)

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        if not self.averaged:
            yield
            return
        now = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.averaged)
        yield
        self.network.load_state_dict(now)


def _optimizer(parameters: list[nn.Parameter], config: LoopConfig) -> torch.optim.Optimizer:
    """One kernel a step for each weight, or for all of them (fused)."""
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adamw": torch.optim.AdamW,
        "sgd": partial(torch.optim.SGD, momentum=MOMENTUM, nesterov=True),
    }
    kind = kinds[config.optimizer]
    return kind(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
