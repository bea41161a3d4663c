"""Garbage: nothing that is referenced is ever in the list, everything else that is old is; and how it is deleted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.filesize import decimal
from typer.testing import CliRunner

from components.core.config import Config, RetentionConfig, StoreConfig
from components.core.contracts import LedgerRecord, Lineage, Outcome, RunParameters, TrainingSummary
from components.core.errors import IntegrityError
from components.core.garbage import Group, garbage_versions, group_objects, reachable_versions, version_of
from components.core.recipes import Recipe
from components.core.registry import Registry
from components.core.runs import Run, StepRecord
from components.core.storage import DirectoryStore, ListedObject, to_json
from components.core.succession import read_succession
from components.promote.rollback import roll_back
from pipelines.cli import app
from pipelines.garbage import Collector
from tests.unit.crashes import Crash, CrashingStore
from tests.unit.ledgers import Entry, ledger_of, told

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
OLD, YOUNG = NOW - timedelta(days=100), NOW - timedelta(days=3)
BEFORE = NOW - timedelta(days=14)
CONFIG = Config(store=StoreConfig(uri="store"), model="m", retention=RetentionConfig(champions=2))


def group(name: str, newest: datetime = OLD, complete: bool = True) -> Group:
    return Group(name=name, keys=(f"models/m/versions/{name}/x",), bytes=10, newest=newest, complete=complete)


def chain(parents: Mapping[str, str | None]) -> Callable[[str], list[str]]:
    def ancestry(version: str | None) -> list[str]:
        return [version, *ancestry(parents.get(version))] if version else []

    return ancestry


# --- what is reachable


@pytest.mark.parametrize(
    ("ledger", "named", "champions", "stay"),
    [
        ("", "", 5, ""),
        ("+a", "", 1, "a"),
        ("+a +b +c +d", "", 1, "d"),
        ("+a +b +c +d", "", 2, "c d"),
        ("+a +b +c +d ~x", "a x", 2, "a c d x"),
        ("+a +b +c +d <b", "", 2, "a b d"),
        ("+a +b +c -c <b", "", 2, "a b"),
    ],
    ids=lambda value: str(value),
)
def test_last_champions_and_what_runs_name_are_reachable(ledger: str, named: str, champions: int, stay: str) -> None:
    found = reachable_versions(told(ledger), named.split(), lambda version: [version], champions)
    assert found == set(stay.split())


def test_ancestors_of_what_stays_stay() -> None:
    ancestry = chain({"d": "c", "c": "b", "b": None, "a": None})
    assert reachable_versions(told("+a +b +c +d"), [], ancestry, 1) == {"b", "c", "d"}


def test_age_and_manifest_are_told() -> None:
    told_of = [group("a"), group("b"), group("half", complete=False), group("loser"), group("gone")]
    groups = {one.name: one for one in (*told_of, group("young", YOUNG), group("edge", BEFORE))}
    found = garbage_versions(groups, {"b"}, told("+gone +a +b -gone"), BEFORE)
    assert {one.name: (one.why, one.was_champion) for one in found} == {
        "a": ("was champion; 1 others have been since", True),
        "gone": ("was champion; its removal was cut off", False),
        "half": ("has no manifest: never finished, or removed in part", False),
        "loser": ("was never promoted, and no run needs it", False),
    }


def test_objects_of_a_version_go_together_its_manifest_first() -> None:
    record = told("+v")[0].model_copy(update={"evidence": "e1"})
    keys = [
        "models/m/drift/v/look.json",
        "models/m/evidence/e1/manifest.json",
        "models/m/evidence/e2/manifest.json",
        "models/m/features/v/w-1.safetensors",
        "models/m/ledger/0000000001.json",
        "models/m/versions/v/a.json",
        "models/m/versions/v/manifest.json",
    ]
    objects = [ListedObject(key=key, size=n, modified=OLD + timedelta(days=n)) for n, key in enumerate(keys)]
    (found,) = group_objects(objects, lambda key: version_of(key, {record.evidence: record.version})).values()
    assert (found.name, found.complete) == ("v", True)
    assert (found.bytes, found.newest) == (0 + 1 + 3 + 5 + 6, OLD + timedelta(days=6))
    assert set(found.keys) == {keys[n] for n in (0, 1, 3, 5, 6)}
    assert found.keys[0].endswith("/manifest.json")


# --- whatever the ledger, the lineages and the ages are

NAMES = [f"v{n}" for n in range(8)]
entries = st.lists(st.tuples(st.sampled_from(["promotion", "rejection", "hold"]), st.sampled_from(NAMES)), max_size=12)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[LedgerRecord], dict[str, str | None], dict[str, Group], set[str], int]:
    """Promotions, now and then a rollback to what was champion or the removal of what is none; parents that are older;
    ages; runs that name versions; how many champions stay."""
    happened: list[Entry] = []
    for entry in draw(entries):
        happened.append(entry)
        succession = read_succession(ledger_of(happened))
        if len(succession.past) > 1 and draw(st.booleans()):
            kind = draw(st.sampled_from(["rollback", "removal"]))
            happened.append((kind, draw(st.sampled_from(succession.past[:-1]))))
    parents = {
        name: draw(st.sampled_from([None, *NAMES[:number]])) if number else None for number, name in enumerate(NAMES)
    }
    groups = {
        name: group(name, newest=draw(st.sampled_from([OLD, YOUNG])), complete=draw(st.booleans())) for name in NAMES
    }
    named = draw(st.sets(st.sampled_from(NAMES), max_size=2))
    return ledger_of(happened), parents, groups, named, draw(st.integers(2, 4))


@given(histories())
def test_nothing_reachable_goes_and_everything_else_that_is_old_does(
    history: tuple[list[LedgerRecord], dict[str, str | None], dict[str, Group], set[str], int],
) -> None:
    ledger, parents, groups, named, champions = history
    found = garbage_versions(groups, reachable_versions(ledger, named, chain(parents), champions), ledger, BEFORE)
    gone = {one.name for one in found}
    # Who is needed, worked out another way: by the last time of each, and step by step through the parents.
    made = {r.version: n for n, r in enumerate(ledger) if r.makes_champion}
    removed = {r.version: n for n, r in enumerate(ledger) if r.kind == "removal"}
    there = sorted((n, version) for version, n in made.items() if n > removed.get(version, -1))
    succession = read_succession(ledger)
    needed = {version for _, version in there[-champions:]} | named | set(succession.standing[-champions:])
    while more := {parents[version] for version in needed} - needed - {None}:
        needed |= more
    assert gone == {name for name in NAMES if name not in needed and groups[name].newest == OLD}
    assert not gone & {*succession.standing[-2:]}, "the champion, and what a rollback goes to"


# --- in a store


class House:
    """A store whose objects can be made old."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "retrain.yaml"
        self.path.write_text(yaml.safe_dump({"store": {"uri": "store"}, "model": "m", "retention": {"champions": 2}}))
        self.store = DirectoryStore(folder / "store")
        self.registry = Registry(self.store, "m")

    def save(self, name: str, parent: str | None = None, start: str = "champion") -> str:
        recipe = Recipe(epochs=1, learning_rate=0.1, start=start)
        lineage = Lineage(
            parent=parent, windows=(), strategy="s", hyperparameters=recipe, seed=0, package="retrain-pipeline"
        )
        return self.registry.save_version({"weights": name.encode(), "lineage.json": to_json(lineage)})

    def promote(self, version: str) -> None:
        now = self.registry.champion()
        self.registry.append(
            "promotion",
            version,
            expected_champion=now.version if now else None,
            window=None,
            run_id=None,
            actor="p",
            reason="r",
        )

    def line(self, count: int) -> list[str]:
        """Champions, each trained from scratch, all old."""
        versions = [self.save(str(n), start="fresh") for n in range(count)]
        for version in versions:
            self.promote(version)
        self.age()
        return versions

    def run(self, run_id: str, version: str, outcome: str | None = None, planning: bool = False) -> Run:
        run = Run(self.store, run_id)
        run.begin(
            CONFIG,
            RunParameters(run_id=run_id, model="m", dataset="d", source="s", strategy="auto", planning=planning),
        )
        trained = TrainingSummary(
            version=version,
            strategy="retrain",
            rows=1,
            replayed_rows=0,
            classes=("a",),
            losses=(1.0,),
            seconds=1.0,
            images_per_second=1.0,
            device="CPU",
        )
        run.write(StepRecord(step="train-1", started=OLD, seconds=1.0, document=trained))
        if outcome:
            told = Outcome(outcome=outcome, champion_before=None, champion_after=None, ledger_number=None, reason="r")
            run.write(StepRecord(step="outcome", started=OLD, seconds=1.0, document=told))
        return run

    def age(self, days: float = 100, below: str = "") -> None:
        when = (datetime.now(UTC) - timedelta(days=days)).timestamp()
        for path in (self.store.root / below).rglob("*"):
            if path.is_file():
                os.utime(path, (when, when))

    def collector(self) -> Collector:
        return Collector(self.store, CONFIG, datetime.now(UTC))

    def sweep(self) -> list[str]:
        return [one.name for one in self.collector().sweep("ada")]

    def invoke(self, *arguments: str) -> dict[str, Any]:
        done = CliRunner().invoke(app, ["gc", *arguments, "--config", str(self.path), "--json"])
        assert done.exit_code == 0
        return json.loads(done.output)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_former_champions_beyond_the_last_go_and_that_is_in_the_ledger(house: House) -> None:
    first, second, third, fourth = house.line(4)
    assert set(house.sweep()) == {first, second}
    assert set(house.registry.versions()) == {third, fourth}
    removals = house.registry.ledger()[4:]
    assert {(r.kind, r.version, r.actor) for r in removals} == {("removal", first, "ada"), ("removal", second, "ada")}
    assert not list(house.store.list_objects(f"models/m/versions/{first}/"))
    assert house.registry.champion().version == fourth
    house.registry.verify_version(fourth)
    assert house.sweep() == []
    assert house.registry.length() == 6


