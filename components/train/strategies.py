"""The ways of updating a champion. Each is one function from old model and data to a challenger.

Not covered: which one is used (`decide`), and whether its result is any good (`gate`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from components.core.config import LoopConfig, StrategyName
from components.core.datasets import ImageSet, Pixels
from components.core.logs import progress
from components.core.models import Classifier, ModelSpec, build_classifier, extract_features, grow_head
from components.train.loop import Rows, fit


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a strategy works on. `old` are training rows of the champion's windows, `new` those of the current one; the
    labels of both index `spec.classes`, the champion's classes first. `champion` is None for the first model."""

    spec: ModelSpec
    champion: Classifier | None
    old: ImageSet
    new: ImageSet
    loop: LoopConfig
    head_loop: LoopConfig
    batch_size: int
    replay_fraction: float
    generator: torch.Generator
    device: torch.device


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A challenger with how it came about. `losses`: mean of each epoch, nats."""

    model: Classifier
    losses: list[float]
    rows: int
    replayed_rows: int


class Strategy(Protocol):
    """One way of making a challenger."""

    def __call__(self, task: Task) -> Trained:
        """Train. The champion's own weights are never touched."""


def train_head(task: Task) -> Trained:
    """Fit only the head, on features of the frozen body computed once: new rows and a replay of old ones.

    Source:
        Feature extraction as in Donahue et al., "DeCAF", ICML 2014.
    """
    model = _start_from_champion(task)
    images, labels, replayed = _new_and_replay(task)
    losses = _fit_head(task, model, images, labels)
    return Trained(model=model, losses=losses, rows=len(labels), replayed_rows=replayed)


def fine_tune(task: Task) -> Trained:
    """Update all weights at a low rate, on new rows and a class-balanced replay of old ones.

    A head that has grown is fitted alone first: its fresh rows would pull noise through the body, and a low rate
    would not bring them up.

    Source:
        Rehearsal: Robins, "Catastrophic forgetting, rehearsal and pseudorehearsal", Connection Science 7 (1995). Head
        first: Kumar et al., "Fine-Tuning can Distort Pretrained Features", ICLR 2022.
    """
    model = _start_from_champion(task)
    images, labels, replayed = _new_and_replay(task)
    losses = _fit_head(task, model, images, labels) if _grown(task) else []
    losses += _fit(task, task.loop, model.train(), images, labels)
    return Trained(model=model, losses=losses, rows=len(labels), replayed_rows=replayed)


def retrain(task: Task) -> Trained:
    """Train fresh weights on all old and new rows."""
    model = build_classifier(task.spec, task.generator).to(task.device).train()
    images = Pixels.concat([task.old.images, task.new.images])
    labels = torch.cat([task.old.labels, task.new.labels]).to(task.device)
    return Trained(model=model, losses=_fit(task, task.loop, model, images, labels), rows=len(labels), replayed_rows=0)


STRATEGIES: Mapping[StrategyName, Strategy] = {"head-only": train_head, "fine-tune": fine_tune, "retrain": retrain}


def choose_replay(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw rows balanced over classes, without putting any back.

    Args:
        labels: Class indices, int64, shape (n,).
        count: Rows wanted; all n where there are fewer.
        generator: Of the draw.

    Returns:
        Row indices, int64, ascending. Classes differ by at most one row unless one has run out.
    """
    shuffled = torch.randperm(len(labels), generator=generator)
    rank = torch.empty(len(labels), dtype=torch.int64)  # how many of the same class come before a row in the draw
    for label in labels.unique():
        members = shuffled[labels[shuffled] == label]
        rank[members] = torch.arange(len(members))
    # Lowest rank first takes one of each class in turn; among equal ranks the draw decides.
    order = shuffled[torch.argsort(rank[shuffled], stable=True)]
    return order[:count].sort().values


def _start_from_champion(task: Task) -> Classifier:
    assert task.champion is not None, "the policy plans only a retrain while there is no champion"
    return grow_head(task.champion, task.spec.classes, task.generator).to(task.device)


def _new_and_replay(task: Task) -> tuple[Pixels, Tensor, int]:
    """Images, labels on the device, and how many of them are replayed."""
    count = round(task.replay_fraction * len(task.old))
    replay = task.old.subset(choose_replay(task.old.labels, count, task.generator))
    images = Pixels.concat([replay.images, task.new.images])
    return images, torch.cat([replay.labels, task.new.labels]).to(task.device), len(replay)


def _grown(task: Task) -> bool:
    assert task.champion is not None
    return len(task.spec.classes) > len(task.champion.spec.classes)


def _fit_head(task: Task, model: Classifier, images: Pixels, labels: Tensor) -> list[float]:
    features = extract_features(model, images.batches(max(256, task.batch_size))).embeddings.to(task.device)
    return _fit(task, task.head_loop, model.head, features, labels)


def _fit(task: Task, loop: LoopConfig, network: nn.Module, inputs: Rows, labels: Tensor) -> list[float]:
    label = "training the head" if isinstance(network, nn.Linear) else "training"
    with progress(label, len(inputs) * loop.epochs) as advance:
        return fit(
            network, inputs, labels, loop, batch_size=task.batch_size, generator=task.generator, on_epoch=advance
        )
