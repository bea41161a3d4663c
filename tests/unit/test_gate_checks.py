"""The gate's four checks and its one word, over a table of evaluations."""

import pytest
from scipy.stats import binomtest

from components.core.config import GateConfig
from components.core.contracts import ClassRecall, Evaluation, HoldoutScores, PairedOutcome
from components.gate.checks import accurate_enough, keeps_new, keeps_old, learns_new_classes
from components.gate.judgement import judge
from components.gate.levels import Level
from components.gate.noninferiority import lower_bound

CONFIG = GateConfig()
LEVEL = Level(now=0.05, later=0.05)  # z = 1.645


def holdout(
    correct: int,
    rows: int,
    *,
    gained: int = 0,
    lost: int = 0,
    paired_rows: int | None = None,
    recall: dict[str, float] | None = None,
    new_rows: int = 100,
) -> HoldoutScores:
    """Scores of one holdout; `paired_rows` are those of classes both know, by default all of them. Each class in
    `recall` is new and has `new_rows` rows."""
    paired_rows = rows if paired_rows is None else paired_rows
    agreeing = paired_rows - gained - lost
    return HoldoutScores(
        rows=rows,
        correct=correct,
        paired=PairedOutcome(
            both_right=max(0, agreeing - 1),
            both_wrong=min(1, agreeing),
            only_challenger_right=gained,
            only_champion_right=lost,
        ),
        new_classes={
            name: ClassRecall(rows=new_rows, correct=round(share * new_rows)) for name, share in (recall or {}).items()
        },
        classes=("a", "b"),
        confusion=({}, {}),
    )


def evaluation(old: HoldoutScores | None, new: HoldoutScores, champion: str | None = "champion") -> Evaluation:
    return Evaluation(champion=champion, challenger="challenger", old=old, new=new)


GOOD = holdout(950, 1000)
BETTER = holdout(950, 1000, gained=60, lost=5)
CLEARLY_WORSE = holdout(950, 1000, gained=5, lost=60)
UNDECIDED = holdout(95, 100, gained=2, lost=2)  # the estimate is 0, but 100 rows leave the bound at -0.05
EMPTY = holdout(0, 0)


@pytest.mark.parametrize(
    ("old", "new", "last_rung", "earlier_rung"),
    [
        pytest.param(GOOD, BETTER, "promote", "promote", id="nothing regressed"),
        pytest.param(GOOD, GOOD, "promote", "promote", id="no better, but no worse"),
        pytest.param(CLEARLY_WORSE, BETTER, "reject", "escalate", id="forgets the old"),
        pytest.param(GOOD, CLEARLY_WORSE, "reject", "escalate", id="worse on the new"),
        pytest.param(UNDECIDED, BETTER, "hold", "escalate", id="too few old rows"),
        pytest.param(BETTER, UNDECIDED, "hold", "escalate", id="too few new rows"),
        pytest.param(UNDECIDED, CLEARLY_WORSE, "reject", "escalate", id="one certain failure rejects"),
        pytest.param(EMPTY, BETTER, "hold", "hold", id="old holdout empty"),
        pytest.param(BETTER, EMPTY, "hold", "hold", id="new holdout empty"),
        pytest.param(EMPTY, EMPTY, "hold", "hold", id="both empty"),
        pytest.param(GOOD, holdout(600, 1000), "reject", "escalate", id="not accurate enough"),
        pytest.param(GOOD, holdout(705, 1000), "hold", "escalate", id="perhaps accurate enough"),
        pytest.param(GOOD, holdout(950, 1000, recall={"c": 0.6}), "promote", "promote", id="new class learnt"),
        pytest.param(GOOD, holdout(950, 1000, recall={"c": 0.9, "d": 0.3}), "reject", "escalate", id="one not learnt"),
        pytest.param(GOOD, holdout(95, 100, paired_rows=0, recall={"c": 0.95}), "promote", "promote", id="new only"),
        pytest.param(
            GOOD, holdout(950, 1000, recall={"c": 0.4}, new_rows=5), "hold", "escalate", id="perhaps not learnt"
        ),
        pytest.param(
            GOOD, holdout(950, 1000, recall={"c": 0.0}, new_rows=0), "hold", "hold", id="new class without rows"
        ),
        pytest.param(holdout(50, 50, lost=1), GOOD, "hold", "hold", id="50 rows show nothing"),
        pytest.param(holdout(940, 1000, lost=60), GOOD, "reject", "escalate", id="60 rows of 1,000 lost"),
    ],
)
def test_verdict(old: HoldoutScores, new: HoldoutScores, last_rung: str, earlier_rung: str) -> None:
    assert judge(evaluation(old, new), CONFIG, higher_rung_left=False).verdict == last_rung
    assert judge(evaluation(old, new), CONFIG, higher_rung_left=True).verdict == earlier_rung


