from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from components.core.changes import CLASS_MIX, CLEAN, Baseline, ChangeTable, rehearse_changes, summarise_confidence
from components.core.corruptions import corrupt, corruptions_for
from components.core.models import Classifier, Features, ModelSpec, build_classifier, extract_features
from components.core.recipes import LoopConfig
from components.detect_drift.severity import SeverityEstimate, _groups, _Regression, _weighted_quantile, estimate_drop
from components.train.loop import fit

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def scans() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = torch.from_numpy(data.images[order] * 255 / 16).round().to(torch.uint8)[:, None]
    return images, torch.from_numpy(data.target[order]).long()


@pytest.fixture(scope="module")
def champion(scans: tuple[Tensor, Tensor]) -> Classifier:
    torch.set_num_threads(1)
    spec = ModelSpec(
        architecture="small-cnn",
        classes=tuple("0123456789"),
        image_size=8,
        channels=1,
        mean=(0.5,),
        std=(0.5,),
    )
    generator = torch.Generator().manual_seed(0)
    model = build_classifier(spec, generator).train()
    images, labels = (part[:500] for part in scans)
    fit(model, images, labels, LoopConfig(epochs=12, learning_rate=0.004), batch_size=32, seed=0)
    return model.eval()


@pytest.fixture(scope="module")
def table(champion: Classifier, scans: tuple[Tensor, Tensor]) -> ChangeTable:
    images, labels = (part[500:1000] for part in scans)
    return rehearse_changes(champion, images, labels, torch.Generator().manual_seed(0))


def without(table: ChangeTable, kind: str) -> ChangeTable:
    keep = torch.tensor([name != kind for name in table.kinds])
    kinds = tuple(name for name in table.kinds if name != kind)
    rows = {name: getattr(table, name)[keep] for name in ("strengths", "signatures", "summaries", "accuracies")}
    return replace(table, kinds=kinds, **rows)


def see(champion: Classifier, images: Tensor, labels: Tensor) -> tuple[Features, float]:
    features = extract_features(champion, [images])
    return features, float((features.probabilities.argmax(1) == labels).float().mean())


def estimate(table: ChangeTable, features: Features) -> SeverityEstimate:
    estimated = estimate_drop(table, features.probabilities, features.early, features.pixels)
    assert estimated is not None
    return estimated


