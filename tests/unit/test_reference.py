"""The reference sample of a version: what is drawn, what is kept of it, and that what is damaged is not used.

Also a small champion and its images, which the tests of features and of the drift page share.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load as load_tensors
from torch import Tensor
from torch.nn.functional import cross_entropy

from components.core import reference
from components.core.changes import LEAST_ROWS, PREFIX
from components.core.datasets import ImageSet, Pixels
from components.core.errors import IntegrityError
from components.core.models import Classifier, Features, ModelSpec, build_classifier, extract_features
from components.core.reference import build_reference, load_reference
from components.core.registry import Registry
from components.core.storage import DirectoryStore
from components.core.windows import SCHEMA
from tests.unit.conftest import image_row, number_of

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = ("cat", "dog")
TINTS = torch.tensor([[70, 30, 0], [0, 30, 70]])
SPEC = ModelSpec(
    architecture="small-cnn", classes=CLASSES, image_size=8, channels=3, mean=(0.35, 0.35, 0.35), std=(0.2, 0.2, 0.2)
)
FEATURES = tuple(Features.__dataclass_fields__)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(rows: int, seed: int, light: int = 0) -> tuple[Tensor, Tensor]:
    """Noise in the tint of its class: uint8 (rows, 3, 8, 8), and the classes, int64 (rows,). No two look alike."""
    generator = seeded(seed)
    labels = torch.randint(0, 2, (rows,), generator=generator)
    noise = torch.randint(0, 120, (rows, 1, 8, 8), generator=generator)
    return (noise + TINTS[labels][:, :, None, None] + light).to(torch.uint8), labels


@cache
def champion() -> Classifier:
    """A network that tells the tints apart."""
    model = build_classifier(SPEC, seeded(0)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for seed in range(15):
        images, labels = pictures(64, 1000 + seed)
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.eval()


def holdout_of(images: Tensor, labels: Tensor, groups: Sequence[str | None] | None = None) -> ImageSet:
    """Images with rows of the manifest; the name of each ends in its number. None is a near duplicate of another."""
    hashes = np.random.default_rng(0).integers(0, 256, (len(images), 16), dtype=np.uint8)
    given = groups or [None] * len(images)
    rows = [
        image_row(n, CLASSES[label], split="holdout", perceptual_hash=hashes[n].tobytes(), group=given[n])
        for n, label in enumerate(labels.tolist())
    ]
    pixels = Pixels([images], torch.arange(len(images)))
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    return ImageSet(images=pixels, labels=labels, classes=CLASSES, rows=table)


def same_features(found: Features, wanted: Features) -> None:
    """Bit for bit."""
    for name in FEATURES:
        assert getattr(found, name).dtype == torch.float32
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name


def as_kept(features: Features) -> Features:
    """Features with the rounding of what is kept."""
    kept = {name: getattr(features, name) for name in FEATURES}
    return Features(**{**kept, "embeddings": features.embeddings.half().float()})


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(DirectoryStore(tmp_path / "store"), "m")


# --- what is kept


def test_features_labels_and_rows_come_back(registry: Registry) -> None:
    images, labels = pictures(70, 1)
    holdout = holdout_of(images, labels)
    version = registry.save_version(build_reference(champion(), holdout, 32, 0, seeded(0)))
    found = load_reference(registry, version)
    same_features(found.features, as_kept(extract_features(champion(), images.split(32))))
    assert torch.equal(found.labels, labels)
    assert found.labels.dtype == torch.int64
    assert found.rows.equals(holdout.rows)
    assert found.rows.schema.equals(SCHEMA)


def test_embeddings_are_kept_as_float16_and_the_rest_is_not(registry: Registry) -> None:
    files = build_reference(champion(), holdout_of(*pictures(20, 1)), 32, 0, seeded(0))
    tensors = load_tensors(files["reference.safetensors"])
    kinds = {name: tensor.dtype for name, tensor in tensors.items()}
    others = dict.fromkeys((*FEATURES, "labels"), torch.float32)
    assert kinds == {**others, "embeddings": torch.float16, "labels": torch.int64}


def test_embeddings_beyond_float16_stay_finite(registry: Registry) -> None:
    wide = build_classifier(SPEC, seeded(0)).eval()
    with torch.no_grad():
        for name, weight in wide.named_parameters():
            if "path.4.weight" in name:  # the last scale of each block
                weight.fill_(1e6)
    images, labels = pictures(20, 1)
    assert float(extract_features(wide, [images]).embeddings.max()) > torch.finfo(torch.float16).max
    found = load_reference(
        registry, registry.save_version(build_reference(wide, holdout_of(images, labels), 32, 0, seeded(0)))
    )
    assert bool(found.features.embeddings.isfinite().all())


def test_the_files_are_the_same_for_the_same_seed() -> None:
    holdout = holdout_of(*pictures(LEAST_ROWS, 1))
    first, again, other = (build_reference(champion(), holdout, 32, LEAST_ROWS, seeded(seed)) for seed in (0, 0, 1))
    assert set(first) == {"reference.safetensors", "reference.parquet"}
    assert first == again
    assert first != other  # other corruptions
    assert first["reference.parquet"] == other["reference.parquet"]


def test_building_draws_from_its_own_generator_only() -> None:
    before = torch.get_rng_state()
    build_reference(champion(), holdout_of(*pictures(LEAST_ROWS, 1)), 32, LEAST_ROWS, seeded(0))
    assert torch.equal(torch.get_rng_state(), before)


# --- changes


@pytest.mark.parametrize(
    ("rows", "rehearsed"),
    [(LEAST_ROWS - 1, 1000), (LEAST_ROWS + 10, 0), (LEAST_ROWS + 10, LEAST_ROWS - 1), (1, 1000)],
    ids=["few", "unasked", "few-asked", "one"],
)
def test_few_images_are_not_rehearsed(registry: Registry, rows: int, rehearsed: int) -> None:
    files = build_reference(champion(), holdout_of(*pictures(rows, 1)), 32, rehearsed, seeded(0))
    assert not [name for name in load_tensors(files["reference.safetensors"]) if name.startswith(PREFIX)]
    found = load_reference(registry, registry.save_version(files))
    assert found.changes is None
    assert len(found.labels) == len(found.rows) == rows


@pytest.mark.parametrize(("rehearsed", "taken"), [(LEAST_ROWS, LEAST_ROWS), (1000, LEAST_ROWS + 10)])
def test_changes_are_rehearsed_on_as_many_images_as_asked(registry: Registry, rehearsed: int, taken: int) -> None:
    images, labels = pictures(LEAST_ROWS + 10, 1)
    files = build_reference(champion(), holdout_of(images, labels), 32, rehearsed, seeded(0))
    found = load_reference(registry, registry.save_version(files))
    assert len(found.labels) == LEAST_ROWS + 10
    table = found.changes
    assert table is not None
    assert table.baseline.rows == taken
    assert len(table.kinds) == len(table.strengths) == len(table.signatures) == len(table.accuracies)
    assert {"clean", "class-mix"} < set(table.kinds)
    assert bool(table.signatures.isfinite().all())
    assert table.signature(found.features.early, found.features.pixels).shape == table.centre.shape
    clean = table.kinds.index("clean")
    right = extract_features(champion(), [images]).probabilities.argmax(1) == labels
    assert float(table.accuracies[clean]) == pytest.approx(float(right.float().mean()), abs=0.05)


# --- the sample


def draw(monkeypatch: pytest.MonkeyPatch, registry: Registry, holdout: ImageSet, seed: int) -> reference.Reference:
    monkeypatch.setattr(reference, "REFERENCE_ROWS", 20)
    files = build_reference(champion(), holdout, 32, 0, seeded(seed))
    return load_reference(registry, registry.save_version(files))


def numbers(found: reference.Reference) -> list[int]:
    return [number_of(source) for source in found.rows["source"].to_pylist()]


def test_no_more_rows_are_drawn_than_allowed_and_each_is_one_image(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = pictures(70, 1)
    found = draw(monkeypatch, registry, holdout_of(images, labels), 0)
    drawn = numbers(found)
    assert len(drawn) == len(set(drawn)) == 20
    assert drawn == sorted(drawn), "in the order of the holdout"
    assert max(drawn) >= 20, "not the first ones"
    assert torch.equal(found.labels, labels[drawn])
    assert [CLASSES[label] for label in found.labels.tolist()] == found.rows["label"].to_pylist()
    same_features(found.features, as_kept(extract_features(champion(), [images[drawn]])))


def test_the_sample_is_drawn_by_its_seed(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    holdout = holdout_of(*pictures(70, 1))
    first, again, other = (numbers(draw(monkeypatch, registry, holdout, seed)) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_every_row_can_be_drawn(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    holdout = holdout_of(*pictures(40, 1))
    drawn = {number for seed in range(15) for number in numbers(draw(monkeypatch, registry, holdout, seed))}
    assert drawn == set(range(40))  # one is missed with a chance of 40 / 2^15


def test_images_that_belong_together_are_drawn_together(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [f"clip {n // 6}" if n < 36 else None for n in range(70)]
    holdout = holdout_of(*pictures(70, 1), groups)
    for seed in range(8):
        found = draw(monkeypatch, registry, holdout, seed)
        drawn = set(numbers(found))
        assert drawn
        for clip in range(6):
            assert len(drawn & set(range(6 * clip, 6 * clip + 6))) in (0, 6)
        assert 20 <= len(drawn) < 20 + 6, "until there are enough"


def test_one_clip_of_everything_does_not_outgrow_the_sample(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = draw(monkeypatch, registry, holdout_of(*pictures(70, 1), ["clip"] * 70), 0)
    assert len(found.rows) == len(found.labels) == len(found.features.embeddings) == 40


def test_a_champion_of_broken_weights_is_not_rehearsed(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    broken = build_classifier(SPEC, seeded(0)).eval()
    with torch.no_grad():
        broken.head.bias[0] = float("nan")
    holdout = holdout_of(*pictures(LEAST_ROWS, 1))
    with caplog.at_level(logging.WARNING):
        version = registry.save_version(build_reference(broken, holdout, 32, 1000, seeded(0)))
    assert "not finite" in caplog.text
    assert load_reference(registry, version).changes is None


# --- damage


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("name", ["reference.safetensors", "reference.parquet", "manifest.json"])
@pytest.mark.parametrize("damage", [flip, cut, empty, Path.unlink])
def test_a_damaged_file_is_named_and_not_used(registry: Registry, name: str, damage: Callable[[Path], None]) -> None:
    version = registry.save_version(build_reference(champion(), holdout_of(*pictures(20, 1)), 32, 0, seeded(0)))
    damage(Path(registry.store.uri) / "models" / "m" / "versions" / version / name)
    with pytest.raises(IntegrityError, match=name):
        load_reference(registry, version)


def test_a_version_without_a_reference_is_named(registry: Registry) -> None:
    version = registry.save_version({"weights": b"1"})
    with pytest.raises(IntegrityError, match=r"reference\.safetensors is not listed in the manifest"):
        load_reference(registry, version)


def test_a_holdout_without_images_is_an_empty_reference(registry: Registry) -> None:
    """As where "both sides of the split" only warns, and the first window has nothing to hold out."""
    holdout = holdout_of(*pictures(20, 1)).subset(torch.zeros(20, dtype=torch.bool))
    found = load_reference(registry, registry.save_version(build_reference(champion(), holdout, 32, 1000, seeded(0))))
    assert (len(found.labels), len(found.rows), found.changes) == (0, 0, None)