@pytest.mark.parametrize(
    ("new", "word"),
    [
        pytest.param(holdout(95, 100, paired_rows=0), "promote", id="accurate"),
        pytest.param(holdout(50, 100, paired_rows=0), "reject", id="inaccurate"),
        pytest.param(holdout(8, 10, paired_rows=0), "hold", id="few rows"),
        pytest.param(EMPTY, "hold", id="no rows"),
    ],
)
def test_the_first_model_is_judged_by_its_accuracy_alone(new: HoldoutScores, word: str) -> None:
    verdict = judge(evaluation(None, new, champion=None), CONFIG, higher_rung_left=False)
    assert verdict.verdict == word
    assert [check.name for check in verdict.checks] == ["accurate enough"]
    assert verdict.champion is None


def test_accuracy_is_judged_by_its_lower_bound() -> None:
    check = accurate_enough(evaluation(None, holdout(8, 10), champion=None), CONFIG, LEVEL)
    assert check is not None
    assert check.value == pytest.approx(0.8)
    assert check.bound == pytest.approx(binomtest(8, 10).proportion_ci(0.9, method="exact").low)
    assert not check.passed
    assert not check.conclusive


@pytest.mark.parametrize(("new", "passed"), [(holdout(0, 1), True), (EMPTY, False)])
def test_least_accuracy_zero_is_reached_by_whatever_was_measured(new: HoldoutScores, passed: bool) -> None:
    config = CONFIG.model_copy(update={"min_accuracy": 0.0})
    check = accurate_enough(evaluation(None, new, champion=None), config, LEVEL)
    assert check is not None
    assert check.passed is passed


def test_a_rung_that_no_model_could_pass_is_not_climbed() -> None:
    # All right, and 100 rows without a discordant one leave the bound at -z^2 / (100 + z^2) = -2.6 points.
    perfect = holdout(100, 100).model_copy(update={"paired": PairedOutcome(both_right=100)})
    verdict = judge(evaluation(GOOD, perfect), CONFIG, higher_rung_left=True)
    assert (verdict.verdict, [c.within_reach for c in verdict.checks if not c.passed]) == ("hold", [False])
    few_wrong = holdout(90, 100).model_copy(update={"paired": PairedOutcome(both_right=90, both_wrong=10)})
    assert judge(evaluation(GOOD, few_wrong), CONFIG, higher_rung_left=True).verdict == "escalate"


def test_rows_of_groups_count_as_fewer() -> None:
    alone = PairedOutcome(both_right=1000, only_challenger_right=4, only_champion_right=4)
    single, grouped = (
        keeps_old(evaluation(holdout(950, 1000).model_copy(update={"paired": paired}), GOOD), CONFIG, LEVEL)
        for paired in (alone, alone.model_copy(update={"design_effect": 4.0}))
    )
    assert single is not None
    assert grouped is not None
    assert (single.passed, grouped.passed, grouped.conclusive) == (True, False, False)
    quarter = PairedOutcome(both_right=250, only_challenger_right=1, only_champion_right=1)
    assert grouped.bound == pytest.approx(lower_bound(quarter, LEVEL.now))
    assert "tell as much as 252 single ones" in grouped.sentence


def test_one_of_many_new_classes_misses_for_certain_less_easily() -> None:
    one = {"c": ClassRecall(rows=20, correct=5)}
    many = {**one, **{f"c{n}": ClassRecall(rows=20, correct=20) for n in range(99)}}
    alone, among = (
        learns_new_classes(evaluation(GOOD, GOOD.model_copy(update={"new_classes": counts})), CONFIG, LEVEL)
        for counts in (one, many)
    )
    assert alone is not None
    assert among is not None
    assert (alone.passed, alone.conclusive) == (False, True)
    assert among.passed


def test_old_check_states_estimate_bound_and_threshold() -> None:
    # gained 5, lost 60 of 1,000: the estimate is -5.5 points.
    check = keeps_old(evaluation(CLEARLY_WORSE, GOOD), CONFIG, LEVEL)
    assert check is not None
    assert check.value == pytest.approx(-0.055)
    assert check.bound < check.value
    assert check.threshold == -0.01
    assert not check.passed
    assert check.conclusive
    assert "-5.5 points on 1000 rows" in check.sentence


def test_each_holdout_has_its_own_margin() -> None:
    config = CONFIG.model_copy(update={"old_margin": 0.2})
    both = evaluation(UNDECIDED, UNDECIDED)
    old, new = keeps_old(both, config, LEVEL), keeps_new(both, config, LEVEL)
    assert old is not None
    assert new is not None
    assert (old.passed, new.passed) == (True, False)


def test_a_margin_of_everything_lets_everything_pass() -> None:
    config = CONFIG.model_copy(update={"old_margin": 1.0})
    check = keeps_old(evaluation(holdout(0, 50, lost=50), GOOD), config, LEVEL)
    assert check is not None
    assert check.passed


def test_a_stricter_alpha_needs_more_rows() -> None:
    both = evaluation(holdout(300, 300), holdout(300, 300))
    assert judge(both, CONFIG, higher_rung_left=False).verdict == "promote"
    assert judge(both, CONFIG.model_copy(update={"alpha": 0.001}), higher_rung_left=False).verdict == "hold"


