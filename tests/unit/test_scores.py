"""Scores of champion and challenger on one holdout, by hand and against scikit-learn."""

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, precision_score, recall_score
from torch import Tensor

from components.core.contracts import ClassRecall, HoldoutScores, PairedOutcome
from components.core.errors import BrokenModel
from components.evaluate.scores import (
    Confusion,
    balanced_accuracy,
    known_rows,
    macro_f1,
    precisions,
    recalls,
    score_holdout,
)

# Champion knows a and b; the challenger also c. Rows:      0  1  2  3  4  5  6
LABELS = torch.tensor([0, 0, 1, 1, 1, 2, 2])
CHALLENGER = torch.tensor([0, 0, 1, 2, 0, 2, 0])
CHAMPION = torch.tensor([0, 1, 0, 1, 0, 1, 0])
CLASSES = ("a", "b", "c")


def score(
    labels: Tensor, challenger: Tensor, champion: Tensor | None, classes: tuple[str, ...], known: int
) -> HoldoutScores:
    """Each row a group of its own."""
    return score_holdout(labels, challenger, champion, classes, known, torch.arange(len(labels)))


def test_paired_cells_cover_the_classes_both_know() -> None:
    # Row 0 both right; rows 1 and 2 only the challenger; row 3 only the champion; row 4 both wrong; rows 5, 6 are c.
    paired = score(LABELS, CHALLENGER, CHAMPION, CLASSES, 2).paired
    assert paired == PairedOutcome(both_right=1, only_challenger_right=2, only_champion_right=1, both_wrong=1)
    assert paired.rows == 5
    assert paired.champion_accuracy == pytest.approx(2 / 5)
    assert paired.challenger_accuracy == pytest.approx(3 / 5)


def test_new_classes_are_measured_apart() -> None:
    scores = score(LABELS, CHALLENGER, CHAMPION, CLASSES, 2)
    assert scores.new_classes == {"c": ClassRecall(rows=2, correct=1)}
    assert (scores.rows, scores.correct) == (7, 4)
    assert scores.accuracy == pytest.approx(4 / 7)


def test_confusion_has_true_classes_in_rows() -> None:
    scores = score(LABELS, CHALLENGER, CHAMPION, CLASSES, 2)
    assert scores.confusion == ({0: 2}, {0: 1, 1: 1, 2: 1}, {0: 1, 2: 1})
    assert scores.classes == CLASSES


def test_a_new_class_without_rows_is_listed_without_rows() -> None:
    scores = score(LABELS[:5], CHALLENGER[:5], CHAMPION[:5], CLASSES, 2)
    assert scores.new_classes == {"c": ClassRecall(rows=0, correct=0)}


def test_every_class_the_champion_does_not_know_is_new_and_no_other() -> None:
    # The champion knows a only: of b, row 2 of three is recognised; of c, row 5 of two.
    only_a = torch.zeros_like(LABELS)
    scores = score(LABELS, CHALLENGER, only_a, CLASSES, 1)
    assert scores.new_classes == {"b": ClassRecall(rows=3, correct=1), "c": ClassRecall(rows=2, correct=1)}
    assert score(LABELS, CHALLENGER, CHAMPION, CLASSES, 3).new_classes == {}


def test_without_champion_there_are_no_pairs_and_no_new_classes() -> None:
    scores = score(LABELS, CHALLENGER, None, CLASSES, 0)
    assert scores.paired == PairedOutcome()
    assert scores.paired.champion_accuracy is None
    assert scores.new_classes == {}
    assert scores.correct == 4


@pytest.mark.parametrize("with_champion", [True, False])
def test_an_empty_holdout_has_no_accuracy(with_champion: bool) -> None:
    none = torch.empty(0, dtype=torch.int64)
    scores = score(none, none, none if with_champion else None, CLASSES, 2)
    assert (scores.rows, scores.correct, scores.accuracy) == (0, 0, None)
    assert scores.paired.challenger_accuracy is None
    assert scores.confusion == ({},) * 3


def test_equal_models_agree_on_every_row() -> None:
    paired = score(LABELS, CHALLENGER, CHALLENGER, CLASSES, 3).paired
    assert (paired.only_champion_right, paired.only_challenger_right) == (0, 0)
    assert (paired.both_right, paired.both_wrong) == (4, 3)


# --- class by class


