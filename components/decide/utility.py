"""The utility of a strategy: the accuracy it is expected to bring, less the price of its compute. Values in and out.

Not covered: whether anything is done at all (`policy`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from math import sqrt
from statistics import NormalDist

from components.core.config import Config, DecisionConfig, TrainingConfig
from components.core.contracts import Interval
from components.core.plans import SKIP, Evidence, Forecast, PastGain
from components.core.recipes import Recipe, StrategyName
from components.core.storage import sha256_hex, to_json
from components.decide.costs import training_seconds, training_work
from components.decide.gains import WITHIN, Gain, expected_gain
from components.decide.situation import believed_drop, describe_situation, headroom

OWN = 3.0  # a run of this model counts for as many of the benchmark's


@dataclass(frozen=True, kw_only=True)
class Policy:
    """All that a plan follows from beside the evidence: thresholds and prices, recipes and what they train with, and
    what strategies have brought elsewhere."""

    decision: DecisionConfig
    training: TrainingConfig
    experience: Sequence[PastGain]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        parts = (self.decision, self.training, *self.experience)
        return sha256_hex(b"\n".join(to_json(part) for part in parts))


def digest_of(training: TrainingConfig) -> str:
    """SHA-256 of all that a challenger depends on beside its own recipe."""
    return sha256_hex(json.dumps(training.what_it_makes, sort_keys=True).encode())


def policy_of(config: Config) -> Policy:
    """The policy of a configuration, with the experience that comes with the product."""
    return Policy(decision=config.decision, training=config.training, experience=benchmark_experience())


@cache
def benchmark_experience() -> tuple[PastGain, ...]:
    """What strategies brought in the benchmark's scenarios (benchmarks/decide.py)."""
    raw = json.loads(files("components.decide").joinpath("experience.json").read_text())
    return tuple(PastGain.model_validate(one) for one in raw)


def training_rows(recipe: Recipe, evidence: Evidence) -> int:
    """Rows that a recipe trains on: the window's, and a share of the old ones, of which no more are replayed than the
    champion remembers."""
    old, remembered = evidence.old_rows, evidence.exemplars
    replayed = min(round(recipe.replay_fraction * old), old if remembered is None else remembered)
    return evidence.new_rows + {"new": 0, "replay": replayed, "all": old}[recipe.rows]


def forecast(strategy: StrategyName, evidence: Evidence, policy: Policy) -> Forecast:
    """What a strategy is expected to bring and to cost here. Without a champion nothing tells what it brings."""
    if strategy == SKIP:
        nothing = Interval(lower=0.0, upper=0.0)
        return Forecast(strategy=SKIP, gain=0.0, gain_interval=nothing, seconds=0.0, gpu_seconds=0.0, money=0.0)
    work = _work(strategy, evidence, policy)
    seconds = training_seconds(
        strategy, work, evidence.trainings, evidence.device, architecture=policy.training.architecture
    )
    price = policy.decision.prices.get(evidence.processor or "")
    cases = [(past, 1.0) for past in policy.experience if past.strategy == strategy]
    cases += [(past, OWN) for past in evidence.gains if past.strategy == strategy]
    gain = _gain(evidence, policy, cases) if evidence.champion else None
    return Forecast(
        strategy=strategy,
        gain=gain.mean if gain else None,
        gain_interval=gain.interval if gain else None,
        seconds=seconds,
        gpu_seconds=None if seconds is None else seconds * evidence.gpus,
        money=None if seconds is None or price is None else price * seconds * max(1, evidence.gpus) / 3600,
    )


def _gain(evidence: Evidence, policy: Policy, cases: Sequence[tuple[PastGain, float]]) -> Gain | None:
    situation = describe_situation(evidence, policy.decision)
    return expected_gain(situation, cases, doubt=believed_drop(evidence).deviation, most=headroom(evidence))


def utility(told: Forecast, evidence: Evidence, policy: Policy) -> float:
    """Points of accuracy that a strategy is expected to bring, less those that make its compute worth while."""
    return 100 * (told.gain or 0.0) - points_of_compute(told, evidence, policy)


def points_of_compute(told: Forecast, evidence: Evidence, policy: Policy) -> float:
    """Points of accuracy that the compute of a strategy must bring: by its price where a point has one, else by its
    share of a full retrain's."""
    worth = policy.decision.point_worth
    if worth is not None and told.money is not None:
        return told.money / worth
    return policy.decision.retrain_worth * relative_work(told.strategy, evidence, policy)


def relative_work(strategy: StrategyName, evidence: Evidence, policy: Policy) -> float:
    """Compute of a strategy, as a share of that of a full retrain on the same images."""
    if strategy == SKIP:
        return 0.0
    return _work(strategy, evidence, policy) / max(1e-9, _work("retrain", evidence, policy))


def chance_to_be_best(best: Forecast, others: Sequence[Forecast], evidence: Evidence, policy: Policy) -> float | None:
    """Chance that a strategy's utility is above that of the one that comes next, in [0, 1]; None where there is none.

    Gains are taken as normal and independent.
    """
    mine = utility(best, evidence, policy)
    chances = []
    for other in others:
        ahead = (mine - utility(other, evidence, policy)) / 100
        spread = sqrt(_deviation(best) ** 2 + _deviation(other) ** 2)
        chances.append(NormalDist().cdf(ahead / max(spread, 1e-9)))
    return round(min(chances), 6) if chances else None


def _deviation(told: Forecast) -> float:
    bounds = told.gain_interval
    return (bounds.upper - bounds.lower) / (2 * WITHIN) if bounds else 0.0


def _work(strategy: StrategyName, evidence: Evidence, policy: Policy) -> float:
    recipe = policy.training.strategies[strategy]
    return training_work(recipe, training_rows(recipe, evidence), policy.training)
