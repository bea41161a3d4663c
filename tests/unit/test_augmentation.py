"""Changes of training images: each by hand on a few pixels, against Pillow, and that no image knows of another."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from components.core.recipes import Augmentation
from components.train.augmentation import (
    AREA,
    BRIGHTNESS,
    CONTRAST,
    CROP_X,
    CROP_Y,
    FLIP,
    NOISE,
    PATCH_X,
    PATCH_Y,
    RATIO,
    SHIFT_X,
    SHIFT_Y,
    Mixing,
    augment,
)

pytestmark = pytest.mark.usefixtures("one_thread")

SQUARE = torch.tensor([[[[1, 2, 3], [4, 5, 6], [7, 8, 9]]]], dtype=torch.uint8)
EVERYTHING = Augmentation(shift=0.2, flip=True, zoom=0.7, brightness=0.4, contrast=0.4, erase=0.3)
NEARLY_ONE = 1 - 2**-24  # the largest float32 below 1, which is the largest that a generator gives


def noise(n: int = 1, **columns: float | list[float]) -> Tensor:
    """Noise in the middle of its range, which changes as little as can be, but for some columns."""
    drawn = torch.full((n, NOISE), 0.5)
    for name, value in columns.items():
        drawn[:, globals()[name]] = torch.tensor(value)
    return drawn


def uniform(n: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((n, NOISE), dtype="float32"))


def images(n: int, channels: int = 3, height: int = 8, width: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, height, width), generator=generator, dtype=torch.uint8)


def test_each_number_of_the_noise_has_one_use() -> None:
    uses = [SHIFT_X, SHIFT_Y, FLIP, AREA, RATIO, CROP_X, CROP_Y, BRIGHTNESS, CONTRAST, PATCH_X, PATCH_Y]
    assert sorted(uses) == list(range(NOISE))


def test_without_a_change_images_are_handed_back() -> None:
    before = images(4)
    assert not Augmentation().active
    assert augment(before, Augmentation(), uniform(4)) is before


@pytest.mark.parametrize("change", ["shift", "zoom", "brightness", "contrast"])
def test_noise_in_the_middle_of_its_range_changes_nothing(change: str) -> None:
    before = images(3, height=7, width=9)
    after = augment(before, Augmentation(**{change: 0.5}), noise(3, AREA=0.0))
    torch.testing.assert_close(after.float(), before.float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"SHIFT_X": 0.0}, [[1, 1, 2], [4, 4, 5], [7, 7, 8]]),
        ({"SHIFT_X": NEARLY_ONE}, [[2, 3, 3], [5, 6, 6], [8, 9, 9]]),
        ({"SHIFT_Y": 0.0}, [[1, 2, 3], [1, 2, 3], [4, 5, 6]]),
        ({"SHIFT_Y": NEARLY_ONE}, [[4, 5, 6], [7, 8, 9], [7, 8, 9]]),
        ({"SHIFT_X": 0.0, "SHIFT_Y": NEARLY_ONE}, [[4, 4, 5], [7, 7, 8], [7, 7, 8]]),
        ({}, [[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
    ],
)
def test_a_shift_by_a_third_moves_one_pixel_and_repeats_the_border(
    columns: dict[str, float], expected: list[list[int]]
) -> None:
    after = augment(SQUARE, Augmentation(shift=1 / 3), noise(**columns))
    assert after.dtype == torch.uint8
    assert after[0, 0].tolist() == expected


def test_a_shift_and_a_mirror_together_mirror_what_was_shifted() -> None:
    after = augment(SQUARE, Augmentation(shift=1 / 3, flip=True), noise(SHIFT_X=0.0, FLIP=0.0))
    assert after[0, 0].tolist() == [[2, 1, 1], [5, 4, 4], [8, 7, 7]]


@pytest.mark.parametrize(("drawn", "mirrored"), [(0.0, True), (0.4999, True), (0.5, False), (NEARLY_ONE, False)])
def test_half_of_the_noise_mirrors(drawn: float, mirrored: bool) -> None:
    expected = SQUARE.flip(3) if mirrored else SQUARE
    after = augment(SQUARE, Augmentation(flip=True), noise(FLIP=drawn))
    assert after.dtype == torch.uint8
    assert torch.equal(after, expected)
    resampled = augment(SQUARE, Augmentation(flip=True, zoom=0.5), noise(FLIP=drawn, AREA=0.0))
    torch.testing.assert_close(resampled, expected.float(), atol=1e-4, rtol=0)


def test_every_shift_is_as_likely_as_any_other() -> None:
    # A ramp tells by how much it was shifted. 3 pixels each way of 30: 7 shifts, 1,000 images each on average.
    ramp = torch.arange(30, dtype=torch.uint8).expand(7_000, 1, 30, 30)
    after = augment(ramp, Augmentation(shift=0.1), uniform(7_000))
    shifts = after[:, 0, 0, 15].int() - 15
    counts = torch.bincount(shifts + 3)
    assert counts.shape == (7,)
    chi_square = float(((counts - 1000.0) ** 2 / 1000).sum())
    assert chi_square < 22.5  # 0.999 of chi-square with 6 degrees of freedom


def test_along_each_axis_the_shift_is_drawn_by_itself() -> None:
    plane = (torch.arange(15)[:, None] * 15 + torch.arange(15)).to(torch.uint8).expand(5_000, 1, 15, 15)
    middle = augment(plane, Augmentation(shift=0.2), uniform(5_000))[:, 0, 7, 7].double()
    pairs = torch.stack([(middle / 15).floor(), middle % 15])
    assert abs(float(torch.corrcoef(pairs)[0, 1])) < 0.05


@pytest.mark.parametrize("n", [2, 5])
def test_each_image_has_its_own_change_and_knows_of_no_other(n: int) -> None:
    before, drawn = images(1).expand(n, -1, -1, -1), uniform(n)
    together = augment(before, EVERYTHING, drawn)
    alone = torch.cat([augment(before[i : i + 1], EVERYTHING, drawn[i : i + 1]) for i in range(n)])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=0)
    assert len({tuple(image.flatten().tolist()) for image in together}) == n


@pytest.mark.parametrize("config", [EVERYTHING, *(Augmentation(**{name: 1.0}) for name in ("shift", "erase"))])
def test_shape_stays_and_values_stay_between_black_and_white(config: Augmentation) -> None:
    before = images(64, height=6, width=10)
    after = augment(before, config, uniform(64))
    assert after.shape == before.shape
    assert float(after.min()) >= 0
    assert float(after.max()) <= 255


@pytest.mark.parametrize(
    ("change", "dtype"),
    [
        ("shift", torch.uint8),
        ("erase", torch.uint8),
        ("zoom", torch.float32),
        ("brightness", torch.float32),
        ("contrast", torch.float32),
    ],
)
@pytest.mark.parametrize("given", [torch.uint8, torch.float32])
def test_only_what_computes_with_values_makes_floats_of_them(
    change: str, dtype: torch.dtype, given: torch.dtype
) -> None:
    after = augment(images(2).to(given), Augmentation(**{change: 0.5}), uniform(2))
    assert after.dtype == (torch.float32 if given == torch.float32 else dtype)


def test_images_that_were_given_stay_as_they_were() -> None:
    before = images(8)
    kept = before.clone()
    augment(before, EVERYTHING, uniform(8))
    augment(before, Augmentation(erase=0.5), uniform(8))
    assert torch.equal(before, kept)


def test_zooming_into_a_quarter_looks_as_pillow_shows_it() -> None:
    # The ratio 1:1 and the area 1/4: a window of half the side; at the far end it is the lower right quarter.
    from PIL import Image

    before = images(1, channels=1, height=8, width=8)
    crop = Image.fromarray(before[0, 0].numpy()).convert("F").crop((4, 4, 8, 8))
    expected = torch.from_numpy(np.array(crop.resize((8, 8), Image.Resampling.BILINEAR)))
    drawn = noise(AREA=1.0, CROP_X=1.0, CROP_Y=1.0)
    after = augment(before, Augmentation(zoom=0.75), drawn)[0, 0]
    # Pillow repeats the border of the crop, we go on into the image: they differ only at that edge.
    torch.testing.assert_close(after[1:, 1:], expected[1:, 1:], atol=1e-3, rtol=0)


def crops(drawn: Tensor, zoom: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Left, right, top and bottom of each crop in shares of the side, read off ramps of 64 pixels."""
    ramp = torch.arange(64.0)
    both = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64)])
    after = augment(both.expand(len(drawn), 2, 64, 64), Augmentation(zoom=zoom), drawn)
    edges = []
    for values in (after[:, 0, 32, :], after[:, 1, :, 32]):
        # away from the repeated border, the values are a line: it is read at two pixels and prolonged
        slope = (values[:, 40] - values[:, 24]) / 16
        centre = (values[:, 40] + values[:, 24]) / 2 + slope * -0.5
        edges += [(centre - 32 * slope + 0.5) / 64, (centre + 32 * slope + 0.5) / 64]
    return edges[0], edges[1], edges[2], edges[3]


