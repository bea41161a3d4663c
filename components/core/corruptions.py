"""Known changes of images, made on purpose: what a champion is rehearsed on before the world does it.

Each corruption takes uint8 images (n, channels, height, width), channels 1 or 3 and sides >= 8, a strength in (0, 1]
and a generator on the CPU, and returns new images of the same shape; sizes scale with the image. What they do to a
model is measured in `changes`. Not covered: faults of files and labels (`detect_drift`), augmentation (`train`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

BLUR_SIDES, BLUR_LEAST = 0.07, 0.3  # standard deviation of the blur, in sides of the image at strength 1, and pixels


class Corruption(Protocol):
    """One known change of images."""

    def __call__(self, images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
        """Change images, uint8, shape (n, channels, height, width), by a strength in (0, 1], into new ones."""


def brighten(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Add up to 160 grey levels: stray light, a wrong black level."""
    return _to_uint8(images.float() + 160 * strength)


def darken(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Take up to 85 % of the light away."""
    return _to_uint8(images.float() * (1 - 0.85 * strength))


def lower_contrast(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Draw each image together about its mean, to 15 % of its range: fog, a dirty lens."""
    return _stretch(images, 1 - 0.85 * strength)


def raise_contrast(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Spread each image about its mean, up to four times, and clip."""
    return _stretch(images, 1 + 3 * strength)


def blur(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Blur with a Gaussian of up to 7 % of the longer side: out of focus."""
    sigma = BLUR_LEAST + BLUR_SIDES * strength * max(images.shape[2:])
    planes = images.float().flatten(0, 1)[:, None]
    for axis, side in ((2, images.shape[2]), (3, images.shape[3])):
        reach = min(math.ceil(3 * sigma), side - 1)
        steps = torch.arange(-reach, reach + 1, device=images.device)
        weights = (-(steps**2) / (2 * sigma**2)).exp()
        kernel = (
            (weights / weights.sum()).view(1, 1, -1, 1) if axis == 2 else (weights / weights.sum()).view(1, 1, 1, -1)
        )
        around = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        planes = functional.conv2d(functional.pad(planes, around, mode="reflect"), kernel)
    return _to_uint8(planes.view(images.shape))


def add_noise(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise of up to 80 grey levels, each channel for itself: little light, high gain."""
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    return _to_uint8(images.float() + 80 * strength * noise)


def rotate(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Turn each image about its centre by up to 90 degrees, to the left or to the right by chance."""
    angle = _signs(len(images), generator) * (math.pi / 2 * strength)
    cosine, sine = angle.cos(), angle.sin()
    stretch = images.shape[2] / images.shape[3]  # affine maps live on a square
    none = torch.zeros_like(angle)
    rows = [torch.stack([cosine, -sine * stretch, none], 1), torch.stack([sine / stretch, cosine, none], 1)]
    return _warp(images, torch.stack(rows, 1))


def translate(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Move each image by up to 30 % of its side, in a direction of its own."""
    angle = 2 * math.pi * torch.rand(len(images), generator=generator)
    shift = 0.6 * strength  # the grid is two units wide
    matrix = torch.eye(2, 3).repeat(len(images), 1, 1)
    matrix[:, 0, 2], matrix[:, 1, 2] = shift * angle.cos(), shift * angle.sin()
    return _warp(images, matrix)


def zoom_in(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Enlarge about the centre, up to twice."""
    return _warp(images, torch.eye(2, 3).repeat(len(images), 1, 1) / (1 + strength))


def zoom_out(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Reduce about the centre, down to 40 %; the border is repeated around it."""
    return _warp(images, torch.eye(2, 3).repeat(len(images), 1, 1) / (1 - 0.6 * strength))


def lower_resolution(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Reduce to down to a quarter of the side and enlarge again: a smaller sensor, thumbnails."""
    height, width = images.shape[2:]
    small = [max(2, round(side / (1 + 3 * strength))) for side in (height, width)]
    reduced = functional.interpolate(images.float(), small, mode="bilinear", antialias=True)
    return _to_uint8(functional.interpolate(reduced, (height, width), mode="bilinear"))


def occlude(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Cover a block of up to 65 % of each side, at a random place, with a random grey."""
    n, _, height, width = images.shape
    tall, wide = (max(1, round(0.65 * strength * side)) for side in (height, width))
    place = torch.rand(n, 2, generator=generator)
    top, left = (place[:, 0] * (height - tall + 1)).long(), (place[:, 1] * (width - wide + 1)).long()
    y, x = torch.arange(height), torch.arange(width)
    inside_y = (y >= top[:, None]) & (y < top[:, None] + tall)
    inside_x = (x >= left[:, None]) & (x < left[:, None] + wide)
    covered = (inside_y[:, None, :, None] & inside_x[:, None, None, :]).to(images.device)
    grey = torch.randint(256, (n, 1, 1, 1), generator=generator, dtype=torch.uint8).to(images.device)
    return torch.where(covered, grey, images)


def invert(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Turn a share of the images, `strength`, into their negatives."""
    return torch.where(_some(images, strength, generator), 255 - images, images)


def reorder_channels(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Exchange the first and the last channel in a share of the images, `strength`. Grey images stay as they are."""
    return torch.where(_some(images, strength, generator), images.flip(1), images)


CORRUPTIONS: Mapping[str, Corruption] = MappingProxyType(
    {
        "brighter": brighten,
        "darker": darken,
        "low-contrast": lower_contrast,
        "high-contrast": raise_contrast,
        "blur": blur,
        "noise": add_noise,
        "rotation": rotate,
        "translation": translate,
        "zoom-in": zoom_in,
        "zoom-out": zoom_out,
        "resolution": lower_resolution,
        "occlusion": occlude,
        "inverted": invert,
        "channel-order": reorder_channels,
    }
)
"""Name of a change -> its function."""


def corruptions_for(channels: int) -> tuple[str, ...]:
    """Names of the changes that images with so many channels can suffer."""
    return tuple(name for name in CORRUPTIONS if channels > 1 or name != "channel-order")


def corrupt(name: str, images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Apply a corruption by its name.

    Args:
        name: One of `CORRUPTIONS`.
        images: uint8, shape (n, channels, height, width), n >= 1, channels 1 or 3, sides >= 8.
        strength: In (0, 1].
        generator: On the CPU.

    Returns:
        New images, uint8, the same shape and device.

    Raises:
        ValueError: There is no such corruption, or the images or the strength are none of those.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"no corruption {name!r}: expected one of {', '.join(CORRUPTIONS)}")
    check_images(images)
    if not 0 < strength <= 1:
        raise ValueError(f"strength {strength}: expected a number in (0, 1]")
    return CORRUPTIONS[name](images, strength, generator)


def check_images(images: Tensor) -> None:
    """Refuse what is no batch of images.

    Raises:
        ValueError: Not uint8 (n, 1 or 3, height, width) with n >= 1 and sides >= 8.
    """
    shape = tuple(images.shape)
    if images.dtype != torch.uint8 or len(shape) != 4 or shape[0] < 1 or shape[1] not in (1, 3) or min(shape[2:]) < 8:
        raise ValueError(f"images {shape} of {images.dtype}: expected uint8 (n, 1 or 3, height >= 8, width >= 8)")


def _to_uint8(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


def _stretch(images: Tensor, factor: float) -> Tensor:
    values = images.float()
    mean = values.mean(dim=(1, 2, 3), keepdim=True)
    return _to_uint8((values - mean) * factor + mean)


def _warp(images: Tensor, matrix: Tensor) -> Tensor:
    """Sample images at affine maps (n, 2, 3) of their own grid; what lies outside repeats the border."""
    grid = functional.affine_grid(matrix.to(images.device), list(images.shape), align_corners=False)
    return _to_uint8(functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False))


def _signs(n: int, generator: torch.Generator) -> Tensor:
    return torch.randint(2, (n,), generator=generator).float() * 2 - 1


def _some(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Choose a share of the images, at least one: bool, shape (n, 1, 1, 1)."""
    n = len(images)
    chosen = torch.zeros(n, dtype=torch.bool)
    chosen[torch.randperm(n, generator=generator)[: max(1, round(share * n))]] = True
    return chosen.view(n, 1, 1, 1).to(images.device)
