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

from components.core.contracts import Champion, LedgerKind, LedgerRecord
from components.core.errors import IntegrityError
from components.core.registry import LostRace, Registry
from components.core.storage import DirectoryStore, ObjectStore, sha256_hex, to_json
from tests.servers import Backend, LossyProxy, on, race

FILES = {"weights.safetensors": b"weights" * 100, "lineage.json": b"{}", "card.md": "Größe".encode()}
A, B, C = "a" * 32, "b" * 32, "c" * 32

anywhere = on("directory", "versitygw")


def append(registry: Registry, kind: Any, version: str | None, **changes: Any) -> LedgerRecord:
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


def made_by(record: LedgerRecord) -> Champion:
    """The champion that a promotion or a rollback makes."""
    assert record.version
    return Champion(version=record.version, number=record.number, run_id=record.run_id, created=record.created)


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
    record = append(registry, "promotion", A, run_id="run-1")
    assert registry.champion() == made_by(record)
    assert made_by(record).run_id == "run-1"
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
    assert local.champion() == made_by(first)


def test_rollback_makes_the_former_version_champion(local: Registry) -> None:
    append(local, "promotion", A)
    append(local, "promotion", B)
    append(local, "rejection", C)
    record = append(local, "rollback", A)
    assert local.champion() == made_by(record)
    assert (record.version, record.champion_before) == (A, B)


@anywhere
def test_release_of_a_window_is_in_the_chain_and_makes_no_champion(registry: Registry) -> None:
    first = append(registry, "release", None, window="w0")
    assert (first.number, first.version, first.champion_before) == (1, None, None)
    assert registry.champion() is None
    promotion = append(registry, "promotion", A)
    release = append(registry, "release", None, window="w2", reason="a new camera")
    assert (release.number, release.champion_before, release.window) == (3, A, "w2")
    assert registry.champion() == made_by(promotion)
    last = append(registry, "promotion", B)
    assert last.champion_before == A
    assert registry.ledger() == [first, promotion, release, last]
    assert [record.previous for record in registry.ledger()[1:]] == [
        sha256_hex(to_json(record)) for record in (first, promotion, release)
    ]


def test_one_window_can_be_released_again(local: Registry) -> None:
    records = [append(local, "release", None, window="w1", reason=reason) for reason in ("once", "twice")]
    assert local.ledger() == records
    assert len({record.nonce for record in records}) == 2


def test_edited_release_is_found(local: Registry) -> None:
    append(local, "promotion", A)
    append(local, "release", None, window="w1")
    append(local, "hold", B)
    edit(record_path(local, 2), window="w2")
    with pytest.raises(IntegrityError, match="record 2 is not the one that the record after it follows"):
        local.ledger()


def test_promotion_without_a_version_makes_no_champion(local: Registry) -> None:
    append(local, "promotion", A)
    append(local, "rollback", None)
    assert champion_version(local) == A


