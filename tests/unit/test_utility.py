"""Utility: what a strategy brings less what its compute must bring, forecasts, and the chance to be right."""

from dataclasses import replace
from typing import Any

import pytest

from components.core.config import DecisionConfig, TrainingConfig
from components.core.contracts import Interval
from components.core.plans import SKIP, Evidence, Forecast, PastGain, PastTraining
from components.core.recipes import RECIPES
from components.decide.situation import describe_situation
from components.decide.utility import (
    Policy,
    benchmark_experience,
    chance_to_be_best,
    forecast,
    relative_work,
    training_rows,
    utility,
)
from tests.unit import decision

EVIDENCE = decision.EVIDENCE.model_copy(update={"drop": 0.2})
HERE = describe_situation(EVIDENCE, DecisionConfig())


def policy(*gains: PastGain, **decision: Any) -> Policy:
    return Policy(decision=DecisionConfig(**decision), training=TrainingConfig(image_size=1000), experience=gains)


def points(strategy: str, evidence: Evidence, policy: Policy) -> float:
    return utility(forecast(strategy, evidence, policy), evidence, policy)


def gained(old: float | None, new: float, strategy: str = "distil", **situation: float) -> PastGain:
    return PastGain(strategy=strategy, situation={**HERE, **situation}, old=old, new=new)


def test_a_strategy_that_never_ran_has_no_gain() -> None:
    assert forecast("ewc", EVIDENCE, policy(gained(0.0, 0.2))).gain is None


def test_nothing_tells_what_a_strategy_brings_without_a_champion() -> None:
    first = EVIDENCE.model_copy(update={"champion": None, "old_rows": 0})
    found = forecast("retrain", first, policy(gained(0.0, 0.2, "retrain")))
    assert (found.gain, found.gain_interval) == (None, None)


def test_skipping_brings_and_costs_nothing() -> None:
    nothing = forecast(SKIP, EVIDENCE, policy())
    assert (nothing.gain, nothing.seconds, nothing.gpu_seconds, nothing.money) == (0.0, 0.0, 0.0, 0.0)
    assert points(SKIP, EVIDENCE, policy()) == 0.0
    assert chance_to_be_best(nothing, [], EVIDENCE, policy()) is None


def test_compute_is_paid_in_points() -> None:
    # Retrain: all 1,100 rows, 30 epochs. Fine-tune: 400 rows, 10 epochs.
    cases = policy(gained(0.0, 0.2, "fine-tune"), gained(0.0, 0.2, "retrain"), retrain_worth=0.5)
    share = 400 * 10 / (1100 * 30)
    assert relative_work("fine-tune", EVIDENCE, cases) == pytest.approx(share)
    assert points("retrain", EVIDENCE, cases) == pytest.approx(10.0 - 0.5)
    assert points("fine-tune", EVIDENCE, cases) == pytest.approx(10.0 - 0.5 * share)


def test_compute_is_paid_in_money_where_a_point_and_the_device_have_a_price() -> None:
    trained = PastTraining(strategy="fine-tune", device="cpu", architecture="resnet18", work=12_000, seconds=3600)
    evidence = EVIDENCE.model_copy(update={"device": "cpu", "processor": "CPU", "trainings": (trained,)})
    priced = policy(gained(0.0, 0.2, "fine-tune"), prices={"CPU": 6.0}, point_worth=2.0)
    assert points("fine-tune", evidence, priced) == pytest.approx(10.0 - 6.0 / 2.0)
    unpriced = policy(gained(0.0, 0.2, "fine-tune"), point_worth=2.0, retrain_worth=0.5)
    assert points("fine-tune", evidence, unpriced) == pytest.approx(10.0 - 0.5 * 400 * 10 / (1100 * 30))


@pytest.mark.parametrize(("remembered", "rows"), [(None, 400), (1000, 400), (50, 150)])
def test_no_more_is_replayed_than_is_remembered(remembered: int | None, rows: int) -> None:
    evidence = EVIDENCE.model_copy(update={"exemplars": remembered})
    assert training_rows(RECIPES["fine-tune"], evidence) == rows
    assert training_rows(RECIPES["retrain"], evidence) == 1100


def test_what_the_rest_of_the_step_takes_is_added() -> None:
    trained = PastTraining(
        strategy="fine-tune", device="cpu", architecture="resnet18", work=6_000, seconds=60, other_seconds=7
    )
    evidence = EVIDENCE.model_copy(update={"device": "cpu", "trainings": (trained,)})
    assert forecast("fine-tune", evidence, policy()).seconds == pytest.approx(120 + 7)


def test_the_chance_to_be_right_is_that_of_the_utility() -> None:
    def told(strategy: str, gain: float) -> Forecast:
        interval = Interval(lower=gain - 0.012816, upper=gain + 0.012816)  # a deviation of a point
        return Forecast(strategy=strategy, gain=gain, gain_interval=interval)

    free = policy(retrain_worth=0.0)
    assert chance_to_be_best(told("retrain", 0.1), [told("distil", 0.1)], EVIDENCE, free) == pytest.approx(0.5)
    ahead = chance_to_be_best(told("retrain", 0.12), [told("distil", 0.1), told("ewc", 0.0)], EVIDENCE, free)
    assert ahead == pytest.approx(0.9214, abs=1e-3)  # two points of a deviation of the square root of two
    nothing = forecast(SKIP, EVIDENCE, free)
    dear = policy(retrain_worth=50.0)  # what it brings is not worth it: then skipping is right, almost for certain
    skipping = chance_to_be_best(nothing, [told("retrain", 0.1)], EVIDENCE, dear)
    assert skipping == pytest.approx(1.0, abs=1e-3)


def test_the_digest_of_a_policy_is_of_all_that_it_decides_by() -> None:
    same, cases = policy(), policy(gained(0.0, 0.2))
    assert same.digest == policy().digest
    others = [cases, policy(train_at_drop=0.04), replace(same, training=TrainingConfig(batch_size=32))]
    assert len({same.digest, *(other.digest for other in others)}) == 4


def test_the_experience_that_comes_with_the_product_covers_every_recipe() -> None:
    assert {past.strategy for past in benchmark_experience()} == set(RECIPES)
    assert all(set(past.situation) == set(HERE) for past in benchmark_experience())
