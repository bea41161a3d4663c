"""The utility of a strategy: the accuracy it is expected to bring, less the price of its compute. Values in and out.

What it will bring is told by experience: what every strategy brought in situations like this one, in the benchmark
(`experience.json`, see benchmarks/decide.py) and in the model's own past runs. Not covered: whether anything is done at
all (`policy`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import sqrt
from statistics import NormalDist

import numpy as np

from components.core.config import Config, DecisionConfig
from components.core.contracts import Interval
from components.core.plans import Evidence, Forecast, PastGain
from components.core.recipes import Recipe, StrategyName
from components.decide.costs import training_seconds, training_work
from components.decide.situation import describe_situation

SKIP = "skip"
# How far apart two situations are that have little to say to each other. Chosen on the benchmark's scenarios, each left
# out in turn.
SCALES: Mapping[str, float] = {
    "drop": 0.3,
    "unknown": 0.2,
    "volume": 0.5,
    "imbalance": 0.15,
    "resized": 1.0,
}
LOSSES = ("drop", "unknown")  # what a gain is proportional to
RIDGE = 1e-4  # in squared accuracy: a hundredth
NEIGHBOURS = 6  # two scenarios' seeds
OWN = 3.0  # a run of this model counts for as many of the benchmark's
WITHIN = NormalDist().inv_cdf(0.9)  # standard deviations to either side that hold 80 %
LEAST_DEVIATION = 0.005  # of a gain, in accuracy: no holdout tells it better


@dataclass(frozen=True, kw_only=True)
class Policy:
    """All that a plan follows from beside the evidence: thresholds and prices, recipes by strategy, rows of which
    Fisher information is computed, and what strategies have brought elsewhere."""

    decision: DecisionConfig
    recipes: Mapping[StrategyName, Recipe]
    fisher_rows: int
    experience: Sequence[PastGain]


def policy_of(config: Config) -> Policy:
    """The policy of a configuration, with the experience that comes with the product."""
    return Policy(
        decision=config.decision,
        recipes=config.training.strategies,
        fisher_rows=config.training.fisher_rows,
        experience=benchmark_experience(),
    )


@cache
def benchmark_experience() -> tuple[PastGain, ...]:
    """What strategies brought in the benchmark's scenarios."""
    raw = json.loads(files("components.decide").joinpath("experience.json").read_text())
    return tuple(PastGain.model_validate(one) for one in raw)


def training_rows(recipe: Recipe, evidence: Evidence) -> int:
    """Rows that a recipe trains on: the window's, and a share of the old ones, of which no more are replayed than the
    champion remembers."""
    old, remembered = evidence.old_rows, evidence.exemplars
    replayed = min(round(recipe.replay_fraction * old), old if remembered is None else remembered)
    return evidence.new_rows + {"new": 0, "replay": replayed, "all": old}[recipe.rows]


def forecast(strategy: StrategyName, evidence: Evidence, policy: Policy) -> Forecast:
    """What a strategy is expected to bring and to cost here."""
    if strategy == SKIP:
        nothing = Interval(lower=0.0, upper=0.0)
        return Forecast(strategy=SKIP, gain=0.0, gain_interval=nothing, seconds=0.0, gpu_seconds=0.0, money=0.0)
    recipe = policy.recipes[strategy]
    work = training_work(recipe, training_rows(recipe, evidence), policy.fisher_rows)
    seconds = training_seconds(strategy, work, evidence.trainings, evidence.device)
    price = policy.decision.prices.get(evidence.processor or "")
    gain = _expected_gain(strategy, evidence, policy)
    return Forecast(
        strategy=strategy,
        gain=gain.mean if gain else None,
        gain_interval=gain.interval if gain else None,
        seconds=seconds,
        gpu_seconds=None if seconds is None else seconds * evidence.gpus,
        money=None if seconds is None or price is None else price * seconds * max(1, evidence.gpus) / 3600,
    )


