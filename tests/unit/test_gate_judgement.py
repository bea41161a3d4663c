"""The verdict: the budget against the anchor, what a hold waits for, levels, and evaluations at the edge."""

import itertools

import pytest

from components.core.config import GateConfig
from components.core.contracts import AnchorScores, ClassRecall, Evaluation, HoldoutScores, PairedOutcome, Verdict
from components.gate.checks import keeps_new, within_budget
from components.gate.judgement import judge
from components.gate.levels import Level, Looks
from components.gate.power import rows_needed, smallest_margin

CONFIG = GateConfig()
LEVEL = Level(now=0.05, later=0.05)  # z = 1.645
SAME = PairedOutcome(both_right=950, both_wrong=50)
NAMED = "0123456789abcdef"


def pair(rows: int, *, gained: int = 0, lost: int = 0) -> PairedOutcome:
    return PairedOutcome(both_right=rows - gained - lost, only_challenger_right=gained, only_champion_right=lost)


def holdout(paired: PairedOutcome, by_class: dict[str, PairedOutcome] | None = None) -> HoldoutScores:
    return HoldoutScores(
        rows=paired.rows,
        correct=paired.both_right + paired.only_challenger_right,
        paired=paired,
        new_classes={},
        classes=("a", "b"),
        confusion=({}, {}),
        by_class=by_class or {},
    )


def evaluation(old: PairedOutcome = SAME, new: PairedOutcome = SAME, anchor: PairedOutcome | None = None) -> Evaluation:
    return Evaluation(
        champion="champion",
        challenger="challenger",
        old=holdout(old),
        new=holdout(new),
        anchor=AnchorScores(version=NAMED, paired=anchor) if anchor else None,
    )


# The budget


@pytest.mark.parametrize(
    ("anchor", "passed", "conclusive"),
    [
        (pair(2000, lost=20), True, True),  # a point lost, surely less than 1.5
        (pair(2000, lost=30), False, False),  # a point and a half, perhaps two
        (pair(2000, lost=80), False, True),
        (PairedOutcome(), False, False),
    ],
)
def test_losses_against_the_anchor_may_not_exceed_the_budget(
    anchor: PairedOutcome, passed: bool, conclusive: bool
) -> None:
    check = within_budget(evaluation(anchor=anchor), CONFIG, LEVEL)
    assert check is not None
    assert (check.passed, check.conclusive, check.threshold) == (passed, conclusive, -0.02)


def test_budget_is_checked_only_against_an_anchor() -> None:
    assert within_budget(evaluation(), CONFIG, LEVEL) is None


@pytest.mark.parametrize(
    ("given", "budget"),
    [({}, 0.02), ({"old_margin": 0.06}, 0.12), ({"old_margin": 0.7}, 1.0), ({"forgetting_budget": 0.0}, 0.0)],
)
def test_budget_is_twice_the_margin_unless_it_is_set(given: dict[str, float], budget: float) -> None:
    check = within_budget(evaluation(anchor=SAME), GateConfig.model_validate(given), LEVEL)
    assert check is not None
    assert check.threshold == -budget


def test_small_losses_pass_each_time_until_the_budget_is_used_up() -> None:
    # Each window loses 8 of 2,000 rows, gains none: within the margin of a point. Against the anchor they add up.
    words = []
    for windows in range(1, 6):
        judged = evaluation(old=pair(2000, lost=8), anchor=pair(2000, lost=8 * windows))
        words.append(judge(judged, CONFIG, higher_rung_left=False).verdict)
    assert words == ["promote", "promote", "promote", "hold", "hold"]


def test_budget_is_judged_at_its_own_level() -> None:
    judged = evaluation(anchor=pair(2000, lost=24))
    assert judge(judged, CONFIG, higher_rung_left=False).verdict == "promote"
    late = judge(judged, CONFIG, higher_rung_left=False, looks=Looks(same_anchor=20))
    assert late.verdict == "hold"
    assert [check.name for check in late.checks if not check.passed] == ["forgetting budget"]


# Levels


