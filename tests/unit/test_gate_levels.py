"""How alpha is shared: by hand, and that it is never spent twice."""

from itertools import accumulate

import pytest

from components.gate.levels import Looks, holm


@pytest.mark.parametrize(
    ("looks", "level"),
    [
        (Looks(), 0.045),  # nine tenths of 5 %
        (Looks(rungs=2), 0.0225),
        (Looks(rungs=3), 0.015),
        (Looks(rungs=2, same_window=1), 0.00225),  # nine tenths of the tenth that is left
        (Looks(rungs=1, same_window=2), 0.00045),
    ],
)
def test_a_run_spends_nine_tenths_of_what_is_left_and_its_rungs_share_it(looks: Looks, level: float) -> None:
    assert looks.level(0.05).now == pytest.approx(level)


@pytest.mark.parametrize(("earlier", "level"), [(0, 0.025), (1, 0.05 / 6), (2, 0.05 / 12), (9, 0.05 / 110)])
def test_a_run_against_the_anchor_spends_a_share_that_falls_with_its_number(earlier: int, level: float) -> None:
    assert Looks(same_anchor=earlier).anchor_level(0.05).now == pytest.approx(level)
    assert Looks(rungs=2, same_anchor=earlier).anchor_level(0.05).now == pytest.approx(level / 2)


def test_all_runs_together_spend_no_more_than_alpha() -> None:
    ladders = [1, 3, 2, 2, 1, 3, 1, 1, 2]
    window = sum(rungs * Looks(rungs=rungs, same_window=i).level(0.05).now for i, rungs in enumerate(ladders))
    assert 0.0499 < window < 0.05
    anchor = accumulate(2 * Looks(rungs=2, same_anchor=i).anchor_level(0.05).now for i in range(1000))
    assert all(spent < 0.05 for spent in anchor)


def test_looks_at_one_do_not_cost_the_other() -> None:
    assert Looks(same_anchor=30).level(0.05).now == Looks().level(0.05).now
    assert Looks(same_window=3).anchor_level(0.05).now == Looks().anchor_level(0.05).now


def test_a_level_stays_above_zero_however_often_a_window_is_looked_at() -> None:
    assert Looks(rungs=3, same_window=10_000).level(0.05).now > 1e-11


def test_level_is_told_with_what_it_comes_from() -> None:
    assert Looks().describe(0.05, anchored=False) == "Judged at a level of 4.5 %: one attempt has 4.5 %."
    assert Looks(rungs=2, same_window=1, same_anchor=2).describe(0.05, anchored=True) == (
        "Judged at a level of 0.225 %: 2 attempts share 0.45 % of 5 %, after 1 earlier run on this window; "
        "the budget at 0.208 %, after 2 earlier runs against it."
    )


@pytest.mark.parametrize(
    ("p_values", "rejected"),
    [
        # Holm at 5 % over four: 0.0125, 0.0167, 0.025, 0.05. The third is 0.03 > 0.025: it and all after it stay.
        ((0.01, 0.03, 0.015, 0.04), "ac"),
        ((0.013, 0.0001, 0.9, 0.9), "ba"),  # 0.013 is below 0.0167, though above 0.0125
        ((0.013, 0.5, 0.9, 0.9), ""),
        ((0.0125, 0.9, 0.9, 0.9), "a"),  # at the limit is rejected
        ((0.01, 0.015, 0.02, 0.04), "abcd"),
        ((1.0, 1.0, 1.0, 1.0), ""),
    ],
)
def test_holm_by_hand(p_values: tuple[float, ...], rejected: str) -> None:
    assert holm(dict(zip("abcd", p_values, strict=True)), 0.05) == tuple(rejected)


def test_holm_of_one_is_the_plain_test_and_of_none_rejects_none() -> None:
    assert holm({"a": 0.05}, 0.05) == ("a",)
    assert holm({"a": 0.0501}, 0.05) == ()
    assert holm({}, 0.05) == ()
