"""A window of cats and dogs after a champion: what the tests of the decision start from."""

from datetime import date

from components.core.plans import Evidence

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
