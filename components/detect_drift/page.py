"""The page of a drift report: what changed, where, and how much it matters. One file that fetches nothing."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from components.core.contracts import DriftReport
from components.core.reference import Reference
from components.core.thumbnails import picture_images
from components.core.windows import Window
from components.detect_drift.features import Seen
from components.detect_drift.history import DriftLook
from components.detect_drift.pictures import effect_chart, history_chart, scatter_chart


def draw_page(
    report: DriftReport,
    reference: Reference | None = None,
    seen: Seen | None = None,
    looks: Sequence[DriftLook] = (),
    window: Window | None = None,
) -> str:
    """Draw a report as HTML.

    Args:
        report: What was found.
        reference: The champion's sample; None without a champion, and then no pictures are drawn.
        seen: What the champion sees in the window.
        looks: At windows against this champion, oldest first, this one last.
        window: Where the images are.
    """
    charts: list[tuple[str, Markup]] = []
    images: list[str] = []
    # Our own SVG, in which labels are digests and names of views.
    if report.views:
        charts.append(("How far each view moved", Markup(effect_chart(report.views))))  # noqa: S704
    if reference is not None and seen is not None and len(seen.labels) and len(reference.labels):
        scatter = scatter_chart(reference.features.embeddings, seen.features.embeddings)
        charts.append(("Where the images lie, as the champion sees them", Markup(scatter)))  # noqa: S704
    if any(look.drop is not None for look in looks):
        charts.append(("Over the windows", Markup(history_chart(looks))))  # noqa: S704
    if window is not None:
        images = picture_images(window, report.moved_images)
    environment = Environment(
        loader=PackageLoader("components.detect_drift", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("page.html.j2").render(report=report, charts=charts, images=images)
