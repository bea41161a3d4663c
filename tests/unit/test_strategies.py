"""The ways of updating a champion: what each may touch, and, on real digits, that each has the effect it is for."""

from dataclasses import replace
from functools import cache

import pyarrow as pa
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from components.core.config import LoopConfig
from components.core.datasets import ImageSet, Pixels
from components.core.models import Classifier, ModelSpec, build_classifier
from components.evaluate.step import answer
from components.train.strategies import STRATEGIES, Task, Trained, choose_replay, fine_tune, retrain, train_head

pytestmark = pytest.mark.usefixtures("one_thread")
DIGITS = tuple("0123456789")
SIZE = 16


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- choose_replay


def replay(labels: list[int], count: int, seed: int = 0) -> Tensor:
    return choose_replay(torch.tensor(labels, dtype=torch.int64), count, seeded(seed))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 2, 3, 7, 9, 30])
def test_replay_is_balanced_over_classes(seed: int, count: int) -> None:
    labels = [0] * 100 + [1] * 10 + [2] * 30
    counts = torch.tensor(labels)[replay(labels, count, seed)].bincount(minlength=3)
    assert int(counts.sum()) == count
    assert int(counts.max() - counts.min()) <= 1


def test_a_class_that_runs_out_is_made_up_for_by_the_others() -> None:
    # 4 of class 1 are all there are; the other 16 of 20 come evenly from 0 and 2.
    labels = [0] * 50 + [1] * 4 + [2] * 50
    assert torch.tensor(labels)[replay(labels, 20)].bincount().tolist() == [8, 4, 8]


def test_no_row_is_replayed_twice_and_rows_are_in_order() -> None:
    chosen = replay([0, 1, 2] * 20, 41).tolist()
    assert len(set(chosen)) == 41
    assert chosen == sorted(chosen)


@pytest.mark.parametrize("count", [6, 7, 1000])
def test_wanting_more_than_there_is_gives_everything(count: int) -> None:
    assert replay([0, 0, 0, 1, 1, 2], count).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("labels", "count"), [([], 5), ([0, 1, 1], 0), ([], 0)])
def test_wanting_nothing_or_having_nothing_gives_nothing(labels: list[int], count: int) -> None:
    chosen = replay(labels, count)
    assert (len(chosen), chosen.dtype) == (0, torch.int64)


def test_replay_follows_its_generator() -> None:
    labels = [0, 1] * 40
    assert torch.equal(replay(labels, 20, 1), replay(labels, 20, 1))
    assert not torch.equal(replay(labels, 20, 1), replay(labels, 20, 2))


def test_every_row_of_a_class_is_drawn_equally_often() -> None:
    # 2 of 10 rows, one of each class of five: each row has a chance of 1 in 5. 600 draws: 120 +- 9.8 each.
    counts = torch.zeros(10)
    for seed in range(600):
        counts[replay([0] * 5 + [1] * 5, 2, seed)] += 1
    assert float((counts - 120).abs().max()) < 4 * 9.8


# --- strategies, on real images


@cache
def digits() -> tuple[Tensor, Tensor]:
    """All 1,797 digits, enlarged from 8 to 16 pixels, in a fixed random order."""
    bunch = load_digits()
    small = torch.from_numpy(bunch.images).float() * (255 / 16)
    images = torch.nn.functional.interpolate(small[:, None], size=(SIZE, SIZE), mode="bilinear", antialias=True)
    order = torch.randperm(len(small), generator=seeded(0))
    return images.round().to(torch.uint8)[order], torch.from_numpy(bunch.target).to(torch.int64)[order]


def pick(start: int, stop: int, labels: tuple[int, ...]) -> ImageSet:
    """The digits of some classes among the rows from `start` to `stop`: rows below 1,000 train, the others test."""
    images, targets = digits()
    keep = torch.isin(targets[start:stop], torch.tensor(labels)).nonzero().flatten() + start
    rows = pa.table({"row": keep.tolist()})
    return ImageSet(images=Pixels([images], keep), labels=targets[keep], classes=DIGITS, rows=rows)


