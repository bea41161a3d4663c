"""Detectors: exact small cases, agreement with scipy and float64, ties, groups, changes found, none invented."""

from collections.abc import Callable
from itertools import combinations
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom, chi2_contingency, ks_2samp
from torch import Tensor
from torch.nn.functional import one_hot

from components.detect_drift.combination import p_values_of
from components.detect_drift.detectors import (
    THRESHOLDS,
    ClassifierDetector,
    CountDetector,
    Detector,
    KernelDetector,
    MarginalDetector,
    Scores,
    normalise,
    standardise,
)
from components.detect_drift.novelty import NoveltyDetector
from components.detect_drift.relabelling import Relabellings, Sample, relabel

pytestmark = pytest.mark.usefixtures("one_thread")

Array = np.ndarray[Any, Any]
VECTORS: list[Detector] = [
    KernelDetector("x"),
    KernelDetector("x", standardised=True),
    ClassifierDetector("x"),
    MarginalDetector("x"),
]
NOVELTY = NoveltyDetector("novelty", ("softmax", "x"))
VECTOR_NAMES = ["kernel", "standardised", "classifier", "marginal"]
ALL: list[Detector] = [*VECTORS, NOVELTY, CountDetector("answers")]
ALL_NAMES = [*VECTOR_NAMES, "novelty", "counts"]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randn(rows, columns, generator=seeded(seed))


def sample(x: Tensor, answers: Tensor | None = None, units: Tensor | None = None) -> Sample:
    """Feature vectors, and the champion's answers, by default all the same."""
    answers = torch.zeros(len(x), dtype=torch.int64) if answers is None else answers
    return Sample({"x": x, "answers": answers, "softmax": one_hot(answers.clamp(min=0), 20).float()}, units)


def scored(
    detector: Detector, reference: Sample, current: Sample, permutations: int = 99, seed: int = 0
) -> tuple[Scores, Relabellings]:
    found = relabel(reference, current, permutations, seeded(seed))
    return detector.fit(reference).score(current, found), found


def p_value(detector: Detector, reference: Sample, current: Sample, permutations: int = 99, seed: int = 0) -> float:
    return float(p_values_of(scored(detector, reference, current, permutations, seed)[0].statistics)[0])


def column(values: list[float]) -> Tensor:
    return torch.tensor(values)[:, None]


def each_labelling(found: Relabellings, values: Tensor) -> list[tuple[Array, Array]]:
    """Reference and current rows of `values` (in order of the relabellings), labelling by labelling."""
    rows, bins, sides = values.double().numpy(), found.bins.numpy(), found.current.numpy()
    return [(rows[sides[bins, n] == 0], rows[sides[bins, n] == 1]) for n in range(sides.shape[1])]


# --- by hand


@pytest.mark.parametrize(
    ("values", "exact"),
    [
        # The ridge classifier of one column goes by the squared difference of the means. Of {0, 1, 10, 11} two are the
        # reference: the splits and their mirrors give 100, 1 and 0 twice each.
        ([0.0, 1.0, 10.0, 11.0], 2 / 6),
        ([0.0, 10.0, 1.0, 11.0], 4 / 6),
        ([0.0, 11.0, 1.0, 10.0], 6 / 6),
    ],
)
def test_p_value_is_the_share_of_splits_at_least_as_extreme(values: list[float], exact: float) -> None:
    found = p_value(ClassifierDetector("x"), sample(column(values[:2])), sample(column(values[2:])), 6000)
    assert found == pytest.approx(exact, abs=0.02)  # three standard errors of 6,000 draws


@pytest.mark.parametrize(
    ("values", "exact"),
    # Distances of the distribution functions: 1 for the sorted split and its mirror, 1/2 for the four others.
    [([0.0, 1.0, 10.0, 11.0], 2 / 6), ([0.0, 10.0, 1.0, 11.0], 1.0), ([0.0, 11.0, 1.0, 10.0], 1.0)],
)
def test_p_value_of_distribution_functions_by_hand(values: list[float], exact: float) -> None:
    found = p_value(MarginalDetector("x"), sample(column(values[:2])), sample(column(values[2:])), 6000)
    assert found == pytest.approx(exact, abs=0.02)


