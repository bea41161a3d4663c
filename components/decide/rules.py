"""Rules over the evidence: each looks at a part of it and says what may be done, in a sentence, or nothing.

The first of `RULES` that says something decides. Not covered: what is chosen of what may be done (`policy`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from components.core.config import DecisionConfig
from components.core.plans import Action, Evidence
from components.core.recipes import StrategyName
from components.decide.situation import learnable_classes


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
    rows = f"labelled rows to train on: {evidence.new_rows}, held out: {evidence.held_out}"
    return Choice(action="skip", sentence=f"There is nothing to learn ({rows}).")


def no_champion(evidence: Evidence, config: DecisionConfig) -> Choice | None:
    """The first model has nothing to start from."""
    if evidence.champion is not None:
        return None
    if len(learnable_classes(evidence, config)) < 2:
        return Choice(action="skip", sentence="There is no champion yet, and a first one needs two classes at least.")
    asked = "" if evidence.forced in (None, "retrain") else f" {evidence.forced}, which was asked for, has to wait."
    return Choice(action="train", first="retrain", sentence=f"There is no champion yet: train the first one.{asked}")


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


def rolled_back(evidence: Evidence, config: DecisionConfig) -> Choice | None:
    """A person took back what was learnt from this window. The same training would come to the same version, which the
    same rows would pass: automatic retraining must not bring it back."""
    if evidence.rolled_back is None:
        return None
    again = "To learn it again, ask for a strategy: --strategy NAME"
    return Choice(action="skip", sentence=f"{evidence.rolled_back}. {again}.")


def much_forgotten(evidence: Evidence, config: DecisionConfig) -> Choice | None:
    """Updates have cost more, one by one, than a model should lose."""
    lost, interval = evidence.forgotten, evidence.forgotten_interval
    if lost is None or interval is None or evidence.retrained_in_vain:
        return None
    if lost < config.max_forgotten or interval.lower <= 0:
        return None
    return Choice(
        action="train",
        first="retrain",
        sentence=(
            f"The model lost {_points(lost)} points on what it knew at its last full retrain (updates since: "
            f"{evidence.windows_since}), at least {_points(config.max_forgotten)}: train it from all images."
        ),
    )


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
    """There is a drift alarm, even if too few images have labels to tell what the change cost."""
    if not evidence.alarm:
        return None
    drop, interval = evidence.drop, evidence.drop_interval
    bounds = f" (95 % interval {_points(interval.lower)} to {_points(interval.upper)})" if interval else ""
    loss = "" if drop is None else f", at a loss of {_points(drop)} points{bounds}"
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
    """So many more images that there is something to learn even without a drop."""
    if evidence.volume < config.train_at_volume:
        return None
    ratio = f"{evidence.volume:.1f} new images for each old one, at least {config.train_at_volume:g}"
    return Choice(action="train", sentence=f"{ratio}: there is more to learn from.")


def nothing_to_gain(evidence: Evidence, config: DecisionConfig) -> Choice:
    """The default: training would cost and not help."""
    if evidence.drop is None or evidence.drop_interval is None:
        why = "too few labelled images of classes that the champion knows"
        return Choice(action="skip", sentence=f"Nothing to gain that could be measured: {why}.")
    bounds = evidence.drop_interval
    interval = f"95 % interval {_points(bounds.lower)} to {_points(bounds.upper)}"
    small = evidence.drop < config.train_at_drop
    why = f"below the threshold of {_points(config.train_at_drop)}" if small else "which may be chance"
    sentence = f"Nothing to gain: no drift alarm; a drop of {_points(evidence.drop)} points ({interval}), {why}."
    return Choice(action="skip", sentence=sentence)


RULES: tuple[Rule, ...] = (
    invalid_window,
    broken_data,
    nothing_to_learn,
    no_champion,
    forced_strategy,
    already_trained,
    rolled_back,
    much_forgotten,
    new_classes,
    measurable_drop,
    changed_images,
    other_image_size,
    much_new_data,
    nothing_to_gain,
)


def _points(fraction: float) -> str:
    """A difference of accuracies in points: 0.031 is 3.1."""
    return f"{100 * fraction:.1f}"
