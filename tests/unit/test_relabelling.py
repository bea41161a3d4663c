"""Relabellings: whole units change sides, every labelling is as likely as any other, and the limits of bins hold."""

from collections.abc import Sequence
from math import comb, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor

from components.detect_drift.relabelling import (
    ALWAYS_USED,
    LEAST_BINS,
    MOST_BINS,
    MOST_TO_ONE,
    SOME_ROWS,
    Relabellings,
    Sample,
    relabel,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(rows: int, units: Sequence[int] | None = None) -> Sample:
    """A sample of so many rows whose only column says which row it is."""
    return Sample({"row": torch.arange(rows)[:, None].float()}, None if units is None else torch.tensor(units))


def drawn(reference: int, current: int, permutations: int = 99, seed: int = 0) -> Relabellings:
    return relabel(images(reference), images(current), permutations, seeded(seed))


def loop_differences(found: Relabellings, rows: Tensor) -> np.ndarray[Any, Any]:
    """Mean of the current rows minus mean of the reference rows, by their definition, in float64."""
    values, bins, sides = rows.double().numpy(), found.bins.numpy(), found.current.numpy()
    wanted = []
    for labelling in range(sides.shape[1]):
        now = sides[bins, labelling] == 1
        wanted.append(values[now].mean(axis=0) - values[~now].mean(axis=0))
    return np.array(wanted)


# --- by hand


def test_two_images_and_two_images_have_six_labellings() -> None:
    found = drawn(2, 2, permutations=6000)
    assert found.distinct == 6  # choose 2 of 4
    assert sorted(found.order.tolist()) == [0, 1, 2, 3]
    assert set(found.order[:2].tolist()) == {0, 1}  # the reference's bins come first
    assert found.bins.tolist() == [0, 1, 2, 3]
    assert found.current[:, 0].tolist() == [0, 0, 1, 1]
    assert found.sizes.tolist() == [1, 1, 1, 1]
    assert found.weights[:, 0].tolist() == [-0.5, -0.5, 0.5, 0.5]
    counts = np.unique(found.current[:, 1:].numpy(), axis=1, return_counts=True)[1]
    assert len(counts) == 6
    least, most = binom.ppf([0.0005, 0.9995], 6000, 1 / 6)
    assert all(least <= count <= most for count in counts)


def test_units_that_are_not_alike_are_cut_to_what_nearly_all_have() -> None:
    # 20 clips of 5 beside 20 of 3 to 7: the lower tenth of those is 3, and every unit gives three of its rows.
    lengths = [3, 4, 5, 6, 7] * 4
    there = torch.arange(20).repeat_interleave(5)
    here = torch.arange(20).repeat_interleave(torch.tensor(lengths))
    found = relabel(images(100, there.tolist()), images(100, here.tolist()), 50, seeded(0))
    assert found.sizes.unique().tolist() == [3]
    rows = torch.cat([there, 100 + here])[found.order]
    assert all(len(rows[found.bins == n].unique()) == 1 for n in range(40))
    others = relabel(images(100, there.tolist()), images(100, here.tolist()), 50, seeded(1))
    assert set(found.order.tolist()) != set(others.order.tolist()), "which rows these are is a matter of chance"


# --- agreement with explicit loops


@pytest.mark.parametrize(("reference", "current"), [(2, 2), (7, 5), (100, 33), (40, 900)])
def test_mean_differences_agree_with_loops_over_the_labellings(reference: int, current: int) -> None:
    found = drawn(reference, current, permutations=40)
    pooled = torch.randn(reference + current, 3, generator=seeded(1))
    rows = found.pool(pooled[:reference], pooled[reference:])
    assert np.allclose(found.mean_differences(rows).numpy(), loop_differences(found, rows), atol=1e-5)


def test_mean_differences_of_unequal_units_agree_with_loops() -> None:
    reference = torch.randint(0, 40, (300,), generator=seeded(2)).tolist()
    current = torch.randint(0, 9, (80,), generator=seeded(3)).tolist()
    found = relabel(images(300, reference), images(80, current), 60, seeded(0))
    rows = torch.randn(380, 2, generator=seeded(1))[found.order]
    assert np.allclose(found.mean_differences(rows).numpy(), loop_differences(found, rows), atol=1e-5)


# --- whose rows are where


@pytest.mark.parametrize(("reference", "current"), [(2, 2), (3, 50), (100, 100), (700, 90), (3000, 400), (90, 3000)])
def test_bins_hold_one_sample_each_and_as_many_units_each(reference: int, current: int) -> None:
    found = drawn(reference, current, permutations=20)
    assert len(found.order.unique()) == len(found.order)  # every row once
    assert len(found.sizes.unique()) == 1
    is_current = (found.order >= reference).float()
    assert torch.equal(is_current, found.current[found.bins, 0])
    assert bool((found.bins.diff() >= 0).all())
    assert torch.equal(found.bins.unique(), torch.arange(len(found.current)))


@pytest.mark.parametrize(("reference", "current"), [(2, 2), (30, 50), (700, 90)])
def test_every_labelling_moves_as_many_bins(reference: int, current: int) -> None:
    found = drawn(reference, current, permutations=200)
    assert found.current.shape[1] == 201
    assert set(found.current.unique().tolist()) == {0.0, 1.0}
    assert len(found.current.sum(dim=0).unique()) == 1
    assert found.distinct == comb(len(found.current), int(found.current[:, 0].sum()))


def test_every_bin_is_on_the_current_side_as_often() -> None:
    found = drawn(30, 10, permutations=4000)
    least, most = binom.ppf([0.0001, 0.9999], 4000, 10 / 40)
    assert all(least <= times <= most for times in found.current[:, 1:].sum(dim=1).tolist())


def test_units_move_whole() -> None:
    units = [n // 7 for n in range(1400)]
    found = relabel(images(1400, units), images(700, units[:700]), 50, seeded(0))
    for first, number in ((0, 1400), (1400, 700)):
        bin_of = dict(zip(found.order.tolist(), found.bins.tolist(), strict=True))
        for unit in range(number // 7):
            held = {bin_of.get(first + 7 * unit + n) for n in range(7)}
            assert len(held) == 1, "in one bin, or all left out"


@pytest.mark.parametrize("names", [[5, 5, -3, 900, 900, 900], [1, 1, 0, 2, 2, 2]])
def test_units_are_equal_or_not_and_nothing_else(names: list[int]) -> None:
    plain = relabel(images(6, [1, 1, 0, 2, 2, 2]), images(4), 30, seeded(0))
    named = relabel(images(6, names), images(4), 30, seeded(0))
    assert torch.equal(plain.order, named.order)
    assert torch.equal(plain.bins, named.bins)
    assert torch.equal(plain.current, named.current)


def test_every_image_for_itself_is_units_of_one() -> None:
    alone = relabel(images(50), images(30), 20, seeded(0))
    numbered = relabel(images(50, list(range(50))), images(30, list(range(30))), 20, seeded(0))
    assert torch.equal(alone.order, numbered.order)
    assert torch.equal(alone.current, numbered.current)


def test_a_unit_in_both_samples_stands_for_two() -> None:
    found = relabel(images(4, [0, 0, 1, 1]), images(4, [1, 1, 2, 2]), 20, seeded(0))
    assert found.distinct == 6
    assert found.sizes.tolist() == [2, 2, 2, 2]


# --- the limits of bins


@pytest.mark.parametrize(
    ("reference", "current"),
    [
        *((5000, 32), (5000, 64), (5000, 100), (5000, 257), (5000, 1000), (5000, 5000), (100, 100), (33, 2000)),
        # A bin holds a few units more where that leaves fewer over, and then they are fewer than `LEAST_BINS`:
        *((5000, 290), (5000, 300)),
    ],
)
def test_the_smaller_side_keeps_its_least_number_of_bins(reference: int, current: int) -> None:
    found = drawn(reference, current, permutations=1)
    now = int(found.current[:, 0].sum())
    assert min(now, len(found.current) - now) >= min(LEAST_BINS, reference, current)


@pytest.mark.parametrize(("reference", "current"), [(5000, 400), (5000, 1000), (5000, 5000), (300, 500), (512, 512)])
def test_bins_are_no_more_than_the_limit_where_both_sides_have_many_units(reference: int, current: int) -> None:
    assert len(drawn(reference, current, permutations=1).current) <= MOST_BINS


@pytest.mark.parametrize("current", [5, 31, 32, 63, 64, 100, 131, 256, 290, 301, 333, 500, 999, 1000, 3000])
@pytest.mark.parametrize("reference", [40, 500, 1999, 2000])
def test_units_that_fill_no_bin_are_few(reference: int, current: int) -> None:
    found = drawn(reference, current, permutations=1)
    per_bin = int(found.sizes[0])
    is_current = found.order >= reference
    for rows, used in ((reference, int((~is_current).sum())), (current, int(is_current.sum()))):
        if rows <= max(ALWAYS_USED, MOST_TO_ONE * min(reference, current)):
            assert 0 <= rows - used < per_bin
            assert rows - used <= 0.04 * rows  # of 32 bins, less than one


@pytest.mark.parametrize(
    ("reference", "current", "wanted"),
    [
        (6000, 5, ALWAYS_USED),  # never fewer
        (6000, 100, 2000),  # 20 to one
        (6000, 200, 4000),
        (6000, 400, 6000),
        (100, 6000, 2000),  # nor more of the window
    ],
)
def test_the_larger_sample_gives_twenty_to_one(reference: int, current: int, wanted: int) -> None:
    found = drawn(reference, current, permutations=1)
    is_larger = (found.order >= reference) == (current > reference)
    used = int(is_larger.sum())
    assert wanted - int(found.sizes[0]) < used <= wanted
    places = found.order[is_larger].double() - (reference if current > reference else 0)
    size = max(reference, current)
    assert abs(float(places.mean()) - size / 2) < 4 * size / sqrt(12 * used), "drawn from everywhere"


def test_what_is_drawn_for_medians_is_some_of_the_rows_once() -> None:
    for rows in (10, 3000):
        found = drawn(rows, rows, permutations=1)
        assert len(found.some) == len(found.some.unique()) == min(SOME_ROWS, 2 * rows)
        assert int(found.some.max()) < len(found.order)
    shares = (found.some < len(found.order) // 2).double().mean()
    assert 0.44 < float(shares) < 0.56, "of both samples"


# --- seeds


def test_one_seed_gives_one_set_of_relabellings() -> None:
    first, second, other = drawn(300, 200, seed=4), drawn(300, 200, seed=4), drawn(300, 200, seed=5)
    for name in ("order", "bins", "current", "some"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert not torch.equal(first.current, other.current)
    assert not torch.equal(first.order, other.order)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    drawn(50, 50)
    assert torch.equal(before, torch.random.get_rng_state())


# --- bad input


@pytest.mark.parametrize(("reference", "current"), [(0, 5), (5, 0), (1, 5), (5, 1), (1, 1), (0, 0)])
def test_fewer_than_two_images_on_a_side_are_refused(reference: int, current: int) -> None:
    with pytest.raises(ValueError, match=f"{reference} reference and {current} current units: two each are needed"):
        drawn(reference, current)


def test_many_images_of_one_unit_are_refused() -> None:
    with pytest.raises(ValueError, match="40 reference and 1 current units"):
        relabel(images(40), images(500, [3] * 500), 99, seeded(0))


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", [0, 1])
def test_values_that_are_not_finite_are_refused(broken: float, side: int) -> None:
    sides = [torch.zeros(6, 2), torch.zeros(6, 2)]
    sides[side][3, 1] = broken
    with pytest.raises(ValueError, match="not finite"):
        drawn(6, 6).pool(*sides)


@pytest.mark.parametrize(
    ("reference", "current"),
    [
        (torch.zeros(6, 2), torch.zeros(6, 3)),
        (torch.zeros(6, 2), torch.zeros(6)),
        (torch.zeros(6, 2), torch.zeros(6, 2, dtype=torch.float64)),
        (torch.zeros(6, 2), torch.zeros(6, 2, dtype=torch.int64)),
        (torch.zeros(5, 2), torch.zeros(6, 2)),
        (torch.zeros(7, 2), torch.zeros(6, 2)),
    ],
    ids=["width", "dimensions", "float64", "int64", "few-reference", "more-reference"],
)
def test_rows_that_cannot_be_compared_are_refused(reference: Tensor, current: Tensor) -> None:
    found = drawn(6, 6)
    with pytest.raises(ValueError, match="row"):
        found.pool(reference, current)


@pytest.mark.parametrize("rows", [0, 4, 12])
def test_units_and_columns_of_other_lengths_are_refused(rows: int) -> None:
    """Rows beyond the units would be left out in silence."""
    with pytest.raises(ValueError, match="rows"):
        images(9, list(range(rows)))
    with pytest.raises(ValueError, match="rows"):
        Sample({"x": torch.zeros(9, 1), "y": torch.zeros(rows)})


def test_a_sample_of_no_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="rows"):
        Sample({})
