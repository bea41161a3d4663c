"""The policy: named rules over the evidence, in order; the first that applies decides what may be done. Among what may
be done, the utility chooses: expected accuracy less the price of the compute. Values in, values out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from components.core.config import MAX_RUNGS, DecisionConfig
from components.core.plans import Action, Decision, Evidence, Forecast, Rung
from components.core.recipes import StrategyName
from components.decide.situation import learnable_classes
from components.decide.turning import turning_points
from components.decide.utility import SKIP, Policy, chance_to_be_best, forecast, relative_work, training_rows, utility


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a rule says: the action, and its sentence; to train also what may be the first attempt (None: weigh the
    candidates), and whether skipping is weighed too."""

    action: Action
    sentence: str
    first: StrategyName | None = None
    may_skip: bool = False


Rule = Callable[[Evidence, DecisionConfig], Choice | None]


def invalid_window(evidence: Evidence, config: DecisionConfig) -> Choice | None:
    """Nothing is learnt from a window that fails validation, unless a person has released it."""
    if not evidence.invalid or evidence.released:
        return None
    return Choice(action="quarantine", sentence=" ".join([*evidence.invalid, *evidence.faults]))


def broken_data(evidence: Evidence, config: DecisionConfig) -> Choice | None:
    """Triage found a fault, which retraining would teach to the model; a person may release the window."""
    if not evidence.faults or evidence.released:
        return None
    return Choice(action="quarantine", sentence=" ".join(evidence.faults))


def nothing_to_learn(evidence: Evidence, config: DecisionConfig) -> Choice | None:
    """A released window without a row to train on, or to judge by."""
    if evidence.new_rows and evidence.held_out:
        return None
    rows = f"{evidence.new_rows} rows to train on and {evidence.held_out} held out"
    return Choice(action="skip", sentence=f"There is nothing to learn: {rows}.")


def no_champion(evidence: Evidence, config: DecisionConfig) -> Choice | None:
    """The first model has nothing to start from."""
    if evidence.champion is not None:
        return None
    if len(learnable_classes(evidence, config)) < 2:
        return Choice(action="skip", sentence="There is no champion yet, and a first one needs two classes at least.")
    return Choice(action="train", first="retrain", sentence="There is no champion yet: train the first one.")


def forced_strategy(evidence: Evidence, config: DecisionConfig) -> Choice | None:
    """A person asked for a strategy."""
    if evidence.forced is None:
        return None
    return Choice(action="train", first=evidence.forced, sentence=f"Asked for: {evidence.forced}.")


def already_trained(evidence: Evidence, config: DecisionConfig) -> Choice | None:
    """The champion knows this window: a run that was cut off after its promotion, or a repeated event."""
    if not evidence.already_trained:
        return None
    return Choice(action="skip", sentence="The champion was trained on this window already.")


def new_classes(evidence: Evidence, config: DecisionConfig) -> Choice | None:
    """Enough images of classes that the champion cannot answer."""
    found = learnable_classes(evidence, config)
    if not found:
        return None
    names = ", ".join(f"'{name}' ({count} images)" for name, count in found.items())
    return Choice(action="train", sentence=f"The champion does not know {names}: grow its head.")


def measurable_drop(evidence: Evidence, config: DecisionConfig) -> Choice | None:
    """The champion does worse here than on its reference, by more than chance explains."""
    drop, interval = evidence.drop, evidence.drop_interval
    if drop is None or interval is None or drop < config.train_at_drop or interval.lower <= 0:
        return None
    return Choice(
        action="train",
        sentence=(
            f"The champion lost {_points(drop)} points of accuracy (95 % interval {_points(interval.lower)} to "
            f"{_points(interval.upper)}), at least {_points(config.train_at_drop)}."
        ),
        may_skip=True,
    )


def changed_images(evidence: Evidence, config: DecisionConfig) -> Choice | None:
    """The images differ from what the champion knows for certain, even if too few have labels to tell what that cost."""
    if not evidence.drifted:
        return None
    loss = "" if evidence.drop is None else f", at a loss of {_points(evidence.drop)} points that may be chance"
    return Choice(action="train", sentence=f"The images changed{loss}.", may_skip=True)


def other_image_size(evidence: Evidence, config: DecisionConfig) -> Choice | None:
    """The configuration asks for another image size than the champion has."""
    old, new = evidence.champion_image_size, evidence.image_size
    if old in (None, new):
        return None
    return Choice(
        action="train", sentence=f"Images of {new} pixels are asked for; the champion sees {old}.", may_skip=True
    )


def much_new_data(evidence: Evidence, config: DecisionConfig) -> Choice | None:
    """So many more images that training may bring something even without a drop."""
    if evidence.volume < config.train_at_volume:
        return None
    ratio = f"{evidence.volume:.1f} new images for each old one, at least {config.train_at_volume:g}"
    return Choice(action="train", sentence=f"{ratio}: there is more to learn from.", may_skip=True)


def nothing_to_gain(evidence: Evidence, config: DecisionConfig) -> Choice:
    """The default: training would cost and not help."""
    if evidence.drop is None or evidence.drop_interval is None:
        why = "too few labelled images of classes that the champion knows"
        return Choice(action="skip", sentence=f"Nothing to gain that could be measured: {why}.")
    bounds = evidence.drop_interval
    interval = f"95 % interval {_points(bounds.lower)} to {_points(bounds.upper)}"
    small = evidence.drop < config.train_at_drop
    why = f"below the threshold of {_points(config.train_at_drop)}" if small else "which may be chance"
    sentence = (
        f"Nothing to gain: the images look the same; a drop of {_points(evidence.drop)} points ({interval}), {why}."
    )
    return Choice(action="skip", sentence=sentence)


RULES: tuple[Rule, ...] = (
    invalid_window,
    broken_data,
    nothing_to_learn,
    no_champion,
    forced_strategy,
    already_trained,
    new_classes,
    measurable_drop,
    changed_images,
    other_image_size,
    much_new_data,
    nothing_to_gain,
)


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
    weighed = choice.action == "train" and choice.first is None
    return Decision(
        action=action,
        rule=rule.__name__.replace("_", "-"),
        reasons=tuple(reason for reason in reasons if reason),
        rungs=tuple(_rung(strategy, evidence, policy) for strategy in ladder),
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
        limit = f"{config.max_seconds} s" if config.max_seconds is not None else f"{config.max_money} {config.currency}"
        return SKIP, [f"Nothing fits into the budget of {limit}.", choice.sentence]
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


def _ladder(first: StrategyName, choice: Choice, evidence: Evidence, policy: Policy) -> tuple[StrategyName, ...]:
    """The rungs from `first` upwards. One that is not on the ladder stands alone where a person or a rule named it, and
    below what costs more where it was weighed.
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
    return rungs[:MAX_RUNGS]


def _rung(strategy: StrategyName, evidence: Evidence, policy: Policy) -> Rung:
    return Rung(
        strategy=strategy,
        hyperparameters=policy.recipes[strategy],
        training_rows=training_rows(policy.recipes[strategy], evidence),
        forecast=forecast(strategy, evidence, policy),
    )


def _points(fraction: float) -> str:
    """A difference of accuracies in points: 0.031 is 3.1."""
    return f"{100 * fraction:.1f}"
