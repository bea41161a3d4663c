"""How much less rows tell that come in groups: frames of a clip, images of a device or an upload. Values in and out."""

from __future__ import annotations

import torch
from torch import Tensor

# How many groups' worth of doubt an estimate from few groups is given. Without, a holdout of few groups on which both
# models agree looks as sure as one of as many single rows; with 25, `benchmarks/gate.py` keeps its promise.
DOUBT = 25


def design_effect(values: Tensor, groups: Tensor) -> float:
    """The variance of a sum over rows, in multiples of what it would be if all rows were independent.

    Estimated between groups, and pulled towards the worst case, in which the rows of a group are all one: the fewer
    groups have anything to tell, the more.

    Args:
        values: What is added up, (n,): gained less lost (1, 0, -1), or wrong (1, 0). Mostly 0.
        groups: The group of each row, int64 (n,), from 0.

    Returns:
        From 1, where all groups are single rows, to about the number of rows in a group.

    Source:
        Rao and Scott, "A simple method for the analysis of clustered binary data", Biometrics 48 (1992), for counts
        divided by it; the between-groups variance of a ratio as in Cochran, "Sampling Techniques" (1977), 9A.
    """
    sizes = torch.bincount(groups)
    if not len(values) or int(sizes.max()) == 1:
        return 1.0
    values, sizes = values.double(), sizes.double()
    sums, telling = torch.bincount(groups, weights=values), torch.bincount(groups, weights=(values != 0).double()) > 0
    worst = float((sizes**2).sum() / len(values))
    mean, count, k = values.mean(), int((sizes > 0).sum()), int(telling.sum())
    alone = float(((values - mean) ** 2).sum())
    between = float(((sums - sizes * mean) ** 2).sum()) * count / max(count - 1, 1)
    estimate = between / alone if alone > 0 and count > 1 else worst
    return max(1.0, (k * estimate + DOUBT * worst) / (k + DOUBT))
