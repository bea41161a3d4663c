"""The policy: each rule, their order, what is weighed, the ladder and its price."""

import dataclasses
import re
from datetime import date
from typing import Any

import pytest

from components.core.config import DecisionConfig, TrainingConfig
from components.core.contracts import CheckedExpectation, DriftReport, Fault, Interval, ValidationReport
from components.core.plans import Decision, Evidence, PastGain, PastTraining
from components.core.recipes import Recipe, StrategyName
from components.decide.policy import decide
from components.decide.situation import describe_situation, learnable_classes
from components.decide.turning import outcome_of, with_rows
from components.decide.utility import Policy

CONFIG = DecisionConfig(ladder=("fine-tune", "retrain"), candidates=("fine-tune", "retrain"), retrain_worth=0.5)
LOOPS: dict[StrategyName, Recipe] = {
    "head-only": Recipe(epochs=60, learning_rate=5e-3),
    "fine-tune": Recipe(epochs=10, learning_rate=5e-4),
    "retrain": Recipe(epochs=30, learning_rate=3e-3, start="fresh", rows="all"),
}
TOO_DARK = CheckedExpectation(name="readable", severity="reject", passed=False, sentence="Nothing can be read.")
INVALID = ValidationReport(expectations=(TOO_DARK,))
WARNED = ValidationReport(expectations=(TOO_DARK.model_copy(update={"severity": "warn"}),))
RENAMED = Fault(name="permuted-labels", effect=0.9, sentence="The labels look renamed.")


def drift(
    drop: float | None,
    lower: float = 0.01,
    upper: float = 0.9,
    faults: tuple[Fault, ...] = (),
    alarm: bool = False,
) -> DriftReport:
    if drop is None:
        return DriftReport(champion="v1", rows=500, p_value=0.4, faults=faults)
    return DriftReport(
        champion="v1",
        rows=500,
        p_value=0.002,
        drifted=alarm,
        alarm=alarm,
        reference_accuracy=0.95,
        window_accuracy=0.95 - drop,
        accuracy_drop=drop,
        accuracy_drop_interval=Interval(lower=lower, upper=upper),
        faults=faults,
    )


def replace(
    evidence: Evidence, drift: DriftReport | None = None, validation: ValidationReport | None = None, **changes: Any
) -> Evidence:
    """The evidence with other values, some of them as the steps before report them."""
    if drift is not None:
        changes |= {
            "faults": tuple(fault.sentence for fault in drift.faults),
            "drifted": drift.drifted,
            "alarm": drift.alarm,
            "drop": drift.accuracy_drop,
            "drop_interval": drift.accuracy_drop_interval,
            "drift_sentence": drift.sentence,
        }
    if validation is not None:
        changes["invalid"] = tuple(failure.sentence for failure in validation.failures)
    return evidence.model_copy(update=changes)


QUIET = replace(
    Evidence(
        window="w2",
        window_created=date(2026, 11, 25),
        champion="v1",
        champion_classes=("cat", "dog"),
        champion_image_size=32,
        old_windows=("w0", "w1"),
        old_rows=1000,
        new_rows=400,
        held_out=100,
        window_classes={"cat": 250, "dog": 250},
        image_size=32,
    ),
    drift=drift(0.0, -0.02, 0.02),
)
# The cheap way brings half of what was lost, the dear way a twentieth more of that.
HERE = describe_situation(QUIET, CONFIG)
EXPERIENCE = 20 * tuple(
    PastGain(strategy=strategy, situation={**HERE, "drop": drop, "unknown": unknown}, old=0.0, new=share * loss)
    for strategy, share in (("fine-tune", 1.0), ("retrain", 1.05))
    for drop, unknown in ((0.0, 0.0), (0.1, 0.0), (0.6, 0.0), (0.0, 0.5))
    for loss in [drop + unknown]
)


def training_with(recipes: dict[StrategyName, Recipe]) -> TrainingConfig:
    return TrainingConfig(architecture="small-cnn", image_size=1000, strategies=recipes)  # a row is a million pixels


def policy(config: DecisionConfig = CONFIG, experience: tuple[PastGain, ...] = EXPERIENCE) -> Policy:
    return Policy(decision=config, training=training_with(LOOPS), experience=experience)


def plan(evidence: Evidence, config: DecisionConfig = CONFIG) -> Decision:
    return decide(evidence, policy(config))


def strategies(decision: Decision) -> list[str]:
    return [rung.strategy for rung in decision.rungs]


FORGETFUL = {"forgotten": 0.06, "forgotten_interval": Interval(lower=0.01, upper=0.11), "windows_since": 9}
BOOTSTRAP = replace(
    QUIET,
    champion=None,
    champion_classes=(),
    champion_image_size=None,
    old_windows=(),
    old_rows=0,
    drift=DriftReport(champion=None, rows=500),
)


