"""Rehearsal of changes: what known corruptions do to a champion, on labelled images that it did not train on.

Training writes the resulting `ChangeTable` along with a version; the drift step then judges how much a change matters
and what kind it is (`detect_drift.severity`, `detect_drift.naming`) without old images and without labels. Covers the
table, the summary of confidence that it is made of, and the rehearsal. Not covered: whether there is
a change at all (`detect_drift.detectors`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from components.core.corruptions import corrupt, corruptions_for
from components.core.logs import progress
from components.core.models import Classifier, Features, extract_features

CLEAN, CLASS_MIX = "clean", "class-mix"  # kinds of rows that are no corruption: nothing done; other shares of classes
STRENGTHS = (0.05, 0.15, 0.35, 0.65, 1.0)
CLASS_MIXES = 40  # draws: with these in the table, other shares of classes are neither a loss nor a blur
LEAST_ROWS, MOST_ROWS = 50, 1000
BATCH_ROWS = 256
EARLY_MOST = 128  # columns of early statistics that count: a vision transformer has 1,536, the table would not be small
SHRINKAGE = 0.1  # of the covariance towards independent columns; 0.01 to 0.3 name alike (benchmarks/drift_severity.py)
PREFIX = "changes."  # of the table's tensors, which lie in one file with others


class Images(Protocol):
    """n images that are read when they are asked for: a tensor or `datasets.Pixels`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor, /) -> Tensor:
        """The images at an index, int64 (b,): uint8, shape (b, channels, height, width)."""


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A champion's answers to m held-out images as they are, with which others are compared.

    Attributes:
        rows: m.
        accuracy: In [0, 1].
        mean_confidence: Of the largest probabilities, in [0, 1].
        thresholds: float32, shape (2,): the largest probability, and the negative entropy (nats), that a share
            `accuracy` of the images reaches.
        probabilities: float32, shape (classes,): sum of the probabilities.
        predictions: float32, shape (classes,): how often each class was the answer.
        agreement: float32, shape (2,): probability that two images get one answer: drawn from their probabilities, and
            the most probable one; at least 0.1 / classes.
    """

    rows: int
    accuracy: float
    mean_confidence: float
    thresholds: Tensor
    probabilities: Tensor
    predictions: Tensor
    agreement: Tensor


@dataclass(frozen=True, kw_only=True)
class ChangeTable:
    """What r changes do to a champion; d columns of early and pixel statistics, s of confidence.

    Below 400 KB: d is at most 145, r at most 181 with the defaults,
    and only two vectors grow with the number of classes.

    Attributes:
        kinds: Name of each row's change: of `CORRUPTIONS`, `CLEAN` or `CLASS_MIX`.
        strengths: float32, shape (r,), in (0, 1]; 0 where nothing was corrupted.
        signatures: float32, shape (r, d): see `signature`.
        summaries: float32, shape (r, s): see `summarise_confidence`.
        accuracies: float32, shape (r,): the champion's, in [0, 1].
        baseline: The clean sample's answers.
        centre: float32, shape (d,): mean statistics of the clean sample.
        whitening: float32, shape (d, d): turns differences of means into uncorrelated ones of unit variance.
    """

    kinds: tuple[str, ...]
    strengths: Tensor
    signatures: Tensor
    summaries: Tensor
    accuracies: Tensor
    baseline: Baseline
    centre: Tensor
    whitening: Tensor

    def signature(self, early: Tensor, pixels: Tensor) -> Tensor:
        """Mean difference of images from the clean sample, in standard deviations of one image.

        Args:
            early: `Features.early` of n images, float32, shape (n, e).
            pixels: `Features.pixels` of the same, float32, shape (n, p).

        Returns:
            float32, shape (d,). Uncorrelated directions, so that early and pixel statistics do not count twice.

        Raises:
            ValueError: There are no rows, another number of columns, or values that are not finite.
        """
        columns = _columns(early, pixels)
        if columns.ndim != 2 or len(columns) < 1 or columns.shape[1] != len(self.centre):
            raise ValueError(f"statistics {tuple(columns.shape)}: expected (n >= 1, {len(self.centre)})")
        if not bool(columns.isfinite().all()):
            raise ValueError("statistics of images hold values that are not finite")
        return (columns.mean(0) - self.centre) @ self.whitening

    def to_tensors(self) -> dict[str, Tensor]:
        """The table as tensors to store in a safetensors file, beside others: all names start with `changes.`."""
        base = self.baseline
        tensors = {
            "kinds": torch.tensor(list("\n".join(self.kinds).encode()), dtype=torch.uint8),
            "strengths": self.strengths,
            "signatures": self.signatures,
            "summaries": self.summaries,
            "accuracies": self.accuracies,
            "centre": self.centre,
            "whitening": self.whitening,
            "baseline": torch.tensor([base.rows, base.accuracy, base.mean_confidence], dtype=torch.float64),
            "thresholds": base.thresholds,
            "probabilities": base.probabilities,
            "predictions": base.predictions,
            "agreement": base.agreement,
        }
        return {PREFIX + name: value.contiguous() for name, value in tensors.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> ChangeTable:
        """Read the table that `to_tensors` gave; other tensors are passed over.

        Raises:
            ValueError: A tensor of the table is missing.
        """
        own = {name.removeprefix(PREFIX): value for name, value in tensors.items() if name.startswith(PREFIX)}
        try:
            rows, accuracy, mean_confidence = own.pop("baseline").tolist()
            kinds = bytes(own.pop("kinds").tolist()).decode().split("\n")
            names = ("thresholds", "probabilities", "predictions", "agreement")
            baseline = Baseline(
                rows=int(rows),
                accuracy=accuracy,
                mean_confidence=mean_confidence,
                **{name: own.pop(name) for name in names},
            )
            return cls(kinds=tuple(kinds), baseline=baseline, **own)
        except (KeyError, TypeError) as error:
            raise ValueError(f"no table of changes: {error}") from error


@torch.inference_mode()
def rehearse_changes(
    model: Classifier,
    images: Images,
    labels: Tensor,
    generator: torch.Generator,
    *,
    most_rows: int = MOST_ROWS,
    strengths: tuple[float, ...] = STRENGTHS,
) -> ChangeTable:
    """Show a champion every corruption of a labelled sample, and note what becomes of its answers.

    Costs 1 + kinds x strengths forward passes over `most_rows` images at most: 66 for grey ones, 71 for colour. Two
    kinds of rows cost nothing more: half of the images corrupted, and other shares of the classes.

    Args:
        model: The champion; is put in evaluation mode.
        images: n >= 50 images that the champion did not train on.
        labels: Indices of its classes, int64, shape (n,).
        generator: Of the draws and corruptions, on the CPU.
        most_rows: Images that are drawn at most.
        strengths: Each in (0, 1].

    Raises:
        ValueError: Too few images, or labels that are none of the champion's classes.
    """
    if len(images) < LEAST_ROWS or labels.shape != (len(images),):
        raise ValueError(f"{len(images)} images, labels {tuple(labels.shape)}: expected {LEAST_ROWS} or more of both")
    if int(labels.min()) < 0 or int(labels.max()) >= len(model.spec.classes):
        raise ValueError("a label is none of the champion's classes")
    chosen = torch.randperm(len(images), generator=generator)[:most_rows]
    labels = labels.cpu()[chosen]
    clean = _observe(model, images, chosen, None, generator)
    baseline = _baseline(clean.features.probabilities, labels)
    centre, whitening = _whitening(clean.columns)
    rows = _Rows(clean=clean, labels=labels, baseline=baseline)
    rows.add(CLEAN, 0.0, clean.features.probabilities, clean.columns, torch.arange(len(labels)))
    changes = [(kind, strength) for kind in corruptions_for(model.spec.channels) for strength in strengths]
    with progress("rehearsing changes", len(changes)) as advance:
        for kind, strength in changes:
            rows.add_corrupted(kind, strength, _observe(model, images, chosen, (kind, strength), generator), generator)
            advance(1)
    for number in range(CLASS_MIXES):
        # Few images can be of few classes, many give a better mean.
        rows.add_class_mix(len(model.spec.classes), 0.5 if number % 2 else 0.125, generator)
    return ChangeTable(
        kinds=tuple(rows.kinds),
        strengths=torch.tensor(rows.strengths),
        signatures=(torch.stack(rows.means) - centre) @ whitening,
        summaries=torch.stack(rows.summaries),
        accuracies=torch.tensor(rows.accuracies),
        baseline=baseline,
        centre=centre,
        whitening=whitening,
    )


def summarise_confidence(probabilities: Tensor, baseline: Baseline, twins: Tensor | None = None) -> Tensor:
    """Sum up what a champion says of n images in numbers that tell of its accuracy, whatever n is.

    Confidence alone is fooled by what makes a champion sure and wrong; then it mostly gives one answer to all, which
    the agreement between images shows. Agreements leave out an image's agreement with itself, or small windows of many
    classes would look like a change.

    Args:
        probabilities: Softmax, float32, shape (n, classes), n >= 2.
        baseline: The clean sample's answers.
        twins: Clean probabilities of the same images, where they are part of the baseline's sample: pairs of an image
            with itself are left out. Shape (n, classes).

    Returns:
        float32, shape (8,): accuracy by thresholded confidence, by thresholded entropy, by difference of confidences;
        ln(1 + agreement of two images, over the baseline's), for probabilities and for answers; likeness to the
        baseline's classes (cosine) for both; agreement of two images over that of an image with itself.

    Raises:
        ValueError: Fewer than two rows, another number of classes, or no probabilities.

    Source:
        Thresholded confidence (ATC): Garg et al., "Leveraging unlabeled data to predict out-of-distribution
        performance", ICLR 2022. Difference of confidences (DoC): Guillory et al., "Predicting with Confidence on
        Unseen Distributions", ICCV 2021. Agreements: unbiased estimates of collision probabilities, Hoeffding,
        "A class of statistics with asymptotically normal distribution", Ann. Math. Stat. 19 (1948).
    """
    check_probabilities(probabilities, len(baseline.probabilities))
    largest, entropy = probabilities.max(1).values, _negative_entropy(probabilities)
    answers = _answers(probabilities)
    agreement = torch.stack([_agreement(probabilities), _agreement(answers)])
    shared = torch.stack(
        [
            _agreement_with(probabilities, baseline.probabilities, baseline.rows, twins),
            _agreement_with(answers, baseline.predictions, baseline.rows, None if twins is None else _answers(twins)),
        ]
    )
    likeness = shared / (agreement * baseline.agreement).clamp(min=1e-12).sqrt()
    thresholds = baseline.thresholds
    return torch.cat(
        [
            torch.stack(
                [
                    (largest >= thresholds[0]).float().mean(),
                    (entropy >= thresholds[1]).float().mean(),
                    baseline.accuracy - baseline.mean_confidence + largest.mean(),
                ]
            ),
            (agreement / baseline.agreement).log1p(),
            likeness.clamp(0, 1.5),  # estimates: above 1 by chance, and without bound where hardly anything agrees
            (agreement[:1] / probabilities.square().sum(1).mean()),
        ]
    )


def check_probabilities(probabilities: Tensor, classes: int) -> None:
    """Refuse what is no softmax of two or more images.

    Raises:
        ValueError: Not float (n >= 2, classes), not finite, or rows that do not sum to 1.
    """
    shape = tuple(probabilities.shape)
    if len(shape) != 2 or shape[0] < 2 or shape[1] != classes:
        raise ValueError(f"probabilities {shape}: expected (n >= 2, {classes})")
    in_range = bool(((probabilities >= 0) & (probabilities <= 1 + 1e-3)).all())  # false for NaN, too
    if not in_range or not torch.allclose(probabilities.sum(1), torch.ones(()), atol=1e-2):
        raise ValueError("probabilities are not finite, or rows do not sum to 1")


@dataclass(frozen=True, kw_only=True)
class _Observed:
    """What a champion says of m images, and their statistics (m, d)."""

    features: Features
    columns: Tensor


class _Rows:
    """The rows of a table while it is made."""

    def __init__(self, *, clean: _Observed, labels: Tensor, baseline: Baseline) -> None:
        self.clean, self.labels, self.baseline = clean, labels, baseline
        self.kinds: list[str] = []
        self.strengths: list[float] = []
        self.means: list[Tensor] = []
        self.summaries: list[Tensor] = []
        self.accuracies: list[float] = []

    def add(self, kind: str, strength: float, probabilities: Tensor, columns: Tensor, index: Tensor) -> None:
        """Add a row for the images of the clean sample that `index` (int64) picks, with these answers."""
        twins = self.clean.features.probabilities[index]
        self.kinds.append(kind)
        self.strengths.append(strength)
        self.means.append(columns.mean(0))
        self.summaries.append(summarise_confidence(probabilities, self.baseline, twins))
        self.accuracies.append(float((probabilities.argmax(1) == self.labels[index]).float().mean()))

    def add_corrupted(self, kind: str, strength: float, seen: _Observed, generator: torch.Generator) -> None:
        """Add a row with all images corrupted, and one with half of them."""
        every = torch.arange(len(self.labels))
        self.add(kind, strength, seen.features.probabilities, seen.columns, every)
        half = (torch.randperm(len(every), generator=generator) < len(every) // 2)[:, None]
        probabilities = torch.where(half, seen.features.probabilities, self.clean.features.probabilities)
        self.add(kind, strength, probabilities, torch.where(half, seen.columns, self.clean.columns), every)

    def add_class_mix(self, classes: int, share: float, generator: torch.Generator) -> None:
        """Add a row for a share of the clean images, most of them of few classes."""
        # Fourth powers of normal numbers: one or two of ten have most of the sum.
        weights = torch.randn(classes, generator=generator)[self.labels] ** 4 + 1e-6
        index = torch.multinomial(weights, max(2, int(share * len(weights))), generator=generator)
        self.add(CLASS_MIX, 0.0, self.clean.features.probabilities[index], self.clean.columns[index], index)


def _observe(
    model: Classifier,
    images: Images,
    chosen: Tensor,
    change: tuple[str, float] | None,
    generator: torch.Generator,
) -> _Observed:
    def batches() -> Iterator[Tensor]:
        for index in chosen.split(BATCH_ROWS):
            batch = images[index]
            yield batch if change is None else corrupt(change[0], batch, change[1], generator)

    features = extract_features(model, batches())
    return _Observed(features=features, columns=_columns(features.early, features.pixels))


def _columns(early: Tensor, pixels: Tensor) -> Tensor:
    """Early statistics, evenly thinned out to `EARLY_MOST` columns at most, then those of pixels."""
    every = -(-early.shape[1] // EARLY_MOST)
    return torch.cat([early[:, ::every], pixels], dim=1)


def _whitening(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) of m rows, and a matrix (d, d) that gives differences of rows unit variance without correlation.

    Columns that hardly vary count as varying by 1 % of the median column: a dead channel says little, not everything.
    """
    columns = columns.double()
    centre, spread = columns.mean(0), columns.std(0)
    spread = spread.clamp(min=max(0.01 * float(spread.median()), 1e-6))
    size = columns.shape[1]
    covariance = ((columns - centre) / spread).T.cov().reshape(size, size)
    values, vectors = torch.linalg.eigh((1 - SHRINKAGE) * covariance + SHRINKAGE * torch.eye(size).double())
    root = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    return centre.float(), (root / spread[:, None]).float()


def _baseline(probabilities: Tensor, labels: Tensor) -> Baseline:
    check_probabilities(probabilities, probabilities.shape[1])
    accuracy = float((probabilities.argmax(1) == labels).float().mean())
    largest, answers = probabilities.max(1).values, _answers(probabilities)
    signals = torch.stack([largest, _negative_entropy(probabilities)])
    agreement = torch.stack([_agreement(probabilities), _agreement(answers)])
    return Baseline(
        rows=len(labels),
        accuracy=accuracy,
        mean_confidence=float(largest.mean()),
        thresholds=signals.quantile(1 - accuracy, dim=1),
        probabilities=probabilities.sum(0),
        predictions=answers.sum(0),
        agreement=agreement.clamp(min=0.1 / probabilities.shape[1]),
    )


def _negative_entropy(probabilities: Tensor) -> Tensor:
    terms: Tensor = torch.special.xlogy(probabilities, probabilities)
    return terms.sum(1)


def _answers(probabilities: Tensor) -> Tensor:
    return functional.one_hot(probabilities.argmax(1), probabilities.shape[1]).float()


def _agreement(rows: Tensor) -> Tensor:
    """Mean inner product of two different rows of (n, classes)."""
    total = rows.sum(0)
    pairs: Tensor = total @ total - rows.square().sum()
    return pairs / (len(rows) * (len(rows) - 1))


def _agreement_with(rows: Tensor, total: Tensor, others: int, twins: Tensor | None) -> Tensor:
    """Mean inner product of rows (n, classes) with so many others of a given sum, their twins left out."""
    inner: Tensor = rows.sum(0) @ total
    if twins is None:
        return inner / (len(rows) * others)
    apart: Tensor = inner - (rows * twins).sum()
    return apart / (len(rows) * (others - 1))
