"""How surely an attempt must be judged where several look at the same rows, and several classes at once.

Values in, values out. Two promises rest on this, each with `gate.alpha` as its chance of being broken: a *window* does
not end in the promotion of a model that is worse than a margin, whatever is tried on it; and until the next training
from scratch no promotion forgets more than the budget.

*Several checks* need no correction: all must pass, so a model at one check's margin is promoted no more often than that
check passes it (intersection-union; Berger, "Multiparameter hypothesis testing and acceptance sampling", Technometrics
24 (1982)). *Several attempts* do: any of them may be the lucky one. Rungs of a ladder share what their run may spend
(Bonferroni).

*Runs on one window*, or on windows that share rows (a folder that only grows), share alpha: each spends nine tenths of
what those before it have left, so that any number of them spends less than all of it. Dividing by the number of
attempts so far would not do: that adds up to 1 + 1/2 + 1/3 + ... times alpha. A run whose first attempt passed does not
count: if its challenger was bad, that was the one mistake that alpha allows; if it was good, nothing was tried in vain.
So one that is killed between verdict and promotion costs the next one nothing.

A *rematch*, where another run has promoted first, counts as a run of its own that comes after. Less would do if the
race went by the clock alone, for a challenger must pass every judgement of its run; this holds however it is decided.

*Runs against one anchor* share alpha, too, promoted or not: run number r spends alpha / (r (r + 1)), which adds up to
alpha, and more slowly than tenths, for there are many such runs. Each challenger starts from a champion that was lucky
on the anchor's rows, so without this the budget wears out (`benchmarks/gate.py`). The old holdout is looked at by
window after window, too, but there the luck is the champion's, and makes the comparison stricter than it says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

# The first run is nearly always the only one, and shall lose little: to spend nine tenths costs it 4 % more rows, to
# spend a half would cost 27 %. The second run then needs 1.7 times as many rows, the third 2.3 times.
LEFT_BY_A_RUN = 0.1
# A share of 1e-8 is beyond what the normal approximation tells apart; smaller ones would be rounded to none.
MOST_COUNTED = 8


@dataclass(frozen=True, kw_only=True)
class Level:
    """Chance, at most, that an attempt passes a model at a margin, in (0, alpha): of this attempt, and of one of the
    next run on the same rows and more, which is what a hold waits for."""

    now: float
    later: float


@dataclass(frozen=True, kw_only=True)
class Looks:
    """How often the same rows are looked at.

    Attributes:
        rungs: Attempts of the run's plan, from 1.
        same_window: Runs that were judged on rows of the same window before, and whose first attempt did not pass;
            rematches count as runs.
        same_anchor: Runs that were judged against the same anchor before; the same.
    """

    rungs: int = 1
    same_window: int = 0
    same_anchor: int = 0

    def level(self, alpha: float) -> Level:
        """Level at which each attempt is judged."""
        return Level(now=self._window_share(alpha) / self.rungs, later=self._later._window_share(alpha) / self.rungs)

    def anchor_level(self, alpha: float) -> Level:
        """Level at which each attempt is judged against the anchor."""
        return Level(now=self._anchor_share(alpha) / self.rungs, later=self._later._anchor_share(alpha) / self.rungs)

    @property
    def _later(self) -> Looks:
        return replace(self, same_window=self.same_window + 1, same_anchor=self.same_anchor + 1)

    def describe(self, alpha: float, *, anchored: bool) -> str:
        """The same for a reader: the levels, and what they come from."""
        ladder = f"{self.rungs} attempts share" if self.rungs > 1 else "one attempt has"
        told = f"Judged at a level of {_percent(self.level(alpha).now)}: {ladder} {_percent(self._window_share(alpha))}"
        if self.same_window:
            told += f" of {_percent(alpha)}, after {_runs(self.same_window)} on this window"
        if anchored:
            told += (
                f"; the budget at {_percent(self.anchor_level(alpha).now)}, after {_runs(self.same_anchor)} against it"
            )
        return f"{told}."

    def _window_share(self, alpha: float) -> float:
        return float(alpha * (1 - LEFT_BY_A_RUN) * LEFT_BY_A_RUN ** min(self.same_window, MOST_COUNTED))

    def _anchor_share(self, alpha: float) -> float:
        return alpha / ((self.same_anchor + 1) * (self.same_anchor + 2))


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


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _runs(count: int) -> str:
    return f"{count or 'no'} earlier run{'s' if count != 1 else ''}"