@pytest.mark.parametrize(
    ("evidence", "rule", "action", "ladder"),
    [
        pytest.param(QUIET, "nothing-to-gain", "skip", [], id="quiet"),
        pytest.param(replace(QUIET, validation=INVALID), "invalid-window", "quarantine", [], id="invalid"),
        pytest.param(replace(QUIET, validation=WARNED), "nothing-to-gain", "skip", [], id="a warning is no failure"),
        pytest.param(replace(QUIET, drift=drift(0.9, faults=(RENAMED,))), "broken-data", "quarantine", [], id="broken"),
        pytest.param(BOOTSTRAP, "no-champion", "train", ["retrain"], id="bootstrap"),
        pytest.param(
            replace(QUIET, forced="head-only"), "forced-strategy", "train", ["head-only"], id="forced off ladder"
        ),
        pytest.param(
            replace(QUIET, forced="fine-tune"), "forced-strategy", "train", ["fine-tune", "retrain"], id="forced"
        ),
        pytest.param(replace(QUIET, forced="retrain"), "forced-strategy", "train", ["retrain"], id="forced top"),
        pytest.param(
            replace(QUIET, already_trained=True, drift=drift(0.2)), "already-trained", "skip", [], id="already trained"
        ),
        pytest.param(
            replace(QUIET, rolled_back="B was rolled back from", drift=drift(0.2)),
            "rolled-back",
            "skip",
            [],
            id="undone",
        ),
        pytest.param(replace(QUIET, **FORGETFUL), "much-forgotten", "train", ["retrain"], id="much forgotten"),
        pytest.param(
            replace(QUIET, **{**FORGETFUL, "forgotten": 0.04}), "nothing-to-gain", "skip", [], id="little forgotten"
        ),
        pytest.param(
            replace(QUIET, **{**FORGETFUL, "forgotten_interval": Interval(lower=0.0, upper=0.12)}),
            "nothing-to-gain",
            "skip",
            [],
            id="forgotten by chance",
        ),
        pytest.param(
            replace(QUIET, **FORGETFUL, retrained_in_vain=True), "nothing-to-gain", "skip", [], id="retrained in vain"
        ),
        pytest.param(
            replace(QUIET, window_classes={"cat": 250, "owl": 20}),
            "new-classes",
            "train",
            ["fine-tune", "retrain"],
            id="new class",
        ),
        pytest.param(
            replace(QUIET, drift=drift(0.5)), "measurable-drop", "train", ["retrain"], id="worth a full retrain"
        ),
        pytest.param(
            replace(QUIET, new_rows=4000), "much-new-data", "train", ["fine-tune", "retrain"], id="much new data"
        ),
        pytest.param(
            replace(QUIET, drift=drift(0.03)), "measurable-drop", "train", ["fine-tune", "retrain"], id="measurable"
        ),
        pytest.param(replace(QUIET, drift=drift(0.029)), "nothing-to-gain", "skip", [], id="below the threshold"),
        pytest.param(
            replace(QUIET, drift=drift(0.1, lower=0.0, alarm=True)),
            "changed-images",
            "train",
            ["fine-tune", "retrain"],
            id="a drop that may be chance, of images that changed",
        ),
        pytest.param(
            replace(QUIET, drift=drift(0.0, lower=-0.1, alarm=True)), "changed-images", "skip", [], id="harmless"
        ),
        pytest.param(
            replace(QUIET, image_size=48), "other-image-size", "skip", [], id="another size that brings nothing"
        ),
        pytest.param(
            replace(QUIET, drift=drift(0.1, lower=0.0)), "nothing-to-gain", "skip", [], id="chance explains it"
        ),
    ],
)
def test_rule(evidence: Evidence, rule: str, action: str, ladder: list[str]) -> None:
    decision = plan(evidence)
    assert (decision.rule, decision.action, strategies(decision)) == (rule, action, ladder)
    assert decision.word == action
    assert decision.champion == evidence.champion
    assert all(decision.reasons)


UNLABELLED = replace(
    QUIET,
    drift=DriftReport(champion="v1", rows=200, unlabelled=200, p_value=0.4),
    new_rows=0,
    held_out=0,
    window_classes={},
    unlabelled=200,
    least_labelled=50,
    least_held_out=9,
    label_list="runs/r/to_label.csv",
)
FEW = {"new_rows": 30, "held_out": 10, "unlabelled": 160}
LOST = {"estimated_drop": 0.2, "estimated_drop_interval": Interval(lower=0.05, upper=0.35)}
KEPT = {"estimated_drop": 0.01, "estimated_drop_interval": Interval(lower=-0.05, upper=0.07)}
MAYBE = {"estimated_drop": 0.05, "estimated_drop_interval": Interval(lower=-0.01, upper=0.11)}


