"""The policy: the first rule that applies says what may be done, and the utility chooses among that: accuracy expected,
less the price of the compute. Values in, values out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from components.core.config import MAX_RUNGS, DecisionConfig
from components.core.plans import Action, Decision, Evidence, Forecast, Rung
from components.core.recipes import StrategyName
from components.decide.rules import RULES, Choice
from components.decide.situation import learnable_classes
from components.decide.turning import turning_points
from components.decide.utility import SKIP, Policy, chance_to_be_best, forecast, relative_work, training_rows, utility


def decide(evidence: Evidence, policy: Policy) -> Decision:
    """Make the plan, and find what would have changed it.

    The same evidence under the same policy gives the same plan, to the bit.

    Args:
        evidence: See `Evidence`.
        policy: Thresholds, recipes, experience.
    """
    plan = plan_for(evidence, policy)
    return plan.model_copy(update={"turning_points": turning_points((evidence, policy), plan_for)})


def plan_for(evidence: Evidence, policy: Policy) -> Decision:
    """Apply the rules in order, weigh what the first one leaves open, and lay out the ladder."""
    config = policy.decision
    rule, choice = next((r, c) for r in RULES if (c := r(evidence, config)))
    forecasts = _forecasts(evidence, policy) if choice.action == "train" else {}
    first, reasons = _choose(choice, forecasts, evidence, policy)
    action: Action = "skip" if first == SKIP else choice.action
    if action == "train" and evidence.champion:
        reasons.append(evidence.drift_sentence)
    if evidence.released:
        reasons.append(evidence.released)
    ladder = _ladder(first, choice, evidence, policy) if action == "train" and first else ()
    rungs = tuple(_rung(strategy, evidence, policy) for strategy in ladder)
    if _unpriced([rung.forecast for rung in rungs], config):
        reasons.append(f"Nothing tells yet what it takes, so the budget of {_budget(config)} may not be kept.")
    weighed = choice.action == "train" and choice.first is None
    return Decision(
        action=action,
        rule=rule.__name__.replace("_", "-"),
        reasons=tuple(reason for reason in reasons if reason),
        rungs=rungs,
        classes=(*evidence.champion_classes, *sorted(learnable_classes(evidence, config))),
        champion=evidence.champion,
        old_windows=evidence.old_windows,
        alternatives=tuple(forecasts.values()),
        confidence=chance_to_be_best(first, list(forecasts.values())) if weighed and first else None,
        evidence=evidence,
    )


def _forecasts(evidence: Evidence, policy: Policy) -> dict[StrategyName, Forecast]:
    """What skipping, the candidates and the ladder are expected to bring and to cost."""
    asked = [evidence.forced] if evidence.forced else []
    names = dict.fromkeys([SKIP, *policy.decision.candidates, *policy.decision.ladder, *asked])
    return {name: forecast(name, evidence, policy) for name in names}


def _choose(
    choice: Choice, forecasts: Mapping[StrategyName, Forecast], evidence: Evidence, policy: Policy
) -> tuple[StrategyName | None, list[str]]:
    """The first attempt, or `SKIP`, and the reasons; None where the rule does not train."""
    config = policy.decision
    if choice.action != "train":
        return None, [choice.sentence]
    if choice.first is not None:
        return choice.first, [choice.sentence]
    affordable = [name for name in config.candidates if _within_budget(forecasts[name], config)]
    if not affordable:
        return SKIP, [f"Nothing fits into the budget of {_budget(config)}.", choice.sentence]
    known = [name for name in affordable if forecasts[name].gain is not None]
    if not known:
        return affordable[0], [choice.sentence, f"Nothing tells what {', '.join(affordable)} would bring here."]
    weighed = [SKIP, *known] if choice.may_skip else known
    best = max(weighed, key=lambda name: utility(name, evidence, policy))  # the first of equals
    others = [forecasts[name].brief(config.currency) for name in weighed if name not in (best, SKIP)]
    against = f" Weighed against it: {'; '.join(others)}." if others else ""
    if best == SKIP:
        return SKIP, [f"No training is worth its compute.{against}", choice.sentence]
    return best, [choice.sentence, f"{forecasts[best].brief(config.currency)}.{against}"]


def _within_budget(forecast: Forecast, config: DecisionConfig) -> bool:
    """Whether a training stays within the limits, as far as its price is known."""
    too_long = config.max_seconds is not None and (forecast.seconds or 0.0) > config.max_seconds
    too_dear = config.max_money is not None and (forecast.money or 0.0) > config.max_money
    return not (too_long or too_dear)


def _unpriced(forecasts: Sequence[Forecast], config: DecisionConfig) -> bool:
    """Whether a limit cannot be kept because nothing tells what a training takes."""
    timeless = config.max_seconds is not None and any(f.seconds is None for f in forecasts)
    priceless = config.max_money is not None and any(f.money is None for f in forecasts)
    return timeless or priceless


def _budget(config: DecisionConfig) -> str:
    limits = ((config.max_seconds, "s"), (config.max_money, config.currency))
    return " and ".join(f"{limit:g} {unit}" for limit, unit in limits if limit is not None)


def _ladder(first: StrategyName, choice: Choice, evidence: Evidence, policy: Policy) -> tuple[StrategyName, ...]:
    """The rungs from `first` upwards, as far as the budget goes. One that is not on the ladder stands alone where a
    person or a rule named it, and below what costs more where it was weighed.
    """
    ladder = policy.decision.ladder
    if first in ladder:
        rungs = ladder[ladder.index(first) :]
    elif choice.first is not None:
        rungs = (first,)
    else:
        work = relative_work(first, evidence, policy)
        rungs = (first, *(rung for rung in ladder if relative_work(rung, evidence, policy) > work))
    if evidence.champion is None:  # nothing to start from
        rungs = tuple(rung for rung in rungs if policy.recipes[rung].start == "fresh")
    affordable = (r for r in rungs[1:] if _within_budget(forecast(r, evidence, policy), policy.decision))
    return (*rungs[:1], *affordable)[:MAX_RUNGS]


def _rung(strategy: StrategyName, evidence: Evidence, policy: Policy) -> Rung:
    return Rung(
        strategy=strategy,
        hyperparameters=policy.recipes[strategy],
        training_rows=training_rows(policy.recipes[strategy], evidence),
        forecast=forecast(strategy, evidence, policy),
    )
