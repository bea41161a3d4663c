"""Classifiers: building, growing the head, features, saving; torchvision bodies behind the same two parts."""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as save_tensors
from torch import nn

from components.core.architectures import Normalisation
from components.core.config import TrainingConfig
from components.core.datasets import Pixels
from components.core.errors import ConfigurationError, IntegrityError
from components.core.models import (
    Classifier,
    Features,
    ModelSpec,
    build_classifier,
    check_architecture,
    extract_features,
    grow_head,
    load_classifier,
    load_pretrained,
    save_classifier,
    stages,
    trainable_from,
    with_image_size,
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
    assert {name.partition(".")[0] for name in model.state_dict()} == {"body", "head"}


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


def auxiliary(architecture: str, classes: str = "abc") -> Classifier:
    return build_classifier(spec(architecture, 3, 299 if architecture == "inception_v3" else 64, classes), seeded(0))


@pytest.mark.parametrize(("architecture", "heads"), [("googlenet", 3), ("inception_v3", 2), ("small-cnn", 1)])
def test_auxiliary_heads_answer_in_training_only_and_after_the_main_one(architecture: str, heads: int) -> None:
    built = auxiliary(architecture)
    batch = images(2, 3, built.spec.image_size)
    given = built.train().outputs(batch)
    assert [tuple(one.shape) for one in given] == [(2, 3)] * heads
    assert built.forward(batch).shape == (2, 3)
    torch.stack(given).sum().backward()
    assert all(built.get_parameter(f"{layer}.weight").grad is not None for layer in built.class_layers)
    with torch.inference_mode():
        (only,) = built.eval().outputs(batch)
        assert torch.equal(only, built(batch))


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


def test_auxiliary_heads_grow_too_and_keep_their_old_rows_bit_for_bit() -> None:
    model = auxiliary("googlenet")
    grown = grow_head(model, "xa", seeded(5))
    assert grown.class_layers == ("head", "body.aux1.fc2", "body.aux2.fc2")
    old, new = model.state_dict(), grown.state_dict()
    for layer in grown.class_layers:
        assert new[f"{layer}.weight"].shape[0] == 4
        assert torch.equal(new[f"{layer}.weight"][:3], old[f"{layer}.weight"])
        assert torch.equal(new[f"{layer}.bias"][:3], old[f"{layer}.bias"])
        assert bool((new[f"{layer}.weight"][3] != 0).any())
    assert all(torch.equal(new[n], old[n]) for n in old if n.rpartition(".")[0] not in grown.class_layers)


def config(architecture: str, size: int, channels: int = 3, pretrained: str | None = None) -> TrainingConfig:
    return TrainingConfig(architecture=architecture, image_size=size, channels=channels, pretrained=pretrained)


@pytest.mark.parametrize(
    ("architecture", "size"),
    [("small-cnn", 8), ("resnet18", 32), ("vit_b_16", 48), ("vgg11_bn", 32), ("inception_v3", 299), ("swin_t", 50)],
)
def test_sizes_that_fit_pass_the_check(architecture: str, size: int) -> None:
    check_architecture(config(architecture, size))
    check_architecture(config(architecture, size, channels=1))


@pytest.mark.parametrize(
    ("architecture", "size", "suggested"),
    [
        ("vit_b_16", 50, "32, 64, 128, 224, 256, 384, 448"),
        ("inception_v3", 64, "299, 384, 448"),
        ("alexnet", 32, "64, 128"),
        ("maxvit_t", 256, "224, 448"),
        ("vgg11_bn", 16, "32, 64"),
    ],
)
def test_a_size_that_does_not_fit_is_refused_with_sizes_that_do(architecture: str, size: int, suggested: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"training\.image_size is {size}, and {architecture}") as caught:
        check_architecture(config(architecture, size))
    assert suggested in caught.value.expected


def test_the_check_takes_no_memory_for_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: set[str] = set()
    original = Classifier.outputs

    def note(self: Classifier, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        devices.update(tensor.device.type for tensor in (*self.parameters(), *self.buffers()))
        return original(self, batch)

    monkeypatch.setattr(Classifier, "outputs", note)
    check_architecture(config("regnet_y_128gf", 224))  # 640 million weights
    assert devices == {"meta"}


def test_the_check_refuses_weights_that_do_not_exist() -> None:
    check_architecture(config("resnet18", 32, pretrained="IMAGENET1K_V1"))
    check_architecture(config("resnet18", 32, pretrained="models/other/versions/0"))  # the store is looked at later
    with pytest.raises(ConfigurationError, match=r"training\.pretrained is 'IMAGENET22K'"):
        check_architecture(config("resnet18", 32, pretrained="IMAGENET22K"))
    with pytest.raises(ConfigurationError, match="small-cnn"):
        check_architecture(config("small-cnn", 32, pretrained="DEFAULT"))


def test_a_network_is_not_built_for_a_size_that_it_cannot_have() -> None:
    with pytest.raises(ConfigurationError, match=r"training\.image_size is 50"):
        build_classifier(spec("vit_b_16", 3, 50), seeded(0))


def test_another_size_of_image_leaves_the_weights_of_a_network_that_pools(model: Classifier) -> None:
    resized = with_image_size(model, 32).eval()
    assert resized.spec == model.spec.model_copy(update={"image_size": 32})
    before, after = model.state_dict(), resized.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(resized(images(3, size=32)), model(images(3, size=32)))


def test_a_resized_model_has_its_own_copy_of_every_weight(model: Classifier) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copy = with_image_size(model, model.spec.image_size)
    with torch.no_grad():
        for tensor in copy.state_dict().values():
            tensor.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_another_size_of_image_stretches_the_positions_of_a_vision_transformer() -> None:
    model = build_classifier(spec("vit_b_32", 1, 64), seeded(0))
    resized = with_image_size(model, 96).eval()
    old, new = model.state_dict(), resized.state_dict()
    positions = "body.encoder.pos_embedding"
    assert (old[positions].shape, new[positions].shape) == ((1, 1 + 4, 768), (1, 1 + 9, 768))
    # Class token, and patches whose corners stay in the corners.
    torch.testing.assert_close(new[positions][0, [0, 1, 3, 7, 9]], old[positions][0])
    assert all(torch.equal(new[name], old[name]) for name in old if name != positions)
    with torch.inference_mode():
        assert resized(images(1, 1, 96)).shape == (1, 3)


@pytest.mark.parametrize(("architecture", "size", "other"), [("swin_t", 32, 64), ("maxvit_t", 224, 448)])
def test_networks_with_windows_take_another_size_with_the_same_weights(
    architecture: str, size: int, other: int
) -> None:
    model = build_classifier(spec(architecture, 3, size), seeded(0))
    resized = with_image_size(model, other).eval()
    assert all(torch.equal(resized.state_dict()[name], value) for name, value in model.state_dict().items())
    with torch.inference_mode():
        assert resized(images(1, 3, other)).shape == (1, 3)


def test_a_size_that_the_network_cannot_have_is_refused_for_a_copy_too() -> None:
    model = build_classifier(spec("squeezenet1_1", 3, 64), seeded(0))
    with pytest.raises(ConfigurationError, match=r"training\.image_size is 8, and squeezenet1_1"):
        with_image_size(model, 8)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def digits(classes: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Real images: 8 x 8 scans of some digits, uint8, and their places in `classes`."""
    from sklearn.datasets import load_digits

    found = load_digits()
    shown = torch.tensor(found.images / 16 * 255).to(torch.uint8)[:, None]
    labels = torch.tensor([classes.find(str(label)) for label in found.target])
    return shown[labels >= 0], labels[labels >= 0]


def accuracy(model: Classifier, shown: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.inference_mode():
        return float((model.eval()(shown).argmax(1) == labels).double().mean())


def test_a_version_passes_on_what_it_knows_of_each_class_by_its_name(
    store: DirectoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    source = build_classifier(spec(size=8, classes="01234"), seeded(0)).train()
    shown, labels = digits("01234")
    optimiser = torch.optim.Adam(source.parameters(), 1e-2)
    for _ in range(15):
        optimiser.zero_grad()
        nn.functional.cross_entropy(source(shown), labels).backward()
        optimiser.step()
    version = Registry(store, "digits").save_version(save_classifier(source))
    fresh = build_classifier(spec(size=8, classes="93x1"), seeded(1))
    with caplog.at_level(logging.INFO):
        known = load_pretrained(fresh, f"models/digits/versions/{version}", store)
    assert known == Normalisation(mean=(0.4,), std=(0.3,))
    assert "34 of 34 tensors" in caplog.text
    assert torch.equal(fresh.head.weight[[1, 3]], source.head.weight[[3, 1]])
    assert torch.equal(fresh.head.bias[[1, 3]], source.head.bias[[3, 1]])
    assert fresh.head.bias[[0, 2]].tolist() == [0.0, 0.0]
    assert bool((fresh.head.weight[[0, 2]] != 0).any())
    shown, labels = digits("93x1")
    seen = (labels == 1) | (labels == 3)
    untouched = build_classifier(spec(size=8, classes="93x1"), seeded(1))
    assert accuracy(fresh, shown[seen], labels[seen]) > 0.9
    assert accuracy(untouched, shown[seen], labels[seen]) < 0.7


@pytest.mark.parametrize("form", ["{key}", "{key}/", "{key}/model.safetensors", "{uri}/{key}"])
def test_a_version_is_named_by_key_or_address(model: Classifier, store: DirectoryStore, form: str) -> None:
    version = Registry(store, "classifier").save_version(save_classifier(model))
    fresh = build_classifier(spec(), seeded(9))
    source = form.format(key=f"models/classifier/versions/{version}", uri=store.uri)
    assert load_pretrained(fresh, source, store) is not None
    assert all(torch.equal(fresh.state_dict()[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "body."])
def test_any_file_of_safetensors_gives_its_body_and_nothing_of_its_head(
    model: Classifier, store: DirectoryStore, prefix: str
) -> None:
    weights = {prefix + n: v for n, v in model.body.state_dict().items()}
    store.put("weights/mine.safetensors", save_tensors(weights | {"head.weight": model.head.weight.detach()}))
    fresh = build_classifier(spec(), seeded(9))
    before = fresh.head.weight.detach().clone()
    assert load_pretrained(fresh, "weights/mine.safetensors", store) is None
    assert all(torch.equal(fresh.body.state_dict()[n], value) for n, value in model.body.state_dict().items())
    assert torch.equal(fresh.head.weight, before)


def test_auxiliary_heads_of_equal_shape_take_no_rows_of_other_classes(store: DirectoryStore) -> None:
    source, fresh = auxiliary("googlenet", "abc"), auxiliary("googlenet", "xca")
    version = Registry(store, "m").save_version(save_classifier(source))
    before = fresh.get_parameter("body.aux1.fc2.weight").detach().clone()
    load_pretrained(fresh, f"models/m/versions/{version}", store)
    after, theirs = fresh.get_parameter("body.aux1.fc2.weight"), source.get_parameter("body.aux1.fc2.weight")
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[[1, 2]], theirs[[2, 0]])


def test_weights_for_colours_go_into_a_grey_network_of_another_size(
    store: DirectoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    coloured = spec("resnet18", 3, 64).model_copy(update={"mean": (0.3, 0.6, 0.9), "std": (0.1, 0.2, 0.3)})
    source = build_classifier(coloured, seeded(0))
    version = Registry(store, "m").save_version(save_classifier(source))
    fresh = build_classifier(spec("resnet18", 1, 32, "xyz"), seeded(1))
    with caplog.at_level(logging.INFO):
        known = load_pretrained(fresh, f"models/m/versions/{version}", store)
    assert torch.equal(fresh.body.conv1.weight, source.body.conv1.weight.sum(1, keepdim=True))
    assert known is not None
    assert (*known.mean, *known.std) == pytest.approx((0.6, 0.2))
    assert "120 of 122 tensors" in caplog.text
    assert "fresh: head.weight, head.bias" in caplog.text


def test_weights_come_from_torchvision_by_name(monkeypatch: pytest.MonkeyPatch, store: DirectoryStore) -> None:
    from torchvision.models import get_model, get_model_weights

    published = get_model("mobilenet_v3_small", weights=None).state_dict()
    monkeypatch.setattr(get_model_weights("mobilenet_v3_small"), "get_state_dict", lambda *_, **__: dict(published))
    fresh = build_classifier(spec("mobilenet_v3_small", 3, 32, "ab"), seeded(0))
    head = fresh.head.weight.detach().clone()
    assert load_pretrained(fresh, "IMAGENET1K_V1", store) == Normalisation(
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    assert all(torch.equal(value, published[name]) for name, value in fresh.body.state_dict().items())
    assert torch.equal(fresh.head.weight, head)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("models/classifier/versions/0123", "is not there"),
        ("weights/none.safetensors", "is not there"),
        ("../secret.safetensors", "not a key"),
        ("s3://elsewhere/weights.safetensors", "not a key"),
        ("broken.safetensors", "is no safetensors file"),
        ("other.safetensors", "nothing in"),
        ("DEFAULT", "small-cnn"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(
    model: Classifier, store: DirectoryStore, source: str, found: str
) -> None:
    store.put("broken.safetensors", b"not tensors at all")
    store.put("other.safetensors", save_tensors({"body.0.weight": torch.ones(2, 2)}))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConfigurationError, match=found):
        load_pretrained(model, source, store)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_of_a_version_that_was_tampered_with_are_not_taken(model: Classifier, store: DirectoryStore) -> None:
    version = Registry(store, "m").save_version(save_classifier(model))
    store.put(
        f"models/m/versions/{version}/model.safetensors",
        save_classifier(grow_head(model, "x", seeded(0)))["model.safetensors"],
    )
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        load_pretrained(model, f"models/m/versions/{version}", store)


def learning(model: Classifier) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def test_training_starts_from_a_stage(model: Classifier) -> None:
    assert stages(model) == ("0", "1", "3", "4")
    everything = learning(model)
    trainable_from(model, "4")
    assert learning(model) == {n for n in everything if n.startswith(("body.4.", "head."))}
    trainable_from(model, "1")  # and back
    assert learning(model) == everything - {"body.0.weight"}
    trainable_from(model, "0")
    assert learning(model) == everything


def test_what_belongs_to_no_stage_learns_only_where_everything_does() -> None:
    model = build_classifier(spec("vit_b_32", 1, 32), seeded(0))
    everything = learning(model)
    trainable_from(model, "encoder.layers.encoder_layer_11")
    assert learning(model) == {
        n for n in everything if n.startswith(("body.encoder.layers.encoder_layer_11.", "body.encoder.ln.", "head."))
    }
    trainable_from(model, "conv_proj")
    assert learning(model) == everything >= {"body.class_token", "body.encoder.pos_embedding"}


def test_auxiliary_heads_always_learn() -> None:
    model = auxiliary("inception_v3")
    trainable_from(model, "Mixed_7c")
    assert {n.split(".")[1] for n in learning(model) if n.startswith("body.")} == {"AuxLogits", "Mixed_7c"}


def test_frozen_weights_get_no_gradient_and_the_others_do(model: Classifier) -> None:
    trainable_from(model, "4")
    model.train()(images(8)).sum().backward()
    assert {name for name, weight in model.named_parameters() if weight.grad is not None} == learning(model)


def test_a_stage_that_is_not_there_is_refused_by_the_names_there_are(model: Classifier) -> None:
    with pytest.raises(ConfigurationError, match="no part '2'") as caught:
        trainable_from(model, "2")
    assert caught.value.expected == "one of 0, 1, 3, 4"


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_body_gets_normalised_images_in_the_layout_of_the_batch(
    layout: torch.memory_format, dtype: torch.dtype
) -> None:
    class Recorder(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return x.mean((2, 3))

    seen: list[torch.Tensor] = []
    uneven = spec(size=8, channels=3).model_copy(update={"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)})
    recorder = Classifier(uneven, Recorder(), 3)
    batch = images(4, 3, 8).to(dtype).contiguous(memory_format=layout)
    recorder(batch)
    mean, std = torch.tensor(uneven.mean).view(1, 3, 1, 1), torch.tensor(uneven.std).view(1, 3, 1, 1)
    assert seen[0].dtype == torch.float32
    assert seen[0].is_contiguous(memory_format=layout)
    torch.testing.assert_close(seen[0], (batch.float() / 255 - mean) / std, rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize("architecture", ["small-cnn", "mobilenet_v3_small", "googlenet", "mnasnet0_5"])
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