@pytest.mark.parametrize(
    ("changes", "rule", "labels"),
    [
        pytest.param({}, "labels-not-needed", 0, id="nothing changed"),
        pytest.param(KEPT, "labels-not-needed", 0, id="nothing changed, little lost"),
        pytest.param(MAYBE, "labels-not-needed", 0, id="the loss may be chance"),
        pytest.param({"drifted": True, **KEPT}, "labels-not-needed", 0, id="drifted, but no alarm yet"),
        pytest.param({"alarm": True}, "labels-wanted", 50, id="alarm, cost unknown"),
        pytest.param({"alarm": True, **KEPT}, "labels-wanted", 50, id="alarm, whatever the cost"),
        pytest.param(LOST, "labels-wanted", 50, id="no alarm, much lost"),
        pytest.param({"undecided": "too few"}, "labels-wanted", 50, id="nothing can be told without"),
        pytest.param({"undecided": "too few", **KEPT}, "labels-not-needed", 0, id="undecided, but little lost"),
        pytest.param({"forced": "fine-tune"}, "labels-wanted", 50, id="asked for"),
        pytest.param({**FEW, "alarm": True}, "labels-wanted", 10, id="some labelled"),
        pytest.param({**FEW, "held_out": 2, "alarm": True}, "labels-wanted", 18, id="some labelled, few held out"),
        pytest.param({**FEW, "new_rows": 47, "held_out": 1, "alarm": True}, "labels-wanted", 8, id="nearly all train"),
        pytest.param({**FEW, "new_rows": 99, "held_out": 0, "alarm": True}, "labels-wanted", 9, id="none held out"),
        pytest.param({**FEW, "new_rows": 0, "held_out": 99, "alarm": True}, "labels-wanted", 1, id="none to train on"),
        pytest.param({"unlabelled": 20, "alarm": True}, "labels-wanted", 20, id="not more than there are"),
        pytest.param({**FEW, "window_classes": {"owl": 40}}, "labels-wanted", 10, id="a new class"),
        pytest.param(
            {**FEW, "drop": 0.2, "drop_interval": Interval(lower=0.1, upper=0.3)}, "labels-wanted", 10, id="lost"
        ),
        pytest.param({**FEW, "held_out": 20, "alarm": True}, "changed-images", 0, id="labels enough"),
        pytest.param({**FEW, "held_out": 20}, "nothing-to-gain", 0, id="labels enough, nothing to gain"),
        pytest.param({**FEW, "alarm": True, "released": "by me"}, "changed-images", 0, id="released"),
        pytest.param({"alarm": True, "released": "by me"}, "labels-wanted", 50, id="released without any label"),
        pytest.param({"unlabelled": 0}, "nothing-to-learn", 0, id="no image is new"),
        pytest.param({"alarm": True, "invalid": ("Few.",)}, "invalid-window", 0, id="invalid"),
        pytest.param({"alarm": True, "faults": ("Dark.",)}, "broken-data", 0, id="broken"),
        pytest.param({"champion": None, "champion_classes": ()}, "labels-wanted", 50, id="no champion"),
    ],
)
def test_labels_are_asked_for_where_they_would_tell_something(changes: dict[str, Any], rule: str, labels: int) -> None:
    decision = plan(replace(UNLABELLED, **changes))
    assert (decision.rule, decision.labels_wanted) == (rule, labels)
    assert decision.figures["labels_wanted"] == labels
    assert (f"Label {labels}: runs/r/to_label.csv lists them" in decision.sentence) == (labels > 0)
    if rule.startswith("labels"):
        assert (decision.action, decision.rungs) == ("skip", ())


def test_no_more_labels_are_asked_for_than_a_person_wants_to_give() -> None:
    few = CONFIG.model_copy(update={"max_to_label": 7})
    assert plan(replace(UNLABELLED, alarm=True), few).labels_wanted == 7


def test_a_wish_for_labels_says_what_was_measured_and_which_images_tell_most() -> None:
    decision = plan(replace(UNLABELLED, alarm=True, moved_classes=("cat", "dog"), **LOST))
    assert decision.reasons == (
        "The images changed: the champion loses an estimated 20.0 points of accuracy (90 % interval 5.0 to 35.0). 0 of "
        "200 images have a label, and to learn takes 50, 9 of them held out. Label 50: runs/r/to_label.csv lists them, "
        "the furthest from what the champion knows first. What moved most is what the champion takes for 'cat', 'dog'.",
    )


def test_where_no_labels_are_needed_it_says_why() -> None:
    assert plan(replace(UNLABELLED, **KEPT)).reasons == (
        "0 of 200 images have a label, and no more labels are needed: no drift alarm; an estimated drop of 1.0 points "
        "(90 % interval -5.0 to 7.0), below the threshold of 3.0.",
    )
    assert "which may be chance." in plan(replace(UNLABELLED, **MAYBE)).reasons[0]
    assert "what the champion lost is not estimated." in plan(UNLABELLED).reasons[0]


LOUD = drift(0.6, faults=(RENAMED,))


