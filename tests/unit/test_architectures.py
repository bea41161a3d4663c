"""Bodies of torchvision's networks: one mechanism for all, checked against the networks themselves."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn

from components.core.architectures import (
    Normalisation,
    _network,
    body_stages,
    first_convolution,
    fit_tensors,
    interpolate_positions,
    is_within,
    torchvision_body,
    torchvision_weights,
    weights_named,
    without_weights,
)
from components.core.errors import ConfigurationError

pytestmark = pytest.mark.usefixtures("one_thread")

# Architecture, width of its features, and a small size of image that it takes.
FAMILIES = [
    ("alexnet", 4096, 64),
    ("convnext_tiny", 768, 32),
    ("densenet121", 1024, 32),
    ("efficientnet_b0", 1280, 32),
    ("googlenet", 1024, 32),
    ("inception_v3", 2048, 80),
    ("maxvit_t", 512, 224),
    ("mnasnet0_5", 1280, 32),
    ("mobilenet_v2", 1280, 32),
    ("mobilenet_v3_small", 1024, 32),
    ("regnet_y_400mf", 440, 32),
    ("resnet18", 512, 32),
    ("resnext50_32x4d", 2048, 32),
    ("shufflenet_v2_x0_5", 1024, 32),
    ("squeezenet1_1", 512, 32),
    ("swin_t", 768, 32),
    ("swin_v2_t", 768, 32),
    ("vgg11_bn", 4096, 32),
    ("vit_b_16", 768, 32),
]
AUXILIARY = {"googlenet": ("aux1.fc2", "aux2.fc2"), "inception_v3": ("AuxLogits.fc",)}


def weightless(architecture: str, size: int, *, classes: int = 5, channels: int = 3) -> tuple[nn.Module, Any]:
    with without_weights():
        body = torchvision_body(architecture, classes=classes, channels=channels, image_size=size)
    return body.network, body


def is_head(name: str, body: nn.Module) -> bool:
    return name not in body.state_dict()


@pytest.mark.parametrize(("architecture", "width", "size"), FAMILIES)
def test_features_and_the_removed_layer_give_the_logits_of_the_whole_network(
    architecture: str, width: int, size: int
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = _network(architecture, classes=5, image_size=size).eval()
        images = torch.randn(2, 3, size, size)
    if architecture.startswith("squeezenet"):
        whole.classifier[2] = nn.Identity()  # it cuts off negative answers before it pools them; a linear head does not
    network, body = weightless(architecture, size)
    head = [tensor for name, tensor in whole.state_dict().items() if is_head(name, network)]
    taken = OrderedDict(fit_tensors(whole.state_dict(), network))
    vars(taken).update(vars(network.state_dict()))  # versions of the layers: MNASNet refuses a state without
    network.load_state_dict(taken, assign=True)
    for layer in head:
        layer.uniform_(-1, 1, generator=torch.Generator().manual_seed(1))  # some networks begin with a head of zeros
    with torch.inference_mode():
        features = network.eval()(images).flatten(1)
        logits = nn.functional.linear(features, head[0].flatten(1), head[1] if len(head) > 1 else None)
        assert features.shape == (2, body.width) == (2, width)
        torch.testing.assert_close(logits, whole(images).flatten(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("architecture", "width", "size"), FAMILIES)
def test_bodies_take_images_of_their_channels_and_keep_auxiliary_heads(
    architecture: str, width: int, size: int, channels: int
) -> None:
    size = 299 if architecture == "inception_v3" else size
    network, body = weightless(architecture, size, classes=7, channels=channels)
    name, first = first_convolution(network)
    assert first.in_channels == channels
    assert network.get_parameter(f"{name}.weight").shape[1] == channels
    assert body.auxiliary == AUXILIARY.get(architecture, ())
    result = network.train()(torch.empty(2, channels, size, size, device="meta"))
    features, *logits = (result,) if isinstance(result, Tensor) else result
    assert features.flatten(1).shape == (2, width)
    assert [tuple(one.shape) for one in logits] == [(2, 7)] * len(body.auxiliary)


@pytest.mark.slow
def test_every_classification_network_of_torchvision_has_a_body() -> None:
    from torchvision import models

    for architecture in models.list_models(module=models):
        network, body = weightless(architecture, 224)
        features = network.eval()(torch.empty(1, 3, 224, 224, device="meta"))
        assert features.flatten(1).shape == (1, body.width), architecture
        assert len(body_stages(network, body.auxiliary)) >= 5, architecture


def test_a_width_that_equals_the_number_of_classes_confuses_nothing() -> None:
    network, body = weightless("resnet18", 32, classes=512)
    assert body.width == 512
    assert isinstance(network.get_submodule("fc"), nn.Identity)
    assert isinstance(network.get_submodule("layer4.1.conv2"), nn.Conv2d)


@pytest.mark.parametrize("architecture", ["resnet19", "fcn_resnet50", "quantized_resnet18"])
def test_an_unknown_architecture_is_refused_by_the_names_there_are(architecture: str) -> None:
    with pytest.raises(ConfigurationError, match=r"training\.architecture") as caught:
        torchvision_body(architecture, classes=2, channels=3, image_size=32)
    assert "resnet18" in caught.value.expected


def test_modules_have_no_weights_inside_and_have_them_again_outside() -> None:
    with without_weights():
        inside = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm2d(2))
    assert {t.device.type for t in inside.state_dict().values()} == {"meta"}
    assert inside[0].bias is None
    with pytest.raises(ZeroDivisionError), without_weights():
        _ = 1 / 0
    assert {t.device.type for t in nn.BatchNorm2d(2).state_dict().values()} == {"cpu"}


class Patches(nn.Module):
    """A convolution and position embeddings, as a vision transformer has them."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2, 1, bias=False)
        self.deep = nn.Conv2d(2, 2, 1)
        self.pos_embedding = nn.Parameter(torch.zeros(1, 1 + side * side, 3))


