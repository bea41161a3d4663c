"""The drift report of synthetic windows: quiet, moved, relabelled, with new classes, and too small to tell."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import one_hot

from components.core.config import DriftConfig
from components.core.contracts import DriftReport
from components.core.datasets import ImageSet
from components.core.models import Features
from components.core.windows import ImageRow
from components.detect_drift.step import compare

CLASSES = ("cat", "dog", "owl")


def sample(seed: int, rows: int = 120, shift: float = 0.0, right: float = 0.95) -> dict[str, Tensor]:
    """A champion's view of images: labels, features that move by `shift`, answers right with probability `right`."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % 3
    other = (labels + torch.randint(1, 3, (rows,), generator=generator)) % 3
    answers = torch.where(torch.rand(rows, generator=generator) < right, labels, other)
    return {
        "labels": labels,
        "embeddings": torch.randn(rows, 4, generator=generator) + shift,
        "early": torch.randn(rows, 6, generator=generator) + shift,
        "probabilities": 0.7 * one_hot(answers, 3).float() + 0.1,
        "properties": torch.randn(rows, 3, generator=generator) + shift,
    }


def window(seen: dict[str, Tensor], names: list[str] | None = None) -> ImageSet:
    """The rows of a window that was seen so; `names` are the labels delivered, by default the true ones."""
    names = names or [CLASSES[i] for i in seen["labels"].tolist()]
    row = ImageRow(
        sha256="0" * 64,
        label="",
        group=None,
        status="ok",
        split="train",
        width=8,
        height=8,
        channels=1,
        format="PNG",
        bytes=1,
        mean=None,
        std=None,
        sharpness=None,
        source="",
    )
    rows = [
        replace(row, label=name, mean=mean, std=std, sharpness=sharpness)
        for name, (mean, std, sharpness) in zip(names, seen["properties"].tolist(), strict=True)
    ]
    return ImageSet(
        images=torch.zeros(len(rows), 1, 8, 8, dtype=torch.uint8),
        labels=torch.tensor([CLASSES.index(name) if name in CLASSES else -1 for name in names], dtype=torch.int64),
        classes=CLASSES,
        rows=tuple(rows),
    )


def report(seen: dict[str, Tensor], names: list[str] | None = None, config: DriftConfig | None = None) -> DriftReport:
    features = Features(embeddings=seen["embeddings"], early=seen["early"], probabilities=seen["probabilities"])
    return compare("v1", sample(0, rows=200), features, window(seen, names), config or DriftConfig())


def test_the_same_world_is_stable() -> None:
    found = report(sample(1))
    assert found.word == "stable"
    assert found.accuracy_drop == pytest.approx(0, abs=0.06)
    assert (found.new_classes, found.faults) == ({}, ())
    assert {view.name for view in found.views} == {"embeddings", "early layers", "softmax", "properties", "labels"}


@pytest.mark.parametrize("right", [0.9, 0.4])
def test_moved_images_are_drift_and_no_fault(right: float) -> None:
    found = report(sample(1, shift=2.0, right=right))
    assert found.word == "drifted"
    assert found.faults == ()


def test_a_drop_is_measured_against_the_reference() -> None:
    found = report(sample(1, shift=2.0, right=0.4))
    assert found.accuracy_drop is not None
    assert found.accuracy_drop_interval is not None
    assert found.reference_accuracy is not None
    assert found.window_accuracy is not None
    assert found.accuracy_drop == pytest.approx(found.reference_accuracy - found.window_accuracy)
    assert 0.3 < found.accuracy_drop_interval.lower < found.accuracy_drop < 0.8


def test_renamed_labels_are_a_fault() -> None:
    seen = sample(1)
    turned = [CLASSES[(i + 1) % 3] for i in seen["labels"].tolist()]
    found = report(seen, turned)
    assert found.word == "broken"
    assert [fault.name for fault in found.faults] == ["permuted-labels"]


def test_wrong_labels_on_the_same_images_are_a_fault() -> None:
    seen = sample(1)
    draw = torch.randint(0, 3, (120,), generator=torch.Generator().manual_seed(5)).tolist()
    found = report(seen, [CLASSES[i] for i in draw])
    assert [fault.name for fault in found.faults] == ["wrong-labels"]


def test_classes_that_the_champion_does_not_know_are_counted_and_do_not_lower_its_accuracy() -> None:
    seen = sample(1, right=1.0)
    names = ["bat" if i < 30 else CLASSES[label] for i, label in enumerate(seen["labels"].tolist())]
    found = report(seen, names)
    assert found.word == "new-classes"
    assert found.new_classes == {"bat": 30}
    assert found.window_accuracy == 1.0
    assert {view.name: view.p_value for view in found.views}["labels"] <= 0.01


def test_a_window_of_new_classes_only_has_no_accuracy() -> None:
    found = report(sample(1), ["bat"] * 120)
    assert found.word == "new-classes"
    assert (found.accuracy_drop, found.window_accuracy) == (None, None)
    assert found.p_value is not None


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_rows_give_a_report_without_figures(rows: int) -> None:
    found = report(sample(1, rows=rows))
    assert found.word == "stable"
    assert (found.rows, found.p_value, found.accuracy_drop, found.views) == (rows, None, None, ())


def test_the_report_is_the_same_twice() -> None:
    assert report(sample(1)) == report(sample(1))


def test_more_rows_than_the_limit_are_sampled() -> None:
    found = report(sample(1, rows=300, shift=2.0), config=DriftConfig(max_rows=50))
    assert (found.rows, found.word) == (300, "drifted")


@pytest.mark.parametrize(("alpha", "permutations"), [(0.01, 499), (0.05, 99), (0.01, 99), (0.005, 499), (0.01, 199)])
def test_a_window_that_moved_beyond_doubt_is_drift_under_every_configuration_that_is_accepted(
    alpha: float, permutations: int
) -> None:
    # With few permutations each view's most extreme one ties with the observation at 1 / (B + 1), so the combined
    # p-value cannot fall below views / (B + 1): either the configuration is refused, or the test can still see.
    try:
        config = DriftConfig(alpha=alpha, permutations=permutations)
    except ValidationError:
        return
    found = report(sample(1, shift=6.0, right=0.4), config=config)
    assert found.drifted
    assert found.faults == ()
