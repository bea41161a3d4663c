"""Classifiers: building, growing the head, features, saving; torchvision bodies behind the same two parts."""

import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from components.core.datasets import Pixels
from components.core.errors import ConfigurationError, IntegrityError
from components.core.models import (
    Classifier,
    Features,
    ModelSpec,
    build_classifier,
    extract_features,
    grow_head,
    load_classifier,
    save_classifier,
)
from components.core.pixel_statistics import pixel_statistics
from components.core.registry import Registry
from components.core.storage import DirectoryStore

pytestmark = pytest.mark.usefixtures("one_thread")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spec(architecture: str = "small-cnn", channels: int = 1, size: int = 16, classes: str = "abc") -> ModelSpec:
    return ModelSpec(
        architecture=architecture,
        classes=tuple(classes),
        image_size=size,
        channels=channels,
        mean=(0.4,) * channels,
        std=(0.3,) * channels,
    )


def images(rows: int, channels: int = 1, size: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (rows, channels, size, size), dtype=torch.uint8, generator=seeded(seed))


@pytest.fixture
def model() -> Classifier:
    """A small network whose batch norm has seen data, in evaluation mode."""
    built = build_classifier(spec(), seeded(0))
    built.train()
    with torch.no_grad():
        built(images(32))
    return built.eval()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [4, 16, 64])
def test_small_cnn_gives_logits_for_small_images(channels: int, size: int) -> None:
    built = build_classifier(spec(channels=channels, size=size), seeded(0)).eval()
    logits = built(images(5, channels, size))
    assert (logits.shape, logits.dtype) == ((5, 3), torch.float32)
    assert built.embed(images(5, channels, size)).shape == (5, 64)


def test_small_cnn_has_about_eighty_thousand_weights(model: Classifier) -> None:
    assert 70_000 < sum(p.numel() for p in model.parameters()) < 90_000


def test_input_is_scaled_and_normalised_as_the_spec_says() -> None:
    class Recorder(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    recorder = Classifier(spec(size=1), Recorder(), 1)
    # (255 / 255 - 0.4) / 0.3 = 2 and (0 - 0.4) / 0.3 = -4/3.
    seen = recorder.embed(torch.tensor([255, 0], dtype=torch.uint8).reshape(2, 1, 1, 1))
    assert seen.flatten().tolist() == pytest.approx([2.0, -4 / 3])
    # Each channel by its own: (1 - 0) / 1, (1 - 0.5) / 0.5, (1 - 0.25) / 0.25.
    coloured = spec(size=1, channels=3).model_copy(update={"mean": (0.0, 0.5, 0.25), "std": (1.0, 0.5, 0.25)})
    seen = Classifier(coloured, Recorder(), 3).embed(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8))
    assert seen.flatten().tolist() == pytest.approx([1.0, 1.0, 3.0])


def test_the_normalisation_is_of_the_spec_and_not_among_the_weights(model: Classifier) -> None:
    assert not {"mean", "std"} & set(model.state_dict())


def test_one_seed_gives_one_network() -> None:
    first, second, other = (build_classifier(spec(), seeded(s)).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    build_classifier(spec(), seeded(1))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("architecture", "width"), [("resnet18", 512), ("mobilenet_v3_small", 1024)])
def test_torchvision_bodies_give_logits(architecture: str, width: int, channels: int) -> None:
    built = build_classifier(spec(architecture, channels, 32), seeded(0)).eval()
    with torch.inference_mode():
        assert built(images(2, channels, 32)).shape == (2, 3)
    features = extract_features(built, [images(2, channels, 32)])
    assert features.embeddings.shape == (2, width)
    built.train()(images(2, channels, 32)).sum().backward()
    assert built.head.weight.grad is not None


@pytest.mark.parametrize("channels", [1, 3])
def test_vision_transformer_gives_logits(channels: int) -> None:
    built = build_classifier(spec("vit_b_16", channels, 224), seeded(0)).eval()
    with torch.inference_mode():
        assert built(images(1, channels, 224)).shape == (1, 3)


