"""Scores of two classifiers on one holdout. Values in, values out."""

from __future__ import annotations

import torch
from torch import Tensor

from components.core.contracts import ClassRecall, HoldoutScores, PairedOutcome


def score_holdout(
    labels: Tensor, challenger: Tensor, champion: Tensor | None, classes: tuple[str, ...], known_classes: int
) -> HoldoutScores:
    """Compare answers row by row.

    Args:
        labels: True classes, int64 in [0, classes), shape (n,).
        challenger: Its answers, int64 in [0, classes), shape (n,).
        champion: Its answers, int64 in [0, known_classes), shape (n,); None while there is no champion.
        classes: Names in the order of the challenger's head; the champion's classes come first.
        known_classes: How many of them the champion knows.

    Returns:
        Paired cells over rows of classes both know, counts of each class that only the challenger knows, and the
        challenger's confusion matrix.
    """
    right = challenger == labels
    confusion = torch.zeros(len(classes), len(classes), dtype=torch.int64)
    confusion.index_put_((labels, challenger), torch.ones_like(labels), accumulate=True)
    new = classes[known_classes:] if champion is not None else ()
    new_classes = {
        name: ClassRecall(rows=int(confusion[i].sum()), correct=int(confusion[i, i]))
        for i, name in enumerate(new, start=known_classes)
    }
    paired = PairedOutcome()
    if champion is not None:
        both = labels < known_classes
        a, b = champion[both] == labels[both], right[both]
        paired = PairedOutcome(
            both_right=int((a & b).sum()),
            only_champion_right=int((a & ~b).sum()),
            only_challenger_right=int((~a & b).sum()),
            both_wrong=int((~a & ~b).sum()),
        )
    return HoldoutScores(
        rows=len(labels),
        correct=int(right.sum()),
        paired=paired,
        new_classes=new_classes,
        classes=classes,
        confusion=tuple(tuple(row) for row in confusion.tolist()),
    )
