"""The search for hyperparameters: its journal, what it varies, that it goes on after a kill, and that it finds."""

from __future__ import annotations

import logging
import math
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.trial import TrialState
from sklearn.datasets import load_digits

from components.core.errors import IntegrityError
from components.core.recipes import RECIPES, Augmentation, Recipe, SearchConfig
from components.core.storage import DirectoryStore, ObjectStore
from components.train.search import (
    CHOICES,
    LEAST_DECAY,
    PRUNE_AFTER_TRIALS,
    PRUNE_FROM_EPOCH,
    Evaluate,
    Found,
    Report,
    Space,
    Tried,
    search,
)
from components.train.trials import StoreJournal
from tests.servers import on

ROOT = Path(__file__).parents[2]
BEST_RATE = 0.02


class Killed(BaseException):
    """A process that is gone: nothing in the search may handle it."""


class Clock:
    """Every look at it takes a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@dataclass
class FatefulStore:
    """A directory whose writer is killed at some writes: before one, or after it and before it knows."""

    inner: DirectoryStore
    fates: Iterator[str]
    uri: str = field(init=False)

    def __post_init__(self) -> None:
        self.uri = self.inner.uri

    def get(self, key: str) -> bytes:
        return self.inner.get(key)

    def put_new(self, key: str, data: bytes) -> bool:
        fate = next(self.fates)
        if fate == "before":
            raise Killed
        written = self.inner.put_new(key, data)
        if fate == "after":
            raise Killed
        return written


def recipe(trials: int = 12, space: str = "light", **changes: Any) -> Recipe:
    settings = {"epochs": 5, "learning_rate": 5e-3, "search": {"trials": trials, "space": space}, **changes}
    return Recipe.model_validate(settings)


def quadratic(candidate: Recipe, report: Report) -> float:
    """An accuracy that is best at BEST_RATE and little weight decay, and rises over five epochs."""
    distance = math.log10(candidate.learning_rate / BEST_RATE)
    best = max(0.0, 0.9 - 0.2 * distance**2 - 0.1 * candidate.weight_decay)
    for epoch in range(1, 6):
        report(epoch, best * epoch / 5)
    return best


def find(
    store: ObjectStore | FatefulStore, wanted: Recipe, evaluate: Evaluate = quadratic, seed: int = 3, **options: Any
) -> Found:
    return search(wanted, evaluate, store=store, prefix="searches/a", seed=seed, clock=Clock(), **options)  # type: ignore[arg-type]


@pytest.fixture
def directory(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


# The journal


def test_journal_gives_back_what_was_appended(store: ObjectStore):
    journal = StoreJournal(store, "searches/a")
    logs = [{"op_code": 4, "value": 0.1 + 0.2}, {"op_code": 6, "values": None}, {"name": "é", "many": [1, 2]}]
    journal.append_logs(logs[:2])
    journal.append_logs(logs[2:])
    assert journal.read_logs(0) == logs
    assert StoreJournal(store, "searches/a").read_logs(2) == logs[2:]
    assert StoreJournal(store, "searches/a").read_logs(3) == []
    assert [o.key for o in store.list_objects("searches/")] == [f"searches/a/{n:08d}.json" for n in range(3)]


def test_journal_keeps_floats_to_the_last_bit(directory: DirectoryStore):
    rng = random.Random(0)
    values = [rng.uniform(0, 1) * 10 ** rng.randint(-12, 12) for _ in range(200)]
    StoreJournal(directory, "a").append_logs([{"values": values}])
    assert StoreJournal(directory, "a").read_logs(0) == [{"values": values}]


def test_late_writer_appends_behind_what_it_never_read(directory: DirectoryStore):
    StoreJournal(directory, "a").append_logs([{"n": n} for n in range(5)])
    StoreJournal(directory, "a").append_logs([{"n": 5}])
    assert StoreJournal(directory, "a").read_logs(0) == [{"n": n} for n in range(6)]


@on("directory", "versitygw")  # moto and Swift let two writers of a key win at once
def test_threads_lose_and_double_nothing(store: ObjectStore):
    def append(writer: int, journal: StoreJournal) -> None:
        for number in range(6):
            journal.append_logs([{"same": "for all"}, {"writer": writer, "number": number}])

    shared = StoreJournal(store, "a")
    journals = [shared, shared, StoreJournal(store, "a"), StoreJournal(store, "a")]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(append, range(4), journals))
    logs = shared.read_logs(0)
    assert logs.count({"same": "for all"}) == 24
    for writer in range(4):
        assert [log["number"] for log in logs if log.get("writer") == writer] == list(range(6))
    assert len(logs) == 48


def test_processes_lose_and_double_nothing(directory: DirectoryStore):
    code = (
        "import sys; from pathlib import Path; from components.core.storage import DirectoryStore\n"
        "from components.train.trials import StoreJournal\n"
        "journal = StoreJournal(DirectoryStore(Path(sys.argv[1])), 'a')\n"
        "for number in range(40): journal.append_logs([{'writer': sys.argv[2], 'number': number}])\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, directory.uri, name], cwd=ROOT) for name in "xyz"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    logs = StoreJournal(directory, "a").read_logs(0)
    assert len(logs) == 120
    for name in "xyz":
        assert [log["number"] for log in logs if log["writer"] == name] == list(range(40))


def test_two_optuna_storages_share_a_journal(directory: DirectoryStore):
    def work(_: int) -> list[int]:
        storage = JournalStorage(StoreJournal(directory, "a"))
        study = optuna.create_study(study_name="s", storage=storage, direction="maximize", load_if_exists=True)
        numbers = []
        for _ in range(10):
            trial = study.ask()
            study.tell(trial, trial.suggest_float("x", 0, 1))
            numbers.append(trial.number)
        return numbers

    optuna.logging.disable_default_handler()
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(work, range(2))
    assert sorted(first + second) == list(range(20))
    trials = optuna.load_study(study_name="s", storage=JournalStorage(StoreJournal(directory, "a"))).trials
    assert all(t.state == TrialState.COMPLETE and t.value == t.params["x"] for t in trials)


def test_damaged_entry_is_an_error(directory: DirectoryStore):
    StoreJournal(directory, "a").append_logs([{"n": 0}])
    directory.put("a/00000000.json", b'{"nonce": "x"')
    with pytest.raises(IntegrityError, match="00000000"):
        StoreJournal(directory, "a").read_logs(0)


# The space


def varied(wanted: Recipe, *, unequal_classes: bool = False) -> set[str]:
    return set(Space.around(wanted, unequal_classes=unequal_classes).distributions)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"space": "light"}, {"rate_factor", "weight_decay"}),
        ({"space": "extensive"}, {"rate_factor", "weight_decay", *CHOICES} - {"balance"}),
        (
            {"space": "extensive", "layers": "head"},
            {"rate_factor", "weight_decay", "optimizer", "label_smoothing", "warmup", "ema_decay"},
        ),
        ({"space": "extensive", "layers": "head", "solver": "lbfgs"}, {"weight_decay"}),
    ],
)
def test_space_holds_what_has_an_effect(changes: dict[str, Any], names: set[str]):
    assert varied(recipe(**changes)) == names


def test_balance_is_tried_where_classes_are_unequal():
    assert varied(recipe(space="extensive"), unequal_classes=True) == {"rate_factor", "weight_decay", *CHOICES}
    assert varied(recipe(space="light"), unequal_classes=True) == {"rate_factor", "weight_decay"}


def test_rate_of_each_optimizer_has_its_own_range():
    space = Space.around(recipe(space="extensive", learning_rate=1e-3), unequal_classes=False)
    rates = [
        space.recipe_of(1, {**space.start(), "optimizer": name, "rate_factor": factor}).learning_rate
        for name in ("adamw", "sgd")
        for factor in (0.1, 10.0)
    ]
    assert rates == pytest.approx([1e-4, 1e-2, 3e-3, 3e-1])
    from_sgd = Space.around(recipe(space="extensive", optimizer="sgd", learning_rate=0.03), unequal_classes=False)
    changed = from_sgd.recipe_of(1, {**from_sgd.start(), "optimizer": "adamw"})
    assert changed.learning_rate == pytest.approx(1e-3)


@pytest.mark.parametrize("name", RECIPES)
def test_every_draw_is_a_valid_recipe_that_differs_only_where_it_may(name: str):
    base = RECIPES[name].model_copy(update={"search": SearchConfig(trials=1, space="extensive")})
    space = Space.around(base, unequal_classes=True)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        candidate = space.recipe_of(1, study.ask(space.distributions).params)
        own = {name: value for name, value in space.values_of(base).items() if "." not in name}
        back = {**own, "augmentation": base.augmentation}
        assert candidate.model_copy(update=back) == base
        assert candidate.augmentation.model_copy(update={"shift": 0.0, "zoom": 0.0}) == Augmentation()


def test_own_values_outside_the_usual_are_part_of_the_space():
    own = recipe(
        space="extensive", weight_decay=0.5, mixup=0.33, augmentation={"shift": 0.07, "flip": True}, optimizer="sgd"
    )
    space = Space.around(own, unequal_classes=False)
    assert space.recipe_of(1, space.start()) == own  # optuna would warn, an error here, of values out of range
    study = optuna.create_study()
    study.enqueue_trial(space.start())
    assert study.ask(space.distributions).params == space.start()


# The search


def test_first_trial_is_the_recipe_to_the_last_bit(directory: DirectoryStore):
    own = recipe(trials=3, space="extensive", weight_decay=0.0, learning_rate=0.1 + 0.2)
    seen: list[Recipe] = []

    def evaluate(candidate: Recipe, report: Report) -> float:
        seen.append(candidate)
        return 0.5

    found = find(directory, own, evaluate)
    assert seen[0] == own
    assert found.trials[0].values["weight_decay"] == 0.0
    assert all(later.weight_decay >= LEAST_DECAY for later in seen[1:])
    assert len({candidate.learning_rate for candidate in seen}) == 3


def test_first_of_equals_wins(directory: DirectoryStore):
    own = recipe(trials=6)
    found = find(directory, own, lambda candidate, report: 0.5)
    assert found.best is not None
    assert found.best.number == 0
    assert found.recipe == own.model_copy(update={"search": SearchConfig()})


@pytest.mark.parametrize("seed", range(3))
def test_optimum_of_a_quadratic_is_found(directory: DirectoryStore, seed: int):
    found = find(directory, recipe(trials=20), seed=seed)
    assert found.trials[0].accuracy == pytest.approx(0.9 - 0.2 * math.log10(4) ** 2 - 0.001)
    assert found.best is not None
    assert found.best.accuracy > 0.89
    assert BEST_RATE / 1.7 < found.recipe.learning_rate < BEST_RATE * 1.7
    assert found.recipe.search.trials == 0


def test_search_of_digits_mends_a_rate_that_is_too_low(directory: DirectoryStore, one_thread: None):
    images, labels = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
    images = images.float() / 16
    train, validation = slice(0, 1200), slice(1200, None)

    def evaluate(candidate: Recipe, report: Report) -> float:
        head = torch.nn.Linear(64, 10)
        with torch.no_grad():
            head.weight.zero_()
            head.bias.zero_()
        optimizer = torch.optim.AdamW(
            head.parameters(), lr=candidate.learning_rate, weight_decay=candidate.weight_decay
        )
        share = 0.0
        for epoch in range(1, 4):
            for batch, targets in zip(images[train].split(100), labels[train].split(100), strict=True):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(head(batch), targets).backward()
                optimizer.step()
            share = float((head(images[validation]).argmax(1) == labels[validation]).float().mean())
            report(epoch, share)
        return share

    found = find(directory, recipe(trials=10, learning_rate=1e-4), evaluate)
    assert found.best is not None
    assert found.best.accuracy > found.trials[0].accuracy + 0.03
    assert found.recipe.learning_rate > 3e-4
    assert evaluate(found.recipe, lambda epoch, accuracy: None) == found.best.accuracy


def test_poor_trials_stop_early_and_never_win(directory: DirectoryStore):
    epochs: list[int] = []

    def evaluate(candidate: Recipe, report: Report) -> float:
        number = len(epochs)
        epochs.append(0)
        for epoch in range(1, 6):
            epochs[number] = epoch
            report(epoch, 0.9 if number < PRUNE_AFTER_TRIALS else 0.3)
        return 0.9 if number < PRUNE_AFTER_TRIALS else 1.0

    found = find(directory, recipe(trials=7), evaluate)
    assert epochs == [5] * PRUNE_AFTER_TRIALS + [PRUNE_FROM_EPOCH] * 3
    assert [t.state for t in found.trials] == ["complete"] * 4 + ["pruned"] * 3
    assert [t.accuracy for t in found.trials] == [0.9] * 4 + [0.3] * 3
    assert found.best is not None
    assert found.best.number == 0


def test_divergence_is_a_trial_with_accuracy_zero(directory: DirectoryStore):
    def evaluate(candidate: Recipe, report: Report) -> float:
        if candidate.learning_rate > BEST_RATE:
            raise FloatingPointError("loss is nan")
        return quadratic(candidate, report)

    found = find(directory, recipe(trials=20), evaluate)
    diverged = [t for t in found.trials if t.state == "diverged"]
    assert diverged
    assert all(t.accuracy == 0.0 and t.values["learning_rate"] > BEST_RATE for t in diverged)
    assert found.recipe.learning_rate <= BEST_RATE
    assert f"{len(diverged)} diverged" in found.sentence


def test_recipe_stays_where_everything_diverges(directory: DirectoryStore):
    def evaluate(candidate: Recipe, report: Report) -> float:
        raise FloatingPointError("loss is inf")

    own = recipe(trials=3)
    found = find(directory, own, evaluate)
    assert found.recipe == own.model_copy(update={"search": SearchConfig()})
    assert [t.state for t in found.trials] == ["diverged"] * 3


def test_accuracy_that_is_no_number_is_an_error(directory: DirectoryStore):
    with pytest.raises(ValueError, match="nan"):
        find(directory, recipe(trials=2), lambda candidate, report: math.nan)


def test_no_trial_starts_when_the_time_is_up(directory: DirectoryStore):
    own = recipe(search={"trials": 50, "seconds": 3.5})
    found = find(directory, own, lambda candidate, report: 0.5)
    assert found.seconds == 4.0  # a second each
    assert len(found.trials) == 4
    assert find(directory, own) == found  # it has no time left: nothing is evaluated


def test_restart_gets_no_new_time(directory: DirectoryStore):
    own = recipe(search={"trials": 50, "seconds": 6.0})
    calls = 0

    def evaluate(candidate: Recipe, report: Report) -> float:
        nonlocal calls
        calls += 1
        if calls in (3, 6):
            raise Killed
        return 0.5

    for _ in range(2):
        with pytest.raises(Killed):
            find(directory, own, evaluate)
    assert len(find(directory, own, evaluate).trials) == 6
    assert calls == 8


def until_done(run: Callable[[], Found]) -> tuple[Found, int]:
    """Start again until it is through. Returns what was found, and how often it was killed."""
    kills = 0
    while True:
        try:
            return run(), kills
        except Killed:
            kills += 1


@pytest.mark.parametrize("space", ["light", "extensive"])
@pytest.mark.parametrize("seed", range(3))
def test_killed_while_training_ends_like_one_that_ran_through(tmp_path: Path, seed: int, space: str):
    own, rng = recipe(trials=12, space=space), random.Random(seed)

    def perilous(candidate: Recipe, report: Report) -> float:
        def maybe_killed(epoch: int, accuracy: float) -> None:
            report(epoch, accuracy)
            if rng.random() < 0.1:
                raise Killed

        return quadratic(candidate, maybe_killed)

    through = find(DirectoryStore(tmp_path / "through"), own, seed=seed)
    perilous_store = DirectoryStore(tmp_path / "killed")
    found, kills = until_done(lambda: find(perilous_store, own, perilous, seed=seed))
    assert kills >= 2
    assert found == through
    assert {t.state for t in through.trials} == {"complete", "pruned"}


@pytest.mark.parametrize("seed", range(3))
def test_killed_while_writing_ends_like_one_that_ran_through(tmp_path: Path, seed: int):
    own, rng = recipe(trials=8), random.Random(seed)
    fates = iter(lambda: rng.choices(["written", "before", "after"], [20, 1, 1])[0], None)
    through = find(DirectoryStore(tmp_path / "through"), own, seed=seed)
    inner = DirectoryStore(tmp_path / "killed")
    found, kills = until_done(lambda: find(FatefulStore(inner, fates), own, seed=seed))
    assert kills >= 4
    assert found == through


@pytest.mark.parametrize("fate", ["before", "after"])
def test_killed_at_any_write_ends_like_one_that_ran_through(tmp_path: Path, fate: str):
    own = recipe(trials=2)
    inner = DirectoryStore(tmp_path / "through")
    through = find(inner, own)
    writes = len(list(inner.list_objects("searches/")))
    assert writes >= 20  # two trials of two values, five epochs, seconds and state
    for number in range(writes):
        fates = chain(["written"] * number, [fate], repeat("written"))
        store = FatefulStore(DirectoryStore(tmp_path / str(number)), fates)
        with pytest.raises(Killed):
            find(store, own)
        assert find(store, own) == through


def test_interrupted_trials_do_not_stay_running(directory: DirectoryStore):
    def killed(candidate: Recipe, report: Report) -> float:
        raise Killed

    with pytest.raises(Killed):
        find(directory, recipe(trials=2), killed)
    find(directory, recipe(trials=2))
    storage = JournalStorage(StoreJournal(directory, "searches/a"))
    states = [trial.state for trial in optuna.load_study(study_name="search", storage=storage).trials]
    assert states == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]


def test_search_goes_on_from_any_store(store: ObjectStore):
    first = find(store, recipe(trials=3))
    more = find(store, recipe(trials=5))
    assert more.trials[:3] == first.trials
    assert len(more.trials) == 5


def test_search_that_is_done_evaluates_nothing(directory: DirectoryStore):
    def never(candidate: Recipe, report: Report) -> float:
        raise AssertionError

    found = find(directory, recipe(trials=4))
    assert find(directory, recipe(trials=4), never) == found


def test_seed_decides_what_is_drawn(tmp_path: Path):
    rates = [
        [t.values["learning_rate"] for t in find(DirectoryStore(tmp_path / name), recipe(trials=4), seed=seed).trials]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert rates[0] == rates[1]
    assert rates[0][0] == rates[2][0]
    assert not set(rates[0][1:]) & set(rates[2][1:])


def test_sentence_tells_what_was_won():
    tried = (
        Tried(number=0, values={"learning_rate": 0.005}, accuracy=0.5, state="complete", seconds=10.0),
        Tried(number=1, values={"learning_rate": 0.0201234}, accuracy=0.75, state="complete", seconds=11.0),
        Tried(number=2, values={"learning_rate": 0.05}, accuracy=0.9, state="pruned", seconds=3.0),
    )
    assert Found(recipe=recipe(), trials=tried).sentence == (
        "searched 3 trials (1 pruned, 0 diverged) in 24 s: trial 1 is best with accuracy 0.7500 (0.5000 as it was): "
        "learning_rate 0.0201"
    )


def test_no_trials_leave_the_recipe_as_it_is(directory: DirectoryStore):
    found = find(directory, recipe(trials=0))
    assert found.recipe == recipe(trials=0)
    assert (found.trials, found.best, found.seconds) == ((), None, 0)
    assert found.sentence == "no search: the recipe stays as it is"


def test_messages_come_through_our_logger_alone(
    directory: DirectoryStore, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
):
    with caplog.at_level(logging.INFO):
        find(directory, recipe(trials=2))
    assert {record.name for record in caplog.records} == {"components.train.search"}
    assert [r.getMessage().split(",")[0] for r in caplog.records] == [
        "search: trial 0 of 2 complete",
        "search: trial 1 of 2 complete",
    ]
    assert capfd.readouterr() == ("", "")
