"""The policy: named rules over the evidence, in order; the first that applies decides. Values in, values out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from components.core.config import DecisionConfig
from components.core.contracts import Action, Decision, DriftReport, Rung, ValidationReport
from components.core.recipes import Recipe, StrategyName


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that the policy looks at. Rows are training rows, `held_out` the window's others; `old_windows` are the
    champion's but the current one; `released`: who let this window out of quarantine and why, if anybody did;
    `images_per_second` by strategy, over all passes, where a run has measured it."""

    validation: ValidationReport
    drift: DriftReport
    champion: str | None
    champion_classes: tuple[str, ...]
    old_windows: tuple[str, ...]
    already_trained: bool
    released: str | None
    window_classes: Mapping[str, int]
    old_rows: int
    new_rows: int
    held_out: int
    forced: StrategyName | None
    images_per_second: Mapping[StrategyName, float]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a rule says: the action, the first rung of the ladder (None: all of it), and its sentence."""

    action: Action
    sentence: str
    first: StrategyName | None = None


Rule = Callable[[Evidence, DecisionConfig], Choice | None]


def already_trained(evidence: Evidence, config: DecisionConfig) -> Choice | None:
    """The champion knows this window: a run that was cut off after its promotion, or a repeated event."""
    if not evidence.already_trained:
        return None
    return Choice(action="skip", sentence="The champion was trained on this window already.")


def invalid_window(evidence: Evidence, config: DecisionConfig) -> Choice | None:
    """Nothing is learnt from a window that fails validation, unless a person has released it."""
    failures = evidence.validation.failures
    if not failures or evidence.released:
        return None
    sentences = [e.sentence for e in failures] + [f.sentence for f in evidence.drift.faults]
    return Choice(action="quarantine", sentence=" ".join(sentences))


def broken_data(evidence: Evidence, config: DecisionConfig) -> Choice | None:
    """Triage found a fault, which retraining would teach to the model; a person may release the window."""
    if not evidence.drift.faults or evidence.released:
        return None
    return Choice(action="quarantine", sentence=" ".join(fault.sentence for fault in evidence.drift.faults))


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


def new_classes(evidence: Evidence, config: DecisionConfig) -> Choice | None:
    """Enough images of classes that the champion cannot answer."""
    found = learnable_classes(evidence, config)
    if not found:
        return None
    names = ", ".join(f"'{name}' ({count} images)" for name, count in found.items())
    return Choice(action="train", sentence=f"The champion does not know {names}: grow its head.")


def large_drop(evidence: Evidence, config: DecisionConfig) -> Choice | None:
    """So much accuracy is gone that the cheap rungs are not worth trying."""
    drop, interval = evidence.drift.accuracy_drop, evidence.drift.accuracy_drop_interval
    if drop is None or interval is None or drop < config.retrain_at_drop or interval.lower <= 0:
        return None
    return Choice(
        action="train",
        first="retrain",
        sentence=(
            f"The champion lost {_points(drop)} points of accuracy, at least {_points(config.retrain_at_drop)}: "
            "start afresh."
        ),
    )


def much_new_data(evidence: Evidence, config: DecisionConfig) -> Choice | None:
    """So many more images that a fresh model is worth its price even without a drop."""
    ratio = evidence.new_rows / max(1, evidence.old_rows)
    if ratio < config.retrain_at_volume:
        return None
    return Choice(
        action="train",
        first="retrain",
        sentence=f"{ratio:.1f} new images for each old one, at least {config.retrain_at_volume:g}: start afresh.",
    )


def measurable_drop(evidence: Evidence, config: DecisionConfig) -> Choice | None:
    """The champion does worse here than on its reference, by more than chance explains."""
    drop, interval = evidence.drift.accuracy_drop, evidence.drift.accuracy_drop_interval
    if drop is None or interval is None or drop < config.fine_tune_at_drop or interval.lower <= 0:
        return None
    return Choice(
        action="train",
        sentence=(
            f"The champion lost {_points(drop)} points of accuracy (95 % interval {_points(interval.lower)} to "
            f"{_points(interval.upper)}), at least {_points(config.fine_tune_at_drop)}."
        ),
    )


def nothing_to_gain(evidence: Evidence, config: DecisionConfig) -> Choice:
    """The default: training would cost and not help."""
    drift = evidence.drift
    if drift.p_value is None or drift.accuracy_drop is None or drift.accuracy_drop_interval is None:
        why = "too few images of classes that the champion knows"
        return Choice(action="skip", sentence=f"Nothing to gain that could be measured: {why}.")
    bounds = drift.accuracy_drop_interval
    interval = f"95 % interval {_points(bounds.lower)} to {_points(bounds.upper)}"
    changed = "changed, harmlessly" if drift.drifted else "look the same"
    small = drift.accuracy_drop < config.fine_tune_at_drop
    why = f"below the threshold of {_points(config.fine_tune_at_drop)}" if small else "which may be chance"
    sentence = (
        f"Nothing to gain: the images {changed}; a drop of {_points(drift.accuracy_drop)} points ({interval}), {why}."
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
    large_drop,
    much_new_data,
    measurable_drop,
    nothing_to_gain,
)


def decide(
    evidence: Evidence,
    config: DecisionConfig,
    recipes: Mapping[StrategyName, Recipe],
) -> Decision:
    """Apply the rules in order and lay out the ladder from the first rung upwards.

    Args:
        evidence: See `Evidence`.
        config: Thresholds and ladder.
        recipes: What each strategy does.
    """
    rule, choice = next((r, c) for r in RULES if (c := r(evidence, config)))
    reasons = [choice.sentence]
    if choice.action == "train" and evidence.champion:
        reasons.append(evidence.drift.sentence)
    if evidence.released:
        reasons.append(evidence.released)
    rungs = [] if choice.action != "train" else list(_ladder(choice.first, config.ladder))
    if evidence.champion is None:  # nothing to start from
        rungs = [strategy for strategy in rungs if recipes[strategy].start == "fresh"]
    return Decision(
        action=choice.action,
        rule=rule.__name__.replace("_", "-"),
        reasons=tuple(reasons),
        rungs=tuple(_rung(strategy, evidence, recipes[strategy]) for strategy in rungs),
        classes=(*evidence.champion_classes, *sorted(learnable_classes(evidence, config))),
        champion=evidence.champion,
        old_windows=evidence.old_windows,
    )


def learnable_classes(evidence: Evidence, config: DecisionConfig) -> dict[str, int]:
    """Classes of the window that the champion does not know and that have enough images to learn, with their counts."""
    least = config.min_new_class_images if evidence.champion else 1
    unknown = {c: n for c, n in evidence.window_classes.items() if c not in evidence.champion_classes}
    return {c: n for c, n in sorted(unknown.items()) if n >= least}


def _points(fraction: float) -> str:
    """A difference of accuracies in points: 0.031 is 3.1."""
    return f"{100 * fraction:.1f}"


def _ladder(first: StrategyName | None, ladder: tuple[StrategyName, ...]) -> Iterator[StrategyName]:
    """The rungs from `first` upwards; a first rung that is not on the ladder stands alone."""
    if first is None:
        yield from ladder
    elif first in ladder:
        yield from ladder[ladder.index(first) :]
    else:
        yield first


def _rung(strategy: StrategyName, evidence: Evidence, recipe: Recipe) -> Rung:
    shares = {"new": 0.0, "replay": recipe.replay_fraction, "all": 1.0}
    rows = evidence.new_rows + round(shares[recipe.rows] * evidence.old_rows)
    speed = evidence.images_per_second.get(strategy)
    return Rung(
        strategy=strategy,
        hyperparameters=recipe,
        training_rows=rows,
        estimated_seconds=rows * recipe.epochs / speed if speed else None,
    )
