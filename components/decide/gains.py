"""What a strategy is expected to bring: told by what it brought in the situations most like this one.

Values in, values out. Computed without numpy, and rounded: a plan is named by its digest, and the last bits of a linear
algebra library differ from processor to processor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, fsum, sqrt
from statistics import NormalDist

from components.core.contracts import Interval
from components.core.plans import PastGain

# How far apart two situations are that have little to say to each other. Chosen on the benchmark's scenarios, each left
# out in turn.
SCALES: Mapping[str, float] = {
    "drop": 0.3,
    "unknown": 0.2,
    "volume": 0.5,
    "imbalance": 0.15,
    "resized": 1.0,
}
LOSSES = ("drop", "unknown")  # what a gain is proportional to
RIDGE = 0.01  # what slopes are held to zero by: as one case a tenth of accuracy away
NEIGHBOURS = 6  # two scenarios' seeds
WITHIN = NormalDist().inv_cdf(0.9)  # standard deviations to either side that hold 80 %
# What is thought of a strategy before it ran: gains scatter by this much around the line; it counts as so many cases.
PRIOR_DEVIATION, PRIOR_CASES = 0.02, 3.0
DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Change of the mean accuracy of both holdouts, in [-1, 1], with its 80 % interval."""

    mean: float
    interval: Interval


def expected_gain(
    here: Mapping[str, float], cases: Sequence[tuple[PastGain, float]], *, doubt: float = 0.0, most: float = 1.0
) -> Gain | None:
    """Predict the gain of a strategy from its past ones.

    A line through what was lost (`LOSSES`), fitted to cases weighted by how alike they are in everything. The width of
    the kernel reaches to the NEIGHBOURS-th nearest case, so that there is always something to go by.

    Args:
        here: The situation, see `describe_situation`.
        cases: Of one strategy, each with how much it counts.
        doubt: Standard deviation of what is lost here (`drop`).
        most: The largest gain that is possible here.

    Returns:
        None where there are no cases.

    Source:
        Local linear regression: Cleveland, "Robust Locally Weighted Regression", JASA 74 (1979); the interval is that
        of a prediction by weighted least squares, its variance shrunk toward a prior.
    """
    if not cases:
        return None
    squares = [_squared_distance(here, past.situation) for past, _ in cases]
    width = max(1.0, sorted(squares)[min(NEIGHBOURS, len(squares)) - 1])
    weights = [own * exp(-square / (2 * width)) for (_, own), square in zip(cases, squares, strict=True)]
    gains = [past.new if past.old is None else (past.old + past.new) / 2 for past, _ in cases]
    first, second = ([past.situation.get(name, 0.0) - here[name] for past, _ in cases] for name in LOSSES)
    mean, slope, variance = _line_at_zero(weights, first, second, gains)
    reach = WITHIN * sqrt(variance + (slope * doubt) ** 2)
    low, middle, high = (round(min(most, max(-1.0, value)), DIGITS) for value in (mean - reach, mean, mean + reach))
    return Gain(mean=middle, interval=Interval(lower=low, upper=high))


def _line_at_zero(
    weights: Sequence[float], x: Sequence[float], y: Sequence[float], z: Sequence[float]
) -> tuple[float, float, float]:
    """Fit z = a + bx + cy by weighted least squares: the value at x = y = 0, the slope b, the variance of a new case.

    The ridge holds slopes to nothing where few cases, or cases in one place, would say anything; it leaves the height
    alone.
    """
    total = fsum(weights)
    number = total**2 / fsum(w * w for w in weights)  # cases of equal weight that tell as much (Kish)
    ridge = RIDGE / number

    def average(values: Sequence[float]) -> float:
        return fsum(w * v for w, v in zip(weights, values, strict=True)) / total

    middle = (average(x), average(y), average(z))
    dx, dy, dz = ([v - m for v in values] for values, m in zip((x, y, z), middle, strict=True))

    def covariance(one: Sequence[float], other: Sequence[float]) -> float:
        return average([a * b for a, b in zip(one, other, strict=True)])

    xx, yy, xy = covariance(dx, dx) + ridge, covariance(dy, dy) + ridge, covariance(dx, dy)
    xz, yz = covariance(dx, dz), covariance(dy, dz)
    determinant = xx * yy - xy * xy
    b, c = (xz * yy - yz * xy) / determinant, (yz * xx - xz * xy) / determinant
    residuals = [r - b * p - c * q for p, q, r in zip(dx, dy, dz, strict=True)]
    scatter = number * covariance(residuals, residuals) + PRIOR_CASES * PRIOR_DEVIATION**2
    variance = scatter / (max(0.0, number - 3) + PRIOR_CASES)  # three parameters were fitted
    away = (middle[0] ** 2 * yy - 2 * middle[0] * middle[1] * xy + middle[1] ** 2 * xx) / determinant
    return middle[2] - b * middle[0] - c * middle[1], b, variance * (1 + (1 + away) / number)


def _squared_distance(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Squared distance of two situations, each quantity in units of what makes a difference; unknown ones count 0."""
    return fsum(((one.get(name, 0.0) - other.get(name, 0.0)) / scale) ** 2 for name, scale in SCALES.items())