@pytest.mark.parametrize("zoom", [0.1, 0.5, 0.92])
def test_a_crop_lies_inside_and_has_the_area_and_shape_that_was_asked_for(zoom: float) -> None:
    drawn = uniform(500)
    left, right, top, bottom = crops(drawn, zoom)
    for edge in (left, right, top, bottom):
        assert float(edge.min()) > -0.01
        assert float(edge.max()) < 1.01
    area, ratio = (right - left) * (bottom - top), (right - left) / (bottom - top)
    torch.testing.assert_close(area, 1 - zoom * drawn[:, AREA], atol=0.01, rtol=0)
    assert float(ratio.max()) < 4 / 3 + 0.02
    assert float(ratio.min()) > 3 / 4 - 0.02
    if zoom > 0.5:
        assert float(ratio.max()) > 1.3
        assert float(ratio.min()) < 0.77


def test_a_shift_together_with_a_zoom_is_as_far() -> None:
    # The ramp moves by a quarter of 64 pixels, as it does without zoom.
    ramp = torch.arange(64.0).expand(1, 1, 64, 64)
    drawn = noise(AREA=0.0, SHIFT_X=1.0)
    after = augment(ramp, Augmentation(zoom=0.5, shift=0.25), drawn)
    assert float(after[0, 0, 0, 20]) == pytest.approx(36, abs=1e-3)
    exact = augment(ramp, Augmentation(shift=0.25), noise(SHIFT_X=NEARLY_ONE))
    assert float(exact[0, 0, 0, 20]) == 36


