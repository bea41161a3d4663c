"""Training: against Avalanche, against itself without its caches, and against the same network fed from memory.

Four parts, each a table of ratios; runs that are compared take turns, and the median of the ratios counts.

    peers        ours against Avalanche's Naive, Replay, EWC and LwF: same data, network, epochs, batch, threads
    head         fitting the head on cached features against passing every image through the body in every epoch
    loop         the loop on images from the disk cache against the same network fed one batch from memory
    strategies   what L2-SP, EWC and distillation add to a step

Data are Fashion-MNIST (Debian package dataset-fashion-mnist; without it the scans of scikit-learn, enlarged) and random
pixels where only speed counts. Peers get an environment of their own (see `benchmarks/peers`).

    .venv/bin/python benchmarks/train.py [--quick] [--check] [--device cpu|cuda] [--only PART ...]

Goals of --check: peers 2 times their images a second at no less accuracy (0.5 points of noise), head 8 times at 10
epochs, loop 0.95 on a CPU and 0.90 on a GPU, L2-SP and EWC 5 % of a step, distillation 12 %.
"""

from __future__ import annotations

import argparse
import gzip
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# Like the peers' processes: threads that spin while they wait make a busy machine ten times slower. Before torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pyarrow as pa
import torch
from peers.environments import ToolProcess, python_of
from torch import Tensor, nn

from components.core.datasets import ImageSet, Pixels
from components.core.models import Classifier, ModelSpec, build_classifier, grow_head
from components.core.recipes import LoopConfig, Recipe
from components.train.compute import Compute
from components.train.loop import accuracy, fit
from components.train.replay import choose_replay
from components.train.strategies import Task, embed, feature_batch, strategies_of, train_challenger
from components.train.strategy import Situation, Strategy

