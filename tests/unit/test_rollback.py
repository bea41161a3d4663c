"""Rolling back: who is the target, what is looked at before, one record whatever happens, and what the answer says."""

from __future__ import annotations

import getpass
import json
import shutil
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as save_tensors
from typer.testing import CliRunner

from components.core.contracts import LedgerRecord
from components.core.errors import BrokenModel, ConfigurationError, IntegrityError
from components.core.registry import Registry
from components.core.storage import DirectoryStore
from components.core.windows import from_parquet, to_parquet
from components.evaluate.loading import load_version
from components.evaluate.rescore import Rescored
from components.promote.rollback import find_done, find_target, roll_back
from pipelines.cli import app
from tests.unit.crashes import Crash, CrashingStore
from tests.unit.ledgers import told
from tests.unit.test_evaluation_step import House, built, champion, weakened

__all__ = ["built"]  # a fixture
pytestmark = pytest.mark.usefixtures("one_thread")


# --- the target


@pytest.mark.parametrize(
    ("ledger", "target"),
    [("+aa +bb", "aa"), ("+aa +bb <aa +cc", "aa"), ("+aa +bb +cc <bb", "aa"), ("+aa -aa +bb +cc", "bb")],
)
def test_default_target_is_the_champion_before(ledger: str, target: str) -> None:
    assert find_target(told(ledger), None) == target


def test_target_is_found_by_the_start_of_its_name() -> None:
    ledger = told("+ab +ac +bd ~xx")
    assert find_target(ledger, "b") == "bd"
    assert find_target(ledger, "ab") == "ab"


@pytest.mark.parametrize(
    ("ledger", "name", "found"),
    [
        ("", None, "no champion before the first one"),
        ("+aa", None, "no champion before aa"),
        ("+aa +bb <aa", None, "no champion before aa"),
        ("+aa +bb ~xx", "xx", "0 former champions that start with 'xx'"),
        ("+ab +ac +dd", "a", "2 former champions"),
        ("+ab +ac +dd", "", "0 former champions"),
        ("+aa +bb +cc -aa", "aa", "0 former champions"),
    ],
)
def test_version_that_was_no_champion_is_no_target(ledger: str, name: str | None, found: str) -> None:
    with pytest.raises(ConfigurationError, match=found):
        find_target(told(ledger), name)


def test_error_lists_the_former_champions() -> None:
    with pytest.raises(ConfigurationError) as error:
        find_target(told("+aa +bb +cc"), "x")
    assert error.value.expected == "one of the former champions: aa, bb"


def test_command_that_was_carried_out_is_found() -> None:
    ledger = told("+aa +bb +cc <bb ~xx")
    by = {"actor": "ada", "reason": "because of 4"}
    assert find_done(ledger, None, **by) == ledger[3]
    assert find_done(ledger, "bb", actor="bob", reason="another") == ledger[3]
    assert find_done(ledger, None, actor="bob", reason="because of 4") is None
    assert find_done(ledger, None, actor="ada", reason="another") is None
    assert find_done(ledger, "aa", **by) is None
    assert find_done([], None, **by) is None


# --- the record


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(DirectoryStore(tmp_path / "store"), "m")


def promoted(registry: Registry, version: str, **keys: Any) -> LedgerRecord:
    now = registry.champion()
    told = {"window": None, "run_id": None, "actor": "pipeline", "reason": "better", **keys}
    return registry.append("promotion", version, expected_champion=now.version if now else None, **told)


def test_record_names_actor_reason_and_the_evidence_of_the_targets_promotion(registry: Registry) -> None:
    promoted(registry, "a", evidence="bundle-a")
    promoted(registry, "b", evidence="bundle-b")
    record = roll_back(registry, "a", champion="b", actor="ada", reason="worse at night")
    assert (record.kind, record.version, record.champion_before) == ("rollback", "a", "b")
    assert (record.actor, record.reason, record.evidence) == ("ada", "worse at night", "bundle-a")
    assert registry.champion().version == "a"
    assert len(registry.ledger()) == 3


