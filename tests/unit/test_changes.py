from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from components.core.changes import (
    CLASS_MIX,
    CLASS_MIXES,
    CLEAN,
    LEAST_ROWS,
    Baseline,
    ChangeTable,
    rehearse_changes,
    summarise_confidence,
)
from components.core.corruptions import corruptions_for
from components.core.models import Classifier, ModelSpec, build_classifier, extract_features
from components.core.pixel_statistics import pixel_statistics

pytestmark = pytest.mark.usefixtures("one_thread")


def classifier(channels: int = 1, classes: int = 3, size: int = 8) -> Classifier:
    spec = ModelSpec(
        architecture="small-cnn",
        classes=tuple(map(str, range(classes))),
        image_size=size,
        channels=channels,
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
    )
    return build_classifier(spec, torch.Generator().manual_seed(0))


def sample(rows: int = 60, channels: int = 1, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (rows, channels, 8, 8), generator=generator, dtype=torch.uint8)
    return images, torch.randint(classes, (rows,), generator=generator)


def rehearse(model: Classifier, images: Tensor, labels: Tensor, seed: int = 0) -> ChangeTable:
    return rehearse_changes(model, images, labels, torch.Generator().manual_seed(seed), strengths=(0.5,))


BASELINE = Baseline(
    rows=4,
    accuracy=0.75,
    mean_confidence=0.8,
    thresholds=torch.tensor([0.75, -0.6]),
    probabilities=torch.tensor([2.0, 2.0]),
    predictions=torch.tensor([2.0, 2.0]),
    agreement=torch.tensor([0.5, 0.5]),
)


def test_confidence_is_summed_up_by_hand() -> None:
    rows = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    summary = summarise_confidence(rows, BASELINE).tolist()
    # Two of three are at least 0.75 sure. Entropies 0.325, 0.500, 0.673 nats: two are at most 0.6.
    # Mean confidence 2.3 / 3: 0.75 - 0.8 + 0.7667.
    assert summary[:3] == pytest.approx([2 / 3, 2 / 3, 0.75 - 0.8 + 2.3 / 3])
    # Pairs: 0.18 + 0.08 = 0.26; 0.54 + 0.04 = 0.58; 0.12 + 0.32 = 0.44. Answers 0, 1, 0: one pair of three agrees.
    assert summary[3:5] == pytest.approx([math.log1p(1.28 / 3 / 0.5), math.log1p(1 / 3 / 0.5)])
    # With a baseline of equal shares every row agrees in half of the cases.
    assert summary[5:7] == pytest.approx([0.5 / math.sqrt(1.28 / 3 * 0.5), 0.5 / math.sqrt(1 / 3 * 0.5)], abs=1e-5)
    assert summary[7] == pytest.approx(1.28 / (0.82 + 0.68 + 0.52))


def test_images_do_not_agree_with_themselves_or_their_twins() -> None:
    # 40 images of 40 classes, one each: no two agree, also not with their own clean answers.
    rows = torch.eye(40)
    baseline = Baseline(
        rows=40,
        accuracy=1.0,
        mean_confidence=1.0,
        thresholds=torch.tensor([1.0, 0.0]),
        probabilities=rows.sum(0),
        predictions=rows.sum(0),
        agreement=torch.full((2,), 0.1 / 40),
    )
    assert summarise_confidence(rows, baseline, rows).tolist() == pytest.approx([1, 1, 1, 0, 0, 0, 0, 0])


@pytest.mark.parametrize(
    "rows",
    [
        torch.tensor([[0.5, 0.5]]),
        torch.full((3, 3), 1 / 3),
        torch.full((3, 2), float("nan")),
        torch.full((3, 2), 0.7),
        torch.tensor([[1.5, -0.5], [0.5, 0.5]]),
    ],
)
def test_no_probabilities_are_refused(rows: Tensor) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        summarise_confidence(rows, BASELINE)


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_of_pixels_by_hand(channels: int) -> None:
    image = torch.zeros(1, channels, 8, 8, dtype=torch.uint8)
    image[..., 4:] = 255  # black left of the middle, white right of it
    values = pixel_statistics(image)[0].tolist()
    assert len(values) == channels + 14
    assert values[:channels] == pytest.approx([0.5] * channels)
    right, below, diagonal, laplacian = values[channels + 1 : channels + 5]
    assert right == pytest.approx(math.log(8 / 56 + 1 / 255))  # one edge in each of eight rows of seven steps
    assert below == pytest.approx(math.log(1 / 255))
    assert diagonal == pytest.approx(math.log(7 / 49 + 1 / 255))
    assert laplacian == pytest.approx(math.log(12 / 36 + 1 / 255))  # +1 and -1 beside the edge, in 6 x 6
    black, white, flat = values[channels + 5 : channels + 8]
    assert (black, white, flat) == pytest.approx((0.5, 0.5, 48 / 56))
    border, middle, largest = values[channels + 8 : channels + 11]
    assert (border, middle, largest) == pytest.approx((0.5, 0.0, 1.0))
    # All stands out alike: the centre is the centre, and the extent that of eight places from -1 to 1: 3 / 7.
    assert values[channels + 11 :] == pytest.approx([0, 3 / 7, 3 / 7], abs=1e-5)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_statistics_of_constant_images_are_finite(value: int) -> None:
    images = torch.full((2, 3, 9, 31), value, dtype=torch.uint8)
    assert bool(pixel_statistics(images).isfinite().all())


@pytest.mark.parametrize("shape", [(2, 1, 7, 9), (2, 2, 9, 9), (0, 1, 9, 9), (1, 9, 9)])
def test_statistics_of_no_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="images"):
        pixel_statistics(torch.zeros(shape, dtype=torch.uint8))


