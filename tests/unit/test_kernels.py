"""Kernel statistics: by hand, against dense float64 sums with loops over labellings, whatever the blocks are."""

from itertools import pairwise
from math import exp, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform
from torch import Tensor

from components.detect_drift import kernels
from components.detect_drift.kernels import gaussian_bin_sums, gaussian_discrepancies
from components.detect_drift.relabelling import Relabellings, Sample, relabel

Array = np.ndarray[Any, Any]
WIDTHS = (0.5, 1.0, 2.0)

pytestmark = pytest.mark.usefixtures("one_thread")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def relabelled(reference: Tensor, current: Tensor, permutations: int = 30) -> tuple[Tensor, Relabellings]:
    """The rows in order, and their labellings."""
    found = relabel(Sample({"x": reference}), Sample({"x": current}), permutations, seeded(0))
    return found.pool(reference, current), found


def squared_distances(rows: Tensor) -> Array:
    points: Array = rows.double().numpy()
    return squareform(pdist(points, "sqeuclidean"))  # type: ignore[no-any-return]


def dense_kernels(rows: Tensor, scale: float) -> list[Array]:
    """Gaussian kernels at half, one and two times sqrt(scale), from differences in float64."""
    squared = squared_distances(rows)
    return [np.exp(-squared / (scale * width**2)) for width in WIDTHS]


