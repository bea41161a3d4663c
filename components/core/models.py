"""Classifiers: a body that yields features, a linear head, and the JSON that says how to rebuild them.

Covers building, growing the head, features, saving and loading (safetensors only: no pickle is ever loaded). Not
covered: training (`train`) and where versions live (`registry`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from components.core.config import TrainingConfig
from components.core.contracts import Document
from components.core.errors import ConfigurationError
from components.core.pixel_statistics import pixel_statistics
from components.core.registry import Registry


class ModelSpec(Document):
    """`model.json`: what is needed to rebuild a classifier around its weights.

    `classes` in the order of the head's rows. Inputs are resized to `image_size` (pixels) squared with `channels`
    planes, scaled to [0, 1], then normalised with `mean` and `std` of each channel.
    """

    architecture: str
    classes: tuple[str, ...]
    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Classifier(nn.Module):
    """Body (images to feature vectors) and head (one row a class)."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ModelSpec, body: nn.Module, width: int) -> None:
        super().__init__()
        self.spec, self.body = spec, body
        self.head = nn.Linear(width, len(spec.classes))
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images, uint8, shape (n, channels, size, size), to logits, float32, shape (n, classes)."""
        logits: Tensor = self.head(self.embed(images))
        return logits

    def embed(self, images: Tensor) -> Tensor:
        """Images, uint8, shape (n, channels, size, size), to penultimate features, float32, shape (n, width)."""
        x = (images.float() / 255.0 - self.mean) / self.std
        features: Tensor = self.body(x)
        return features.flatten(1)


@dataclass(frozen=True, kw_only=True)
class Features:
    """What a classifier says of n images, and what it was shown; float32, on the CPU.

    Attributes:
        embeddings: Input of the head, (n, width).
        early: Mean and standard deviation of each channel of the first convolution, (n, 2 x channels).
        probabilities: Softmax, (n, classes).
        pixels: `pixel_statistics` of the images, (n, p).
    """

    embeddings: Tensor
    early: Tensor
    probabilities: Tensor
    pixels: Tensor

    def subset(self, index: Tensor) -> Features:
        """The rows at an index, int64 (m,)."""
        return Features(**{name: rows[index] for name, rows in vars(self).items()})

    def tensors(self) -> dict[str, Tensor]:
        """The same to be kept: embeddings, which are the bulk of it, as float16."""
        largest = torch.finfo(torch.float16).max
        return {**vars(self), "embeddings": self.embeddings.clamp(-largest, largest).half()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Features:
        """What `tensors` kept."""
        return cls(**{name: rows.float() for name, rows in tensors.items()})


def build_classifier(spec: ModelSpec, generator: torch.Generator) -> Classifier:
    """Build a classifier with fresh weights.

    Args:
        spec: Architecture and head.
        generator: Source of the initial weights; torch's global generator is left as it was.

    Raises:
        ConfigurationError: There is no such architecture, or it does not end in a linear layer.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator, device="cpu")))
        body, width = small_cnn(spec.channels) if spec.architecture == "small-cnn" else _torchvision_body(spec)
        return Classifier(spec, body, width)


def check_architecture(config: TrainingConfig) -> None:
    """Build the configured network without memory for its weights, to find out early whether it can be built.

    Raises:
        ConfigurationError: See `build_classifier`.
    """
    grey = (0.5,) * config.channels
    spec = ModelSpec(
        architecture=config.architecture,
        classes=("a", "b"),
        image_size=config.image_size,
        channels=config.channels,
        mean=grey,
        std=grey,
    )
    with torch.device("meta"):
        build_classifier(spec, torch.Generator().manual_seed(0))


def grow_head(model: Classifier, classes: Iterable[str], generator: torch.Generator) -> Classifier:
    """Give the head a row for each class that is new; old rows keep their place and their weights bit for bit.

    Args:
        model: Stays as it is.
        classes: All classes wanted; those the model knows are passed over.
        generator: Source of the new rows' weights.

    Returns:
        A new classifier with its own copy of every weight.
    """
    new = [c for c in classes if c not in model.spec.classes]
    grown = build_classifier(model.spec.model_copy(update={"classes": (*model.spec.classes, *new)}), generator)
    known = len(model.spec.classes)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    weight, bias = grown.head.weight.detach().clone(), torch.full_like(grown.head.bias.detach(), 0.0)
    weight[:known], bias[:known] = state["head.weight"], state["head.bias"]
    grown.load_state_dict({**state, "head.weight": weight, "head.bias": bias})
    return grown