@pytest.mark.parametrize("factor", [0.6, 1.4])
@pytest.mark.parametrize(("change", "column"), [("brightness", "BRIGHTNESS"), ("contrast", "CONTRAST")])
def test_light_is_that_of_pillow(factor: float, change: str, column: str) -> None:
    from PIL import Image, ImageEnhance

    # Mild values, so that neither clips; Pillow rounds the mean and the result.
    before = images(1, channels=1) // 4 + 60
    enhancer = getattr(ImageEnhance, change.capitalize())(Image.fromarray(before[0, 0].numpy()))
    expected = torch.from_numpy(np.array(enhancer.enhance(factor))).float()
    after = augment(before, Augmentation(**{change: 0.4}), noise(**{column: 0.0 if factor < 1 else 1.0}))
    torch.testing.assert_close(after[0, 0], expected, atol=1.0, rtol=0)


def test_light_by_hand() -> None:
    # Values 0 and 200, mean 100. Contrast 1.5 around the mean of a brightness of 0.5: 50 + 1.5 (x/2 - 50).
    before = torch.tensor([0.0, 200.0]).view(1, 1, 1, 2)
    after = augment(before, Augmentation(brightness=0.5, contrast=0.5), noise(BRIGHTNESS=0.0, CONTRAST=1.0))
    assert after.flatten().tolist() == [0.0, 125.0]  # -25 is black


def test_erased_square_by_hand() -> None:
    # Half the side of 4 around the middle is the middle two of each; around the corner, one of each stays inside.
    before = torch.full((2, 1, 4, 4), 9, dtype=torch.uint8)
    after = augment(before, Augmentation(erase=0.5), noise(2, PATCH_Y=[0.5, 0.0], PATCH_X=[0.5, 0.0]))
    assert after[0, 0].tolist() == [[9, 9, 9, 9], [9, 127, 127, 9], [9, 127, 127, 9], [9, 9, 9, 9]]
    assert after[1, 0].tolist() == [[127, 9, 9, 9], [9, 9, 9, 9], [9, 9, 9, 9], [9, 9, 9, 9]]


