"""Releasing a quarantined window: one record in the ledger, the quarantine file gone, and what the next run decides."""

from __future__ import annotations

import getpass
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from components.core.config import load_config
from components.core.contracts import (
    CheckedExpectation,
    DriftReport,
    LedgerRecord,
    RunParameters,
    StepDocument,
    ValidationReport,
)
from components.core.errors import ConfigurationError
from components.core.plans import Decision
from components.core.registry import LostRace, Registry
from components.core.runs import Run, StepRecord
from components.core.storage import DirectoryStore, open_store, to_json
from components.decide import step as decide_step
from components.ingest.processes import Workers
from components.promote import release as release_module
from components.promote import step as promote_step
from components.promote.release import quarantined, release_window
from pipelines.cli import app
from pipelines.status import release
from tests.unit.conftest import image_row, pack

BAD = Decision(action="quarantine", rule="invalid-window", reasons=("Nothing can be read.",))
FIRST, SECOND = "a1" + "0" * 30, "a2" + "0" * 30


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    path = tmp_path / "retrain.yaml"
    path.write_text(yaml.safe_dump({"store": {"uri": "store", "cache": "cache"}, "model": "m", "dataset": "d"}))
    return path


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def lock_up(store: DirectoryStore, *windows: str, dataset: str = "d") -> None:
    for window in windows:
        store.put(f"quarantine/{dataset}/{window}.json", to_json(BAD))


def let_go(store: DirectoryStore, window: str) -> LedgerRecord:
    return release_window(store, "m", "d", window, actor="ada", reason="a new camera")


# --- the quarantine


def test_what_waits_is_told_with_the_decision_that_put_it_there(store: DirectoryStore) -> None:
    assert quarantined(store, "d") == {}
    lock_up(store, FIRST, SECOND)
    lock_up(store, "b" * 32, dataset="d2")
    assert quarantined(store, "d") == {FIRST: BAD, SECOND: BAD}
    assert list(quarantined(store, "d2")) == ["b" * 32]


# --- releasing


@pytest.mark.parametrize("name", [FIRST, FIRST[:2], FIRST[:31]])
def test_release_is_one_record_and_the_window_leaves_the_quarantine(store: DirectoryStore, name: str) -> None:
    lock_up(store, FIRST, SECOND)
    record = let_go(store, name)
    assert (record.kind, record.window, record.version, record.run_id) == ("release", FIRST, None, None)
    assert (record.actor, record.reason, record.champion_before) == ("ada", "a new camera", None)
    assert Registry(store, "m").ledger() == [record]
    assert list(quarantined(store, "d")) == [SECOND]


def test_release_keeps_the_champion(store: DirectoryStore) -> None:
    registry = Registry(store, "m")
    promote(registry, "v" * 32)
    before = registry.champion()
    lock_up(store, FIRST)
    assert let_go(store, FIRST).champion_before == "v" * 32
    assert registry.champion() == before


@pytest.mark.parametrize("name", ["a", "f", "b" * 32, FIRST + "0"], ids=["two", "none", "elsewhere", "longer"])
def test_a_name_that_is_not_of_one_window_releases_none(store: DirectoryStore, name: str) -> None:
    lock_up(store, FIRST, SECOND)
    lock_up(store, "b" * 32, dataset="d2")
    with pytest.raises(ConfigurationError, match="windows in quarantine that start with"):
        let_go(store, name)
    assert Registry(store, "m").ledger() == []
    assert list(quarantined(store, "d")) == [FIRST, SECOND]
    assert list(quarantined(store, "d2")) == ["b" * 32]


def test_a_window_that_was_released_is_not_released_again(store: DirectoryStore) -> None:
    lock_up(store, FIRST)
    let_go(store, FIRST)
    with pytest.raises(ConfigurationError, match="0 windows"):
        let_go(store, FIRST)
    assert len(Registry(store, "m").ledger()) == 1


def test_an_empty_name_releases_nothing(store: DirectoryStore) -> None:
    lock_up(store, FIRST)
    with pytest.raises(ConfigurationError):
        let_go(store, "")
    assert list(quarantined(store, "d")) == [FIRST]


def promote(registry: Registry, version: str) -> None:
    champion = registry.champion()
    registry.append(
        "promotion",
        version,
        expected_champion=champion.version if champion else None,
        window="w",
        run_id=None,
        actor="tests",
        reason="because",
    )