class Busy(DirectoryStore):
    """A store in which something is appended to the ledger right before the record is."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.before: Any = None

    def put_new(self, key: str, data: bytes) -> bool:
        if self.before and "/ledger/" in key:
            act, self.before = self.before, None
            act(Registry(DirectoryStore(self.root), "m"))
        return super().put_new(key, data)


@pytest.fixture
def busy(tmp_path: Path) -> Registry:
    registry = Registry(Busy(tmp_path / "store"), "m")
    for version in "abc":
        promoted(registry, version)
    return registry


def test_record_about_something_else_in_between_does_no_harm(busy: Registry) -> None:
    busy.store.before = lambda other: other.append(
        "hold", "x", expected_champion="c", window=None, run_id=None, actor="p", reason="r"
    )
    assert roll_back(busy, "a", champion="c", actor="ada", reason="r").number == 5
    assert [record.kind for record in busy.ledger()][3:] == ["hold", "rollback"]


def test_champion_that_came_in_between_stays(busy: Registry) -> None:
    busy.store.before = lambda other: promoted(other, "d")
    with pytest.raises(ConfigurationError, match="d has become champion meanwhile"):
        roll_back(busy, "a", champion="c", actor="ada", reason="r")
    assert (busy.champion().version, len(busy.ledger())) == ("d", 4)


def test_target_that_is_removed_in_between_does_not_become_champion(busy: Registry) -> None:
    busy.store.before = lambda other: other.append(
        "removal", "a", expected_champion="c", window=None, run_id=None, actor="gc", reason="old"
    )
    with pytest.raises(ConfigurationError, match="0 former champions that start with 'a'"):
        roll_back(busy, "a", champion="c", actor="ada", reason="r")
    assert (busy.champion().version, len(busy.ledger())) == ("c", 4)


# --- the whole command, on models and windows in a store


def command(house: House, *arguments: str) -> list[str]:
    return ["rollback", *arguments, "--config", str(house.path)]


def invoke(house: House, *arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, command(house, *arguments))
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def answer(house: House, *arguments: str) -> dict[str, Any]:
    code, output = invoke(house, *arguments, "--json")
    assert code == 0
    return json.loads(output)


@pytest.fixture(scope="module")
def lined(built: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """Two champions after the one without a run: a good one, then a bad one, both judged and promoted by a run."""
    place = shutil.copytree(built[0], tmp_path_factory.mktemp("rollback") / "house")
    house = House(place, built[1])
    add = house.registry.append
    by = {"window": None, "actor": "pipeline", "reason": "r"}
    add("promotion", house.champion, expected_champion=None, run_id=None, **by)
    evidence = house.registry.save_evidence({"card.md": b"good"})
    good = house.evaluate(champion(), run_id="one")[0].challenger
    add("promotion", good, expected_champion=house.champion, run_id="one", evidence=evidence, **by)
    bad = house.evaluate(weakened(champion(), 0.6), run_id="two", champion=good)[0].challenger
    add("promotion", bad, expected_champion=good, run_id="two", **by)
    return place, good, bad


@pytest.fixture
def house(lined: tuple[Path, str, str], built: tuple[Path, dict[str, str]], tmp_path: Path) -> House:
    return House(shutil.copytree(lined[0], tmp_path / "house"), built[1])


@pytest.fixture
def line(lined: tuple[Path, str, str], monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """The two versions; the commands are ada's."""
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    return lined[1:]