@pytest.mark.parametrize(
    ("evidence", "rule"),
    [
        pytest.param(
            replace(QUIET, validation=INVALID, drift=LOUD, forced="retrain", already_trained=True),
            "invalid-window",
            id="1 invalid",
        ),
        pytest.param(replace(BOOTSTRAP, validation=INVALID), "invalid-window", id="1 invalid before bootstrap"),
        pytest.param(replace(QUIET, drift=LOUD, forced="retrain", already_trained=True), "broken-data", id="2 broken"),
        pytest.param(replace(BOOTSTRAP, forced="fine-tune"), "no-champion", id="3 nothing to fine-tune yet"),
        pytest.param(replace(QUIET, forced="retrain", already_trained=True), "forced-strategy", id="4 forced again"),
        pytest.param(
            replace(QUIET, already_trained=True, window_classes={"owl": 99}, new_rows=9999, drift=drift(0.6)),
            "already-trained",
            id="5 already trained",
        ),
        pytest.param(
            replace(QUIET, rolled_back="B", window_classes={"owl": 99}, new_rows=9999, drift=drift(0.6)),
            "rolled-back",
            id="5 rolled back",
        ),
        pytest.param(replace(QUIET, rolled_back="B", forced="retrain"), "forced-strategy", id="4 forced after all"),
        pytest.param(
            replace(QUIET, window_classes={"owl": 99}, new_rows=9999, drift=drift(0.6)),
            "new-classes",
            id="6 new classes",
        ),
        pytest.param(replace(QUIET, new_rows=9999, drift=drift(0.6)), "measurable-drop", id="7 drop"),
        pytest.param(replace(QUIET, new_rows=9999), "much-new-data", id="8 much new data"),
    ],
)
def test_the_first_rule_that_applies_decides(evidence: Evidence, rule: str) -> None:
    assert plan(evidence).rule == rule


def test_a_forced_strategy_stands_alone_where_the_ladder_lacks_it() -> None:
    assert strategies(
        plan(replace(QUIET, forced="retrain"), DecisionConfig(ladder=("head-only",), candidates=("head-only",)))
    ) == ["retrain"]


def test_the_ladder_starts_at_its_first_rung() -> None:
    config = DecisionConfig(ladder=("head-only", "fine-tune", "retrain"), candidates=("head-only",))
    assert strategies(plan(replace(QUIET, drift=drift(0.1)), config)) == ["head-only", "fine-tune", "retrain"]
    assert strategies(plan(replace(QUIET, forced="fine-tune"), config)) == ["fine-tune", "retrain"]


def test_hyperparameters_of_each_rung_are_those_of_its_strategy() -> None:
    decision = plan(replace(QUIET, drift=drift(0.1)))
    assert [rung.hyperparameters for rung in decision.rungs] == [LOOPS["fine-tune"], LOOPS["retrain"]]


def test_new_classes_follow_the_champions_in_order_of_name() -> None:
    decision = plan(replace(QUIET, window_classes={"owl": 30, "cat": 5, "bat": 21}))
    assert decision.classes == ("cat", "dog", "bat", "owl")
    assert "'bat' (21 images), 'owl' (30 images)" in decision.reasons[0]


def test_thousands_of_new_classes_do_not_drown_the_reasons() -> None:
    many = {f"class {n:05d}": 30 for n in range(20_000)}
    decision = plan(replace(QUIET, window_classes=many))
    assert "'class 00009' (30 images) and 19990 more: grow its head." in decision.reasons[0]
    report = DriftReport(champion="v1", rows=600_000, new_classes=many)
    assert report.sentence.endswith("class 00009 (30 images) and 19990 more.")
    assert len(decision.markdown) < 400_000, "what the Kubeflow UI draws"


def test_new_classes_below_the_minimum_are_not_learnt() -> None:
    few = replace(QUIET, window_classes={"cat": 250, "owl": 19})
    assert plan(few).action == "skip"
    assert plan(few).classes == ("cat", "dog")
    assert plan(replace(few, drift=drift(0.1))).classes == ("cat", "dog")
    mixed = replace(QUIET, window_classes={"owl": 20, "bat": 19})
    assert learnable_classes(mixed, CONFIG) == {"owl": 20}
    assert plan(mixed).classes == ("cat", "dog", "owl")


def test_the_first_model_learns_every_class_of_its_window() -> None:
    assert plan(replace(BOOTSTRAP, window_classes={"dog": 400, "cat": 1})).classes == ("cat", "dog")


def test_a_first_model_of_one_class_is_not_trained() -> None:
    decision = plan(replace(BOOTSTRAP, window_classes={"cat": 400}))
    assert (decision.action, decision.rule, strategies(decision)) == ("skip", "no-champion", [])
    assert "two classes" in decision.reasons[0]


def ran(strategy: StrategyName, work: float, seconds: float, device: str = "cpu") -> PastTraining:
    return PastTraining(strategy=strategy, device=device, architecture="small-cnn", work=work, seconds=seconds)


def forecasts(evidence: Evidence, config: DecisionConfig = CONFIG) -> dict[str, float | None]:
    return {rung.strategy: rung.forecast.seconds for rung in plan(evidence, config).rungs}


