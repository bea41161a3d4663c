"""The drift report of synthetic windows: quiet, moved, relabelled, half labelled, with new classes, too small."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save as save_tensors
from torch import Tensor
from torch.nn.functional import one_hot

from components.core.config import DriftConfig
from components.core.contracts import DriftReport
from components.core.datasets import ImageSet, Pixels
from components.core.errors import IntegrityError
from components.core.models import Features
from components.core.registry import Registry
from components.core.storage import DirectoryStore
from components.core.windows import SCHEMA, to_parquet
from components.detect_drift.step import Reference, compare, load_reference
from tests.unit.conftest import image_row

CLASSES = ("cat", "dog", "owl")


def sample(
    seed: int, rows: int = 120, shift: float = 0.0, right: float = 0.95, sure: bool | None = None
) -> dict[str, Tensor]:
    """A champion's view of images: labels, features that move by `shift`, answers right with probability `right`.

    It is `sure` of its wrong answers, as of the right ones, unless the images moved: a changed world makes it waver.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % 3
    other = (labels + torch.randint(1, 3, (rows,), generator=generator)) % 3
    answers = torch.where(torch.rand(rows, generator=generator) < right, labels, other)
    wavers = (answers != labels) & (not (shift == 0.0 if sure is None else sure))
    spread = torch.where(wavers, 0.4, 0.7)[:, None]
    return {
        "labels": labels,
        "embeddings": torch.randn(rows, 4, generator=generator) + shift,
        "early": torch.randn(rows, 6, generator=generator) + shift,
        "probabilities": spread * one_hot(answers, 3).float() + (1 - spread) / 3,
        "properties": torch.randn(rows, 3, generator=generator) + shift,
    }


def rows_of(seen: dict[str, Tensor], names: list[str | None]) -> pa.Table:
    """Rows of the manifest that look like the sample."""
    rows = [
        image_row(n, name, mean=mean, std=std, sharpness=sharpness)
        for n, (name, (mean, std, sharpness)) in enumerate(zip(names, seen["properties"].tolist(), strict=True))
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def true_names(seen: dict[str, Tensor]) -> list[str | None]:
    return [CLASSES[i] for i in seen["labels"].tolist()]


def window(seen: dict[str, Tensor], names: list[str | None] | None = None) -> ImageSet:
    """The rows of a window that was seen so; `names` are the labels delivered, by default the true ones."""
    names = true_names(seen) if names is None else names
    blank = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    return ImageSet(
        images=Pixels([blank], torch.zeros(len(names), dtype=torch.int64)),
        labels=torch.tensor([CLASSES.index(name) if name in CLASSES else -1 for name in names], dtype=torch.int64),
        classes=CLASSES,
        rows=rows_of(seen, names),
    )


def features_of(seen: dict[str, Tensor]) -> Features:
    return Features(embeddings=seen["embeddings"], early=seen["early"], probabilities=seen["probabilities"])


def reference(seen: dict[str, Tensor]) -> Reference:
    return Reference(features=features_of(seen), labels=seen["labels"], rows=rows_of(seen, true_names(seen)))


def report(
    seen: dict[str, Tensor], names: list[str | None] | None = None, config: DriftConfig | None = None
) -> DriftReport:
    past = reference(sample(0, rows=200))
    return compare("v1", past, features_of(seen), window(seen, names), config or DriftConfig())


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


def test_labels_that_a_champion_contradicts_with_certainty_are_a_fault_even_where_the_images_moved() -> None:
    found = report(sample(1, shift=2.0, right=0.4, sure=True))
    assert [fault.name for fault in found.faults] == ["wrong-labels"]
    assert set(found.faults[0].examples) <= {image_row(n)["sha256"] for n in range(120)}


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


# --- labels that are still to come


@pytest.mark.parametrize("late", [1, 60, 110])
def test_labels_that_are_still_to_come_are_no_new_class_and_no_change_of_the_classes(late: int) -> None:
    seen = sample(1, right=1.0)
    names = [None if i < late else name for i, name in enumerate(true_names(seen))]
    found = report(seen, names)
    assert (found.word, found.new_classes, found.faults) == ("stable", {}, ())
    assert {view.name for view in found.views} == {"embeddings", "early layers", "softmax", "properties"}
    assert (found.rows, found.window_accuracy) == (120, 1.0)


def test_new_classes_among_late_labels_are_counted_without_them() -> None:
    seen = sample(1)
    names = [None if i < 40 else "bat" if i < 55 else name for i, name in enumerate(true_names(seen))]
    assert report(seen, names).new_classes == {"bat": 15}


def test_images_without_a_label_are_tested_for_drift() -> None:
    found = report(sample(1, shift=2.0), [None] * 120)
    assert found.word == "drifted"
    assert (found.accuracy_drop, found.window_accuracy, found.new_classes) == (None, None, {})


def test_renamed_labels_are_a_fault_where_half_of_them_are_still_to_come() -> None:
    seen = sample(1)
    turned = [None if n % 2 else CLASSES[(i + 1) % 3] for n, i in enumerate(seen["labels"].tolist())]
    assert [fault.name for fault in report(seen, turned).faults] == ["permuted-labels"]


# --- the reference in a version


def files_of(seen: dict[str, Tensor]) -> dict[str, bytes]:
    tensors = {name: seen[name].contiguous() for name in ("embeddings", "early", "probabilities", "labels")}
    rows = to_parquet(rows_of(seen, true_names(seen)))
    return {"reference.safetensors": save_tensors(tensors), "reference.parquet": rows}


def test_a_reference_that_was_saved_is_read_back(tmp_path: Path) -> None:
    seen = sample(3)
    registry = Registry(DirectoryStore(tmp_path / "store"), "m")
    found = load_reference(registry, registry.save_version(files_of(seen)))
    for name in ("embeddings", "early", "probabilities"):
        assert torch.equal(getattr(found.features, name), seen[name])
    assert torch.equal(found.labels, seen["labels"])
    assert found.rows.equals(rows_of(seen, true_names(seen)))
    now = sample(1)
    told = (compare("v1", r, features_of(now), window(now), DriftConfig()) for r in (found, reference(seen)))
    assert len(set(map(str, told))) == 1


@pytest.mark.parametrize("name", ["reference.safetensors", "reference.parquet"])
@pytest.mark.parametrize("tamper", [lambda path: path.write_bytes(path.read_bytes() + b"!"), Path.unlink])
def test_a_tampered_reference_is_named(tmp_path: Path, name: str, tamper: Callable[[Path], object]) -> None:
    registry = Registry(DirectoryStore(tmp_path / "store"), "m")
    version = registry.save_version(files_of(sample(3)))
    tamper(tmp_path / "store" / "models" / "m" / "versions" / version / name)
    with pytest.raises(IntegrityError, match=name):
        load_reference(registry, version)
