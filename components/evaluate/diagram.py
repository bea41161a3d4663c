"""The reliability diagram: how often models are right, by how sure they are. SVG without a plotting library, which the
pod does not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt

from markupsafe import Markup

from components.evaluate.calibration import Bin

SIDE, LEFT, TOP = 190, 46, 8  # pixels
COLOURS = {"champion": "#9aa4b2", "challenger": "#1f6feb"}


def reliability_diagram(models: Mapping[str, Sequence[Bin]]) -> Markup:
    """Draw one line a model; the area of a dot is its share of the rows, and a calibrated model is on the diagonal.

    Args:
        models: Bins of `champion` and `challenger`, or of one of them.

    Source:
        Niculescu-Mizil and Caruana, "Predicting good probabilities with supervised learning", ICML 2005.
    """
    parts = [_frame()]
    for name, bins in models.items():
        rows = sum(one.rows for one in bins)
        places = [(_x(one.confidence), _y(one.accuracy), 2 + 7 * sqrt(one.rows / rows)) for one in bins]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}"/>' for x, y, r in places)
        colour = COLOURS[name]
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<g fill="{colour}" fill-opacity="0.75">{dots}</g>')
    size = f'width="{SIDE + LEFT + 12}" height="{SIDE + TOP + 38}"'
    # All of it numbers and words of ours.
    return Markup(f'<svg {size} role="img" font-size="11" fill="#57606a">{"".join(parts)}</svg>')  # noqa: S704


def _x(value: float) -> float:
    return LEFT + SIDE * value


def _y(value: float) -> float:
    return TOP + SIDE * (1 - value)


def _frame() -> str:
    """Square, diagonal, ticks and names of the axes."""
    ticks = "".join(
        f'<text x="{_x(v):.0f}" y="{TOP + SIDE + 14}" text-anchor="middle">{v:g}</text>'
        f'<text x="{LEFT - 5}" y="{_y(v) + 4:.0f}" text-anchor="end">{v:g}</text>'
        for v in (0, 0.5, 1)
    )
    middle = TOP + SIDE / 2
    return (
        f'<rect x="{LEFT}" y="{TOP}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#d0d7de"/>'
        f'<line x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}" stroke="#d0d7de" stroke-dasharray="4 3"/>{ticks}'
        f'<text x="{_x(0.5)}" y="{TOP + SIDE + 31}" text-anchor="middle">confidence</text>'
        f'<text x="11" y="{middle}" text-anchor="middle" transform="rotate(-90 11 {middle})">right</text>'
    )