@anywhere
@pytest.mark.parametrize("kind", ["promotion", "rejection", "rollback", "release"])
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
    ("tamper", "seen_from_the_end"),
    [
        pytest.param(lambda local: record_path(local, 1).unlink(), True, id="first record gone"),
        pytest.param(lambda local: record_path(local, 2).unlink(), True, id="gap"),
        pytest.param(lambda local: edit(record_path(local, 1), version=C), False, id="champion forged"),
        pytest.param(lambda local: edit(record_path(local, 2), reason="another"), False, id="reason edited"),
        pytest.param(lambda local: edit(record_path(local, 2), previous=None), False, id="chain cut"),
        pytest.param(lambda local: edit(record_path(local, 3), previous=None), True, id="end cut off"),
        pytest.param(lambda local: edit(record_path(local, 3), previous="0" * 64), False, id="chain forged"),
        pytest.param(lambda local: edit(record_path(local, 3), number=4), True, id="number edited"),
        pytest.param(lambda local: edit(record_path(local, 2), extra="key"), False, id="key added"),
        pytest.param(lambda local: record_path(local, 2).write_bytes(b""), False, id="record emptied"),
        pytest.param(lambda local: record_path(local, 3).write_bytes(b""), True, id="last record emptied"),
        pytest.param(
            lambda local: record_path(local, 3).write_bytes(record_path(local, 2).read_bytes()),
            True,
            id="record repeated",
        ),
        pytest.param(lambda local: record_path(local, 3).rename(record_path(local, 4)), True, id="record renamed"),
        pytest.param(
            lambda local: record_path(local, 3).with_name("0000000004.json.bak").write_bytes(b"{}"),
            True,
            id="stranger",
        ),
    ],
)
def test_tampered_ledger_is_refused_for_reading_and_writing(
    local: Registry, tamper: Callable[[Registry], object], seen_from_the_end: bool
) -> None:
    for version in (A, B, C):
        append(local, "promotion", version)
    tamper(local)
    before = sorted(path.name for path in stored(local, "ledger").iterdir())
    with pytest.raises(IntegrityError, match="ledger"):
        local.ledger()
    if seen_from_the_end:
        with pytest.raises(IntegrityError, match="ledger"):
            local.champion()
    else:  # the last record says who is champion, and what stands before it is not read for that
        assert champion_version(local) == C
    with pytest.raises(IntegrityError, match="ledger"):
        local.append("promotion", A, expected_champion=C, window=None, run_id=None, actor="tests", reason="because")
    assert sorted(path.name for path in stored(local, "ledger").iterdir()) == before


@pytest.mark.parametrize("number", range(1, 6))
@pytest.mark.parametrize("tamper", ["reason", "white space"])
def test_an_edit_of_any_record_but_the_last_is_found(local: Registry, number: int, tamper: str) -> None:
    for kind, version in (("promotion", A), ("hold", B), ("promotion", B), ("rejection", C), ("hold", C), ("hold", A)):
        append(local, kind, version)
    path = record_path(local, number)
    if tamper == "reason":
        edit(path, reason="another")
    else:
        path.write_bytes(path.read_bytes().replace(b"{", b"{ ", 1))
    with pytest.raises(IntegrityError, match=f"record {number} is not the one that the record after it follows"):
        local.ledger()


@pytest.mark.parametrize("kind", ["promotion", "rollback", "release"])
def test_edit_or_loss_of_the_newest_record_is_found_by_its_head(local: Registry, kind: LedgerKind) -> None:
    append(local, "promotion", A)
    append(local, kind, None if kind == "release" else B)
    assert local.verify_ledger() == 2
    path, pristine = record_path(local, 2), record_path(local, 2).read_bytes()
    edit(path, reason="another")
    with pytest.raises(IntegrityError, match="record 2 is not the one that was written"):
        local.verify_ledger()
    path.unlink()
    with pytest.raises(IntegrityError, match="record 2 is gone"):
        local.verify_ledger()
    path.write_bytes(pristine)
    assert local.verify_ledger() == 2


def test_head_that_was_cut_off_is_made_up_for_by_the_next_append(local: Registry) -> None:
    append(local, "promotion", A)
    stored(local, "heads").joinpath("0000000001").unlink()
    assert local.verify_ledger() == 1, "nothing vouches for it yet"
    append(local, "hold", B)
    assert [path.name for path in sorted(stored(local, "heads").iterdir())] == ["0000000001", "0000000002"]


def test_ledger_that_lost_its_newest_record_is_not_forked(local: Registry) -> None:
    append(local, "promotion", A)
    append(local, "promotion", B)
    record_path(local, 2).unlink()
    with pytest.raises(IntegrityError, match="record 2 is gone"):
        append(local, "promotion", C)
    assert len(local.ledger()) == 1


def test_stranger_among_the_heads_is_named(local: Registry) -> None:
    append(local, "promotion", A)
    stored(local, "heads").joinpath("0000000001.bak").write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"0000000001\.bak is no head of a record"):
        local.verify_ledger()