def utility(strategy: StrategyName, evidence: Evidence, policy: Policy) -> float:
    """Points of accuracy that a strategy is expected to bring, less those that make its compute worth while."""
    gain = _expected_gain(strategy, evidence, policy) if strategy != SKIP else None
    return (100 * gain.mean if gain else 0.0) - policy.decision.retrain_worth * relative_work(
        strategy, evidence, policy
    )


def relative_work(strategy: StrategyName, evidence: Evidence, policy: Policy) -> float:
    """Compute of a strategy, as a share of that of a full retrain on the same images."""

    def work(recipe: Recipe) -> float:
        return training_work(recipe, training_rows(recipe, evidence), policy.fisher_rows)

    return 0.0 if strategy == SKIP else work(policy.recipes[strategy]) / max(1.0, work(policy.recipes["retrain"]))


def chance_to_be_best(strategy: StrategyName, forecasts: Sequence[Forecast]) -> float | None:
    """Chance that a strategy brings more than the one that comes next, in [0, 1]; None where nothing tells.

    Both gains are taken as normal and independent.
    """
    known = {f.strategy: f for f in forecasts if f.gain is not None}
    others = [f for name, f in known.items() if name != strategy]
    if strategy not in known or not others:
        return None
    mine = known[strategy]
    return min(_chance_of_more(mine, other) for other in others)


def _chance_of_more(one: Forecast, other: Forecast) -> float:
    assert one.gain is not None
    assert other.gain is not None
    spread = sqrt(_deviation(one) ** 2 + _deviation(other) ** 2)
    return NormalDist().cdf((one.gain - other.gain) / max(spread, 1e-9))


def _deviation(forecast: Forecast) -> float:
    bounds = forecast.gain_interval
    return (bounds.upper - bounds.lower) / (2 * WITHIN) if bounds else 0.0


@dataclass(frozen=True, kw_only=True)
class _Gain:
    """Change of the mean accuracy of both holdouts, in [-1, 1]."""

    mean: float
    interval: Interval


def _expected_gain(strategy: StrategyName, evidence: Evidence, policy: Policy) -> _Gain | None:
    """What the strategy brought before, the more alike the situation the more it counts; None if it never ran.

    A line through what was lost (`drop`, `unknown`), fitted to cases weighted by how alike they are in everything. The
    width of the kernel reaches to the NEIGHBOURS-th nearest case, so that there is always something to go by.

    Source:
        Local linear regression: Cleveland, "Robust Locally Weighted Regression", JASA 74 (1979).
    """
    cases = [(past, 1.0) for past in policy.experience if past.strategy == strategy]
    cases += [(past, OWN) for past in evidence.gains if past.strategy == strategy]
    if not cases:
        return None
    here = describe_situation(evidence, policy.decision)
    squares = np.array([_squared_distance(here, past.situation) for past, _ in cases])
    width = max(1.0, float(np.sort(squares)[min(NEIGHBOURS, len(squares)) - 1]))
    weights = np.array([own for _, own in cases]) * np.exp(-squares / (2 * width))
    gains = np.array([past.new if past.old is None else (past.old + past.new) / 2 for past, _ in cases])
    away = np.array([[past.situation.get(name, 0.0) - here[name] for name in LOSSES] for past, _ in cases])
    lines = np.column_stack([np.ones(len(cases)), away])
    # The ridge keeps slopes at nothing where all cases stand in one place; it leaves the height alone.
    ridge = np.diag([0.0, *[RIDGE * weights.sum()] * len(LOSSES)])
    fitted = np.linalg.solve((lines.T * weights) @ lines + ridge, (lines.T * weights) @ gains)
    variance = float(weights @ (gains - lines @ fitted) ** 2 / weights.sum())
    mean, reach = float(fitted[0]), WITHIN * sqrt(variance + LEAST_DEVIATION**2)
    return _Gain(mean=mean, interval=Interval(lower=mean - reach, upper=mean + reach))


def _squared_distance(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Squared distance of two situations, each quantity in units of what makes a difference; unknown ones count 0."""
    return sum(((one.get(name, 0.0) - other.get(name, 0.0)) / scale) ** 2 for name, scale in SCALES.items())
