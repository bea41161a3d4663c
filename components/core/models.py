"""Classifiers: a body that yields features, a linear head, and the JSON that says how to rebuild them.

Covers building, growing the head, other sizes of image, pretrained weights, freezing, features, saving and loading
(safetensors only: no pickle is ever loaded). Not covered: training (`train`), where versions live (`registry`) and
what torchvision's networks look like inside (`architectures`).
"""

from __future__ import annotations

import json
import logging
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from components.core.architectures import (
    Body,
    Normalisation,
    body_stages,
    fit_tensors,
    is_within,
    torchvision_body,
    torchvision_weights,
    weights_named,
    without_weights,
)
from components.core.config import TrainingConfig
from components.core.contracts import Document
from components.core.errors import ConfigurationError
from components.core.pixel_statistics import pixel_statistics
from components.core.registry import Registry
from components.core.storage import ObjectStore

logger = logging.getLogger(__name__)

# Sizes an error may suggest: what the published networks were trained with, and powers of two.
_USUAL_SIZES = (32, 64, 128, 224, 256, 299, 384, 448)


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
    """Body (images to feature vectors) and head (one row a class).

    Args:
        spec: What it is; `classes` sizes the head.
        body: See `Body.network`.
        width: See `Body.width`.
        auxiliary: See `Body.auxiliary`.

    All methods take images uint8 or float32, both in [0, 255], shape (n, channels, size, size), in any memory format;
    the body gets the same format, so what is channels_last stays so.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, spec: ModelSpec, body: nn.Module, width: int, auxiliary: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.spec, self.body, self.auxiliary = spec, body, auxiliary
        self.head = nn.Linear(width, len(spec.classes))
        # (x / 255 - mean) / std as one multiplication and one addition: one pass over the images.
        mean, std = torch.tensor(spec.mean).view(1, -1, 1, 1), torch.tensor(spec.std).view(1, -1, 1, 1)
        self.register_buffer("scale", 1.0 / (255.0 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images to logits, float32, shape (n, classes)."""
        logits: Tensor = self.head(self.embed(images))
        return logits

    def outputs(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images to the logits of all heads, each float32, shape (n, classes).

        The main head's first. Auxiliary heads (GoogLeNet, Inception) answer in training mode only; their losses are
        meant to count less: 0.3 and 0.4 in the papers.

        Source:
            Szegedy et al., "Going Deeper with Convolutions", CVPR 2015; "Rethinking the Inception Architecture for
            Computer Vision", CVPR 2016.
        """
        features, *auxiliary = self._run_body(images)
        return (self.head(features.flatten(1)), *auxiliary)

    def embed(self, images: Tensor) -> Tensor:
        """Images to penultimate features, float32, shape (n, width)."""
        return self._run_body(images)[0].flatten(1)

    def _run_body(self, images: Tensor) -> tuple[Tensor, ...]:
        result = self.body(torch.addcmul(self.shift, images, self.scale))
        return (result,) if isinstance(result, Tensor) else tuple(result)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load tensors, which have the names of this version of torch whether or not they say so.

        A file of safetensors cannot say so, and MNASNet refuses a state that does not.
        """
        current = OrderedDict(state_dict)
        vars(current).update(vars(self.state_dict()))
        return super().load_state_dict(current, strict, assign)

    @property
    def class_layers(self) -> tuple[str, ...]:
        """Names of the linear layers that have one row a class: the head, then auxiliary heads'."""
        return ("head", *(f"body.{name}" for name in self.auxiliary))


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
        ConfigurationError: There is no such architecture, or it cannot be built for this size of image. Sizes that it
            can be built for and not be used with are found by `check_image_size`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator, device="cpu")))
        try:
            return _assemble(spec)
        except (AssertionError, ValueError) as error:
            raise _size_error(spec, error) from error


