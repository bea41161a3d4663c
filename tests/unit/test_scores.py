"""Scores of champion and challenger on one holdout, by hand."""

import pytest
import torch

from components.core.contracts import ClassRecall, PairedOutcome
from components.evaluate.scores import score_holdout

# Champion knows a and b; the challenger also c. Rows:      0  1  2  3  4  5  6
LABELS = torch.tensor([0, 0, 1, 1, 1, 2, 2])
CHALLENGER = torch.tensor([0, 0, 1, 2, 0, 2, 0])
CHAMPION = torch.tensor([0, 1, 0, 1, 0, 1, 0])
CLASSES = ("a", "b", "c")


def test_paired_cells_cover_the_classes_both_know() -> None:
    # Row 0 both right; rows 1 and 2 only the challenger; row 3 only the champion; row 4 both wrong; rows 5, 6 are c.
    paired = score_holdout(LABELS, CHALLENGER, CHAMPION, CLASSES, 2).paired
    assert paired == PairedOutcome(both_right=1, only_challenger_right=2, only_champion_right=1, both_wrong=1)
    assert paired.rows == 5
    assert paired.champion_accuracy == pytest.approx(2 / 5)
    assert paired.challenger_accuracy == pytest.approx(3 / 5)


def test_new_classes_are_measured_apart() -> None:
    scores = score_holdout(LABELS, CHALLENGER, CHAMPION, CLASSES, 2)
    assert scores.new_classes == {"c": ClassRecall(rows=2, correct=1)}
    assert (scores.rows, scores.correct) == (7, 4)
    assert scores.accuracy == pytest.approx(4 / 7)


def test_confusion_has_true_classes_in_rows() -> None:
    scores = score_holdout(LABELS, CHALLENGER, CHAMPION, CLASSES, 2)
    assert scores.confusion == ((2, 0, 0), (1, 1, 1), (1, 0, 1))
    assert scores.classes == CLASSES


def test_a_new_class_without_rows_is_listed_without_rows() -> None:
    scores = score_holdout(LABELS[:5], CHALLENGER[:5], CHAMPION[:5], CLASSES, 2)
    assert scores.new_classes == {"c": ClassRecall(rows=0, correct=0)}


def test_every_class_the_champion_does_not_know_is_new_and_no_other() -> None:
    # The champion knows a only: of b, row 2 of three is recognised; of c, row 5 of two.
    scores = score_holdout(LABELS, CHALLENGER, CHAMPION, CLASSES, 1)
    assert scores.new_classes == {"b": ClassRecall(rows=3, correct=1), "c": ClassRecall(rows=2, correct=1)}
    assert score_holdout(LABELS, CHALLENGER, CHAMPION, CLASSES, 3).new_classes == {}


def test_without_champion_there_are_no_pairs_and_no_new_classes() -> None:
    scores = score_holdout(LABELS, CHALLENGER, None, CLASSES, 0)
    assert scores.paired == PairedOutcome()
    assert scores.paired.champion_accuracy is None
    assert scores.new_classes == {}
    assert scores.correct == 4


@pytest.mark.parametrize("with_champion", [True, False])
def test_an_empty_holdout_has_no_accuracy(with_champion: bool) -> None:
    none = torch.empty(0, dtype=torch.int64)
    scores = score_holdout(none, none, none if with_champion else None, CLASSES, 2)
    assert (scores.rows, scores.correct, scores.accuracy) == (0, 0, None)
    assert scores.paired.challenger_accuracy is None
    assert scores.confusion == ((0, 0, 0),) * 3


def test_equal_models_agree_on_every_row() -> None:
    paired = score_holdout(LABELS, CHALLENGER, CHALLENGER, CLASSES, 3).paired
    assert (paired.only_champion_right, paired.only_challenger_right) == (0, 0)
    assert (paired.both_right, paired.both_wrong) == (4, 3)
