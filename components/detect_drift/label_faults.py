"""Triage of labels: are they wrong or renamed, by what the champion answers? Values in, values out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from components.core.config import DriftConfig
from components.core.contracts import DriftView, Fault
from components.core.statistics import newcombe_interval

EXAMPLES = 8
CONFIDENCE = 0.99  # of the bounds: a window is looked at for a dozen faults
LEAST_ROWS = 5  # of a class, before its answers may call it renamed; and contradictions, before labels are wrong
# Effect of a view from which the images count as changed: chance alone reaches 0.09 in windows of 240, what costs
# accuracy begins at 0.16. Without it, large windows would always count as changed, and no label as wrong.
# (Measured on the mean of three kernels; the effect is that of the middle one since, and only triage.py --quick was
# run again with it.)
CHANGED_EFFECT = 0.12
KERNEL_VIEWS = ("embeddings", "early layers")  # whose effects have this unit
UNEXPLAINED = 0.1  # accuracy that may stay lost after a renaming is undone, where the images changed too


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the champion says of n images of classes that it knows.

    Attributes:
        labels: The labels given, int64 in [0, classes), shape (n,).
        probabilities: Its softmax, shape (n, classes).
        sha256: The images, shape (n,); empty where no examples are wanted.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    sha256: tuple[str, ...] = ()

    @property
    def given(self) -> np.ndarray:
        """The champion's answers, int64, shape (n,)."""
        answers: np.ndarray = self.probabilities.argmax(axis=1)
        return answers

    @property
    def right(self) -> np.ndarray:
        """Which answers are the label; bool, shape (n,)."""
        right: np.ndarray = self.given == self.labels
        return right

    def contradictions(self, sure: float) -> np.ndarray:
        """Which labels are contradicted with a probability of at least `sure`; bool, shape (n,)."""
        contradicted: np.ndarray = (self.probabilities.max(axis=1) >= sure) & ~self.right
        return contradicted


def images_changed(views: Iterable[DriftView], alpha: float) -> bool:
    """Tell whether the images differ from the reference, surely and by enough to make the champion err.

    Args:
        views: Of the drift test; the one of the labels does not count.
        alpha: False-alarm rate over all of them.
    """
    looks = [view for view in views if view.name != "labels"]
    p_values = [view.p_value for view in looks if view.decides]
    if not p_values or min(p_values) * len(p_values) > alpha:
        return False
    return any(view.effect >= CHANGED_EFFECT for view in looks if view.name in KERNEL_VIEWS)


def find_label_faults(
    window: Answers, reference: Answers, classes: tuple[str, ...], changed: bool, config: DriftConfig
) -> tuple[Fault, ...]:
    """Judge the labels of a window: renamed, or wrong, or neither.

    Args:
        window: Rows of known classes; none will do.
        reference: The champion's reference sample.
        classes: Names.
        changed: What `images_changed` says: an honest change makes the champion err, so more is asked then.
        config: Thresholds.

    Returns:
        One fault at most.
    """
    if not len(window.labels) or not len(reference.labels):
        return ()
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion, (window.labels, window.given), 1)
    accuracy = float(reference.right.mean())
    fault = permuted_labels(confusion, classes, accuracy, changed, config.label_fault_gain)
    fault = fault or wrong_labels(window, reference, changed, config)
    if fault is None:
        return ()
    surest = np.where(window.right, 0.0, window.probabilities.max(axis=1))
    order = sorted(np.flatnonzero(surest), key=lambda n: (-surest[n], window.sha256[n])) if window.sha256 else []
    return (fault.model_copy(update={"examples": tuple(window.sha256[n] for n in order[:EXAMPLES])}),)


