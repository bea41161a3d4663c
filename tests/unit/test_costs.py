"""What a training takes: work by hand, and seconds from those of the past."""

import pytest

from components.core.config import TrainingConfig
from components.core.plans import PastTraining
from components.core.recipes import RECIPES, MetaConfig, Recipe, SearchConfig
from components.decide.costs import training_seconds, training_work

TRAINING = TrainingConfig(image_size=1000, fisher_rows=50)  # a row is a million pixels


@pytest.mark.parametrize(
    ("recipe", "work"),
    [
        pytest.param(Recipe(epochs=10, learning_rate=1e-3), 100 * 10 * 3.0, id="everything moves"),
        pytest.param(Recipe(epochs=10, learning_rate=1e-3, layers="last"), 100 * 10 * 1.7, id="the last stage moves"),
        pytest.param(Recipe(epochs=10, learning_rate=1e-3, layers="head"), 100 + 100 * 10 * 0.02, id="the head moves"),
        pytest.param(Recipe(epochs=1, learning_rate=1e-3, lwf=1.0), 100 * 3.0 + 100, id="the champion answers first"),
        pytest.param(
            Recipe(epochs=1, learning_rate=1e-3, ewc=1.0), 100 * 3.0 + 50 * 4.0, id="Fisher information first"
        ),
        pytest.param(
            Recipe(
                epochs=1,
                learning_rate=1e-3,
                start="meta",
                meta=MetaConfig(algorithm="anil", steps=2, meta_batch=3, ways=4, shots=5, queries=6),
            ),
            100 * 3.0 + 2 * 3 * 4 * (5 + 6) * 3.0,
            id="episodes first",
        ),
        pytest.param(
            Recipe(epochs=1, learning_rate=1e-3, search=SearchConfig(trials=3, rows=40, epochs=2)),
            100 * 3.0 + 3 * 40 * 2 * 3.0,
            id="a search first",
        ),
    ],
)
def test_work_is_counted_in_pixels_that_pass_forward(recipe: Recipe, work: float) -> None:
    assert training_work(recipe, rows=100, training=TRAINING) == pytest.approx(work)


def test_a_full_retrain_is_the_most_work_of_the_recipes_and_a_head_the_least() -> None:
    work = {name: training_work(recipe, 10_000, TrainingConfig()) for name, recipe in RECIPES.items()}
    assert max(work, key=work.__getitem__) == "retrain"
    assert set(sorted(work, key=work.__getitem__)[:2]) == {"head-only", "logistic"}


def past(strategy: str, work: float, seconds: float, device: str = "cpu") -> PastTraining:
    return PastTraining(strategy=strategy, device=device, architecture="resnet18", work=work, seconds=seconds)


def seconds(strategy: str, work: float, trainings: list[PastTraining], device: str | None) -> float | None:
    return training_seconds(strategy, work, trainings, device, architecture="resnet18")


def test_seconds_are_the_median_rate_of_the_strategys_last_trainings() -> None:
    rates = (9.0, 9.0, 9.0, 1.0, 2.0, 3.0, 50.0, 2.0)  # the last five: 1, 2, 3, 50, 2
    trainings = [past("distil", 100, 100 * rate) for rate in rates]
    assert seconds("distil", 10, trainings, "cpu") == pytest.approx(20.0)


def test_other_strategies_count_only_until_a_strategy_has_run() -> None:
    others = [past("retrain", 100, 500)]
    assert seconds("distil", 10, others, "cpu") == pytest.approx(50.0)
    assert seconds("distil", 10, [past("distil", 100, 100), *others], "cpu") == pytest.approx(10.0)


def test_another_device_or_network_says_nothing() -> None:
    assert seconds("distil", 10, [past("distil", 100, 100, "NVIDIA H100")], "cpu") is None
    assert seconds("distil", 10, [], None) is None
    assert training_seconds("distil", 10, [past("distil", 100, 100)], "cpu", architecture="vit_b_16") is None


def test_the_rest_of_a_step_is_the_same_whatever_is_trained() -> None:
    trainings = [past("retrain", 100, 100).model_copy(update={"other_seconds": other}) for other in (1.0, 4.0, 9.0)]
    assert seconds("distil", 10, trainings, "cpu") == pytest.approx(10.0 + 4.0)


def test_four_times_the_pixels_are_four_times_the_work() -> None:
    small, large = (
        training_work(RECIPES["retrain"], 100, TrainingConfig(image_size=side, fisher_rows=1)) for side in (112, 224)
    )
    assert large == pytest.approx(4 * small)