def test_both_are_scored_on_the_rows_that_the_target_was_promoted_on(house: House, line: tuple[str, str]) -> None:
    good, bad = line
    said = answer(house, "--reason", "worse at night")
    table = from_parquet(house.store.get("runs/one/answers-1.parquet"))
    right = sum(a == b for a, b in zip(table["challenger"].to_pylist(), table["label"].to_pylist(), strict=True))
    other = from_parquet(house.store.get("runs/two/answers-1.parquet"))
    worse = sum(a == b for a, b in zip(other["challenger"].to_pylist(), other["label"].to_pylist(), strict=True))
    assert table["sha256"].equals(other["sha256"]), "both runs asked about the same rows"
    assert said["scores"] == {
        "rows": table.num_rows,
        "recorded": right,
        "target": right,
        "champion": worse,
        "turned": 0,
    }
    assert worse < right
    assert (said["changed"], said["record"]["version"], said["record"]["champion_before"]) == (True, good, bad)
    assert (said["record"]["actor"], said["record"]["reason"]) == ("ada", "worse at night")
    assert house.registry.evidence(said["record"]["evidence"]).read("card.md") == b"good"
    assert house.registry.champion().version == good


def test_text_shows_both_side_by_side(house: House, line: tuple[str, str]) -> None:
    code, output = invoke(house, "--reason", "worse at night")
    before, after = (row for row in output.splitlines() if row.startswith(("before", "from now on")))
    assert code == 0
    assert (line[1][:12] in before, line[0][:12] in after) == (True, True)
    assert f"rolled back to {line[0]} by ada (ledger record 4)" in output


def test_same_command_again_changes_nothing_and_says_so(house: House, line: tuple[str, str]) -> None:
    for arguments in ([], [], ["--to", line[0][:8]]):
        code, output = invoke(house, "--reason", "worse at night", *arguments)
        assert code == 0
    assert f"{line[0]} is champion already (ledger record 4, ada)" in output
    assert len(house.registry.ledger()) == 4


def test_second_rollback_goes_further_back_and_a_named_one_forward(house: House, line: tuple[str, str]) -> None:
    good, bad = line
    answer(house, "--reason", "worse at night")
    assert answer(house, "--reason", "still bad", "--unscored")["record"]["version"] == house.champion
    with pytest.raises(ConfigurationError, match=f"no champion before {house.champion}"):
        invoke(house, "--reason", "and more")
    assert answer(house, "--reason", "all wrong", "--to", bad[:10])["record"]["version"] == bad
    assert answer(house, "--reason", "after all")["record"]["version"] == good


def test_promotion_without_a_run_needs_the_word_unscored_which_is_on_record(
    house: House, line: tuple[str, str]
) -> None:
    with pytest.raises(ConfigurationError, match="cannot be scored: no answers on record") as error:
        invoke(house, "--reason", "r", "--to", house.champion)
    assert "--unscored" in error.value.next_command
    assert len(house.registry.ledger()) == 3
    said = answer(house, "--reason", "r", "--to", house.champion, "--unscored")
    assert (said["scores"], said["record"]["reason"]) == (None, "r (unscored)")


@pytest.mark.parametrize("lost", ["window.json", "images-*.tar", "answers"])
def test_what_cannot_be_scored_is_not_rolled_back_to_unless_a_person_says_so(
    house: House, line: tuple[str, str], lost: str
) -> None:
    window = house.store.root / "datasets" / "images" / "windows" / house.ids["first"]
    (path,) = (house.store.root / "runs" / "one").glob("answers-*") if lost == "answers" else window.glob(lost)
    path.unlink()
    shutil.rmtree(house.place / "cache")  # decoded images are as good as the window
    with pytest.raises(ConfigurationError, match=f"version {line[0]} cannot be scored"):
        invoke(house, "--reason", "r")
    assert house.registry.champion().version == line[1]
    assert answer(house, "--reason", "r", "--unscored")["record"]["version"] == line[0]


def test_tampered_target_is_refused_even_unscored(house: House, line: tuple[str, str]) -> None:
    house.store.put(f"models/classifier/versions/{line[0]}/model.safetensors", b"other")
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        invoke(house, "--reason", "r", "--unscored")
    assert house.registry.champion().version == line[1]


@pytest.mark.parametrize("damage", [b"other", save_tensors({"other": torch.zeros(1)})])
def test_champion_that_cannot_be_asked_is_left_all_the_same(house: House, line: tuple[str, str], damage: bytes) -> None:
    house.store.put(f"models/classifier/versions/{line[1]}/model.safetensors", damage)
    assert "cannot be asked" in invoke(house, "--reason", "r")[1]
    assert house.registry.champion().version == line[0]