def test_each_further_look_must_be_surer() -> None:
    judged = evaluation(old=pair(400), new=pair(400))
    words = [
        judge(judged, CONFIG, higher_rung_left=False, looks=looks).verdict
        for looks in (Looks(), Looks(rungs=2), Looks(rungs=2, same_window=1))
    ]
    assert words == ["promote", "promote", "hold"]


def test_verdict_says_at_which_level_it_was_reached() -> None:
    verdict = judge(evaluation(anchor=SAME), CONFIG, higher_rung_left=False, looks=Looks(rungs=2, same_anchor=1))
    assert verdict.level == pytest.approx(0.0225)
    terms = (
        "Judged at a level of 2.25 %: 2 attempts share 4.5 %; the budget at 0.417 %, after 1 earlier run against it."
    )
    assert verdict.terms == terms
    assert verdict.sentence.endswith(terms)
    assert verdict.markdown.endswith(terms)


def test_verdict_of_an_earlier_release_can_be_read() -> None:
    earlier = '{"verdict": "hold", "challenger": "b", "champion": null, "checks": []}'
    verdict = Verdict.model_validate_json(earlier)
    assert (verdict.level, verdict.findings) == (None, "")


def test_names_of_classes_cannot_become_markup() -> None:
    new = holdout(SAME).model_copy(update={"new_classes": {"<b>|": ClassRecall(rows=10, correct=1)}})
    judged = evaluation().model_copy(update={"new": new})
    table = judge(judged, CONFIG, higher_rung_left=False).markdown
    assert "&#60;b&#62;&#124;" in table
    assert "<b>" not in table


# What a hold waits for


def test_a_hold_says_how_many_images_would_decide() -> None:
    check = keeps_new(evaluation(new=pair(1000, gained=20, lost=20)), CONFIG, LEVEL)
    assert check is not None
    assert (
        check.rows_to_decide
        == (rows_needed(gained=0.02, lost=0.02, margin=0.01, level=LEVEL.later) or 0) - 1000
        == 1562
    )
    assert check.sentence.endswith("About 1,600 more rows of this holdout would decide.")


def test_a_hold_counts_the_images_that_will_not_be_held_out_too() -> None:
    judged = evaluation(new=pair(1000, gained=20, lost=20))
    verdict = judge(judged, CONFIG, higher_rung_left=False, holdout_fraction=0.2)
    (rows,) = [check.rows_to_decide for check in verdict.checks if not check.passed]
    # The run that they come with is the second on these rows, and is judged at a tenth of the level.
    needed = rows_needed(gained=0.02, lost=0.02, margin=0.01, level=0.05 * 0.9 * 0.1)
    assert needed is not None
    assert (verdict.verdict, rows, verdict.images_to_decide) == ("hold", needed - 1000, 5 * (needed - 1000))
    assert verdict.sentence.endswith("more labelled images would decide.")


def test_images_that_were_waited_for_decide_if_the_rates_stay() -> None:
    few = keeps_new(evaluation(new=pair(1000, gained=20, lost=20)), CONFIG, LEVEL)
    assert few is not None
    assert few.rows_to_decide is not None
    share = (1000 + few.rows_to_decide) / 1000
    many = pair(round(1000 * share), gained=round(20 * share), lost=round(20 * share))
    check = keeps_new(evaluation(new=many), CONFIG, LEVEL)
    assert check is not None
    assert check.passed


def test_old_rows_that_cannot_tell_say_what_they_could_and_ask_for_no_images() -> None:
    judged = evaluation(old=pair(1000, gained=20, lost=20))
    verdict = judge(judged, CONFIG, higher_rung_left=False, holdout_fraction=0.2)
    (check,) = [check for check in verdict.checks if not check.passed]
    assert (verdict.verdict, check.rows_to_decide, verdict.images_to_decide) == ("hold", None, None)
    least = smallest_margin(rows=1000, discordance=0.04, level=verdict.level or 0)
    assert least is not None
    assert check.sentence.endswith(
        f"These rows, which are all there are, tell losses of {100 * least:.1f} points from none."
    )


