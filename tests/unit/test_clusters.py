"""Design effects by hand, against the variance that groups really have, and at the edge."""

from __future__ import annotations

import pytest
import torch

from components.evaluate.clusters import DOUBT, design_effect


def test_single_rows_tell_all_they_are() -> None:
    assert design_effect(torch.tensor([1, 0, -1, 0]), torch.arange(4)) == 1.0
    assert design_effect(torch.tensor([1, 0, -1, 0]), torch.tensor([7, 3, 9, 0])) == 1.0


def test_by_hand() -> None:
    # Three groups of two: (1, 1), (0, 0), (0, 0). Mean 1/3; sums less their size times it: 4/3, -2/3, -2/3.
    # Between: (16 + 4 + 4) / 9 x 3 / 2 = 4; alone: 2 x 4/9 + 4 x 1/9 = 4/3. So 3, from one group that tells anything.
    values, groups = torch.tensor([1, 1, 0, 0, 0, 0]), torch.tensor([0, 0, 1, 1, 2, 2])
    assert design_effect(values, groups) == pytest.approx((1 * 3 + DOUBT * 2) / (1 + DOUBT))


@pytest.mark.parametrize(
    ("values", "groups", "expected"),
    [
        ([], [], 1.0),
        ([0, 0, 0, 0], [0, 0, 1, 1], 2.0),  # nothing to estimate from: the worst
        ([1, 1, 1, 1], [0, 0, 0, 0], 4.0),  # one group is one row
        ([0, 0, 0], [0, 0, 1], 5 / 3),  # of unequal groups the size that a row finds itself in
    ],
)
def test_at_the_edge(values: list[int], groups: list[int], expected: float) -> None:
    found = design_effect(torch.tensor(values, dtype=torch.int64), torch.tensor(groups, dtype=torch.int64))
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(("tied", "expected"), [(0.0, 1.0), (0.5, 1 + 9 * 0.5), (1.0, 10.0)])
def test_many_groups_have_the_effect_that_they_were_made_with(tied: float, expected: float) -> None:
    # Of 4,000 groups of 10 some answer as one; the variance of such a sum is 10 times that of single rows.
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(4000).repeat_interleave(10)
    alone = torch.rand(40_000, generator=generator) < 0.1
    together = (torch.rand(4000, generator=generator) < 0.1).repeat_interleave(10)
    as_one = (torch.rand(4000, generator=generator) < tied).repeat_interleave(10)
    assert design_effect(torch.where(as_one, together, alone), groups) == pytest.approx(expected, rel=0.1)
