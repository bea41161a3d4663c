"""Change images in known and unknown ways: is the champion's loss estimated, and is the change named, without labels?

Real images: Fashion-MNIST (28 x 28, where it is installed), scikit-learn's digits (16 x 16) and patches of colour
photographs (32 x 32). A small network is trained on a part of each and rehearses the corruptions on another; windows
are drawn from a third. Its last class is kept from it, to have one that it does not know.

Severity: windows of 1,000 images (digits: all that are left, about 620). A window of a rehearsed kind is judged with a
table from which that kind was taken; nine kinds and mixtures of two were never in it. Strengths are squares of uniform
numbers: weak changes are more frequent than strong ones.
Naming: windows of 200 images, all kinds rehearsed; what matters is what costs three points of accuracy or more.

    .venv/bin/python benchmarks/drift_severity.py [--quick] [--check] [--seeds N] [--first-seed K]

Features, widths and thresholds were chosen with other champions on the same data sets.
"""

from __future__ import annotations

import argparse
import gzip
import io
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from triage import photo_patches

from components.core.changes import ChangeTable, rehearse_changes, summarise_confidence
from components.core.corruptions import CORRUPTIONS, corrupt, corruptions_for
from components.core.models import Classifier, Features, ModelSpec, build_classifier, extract_features
from components.core.recipes import LoopConfig
from components.detect_drift.naming import name_change
from components.detect_drift.severity import estimate_drop
from components.train.loop import fit

FASHION = Path("/usr/share/datasets/fashion-mnist")
SEVERITY_ROWS, NAMING_ROWS = 1000, 200
MATTERS = 0.03
GOAL_ERROR, GOAL_NAMED, GOAL_FALSE = 4.5, 0.94, 0.02
TUNING_SEEDS = 1


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Labelled images in random order, uint8 (n, c, h, w) and int64 (n,); the champion is trained on the first `train`
    of those whose class it may know, rehearses on the next `rehearse`, and windows come from the rest."""

    name: str
    images: Tensor
    labels: Tensor
    train: int
    rehearse: int
    epochs: int

    @property
    def unseen(self) -> int:
        return int(self.labels.max())

    def part(self, which: slice) -> tuple[Tensor, Tensor]:
        known = (self.labels != self.unseen).nonzero().flatten()[which]
        return self.images[known], self.labels[known]


def collections() -> Iterator[Collection]:
    """The data sets that are there."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    scans = torch.from_numpy(data.images[order].astype(np.float32) * 255 / 16)[:, None]
    digits = functional.interpolate(scans, (16, 16), mode="bilinear").round().clamp(0, 255).to(torch.uint8)
    labels = torch.from_numpy(data.target[order]).long()
    yield Collection(name="digits", images=digits, labels=labels, train=500, rehearse=500, epochs=25)
    patches = list(photo_patches(np.random.default_rng(0), 400))
    names = sorted({label for _, label in patches})
    small = [np.asarray(Image.fromarray(p).resize((32, 32), Image.Resampling.BILINEAR)) for p, _ in patches]
    photos = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor([names.index(label) for _, label in patches])
    yield Collection(name="photographs", images=photos, labels=labels, train=1500, rehearse=800, epochs=8)
    if FASHION.exists():
        pixels = gzip.decompress((FASHION / "train-images-idx3-ubyte.gz").read_bytes())[16:]
        answers = gzip.decompress((FASHION / "train-labels-idx1-ubyte.gz").read_bytes())[8:]
        clothes = torch.from_numpy(np.frombuffer(pixels, np.uint8).reshape(-1, 1, 28, 28)[:14000].copy())
        labels = torch.from_numpy(np.frombuffer(answers, np.uint8)[:14000].astype(np.int64))
        yield Collection(name="fashion", images=clothes, labels=labels, train=5000, rehearse=1000, epochs=5)


def train_champion(collection: Collection, seed: int) -> Classifier:
    images, labels = collection.part(slice(collection.train))
    channels = images.shape[1]
    spec = ModelSpec(
        architecture="small-cnn",
        classes=tuple(str(n) for n in range(collection.unseen)),
        image_size=images.shape[2],
        channels=channels,
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
    )
    generator = torch.Generator().manual_seed(seed)
    model = build_classifier(spec, generator).train()
    loop = LoopConfig(epochs=collection.epochs, learning_rate=0.004)
    fit(model, images, labels, loop, batch_size=32, seed=seed)
    return model.eval()


# Kinds that were never rehearsed: images, strength in (0, 1], generator -> images.
Change = Callable[[Tensor, float, torch.Generator], Tensor]


