"""The situation of a plan as numbers."""

from datetime import date
from math import log, log10

import pytest

from components.core.config import DecisionConfig
from components.core.plans import Evidence
from components.decide.situation import describe_situation, evenness

EVIDENCE = Evidence(
    window="w",
    window_created=date(2026, 11, 25),
    champion="v",
    champion_classes=("cat", "dog"),
    champion_image_size=32,
    old_rows=1000,
    new_rows=100,
    held_out=25,
    window_classes={"cat": 60, "owl": 40, "bat": 25},
    drop=0.1,
    estimated_drop=0.3,
    image_size=32,
)


def changed(**changes: object) -> dict[str, float]:
    return describe_situation(EVIDENCE.model_copy(update=changes), DecisionConfig(min_new_class_images=30))


def test_a_situation_by_hand() -> None:
    found = changed()
    assert found["drop"] == 0.1
    assert found["unknown"] == pytest.approx(40 / 125)  # the bats are too few to learn
    assert found["volume"] == pytest.approx(-1.0)
    assert found["rows"] == pytest.approx(2.0)
    assert (found["drifted"], found["resized"]) == (0.0, 0.0)


def test_the_estimate_stands_in_for_a_drop_that_was_not_measured() -> None:
    assert changed(drop=None)["drop"] == 0.3
    assert changed(drop=None, estimated_drop=None)["drop"] == 0.0


def test_another_size_is_another_situation() -> None:
    assert changed(image_size=64)["resized"] == 1.0
    assert changed(drifted=True)["drifted"] == 1.0


def test_a_window_or_a_past_without_rows_has_a_situation() -> None:
    assert changed(new_rows=0, window_classes={})["rows"] == 0.0
    assert changed(old_rows=0)["volume"] == pytest.approx(log10(100))


def test_evenness_by_hand() -> None:
    assert evenness({"a": 5, "b": 5, "c": 0}) == pytest.approx(1.0)
    assert evenness({"a": 3, "b": 1}) == pytest.approx(-(0.75 * log(0.75) + 0.25 * log(0.25)) / log(2))
    assert evenness({"a": 7}) == evenness({}) == 1.0
