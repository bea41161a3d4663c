"""From recipes to challengers: what each may touch, and, on real digits, that each has the effect it is for.

The champion knows the digits 0 to 4, upright. A window brings 5 to 9, or the old digits lying on their side.
"""

from dataclasses import replace
from functools import cache
from typing import Any

import pyarrow as pa
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from components.core.config import TrainingConfig
from components.core.datasets import ImageSet, Pixels
from components.core.errors import ConfigurationError
from components.core.models import Classifier, ModelSpec, build_classifier, stages
from components.core.recipes import RECIPES, Augmentation, LoopConfig, MetaConfig, Recipe
from components.evaluate.answers import ask
from components.train.replay import choose_replay
from components.train.strategies import Task, Trained, train_challenger

pytestmark = pytest.mark.usefixtures("one_thread")
DIGITS = tuple("0123456789")
SIZE = 16
OLD, NEW, ALL = (0, 1, 2, 3, 4), (5, 6, 7, 8, 9), tuple(range(10))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def digits() -> tuple[Tensor, Tensor]:
    """All 1,797 digits, enlarged from 8 to 16 pixels, in a fixed random order."""
    bunch = load_digits()
    small = torch.from_numpy(bunch.images).float() * (255 / 16)
    images = torch.nn.functional.interpolate(small[:, None], size=(SIZE, SIZE), mode="bilinear", antialias=True)
    order = torch.randperm(len(small), generator=seeded(0))
    return images.round().to(torch.uint8)[order], torch.from_numpy(bunch.target).to(torch.int64)[order]


def pick(start: int, stop: int, labels: tuple[int, ...], *, sideways: bool = False) -> ImageSet:
    """The digits of some classes among the rows from `start` to `stop`: rows below 1,000 train, the others test."""
    images, targets = digits()
    keep = torch.isin(targets[start:stop], torch.tensor(labels)).nonzero().flatten() + start
    names = [f"{int(row):064x}" for row in keep]
    rows = pa.table({"sha256": names, "group": pa.array([None] * len(names), pa.string())})
    shown = images.rot90(1, (2, 3)) if sideways else images
    return ImageSet(images=Pixels([shown.contiguous()], keep), labels=targets[keep], classes=DIGITS, rows=rows)


NOTHING = pick(0, 0, ALL)


def spec(classes: tuple[str, ...] = DIGITS, size: int = SIZE) -> ModelSpec:
    return ModelSpec(architecture="small-cnn", classes=classes, image_size=size, channels=1, mean=(0.3,), std=(0.37,))


def task(champion: Classifier | None, old: ImageSet, new: ImageSet, recipe: Recipe, **changes: Any) -> Task:
    wanted = changes.pop("spec", spec())
    made = Task(
        spec=wanted,
        champion=champion,
        fresh=lambda: build_classifier(wanted, seeded(1)),
        old=old,
        new=new,
        memory=lambda: pick(0, 500, OLD),
        recipe=recipe,
        head=LoopConfig(epochs=30, learning_rate=2e-2),
        batch_size=16,
        seed=0,
    )
    return replace(made, **changes)


def recipe(**changes: Any) -> Recipe:
    return Recipe(**{"epochs": 5, "learning_rate": 3e-3, **changes})


def answer(model: Classifier, images: Pixels, batch_size: int) -> Tensor:
    return ask(model, images, batch_size, version="v", digests=["unknown"] * len(images)).answers


def accuracy(model: Classifier, images: ImageSet) -> float:
    return float((answer(model, images.images, 512) == images.labels).float().mean())


def exemplars(count: int = 100) -> ImageSet:
    old = pick(0, 500, OLD)
    return old.subset(choose_replay(old.labels, count, seeded(0)))


@cache
def trained_champion() -> Classifier:
    fresh = recipe(start="fresh", rows="all", epochs=6)
    return train_challenger(task(None, NOTHING, pick(0, 500, OLD), fresh, spec=spec(DIGITS[:5]))).model


@pytest.fixture
def champion() -> Classifier:
    """A champion that knows the digits 0 to 4; a copy, so that no test sees another's changes."""
    model = build_classifier(spec(DIGITS[:5]), seeded(0))
    model.load_state_dict(trained_champion().state_dict())
    return model.eval()


