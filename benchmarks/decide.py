"""Is the policy right, and does it know what it costs? Every strategy's outcome in many situations against its choice.

The outcomes are those that `scenarios.py` has measured and filed (outcomes.jsonl): real images, every strategy, seeds.
The policy decides on the evidence that was filed before anything was trained. It learns from the other scenarios only:
each is left out in turn. Regret: accuracy points (mean of the old and the new holdout, mean over seeds) by which the
best strategy of a scenario is better than the policy's; compute: processor seconds as a share of those of "always
retrain". A window that triage quarantines waits for a person: it counts as skipped in the table ("quarantine") and in a
figure of its own; the policy is judged on those that it decides on (what triage does: `triage.py`).

The estimate of seconds learns from three other trainings, drawn at random, and is judged on the rest.

    .venv/bin/python benchmarks/decide.py [--quick] [--check] [--write]

--write files what was measured as the experience that comes with the product; --quick draws fewer histories. Goals of
--check: at least 12 scenarios and 3 seeds, mean regret at most 0.5 points, worst at most 3, compute at most 35 %,
median error of the seconds at most 25 %.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from scenarios import read_table

from components.core.config import DecisionConfig, TrainingConfig
from components.core.plans import SKIP, Evidence, PastGain, PastTraining
from components.core.recipes import RECIPES
from components.decide.costs import training_seconds, training_work
from components.decide.policy import plan_for
from components.decide.situation import describe_situation
from components.decide.turning import outcome_of
from components.decide.utility import Policy, training_rows

EXPERIENCE = Path(__file__).parents[1] / "components" / "decide" / "experience.json"
ARCHITECTURE = "small-cnn"
SCENARIOS, SEEDS, MEAN_REGRET, WORST_REGRET, COMPUTE, ERROR = 12, 3, 0.5, 3.0, 0.35, 0.25
Case = Mapping[str, Any]
BASELINES = (SKIP, "distil", "warm-retrain", "retrain")


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("--quick", "--check", "--write"):
        options.add_argument(flag, action="store_true")
    chosen = options.parse_args()
    cases = [case for case in read_table() if set(RECIPES) < set(case["outcomes"])]
    if chosen.write:
        write_experience(cases)
    by_scenario: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        by_scenario[case["scenario"]].append(case)
    rows = [judge(name, group, by_scenario) for name, group in by_scenario.items()]
    print_table(rows)
    errors = estimate_errors(cases, histories=20 if chosen.quick else 200)
    seeds = min(len(group) for group in by_scenario.values())
    everything = [row["regret"] for row in rows]
    regrets = [row["decided"] for row in rows if row["decided"] is not None]
    compute = share([row["seconds"] for row in rows], rows)
    print(f"\nestimated seconds after three trainings: median error {median(errors):.0%} ({len(errors)} estimates)")
    print(f"quarantined windows counted as skipped: mean regret {mean(everything):.2f}, worst {max(everything):.2f}")
    figures = f"mean regret {mean(regrets):.2f} points, worst {max(regrets):.2f}, at {compute:.0%} of always retraining"
    print(f"{len(rows)} scenarios, {seeds} seeds at least, each left out in turn: {figures}")
    reached = (
        len(rows) >= SCENARIOS
        and seeds >= SEEDS
        and mean(regrets) <= MEAN_REGRET
        and max(regrets) <= WORST_REGRET
        and compute <= COMPUTE
        and median(errors) <= ERROR
    )
    return 1 if chosen.check and not reached else 0


def judge(name: str, group: Sequence[Case], by_scenario: Mapping[str, Sequence[Case]]) -> dict[str, Any]:
    """What the policy does in a scenario that it has never seen, and what that costs in accuracy and seconds."""
    others = [case for other, cases in by_scenario.items() if other != name for case in cases]
    policy = policy_with(experience(others))
    choices = [outcome_of(plan_for(evidence_of(case), policy)) for case in group]
    taken = [SKIP if choice == "quarantine" else choice for choice in choices]
    points = {s: mean(score(case, s) for case in group) for s in group[0]["outcomes"]}
    best = max(points, key=points.__getitem__)
    reached = mean(score(case, choice) for case, choice in zip(group, taken, strict=True))
    decided = [(case, choice) for case, choice in zip(group, choices, strict=True) if choice != "quarantine"]
    return {
        "scenario": name,
        "choices": choices,
        "best": best,
        "points": points,
        "regret": points[best] - reached,
        "decided": _regret(decided) if decided else None,
        "seconds": mean(case["outcomes"][choice]["seconds"] for case, choice in zip(group, taken, strict=True)),
        "all_seconds": {s: mean(case["outcomes"][s]["seconds"] for case in group) for s in points},
    }


def _regret(decided: Sequence[tuple[Case, str]]) -> float:
    """Of the choices in some cases of a scenario: against the strategy that is best in these."""
    strategies = decided[0][0]["outcomes"]
    best = max(mean(score(case, strategy) for case, _ in decided) for strategy in strategies)
    return best - mean(score(case, choice) for case, choice in decided)


def policy_with(gains: Sequence[PastGain]) -> Policy:
    return Policy(decision=DecisionConfig(), training=TrainingConfig(architecture=ARCHITECTURE), experience=gains)


def score(case: Case, strategy: str) -> float:
    outcome = case["outcomes"][strategy]
    return 50.0 * float(outcome["old"] + outcome["new"])


def share(seconds: Sequence[float], rows: Sequence[Mapping[str, Any]]) -> float:
    """Compute relative to always retraining: the mean over scenarios of each one's share."""
    return mean(s / row["all_seconds"]["retrain"] for s, row in zip(seconds, rows, strict=True))


