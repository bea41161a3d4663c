"""Whether the champion is worse than the one before: the test by hand, when it is made, and who is told."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from components.core.config import load_config
from components.core.contracts import (
    DriftReport,
    Fault,
    Interval,
    LedgerRecord,
    Outcome,
    PreviousChampion,
    RunReport,
)
from components.core.runs import StepRecord
from components.detect_drift import regression
from components.detect_drift.regression import compare_previous, sign_test
from components.report.step import tell
from pipelines.cli import app
from pipelines.status import find_regression
from tests.unit.test_evaluation_step import House, built, champion, weakened

__all__ = ["built"]  # a fixture
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("previous", "present", "p_value"),
    [
        ("111111", "000000", 1 / 64),
        ("11111", "00000", 1 / 32),
        ("1110", "0001", 5 / 16),  # three of four differences, or all: 4/16 + 1/16
        ("1100", "1100", 1.0),
        ("0000", "1111", 1.0),
        ("1111111100", "1100000000", 1 / 64),  # those that both have right, or wrong, do not count
        ("", "", 1.0),
    ],
)
def test_sign_test_by_hand(previous: str, present: str, p_value: float) -> None:
    then, now = (np.array([letter == "1" for letter in answers], dtype=bool) for answers in (previous, present))
    assert sign_test(then, now, np.arange(len(then))) == pytest.approx(p_value)


def test_images_of_one_clip_count_once() -> None:
    then, now = np.ones(8, dtype=bool), np.zeros(8, dtype=bool)
    assert sign_test(then, now, np.zeros(8, dtype=int)) == 0.5
    assert sign_test(then, now, np.array([0, 0, 0, 0, 0, 0, 9, 9])) == 0.25
    then[:2], now[:2] = False, True  # of the first clip two are for the one and two for the other: it is for nobody
    assert sign_test(then, now, np.array([0, 0, 0, 0, 1, 2, 3, 4])) == 1 / 16


@pytest.mark.parametrize(("p_value", "said"), [(0.025, True), (0.0251, False)])
def test_sentence_names_the_way_back(p_value: float, said: bool) -> None:
    previous = PreviousChampion(version="a" * 32, rows=200, correct=186, champion_correct=150, p_value=p_value)
    report = DriftReport(champion="b" * 32, rows=200, previous=previous)
    sentence = (
        f"The champion is worse here than the one before: it has 150 of 200 images right, and {'a' * 12} has 186 "
        f"(p = 0.025). To go back: retrain rollback --to {'a' * 12} --reason TEXT."
    )
    assert report.regression == (sentence if said else None)
    assert report.sentence.endswith(sentence) is said


# --- on versions in a store


@pytest.fixture
def house(built: tuple[Path, dict[str, str]], tmp_path: Path) -> House:
    return House(shutil.copytree(built[0], tmp_path / "house"), built[1])


def promote(house: House, version: str) -> LedgerRecord:
    now = house.registry.champion()
    before = now.version if now else None
    by: dict[str, Any] = {"window": None, "run_id": None, "actor": "p", "reason": "r"}
    return house.registry.append("promotion", version, expected_champion=before, **by)


def line(house: House) -> tuple[str, str]:
    good, bad = house.save(champion(), windows=("first",)), house.save(weakened(champion(), 0.6), windows=("first",))
    promote(house, good)
    promote(house, bad)
    return good, bad


def lost(version: str, drop: float = 0.3, lower: float = 0.1, **changes: Any) -> DriftReport:
    bounds = Interval(lower=lower, upper=drop + 0.2)
    return DriftReport(champion=version, rows=60, accuracy_drop=drop, accuracy_drop_interval=bounds, **changes)


def compared(house: House, report: DriftReport, window: str = "new") -> PreviousChampion | None:
    return compare_previous(house.registry, report, house.window(window), load_config(house.path))


def test_bad_promotion_is_found_out(house: House) -> None:
    good, bad = line(house)
    found = compared(house, lost(bad))
    assert found is not None
    assert (found.version, found.rows, found.correct) == (good, 60, 60)
    assert found.champion_correct < 50
    assert found.is_better


def test_good_promotion_is_not_blamed_for_a_world_that_changed(house: House) -> None:
    bad, good = house.save(weakened(champion(), 0.6)), house.save(champion())
    promote(house, bad)
    promote(house, good)
    found = compared(house, lost(good))
    assert found is not None
    assert found.correct < found.champion_correct
    assert (found.p_value, found.is_better) == (1.0, False)


def test_images_of_classes_that_only_one_knows_are_not_compared(house: House) -> None:
    _, bad = line(house)
    found = compared(house, lost(bad), "mixed")
    assert found is not None
    assert found.rows == 40, "and 20 owls"


@pytest.mark.parametrize(
    "changes",
    [
        {"drop": 0.02, "lower": 0.01},
        {"drop": 0.3, "lower": -0.01},
        {"faults": (Fault(name="f", effect=0.5, sentence="Relabelled."),)},
    ],
    ids=["small", "chance", "broken data"],
)
def test_champion_before_is_only_asked_where_much_is_lost(
    house: House, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    _, bad = line(house)
    monkeypatch.setattr(regression, "see_window", lambda *_: pytest.fail("asked"))
    assert compared(house, lost(bad, **changes)) is None


def test_first_champion_has_none_before_it(house: House) -> None:
    version = house.save(champion())
    promote(house, version)
    assert compared(house, lost(version)) is None


def test_champion_that_has_learnt_the_window_is_not_asked_about_it(house: House) -> None:
    promote(house, house.save(champion(), windows=("first", "new")))
    bad = house.save(weakened(champion(), 0.6), windows=("first",))
    promote(house, bad)
    assert compared(house, lost(bad)) is None


def test_champion_before_that_cannot_be_read_stops_nothing(house: House, caplog: pytest.LogCaptureFixture) -> None:
    good, bad = line(house)
    house.store.delete(f"models/classifier/versions/{good}/model.safetensors")
    assert compared(house, lost(bad)) is None
    assert f"the champion before, {good}, cannot be asked" in caplog.text


# --- who is told

FOUND = PreviousChampion(version="a" * 32, rows=200, correct=186, champion_correct=150, p_value=0.001)


def ended(house: House, run_id: str, before: str, after: str, previous: PreviousChampion | None = FOUND) -> RunReport:
    run = house.begin(run_id)
    outcome = Outcome(
        outcome="skipped" if before == after else "promoted",
        champion_before=before,
        champion_after=after,
        ledger_number=None,
        reason="r",
    )
    for step, document in (("detect_drift", lost(before, previous=previous)), ("outcome", outcome)):
        run.write(StepRecord(step=step, started=datetime.now(UTC), seconds=1.0, document=document))
    return tell(run)


def test_report_and_status_say_so_as_long_as_the_champion_is_the_same(house: House) -> None:
    good, bad = line(house)
    report = ended(house, "one-run", bad, bad)
    assert report.regression == FOUND.sentence
    assert report.sentence == f"skipped: r {FOUND.sentence}"
    command = ["status", "--config", str(house.path)]
    assert f"{FOUND.sentence}\n" in CliRunner().invoke(app, command).output
    assert json.loads(CliRunner().invoke(app, [*command, "--json"]).output)["regression"] == FOUND.sentence
    promote(house, good)
    assert json.loads(CliRunner().invoke(app, [*command, "--json"]).output)["regression"] is None
    assert FOUND.sentence not in CliRunner().invoke(app, command).output


def test_run_that_replaced_the_champion_has_nothing_to_go_back_from(house: House) -> None:
    _, bad = line(house)
    assert ended(house, "one-run", bad, "c" * 32).regression is None


def test_next_run_that_finds_no_regression_ends_the_offer(house: House) -> None:
    _, bad = line(house)
    reports = [ended(house, "one-run", bad, bad), ended(house, "two-run", bad, bad, previous=None)]
    assert find_regression(reports[:1], bad) == FOUND.sentence
    assert find_regression(reports, bad) is None
    assert find_regression([], bad) is None
