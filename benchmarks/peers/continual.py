"""Avalanche in a process of its own: it learns a second experience after a first one that its model knows already.

It reads requests from standard input, one a line, and answers on standard output, both in JSON: see `Request` and
`run`. Only the standard library, numpy, torch and Avalanche, because this runs in the peer's environment. Linux only.

    python continual.py

What is measured is what an Avalanche user has to wait for, in the fastest form found: tensors normalised beforehand
and no transforms, no task labels in the batches, data loaded in this process (workers cost more than they bring for
tensors), no evaluation and no logger while it learns. The model comes with its weights, so the first experience is
"learnt" in no epochs: Avalanche's own hooks then compute the Fisher information, fill the buffer and copy the teacher.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import ConstantSequence, DataAttribute, TaskAwareSupervisedClassificationDataset
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin, EWCPlugin, LwFPlugin, ReplayPlugin
from avalanche.training.supervised import Naive
from torch import Tensor, nn
from torch.utils.data import TensorDataset

WARM_UP_STEPS = 3
EVALUATION_ROWS = 500  # a batch


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to learn, and how.

    Attributes:
        folder: Holds, for the names old, new, test_old and test_new, `NAME_images.npy`, uint8, shape (n, channels,
            size, size), and `NAME_labels.npy`, int64, shape (n,); and `state.npz`, the weights by the names that
            `Network` shares with our classifiers, the head with a row for every class of all four.
        strategy: "naive", or one or more of "replay", "ewc" and "lwf" joined by "+".
        mean: Of each channel, of pixels in [0, 1]; `std` likewise.
        epochs: On the new experience.
        batch_size: Of new images; replay adds as many old ones to every batch.
        optimizer: "adamw" or "sgd", the latter without momentum; both with torch's defaults.
        buffer_size: Exemplars, for replay.
        ewc_lambda: For EWC; Avalanche multiplies with it the mean of squared gradients of *batches*, not of rows.
        lwf_alpha: Weight of the distillation loss for LwF; `lwf_temperature` softens both sides.
        channels_last: The memory format of the network; Avalanche's users get torch's default, False.
    """

    folder: str
    strategy: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    epochs: int
    batch_size: int
    learning_rate: float
    threads: int
    seed: int
    optimizer: str = "adamw"
    buffer_size: int = 500
    ewc_lambda: float = 1.0
    lwf_alpha: float = 1.0
    lwf_temperature: float = 2.0
    channels_last: bool = False


class Residual(nn.Module):
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


class Network(nn.Module):
    """`small_cnn` of components/core/models.py with its head: the same names, so that weights load one to one.

    Takes normalised images, float32, shape (n, channels, size, size), where ours takes pixels.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 16, 3, 1, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            Residual(16, 32, 2),
            Residual(32, 64, 2),
            nn.AdaptiveAvgPool2d(1),
        )
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x).flatten(1))
        return logits


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A point in time: seconds on the clock, and processor time of all threads, for busy machines."""

    seconds: float
    core_seconds: float

    @classmethod
    def now(cls) -> Moment:
        return cls(seconds=time.monotonic(), core_seconds=time.process_time())