def permuted_labels(
    confusion: np.ndarray, classes: tuple[str, ...], accuracy: float, changed: bool, threshold: float
) -> Fault | None:
    """Find out whether labels were renamed: would exchanging some of them explain the champion's answers?

    Of the best assignment of labels to answers, every cycle stands for itself, so that two classes exchanged among a
    thousand are found. Where the images changed, a renaming must explain everything that went wrong: a 6 turned upside
    down is a 9, but a 4 turned upside down is nothing.

    Args:
        confusion: Counts, shape (classes, classes): rows are the labels given, columns the champion's answers.
        classes: Names of rows and columns.
        accuracy: The champion's on its reference, in [0, 1].
        changed: Whether the images differ from the reference.
        threshold: Share of the renamed classes' images whose answers renaming would make right, net of those it would
            make wrong, in [0, 1].

    Returns:
        The fault, its effect that share, or None.

    Source:
        Best assignment: Kuhn, "The Hungarian method", Naval Research Logistics 2 (1955).
    """
    counts = confusion.sum(axis=1)
    target = linear_sum_assignment(confusion, maximize=True)[1]
    moved: list[int] = []
    for cycle in _cycles(target):
        rows = [i for i in cycle if counts[i]]
        own, renamed = confusion[rows, rows].sum(), confusion[rows, target[rows]].sum()
        exchanged = sum(int(counts[i] >= LEAST_ROWS and confusion[i, target[i]] > confusion[i, i]) for i in rows)
        if exchanged >= 2 and renamed - own >= threshold * counts[rows].sum():
            moved += rows
    if not moved:
        return None
    others = [i for i in range(len(classes)) if i not in moved]
    undone = confusion[moved, target[moved]].sum() + confusion[others, others].sum()
    if changed and undone / counts.sum() < accuracy - UNEXPLAINED:
        return None
    gain = float((confusion[moved, target[moved]].sum() - confusion[moved, moved].sum()) / counts[moved].sum())
    renamed_names = [f"'{classes[i]}' looks like '{classes[target[i]]}'" for i in moved]
    shown = ", ".join(renamed_names[:4]) + (", ..." if len(renamed_names) > 4 else "")
    sentence = f"The labels look renamed ({shown}): undoing it would win back {gain:.1%} of these images."
    return Fault(name="permuted-labels", effect=gain, sentence=sentence)


def _cycles(target: np.ndarray) -> list[list[int]]:
    """Cycles of a permutation that move something, each from its smallest element."""
    seen: set[int] = set()
    cycles = []
    for start in range(len(target)):
        cycle = []
        while start not in seen:
            seen.add(start)
            cycle.append(start)
            start = int(target[start])
        if len(cycle) > 1:
            cycles.append(cycle)
    return cycles


def wrong_labels(window: Answers, reference: Answers, changed: bool, config: DriftConfig) -> Fault | None:
    """Find out whether labels are wrong: the champion contradicts them, and is as sure of it as it ever is.

    A changed world makes it unsure, a wrong label does not. Sure is what is at least as probable as half of its answers
    on the reference. Where the images changed too, much more of it is asked: some changes make it err with confidence.

    Returns:
        The fault, its effect the share of the images contradicted beyond that of the reference; or None.
    """
    sure = float(np.median(reference.probabilities.max(axis=1)))
    now, then = window.contradictions(sure), reference.contradictions(sure)
    counts = (int(now.sum()), len(now)), (int(then.sum()), len(then))
    effect, drop = float(now.mean() - then.mean()), float(reference.right.mean() - window.right.mean())
    if now.sum() < LEAST_ROWS or newcombe_interval(*counts, CONFIDENCE).lower <= 0 or drop < config.label_noise_drop:
        return None
    if changed and effect < config.label_contradictions:
        return None
    seen = "although the images changed too" if changed else "and the images look like the reference"
    sentence = (
        f"The labels look wrong: the champion contradicts {now.mean():.1%} of them with certainty ({then.mean():.1%} "
        f"on its reference), {drop:.1%} of accuracy is gone, {seen}."
    )
    return Fault(name="wrong-labels", effect=effect, sentence=sentence)
