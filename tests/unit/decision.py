"""What the tests of the decision and of what follows start from: a window of cats and dogs after a champion, and nobody
who promotes first."""

from datetime import date

from components.core.contracts import Verdict
from components.core.plans import Evidence
from components.core.rematches import Rematch

EVIDENCE = Evidence(
    window="w",
    window_created=date(2026, 11, 25),
    champion="v",
    champion_classes=("cat", "dog"),
    champion_image_size=32,
    old_rows=1000,
    new_rows=100,
    held_out=25,
    window_classes={"cat": 60, "dog": 65},
    image_size=32,
)


def no_rematch(rematch: Rematch) -> Verdict:
    """Judges again in tests in which nothing is."""
    raise AssertionError(f"nobody was faster, and {rematch} was asked for")