class Counter(SupervisedPlugin):
    """Counts the images that the network learns from, and notes when the last epoch has ended.

    To be the first plugin: what the others do after an experience is for the experience after it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.images = 0
        self.learnt = Moment.now()

    def after_training_iteration(self, strategy: Any, **_: Any) -> None:
        self.images += len(strategy.mb_x)

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        self.learnt = Moment.now()


def load_images(request: Request, name: str) -> tuple[Tensor, Tensor]:
    """Normalised images, float32, and labels, int64."""
    images, labels = (np.load(Path(request.folder) / f"{name}_{part}.npy") for part in ("images", "labels"))
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (request.mean, request.std))
    return (torch.from_numpy(images).float() / 255.0 - mean) / std, torch.from_numpy(labels)


def load_network(request: Request) -> Network:
    """The network with the weights of the folder.

    Raises:
        RuntimeError: They are another network's.
    """
    with np.load(Path(request.folder) / "state.npz") as arrays:
        state = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    network = Network(state["body.0.weight"].shape[1], len(state["head.weight"]))
    network.load_state_dict(state)
    return network.to(memory_format=torch.channels_last) if request.channels_last else network


def as_dataset(images: Tensor, labels: Tensor) -> Any:
    """An Avalanche dataset of tensors. LwF asks for task labels, though not in the batches: there they cost time."""
    attributes = [
        DataAttribute(labels.tolist(), "targets"),
        DataAttribute(ConstantSequence(0, len(labels)), "targets_task_labels"),
    ]
    return TaskAwareSupervisedClassificationDataset([TensorDataset(images, labels)], data_attributes=attributes)


def plugins_of(request: Request) -> list[SupervisedPlugin]:
    """The plugins that make up a strategy.

    Raises:
        KeyError: There is no such plugin.
    """
    plugins = {
        "replay": lambda: ReplayPlugin(mem_size=request.buffer_size),
        "ewc": lambda: EWCPlugin(ewc_lambda=request.ewc_lambda),
        "lwf": lambda: LwFPlugin(alpha=request.lwf_alpha, temperature=request.lwf_temperature),
    }
    names = [] if request.strategy == "naive" else request.strategy.split("+")
    return [plugins[name]() for name in names]


def warm_up(network: Network, images: Tensor, labels: Tensor) -> None:
    """Let torch choose its kernels before the clock runs; the weights, which stay, get no gradient."""
    for _ in range(WARM_UP_STEPS):
        loss = nn.functional.cross_entropy(network(images), labels)
        torch.autograd.grad(loss, list(network.parameters()))


@torch.inference_mode()
def accuracy(network: Network, images: Tensor, labels: Tensor) -> float:
    """Share of right answers, in [0, 1]."""
    network.eval()
    batches = zip(images.split(EVALUATION_ROWS), labels.split(EVALUATION_ROWS), strict=True)
    return sum(int((network(x).argmax(1) == y).sum()) for x, y in batches) / len(labels)


def run(request: Request) -> dict[str, float]:
    """Learn the new experience after the old one.

    Returns:
        `seconds_old`, of what the strategy needs of the old experience; `seconds`, of learning the new one;
        `seconds_after`, of what the strategy keeps of it for a third; each with its `core_seconds...`, the processor
        time of all threads; `images`, new images times epochs, and `images_learnt`, with those replayed;
        `images_per_second` and `images_learnt_per_second`, both by `seconds`; `accuracy_old_before`, `accuracy_old`
        and `accuracy_new`, in [0, 1], on the test images.

    Raises:
        OSError: A file is missing.
        KeyError: There is no such strategy or optimizer.
    """
    torch.set_num_threads(request.threads)
    torch.manual_seed(request.seed)
    np.random.seed(request.seed)  # Avalanche draws from the global states
    random.seed(request.seed)
    old, new, test_old, test_new = (load_images(request, name) for name in ("old", "new", "test_old", "test_new"))
    network = load_network(request)
    accuracy_before = accuracy(network, *test_old)
    # A copy, because the forward pass of a warm-up moves the statistics of the batch norms.
    warm_up(load_network(request).train(), *(part[: request.batch_size] for part in new))

    optimizers = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    counter = Counter()
    strategy = Naive(
        model=network,
        optimizer=optimizers[request.optimizer](network.parameters(), lr=request.learning_rate),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=request.batch_size,
        train_epochs=0,
        device="cpu",
        plugins=[counter, *plugins_of(request)],
        evaluator=EvaluationPlugin(loggers=[]),
        eval_every=-1,
    )
    stream = benchmark_from_datasets(train=[as_dataset(*old), as_dataset(*new)]).train_stream

    began = Moment.now()
    strategy.train(stream[0])
    prepared = Moment.now()
    strategy.train_epochs = request.epochs
    strategy.train(stream[1])
    ended = Moment.now()

    images = len(new[0]) * request.epochs
    seconds = counter.learnt.seconds - prepared.seconds
    return {
        **passed("_old", began, prepared),
        **passed("", prepared, counter.learnt),
        **passed("_after", counter.learnt, ended),
        "images": images,
        "images_learnt": counter.images,
        "images_per_second": images / seconds,
        "images_learnt_per_second": counter.images / seconds,
        "accuracy_old_before": accuracy_before,
        "accuracy_old": accuracy(network, *test_old),
        "accuracy_new": accuracy(network, *test_new),
    }


def passed(suffix: str, since: Moment, until: Moment) -> dict[str, float]:
    return {
        f"seconds{suffix}": until.seconds - since.seconds,
        f"core_seconds{suffix}": until.core_seconds - since.core_seconds,
    }


def serve() -> None:
    """Answer requests until standard input ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: never outlive the benchmark
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Avalanche prints goes elsewhere

    def answer(document: dict[str, Any]) -> None:
        answers.write(json.dumps(document) + "\n")
        answers.flush()

    answer({"ready": True})
    for line in sys.stdin:
        try:
            answer(run(Request(**json.loads(line))))
        except Exception as error:  # noqa: BLE001 - told to who asks, who goes on without this figure
            answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    serve()