def test_rungs_cost_their_work_at_the_rate_of_the_past() -> None:
    # Fine-tune: 30 % of 1,000 old rows + 400 new = 700 rows, 10 epochs of three passes: 21,000 passes. Retrain: 1,400
    # rows, 30 epochs: 126,000. At a thousandth of a second each, but retrains were seen to take twice as long.
    past = (ran("fine-tune", 1000, 1.0), ran("retrain", 1000, 2.0))
    evidence = replace(QUIET, forced="fine-tune", trainings=past, device="cpu")
    assert [rung.training_rows for rung in plan(evidence).rungs] == [700, 1400]
    assert forecasts(evidence) == {"fine-tune": pytest.approx(21.0), "retrain": pytest.approx(252.0)}


def test_a_strategy_that_never_ran_is_priced_at_the_rate_of_the_others() -> None:
    evidence = replace(QUIET, forced="fine-tune", trainings=(ran("fine-tune", 1000, 1.0),), device="cpu")
    assert forecasts(evidence)["retrain"] == pytest.approx(126.0)


@pytest.mark.parametrize(
    "trainings", [(), (ran("retrain", 1000, 1.0, device="NVIDIA H100"),)], ids=["none", "elsewhere"]
)
def test_nothing_is_priced_where_nothing_ran_on_the_device(trainings: tuple[PastTraining, ...]) -> None:
    evidence = replace(QUIET, forced="retrain", trainings=trainings, device="cpu")
    assert forecasts(evidence) == {"retrain": None}


def test_money_is_the_price_of_the_device_for_the_time() -> None:
    config = CONFIG.model_copy(update={"prices": {"H100": 3.6}})
    trained = {"device": "2 x H100, bfloat16", "processor": "H100", "gpus": 2}
    trainings = (ran("retrain", 1000, 1.0, "2 x H100, bfloat16"),)
    evidence = replace(QUIET, forced="retrain", trainings=trainings, **trained)
    forecast = plan(evidence, config).rungs[0].forecast
    assert (forecast.seconds, forecast.gpu_seconds, forecast.money) == (
        pytest.approx(126.0),
        pytest.approx(252.0),
        pytest.approx(0.252),
    )


@pytest.mark.parametrize("evidence", [QUIET, BOOTSTRAP, replace(QUIET, drift=drift(0.1))], ids=["skip", "first", "up"])
def test_the_plan_names_the_windows_that_are_replayed(evidence: Evidence) -> None:
    assert plan(evidence).old_windows == evidence.old_windows


@pytest.mark.parametrize(
    "nothing_measured",
    [DriftReport(champion="v1", rows=0), DriftReport(champion="v1", rows=1), drift(None)],
    ids=["no rows", "one row", "no accuracy"],
)
def test_missing_drift_figures_end_in_a_skip_with_a_reason(nothing_measured: DriftReport) -> None:
    decision = plan(replace(QUIET, drift=nothing_measured))
    assert (decision.action, decision.rule) == ("skip", "nothing-to-gain")
    assert "too few labelled images" in decision.reasons[0]


def test_a_skip_does_not_claim_that_unmeasured_images_look_the_same() -> None:
    decision = plan(replace(QUIET, drift=DriftReport(champion="v1", rows=0)))
    assert "look the same" not in decision.reasons[0]


def test_a_drop_that_chance_explains_is_not_called_small() -> None:
    # A reader sees "a drop of 10.0 points", over the threshold of 3.0, and "nothing to gain": the reason is chance.
    sentence = plan(replace(QUIET, drift=drift(0.1, lower=-0.05, upper=0.25))).reasons[0]
    assert "a drop of 10.0 points (95 % interval -5.0 to 25.0), which may be chance." in sentence


def test_a_small_drop_is_told_beside_its_threshold() -> None:
    sentence = plan(QUIET).reasons[0]
    assert "a drop of 0.0 points (95 % interval -2.0 to 2.0), below the threshold of 3.0." in sentence


def test_the_drop_threshold_comes_from_the_configuration() -> None:
    dropped = replace(QUIET, drift=drift(0.6))
    assert plan(dropped, CONFIG.model_copy(update={"train_at_drop": 0.7})).rule == "nothing-to-gain"


def test_reasons_of_a_plan_start_with_the_rule_and_tell_the_drift() -> None:
    decision = plan(replace(QUIET, drift=drift(0.1)))
    wanted = "The champion lost 10.0 points of accuracy (95 % interval 1.0 to 90.0), at least 3.0."
    assert decision.reasons[0] == wanted
    assert "fine-tune: +5.0 points expected" in decision.reasons[1]
    assert "Weighed against it: retrain: +5.3 points expected" in decision.reasons[1]
    assert decision.reasons[2] == drift(0.1).sentence


def test_quarantine_tells_each_failure_and_fault() -> None:
    decision = plan(replace(QUIET, validation=INVALID, drift=LOUD))
    assert decision.reasons == ("Nothing can be read. The labels look renamed.",)


def test_the_first_window_counts_as_much_new_data_only_with_a_champion() -> None:
    # One old row at least is assumed, so a champion without training rows gives 400 new for each old one.
    assert plan(replace(QUIET, old_rows=0)).rule == "much-new-data"
    assert plan(replace(BOOTSTRAP, old_rows=0)).rule == "no-champion"


