"""Triage of pixel values: were the colour channels exchanged, or the grey scale turned round? Values in, values out.

A single image hardly tells: a red car is a blue car. A window does: under a conversion every class moves in its own
direction, to its mirror image, where an honest change (light, exposure, contrast, blur) moves all classes alike. So the
window is explained in three ways, and the likeliest counts: as it is; with gains and offsets common to all classes; or
with a share of the images converted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Columns = Mapping[str, np.ndarray]
LEAST_REFERENCE_ROWS = 20  # of a class, before it has a mean worth comparing with
LEAST_ROWS = 20  # of the window
FREEDOM = 4.0  # degrees of freedom of the t distribution: outliers cost little, so none decides alone
SHARES = np.linspace(0.0, 1.0, 41)


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A way to misread pixels.

    Attributes:
        name: Of the fault.
        phrase: What is said of the images: "38 % of the images ...".
        statistics: Columns that it changes.
        undo: Columns of converted images to what they were, (n, statistics) both.
        mirrored: Statistics that no honest change turns round: their common change is a gain of at least 0, no offset.
    """

    name: str
    phrase: str
    statistics: tuple[str, ...]
    undo: Callable[[Columns], np.ndarray]
    mirrored: tuple[str, ...] = ()


def _exchange(columns: Columns) -> np.ndarray:
    names = ("blue", "green", "red", "blue_std", "green_std", "red_std")
    return np.stack([columns[name] for name in names], axis=1)


def _invert(columns: Columns) -> np.ndarray:
    return np.stack([1 - columns["mean"], columns["std"], -columns["skew"]], axis=1)


def _unwrap(columns: Columns) -> np.ndarray:
    """256 - v of every v but 0: what multiplying 8-bit values by 255 in 8 bits leaves of them."""
    share = 1 - columns["black"]
    whole, mean, std = 256 / 255, columns["mean"], columns["std"]
    second = std**2 + mean**2
    third = columns["skew"] * std**3 + 3 * mean * second - 2 * mean**3
    moments = (
        share * whole - mean,
        share * whole**2 - 2 * whole * mean + second,
        share * whole**3 - 3 * whole**2 * mean + 3 * whole * second - third,
    )
    spread = np.sqrt(np.maximum(moments[1] - moments[0] ** 2, 0))
    shape = moments[2] - 3 * moments[0] * moments[1] + 2 * moments[0] ** 3
    skew = np.divide(shape, spread**3, out=np.zeros_like(shape), where=spread > 1 / 255)
    return np.stack([moments[0], spread, skew], axis=1)


CONVERSIONS = (
    Conversion(
        name="channel-swap",
        phrase="look as if red and blue were exchanged",
        statistics=("red", "green", "blue", "red_std", "green_std", "blue_std"),
        undo=_exchange,
    ),
    Conversion(
        name="inverted-images",
        phrase="look inverted, dark for bright",
        statistics=("mean", "std", "skew"),
        undo=_invert,
        mirrored=("skew",),
    ),
    Conversion(
        name="wrapped-values",
        phrase="look as if their values had been multiplied beyond 255 and wrapped round",
        statistics=("mean", "std", "skew"),
        undo=_unwrap,
        mirrored=("skew",),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """How well a conversion explains a window.

    Attributes:
        share: Of the rows that look converted, in [0, 1].
        converted: Probability of each row, shape (n,).
        gain: Log-likelihood beyond the best honest explanation, nats a row; positive speaks for the conversion.
        fit: Log-likelihood of a row, undone where that is likelier, minus that of a row of the reference, nats: about
            0 where undoing the conversion gives images like the reference.
    """

    share: float
    converted: np.ndarray
    gain: float
    fit: float


def explain(
    conversion: Conversion, window: Columns, labels: np.ndarray, reference: Columns, reference_labels: np.ndarray
) -> Explanation | None:
    """Explain a window by a conversion, class by class.

    Args:
        conversion: What may have happened.
        window: Its columns, float, shape (n,) each.
        labels: Class names of its rows, shape (n,).
        reference: Columns of the reference sample, shape (m,) each.
        reference_labels: Its class names.

    Returns:
        The explanation; None where too few rows have a class that the reference shows often enough. Rows of other
        classes have a probability of 0.

    Source:
        t mixture: Peel & McLachlan, "Robust mixture modelling using the t distribution", Stat. Comput. 10 (2000).
    """
    names, counts = np.unique(reference_labels, return_counts=True)
    common = names[counts >= LEAST_REFERENCE_ROWS]
    rows, past = np.isin(labels, common), np.isin(reference_labels, common)
    if rows.sum() < LEAST_ROWS:
        return None
    then = np.stack([reference[name][past] for name in conversion.statistics], axis=1)
    index = np.searchsorted(common, reference_labels[past])
    centres = np.stack([then[index == c].mean(axis=0) for c in range(len(common))])
    metric = _whitening(then - centres[index])
    picked = {name: values[rows] for name, values in window.items()}
    now = np.stack([picked[name] for name in conversion.statistics], axis=1)
    classes = np.searchsorted(common, labels[rows])

    def likelihood(values: np.ndarray, means: np.ndarray) -> np.ndarray:
        squared = (((values - means) @ metric) ** 2).sum(axis=1)
        logs: np.ndarray = -0.5 * (FREEDOM + values.shape[1]) * np.log1p(squared / FREEDOM)
        return logs

    mirrored = np.array([name in conversion.mirrored for name in conversion.statistics])
    unchanged = likelihood(now, centres[classes])
    honest = likelihood(now, _common_change(now, centres[classes], mirrored))
    undone = likelihood(conversion.undo(picked), centres[classes])
    mixtures = [np.logaddexp(unchanged + _log(1 - s), undone + _log(s)) for s in SHARES]
    best = int(np.argmax([mixture.sum() for mixture in mixtures]))
    converted = np.zeros(len(labels))
    converted[rows] = np.exp(undone + _log(SHARES[best]) - mixtures[best])
    return Explanation(
        share=float(SHARES[best]),
        converted=converted,
        gain=float((mixtures[best].sum() - max(unchanged.sum(), honest.sum())) / rows.sum()),
        fit=float(np.maximum(unchanged, undone).mean() - likelihood(then, centres[index]).mean()),
    )


def _log(share: float) -> float:
    return float(np.log(share)) if share > 0 else -np.inf


def _whitening(residuals: np.ndarray) -> np.ndarray:
    """Matrix W with W'W the inverse covariance: residuals times it have spread 1. A floor keeps grey data regular."""
    covariance = residuals.T @ residuals / max(1, len(residuals) - 1)
    floor = 1e-4 + 0.01 * np.trace(covariance) / len(covariance)  # (2.5 levels of 255) squared, and a hundredth
    values, vectors = np.linalg.eigh(covariance + floor * np.eye(len(covariance)))
    whitening: np.ndarray = vectors / np.sqrt(values)
    return whitening


def _common_change(now: np.ndarray, means: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    """Class means after the gain (at least 0) and offset of each statistic that fit a window best, by least squares.

    Args:
        now: The window's rows, shape (n, d).
        means: Each row's class mean in the reference, shape (n, d).
        mirrored: Statistics without an offset, shape (d,).
    """
    centre = np.where(mirrored, 0.0, means.mean(axis=0))
    level = np.where(mirrored, 0.0, np.median(now - means, axis=0) + centre)
    spread = means - centre
    gain = (spread * (now - level)).sum(axis=0) / np.maximum((spread**2).sum(axis=0), 1e-12)
    changed: np.ndarray = np.maximum(gain, 0.0) * spread + level
    return changed
