"""The probe of a store: a sound one passes, and each way to be unsound is found and named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from components.core.config import StoreConfig
from components.core.contention import judge_round, race_store
from components.core.errors import ConditionUnsupported, UnsoundStore
from components.core.probe import check_store, probe_optional, probe_required
from components.core.storage import STALE_ETAG, DirectoryStore
from pipelines.doctor import encryption


class Overwriting(DirectoryStore):
    """Answers every condition with yes, and writes."""

    def put_new(self, key: str, data: bytes) -> bool:
        self.put(key, data)
        return True

    def put_if_match(self, key: str, data: bytes, etag: str) -> bool:
        self.put(key, data)
        return True


class Flattering(DirectoryStore):
    """Answers yes, and leaves what is there."""

    def put_new(self, key: str, data: bytes) -> bool:
        super().put_new(key, data)
        return True


class Sly(DirectoryStore):
    """Answers no, and overwrites."""

    def put_new(self, key: str, data: bytes) -> bool:
        fresh = self.head(key) is None
        self.put(key, data)
        return fresh

    def put_if_match(self, key: str, data: bytes, etag: str) -> bool:
        self.put(key, data)
        return False


class Refusing(DirectoryStore):
    """Creates nothing."""

    def put_new(self, key: str, data: bytes) -> bool:
        self.put(key, b"somebody else's")
        return False


class Honest(DirectoryStore):
    """Says that it cannot."""

    def put_new(self, key: str, data: bytes) -> bool:
        raise ConditionUnsupported("no conditional writes", expected="some", next_command="another store")


class Whole(DirectoryStore):
    """Gives the beginning of the object, whatever was asked for: what becomes of a 200 in place of a 206."""

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        return super().get(key)[:length]


class Late(DirectoryStore):
    """Lists nothing that is new."""

    def list_objects(self, prefix: str = "", *, start_after: str = ""):
        return iter(())


def test_sound_store_passes_and_is_left_as_it_was(tmp_path: Path):
    store = DirectoryStore(tmp_path / "store")
    check_store(store)
    findings = [*probe_required(store), *probe_optional(store)]
    assert [finding.name for finding in findings] == ["create-only", "list after write", "ranges", STALE_ETAG, "delete"]
    assert all(finding.passed for finding in findings)
    assert list(store.list_objects()) == []


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        (Overwriting, "created an object under a key that was taken, and overwrote the first one"),
        (Flattering, "created an object under a key that was taken, and left the first one"),
        (Sly, "refused to create an object under a key that was taken, and overwrote it"),
        (Refusing, "did not create an object under a key that nobody had used"),
        (Honest, "no conditional writes"),
        (Whole, "Asked for bytes 3 to 6, it gave b'0123'"),
        (Late, "A list does not show what was just written"),
    ],
)
def test_unsound_store_is_refused_with_an_explanation(tmp_path: Path, kind: type[DirectoryStore], found: str):
    store = kind(tmp_path / "store")
    with pytest.raises(UnsoundStore, match=found) as refusal:
        check_store(store)
    assert (refusal.value.exit_code, "retrain doctor" in refusal.value.next_command) == (2, True)
    assert list(DirectoryStore(store.root).list_objects()) == []


@pytest.mark.parametrize("kind", [Overwriting, Sly])
def test_stale_etag_that_is_taken_for_right_is_a_warning(tmp_path: Path, kind: type[DirectoryStore]):
    finding = next(iter(probe_optional(kind(tmp_path / "store"))))
    assert (finding.name, finding.passed, finding.required) == (STALE_ETAG, False, False)


@pytest.mark.parametrize(
    ("told", "holder", "fault"),
    [
        ([True, False, False], 0, None),
        ([None, False, False], 0, None),  # its answer was lost
        ([None, None, True], 2, None),
        ([None, None, None], None, None),  # nobody got through
        ([True, True, False], 0, "2 writers were told that they won."),
        ([True, False, False], 1, "one was told that it won, and the object is another's."),
        ([None, False, False], 1, "one was told that it lost, and the object is its own."),
        ([True, False, False], None, "nothing is there."),
        ([False, False, False], None, "nothing is there."),
    ],
)
def test_round_by_hand(told: list[bool | None], holder: int | None, fault: str | None):
    assert judge_round(told, holder) == fault


def test_race_on_a_directory_has_one_winner_a_round_and_leaves_nothing(tmp_path: Path):
    finding = race_store(StoreConfig(uri=str(tmp_path / "store")), writers=8, rounds=3)
    assert finding.passed
    assert finding.sentence.startswith("8 writers, 3 rounds")
    assert list(DirectoryStore(tmp_path / "store").list_objects()) == []


def test_race_on_a_store_that_keeps_no_condition_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("components.core.contention.open_store", lambda config: Overwriting(Path(config.uri)))
    finding = race_store(StoreConfig(uri=str(tmp_path / "store")), writers=4, rounds=1)
    assert (finding.passed, finding.required) == (False, True)
    assert "Round 1: 4 writers were told that they won." in finding.sentence
    shutil.rmtree(tmp_path / "store")


@pytest.mark.parametrize(
    ("store", "passed"),
    [
        ({"uri": "store"}, True),
        ({"uri": "s3://b"}, True),
        ({"uri": "s3://b", "endpoint_url": "https://s3.example"}, True),
        ({"uri": "s3://b", "endpoint_url": "http://127.0.0.1:9000"}, True),
        ({"uri": "s3://b", "endpoint_url": "http://s3.example"}, False),
    ],
)
def test_doctor_warns_of_a_store_that_is_asked_in_the_clear(store: dict[str, str], passed: bool) -> None:
    finding = encryption(StoreConfig(**store))
    assert (finding.passed, finding.required) == (passed, False)