# --- windows that a person has released


RELEASED = "Released from quarantine by ada: the new camera is darker"
FREED = replace(QUIET, released=RELEASED)


@pytest.mark.parametrize(
    ("evidence", "rule", "action"),
    [
        pytest.param(replace(FREED, validation=INVALID), "nothing-to-gain", "skip", id="invalid"),
        pytest.param(
            replace(FREED, drift=drift(0.1, faults=(RENAMED,))), "measurable-drop", "train", id="broken and worse"
        ),
        pytest.param(replace(FREED, validation=INVALID, drift=LOUD), "measurable-drop", "train", id="both"),
        pytest.param(
            replace(BOOTSTRAP, released=RELEASED, validation=INVALID), "no-champion", "train", id="before a champion"
        ),
        pytest.param(
            replace(FREED, validation=INVALID, forced="retrain"), "forced-strategy", "train", id="with a strategy"
        ),
        pytest.param(
            replace(FREED, validation=INVALID, already_trained=True), "already-trained", "skip", id="trained before"
        ),
        pytest.param(FREED, "nothing-to-gain", "skip", id="nothing wrong with it"),
    ],
)
def test_a_released_window_is_decided_by_the_other_rules(evidence: Evidence, rule: str, action: str) -> None:
    decision = plan(evidence)
    assert (decision.rule, decision.action) == (rule, action)
    assert decision.reasons[-1] == RELEASED
    assert RELEASED not in decision.reasons[:-1]
    blameless = replace(evidence, released=None, validation=WARNED, faults=())
    assert decision.model_dump(exclude={"reasons", "evidence"}) == plan(blameless).model_dump(
        exclude={"reasons", "evidence"}
    )
    assert decision.reasons[0] == plan(blameless).reasons[0]


def test_a_window_that_nobody_released_says_nothing_of_it() -> None:
    for evidence in (QUIET, BOOTSTRAP, replace(QUIET, validation=INVALID), replace(QUIET, drift=LOUD)):
        assert not any("eleased" in reason for reason in plan(evidence).reasons)


# --- nothing to learn


@pytest.mark.parametrize(("new_rows", "held_out"), [(0, 100), (400, 0), (0, 0)])
@pytest.mark.parametrize(
    "evidence",
    [
        replace(FREED, validation=INVALID),
        replace(BOOTSTRAP, released=RELEASED),
        BOOTSTRAP,
        replace(QUIET, forced="retrain"),
        replace(QUIET, drift=drift(0.6)),
    ],
    ids=["released", "first and released", "first", "forced", "large drop"],
)
def test_without_rows_to_train_on_or_to_judge_by_there_is_nothing_to_learn(
    evidence: Evidence, new_rows: int, held_out: int
) -> None:
    decision = plan(replace(evidence, new_rows=new_rows, held_out=held_out))
    assert (decision.rule, decision.action, decision.rungs) == ("nothing-to-learn", "skip", ())
    assert f"(labelled rows to train on: {new_rows}, held out: {held_out})" in decision.reasons[0]
    assert decision.reasons[1:] == ((evidence.released,) if evidence.released else ())


@pytest.mark.parametrize(
    ("evidence", "rule"),
    [(replace(QUIET, validation=INVALID), "invalid-window"), (replace(QUIET, drift=LOUD), "broken-data")],
)
def test_a_bad_window_without_rows_is_quarantined_and_not_skipped(evidence: Evidence, rule: str) -> None:
    assert plan(replace(evidence, new_rows=0, held_out=0)).rule == rule


def test_one_row_on_each_side_is_enough_to_go_on() -> None:
    assert plan(replace(QUIET, new_rows=1, held_out=1)).rule == "nothing-to-gain"


def test_a_first_model_has_only_rungs_that_need_no_champion() -> None:
    recipes = {**LOOPS, "warm-retrain": Recipe(epochs=1, learning_rate=1e-3, start="shrunk", rows="all")}
    config = DecisionConfig(ladder=("fine-tune", "retrain", "warm-retrain"), candidates=("retrain",))
    decision = decide(BOOTSTRAP, dataclasses.replace(policy(config), training=training_with(recipes)))
    assert strategies(decision) == ["retrain"]


# --- what is weighed


def test_the_dear_way_is_taken_where_the_rest_of_the_loss_is_worth_it() -> None:
    # A retrain brings a fortieth of the loss more than a fine-tune and has to bring 0.42 points more: 17 points lost.
    assert strategies(plan(replace(QUIET, drift=drift(0.16))))[0] == "fine-tune"
    assert strategies(plan(replace(QUIET, drift=drift(0.18)))) == ["retrain"]
    dear = CONFIG.model_copy(update={"retrain_worth": 5.0})
    assert strategies(plan(replace(QUIET, drift=drift(0.5)), dear))[0] == "fine-tune"


