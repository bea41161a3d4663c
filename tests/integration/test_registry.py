"""Model versions and the ledger: what was written is what is read, and the champion changes for one writer at a time.

On a directory, where files can be tampered with by hand, and on versitygw, where promoters race over HTTP and replies
get lost. Not covered: who may promote (the gate), and what a version's files mean (models).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.core.contracts import LedgerRecord
from components.core.errors import IntegrityError
from components.core.registry import LostRace, Registry
from components.core.storage import DirectoryStore, ObjectStore, sha256_hex, to_json
from tests.servers import Backend, LossyProxy, on, race

FILES = {"weights.safetensors": b"weights" * 100, "lineage.json": b"{}", "card.md": "Größe".encode()}
A, B, C = "a" * 32, "b" * 32, "c" * 32

anywhere = on("directory", "versitygw")


def append(registry: Registry, kind: Any, version: str, **changes: Any) -> LedgerRecord:
    """Add a record in the name of nobody in particular, on top of the present champion."""
    champion = registry.champion()
    return registry.append(
        kind,
        version,
        **{
            "expected_champion": champion.version if champion else None,
            "window": "w1",
            "run_id": None,
            "actor": "tests",
            "reason": "because",
            **changes,
        },
    )


def champion_version(registry: Registry) -> str | None:
    champion = registry.champion()
    return champion.version if champion else None


@pytest.fixture
def registry(store: ObjectStore) -> Registry:
    return Registry(store, "digits")


@pytest.fixture
def local(tmp_path: Path) -> Registry:
    """A registry whose files can be tampered with."""
    return Registry(DirectoryStore(tmp_path / "store"), "digits")


def stored(registry: Registry, key: str) -> Path:
    """Where a directory keeps an object of the model."""
    assert isinstance(registry.store, DirectoryStore)
    return registry.store.root / "models" / registry.model / key


# Versions


@anywhere
def test_saved_version_is_read_and_verified(registry: Registry) -> None:
    version = registry.save_version(FILES)
    assert {name: registry.read_file(version, name) for name in FILES} == FILES
    assert registry.verify_version(version).files == {name: sha256_hex(data) for name, data in FILES.items()}


def test_id_of_a_version_is_a_matter_of_its_content(local: Registry, tmp_path: Path) -> None:
    version = local.save_version(FILES)
    (tmp_path / "elsewhere").mkdir()
    elsewhere = Registry(DirectoryStore(tmp_path / "elsewhere" / "store"), "another-model")
    assert elsewhere.save_version(dict(reversed(FILES.items()))) == version
    assert local.save_version(FILES) == version
    assert local.save_version({**FILES, "card.md": b"other"}) != version
    assert local.save_version({**FILES, "more.txt": b""}) != version
    assert local.save_version({("renamed" if name == "card.md" else name): FILES[name] for name in FILES}) != version
    assert len(version) == 32


def test_saving_again_repairs_a_version_cut_short(local: Registry) -> None:
    version = local.save_version(FILES)
    stored(local, f"versions/{version}/manifest.json").unlink()
    stored(local, f"versions/{version}/card.md").unlink()
    assert local.save_version(FILES) == version
    local.verify_version(version)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "tamper",
    [
        lambda path: path.write_bytes(path.read_bytes() + b"!"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
        lambda path: path.unlink(),
    ],
    ids=["longer", "emptied", "one bit", "removed"],
)
def test_tampered_file_is_named(local: Registry, name: str, tamper: Callable[[Path], object]) -> None:
    version = local.save_version(FILES)
    tamper(stored(local, f"versions/{version}/{name}"))
    with pytest.raises(IntegrityError, match=name):
        local.read_file(version, name)
    with pytest.raises(IntegrityError, match=name):
        local.verify_version(version)
    untouched = next(other for other in FILES if other != name)
    assert local.read_file(version, untouched) == FILES[untouched]


def forge(path: Path) -> None:
    """Tamper with a file and with its digest in the manifest."""
    (path.parent / "card.md").write_bytes(b"forged")
    manifest = json.loads(path.read_bytes())
    manifest["files"]["card.md"] = sha256_hex(b"forged")
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "tamper",
    [
        forge,
        lambda path: path.write_bytes(b"{}"),
        lambda path: path.write_bytes(b'{"files": {}}'),
        lambda path: path.write_bytes(b"\xff not JSON"),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
    ],
    ids=["forged", "no manifest", "no files", "no JSON", "emptied", "removed"],
)
def test_tampered_manifest_is_named(local: Registry, tamper: Callable[[Path], object]) -> None:
    version = local.save_version(FILES)
    tamper(stored(local, f"versions/{version}/manifest.json"))
    for use in (lambda: local.read_file(version, "card.md"), lambda: local.verify_version(version)):
        with pytest.raises(IntegrityError, match=r"manifest\.json"):
            use()


def test_manifest_of_another_version_is_refused(local: Registry) -> None:
    version, other = local.save_version(FILES), local.save_version({"card.md": b"other"})
    source = stored(local, f"versions/{other}")
    for file in source.iterdir():
        stored(local, f"versions/{version}/{file.name}").write_bytes(file.read_bytes())
    with pytest.raises(IntegrityError, match=r"manifest\.json"):
        local.read_file(version, "card.md")


def test_file_that_is_not_of_the_version_is_refused(local: Registry) -> None:
    version = local.save_version(FILES)
    stored(local, f"versions/{version}/smuggled.py").write_bytes(b"")
    with pytest.raises(IntegrityError, match="smuggled"):
        local.read_file(version, "smuggled.py")


@anywhere
def test_version_that_never_was_is_an_integrity_error(registry: Registry) -> None:
    with pytest.raises(IntegrityError, match=A):
        registry.verify_version(A)


# The ledger


@anywhere
def test_first_promotion_makes_the_champion(registry: Registry) -> None:
    assert registry.champion() is None
    assert registry.ledger() == []
    record = append(registry, "promotion", A)
    assert registry.champion() == record
    assert (record.number, record.champion_before, record.previous) == (1, None, None)


@anywhere
def test_records_are_numbered_and_chained(registry: Registry) -> None:
    for kind, version in (("promotion", A), ("rejection", B), ("hold", B), ("approval", B), ("promotion", C)):
        append(registry, kind, version)
    records = registry.ledger()
    assert [record.number for record in records] == [1, 2, 3, 4, 5]
    assert [record.previous for record in records] == [None, *(sha256_hex(to_json(record)) for record in records[:-1])]
    assert [record.champion_before for record in records] == [None, A, A, A, A]
    assert len({record.nonce for record in records}) == 5


@anywhere
def test_ledgers_of_two_models_do_not_mix(registry: Registry) -> None:
    other = Registry(registry.store, registry.model + "-2")
    append(registry, "promotion", A)
    append(other, "promotion", B)
    assert (champion_version(registry), champion_version(other)) == (A, B)


@pytest.mark.parametrize("kind", ["rejection", "hold", "approval"])
def test_rejected_challenger_keeps_champion(local: Registry, kind: str) -> None:
    first = append(local, "promotion", A)
    append(local, kind, B)
    assert local.champion() == first


def test_rollback_makes_the_former_version_champion(local: Registry) -> None:
    append(local, "promotion", A)
    append(local, "promotion", B)
    append(local, "rejection", C)
    record = append(local, "rollback", A)
    assert local.champion() == record
    assert (record.version, record.champion_before) == (A, B)


@anywhere
@pytest.mark.parametrize("kind", ["promotion", "rejection", "rollback"])
@pytest.mark.parametrize("expected", [None, B])
def test_judgement_against_a_former_champion_is_not_filed(registry: Registry, kind: str, expected: str | None) -> None:
    append(registry, "promotion", A)
    with pytest.raises(LostRace) as lost:
        append(registry, kind, C, expected_champion=expected)
    assert lost.value.champion == A
    assert len(registry.ledger()) == 1


@anywhere
def test_retried_append_finds_its_record_and_adds_none(registry: Registry) -> None:
    record = append(registry, "promotion", A, run_id="run-1")
    append(registry, "promotion", B, run_id="run-2")
    # The step is started again: it still expects the champion that it saw then.
    assert append(registry, "promotion", A, run_id="run-1", expected_champion=None) == record
    assert len(registry.ledger()) == 2
    assert champion_version(registry) == B


def test_second_attempt_of_a_run_is_a_record_of_its_own(local: Registry) -> None:
    append(local, "rejection", A, run_id="run-1")
    append(local, "rejection", B, run_id="run-1")
    append(local, "promotion", B, run_id="run-1")
    assert len(local.ledger()) == 3


def test_records_without_a_run_are_never_taken_for_each_other(local: Registry) -> None:
    append(local, "promotion", A)
    append(local, "rollback", A)
    append(local, "rollback", A)
    assert len(local.ledger()) == 3


def record_path(registry: Registry, number: int) -> Path:
    return stored(registry, f"ledger/{number:010d}.json")


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))


@pytest.mark.parametrize(
    "tamper",
    [
        lambda local: record_path(local, 1).unlink(),
        lambda local: record_path(local, 2).unlink(),
        lambda local: edit(record_path(local, 1), version=C),
        lambda local: edit(record_path(local, 2), reason="another"),
        lambda local: edit(record_path(local, 2), previous=None),
        lambda local: edit(record_path(local, 3), previous="0" * 64),
        lambda local: edit(record_path(local, 3), number=4),
        lambda local: edit(record_path(local, 2), extra="key"),
        lambda local: record_path(local, 2).write_bytes(b""),
        lambda local: record_path(local, 3).write_bytes(record_path(local, 2).read_bytes()),
        lambda local: record_path(local, 3).rename(record_path(local, 4)),
        lambda local: record_path(local, 3).with_name("0000000004.json.bak").write_bytes(b"{}"),
    ],
    ids=[
        "first record gone",
        "gap",
        "champion forged",
        "reason edited",
        "chain cut",
        "chain forged",
        "number edited",
        "key added",
        "record emptied",
        "record repeated",
        "record renamed",
        "stranger",
    ],
)
def test_tampered_ledger_is_refused_for_reading_and_writing(
    local: Registry, tamper: Callable[[Registry], object]
) -> None:
    for version in (A, B, C):
        append(local, "promotion", version)
    tamper(local)
    before = sorted(path.name for path in stored(local, "ledger").iterdir())
    with pytest.raises(IntegrityError, match="ledger"):
        local.champion()
    with pytest.raises(IntegrityError, match="ledger"):
        local.append("promotion", A, expected_champion=C, window=None, run_id=None, actor="tests", reason="because")
    assert sorted(path.name for path in stored(local, "ledger").iterdir()) == before


# Races

PROMOTERS = 6
TURNS = 4


def promote_in_turns(store: ObjectStore, number: int, meet: Callable[[], object]) -> list[LedgerRecord | None]:
    """In each turn, all promote a challenger that they judged against the same champion."""
    registry = Registry(store, "digits")
    answers: list[LedgerRecord | None] = []
    for turn in range(TURNS):
        champion = champion_version(registry)
        version = f"{turn:02d}{number:030d}"
        meet()
        try:
            answers.append(
                append(registry, "promotion", version, expected_champion=champion, run_id=f"{turn}-{number}")
            )
        except LostRace:
            answers.append(None)
        meet()
    return answers


@anywhere
def test_one_of_many_promoters_replaces_each_champion(backend: Backend) -> None:
    answers = race(backend, promote_in_turns, PROMOTERS)
    ledger = Registry(backend.open(), "digits").ledger()  # gapless and chained, or it could not be read
    won = [[answer for answer in turn if answer] for turn in zip(*answers, strict=True)]
    assert [len(records) for records in won] == [1] * TURNS
    assert ledger == [records[0] for records in won]
    assert [record.champion_before for record in ledger] == [None, *(record.version for record in ledger[:-1])]


def hold_many(store: ObjectStore, number: int, meet: Callable[[], object]) -> list[LedgerRecord]:
    registry = Registry(store, "digits")
    meet()
    return [append(registry, "hold", f"{number:032d}", run_id=f"{number}-{turn}") for turn in range(5)]


@anywhere
def test_every_record_of_many_writers_is_filed_once(backend: Backend) -> None:
    answers = race(backend, hold_many, 4)
    ledger = Registry(backend.open(), "digits").ledger()
    assert [record.number for record in ledger] == list(range(1, 21))
    assert sorted((r for records in answers for r in records), key=lambda r: r.number) == ledger


@on("moto", "versitygw")
@pytest.mark.parametrize("lost", [1, 2, 4])
def test_promotion_whose_reply_is_lost_is_filed_once(backend: Backend, proxy: LossyProxy, lost: int) -> None:
    registry = Registry(backend.open(endpoint_url=proxy.endpoint), "digits")
    proxy.lose("PUT", lost)
    record = append(registry, "promotion", A, run_id="run-1")
    assert registry.ledger() == [record]
    assert proxy.lost > 0


@on("versitygw")
def test_promoters_through_lost_replies_are_told_the_truth(backend: Backend, proxy: LossyProxy) -> None:
    proxy.lose("PUT", 12)
    config = backend.config.model_copy(update={"endpoint_url": proxy.endpoint})
    lossy = Backend(name=backend.name, config=config, server=backend.server)
    answers = race(lossy, promote_in_turns, 4)
    ledger = Registry(backend.open(), "digits").ledger()
    told = sorted((answer for turns in answers for answer in turns if answer), key=lambda record: record.number)
    assert told == ledger
    assert len(ledger) == TURNS
    assert proxy.lost > 0
