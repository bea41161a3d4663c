"""Which rows train and which watch: all of them on one side or the other, whole groups, the same in every attempt."""

import hashlib

import pyarrow as pa
import pytest
import torch

from components.core.datasets import ImageSet, Pixels
from components.core.storage import sha256_hex
from components.train.rows import TrainingRows, choose_rows


def images(rows: int, first: int = 0, group: list[str | None] | None = None) -> ImageSet:
    """Images of one pixel that tell their number; labels are the same number."""
    numbers = torch.arange(first, first + rows)
    names = [hashlib.sha256(f"{int(n)}".encode()).hexdigest() for n in numbers]
    groups = pa.array(group or [None] * rows, pa.string())
    part = (numbers % 256).to(torch.uint8).view(-1, 1, 1, 1)
    return ImageSet(
        images=Pixels([part], torch.arange(rows)),
        labels=numbers,
        classes=("a",),
        rows=pa.table({"sha256": pa.array(names, pa.string()), "group": groups}),
    )


def numbers(chosen: TrainingRows) -> tuple[list[int], list[int]]:
    """Which images train and which watch; each stands by its own label."""
    for pixels, labels in (
        (chosen.images, chosen.labels),
        (chosen.validation_images, chosen.validation_labels),
    ):
        assert len(pixels) == len(labels)
        assert torch.equal(pixels[torch.arange(len(pixels))].flatten().long(), labels % 256)
    return chosen.labels.tolist(), chosen.validation_labels.tolist()


def test_without_validation_all_rows_train_old_ones_first() -> None:
    chosen = choose_rows(images(3), images(4, first=100), 0.0)
    assert numbers(chosen) == ([0, 1, 2, 100, 101, 102, 103], [])
    assert chosen.replayed == 3


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.99])
def test_every_row_is_on_one_side_and_the_share_is_about_right(fraction: float) -> None:
    chosen = choose_rows(images(400), images(600, first=1000), fraction)
    train, watch = numbers(chosen)
    assert sorted(train + watch) == [*range(400), *range(1000, 1600)]
    spread = (fraction * (1 - fraction) / 1000) ** 0.5
    assert len(watch) / 1000 == pytest.approx(fraction, abs=4 * spread)
    assert chosen.replayed == sum(number < 1000 for number in train)


def test_a_row_that_watches_watches_in_every_attempt_and_beside_any_other_rows() -> None:
    old, new = images(50), images(50, first=100)
    _, watch = numbers(choose_rows(old, new, 0.3))
    assert numbers(choose_rows(old, new, 0.3))[1] == watch
    backwards = new.subset(torch.arange(49, -1, -1))
    assert set(numbers(choose_rows(images(0), backwards, 0.3))[1]) == {number for number in watch if number >= 100}


def test_a_larger_share_takes_more_of_the_same() -> None:
    few, many = (set(numbers(choose_rows(images(0), images(200), share))[1]) for share in (0.1, 0.4))
    assert few < many


def test_groups_stay_together_also_across_old_and_new() -> None:
    groups: list[str | None] = [f"clip {n // 10}" for n in range(100)]
    chosen = choose_rows(images(100, group=groups), images(100, first=1000, group=groups), 0.4)
    train, watch = numbers(chosen)
    assert train
    assert watch
    assert {n % 1000 // 10 for n in train}.isdisjoint({n % 1000 // 10 for n in watch})


def test_who_watches_is_not_decided_as_who_is_held_out_is() -> None:
    # Train rows are those with a large position; by the same position a share of 0.2 would find nobody.
    rows = images(500)
    position = [int(sha256_hex(name.encode())[:13], 16) / 16**13 for name in rows.rows["sha256"].to_pylist()]
    train = rows.subset((torch.tensor(position) >= 0.2).nonzero().flatten())
    assert 0.1 < len(choose_rows(images(0), train, 0.2).validation_labels) / len(train) < 0.3


def test_no_rows_at_all_are_no_error() -> None:
    chosen = choose_rows(images(0), images(0), 0.2)
    assert numbers(chosen) == ([], [])
    assert chosen.replayed == 0


def test_rows_of_one_clip_are_set_aside_one_by_one() -> None:
    train, watch = numbers(choose_rows(images(0), images(200, group=["clip"] * 200), 0.2))
    assert 20 < len(watch) < 60
    assert sorted(train + watch) == list(range(200))


def test_too_few_rows_to_set_some_aside_all_train() -> None:
    train, watch = numbers(choose_rows(images(0), images(2), 0.9))
    assert (train, watch) == ([0, 1], [])
