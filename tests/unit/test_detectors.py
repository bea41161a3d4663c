"""Two-sample tests: exact small cases, agreement with explicit sums, false alarms counted, changes found."""

from collections.abc import Callable
from itertools import combinations
from math import exp, sqrt

import pytest
import torch
from scipy.stats import binom
from torch import Tensor

from components.detect_drift.detectors import (
    gaussian_gram,
    label_gram,
    permutation_p_values,
    standardise,
    two_sample_test,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear_gram(values: list[float]) -> Tensor:
    rows = torch.tensor(values)[:, None]
    return rows @ rows.T


def squared_mmd(gram: Tensor, reference: list[int], current: list[int]) -> float:
    """The biased statistic as Gretton et al. write it: three double sums."""
    total = 0.0
    for i in reference:
        for j in reference:
            total += float(gram[i, j]) / len(reference) ** 2
    for i in current:
        for j in current:
            total += float(gram[i, j]) / len(current) ** 2
    for i in reference:
        for j in current:
            total -= 2 * float(gram[i, j]) / (len(reference) * len(current))
    return total


def every_split(gram: Tensor, reference_rows: int) -> list[float]:
    """The statistic of each way to call `reference_rows` of the rows the reference, the observed one first."""
    rows = range(len(gram))
    return [
        squared_mmd(gram, list(chosen), [i for i in rows if i not in chosen])
        for chosen in combinations(rows, reference_rows)
    ]


@pytest.mark.parametrize(
    ("values", "exact"),
    [
        # With a linear kernel the statistic is the squared difference of the means. Of {0, 1, 10, 11} two are the
        # reference: the splits and their mirrors give 100, 1 and 0 twice each.
        ([0.0, 1.0, 10.0, 11.0], 2 / 6),
        ([0.0, 10.0, 1.0, 11.0], 4 / 6),
        ([0.0, 11.0, 1.0, 10.0], 6 / 6),
    ],
)
def test_p_value_is_the_share_of_splits_at_least_as_extreme(values: list[float], exact: float) -> None:
    gram = linear_gram(values)
    observed, *others = every_split(gram, 2)
    assert sum(s >= observed - 1e-9 for s in [observed, *others]) / 6 == pytest.approx(exact)
    result = two_sample_test({"view": gram}, 2, 6000, seeded(0))
    assert result.p_value == pytest.approx(exact, abs=0.02)  # three standard errors of 6,000 draws
    assert result.views[0].p_value == result.p_value


def test_effect_of_a_tiny_case_by_hand() -> None:
    # Observed 100, permutation mean (100 + 1 + 0) / 3: sqrt(100 - 33.67) = 8.145.
    result = two_sample_test({"view": linear_gram([0.0, 1.0, 10.0, 11.0])}, 2, 6000, seeded(0))
    assert result.views[0].effect == pytest.approx(sqrt(100 - 101 / 3), abs=0.15)


def test_statistic_and_p_value_agree_with_double_sums_over_every_split() -> None:
    rows = torch.randn(9, 2, generator=seeded(3))
    rows[4:] += 0.8
    gram = gaussian_gram(rows)
    splits = every_split(gram, 4)
    assert len(splits) == 126
    exact_p = sum(s >= splits[0] - 1e-7 for s in splits) / len(splits)
    exact_effect = sqrt(max(0.0, splits[0] - sum(splits) / len(splits)))
    assert exact_effect > 0.1
    result = two_sample_test({"view": gram}, 4, 20_000, seeded(0))
    assert result.views[0].p_value == pytest.approx(exact_p, abs=4 * sqrt(exact_p * (1 - exact_p) / 20_000) + 1e-4)
    assert result.views[0].effect == pytest.approx(exact_effect, rel=0.02)


def test_gaussian_gram_agrees_with_a_double_loop() -> None:
    rows = torch.randn(7, 3, generator=seeded(1))
    points = [[float(v) for v in row] for row in rows]
    squared = [[sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) for q in points] for p in points]
    apart = sorted(squared[i][j] for i in range(7) for j in range(i))  # 21 pairs: the median is the eleventh
    scale = apart[10]
    gram = gaussian_gram(rows)
    for i in range(7):
        for j in range(7):
            kernels = [exp(-squared[i][j] / (scale * width**2)) for width in (0.5, 1.0, 2.0)]
            assert float(gram[i, j]) == pytest.approx(sum(kernels) / 3, abs=1e-5)


