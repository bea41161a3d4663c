"""Random changes of training images, a whole batch at once, each image with its own; on the device of the batch.

Values in, values out: the noise is an argument. Not covered: which changes keep a label (the configuration says).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from components.core.recipes import Augmentation

NOISE = 11  # numbers in [0, 1) that one image needs: two each for shift, crop shape, crop place, patch; flip; light
SHIFT_X, SHIFT_Y, FLIP, AREA, RATIO, CROP_X, CROP_Y, PATCH_X, PATCH_Y, BRIGHTNESS, CONTRAST = range(NOISE)
WIDEST = 4 / 3  # of a crop, width by height: as in Szegedy et al. 2015


def augment(images: Tensor, config: Augmentation, noise: Tensor) -> Tensor:
    """Change each image at random.

    Args:
        images: uint8 or float in [0, 255], shape (n, channels, height, width).
        config: What may change, and how much.
        noise: Uniform in [0, 1), float32, shape (n, NOISE), on the device of the images.

    Returns:
        Images of the same shape; float32 where values were interpolated or changed, else as they came.
    """
    if config.zoom:
        images = _resample(images.float(), config, noise)
    elif config.shift or config.flip:
        images = _shift_and_flip(images, config, noise)
    if config.brightness or config.contrast:
        images = _change_light(images.float(), config, noise)
    return _grey_out(images, config.erase, noise) if config.erase else images


def _shift_and_flip(images: Tensor, config: Augmentation, noise: Tensor) -> Tensor:
    """One gather: which row and which column every pixel comes from. The result is channels_last."""
    n, _, height, width = images.shape
    ys = _shifted(height, config.shift, noise[:, SHIFT_Y])
    xs = _shifted(width, config.shift, noise[:, SHIFT_X])
    if config.flip:
        xs = torch.where(noise[:, FLIP, None] < 0.5, xs.flip(1), xs)
    image = torch.arange(n, device=images.device)[:, None, None]
    return images[image, :, ys[:, :, None], xs[:, None, :]].permute(0, 3, 1, 2)


def _shifted(side: int, share: float, noise: Tensor) -> Tensor:
    """Where the pixels along a side come from, int64 (n, side); beyond the border, the border itself."""
    most = round(share * side)
    offsets = ((2 * most + 1) * noise).floor().long() - most
    return (torch.arange(side, device=noise.device) + offsets[:, None]).clamp(0, side - 1)


def _resample(images: Tensor, config: Augmentation, noise: Tensor) -> Tensor:
    """Crop, shift, mirror and resize in one bilinear look-up (grid_sample)."""
    area = 1 - config.zoom * noise[:, AREA]
    # no wider or higher than the image, or the area would be smaller than was drawn
    ratio = torch.exp((2 * noise[:, RATIO] - 1) * math.log(WIDEST)).clamp(area, 1 / area)
    wide, high = (area * ratio).sqrt(), (area / ratio).sqrt()
    shift_x, shift_y = (2 * config.shift * (2 * noise[:, axis] - 1) for axis in (SHIFT_X, SHIFT_Y))
    x = (1 - wide) * (2 * noise[:, CROP_X] - 1) + shift_x
    y = (1 - high) * (2 * noise[:, CROP_Y] - 1) + shift_y
    mirrored = torch.where(noise[:, FLIP] < 0.5, -1.0, 1.0) if config.flip else torch.ones_like(wide)
    zero = torch.zeros_like(wide)
    transform = torch.stack([torch.stack([wide * mirrored, zero, x], 1), torch.stack([zero, high, y], 1)], 1)
    grid = functional.affine_grid(transform, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _change_light(images: Tensor, config: Augmentation, noise: Tensor) -> Tensor:
    brightness = 1 + config.brightness * (2 * noise[:, BRIGHTNESS] - 1)
    contrast = 1 + config.contrast * (2 * noise[:, CONTRAST] - 1)
    mean = images.mean(dim=(1, 2, 3))
    # contrast * (b x - b mean) + b mean, as one product and one sum
    scale, offset = contrast * brightness, brightness * mean * (1 - contrast)
    return torch.addcmul(offset[:, None, None, None], images, scale[:, None, None, None]).clamp(0, 255)


def _grey_out(images: Tensor, share: float, noise: Tensor) -> Tensor:
    height, width = images.shape[2:]
    rows, columns = _span(height, share, noise[:, PATCH_Y]), _span(width, share, noise[:, PATCH_X])
    inside = rows[:, :, None] & columns[:, None, :]
    return torch.where(inside[:, None], 127, images)


def _span(side: int, share: float, noise: Tensor) -> Tensor:
    """A stretch of `share` of the side that lies around a random place, bool (n, side); it may stick out."""
    place = torch.arange(side, device=noise.device) + 0.5
    return (place - noise[:, None] * side).abs() < share * side / 2


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """How the images of one batch are mixed in pairs: the first with the last, the second with the last but one.

    Pairs are as good as random, because the order of the rows is; and any other value of a row, such as its label, can
    be mixed alike.

    Attributes:
        share: What an image keeps of itself, in [0, 1].
        box: Top, bottom, left and right of the pixels that come from the other image; None: all are mixed.

    Source:
        Zhang et al., "mixup", ICLR 2018; Yun et al., "CutMix", ICCV 2019.
    """

    share: float
    box: tuple[int, int, int, int] | None = None

    @classmethod
    def draw(cls, mixup: float, cutmix: float, height: int, width: int, rng: np.random.Generator) -> Mixing | None:
        """Draw how one batch is mixed; None where neither is asked for.

        Args:
            mixup: alpha of its Beta distribution, 0 for never.
            cutmix: Likewise.
            height: Of the images, in pixels.
            width: Likewise.
            rng: Of this step.
        """
        if not (mixup or cutmix):
            return None
        if mixup and not (cutmix and rng.random() < 0.5):
            return cls(share=float(rng.beta(mixup, mixup)))
        side, (y, x) = math.sqrt(1 - rng.beta(cutmix, cutmix)), rng.random(2)
        top, bottom = (round(height * min(max(edge, 0.0), 1.0)) for edge in (y - side / 2, y + side / 2))
        left, right = (round(width * min(max(edge, 0.0), 1.0)) for edge in (x - side / 2, x + side / 2))
        pasted = (bottom - top) * (right - left) / (height * width)
        return cls(share=1 - pasted, box=(top, bottom, left, right))

    def images(self, images: Tensor) -> Tensor:
        """Mix images (n, channels, height, width)."""
        if self.box is None:
            return self.values(images.float())
        top, bottom, left, right = self.box
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
        return mixed

    def values(self, values: Tensor) -> Tensor:
        """Mix any float values of the rows, shape (n, ...), in the same pairs."""
        return torch.lerp(values.flip(0), values, self.share)
