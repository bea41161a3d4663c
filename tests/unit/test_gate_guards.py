"""The guards: classes, calibration, seconds and bytes. Certain harm fails, what cannot be told passes."""

from math import sqrt
from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import norm, quantile_test

from components.core.config import GateConfig
from components.core.contracts import Evaluation, HoldoutScores, ModelCost, PairedOutcome
from components.gate.guards import spares_classes, stays_calibrated, stays_fast, stays_small
from components.gate.judgement import judge
from components.gate.noninferiority import harm_p_value, upper_bound

CONFIG = GateConfig()
EVEN = PairedOutcome(both_right=900, only_champion_right=50, only_challenger_right=50)


def pair(rows: int, *, gained: int = 0, lost: int = 0) -> PairedOutcome:
    return PairedOutcome(both_right=rows - gained - lost, only_challenger_right=gained, only_champion_right=lost)


def holdout(paired: PairedOutcome, **more: object) -> HoldoutScores:
    correct = paired.both_right + paired.only_challenger_right
    shape = {"new_classes": {}, "classes": (), "confusion": ()}
    return HoldoutScores.model_validate({"rows": paired.rows, "correct": correct, "paired": paired, **shape, **more})


def evaluation(new: HoldoutScores, old: HoldoutScores | None = None, **more: object) -> Evaluation:
    given = {"champion": "champion", "challenger": "challenger", "old": old, "new": new}
    return Evaluation.model_validate({**given, **more})


def classes(new: dict[str, PairedOutcome], old: dict[str, PairedOutcome] | None = None) -> Evaluation:
    return evaluation(holdout(EVEN, by_class=new), holdout(EVEN, by_class=old) if old else None)


# Classes


def test_harm_without_a_margin_is_mcnemars_test() -> None:
    # (1 - 9) / sqrt(10) = -2.53: 0.57 %.
    assert harm_p_value(pair(60, gained=1, lost=9), 0.0) == pytest.approx(norm.cdf(-8 / sqrt(10)))


def test_harm_beyond_a_margin_by_hand() -> None:
    # 12 of 100 lost, none gained, against 5 points: b = -12 - 212 x 0.05 = -22.6, c = 12 x 0.05 x 1.05 = 0.63,
    # q = (sqrt(510.76 - 504) + 22.6) / 400 = 0.063, variance 100 (0.126 - 0.0525) = 7.35, score (-12 + 5) / 2.7111.
    assert harm_p_value(pair(100, lost=12), 0.05) == pytest.approx(norm.cdf(-7 / sqrt(7.35)), rel=1e-4)


def test_p_value_and_bound_agree() -> None:
    for lost in range(60):
        outcome = pair(120, gained=3, lost=lost)
        assert (harm_p_value(outcome, 0.05) <= 0.01) == (upper_bound(outcome, 0.01) <= -0.05)


def test_one_class_that_lost_much_turns_the_challenger_down_though_the_mean_held() -> None:
    check = spares_classes(
        classes({"a": pair(100, gained=20), "b": pair(100, lost=30), "c": pair(100, gained=20)}), CONFIG
    )
    assert check is not None
    assert (check.passed, check.conclusive) == (False, True)
    assert check.value == -0.3
    assert check.bound < check.threshold == -0.05
    assert check.sentence == "Class 'b' of new holdout lost more than 5.0 points for certain: -30.0 points on 100 rows."


def test_a_class_of_the_old_holdout_counts_as_much() -> None:
    judged = classes({"a": pair(100)}, {"a": pair(100, lost=30), "b": pair(100, lost=40)})
    check = spares_classes(judged, CONFIG)
    assert check is not None
    assert check.sentence == (
        "Class 'b' of old holdout lost more than 5.0 points for certain: -40.0 points on 100 rows, and 1 more."
    )
    assert judge(judged, CONFIG, higher_rung_left=False).verdict == "reject"


def test_holm_is_over_the_classes_of_both_holdouts() -> None:
    # p of 12 lost of 100 is 0.49 %: below 5 % / 10, not below 5 % / 11.
    suspect = pair(100, lost=12)
    quiet = {str(i): pair(100) for i in range(9)}
    ten, eleven = classes({"a": suspect, **quiet}), classes({"a": suspect, **quiet}, {"a": pair(100)})
    for judged, passed in ((ten, False), (eleven, True)):
        check = spares_classes(judged, CONFIG)
        assert check is not None
        assert check.passed is passed
        assert (check.bound >= check.threshold) is passed


def test_few_rows_are_no_certain_harm() -> None:
    check = spares_classes(classes({"a": pair(3, lost=1), "b": pair(500, lost=5)}), CONFIG)
    assert check is not None
    assert check.passed
    assert check.sentence == "Class 'a' of new holdout is the worst class: -33.3 points on 3 rows."


def test_a_margin_of_everything_switches_the_class_guard_off() -> None:
    check = spares_classes(classes({"a": pair(100, lost=100)}), CONFIG.model_copy(update={"class_margin": 1.0}))
    assert check is not None
    assert check.passed


@pytest.mark.parametrize(
    "paired",
    [
        PairedOutcome(),
        PairedOutcome(both_right=50),
        PairedOutcome(both_wrong=50),
        PairedOutcome(only_challenger_right=50),
    ],
    ids=["no rows", "all right", "all wrong", "all gained"],
)
def test_a_class_without_a_loss_passes(paired: PairedOutcome) -> None:
    check = spares_classes(classes({"a": paired}), CONFIG)
    assert check is not None
    assert check.passed


def test_a_class_lost_as_a_whole_fails() -> None:
    check = spares_classes(classes({"a": pair(50, lost=50)}), CONFIG)
    assert check is not None
    assert (check.passed, check.value) == (False, -1.0)


