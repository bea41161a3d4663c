"""Logistic regression on features: scikit-learn's answer, whatever the scale, and what has no finite answer."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional

from components.train.logistic import fit_logistic

pytestmark = pytest.mark.usefixtures("one_thread")


def digits(rows: int = 400, classes: int = 10) -> tuple[Tensor, Tensor]:
    bunch = load_digits(n_class=classes)
    return torch.from_numpy(bunch.data[:rows]).float() / 16, torch.from_numpy(bunch.target[:rows]).long()


def fitted(features: Tensor, labels: Tensor, l2: float, classes: int = 10, **options: object) -> nn.Linear:
    head = nn.Linear(features.shape[1], classes)
    fit_logistic(head, features, labels, l2=l2, iterations=1000, **options)  # type: ignore[arg-type]
    return head


def probabilities(head: nn.Linear, features: Tensor) -> Tensor:
    with torch.no_grad():
        return head(features).double().softmax(1)


def objective(head: nn.Linear, features: Tensor, labels: Tensor, l2: float) -> float:
    with torch.no_grad():
        logits = features.double() @ head.weight.double().T + head.bias.double()
        return float(functional.cross_entropy(logits, labels) + l2 / 2 * head.weight.double().square().sum())


def sklearns(features: Tensor, labels: Tensor, l2: float, weights: dict[int, float] | None = None) -> Tensor:
    model = LogisticRegression(C=1 / (len(labels) * l2), tol=1e-10, max_iter=5000, class_weight=weights)
    model.fit(features.double().numpy(), labels.numpy())
    return torch.from_numpy(model.predict_proba(features.double().numpy()))


@pytest.mark.parametrize("l2", [1e-1, 1e-2, 1e-3])
def test_probabilities_are_those_of_scikit_learn(l2: float) -> None:
    features, labels = digits()
    found = probabilities(fitted(features, labels, l2), features)
    torch.testing.assert_close(found, sklearns(features, labels, l2), atol=1e-4, rtol=0)


def test_weighted_probabilities_are_those_of_scikit_learn() -> None:
    features, labels = digits(classes=3)
    weights = torch.tensor([5.0, 1.0, 0.2])
    head = fitted(features, labels, 1e-2, classes=3, weights=weights)
    expected = sklearns(features, labels, 1e-2, dict(enumerate(weights.tolist())))
    torch.testing.assert_close(probabilities(head, features), expected, atol=1e-4, rtol=0)


def test_where_the_head_starts_does_not_matter() -> None:
    features, labels = digits()
    heads = [nn.Linear(64, 10), nn.Linear(64, 10)]
    nn.init.constant_(heads[1].weight, 100.0)
    for head in heads:
        fit_logistic(head, features, labels, l2=1e-2, iterations=1000)
    assert torch.equal(heads[0].weight, heads[1].weight)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_the_scale_of_the_features_does_not_matter_where_the_penalty_follows_it(scale: float) -> None:
    features, labels = digits()
    expected = probabilities(fitted(features, labels, 1e-2), features)
    found = probabilities(fitted(features * scale, labels, 1e-2 * scale**2), features * scale)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_features_of_very_different_scales_are_solved_as_scikit_learn_solves_them() -> None:
    features, labels = digits(classes=3)
    uneven = features * torch.logspace(-2, 2, 64)
    head = fitted(uneven, labels, 1e-2, classes=3)
    assert objective(head, uneven, labels, 1e-2) < 1e-6 + min_by_scikit_learn(uneven, labels, 1e-2)


def min_by_scikit_learn(features: Tensor, labels: Tensor, l2: float) -> float:
    model = LogisticRegression(C=1 / (len(labels) * l2), tol=1e-12, max_iter=20_000, solver="newton-cholesky")
    model.fit(features.double().numpy(), labels.numpy())
    head = nn.Linear(features.shape[1], int(labels.max()) + 1).double()
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(model.coef_))
        head.bias.copy_(torch.from_numpy(model.intercept_))
    return objective(head, features, labels, l2)


def test_features_far_from_zero_are_solved_too() -> None:
    features, labels = digits()
    head = fitted(features + 100.0, labels, 1e-2)
    expected = probabilities(fitted(features, labels, 1e-2), features)
    torch.testing.assert_close(probabilities(head, features + 100.0), expected, atol=1e-3, rtol=0)


def test_a_feature_that_never_changes_changes_nothing() -> None:
    features, labels = digits(classes=3)
    constant = torch.cat([features, torch.full((len(features), 1), 3.7)], 1)
    head = fitted(constant, labels, 1e-2, classes=3)
    expected = probabilities(fitted(features, labels, 1e-2, classes=3), features)
    torch.testing.assert_close(probabilities(head, constant), expected, atol=1e-4, rtol=0)


def test_the_objective_falls_from_the_logarithm_of_the_classes_to_that_of_the_result() -> None:
    features, labels = digits()
    head = nn.Linear(64, 10)
    losses = fit_logistic(head, features, labels, l2=1e-2, iterations=1000)
    assert losses[0] == pytest.approx(np.log(10))
    assert losses[1] == pytest.approx(objective(head, features, labels, 1e-2), abs=1e-6)


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
def test_a_solution_that_is_cut_off_says_its_own_objective(iterations: int) -> None:
    # A line search ends with a point that need not be the last one it looked at.
    features, labels = digits()
    head = nn.Linear(64, 10)
    losses = fit_logistic(head, features, labels, l2=1e-2, iterations=iterations)
    assert losses[1] == pytest.approx(objective(head, features, labels, 1e-2), abs=1e-5)
    assert losses[1] < losses[0]


def test_classes_that_can_be_separated_give_finite_weights_with_and_without_a_penalty() -> None:
    features = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    labels = torch.tensor([0, 0, 1, 1])
    for l2 in (1e-3, 0.0):
        head = fitted(features, labels, l2, classes=2)
        assert bool(head.weight.isfinite().all())
        assert probabilities(head, features).argmax(1).tolist() == [0, 0, 1, 1]
        assert float(probabilities(head, features).max(1).values.min()) > 0.9


def test_one_class_alone_is_answered_everywhere() -> None:
    features, _ = digits(20)
    head = fitted(features, torch.full((20,), 2), 1e-2, classes=3)
    assert bool(head.weight.isfinite().all())
    assert probabilities(head, features).argmax(1).tolist() == [2] * 20


def test_a_class_without_rows_is_never_answered() -> None:
    features, labels = digits(classes=3)
    head = fitted(features, labels, 1e-2, classes=4)
    assert float(probabilities(head, features)[:, 3].max()) < 1e-3
    expected = probabilities(fitted(features, labels, 1e-2, classes=3), features)
    torch.testing.assert_close(probabilities(head, features)[:, :3], expected, atol=1e-3, rtol=0)


def test_one_row_is_enough() -> None:
    head = fitted(torch.tensor([[1.0, 2.0]]), torch.tensor([1]), 1e-2, classes=2)
    assert bool(head.weight.isfinite().all())
    assert int(head(torch.tensor([[1.0, 2.0]])).argmax()) == 1


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_an_error_and_the_head_stays(broken: float) -> None:
    features, labels = digits(20)
    features[3, 5] = broken
    head = nn.Linear(64, 10)
    before = head.weight.detach().clone()
    with pytest.raises(FloatingPointError, match="not finite"):
        fit_logistic(head, features, labels, l2=1e-2, iterations=10)
    assert torch.equal(head.weight.detach(), before)