FASHION = Path("/usr/share/datasets/fashion-mnist")
THREADS = 2
BATCH = 64
NOISE_POINTS = 0.5
GOALS = {"head": 8.0, "loop cpu": 0.95, "loop cuda": 0.90, "l2-sp": 0.05, "ewc": 0.05, "distillation": 0.12}
PEER_GOAL = 2.0
PEER_SECONDS = 1200.0
RATE = 1e-3
# Name of Avalanche's strategy, our recipe, and what the peer is told beside that.
STRATEGIES_OF_PEERS: tuple[tuple[str, dict[str, Any], dict[str, float]], ...] = (
    ("naive", {"rows": "new"}, {}),
    ("replay", {"rows": "replay"}, {}),
    # Theirs squares the gradients of batches, which is about one over the batch size of the exact information.
    ("ewc", {"rows": "new", "ewc": 1e4 / BATCH}, {"ewc_lambda": 1e4}),
    ("lwf", {"rows": "new", "lwf": 1.0}, {"lwf_alpha": 1.0, "lwf_temperature": 2.0}),
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of the result: what, its figure, the goal, and whether it was reached (None: no goal)."""

    name: str
    figure: float
    text: str
    reached: bool | None


def main() -> int:
    parts = {"peers": peers, "head": head, "loop": loop, "strategies": strategies}
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="fewer rows and repeats: two minutes")
    arguments.add_argument("--check", action="store_true", help="exit 1 where a goal is missed")
    arguments.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    options = arguments.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("there is no GPU here", file=sys.stderr)
        return 2
    torch.set_num_threads(THREADS if options.device == "cpu" else 8)
    effort = Effort(quick=options.quick, device=torch.device(options.device))
    print(f"{effort.machine}; batches of {BATCH}", flush=True)
    lines: list[Line] = []
    for name in options.only:
        print(f"\n{name}", flush=True)
        for line in parts[name](effort):
            lines.append(line)
            mark = {True: "ok", False: "MISSED", None: ""}[line.reached]
            print(f"  {line.name:34s} {line.text} {mark}", flush=True)
    missed = [line.name for line in lines if line.reached is False]
    print(
        f"\n{len(missed)} of {sum(line.reached is not None for line in lines)} goals missed{': ' if missed else ''}",
        end="",
    )
    print(", ".join(missed))
    print("; ".join(f"{line.name} {line.figure:.3g}" for line in lines))
    return int(options.check and bool(missed))


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is run, and where."""

    quick: bool
    device: torch.device

    @property
    def compute(self) -> Compute:
        return Compute(device=self.device, bfloat16=self.device.type == "cuda", compiled=False)

    @property
    def machine(self) -> str:
        if self.device.type == "cuda":
            return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
        return f"CPU, {THREADS} threads, torch {torch.__version__}"

    @property
    def repeats(self) -> int:
        return 3 if self.quick else 7

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def timed(work: Callable[[], object], effort: Effort) -> float:
    """Seconds on the clock."""
    effort.wait()
    began = time.perf_counter()
    work()
    effort.wait()
    return time.perf_counter() - began


def ratios(first: Callable[[], object], second: Callable[[], object], effort: Effort) -> list[float]:
    """Time of the first by time of the second, in turn, after one of each to warm up."""
    first(), second()
    return [timed(first, effort) / timed(second, effort) for _ in range(effort.repeats)]


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


# --- data and networks


def fashion(split: str, rows: int) -> tuple[Tensor, Tensor]:
    """Clothes: uint8 (rows, 1, 28, 28) and labels int64 (rows,); digits where the package is not installed."""
    if not FASHION.exists():
        from sklearn.datasets import load_digits

        data = load_digits()
        small = torch.from_numpy(data.images).float()[:, None] * (255 / 16)
        images = nn.functional.interpolate(small, size=(28, 28), mode="bilinear").round().to(torch.uint8)
        half = slice(0, 1400) if split == "train" else slice(1400, None)
        return images[half][:rows], torch.from_numpy(data.target).long()[half][:rows]
    read = [gzip.decompress(next(FASHION.glob(f"{split}-{what}*")).read_bytes()) for what in ("images", "labels")]
    images = np.frombuffer(read[0], np.uint8, offset=16).reshape(-1, 1, 28, 28)[:rows]
    return torch.from_numpy(images.copy()), torch.from_numpy(
        np.frombuffer(read[1], np.uint8, offset=8)[:rows].astype(np.int64)
    )


def spec(architecture: str = "small-cnn", size: int = 28, channels: int = 1, classes: int = 10) -> ModelSpec:
    names = tuple(str(n) for n in range(classes))
    grey = (0.5,) * channels
    return ModelSpec(architecture=architecture, classes=names, image_size=size, channels=channels, mean=grey, std=grey)


def network(wanted: ModelSpec, seed: int = 0) -> Classifier:
    return build_classifier(wanted, torch.Generator().manual_seed(seed))


def on_disk(folder: Path, images: Tensor) -> Pixels:
    """Images as the cache has them: one memory-mapped array."""
    path = folder / f"{len(images)}x{images.shape[-1]}.npy"
    np.save(path, images.numpy())
    return Pixels([torch.from_numpy(np.load(path, mmap_mode="c"))], torch.arange(len(images)))


# --- parts


def head(effort: Effort) -> list[Line]:
    """Ten epochs of the head alone, both ways."""
    cases = [("small-cnn at 28", spec(), 2000 if effort.quick else 6000)]
    if not effort.quick:
        cases.append(("resnet18 at 96", spec("resnet18", 96, 3), 256))
    return [_head_line(name, wanted, rows, effort) for name, wanted, rows in cases]


def _head_line(name: str, wanted: ModelSpec, rows: int, effort: Effort) -> Line:
    pixels, labels = _rows(wanted, rows)
    batch = feature_batch(rows, BATCH)  # what the product takes; forwarding gets it, too
    how: dict[str, Any] = {"batch_size": batch, "seed": 0, "compute": Compute(device=effort.device)}
    config = LoopConfig(epochs=10, learning_rate=1e-3)

    def cached() -> None:
        model = network(wanted).to(effort.device)
        fit(model.head, embed(model, pixels, BATCH), labels, config, **how)

    def forwarded() -> None:
        model = network(wanted)
        model.body.requires_grad_(False)
        fit(model, pixels, labels, config, strategies=[Frozen()], **how)

    values = ratios(forwarded, cached, effort)
    figure = statistics.median(values)
    return Line(
        name=f"head, cached features, {name}",
        figure=figure,
        text=f"{spread(values)} times as fast as forwarding in each of 10 epochs",
        reached=figure >= GOALS["head"],
    )


def loop(effort: Effort) -> list[Line]:
    """Images a second of `fit` on images from disk, by those of the plainest loop on one batch in memory."""
    if effort.device.type == "cuda":
        cases = [("resnet50 at 224", spec("resnet50", 224, 3, 1000), 20_000, 256)]
    else:
        cases = [("small-cnn at 28", spec(), 3000 if effort.quick else 12_000, BATCH)]
        if not effort.quick:
            cases.append(("resnet18 at 64", spec("resnet18", 64, 3), 1500, BATCH))
    return [_loop_line(name, wanted, rows, batch, effort) for name, wanted, rows, batch in cases]


def _loop_line(name: str, wanted: ModelSpec, rows: int, batch: int, effort: Effort) -> Line:
    images, labels = _random_rows(wanted, rows)
    config = LoopConfig(epochs=1, learning_rate=1e-3)
    with tempfile.TemporaryDirectory(prefix="retrain-train-") as folder:
        pixels, model = on_disk(Path(folder), images), network(wanted)
        plain = PlainLoop(network(wanted), images[:batch], labels[:batch], effort.compute)

        def real() -> None:
            fit(model, pixels, labels, config, batch_size=batch, seed=0, compute=effort.compute)

        values = [1 / ratio for ratio in ratios(real, lambda: plain.run(math.ceil(rows / batch)), effort)]
    figure = statistics.median(values)
    return Line(
        name=f"loop, {name}",
        figure=figure,
        text=f"{spread(values)} of the rate of the same network fed from memory",
        reached=figure >= GOALS[f"loop {effort.device.type}"],
    )


class PlainLoop:
    """The least that trains: one batch in memory, channels_last, the same precision and optimiser; no hooks."""

    def __init__(self, model: Classifier, images: Tensor, labels: Tensor, compute: Compute) -> None:
        self.model = model.to(compute.device).to(memory_format=torch.channels_last).train()
        self.images = images.to(compute.device).contiguous(memory_format=torch.channels_last)
        self.labels, self.compute = labels.to(compute.device), compute
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            with self.compute.autocast():
                logits = self.model(self.images)
            loss = nn.functional.cross_entropy(logits.float(), self.labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()


def strategies(effort: Effort) -> list[Line]:
    """Time that a strategy adds to the steps, as a share of them; what it prepares once is told apart."""
    return [
        _strategy_line(name, Recipe(epochs=1, learning_rate=1e-3, **changes), effort)
        for name, changes in (("l2-sp", {"l2_sp": 0.1}), ("ewc", {"ewc": 1e4}), ("distillation", {"lwf": 1.0}))
    ]


def _strategy_line(name: str, recipe: Recipe, effort: Effort) -> Line:
    images, labels = fashion("train", 1500 if effort.quick else 4000)
    pixels = Pixels([images], torch.arange(len(images)))
    (strategy,) = strategies_of(recipe)
    situation = Situation(
        champion=network(spec()).to(effort.device).eval(),
        images=pixels,
        labels=labels.to(effort.device),
        memory=lambda: (pixels.subset(torch.arange(256)), labels[:256]),
        batch_rows=256,
    )
    kept: dict[str, Tensor] = {}
    prepared = timed(lambda: kept.update(strategy.prepare(situation)), effort)
    held, free = network(spec()).to(effort.device), network(spec()).to(effort.device)
    strategy.begin(held, kept)
    how: dict[str, Any] = {"batch_size": BATCH, "seed": 0, "compute": effort.compute}

    def with_it() -> None:
        fit(held, pixels, labels, recipe, strategies=[strategy], **how)

    def without() -> None:
        fit(free, pixels, labels, recipe, **how)

    values = [ratio - 1 for ratio in ratios(with_it, without, replace(effort, quick=False))]
    figure = statistics.median(values)
    return Line(
        name=f"{name} adds to a step",
        figure=figure,
        text=f"{spread(values)}; prepared once in {prepared / timed(without, effort):.2f} of an epoch",
        reached=figure <= GOALS[name],
    )


def peers(effort: Effort) -> list[Line]:
    """A window after a champion, learnt by Avalanche and by us: images a second, what strategies prepare included."""
    if effort.device.type == "cuda":
        print("  (Avalanche runs on the CPU here)")
        return []
    python = python_of("avalanche")
    scenario = Scenario.make(2000 if effort.quick else 8000)
    epochs, repeats = (2, 1) if effort.quick else (5, 3)
    lines = []
    with tempfile.TemporaryDirectory(prefix="retrain-peers-") as folder, running(python) as peer:
        scenario.write(Path(folder))
        for name, changes, theirs in STRATEGIES_OF_PEERS:
            request = {
                "folder": folder,
                "strategy": name,
                "mean": scenario.champion.spec.mean,
                "std": scenario.champion.spec.std,
                "epochs": epochs,
                "batch_size": BATCH,
                "learning_rate": RATE,
                "threads": THREADS,
                "seed": 0,
                "buffer_size": scenario.buffer,
                **theirs,
            }
            recipe = Recipe(epochs=epochs, learning_rate=RATE, **changes)
            found, ours = [], []
            for repeat in range(repeats):
                answer = peer.ask({**request, "seed": repeat}, PEER_SECONDS)
                seconds = answer["seconds"] + answer["seconds_old"]
                found.append((answer["images_learnt"] / seconds, answer["accuracy_old"], answer["accuracy_new"]))
                ours.append(scenario.train(recipe, repeat))
            lines.append(_against(name, ours, found))
            if name == "naive":
                lines.append(_limit([rate for rate, *_ in found], effort))
    return lines


def _limit(theirs: Sequence[float], effort: Effort) -> Line:
    """How far the network itself lets anyone get: the plainest loop against Avalanche's naive one."""
    images, labels = fashion("train", BATCH)
    plain, steps = PlainLoop(network(spec()), images, labels, effort.compute), 200
    plain.run(10)
    values = [steps * BATCH / timed(lambda: plain.run(steps), effort) / rate for rate in theirs]
    return Line(
        name="the network alone, same batch",
        figure=statistics.median(values),
        text=f"{spread(values)} times its images a second: no loop of this network is faster",
        reached=None,
    )


@contextmanager
def running(python: Path) -> Iterator[ToolProcess]:
    """The peer's process, ready for requests; ended afterwards."""
    peer = ToolProcess(python, "continual.py", threads=THREADS)
    peer.start()
    try:
        peer.wait_until_ready()
        yield peer
    finally:
        peer.stop()


def _against(name: str, ours: list[tuple[float, float, float]], theirs: list[tuple[float, float, float]]) -> Line:
    """Compare images a second and accuracies (old, new), medians over repeats."""
    speeds = [mine[0] / other[0] for mine, other in zip(ours, theirs, strict=True)]
    scores = [[statistics.median(values) for values in zip(*runs, strict=True)][1:] for runs in (ours, theirs)]
    means = [100 * sum(score) / 2 for score in scores]
    figure = statistics.median(speeds)
    told = ", ".join(
        f"{who} {100 * old:.1f} old {100 * new:.1f} new"
        for who, (old, new) in zip(("ours", "theirs"), scores, strict=True)
    )
    return Line(
        name=f"against Avalanche, {name}",
        figure=figure,
        text=f"{spread(speeds)} times its images a second; accuracy {told}",
        reached=figure >= PEER_GOAL and means[0] >= means[1] - NOISE_POINTS,
    )


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A champion of eight kinds of clothes; a window in which half of the images lie on their side and two kinds are
    new. `old`, `new` and the tests: images uint8 (n, 1, 28, 28), labels int64 (n,)."""

    champion: Classifier
    grown: Classifier
    old: tuple[Tensor, Tensor]
    new: tuple[Tensor, Tensor]
    test_old: tuple[Tensor, Tensor]
    test_new: tuple[Tensor, Tensor]
    buffer: int

    @classmethod
    def make(cls, rows: int) -> Scenario:
        train, test = fashion("train", 3 * rows), fashion("t10k" if FASHION.exists() else "test", rows)
        known = train[1] < 8
        old = tuple(part[known][:rows] for part in train)
        later = slice(2 * rows, 3 * rows)
        new, test_new = (lie_down(*part) for part in ((train[0][later], train[1][later]), test))
        test_old = tuple(part[test[1] < 8] for part in test)
        champion = network(spec(classes=8))
        fit(champion, Pixels([old[0]], torch.arange(len(old[0]))), old[1], Recipe(epochs=5, learning_rate=RATE),
            batch_size=BATCH, seed=0)  # fmt: skip
        grown = grow_head(champion.eval(), spec().classes, torch.Generator().manual_seed(0))
        return cls(
            champion=champion, grown=grown, old=old, new=new, test_old=test_old, test_new=test_new, buffer=rows // 8
        )  # type: ignore[arg-type]

    def write(self, folder: Path) -> None:
        """Everything, as the peer reads it."""
        for name in ("old", "new", "test_old", "test_new"):
            images, labels = getattr(self, name)
            np.save(folder / f"{name}_images.npy", images.numpy())
            np.save(folder / f"{name}_labels.npy", labels.numpy())
        np.savez(folder / "state.npz", **{name: value.numpy() for name, value in self.grown.state_dict().items()})

    def train(self, recipe: Recipe, seed: int) -> tuple[float, float, float]:
        """Images a second, all that is prepared included, and accuracy on old and new test images."""
        rows = {name: _image_set(*getattr(self, name)) for name in ("old", "new")}
        chosen = choose_replay(rows["old"].labels, self.buffer, torch.Generator().manual_seed(seed))
        replayed = rows["old"].subset(chosen if recipe.rows == "replay" else chosen[:0])
        # The peer starts from a head that has grown: no separate fit of it here.
        task = Task(
            spec=self.grown.spec,
            champion=self.grown,
            fresh=lambda: network(self.grown.spec),
            old=replayed,
            new=rows["new"],
            memory=lambda: rows["old"].subset(chosen[:256]),
            recipe=recipe,
            head=LoopConfig(epochs=1, learning_rate=RATE),
            batch_size=BATCH,
            seed=seed,
        )
        began = time.perf_counter()
        trained = train_challenger(task)
        seconds = time.perf_counter() - began
        scores = [accuracy(trained.model, *getattr(self, name), Compute()) for name in ("test_old", "test_new")]
        return trained.rows * recipe.epochs / seconds, scores[0], scores[1]


def lie_down(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Turn every second image by 90 degrees."""
    turned = images.clone()
    turned[::2] = images[::2].rot90(1, (2, 3))
    return turned, labels


def _image_set(images: Tensor, labels: Tensor) -> ImageSet:
    names = pa.table(
        {"sha256": [str(n) for n in range(len(labels))], "group": pa.array([None] * len(labels), pa.string())}
    )
    return ImageSet(
        images=Pixels([images], torch.arange(len(images))), labels=labels, classes=spec().classes, rows=names
    )


class Frozen(Strategy):
    """Evaluation mode for everything: what forwarding through a fixed body means."""

    def set_mode(self, model: nn.Module) -> None:
        model.eval()


def _rows(wanted: ModelSpec, rows: int) -> tuple[Pixels, Tensor]:
    images, labels = fashion("train", rows) if wanted.channels == 1 else _random_rows(wanted, rows)
    return Pixels([images], torch.arange(len(images))), labels


def _random_rows(wanted: ModelSpec, rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (rows, wanted.channels, wanted.image_size, wanted.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, len(wanted.classes), (rows,), generator=generator)


if __name__ == "__main__":
    sys.exit(main())