def test_what_brings_less_than_its_compute_is_skipped_under_the_rule_that_weighed_it() -> None:
    decision = plan(replace(QUIET, drift=drift(0.04)), CONFIG.model_copy(update={"retrain_worth": 50.0}))
    assert (decision.action, decision.rule, decision.rungs) == ("skip", "measurable-drop", ())
    assert "No training is worth its compute" in decision.reasons[0]
    assert "fine-tune: +2.0 points expected" in decision.reasons[0]


def test_new_classes_are_learnt_whatever_it_costs() -> None:
    evidence = replace(QUIET, window_classes={"cat": 250, "owl": 20})
    assert plan(evidence, CONFIG.model_copy(update={"retrain_worth": 50.0})).action == "train"


def test_without_experience_the_first_candidate_is_tried_and_that_is_said() -> None:
    decision = decide(replace(QUIET, drift=drift(0.1)), policy(experience=()))
    assert strategies(decision) == ["fine-tune", "retrain"]
    assert "Nothing tells what fine-tune, retrain would bring" in decision.reasons[1]
    assert decision.confidence is None


def test_a_candidate_of_which_nothing_is_known_is_named_and_not_weighed() -> None:
    config = CONFIG.model_copy(update={"candidates": ("head-only", "fine-tune")})
    decision = plan(replace(QUIET, drift=drift(0.1)), config)
    assert strategies(decision)[0] == "fine-tune"
    assert "Nothing tells what head-only would bring here; `--strategy` tries it." in decision.reasons


def test_the_first_model_is_promised_no_gain() -> None:
    decision = plan(BOOTSTRAP)
    assert [forecast.strategy for forecast in decision.alternatives] == ["retrain"]
    assert (decision.rungs[0].forecast.gain, decision.confidence) == (None, None)


def test_confidence_in_skipping_what_is_not_worth_it_is_high() -> None:
    decision = plan(replace(QUIET, drift=drift(0.1)), CONFIG.model_copy(update={"retrain_worth": 500.0}))
    assert decision.action == "skip"
    assert decision.confidence is not None
    assert decision.confidence > 0.99


def test_no_alarm_is_told_and_nothing_about_how_images_look() -> None:
    drifted = QUIET.model_copy(update={"drifted": True})  # but not in enough windows of late
    assert plan(drifted).reasons[0].startswith("Nothing to gain: no drift alarm; a drop of 0.0 points")


def test_what_a_run_of_this_model_brought_counts_more_than_the_benchmark() -> None:
    evidence = replace(QUIET, drift=drift(0.1))
    disappointed = tuple(
        PastGain(strategy="fine-tune", situation={**HERE, "drop": 0.1}, old=-0.05, new=0.01) for _ in range(10)
    )
    assert strategies(plan(evidence))[0] == "fine-tune"
    assert strategies(plan(replace(evidence, gains=disappointed))) == ["retrain"]


def test_what_does_not_fit_into_the_budget_is_not_weighed() -> None:
    evidence = replace(QUIET, drift=drift(0.5), trainings=(ran("fine-tune", 1000, 1.0),), device="cpu", processor="CPU")
    assert strategies(plan(evidence)) == ["retrain"]
    assert strategies(plan(evidence, CONFIG.model_copy(update={"max_seconds": 100.0})))[0] == "fine-tune"
    broke = plan(evidence, CONFIG.model_copy(update={"max_seconds": 10.0}))
    assert broke.action == "skip"
    assert "Nothing fits into the budget of 10 s" in broke.reasons[0]
    priced = {"prices": {"CPU": 1.0}, "max_money": 0.01}  # 36 seconds
    assert strategies(plan(evidence, CONFIG.model_copy(update=priced)))[0] == "fine-tune"


def test_rungs_that_do_not_fit_into_the_budget_are_left_out() -> None:
    trained = {"trainings": (ran("fine-tune", 1000, 1.0),), "device": "cpu"}  # 21 s, and a retrain 126 s
    evidence = replace(QUIET, drift=drift(0.03), **trained)
    assert strategies(plan(evidence)) == ["fine-tune", "retrain"]
    assert strategies(plan(evidence, CONFIG.model_copy(update={"max_seconds": 100.0}))) == ["fine-tune"]


@pytest.mark.parametrize(
    ("limits", "trainings", "told"),
    [
        ({"max_seconds": 5.0}, (), "Nothing tells yet how long it takes, so the budget of 5 s may not be kept."),
        ({"max_money": 0.5}, (), "Nothing tells yet how long it takes, so the budget of 0.5 EUR may not be kept."),
        ({"max_money": 0.5}, ("fine-tune",), "decision.prices has no price of 'CPU', so max_money may not be kept."),
        ({}, ("fine-tune",), None),
    ],
)
def test_a_budget_that_nothing_tells_whether_it_is_kept_is_said(
    limits: dict[str, float], trainings: tuple[str, ...], told: str | None
) -> None:
    past = tuple(ran(strategy, 1000, 1.0) for strategy in trainings)
    evidence = replace(QUIET, drift=drift(0.5), trainings=past, device="cpu", processor="CPU")
    decided = plan(evidence, CONFIG.model_copy(update=limits))
    assert decided.action == "train"
    assert [r for r in decided.reasons if "kept" in r] == ([told] if told else [])


