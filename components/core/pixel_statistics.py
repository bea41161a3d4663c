"""Statistics of an image's pixels that light, optics, sensors and framing change. Values in, values out.

They are of the network's input, so that they know nothing of the model and see what it sees. Not covered: the
statistics in a window's manifest, which `ingest` takes of the files.
"""

from __future__ import annotations

import torch
from torch import Tensor

from components.core.corruptions import check_images


def pixel_statistics(images: Tensor) -> Tensor:
    """Describe each image by numbers that light, optics, sensors and framing change.

    Args:
        images: uint8, shape (n, channels, height, width), channels 1 or 3, sides >= 8.

    Returns:
        float32, shape (n, channels + 14), finite: mean of each channel, in [0, 1]; then of the mean over the channels:
        log standard deviation; log mean absolute differences to the right, below, along the diagonal, and of the
        Laplacian; shares of black (<= 2 of 255), of white (>= 253) and of flat pixels (equal to the right neighbour
        to within one grey level); mean of the border (an eighth of the side); mean of the middle less the border;
        largest difference to the right; distance of the centre of what stands out from the image's centre, and its
        extent downwards and sideways (variances, in squared half sides).

    Raises:
        ValueError: See `check_images`.
    """
    check_images(images)
    values = images.float() / 255
    grey = values.mean(1)
    right, below = grey.diff(dim=2), grey.diff(dim=1)
    diagonal = grey[:, 1:, 1:] - grey[:, :-1, :-1]
    laplacian = below.diff(dim=1)[:, :, 1:-1] + right.diff(dim=2)[:, 1:-1]
    border, middle = _border_and_middle(grey)
    columns = [
        *values.mean(dim=(2, 3)).unbind(1),
        _log(grey.flatten(1).std(1)),
        *(_log(d.abs().mean(dim=(1, 2))) for d in (right, below, diagonal, laplacian)),
        *(mask.float().mean(dim=(1, 2)) for mask in (grey <= 2.5 / 255, grey >= 252.5 / 255, right.abs() <= 1.5 / 255)),
        border,
        middle - border,
        right.abs().amax(dim=(1, 2)),
        *_place(grey),
    ]
    return torch.stack(columns, 1)


def _log(values: Tensor) -> Tensor:
    return (values + 1 / 255).log()


def _border_and_middle(grey: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the outer eighth on each side, and of the inner half, of images (n, height, width)."""
    height, width = grey.shape[1:]
    y, x = height // 8, width // 8
    inner = grey[:, y : height - y, x : width - x]
    border = (grey.sum((1, 2)) - inner.sum((1, 2))) / (height * width - inner[0].numel())
    middle = grey[:, height // 4 : height - height // 4, width // 4 : width - width // 4]
    return border, middle.mean((1, 2))


def _place(grey: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where that stands which differs from an image's mean: distance from its centre, variance in y and in x."""
    weight = (grey - grey.mean(dim=(1, 2), keepdim=True)).abs() + 1e-6
    weight = weight / weight.sum(dim=(1, 2), keepdim=True)
    y, x = (torch.linspace(-1, 1, side, device=grey.device) for side in grey.shape[1:])
    down, across = weight.sum(2), weight.sum(1)
    centre_y, centre_x = down @ y, across @ x
    extent_y, extent_x = down @ y.square() - centre_y.square(), across @ x.square() - centre_x.square()
    return (centre_y.square() + centre_x.square()).sqrt(), extent_y, extent_x
