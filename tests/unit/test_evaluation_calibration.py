"""Calibration: the error by hand and against scikit-learn's curve, and both directions."""

import pytest
import torch
from sklearn.calibration import calibration_curve

from components.evaluate.calibration import Bin, calibration_error, fill_bins


def test_bins_and_error_by_hand() -> None:
    # Two bins: (0, 0.5] with 0.4 right and 0.5 wrong, (0.5, 1] with 0.9 right, 0.7 right, 0.8 wrong.
    bins = fill_bins(torch.tensor([0.4, 0.5, 0.9, 0.7, 0.8]), torch.tensor([True, False, True, True, False]), bins=2)
    assert bins == [
        Bin(lower=0.0, upper=0.5, rows=2, confidence=pytest.approx(0.45), accuracy=0.5),
        Bin(lower=0.5, upper=1.0, rows=3, confidence=pytest.approx(0.8), accuracy=pytest.approx(2 / 3)),
    ]
    assert calibration_error(bins) == pytest.approx((2 * 0.05 + 3 * (0.8 - 2 / 3)) / 5)


@pytest.mark.parametrize("seed", range(4))
def test_bins_are_those_of_scikit_learn(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(300, generator=generator)
    right = torch.rand(300, generator=generator) < confidence
    bins = fill_bins(confidence, right)
    accuracies, confidences = calibration_curve(right, confidence.double(), n_bins=15)
    assert [one.accuracy for one in bins] == pytest.approx(accuracies)
    assert [one.confidence for one in bins] == pytest.approx(confidences)
    assert sum(one.rows for one in bins) == 300


def test_edges_belong_to_the_bin_below() -> None:
    (one,) = fill_bins(torch.tensor([0.5]), torch.tensor([True]), bins=2)
    assert (one.lower, one.upper) == (0.0, 0.5)
    first, last = fill_bins(torch.tensor([0.0, 1.0]), torch.tensor([True, True]))
    assert (first.lower, last.upper) == (0.0, 1.0)


def test_a_calibrated_model_is_near_zero_and_a_sure_wrong_one_near_one() -> None:
    generator = torch.Generator().manual_seed(0)
    confidence = 0.5 + torch.rand(20_000, generator=generator) / 2
    right = torch.rand(20_000, generator=generator) < confidence
    honest, boastful = (calibration_error(fill_bins(c, right)) for c in (confidence, torch.ones(20_000)))
    assert honest is not None
    assert honest < 0.02
    assert boastful == pytest.approx(1 - float(right.double().mean()))
    assert calibration_error(fill_bins(torch.ones(5), torch.zeros(5, dtype=torch.bool))) == 1


def test_no_rows_have_no_error() -> None:
    assert fill_bins(torch.empty(0), torch.empty(0, dtype=torch.bool)) == []
    assert calibration_error([]) is None
