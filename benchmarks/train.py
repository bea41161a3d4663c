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
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from components.core.datasets import Pixels
from components.core.models import Classifier, ModelSpec, build_classifier
from components.core.recipes import LoopConfig, Recipe
from components.train.compute import Compute
from components.train.loop import fit
from components.train.strategies import strategies_of
from components.train.strategy import Situation

FASHION = Path("/usr/share/datasets/fashion-mnist")
THREADS = 2
BATCH = 64
NOISE_POINTS = 0.5
GOALS = {"head": 8.0, "loop cpu": 0.95, "loop cuda": 0.90, "l2-sp": 0.05, "ewc": 0.05, "distillation": 0.12}
PEER_GOAL = 2.0


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
    lines = []
    cases = [("small-cnn at 28", spec(), 2000 if effort.quick else 6000, BATCH)]
    if not effort.quick:
        cases.append(("resnet18 at 96", spec("resnet18", 96, 3), 256, BATCH))
    for name, wanted, rows, batch in cases:
        pixels, labels = _rows(wanted, rows)
        config = LoopConfig(epochs=10, learning_rate=1e-3)

        def cached(wanted: ModelSpec = wanted, pixels: Pixels = pixels, labels: Tensor = labels) -> None:
            from components.train.strategies import embed

            model = network(wanted).to(effort.device)
            fit(
                model.head,
                embed(model, pixels, batch),
                labels,
                config,
                batch_size=batch,
                seed=0,
                compute=_plain(effort),
            )

        def forwarded(wanted: ModelSpec = wanted, pixels: Pixels = pixels, labels: Tensor = labels) -> None:
            model = network(wanted)
            model.body.requires_grad_(False)
            keep = _Frozen()
            fit(model, pixels, labels, config, batch_size=batch, seed=0, compute=_plain(effort), strategies=[keep])

        values = ratios(forwarded, cached, effort)
        figure = statistics.median(values)
        lines.append(
            Line(
                name=f"head, cached features, {name}",
                figure=figure,
                text=f"{spread(values)} times as fast as forwarding in each of 10 epochs",
                reached=figure >= GOALS["head"],
            )
        )
    return lines


def loop(effort: Effort) -> list[Line]:
    """Images a second of `fit` on images from disk, by those of the plainest loop on one batch in memory."""
    if effort.device.type == "cuda":
        cases = [("resnet50 at 224", spec("resnet50", 224, 3, 1000), 20_000, 256)]
    else:
        cases = [("small-cnn at 28", spec(), 3000 if effort.quick else 12_000, BATCH)]
        if not effort.quick:
            cases.append(("resnet18 at 64", spec("resnet18", 64, 3), 1500, BATCH))
    lines = []
    for name, wanted, rows, batch in cases:
        with tempfile.TemporaryDirectory(prefix="retrain-train-") as folder:
            images, labels = _random_rows(wanted, rows)
            pixels = on_disk(Path(folder), images)
            ours, theirs = network(wanted), network(wanted)
            steps = rows // batch

            def real(
                ours: Classifier = ours, pixels: Pixels = pixels, labels: Tensor = labels, batch: int = batch
            ) -> None:
                config = LoopConfig(epochs=1, learning_rate=1e-3)
                fit(ours, pixels, labels, config, batch_size=batch, seed=0, compute=effort.compute)

            plain = PlainLoop(theirs, images[:batch], labels[:batch], effort.compute)
            values = [1 / r for r in ratios(real, lambda plain=plain, steps=steps: plain.run(steps), effort)]
        figure = statistics.median(values)
        goal = GOALS[f"loop {effort.device.type}"]
        lines.append(
            Line(
                name=f"loop, {name}",
                figure=figure,
                text=f"{spread(values)} of the rate of the same network fed from memory",
                reached=figure >= goal,
            )
        )
    return lines


class PlainLoop:
    """The least that trains: one batch in memory, channels_last, the same precision and optimiser; no data, no hooks."""

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
    wanted = spec()
    rows = 1500 if effort.quick else 4000
    images, labels = fashion("train", rows)
    pixels = Pixels([images], torch.arange(len(images)))
    champion = network(wanted).to(effort.device).eval()
    config = Recipe(epochs=1, learning_rate=1e-3)
    lines = []
    for name, changes in (("l2-sp", {"l2_sp": 0.1}), ("ewc", {"ewc": 1e4}), ("distillation", {"lwf": 1.0})):
        recipe = config.model_copy(update=changes)
        (strategy,) = strategies_of(recipe)
        situation = Situation(
            champion=champion,
            images=pixels,
            labels=labels.to(effort.device),
            memory=lambda: (pixels.subset(torch.arange(256)), labels[:256]),
            batch_rows=256,
        )
        began = time.perf_counter()
        kept = strategy.prepare(situation)
        effort.wait()
        prepared = time.perf_counter() - began
        held, free = network(wanted).to(effort.device), network(wanted).to(effort.device)
        strategy.begin(held, kept)

        def with_it(held: Classifier = held, recipe: Recipe = recipe, strategy: object = strategy) -> None:
            fit(
                held,
                pixels,
                labels,
                recipe,
                batch_size=BATCH,
                seed=0,
                compute=effort.compute,
                strategies=[strategy],  # type: ignore[list-item]
            )

        def without(free: Classifier = free) -> None:
            fit(free, pixels, labels, config, batch_size=BATCH, seed=0, compute=effort.compute)

        values = [value - 1 for value in ratios(with_it, without, replace(effort, quick=False))]
        figure, epoch = statistics.median(values), timed(without, effort)
        lines.append(
            Line(
                name=f"{name} adds to a step",
                figure=figure,
                text=f"{spread(values)}; prepared once in {prepared / epoch:.2f} of an epoch",
                reached=figure <= GOALS[name],
            )
        )
    return lines


def peers(effort: Effort) -> list[Line]:
    return []


class _Frozen:
    """Evaluation mode for everything: what forwarding through a fixed body means."""

    def set_mode(self, model: nn.Module) -> None:
        model.eval()

    def add_gradient(self) -> None:
        pass

    def loss(self, _batch: object) -> None:
        return None


def _plain(effort: Effort) -> Compute:
    return Compute(device=effort.device)


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
