"""The protocol of everything that shapes an update, and what it is told. Each strategy is one small class.

They combine: a training has a list of them, and each does its part at its moment. Not covered: the steps (`loop`),
where training starts (`starts`) and which rows it sees (`rows`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from components.core.datasets import Pixels
from components.core.models import Classifier
from components.train.augmentation import Mixing

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a loss term sees of a batch: which training rows (int64 (b,), on the device), their labels, how they were
    mixed, and the logits of the head and of auxiliary heads, each (b, classes)."""

    index: Tensor
    labels: Tensor
    mixing: Mixing | None
    outputs: Sequence[Tensor]


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What a strategy may prepare from: the champion (evaluation mode, on the device), all training rows, and what the
    champion learnt from (fetched when asked for; possibly empty)."""

    champion: Classifier
    images: Pixels
    labels: Tensor
    memory: Callable[[], tuple[Pixels, Tensor]]
    batch_rows: int


class Strategy:
    """Base of all strategies: does nothing anywhere."""

    def prepare(self, situation: Situation) -> Tensors:
        """Compute what is costly, once: it is kept with the checkpoints, under names that no other strategy uses."""
        return {}

    def begin(self, model: Classifier, kept: Tensors) -> None:
        """Get ready for the steps.

        Args:
            model: The challenger as it starts, on the device.
            kept: What `prepare` gave, of all strategies, on the device.
        """

    def set_mode(self, model: nn.Module) -> None:
        """Correct the mode of layers after `model.train()`."""

    def loss(self, batch: Batch) -> Tensor | None:
        """A term that is added to the loss of a batch: a mean over its rows, so that pieces add up."""
        return None

    def add_gradient(self) -> None:
        """Add to the gradients of a step, after they are complete."""

    def finish(self, model: Classifier) -> None:
        """Change the result, in place."""
