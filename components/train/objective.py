"""The loss of a batch: cross-entropy, with what is done about rare classes. Values in, values out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from components.core.recipes import LoopConfig
from components.train.augmentation import Mixing

AUXILIARY = 0.3  # weight of an auxiliary head's loss (Szegedy et al., "Going deeper with convolutions", CVPR 2015)
BETA = 0.999  # of the effective number of images (Cui et al. 2019)


class Objective:
    """Cross-entropy in nats, mean over the rows of a batch.

    Source:
        Class-balanced loss: Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019. Logit
        adjustment: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, equation 10 with tau = 1.
    """

    def __init__(self, labels: Tensor, classes: int, config: LoopConfig) -> None:
        """Count the classes.

        Args:
            labels: Of all training rows, int64 (n,), on the device of the loss.
            classes: How many there are; some may have no row.
            config: `balance` and `label_smoothing` of it count.
        """
        counts = torch.bincount(labels, minlength=classes).double()
        self.smoothing = config.label_smoothing
        self.weights = effective_weights(counts).to(labels.device, torch.float32) if config.balance == "loss" else None
        shares = counts.clamp(min=1.0) / counts.clamp(min=1.0).sum()
        self.offsets = shares.log().float() if config.balance == "logits" else None

    def __call__(self, outputs: Sequence[Tensor], labels: Tensor, mixing: Mixing | None) -> Tensor:
        """The loss of a batch.

        Args:
            outputs: Logits (n, classes) of the head, then those of auxiliary heads.
            labels: int64 (n,).
            mixing: How the images were mixed, if they were.
        """
        targets = labels
        if mixing:
            targets = mixing.values(functional.one_hot(labels, outputs[0].shape[1]).float())
        main, *auxiliary = (self._cross_entropy(logits.float(), targets) for logits in outputs)
        return main + AUXILIARY * sum(auxiliary) if auxiliary else main

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.offsets is not None:
            logits = logits + self.offsets
        # Not the weighted mean: a batch that is cut into pieces must add up to the whole.
        total = functional.cross_entropy(logits, targets, self.weights, reduction="sum", label_smoothing=self.smoothing)
        return total / len(logits)


def effective_weights(counts: Tensor) -> Tensor:
    """Weight of each class, inverse to the effective number of its images, float64 (classes,); the mean over all images
    is 1. A class without images weighs nothing."""
    weights = torch.where(counts > 0, (1 - BETA) / (1 - BETA ** counts.clamp(min=1.0)), 0.0)
    return weights * counts.sum() / (weights * counts).sum()


def sampling_weights(labels: Tensor) -> np.ndarray:
    """Chance of each row so that every class is drawn equally often, float64 (n,), not normalised."""
    counts = torch.bincount(labels).double()
    weights: np.ndarray = (1 / counts[labels]).cpu().numpy()
    return weights
