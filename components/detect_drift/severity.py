"""How much a change matters: the champion's loss of accuracy on a window, estimated without labels.

Covers the loss that shows in the champion's own answers, on classes that it knows. Not covered: classes it does not
know, labels that changed their meaning; where labels are in, the drop is measured instead (`comparison`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.core.changes import CLASS_MIX, CLEAN, ChangeTable, check_probabilities, summarise_confidence
from components.core.contracts import Interval

Array = NDArray[np.float64]
LEAST_ROWS = 30
CONFIDENCE = 0.9
# Chosen on Fashion-MNIST, digits and photographs, kinds left out in turn: mean errors of 3.9 to 4.1
# points for widths of 0.7 to 1.5, linear parts of 0.2 to 1, noises of 0.1 to 0.3.
WIDTH, LINEAR, NOISE = 1.0, 0.5, 0.1
AGREEMENTS = 3  # columns of a summary before those that tell of agreement
NEARBY = 0.02  # weight of a residual that is not near at all: there are always enough for a quantile


@dataclass(frozen=True, kw_only=True)
class SeverityEstimate:
    """`drop` of accuracy in [-1, 1], positive is worse, and the `interval` that holds it in about 90 % of windows with
    a kind of change that was not rehearsed."""

    drop: float
    interval: Interval


def estimate_drop(table: ChangeTable, probabilities: Tensor, early: Tensor, pixels: Tensor) -> SeverityEstimate | None:
    """Estimate how much accuracy the champion loses on a window, from its answers to images without labels.

    A kernel ridge regression of accuracy on the confidence summaries of rehearsed changes. A champion that gives one
    answer to all is wrong where the images changed, but right where they are of one class: what tells of that counts as
    far as the images differ from unchanged ones. The interval: residuals of kinds left out in turn, near ones first,
    and the chance of drawing n images.

    Args:
        table: The champion's rehearsal.
        probabilities: Its softmax on the window, float32, shape (n, classes).
        early: `Features.early` of the window, float32, shape (n, e).
        pixels: `Features.pixels` of the window, float32, shape (n, p).

    Returns:
        None where it cannot be told: fewer than 30 rows, or a champion of one class.

    Raises:
        ValueError: Another number of classes or columns than the table's, no probabilities, or values that are not
            finite.

    Source:
        Inputs: see `summarise_confidence`. Learning accuracy from synthetic shifts: Deng & Zheng, "Are Labels Always
        Necessary for Classifier Accuracy Evaluation?", CVPR 2021. Kernel ridge: Saunders et al., ICML 1998. Residuals
        weighted by nearness: Tibshirani et al., "Conformal Prediction Under Covariate Shift", NeurIPS 2019.
    """
    classes = len(table.baseline.probabilities)
    if len(probabilities) < LEAST_ROWS or classes < 2:
        return None
    check_probabilities(probabilities, classes)
    regression = _Regression(_discount(table, table.summaries, table.signatures), table.accuracies.double().numpy())
    signature, summary = table.signature(early, pixels), summarise_confidence(probabilities, table.baseline)
    inputs = _discount(table, summary[None], signature[None])
    accuracy = float(np.clip(regression.predict(inputs)[0], 0, 1))
    before = table.baseline.accuracy
    near = regression.nearness(inputs) + NEARBY
    error = _weighted_quantile(np.abs(regression.residuals(_groups(table.kinds))), near, CONFIDENCE)
    chance = accuracy * (1 - accuracy) / len(probabilities) + before * (1 - before) / table.baseline.rows
    half = sqrt(error**2 + NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) ** 2 * chance)
    drop = before - accuracy
    # An accuracy lies in [0, 1], so the drop lies between these, whatever the regression says.
    return SeverityEstimate(
        drop=drop, interval=Interval(lower=max(before - 1, drop - half), upper=min(before, drop + half))
    )


def _discount(table: ChangeTable, summaries: Tensor, signatures: Tensor) -> Array:
    """Draw what tells of agreement, in summaries (n, s), towards the clean sample's where signatures (n, d) are small:
    about as large as other shares of the classes make them, or smaller."""
    clean, mixes = table.kinds.index(CLEAN), torch.tensor([kind == CLASS_MIX for kind in table.kinds])
    usual = table.signatures[mixes].square().mean(1).amax() if bool(mixes.any()) else torch.zeros(())
    size = signatures.square().mean(1, keepdim=True)
    weight = size.square() / (size.square() + usual.square() + 1e-9)
    usual_summary = table.summaries[clean]
    discounted = usual_summary + weight * (summaries - usual_summary)
    discounted[:, :AGREEMENTS] = summaries[:, :AGREEMENTS]
    return discounted.double().numpy()


class _Regression:
    """Kernel ridge regression of accuracies (r,) on summaries (r, s): a Gaussian and a linear kernel, inputs
    standardised."""

    def __init__(self, summaries: Array, accuracies: Array) -> None:
        self._mean, self._spread = summaries.mean(0), summaries.std(0).clip(min=1e-3)
        self._inputs, self._accuracies = self._standardise(summaries), accuracies
        self._offset = accuracies.mean()
        self._kernel = self._compare(self._inputs)
        self._weights = self._solve(np.arange(len(accuracies)))

    def predict(self, summaries: Array) -> Array:
        """Accuracies (n,) of summaries (n, s); may lie outside [0, 1]."""
        predicted: Array = self._compare(self._standardise(summaries)) @ self._weights + self._offset
        return predicted

    def nearness(self, summary: Array) -> Array:
        """Gaussian kernel between a summary (1, s) and each row, in (0, 1]; shape (r,)."""
        kernel: Array = _gaussian(self._standardise(summary), self._inputs)[0]
        return kernel

    def residuals(self, groups: NDArray[np.str_]) -> Array:
        """Accuracy of each row less what is predicted without the rows of its group; shape (r,)."""
        residuals = np.empty(len(groups))
        for group in np.unique(groups):
            here, rest = np.flatnonzero(groups == group), np.flatnonzero(groups != group)
            predicted = self._kernel[np.ix_(here, rest)] @ self._solve(rest) + self._offset
            residuals[here] = self._accuracies[here] - predicted.clip(0, 1)
        return residuals

    def _solve(self, rows: NDArray[np.int64]) -> Array:
        kernel = self._kernel[np.ix_(rows, rows)] + NOISE * np.eye(len(rows))
        return np.linalg.solve(kernel, self._accuracies[rows] - self._offset)

    def _standardise(self, summaries: Array) -> Array:
        standardised: Array = (summaries - self._mean) / self._spread
        return standardised

    def _compare(self, inputs: Array) -> Array:
        kernel: Array = _gaussian(inputs, self._inputs) + LINEAR * inputs @ self._inputs.T / inputs.shape[1]
        return kernel


def _gaussian(first: Array, second: Array) -> Array:
    squared = np.square(first[:, None] - second[None]).mean(2)
    kernel: Array = np.exp(-squared / (2 * WIDTH**2))
    return kernel


def _groups(kinds: tuple[str, ...]) -> NDArray[np.str_]:
    """Rows that are left out together: those of one corruption; each row without any for itself."""
    return np.array([f"{kind} {n}" if kind in (CLEAN, CLASS_MIX) else kind for n, kind in enumerate(kinds)])


def _weighted_quantile(values: Array, weights: Array, share: float) -> float:
    """Smallest value up to which lies at least this share of the weight."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) >= share * weights.sum() * (1 - 1e-12)
    return float(values[order][np.argmax(reached)])
