"""Pictures of a drift report: how far each view moved, where the images lie, and the drop over the windows."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from components.core.contracts import DriftView
from components.detect_drift.history import DriftLook

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GREY, ORANGE, RED, BLUE = "#9aa4b2", "#c77d0a", "#cf222e", "#1f6feb"
MOST_POINTS = 1500  # of each sample: more are a blot


def effect_chart(views: Sequence[DriftView]) -> str:
    """How far each view moved, in units of what would have counted as drift, as SVG text."""
    figure = _figure(6.4, 0.9 + 0.32 * len(views))
    axes = figure.subplots()
    shown = [(v.name, v.effect / v.smallest_effect if v.smallest_effect else 0.0) for v in reversed(views)]
    names, sizes = [name for name, _ in shown], [size for _, size in shown]
    axes.barh(names, sizes, color=[RED if size >= 1 else GREY for size in sizes], height=0.6)
    axes.axvline(1, color="#1c2128", linewidth=1)
    axes.set_xlabel("effect, in units of the smallest that counts as drift")
    return _svg(figure)


def scatter_chart(reference: Tensor, window: Tensor) -> str:
    """Both samples' embeddings in the two directions in which all of them together spread most, as SVG text.

    Args:
        reference: float32 (m, d).
        window: float32 (n, d).
    """
    past, now = (
        rows[torch.linspace(0, len(rows) - 1, min(len(rows), MOST_POINTS)).long()] for rows in (reference, window)
    )
    pooled = torch.cat([past, now])
    centred = pooled - pooled.mean(dim=0)
    directions = torch.linalg.eigh(centred.T @ centred)[1][:, -2:].flip(1)
    places = centred @ directions
    figure = _figure(6.4, 4.4)
    axes = figure.subplots()
    for rows, colour, label in ((places[: len(past)], GREY, "reference"), (places[len(past) :], ORANGE, "this window")):
        axes.scatter(rows[:, 0], rows[:, 1], s=6, color=colour, label=label, alpha=0.6, linewidths=0, rasterized=True)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("first principal direction of the embeddings")
    axes.set_ylabel("second")
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def history_chart(looks: Sequence[DriftLook]) -> str:
    """The accuracy drop, window by window against one champion, as SVG text."""
    figure = _figure(6.4, 2.6)
    axes = figure.subplots()
    kinds = (
        ("o", BLUE, "measured", [look.measured and not look.changed for look in looks]),
        ("o", RED, "measured, drifted", [look.measured and look.changed for look in looks]),
        ("D", GREY, "estimated", [not look.measured and not look.changed for look in looks]),
        ("D", ORANGE, "estimated, drifted", [not look.measured and look.changed for look in looks]),
    )
    points = [(n, 100 * look.drop) for n, look in enumerate(looks) if look.drop is not None]
    axes.plot([n for n, _ in points], [drop for _, drop in points], color="#d0d7de", zorder=1)
    for marker, colour, label, chosen in kinds:
        here = [(n, 100 * look.drop) for n, look in enumerate(looks) if chosen[n] and look.drop is not None]
        if here:
            axes.scatter(
                [n for n, _ in here],
                [drop for _, drop in here],
                marker=marker,
                color=colour,
                label=label,
                s=28,
                zorder=2,
            )
    axes.axhline(0, color="#1c2128", linewidth=0.8)
    axes.set_xticks(
        range(len(looks)), [look.window[:6] for look in looks], fontsize=7, rotation=90 if len(looks) > 12 else 0
    )
    axes.set_ylabel("points of accuracy lost")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def _figure(width: float, height: float) -> Figure:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "retrain"  # the same report gives the same bytes
    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue().partition("<svg")[2].join(["<svg", ""])