def frozen(model: Classifier) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


# --- what holds for all recipes

QUICK = {"epochs": 1, "learning_rate": 1e-3, "meta": MetaConfig(ways=3, steps=2, meta_batch=1)}


def quick(name: str, **changes: Any) -> Recipe:
    return RECIPES[name].model_copy(update={**QUICK, **changes})


def rows_for(chosen: Recipe) -> ImageSet:
    return {"new": NOTHING, "replay": exemplars(50), "all": pick(0, 200, OLD)}[chosen.rows]


@pytest.mark.parametrize("name", RECIPES)
def test_the_champion_is_untouched(champion: Classifier, name: str) -> None:
    before = frozen(champion)
    trained = train_challenger(task(champion, rows_for(RECIPES[name]), pick(0, 100, NEW), quick(name)))
    assert trained.model is not champion
    assert not champion.training
    assert champion.spec.classes == DIGITS[:5]
    assert all(torch.equal(value, before[name]) for name, value in champion.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in champion.parameters())


@pytest.mark.parametrize("name", RECIPES)
def test_one_seed_gives_one_challenger(champion: Classifier, name: str) -> None:
    def run(seed: int) -> Trained:
        return train_challenger(
            task(champion, rows_for(RECIPES[name]), pick(0, 150, NEW), quick(name, epochs=2), seed=seed)
        )

    first, second, other = run(1), run(1), run(2)
    assert first.losses == second.losses
    assert name == "logistic" or first.losses != other.losses  # a convex problem has one answer
    for a, b in zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_grows_the_head(champion: Classifier, name: str) -> None:
    trained = train_challenger(task(champion, rows_for(RECIPES[name]), pick(0, 100, NEW), quick(name)))
    assert trained.model.spec.classes == DIGITS
    assert trained.model.head.out_features == 10
    assert not trained.model.training


def test_parts_of_the_training_rows_on_disk_make_no_difference(champion: Classifier) -> None:
    def run(old: ImageSet, new: ImageSet) -> Trained:
        return train_challenger(task(champion, old, new, quick("distil")))

    def in_pieces(images: ImageSet) -> ImageSet:
        everything = images.images[torch.arange(len(images))]
        return replace(images, images=Pixels(list(everything.split(17)), torch.arange(len(images))))

    old, new = pick(0, 150, OLD), pick(0, 150, NEW)
    whole, pieces = run(old, new), run(in_pieces(old), in_pieces(new))
    assert whole.losses == pieces.losses


def test_only_fresh_weights_do_without_a_champion() -> None:
    with pytest.raises(AssertionError, match="no champion"):
        train_challenger(task(None, NOTHING, pick(0, 50, ALL), recipe()))


def test_rows_are_counted_and_replayed_ones_apart(champion: Classifier) -> None:
    trained = train_challenger(task(champion, exemplars(30), pick(0, 100, NEW), quick("fine-tune")))
    new = len(pick(0, 100, NEW))
    assert (trained.rows, trained.replayed_rows) == (new + 30, 30)


# --- retrain, and how fresh weights differ


def test_retrain_learns_the_digits() -> None:
    trained = train_challenger(task(None, pick(0, 300, ALL), pick(300, 600, ALL), recipe(start="fresh", rows="all")))
    assert accuracy(trained.model, pick(1000, 1500, ALL)) > 0.9
    assert (trained.rows, trained.replayed_rows, len(trained.losses)) == (600, 300, 5)
    assert trained.losses[-1] < trained.losses[0]


def test_a_shrunk_champion_still_knows_after_an_epoch_what_fresh_weights_have_to_learn(champion: Classifier) -> None:
    def old_digits(start: str) -> float:
        chosen = recipe(start=start, rows="all", epochs=1)
        made = [task(champion, pick(0, 500, OLD), pick(0, 500, NEW), chosen, seed=seed) for seed in range(3)]
        return sum(accuracy(train_challenger(m).model, pick(1000, 1700, OLD)) for m in made) / 3

    assert old_digits("shrunk") > old_digits("fresh") + 0.05