def test_where_is_erased_does_not_depend_on_where_is_cropped() -> None:
    drawn = uniform(200)
    moved = drawn.clone()
    moved[:, [CROP_X, CROP_Y]] = uniform(200, seed=1)[:, [CROP_X, CROP_Y]]
    config = Augmentation(zoom=0.5, erase=0.5)
    black = torch.zeros(200, 1, 16, 16)
    assert torch.equal(augment(black, config, drawn), augment(black, config, moved))


@pytest.mark.parametrize("bad", [{"zoom": 1.0}, {"zoom": -0.1}, {"shift": 1.5}, {"erase": -1.0}, {"mirror": True}])
def test_changes_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Augmentation(**bad)


def draws(mixup: float, cutmix: float, count: int = 400, height: int = 8, width: int = 8) -> list[Mixing]:
    rng = np.random.default_rng(0)
    drawn = [Mixing.draw(mixup, cutmix, height, width, rng) for _ in range(count)]
    return [mixing for mixing in drawn if mixing is not None]


def test_no_mixing_where_neither_is_asked_for() -> None:
    assert draws(0.0, 0.0) == []


def test_mixup_by_hand() -> None:
    rows = torch.tensor([10.0, 20.0, 40.0]).view(3, 1, 1, 1).to(torch.uint8)
    mixed = Mixing(share=0.75).images(rows)
    assert mixed.flatten().tolist() == [17.5, 20.0, 32.5]  # the one in the middle meets itself
    assert Mixing(share=0.75).values(torch.tensor([[1.0, 0.0], [0.0, 1.0]])).tolist() == [[0.75, 0.25], [0.25, 0.75]]


def test_cutmix_by_hand() -> None:
    rows = torch.stack([torch.zeros(1, 2, 3), torch.ones(1, 2, 3)]).to(torch.uint8)
    mixed = Mixing(share=2 / 3, box=(0, 2, 1, 2)).images(rows)
    assert mixed.dtype == torch.uint8
    assert mixed[:, 0].tolist() == [[[0, 1, 0], [0, 1, 0]], [[1, 0, 1], [1, 0, 1]]]


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 11), (1, 1)])
def test_share_of_a_cutmix_is_the_share_of_the_pixels_that_stay(height: int, width: int) -> None:
    rows = torch.stack([torch.zeros(1, height, width), torch.ones(1, height, width)])
    for mixing in draws(0.0, 1.0, height=height, width=width):
        kept = 1 - mixing.images(rows)[0].mean()
        assert float(kept) == pytest.approx(mixing.share, abs=1e-6)


def test_shares_of_mixup_follow_the_beta_distribution() -> None:
    # Of Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)).
    shares = np.array([mixing.share for mixing in draws(0.4, 0.0, count=4000)])
    assert shares.mean() == pytest.approx(1 / 2, abs=0.02)
    assert shares.var() == pytest.approx(1 / 7.2, abs=0.01)


def test_areas_of_cutmix_follow_the_beta_distribution_where_the_box_is_inside() -> None:
    # Beta(1, 1) is uniform: the area before it is cut at the border. Large images, so that rounding counts little.
    inside = [
        1 - m.share
        for m in draws(0.0, 1.0, count=4000, height=1000, width=1000)
        if m.box and min(m.box[0], m.box[2]) > 0 and max(m.box[1], m.box[3]) < 1000
    ]
    # A side s fits inside with chance (1 - s)^2, so areas a = s^2 have the density 6 (1 - sqrt a)^2 and a mean of 0.2.
    assert sum(inside) / len(inside) == pytest.approx(0.2, abs=0.015)


def test_with_both_each_has_half_of_the_batches() -> None:
    pasted = sum(mixing.box is not None for mixing in draws(0.2, 1.0, count=1000))
    assert pasted == pytest.approx(500, abs=60)