def test_ancestors_stay_down_to_the_last_full_retrain(house: House) -> None:
    before = house.save("0", start="fresh")
    anchor = house.save("1", before, start="fresh")
    between = house.save("2", anchor)
    champion = house.save("3", between)
    for version in (before, anchor, between, champion):
        house.promote(version)
    house.age()
    assert house.sweep() == [before]


@pytest.mark.parametrize(
    ("outcome", "stays"), [(None, False), ("waiting", True), ("rejected", False), ("promoted", False)]
)
def test_version_named_by_a_run_stays_as_long_as_it_waits(house: House, outcome: str | None, stays: bool) -> None:
    version = house.save("challenger")
    house.run("one", version, outcome)
    house.age()
    assert house.sweep() == ([] if stays else [version])


@pytest.mark.parametrize("planning", [False, True])
def test_run_without_an_outcome_keeps_what_it_names_until_the_grace_is_over(house: House, planning: bool) -> None:
    version = house.save("challenger")
    house.age()
    house.run("one", version, planning=planning)
    assert house.sweep() == []


def test_record_that_cannot_be_read_keeps_what_it_names(house: House) -> None:
    version = house.save("challenger")
    run = house.run("one", version)
    house.store.put(run.key("outcome.json"), b"{")
    house.age()
    assert house.sweep() == []


