"""Does the gate keep its promise, and what does keeping it cost? Simulated holdouts with known true differences.

*Grid.* Holdouts of 200 to 20,000 rows, 2, 6 and 10 % of them discordant, true differences of -2 to +1 points, a margin
of one point at 5 %: how often is the challenger promoted? Beside the product's own check stand Tango's score test as
written here a second time (the likelihood is maximised by bisection, not by his formula), and what is usually done
instead: "new >= old - 1 point", "new >= old", and "not significantly worse" (McNemar's exact test). The product's check
is asked once for each number of lost rows, how many gained rows it takes; with that the chance of promotion is also
added up over all tables, exactly.

*Rows in groups.* Clips or devices of 5, 20 or 50 images, a share of them answered as one image, at the margin: how
often is the challenger promoted, and how often if groups were not looked at? And how often one that lost nothing?

*Attempts on one window.* Every challenger is at the margin, each run has two rungs: how often does one of them get
through, uncorrected, by dividing alpha by the number of attempts so far, and by the product's rule?

*The same old holdout, window after window.* Half of the challengers are at the margin, half as good as the champion;
what is promoted becomes the champion, which then owes its place to the luck of these rows.

*Ten windows, each truly worse by 0.4 points.* Each is within the margin of one point; does the forgetting budget of two
points stop them before more than that is lost? With alpha shared by all runs against the anchor (the product), with
alpha anew for each window, and without a budget; up to 50 windows, and what it costs challengers that lose nothing.

*Guards.* How often they turn down a challenger that harmed nothing, and one that harmed a class.

    .venv/bin/python benchmarks/gate.py [--quick] [--check] [--table] [--figure]

--table prints the README's tables of rows and margins and nothing else; --figure draws docs/gate.svg. Goals of --check:
in no cell at the margin or beyond it, groups or not, more promotions than a binomial variable at alpha allows at 99 %;
power within 2 points of the second implementation; the promise kept over five runs on a window and on a re-used
holdout; the budget exceeded in at most alpha of the repeats; challengers that lost nothing turned down by a guard in at
most alpha.
"""

from __future__ import annotations

import argparse
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binom, norm

from components.core.config import GateConfig
from components.core.contracts import Evaluation, HoldoutScores, PairedOutcome
from components.evaluate.scores import pair
from components.gate.checks import keeps_old
from components.gate.guards import spares_classes, stays_calibrated
from components.gate.levels import Level, Looks
from components.gate.power import rows_needed, smallest_margin

ALPHA, MARGIN, SURENESS = 0.05, 0.01, 0.99
ROWS = (200, 500, 1_000, 2_000, 5_000, 20_000)
DISCORDANCES = (0.02, 0.06, 0.10)
DIFFERENCES = (-0.02, -0.01, -0.005, 0.0, 0.01)
ACCURACY = 0.9  # of the first champion, where rows that are right and wrong must be told apart
RUNGS, RUNS = 2, 5
FIGURE = Path(__file__).parents[1] / "docs" / "gate.svg"
Counts = np.ndarray  # int64, one number for each repeat
Flags = np.ndarray  # bool, the same
Generator = np.random.Generator


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one part of the benchmark found: its key figure, and whether its goal was reached."""

    figure: str
    reached: bool


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("--quick", "--check", "--table", "--figure"):
        options.add_argument(flag, action="store_true")
    chosen = options.parse_args()
    if chosen.table:
        print_tables()
        return 0
    if chosen.figure:
        draw_figure()
        return 0
    began, repeats = time.monotonic(), 4_000 if chosen.quick else 40_000
    random = np.random.default_rng(7)
    parts = [
        measure_grid(repeats, random),
        measure_sizes(),
        measure_groups(repeats // 20, random),
        measure_attempts(repeats, random),
        measure_reuse(repeats // 4, random),
        measure_budget(repeats // 4, random),
        measure_guards(repeats // 20, random),
    ]
    print(f"\n{'; '.join(part.figure for part in parts)} ({time.monotonic() - began:.0f} s)")
    return 1 if chosen.check and not all(part.reached for part in parts) else 0


# The product's answer, and others'


def outcome(rows: int, gained: int, lost: int) -> PairedOutcome:
    return PairedOutcome(both_right=rows - gained - lost, only_challenger_right=gained, only_champion_right=lost)


def scores(paired: PairedOutcome, **more: object) -> HoldoutScores:
    correct = paired.both_right + paired.only_challenger_right
    empty: dict[str, object] = {"new_classes": {}, "classes": (), "confusion": ()}
    return HoldoutScores.model_validate({"rows": paired.rows, "correct": correct, "paired": paired, **empty, **more})


def evaluation(old: HoldoutScores | None, new: HoldoutScores) -> Evaluation:
    return Evaluation(champion="champion", challenger="challenger", old=old, new=new)


NOTHING = scores(PairedOutcome())


def passes(rows: int, gained: int, lost: int, margin: float, level: float) -> bool:
    """The product's check on the old holdout."""
    config = GateConfig(old_margin=margin)
    check = keeps_old(evaluation(scores(outcome(rows, gained, lost)), NOTHING), config, Level(now=level, later=level))
    assert check is not None
    return check.passed


