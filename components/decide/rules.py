"""Rules over the evidence: each looks at a part of it and says what may be done, in a sentence, or nothing.

The first of `RULES` that says something decides. Not covered: what is chosen of what may be done (`policy`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from components.core.config import DecisionConfig
from components.core.contracts import Interval, list_names
from components.core.plans import Action, Evidence
from components.core.recipes import StrategyName
from components.core.windows import EMPTY_WINDOW
from components.decide.situation import learnable_classes

MOST_NAMED = 3  # classes in a sentence


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a rule says: the action, and its sentence; to train also what may be the first attempt (None: weigh the
    candidates), and whether skipping is weighed too; else how many images should be labelled."""

    action: Action
    sentence: str
    first: StrategyName | None = None
    may_skip: bool = False
    labels: int = 0


Rule = Callable[[Evidence, DecisionConfig], Choice | None]


def nothing_new(evidence: Evidence, config: DecisionConfig) -> Choice | None:
    """The window holds no image at all: the run took what is new, and nothing was, or another run was at it."""
    if evidence.window != EMPTY_WINDOW:
        return None
    return Choice(action="skip", sentence="Nothing was delivered that no run has taken.")


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


def labels_wanted(evidence: Evidence, config: DecisionConfig) -> Choice | None:
    """Too few images have a label to learn from them, and there is a reason to."""
    reason = _reason_to_label(evidence, config) if evidence.lacks_labels else None
    if reason is None:
        return None
    count = min(evidence.labels_missing, config.max_to_label)
    first = ", the furthest from what the champion knows first" if evidence.champion else ""
    names = list_names([f"'{name}'" for name in evidence.moved_classes], MOST_NAMED)
    moved = f" What moved most is what the champion takes for {names}." if names else ""
    return Choice(
        action="skip",
        sentence=(
            f"{reason} {_labelled(evidence)}, and to learn takes {evidence.least_labelled}, {evidence.least_held_out} "
            f"of them held out. Label {count}: {evidence.label_list} lists them{first}.{moved}"
        ),
        labels=count,
    )


def labels_not_needed(evidence: Evidence, config: DecisionConfig) -> Choice | None:
    """Too few images have a label to learn from them, and nothing shows that there is anything to learn."""
    if not evidence.lacks_labels:
        return None
    drop, bounds = evidence.estimated_drop, evidence.estimated_drop_interval
    loss = "what the champion lost is not estimated"
    if drop is not None and bounds is not None:
        interval = f"90 % interval {_bounds(bounds)}"
        loss = f"an estimated drop of {_points(drop)} points ({interval}), {_why_no_loss(drop, config)}"
    sentence = f"{_labelled(evidence)}, and no more labels are needed: no drift alarm; {loss}."
    return Choice(action="skip", sentence=sentence)


def _reason_to_label(evidence: Evidence, config: DecisionConfig) -> str | None:
    """Why a window should be learnt from, as far as it shows with the few labels that there are."""
    if evidence.champion is None:
        return "There is no champion yet, and a first one needs labels."
    if evidence.forced is not None:
        return f"Asked for: {evidence.forced}, which has to wait for labels."
    if choice := new_classes(evidence, config) or measurable_drop(evidence, config):
        return choice.sentence
    drop, bounds = evidence.estimated_drop, evidence.estimated_drop_interval
    if drop is None or bounds is None:
        untold = f"Whether the images changed cannot be told: {evidence.undecided}."
        return "The images changed." if evidence.alarm else untold if evidence.undecided else None
    loss = f"the champion loses an estimated {_points(drop)} points of accuracy (90 % interval {_bounds(bounds)})."
    if evidence.alarm:
        return f"The images changed: {loss}"
    lost = drop >= config.train_at_drop and bounds.lower > 0
    return f"There is no drift alarm, but {loss}" if lost else None


def _labelled(evidence: Evidence) -> str:
    return f"{evidence.labelled} of {evidence.labelled + evidence.unlabelled} images have a label"


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
    names = list_names([f"'{name}' ({count} images)" for name, count in found.items()])
    return Choice(action="train", sentence=f"The champion does not know {names}: grow its head.")


def measurable_drop(evidence: Evidence, config: DecisionConfig) -> Choice | None:
    """The champion does worse here than on its reference, by more than chance explains."""
    drop, interval = evidence.drop, evidence.drop_interval
    if drop is None or interval is None or drop < config.train_at_drop or interval.lower <= 0:
        return None
    return Choice(
        action="train",
        sentence=(
            f"The champion lost {_points(drop)} points of accuracy (95 % interval {_bounds(interval)}), "
            f"at least {_points(config.train_at_drop)}."
        ),
        may_skip=True,
    )


def changed_images(evidence: Evidence, config: DecisionConfig) -> Choice | None:
    """There is a drift alarm, even if too few images have labels to tell what the change cost."""
    if not evidence.alarm:
        return None
    drop, interval = evidence.drop, evidence.drop_interval
    bounds = f" (95 % interval {_bounds(interval)})" if interval else ""
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
    interval, why = f"95 % interval {_bounds(evidence.drop_interval)}", _why_no_loss(evidence.drop, config)
    sentence = f"Nothing to gain: no drift alarm; a drop of {_points(evidence.drop)} points ({interval}), {why}."
    return Choice(action="skip", sentence=sentence)


RULES: tuple[Rule, ...] = (
    nothing_new,
    invalid_window,
    broken_data,
    labels_wanted,
    labels_not_needed,
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


def _why_no_loss(drop: float, config: DecisionConfig) -> str:
    """Why a drop is no reason to train, where it is none."""
    small = drop < config.train_at_drop
    return f"below the threshold of {_points(config.train_at_drop)}" if small else "which may be chance"


def _bounds(interval: Interval) -> str:
    return f"{_points(interval.lower)} to {_points(interval.upper)}"


def _points(fraction: float) -> str:
    """A difference of accuracies in points: 0.031 is 3.1."""
    return f"{100 * fraction:.1f}"
