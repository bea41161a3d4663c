"""Whether a model is right as often as it believes. Values in, values out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 15  # as in Guo et al. 2017


@dataclass(frozen=True, kw_only=True)
class Bin:
    """The `rows` whose confidence is in (lower, upper]: their mean `confidence` and the share that is right, all in
    [0, 1]."""

    lower: float
    upper: float
    rows: int
    confidence: float
    accuracy: float


def fill_bins(confidence: Tensor, right: Tensor, bins: int = BINS) -> list[Bin]:
    """Cut rows by confidence into bins of equal width; those without a row are left out.

    Args:
        confidence: Of the answer, float32 (n,), in [0, 1].
        right: Whether it is right, bool (n,).
        bins: How many.
    """
    edges = torch.arange(bins + 1, dtype=torch.float64) / bins
    confidence = confidence.double()
    place = (torch.bucketize(confidence, edges) - 1).clamp(0, bins - 1)
    rows = torch.bincount(place, minlength=bins)
    sums = torch.bincount(place, weights=confidence, minlength=bins)
    hits = torch.bincount(place, weights=right.double(), minlength=bins)
    return [
        Bin(
            lower=float(edges[i]),
            upper=float(edges[i + 1]),
            rows=int(rows[i]),
            confidence=float(sums[i] / rows[i]),
            accuracy=float(hits[i] / rows[i]),
        )
        for i in rows.nonzero().flatten().tolist()
    ]


def calibration_error(bins: Sequence[Bin]) -> float | None:
    """The mean distance of confidence and accuracy, over bins, weighted by rows, in [0, 1]. None without a row.

    Source:
        Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015; Guo et al., "On
        Calibration of Modern Neural Networks", ICML 2017.
    """
    rows = sum(one.rows for one in bins)
    return sum(one.rows * abs(one.confidence - one.accuracy) for one in bins) / rows if rows else None