@pytest.mark.parametrize("rows", [10, 60])
@pytest.mark.parametrize("constant", [1.0, 1000.0])
def test_a_constant_feature_changes_nothing(rows: int, constant: float) -> None:
    features = 0.1 * torch.randn(rows, 3, generator=seeded(2))
    widened = torch.cat([features, torch.full((rows, 1), constant)], dim=1)
    assert torch.allclose(gaussian_gram(widened), gaussian_gram(features), atol=1e-3)


def test_equal_rows_have_similarity_one() -> None:
    gram = gaussian_gram(torch.ones(5, 3))
    assert torch.equal(gram, torch.ones(5, 5))


@pytest.mark.parametrize(("reference", "current"), [(2, 2), (7, 13), (30, 50), (100, 37), (64, 64)])
@pytest.mark.parametrize("seed", [0, 1])
def test_views_that_never_vary_show_no_drift(reference: int, current: int, seed: int) -> None:
    total = reference + current
    grams = {
        "features": gaussian_gram(torch.ones(total, 3)),
        "labels": label_gram(torch.zeros(total, dtype=torch.int64), 2),
    }
    result = two_sample_test(grams, reference, 199, seeded(seed))
    assert result.p_value > 0.05  # every labelling has the same statistic, 0
    assert all(view.effect < 1e-3 for view in result.views)


def test_same_seed_gives_the_same_result() -> None:
    gram = gaussian_gram(torch.randn(30, 2, generator=seeded(5)))
    assert two_sample_test({"a": gram}, 12, 99, seeded(9)) == two_sample_test({"a": gram}, 12, 99, seeded(9))


@pytest.mark.parametrize("permutations", [1, 9, 99, 499])
def test_p_values_are_never_zero(permutations: int) -> None:
    rows = torch.cat([torch.randn(30, 2, generator=seeded(0)), 50 + torch.randn(30, 2, generator=seeded(1))])
    result = two_sample_test({"a": gaussian_gram(rows)}, 30, permutations, seeded(2))
    assert result.p_value == pytest.approx(1 / (permutations + 1))
    assert result.views[0].p_value == pytest.approx(1 / (permutations + 1))


def test_identical_samples_are_quiet() -> None:
    half = torch.randn(40, 3, generator=seeded(0))
    result = two_sample_test({"a": gaussian_gram(torch.cat([half, half]))}, 40, 199, seeded(1))
    assert result.p_value > 0.9
    assert result.views[0].effect == 0.0


@pytest.mark.parametrize(
    "moved",
    [
        pytest.param(lambda x: x + 1.0, id="shifted"),
        pytest.param(lambda x: 3.0 * x, id="spread"),
        pytest.param(lambda x: x.abs(), id="folded"),
    ],
)
def test_moved_samples_are_loud(moved: Callable[[Tensor], Tensor]) -> None:
    then, now = torch.randn(80, 3, generator=seeded(0)), moved(torch.randn(80, 3, generator=seeded(1)))
    result = two_sample_test({"a": gaussian_gram(torch.cat([then, now]))}, 80, 199, seeded(2))
    assert result.p_value <= 0.01
    assert result.views[0].effect > 0.2


def test_effect_grows_with_the_shift() -> None:
    then, now = torch.randn(60, 2, generator=seeded(0)), torch.randn(60, 2, generator=seeded(1))
    effects = [
        two_sample_test({"a": gaussian_gram(torch.cat([then, now + shift]))}, 60, 99, seeded(2)).views[0].effect
        for shift in (0.3, 1.0, 3.0)
    ]
    assert effects == sorted(effects)
    assert effects[0] < effects[2] / 2


def null_p_values(views: int, runs: int, permutations: int) -> list[float]:
    p_values = []
    for seed in range(runs):
        generator = seeded(seed)
        grams = {str(v): gaussian_gram(torch.randn(26, 2, generator=generator)) for v in range(views)}
        p_values.append(two_sample_test(grams, 11, permutations, generator).p_value)
    return p_values


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5])
def test_false_alarms_come_as_often_as_alpha_says(views: int, alpha: float) -> None:
    runs = 400
    alarms = sum(p <= alpha + 1e-6 for p in null_p_values(views, runs, 199))
    assert binom.ppf(0.005, runs, alpha) <= alarms <= binom.ppf(0.995, runs, alpha)


