"""How surely an attempt must be judged where several look at the same holdouts, and several classes at once.

Values in, values out. The promise is `gate.alpha`: whatever is tried on a window, the chance that it ends in the
promotion of a model that is worse than a margin is at most that.

*Several checks* need no correction: all must pass, so a model at one check's margin is promoted no more often than that
check passes it (intersection-union; Berger, "Multiparameter hypothesis testing and acceptance sampling", Technometrics
24 (1982)). *Several attempts* do: any of them may be the lucky one. Rungs of a ladder share what their run may spend
(Bonferroni). Runs share `alpha`: each spends nine tenths of what the runs before it on the same window have left, so
that any number of them spends less than all of it. Dividing by the number of attempts so far would not do: that adds up
to 1 + 1/2 + 1/3 + ... times `alpha`.

A promotion ends the count: what comes after it is judged against another champion.
"""

from __future__ import annotations

from collections.abc import Mapping

# The first run is nearly always the only one, and shall lose little: to spend nine tenths costs it 4 % more rows, to
# spend a half would cost 27 %. The second run then needs 1.7 times as many rows, the third 2.3 times.
LEFT_BY_A_RUN = 0.1
# A share of 1e-8 is beyond what the normal approximation tells apart; smaller ones would be rounded to none.
MOST_COUNTED = 8


def run_share(alpha: float, earlier_runs: int) -> float:
    """Chance of a false promotion that a run may spend, in (0, alpha).

    Args:
        alpha: `gate.alpha`, in (0, 0.5).
        earlier_runs: Runs that were judged on the same window before, and promoted nothing.
    """
    assert earlier_runs >= 0
    return float(alpha * (1 - LEFT_BY_A_RUN) * LEFT_BY_A_RUN ** min(earlier_runs, MOST_COUNTED))


def attempt_level(alpha: float, rungs: int, earlier_runs: int) -> float:
    """Level at which each attempt of a run is judged: its run's share, divided by the rungs of its ladder."""
    assert rungs >= 1
    return run_share(alpha, earlier_runs) / rungs


def describe_level(alpha: float, rungs: int, earlier_runs: int) -> str:
    """The same for a reader: the level, and what it comes from."""
    level, share = attempt_level(alpha, rungs, earlier_runs), run_share(alpha, earlier_runs)
    ladder = f"{rungs} attempts share" if rungs > 1 else "one attempt has"
    earlier = f"{earlier_runs} earlier run{'s' if earlier_runs > 1 else ''}"
    before = f" that {earlier} on this window left of" if earlier_runs else " of"
    return f"Judged at a level of {100 * level:.3g} %: {ladder} the {100 * share:.3g} %{before} {100 * alpha:.3g} %."


def holm(p_values: Mapping[str, float], alpha: float) -> tuple[str, ...]:
    """Names of the hypotheses that are rejected, the clearest first. The chance that any is wrong is `alpha` at most.

    Source:
        Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6 (1979).
    """
    ordered = sorted(p_values, key=lambda name: (p_values[name], name))
    rejected: list[str] = []
    for name in ordered:
        if p_values[name] > alpha / (len(ordered) - len(rejected)):
            break
        rejected.append(name)
    return tuple(rejected)