def test_tampered_evidence_of_the_target_stops_unless_a_person_says_so(house: House, line: tuple[str, str]) -> None:
    (card,) = (house.store.root / "models" / "classifier" / "evidence").glob("*/card.md")
    card.write_bytes(b"better")
    with pytest.raises(IntegrityError, match=r"card\.md"):
        invoke(house, "--reason", "r")
    assert answer(house, "--reason", "r", "--unscored")["record"]["version"] == line[0]


def test_target_that_answers_otherwise_than_on_record_is_refused(house: House, line: tuple[str, str]) -> None:
    key = "runs/one/answers-1.parquet"
    table = from_parquet(house.store.get(key))
    said = table["challenger"].to_pylist()
    for row in range(2):
        said[row] = "dog" if said[row] == "cat" else "cat"
    place = table.column_names.index("challenger")
    house.store.put(key, to_parquet(table.set_column(place, "challenger", [said])))
    with pytest.raises(BrokenModel, match=f"answers 2 of {table.num_rows} rows otherwise"):
        invoke(house, "--reason", "r")
    assert len(house.registry.ledger()) == 3


def test_target_that_does_not_load_is_refused(house: House, line: tuple[str, str]) -> None:
    files = {name: house.registry.read_file(line[0], name) for name in ("model.json", "lineage.json")}
    odd = house.registry.save_version({**files, "model.safetensors": save_tensors({"other": torch.zeros(1)})})
    by = {"window": None, "run_id": None, "actor": "pipeline", "reason": "r"}
    house.registry.append("promotion", odd, expected_champion=line[1], **by)
    house.registry.append("promotion", line[1], expected_champion=odd, **by)
    with pytest.raises(BrokenModel, match="weights do not fit"):
        invoke(house, "--reason", "r", "--unscored")
    assert house.registry.champion().version == line[1]


@pytest.mark.parametrize(
    ("rows", "turned", "agrees"), [(20, 1, True), (20, 2, False), (400, 2, True), (400, 3, False), (2000, 10, True)]
)
def test_one_row_or_one_in_two_hundred_may_be_turned_by_rounding(rows: int, turned: int, agrees: bool) -> None:
    assert Rescored(rows=rows, recorded=0, target=0, champion=0, turned=turned).agrees is agrees


def test_without_a_reason_nothing_happens(house: House, line: tuple[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="empty reason"):
        invoke(house, "--reason", "  ")
    assert invoke(house)[0] == 2
    assert len(house.registry.ledger()) == 3


# --- crashes


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("named", [False, True], ids=["default", "named"])
def test_crash_at_any_change_leaves_one_of_both_and_again_ends_with_one_record(
    lined: tuple[Path, str, str],
    line: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: bool,
    named: bool,
) -> None:
    good, bad = line
    arguments = ["--reason", "worse at night", *(["--to", good] if named else [])]
    changes = 0
    for number in count(1):
        house = House(shutil.copytree(lined[0], tmp_path / f"{number}"), {"first": "", "second": ""})
        store = CrashingStore(house.store.root, number, after=after)
        with monkeypatch.context() as patch:
            patch.setattr("pipelines.status.open_store", lambda _, store=store: store)
            crashed = isinstance(CliRunner().invoke(app, command(house, *arguments)).exception, Crash)
        champion_now = house.registry.champion().version
        assert champion_now in ((bad, good) if crashed else (good,))
        house.registry.verify_version(champion_now)
        load_version(house.registry, champion_now)
        assert invoke(house, *arguments)[0] == 0
        assert house.registry.champion().version == good
        assert [record.kind for record in house.registry.ledger()] == ["promotion"] * 3 + ["rollback"]
        if not crashed:
            break
        changes += 1
    assert changes == 5, "the probe's three, the record in the ledger and its head"