def test_a_champion_that_changes_meanwhile_does_not_stop_a_release(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[LostRace] = []

    class Overtaken(Registry):
        """Somebody else promotes twice between looking at the champion and writing the record."""

        def append(self, kind: Any, version: str | None, **keys: Any) -> LedgerRecord:
            if len(lost) < 2:
                promote(Registry(self.store, self.model), str(len(lost)) * 32)
            try:
                return super().append(kind, version, **keys)
            except LostRace as race:
                lost.append(race)
                raise

    monkeypatch.setattr(release_module, "Registry", Overtaken)
    lock_up(store, FIRST)
    record = let_go(store, FIRST)
    assert len(lost) == 2
    assert (record.number, record.champion_before) == (3, "1" * 32)
    assert [r.kind for r in Registry(store, "m").ledger()] == ["promotion", "promotion", "release"]
    assert quarantined(store, "d") == {}


def test_release_that_was_cut_off_before_the_file_went_can_be_repeated(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock_up(store, FIRST)

    def refuse(self: DirectoryStore, key: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DirectoryStore, "delete", refuse)
        with pytest.raises(KeyboardInterrupt):
            let_go(store, FIRST)
    assert list(quarantined(store, "d")) == [FIRST]
    let_go(store, FIRST)
    assert quarantined(store, "d") == {}
    assert {record.window for record in Registry(store, "m").ledger()} == {FIRST}


# --- the command


def test_command_names_the_user_and_what_to_do_next(
    config_path: Path, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    lock_up(store, FIRST)
    told = release(config_path, FIRST[:4], "  a new camera ")
    (record,) = Registry(store, "m").ledger()
    assert (record.actor, record.reason) == ("ada", "a new camera")
    assert f"retrain run {FIRST}" in told
    assert "ada" in told


@pytest.mark.parametrize("error", [KeyError, OSError])
def test_user_without_a_name_is_a_number(
    config_path: Path, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def nobody() -> str:
        raise error

    monkeypatch.setattr(getpass, "getuser", nobody)
    lock_up(store, FIRST)
    release(config_path, FIRST, "a new camera")
    assert Registry(store, "m").ledger()[0].actor == f"user {os.getuid()}"


@pytest.mark.parametrize("reason", ["", " ", "\n\t"])
def test_release_without_a_reason_is_refused(config_path: Path, store: DirectoryStore, reason: str) -> None:
    lock_up(store, FIRST)
    with pytest.raises(ConfigurationError, match="empty reason"):
        release(config_path, FIRST, reason)
    assert Registry(store, "m").ledger() == []
    assert list(quarantined(store, "d")) == [FIRST]


def test_command_line_wants_a_reason(config_path: Path, store: DirectoryStore) -> None:
    lock_up(store, FIRST)
    without = CliRunner().invoke(app, ["release", FIRST, "--config", str(config_path)])
    assert without.exit_code == 2
    assert list(quarantined(store, "d")) == [FIRST]
    done = CliRunner().invoke(app, ["release", FIRST, "--reason", "a new camera", "--config", str(config_path)])
    assert (done.exit_code, f"window {FIRST} released" in done.output) == (0, True)


# --- the next run


def file(run: Run, name: str, document: StepDocument) -> None:
    run.write(StepRecord(step=name, started=datetime.now(UTC), seconds=0.0, document=document))


def decided(config_path: Path, run_id: str, window: str) -> Decision:
    """What a run decides of a window that validation has refused."""
    config = load_config(config_path)
    run = Run(open_store(config.store), run_id)
    run.begin(config, RunParameters(run_id=run_id, model="m", dataset="d", source=window, strategy="auto"))
    refused = CheckedExpectation(name="readable", severity="reject", passed=False, sentence="Nothing can be read.")
    file(run, "validate", ValidationReport(expectations=(refused,)))
    file(run, "detect_drift", DriftReport(champion=None, rows=12))
    return decide_step.run(str(config_path), run_id, window)


def test_next_run_of_a_released_window_trains_and_tells_who_released_it(
    config_path: Path, store: DirectoryStore, workers: Workers
) -> None:
    rows = [image_row(n, "cat" if n % 2 else "dog", split="holdout" if n < 4 else "train") for n in range(12)]
    window, other = pack(store, rows, workers, dataset="d"), pack(store, rows[:8], workers, dataset="d")
    first = decided(config_path, "one", window.document.id)
    assert (first.action, first.rule) == ("quarantine", "invalid-window")
    promote_step.record_outcome(str(config_path), "one", window.document.id, "quarantine", 0)
    assert quarantined(store, "d") == {window.document.id: first}

    let_go(store, window.document.id)
    second = decided(config_path, "two", window.document.id)
    assert (second.action, second.rule) == ("train", "no-champion")
    assert second.reasons[-1] == "Released from quarantine by ada: a new camera"
    assert decided(config_path, "three", other.document.id).action == "quarantine", "only that window was released"


def test_a_window_is_released_once(config_path: Path, store: DirectoryStore, workers: Workers) -> None:
    rows = [image_row(n, "cat" if n % 2 else "dog", split="holdout" if n < 4 else "train") for n in range(12)]
    window = pack(store, rows, workers, dataset="d").document.id
    for actor, reason in (("ada", "a new camera"), ("bob", "looked at it")):
        lock_up(store, window)
        release_window(store, "m", "d", window, actor=actor, reason=reason)
    assert decided(config_path, "one", window).reasons[-1] == "Released from quarantine by ada: a new camera"
    assert len([record for record in Registry(store, "m").ledger() if record.kind == "release"]) == 1