@cache
def needed_gains(rows: int, margin: float, level: float, least_lost: int, most_lost: int) -> Counts:
    """How many rows must be gained for the product to promote, for each number of lost rows from least to most.

    More lost rows never need fewer gained ones, so the search goes on from the one before.
    """
    gained = bisect_left(range(rows - least_lost + 1), True, key=lambda g: passes(rows, g, least_lost, margin, level))
    needed = []
    for lost in range(least_lost, most_lost + 1):
        while gained <= rows - lost and not passes(rows, gained, lost, margin, level):
            gained += 1
        needed.append(gained)
    return np.array(needed)


def promoted(rows: int, gained: Counts, lost: Counts, margin: float, level: float) -> Flags:
    """Which repeats the product promotes."""
    step = max(16, rows // 64)  # few different ranges, so that the cache is of use
    least, most = int(lost.min()) // step * step, min(rows, (int(lost.max()) // step + 1) * step)
    flags: Flags = gained >= needed_gains(rows, margin, level, least, most)[lost - least]
    return flags


def promotion_chance(rows: int, discordance: float, difference: float, margin: float, level: float) -> float:
    """Chance that the product promotes, added up over all tables."""
    lost_share, gained_share = (discordance - difference) / 2, (discordance + difference) / 2
    most = min(rows, int(binom.ppf(1 - 1e-12, rows, lost_share)) + 1)
    lost = np.arange(most + 1)
    needed = needed_gains(rows, margin, level, 0, most)
    reached = binom.sf(needed - 1, rows - lost, gained_share / (1 - lost_share))
    return float((binom.pmf(lost, rows, lost_share) * reached).sum())


def second_tango(rows: int, gained: Counts, lost: Counts, margin: float, level: float) -> Flags:
    """Tango's score test again: the share of lost rows that is most likely at the margin is found by bisection."""
    low, high = np.full(len(gained), margin), np.full(len(gained), (1 + margin) / 2)
    same = rows - gained - lost
    for _ in range(60):
        share = (low + high) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            rising = np.where(gained > 0, gained / (share - margin), 0.0) + lost / share
            rising = rising - np.where(same > 0, 2 * same / (1 - 2 * share + margin), 0.0)
        low, high = np.where(rising > 0, share, low), np.where(rising > 0, high, share)
    variance = rows * (2 * low - margin - margin**2)
    flags: Flags = (gained - lost + rows * margin) / np.sqrt(variance) >= norm.isf(level)
    return flags


def mcnemar(gained: Counts, lost: Counts) -> Flags:
    """Not significantly worse: a fair coin loses as many of the discordant rows in more than 5 % of cases."""
    flags: Flags = binom.cdf(gained, gained + lost, 0.5) > ALPHA
    return flags


# Grid


def draw(rows: int, discordance: float, difference: float, repeats: int, random: Generator) -> tuple[Counts, Counts]:
    shares = [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance]
    cells = random.multinomial(rows, np.clip(shares, 0, 1), repeats)
    return cells[:, 0], cells[:, 1]


def measure_grid(repeats: int, random: Generator) -> Part:
    rivals: dict[str, Callable[[int, Counts, Counts], Flags]] = {
        "Tango again": lambda n, g, lost: second_tango(n, g, lost, MARGIN, ALPHA),
        ">= old - 1 pt": lambda n, g, lost: g - lost >= -MARGIN * n - 1e-9,
        ">= old": lambda n, g, lost: g >= lost,
        "McNemar": lambda n, g, lost: mcnemar(g, lost),
    }
    print(f"share promoted, margin 1 point, alpha 5 %, {repeats} repeats\n")
    print(
        f"{'rows':>6} {'discordant':>10} {'true':>5} {'gate':>7} {'exact':>7} " + " ".join(f"{r:>13}" for r in rivals)
    )
    worst, farthest, misses, naive = 0.0, 0.0, 0, 0.0
    most = int(binom.ppf(SURENESS + (1 - SURENESS) / 2, repeats, ALPHA))
    for rows, discordance, difference in cells():
        gained, lost = draw(rows, discordance, difference, repeats, random)
        share = promoted(rows, gained, lost, MARGIN, ALPHA).mean()
        others = {name: rival(rows, gained, lost).mean() for name, rival in rivals.items()}
        exact = promotion_chance(rows, discordance, difference, MARGIN, ALPHA)
        row = " ".join(f"{other:13.3f}" for other in others.values())
        print(f"{rows:6} {discordance:10.0%} {100 * difference:+5.1f} {share:7.3f} {exact:7.4f} {row}")
        farthest = max(farthest, abs(share - others["Tango again"]))
        if difference <= -MARGIN:
            worst, misses = max(worst, share), misses + (share * repeats > most)
            naive = max(naive, others[">= old - 1 pt"])
    figure = (
        f"false promotions at most {worst:.1%} of 5 % in {len(list(cells()))} cells ({misses} beyond the interval; "
        f"'new >= old - 1 point' {naive:.0%}), power within {100 * farthest:.2f} points of Tango's test written anew"
    )
    return Part(figure=figure, reached=misses == 0 and farthest <= 0.02)


def cells() -> Iterator[tuple[int, float, float]]:
    yield from ((n, p, d) for n in ROWS for p in DISCORDANCES for d in DIFFERENCES if abs(d) <= p)


def measure_sizes() -> Part:
    """The promise exactly, at the levels that are used, and whether the rows that a hold asks for are enough."""
    levels = {"5 %": ALPHA, **{f"{n} rung{'s' * (n > 1)}": Looks(rungs=n).level(ALPHA).now for n in (1, 2, 3)}}
    levels["second run"] = Looks(rungs=2, same_window=1).level(ALPHA).now
    print("\nchance of promoting a model at the margin, exactly, in multiples of the level: the largest of all cells")
    ratios = {}
    for name, level in levels.items():
        ratios[name], small = (
            max(promotion_chance(n, p, -MARGIN, MARGIN, level) / level for n in sizes for p in DISCORDANCES)
            for sizes in (ROWS, (50, 100))
        )
        print(f"  {name:10} {100 * level:6.3f} %: {ratios[name]:.3f} (50 and 100 rows: {small:.3f})")
    errors = []
    for margin in (0.01, 0.02):
        for discordance in DISCORDANCES:
            for difference in (-0.25 * margin, 0.0, 0.5 * margin):
                gained, lost = (discordance + difference) / 2, (discordance - difference) / 2
                rows = rows_needed(gained=gained, lost=lost, margin=margin, level=levels["2 rungs"])
                assert rows is not None
                errors.append(promotion_chance(rows, discordance, difference, margin, levels["2 rungs"]) - 0.8)
    figure = (
        f"exactly at most {max(ratios.values()):.3f} times the level; "
        f"with the rows that a hold asks for {0.8 + min(errors):.1%} to {0.8 + max(errors):.1%} pass"
    )
    return Part(figure=figure, reached=max(ratios.values()) <= 1.05 and max(map(abs, errors)) <= 0.06)


# Rows in groups


def measure_groups(repeats: int, random: Generator) -> Part:
    level = Looks().level(ALPHA)
    print(
        f"\nrows in groups, at {level.now:.1%}: promoted at the margin; as if single rows; promoted if nothing was lost"
    )
    worst, blind, misses = 0.0, 0.0, 0
    for rows, size, discordance in product((1_000, 2_000, 10_000), (5, 20, 50), (0.02, 0.06)):
        told = []
        for tied in (0.2, 0.5, 1.0):
            shares = []
            for difference, counts in ((-MARGIN, True), (-MARGIN, False), (0.0, True)):
                passed = 0
                for _ in range(repeats):
                    paired = draw_groups(rows, size, tied, discordance, difference, random)
                    paired = paired if counts else paired.model_copy(update={"design_effect": 1.0})
                    check = keeps_old(evaluation(scores(paired), NOTHING), GateConfig(), level)
                    assert check is not None
                    passed += check.passed
                shares.append(passed / repeats)
            told.append(f"{tied:4.0%} tied " + " ".join(f"{share:6.1%}" for share in shares))
            misses += shares[0] * repeats > binom.ppf(SURENESS, repeats, ALPHA)
            worst, blind = max(worst, shares[0]), max(blind, shares[1])
        print(f"  {rows:6} rows, groups of {size:2}, {discordance:.0%} discordant: " + "   ".join(told))
    figure = f"rows in groups promoted at the margin at most {worst:.1%} (as single rows {blind:.0%})"
    return Part(figure=figure, reached=misses == 0)


def draw_groups(
    rows: int, size: int, tied: float, discordance: float, difference: float, random: Generator
) -> PairedOutcome:
    """Answers on groups of equal size; a share of them is answered as one image."""
    chances = [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance]
    change = random.choice([1, -1, 0], p=chances, size=rows)
    together = np.repeat(random.random(rows // size) < tied, size)
    change = np.where(together, np.repeat(change[::size], size), change)
    was = torch.from_numpy(change != 1)
    return pair(was, torch.from_numpy(change != -1), torch.arange(rows) // size)


# Several looks at the same rows


@dataclass
class Lineage:
    """Champions of one holdout, a number for each repeat: rows by (first version right, champion right), and the true
    accuracies. A challenger's answers differ from its champion's at random, so it inherits the luck of the latter."""

    cells: np.ndarray  # int64, (2, 2, repeats)
    accuracy: np.ndarray  # float64, (repeats,)

    @classmethod
    def begin(cls, rows: int, repeats: int, random: Generator) -> Lineage:
        right = random.binomial(rows, ACCURACY, repeats)
        none = np.zeros_like(right)
        return cls(np.array([[rows - right, none], [none, right]]), np.full(repeats, ACCURACY))

    def challenge(self, discordance: float, difference: np.ndarray, random: Generator) -> tuple[Counts, Counts]:
        """Rows gained and lost, by whether the first version had them right; each int64, (2, repeats)."""
        gain = (discordance + difference) / 2 / (1 - self.accuracy)
        loss = (discordance - difference) / 2 / self.accuracy
        return random.binomial(self.cells[:, 0], gain), random.binomial(self.cells[:, 1], loss)

    def against_first(self, gained: Counts, lost: Counts) -> tuple[Counts, Counts]:
        """Rows that the challenger has right and the first version wrong, and the other way round."""
        return self.cells[0, 1] + gained[0] - lost[0], self.cells[1, 0] - gained[1] + lost[1]

    def promote(self, chosen: np.ndarray, gained: Counts, lost: Counts, difference: np.ndarray) -> None:
        moved = np.where(chosen, gained - lost, 0)
        self.cells[:, 1] += moved
        self.cells[:, 0] -= moved
        self.accuracy = self.accuracy + np.where(chosen, difference, 0.0)


def measure_attempts(repeats: int, random: Generator) -> Part:
    rows, discordance = 2_000, 0.06
    champion = Lineage.begin(rows, repeats, random)
    rules: dict[str, Callable[[int], float]] = {
        "uncorrected": lambda run: ALPHA,
        "divided by the attempts so far": lambda run: ALPHA / (RUNGS * (run + 1)),
        "the product's rule": lambda run: Looks(rungs=RUNGS, same_window=run).level(ALPHA).now,
    }
    through = {name: np.zeros(repeats, dtype=bool) for name in rules}
    shares: dict[str, list[float]] = {name: [] for name in rules}
    at_margin = np.full(repeats, -MARGIN)
    for run in range(RUNS):
        for _ in range(RUNGS):
            gained, lost = (part.sum(0) for part in champion.challenge(discordance, at_margin, random))
            for name, level in rules.items():
                through[name] |= promoted(rows, gained, lost, MARGIN, level(run))
        for name in rules:
            shares[name].append(through[name].mean())
    print(f"\nwindows that end in a false promotion after 1 to {RUNS} runs of {RUNGS} rungs, all at the margin")
    for name, values in shares.items():
        print(f"  {name:32} " + " ".join(f"{value:6.2%}" for value in values))
    first, *_, last = shares["the product's rule"]
    divided = shares["divided by the attempts so far"][-1]
    figure = f"{RUNS} runs on a window {last:.1%} (one run {first:.1%}; alpha by attempts so far {divided:.1%})"
    return Part(figure=figure, reached=last * repeats <= binom.ppf(0.995, repeats, ALPHA))


def measure_reuse(repeats: int, random: Generator) -> Part:
    rows, windows = 2_000, 20
    print(
        f"\nthe same old holdout over {windows} windows: share of challengers at the margin that are promoted, at 5 %"
    )
    rates, counts = [], 0
    for discordance in DISCORDANCES:
        champion, tried, let_in, changed = Lineage.begin(rows, repeats, random), [], [], np.zeros(repeats, dtype=bool)
        after = [0, 0]
        for _ in range(windows):
            bad = random.random(repeats) < 0.5
            difference = np.where(bad, -MARGIN, 0.0)
            gained, lost = champion.challenge(discordance, difference, random)
            chosen = promoted(rows, gained.sum(0), lost.sum(0), MARGIN, ALPHA)
            tried.append(bad.sum())
            let_in.append((chosen & bad).sum())
            after[0] += int((bad & changed).sum())
            after[1] += int((chosen & bad & changed).sum())
            champion.promote(chosen, gained, lost, difference)
            changed |= chosen
        first, rest = let_in[0] / tried[0], sum(let_in[1:]) / sum(tried[1:])
        won = after[1] / max(1, after[0])
        rates.append(rest)
        counts += int(sum(tried[1:]))
        print(
            f"  {discordance:4.0%} discordant: first window {first:.2%}, later ones {rest:.2%}, "
            f"those against a champion that was promoted on these rows {won:.2%}"
        )
    figure = f"re-used over {windows} windows {min(rates):.1%} to {max(rates):.1%}"
    return Part(figure=figure, reached=max(rates) <= ALPHA * 1.02)


def measure_budget(repeats: int, random: Generator) -> Part:
    rules: dict[str, Callable[[int], float | None]] = {
        "shared": lambda window: Looks(same_anchor=window).anchor_level(ALPHA).now,
        "anew": lambda window: ALPHA,
        "none": lambda window: None,
    }
    print(f"\nwindow after window truly worse, budget {100 * GateConfig().budget:.0f} points, 4 % discordant")
    print(f"{'rows':>6} {'true':>5} {'alpha':>7}   after 10 windows: promoted, mean lost, beyond budget   after 50")
    beyond: dict[str, list[float]] = {name: [] for name in rules}
    for rows in (2_000, 5_000, 20_000):
        for difference in (-0.004, -0.001, 0.0):
            for name, rule in rules.items():
                told = []
                for lost, promotions in accumulate_losses(rows, difference, rule, repeats, random):
                    share = float((lost > GateConfig().budget + 1e-9).mean())
                    told.append(f"{promotions.mean():5.1f} {100 * lost.mean():5.2f} {share:7.2%}")
                    beyond[name].append(share)
                print(f"{rows:6} {100 * difference:+5.1f} {name:>7}   {told[0]:>54}   {told[1]}")
    ten, fifty = ({name: max(shares[i::2]) for name, shares in beyond.items()} for i in (0, 1))
    figure = (
        f"losses that add up: beyond the budget after ten windows in at most {ten['shared']:.1%} of the repeats, "
        f"after 50 in {fifty['shared']:.1%} (alpha anew for each window {ten['anew']:.0%} and {fifty['anew']:.0%}, "
        f"no budget {ten['none']:.0%})"
    )
    return Part(figure=figure, reached=max(beyond["shared"]) <= ALPHA)


def accumulate_losses(
    rows: int, difference: float, rule: Callable[[int], float | None], repeats: int, random: Generator
) -> Iterator[tuple[np.ndarray, Counts]]:
    """Accuracy lost in all and number of promotions, after 10 and after 50 windows, all judged on the anchor's rows."""
    discordance, level, budget = 0.04, Looks().level(ALPHA).now, GateConfig().budget
    lineage, promotions = Lineage.begin(rows, repeats, random), np.zeros(repeats, dtype=int)
    differences = np.full(repeats, difference)
    for window in range(50):
        gained, lost = lineage.challenge(discordance, differences, random)
        # A margin of one point would stop most of them at 2,000 rows: here the budget is to be seen at work.
        chosen = promoted(rows, gained.sum(0), lost.sum(0), MARGIN if rows > 2_000 else 2 * MARGIN, level)
        anchor_level = rule(window)
        if anchor_level is not None:
            chosen &= promoted(rows, *lineage.against_first(gained, lost), budget, anchor_level)
        lineage.promote(chosen, gained, lost, differences)
        promotions += chosen
        if window + 1 in (10, 50):
            yield ACCURACY - lineage.accuracy, promotions.copy()


# Guards


def measure_guards(repeats: int, random: Generator) -> Part:
    config, discordance, classes = GateConfig(), 0.06, 10
    print(f"\nturned down because of a class, {classes} classes, 6 % discordant, margin 5 points")
    print(f"{'rows a class':>13} {'none lost':>10} {'one -5':>8} {'one -10':>8} {'one -20':>8} {'all -5':>8}")
    quiet = 0.0
    for rows in (20, 50, 100, 200, 500):
        shares = []
        for harm in ((0.0,), (-0.05,), (-0.1,), (-0.2,), (-0.05,) * classes):
            changes = (*harm, *(0.0,) * (classes - len(harm)))
            pairs = [draw(rows, max(discordance, -d), d, repeats, random) for d in changes]
            shares.append(
                np.mean([harmed(rows, [(g[i], lost[i]) for g, lost in pairs], config) for i in range(repeats)])
            )
        print(
            f"{rows:13} "
            + " ".join(f"{share:{width}.3f}" for share, width in zip(shares, (10, 8, 8, 8, 8), strict=True))
        )
        quiet = max(quiet, float(shares[0]))
    calibrated = measure_calibration(repeats, random, config)
    figure = (
        f"class guard on challengers that lost nothing {quiet:.1%}, calibration guard at its limit {calibrated:.1%}"
    )
    return Part(figure=figure, reached=quiet <= ALPHA and calibrated <= ALPHA)


def harmed(rows: int, pairs: Sequence[tuple[int, int]], config: GateConfig) -> bool:
    by_class = {str(i): outcome(rows, int(gained), int(lost)) for i, (gained, lost) in enumerate(pairs)}
    check = spares_classes(evaluation(None, scores(PairedOutcome(), by_class=by_class)), config)
    assert check is not None
    return not check.passed


def measure_calibration(repeats: int, random: Generator, config: GateConfig) -> float:
    """A champion whose confidence is right, a challenger whose is up to 10 points too high: turned down how often?"""
    print("\nturned down because of calibration, limit 5 points, by how much the challenger is too confident")
    worst = 0.0
    for rows in (50, 200, 1_000, 5_000):
        shares = {}
        for excess in (0.0, 0.05, 0.1):
            failed = 0
            for _ in range(repeats):
                confidence = random.beta(9, 2, rows) * (1 - excess)
                before, now = random.random(rows) < confidence, random.random(rows) < confidence
                errors = (calibration_error(confidence, before), calibration_error(confidence + excess, now))
                paired = PairedOutcome(
                    both_right=int((before & now).sum()),
                    only_champion_right=int((before & ~now).sum()),
                    only_challenger_right=int((~before & now).sum()),
                    both_wrong=int((~before & ~now).sum()),
                )
                measured = scores(paired, champion_calibration_error=errors[0], calibration_error=errors[1])
                check = stays_calibrated(evaluation(None, measured), config)
                assert check is not None
                failed += not check.passed
            shares[excess] = failed / repeats
        print(f"  {rows:5} rows: " + ", ".join(f"{100 * e:.0f} points {share:.3f}" for e, share in shares.items()))
        worst = max(worst, shares[0.05])
    return worst


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error in equally wide bins (Naeini et al., AAAI 2015)."""
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


# What the README shows


def print_tables() -> None:
    level = Looks(rungs=RUNGS).level(ALPHA).now
    discordances = (0.02, 0.04, 0.06, 0.10)
    header = " | ".join(f"{p:.0%}" for p in discordances)
    print(f"| rows for a margin of | at a discordance of {header} |\n|---|{'---|' * len(discordances)}")
    for margin in (0.005, 0.01, 0.02, 0.05):
        needed = [rows_needed(gained=p / 2, lost=p / 2, margin=margin, level=level) for p in discordances]
        print(f"| {100 * margin:.1f} points | {' | '.join(f'{n:,}' for n in needed)} |")
    print(f"\n| margin that these rows show | at a discordance of {header} |\n|---|{'---|' * len(discordances)}")
    for rows in (200, 500, 1_000, 2_000, 5_000, 20_000):
        margins = [smallest_margin(rows=rows, discordance=p, level=level) for p in discordances]
        print(f"| {rows:,} | {' | '.join(f'{100 * m:.1f}' if m else 'none' for m in margins)} |")


def draw_figure() -> None:
    """Chance of promotion against the true difference, for three sizes of the holdout."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "gate"
    from matplotlib import pyplot

    discordance, repeats = 0.06, 40_000
    differences, random = np.linspace(-0.03, 0.02, 26), np.random.default_rng(7)
    figure, axes = pyplot.subplots(1, 3, figsize=(10, 3.2), sharey=True)
    for axis, rows in zip(axes, (500, 2_000, 5_000), strict=True):
        drawn = [draw(rows, discordance, d, repeats, random) for d in differences]
        axis.plot(
            100 * differences, [promotion_chance(rows, discordance, d, MARGIN, ALPHA) for d in differences], lw=2.5
        )
        axis.plot(100 * differences, [(g - lost >= -MARGIN * rows - 1e-9).mean() for g, lost in drawn], "--")
        axis.plot(100 * differences, [(g >= lost).mean() for g, lost in drawn], ":")
        axis.plot(100 * differences, [mcnemar(g, lost).mean() for g, lost in drawn], "-.")
        axis.axvspan(-3, -100 * MARGIN, color="0.92", zorder=0)
        axis.set(title=f"{rows:,} rows", xlabel="true difference, points", xlim=(-3, 2), ylim=(0, 1.02))
    axes[0].set_ylabel("chance of promotion")
    figure.legend(
        ["the gate", "new ≥ old − 1 point", "new ≥ old", "not significantly worse"],
        loc="lower center",
        ncols=4,
        frameon=False,
    )
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    figure.savefig(FIGURE, metadata={"Date": None})
    print(FIGURE)


if __name__ == "__main__":
    sys.exit(main())
