"""Which rows are kept or replayed: three ways of choosing, each balanced over classes.

All three put the rows in an order of preference and then take one of each class in turn, so that classes differ by at
most one row unless one has run out, and what it leaves over goes to the others. Values in, values out. Not covered: how
the chosen rows are kept with a version and read again (`core.exemplars`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from components.core.storage import sha256_hex


def choose_replay(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw rows balanced over classes, without putting any back.

    Args:
        labels: Class indices, int64, shape (n,), on the CPU.
        count: Rows wanted; all n where there are fewer.
        generator: Of the draw.

    Returns:
        Row indices, int64, ascending.
    """
    return _in_turn(labels, torch.randperm(len(labels), generator=generator), count).sort().values


def choose_reservoir(labels: Tensor, count: int, priorities: Tensor) -> Tensor:
    """Keep the rows of lowest priority in each class: a uniform sample of all that a class has ever shown.

    What was kept of earlier rows, together with later rows, gives what a choice among all of them at once would give,
    in whatever order they came: a row that is beaten once stays beaten. So nothing but what is kept has to be there.

    Args:
        labels: Class indices, int64, shape (n,), on the CPU: of the rows kept before and of the new ones.
        count: Rows wanted; all n where there are fewer.
        priorities: See `draw_priorities`, float64 (n,). A row keeps the one it was first given.

    Returns:
        Row indices, int64, in the order of choice; the first m are the choice of m rows.

    Source:
        Reservoir sampling: Vitter, "Random Sampling with a Reservoir", ACM TOMS 11 (1985), by random keys as in
        Efraimidis & Spirakis, "Weighted random sampling with a reservoir", IPL 97 (2006). Balanced over classes: the
        aim of Chrysakis & Moens, "Online Continual Learning from Imbalanced Data", ICML 2020.
    """
    return _in_turn(labels, priorities.argsort(stable=True), count)


def draw_priorities(digests: Sequence[str], seed: int) -> Tensor:
    """Give each image its random priority, the same one whenever and beside whatever it comes.

    Args:
        digests: SHA-256 of n images.
        seed: Of the draw.

    Returns:
        float64 (n,), uniform in (0, 1).
    """
    # 52 bits and a half are what a float64 holds exactly: neither end can be reached by rounding.
    drawn = [int(sha256_hex(f"replay {seed} {digest}".encode())[:13], 16) + 0.5 for digest in digests]
    return torch.tensor(drawn, dtype=torch.float64) / 16**13


def choose_herding(labels: Tensor, count: int, features: Tensor) -> Tensor:
    """Keep the rows of each class whose mean feature stays closest to the mean of the class.

    Takes one pass over the features of a class for each row that is kept of it.

    Args:
        labels: Class indices, int64, shape (n,), on the CPU.
        count: Rows wanted; all n where there are fewer.
        features: Of any scale, float (n, d), on any device. Each is scaled to length 1; one that is not finite counts
            as zero there.

    Returns:
        Row indices, int64, on the CPU, in the order of choice; the first m are the choice of m rows.

    Source:
        Rebuffi et al., "iCaRL: Incremental Classifier and Representation Learning", CVPR 2017, algorithm 4.
    """
    classes, sizes = labels.unique(return_counts=True)
    # The same bound for all classes: the least at which they have `count` rows together.
    most = bisect_left(range(count + 1), count, key=lambda most: int(sizes.clamp(max=most).sum()))
    herds = [torch.empty(0, dtype=torch.int64)]
    for label in classes:
        members = (labels == label).nonzero().flatten()
        herds.append(members[_herd(features[members.to(features.device)], most).cpu()])
    return _in_turn(labels, torch.cat(herds), count)


def _herd(features: Tensor, count: int) -> Tensor:
    """Of a class of n rows and mean m, the first `count`, int64: each brings the mean so far closest to m.

    After s - 1 rows of sum t, row x leaves ||s m - t - x||^2: least where x·(s m - t) - ||x||^2 / 2 is greatest. The
    products of all pairs would make that cheaper (2.6 times at n = 10,000, d = 512), but are n^2 numbers.
    """
    points = normalize(features.float().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0), dim=1)
    mean, total = points.mean(dim=0), torch.zeros_like(points[0])
    handicap = points.square().sum(dim=1) / 2
    herd = torch.empty(min(count, len(points)), dtype=torch.int64, device=points.device)
    for step in range(len(herd)):
        chosen = (points @ ((step + 1) * mean - total) - handicap).argmax()
        handicap[chosen] = torch.inf
        total += points[chosen]
        herd[step] = chosen
    return herd


def _in_turn(labels: Tensor, order: Tensor, count: int) -> Tensor:
    """Of an order of rows, int64 (m,), the first of each class, then the second of each; among equals as ordered."""
    labels = labels[order]
    by_class = labels.argsort(stable=True)
    sizes = labels.unique(return_counts=True)[1]
    rank = torch.empty_like(order)  # how many of the same class come before a row
    rank[by_class] = torch.arange(len(order)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return order[rank.argsort(stable=True)][:count]
