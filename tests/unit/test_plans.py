"""Plans in the store: filed under their digest, found by its start, refused where they are not what was written."""

import re
from datetime import date
from pathlib import Path

import pytest

from components.core.config import Config, DecisionConfig, StoreConfig, TrainingConfig
from components.core.contracts import Interval
from components.core.errors import ConfigurationError, IntegrityError
from components.core.plans import Decision, Evidence, Forecast, find_plan, save_plan
from components.core.storage import DirectoryStore
from components.decide.step import check_plan
from components.decide.utility import digest_of

EVIDENCE = Evidence(
    window="w",
    window_created=date(2026, 11, 25),
    champion=None,
    new_rows=10,
    held_out=2,
    window_classes={"cat": 12},
    image_size=8,
)


def plan(rule: str = "nothing-to-gain") -> Decision:
    return Decision(action="skip", rule=rule, reasons=("Nothing to gain.",), evidence=EVIDENCE)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path)


def test_a_plan_is_found_by_the_start_of_its_digest(store: DirectoryStore) -> None:
    digest = save_plan(store, "m", plan())
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert find_plan(store, "m", digest) == find_plan(store, "m", digest[:6]) == plan()
    assert find_plan(store, "m", digest).digest == digest


def test_filing_the_same_plan_again_changes_nothing(store: DirectoryStore) -> None:
    assert save_plan(store, "m", plan()) == save_plan(store, "m", plan())
    assert len(list(store.list_objects("plans/"))) == 1


def test_filing_a_plan_mends_what_was_edited(store: DirectoryStore) -> None:
    digest = save_plan(store, "m", plan())
    store.put(f"plans/m/{digest}.json", b"{}")
    assert save_plan(store, "m", plan()) == digest
    assert find_plan(store, "m", digest) == plan()


def test_whatever_differs_makes_another_plan() -> None:
    other = plan().model_copy(update={"evidence": EVIDENCE.model_copy(update={"new_rows": 11})})
    assert len({plan().digest, plan("new-classes").digest, other.digest}) == 3


def test_a_start_that_fits_two_plans_names_none(store: DirectoryStore) -> None:
    digests = [save_plan(store, "m", plan(f"rule-{number}")) for number in range(17)]
    twice = next(first for first in "0123456789abcdef" if sum(digest.startswith(first) for digest in digests) > 1)
    with pytest.raises(ConfigurationError, match=f"plans that start with '{twice}'"):
        find_plan(store, "m", twice)


@pytest.mark.parametrize("name", ["", "zz", "../m/plan"])
def test_a_name_that_fits_no_plan_is_refused(store: DirectoryStore, name: str) -> None:
    save_plan(store, "m", plan())
    with pytest.raises(ConfigurationError, match="0 plans"):
        find_plan(store, "m", name)


def test_plans_of_another_model_are_not_found(store: DirectoryStore) -> None:
    digest = save_plan(store, "m", plan())
    with pytest.raises(ConfigurationError, match="0 plans"):
        find_plan(store, "n", digest)


def test_an_edited_plan_is_refused(store: DirectoryStore) -> None:
    digest = save_plan(store, "m", plan())
    key = f"plans/m/{digest}.json"
    store.put(key, store.get(key).replace(b"nothing-to-gain", b"no-champion"))
    with pytest.raises(IntegrityError, match="is not what was written"):
        find_plan(store, "m", digest)


def test_a_forecast_in_cells_and_in_words() -> None:
    known = Forecast(
        strategy="retrain",
        gain=0.0312,
        gain_interval=Interval(lower=-0.004, upper=0.066),
        seconds=120.4,
        gpu_seconds=240.8,
        money=0.2468,
    )
    assert known.cells == ("+3.1 (-0.4 to +6.6)", "120", "241", "0.25")
    assert known.brief("EUR") == (
        "retrain: +3.1 points expected (-0.4 to +6.6), about 120 s, 241 GPU-seconds, 0.25 EUR"
    )
    unknown = Forecast(strategy="ewc")
    assert unknown.cells == ("?", "?", "?", "?")
    assert unknown.brief("EUR") == "ewc: nothing tells what it brings or costs"
    assert Forecast(strategy="ewc", seconds=3.2, gpu_seconds=0.0).brief("EUR") == "ewc: about 3 s"


def test_the_page_of_a_plan_has_its_digest_what_was_weighed_and_what_would_turn_it() -> None:
    full = plan().model_copy(
        update={
            "alternatives": (Forecast(strategy="retrain", gain=0.01),),
            "confidence": 0.82,
            "turning_points": ("It would have been retrain with 10 more training images.",),
        }
    )
    page = full.markdown
    assert page.startswith("**skip: Nothing to gain.**")
    assert f"Plan {full.digest[:12]}." in page
    assert "82%" in page
    assert "| retrain | +1.0 | ? | ? | ? |" in page
    assert page.endswith("- It would have been retrain with 10 more training images.")


CONFIG = Config(store=StoreConfig(uri="unused"))


def test_a_plan_is_carried_out_for_its_window_champion_and_training_only() -> None:
    made = plan().model_copy(update={"champion": "v1", "training": digest_of(CONFIG.training)})
    check_plan(made, "w", "v1", CONFIG)
    for window, champion in (("other", "v1"), ("w", "v2"), ("w", None)):
        with pytest.raises(ConfigurationError, match="is for window w and champion v1") as refused:
            check_plan(made, window, champion, CONFIG)
        assert refused.value.next_command.startswith(f"retrain plan {window}")
    edited = CONFIG.model_copy(update={"training": TrainingConfig(image_size=64)})
    with pytest.raises(ConfigurationError, match="another section `training`"):
        check_plan(made, "w", "v1", edited)
    check_plan(made, "w", "v1", CONFIG.model_copy(update={"decision": DecisionConfig(train_at_drop=0.5)}))
