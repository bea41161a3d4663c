"""The figures of a verdict that runs are compared by."""

from __future__ import annotations

from components.core.contracts import Verdict
from components.gate.figures import list_figures
from tests.unit.promotion import CHECK, evaluation


def test_each_check_has_its_bound_and_its_threshold():
    verdict = Verdict(verdict="promote", challenger="b", champion="a", checks=(CHECK,), level=0.0225)
    assert list_figures(verdict, evaluation("b", "a")) == {
        "passed": 1.0,
        "level": 0.0225,
        "new_rows": 40.0,
        "old_compared_rows": 40.0,
        "old_gained_rows": 3.0,
        "old_lost_rows": 1.0,
        "new_compared_rows": 40.0,
        "new_gained_rows": 3.0,
        "new_lost_rows": 1.0,
        "not_worse_on_old_passed": 1.0,
        "not_worse_on_old_value": 0.0,
        "not_worse_on_old_bound": -0.01,
        "not_worse_on_old_threshold": -0.02,
    }


def test_what_was_not_measured_is_left_out():
    endless = CHECK.model_copy(update={"name": "stays fast", "passed": False, "bound": float("-inf")})
    verdict = Verdict(verdict="hold", challenger="b", champion=None, checks=(endless,), images_to_decide=70)
    figures = list_figures(verdict, evaluation("b", None))
    assert {name: figures[name] for name in ("passed", "images_to_decide", "stays_fast_passed")} == {
        "passed": 0.0,
        "images_to_decide": 70.0,
        "stays_fast_passed": 0.0,
    }
    assert not {"level", "stays_fast_bound", "old_compared_rows", "new_compared_rows"} & set(figures)