@pytest.mark.parametrize(
    "new",
    [pair(1000), pair(1000, lost=60), pair(1000, gained=5, lost=15)],
    ids=["passed", "failed for certain", "at the margin by the look of it"],
)
def test_no_number_is_said_where_nothing_is_open_or_none_would_help(new: PairedOutcome) -> None:
    check = keeps_new(evaluation(new=new), CONFIG, LEVEL)
    assert check is not None
    assert check.rows_to_decide is None
    assert "would decide" not in check.sentence


def test_accuracy_that_is_perhaps_enough_says_how_many_images_would_decide() -> None:
    verdict = judge(evaluation(new=PairedOutcome(both_right=160, both_wrong=40)), CONFIG, higher_rung_left=False)
    accurate = verdict.checks[0]
    assert accurate.passed
    strict = CONFIG.model_copy(update={"min_accuracy": 0.78})
    accurate = judge(
        evaluation(new=PairedOutcome(both_right=160, both_wrong=40)), strict, higher_rung_left=False
    ).checks[0]
    assert (accurate.passed, accurate.conclusive) == (False, False)
    assert accurate.rows_to_decide is not None
    assert accurate.rows_to_decide > 1000


# At the edge

CELLS = [
    PairedOutcome(),
    PairedOutcome(both_right=1),
    PairedOutcome(both_wrong=1),
    PairedOutcome(only_champion_right=1),
    PairedOutcome(only_challenger_right=1),
    PairedOutcome(both_right=500),
    PairedOutcome(both_wrong=500),
    PairedOutcome(only_champion_right=500),
    PairedOutcome(only_challenger_right=500),
    PairedOutcome(only_champion_right=250, only_challenger_right=250),
    PairedOutcome(both_right=100_000, only_champion_right=1),
]


@pytest.mark.parametrize(("old", "new"), list(itertools.product(CELLS, CELLS)))
def test_every_evaluation_has_a_definite_verdict(old: PairedOutcome, new: PairedOutcome) -> None:
    judged = Evaluation(
        champion="champion",
        challenger="challenger",
        old=holdout(old, {"a": old, "b": PairedOutcome()}),
        new=holdout(new, {"a": new}),
        anchor=AnchorScores(version=NAMED, paired=old),
    )
    verdict = judge(judged, CONFIG, higher_rung_left=False, looks=Looks(rungs=3, same_window=9, same_anchor=99))
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict  # no figure is infinite or not a number
    for check in verdict.checks:
        assert (check.bound >= check.threshold) is check.passed or check.name == "learns new classes"
        assert -1 <= check.value <= 1
        assert -1 <= check.bound <= 1


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        (pair(2000), pair(2000), "promote"),  # identical models, all right
        (PairedOutcome(both_wrong=2000), pair(2000), "promote"),  # what both get wrong on old rows is no loss
        (pair(2000), PairedOutcome(both_wrong=2000), "reject"),  # not accurate enough
        (PairedOutcome(), pair(2000), "hold"),
        (pair(2000), PairedOutcome(), "hold"),
        (pair(2000, lost=2000), pair(2000), "reject"),
        (pair(2000, gained=2000), pair(2000), "promote"),
        (pair(2000, gained=1000, lost=1000), pair(2000), "hold"),  # no difference, but nothing is sure
    ],
    ids=["identical", "all wrong", "new all wrong", "old empty", "new empty", "all lost", "all gained", "all ties"],
)
def test_extremes(old: PairedOutcome, new: PairedOutcome, word: str) -> None:
    assert judge(evaluation(old, new), CONFIG, higher_rung_left=False).verdict == word


def test_holdouts_of_one_class_are_judged_like_others() -> None:
    one = holdout(pair(2000, gained=10, lost=10), {"a": pair(2000, gained=10, lost=10)})
    judged = Evaluation(champion="champion", challenger="challenger", old=one, new=one)
    assert judge(judged, CONFIG, higher_rung_left=False).verdict == "promote"