def test_effect_of_the_classifier_by_hand() -> None:
    # Variance (5.5^2 + 4.5^2) / 2 = 25.25, and a ridge of 0.1 after standardising: the observed squared distance is
    # 100 / 25.25 / 1.1 = 3.600, its mean over the splits (100 + 1 + 0) / 3 of that: sqrt(3.600 - 1.212) = 1.545.
    scores, _ = scored(ClassifierDetector("x"), sample(column([0.0, 1.0])), sample(column([10.0, 11.0])), 6000)
    assert float(scores.statistics[0]) == pytest.approx(100 / 25.25 / 1.1, rel=1e-5)
    assert float(scores.effects[0]) == pytest.approx(sqrt((100 - 101 / 3) / 25.25 / 1.1), abs=0.03)


def test_counts_by_hand() -> None:
    # Shares (1/2, 1/2, 0) of 2 and (1/2, 1/4, 1/4) of 4. Expected of 6: 3, 2, 1 in the ratio 2 : 4, so 1, 2/3, 1/3 and
    # 2, 4/3, 2/3. Squared differences over expected: 0 + (1/3)^2 (3/2 + 3/4) + (1/3)^2 (3 + 3/2) = 1/4 + 1/2.
    reference, current = (
        sample(torch.zeros(len(answers), 1), torch.tensor(answers)) for answers in ([0, 1], [0, 1, 2, 0])
    )
    scores, _ = scored(CountDetector("answers"), reference, current)
    assert float(scores.statistics[0]) == pytest.approx(3 / 4, abs=1e-6)
    assert float(scores.effects[0]) == pytest.approx(1 / 4, abs=1e-6)  # of the images would have to change class


def test_distribution_functions_by_hand() -> None:
    # Below or at 2: all three of the reference, one of four of the window.
    scores, _ = scored(MarginalDetector("x"), sample(column([1.0, 2.0, 2.0])), sample(column([2.0, 3.0, 3.0, 4.0])))
    assert float(scores.effects[0]) == pytest.approx(3 / 4)


# --- agreement with references


@pytest.mark.parametrize("levels", [2, 5, 100])
@pytest.mark.parametrize(("reference", "current"), [(60, 40), (90, 31), (400, 70)])
def test_distribution_functions_agree_with_scipy_in_every_labelling(levels: int, reference: int, current: int) -> None:
    draw = torch.randint(0, levels, (reference + current, 2), generator=seeded(levels)).float()
    then, now = sample(draw[:reference]), sample(draw[reference:] + 1)
    scores, found = scored(MarginalDetector("x"), then, now, 25)
    rows = found.pool(then.columns["x"], now.columns["x"])
    wanted = [
        [float(ks_2samp(a[:, c], b[:, c]).statistic) for a, b in each_labelling(found, rows)]
        for c in range(rows.shape[1])
    ]
    assert np.allclose(scores.effects.numpy(), np.max(wanted, axis=0), atol=1e-5)
    distances = np.array(wanted)
    standard = (distances - distances.mean(1, keepdims=True)) / distances.std(1, keepdims=True)
    assert np.allclose(scores.statistics.numpy(), standard.max(axis=0), atol=1e-4)


@pytest.mark.parametrize(("reference", "current"), [(200, 200), (2000, 100), (100, 2000), (1500, 500)])
@pytest.mark.parametrize("shift", [0.0, 0.3, 2.0])
def test_distribution_functions_of_many_values_are_a_little_below_scipys(
    reference: int, current: int, shift: float
) -> None:
    then, now = normal(reference, 1, 1), normal(current, 1, 2) + shift
    scores, found = scored(MarginalDetector("x"), sample(then), sample(now), 1)
    rows = found.pool(then, now)
    a, b = each_labelling(found, rows)[0]
    exact = float(ks_2samp(a[:, 0], b[:, 0]).statistic)
    assert exact - 4 / THRESHOLDS <= float(scores.effects[0]) <= exact + 1e-5


