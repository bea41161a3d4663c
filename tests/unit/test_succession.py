"""Who was champion after whom: lines of promotions and rollbacks, each worked out by hand."""

from __future__ import annotations

import pytest

from components.core.succession import promotion_of, read_succession
from tests.unit.ledgers import told


@pytest.mark.parametrize(
    ("ledger", "standing"),
    [
        ("", ""),
        ("+a", "a"),
        ("+a ~x +b", "a b"),
        ("+a +b <a", "a"),
        ("+a +b <a +c", "a c"),
        ("+a +b +c <b <a", "a"),
        ("+a +b +c <a", "a"),
        ("+a +b <a <b", "a b"),
        ("+a +b <a +c <b", "a b"),
        ("+a +b +c <a <c", "a b c"),
        ("+a +b <a +b", "a b"),
        ("+a +b +a", "b a"),
        ("+a +b +c -a", "b c"),
        ("+a +b +c -b <a", "a"),
        ("+a +b -a +c <b", "b"),
        ("+a +b -a +a", "b a"),
    ],
)
def test_line_of_the_present_champion(ledger: str, standing: str) -> None:
    assert " ".join(read_succession(told(ledger)).standing) == standing


def test_previous_champion_is_none_before_the_second() -> None:
    assert read_succession([]).previous is None
    assert read_succession(told("+a")).previous is None
    assert read_succession(told("+a +b <a")).previous is None
    assert read_succession(told("+a +b")).previous == "a"


def test_past_champions_come_in_the_order_in_which_they_last_became_it() -> None:
    assert read_succession(told("+a +b ~x +c <a")).past == ("b", "c", "a")
    assert read_succession(told("+a +b +c -b")).past == ("a", "c")


@pytest.mark.parametrize(
    ("ledger", "undone"),
    [
        ("+a +b +c", {}),
        ("+a +b <a", {"b": 3}),
        ("+a +b +c <a", {"b": 4, "c": 4}),
        ("+a +b +c <b <a", {"c": 4, "b": 5}),
        ("+a +b <a +c <b", {"c": 5}),
        ("+a +b <a +b", {}),
        ("+a +b <a +c -b", {"b": 3}),
    ],
)
def test_what_was_rolled_back_from_names_its_rollback(ledger: str, undone: dict[str, int]) -> None:
    found = read_succession(told(ledger)).undone
    assert {version: record.number for version, record in found.items()} == undone


def test_promotion_of_a_version_is_its_last_one() -> None:
    records = told("+a +b <a +b ~a")
    assert promotion_of(records, "b") == records[3]
    assert promotion_of(records, "a") == records[0]
    assert promotion_of(records, "x") is None
