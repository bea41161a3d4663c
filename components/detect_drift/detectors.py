"""Detectors: each compares the champion's reference sample with a window from one point of view.

All follow one protocol: `fit` keeps the reference, `score` yields a statistic of the observed labelling and of each
relabelling, larger meaning more change, so that one set of relabellings serves them all and their p-values combine
exactly (`combination`). Values in, values out. Not covered: what a difference means (`severity`, `triage`, `decide`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor

from components.core.contracts import EffectUnit
from components.detect_drift.kernels import gaussian_discrepancies
from components.detect_drift.relabelling import Relabellings, Sample

THRESHOLDS = 128  # places at which two distributions are compared; more see nothing new in samples of thousands
RIDGE = 0.1  # of standardised columns: 0.01 to 0.1 find as much


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a detector says of the observed labelling (first) and of each relabelling, float (1 + B,) each.

    Attributes:
        statistics: What p-values come from; larger is more change.
        effects: The size of the change in the detector's own unit, >= 0.
    """

    statistics: Tensor
    effects: Tensor


class Detector(Protocol):
    """One point of view."""

    @property
    def name(self) -> str:
        """What people read."""
        ...

    @property
    def unit(self) -> EffectUnit:
        """What its effects are."""
        ...

    @property
    def weight(self) -> float:
        """How much this view counts in the combination, >= 0; one of weight 0 is shown and raises no alarm."""
        ...

    def fit(self, reference: Sample) -> Self:
        """Keep the reference sample to compare with."""
        ...

    def score(self, current: Sample, relabellings: Relabellings) -> Scores:
        """Compare a window with the reference, under every labelling.

        Raises:
            ValueError: The samples have other columns, or values that are not finite.
        """
        ...


@dataclass(frozen=True)
class FittedDetector:
    """What all detectors have in common: some columns of the samples, and the reference once they are fitted.

    Attributes:
        name: What people read.
        columns: Those looked at; by default the one of that name.
        weight: See `Detector`.
    """

    name: str
    columns: tuple[str, ...] = ()
    weight: float = 1.0
    reference: Sample | None = field(default=None, repr=False)
    unit: ClassVar[EffectUnit] = "share of images"

    def fit(self, reference: Sample) -> Self:
        """Keep the reference sample to compare with."""
        return replace(self, reference=reference)

    def _pooled(self, current: Sample, relabellings: Relabellings) -> list[Tensor]:
        """The rows in use of each column, in the order of the relabellings."""
        assert self.reference is not None, f"{self.name} was not fitted"
        columns = self.columns or (self.name,)
        return [relabellings.pool(self.reference.columns[column], current.columns[column]) for column in columns]


@dataclass(frozen=True)
class KernelDetector(FittedDetector):
    """Maximum mean discrepancy of feature vectors, aggregated over three bandwidths: any difference of distributions.

    Statistic: the largest, over the bandwidths, of the discrepancies in standard deviations of their relabellings.
    Effect: the discrepancy at the median distance above its mean over relabellings, in [0, 1.5].

    Attributes:
        standardised: Bring columns to one spread first: for statistics of unlike units.

    Source:
        Gretton et al., "A Kernel Two-Sample Test", JMLR 13 (2012); normalised maxima over kernels: Biggs, Schrab and
        Gretton, "MMD-FUSE", NeurIPS 2023.
    """

    standardised: bool = False
    unit = "kernel distance"

    def score(self, current: Sample, relabellings: Relabellings) -> Scores:
        (rows,) = self._pooled(current, relabellings)
        squared = gaussian_discrepancies(standardise(rows) if self.standardised else rows, relabellings)
        middle = squared[1] - squared[1].mean()
        return Scores(statistics=normalise(squared).amax(dim=0), effects=middle.clamp(min=0).sqrt())


@dataclass(frozen=True)
class ClassifierDetector(FittedDetector):
    """Classifier two-sample test: how well a ridge classifier tells reference rows from current ones.

    Statistic: the squared distance of the two means in the metric of the pooled, shrunken covariance, which is what the
    classifier separates on its own training rows; relabellings are fitted just as closely, which calibrates it.
    Effect: that distance beyond what relabellings reach, in standard deviations, >= 0.

    Source:
        Lopez-Paz and Oquab, "Revisiting Classifier Two-Sample Tests", ICLR 2017; the regularised Hotelling statistic:
        Li et al., "An adaptable generalization of Hotelling's T2 test", Annals of Statistics 48 (2020).
    """

    unit = "standard deviations"

    def score(self, current: Sample, relabellings: Relabellings) -> Scores:
        rows = torch.cat([standardise(rows) for rows in self._pooled(current, relabellings)], dim=1)
        squared = relabellings.mean_differences(whiten(rows, RIDGE)).square().sum(dim=1)
        return Scores(statistics=squared, effects=(squared - squared.mean()).clamp(min=0).sqrt())