@pytest.mark.parametrize("classes", [2, 3, 12])
@pytest.mark.parametrize(("reference", "current"), [(60, 40), (90, 31), (400, 70)])
def test_counts_agree_with_scipy_in_every_labelling(classes: int, reference: int, current: int) -> None:
    draw = torch.randint(0, classes, (reference + current,), generator=seeded(classes))
    then, now = (sample(torch.zeros(len(d), 1), d) for d in (draw[:reference], draw[reference:]))
    scores, found = scored(CountDetector("answers"), then, now, 25)
    rows = found.pool(then.columns["answers"], now.columns["answers"])
    present = np.unique(rows.numpy())
    for n, sides in enumerate(each_labelling(found, rows)):
        table = np.array([[int((side == c).sum()) for c in present] for side in sides])
        assert float(scores.statistics[n]) == pytest.approx(
            chi2_contingency(table, correction=False).statistic, rel=1e-4, abs=1e-5
        )
        shares = table / table.sum(axis=1, keepdims=True)
        assert float(scores.effects[n]) == pytest.approx(float(np.abs(shares[0] - shares[1]).sum() / 2), abs=1e-5)


@pytest.mark.parametrize(("reference", "current", "columns"), [(60, 40, 1), (90, 31, 5), (200, 70, 30)])
def test_the_classifier_agrees_with_float64_in_every_labelling(reference: int, current: int, columns: int) -> None:
    mixing = normal(columns, columns, 5)
    then, now = (sample(1000 + normal(rows, columns, seed) @ mixing) for rows, seed in ((reference, 1), (current, 2)))
    scores, found = scored(ClassifierDetector("x"), then, now, 25)
    rows = found.pool(then.columns["x"], now.columns["x"])
    exact = rows.double().numpy()
    mean, spread = exact.mean(axis=0), exact.std(axis=0)
    covariance = ((exact - mean) / spread).T @ ((exact - mean) / spread) / len(exact) + 0.1 * np.eye(columns)
    wanted = []
    for a, b in each_labelling(found, rows):
        difference = (b.mean(axis=0) - a.mean(axis=0)) / spread
        wanted.append(difference @ np.linalg.solve(covariance, difference))
    assert np.allclose(scores.statistics.numpy(), wanted, rtol=5e-3, atol=1e-4)
    excess = np.clip(np.array(wanted) - np.mean(wanted), 0, None)
    assert np.allclose(scores.effects.numpy() ** 2, excess, rtol=2e-2, atol=1e-3)