def test_what_a_person_asks_for_is_trained_beyond_the_budget_and_that_is_said() -> None:
    evidence = replace(QUIET, forced="retrain", trainings=(ran("fine-tune", 1000, 1.0),), device="cpu")
    decided = plan(evidence, CONFIG.model_copy(update={"max_seconds": 10.0}))
    assert strategies(decided) == ["retrain"]
    assert decided.reasons[-1] == "That goes beyond the budget of 10 s, which binds what the policy chooses only."


def test_where_nothing_is_known_and_nothing_lost_nothing_is_tried() -> None:
    nothing_known = policy(experience=())
    lost, changed = replace(QUIET, drift=drift(0.1)), replace(QUIET, drift=drift(0.0, -0.02, 0.02, alarm=True))
    assert decide(lost, nothing_known).action == "train"
    assert (decide(changed, nothing_known).action, decide(changed, nothing_known).rule) == ("skip", "changed-images")


def test_a_strategy_asked_for_without_a_champion_has_to_wait_and_that_is_said() -> None:
    decided = plan(replace(BOOTSTRAP, forced="fine-tune"))
    assert strategies(decided) == ["retrain"]
    assert decided.reasons[0].endswith("fine-tune, which was asked for, has to wait.")


def test_no_turning_point_is_told_twice() -> None:
    for worth in (0.0, 0.5, 100.0):
        points = plan(
            replace(QUIET, drift=drift(0.1)), CONFIG.model_copy(update={"retrain_worth": worth})
        ).turning_points
        assert len(set(points)) == len(points)


def test_a_candidate_off_the_ladder_stands_below_what_costs_more() -> None:
    config = DecisionConfig(ladder=("fine-tune", "retrain"), candidates=("head-only",))
    recipes = {**LOOPS, "head-only": Recipe(epochs=15, learning_rate=5e-3)}  # fine-tune takes 10, retrain 30 on all
    decision = decide(
        replace(QUIET, drift=drift(0.1)), dataclasses.replace(policy(config), training=training_with(recipes))
    )
    assert strategies(decision) == ["head-only", "retrain"]


def test_confidence_is_even_between_equals_and_grows_with_the_distance() -> None:
    free = CONFIG.model_copy(update={"retrain_worth": 0.0})

    def confidence(share: float) -> float:
        gains = tuple(
            PastGain(strategy=name, situation={**HERE, "drop": 0.1}, old=0.0, new=2 * gain + way)
            for name, gain in (("fine-tune", 0.05), ("retrain", 0.05 * share))
            for way in [-0.02, 0.02] * 10
        )
        found = decide(replace(QUIET, drift=drift(0.1)), policy(free, gains)).confidence
        assert found is not None
        return found

    assert confidence(1.0) == pytest.approx(0.5)
    assert confidence(0.9) > 0.5
    assert confidence(0.2) > 0.95


# --- the plan as a whole


def test_the_same_evidence_is_the_same_plan_to_the_bit_and_other_evidence_another() -> None:
    evidence = replace(QUIET, drift=drift(0.1))
    again = Evidence.model_validate_json(evidence.model_dump_json())
    assert plan(evidence).digest == plan(again).digest
    assert plan(evidence).digest != plan(replace(evidence, new_rows=401)).digest
    assert Decision.model_validate_json(plan(evidence).model_dump_json()).digest == plan(evidence).digest


def test_a_plan_says_at_which_drop_another_one_would_follow() -> None:
    points = plan(replace(QUIET, drift=drift(0.1, lower=0.06, upper=0.14))).turning_points
    skipped = next(point for point in points if point.startswith("It would have been skip if the champion's loss"))
    found = float(re.search(r"below ([\d.]+) points", skipped)[1])  # type: ignore[index]
    # Chance would explain a drop of four points, and then nothing is weighed.
    assert found == pytest.approx(4.0, abs=0.1)
    climbed = next(point for point in points if point.startswith("It would have been retrain if the champion's loss"))
    assert float(re.search(r"above ([\d.]+) points", climbed)[1]) == pytest.approx(17.1, abs=0.6)  # type: ignore[index]


def test_a_turning_point_turns_the_plan() -> None:
    evidence = replace(QUIET, drift=drift(0.1, lower=0.06, upper=0.14))
    point = next(p for p in plan(evidence).turning_points if "fewer training images" in p)
    rows = int(re.search(r"\(([\d,]+) instead of", point)[1].replace(",", ""))  # type: ignore[index]
    assert 0 < rows < 400
    turned = decide(with_rows((evidence, policy()), rows)[0], policy())
    kept = decide(with_rows((evidence, policy()), rows + 1)[0], policy())
    assert outcome_of(turned) in point
    assert outcome_of(kept) == "fine-tune"
