"""Images unlike any that the champion knows: a class it has never seen, an object instead of the usual ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from components.detect_drift.detectors import FittedDetector, Scores, standardise, whiten
from components.detect_drift.relabelling import Relabellings, Sample

SHRINKAGE = 0.003  # of the mean variance: features hardly vary in some directions (0.001 to 0.01 do as well)
TAIL = 0.95  # beyond this quantile of the reference an image counts as unlike it


@dataclass(frozen=True)
class NoveltyDetector(FittedDetector):
    """Are more images both far from the centre of the class that the champion gives them, and doubtful to it?

    Ranks of distance and of entropy, in (0, 1) among all images, are combined as -log(1 - rank), so that the furthest
    count most (Fisher's method). They are a function of all images together, whichever sample they are from, which
    makes relabelling exact.
    Statistic: mean of -log(1 - rank) of that, current minus reference.
    Effect: share of images among the 5 % furthest of all, current minus reference, in [0, 1]; no more than 5 % of all
    images can be among them.

    The first of `columns` holds the champion's probabilities, float32 (n, classes); the others feature vectors, float32
    (n, d).

    Source:
        Distance: Lee et al., "A simple unified framework for detecting out-of-distribution samples", NeurIPS 2018;
        Fisher, "Statistical Methods for Research Workers" (1925), 21.1.
    """

    unit = "share among the furthest 5 %"

    def score(self, current: Sample, relabellings: Relabellings) -> Scores:
        probabilities, *features = self._pooled(current, relabellings)
        entropy = -torch.special.xlogy(probabilities, probabilities).sum(dim=1)
        views = (class_distances(features, probabilities.argmax(dim=1)), entropy)
        ranks = ranks_of(torch.stack([-(1 - ranks_of(view)).log() for view in views]).sum(dim=0))
        weights = torch.stack([-(1 - ranks).log(), (ranks > TAIL).float()], dim=1)
        means = relabellings.mean_differences(weights)
        return Scores(statistics=means[:, 0], effects=means[:, 1].clamp(min=0))


def class_distances(features: list[Tensor], answers: Tensor, known: int | None = None) -> Tensor:
    """Squared Mahalanobis distances from the mean of the rows with the same answer, under one covariance for all.

    Args:
        features: Blocks of columns that count alike, however many each has, float32 (N, d_i).
        answers: int64 (N,) >= 0.
        known: Means, spreads and covariance are those of so many rows from the first; None: of all rows. An answer that
            these do not have is seen from the mean of all of them.

    Returns:
        float32 (N,), >= 0; 0 everywhere where no known row differs from its mean.
    """
    rows = torch.cat([standardise(block, known) / block.shape[1] ** 0.5 for block in features], dim=1)
    classes = int(answers.max()) + 1
    counts = answers[:known].bincount(minlength=classes)[:, None]
    sums = rows.new_zeros((classes, rows.shape[1])).index_add_(0, answers[:known], rows[:known])
    centred = rows - (sums / counts.clamp(min=1))[answers]  # the mean of all known rows is 0
    variance = float(centred[:known].square().mean())
    if variance <= 1e-12:  # of standardised columns: all that float32 can tell
        return rows.new_zeros(len(rows))
    return whiten(centred, SHRINKAGE * variance, known).square().sum(dim=1)


def ranks_of(values: Tensor) -> Tensor:
    """Mid-ranks of values, in (0, 1): (N,) to the same. Equal values get the same rank."""
    ordered = values.sort().values
    below, upto = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return (below + upto) / (2 * len(values))