def _assemble(spec: ModelSpec) -> Classifier:
    if spec.architecture == "small-cnn":
        body = small_cnn(spec.channels)
    else:
        body = torchvision_body(
            spec.architecture, classes=len(spec.classes), channels=spec.channels, image_size=spec.image_size
        )
    return Classifier(spec, body.network, body.width, body.auxiliary)


def check_architecture(config: TrainingConfig) -> None:
    """Find out early, and without memory for weights, whether the configured network can be built and trained.

    Raises:
        ConfigurationError: There is no such architecture, it does not take this size of image, it has no stage that a
            strategy names, or torchvision has no weights of that name for it.
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
    check_image_size(spec)
    with without_weights():
        model = _assemble(spec)
    for stage in config.stages:
        trainable_from(model, stage)
    if config.pretrained is not None and not _is_key(config.pretrained):
        weights_named(spec.architecture, config.pretrained)


def check_image_size(spec: ModelSpec) -> None:
    """Pass two images through the network without memory for its weights, as a training does.

    Raises:
        ConfigurationError: The network does not take this size of image; the message names sizes that it takes.
    """
    if (refusal := _refusal(spec)) is not None:
        others = [spec.model_copy(update={"image_size": size}) for size in _USUAL_SIZES]
        fitting = [other.image_size for other in others if _refusal(other) is None]
        raise _size_error(spec, refusal, fitting) from refusal


def check_growing_size(spec: ModelSpec, first: int) -> None:
    """Pass images of another size through a network that was built for `spec.image_size`.

    Raises:
        ConfigurationError: It takes its own size only, as vision transformers do.
    """
    if (refusal := _refusal(spec, first)) is not None:
        raise ConfigurationError(
            f"resolution: progressive begins with images of {first} pixels, and {spec.architecture} says: {refusal}",
            expected=f"an architecture that takes any size; {spec.architecture} is built for {spec.image_size}",
            next_command="set resolution of this strategy to direct",
        ) from refusal


def _refusal(spec: ModelSpec, side: int | None = None) -> Exception | None:
    """Why a network does not take a size of image (by default its own), in torchvision's words."""
    side = side or spec.image_size
    images = torch.empty(2, spec.channels, side, side, device="meta")
    try:
        with without_weights():
            model = _assemble(spec)
        model.train().outputs(images)
    except (AssertionError, RuntimeError, ValueError) as error:
        return error
    return None


def _size_error(spec: ModelSpec, reason: Exception, fitting: Iterable[int] = ()) -> ConfigurationError:
    such_as = ", ".join(map(str, fitting))
    return ConfigurationError(
        f"training.image_size is {spec.image_size}, and {spec.architecture} says: {reason}",
        expected=f"a size that {spec.architecture} takes" + (f", such as {such_as}" if such_as else ""),
        next_command="mend training.image_size or training.architecture",
    )


def grow_head(model: Classifier, classes: Iterable[str], generator: torch.Generator) -> Classifier:
    """Give the heads a row for each class that is new; old rows keep their place and their weights bit for bit.

    Args:
        model: Stays as it is.
        classes: All classes wanted; those the model knows are passed over.
        generator: Source of the new rows' weights; their biases are 0.

    Returns:
        A new classifier with its own copy of every weight.
    """
    new = [c for c in classes if c not in model.spec.classes]
    return _rebuilt(model, model.spec.model_copy(update={"classes": (*model.spec.classes, *new)}), generator)


def with_image_size(model: Classifier, size: int) -> Classifier:
    """Make a copy for images of another size, with the same weights.

    Position embeddings (vision transformers) are interpolated. No other family has weights that depend on the size:
    Swin and MaxViT know positions within a window, whose size is fixed; the others pool.

    Args:
        model: Stays as it is.
        size: Side of the images, pixels.

    Raises:
        ConfigurationError: The architecture does not take this size.
    """
    spec = model.spec.model_copy(update={"image_size": size})
    if spec != model.spec:
        check_image_size(spec)
    return _rebuilt(model, spec, torch.Generator().manual_seed(0))