def nothing_but(probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A window of these answers to images far from any."""
    return probabilities, torch.full((len(probabilities), 32), 9.0), torch.full((len(probabilities), 15), 9.0)


def test_unchanged_images_lose_nothing(champion: Classifier, scans: tuple[Tensor, Tensor], table: ChangeTable) -> None:
    features, accuracy = see(champion, scans[0][1000:], scans[1][1000:])
    estimated = estimate(table, features)
    assert abs(estimated.drop) < 0.03
    assert estimated.interval.lower <= table.baseline.accuracy - accuracy <= estimated.interval.upper


def test_loss_by_kinds_that_were_not_rehearsed_is_seen(
    champion: Classifier, scans: tuple[Tensor, Tensor], table: ChangeTable
) -> None:
    errors: dict[str, list[float]] = {"ours": [], "thresholded confidence": [], "no drop": []}
    for kind in corruptions_for(1):
        for strength in (0.25, 0.75):
            images = corrupt(kind, scans[0][1000:], strength, torch.Generator().manual_seed(1))
            features, accuracy = see(champion, images, scans[1][1000:])
            true = table.baseline.accuracy - accuracy
            errors["ours"].append(abs(estimate(without(table, kind), features).drop - true))
            confidence = float(summarise_confidence(features.probabilities, table.baseline)[0])
            errors["thresholded confidence"].append(abs(table.baseline.accuracy - confidence - true))
            errors["no drop"].append(abs(true))
    mean = {name: float(np.mean(values)) for name, values in errors.items()}
    assert mean["ours"] < 0.1, mean
    assert mean["ours"] < 0.7 * mean["thresholded confidence"] < 0.7 * mean["no drop"], mean


def test_other_shares_of_the_classes_lose_little(
    champion: Classifier, scans: tuple[Tensor, Tensor], table: ChangeTable
) -> None:
    few = torch.isin(scans[1], torch.tensor([0, 3]))
    few[:1000] = False
    features, accuracy = see(champion, scans[0][few], scans[1][few])
    estimated = estimate(table, features)
    assert estimated.interval.lower <= table.baseline.accuracy - accuracy <= estimated.interval.upper


def test_fewer_images_are_less_certain(champion: Classifier, scans: tuple[Tensor, Tensor], table: ChangeTable) -> None:
    images = corrupt("blur", scans[0][1000:], 0.8, torch.Generator().manual_seed(1))
    features = extract_features(champion, [images])
    many, few = estimate(table, features), estimate(table, features.subset(torch.arange(40)))
    assert few.interval.upper - few.interval.lower > many.interval.upper - many.interval.lower


def test_drop_stays_where_an_accuracy_can_be(table: ChangeTable) -> None:
    sure = functional.one_hot(torch.zeros(100, dtype=torch.int64), 10).float()
    unsure = torch.full((100, 10), 0.1)
    for probabilities in (sure, unsure, torch.eye(10).repeat(10, 1)):
        estimated = estimate_drop(table, *nothing_but(probabilities))
        assert estimated is not None
        before = table.baseline.accuracy
        assert before - 1 <= estimated.interval.lower <= estimated.drop <= estimated.interval.upper <= before


def test_too_few_images_cannot_be_told(table: ChangeTable) -> None:
    assert estimate_drop(table, *nothing_but(torch.full((29, 10), 0.1))) is None
    assert estimate_drop(table, *nothing_but(torch.full((30, 10), 0.1))) is not None


def test_champion_of_one_class_cannot_be_told() -> None:
    one = torch.ones(1)
    baseline = Baseline(
        rows=50,
        accuracy=1.0,
        mean_confidence=1.0,
        thresholds=torch.tensor([1.0, 0.0]),
        probabilities=50 * one,
        predictions=50 * one,
        agreement=torch.ones(2),
    )
    table = ChangeTable(
        kinds=(CLEAN,),
        strengths=torch.zeros(1),
        signatures=torch.zeros(1, 2),
        summaries=summarise_confidence(torch.ones(50, 1), baseline)[None],
        accuracies=one,
        baseline=baseline,
        centre=torch.zeros(2),
        whitening=torch.eye(2),
    )
    assert estimate_drop(table, torch.ones(50, 1), torch.ones(50, 1), torch.ones(50, 1)) is None


@pytest.mark.parametrize("probabilities", [torch.full((50, 10), float("nan")), torch.full((50, 9), 1 / 9)])
def test_no_probabilities_are_refused(table: ChangeTable, probabilities: Tensor) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        estimate_drop(table, *nothing_but(probabilities))


def test_regression_learns_a_line_and_shrinks_to_the_mean() -> None:
    inputs = np.linspace(0, 1, 60)[:, None]
    regression = _Regression(inputs, 0.2 + 0.6 * inputs[:, 0])
    assert regression.predict(np.array([[0.25], [0.5], [0.75]])) == pytest.approx([0.35, 0.5, 0.65], abs=0.01)
    constant = _Regression(inputs, np.full(60, 0.7))
    assert constant.predict(np.array([[-5.0], [0.5]])) == pytest.approx([0.7, 0.7])


def test_residuals_are_of_what_was_left_out() -> None:
    inputs = np.repeat([0.0, 0.5, 1.0], 10)[:, None]
    accuracies = np.where(inputs[:, 0] == 0.5, 1.0, 0.0)  # nothing else tells of the middle group
    groups = np.repeat(["a", "b", "c"], 10)
    assert _Regression(inputs, accuracies).residuals(groups)[10:20].min() > 0.5
    alone = np.array([f"{n}" for n in range(30)])  # here nine like it do
    assert np.abs(_Regression(inputs, accuracies).residuals(alone)[10:20]).max() < 0.2


def test_weighted_quantile_by_hand() -> None:
    values = np.array([4.0, 1.0, 3.0, 2.0])
    assert _weighted_quantile(values, np.ones(4), 0.75) == 3.0
    assert _weighted_quantile(values, np.ones(4), 0.76) == 4.0
    assert _weighted_quantile(values, np.array([0.0, 1.0, 0.0, 9.0]), 0.9) == 2.0
    assert _weighted_quantile(values, np.array([0.0, 9.0, 0.0, 1.0]), 0.9) == 1.0


def test_every_class_mix_is_left_out_alone(table: ChangeTable) -> None:
    groups = _groups(table.kinds)
    assert len(set(groups.tolist())) == len(set(table.kinds)) - 1 + table.kinds.count(CLASS_MIX)