OLD, NEW, ALL = (0, 1, 2, 3, 4), (5, 6, 7, 8, 9), tuple(range(10))
NOTHING = pick(0, 0, ALL)


def spec(classes: tuple[str, ...]) -> ModelSpec:
    return ModelSpec(architecture="small-cnn", classes=classes, image_size=SIZE, channels=1, mean=(0.3,), std=(0.37,))


def task(champion: Classifier | None, old: ImageSet, new: ImageSet, **changes: object) -> Task:
    made = Task(
        spec=spec(DIGITS),
        champion=champion,
        old=old,
        new=new,
        loop=LoopConfig(epochs=5, learning_rate=3e-3),
        head_loop=LoopConfig(epochs=30, learning_rate=2e-2),
        batch_size=16,
        replay_fraction=0.5,
        generator=seeded(0),
        device=torch.device("cpu"),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def accuracy(model: Classifier, images: ImageSet) -> float:
    return float((answer(model, images.images, 512) == images.labels).float().mean())


@cache
def trained_champion() -> Classifier:
    old = pick(0, 500, OLD)
    return retrain(task(None, NOTHING, old, spec=spec(DIGITS[:5]))).model


@pytest.fixture
def champion() -> Classifier:
    """A champion that knows the digits 0 to 4; a copy, so that no test sees another's changes."""
    model = build_classifier(spec(DIGITS[:5]), seeded(0))
    model.load_state_dict(trained_champion().state_dict())
    return model.eval()


def frozen(model: Classifier) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_retrain_learns_the_digits() -> None:
    trained = retrain(task(None, pick(0, 300, ALL), pick(300, 600, ALL)))
    assert accuracy(trained.model, pick(1000, 1500, ALL)) > 0.9
    assert (trained.rows, trained.replayed_rows, len(trained.losses)) == (600, 0, 5)
    assert trained.losses[-1] < trained.losses[0]


def test_fine_tune_with_replay_forgets_less_than_without(champion: Classifier) -> None:
    old, new, old_test = pick(0, 500, OLD), pick(0, 500, NEW), pick(1000, 1500, OLD)
    before = accuracy(champion, old_test)
    kept = accuracy(fine_tune(task(champion, old, new)).model, old_test)
    forgot = accuracy(fine_tune(task(champion, old, new, replay_fraction=0.0)).model, old_test)
    assert before > 0.9
    assert kept > 0.9
    assert forgot < 0.5


def test_fine_tune_learns_the_new_classes(champion: Classifier) -> None:
    trained = fine_tune(task(champion, pick(0, 500, OLD), pick(0, 500, NEW)))
    assert accuracy(champion, pick(1000, 1500, NEW)) == 0.0
    assert accuracy(trained.model, pick(1000, 1500, NEW)) > 0.85


def test_head_only_learns_new_classes_on_the_frozen_body(champion: Classifier) -> None:
    trained = train_head(task(champion, pick(0, 500, OLD), pick(0, 500, NEW)))
    assert accuracy(trained.model, pick(1000, 1500, ALL)) > 0.75  # chance is 0.1, the champion's own 0.5


def test_head_only_leaves_the_body_bit_for_bit(champion: Classifier) -> None:
    trained = train_head(task(champion, pick(0, 200, OLD), pick(0, 200, NEW)))
    body, before = trained.model.body.state_dict(), champion.body.state_dict()
    assert all(torch.equal(body[name], before[name]) for name in before)
    assert not torch.equal(trained.model.head.weight[:5], champion.head.weight)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_champion_is_untouched(champion: Classifier, strategy: str) -> None:
    before, quick = frozen(champion), LoopConfig(epochs=1, learning_rate=1e-2)
    trained = STRATEGIES[strategy](  # type: ignore[index]
        task(champion, pick(0, 100, OLD), pick(0, 100, NEW), loop=quick, head_loop=quick)
    )
    assert trained.model is not champion
    assert not champion.training
    assert champion.spec.classes == DIGITS[:5]
    assert all(torch.equal(value, before[name]) for name, value in champion.state_dict().items())
    assert all(parameter.grad is None for parameter in champion.parameters())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_seed_gives_one_challenger(champion: Classifier, strategy: str) -> None:
    def run(seed: int) -> Trained:
        quick = LoopConfig(epochs=2, learning_rate=1e-2)
        made = task(champion, pick(0, 150, OLD), pick(0, 150, NEW), loop=quick, head_loop=quick)
        return STRATEGIES[strategy](replace(made, generator=seeded(seed)))  # type: ignore[index]

    first, second, other = run(1), run(1), run(2)
    assert first.losses == second.losses
    assert first.losses != other.losses
    for a, b in zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("fraction", "replayed"), [(0.0, 0), (0.25, 25), (1.0, 100)])