def _rebuilt(model: Classifier, spec: ModelSpec, generator: torch.Generator) -> Classifier:
    """A classifier of another spec with all of a model's weights, on the device of the model."""
    rebuilt = build_classifier(spec, generator)
    rebuilt.load_state_dict(_fitting(rebuilt, model.state_dict(), model.spec.classes))
    return rebuilt.to(model.head.weight.device)


def _fitting(model: Classifier, tensors: Mapping[str, Tensor], classes: tuple[str, ...]) -> dict[str, Tensor]:
    """What of a classifier's tensors another one can take: of the body what fits, of the heads rows of shared classes.

    Args:
        model: Who takes. Nothing is written into it.
        tensors: By the names of a classifier's state.
        classes: Whose rows the heads hold, in order; none where that is unknown.
    """
    prefix = "body."
    body = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    fitting = {prefix + name: tensor for name, tensor in fit_tensors(body, model.body).items()}
    for layer in model.class_layers:
        # A row is of its class, wherever it stands: equal shapes say nothing here.
        for name in (f"{layer}.weight", f"{layer}.bias"):
            fitting.pop(name, None)
            rows = _shared_rows(model.state_dict()[name], model.spec.classes, tensors.get(name), classes)
            if rows is not None:
                fitting[name] = rows
    return fitting


def _shared_rows(fresh: Tensor, wanted: tuple[str, ...], rows: Tensor | None, known: tuple[str, ...]) -> Tensor | None:
    """`fresh` with the rows of known classes in the places where they are wanted; None where none fits."""
    shared = [c for c in wanted if c in known]
    if rows is None or not shared or rows.shape[1:] != fresh.shape[1:]:
        return None
    merged = fresh.clone().to(rows.device)
    if merged.dim() == 1:
        merged.zero_()  # a new class starts no likelier than its features say
    merged[[wanted.index(c) for c in shared]] = rows[[known.index(c) for c in shared]]
    return merged


def load_pretrained(model: Classifier, source: str, store: ObjectStore) -> Normalisation | None:
    """Fill a model with the weights of a source, as far as names and shapes fit; the rest stays as it is.

    The head takes nothing but rows of classes that both know by name, from a version of ours of the same architecture.
    A model for grey images takes the first convolution summed over the colours, and should see them normalised as the
    average of the colours was.

    Args:
        model: Changed in place.
        source: A name of torchvision's for this architecture, such as `DEFAULT`; or, of the store, the key (or whole
            address) of a version, `models/<model>/versions/<version>`, or of any `.safetensors` file with the names
            of ours or of torchvision's.
        store: Where keys are looked up.

    Returns:
        How the images were normalised that the weights learnt from, None where it is not known. The model goes on
        with that of its own spec.

    Raises:
        ConfigurationError: There are no such weights, they cannot be fetched, or nothing of them fits.
        IntegrityError: A version is not what was written.
    """
    found = _pretrained(model.spec, source, store)
    taken = _fitting(model, found.tensors, found.classes)
    if not any(name in taken for name, _ in model.named_parameters()):
        raise ConfigurationError(
            f"nothing in training.pretrained {source!r} fits {model.spec.architecture}",
            expected="weights of the same architecture",
            next_command="mend training.pretrained or training.architecture",
        )
    model.load_state_dict(taken, strict=False)
    wanted = model.state_dict()
    logger.info(
        "%d of %d tensors pretrained by %s; fresh: %s",
        len(taken),
        len(wanted),
        source,
        ", ".join(name for name in wanted if name not in taken) or "none",
    )
    return found.normalisation.for_channels(model.spec.channels) if found.normalisation else None


@dataclass(frozen=True, kw_only=True)
class _Pretrained:
    """Tensors by the names of a classifier's state, and what is known of them: whose rows, how images were scaled."""

    tensors: dict[str, Tensor]
    classes: tuple[str, ...] = ()
    normalisation: Normalisation | None = None


