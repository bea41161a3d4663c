"""The policy: the first rule that applies says what may be done, and the utility chooses among that: accuracy expected,
less the price of the compute. Values in, values out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from components.core.config import MAX_RUNGS, DecisionConfig
from components.core.plans import SKIP, Action, Decision, Evidence, Forecast, Rung
from components.core.recipes import StrategyName
from components.decide.rules import RULES, Choice
from components.decide.situation import learnable_classes
from components.decide.turning import turning_points
from components.decide.utility import (
    Policy,
    chance_to_be_best,
    digest_of,
    forecast,
    relative_work,
    training_rows,
    utility,
)

Forecasts = Mapping[StrategyName, Forecast]


def decide(evidence: Evidence, policy: Policy) -> Decision:
    """Make the plan, and find what would have changed it.

    The same evidence under the same policy gives the same plan, to the bit.

    Args:
        evidence: See `Evidence`.
        policy: Thresholds, recipes, experience.
    """
    told = {
        "turning_points": turning_points((evidence, policy), plan_for),
        "policy": policy.digest,
        "training": digest_of(policy.training),
    }
    return plan_for(evidence, policy).model_copy(update=told)


def plan_for(evidence: Evidence, policy: Policy) -> Decision:
    """Apply the rules in order, weigh what the first one leaves open, and lay out the ladder."""
    config = policy.decision
    rule, choice = next((r, c) for r in RULES if (c := r(evidence, config)))
    forecasts = _forecasts(choice, evidence, policy)
    weighing = _weigh(choice, forecasts, evidence, policy)
    action: Action = "skip" if weighing.first == SKIP else choice.action
    ladder = _ladder(weighing.first, choice, forecasts, evidence, policy) if action == "train" else ()
    reasons = [*weighing.reasons]
    if action == "train" and evidence.champion:
        reasons.append(evidence.drift_sentence)
    if evidence.released:
        reasons.append(evidence.released)
    if ladder:
        reasons.append(_about_the_budget(forecasts[ladder[0]], evidence, config))
    return Decision(
        action=action,
        rule=rule.__name__.replace("_", "-"),
        reasons=tuple(reason for reason in reasons if reason),
        rungs=tuple(_rung(forecasts[strategy], evidence, policy) for strategy in ladder),
        classes=(*evidence.champion_classes, *sorted(learnable_classes(evidence, config))),
        champion=evidence.champion,
        old_windows=evidence.old_windows,
        alternatives=tuple(forecasts.values()),
        labels_wanted=choice.labels,
        confidence=weighing.confidence,
        evidence=evidence,
    )


def _forecasts(choice: Choice, evidence: Evidence, policy: Policy) -> Forecasts:
    """What skipping, the candidates and the ladder are expected to bring and to cost, where there is a choice."""
    if choice.action != "train":
        return {}
    names = [SKIP, *policy.decision.candidates, *policy.decision.ladder] if evidence.champion else []
    if choice.first is not None:
        names.append(choice.first)
    return {name: forecast(name, evidence, policy) for name in dict.fromkeys(names)}


@dataclass(frozen=True, kw_only=True)
class _Weighing:
    """The first attempt, or `SKIP`, and why; nothing where the rule does not train."""

    first: StrategyName | None
    reasons: tuple[str, ...]
    confidence: float | None = None


def _weigh(choice: Choice, forecasts: Forecasts, evidence: Evidence, policy: Policy) -> _Weighing:
    """Choose what has the largest utility of what the rule, the budget and the experience leave."""
    config = policy.decision
    if choice.action != "train" or choice.first is not None:
        return _Weighing(first=choice.first, reasons=(choice.sentence,))
    affordable = [name for name in config.candidates if _within_budget(forecasts[name], config)]
    if not affordable:
        nothing_fits = f"Nothing fits into the budget of {_budget(config)}."
        return _Weighing(first=SKIP, reasons=(nothing_fits, choice.sentence))
    known = [name for name in affordable if forecasts[name].gain is not None]
    unknown = [name for name in affordable if name not in known]
    untried = f"Nothing tells what {', '.join(unknown)} would bring here; `--strategy` tries it." if unknown else ""
    if not known:
        lost = evidence.drop_interval is not None and evidence.drop_interval.lower > 0
        first = affordable[0] if lost or not choice.may_skip else SKIP
        return _Weighing(first=first, reasons=(choice.sentence, untried))
    weighed = [SKIP, *known] if choice.may_skip else known
    best = max(weighed, key=lambda name: utility(forecasts[name], evidence, policy))  # the first of equals
    others = [forecasts[name] for name in weighed if name != best]
    against = "; ".join(other.brief(config.currency) for other in others if other.strategy != SKIP)
    chosen = "No training is worth its compute" if best == SKIP else forecasts[best].brief(config.currency)
    weighing = f"{chosen}.{f' Weighed against it: {against}.' if against else ''}"
    return _Weighing(
        first=best,
        reasons=(weighing, choice.sentence, untried) if best == SKIP else (choice.sentence, weighing, untried),
        confidence=chance_to_be_best(forecasts[best], others, evidence, policy),
    )


def _within_budget(forecast: Forecast, config: DecisionConfig) -> bool:
    """Whether a training stays within the limits, as far as its price is known."""
    too_long = config.max_seconds is not None and (forecast.seconds or 0.0) > config.max_seconds
    too_dear = config.max_money is not None and (forecast.money or 0.0) > config.max_money
    return not (too_long or too_dear)


def _about_the_budget(forecast: Forecast, evidence: Evidence, config: DecisionConfig) -> str:
    """Why a limit may not be kept; empty where all are."""
    if not _within_budget(forecast, config):
        return f"That goes beyond the budget of {_budget(config)}, which binds what the policy chooses only."
    if config.max_seconds is None and config.max_money is None:
        return ""
    if forecast.seconds is None:
        return f"Nothing tells yet how long it takes, so the budget of {_budget(config)} may not be kept."
    if config.max_money is not None and forecast.money is None:
        return f"decision.prices has no price of '{evidence.processor}', so max_money may not be kept."
    return ""


def _budget(config: DecisionConfig) -> str:
    limits = ((config.max_seconds, "s"), (config.max_money, config.currency))
    return " and ".join(f"{limit:g} {unit}" for limit, unit in limits if limit is not None)


def _ladder(
    first: StrategyName | None, choice: Choice, forecasts: Forecasts, evidence: Evidence, policy: Policy
) -> tuple[StrategyName, ...]:
    """The rungs from `first` upwards, as far as the budget goes. One that is not on the ladder stands alone where a
    person or a rule named it, and below what costs more where it was weighed. The first model has no other rung.
    """
    assert first is not None
    ladder = policy.decision.ladder
    if evidence.champion is None:
        above: tuple[StrategyName, ...] = ()
    elif first in ladder:
        above = ladder[ladder.index(first) + 1 :]
    elif choice.first is not None:
        above = ()
    else:
        work = relative_work(first, evidence, policy)
        above = tuple(rung for rung in ladder if relative_work(rung, evidence, policy) > work)
    return (first, *(rung for rung in above if _within_budget(forecasts[rung], policy.decision)))[:MAX_RUNGS]


def _rung(forecast: Forecast, evidence: Evidence, policy: Policy) -> Rung:
    recipe = policy.training.strategies[forecast.strategy]
    return Rung(
        strategy=forecast.strategy,
        hyperparameters=recipe,
        training_rows=training_rows(recipe, evidence),
        forecast=forecast,
    )
