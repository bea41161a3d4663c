"""The figures of an evaluation, by name, for charts and for the comparison of runs."""

from __future__ import annotations

from collections import Counter

from components.core.contracts import Evaluation, HoldoutScores, ModelCost
from components.evaluate.flips import negative_flip_rate
from components.evaluate.scores import Confusion, balanced_accuracy, known_rows, macro_f1
from components.evaluate.transfer import backward_transfer


def list_figures(evaluation: Evaluation) -> dict[str, float]:
    """All figures that were measured: accuracies and rates in [0, 1], seconds, bytes, operations for an image."""
    found: dict[str, float | None] = {**evaluation.figures}
    for name, scores in (("old", evaluation.old), ("new", evaluation.new)):
        if scores is not None:
            found |= {f"{figure}_{name}": value for figure, value in _holdout_figures(scores).items()}
    if evaluation.old is not None:
        found["backward_transfer"] = backward_transfer(evaluation.old.by_window)
    if evaluation.anchor is not None:
        found["anchor_accuracy"] = evaluation.anchor.paired.champion_accuracy
        found["challenger_accuracy_on_anchor"] = evaluation.anchor.paired.challenger_accuracy
    for name, cost in (("champion", evaluation.champion_cost), ("challenger", evaluation.challenger_cost)):
        if cost is not None:
            found |= {f"{name}_{figure}": value for figure, value in _cost_figures(cost).items()}
    return {name: value for name, value in found.items() if value is not None}


MOST_CLASSES = 50  # what people can read, and Kubeflow's metadata can carry: the matrix grows with the square


def confusion_table(scores: HoldoutScores) -> tuple[list[str], list[list[int]]]:
    """The challenger's confusion matrix, for a picture.

    Returns:
        Names of classes, and a row of counts for each. Of many classes those that are mistaken most often, as truth or
        as answer; all others are one, the last.
    """
    classes = list(scores.classes)
    if len(classes) <= MOST_CLASSES:
        return classes, _table(scores.confusion, {n: n for n in range(len(classes))}, len(classes))
    mistakes: Counter[int] = Counter()
    for true, given in enumerate(scores.confusion):
        for answer, count in given.items():
            if answer != true:
                mistakes.update({true: count, answer: count})
    shown = sorted(range(len(classes)), key=lambda n: (-mistakes[n], n))[: MOST_CLASSES - 1]
    place = dict.fromkeys(range(len(classes)), MOST_CLASSES - 1) | {n: at for at, n in enumerate(shown)}
    others = f"{len(classes) - len(shown)} other classes"
    return [*(classes[n] for n in shown), others], _table(scores.confusion, place, MOST_CLASSES)


def _table(confusion: Confusion, place: dict[int, int], size: int) -> list[list[int]]:
    table = [[0] * size for _ in range(size)]
    for true, given in enumerate(confusion):
        for answer, count in given.items():
            table[place[true]][place[answer]] += count
    return table


def _holdout_figures(scores: HoldoutScores) -> dict[str, float | None]:
    """Of rows of classes that the champion knows; of all rows while there is no champion."""
    now, was, paired = known_rows(scores), scores.champion_confusion, scores.paired
    return {
        "challenger_balanced_accuracy": balanced_accuracy(now),
        "champion_balanced_accuracy": balanced_accuracy(was) if was is not None else None,
        "challenger_macro_f1": macro_f1(now),
        "champion_macro_f1": macro_f1(was) if was is not None else None,
        "challenger_calibration_error": scores.calibration_error,
        "champion_calibration_error": scores.champion_calibration_error,
        "negative_flips": negative_flip_rate(paired),
        "positive_flips": paired.only_challenger_right / paired.rows if paired.rows else None,
    }


def _cost_figures(cost: ModelCost) -> dict[str, float | None]:
    seconds = {f"seconds_p{float(q) * 100:.0f}": value for q, value in cost.latency.items()}
    return {"bytes": cost.bytes, "flops": cost.flops, **seconds}