def test_shrunk_weights_are_the_given_mix_of_champion_and_fresh_ones(champion: Classifier) -> None:
    from components.train.starts import shrink_and_perturb

    model, fresh = build_classifier(spec(DIGITS[:5]), seeded(0)), build_classifier(spec(DIGITS[:5]), seeded(7))
    model.load_state_dict(champion.state_dict())
    shrink_and_perturb(model, fresh, 0.4, 0.1)
    expected = 0.4 * champion.head.weight + 0.1 * fresh.head.weight
    assert torch.allclose(model.head.weight, expected)
    norm = "body.1.weight"  # a scale of batch norm stays
    assert torch.equal(model.state_dict()[norm], champion.state_dict()[norm])


# --- forgetting: 5 to 9 arrive


def forgetting(champion: Classifier, chosen: Recipe, old: ImageSet, **changes: Any) -> tuple[float, float]:
    """Accuracy on old and on new digits after a window of new digits."""
    trained = train_challenger(task(champion, old, pick(0, 500, NEW), chosen, **changes))
    return accuracy(trained.model, pick(1000, 1700, OLD)), accuracy(trained.model, pick(1000, 1700, NEW))


@cache
def naive() -> tuple[float, float]:
    return forgetting(trained_champion(), recipe(rows="new"), NOTHING)


def test_naive_fine_tuning_forgets() -> None:
    old, new = naive()
    assert accuracy(trained_champion(), pick(1000, 1700, OLD)) > 0.95
    assert old < 0.5
    assert new > 0.85


def test_replay_keeps_old_classes_and_learns_new_ones(champion: Classifier) -> None:
    old, new = forgetting(champion, recipe(), exemplars(60))
    assert old > naive()[0] + 0.3
    assert old > 0.85
    assert new > 0.85


def test_distillation_with_replay_keeps_more_than_replay(champion: Classifier) -> None:
    few = exemplars(15)
    replayed = [forgetting(champion, recipe(), few, seed=seed)[0] for seed in range(3)]
    distilled = [forgetting(champion, recipe(lwf=2.0), few, seed=seed) for seed in range(3)]
    assert sum(old for old, _ in distilled) / 3 > sum(replayed) / 3 + 0.04
    assert min(new for _, new in distilled) > 0.9


def mirrored(start: int, stop: int, labels: tuple[int, ...]) -> ImageSet:
    rows = pick(start, stop, labels)
    return replace(rows, images=Pixels([digits()[0].flip(3).contiguous()], rows.images._index))


def test_distillation_alone_keeps_more_of_the_old_where_the_champion_is_often_right(champion: Classifier) -> None:
    """The champion recognises half of the digits in a mirror: staying with these answers keeps upright ones too."""

    def mirror(chosen: Recipe, seed: int) -> tuple[float, float]:
        made = task(champion, NOTHING, mirrored(0, 500, OLD), chosen, spec=spec(DIGITS[:5]), seed=seed)
        model = train_challenger(made).model
        return accuracy(model, pick(1000, 1700, OLD)), accuracy(model, mirrored(1000, 1700, OLD))

    naively = [mirror(recipe(rows="new"), seed)[0] for seed in range(3)]
    distilled = [mirror(recipe(rows="new", lwf=5.0), seed) for seed in range(3)]
    assert sum(old for old, _ in distilled) / 3 > sum(naively) / 3 + 0.02
    assert min(new for _, new in distilled) > 0.9


# --- forgetting: the old digits arrive lying on their side


def turned(champion: Classifier, chosen: Recipe, old: ImageSet = NOTHING, **changes: Any) -> tuple[float, float]:
    """Accuracy on upright and on lying digits of the old classes after a window of lying ones."""
    made = task(champion, old, pick(0, 500, OLD, sideways=True), chosen, spec=spec(DIGITS[:5]), **changes)
    trained = train_challenger(made)
    upright, lying = pick(1000, 1700, OLD), pick(1000, 1700, OLD, sideways=True)
    return accuracy(trained.model, upright), accuracy(trained.model, lying)


@cache
def naively_turned() -> tuple[float, float]:
    return turned(trained_champion(), recipe(rows="new"))