def test_no_guard_speaks_of_what_an_earlier_release_did_not_measure() -> None:
    config = CONFIG.model_copy(update={"max_latency_ratio": 1.0, "max_size_ratio": 1.0})
    bare = evaluation(holdout(EVEN), holdout(EVEN))
    assert [guard(bare, config) for guard in (spares_classes, stays_calibrated, stays_fast, stays_small)] == [None] * 4


# Calibration


def calibration(before: float, now: float, paired: PairedOutcome = EVEN) -> Evaluation:
    return evaluation(holdout(paired, champion_calibration_error=before, calibration_error=now))


def test_calibration_bound_by_hand() -> None:
    # Both 95 % right on 1,000 rows: noise sqrt(2 x 0.95 x 0.05 / 1000) = 0.009747, times 1.6449.
    check = stays_calibrated(calibration(0.02, 0.06), CONFIG)
    assert check is not None
    assert check.value == pytest.approx(-0.04)
    assert check.bound == pytest.approx(-0.04 + NormalDist().inv_cdf(0.95) * sqrt(0.000095))
    assert (check.passed, check.threshold) == (True, -0.05)
    assert "2.0 to 6.0 points" in check.sentence


@pytest.mark.parametrize(("now", "passed"), [(0.0, True), (0.05, True), (0.08, True), (0.09, False), (0.5, False)])
def test_calibration_may_get_worse_by_the_limit_and_the_noise(now: float, passed: bool) -> None:
    check = stays_calibrated(calibration(0.02, now), CONFIG)
    assert check is not None
    assert check.passed is passed


def test_few_rows_do_not_show_that_calibration_got_worse() -> None:
    few = PairedOutcome(both_right=14, only_champion_right=3, only_challenger_right=3)
    check = stays_calibrated(calibration(0.05, 0.2, few), CONFIG)
    assert check is not None
    assert check.passed


def test_calibration_is_not_checked_where_nothing_is_asked_or_there_is_no_champion() -> None:
    assert stays_calibrated(calibration(0.0, 0.5), CONFIG.model_copy(update={"max_calibration_loss": None})) is None
    assert stays_calibrated(calibration(0.0, 0.5, PairedOutcome()), CONFIG) is None


# Costs


def cost(size: int = 100, seconds: float = 0.01, device: str = "cpu") -> ModelCost:
    return ModelCost(bytes=size, flops=None, latency={"0.5": seconds}, turns=(seconds,) * 50, device=device)


def costs(champion: ModelCost, challenger: ModelCost) -> Evaluation:
    return evaluation(holdout(PairedOutcome(both_right=1000)), champion_cost=champion, challenger_cost=challenger)


@pytest.mark.parametrize(("seconds", "passed"), [(0.001, True), (0.015, True), (0.0151, False)])
def test_latency_is_limited_by_the_champions(seconds: float, passed: bool) -> None:
    config = CONFIG.model_copy(update={"max_latency_ratio": 1.5})
    check = stays_fast(costs(cost(), cost(seconds=seconds)), config)
    assert check is not None
    assert (check.passed, check.conclusive) == (passed, True)
    assert (check.value, check.threshold) == (pytest.approx(-100 * seconds), -1.5)


def test_a_slower_median_must_be_certain_and_bursts_are_none() -> None:
    # Of 20 turns 5 or fewer lie below the median with a chance of 2.1 %, 6 or fewer of 5.8 %: the bound is the 6th.
    config = CONFIG.model_copy(update={"max_latency_ratio": 1.5})
    before = cost().model_copy(update={"turns": (1.0,) * 20})

    def passes(slow: int) -> bool:
        now = cost().model_copy(update={"turns": (1.0,) * (20 - slow) + (9.0,) * slow})
        check = stays_fast(costs(before, now), config)
        assert check is not None
        return check.passed

    assert [passes(slow) for slow in (0, 10, 14, 15, 20)] == [True, True, True, False, False]


@pytest.mark.parametrize("turns", [1, 4, 5, 20, 50])
def test_bound_of_the_median_is_scipys(turns: int) -> None:
    ratios = np.random.default_rng(turns).lognormal(size=turns)
    before = cost().model_copy(update={"turns": (1.0,) * turns})
    now = cost().model_copy(update={"turns": tuple(ratios.tolist())})
    check = stays_fast(costs(before, now), CONFIG.model_copy(update={"max_latency_ratio": 9.0}))
    assert check is not None
    low = quantile_test(ratios, p=0.5, alternative="greater").confidence_interval(0.95).low
    assert -check.bound == pytest.approx(0.0 if np.isnan(low) else low)


def test_latency_that_was_not_measured_is_not_checked() -> None:
    config = CONFIG.model_copy(update={"max_latency_ratio": 1.5})
    bare = ModelCost(bytes=1, flops=None, latency={}, device="cpu")
    assert stays_fast(costs(bare, bare), config) is None


@pytest.mark.parametrize(("size", "passed"), [(1, True), (200, True), (201, False)])
def test_size_is_limited_by_the_champions(size: int, passed: bool) -> None:
    check = stays_small(costs(cost(), cost(size=size)), CONFIG.model_copy(update={"max_size_ratio": 2.0}))
    assert check is not None
    assert check.passed is passed


def test_costs_are_not_checked_unless_a_limit_is_set() -> None:
    grown = costs(cost(), cost(size=10**9, seconds=60.0))
    assert (stays_fast(grown, CONFIG), stays_small(grown, CONFIG)) == (None, None)
    assert judge(grown, CONFIG, higher_rung_left=False).verdict == "promote"
