"""The situation of a plan as numbers."""

from math import log, log10, sqrt

import pytest

from components.core.config import DecisionConfig
from components.core.contracts import Interval
from components.decide.situation import believed_drop, describe_situation, evenness, headroom
from tests.unit import decision

EVIDENCE = decision.EVIDENCE.model_copy(
    update={
        "window_classes": {"cat": 60, "owl": 40, "bat": 25},
        "drop": 0.1,
        "drop_interval": Interval(lower=0.1 - 1.96 * 0.02, upper=0.1 + 1.96 * 0.02),
        "estimated_drop": 0.3,
        "estimated_drop_interval": Interval(lower=0.3 - 1.645 * 0.04, upper=0.3 + 1.645 * 0.04),
    }
)


def changed(**changes: object) -> dict[str, float]:
    return describe_situation(EVIDENCE.model_copy(update=changes), DecisionConfig(min_new_class_images=30))


def test_a_situation_by_hand() -> None:
    found = changed()
    assert found["drop"] == pytest.approx((4 * 0.1 + 0.3) / 5, abs=1e-4)  # half the deviation counts four times
    assert found["unknown"] == pytest.approx(40 / 125)  # the bats are too few to learn
    assert found["volume"] == pytest.approx(-1.0)
    assert found["rows"] == pytest.approx(2.0)
    assert (found["drifted"], found["resized"]) == (0.0, 0.0)


def test_the_estimate_stands_in_for_a_drop_that_was_not_measured() -> None:
    assert changed(drop=None)["drop"] == pytest.approx(0.3)
    assert changed(drop=None, estimated_drop=None)["drop"] == 0.0


def test_a_drop_is_believed_as_far_as_it_is_known() -> None:
    both = believed_drop(EVIDENCE)
    assert both.deviation == pytest.approx(1 / sqrt(0.02**-2 + 0.04**-2), rel=1e-3)
    certain = EVIDENCE.model_copy(update={"drop_interval": Interval(lower=0.1, upper=0.1)})
    assert believed_drop(certain).value == pytest.approx(0.1, abs=1e-3)
    nothing = EVIDENCE.model_copy(update={"drop": None, "estimated_drop": None})
    assert (believed_drop(nothing).value, believed_drop(nothing).deviation) == (0.0, 0.0)


def test_there_is_as_much_room_as_both_holdouts_leave() -> None:
    # 60 of 125 images are of known classes: of these 80 % are right already, of the others none.
    evidence = EVIDENCE.model_copy(update={"reference_accuracy": 0.9, "window_accuracy": 0.8})
    assert headroom(evidence) == pytest.approx((0.1 + 1 - 0.8 * 60 / 125) / 2)
    assert headroom(EVIDENCE) == 1.0


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