def _pretrained(spec: ModelSpec, source: str, store: ObjectStore) -> _Pretrained:
    if not _is_key(source):
        tensors, normalisation = torchvision_weights(spec.architecture, source)
        return _Pretrained(tensors=_in_body(tensors), normalisation=normalisation)
    key = source.removeprefix(f"{store.uri}/").rstrip("/")
    if version := re.fullmatch(r"models/([^/]+)/versions/([^/]+)(/model\.safetensors)?", key):
        _check_there(store, f"models/{version[1]}/versions/{version[2]}/manifest.json", source)
        return _pretrained_version(spec, Registry(store, version[1]), version[2])
    _check_there(store, key, source)
    try:
        tensors = load_tensors(store.get(key))
    except SafetensorError as error:
        raise _no_weights(store, source, f"is no safetensors file: {error}") from error
    ours = any(name.startswith("body.") for name in tensors)
    return _Pretrained(tensors=tensors if ours else _in_body(tensors))


def _pretrained_version(spec: ModelSpec, registry: Registry, version: str) -> _Pretrained:
    theirs = _read_spec(registry, version)
    return _Pretrained(
        tensors=load_tensors(registry.read_file(version, "model.safetensors")),
        # Another architecture's features mean something else: its rows would fit in shape alone.
        classes=theirs.classes if theirs.architecture == spec.architecture else (),
        normalisation=Normalisation(mean=theirs.mean, std=theirs.std),
    )


def _is_key(source: str) -> bool:
    """Whether a source of weights is meant to lie in the store; torchvision's names have no slash."""
    return "/" in source or source.endswith(".safetensors")


def _in_body(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"body.{name}": tensor for name, tensor in tensors.items()}


def _check_there(store: ObjectStore, key: str, source: str) -> None:
    try:
        there = store.head(key) is not None
    except ValueError as error:
        raise _no_weights(store, source, str(error)) from error
    if not there:
        raise _no_weights(store, source, "is not there")


def _no_weights(store: ObjectStore, source: str, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"training.pretrained {source!r} {what}",
        expected=f"in {store.uri}: models/<model>/versions/<version>, or a key that ends in .safetensors",
        next_command="mend training.pretrained, or put the file there",
    )


def stages(model: Classifier) -> tuple[str, ...]:
    """Names of the parts of a body that training can start from, in forward order: see `body_stages`."""
    return body_stages(model.body, model.auxiliary)


def trainable_from(model: Classifier, stage: str) -> None:
    """Freeze what an image passes before a stage; the stage, all after it, and all heads learn.

    Weights of no stage (class token, position embeddings) learn only where everything does: from the first stage on.

    Args:
        model: Changed in place: `requires_grad` of its weights. The mode of batch norm is the trainer's business.
        stage: One of `stages(model)`.

    Raises:
        ConfigurationError: There is no such stage.
    """
    known = stages(model)
    if stage not in known:
        raise ConfigurationError(
            f"{model.spec.architecture} has no part {stage!r} to train from",
            expected=f"one of {', '.join(known)}",
            next_command="mend the layers of the strategy",
        )
    model.requires_grad_(True)
    if stage == known[0]:
        return
    heads = [name.rpartition(".")[0] or name for name in model.auxiliary]
    for name, weight in model.body.named_parameters():
        if is_within([name], stage):
            return
        weight.requires_grad_(any(is_within([name], head) for head in heads))


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
    model = build_classifier(_read_spec(registry, version), torch.Generator().manual_seed(0))
    model.load_state_dict(load_tensors(registry.read_file(version, "model.safetensors")))
    return model.eval()


def _read_spec(registry: Registry, version: str) -> ModelSpec:
    return ModelSpec.model_validate_json(registry.read_file(version, "model.json"), extra="ignore")


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


def small_cnn(channels: int) -> Body:
    """A residual network of about 80,000 weights for images up to 64 pixels."""
    network = nn.Sequential(
        nn.Conv2d(channels, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        _Residual(16, 32, 2),
        _Residual(32, 64, 2),
        nn.AdaptiveAvgPool2d(1),
    )
    return Body(network=network, width=64)
