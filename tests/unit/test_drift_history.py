"""The looks at a champion's reference: filed once a window, read in the order in which the windows came."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from components.core.contracts import DriftReport, WindowDocument
from components.core.storage import DirectoryStore
from components.core.windows import Window
from components.detect_drift import history
from components.detect_drift.history import DriftLook, earlier_looks, file_look, look_at

START = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def window(store: DirectoryStore, number: int, created: datetime | None = None) -> Window:
    document = WindowDocument(
        id=f"{number:032x}",
        dataset="images",
        source="delivery",
        created=created or START + timedelta(days=7 * number),
        rows=10,
        usable=10,
        train_rows=8,
        holdout_rows=2,
        image_bytes=100,
        class_counts={"cat": 10},
        status_counts={"ok": 10},
        manifest="manifest.parquet",
        files={},
    )
    return Window(store, document)


def look(seen: Window, changed: bool = False) -> DriftLook:
    return look_at(seen, DriftReport(champion="v1", rows=10, p_value=0.5, drifted=changed))


def names(looks: list[DriftLook]) -> list[int]:
    return [int(one.window, 16) for one in looks]


def test_a_look_that_was_filed_is_read_back_the_same(store: DirectoryStore) -> None:
    filed = look(window(store, 1), changed=True)
    file_look(store, "m", "v1", filed)
    assert earlier_looks(store, "m", "v1", window(store, 2)) == [filed]


def test_looks_come_oldest_first_whenever_they_were_filed(store: DirectoryStore) -> None:
    for number in (3, 1, 12, 2):
        file_look(store, "m", "v1", look(window(store, number)))
    assert names(earlier_looks(store, "m", "v1", window(store, 20))) == [1, 2, 3, 12]


def test_a_window_does_not_look_back_at_itself_or_at_later_ones(store: DirectoryStore) -> None:
    for number in range(5):
        file_look(store, "m", "v1", look(window(store, number)))
    assert names(earlier_looks(store, "m", "v1", window(store, 3))) == [0, 1, 2]
    assert earlier_looks(store, "m", "v1", window(store, 0)) == []


def test_a_window_that_is_looked_at_again_counts_once(store: DirectoryStore) -> None:
    file_look(store, "m", "v1", look(window(store, 1), changed=True))
    file_look(store, "m", "v1", look(window(store, 1), changed=False))
    assert [one.changed for one in earlier_looks(store, "m", "v1", window(store, 2))] == [False]


def test_looks_are_of_one_champion_and_one_model(store: DirectoryStore) -> None:
    file_look(store, "m", "v1", look(window(store, 1)))
    assert earlier_looks(store, "m", "v2", window(store, 2)) == []
    assert earlier_looks(store, "m", "v", window(store, 2)) == []
    assert earlier_looks(store, "other", "v1", window(store, 2)) == []


def test_no_looks_are_no_history(store: DirectoryStore) -> None:
    assert earlier_looks(store, "m", "v1", window(store, 1)) == []


def test_windows_of_one_second_keep_their_order(store: DirectoryStore) -> None:
    moments = [START + timedelta(microseconds=step) for step in (0, 5, 40, 999_999)]
    for number, moment in enumerate(reversed(moments)):
        file_look(store, "m", "v1", look(window(store, number, moment)))
    last = window(store, 9, START + timedelta(seconds=1))
    assert names(earlier_looks(store, "m", "v1", last)) == [3, 2, 1, 0]


def test_only_the_latest_looks_are_read(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MOST_LOOKS", 4)
    for number in range(7):
        file_look(store, "m", "v1", look(window(store, number)))
    found = names(earlier_looks(store, "m", "v1", window(store, 500)))
    assert found == [3, 4, 5, 6]


@pytest.mark.parametrize(
    ("measured", "estimated", "drop", "known"),
    [(0.25, 0.4, 0.25, True), (0.0, 0.4, 0.0, True), (None, 0.4, 0.4, False), (None, None, None, False)],
)
def test_a_measured_drop_counts_more_than_an_estimate(
    store: DirectoryStore, measured: float | None, estimated: float | None, drop: float | None, known: bool
) -> None:
    report = DriftReport(champion="v1", rows=10, accuracy_drop=measured, estimated_drop=estimated, drifted=True)
    found = look_at(window(store, 1), report)
    assert (found.drop, found.measured, found.changed, found.p_value) == (drop, known, True, None)
    assert (found.window, found.created) == (f"{1:032x}", START + timedelta(days=7))