def test_one_loud_view_among_quiet_ones_is_heard() -> None:
    quiet = {str(v): gaussian_gram(torch.randn(80, 2, generator=seeded(v))) for v in range(4)}
    rows = torch.randn(80, 2, generator=seeded(9))
    rows[40:] += 3.0
    result = two_sample_test({**quiet, "loud": gaussian_gram(rows)}, 40, 499, seeded(10))
    assert result.p_value <= 0.01
    assert {view.name: view.p_value <= 0.01 for view in result.views}["loud"]


def test_label_view_sees_a_shift_of_the_class_shares_and_images_do_not() -> None:
    generator = seeded(0)
    labels = torch.cat([torch.arange(120) % 3, torch.zeros(60, dtype=torch.int64), torch.arange(60) % 3])
    images = gaussian_gram(torch.randn(240, 4, generator=generator))
    result = two_sample_test({"images": images, "labels": label_gram(labels, 3)}, 120, 199, generator)
    p_values = {view.name: view.p_value for view in result.views}
    assert p_values["labels"] <= 0.01
    assert p_values["images"] > 0.05


def test_label_statistic_is_the_squared_distance_of_the_class_shares() -> None:
    # Shares (1/2, 1/2, 0) and (1/2, 1/4, 1/4): 0 + 1/16 + 1/16.
    gram = label_gram(torch.tensor([0, 1, 0, 1, 2, 0]), 3)
    assert squared_mmd(gram, [0, 1], [2, 3, 4, 5]) == pytest.approx(1 / 8)
    assert torch.equal(gram[0], torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0]))


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_by_name(broken: float) -> None:
    rows = torch.randn(20, 2, generator=seeded(0))
    rows[3, 1] = broken
    grams = {"good": torch.eye(20), "softmax": gaussian_gram(rows)}
    with pytest.raises(ValueError, match="'softmax' holds values that are not finite"):
        two_sample_test(grams, 10, 99, seeded(0))


@pytest.mark.parametrize(("reference", "total"), [(0, 5), (1, 5), (4, 5), (5, 5), (1, 2)])
def test_fewer_than_two_rows_on_a_side_are_refused(reference: int, total: int) -> None:
    with pytest.raises(ValueError, match="two each are needed"):
        two_sample_test({"a": torch.eye(total)}, reference, 99, seeded(0))


def test_two_rows_on_each_side_are_enough() -> None:
    assert 0 < two_sample_test({"a": torch.eye(4)}, 2, 99, seeded(0)).p_value <= 1


def test_permutation_p_values_count_ties_for_each_value() -> None:
    # 1 | 1 2 | 2 2 | 3: of six values two are at most 1, five at most 2, six at most 3.
    p = permutation_p_values(torch.tensor([2.0, 1.0, 2.0, 3.0, 1.0, 2.0]))
    assert p.tolist() == pytest.approx([5 / 6, 2 / 6, 5 / 6, 1.0, 2 / 6, 5 / 6])


def test_permutation_p_values_of_equal_statistics_are_one() -> None:
    assert permutation_p_values(torch.full((7,), 0.25)).tolist() == [1.0] * 7


def test_rounding_does_not_break_a_tie() -> None:
    p = permutation_p_values(torch.tensor([1.0, 1.0 - 1e-7, 0.0, 2.0]))
    assert p.tolist() == pytest.approx([3 / 4, 3 / 4, 1 / 4, 1.0])


def test_standardised_columns_have_mean_zero_and_deviation_one() -> None:
    # 1, 3: mean 2, deviation 1 (divided by n).
    assert standardise(torch.tensor([[1.0, 10.0], [3.0, 30.0]])).tolist() == [[-1.0, -1.0], [1.0, 1.0]]


@pytest.mark.parametrize("value", [0.0, 0.1, 123.456])
@pytest.mark.parametrize("shape", [(2, 1), (10, 1), (10, 3), (1000, 1), (1000, 3)])
def test_standardised_constant_columns_are_zero(value: float, shape: tuple[int, int]) -> None:
    assert torch.allclose(standardise(torch.full(shape, value)), torch.zeros(shape), atol=1e-3)