def evidence_of(case: Case) -> Evidence:
    return Evidence.model_validate(case["evidence"])


def experience(cases: Sequence[Case]) -> list[PastGain]:
    """What each strategy brought against keeping the champion. Windows that are quarantined teach nothing."""
    gains = []
    for case in cases:
        evidence, kept = evidence_of(case), case["outcomes"][SKIP]
        if evidence.faults or evidence.invalid:
            continue
        situation = {name: round(value, 4) for name, value in describe_situation(evidence, DecisionConfig()).items()}
        for strategy, outcome in case["outcomes"].items():
            if strategy != SKIP:
                old, new = (round(outcome[side] - kept[side], 5) for side in ("old", "new"))
                gains.append(PastGain(strategy=strategy, situation=situation, old=old, new=new))
    return gains


def write_experience(cases: Sequence[Case]) -> None:
    lines = [gain.model_dump_json() for gain in experience(cases)]
    EXPERIENCE.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def estimate_errors(cases: Sequence[Case], histories: int) -> list[float]:
    """Relative errors of estimated seconds, each from three trainings of other cases."""
    trainings = [(case["scenario"], past) for case in cases for past in trainings_of(case)]
    draw = random.Random(0)
    errors = []
    for _ in range(histories):
        history = draw.sample(trainings, 3)
        for _scenario, real in draw.sample([one for one in trainings if one not in history], 20):
            past = [training for _, training in history]
            estimate = training_seconds(real.strategy, real.work, past, "cpu", architecture=ARCHITECTURE)
            assert estimate is not None
            errors.append(abs(estimate - real.seconds) / real.seconds)
    return errors


def trainings_of(case: Case) -> list[PastTraining]:
    """The trainings of a case as a run record would tell them."""
    evidence = evidence_of(case)
    training = TrainingConfig(architecture=ARCHITECTURE, image_size=evidence.image_size)
    return [
        PastTraining(
            strategy=strategy,
            device="cpu",
            architecture=ARCHITECTURE,
            work=training_work(RECIPES[strategy], training_rows(RECIPES[strategy], evidence), training),
            seconds=outcome["seconds"],
        )
        for strategy, outcome in case["outcomes"].items()
        if strategy != SKIP
    ]


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """The policy's choices, then every strategy's points in every scenario, then each strategy always taken."""
    strategies = list(rows[0]["points"])
    print(f"{'scenario':34} {'the policy takes':24} {'the best':13} regret")
    for row in rows:
        print(f"{row['scenario']:34} {'/'.join(row['choices']):24} {row['best']:13} {row['regret']:6.2f}")
    print(f"\n{'points':34} " + " ".join(f"{name[:8]:>8}" for name in strategies))
    for row in rows:
        print(f"{row['scenario']:34} " + " ".join(f"{row['points'][name]:8.1f}" for name in strategies))
    print(f"\n{'always':34} mean regret  worst  compute")
    for name in strategies:
        regrets = [row["points"][row["best"]] - row["points"][name] for row in rows]
        compute = share([row["all_seconds"][name] for row in rows], rows)
        print(f"{name:34} {mean(regrets):11.2f} {max(regrets):6.2f} {compute:8.0%}")


if __name__ == "__main__":
    sys.exit(main())
