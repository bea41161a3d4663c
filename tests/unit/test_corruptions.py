from __future__ import annotations

import pytest
import torch

from components.core.corruptions import CORRUPTIONS, corrupt, corruptions_for

SHAPES = [(3, 1, 8, 8), (3, 3, 8, 8), (2, 3, 17, 9), (2, 1, 33, 64)]


def images(shape: tuple[int, ...] = (3, 3, 16, 16), seed: int = 0) -> torch.Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("strength", [0.01, 0.5, 1.0])
def test_corruption_keeps_shape_and_its_input(name: str, shape: tuple[int, ...], strength: float) -> None:
    before = images(shape)
    copy = before.clone()
    after = corrupt(name, before, strength, generator())
    assert (after.shape, after.dtype) == (before.shape, torch.uint8)
    assert torch.equal(before, copy)
    assert torch.equal(after, corrupt(name, before, strength, generator())), "the generator decides"
    assert name == "channel-order" or strength < 0.5 or not torch.equal(after, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruption_works_on_one_image(name: str) -> None:
    assert corrupt(name, images((1, 3, 12, 12)), 0.7, generator()).shape == (1, 3, 12, 12)


@pytest.mark.parametrize("name", [n for n in CORRUPTIONS if n not in ("occlusion", "inverted", "channel-order")])
def test_stronger_is_further_away(name: str) -> None:
    ramp = torch.linspace(60, 180, 32)
    smooth = ((ramp[:, None] + ramp.flip(0)) / 2 + 40 * torch.sin(torch.arange(32) / 2)).to(torch.uint8)
    before = smooth.expand(8, 1, 32, 32).clone()
    moved = [(corrupt(name, before, s, generator()).float() - before.float()).abs().mean() for s in (0.1, 0.5, 1.0)]
    assert moved[0] < moved[1] < moved[2]


def test_light_by_hand() -> None:
    grey = torch.full((1, 1, 8, 8), 100, dtype=torch.uint8)
    assert corrupt("brighter", grey, 0.5, generator()).unique().tolist() == [180]  # 100 + 160 / 2
    assert corrupt("brighter", grey, 1.0, generator()).unique().tolist() == [255]  # clipped
    assert corrupt("darker", grey, 1.0, generator()).unique().tolist() == [15]  # 100 * 0.15
    assert corrupt("inverted", grey, 1.0, generator()).unique().tolist() == [155]


def test_contrast_by_hand() -> None:
    halves = torch.full((1, 1, 8, 8), 80, dtype=torch.uint8)
    halves[..., 4:] = 120  # mean 100
    assert corrupt("low-contrast", halves, 1.0, generator()).unique().tolist() == [97, 103]  # 100 -+ 20 * 0.15
    assert corrupt("high-contrast", halves, 1.0, generator()).unique().tolist() == [20, 180]  # 100 -+ 20 * 4


def test_constant_image_stays_under_what_moves_pixels() -> None:
    grey = torch.full((4, 3, 10, 14), 77, dtype=torch.uint8)
    for name in ("blur", "rotation", "translation", "zoom-in", "zoom-out", "resolution", "low-contrast"):
        assert torch.equal(corrupt(name, grey, 0.8, generator()), grey), name


def test_full_turn_is_ninety_degrees_to_either_side() -> None:
    before = images((20, 1, 9, 9))
    after = corrupt("rotation", before, 1.0, generator())
    left, right = torch.rot90(before, 1, (2, 3)), torch.rot90(before, -1, (2, 3))
    sides = [(torch.equal(a, b), torch.equal(a, c)) for a, b, c in zip(after, left, right, strict=True)]
    assert set(sides) == {(True, False), (False, True)}


def test_zoom_in_shows_the_middle() -> None:
    before = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    before[..., 4:12, 4:12] = 200  # twice as large, it fills the image
    after = corrupt("zoom-in", before, 1.0, generator())[0, 0]
    assert after[1:-1, 1:-1].unique().tolist() == [200]
    assert after[0, 1:-1].unique().tolist() == [150]  # the rim lies a quarter of a pixel beside the square


def test_share_of_images_is_inverted() -> None:
    before = images((10, 1, 8, 8))
    changed = (corrupt("inverted", before, 0.3, generator()) != before).flatten(1).any(1)
    assert int(changed.sum()) == 3


def test_channel_order_exchanges_red_and_blue_and_leaves_grey_alone() -> None:
    before = images((4, 3, 8, 8))
    assert torch.equal(corrupt("channel-order", before, 1.0, generator()), before[:, [2, 1, 0]])
    grey = images((4, 1, 8, 8))
    assert torch.equal(corrupt("channel-order", grey, 1.0, generator()), grey)
    assert "channel-order" not in corruptions_for(1)
    assert "channel-order" in corruptions_for(3)


def test_occlusion_covers_one_block_with_one_grey() -> None:
    before = torch.zeros(50, 3, 20, 20, dtype=torch.uint8)
    after = corrupt("occlusion", before, 1.0, generator())
    for image in after:
        assert len(image.unique()) <= 2
        assert int((image[0] > 0).sum()) in (0, 13 * 13)  # 0.65 * 20 = 13; a black block does not show
    assert torch.equal(after[:, 0], after[:, 2])


@pytest.mark.parametrize(
    ("batch", "strength", "name"),
    [
        (images().float(), 0.5, "blur"),
        (images((3, 2, 16, 16)), 0.5, "blur"),
        (images((3, 1, 7, 16)), 0.5, "blur"),
        (images()[0], 0.5, "blur"),
        (images()[:0], 0.5, "blur"),
        (images(), 0.0, "blur"),
        (images(), 1.01, "blur"),
        (images(), float("nan"), "blur"),
        (images(), 0.5, "rain"),
    ],
)
def test_what_is_no_image_or_strength_or_corruption_is_refused(batch: torch.Tensor, strength: float, name: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        corrupt(name, batch, strength, generator())