def test_vision_transformer_takes_the_configured_size_or_says_why_not() -> None:
    try:
        built = build_classifier(spec("vit_b_16", 3, 32), seeded(0)).eval()
    except ConfigurationError as error:
        assert "image_size" in str(error)  # noqa: PT017  # either answer is right
        return
    with torch.inference_mode():
        assert built(images(1, 3, 32)).shape == (1, 3)


@pytest.mark.parametrize("architecture", ["squeezenet1_0", "inception_v3"])
def test_a_network_without_one_linear_head_is_refused(architecture: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torchvision's, on inception's initialisation
        with pytest.raises(ConfigurationError, match=rf"training.architecture '{architecture}' does not end in"):
            build_classifier(spec(architecture), seeded(0))


def test_googlenet_can_be_trained_or_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torchvision's, on the initialisation
        try:
            built = build_classifier(spec("googlenet", 3, 64), seeded(0))
        except ConfigurationError:
            return
    assert built.train()(images(2, 3, 64)).shape == (2, 3)


@pytest.mark.parametrize("architecture", ["resnet19", "", "fcn_resnet50", "quantized_resnet18"])
def test_an_unknown_architecture_is_refused(architecture: str) -> None:
    with pytest.raises(ConfigurationError, match=r"training\.architecture") as caught:
        build_classifier(spec(architecture), seeded(0))
    assert "small-cnn" in caught.value.expected
    assert "resnet18" in caught.value.expected


def test_a_grown_head_keeps_the_old_rows_bit_for_bit(model: Classifier) -> None:
    grown = grow_head(model, ["b", "x", "a", "y"], seeded(5))
    assert grown.spec.classes == ("a", "b", "c", "x", "y")
    old, new = model.state_dict(), grown.state_dict()
    assert torch.equal(new["head.weight"][:3], old["head.weight"])
    assert torch.equal(new["head.bias"][:3], old["head.bias"])
    assert all(torch.equal(new[name], old[name]) for name in old if not name.startswith("head."))
    assert torch.equal(new["head.bias"][3:], torch.zeros(2))
    assert bool((new["head.weight"][3:] != 0).any())


def test_a_grown_head_answers_as_before_on_old_classes(model: Classifier) -> None:
    grown = grow_head(model, "abcx", seeded(5)).eval()
    assert torch.allclose(grown(images(9))[:, :3], model(images(9)), atol=1e-6)


def test_growing_leaves_the_champion_untouched(model: Classifier) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    grown = grow_head(model, "abcx", seeded(5))
    with torch.no_grad():
        for tensor in grown.state_dict().values():
            tensor.zero_()
    assert model.spec.classes == ("a", "b", "c")
    assert model.head.out_features == 3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_growing_by_nothing_is_a_copy(model: Classifier) -> None:
    copy = grow_head(model, ["c", "a"], seeded(5)).eval()
    assert copy is not model
    assert copy.spec == model.spec
    assert torch.equal(copy(images(4)), model(images(4)))


def test_features_do_not_depend_on_the_batch_size(model: Classifier) -> None:
    whole, parts = (extract_features(model, images(7).split(size)) for size in (7, 3))
    assert torch.allclose(whole.embeddings, parts.embeddings, atol=1e-5)
    assert torch.allclose(whole.early, parts.early, atol=1e-5)
    assert torch.allclose(whole.probabilities, parts.probabilities, atol=1e-5)
    assert torch.allclose(whole.pixels, parts.pixels, atol=1e-5)


def test_features_have_the_shapes_they_promise(model: Classifier) -> None:
    features = extract_features(model, images(7).split(4))
    assert features.embeddings.shape == (7, 64)
    assert features.early.shape == (7, 2 * 16)
    assert features.probabilities.shape == (7, 3)
    assert torch.allclose(features.probabilities.sum(1), torch.ones(7))
    assert torch.equal(features.pixels, pixel_statistics(images(7)))
    assert {tensor.dtype for tensor in vars(features).values()} == {torch.float32}


def test_a_subset_of_features_is_of_the_same_rows(model: Classifier) -> None:
    features = extract_features(model, images(7).split(4))
    some = features.subset(torch.tensor([6, 0, 0]))
    for name, rows in vars(some).items():
        assert torch.equal(rows, getattr(features, name)[[6, 0, 0]])


def test_features_that_are_kept_lose_only_what_half_precision_cannot_hold(model: Classifier) -> None:
    features = extract_features(model, images(7).split(4))
    kept = Features.from_tensors(features.tensors())
    assert features.tensors()["embeddings"].dtype == torch.float16
    assert torch.allclose(kept.embeddings, features.embeddings, rtol=1e-3, atol=1e-6)
    for name in ("early", "probabilities", "pixels"):
        assert torch.equal(getattr(kept, name), getattr(features, name))


def test_embeddings_that_are_too_large_to_be_kept_stay_finite(model: Classifier) -> None:
    features = extract_features(model, [images(3)])
    large = dataclasses.replace(features, embeddings=1e6 * torch.tensor([[1.0], [-1.0], [0.0]]))
    assert Features.from_tensors(large.tensors()).embeddings.flatten().tolist() == [65504.0, -65504.0, 0.0]


def test_batches_are_taken_one_at_a_time(model: Classifier) -> None:
    events: list[str] = []

    def batches() -> Iterator[torch.Tensor]:
        for batch in images(7).split(3):
            events.append(f"asked for {len(batch)}")
            yield batch

    hook = model.body.register_forward_pre_hook(lambda _, inputs: events.append(f"saw {len(inputs[0])}"))
    extract_features(model, batches())
    hook.remove()
    assert events == ["asked for 3", "saw 3", "asked for 3", "saw 3", "asked for 1", "saw 1"]


def test_features_of_pixels_on_disk_are_those_of_the_tensor(model: Classifier) -> None:
    stored = Pixels([images(4), images(3, seed=1)], torch.tensor([6, 0, 5, 0, 2]))
    tensor = torch.cat([images(4), images(3, seed=1)])[[6, 0, 5, 0, 2]]
    lazy, plain = extract_features(model, stored.batches(2)), extract_features(model, tensor.split(2))
    assert torch.equal(lazy.embeddings, plain.embeddings)
    assert torch.equal(lazy.early, plain.early)
    assert torch.equal(lazy.probabilities, plain.probabilities)
    assert torch.equal(lazy.pixels, plain.pixels)


def test_early_features_are_mean_and_deviation_of_the_first_convolution(model: Classifier) -> None:
    batch = images(3)
    first = next(m for m in model.body.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad():
        maps = first((batch.float() / 255 - 0.4) / 0.3)
    early = extract_features(model, [batch]).early
    assert float(early[1, 5]) == pytest.approx(float(maps[1, 5].mean()), abs=1e-5)
    assert float(early[1, 16 + 5]) == pytest.approx(float(maps[1, 5].var(correction=0).sqrt()), abs=1e-5)


def test_features_leave_batch_norm_and_hooks_as_they_were(model: Classifier) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    extract_features(model, images(7).split(4))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(not m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("architecture", ["small-cnn", "mobilenet_v3_small"])
def test_a_saved_classifier_gives_identical_logits(tmp_path: Path, architecture: str) -> None:
    built = build_classifier(spec(architecture, 3, 32), seeded(0))
    with torch.no_grad():
        built.train()(images(8, 3, 32))
    registry = Registry(DirectoryStore(tmp_path / "store"), "classifier")
    loaded = load_classifier(registry, registry.save_version(save_classifier(built)))
    assert loaded.spec == built.spec
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(images(4, 3, 32, seed=1)), built.eval()(images(4, 3, 32, seed=1)))


def test_saving_twice_is_one_version(tmp_path: Path, model: Classifier) -> None:
    registry = Registry(DirectoryStore(tmp_path / "store"), "classifier")
    assert registry.save_version(save_classifier(model)) == registry.save_version(save_classifier(model))


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_tampered_file_is_not_loaded(tmp_path: Path, model: Classifier, name: str) -> None:
    registry = Registry(DirectoryStore(tmp_path / "store"), "classifier")
    version = registry.save_version(save_classifier(model))
    path = tmp_path / "store" / "models" / "classifier" / "versions" / version / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(IntegrityError, match=name):
        load_classifier(registry, version)
