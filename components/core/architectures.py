"""Bodies for `Classifier` from torchvision: built, counted in stages, filled with weights of another shape.

One mechanism serves every classification network: it is built for a number of classes that no other layer has, and the
layers that come out that wide are the ones that know classes. The last is taken off (its place is `Classifier.head`),
those before it are auxiliary heads and stay. torchvision is imported inside functions: it costs seconds.

Not covered: heads, saving, and which weights are wanted (`models`).
"""

from __future__ import annotations

import inspect
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from math import isqrt
from pickle import UnpicklingError  # what torch raises where it refuses a file that holds more than tensors
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from components.core.errors import ConfigurationError

# A prime: widths are multiples of small numbers, so a layer with so many outputs is there for the classes.
_MARKED_CLASSES = 1009


@dataclass(frozen=True, kw_only=True)
class Body:
    """A network without its head.

    Attributes:
        network: Float32 images, (n, channels, size, size), to features that flatten to (n, width); with auxiliary
            heads and in training mode a tuple: features, then logits of each auxiliary head, (n, classes).
        width: Features of an image.
        auxiliary: Names of the auxiliary heads' last layers in `network`, each an `nn.Linear(..., classes)`.
    """

    network: nn.Module
    width: int
    auxiliary: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """Mean and standard deviation of each channel, of pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def for_channels(self, channels: int) -> Normalisation | None:
        """The same for so many channels: grey gets the average of the colours; None where there is nothing to say."""
        if len(self.mean) == channels:
            return self
        if channels != 1:
            return None
        count = len(self.mean)
        return Normalisation(mean=(sum(self.mean) / count,), std=(sum(self.std) / count,))


def torchvision_body(architecture: str, *, classes: int, channels: int, image_size: int) -> Body:
    """Build any classification network of torchvision with fresh weights and without its head.

    Features are what the removed layer was given. A squeezenet classifies every place with a convolution and pools the
    answers; here its pooled features (n, 512) are what the head gets.

    Args:
        classes: Outputs of auxiliary heads.
        channels: Planes of an image; other than 3, the first convolution is made anew for them.
        image_size: Side of the images, pixels.

    Raises:
        ConfigurationError: There is no such architecture.
        AssertionError, ValueError: The network cannot be built for this size; the message is torchvision's.
    """
    network = _network(architecture, classes=_MARKED_CLASSES, image_size=image_size)
    layers = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    *auxiliary, (head, head_layer) = [(name, m) for name, m in layers if len(m.weight) == _MARKED_CLASSES]
    network.set_submodule(head, nn.Identity())
    for name, layer in auxiliary:
        network.set_submodule(name, nn.Linear(layer.weight.shape[1], classes))
    _, first = first_convolution(network)
    if channels != first.in_channels:
        first.in_channels = channels
        first.weight = nn.Parameter(torch.empty(first.out_channels, channels, *first.kernel_size))
        first.reset_parameters()
    return Body(network=network, width=head_layer.weight.shape[1], auxiliary=tuple(name for name, _layer in auxiliary))


def _network(architecture: str, *, classes: int, image_size: int) -> nn.Module:
    """torchvision's network with its own initialisation, for a size where its constructor takes one."""
    from torchvision.models import get_model

    network: nn.Module = get_model(
        architecture, weights=None, num_classes=classes, **_arguments(architecture, image_size)
    )
    return network


def _arguments(architecture: str, image_size: int) -> dict[str, Any]:
    known = _parameters(architecture)
    # init_weights: left out, some networks warn that its default will change.
    offered = {"image_size": image_size, "input_size": (image_size, image_size), "init_weights": True}
    return {name: value for name, value in offered.items() if name in known}


def _parameters(architecture: str) -> Mapping[str, inspect.Parameter]:
    """What the constructor of a network takes. Its builder says which class it makes, and passes the rest on.

    Raises:
        ConfigurationError: There is no such architecture.
    """
    from torchvision import models

    names = models.list_models(module=models)
    if architecture not in names:
        raise ConfigurationError(
            f"training.architecture is {architecture!r}",
            expected=f"small-cnn or one of {', '.join(names)}",
            next_command="mend training.architecture",
        )
    made = inspect.signature(models.get_model_builder(architecture)).return_annotation
    return inspect.signature(made).parameters


def first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d]:
    """Name and module of the layer that sees the image. Every network here begins with a convolution."""
    return next((name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d))


