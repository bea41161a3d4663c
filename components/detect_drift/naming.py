"""What kind of change a window shows: the rehearsed change that moves the images' statistics the same way.

Covers one kind a window. Not covered: whether there is a change (`detectors`), how much it matters (`severity`), broken
files (`triage`).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from components.core.changes import CLASS_MIX, CLEAN, ChangeTable

LEAST_ROWS = 20
# Measured at 200 images, before `TEMPER`: at a likeness of 0.7, 18 % of windows with an unseen class get a name, at 0.8
# none, and no kind is lost between the two. benchmarks/drift_severity.py measures all of it.
LEAST_SIZE, LEAST_LIKENESS = 1.5, 0.8
TEMPER = 0.7  # one enormous column must not outvote all others: 1 names 93 % right, 0.7 94 %
BLURRED = ("blur", "resolution")


@dataclass(frozen=True, kw_only=True)
class NamedChange:
    """A change by its name in `CORRUPTIONS`; `likeness` of the window to it (cosine, in (0, 1])."""

    kind: str
    likeness: float


def name_change(table: ChangeTable, early: Tensor, pixels: Tensor, *, reduced: bool) -> NamedChange | None:
    """Name the rehearsed change that a window looks most like.

    Args:
        table: The champion's rehearsal.
        early: `Features.early` of the window, float32, shape (n, e).
        pixels: `Features.pixels` of the window, float32, shape (n, p).
        reduced: Whether the images have arrived with fewer pixels than before. To the champion, which gets all at one
            size, few pixels and a blur are the same: this tells them apart.

    Returns:
        None where there is no name: fewer than 20 rows, a difference that chance explains, none of the kinds near, or
        other shares of the classes nearer than any.

    Raises:
        ValueError: Other columns than the table's, or values that are not finite.

    Source:
        Size: Hotelling's T² over its dimension, with the covariance of the clean sample, shrunk.
    """
    if len(early) < LEAST_ROWS:
        return None
    signature = table.signature(early, pixels)
    rows, past = len(early), table.baseline.rows
    size = float(signature.square().mean()) * rows * past / (rows + past)
    if size < LEAST_SIZE:
        return None
    likeness = functional.cosine_similarity(_temper(table.signatures), _temper(signature)[None])
    nearest = int(likeness.argmax())
    kind, cosine = table.kinds[nearest], float(likeness[nearest])
    if kind in (CLEAN, CLASS_MIX) or cosine < LEAST_LIKENESS:
        return None
    if kind in BLURRED:
        kind = "resolution" if reduced else "blur"
    return NamedChange(kind=kind, likeness=min(1.0, cosine))


def _temper(signatures: Tensor) -> Tensor:
    """Draw large coordinates closer to the small ones, signs kept."""
    return signatures.sign() * signatures.abs() ** TEMPER