def gamma(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    exponent = (1 + 2 * strength) ** (1 if torch.rand((), generator=generator) < 0.5 else -1)
    return to_uint8((images.float() / 255) ** exponent * 255)


def jpeg(images: Tensor, strength: float, _generator: torch.Generator) -> Tensor:
    return torch.stack([through_jpeg(image, round(32 - 30 * strength)) for image in images])


def through_jpeg(image: Tensor, quality: int) -> Tensor:
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(buffer, "JPEG", quality=quality)
    decoded = np.asarray(Image.open(buffer)).reshape(*image.shape[1:], image.shape[0])
    return torch.from_numpy(decoded.copy()).permute(2, 0, 1)


def shear(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    matrix = torch.eye(2, 3).repeat(len(images), 1, 1)
    matrix[:, 0, 1] = (torch.randint(2, (len(images),), generator=generator) * 2 - 1) * strength
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return to_uint8(functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False))


def salt_and_pepper(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    chance = torch.rand(images.shape, generator=generator)
    low, high = (torch.tensor(value, dtype=torch.uint8) for value in (0, 255))
    return torch.where(chance < 0.15 * strength, low, torch.where(chance > 1 - 0.15 * strength, high, images))


def motion(images: Tensor, strength: float, _generator: torch.Generator) -> Tensor:
    reach = max(1, round(0.15 * strength * images.shape[3]))
    around = functional.pad(images.float(), (reach, reach, 0, 0), mode="replicate")
    return to_uint8(functional.avg_pool2d(around, (1, 2 * reach + 1), 1))


def vignette(images: Tensor, strength: float, _generator: torch.Generator) -> Tensor:
    y, x = (torch.linspace(-1, 1, side) for side in images.shape[2:])
    return to_uint8(images.float() * (1 - strength * (y[:, None] ** 2 + x**2) / 1.5).clamp(min=0))


def light_from_the_side(images: Tensor, strength: float, _generator: torch.Generator) -> Tensor:
    return to_uint8(images.float() + torch.linspace(0, 140 * strength, images.shape[3]))


def few_levels(images: Tensor, strength: float, _generator: torch.Generator) -> Tensor:
    levels = max(2, round(10 - 8 * strength)) - 1
    return to_uint8((images.float() / 255 * levels).round() / levels * 255)


def upside_down(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    chosen = torch.rand(len(images), generator=generator) < strength
    return torch.where(chosen[:, None, None, None], images.flip(2), images)


def two_at_once(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    kinds = corruptions_for(images.shape[1])
    for number in torch.randperm(len(kinds), generator=generator)[:2].tolist():
        images = corrupt(kinds[number], images, 0.7 * strength, generator)
    return images


UNKNOWN: dict[str, Change] = {
    "gamma": gamma,
    "jpeg": jpeg,
    "shear": shear,
    "salt-and-pepper": salt_and_pepper,
    "motion": motion,
    "vignette": vignette,
    "side-light": light_from_the_side,
    "few-levels": few_levels,
    "upside-down": upside_down,
    "two-at-once": two_at_once,
}


def to_uint8(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


def draw_strength(generator: torch.Generator) -> float:
    return max(0.02, float(torch.rand((), generator=generator)) ** 2)


class Bench:
    """A champion with its rehearsal, and windows for it."""

    def __init__(self, collection: Collection, seed: int) -> None:
        self.collection = collection
        began = time.monotonic()
        self.model = train_champion(collection, seed)
        trained = time.monotonic()
        self.generator = torch.Generator().manual_seed(1000 + seed)
        held_out = collection.part(slice(collection.train, collection.train + collection.rehearse))
        self.table = rehearse_changes(self.model, *held_out, self.generator)
        size = sum(value.nbytes for value in self.table.to_tensors().values())
        self.images, self.labels = collection.part(slice(collection.train + collection.rehearse, None))
        print(
            f"\n{collection.name}, seed {seed}: accuracy {self.table.baseline.accuracy:.3f}, training "
            f"{trained - began:.0f} s, rehearsal {time.monotonic() - trained:.0f} s, table {size / 1024:.0f} KiB"
        )

    def window(self, rows: int, change: Change | None = None) -> tuple[Features, float]:
        """Features of a window, and the accuracy on it."""
        index = torch.randperm(len(self.images), generator=self.generator)[:rows]
        return self.see(index, change)

    def see(self, index: Tensor, change: Change | None) -> tuple[Features, float]:
        images = self.images[index]
        if change is not None:
            images = change(images, draw_strength(self.generator), self.generator)
        features = extract_features(self.model, images.split(250))
        return features, float((features.probabilities.argmax(1) == self.labels[index]).float().mean())

    def prior_shift(self, rows: int) -> tuple[Features, float]:
        """A window in which two classes have most of the images."""
        favoured = torch.randperm(self.collection.unseen, generator=self.generator)[:2]
        weights = torch.where(torch.isin(self.labels, favoured), 10.0, 1.0)
        return self.see(torch.multinomial(weights, rows, generator=self.generator), None)

    def two_classes(self) -> tuple[Features, float]:
        """All images of two classes, and no others."""
        favoured = torch.randperm(self.collection.unseen, generator=self.generator)[:2]
        return self.see(torch.isin(self.labels, favoured).nonzero().flatten()[:SEVERITY_ROWS], None)

    def unseen_class(self, rows: int) -> Features:
        """A window of which a quarter is of the class that the champion does not know."""
        known = self.images[torch.randperm(len(self.images), generator=self.generator)[: rows - rows // 4]]
        pool = (self.collection.labels == self.collection.unseen).nonzero().flatten()
        strange = self.collection.images[pool[torch.randperm(len(pool), generator=self.generator)[: rows // 4]]]
        return extract_features(self.model, [known, strange])


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A window's true drop with what was estimated; drops in [-1, 1]."""

    collection: str
    group: str
    kind: str
    true: float
    estimated: float
    atc: float
    doc: float
    covered: bool
    width: float


def without(table: ChangeTable, kind: str) -> ChangeTable:
    """The table as if a kind had not been rehearsed."""
    keep = torch.tensor([name != kind for name in table.kinds])
    return replace(
        table,
        kinds=tuple(name for name in table.kinds if name != kind),
        strengths=table.strengths[keep],
        signatures=table.signatures[keep],
        summaries=table.summaries[keep],
        accuracies=table.accuracies[keep],
    )


def judge(bench: Bench, table: ChangeTable, group: str, kind: str, seen: tuple[Features, float]) -> Judged:
    features, accuracy = seen
    before = table.baseline.accuracy
    estimate = estimate_drop(table, features.probabilities, features.early, features.pixels)
    assert estimate is not None
    atc, _entropy, doc = summarise_confidence(features.probabilities, table.baseline)[:3].tolist()
    true = before - accuracy
    return Judged(
        collection=bench.collection.name,
        group=group,
        kind=kind,
        true=true,
        estimated=estimate.drop,
        atc=before - atc,
        doc=before - doc,
        covered=estimate.interval.lower <= true <= estimate.interval.upper,
        width=estimate.interval.upper - estimate.interval.lower,
    )


def judge_severity(bench: Bench, windows: int) -> list[Judged]:
    rows = min(SEVERITY_ROWS, len(bench.images))
    table = bench.table
    judged = []
    for kind in corruptions_for(bench.images.shape[1]):
        reduced = without(table, kind)
        for _ in range(windows):
            judged.append(judge(bench, reduced, "left out", kind, bench.window(rows, CORRUPTIONS[kind])))
    for kind, change in UNKNOWN.items():
        for _ in range(windows * (4 if kind == "two-at-once" else 1)):
            judged.append(judge(bench, table, "unknown", kind, bench.window(rows, change)))
    for _ in range(3 * windows):
        judged.append(judge(bench, table, "nothing", "clean", bench.window(rows)))
        judged.append(judge(bench, table, "nothing", "prior shift", bench.prior_shift(rows)))
        judged.append(judge(bench, table, "nothing", "two classes", bench.two_classes()))
    return judged


@dataclass(frozen=True, kw_only=True)
class Named:
    """What a window's change was called; `kind` is what it was, `loss` of accuracy."""

    collection: str
    kind: str
    loss: float
    name: str | None


def judge_naming(bench: Bench, windows: int) -> list[Named]:
    def named(kind: str, features: Features, loss: float = 0.0) -> Named:
        # A window of lower resolution arrives with fewer pixels, which the manifest says; the pictures here are
        # enlarged again before anything looks at them.
        found = name_change(bench.table, features.early, features.pixels, reduced=kind == "resolution")
        return Named(collection=bench.collection.name, kind=kind, loss=loss, name=found and found.kind)

    result = []
    for kind in corruptions_for(bench.images.shape[1]):
        for _ in range(3 * windows):
            features, accuracy = bench.window(NAMING_ROWS, CORRUPTIONS[kind])
            result.append(named(kind, features, bench.table.baseline.accuracy - accuracy))
    for _ in range(10 * windows):
        result.append(named("clean", bench.window(NAMING_ROWS)[0]))
        result.append(named("prior shift", bench.prior_shift(NAMING_ROWS)[0]))
        result.append(named("two classes", bench.two_classes()[0]))
        result.append(named("unseen class", bench.unseen_class(NAMING_ROWS)))
    return result


def points(values: list[float]) -> float:
    """Mean in points of accuracy."""
    return 100 * float(np.mean(values)) if values else float("nan")


def print_severity(judged: list[Judged]) -> None:
    heads = zip((9, 9, 8, 8, 8, 9, 8), ("windows", "no drop", "ATC", "DoC", "ours", "covered", "width"), strict=True)
    print(f"\n{'error in points':34s}" + "".join(f"{head:>{width}}" for width, head in heads))
    groups = list(dict.fromkeys((j.collection, j.group) for j in judged))
    kinds = list(dict.fromkeys(("all", j.kind) for j in judged))
    for where, what in [*groups, *kinds]:
        rows = [j for j in judged if (where == "all" and j.kind == what) or (j.collection, j.group) == (where, what)]
        print_line(f"{where}: {what}", rows)


def print_line(title: str, rows: list[Judged]) -> None:
    errors = [points([abs(j.true - guess(j)) for j in rows]) for guess in GUESSES]
    print(
        f"{title:34s}{len(rows):>9}{errors[0]:>9.1f}{errors[1]:>8.1f}{errors[2]:>8.1f}{errors[3]:>8.1f}"
        f"{np.mean([j.covered for j in rows]):>9.0%}{points([j.width for j in rows]):>8.1f}"
    )


GUESSES: tuple[Callable[[Judged], float], ...] = (
    lambda _j: 0.0,
    lambda j: j.atc,
    lambda j: j.doc,
    lambda j: j.estimated,
)
NOT_TO_NAME = ("clean", "prior shift", "two classes", "unseen class")


def print_naming(named: list[Named]) -> None:
    print(f"\n{'change':34s}{'windows':>9}{'right':>8}{'none':>8}  called otherwise (what matters only)")
    for kind in dict.fromkeys(n.kind for n in named):
        rows = [n for n in named if n.kind == kind and (n.loss >= MATTERS or kind in NOT_TO_NAME)]
        wrong = Counter(n.name for n in rows if n.name not in (None, kind))
        count = max(1, len(rows))
        print(
            f"{kind:34s}{len(rows):>9}{sum(n.name == kind for n in rows) / count:>8.0%}"
            f"{sum(n.name is None for n in rows) / count:>8.0%}  "
            + ", ".join(f"{k} {c}" for k, c in wrong.most_common())
        )


def print_figures(judged: list[Judged], named: list[Named]) -> bool:
    """The key figures, and whether the goals are met."""
    shifted = [j for j in judged if j.group != "nothing"]
    error = points([abs(j.true - j.estimated) for j in shifted])
    matter = [n for n in named if n.kind not in NOT_TO_NAME and n.loss >= MATTERS]
    right = sum(n.name == n.kind for n in matter) / len(matter)
    little = [n for n in named if n.kind not in NOT_TO_NAME and n.loss < MATTERS]
    print("\nkey figures, over all data sets\n")
    print(f"accuracy drop, mean absolute error over {len(shifted)} windows of kinds not rehearsed, points of accuracy")
    for title, guess in zip(("assume no drop", "ATC", "DoC", f"ours (at most {GOAL_ERROR})"), GUESSES, strict=True):
        print(f"  {title:36s}{points([abs(j.true - guess(j)) for j in shifted]):6.1f}")
    print(f"  {'interval of 90 % holds the truth in':36s}{np.mean([j.covered for j in shifted]):6.0%}")
    print(f"named right, of {len(matter)} windows that matter (at least {GOAL_NAMED:.0%}): {right:.1%}")
    for title, rows in (("the same", matter), (f"{len(little)} that cost less", little)):
        print(f"named wrong, of {title}: {np.mean([n.name not in (None, n.kind) for n in rows]):.1%}")
    false = {k: [n.name is not None for n in named if n.kind == k] for k in NOT_TO_NAME}
    for kind, names in false.items():
        print(f"given a name, of {len(names)} windows with {kind}: {np.mean(names):.1%}")
    quiet = all(np.mean(false[kind]) <= GOAL_FALSE for kind in ("clean", "prior shift"))
    return error <= GOAL_ERROR and right >= GOAL_NAMED and quiet


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="one champion each, two windows a kind")
    arguments.add_argument("--check", action="store_true", help="exit 1 unless the goals are met")
    arguments.add_argument("--seeds", type=int, default=3, help="champions of each data set")
    arguments.add_argument("--first-seed", type=int, default=TUNING_SEEDS, help="0: the one that tuned")
    options = arguments.parse_args()
    torch.set_num_threads(1)  # networks this small wait for each other's threads longer than they compute
    judged: list[Judged] = []
    named: list[Named] = []
    for collection in collections():
        for seed in range(options.first_seed, options.first_seed + (1 if options.quick else options.seeds)):
            bench = Bench(collection, seed)
            windows = 2 if options.quick else 4
            judged += judge_severity(bench, windows)
            named += judge_naming(bench, windows)
    print_severity(judged)
    print_naming(named)
    met = print_figures(judged, named)
    return int(options.check and not met)


if __name__ == "__main__":
    sys.exit(main())
