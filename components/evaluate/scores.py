"""Scores of classifiers on one holdout: paired answers, confusion matrices, and what is read off them.

Values in, values out. A confusion matrix is sparse: for each true class how often which answer was given. Classes
without a row have no score, and means leave them out. Not covered: confidence (`calibration`), parts of a holdout
(`slices`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import Tensor

from components.core.contracts import ClassRecall, HoldoutScores, PairedOutcome
from components.core.errors import BrokenModel
from components.evaluate.clusters import design_effect

Confusion = Sequence[Mapping[int, int]]


def score_holdout(
    labels: Tensor,
    challenger: Tensor,
    champion: Tensor | None,
    classes: tuple[str, ...],
    known_classes: int,
    groups: Tensor,
) -> HoldoutScores:
    """Compare answers row by row.

    Args:
        labels: True classes, int64 in [0, classes), shape (n,).
        challenger: Its answers, int64 in [0, classes), shape (n,).
        champion: Its answers, int64 in [0, known_classes), shape (n,); None while there is no champion.
        classes: Names of what either knows; the champion's classes come first.
        known_classes: How many of them the champion knows.
        groups: The group of each row, int64, shape (n,), from 0.

    Returns:
        Paired cells over rows of classes the champion knows, in all and class by class, counts of each class that only
        the challenger knows, and confusion matrices.
    """
    right = challenger == labels
    confusion = count_answers(labels, challenger, len(classes))
    scores = HoldoutScores(
        rows=len(labels),
        correct=int(right.sum()),
        paired=PairedOutcome(),
        new_classes={},
        classes=classes,
        confusion=confusion,
        design_effect=design_effect(~right, groups),
    )
    if champion is None:
        return scores
    both, before = labels < known_classes, champion == labels
    new_classes = {
        name: _recall(right[labels == i], groups[labels == i])
        for i, name in enumerate(classes[known_classes:], start=known_classes)
    }
    by_class = {
        name: pair(before[labels == i], right[labels == i], groups[labels == i])
        for i, name in enumerate(classes[:known_classes])
        if confusion[i]
    }
    return scores.model_copy(
        update={
            "paired": pair(before[both], right[both], groups[both]),
            "new_classes": new_classes,
            "champion_confusion": count_answers(labels[both], champion[both], known_classes),
            "by_class": by_class,
        }
    )


def pair(champion: Tensor, challenger: Tensor, groups: Tensor) -> PairedOutcome:
    """Count where two models are right, bool (n,) each, in four cells; the group of each row is int64 (n,), from 0."""
    return PairedOutcome(
        both_right=int((champion & challenger).sum()),
        only_champion_right=int((champion & ~challenger).sum()),
        only_challenger_right=int((~champion & challenger).sum()),
        both_wrong=int((~champion & ~challenger).sum()),
        design_effect=design_effect(challenger.int() - champion.int(), groups),
    )


def _recall(right: Tensor, groups: Tensor) -> ClassRecall:
    return ClassRecall(rows=len(right), correct=int(right.sum()), design_effect=design_effect(~right, groups))


def count_answers(labels: Tensor, answers: Tensor, classes: int) -> tuple[dict[int, int], ...]:
    """The confusion matrix of answers, both int64 (n,) in [0, classes).

    Raises:
        BrokenModel: An answer is none of the classes.
    """
    outside = answers[(answers < 0) | (answers >= classes)]
    if len(outside):
        raise BrokenModel(
            f"answer {int(outside[0])} of a model that has {classes} classes",
            expected=f"answers from 0 to {classes - 1}",
            next_command="retrain verify checks the files of all versions",
        )
    rows: list[dict[int, int]] = [{} for _ in range(classes)]
    cells, counts = (labels * classes + answers).unique(return_counts=True)
    for cell, count in zip(cells.tolist(), counts.tolist(), strict=True):
        rows[cell // classes][cell % classes] = count
    return tuple(rows)


def recalls(confusion: Confusion) -> list[float | None]:
    """The share of each class's rows that is recognised, in [0, 1]; None for a class without a row."""
    return [row.get(i, 0) / sum(row.values()) if row else None for i, row in enumerate(confusion)]


def precisions(confusion: Confusion) -> list[float | None]:
    """The share of each class's answers that are right, in [0, 1]; None for one that was never given."""
    given: Counter[int] = Counter()
    for row in confusion:
        given.update(row)
    return [row.get(i, 0) / given[i] if given[i] else None for i, row in enumerate(confusion)]


def balanced_accuracy(confusion: Confusion) -> float | None:
    """The mean recall over classes, in [0, 1]: each counts the same, however many rows it has. None without a row.

    Source:
        Brodersen et al., "The balanced accuracy and its posterior distribution", ICPR 2010.
    """
    return _mean([recall for recall in recalls(confusion) if recall is not None])


def macro_f1(confusion: Confusion) -> float | None:
    """The mean over classes of the harmonic mean of precision and recall, in [0, 1]. None without a row.

    The F1 of each class is averaged (Opitz and Burst, "Macro F1 and Macro F1", 2019, tell it from the F1 of averages).
    """
    pairs = zip(recalls(confusion), precisions(confusion), strict=True)
    return _mean([_harmonic(recall, precision or 0.0) for recall, precision in pairs if recall is not None])


def known_rows(scores: HoldoutScores) -> Confusion:
    """The challenger's confusion matrix on rows of classes that the champion knows; all of it while there is none."""
    return scores.confusion if scores.champion_confusion is None else scores.confusion[: len(scores.champion_confusion)]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _harmonic(recall: float, precision: float) -> float:
    return 2 * recall * precision / (recall + precision) if recall + precision else 0.0
