"""Tell a broken delivery from a changed world, by what the champion says of its labels. Values in, values out."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from components.core.contracts import Fault


def permuted_labels(confusion: np.ndarray, classes: tuple[str, ...], threshold: float) -> Fault | None:
    """Find out whether the labels were renamed: would another assignment of names explain the champion's answers?

    Args:
        confusion: Counts, shape (classes, classes): rows are the labels given, columns the champion's answers.
        classes: Names of rows and columns.
        threshold: Accuracy that the best renaming must win back, in [0, 1].

    Returns:
        The fault, its effect the accuracy won back, or None.

    Source:
        Best assignment: Kuhn, "The Hungarian method", Naval Research Logistics 2 (1955).
    """
    total = confusion.sum()
    if total == 0:
        return None
    given, answered = linear_sum_assignment(confusion, maximize=True)
    gain = float(confusion[given, answered].sum() - np.trace(confusion)) / float(total)
    if gain < threshold:
        return None
    renamed = [
        f"'{classes[i]}' looks like '{classes[j]}'"
        for i, j in zip(given, answered, strict=True)
        if i != j and confusion[i].sum()
    ]
    shown = ", ".join(renamed[:4]) + (", ..." if len(renamed) > 4 else "")
    return Fault(
        name="permuted-labels",
        effect=gain,
        sentence=f"The labels look renamed ({shown}): undoing it would win back {gain:.1%} accuracy.",
    )


def wrong_labels(drop: float, lower: float, images_changed: bool, threshold: float) -> Fault | None:
    """Find out whether the labels are wrong although the images are not: accuracy is gone, the images look the same.

    Args:
        drop: Champion's accuracy on its reference minus that on the window.
        lower: Lower confidence bound of the drop.
        images_changed: Whether any view of the images (not of the labels) differs.
        threshold: Drop from which this is a fault.

    Returns:
        The fault, its effect the drop, or None.
    """
    if images_changed or drop < threshold or lower <= 0:
        return None
    sentence = f"The images look like the reference, but {drop:.1%} of accuracy is gone: the labels look wrong."
    return Fault(name="wrong-labels", effect=drop, sentence=sentence)