def test_the_kernel_agrees_with_loops_over_every_split() -> None:
    then, now = normal(4, 2, 3), normal(5, 2, 4) + 0.8
    pooled = torch.cat([then, now]).double().numpy()
    squared = np.square(pooled[:, None] - pooled[None]).sum(axis=2)
    apart = np.sort(squared[np.triu_indices(9, 1)])
    scale = apart[(len(apart) - 1) // 2]
    every = [list(chosen) for chosen in combinations(range(9), 4)]
    values = []
    for width in (0.5, 1.0, 2.0):
        kernel = np.exp(-squared / (scale * width**2))
        row = []
        for chosen in every:
            rest = [i for i in range(9) if i not in chosen]
            cross = kernel[np.ix_(chosen, rest)].mean()
            row.append(kernel[np.ix_(chosen, chosen)].mean() + kernel[np.ix_(rest, rest)].mean() - 2 * cross)
        values.append(row)
    exact = np.array(values)
    largest = ((exact - exact.mean(1, keepdims=True)) / exact.std(1, keepdims=True)).max(axis=0)
    wanted = float((largest >= largest[0] - 1e-9).mean())
    scores, _ = scored(KernelDetector("x"), sample(then), sample(now), 20_000)
    found = float(p_values_of(scores.statistics)[0])
    assert found == pytest.approx(wanted, abs=4 * sqrt(wanted * (1 - wanted) / 20_000) + 0.005)
    effect = sqrt(max(0.0, float(exact[1, 0] - exact[1].mean())))
    assert effect > 0.1
    assert float(scores.effects[0]) == pytest.approx(effect, rel=0.02)


# --- seeds and invariance


@pytest.mark.parametrize("detector", ALL, ids=ALL_NAMES)
def test_one_seed_gives_one_result(detector: Detector) -> None:
    then, now = (sample(normal(n, 3, n), torch.randint(0, 4, (n,), generator=seeded(n))) for n in (80, 50))
    first, second = (scored(detector, then, now, seed=7)[0] for _ in range(2))
    assert torch.equal(first.statistics, second.statistics)
    assert torch.equal(first.effects, second.effects)


@pytest.mark.parametrize("detector", ALL, ids=ALL_NAMES)
def test_the_order_of_rows_within_a_sample_does_not_change_what_is_observed(detector: Detector) -> None:
    then, now = (sample(normal(n, 3, n) + n / 60, torch.randint(0, 4, (n,), generator=seeded(n))) for n in (80, 50))

    def mixed(given: Sample, seed: int) -> Sample:
        order = torch.randperm(len(given), generator=seeded(seed))
        return Sample({name: rows[order] for name, rows in given.columns.items()})

    plain, other = scored(detector, then, now, 2000)[0], scored(detector, mixed(then, 1), mixed(now, 2), 2000)[0]
    assert float(other.effects[0]) == pytest.approx(float(plain.effects[0]), rel=0.05, abs=0.01)
    ps = [float(p_values_of(scores.statistics)[0]) for scores in (plain, other)]
    assert ps[0] == pytest.approx(ps[1], abs=4 * sqrt(0.25 / 2000) * 2)


@pytest.mark.parametrize("detector", VECTORS, ids=VECTOR_NAMES)
@pytest.mark.parametrize(("reference", "current", "value"), [(100, 37, 0.37), (500, 120, -(2.0**20)), (500, 120, 1.0)])
def test_constant_columns_change_nothing(detector: Detector, reference: int, current: int, value: float) -> None:
    """Rounding that only the observed labelling has must not be taken for a change: cameras of one size are usual."""
    then, now = normal(reference, 2, 1), normal(current, 2, 2)
    wide = [torch.cat([rows, torch.full((len(rows), 1), value)], dim=1) for rows in (then, now)]
    plain, _ = scored(detector, sample(then), sample(now))
    found, _ = scored(detector, sample(wide[0]), sample(wide[1]))
    assert torch.allclose(found.effects, plain.effects, atol=1e-3)
    # The distance of a constant column is its own mean, 0: where all others are below theirs, p is 1.
    before, after = p_values_of(plain.statistics), p_values_of(found.statistics)
    assert bool((after >= before - 0.011).all())
    assert torch.allclose(after[before <= 0.25], before[before <= 0.25], atol=0.011)


@pytest.mark.parametrize("detector", ALL, ids=ALL_NAMES)
@pytest.mark.parametrize(("reference", "current"), [(2, 2), (7, 13), (100, 37), (64, 64), (500, 300)])
def test_what_never_varies_shows_no_change(detector: Detector, reference: int, current: int) -> None:
    then, now = (sample(torch.full((rows, 3), 0.37)) for rows in (reference, current))
    for seed in (0, 1):
        scores, _ = scored(detector, then, now, seed=seed)
        assert float(p_values_of(scores.statistics)[0]) == 1.0
        assert float(scores.effects.max()) < 1e-3


@pytest.mark.parametrize("odd", [1, 2])
@pytest.mark.parametrize("detector", [MarginalDetector("x"), CountDetector("answers")], ids=["marginal", "counts"])
def test_a_rare_value_is_no_evidence(detector: Detector, odd: int) -> None:
    """One odd row of 620 is in a window of 120 with probability 0.19, so that p is 0.19 or 1; two odd rows are both in
    it with probability 0.037, else p is above 0.05. All else are ties, which rounding must not break."""
    runs, below = 40, 0
    for seed in range(runs):
        values = torch.zeros(620, dtype=torch.int64)
        values[torch.randperm(620, generator=seeded(seed))[:odd]] = 1
        given = [sample(part[:, None].float(), part) for part in (values[:500], values[500:])]
        found = p_value(detector, given[0], given[1], 199, seed)
        if odd == 1 or int(values[500:].sum()) < 2:
            assert found > 0.05
        below += found <= 0.05
    assert below <= binom.ppf(0.999, runs, 0 if odd == 1 else 0.037)


# --- both directions


def test_identical_samples_are_quiet() -> None:
    half, answers = normal(60, 3, 1), torch.arange(60) % 3
    for detector in ALL:
        scores, _ = scored(detector, sample(half, answers), sample(half, answers), 199)
        assert float(p_values_of(scores.statistics)[0]) > 0.4  # half, where more than nothing is as likely as less
        assert float(scores.effects[0]) < 1e-3


@pytest.mark.parametrize("detector", VECTORS, ids=VECTOR_NAMES)
def test_a_shift_is_found_and_its_effect_grows(detector: Detector) -> None:
    then, now = normal(80, 3, 1), normal(60, 3, 2)
    found = [scored(detector, sample(then), sample(now + shift))[0] for shift in (0.5, 1.0, 3.0)]
    assert float(p_values_of(found[1].statistics)[0]) == pytest.approx(0.01)
    effects = [float(scores.effects[0]) for scores in found]
    assert effects == sorted(effects)
    assert effects[0] < 0.7 * effects[2]


@pytest.mark.parametrize(
    "moved",
    [pytest.param(lambda x: 3.0 * x, id="spread"), pytest.param(lambda x: x.abs(), id="folded")],
)
@pytest.mark.parametrize("detector", [VECTORS[0], VECTORS[1], VECTORS[3]], ids=["kernel", "standardised", "marginal"])
def test_a_change_of_shape_is_found(detector: Detector, moved: Callable[[Tensor], Tensor]) -> None:
    then, now = sample(normal(80, 3, 1)), sample(moved(normal(80, 3, 2)))
    assert p_value(detector, then, now) == pytest.approx(0.01)


def test_other_shares_of_the_classes_are_found() -> None:
    then, now = (
        sample(torch.zeros(len(answers), 1), answers)
        for answers in (torch.arange(120) % 3, torch.cat([torch.zeros(40).long(), torch.arange(20) % 3]))
    )
    assert p_value(CountDetector("answers"), then, now) == pytest.approx(0.01)


@pytest.mark.parametrize("detector", [VECTORS[0], VECTORS[2], VECTORS[3]], ids=["kernel", "classifier", "marginal"])
def test_one_moved_column_among_many_is_found(detector: Detector) -> None:
    then, now = normal(400, 12, 1), normal(200, 12, 2)
    now[:, 7] += 1.5
    assert p_value(detector, sample(then), sample(now)) == pytest.approx(0.01)


@pytest.mark.parametrize("detector", [*VECTORS, CountDetector("answers")], ids=[*VECTOR_NAMES, "counts"])
def test_the_effect_of_a_change_hardly_depends_on_the_size_of_the_window(detector: Detector) -> None:
    def window(rows: int) -> Sample:
        answers = torch.where(torch.arange(rows) % 3 == 0, 1, 0)
        return sample(normal(rows, 2, rows) + 1, answers)

    reference = sample(normal(2000, 2, 1), torch.arange(2000) % 2)
    small, large = (float(scored(detector, reference, window(n), 49)[0].effects[0]) for n in (200, 1000))
    assert small == pytest.approx(large, rel=0.25)


@pytest.mark.parametrize("detector", ALL, ids=ALL_NAMES)
def test_effects_are_never_negative(detector: Detector) -> None:
    then, now = (sample(normal(n, 3, n), torch.arange(n) % 5) for n in (90, 40))
    scores, _ = scored(detector, then, now)
    assert scores.effects.shape == scores.statistics.shape == (100,)
    assert bool((scores.effects >= 0).all())


# --- groups: images that depend on each other


def clips(sizes: Tensor, generator: torch.Generator, columns: int = 2) -> tuple[Tensor, Tensor]:
    """Frames of clips, each near the others of its clip; and the clip of each."""
    units = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    centres = torch.randn(len(sizes), columns, generator=generator)
    return centres[units] + 0.1 * torch.randn(len(units), columns, generator=generator), units


LOOKS: list[Detector] = [KernelDetector("x"), ClassifierDetector("x"), MarginalDetector("x")]


def alarms(reference: Sample, current: Sample, seed: int, level: float) -> np.ndarray[Any, Any]:
    """Which detectors alarm, all on one set of relabellings."""
    found = relabel(reference, current, 99, seeded(seed))
    fitted = (detector.fit(reference).score(current, found) for detector in LOOKS)
    return np.array([float(p_values_of(scores.statistics)[0]) <= level for scores in fitted])


@pytest.mark.parametrize("unequal", [False, True], ids=["equal", "unequal"])
def test_clips_of_the_same_world_alarm_as_often_as_the_level_says(unequal: bool) -> None:
    runs, level = 100, 0.1
    grouped, pointwise = np.zeros(len(LOOKS)), np.zeros(len(LOOKS))
    for seed in range(runs):
        generator = seeded(seed)
        sides = []
        for count in (30, 15):
            sizes = torch.randint(1, 14, (count,), generator=generator) if unequal else torch.full((count,), 7)
            sides.append(clips(sizes, generator))
        then, now = sides
        grouped += alarms(sample(then[0], None, then[1]), sample(now[0], None, now[1]), seed, level)
        pointwise += alarms(sample(then[0]), sample(now[0]), seed, level)
    assert (binom.ppf(0.001, runs, level) <= grouped).all()
    assert (grouped <= binom.ppf(0.999, runs, level)).all()
    assert (pointwise >= 0.6 * runs).all()


def test_clips_with_frames_on_both_sides_do_not_alarm_more_often() -> None:
    runs, level = 60, 0.1
    total = np.zeros(len(LOOKS))
    for seed in range(runs):
        generator = seeded(seed)
        rows, units = clips(torch.full((30,), 7), generator)
        side = torch.rand(len(rows), generator=generator) < 0.4
        then, now = (sample(rows[chosen], None, units[chosen]) for chosen in (~side, side))
        total += alarms(then, now, seed, level)
    assert (total <= binom.ppf(0.995, runs, level)).all()


@pytest.mark.parametrize("detector", VECTORS, ids=VECTOR_NAMES)
def test_moved_clips_are_found(detector: Detector) -> None:
    then, now = clips(torch.full((40,), 5), seeded(1)), clips(torch.full((20,), 5), seeded(2))
    assert p_value(detector, sample(then[0], None, then[1]), sample(now[0] + 2, None, now[1])) == pytest.approx(0.01)


# --- bad input


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("detector", [*VECTORS, NOVELTY], ids=[*VECTOR_NAMES, "novelty"])
def test_values_that_are_not_finite_are_refused(detector: Detector, side: int, broken: float) -> None:
    sides = [normal(20, 2, 1), normal(20, 2, 2)]
    sides[side][3, 1] = broken
    with pytest.raises(ValueError, match="not finite"):
        scored(detector, sample(sides[0]), sample(sides[1]))


@pytest.mark.parametrize("detector", [*VECTORS, NOVELTY], ids=[*VECTOR_NAMES, "novelty"])
@pytest.mark.parametrize(
    "current", [torch.zeros(9, 3), torch.zeros(9, 2, 2), torch.zeros(9, 2, dtype=torch.float64)], ids=str
)
def test_columns_that_cannot_be_compared_are_refused(detector: Detector, current: Tensor) -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        scored(detector, sample(normal(20, 2, 1)), sample(current))


def test_classes_below_zero_are_refused() -> None:
    then, now = (sample(torch.zeros(3, 1), torch.tensor(answers)) for answers in ([0, 1, -1], [0, 1, 1]))
    with pytest.raises((ValueError, RuntimeError), match="expected 0 or more"):
        scored(CountDetector("answers"), then, now)


def test_two_rows_on_each_side_are_enough() -> None:
    for detector in ALL:
        assert 0 < p_value(detector, sample(normal(2, 2, 1)), sample(normal(2, 2, 2))) <= 1


# --- standardising


def test_standardised_columns_have_mean_zero_and_deviation_one() -> None:
    # 1, 3: mean 2, deviation 1 (divided by n).
    assert standardise(torch.tensor([[1.0, 10.0], [3.0, 30.0]])).tolist() == [[-1.0, -1.0], [1.0, 1.0]]


@pytest.mark.parametrize("value", [0.0, 0.1, 123.456, -(2.0**20)])
@pytest.mark.parametrize("shape", [(2, 1), (10, 3), (1000, 3)])
def test_standardised_constant_columns_are_zero(value: float, shape: tuple[int, int]) -> None:
    assert torch.allclose(standardise(torch.full(shape, value)), torch.zeros(shape), atol=1e-3)


def test_a_large_offset_does_not_hide_a_column() -> None:
    rows = 1000 + 0.1 * normal(500, 1, 1)
    exact = rows.double()
    wanted = (exact - exact.mean()) / exact.std(correction=0)
    assert torch.allclose(standardise(rows).double(), wanted, atol=2e-3)


def test_normalised_statistics_are_in_deviations_of_their_own_row() -> None:
    found = normalise(torch.tensor([[1.0, 3.0], [0.5, 0.5]]))
    assert found.tolist() == [[-1.0, 1.0], [0.0, 0.0]]