@pytest.mark.parametrize(("days", "stays"), [(13.9, True), (14.1, False)])
def test_version_goes_when_the_grace_is_over(house: House, days: float, stays: bool) -> None:
    version = house.save("challenger")
    house.age(days)
    assert house.sweep() == ([] if stays else [version])


def test_what_is_kept_beside_a_version_goes_with_it(house: House) -> None:
    version = house.save("challenger")
    for key in (f"models/m/features/{version}/w-1.safetensors", f"models/m/drift/{version}/look.json"):
        house.store.put(key, b"x")
    house.age()
    assert house.sweep() == [version]
    assert list(house.store.list_objects("models/")) == []


def test_windows_run_records_and_other_models_are_left_alone(house: House) -> None:
    house.run("one", "0" * 32, "rejected")
    for key in ("datasets/d/windows/w/images-0.tar", "models/other/versions/v/x", "checkpoints/other/t/x", "plans/m/p"):
        house.store.put(key, b"x")
    house.age()
    before = list(house.store.list_objects())
    assert house.sweep() == []
    assert list(house.store.list_objects()) == before


def test_checkpoints_that_nobody_goes_on_with_go_and_running_ones_stay(house: House) -> None:
    for training in ("left", "running"):
        for name in ("manifest.json", "step-1-abc.safetensors", "attempts/0001.json"):
            house.store.put(f"checkpoints/m/{training}/{name}", b"x")
    house.age()
    house.store.put("checkpoints/m/running/attempts/0001.json", b"beat")
    assert house.sweep() == ["left"]
    assert {one.key.split("/")[2] for one in house.store.list_objects("checkpoints/")} == {"running"}


def test_evidence_that_no_record_and_no_run_needs_goes(house: House) -> None:
    waiting, lost, new = (house.registry.save_evidence({"card.md": name}) for name in (b"w", b"l", b"n"))
    house.run("one", waiting, "waiting")
    house.age()
    house.store.put(f"models/m/evidence/{new}/card.md", b"n")
    assert house.sweep() == [lost]
    kept = {one.key.split("/")[3] for one in house.store.list_objects("models/m/evidence/")}
    assert kept == {waiting, new}


def test_probes_that_were_cut_off_go_when_they_are_old(house: House) -> None:
    house.store.put("probe/old", b"x")
    house.age()
    house.store.put("probe/new", b"x")
    assert house.sweep() == ["probe/old"]
    assert [one.key for one in house.store.list_objects("probe/")] == ["probe/new"]


def test_strangers_among_the_runs_are_passed_over(house: House) -> None:
    version = house.save("challenger")
    house.store.put("runs/a_note.txt", b"x")
    house.store.put("runs/a_folder/outcome.json", b"x")
    house.age()
    assert house.sweep() == [version]


