"""The policy: each rule, their order, the ladder and its price."""

from dataclasses import replace

import pytest

from components.core.config import DecisionConfig
from components.core.contracts import CheckedExpectation, Decision, DriftReport, Fault, Interval, ValidationReport
from components.core.recipes import Recipe, StrategyName
from components.decide.policy import Evidence, decide, learnable_classes

CONFIG = DecisionConfig()
LOOPS: dict[StrategyName, Recipe] = {
    "head-only": Recipe(epochs=60, learning_rate=5e-3),
    "fine-tune": Recipe(epochs=10, learning_rate=5e-4),
    "retrain": Recipe(epochs=30, learning_rate=3e-3, start="fresh", rows="all"),
}
TOO_DARK = CheckedExpectation(name="readable", severity="reject", passed=False, sentence="Nothing can be read.")
INVALID = ValidationReport(expectations=(TOO_DARK,))
WARNED = ValidationReport(expectations=(TOO_DARK.model_copy(update={"severity": "warn"}),))
RENAMED = Fault(name="permuted-labels", effect=0.9, sentence="The labels look renamed.")


def drift(drop: float | None, lower: float = 0.01, upper: float = 0.9, faults: tuple[Fault, ...] = ()) -> DriftReport:
    if drop is None:
        return DriftReport(champion="v1", rows=500, p_value=0.4, faults=faults)
    return DriftReport(
        champion="v1",
        rows=500,
        p_value=0.002,
        drifted=True,
        reference_accuracy=0.95,
        window_accuracy=0.95 - drop,
        accuracy_drop=drop,
        accuracy_drop_interval=Interval(lower=lower, upper=upper),
        faults=faults,
    )


QUIET = Evidence(
    validation=ValidationReport(expectations=()),
    drift=drift(0.0, -0.02, 0.02),
    champion="v1",
    champion_classes=("cat", "dog"),
    old_windows=("w0", "w1"),
    already_trained=False,
    released=None,
    window_classes={"cat": 250, "dog": 250},
    old_rows=1000,
    new_rows=400,
    held_out=100,
    forced=None,
    images_per_second={},
)


def plan(evidence: Evidence, config: DecisionConfig = CONFIG) -> Decision:
    return decide(evidence, config, LOOPS)


def strategies(decision: Decision) -> list[str]:
    return [rung.strategy for rung in decision.rungs]


BOOTSTRAP = replace(
    QUIET,
    champion=None,
    champion_classes=(),
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
            replace(QUIET, window_classes={"cat": 250, "owl": 20}),
            "new-classes",
            "train",
            ["fine-tune", "retrain"],
            id="new class",
        ),
        pytest.param(replace(QUIET, drift=drift(0.5)), "large-drop", "train", ["retrain"], id="large drop"),
        pytest.param(replace(QUIET, new_rows=4000), "much-new-data", "train", ["retrain"], id="much new data"),
        pytest.param(
            replace(QUIET, drift=drift(0.03)), "measurable-drop", "train", ["fine-tune", "retrain"], id="measurable"
        ),
        pytest.param(replace(QUIET, drift=drift(0.029)), "nothing-to-gain", "skip", [], id="below the threshold"),
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
            replace(QUIET, window_classes={"owl": 99}, new_rows=9999, drift=drift(0.6)),
            "new-classes",
            id="6 new classes",
        ),
        pytest.param(replace(QUIET, new_rows=9999, drift=drift(0.6)), "large-drop", id="7 large drop"),
        pytest.param(replace(QUIET, new_rows=9999, drift=drift(0.1)), "much-new-data", id="8 much new data"),
    ],
)
def test_the_first_rule_that_applies_decides(evidence: Evidence, rule: str) -> None:
    assert plan(evidence).rule == rule


def test_a_forced_strategy_stands_alone_where_the_ladder_lacks_it() -> None:
    assert strategies(plan(replace(QUIET, forced="retrain"), DecisionConfig(ladder=("head-only",)))) == ["retrain"]