@contextmanager
def without_weights() -> Iterator[None]:
    """Build modules without memory for their weights: parameters and buffers are put on the meta device.

    Hooks, and not `torch.device("meta")`: constructors that compute widths with tensors (RegNet) need numbers. They
    are global: no other thread may build modules meanwhile.
    """

    def parameter(_module: nn.Module, _name: str, value: nn.Parameter | None) -> nn.Parameter | None:
        return None if value is None else nn.Parameter(value.to("meta"), value.requires_grad)

    def buffer(_module: nn.Module, _name: str, value: Tensor | None) -> Tensor | None:
        return None if value is None else value.to("meta")

    hooks = (
        register_module_parameter_registration_hook(parameter),  # type: ignore[arg-type]  # typed as if it gave nothing
        register_module_buffer_registration_hook(buffer),  # type: ignore[arg-type]
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def fit_tensors(tensors: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Choose the tensors that a network can take, by name and shape.

    Two differences of shape are bridged. Position embeddings for another size of image are interpolated. The first
    convolution is summed over its input channels where the network sees one: a grey image shown as three equal colours
    gives the sum of the three answers, so this is what those weights would have said of it.
    """
    first, _layer = first_convolution(network)
    fitting: dict[str, Tensor] = {}
    for name, wanted in network.state_dict().items():
        tensor = tensors.get(name)
        if tensor is None:
            continue
        if name == f"{first}.weight" and wanted.shape[1] == 1:
            tensor = tensor.sum(dim=1, keepdim=True)
        elif name.endswith("pos_embedding") and tensor.shape != wanted.shape:
            tensor = interpolate_positions(tensor, isqrt(wanted.shape[1] - 1))
        if tensor.shape == wanted.shape:
            fitting[name] = tensor
    return fitting


def interpolate_positions(positions: Tensor, side: int) -> Tensor:
    """Stretch the embeddings of a square of patches over another square; the class token keeps its own.

    Args:
        positions: Class token first, then the patches row by row, float32, shape (1, 1 + k * k, width).
        side: Patches along one side of the new square.

    Returns:
        Shape (1, 1 + side * side, width), bicubic, corners on corners; the same where the side does not change.

    Source:
        Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, section 3.2.
    """
    from torchvision.models.vision_transformer import interpolate_embeddings

    # It reads and writes a whole state, of which it knows this one name; patches of one pixel make its size our side.
    state = interpolate_embeddings(side, 1, {"encoder.pos_embedding": positions})
    stretched: Tensor = state["encoder.pos_embedding"]
    return stretched


def torchvision_weights(architecture: str, name: str) -> tuple[dict[str, Tensor], Normalisation]:
    """Fetch weights that torchvision knows by name, or read them from its cache.

    Returns:
        Tensors by their names in the network, its head included, and how the images were normalised.

    Raises:
        ConfigurationError: There are no such weights, or they could not be fetched.
    """
    weights = weights_named(architecture, name)
    try:
        # weights_only: tensors, never a program.
        tensors = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        with without_weights():
            network = _network(
                architecture, classes=len(weights.meta["categories"]), image_size=weights.meta["min_size"][0]
            )
        # Through the network, whose loading knows the names that older files use.
        network.load_state_dict(_renamed(tensors, network), assign=True)
    except (OSError, HTTPException, RuntimeError, UnpicklingError, ValueError) as error:
        raise ConfigurationError(
            f"training.pretrained {name!r} cannot be had: {error}",
            expected=f"{weights.url} to answer, or the file in {torch.hub.get_dir()}/checkpoints",
            next_command="put the file there, or weights as .safetensors into the store and that key into "
            "training.pretrained",
        ) from error
    if "transform_input" in _parameters(architecture):
        # With these weights torchvision's builder turns ImageNet's normalisation into this one inside the network.
        return network.state_dict(), Normalisation(mean=(0.5,) * 3, std=(0.5,) * 3)
    shown = weights.transforms()
    return network.state_dict(), Normalisation(mean=tuple(shown.mean), std=tuple(shown.std))


def weights_named(architecture: str, name: str) -> Any:
    """torchvision's record of pretrained weights.

    Raises:
        ConfigurationError: The architecture has no weights of that name.
    """
    from torchvision.models import get_model_weights

    _parameters(architecture)
    known = get_model_weights(architecture).__members__
    if name not in known:
        raise ConfigurationError(
            f"training.pretrained is {name!r}",
            expected=f"one of {', '.join(known)} for {architecture}, or a key of the store: "
            "models/<model>/versions/<version> or one that ends in .safetensors",
            next_command="mend training.pretrained",
        )
    return known[name]


def _renamed(tensors: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """DenseNet's files still say `norm.1` where its network says `norm1`, and only its builder knows."""
    known = network.state_dict()
    renamed = OrderedDict(
        (name if name in known else re.sub(r"\.(norm|relu|conv)\.([12])\.", r".\1\2.", name), tensor)
        for name, tensor in tensors.items()
    )
    vars(renamed).update(getattr(tensors, "__dict__", {}))  # versions of the layers, which tell old names from new
    return renamed


def body_stages(network: nn.Module, auxiliary: Sequence[str]) -> tuple[str, ...]:
    """Names of the parts of a body, in the order in which an image passes them.

    The children of the network; where one holds more than half of all layers, its children instead, and so on down.
    Parts without weights are none, nor are those with an auxiliary head's last layer in them.
    """
    total = _layers(network)

    def open_up(module: nn.Module, prefix: str) -> Iterator[str]:
        for name, child in module.named_children():
            path, count = prefix + name, _layers(child)
            if 2 * count > total and any(True for _ in child.children()):
                yield from open_up(child, f"{path}.")
            elif count and not is_within(auxiliary, path):
                yield path

    return tuple(open_up(network, ""))


def is_within(names: Iterable[str], module: str) -> bool:
    """Whether one of the names is of something in a module, or of the module itself."""
    return any(f"{name}.".startswith(f"{module}.") for name in names)


def _layers(module: nn.Module) -> int:
    """Modules that hold weights themselves."""
    return sum(1 for m in module.modules() if next(m.parameters(recurse=False), None) is not None)