@pytest.mark.parametrize(
    "held",
    [{"l2_sp": 0.3}, {"l1_sp": 0.003}, {"ewc": 1e4}, {"keep_champion": 0.5}],
    ids=lambda held: next(iter(held)),
)
def test_what_holds_a_challenger_keeps_more_of_the_old(champion: Classifier, held: dict[str, float]) -> None:
    upright, lying = turned(champion, recipe(rows="new", **held))
    assert upright > naively_turned()[0] + 0.05
    before = accuracy(champion, pick(1000, 1700, OLD, sideways=True))
    assert lying > before + 0.05  # and something was learnt


def test_ewc_uses_the_versions_own_fisher_where_there_is_one(champion: Classifier) -> None:
    nothing_matters = {name: torch.zeros_like(value) for name, value in champion.named_parameters()}
    free = turned(champion, recipe(rows="new", ewc=1e4), fisher=nothing_matters)
    assert free == naively_turned()


# --- what moves


def test_head_only_leaves_the_body_bit_for_bit(champion: Classifier) -> None:
    for chosen in (recipe(layers="head"), RECIPES["logistic"]):
        trained = train_challenger(task(champion, exemplars(), pick(0, 200, NEW), chosen))
        body, before = trained.model.body.state_dict(), champion.body.state_dict()
        assert all(torch.equal(body[name], before[name]) for name in before)
        assert not torch.equal(trained.model.head.weight[:5], champion.head.weight)


@pytest.mark.parametrize("name", ["head-only", "logistic"])
def test_a_head_learns_new_classes_on_the_frozen_body(champion: Classifier, name: str) -> None:
    trained = train_challenger(task(champion, exemplars(250), pick(0, 500, NEW), RECIPES[name]))
    assert accuracy(trained.model, pick(1000, 1700, ALL)) > 0.75  # chance is 0.1, the champion's own 0.5


def test_partial_fine_tuning_moves_what_comes_from_its_stage_on(champion: Classifier) -> None:
    stage = stages(champion)[-2]
    trained = train_challenger(task(champion, exemplars(), pick(0, 100, NEW), recipe(layers=stage, epochs=1)))
    before, after = dict(champion.named_parameters()), dict(trained.model.named_parameters())
    moved = {name for name in before if name.startswith("body.") and not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith(f"body.{stage}.") or name > f"body.{stage}" for name in moved)
    assert torch.equal(before["body.0.weight"], after["body.0.weight"])


def test_an_unknown_stage_is_refused_by_the_names_there_are(champion: Classifier) -> None:
    with pytest.raises(ConfigurationError, match="layer9"):
        train_challenger(task(champion, exemplars(), pick(0, 100, NEW), recipe(layers="layer9")))


@pytest.mark.parametrize("mode", ["adapt", "keep"])
def test_batch_norm_statistics_adapt_or_are_kept(champion: Classifier, mode: str) -> None:
    trained = train_challenger(task(champion, exemplars(), pick(0, 100, NEW), recipe(batch_norm=mode, epochs=1)))
    same = torch.equal(trained.model.state_dict()["body.1.running_mean"], champion.state_dict()["body.1.running_mean"])
    assert same == (mode == "keep")


@pytest.mark.parametrize(("classes", "epochs"), [(DIGITS, 3 + 2), (DIGITS[:5], 2)])
def test_only_a_grown_head_is_fitted_first(champion: Classifier, classes: tuple[str, ...], epochs: int) -> None:
    made = task(champion, exemplars(), pick(100, 200, OLD), recipe(epochs=2), spec=spec(classes))
    trained = train_challenger(replace(made, head=LoopConfig(epochs=3, learning_rate=1e-3)))
    assert len(trained.losses) == epochs
    assert trained.model.spec.classes == classes


# --- few images, rare classes, another size


def test_rows_set_aside_choose_the_best_epoch_and_do_not_train(champion: Classifier) -> None:
    chosen = recipe(validation_fraction=0.25, epochs=4)
    trained = train_challenger(task(champion, exemplars(), pick(0, 400, NEW), chosen))
    everything = len(exemplars()) + len(pick(0, 400, NEW))
    assert 0.6 * everything < trained.rows < 0.9 * everything
    assert len(trained.accuracies) == 4