def test_what_fits_is_taken_and_what_does_not_is_left() -> None:
    target = Patches(3, 2)
    source = {
        "conv.weight": torch.ones(2, 3, 1, 1),
        "deep.weight": torch.ones(2, 9, 1, 1),
        "deep.bias": torch.ones(2),
        "other": torch.ones(1),
    }
    assert set(fit_tensors(source, target)) == {"conv.weight", "deep.bias"}


def test_a_grey_image_is_answered_as_three_equal_colours_were() -> None:
    colour, grey = Patches(3, 2), Patches(1, 2)
    colour.conv.weight.data = torch.tensor([[1.0, 2.0, 4.0], [0.5, 0.0, -1.0]]).view(2, 3, 1, 1)
    taken = fit_tensors(colour.state_dict(), grey)
    assert taken["conv.weight"].flatten().tolist() == [7.0, -0.5]  # 1 + 2 + 4 and 0.5 + 0 - 1
    grey.load_state_dict(taken)
    image = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(grey.conv(image), colour.conv(image.expand(2, 3, 4, 4)))


def test_positions_are_stretched_over_the_new_square() -> None:
    token, patches = torch.full((1, 1, 1), 9.0), torch.tensor([0.0, 2.0, 4.0, 6.0]).view(1, 4, 1)
    stretched = interpolate_positions(torch.cat([token, patches], dim=1), 3)
    # Corners on corners; what lies in the middle between two is their mean, whatever the (symmetric) kernel.
    assert stretched.flatten().tolist() == pytest.approx([9.0, 0.0, 1.0, 2.0, 2.0, 3.0, 4.0, 4.0, 5.0, 6.0], abs=1e-5)
    same = torch.cat([token, patches], dim=1)
    assert torch.equal(interpolate_positions(same, 2), same)
    assert fit_tensors({"pos_embedding": same.expand(1, 5, 3)}, Patches(3, 3))["pos_embedding"].shape == (1, 10, 3)