def test_nothing_is_appended_after_a_record_that_is_not_the_one_that_was_written(local: Registry) -> None:
    append(local, "promotion", A)
    edit(record_path(local, 1), version=B)
    with pytest.raises(IntegrityError, match="record 1 is not the one that was written"):
        append(local, "hold", B)
    assert len(local.ledger()) == 1


def test_an_edit_between_the_end_and_the_champion_is_found_by_whoever_asks_for_the_champion(local: Registry) -> None:
    for kind, version in (("promotion", A), ("hold", B), ("rejection", C)):
        append(local, kind, version)
    edit(record_path(local, 2), reason="another")
    with pytest.raises(IntegrityError, match="record 2"):
        local.champion()


class CountingStore(DirectoryStore):
    """Counts what is read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.read: list[str] = []

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        self.read.append(key.rpartition("/")[2])
        return super().get(key, offset=offset, length=length)


def test_champion_is_read_from_the_end_of_the_ledger(tmp_path: Path) -> None:
    store = CountingStore(tmp_path / "store")
    registry = Registry(store, "digits")
    for number in range(12):
        append(registry, "promotion", f"{number:032d}")
    append(registry, "rejection", A)
    append(registry, "hold", B)
    store.read.clear()
    assert champion_version(registry) == f"{11:032d}"
    assert sorted(store.read) == ["0000000012.json", "0000000013.json", "0000000014.json"]


def write_records_of_a_newer_release(registry: Registry) -> list[bytes]:
    """File three records that know a field more than this release does, chained by the digests of their bytes."""
    chain: list[bytes] = []
    for number, (kind, version) in enumerate((("promotion", A), ("hold", B), ("promotion", C)), start=1):
        record = {
            "signature": {"by": "a newer release"},
            "number": number,
            "kind": kind,
            "version": version,
            "champion_before": None if number == 1 else A,
            "window": "w1",
            "run_id": f"run-{number}",
            "actor": "tests",
            "reason": "because",
            "nonce": f"{number:032d}",
            "previous": sha256_hex(chain[-1]) if chain else None,
            "created": "2026-01-02T03:04:05Z",
        }
        chain.append(json.dumps(record, indent=2).encode())  # not how this release writes JSON either
        registry.store.put_new(f"models/{registry.model}/ledger/{number:010d}.json", chain[-1])
    return chain


@anywhere
def test_ledger_of_a_newer_release_is_read_verified_and_continued(registry: Registry) -> None:
    chain = write_records_of_a_newer_release(registry)
    assert [(r.number, r.kind, r.version) for r in registry.ledger()] == [
        (1, "promotion", A),
        (2, "hold", B),
        (3, "promotion", C),
    ]
    assert champion_version(registry) == C
    assert append(registry, "hold", B, run_id="run-2", expected_champion=None).number == 2, (
        "the run has filed it before"
    )
    record = append(registry, "rollback", A)
    assert (record.number, record.champion_before, record.previous) == (4, C, sha256_hex(chain[-1]))
    assert [r.number for r in registry.ledger()] == [1, 2, 3, 4]


def test_field_that_this_release_does_not_know_is_protected_too(local: Registry) -> None:
    write_records_of_a_newer_release(local)
    edit(record_path(local, 1), signature={"by": "somebody else"})
    with pytest.raises(IntegrityError, match="record 1"):
        local.ledger()


def test_version_of_a_newer_release_is_verified_by_the_bytes_of_its_manifest(local: Registry) -> None:
    manifest = json.dumps({"signed": True, "files": {"card.md": sha256_hex(b"card")}}, indent=1).encode()
    version = sha256_hex(manifest)[:32]
    local.store.put(f"models/digits/versions/{version}/manifest.json", manifest)
    local.store.put(f"models/digits/versions/{version}/card.md", b"card")
    assert local.read_file(version, "card.md") == b"card"
    assert local.verify_version(version).files == {"card.md": sha256_hex(b"card")}
    local.store.put(f"models/digits/versions/{version}/manifest.json", manifest.replace(b"true", b"null"))
    with pytest.raises(IntegrityError, match=r"manifest\.json"):
        local.verify_version(version)


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