@pytest.mark.parametrize("balance", ["sampler", "loss", "logits"])
def test_balance_raises_the_recall_of_rare_classes(balance: str) -> None:
    """100 images of each old digit, 5 of each new one."""
    new = pick(0, 1000, NEW)
    rare = new.subset(torch.cat([(new.labels == digit).nonzero().flatten()[:5] for digit in NEW]))

    def recall(how: str) -> float:
        chosen = recipe(start="fresh", rows="all", epochs=8, balance=how)
        scores = []
        for seed in range(2):
            made = task(None, pick(0, 1000, OLD), rare, chosen, seed=seed)
            scores.append(accuracy(train_challenger(made).model, pick(1000, 1797, NEW)))
        return sum(scores) / 2

    assert recall(balance) > recall("none") + 0.02


@pytest.mark.parametrize("resolution", ["direct", "progressive"])
def test_a_challenger_takes_another_input_size(champion: Classifier, resolution: str) -> None:
    images, _ = digits()
    large = torch.nn.functional.interpolate(images.float(), scale_factor=1.5, mode="bilinear").round().to(torch.uint8)

    def enlarged(rows: ImageSet) -> ImageSet:
        return replace(rows, images=Pixels([large], rows.images._index))

    made = task(
        champion, enlarged(exemplars()), enlarged(pick(0, 500, NEW)), recipe(resolution=resolution), spec=spec(size=24)
    )
    sizes: list[int] = []
    trained = _watching_sizes(made, sizes)
    assert trained.model.spec.image_size == 24
    assert accuracy(trained.model, enlarged(pick(1000, 1700, ALL))) > 0.85
    grown = sorted(set(sizes))
    assert grown == ([24] if resolution == "direct" else [16, 20, 24])


def _watching_sizes(made: Task, sizes: list[int]) -> Trained:
    """Train, and note the sides of the images that the network sees while it trains."""

    def fresh() -> Classifier:
        model = build_classifier(made.spec, seeded(1))

        def note(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if module.training:
                sizes.append(inputs[0].shape[-1])

        model.body.register_forward_pre_hook(note)
        return model

    return train_challenger(replace(made, fresh=fresh))


def test_augmentation_helps_where_there_are_few_images() -> None:
    def learnt(augmentation: Augmentation) -> float:
        chosen = recipe(start="fresh", rows="all", epochs=30, augmentation=augmentation)
        scores = []
        for seed in range(2):
            made = task(None, NOTHING, pick(0, 120, ALL), chosen, seed=seed)
            scores.append(accuracy(train_challenger(made).model, pick(1000, 1797, ALL)))
        return sum(scores) / 2

    assert learnt(Augmentation(shift=0.1)) > learnt(Augmentation()) + 0.01


def test_an_initialisation_learnt_from_episodes_gets_a_head_of_its_own(champion: Classifier) -> None:
    """That it adapts better is shown in test_meta; here: the body has moved, and the old head is not left on it."""
    chosen = recipe(start="meta", epochs=2, meta=MetaConfig(steps=20, meta_batch=2))
    trained = train_challenger(task(champion, exemplars(200), pick(0, 500, NEW), chosen))
    assert len(trained.losses) == 30 + 2
    assert trained.losses[29] < trained.losses[0] / 2
    assert accuracy(trained.model, pick(1000, 1700, ALL)) > 0.8


def test_answers_do_not_depend_on_the_batch_size(champion: Classifier) -> None:
    images = pick(1000, 1100, OLD).images
    assert torch.equal(answer(champion, images, 7), answer(champion, images, 1000))
    assert answer(champion, images, 7).dtype == torch.int64


def test_no_images_have_no_answers(champion: Classifier) -> None:
    answers = answer(champion, NOTHING.images, 8)
    assert (len(answers), answers.dtype) == (0, torch.int64)


def test_every_recipe_of_the_product_is_one_a_configuration_may_hold() -> None:
    assert TrainingConfig().strategies == RECIPES