def cached(architecture: str, tensors: dict[str, Tensor] | object, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Put a file where torchvision looks before it asks the network."""
    monkeypatch.setenv("TORCH_HOME", str(home))
    folder = home / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(tensors, folder / weights_named(architecture, "IMAGENET1K_V1").url.rpartition("/")[2])


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "DEFAULT"])
def test_weights_come_by_torchvisions_names(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    published = _network("squeezenet1_1", classes=1000, image_size=224).state_dict()
    cached("squeezenet1_1", published, monkeypatch, tmp_path)
    tensors, normalisation = torchvision_weights("squeezenet1_1", name)
    assert set(tensors) == set(published)
    assert all(torch.equal(tensors[n], published[n]) for n in published)
    assert normalisation == Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def test_names_of_old_densenet_files_are_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    published = _network("densenet121", classes=1000, image_size=224).state_dict()
    old = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.") if "denselayer" in name else name: tensor
        for name, tensor in published.items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    cached("densenet121", old, monkeypatch, tmp_path)
    tensors, _ = torchvision_weights("densenet121", "IMAGENET1K_V1")
    assert all(torch.equal(tensors[name], published[name]) for name in published)


def test_names_of_old_vision_transformer_files_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    with without_weights():
        shapes = _network("vit_b_16", classes=1000, image_size=384).state_dict()
    old = {
        name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): torch.empty(tensor.shape)
        for name, tensor in shapes.items()
    }
    assert len(set(old) - set(shapes)) == 4 * 12
    weights = weights_named("vit_b_16", "IMAGENET1K_SWAG_E2E_V1")
    monkeypatch.setattr(type(weights), "get_state_dict", lambda *_, **__: old)
    tensors, _ = torchvision_weights("vit_b_16", "IMAGENET1K_SWAG_E2E_V1")
    assert set(tensors) == set(shapes)
    assert tensors["encoder.pos_embedding"].shape == (1, 1 + 24 * 24, 768)  # the size those weights are for


def test_networks_that_rescale_their_input_say_so_in_the_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import get_model

    published = _network("googlenet", classes=1000, image_size=224).eval()
    weights = weights_named("googlenet", "DEFAULT")
    monkeypatch.setattr(type(weights), "get_state_dict", lambda *_, **__: published.state_dict())
    theirs = get_model("googlenet", weights=weights).eval()
    tensors, ours = torchvision_weights("googlenet", "DEFAULT")
    published.load_state_dict(tensors)
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
        return (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)

    shown = weights.transforms()
    with torch.inference_mode():
        expected = theirs(normalised(shown.mean, shown.std))
        assert float(expected.std()) > 1e-4
        torch.testing.assert_close(published(normalised(ours.mean, ours.std)), expected, rtol=1e-4, atol=1e-5)


class Hostile:
    """A file of weights that runs a program where it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("hostile",)


def test_a_file_that_holds_a_program_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    cached("squeezenet1_1", {"features.0.weight": Hostile()}, monkeypatch, tmp_path)
    with pytest.raises(ConfigurationError, match="IMAGENET1K_V1"):
        torchvision_weights("squeezenet1_1", "IMAGENET1K_V1")
    assert not (tmp_path / "hostile").exists()


def test_weights_that_cannot_be_fetched_say_where_to_put_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(type(weights_named("resnet18", "DEFAULT")), "get_state_dict", unreachable)
    with pytest.raises(ConfigurationError, match="no route to host") as caught:
        torchvision_weights("resnet18", "DEFAULT")
    assert str(tmp_path / "hub" / "checkpoints") in caught.value.expected
    assert ".safetensors" in caught.value.next_command


def test_weights_of_another_network_are_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = weights_named("resnet18", "DEFAULT")
    monkeypatch.setattr(type(weights), "get_state_dict", lambda *_, **__: {"fc.weight": torch.ones(2, 2)})
    with pytest.raises(ConfigurationError, match=r"training\.pretrained 'DEFAULT'"):
        torchvision_weights("resnet18", "DEFAULT")


def test_unknown_weights_are_refused_by_the_names_there_are() -> None:
    with pytest.raises(ConfigurationError, match=r"training\.pretrained is 'IMAGENET1K_V9'") as caught:
        weights_named("resnet18", "IMAGENET1K_V9")
    assert "IMAGENET1K_V1, DEFAULT for resnet18" in caught.value.expected


def test_the_normalisation_of_colours_is_averaged_for_grey() -> None:
    colour = Normalisation(mean=(0.3, 0.6, 0.9), std=(0.1, 0.2, 0.3))
    assert colour.for_channels(3) is colour
    grey = colour.for_channels(1)
    assert grey is not None
    assert (*grey.mean, *grey.std) == pytest.approx((0.6, 0.2))
    assert grey.for_channels(3) is None


STAGES = {
    "resnet18": ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"),
    "resnet101": ("conv1", "bn1", "layer1", "layer2", *(f"layer3.{n}" for n in range(23)), "layer4"),
    "efficientnet_b0": tuple(f"features.{n}" for n in range(9)),
    "vit_b_16": ("conv_proj", *(f"encoder.layers.encoder_layer_{n}" for n in range(12)), "encoder.ln"),
    "swin_t": (*(f"features.{n}" for n in range(8)), "norm"),
    "vgg11_bn": (*(f"features.{n}" for n in (0, 1, 4, 5, 8, 9, 11, 12, 15, 16, 18, 19, 22, 23, 25, 26)), "classifier"),
    "densenet121": (
        *("features.conv0", "features.norm0", "features.denseblock1", "features.transition1", "features.denseblock2"),
        *("features.transition2", "features.denseblock3", "features.transition3", "features.denseblock4"),
        "features.norm5",
    ),
}


@pytest.mark.parametrize("architecture", STAGES)
def test_stages_are_the_parts_one_would_name(architecture: str) -> None:
    network, body = weightless(architecture, 224)
    assert body_stages(network, body.auxiliary) == STAGES[architecture]


@pytest.mark.parametrize("architecture", ["googlenet", "inception_v3", "maxvit_t", "regnet_y_400mf", "squeezenet1_1"])
def test_stages_hold_every_weight_once_but_for_auxiliary_heads(architecture: str) -> None:
    network, body = weightless(architecture, 224)
    stages = body_stages(network, body.auxiliary)
    heads = {name.partition(".")[0] for name in body.auxiliary}
    for name, _ in network.named_parameters():
        holders = [stage for stage in stages if is_within([name], stage)]
        assert len(holders) == (0 if name.partition(".")[0] in heads else 1), name


def test_a_name_is_within_a_module_and_not_within_one_that_begins_alike() -> None:
    assert is_within(["layer1.0.weight"], "layer1")
    assert is_within(["layer1"], "layer1")
    assert not is_within(["layer10.weight", "layer"], "layer1")