def test_temporary_files_of_killed_writers_go_when_they_are_old(house: House) -> None:
    house.store.put("a", b"x")
    for name in ("old", "new"):
        (house.store.root / ".tmp" / name).write_bytes(b"half")
    house.age(below=".tmp")
    (house.store.root / ".tmp" / "new").write_bytes(b"half")
    assert house.sweep() == [".tmp/old"]
    assert [path.name for path in (house.store.root / ".tmp").iterdir()] == ["new"]


def test_champion_whose_past_cannot_be_read_stops_everything(house: House) -> None:
    house.save("loser")
    _, champion = house.line(2)
    house.store.put(f"models/m/versions/{champion}/lineage.json", b"{}")
    house.age()
    before = list(house.store.list_objects())
    with pytest.raises(IntegrityError, match="lineage"):
        house.sweep()
    assert list(house.store.list_objects()) == before


# --- while others work


def test_rollback_between_mark_and_sweep_keeps_its_target(house: House) -> None:
    first, *_, champion = house.line(4)
    sweep = house.collector().sweep("ada")
    collected = [next(sweep).name]
    left = first if first not in collected else house.registry.versions()[0]
    roll_back(house.registry, left, champion=champion, actor="bob", reason="r")
    collected += [one.name for one in sweep]
    assert left not in collected
    house.registry.verify_version(house.registry.champion().version)


class Racing(DirectoryStore):
    """A store in which something happens right before the n-th ledger record is written."""

    def __init__(self, root: Path, act: Callable[[], object]) -> None:
        super().__init__(root)
        self.act: Callable[[], object] | None = act

    def put_new(self, key: str, data: bytes) -> bool:
        if self.act and "/ledger/" in key:
            act, self.act = self.act, None
            act()
        return super().put_new(key, data)


def test_rollback_at_the_moment_of_the_removal_wins_or_is_refused_never_both(house: House) -> None:
    *former, champion = house.line(3)
    store = Racing(
        house.store.root, lambda: roll_back(house.registry, former[0], champion=champion, actor="bob", reason="r")
    )
    assert list(Collector(store, CONFIG, datetime.now(UTC)).sweep("ada")) == []
    assert house.registry.champion().version == former[0]
    house.registry.verify_version(former[0])


def test_version_that_is_made_again_after_it_was_marked_stays(house: House) -> None:
    names = [house.save(text) for text in ("a", "b")]
    house.age()
    sweep = house.collector().sweep("ada")
    gone = next(sweep).name
    (other,) = set(names) - {gone}
    house.store.put(f"models/m/versions/{other}/weights", b"a" if other == names[0] else b"b")
    assert list(sweep) == []
    house.registry.verify_version(other)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_interrupted_at_any_change_the_next_one_finishes(tmp_path: Path, after: bool) -> None:
    number = 0
    while True:
        number += 1
        (tmp_path / f"{number}").mkdir()
        house = House(tmp_path / f"{number}")
        loser = house.save("loser")
        first, second, third = house.line(3)
        store = CrashingStore(house.store.root, number, after=after)
        try:
            list(Collector(store, CONFIG, datetime.now(UTC)).sweep("ada"))
        except Crash:
            finished = False
        else:
            finished = True
        for version in (second, third):
            house.registry.verify_version(version)
        assert house.registry.champion().version == third
        house.sweep()
        kinds = [record.kind for record in house.registry.ledger()]
        assert kinds == ["promotion"] * 3 + ["removal"]
        assert not [one for v in (loser, first) for one in house.store.list_objects(f"models/m/versions/{v}/")]
        if finished:
            break
    assert number == 1 + 3 + 2 + 2 * 3, "the probe's three, a removal and its head, three files of each of two versions"


# --- the command


def test_dry_run_lists_and_changes_nothing(house: House) -> None:
    first, *_ = house.line(3)
    before = list(house.store.list_objects())
    said = house.invoke("--dry-run")
    size = sum(one.size for one in before if f"/{first}/" in one.key)
    why = "was champion; 2 others have been since"
    assert said["garbage"] == [{"what": "version", "name": first, "why": why, "bytes": size}]
    assert (said["dry_run"], said["bytes"]) == (True, size)
    assert list(house.store.list_objects()) == before
    assert house.invoke() == {**said, "dry_run": False}
    assert house.invoke() == {"dry_run": False, "garbage": [], "bytes": 0}


def test_table_ends_with_the_sum(house: House) -> None:
    house.line(4)
    output = CliRunner().invoke(app, ["gc", "--dry-run", "--config", str(house.path)]).output
    last = [line for line in output.splitlines() if line.strip()][-1]
    total = sum(one.bytes for one in house.collector().mark())
    assert last.split() == ["2", "would", "go", *decimal(total).split()]
