"""Replaying past plans: the same policy gives the same bits, another one what it saves and misses."""

import pytest

from components.core.config import DecisionConfig, TrainingConfig
from components.core.contracts import Interval
from components.core.plans import PastGain, PastTraining
from components.decide.backtest import PastRun, replay, summarise
from components.decide.policy import decide
from components.decide.situation import describe_situation
from components.decide.utility import Policy
from tests.unit import decision

CONFIG = DecisionConfig(ladder=("retrain",), candidates=("fine-tune", "retrain"), retrain_worth=0.0)
TRAINING = TrainingConfig(architecture="small-cnn", image_size=1000)  # a row is a million pixels
EVIDENCE = decision.EVIDENCE.model_copy(
    update={
        "new_rows": 400,
        "held_out": 100,
        "window_classes": {"cat": 250, "dog": 250},
        "drop": 0.2,
        "drop_interval": Interval(lower=0.15, upper=0.25),
        "device": "cpu",
        # A fine-tune: 700 rows, 10 epochs, 3 passes each. The same rate holds for a retrain.
        "trainings": (
            PastTraining(strategy="fine-tune", device="cpu", architecture="small-cnn", work=21_000, seconds=21.0),
        ),
    }
)
LAZY = CONFIG.model_copy(update={"train_at_drop": 0.3})  # the drop is 0.2
HERE = describe_situation(EVIDENCE, CONFIG)
EXPERIENCE = tuple(
    PastGain(strategy=strategy, situation=HERE, old=0.0, new=new)
    for strategy, new in (("fine-tune", 0.1), ("retrain", 0.2))
)


def policy(config: DecisionConfig = CONFIG) -> Policy:
    return Policy(decision=config, training=TRAINING, experience=EXPERIENCE)


def run(gained: float | None = 0.08, seconds: tuple[float, ...] = (100.0,), under: DecisionConfig = CONFIG) -> PastRun:
    plan = decide(EVIDENCE, policy(under))
    return PastRun(run_id="r", source="may", plan=plan, seconds=seconds, gained=gained)


def test_the_policy_in_force_gives_the_same_plan_to_the_bit() -> None:
    same = replay(run(), policy())
    assert (same.then, same.now, same.same, same.in_force) == ("retrain", "retrain", True, True)
    assert (same.seconds_now, same.saved_seconds, same.missed) == (100.0, 0.0, 0.0)


def test_a_policy_that_differs_only_in_what_it_says_is_not_the_same_plan() -> None:
    other = replay(run(), policy(CONFIG.model_copy(update={"train_at_drop": 0.031})))
    assert (other.then, other.now, other.same, other.in_force) == ("retrain", "retrain", False, False)
    assert other.saved_seconds == 0.0


def test_a_cheaper_strategy_saves_what_it_is_forecast_to_take_less() -> None:
    thrifty = replay(run(), policy(CONFIG.model_copy(update={"retrain_worth": 20.0})))
    assert (thrifty.then, thrifty.now) == ("retrain", "fine-tune")
    assert thrifty.seconds_now == pytest.approx(21.0)
    assert thrifty.saved_seconds == pytest.approx(79.0)
    assert thrifty.missed == 0.0, "it would have tried"


def test_the_same_strategy_with_fewer_epochs_saves_them() -> None:
    short = {"retrain": {"start": "fresh", "rows": "all", "epochs": 10, "learning_rate": 3e-3}}
    training = TrainingConfig.model_validate({**TRAINING.model_dump(), "strategies": short})
    faster = replay(run(), Policy(decision=CONFIG, training=training, experience=EXPERIENCE))
    assert (faster.then, faster.now, faster.same) == ("retrain", "retrain", False)
    assert faster.seconds_now == pytest.approx(1400 * 10 * 3 / 1000)


def test_as_many_rungs_count_as_were_tried() -> None:
    climbing = CONFIG.model_copy(update={"ladder": ("fine-tune", "retrain"), "retrain_worth": 20.0})
    escalated = run(seconds=(30.0, 200.0), under=climbing)
    assert [rung.strategy for rung in escalated.plan.rungs] == ["fine-tune", "retrain"]
    assert replay(escalated, policy(climbing)).seconds_now == 230.0
    at_once = replay(escalated, policy(climbing.model_copy(update={"retrain_worth": 0.0})))
    assert at_once.now == "retrain"
    assert at_once.saved_seconds == pytest.approx(230.0 - 126.0)
    back = replay(run(seconds=(126.0, 0.0), under=CONFIG), policy(climbing))
    assert back.seconds_now == pytest.approx(21.0 + 126.0)


def test_a_policy_that_skips_saves_all_and_misses_what_was_gained() -> None:
    missed = replay(run(), policy(LAZY))
    assert (missed.now, missed.seconds_now, missed.saved_seconds) == ("skip", 0.0, 100.0)
    assert missed.missed == pytest.approx(0.08)
    for gained in (None, -0.01):  # nothing was promoted, or something that gained nothing
        assert replay(run(gained), policy(LAZY)).missed == 0.0


def test_a_policy_that_trains_where_nothing_was_done_costs_what_is_forecast() -> None:
    eager = replay(run(gained=None, seconds=(), under=LAZY), policy())
    assert (eager.then, eager.now) == ("skip", "retrain")
    assert eager.saved_seconds == pytest.approx(-(1400 * 30 * 3) / 1000)


def test_the_summary_adds_up() -> None:
    replays = [replay(run(seconds=(1800.0,)), policy(LAZY)), replay(run(seconds=(1800.0,), gained=None), policy(LAZY))]
    assert summarise(replays) == (
        "No plan was made under this policy. Training hours saved: 1.00, GPU-hours: 0.00. "
        "Regressions missed: 1, 8.0 points in all."
    )
    assert summarise([replay(run(), policy())]) == (
        "1 of 1 plans under the policy they were made under are the same to the bit. "
        "Training hours saved: 0.00, GPU-hours: 0.00. Regressions missed: 0."
    )


def test_hours_of_every_gpu_count() -> None:
    plan = decide(EVIDENCE.model_copy(update={"gpus": 4}), policy())
    on_four = PastRun(run_id="r", source="may", plan=plan, seconds=(900.0,), gained=None)
    assert "Training hours saved: 0.25, GPU-hours: 1.00." in summarise([replay(on_four, policy(LAZY))])


def test_hours_that_nothing_tells_are_left_out_and_said() -> None:
    unpriced = EVIDENCE.model_copy(update={"trainings": (), "device": None})
    skipped = PastRun(run_id="r", source="may", plan=decide(unpriced, policy(LAZY)), seconds=(), gained=None)
    assert "GPU-hours: 0.00 (without 1 runs whose cost nothing tells)." in summarise([replay(skipped, policy())])