def test_the_ladder_starts_at_its_first_rung() -> None:
    config = DecisionConfig(ladder=("head-only", "fine-tune", "retrain"))
    assert strategies(plan(replace(QUIET, drift=drift(0.1)), config)) == ["head-only", "fine-tune", "retrain"]
    assert strategies(plan(replace(QUIET, forced="fine-tune"), config)) == ["fine-tune", "retrain"]


def test_hyperparameters_of_each_rung_are_those_of_its_strategy() -> None:
    decision = plan(replace(QUIET, drift=drift(0.1)))
    assert [rung.hyperparameters for rung in decision.rungs] == [LOOPS["fine-tune"], LOOPS["retrain"]]


def test_new_classes_follow_the_champions_in_order_of_name() -> None:
    decision = plan(replace(QUIET, window_classes={"owl": 30, "cat": 5, "bat": 21}))
    assert decision.classes == ("cat", "dog", "bat", "owl")
    assert "'bat' (21 images), 'owl' (30 images)" in decision.reasons[0]


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


def test_rungs_cost_rows_times_epochs_over_speed() -> None:
    # Fine-tune: 30 % of 1,000 old rows + 400 new = 700 rows, 10 epochs at 100 a second: 70 s. Retrain, at a speed of
    # its own: 1,400 rows, 30 epochs at 50 a second: 840 s.
    decision = plan(replace(QUIET, forced="fine-tune", images_per_second={"fine-tune": 100.0, "retrain": 50.0}))
    assert [rung.training_rows for rung in decision.rungs] == [700, 1400]
    assert [rung.estimated_seconds for rung in decision.rungs] == [pytest.approx(70.0), pytest.approx(840.0)]


@pytest.mark.parametrize("speeds", [{}, {"retrain": 0.0}, {"fine-tune": 100.0, "head-only": 900.0}])
def test_unmeasured_speed_gives_no_estimate(speeds: dict[StrategyName, float]) -> None:
    decision = plan(replace(QUIET, forced="retrain", images_per_second=speeds))
    assert [rung.estimated_seconds for rung in decision.rungs] == [None]


def test_a_strategy_is_not_priced_at_the_speed_of_another() -> None:
    decision = plan(replace(QUIET, forced="fine-tune", images_per_second={"fine-tune": 100.0}))
    assert [rung.estimated_seconds for rung in decision.rungs] == [pytest.approx(70.0), None]


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
    assert "too few images" in decision.reasons[0]


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


def test_a_large_drop_is_told_in_points() -> None:
    wanted = "The champion lost 60.0 points of accuracy, at least 20.0: start afresh."
    assert plan(replace(QUIET, drift=drift(0.6)), DecisionConfig(retrain_at_drop=0.2)).reasons[0] == wanted


def test_drop_thresholds_come_from_the_configuration() -> None:
    dropped = replace(QUIET, drift=drift(0.6))
    assert strategies(plan(dropped, DecisionConfig(retrain_at_drop=1.0))) == ["fine-tune", "retrain"]
    assert plan(dropped, DecisionConfig(retrain_at_drop=1.0, fine_tune_at_drop=0.7)).action == "skip"


def test_reasons_of_a_plan_start_with_the_rule_and_tell_the_drift() -> None:
    decision = plan(replace(QUIET, drift=drift(0.1)))
    wanted = "The champion lost 10.0 points of accuracy (95 % interval 1.0 to 90.0), at least 3.0."
    assert decision.reasons[0] == wanted
    assert decision.reasons[1] == drift(0.1).sentence


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
        pytest.param(replace(FREED, validation=INVALID, drift=LOUD), "large-drop", "train", id="both"),
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
    blameless = replace(
        evidence, released=None, validation=WARNED, drift=evidence.drift.model_copy(update={"faults": ()})
    )
    assert decision.model_dump(exclude={"reasons"}) == plan(blameless).model_dump(exclude={"reasons"})
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
    assert f"{new_rows} rows to train on and {held_out} held out" in decision.reasons[0]
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
    decision = decide(BOOTSTRAP, DecisionConfig(ladder=("fine-tune", "retrain", "warm-retrain")), recipes)
    assert strategies(decision) == ["retrain"]