def test_each_class_that_both_know_has_its_own_pairs() -> None:
    by_class = score(LABELS, CHALLENGER, CHAMPION, CLASSES, 2).by_class
    assert by_class == {
        "a": PairedOutcome(both_right=1, only_challenger_right=1),
        "b": PairedOutcome(only_challenger_right=1, only_champion_right=1, both_wrong=1),
    }


def test_a_class_without_rows_has_no_pairs() -> None:
    assert set(score(LABELS[2:], CHALLENGER[2:], CHAMPION[2:], CLASSES, 2).by_class) == {"b"}


def test_the_champions_confusion_covers_the_classes_it_knows() -> None:
    scores = score(LABELS, CHALLENGER, CHAMPION, CLASSES, 2)
    assert scores.champion_confusion == ({0: 1, 1: 1}, {0: 2, 1: 1})
    assert known_rows(scores) == ({0: 2}, {0: 1, 1: 1, 2: 1})
    alone = score(LABELS, CHALLENGER, None, CLASSES, 0)
    assert (alone.champion_confusion, known_rows(alone)) == (None, alone.confusion)


def test_scores_of_a_confusion_by_hand() -> None:
    confusion = ({0: 2}, {0: 1, 1: 1, 2: 1}, {0: 1, 2: 1})
    assert recalls(confusion) == [1, pytest.approx(1 / 3), pytest.approx(1 / 2)]
    assert precisions(confusion) == [pytest.approx(2 / 4), 1, pytest.approx(1 / 2)]
    assert balanced_accuracy(confusion) == pytest.approx((1 + 1 / 3 + 1 / 2) / 3)
    assert macro_f1(confusion) == pytest.approx((2 / 3 + 1 / 2 + 1 / 2) / 3)


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_scikit_learn(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (80,), generator=generator)
    answers = torch.where(torch.rand(80, generator=generator) < 0.6, labels, labels.roll(1))
    labels[labels == 3] = 2  # a class that is answered and has no row
    scores = score(labels, answers, None, tuple("abcde"), 0)
    dense = [[row.get(answer, 0) for answer in range(5)] for row in scores.confusion]
    assert dense == confusion_matrix(labels, answers, labels=range(5)).tolist()
    present = labels.unique().tolist()
    options = {"labels": present, "average": None, "zero_division": 0}
    found, precise = recalls(scores.confusion), precisions(scores.confusion)
    assert [found[i] for i in present] == pytest.approx(recall_score(labels, answers, **options))
    assert [precise[i] for i in present] == pytest.approx(precision_score(labels, answers, **options))
    assert found[3] is None
    assert precise[3] == 0
    assert macro_f1(scores.confusion) == pytest.approx(f1_score(labels, answers, **{**options, "average": "macro"}))
    known = torch.tensor([label in present for label in answers.tolist()])
    assert balanced_accuracy(score(labels[known], answers[known], None, tuple("abcde"), 0).confusion) == pytest.approx(
        balanced_accuracy_score(labels[known], answers[known])
    )


def test_scores_of_no_rows_are_unknown() -> None:
    empty: Confusion = ({}, {})
    assert (balanced_accuracy(empty), macro_f1(empty)) == (None, None)
    assert recalls(empty) == precisions(empty) == [None, None]


def test_a_class_that_is_never_answered_counts_as_nothing() -> None:
    assert macro_f1(({0: 3}, {0: 2})) == pytest.approx((6 / 8 + 0) / 2)
    assert precisions(({0: 3}, {0: 2})) == [pytest.approx(3 / 5), None]


def test_a_holdout_of_one_class_has_that_class_as_its_mean() -> None:
    labels = torch.zeros(4, dtype=torch.int64)
    scores = score(labels, torch.tensor([0, 0, 0, 1]), labels, ("a", "b"), 2)
    assert balanced_accuracy(scores.confusion) == pytest.approx(3 / 4)
    assert scores.by_class == {"a": PairedOutcome(both_right=3, only_champion_right=1)}


@pytest.mark.parametrize("wrong", [-1, 2, 7])
def test_an_answer_that_is_no_class_is_a_broken_model(wrong: int) -> None:
    champion = torch.tensor([0, 1, wrong])
    with pytest.raises(BrokenModel, match=f"answer {wrong} of a model that has 2 classes"):
        score(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 2]), champion, CLASSES, 2)
