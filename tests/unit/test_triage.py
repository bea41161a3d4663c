"""Triage: renamed labels and wrong labels are told from a world that changed."""

import numpy as np
import pytest

from components.detect_drift.triage import permuted_labels, wrong_labels

CLASSES = ("cat", "dog", "owl", "bat", "elk", "ant")


def confusion(assignment: list[int], right: int = 90, wrong: int = 2) -> np.ndarray:
    """Rows are the labels given; the champion answers class i with `assignment[i]`, mostly."""
    counts = np.full((len(assignment), len(assignment)), wrong)
    counts[range(len(assignment)), assignment] = right
    return counts


def test_right_labels_are_no_fault() -> None:
    assert permuted_labels(confusion([0, 1, 2, 3]), CLASSES[:4], 0.3) is None


def test_a_cyclic_renaming_is_a_fault_that_names_the_classes() -> None:
    # 3 x (90 + 2 + 2) rows; right by the names given: 6, by the best renaming: 270. Won back: 264 / 282.
    fault = permuted_labels(confusion([1, 2, 0]), CLASSES[:3], 0.3)
    assert fault is not None
    assert fault.name == "permuted-labels"
    assert fault.effect == pytest.approx(264 / 282)
    for given, looks in (("cat", "dog"), ("dog", "owl"), ("owl", "cat")):
        assert f"'{given}' looks like '{looks}'" in fault.sentence


def test_only_the_first_four_renamings_are_spelt_out() -> None:
    fault = permuted_labels(confusion([1, 2, 3, 4, 5, 0]), CLASSES, 0.3)
    assert fault is not None
    assert fault.sentence.count("looks like") == 4
    assert "..." in fault.sentence


def swapped(classes: int, rows: int) -> np.ndarray:
    assignment = list(range(classes))
    assignment[0], assignment[1] = 1, 0
    return confusion(assignment, rows, 0)


def test_two_swapped_classes_below_the_threshold_are_no_fault() -> None:
    # 2 of 8 classes: a quarter of the accuracy comes back.
    assert permuted_labels(swapped(8, 50), tuple("abcdefgh"), 0.3) is None


def test_two_swapped_classes_above_the_threshold_are_a_fault() -> None:
    fault = permuted_labels(swapped(8, 50), tuple("abcdefgh"), 0.2)
    assert fault is not None
    assert fault.effect == pytest.approx(0.25)
    assert "'a' looks like 'b', 'b' looks like 'a'" in fault.sentence


@pytest.mark.parametrize("seed", range(5))
def test_noisy_labels_are_no_renaming(seed: int) -> None:
    counts = np.random.default_rng(seed).multinomial(400, [0.25] * 4, size=4)  # labels that say nothing at all
    assert permuted_labels(counts, CLASSES[:4], 0.3) is None


def test_a_class_without_rows_is_not_named() -> None:
    counts = confusion([1, 0, 2], 50, 0)
    counts[2] = 0
    fault = permuted_labels(counts, CLASSES[:3], 0.3)
    assert fault is not None
    assert "owl" not in fault.sentence


def test_no_rows_are_no_fault() -> None:
    assert permuted_labels(np.zeros((3, 3), dtype=int), CLASSES[:3], 0.0) is None


def test_one_class_cannot_be_renamed() -> None:
    assert permuted_labels(np.array([[40]]), ("cat",), 0.3) is None


@pytest.mark.parametrize(
    ("drop", "lower", "images_changed", "fault"),
    [
        pytest.param(0.5, 0.4, False, True, id="accuracy gone, images the same"),
        pytest.param(0.3, 0.2, False, True, id="at the threshold"),
        pytest.param(0.5, 0.4, True, False, id="the world changed"),
        pytest.param(0.29, 0.2, False, False, id="below the threshold"),
        pytest.param(0.5, 0.0, False, False, id="chance explains it"),
        pytest.param(-0.2, -0.3, False, False, id="better than before"),
    ],
)
def test_labels_are_wrong_when_accuracy_is_gone_and_images_are_the_same(
    drop: float, lower: float, images_changed: bool, fault: bool
) -> None:
    found = wrong_labels(drop, lower, images_changed, 0.3)
    assert (found is not None) is fault
    if found is not None:
        assert (found.name, found.effect) == ("wrong-labels", drop)
        assert f"{drop:.1%}" in found.sentence
