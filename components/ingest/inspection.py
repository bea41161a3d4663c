"""Look at one image: does it decode, how large is it, and cheap statistics of its pixels. Values in, values out.

The statistics are manifest columns of the same name: what `validate`, the drift views and triage read instead of the
pixels. Not covered: what they say about a window (`detect_drift`), and which images are equal (`ingest.step`).
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from components.core.duplicates import perceptual_hash
from components.core.pixels import eight_bits

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")
REASON_LENGTH = 200
_GREY_MODES = ("1", "L", "LA", "La", "F")
_SAMPLED_LINES = 256  # rows and columns that a large image is read at: its moments are right to about 1 / 256
_JPEG_BLOCK = 8
UNIFORM_LEVELS = 2  # of 255, by which a line of one colour may vary: JPEG adds so much
LEAST_SPREAD = 1 / 255  # standard deviation below which grey values have no shape worth a number
MIN_STEPS = 6  # fewer textured lines say nothing about repetition
_MOMENTS = np.vander(np.arange(256) / 255.0, 4, increasing=True)[:, 1:]  # v, v^2, v^3 of each grey level
# ITU-T T.81, table K.1, as libjpeg scales it for quality 1 to 100. Sorted, because only the scale is asked for, and
# files may hold their tables in either order.
_LUMINANCE = np.array(
    [16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51,
     87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101,
     72, 92, 95, 98, 112, 100, 103, 99]
)  # fmt: skip
_SCALES = np.array([5000 // q if q < 50 else 200 - 2 * q for q in range(1, 101)])
_TABLES = np.sort(((_LUMINANCE * _SCALES[:, None] + 50) // 100).clip(1, 255), axis=1)


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """What decoding tells. Sizes in pixels; intensities in [0, 1], after the orientation in EXIF is applied.

    Attributes:
        width: Of the upright image.
        height: The same.
        channels: Bands of the file: 1 grey or palette, 3 RGB, 4 with transparency or CMYK.
        mode: Pillow's name of the file's pixels: L, RGB, P, CMYK, I;16 ...
        format: One of `FORMATS`.
        quality: JPEG quality in [1, 100], from the quantisation table; None for other formats.
        mean: Mean grey value.
        std: Standard deviation of grey values.
        sharpness: Variance of the Laplacian of the grey image, in [0, inf).
        red: Mean of the channel, as are `green` and `blue`; a grey image has the same in all three.
        green: See `red`.
        blue: See `red`.
        red_std: Standard deviation of the channel, as are `green_std` and `blue_std`.
        green_std: See `red_std`.
        blue_std: See `red_std`.
        skew: Third standardised moment of grey values: positive where few pixels are bright on dark ground, turned
            round by inversion, unchanged by gain and offset; 0 for an image with nothing in it.
        black: Share of the pixels whose grey value is 0 of 255.
        peak: Largest grey value.
        midtones: Share of the pixels with grey values in [16, 239] of 255: neither black nor white.
        flat_tail: Height of the uniform strip at the bottom beyond the largest strip of its colour at another edge,
            as a share of the height, in [0, 1]: a file cut short has one, an object on a plain background has none.
        doubled: Share of the rows, or of the columns if that is less, that repeat the one before, in [0, 1]: 1/2
            where an image was enlarged to twice its size without interpolation.
        blockiness: Steps of the grey value at the borders of 8 x 8 blocks divided by those within, in (0, inf): about
            1, more after strong JPEG compression. 1 for images below 16 pixels.
        perceptual_hash: See `core.duplicates.perceptual_hash`.
    """

    width: int
    height: int
    channels: int
    mode: str
    format: str
    quality: int | None
    mean: float
    std: float
    sharpness: float
    red: float
    green: float
    blue: float
    red_std: float
    green_std: float
    blue_std: float
    skew: float
    black: float
    peak: float
    midtones: float
    flat_tail: float
    doubled: float
    blockiness: float
    perceptual_hash: bytes


def inspect_image(data: bytes, max_pixels: int) -> ImageFacts | str:
    """Decode an image completely and describe it. Never raises on what the bytes are.

    `verify()` alone passes truncated JPEGs, so the pixels are loaded. The size is checked before they are: a few
    kilobytes can claim to be gigapixels. Pillow warns of some damage; a caller with threads silences it around them.

    Args:
        data: The file's bytes.
        max_pixels: Largest width x height that is decoded.

    Returns:
        The facts, or why there are none: one line, the same for the same bytes on every machine.
    """
    if not data:
        return "empty file"
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            pixels = image.width * image.height
            if pixels > max_pixels:
                return f"{pixels:,} pixels, at most {max_pixels:,} are read"
            image.load()
            return _describe(image)
    except Exception as error:  # noqa: BLE001 - whatever a decoder raises on damaged bytes, it is one bad file
        return _reason(error)


def _describe(image: Image.Image) -> ImageFacts:
    mode, kind, tables = image.mode, image.format or "", getattr(image, "quantization", None)
    ImageOps.exif_transpose(image, in_place=True)
    upright = image
    if mode not in ("L", "RGB"):  # the others have 8 bits already, and a copy of them takes as long as decoding
        upright = eight_bits(image, "L" if mode in _GREY_MODES or mode.startswith("I") else "RGB")
    grey_image = upright if upright.mode == "L" else upright.convert("L")
    grey = np.asarray(grey_image)
    counts = upright.histogram() + ([] if upright is grey_image else grey_image.histogram())
    shares = np.array(counts, dtype=np.float64).reshape(-1, 256) / grey.size  # the last row is the grey one
    means, squares, cubes = (shares @ _MOMENTS).T
    stds = np.sqrt(np.maximum(squares - means * means, 0.0)).tolist()
    mean, std, shades = float(means[-1]), stds[-1], shares[-1]
    third = float(cubes[-1]) - 3 * mean * float(squares[-1]) + 2 * mean**3
    red, green, blue = means.tolist()[:3] if len(shares) == 4 else [mean] * 3
    red_std, green_std, blue_std = stds[:3] if len(shares) == 4 else [std] * 3
    rows, columns = Lines.across(grey), Lines.across(grey.T)
    return ImageFacts(
        width=grey.shape[1],
        height=grey.shape[0],
        channels=Image.getmodebands(mode),
        mode=mode,
        format=kind,
        quality=jpeg_quality(next(iter(tables.values()))) if tables else None,
        mean=mean,
        std=std,
        sharpness=laplacian_variance(grey),
        red=red,
        green=green,
        blue=blue,
        red_std=red_std,
        green_std=green_std,
        blue_std=blue_std,
        skew=third / std**3 if std > LEAST_SPREAD else 0.0,
        black=float(shades[0]),
        peak=float(shades.nonzero()[0][-1]) / 255,
        midtones=float(shades[16:240].sum()),
        flat_tail=flat_tail(rows, columns),
        doubled=min(doubled_lines(rows), doubled_lines(columns)),
        blockiness=blockiness(rows, columns),
        perceptual_hash=perceptual_hash(grey_image),
    )


def _reason(error: Exception) -> str:
    """A line for people: no addresses of objects, which differ from run to run, and nothing that is not printable."""
    if isinstance(error, UnidentifiedImageError):
        return "damaged at its beginning, or no image"
    message = re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "the file", str(error))
    message = " ".join("".join(c if c.isprintable() else " " for c in message).split())
    if not isinstance(error, (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)):
        message = f"{type(error).__name__}: {message}"  # a bare "3" of a KeyError says nothing
    return message[:REASON_LENGTH].strip() or type(error).__name__


def jpeg_quality(table: list[int]) -> int:
    """Quality in [1, 100] whose luminance table is nearest: exact for libjpeg's tables, an estimate for others.

    Args:
        table: 64 divisors of the first quantisation table, in any order.
    """
    return int(np.abs(_TABLES - np.sort(table)).sum(axis=1).argmin()) + 1


def _every(lines: int) -> int:
    """Distance of the lines that are looked at; odd, or a JPEG's 8 x 8 grid would be met at the same places always."""
    return max(1, lines // _SAMPLED_LINES) | 1


def laplacian_variance(grey: np.ndarray) -> float:
    """Variance of the 4-neighbour Laplacian, 0 for an image too small to have one. Higher is sharper.

    Large images are looked at on a grid of points, each with its true neighbours: a reduced copy would be sharper.

    Args:
        grey: Grey values, shape (height, width): uint8, or float in [0, 1].

    Source:
        Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000.
    """
    height, width = grey.shape
    if min(height, width) < 3:
        return 0.0
    rows, columns = _every(height), _every(width)
    scale = 255.0 if grey.dtype == np.uint8 else 1.0

    def shifted(down: int, right: int) -> np.ndarray:
        return grey[1 + down : height - 1 + down : rows, 1 + right : width - 1 + right : columns].astype(np.float32)

    laplacian = shifted(-1, 0) + shifted(1, 0) + shifted(0, -1) + shifted(0, 1) - 4 * shifted(0, 0)
    return float((laplacian / scale).var())


@dataclass(frozen=True, kw_only=True)
class Lines:
    """The n rows (or columns) of a grey image of 8 bits, at up to some hundred points of each.

    Attributes:
        lowest: Smallest value of each line, shape (n,).
        highest: Largest, shape (n,).
        steps: Mean absolute difference of each line and the one after it, shape (n - 1,).
    """

    lowest: np.ndarray
    highest: np.ndarray
    steps: np.ndarray

    @classmethod
    def across(cls, grey: np.ndarray) -> Lines:
        """Look at the rows of grey values, uint8, shape (n, points)."""
        points = grey[:, :: _every(grey.shape[1])].astype(np.int16)
        return cls(
            lowest=points.min(axis=1),
            highest=points.max(axis=1),
            steps=np.abs(points[1:] - points[:-1]).mean(axis=1),
        )

    @property
    def uniform(self) -> np.ndarray:
        """Which lines have one value, give or take what compression adds; bool, shape (n,)."""
        within: np.ndarray = self.highest - self.lowest <= UNIFORM_LEVELS
        return within

    def strip(self, value: int, *, from_end: bool) -> float:
        """Share of the lines, from one edge inwards, that hold nothing but a value."""
        plain = (self.highest - value <= UNIFORM_LEVELS) & (value - self.lowest <= UNIFORM_LEVELS)
        ordered = plain[::-1] if from_end else plain
        return 1.0 if ordered.all() else float(ordered.argmin()) / len(ordered)


def flat_tail(rows: Lines, columns: Lines) -> float:
    """Share of the height that ends in a uniform strip, beyond the largest strip of its colour at another edge."""
    if not rows.uniform[-1]:
        return 0.0
    value = int(rows.lowest[-1])
    others = (
        rows.strip(value, from_end=False),
        columns.strip(value, from_end=False),
        columns.strip(value, from_end=True),
    )
    return max(0.0, rows.strip(value, from_end=True) - max(others))


def doubled_lines(lines: Lines) -> float:
    """Share of the lines that repeat the one before while a neighbour of it does not, in [0, 1]; plain ones count not.

    A step counts as a repetition below a quarter of a step beside it: enlarged images that were compressed again no
    longer repeat exactly. At a quarter, 5 % of honest images (digits, clothes, patches of photographs) exceed 0.15.
    """
    textured = ~(lines.uniform[1:] & lines.uniform[:-1])
    if textured.sum() < MIN_STEPS:
        return 0.0
    beside = np.zeros_like(lines.steps)
    beside[1:] = lines.steps[:-1]
    beside[:-1] = np.maximum(beside[:-1], lines.steps[1:])
    return float((lines.steps < beside / 4)[textured].mean())


def blockiness(rows: Lines, columns: Lines) -> float:
    """Mean step across the borders of 8 x 8 blocks divided by that within blocks; 1 for images below 16 pixels.

    Source:
        Wang, Sheikh & Bovik, "No-reference perceptual quality assessment of JPEG compressed images", ICIP 2002.
    """
    if min(len(rows.lowest), len(columns.lowest)) < 2 * _JPEG_BLOCK:
        return 1.0
    border = sum(float(lines.steps[_JPEG_BLOCK - 1 :: _JPEG_BLOCK].mean()) for lines in (rows, columns))
    total = sum(float(lines.steps.mean()) for lines in (rows, columns))
    within = (_JPEG_BLOCK * total - border) / (_JPEG_BLOCK - 1)
    return (border + 1.0) / (within + 1.0)  # one level of 255, so that plain images have none