def test_new_classes_are_learnt_in_the_mean_and_none_may_miss_it_for_certain() -> None:
    check = learns_new_classes(evaluation(GOOD, holdout(95, 100, recall={"c": 0.9, "d": 0.2, "e": 0.7})), CONFIG, LEVEL)
    assert check is not None
    assert "'d'" in check.sentence
    assert (check.value, check.passed, check.conclusive) == (pytest.approx(0.6), False, True)


def test_of_many_new_classes_some_seem_too_low_by_chance() -> None:
    few = {f"c{n}": ClassRecall(rows=5, correct=2 if n < 5 else 4) for n in range(100)}
    check = learns_new_classes(evaluation(GOOD, GOOD.model_copy(update={"new_classes": few})), CONFIG, LEVEL)
    assert check is not None
    assert (check.value, check.passed) == (pytest.approx(0.78), True)


def test_new_classes_at_the_threshold_pass_and_below_it_do_not() -> None:
    at, below = (
        learns_new_classes(evaluation(GOOD, holdout(95, 100, recall={"c": recall})), CONFIG, LEVEL)
        for recall in (0.5, 0.49)
    )
    assert at is not None
    assert below is not None
    assert (at.passed, below.passed, below.conclusive) == (True, False, False)


def test_a_new_class_without_a_held_out_row_is_neither_learnt_nor_failed() -> None:
    check = learns_new_classes(evaluation(GOOD, holdout(95, 100, recall={"c": 0.0}, new_rows=0)), CONFIG, LEVEL)
    assert check is not None
    assert "'c'" in check.sentence
    assert "no held-out row: deliver more images" in check.sentence
    assert (check.passed, check.conclusive) == (False, False)


def test_a_new_class_failed_for_certain_is_not_hidden_by_one_without_rows() -> None:
    new = holdout(950, 1000, recall={"c": 0.1})
    new = new.model_copy(update={"new_classes": {"b": ClassRecall(rows=0, correct=0), **new.new_classes}})
    check = learns_new_classes(evaluation(GOOD, new), CONFIG, LEVEL)
    assert check is not None
    assert (check.passed, check.conclusive) == (False, True)
    assert judge(evaluation(GOOD, new), CONFIG, higher_rung_left=False).verdict == "reject"


def test_a_new_class_without_rows_does_not_pass_where_nothing_is_asked_of_it() -> None:
    config = CONFIG.model_copy(update={"min_new_class_recall": 0.0})
    check = learns_new_classes(evaluation(GOOD, holdout(95, 100, recall={"c": 0.0}, new_rows=0)), config, LEVEL)
    assert check is not None
    assert not check.passed


@pytest.mark.parametrize(("correct", "conclusive"), [(0, True), (2, True), (3, False), (9, False)])
def test_a_new_class_failed_for_certain_where_its_upper_bound_is_below(correct: int, conclusive: bool) -> None:
    # Clopper and Pearson at 5 % on 20 rows: 2 give 0.283 at most, 3 give 0.344; wanted 0.3.
    config = CONFIG.model_copy(update={"min_new_class_recall": 0.3 if correct < 9 else 0.5})
    check = learns_new_classes(
        evaluation(GOOD, holdout(95, 100, recall={"c": correct / 20}, new_rows=20)), config, LEVEL
    )
    assert check is not None
    assert (check.passed, check.conclusive) == (False, conclusive)


@pytest.mark.parametrize(
    ("scores", "conclusive"),
    [
        (holdout(50, 50, lost=1), False),  # an estimate of -2 points, but one row is no evidence
        (holdout(1000, 1000, lost=60), True),
        (holdout(0, 50, lost=50), True),
        (EMPTY, False),
    ],
    ids=["1 of 50", "60 of 1000", "all", "no rows"],
)
def test_a_failed_check_is_conclusive_only_where_the_upper_bound_misses(
    scores: HoldoutScores, conclusive: bool
) -> None:
    check = keeps_old(evaluation(scores, GOOD), CONFIG, LEVEL)
    assert check is not None
    assert (check.passed, check.conclusive) == (False, conclusive)
    assert check.value <= 0


@pytest.mark.parametrize(("correct", "conclusive"), [(50, True), (61, True), (62, False), (69, False)])
def test_accuracy_is_missed_for_certain_where_its_upper_bound_is_below(correct: int, conclusive: bool) -> None:
    # Clopper and Pearson at 5 % on 100 rows: 61 give 0.692 at most, 62 give 0.701; wanted 0.7.
    check = accurate_enough(evaluation(None, holdout(correct, 100), champion=None), CONFIG, LEVEL)
    assert check is not None
    assert (check.passed, check.conclusive) == (False, conclusive)


def test_verdict_names_both_models_and_shows_each_check() -> None:
    verdict = judge(evaluation(CLEARLY_WORSE, UNDECIDED), CONFIG, higher_rung_left=False)
    assert (verdict.champion, verdict.challenger) == ("champion", "challenger")
    assert [check.name for check in verdict.checks] == ["accurate enough", "not worse on old", "not worse on new"]
    assert [line[2] for line in verdict.markdown.splitlines() if line.startswith("| ")][1:] == ["✓", "✗", "?"]
