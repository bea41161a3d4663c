from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from components.core.changes import CLASS_MIX, CLEAN, Baseline, ChangeTable, rehearse_changes
from components.core.corruptions import corrupt, corruptions_for
from components.core.models import Classifier, Features, ModelSpec, build_classifier, extract_features
from components.detect_drift.naming import NamedChange, name_change

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def scans() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = torch.from_numpy(data.images[order] * 255 / 16).repeat_interleave(2, 1).repeat_interleave(2, 2)
    return images.round().to(torch.uint8)[:, None], torch.from_numpy(data.target[order]).long()


@pytest.fixture(scope="module")
def champion() -> Classifier:
    """Without training: names come from pixels and the first layer."""
    spec = ModelSpec(
        architecture="small-cnn",
        classes=tuple("0123456789"),
        image_size=16,
        channels=1,
        mean=(0.5,),
        std=(0.5,),
    )
    return build_classifier(spec, torch.Generator().manual_seed(0)).eval()


@pytest.fixture(scope="module")
def table(champion: Classifier, scans: tuple[Tensor, Tensor]) -> ChangeTable:
    known = scans[1][:1000] != 9
    return rehearse_changes(champion, scans[0][:1000][known], scans[1][:1000][known], torch.Generator().manual_seed(0))


def small_table() -> ChangeTable:
    """Two columns, one of early and one of pixel statistics; unit variance, mean 0."""
    baseline = Baseline(
        rows=100,
        accuracy=0.9,
        mean_confidence=0.9,
        thresholds=torch.zeros(2),
        probabilities=torch.ones(2),
        predictions=torch.ones(2),
        agreement=torch.ones(2),
    )
    return ChangeTable(
        kinds=(CLEAN, "blur", "noise", CLASS_MIX),
        strengths=torch.tensor([0.0, 0.5, 0.5, 0.0]),
        signatures=torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 2.0], [-1.0, -1.0]]),
        summaries=torch.zeros(4, 8),
        accuracies=torch.zeros(4),
        baseline=baseline,
        centre=torch.zeros(2),
        whitening=torch.eye(2),
    )


def window(early: float, pixels: float, rows: int = 100) -> tuple[Tensor, Tensor]:
    return torch.full((rows, 1), early), torch.full((rows, 1), pixels)


def test_nearest_kind_by_hand() -> None:
    # (0.9, 0.3) to the power of 0.7 is (0.929, 0.430), length 1.024: cosine 0.907 with blur, 0.42 with noise.
    named = name_change(small_table(), *window(0.9, 0.3), reduced=False)
    assert named is not None
    assert (named.kind, round(named.likeness, 3)) == ("blur", 0.907)
    assert name_change(small_table(), *window(0.0, 5.0), reduced=False) == NamedChange(kind="noise", likeness=1.0)


def test_between_two_kinds_there_is_no_name() -> None:
    assert name_change(small_table(), *window(0.7, 0.7), reduced=False) is None  # cosine 0.71 with both


def test_opposite_of_a_kind_is_not_that_kind() -> None:
    assert name_change(small_table(), *window(1.0, -2.0), reduced=False) is None


def test_other_shares_of_classes_have_no_name() -> None:
    assert name_change(small_table(), *window(-1.0, -0.9), reduced=False) is None


def test_what_chance_explains_has_no_name() -> None:
    # Squares' mean s^2 / 2 times 100 * 100 / 200 = 25 s^2: 1.5 at s = 0.245.
    assert name_change(small_table(), *window(0.24, 0.0), reduced=False) is None
    assert name_change(small_table(), *window(0.25, 0.0), reduced=False) is not None
    assert name_change(small_table(), *window(0.0, 0.0), reduced=False) is None


def test_few_rows_have_no_name() -> None:
    assert name_change(small_table(), *window(9.0, 0.0, rows=19), reduced=False) is None
    assert name_change(small_table(), *window(9.0, 0.0, rows=20), reduced=False) is not None
    assert name_change(small_table(), *window(9.0, 0.0, rows=0), reduced=False) is None


def test_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        name_change(small_table(), *window(float("nan"), 0.0), reduced=False)
    with pytest.raises(ValueError, match="expected"):
        name_change(small_table(), torch.zeros(50, 2), torch.zeros(50, 1), reduced=False)


def name_of(table: ChangeTable, features: Features) -> str | None:
    named = name_change(table, features.early, features.pixels, reduced=False)
    return named and named.kind


def test_changes_of_real_images_are_named(
    champion: Classifier, scans: tuple[Tensor, Tensor], table: ChangeTable
) -> None:
    generator = torch.Generator().manual_seed(1)
    pool = scans[0][1000:]
    right = []
    for kind in corruptions_for(1):
        for strength in (0.35, 0.5, 0.8):  # between those rehearsed, and beside them
            images = pool[torch.randperm(len(pool), generator=generator)[:200]]
            features = extract_features(champion, [corrupt(kind, images, strength, generator)])
            right.append(name_of(table, features) == kind)
    assert np.mean(right) >= 0.9  # of 39; benchmarks/drift_severity.py has the claim


def test_windows_without_a_change_have_no_name(
    champion: Classifier, scans: tuple[Tensor, Tensor], table: ChangeTable
) -> None:
    generator = torch.Generator().manual_seed(2)
    pool = scans[0][1000:]
    seen = extract_features(champion, [pool])
    for _ in range(20):
        clean = torch.randperm(len(pool), generator=generator)[:200]
        assert name_of(table, seen.subset(clean)) is None
    for favoured in range(9):
        weights = torch.where(scans[1][1000:] == favoured, 10.0, 1.0)
        mixed = torch.multinomial(weights, 200, replacement=False, generator=generator)
        assert name_of(table, seen.subset(mixed)) is None


def test_what_arrives_with_fewer_pixels_has_lost_resolution_and_what_does_not_is_blurred() -> None:
    table = replace(small_table(), kinds=tuple({"noise": "resolution"}.get(kind, kind) for kind in small_table().kinds))
    assert "resolution" in table.kinds
    for reduced, kind in ((True, "resolution"), (False, "blur")):
        named = name_change(table, *window(0.0, 5.0), reduced=reduced)
        assert named is not None
        assert named.kind == kind
