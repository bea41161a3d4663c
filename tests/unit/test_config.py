"""The configuration file: what parses, what is refused, and how the refusal helps."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from components.core.config import (
    Config,
    Section,
    TrainingConfig,
    check_strategy,
    describe_config,
    load_config,
    parse_config,
)
from components.core.errors import ConfigurationError
from components.core.recipes import RECIPES, Recipe


def sections(section: type[BaseModel] = Config) -> list[type[BaseModel]]:
    below = [f.annotation for f in section.model_fields.values()]
    nested = [kind for kind in below if isinstance(kind, type) and issubclass(kind, Section)]
    return [section, *(s for kind in nested for s in sections(kind)), *((Recipe,) if section is Config else ())]


DEFAULTS = parse_config({"store": {"uri": "a"}}, origin="defaults")


def refusal(text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parse_config(yaml.safe_load(text), origin="retrain.yaml")
    assert "retrain.yaml" in caught.value.found
    return caught.value.found


def test_a_store_is_all_that_a_configuration_needs() -> None:
    config = parse_config({"store": {"uri": "./store"}}, origin="retrain.yaml")
    assert config.model == "classifier"
    assert config.decision.ladder == ("rehearsal", "retrain")
    assert config.gate.old_margin == 0.01
    assert config.training.strategies == RECIPES


def test_a_configuration_cannot_be_changed_after_loading() -> None:
    config = parse_config({"store": {"uri": "./store"}}, origin="retrain.yaml")
    with pytest.raises(ValueError, match="frozen"):
        config.gate.alpha = 0.5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "unknown", "nearest"),
    [
        ("store: {uri: a}\ntraning: {}", "traning", "training"),
        ("store: {uri: a}\ntraining: {batchsize: 3}", "training.batchsize", "training.batch_size"),
        ("store: {uri: a, endpointurl: b}", "store.endpointurl", "store.endpoint_url"),
        (
            "store: {uri: a}\ntraining: {strategies: {fine-tune: {learning_rates: 3}}}",
            "training.strategies.fine-tune.learning_rates",
            "training.strategies.fine-tune.learning_rate",
        ),
        (
            "store: {uri: a}\ntraining: {strategies: {retrain: {augmentation: {flop: true}}}}",
            "training.strategies.retrain.augmentation.flop",
            "training.strategies.retrain.augmentation.flip",
        ),
        ("store: {uri: a}\ntraining: {old_margin: 0.1}", "training.old_margin", "gate.old_margin"),
        ("store: {uri: a}\npushgateway: b", "pushgateway", "report.pushgateway"),
        ("uri: a\nstore: {uri: a}", "uri", "store.uri"),
    ],
)
def test_unknown_key_names_the_nearest_right_one(text: str, unknown: str, nearest: str) -> None:
    assert f"unknown key '{unknown}', did you mean '{nearest}'?" in refusal(text)


def test_unknown_key_like_no_other_suggests_nothing() -> None:
    found = refusal("store: {uri: a}\nqqqqzzzz: 1")
    assert "unknown key 'qqqqzzzz'" in found
    assert "did you mean" not in found


def test_all_problems_are_told_at_once() -> None:
    found = refusal("store: {uri: a}\nqqqqzzzz: 1\ngate: {alpha: 2}")
    assert "qqqqzzzz" in found
    assert "gate.alpha" in found


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("store: {uri: a}\ngate: {alpha: 0.5}", "gate.alpha", "0.5"),
        ("store: {uri: a}\ngate: {alpha: 0}", "gate.alpha", "0"),
        ("store: {uri: a}\ndrift: {alarm_windows: 0}", "drift.alarm_windows", "0"),
        ("store: {uri: a}\ndrift: {alarms_per_year: 0}", "drift.alarms_per_year", "0"),
        ("store: {uri: a}\ndrift: {windows_per_year: -1}", "drift.windows_per_year", "-1"),
        ("store: {uri: a}\ntraining: {channels: 2}", "training.channels", "2"),
        ("store: {uri: a}\ntraining: {epochs: many}", "training.epochs", ""),
        ("store: {uri: a}\ntraining: {batch_size: large}", "training.batch_size", "large"),
        ("store: {uri: a}\nvalidation: {max_unreadable_fraction: 2}", "validation.max_unreadable_fraction", "2"),
        ("store: {uri: a}\ndecision: {ladder: []}", "decision.ladder", ""),
        ("store: {uri: a}\ndecision: {ladder: [fine-tune, fly]}", "decision.ladder", "fly"),
        ("store: {uri: a}\ndecision: {ladder: [fine-tune, retrain, retrain, retrain]}", "decision.ladder", ""),
        ("store: {uri: a}\nmodel: ../elsewhere", "model", "../elsewhere"),
        ("store: {uri: a}\nreport: {example_images: 51}", "report.example_images", "51"),
        ("store: {uri: a}\ngate: [1]", "gate", "[1]"),
        ("store: {uri: a}\n1: 2", "1", ""),
        ("store: {}", "store.uri", ""),
        ("model: b", "store", ""),
    ],
)
def test_wrong_value_names_its_key_and_what_was_found(text: str, key: str, value: str) -> None:
    found = refusal(text)
    assert key in found
    assert value in found


@pytest.mark.parametrize("text", ["", "[]", "just words", "null"])
def test_a_file_without_keys_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "retrain.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match="file"):
        load_config(path)


def test_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config(tmp_path / "absent.yaml")
    assert "absent.yaml" in caught.value.found
    assert "retrain config >" in caught.value.next_command


def test_a_folder_in_place_of_the_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="directory"):
        load_config(tmp_path)


@pytest.mark.parametrize("text", ["store: {uri: a", "a: b: c", "\tstore: a", "store: !!python/object:os.system {}"])
def test_what_is_not_yaml_is_a_configuration_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "retrain.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match="is not YAML"):
        load_config(path)


def test_a_file_that_is_no_text_is_a_configuration_error(tmp_path: Path) -> None:
    path = tmp_path / "retrain.yaml"
    path.write_bytes(b"\xff\xfes\x00t\x00")  # UTF-16, as an editor on Windows may save it
    with pytest.raises(ConfigurationError, match=r"retrain\.yaml"):
        load_config(path)


@pytest.mark.parametrize("uri", ["store", "./store", "below/../store"])
def test_relative_store_is_resolved_against_the_folder_of_the_file(tmp_path: Path, uri: str) -> None:
    folder = tmp_path / "project"
    (folder / "below").mkdir(parents=True)
    (folder / "retrain.yaml").write_text(f"store: {{uri: {uri}}}")
    assert load_config(folder / "retrain.yaml").store.uri == str((folder / "store").resolve())


def test_absolute_store_stays(tmp_path: Path) -> None:
    (tmp_path / "retrain.yaml").write_text(f"store: {{uri: '{tmp_path.resolve()}/elsewhere'}}")
    assert load_config(tmp_path / "retrain.yaml").store.uri == f"{tmp_path.resolve()}/elsewhere"


def test_s3_store_stays(tmp_path: Path) -> None:
    (tmp_path / "retrain.yaml").write_text("store: {uri: 's3://bucket/a/prefix'}")
    assert load_config(str(tmp_path / "retrain.yaml")).store.uri == "s3://bucket/a/prefix"


@pytest.mark.parametrize(
    ("strategy", "forced"),
    [("auto", None), ("head-only", "head-only"), ("fine-tune", "fine-tune"), ("retrain", "retrain")],
)
def test_known_strategies_are_understood(strategy: str, forced: str | None) -> None:
    assert check_strategy(strategy, DEFAULTS) == forced


@pytest.mark.parametrize(("strategy", "nearest"), [("finetune", "fine-tune"), ("re-train", "retrain")])
def test_unknown_strategy_names_the_nearest(strategy: str, nearest: str) -> None:
    with pytest.raises(ConfigurationError, match=f"did you mean '{nearest}'"):
        check_strategy(strategy, DEFAULTS)


@pytest.mark.parametrize("strategy", ["", "AUTO", "qqq"])
def test_unknown_strategy_is_refused(strategy: str) -> None:
    with pytest.raises(ConfigurationError, match=r"one of auto, logistic, head-only, .*, retrain"):
        check_strategy(strategy, DEFAULTS)


def test_the_printed_configuration_holds_the_defaults() -> None:
    printed = parse_config(yaml.safe_load(describe_config()), origin="retrain config")
    assert printed == parse_config({"store": {"uri": printed.store.uri}}, origin="defaults")


def test_the_printed_configuration_explains_every_key_above_it() -> None:
    lines = describe_config().splitlines()
    keys = [n for n, line in enumerate(lines) if line and not line.lstrip().startswith("#")]
    keys = [n for n in keys if lines[n].strip().partition(":")[0] not in RECIPES]  # explained by the next test
    assert len(keys) > 50
    assert [lines[n] for n in keys if not lines[n - 1].lstrip().startswith("# ")] == []
    assert "Accuracy drop on the new window" in lines[lines.index("  train_at_drop: 0.03") - 1]


def test_the_printed_configuration_explains_every_key_of_a_recipe_and_shows_every_strategy() -> None:
    printed = describe_config()
    assert all(re.search(rf"^  #   {name}( \(.*\))?:$", printed, re.MULTILINE) for name in Recipe.model_fields)
    assert all(f"    {name}: {{" in printed for name in RECIPES)


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_field_says_what_it_means(section: type[BaseModel]) -> None:
    assert (section.__doc__ or "").strip()
    silent = [
        name
        for name, field in section.model_fields.items()
        if not field.description and not (isinstance(field.annotation, type) and issubclass(field.annotation, Section))
    ]
    assert silent == []


def test_what_is_written_changes_one_strategy_and_leaves_the_others() -> None:
    text = "store: {uri: a}\ntraining: {strategies: {retrain: {epochs: 2, search: {trials: 3}}}}"
    training = parse_config(yaml.safe_load(text), origin="retrain.yaml").training
    retrain = training.strategies["retrain"]
    assert retrain == RECIPES["retrain"].model_copy(update={"epochs": 2, "search": retrain.search})
    assert (retrain.search.trials, retrain.search.space) == (3, "light")
    assert training.strategies["fine-tune"] == TrainingConfig().strategies["fine-tune"]


def test_a_strategy_of_ones_own_can_be_named_on_the_ladder() -> None:
    text = "store: {uri: a}\ntraining: {strategies: {mine: {epochs: 2, learning_rate: 0.1, ewc: 5, lwf: 1}}}\n"
    config = parse_config(yaml.safe_load(f"{text}decision: {{ladder: [mine, retrain]}}"), origin="retrain.yaml")
    assert config.training.strategies["mine"].ewc == 5
    assert check_strategy("mine", config) == "mine"


def test_a_configuration_that_is_read_back_is_the_same() -> None:
    text = "store: {uri: a}\ntraining: {strategies: {mine: {epochs: 2, learning_rate: 0.1}, ewc: {ewc: 7}}}"
    config = parse_config(yaml.safe_load(text), origin="retrain.yaml")
    assert Config.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("store: {uri: a}\nstore: {uri: b}\n", "stands twice"),
        (
            "store: {uri: a}\ntraining: {strategies: {retrain: {learning_rate: .inf}}}\n",
            "training.strategies.retrain.learning_rate",
        ),
        ("store: {uri: a}\ntraining: {strategies: {mine: {epochs: 3}}}\n", "training.strategies.mine.learning_rate"),
        ("store: {uri: a}\ntraining: {strategies: {ewc: {start: fresh}}}\n", "ewc needs the champion"),
        ("store: {uri: a}\ntraining: {strategies: {fine-tune: {patience: 2}}}\n", "patience needs"),
        ("store: {uri: a}\ntraining: {strategies: {fine-tune: {solver: lbfgs}}}\n", "lbfgs is for layers: head"),
        ("store: {uri: a}\ntraining: {nodes: 2}\n", "needs launcher: trainjob"),
        ("store: {uri: a}\ndecision: {ladder: [fine-tune, foo]}\n", "decision.ladder names 'foo'"),
        ("store: {uri: a}\ndecision: {ladder: [retrain, retrain]}\n", "decision.ladder"),
        ("store: {uri: ''}\n", "store.uri"),
        ("store: {uri: a}\ndrift: {alarm_windows: 3, alarm_memory: 2}\n", "cannot hold alarm_windows 3"),
    ],
)
def test_what_would_go_wrong_later_is_refused_at_once(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "retrain.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        load_config(path)


def test_a_recipe_that_does_not_fit_together_is_named_and_not_repeated() -> None:
    found = refusal("store: {uri: a}\ntraining: {strategies: {distil: {start: fresh}}}")
    assert found.endswith("training.strategies.distil: lwf needs the champion's weights: start cannot be fresh")


@pytest.mark.parametrize(
    ("trigger", "kubeflow", "said"),
    [
        ({"launcher": "kubeflow", "source": "incoming"}, {}, "trigger.source is a directory"),
        (
            {},
            {"schedules": [{"name": "a", "interval_minutes": 5}]},
            "a takes what is new, and trigger.source is not set",
        ),
        (
            {"source": "incoming"},
            {"schedules": [{"name": "a", "interval_minutes": 5, "strategy": "retrian"}]},
            "a asks for the strategy 'retrian'",
        ),
        ({"cool_down_minutes": 61}, {}, "cool_down_minutes 61 is above max_wait_minutes"),
    ],
)
def test_trigger_that_could_never_work_is_refused(trigger: dict[str, Any], kubeflow: dict[str, Any], said: str):
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        parse_config({"store": {"uri": "a"}, "trigger": trigger, "kubeflow": kubeflow}, origin="test")