@torch.inference_mode()
def extract_features(model: Classifier, batches: Iterable[Tensor]) -> Features:
    """One pass over images in evaluation mode, on the device of the model.

    Args:
        batches: Each uint8, shape (n, channels, size, size), n >= 1, sides >= 8; at least one.
    """
    model.eval()
    device = model.head.weight.device
    early: list[Tensor] = []
    first = next(m for m in model.body.modules() if isinstance(m, nn.Conv2d))

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        maps = output.float().flatten(2)
        early.append(torch.cat([maps.mean(2), maps.std(2, correction=0)], dim=1).cpu())

    def look(batch: Tensor) -> tuple[Tensor, Tensor]:
        images = batch.to(device)
        return model.embed(images).float(), pixel_statistics(images).cpu()

    hook = first.register_forward_hook(keep)
    try:
        embeddings, pixels = (torch.cat(parts) for parts in zip(*map(look, batches), strict=True))
    finally:
        hook.remove()
    probabilities = model.head(embeddings).softmax(1)
    return Features(
        embeddings=embeddings.cpu(), early=torch.cat(early), probabilities=probabilities.cpu(), pixels=pixels
    )


def save_classifier(model: Classifier) -> dict[str, bytes]:
    """A classifier as the files of a version."""
    weights = {name: value.contiguous().cpu() for name, value in model.state_dict().items()}
    return {
        "model.safetensors": save_tensors(weights),
        "model.json": json.dumps(model.spec.model_dump(mode="json"), indent=1, sort_keys=True).encode(),
    }


def load_classifier(registry: Registry, version: str) -> Classifier:
    """Rebuild a version's classifier from its verified files, in evaluation mode.

    Raises:
        IntegrityError: A file is not the one that was written.
    """
    spec = ModelSpec.model_validate_json(registry.read_file(version, "model.json"), extra="ignore")
    model = build_classifier(spec, torch.Generator().manual_seed(0))
    model.load_state_dict(load_tensors(registry.read_file(version, "model.safetensors")))
    return model.eval()


def best_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.path(x) + self.skip(x))


def small_cnn(channels: int) -> tuple[nn.Module, int]:
    """A residual network of about 80,000 weights for images up to 64 pixels, and its feature width."""
    body = nn.Sequential(
        nn.Conv2d(channels, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        _Residual(16, 32, 2),
        _Residual(32, 64, 2),
        nn.AdaptiveAvgPool2d(1),
    )
    return body, 64


def _torchvision_body(spec: ModelSpec) -> tuple[nn.Module, int]:
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    if spec.architecture not in names:
        raise ConfigurationError(
            f"training.architecture is {spec.architecture!r}",
            expected=f"small-cnn or one of {', '.join(names)}",
            next_command="mend training.architecture",
        )
    network = torchvision.models.get_model(spec.architecture, weights=None)
    linear = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Linear)]
    convolution = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    last = list(network.modules())[-1]
    if not linear or linear[-1][1] is not last or not convolution or hasattr(network, "aux_logits"):
        raise ConfigurationError(
            f"training.architecture {spec.architecture!r} does not end in one linear layer",
            expected="an architecture whose head is linear, such as resnet18, efficientnet_b0, convnext_tiny, vit_b_16",
            next_command="mend training.architecture",
        )
    size = getattr(network, "image_size", spec.image_size)
    if size != spec.image_size:
        raise ConfigurationError(
            f"training.image_size is {spec.image_size}",
            expected=f"{size}: {spec.architecture} has one position embedding a patch",
            next_command="mend training.image_size or training.architecture",
        )
    name, head = linear[-1]
    network.set_submodule(name, nn.Identity())
    if spec.channels != 3:
        first_name, first = convolution[0]
        network.set_submodule(first_name, _with_input_channels(first, spec.channels))
    return network, head.in_features


def _with_input_channels(layer: nn.Conv2d, channels: int) -> nn.Conv2d:
    return nn.Conv2d(
        channels,
        layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]  # torch types these as tuple[int, ...]
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        bias=layer.bias is not None,
    )
