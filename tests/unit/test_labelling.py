"""Which images are to be labelled: of both sides of the split, those that tell most first, in a table to fill in."""

from __future__ import annotations

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.config import GateConfig, IngestConfig
from components.core.statistics import exact_interval
from components.decide.labelling import choose_images, least_held_out, render_list


@pytest.mark.parametrize(("alpha", "wanted"), [(0.05, 0.7), (0.05, 0.95), (0.01, 0.5), (0.4, 0.1), (0.05, 0.001)])
def test_with_fewer_held_out_rows_no_model_is_accurate_enough_for_certain(alpha: float, wanted: float):
    rows = least_held_out(GateConfig(alpha=alpha, min_accuracy=wanted))
    assert exact_interval(rows, rows, alpha).lower >= wanted
    assert rows == 1 or exact_interval(rows - 1, rows - 1, alpha).lower < wanted


def test_where_any_accuracy_will_do_one_row_is_enough():
    assert least_held_out(GateConfig(min_accuracy=0.0)) == 1


def choose(train: int, holdout: int, count: int, least: int) -> tuple[int, int]:
    """How many of each side are chosen."""
    sides = [f"t{n}" for n in range(train)], [f"h{n}" for n in range(holdout)]
    chosen = choose_images(to_train=sides[0], to_hold_out=sides[1], count=count, least_held_out=least)
    learnt = [name for name in chosen if name.startswith("t")]
    judging = [name for name in chosen if name.startswith("h")]
    assert chosen == [*learnt, *judging]
    assert (learnt, judging) == (sides[0][: len(learnt)], sides[1][: len(judging)]), "the first of each come first"
    return len(learnt), len(judging)


@pytest.mark.parametrize(
    ("images", "count", "least", "chosen"),
    [
        pytest.param((80, 20), 50, 0, (40, 10), id="as the window has them"),
        pytest.param((80, 20), 50, 15, (35, 15), id="more are needed to judge by"),
        pytest.param((80, 20), 10, 15, (0, 10), id="only those to judge by are lacking"),
        pytest.param((80, 20), 50, 99, (30, 20), id="not more than there are"),
        pytest.param((5, 95), 50, 0, (2, 48), id="few to train on"),
        pytest.param((80, 20), 100, 9, (80, 20), id="all"),
        pytest.param((80, 0), 50, 9, (50, 0), id="none to judge by"),
        pytest.param((0, 20), 10, 0, (0, 10), id="none to train on"),
        pytest.param((0, 0), 5, 1, (0, 0), id="none"),
    ],
)
def test_both_sides_of_the_split_are_labelled(images: tuple[int, int], count: int, least: int, chosen: tuple[int, int]):
    assert choose(*images, count, least) == chosen


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 70), st.integers(-5, 40))
def test_as_many_are_chosen_as_are_wanted_and_there(train: int, holdout: int, count: int, least: int):
    learnt, judging = choose(train, holdout, count, least)
    assert learnt + judging == min(count, train + holdout)
    assert judging >= min(least, holdout, count)


def test_the_list_has_the_columns_that_ingest_reads_and_any_name_survives_it():
    config = IngestConfig(path_column="file", label_column="class")
    names = ["a,b.png", 'c"d.png', "e f.png", "ä.png"]
    text = render_list([(name, "0" * 64, "because") for name in names], config)
    rows = list(csv.DictReader(text.splitlines()))
    assert list(rows[0]) == ["file", "class", "sha256", "why"]
    assert [row["file"] for row in rows] == names
    assert {row["class"] for row in rows} == {""}