def test_replayed_rows_are_the_fraction_of_the_old_ones(champion: Classifier, fraction: float, replayed: int) -> None:
    quick = LoopConfig(epochs=1, learning_rate=1e-3)
    old = pick(0, 1000, OLD).subset(torch.arange(100))
    new = pick(0, 1000, NEW).subset(torch.arange(40))
    trained = train_head(task(champion, old, new, head_loop=quick, replay_fraction=fraction))
    assert (trained.replayed_rows, trained.rows) == (replayed, 40 + replayed)


@pytest.mark.parametrize(("classes", "epochs"), [(DIGITS, 3 + 2), (DIGITS[:5], 2)])
def test_only_a_grown_head_is_fitted_first(champion: Classifier, classes: tuple[str, ...], epochs: int) -> None:
    trained = fine_tune(
        task(
            champion,
            pick(0, 100, OLD),
            pick(100, 200, OLD),
            spec=spec(classes),
            loop=LoopConfig(epochs=2, learning_rate=1e-3),
            head_loop=LoopConfig(epochs=3, learning_rate=1e-3),
        )
    )
    assert len(trained.losses) == epochs
    assert trained.model.spec.classes == classes


def test_fine_tune_moves_the_body(champion: Classifier) -> None:
    quick = LoopConfig(epochs=1, learning_rate=1e-3)
    trained = fine_tune(task(champion, pick(0, 100, OLD), pick(0, 100, NEW), loop=quick, head_loop=quick))
    assert not torch.equal(trained.model.body.state_dict()["0.weight"], champion.body.state_dict()["0.weight"])


@pytest.mark.parametrize("strategy", ["head-only", "fine-tune"])
def test_only_a_retrain_does_without_a_champion(strategy: str) -> None:
    with pytest.raises(AssertionError, match="no champion"):
        STRATEGIES[strategy](task(None, NOTHING, pick(0, 50, ALL)))  # type: ignore[index]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_parts_of_the_training_rows_on_disk_make_no_difference(champion: Classifier, strategy: str) -> None:
    def run(old: ImageSet, new: ImageSet) -> Trained:
        quick = LoopConfig(epochs=1, learning_rate=1e-2)
        return STRATEGIES[strategy](task(champion, old, new, loop=quick, head_loop=quick))  # type: ignore[index]

    def in_pieces(images: ImageSet) -> ImageSet:
        everything = images.images[torch.arange(len(images))]
        parts = list(everything.split(17))
        return replace(images, images=Pixels(parts, torch.arange(len(images))))

    old, new = pick(0, 150, OLD), pick(0, 150, NEW)
    whole, pieces = run(old, new), run(in_pieces(old), in_pieces(new))
    assert whole.losses == pieces.losses
    for a, b in zip(whole.model.state_dict().values(), pieces.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_answers_do_not_depend_on_the_batch_size(champion: Classifier) -> None:
    images = pick(1000, 1100, OLD).images
    assert torch.equal(answer(champion, images, 7), answer(champion, images, 1000))
    assert answer(champion, images, 7).dtype == torch.int64


def test_no_images_have_no_answers(champion: Classifier) -> None:
    answers = answer(champion, NOTHING.images, 8)
    assert (len(answers), answers.dtype) == (0, torch.int64)