@pytest.mark.parametrize("channels", [1, 3])
def test_rehearsal_has_a_row_for_every_change_and_mix(channels: int) -> None:
    table = rehearse(classifier(channels), *sample(channels=channels))
    kinds = [kind for name in corruptions_for(channels) for kind in (name, name)]  # all images, and half of them
    assert list(table.kinds) == [CLEAN, *kinds, *[CLASS_MIX] * CLASS_MIXES]
    rows, columns = len(table.kinds), 32 + channels + 14
    assert table.strengths.shape == table.accuracies.shape == (rows,)
    assert table.signatures.shape == (rows, columns)
    assert bool(table.signatures.isfinite().all())
    assert bool(table.summaries.isfinite().all())
    assert float(table.accuracies[0]) == pytest.approx(table.baseline.accuracy)


def test_clean_row_looks_like_the_baseline() -> None:
    table = rehearse(classifier(), *sample())
    before = table.baseline.accuracy
    summary = table.summaries[0].tolist()
    assert torch.allclose(table.signatures[0], torch.zeros(()), atol=1e-3)
    assert summary[:3] == pytest.approx([before] * 3, abs=2 / 60)  # thresholds are made so
    assert summary[3:7] == pytest.approx([math.log(2), math.log(2), 1, 1], abs=1e-3)


def test_half_of_the_images_make_half_a_signature() -> None:
    table = rehearse(classifier(), *sample(200))
    whole, half = (table.signatures[n] for n in (1, 2))
    assert table.kinds[1] == table.kinds[2]
    assert float(whole @ half / whole.norm() / half.norm()) > 0.95
    assert float(half.norm() / whole.norm()) == pytest.approx(0.5, abs=0.1)


def test_statistics_are_whitened() -> None:
    model = classifier()
    images, labels = sample(500)
    table = rehearse(model, images, labels)
    features = extract_features(model, [images])
    single = torch.stack([table.signature(features.early[[n]], features.pixels[[n]]) for n in range(500)])
    assert float(single.square().mean()) == pytest.approx(0.75, abs=0.25)  # below 1: the covariance is shrunk
    assert float((single.T.cov() - torch.diag(single.var(0))).abs().max()) < 0.3


def test_same_seed_same_table() -> None:
    first, second = (rehearse(classifier(), *sample(), seed=3).to_tensors() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_table_survives_a_file_with_other_tensors() -> None:
    table = rehearse(classifier(), *sample())
    stored = load(save({**table.to_tensors(), "embeddings": torch.zeros(3)}))
    again = ChangeTable.from_tensors(stored)
    assert again.kinds == table.kinds
    assert again.baseline.accuracy == table.baseline.accuracy
    assert again.baseline.rows == table.baseline.rows
    for name, value in table.to_tensors().items():
        assert torch.equal(again.to_tensors()[name], value)


@pytest.mark.parametrize("missing", ["changes.kinds", "changes.baseline", "changes.summaries", "changes.agreement"])
def test_incomplete_table_is_refused(missing: str) -> None:
    tensors = rehearse(classifier(), *sample()).to_tensors()
    with pytest.raises(ValueError, match="no table of changes"):
        ChangeTable.from_tensors({name: value for name, value in tensors.items() if name != missing})


def test_table_of_a_thousand_classes_is_small() -> None:
    model, (images, _) = classifier(3, 1000), sample(60, 3)
    table = rehearse_changes(model, images, torch.arange(60), torch.Generator().manual_seed(0))
    assert len(save(table.to_tensors())) < 2**19


def test_wide_early_layers_are_thinned_out() -> None:
    images, labels = sample()
    model = classifier()
    first = torch.nn.Conv2d(1, 768, 3)
    model.body = torch.nn.Sequential(first, torch.nn.AdaptiveAvgPool2d(1))
    model.head = torch.nn.Linear(768, 3)
    table = rehearse(model, images, labels)
    assert len(table.centre) == 128 + 15
    features = extract_features(model, [images])
    assert table.signature(features.early, features.pixels).shape == (143,)


def test_one_class_can_be_rehearsed() -> None:
    table = rehearse(classifier(classes=1), sample()[0], torch.zeros(60, dtype=torch.int64))
    assert table.baseline.accuracy == 1.0
    assert bool(table.summaries.isfinite().all())


def test_constant_images_can_be_rehearsed() -> None:
    images = torch.zeros(60, 1, 8, 8, dtype=torch.uint8)
    table = rehearse(classifier(), images, sample()[1])
    assert bool(table.signatures.isfinite().all())


def test_rehearsal_refuses_too_few_images_and_strange_labels() -> None:
    images, labels = sample()
    few = LEAST_ROWS - 1
    for pixels, answers in (
        (images[:few], labels[:few]),
        (images, labels[:-1]),
        (images, labels - 1),
        (images, labels + 1),
    ):
        with pytest.raises(ValueError, match=r"expected|none of"):
            rehearse(classifier(), pixels, answers)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_signature_of_no_numbers_is_refused(value: float) -> None:
    model, (images, labels) = classifier(), sample()
    table = rehearse(model, images, labels)
    features = extract_features(model, [images])
    with pytest.raises(ValueError, match="not finite"):
        table.signature(features.early, torch.full_like(features.pixels, value))
    with pytest.raises(ValueError, match="expected"):
        table.signature(features.early, features.pixels[:, 1:])
    with pytest.raises(ValueError, match="expected"):
        table.signature(features.early[:0], features.pixels[:0])