def median_squared(rows: Tensor) -> float:
    apart = pdist(rows.double().numpy(), "sqeuclidean")
    positive = np.sort(apart[apart > 0])
    return float(positive[(len(positive) - 1) // 2])


def dense_discrepancies(rows: Tensor, found: Relabellings, scale: float) -> Array:
    """The biased statistic as Gretton et al. write it, labelling by labelling."""
    sides, bins = found.current.numpy(), found.bins.numpy()
    wanted = []
    for kernel in dense_kernels(rows, scale):
        values = []
        for labelling in range(sides.shape[1]):
            now = sides[bins, labelling] == 1
            values.append(
                kernel[np.ix_(now, now)].mean()
                + kernel[np.ix_(~now, ~now)].mean()
                - 2 * kernel[np.ix_(now, ~now)].mean()
            )
        wanted.append(values)
    return np.array(wanted)


# --- by hand


def test_bin_sums_of_two_points_by_hand() -> None:
    # Distance 1, scale 1: exp(-1 / width^2); every point is like itself.
    sums = gaussian_bin_sums(torch.tensor([[-0.5], [0.5]]), 1.0, torch.tensor([0, 1]), 2)
    for number, width in enumerate(WIDTHS):
        apart = exp(-1 / width**2)
        assert sums[number].flatten().tolist() == pytest.approx([1.0, apart, apart, 1.0])


def test_bin_sums_of_three_points_in_two_bins_by_hand() -> None:
    # Points 0, 1 | 3: within the first bin 2 + 2 e^-1, across e^-9 + e^-4, within the second 1 (width 1, scale 1).
    sums = gaussian_bin_sums(torch.tensor([[0.0], [1.0], [3.0]]), 1.0, torch.tensor([0, 0, 1]), 2)[1]
    assert float(sums[0, 0]) == pytest.approx(2 + 2 * exp(-1), rel=1e-6)
    assert float(sums[0, 1]) == pytest.approx(exp(-9) + exp(-4), rel=1e-6)
    assert float(sums[1, 0]) == pytest.approx(exp(-9) + exp(-4), rel=1e-6)
    assert float(sums[1, 1]) == pytest.approx(1)


def test_discrepancies_of_four_points_by_hand() -> None:
    # 0, 1 | 10, 11: pairs are 1, 1, 9, 10, 10, 11 apart, and the lower median is 9. With k(d) = exp(-d^2 / (9 w)^2) the
    # observed statistic is (1 + k(1)) / 2 twice, minus 2 (2 k(10) + k(9) + k(11)) / 4.
    rows, found = relabelled(torch.tensor([[0.0], [1.0]]), torch.tensor([[10.0], [11.0]]))
    observed = gaussian_discrepancies(rows, found)[:, 0]
    for width, value in zip(WIDTHS, observed.tolist(), strict=True):
        like = {d: exp(-((d / (9 * width)) ** 2)) for d in (1, 9, 10, 11)}
        assert value == pytest.approx(1 + like[1] - (2 * like[10] + like[9] + like[11]) / 2, abs=1e-6)


# --- agreement with dense sums


@pytest.mark.parametrize(("rows", "columns", "bins"), [(2, 1, 2), (37, 3, 9), (700, 8, 60), (900, 64, 128)])
def test_bin_sums_agree_with_a_dense_kernel(rows: int, columns: int, bins: int) -> None:
    points = torch.randn(rows, columns, generator=seeded(1))
    places = torch.cat([torch.arange(bins), torch.randint(0, bins, (rows - bins,), generator=seeded(2))]).sort().values
    scale = median_squared(points[:200])
    sums = gaussian_bin_sums(points, scale, places, bins)
    member = np.eye(bins)[places.numpy()]
    for found, kernel in zip(sums, dense_kernels(points, scale), strict=True):
        wanted = member.T @ kernel @ member
        assert np.allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("reference", "current", "columns"), [(2, 2, 1), (9, 5, 2), (60, 40, 3), (120, 30, 64), (100, 300, 8)]
)
def test_discrepancies_agree_with_loops_over_labellings(reference: int, current: int, columns: int) -> None:
    generator = seeded(3)
    then, now = (torch.randn(n, columns, generator=generator) for n in (reference, current))
    rows, found = relabelled(then, now + 0.3)
    wanted = dense_discrepancies(rows, found, median_squared(rows))
    assert np.allclose(gaussian_discrepancies(rows, found).numpy(), wanted, atol=1e-5)


def test_discrepancies_of_unequal_units_agree_with_loops_over_labellings() -> None:
    then, now = torch.randn(90, 3, generator=seeded(1)), torch.randn(50, 3, generator=seeded(2))
    units = torch.randint(0, 20, (90,), generator=seeded(3)), torch.randint(0, 8, (50,), generator=seeded(4))
    found = relabel(Sample({"x": then}, units[0]), Sample({"x": now}, units[1]), 40, seeded(0))
    rows = found.pool(then, now)
    wanted = dense_discrepancies(rows, found, median_squared(rows))
    assert np.allclose(gaussian_discrepancies(rows, found).numpy(), wanted, atol=1e-5)


def test_more_rows_than_the_median_needs_change_it_little() -> None:
    then, now = torch.randn(800, 4, generator=seeded(1)), torch.randn(500, 4, generator=seeded(2)) + 0.2
    rows, found = relabelled(then, now, permutations=3)
    wanted = dense_discrepancies(rows, found, median_squared(rows))
    assert np.allclose(gaussian_discrepancies(rows, found).numpy(), wanted, atol=2e-4)


# --- invariance


@pytest.mark.parametrize("block", [3, 7, 64, 100_000])
def test_blocks_of_any_size_give_the_same_sums(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    points = torch.randn(111, 5, generator=seeded(1))
    bins = torch.arange(111) // 9
    usual = gaussian_bin_sums(points, 5.0, bins, 13)
    monkeypatch.setattr(kernels, "BLOCK_ROWS", block)
    assert torch.allclose(gaussian_bin_sums(points, 5.0, bins, 13), usual, rtol=1e-5, atol=1e-5)


def test_bin_sums_are_symmetric_and_add_up_to_the_whole_kernel() -> None:
    points = torch.randn(600, 4, generator=seeded(1))
    sums = gaussian_bin_sums(points, 4.0, torch.arange(600) // 11, 55)
    assert torch.allclose(sums, sums.mT, rtol=1e-6, atol=0)
    whole = [kernel.sum() for kernel in dense_kernels(points, 4.0)]
    assert sums.sum(dim=(1, 2)).tolist() == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("constant", [1.0, 1000.0, -(2.0**20)])
def test_a_constant_column_changes_nothing(constant: float) -> None:
    then, now = 0.1 * torch.randn(80, 3, generator=seeded(1)), 0.1 * torch.randn(50, 3, generator=seeded(2))
    rows, found = relabelled(then, now)
    widened = torch.cat([rows, torch.full((len(rows), 1), constant)], dim=1)
    plain = gaussian_discrepancies(rows, found)
    assert torch.allclose(gaussian_discrepancies(widened, found), plain, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e3, 1e6])
def test_the_unit_of_the_features_does_not_matter(scale: float) -> None:
    then, now = torch.randn(80, 3, generator=seeded(1)), 0.5 + torch.randn(50, 3, generator=seeded(2))
    rows, found = relabelled(then, now)
    plain = gaussian_discrepancies(rows, found)
    assert torch.allclose(gaussian_discrepancies(scale * rows, found), plain, atol=1e-5)


def test_the_order_of_rows_within_a_sample_does_not_matter() -> None:
    then, now = torch.randn(90, 3, generator=seeded(1)), 0.5 + torch.randn(60, 3, generator=seeded(2))
    first, second = (
        gaussian_discrepancies(*relabelled(then[a], now[b]))[:, 0]
        for a, b in (
            (torch.arange(90), torch.arange(60)),
            (torch.randperm(90, generator=seeded(3)), torch.randperm(60, generator=seeded(4))),
        )
    )
    assert torch.allclose(first, second, atol=1e-5)


# --- both directions, and the ends


def test_equal_rows_differ_in_no_labelling() -> None:
    rows, found = relabelled(torch.full((70, 3), 0.1), torch.full((37, 3), 0.1))
    assert torch.equal(gaussian_discrepancies(rows, found), torch.zeros(3, 31))


def test_equal_samples_have_no_discrepancy_and_others_a_larger_one_the_further_they_are() -> None:
    then = torch.randn(100, 3, generator=seeded(1))
    found = [gaussian_discrepancies(*relabelled(then, then + shift))[:, 0] for shift in (0.0, 0.5, 1.0, 3.0)]
    assert float(found[0].abs().max()) < 1e-6
    for nearer, further in pairwise(found):
        assert bool((further > nearer).all())
    assert float(found[-1].max()) <= 2


def test_repeated_rows_do_not_make_the_median_distance_zero() -> None:
    # Most pairs are equal; the others are 1 apart, which is then the median.
    then, now = torch.zeros(50, 1), torch.cat([torch.zeros(25, 1), torch.ones(25, 1)])
    rows, found = relabelled(then, now, permutations=5)
    assert np.allclose(gaussian_discrepancies(rows, found).numpy(), dense_discrepancies(rows, found, 1.0), atol=1e-5)
    # By hand at width 1: k = e^-1 across; shares of ones 1/2 and 0: 2 (1/2)^2 (1 - k).
    assert float(gaussian_discrepancies(rows, found)[1, 0]) == pytest.approx((1 - exp(-1)) / 2, abs=1e-6)


@pytest.mark.parametrize("far", [1e2, 1e3, 1e4, 1e5, 1e6])
def test_rows_far_out_leave_the_statistic_a_discrepancy(far: float) -> None:
    """Squared norms of a million cancel to distances of one: no more may come out than rounding makes of it."""
    then, now = torch.randn(100, 8, generator=seeded(1)), torch.randn(60, 8, generator=seeded(2))
    then[:20] += far
    now[:12] -= far
    rows, found = relabelled(then, now)
    values = gaussian_discrepancies(rows, found)
    assert bool(values.isfinite().all())
    assert float(values.min()) >= -0.05
    assert float(values.max()) <= 2
    observed = sqrt(max(0.0, float(values[1, 0])))
    wanted = sqrt(dense_discrepancies(rows, found, median_squared(rows))[1, 0])
    assert observed == pytest.approx(wanted, abs=0.1)
