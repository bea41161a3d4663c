"""Two-sample tests between the champion's reference sample and a window. Values in, values out.

Each view of the images is a Gram matrix over the pooled rows; one set of permutations serves all views, so that they
combine exactly. Not covered: what a difference means (`triage`, `decide`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from components.core.contracts import DriftView


@dataclass(frozen=True, kw_only=True)
class TestResult:
    """`views` with their own p-values, and the p-value of all together in (0, 1]; smaller is more evidence."""

    views: tuple[DriftView, ...]
    p_value: float


def two_sample_test(
    grams: Mapping[str, Tensor], reference_rows: int, permutations: int, generator: torch.Generator
) -> TestResult:
    """Test "both samples have one distribution" over several views at once.

    Statistic of a view: the squared maximum mean discrepancy (biased), w'Kw with w = 1/m on reference rows and -1/n on
    current rows. The combined statistic is the smallest p-value over the views, itself compared with its permutations.

    Args:
        grams: View name to Gram matrix over the pooled rows, float32, shape (m + n, m + n), reference rows first.
        reference_rows: m >= 2; n >= 2 rows follow.
        permutations: B >= 1.
        generator: Of the permutations.

    Returns:
        p-values counted as (1 + hits) / (1 + B), never 0; `effect` is the MMD above its permutation mean, in [0, 2].

    Raises:
        ValueError: A sample has fewer than two rows, or a Gram matrix is not finite.

    Source:
        Gretton et al., "A Kernel Two-Sample Test", JMLR 13 (2012). Minimum p: Westfall & Young, 1993.
    """
    total = next(iter(grams.values())).shape[0]
    if min(reference_rows, total - reference_rows) < 2:
        raise ValueError(f"{reference_rows} reference and {total - reference_rows} current rows: two each are needed")
    weights = torch.full((total,), -1.0 / (total - reference_rows))
    weights[:reference_rows] = 1.0 / reference_rows
    orders = torch.rand(permutations, total, generator=generator).argsort(dim=1)
    table = torch.cat([weights[None], weights[orders]]).T  # (m + n, 1 + B), the observed labelling first
    views, p_values = [], []
    for name, gram in grams.items():
        if not bool(gram.isfinite().all()):
            raise ValueError(f"view {name!r} holds values that are not finite")
        statistics = (table * (gram @ table)).sum(dim=0)
        # float32 sums of n rows are right to about this; below it a difference is rounding, not evidence
        resolution = 1e-6 * float(gram.abs().max()) * (1 / reference_rows + 1 / (total - reference_rows))
        p = permutation_p_values(-statistics, resolution)
        p_values.append(p)
        excess = (statistics[0] - statistics[1:].mean()).clamp(min=0).sqrt()
        views.append(DriftView(name=name, p_value=float(p[0]), effect=float(excess)))
    smallest = torch.stack(p_values).min(dim=0).values
    return TestResult(views=tuple(views), p_value=float(permutation_p_values(smallest)[0]))


def permutation_p_values(statistics: Tensor, resolution: float = 0.0) -> Tensor:
    """Share of the values that are at most each value, itself included, in (0, 1]; small statistics are extreme.

    Args:
        statistics: Shape (1 + B,), the observed one first.
        resolution: Values that differ by less count as equal, and so as hits; at least 1e-6 of their spread.
    """
    slack = max(resolution, 1e-6 * float(statistics.max() - statistics.min()))
    ordered = statistics.sort().values
    hits = torch.searchsorted(ordered, statistics + slack, right=True)
    return hits.to(torch.float32) / len(statistics)


def gaussian_gram(rows: Tensor) -> Tensor:
    """Mean of three Gaussian kernels at half, one and two times the median distance.

    Args:
        rows: float32, shape (n, d). Constant features change nothing.

    Returns:
        Gram matrix in (0, 1], float32, shape (n, n).

    Source:
        Median heuristic: Gretton et al. 2012, section 8.
    """
    centred = rows - rows.mean(dim=0)  # or a large constant feature would drown the distances in rounding
    squared = torch.cdist(centred, centred).square()
    away = squared[squared > 0]
    scale = float(away.median()) if len(away) else 1.0
    return torch.stack([(-squared / (scale * factor)).exp() for factor in (0.25, 1.0, 4.0)]).mean(dim=0)


def standardise(rows: Tensor) -> Tensor:
    """Columns to mean 0 and standard deviation 1; constant columns to 0. Shape (n, d) to the same."""
    spread = rows.std(dim=0, correction=0)
    constant = spread <= 1e-6 * rows.abs().amax(dim=0)  # all that float32 can tell
    return (rows - rows.mean(dim=0)) / torch.where(constant, torch.inf, spread)


def label_gram(labels: Tensor, classes: int) -> Tensor:
    """Linear kernel of one-hot labels: its MMD is the distance between the two class histograms.

    Args:
        labels: int64 in [0, classes), shape (n,).
    """
    onehot = torch.nn.functional.one_hot(labels, classes).float()
    return onehot @ onehot.T