@dataclass(frozen=True)
class MarginalDetector(FittedDetector):
    """Kolmogorov-Smirnov distances of all columns one by one; with softmax columns, black-box shift detection.

    Statistic: the largest, over the columns, of the distances in standard deviations of their relabellings.
    Effect: the largest distance, in [0, 1]: that share of the images has moved past some value of a column.

    Source:
        Rabanser, Guennemann and Lipton, "Failing Loudly", NeurIPS 2019; Lipton, Wang and Smola, "Detecting and
        Correcting for Label Shift with Black Box Predictors", ICML 2018.
    """

    def score(self, current: Sample, relabellings: Relabellings) -> Scores:
        (rows,) = self._pooled(current, relabellings)
        distances = torch.stack([_ks_distances(column, relabellings) for column in rows.T])
        return Scores(statistics=normalise(distances).amax(dim=0), effects=distances.amax(dim=0))


@dataclass(frozen=True)
class CountDetector(FittedDetector):
    """Chi-square statistic of class counts, int64 >= 0: of labels, or of the champion's answers.

    Effect: total variation distance of the two histograms, in [0, 1]: that share of the images would have to change
    class.

    Source:
        Pearson 1900; its null distribution is that of the relabellings, also for rare classes.
    """

    def score(self, current: Sample, relabellings: Relabellings) -> Scores:
        (answers,) = self._pooled(current, relabellings)
        if len(answers) and int(answers.min()) < 0:
            raise ValueError(f"{self.name}: class {int(answers.min())}, expected 0 or more")
        bins, classes = len(relabellings.current), int(answers.max()) + 1
        counts = torch.bincount(relabellings.bins * classes + answers, minlength=bins * classes).view(bins, classes)
        differences = relabellings.differences(counts.double())
        shares = (counts.sum(dim=0) / len(answers)).clamp(min=1 / len(answers))
        then, now = relabellings.rows
        precision = 1 / (1 / now + 1 / then)
        chi_square = precision * (differences.square() / shares).sum(dim=1)
        return Scores(statistics=chi_square, effects=differences.abs().sum(dim=1) / 2)


def whiten(rows: Tensor, ridge: float, known: int | None = None) -> Tensor:
    """Rows (N, d) in directions that are uncorrelated and of unit variance but for the ridge.

    Args:
        rows: float32 (N, d), about the origin.
        ridge: Variance that is added to each column, > 0.
        known: The covariance is that of so many rows from the first; None: of all rows.
    """
    covariance = rows[:known].T @ rows[:known] / len(rows[:known])
    covariance.diagonal().add_(ridge)
    whitened: Tensor = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), rows.T, upper=False)
    return whitened.T


def standardise(rows: Tensor, known: int | None = None) -> Tensor:
    """Columns to mean 0 and standard deviation 1 over the first `known` rows (None: all); constant columns to 0.

    Shape (n, d) to the same.
    """
    spread = rows[:known].std(dim=0, correction=0)
    constant = spread <= 1e-6 * rows[:known].abs().amax(dim=0)  # all that float32 can tell
    return (rows - rows[:known].mean(dim=0)) / torch.where(constant, torch.inf, spread)


def normalise(statistics: Tensor) -> Tensor:
    """Statistics (s, 1 + B) in standard deviations from their mean over all labellings; constant ones to 0."""
    return standardise(statistics.T).T


def _ks_distances(values: Tensor, relabellings: Relabellings) -> Tensor:
    """Largest distance of the two distribution functions under each labelling: values (N,) to (1 + B,) in [0, 1]."""
    distinct = values.unique()
    if len(distinct) > THRESHOLDS:
        distinct = values.sort().values[torch.linspace(0, len(values) - 1, THRESHOLDS).long()].unique()
    place = torch.searchsorted(distinct, values.contiguous())  # between these, and one beyond the last
    bins, columns = len(relabellings.current), len(distinct) + 1
    counts = torch.bincount(relabellings.bins * columns + place, minlength=bins * columns)
    below = counts.view(bins, columns).cumsum(dim=1)[:, :-1].double()
    return relabellings.differences(below).abs().amax(dim=1)
